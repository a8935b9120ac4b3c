//! Connects the dispatcher with the world: makes its events durable, performs its actions, feeds it what happens.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Map, Value};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::clock::{Clock, NOTABLE_MS, Reading};
use crate::code;
use crate::crash::{self, Point};
use crate::journal::{self, Journal};
use crate::model::event::{Answer, Event, EventClass, EventKind};
use crate::model::evidence::{Created, CreatedKind};
use crate::model::ids::{Attempt, RunId, StepId};
use crate::model::request::Request;
use crate::plan::Plan;
use crate::process::boot_id;
use crate::redact::Redactor;
use crate::secret::Secrets;
use crate::step::{Registry, StepError};

use super::away::{self, Away};
use super::cleanup::Removal;
use super::dispatcher::{Action, Dispatcher, Input, Situation};
use super::executor::{Executor, ExecutorParts, GRACE, Launch};
use super::herald::{Herald, Watch};
use super::link::Message;
use super::state::{IllegalEvent, RunState, StepPhase};
use super::unit::Unit;
use super::within::{Maker, Removing};

pub use super::link::OutputSink;

/// Observes a run. What it does or fails to do can never change the run.
pub trait Reporter: Send {
    /// Takes note of something that has happened; essential events are durable by then.
    fn on_event(&mut self, at_ms: i64, event: &EventKind);
}

/// Where wishes of other processes come from.
pub trait RequestSource: Send {
    /// Returns wishes that are not in the journal yet, in the order in which they were made.
    fn poll(&mut self) -> Vec<(Uuid, Request)>;
    /// Forgets a wish whose consequence is durable.
    fn done(&mut self, id: Uuid);
}

/// What the process itself tells the driver.
#[derive(Debug)]
pub enum Control {
    Request(Request),
    /// The first signal: end attempts in an orderly way and leave the run open.
    Stop,
    /// The second signal: leave at once.
    Kill,
}

/// Whether the driver stays when only a person can help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    Stay,
    Leave,
}

/// Everything a run needs to be driven.
#[expect(missing_debug_implementations, reason = "holds secrets")]
pub struct Setup {
    pub run: RunId,
    pub plan: Arc<Plan>,
    pub registry: Arc<Registry>,
    pub journal: Journal,
    /// The fold of the journal so far; holds at least the declaration.
    pub state: RunState,
    /// The directory of the run's state.
    pub dir: PathBuf,
    pub secrets: Arc<Secrets>,
    /// Cleans everything that steps report before it reaches the journal or anybody's eyes.
    pub redactor: Redactor,
    pub output: Arc<dyn OutputSink>,
    pub clock: Arc<dyn Clock>,
    pub reporters: Vec<Box<dyn Reporter>>,
    pub controls: mpsc::Receiver<Control>,
    pub requests: Box<dyn RequestSource>,
    /// What to do when steps are held and nothing else can run.
    pub when_held: Patience,
    /// What to do when everything waits for answers.
    pub when_waiting: Patience,
}

/// Why a run could not be driven further. It stays open and can be resumed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the journal cannot be written")]
    Journal(#[from] journal::Error),
    #[error("the journal and this program disagree")]
    Illegal(#[from] IllegalEvent),
}

/// How many messages of attempts may wait. When it is full, attempts wait, and so does their progress.
const MESSAGE_LIMIT: usize = 4096;

/// How many inputs share one commit at most.
const TURN_LIMIT: usize = 512;

/// How often wishes of other processes are looked for.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// How long running attempts may take to end after the journal has failed: what they have anyway, and a little for the
/// way of the message.
const FAREWELL: Duration = GRACE.saturating_add(Duration::from_secs(5));

/// Drives a run until it has ended, or cannot go on without a person, or is told to stop.
///
/// Returns how it stands then. After an error nothing runs any more and the run can be resumed.
///
/// To be spawned on a runtime of several threads: a thread that only blocks on it is outside of them, and each attempt is
/// then handed to another thread and back, which takes longer than a synced write.
pub async fn drive(mut setup: Setup) -> Result<Situation, Error> {
    take_waiting(&mut setup).await?;
    let (sender, messages) = mpsc::channel(MESSAGE_LIMIT);
    let (mut driver, inlets) = Driver::new(setup, sender, messages);
    let result = driver.serve(inlets).await;
    match &result {
        // Who says it twice does not want to wait for notices.
        Ok(_) if driver.killed => {}
        Ok(situation) => driver.say_goodbye(*situation).await,
        Err(_) => driver.end_everything().await,
    }
    result
}

/// Takes down what other processes have left while nobody drove the run, before anything starts: somebody may have ended it,
/// and the process that was to hear of it was gone.
async fn take_waiting(setup: &mut Setup) -> Result<(), Error> {
    for (id, request) in setup.requests.poll() {
        let Setup { plan, journal, state, redactor, reporters, .. } = setup;
        let mut away = Away { plan, journal, state, redactor };
        for Event { at_ms, kind, .. } in away.take(id, request).await? {
            reporters.iter_mut().for_each(|reporter| reporter.on_event(at_ms, &kind));
        }
        setup.requests.done(id);
    }
    Ok(())
}

/// Where inputs come from.
struct Inlets {
    controls: mpsc::Receiver<Control>,
    when_held: Patience,
    when_waiting: Patience,
}

struct Driver {
    plan: Arc<Plan>,
    dispatcher: Dispatcher,
    executor: Executor,
    journal: Journal,
    clock: Arc<dyn Clock>,
    reporters: Vec<Box<dyn Reporter>>,
    redactor: Redactor,
    herald: Herald,
    requests: Box<dyn RequestSource>,
    sender: mpsc::Sender<Message>,
    messages: mpsc::Receiver<Message>,
    /// How far the wall clock was ahead of the run's time when that was last recorded.
    ahead_ms: Option<i64>,
    /// Attempts that wait for a person.
    asking: HashMap<(StepId, String), oneshot::Sender<Answer>>,
    /// Told to leave at once.
    killed: bool,
}

/// Inputs of one turn, with those who wait for their durability.
#[derive(Default)]
struct Turn {
    inputs: Vec<Input>,
    replies: Vec<oneshot::Sender<()>>,
    /// The wish of another process that this turn grants.
    request: Option<Uuid>,
}

impl Driver {
    fn new(setup: Setup, sender: mpsc::Sender<Message>, messages: mpsc::Receiver<Message>) -> (Self, Inlets) {
        let incident_at =
            Timestamp::from_millisecond(setup.state.incident_at_ms).unwrap_or(Timestamp::UNIX_EPOCH);
        let herald = Herald {
            run: setup.run,
            plan: Arc::clone(&setup.plan),
            messenger: setup.registry.messenger(),
            secrets: Arc::clone(&setup.secrets),
            redactor: setup.redactor.clone(),
            clock: Arc::clone(&setup.clock),
            sender: sender.clone(),
            watch: Watch::default(),
            posts: JoinSet::new(),
            queues: HashMap::new(),
        };
        let executor = Executor::new(ExecutorParts {
            plan: Arc::clone(&setup.plan),
            registry: Arc::clone(&setup.registry),
            run: setup.run,
            incident_at,
            dir: setup.dir,
            secrets: setup.secrets,
            output: setup.output,
            messages: sender.clone(),
        });
        let plan = Arc::clone(&setup.plan);
        let dispatcher =
            Dispatcher::new(setup.run, setup.plan, setup.registry, setup.state, Box::new(random));
        let driver = Self {
            plan,
            dispatcher,
            executor,
            journal: setup.journal,
            clock: setup.clock,
            reporters: setup.reporters,
            redactor: setup.redactor,
            herald,
            requests: setup.requests,
            sender,
            messages,
            ahead_ms: None,
            asking: HashMap::new(),
            killed: false,
        };
        let inlets =
            Inlets { controls: setup.controls, when_held: setup.when_held, when_waiting: setup.when_waiting };
        (driver, inlets)
    }

    async fn serve(&mut self, mut inlets: Inlets) -> Result<Situation, Error> {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        self.read_clock();
        let started = Input::EngineStarted { pid: std::process::id(), host, boot_id: boot_id() };
        let lost = printed_by(self.lost_attempts(), self.executor.output()).await;
        self.turn(Turn { inputs: std::iter::once(started).chain(lost).collect(), ..Turn::default() }).await?;
        let mut poll = tokio::time::interval(POLL_INTERVAL);
        poll.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            self.herald.look(self.dispatcher.state(), &self.journal.head());
            let situation = self.dispatcher.situation();
            if must_leave(situation, &inlets) {
                // What people have decided meanwhile may be what it waits for.
                let wish = if only_people_can_help(situation) { self.last_wish(&mut inlets) } else { None };
                let Some(wish) = wish else { return Ok(situation) };
                self.turn(wish).await?;
                continue;
            }
            let turn = tokio::select! {
                Some(message) = self.messages.recv() => {
                    // Attempts that are about to end share the commit.
                    if self.executor.runs_several() {
                        tokio::task::yield_now().await;
                    }
                    self.gather(message)
                }
                Some(control) = inlets.controls.recv() => match control {
                    Control::Request(request) => said(request),
                    Control::Stop => one(Input::Stop),
                    Control::Kill => {
                        self.killed = true;
                        return Ok(Situation::Stopped);
                    }
                },
                () = sleep_until(self.dispatcher.next_wake_ms(), &*self.clock) => one(Input::Tick),
                _ = poll.tick() => {
                    // What runs now could not be recorded when it ends.
                    if let Some(error) = self.journal.fault() {
                        return Err(error.into());
                    }
                    self.read_clock();
                    self.wish()
                }
            };
            self.turn(turn).await?;
        }
    }

    /// Returns the attempts whose process is gone.
    fn lost_attempts(&self) -> Vec<(StepId, Attempt)> {
        let state = self.dispatcher.state();
        let mut lost = Vec::new();
        for at in 0..state.steps.len() {
            let elements = state.steps[at].elements.as_ref().map_or(0, |elements| elements.states.len());
            let units = (0..elements).map(|element| Unit::element(at, element));
            for unit in std::iter::once(Unit::whole(at)).chain(units) {
                let now = state.of(unit);
                if now.phase == StepPhase::Running {
                    lost.push((unit.id(&self.plan), now.attempt));
                }
            }
        }
        lost
    }

    /// Records what the clocks show, for later processes, and that somebody has set one.
    fn read_clock(&mut self) {
        let Some(reading) = self.clock.reading() else { return };
        let ahead = reading.ahead_ms();
        if self.ahead_ms.is_some_and(|known| ahead.abs_diff(known) < NOTABLE_MS.unsigned_abs()) {
            return;
        }
        self.ahead_ms = Some(ahead);
        let Reading { run_ms, wall_ms, boot_ms, boot_id } = reading;
        self.advise(EventKind::ClockRead { run_ms, wall_ms, boot_ms, boot_id });
    }

    /// Takes what people have said, in this process or another one, and nobody has looked at yet.
    fn last_wish(&mut self, inlets: &mut Inlets) -> Option<Turn> {
        if let Ok(Control::Request(request)) = inlets.controls.try_recv() {
            return Some(said(request));
        }
        Some(self.wish()).filter(|wish| !wish.inputs.is_empty())
    }

    /// Takes what else has arrived meanwhile, so that it shares a commit.
    fn gather(&mut self, first: Message) -> Turn {
        let mut turn = Turn::default();
        self.take(first, &mut turn);
        while turn.inputs.len() < TURN_LIMIT {
            match self.messages.try_recv() {
                Ok(message) => self.take(message, &mut turn),
                Err(_) => break,
            }
        }
        turn
    }

    fn take(&mut self, message: Message, turn: &mut Turn) {
        if self.is_superseded(&message, turn) {
            // Without a reply it learns that the journal is closed to it, and stops.
            return;
        }
        let input = match message.cleaned(&self.redactor) {
            Message::Ended { step, attempt, result, output } => {
                self.executor.ended(&step);
                let kept = Input::OutputKept { step: step.clone(), attempt, files: output };
                turn.inputs.push(kept);
                Input::AttemptEnded { step, attempt, result }
            }
            Message::Record { step, key, value, reply, .. } => {
                turn.replies.push(reply);
                Input::Recorded { step, key, value }
            }
            Message::Created { step, thing, reply, .. } => {
                turn.replies.push(reply);
                Input::ThingCreated { step, thing }
            }
            Message::Asked { step, question, reply, .. } => {
                self.asking.insert((step.clone(), question.id.clone()), reply);
                Input::Asked { step, question }
            }
            Message::Gone { id, proof, reply } => {
                turn.replies.push(reply);
                Input::ThingRemoved { id, proof, removed: true }
            }
            Message::Removed { id, proof, removed } => Input::ThingRemoved { id, proof, removed },
            Message::CleanedUp => Input::CleanedUp,
            Message::Notified { occasion, channel, problem } => {
                return self.advise(EventKind::Notified { occasion, channel, problem });
            }
            Message::Progressed { step, attempt, progress } => {
                return self.advise(EventKind::Progressed { step, attempt, progress });
            }
            Message::Line { step, attempt, stream, line } => {
                return self.advise(EventKind::OutputLine { step, attempt, stream, line });
            }
        };
        turn.inputs.push(input);
    }

    /// Says whether an attempt wants to act that has ended already, or that another one has followed: something of it goes
    /// on although it was told to end.
    fn is_superseded(&self, message: &Message, turn: &Turn) -> bool {
        let (Message::Record { step, attempt, .. }
        | Message::Created { step, attempt, .. }
        | Message::Asked { step, attempt, .. }) = message
        else {
            return false;
        };
        let ended = |input: &Input| matches!(input, Input::AttemptEnded { step: of, .. } if of == step);
        !self.dispatcher.runs(step, *attempt) || turn.inputs.iter().any(ended)
    }

    /// Takes the oldest wish of another process; the next one follows with the next look.
    fn wish(&mut self) -> Turn {
        for (id, request) in self.requests.poll() {
            if !self.journal.knows(id) {
                return Turn { inputs: vec![Input::Request(request)], request: Some(id), ..Turn::default() };
            }
            // An earlier process granted it and was gone before it could forget it.
            self.requests.done(id);
        }
        Turn::default()
    }

    fn advise(&mut self, event: EventKind) {
        let now = self.clock.now_ms();
        self.reporters.iter_mut().for_each(|reporter| reporter.on_event(now, &event));
        // The whole output is in files; the journal would only grow by it.
        if !matches!(event, EventKind::OutputLine { .. }) {
            self.journal.advise(event);
        }
    }

    /// Removes secrets from what people wrote.
    fn cleaned(&self, input: Input) -> Input {
        match input {
            Input::Request(request) => Input::Request(away::cleaned(&self.redactor, request)),
            other => other,
        }
    }

    /// Handles inputs, commits all events that follow, then performs the actions.
    async fn turn(&mut self, turn: Turn) -> Result<(), Error> {
        let now = self.clock.now_ms();
        let mut events = Vec::new();
        let mut actions = Vec::new();
        for input in turn.inputs {
            let input = self.cleaned(input);
            for action in self.dispatcher.handle(input, now)? {
                match action {
                    Action::Append(event) if event.class() == EventClass::Advisory => self.advise(event),
                    Action::Append(event) => events.push(event),
                    Action::Refuse { by, reason } => {
                        let request = turn.request.unwrap_or_default();
                        events.push(away::refused(&self.redactor, request, by, &reason));
                    }
                    other => actions.push(other),
                }
            }
        }
        if !events.is_empty() || turn.request.is_some() {
            let written = self.journal.append_for(turn.request.into_iter().collect(), events).await?;
            for event in &written {
                self.reporters.iter_mut().for_each(|reporter| reporter.on_event(event.at_ms, &event.kind));
            }
            let head = self.journal.head();
            self.herald.observe(written.iter().map(|event| &event.kind), self.dispatcher.state(), &head);
        }
        crash::point(Point::TurnCommitted);
        actions.into_iter().for_each(|action| self.perform(action));
        crash::point(Point::TurnPerformed);
        if let Some(id) = turn.request {
            self.requests.done(id);
        }
        for reply in turn.replies {
            // Whoever no longer waits has been cancelled.
            let _ = reply.send(());
        }
        Ok(())
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Launch { unit, attempt, with, probe, names } => {
                let (recorded, made) = (self.recorded(unit), self.dispatcher.state().made.clone());
                self.executor.launch(Launch { unit, attempt, with, probe, names, recorded, made });
            }
            Action::EndAttempt { unit } => self.executor.end(unit),
            Action::Deliver { step, question, answer } => {
                if let Some(reply) = self.asking.remove(&(step, question)) {
                    drop(reply.send(answer));
                }
            }
            Action::CleanUp(things) => self.clean_up(things),
            Action::Refuse { .. } | Action::Append(_) => {
                unreachable!("events are taken out before actions are performed")
            }
        }
    }

    /// Returns what earlier attempts recorded. The kind of a step undoes its own work by what the step recorded.
    fn recorded(&self, unit: Unit) -> Map<String, Value> {
        let state = self.dispatcher.state();
        let undo = self.plan.undo_at(unit.position).filter(|undo| undo.built_in.is_some());
        let of = undo.and_then(|undo| state.position(&undo.of)).map(|position| Unit { position, ..unit });
        let mut recorded = of.map(|of| state.of(of).recorded.clone()).unwrap_or_default();
        recorded.extend(state.of(unit).recorded.clone());
        recorded
    }

    fn clean_up(&self, things: Vec<(StepId, Created)>) {
        let sender = self.sender.clone();
        let things: Vec<_> = things.into_iter().map(|(step, thing)| self.removing(&step, thing)).collect();
        tokio::spawn(async move {
            for (id, removing) in things {
                let Removal { removed, proof } = removing.carry_out().await;
                crash::point(Point::ThingRemoved);
                // Without a listener the engine is ending; resume tries again.
                let _ = sender.send(Message::Removed { id, proof, removed }).await;
            }
            let _ = sender.send(Message::CleanedUp).await;
        });
    }

    /// Returns the id of a thing and how it is removed.
    fn removing(&self, step: &StepId, thing: Created) -> (String, Removing) {
        let CreatedKind::Within { resource, handle } = thing.kind else {
            return (thing.id.clone(), Removing::Aside(thing));
        };
        let state = self.dispatcher.state();
        let cleaner = match state.position(&step.whole()) {
            Some(position) => {
                self.executor.cleaner(Maker { step: step.clone(), position, made: state.made.clone() })
            }
            None => Err(StepError::permanent(code::LB0309, format!("the plan has no step `{step}`"))),
        };
        let removing = match cleaner {
            Ok(cleaner) => Removing::Within { cleaner, resource, handle },
            Err(error) => Removing::Impossible(error),
        };
        (thing.id, removing)
    }

    /// Waits for the last notices, and takes down what became of them.
    async fn say_goodbye(&mut self, situation: Situation) {
        self.read_clock();
        self.herald.leave(situation, &self.journal.head()).await;
        while let Ok(message) = self.messages.try_recv() {
            if let Message::Notified { occasion, channel, problem } = message.cleaned(&self.redactor) {
                self.advise(EventKind::Notified { occasion, channel, problem });
            }
        }
    }

    /// Ends all attempts after the journal has failed: their results cannot be recorded any more.
    async fn end_everything(&mut self) {
        self.executor.end_all();
        self.asking.clear();
        let deadline = tokio::time::Instant::now() + FAREWELL;
        while self.executor.is_busy() {
            match tokio::time::timeout_at(deadline, self.messages.recv()).await {
                Ok(Some(Message::Ended { step, .. })) => self.executor.ended(&step),
                // Dropping a message tells whoever waits for it that the journal is closed.
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => break,
            }
        }
    }
}

/// Says what attempts have printed whose process is gone.
async fn printed_by(lost: Vec<(StepId, Attempt)>, output: Arc<dyn OutputSink>) -> Vec<Input> {
    let seal = move |(step, attempt): (StepId, Attempt)| {
        let files = output.seal(&step, attempt);
        Input::OutputKept { step, attempt, files }
    };
    tokio::task::spawn_blocking(move || lost.into_iter().map(seal).collect()).await.unwrap_or_default()
}

fn one(input: Input) -> Turn {
    Turn { inputs: vec![input], ..Turn::default() }
}

/// Takes what was said in this process. It gets an id as requests of other processes have, so that both leave the same
/// record.
fn said(request: Request) -> Turn {
    Turn { request: Some(Uuid::now_v7()), ..one(Input::Request(request)) }
}

fn only_people_can_help(situation: Situation) -> bool {
    matches!(situation, Situation::Held | Situation::WaitingForPerson | Situation::Paused)
}

fn must_leave(situation: Situation, inlets: &Inlets) -> bool {
    match situation {
        Situation::Finished(_) | Situation::Stopped | Situation::Stuck => true,
        Situation::Held => inlets.when_held == Patience::Leave,
        Situation::WaitingForPerson | Situation::Paused => inlets.when_waiting == Patience::Leave,
        Situation::Busy => false,
    }
}

async fn sleep_until(due_ms: Option<i64>, clock: &dyn Clock) {
    match due_ms {
        Some(due) => {
            let left = u64::try_from(due - clock.now_ms()).unwrap_or(0);
            // The wall clock may jump: look again at least every second.
            tokio::time::sleep(Duration::from_millis(left.min(1000))).await;
        }
        None => std::future::pending().await,
    }
}

/// Returns a number in `0.0..1.0` for jitter, where nothing depends on how random it is.
fn random() -> f64 {
    let bytes = Uuid::now_v7().into_bytes();
    f64::from(u16::from_be_bytes([bytes[14], bytes[15]])) / 65536.0
}
