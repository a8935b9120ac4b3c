//! Decides what happens next: inputs in, events and actions out, no I/O.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::code;
use crate::expr;
use crate::model::event::{Answer, AttemptResult, Decision, EventKind, Person, Question};
use crate::model::evidence::{Created, OutputFile};
use crate::model::ids::{Attempt, RunId, StepId};
use crate::model::outcome::{Failure, FailureKind, Outcome, RunOutcome};
use crate::model::request::Request;
use crate::plan::{Plan, PlannedStep};
use crate::step::Registry;

use crate::run::names::{Names, Standing};
use crate::run::retry;
use crate::run::settle::{Circumstances, Consequence, consequence};
use crate::run::state::{IllegalEvent, Phase, RunState, StepPhase, StepState};
use crate::run::unit::Unit;

mod elements;
mod ending;
mod graph;
mod launch;
mod people;
mod slots;
mod undo;

pub(crate) use slots::USUAL;

use elements::Loop;
use ending::Undo;
use graph::{Graph, lets_go_on, part};
use slots::Slots;

/// What reaches the dispatcher.
#[derive(Debug)]
pub enum Input {
    /// This process takes the run over; the first process says so too, after the declaration.
    EngineStarted {
        pid: u32,
        host: String,
        boot_id: String,
    },
    AttemptEnded {
        step: StepId,
        attempt: Attempt,
        result: AttemptResult,
    },
    /// What an attempt printed is complete. Comes before its end.
    OutputKept {
        step: StepId,
        attempt: Attempt,
        files: Vec<OutputFile>,
    },
    Recorded {
        step: StepId,
        key: String,
        value: Value,
    },
    ThingCreated {
        step: StepId,
        thing: Created,
    },
    Asked {
        step: StepId,
        question: Question,
    },
    Request(Request),
    ThingRemoved {
        id: String,
        proof: String,
        removed: bool,
    },
    /// Every thing of the last [`Action::CleanUp`] was tried.
    CleanedUp,
    /// Time has passed.
    Tick,
    /// A signal: nothing further starts, running attempts end, the run stays open.
    Stop,
}

/// What the driver does for the dispatcher, after the events of the same turn are durable.
#[derive(Debug, PartialEq)]
pub enum Action {
    /// Makes an event durable. Always precedes the actions that rely on it.
    Append(EventKind),
    Launch {
        unit: Unit,
        attempt: Attempt,
        with: Value,
        /// Ask the probe first: an earlier attempt may have done the work.
        probe: bool,
        /// What `until` may read besides `output`; empty without one.
        names: Map<String, Value>,
    },
    EndAttempt {
        unit: Unit,
    },
    /// Gives an answer to the attempt that waits for it.
    Deliver {
        step: StepId,
        question: String,
        answer: Answer,
    },
    /// Removes what steps have made, in this order.
    CleanUp(Vec<(StepId, Created)>),
    /// Tells whoever asked that a request could not be granted.
    Refuse {
        by: Person,
        reason: String,
    },
}

/// How a run stands between two inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Situation {
    /// Attempts run or a timer is set.
    Busy,
    /// All that is left waits for a person's answer.
    WaitingForPerson,
    /// Steps are held and nothing else can run.
    Held,
    Paused,
    /// A signal stopped it and no attempt runs any more.
    Stopped,
    Finished(RunOutcome),
    /// Nothing can ever happen: a defect of this program.
    Stuck,
}

/// The owner of the state of a run.
pub struct Dispatcher {
    run: RunId,
    plan: Arc<Plan>,
    registry: Arc<Registry>,
    names: Names,
    state: RunState,
    graph: Graph,
    /// Steps that can start now.
    slots: Slots,
    /// Steps of `always` that could start if the run had come to its end.
    after_main: BTreeSet<Unit>,
    /// Retries by the moment they are due.
    timers: BTreeSet<(i64, Unit)>,
    running: BTreeSet<Unit>,
    /// Steps that are being repeated, by their positions.
    loops: BTreeMap<usize, Loop>,
    /// What is still to be undone, newest first. Filled when the run ends with undo.
    undos: VecDeque<Unit>,
    stopping: bool,
    cleaning: bool,
    /// This process has tried to remove everything; what is left cannot be removed by it.
    cleaned: bool,
    random: Box<dyn FnMut() -> f64 + Send>,
    actions: Vec<Action>,
}

impl Dispatcher {
    /// Takes over a run in the state that its journal says; `random` gives numbers in `0.0..1.0` for jitter.
    pub fn new(
        run: RunId,
        plan: Arc<Plan>,
        registry: Arc<Registry>,
        state: RunState,
        random: Box<dyn FnMut() -> f64 + Send>,
    ) -> Self {
        let names = Names::new(&plan, run, state.incident_at_ms);
        let graph = Graph::new(&plan, &state);
        let waits = |step: &PlannedStep| registry.spec(&step.uses).is_some_and(|spec| spec.waits_for_people);
        let people = plan.everything().map(waits).collect();
        let mut dispatcher = Self {
            run,
            slots: Slots::new(&plan, people),
            names,
            graph,
            plan,
            registry,
            state,
            after_main: BTreeSet::new(),
            timers: BTreeSet::new(),
            running: BTreeSet::new(),
            loops: BTreeMap::new(),
            undos: VecDeque::new(),
            stopping: false,
            cleaning: false,
            cleaned: false,
            random,
            actions: Vec::new(),
        };
        if dispatcher.state.undoing {
            dispatcher.undos = dispatcher.open_undos();
        }
        dispatcher
    }

    /// Returns the state after every input so far.
    pub fn state(&self) -> &RunState {
        &self.state
    }

    /// Says whether this attempt of a step or an element is the one that runs.
    pub fn runs(&self, step: &StepId, attempt: Attempt) -> bool {
        let state = self.state.unit(step).map(|unit| self.of(unit));
        state.is_some_and(|state| state.phase == StepPhase::Running && state.attempt == attempt)
    }

    /// Returns the moment at which a [`Input::Tick`] is due.
    pub fn next_wake_ms(&self) -> Option<i64> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Says how the run stands.
    pub fn situation(&self) -> Situation {
        if let Phase::Finished(outcome) = self.state.phase {
            return Situation::Finished(outcome);
        }
        if self.stopping && self.running.is_empty() {
            return Situation::Stopped;
        }
        let asking = |unit: &&Unit| self.state.of(**unit).asks();
        let waiting = self.running.iter().filter(asking).count();
        if self.cleaning || self.running.len() > waiting || !self.timers.is_empty() {
            Situation::Busy
        } else if waiting > 0 {
            Situation::WaitingForPerson
        } else if self.state.paused {
            Situation::Paused
        } else if self.any_element_held() || self.state.steps.iter().any(|step| step.phase == StepPhase::Held)
        {
            Situation::Held
        } else {
            Situation::Stuck
        }
    }

    /// Takes one input and returns what must be done, in order.
    pub fn handle(&mut self, input: Input, now_ms: i64) -> Result<Vec<Action>, IllegalEvent> {
        match input {
            Input::EngineStarted { pid, host, boot_id } => {
                self.emit(EventKind::EngineStarted { pid, host, boot_id })?;
                self.take_over(now_ms)?;
            }
            Input::AttemptEnded { step, attempt, result } => {
                self.attempt_ended(&step, attempt, result, now_ms)?;
            }
            Input::OutputKept { step, attempt, files } => self.output_kept(step, attempt, files)?,
            Input::Recorded { step, key, value } => self.emit(EventKind::Recorded { step, key, value })?,
            Input::ThingCreated { step, thing } => self.emit(EventKind::ThingCreated { step, thing })?,
            Input::Asked { step, question } => self.asked(step, question)?,
            Input::Request(request) => self.request(request)?,
            Input::ThingRemoved { id, proof, removed } => {
                self.emit(EventKind::ThingRemoved { id, proof, removed })?;
            }
            Input::CleanedUp => {
                self.cleaning = false;
                self.cleaned = true;
                self.finish()?;
            }
            Input::Tick => {}
            Input::Stop => self.stop(),
        }
        self.advance(now_ms)?;
        Ok(std::mem::take(&mut self.actions))
    }

    fn emit(&mut self, event: EventKind) -> Result<(), IllegalEvent> {
        self.state.apply(&event)?;
        self.actions.push(Action::Append(event));
        Ok(())
    }

    /// Brings attempts of a process that is gone to an end, and finds out what can start.
    ///
    /// All of them are recorded as lost before anything follows from one of them: what follows may end the run, and then
    /// every other one must be seen for what it was.
    fn take_over(&mut self, now_ms: i64) -> Result<(), IllegalEvent> {
        self.record_lost()?;
        self.restore_loops();
        self.end_as_decided()?;
        for at in 0..self.plan.steps.len() {
            self.take_over_unit(Unit::whole(at), now_ms)?;
        }
        self.take_over_undos(now_ms)
    }

    fn record_lost(&mut self) -> Result<(), IllegalEvent> {
        let units = self.state.steps.iter().enumerate().flat_map(|(at, step)| {
            let count = step.elements.as_ref().map_or(0, |elements| elements.states.len());
            std::iter::once(Unit::whole(at)).chain((0..count).map(move |element| Unit::element(at, element)))
        });
        let lost: Vec<_> = units.filter(|unit| self.of(*unit).phase == StepPhase::Running).collect();
        for unit in lost {
            let (step, attempt) = (self.id(unit), self.of(unit).attempt);
            self.emit(EventKind::AttemptFinished { step, attempt, result: AttemptResult::Lost })?;
        }
        Ok(())
    }

    fn take_over_unit(&mut self, unit: Unit, now_ms: i64) -> Result<(), IllegalEvent> {
        match self.of(unit).phase.clone() {
            StepPhase::Settling(result) => self.settle(unit, &result, now_ms)?,
            // If the run is ending, it is closed with the others.
            StepPhase::WaitingRetry { at_ms } if !self.ending(unit) => {
                self.timers.insert((at_ms, unit));
            }
            StepPhase::Decided(_) => self.follow_decision(unit)?,
            StepPhase::Waiting if self.graph.blockers.get(unit.position) == Some(&0) => self.make_ready(unit),
            StepPhase::Repeating => self.take_over_loop(unit.position, now_ms)?,
            _ => {}
        }
        Ok(())
    }

    /// Ends the run if a person or a step has ended it, and only the decision or the step's own end is recorded.
    fn end_as_decided(&mut self) -> Result<(), IllegalEvent> {
        if self.state.phase != Phase::Main {
            return Ok(());
        }
        if let Some((by, Decision::Abort { reason })) = &self.state.ended_by {
            let reason = format!("ended by {}: {reason}", by.name);
            return self.begin_ending(RunOutcome::Aborted, reason, Undo::Begun);
        }
        if let Some((by, Decision::Cancel { reason })) = &self.state.ended_by {
            let reason = format!("ended by {}: {reason}", by.name);
            return self.begin_ending(RunOutcome::Aborted, reason, Undo::Nothing);
        }
        let fatal = (0..self.plan.steps.len()).find_map(|at| match self.state.steps[at].outcome() {
            Some(Outcome::Failed { failure }) if self.is_fatal(at) => Some((at, failure.message.clone())),
            _ => None,
        });
        let Some((at, message)) = fatal else { return Ok(()) };
        let reason = format!("`{}` failed: {message}", self.plan.steps[at].id);
        self.begin_ending(RunOutcome::Failed, reason, Undo::Begun)
    }

    /// Says whether the failure of a step ends the run.
    fn is_fatal(&self, at: usize) -> bool {
        self.plan.at(at).on_error == crate::plan::OnError::Abort && !self.is_handled(at)
    }

    /// Says whether another step waits for the failure of this one.
    fn is_handled(&self, at: usize) -> bool {
        self.graph.handled.get(at).is_some_and(|handled| *handled)
    }

    fn attempt_ended(
        &mut self,
        id: &StepId,
        attempt: Attempt,
        result: AttemptResult,
        now_ms: i64,
    ) -> Result<(), IllegalEvent> {
        let Some(unit) = self.state.unit(id) else { return Ok(()) };
        let state = self.of(unit);
        // A superseded attempt has no say.
        if state.phase != StepPhase::Running || state.attempt != attempt {
            return Ok(());
        }
        self.running.remove(&unit);
        self.slots.ended(unit.position);
        let result = self.judge(unit, result);
        self.emit(EventKind::AttemptFinished { step: id.clone(), attempt, result: result.clone() })?;
        // An attempt that a signal ended is settled when the run is resumed, unless the run is ending without it anyway.
        let stopped = self.stopping && result == AttemptResult::Interrupted && !self.ending(unit);
        if stopped { Ok(()) } else { self.settle(unit, &result, now_ms) }
    }

    /// Takes down what an attempt has printed: also one whose place another has taken, for it did print it.
    fn output_kept(
        &mut self,
        step: StepId,
        attempt: Attempt,
        files: Vec<OutputFile>,
    ) -> Result<(), IllegalEvent> {
        if files.is_empty() || self.state.unit(&step).is_none() {
            return Ok(());
        }
        self.emit(EventKind::OutputKept { step, attempt, files })
    }

    /// Applies the step's own `expect` to a success.
    fn judge(&self, unit: Unit, result: AttemptResult) -> AttemptResult {
        let step = self.step(unit);
        let AttemptResult::Succeeded { mut done } = result else { return result };
        if step.expect.is_empty() {
            return AttemptResult::Succeeded { done };
        }
        // Inputs of a scope that cannot be evaluated are undefined here, and what reads them does not pass.
        let mut names = self.names_of(unit, &json!(step.expect)).unwrap_or_default();
        names.insert("output".into(), Value::Object(done.outputs.clone()));
        let checks = expr::check_all("expect", &step.expect, &names);
        let broken = checks.iter().find(|check| !check.passed).cloned();
        done.checks.extend(checks);
        let Some(check) = broken else { return AttemptResult::Succeeded { done } };
        let failure = Failure {
            kind: FailureKind::Permanent,
            code: code::LB0308.id.to_owned(),
            message: format!("`{}` does not hold: {}", check.expected, check.actual),
            help: Some("the step did its work, but not with the result that the runbook expects".to_owned()),
            causes: Vec::new(),
        };
        AttemptResult::Failed { failure, checks: done.checks }
    }

    fn settle(&mut self, unit: Unit, result: &AttemptResult, now_ms: i64) -> Result<(), IllegalEvent> {
        if self.ending(unit) {
            return self.close(unit);
        }
        let around = Circumstances {
            mode: self.plan.mode,
            handled: self.is_handled(unit.position),
            retry_allowed: self.retry_allowed(unit),
        };
        match consequence(self.step(unit), &self.id(unit), self.of(unit), result, around) {
            Consequence::Succeed => self.end_unit(unit, Outcome::Succeeded),
            Consequence::Again => {
                self.make_ready(unit);
                Ok(())
            }
            Consequence::Retry => self.schedule_retry(unit, now_ms),
            // Nobody is asked while a run is undone: the failure is recorded and the rest goes on.
            Consequence::Hold(failure) if self.is_undo(unit) => self.fail_unit(unit, failure),
            Consequence::Hold(failure) => {
                self.element_held(unit);
                self.emit(EventKind::StepHeld { step: self.id(unit), failure })
            }
            Consequence::Fail(failure) => self.fail_unit(unit, failure),
        }
    }

    fn retry_allowed(&self, unit: Unit) -> bool {
        let (step, state) = (self.step(unit), self.of(unit));
        let Some(when) = &step.retry.when else { return true };
        let Ok(mut names) = self.names_of(unit, &json!(when)) else { return false };
        names.insert("error".into(), serde_json::to_value(&state.last_failure).unwrap_or_default());
        names.insert("attempt".into(), state.attempt.into());
        // A condition that cannot be evaluated must not repeat anything.
        expr::holds(when, &names).unwrap_or(false)
    }

    fn standing(&self) -> Standing<'_> {
        Standing { plan: &self.plan, state: &self.state }
    }

    fn names_for(&self, scope: Option<usize>, texts: &Value) -> Result<Map<String, Value>, expr::ExprError> {
        self.names.for_texts(&self.standing(), scope, texts)
    }

    /// Returns the step that an attempt belongs to.
    fn step(&self, unit: Unit) -> &PlannedStep {
        self.plan.at(unit.position)
    }

    fn of(&self, unit: Unit) -> &StepState {
        self.state.of(unit)
    }

    /// Returns the id under which the journal knows it.
    fn id(&self, unit: Unit) -> StepId {
        unit.id(&self.plan)
    }

    /// Returns the names that texts of a step see.
    fn names_of(&self, unit: Unit, texts: &Value) -> Result<Map<String, Value>, expr::ExprError> {
        let mut names = self.names_for(self.step(unit).scope, texts)?;
        let items = self.state.steps[unit.position].elements.as_ref().map(|elements| &elements.items);
        if let Some((element, item)) = unit.element.and_then(|at| Some((at, items?.get(at)?))) {
            names.insert("item".into(), item.clone());
            names.insert("index".into(), element.into());
        }
        Ok(names)
    }

    fn schedule_retry(&mut self, unit: Unit, now_ms: i64) -> Result<(), IllegalEvent> {
        let random = (self.random)();
        let wait = retry::delay(&self.step(unit).retry, self.of(unit).used, random);
        let at_ms = now_ms + i64::try_from(wait.as_millis()).unwrap_or(i64::MAX / 2);
        let next_attempt = self.of(unit).attempt + 1;
        self.emit(EventKind::RetryScheduled { step: self.id(unit), next_attempt, at_ms })?;
        self.timers.insert((at_ms, unit));
        Ok(())
    }

    fn fail_unit(&mut self, unit: Unit, failure: Failure) -> Result<(), IllegalEvent> {
        // The failure of an element counts when the others that run have ended.
        let ends = unit.element.is_none() && self.is_fatal(unit.position);
        let reason = format!("`{}` failed: {}", self.id(unit), failure.message);
        self.end_unit(unit, Outcome::Failed { failure })?;
        if ends && self.state.phase == Phase::Main {
            self.begin_ending(RunOutcome::Failed, reason, Undo::Begun)?;
        }
        Ok(())
    }

    fn end_unit(&mut self, unit: Unit, outcome: Outcome) -> Result<(), IllegalEvent> {
        let failed = matches!(outcome, Outcome::Failed { .. });
        let goes_on = lets_go_on(&self.plan, unit.position, &outcome);
        if self.of(unit).phase == StepPhase::Held {
            self.element_released(unit);
        }
        self.emit(EventKind::StepFinished { step: self.id(unit), outcome })?;
        self.unready(unit);
        if self.is_undo(unit) {
            // They end in their order, unless a journal says otherwise.
            match self.undos.front() {
                Some(first) if *first == unit => drop(self.undos.pop_front()),
                _ => self.undos.retain(|undo| *undo != unit),
            }
            return Ok(());
        }
        if unit.element.is_some() {
            return self.element_ended(unit, failed);
        }
        let at = unit.position;
        self.end_loop(at);
        self.graph.open[part(&self.plan, at)] -= 1;
        for dependant in self.graph.ended(at, goes_on) {
            if self.state.steps[dependant].phase == StepPhase::Waiting {
                self.make_ready(Unit::whole(dependant));
            }
        }
        Ok(())
    }

    fn stop(&mut self) {
        self.stopping = true;
        let all = self.running.iter().map(|unit| Action::EndAttempt { unit: *unit });
        self.actions.extend(all);
    }

    /// Starts what can start and ends what is complete, until nothing changes.
    fn advance(&mut self, now_ms: i64) -> Result<(), IllegalEvent> {
        self.fire_timers(now_ms);
        self.launch_ready(now_ms)?;
        if self.state.phase == Phase::Main && self.graph.open[0] == 0 {
            let reason = "every step has ended".to_owned();
            self.begin_ending(RunOutcome::Succeeded, reason, Undo::Nothing)?;
        } else if matches!(self.state.phase, Phase::Ending(_))
            && self.graph.open[0] > 0
            && self.graph.open[0] > self.closing_main()
        {
            // Only after a crash in the middle of an ending.
            self.close_main()?;
        }
        self.go_on_undoing(now_ms)?;
        self.launch_ready(now_ms)?;
        self.finish()
    }

    /// Counts the steps of the main part that may go on although the run ends.
    fn closing_main(&self) -> usize {
        let open = |at: &usize| {
            let step = &self.plan.steps[*at];
            let lasts = step.concludes.is_some() && self.state.steps[*at].outcome().is_none();
            part(&self.plan, *at) == 0 && (lasts || (!step.always && self.is_running(*at)))
        };
        (0..self.plan.steps.len()).filter(open).count()
    }

    /// Says whether an attempt of a step runs, or of one of its elements.
    fn is_running(&self, at: usize) -> bool {
        self.running.range(Unit::whole(at)..Unit::whole(at + 1)).next().is_some()
    }
}

impl std::fmt::Debug for Dispatcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dispatcher").field("state", &self.state).finish_non_exhaustive()
    }
}
