//! One process that owns a run: starts or resumes it, shows it, and tells how it ended.

mod away;
mod end;
mod links;
mod signals;
mod start;
mod typed;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lifeboat_engine::clock::{Clock, RunClock, SystemClock, ThisMachine};
use lifeboat_engine::code;
use lifeboat_engine::crash::{self, Point};
use lifeboat_engine::journal::{self, Journal};
use lifeboat_engine::model::event::{Decision, EventKind, Person};
use lifeboat_engine::model::{Event, Request};
use lifeboat_engine::plan::Plan;
use lifeboat_engine::run::driver::{Control, Patience, Reporter, Setup, drive};
use lifeboat_engine::run::{Phase, RunState, Situation};
use lifeboat_engine::runs::{ResourceLocks, RunDir, RunLock, StateDir, end_survivors};
use lifeboat_engine::secret::Secrets;
use lifeboat_engine::step::Registry;
use tokio::sync::mpsc;

use crate::commands::confirm::confirm_again;
use crate::exit::{Exit, Failure, Outcome};
use crate::render;
use crate::secrets;
use crate::view::{Aside, Place, View};

pub(crate) use away::take_down;
pub(crate) use end::ended_with;
pub(crate) use start::{Declaration, resolve_readable, start};

/// Where runs are kept and who acts.
pub(crate) struct Site {
    pub(crate) state: StateDir,
    pub(crate) registry: Arc<Registry>,
    pub(crate) by: Person,
}

/// How a run is to be driven by this process.
pub(crate) struct Manner {
    pub(crate) report: Option<PathBuf>,
    /// Leave with exit code 6 as soon as only a person can help.
    pub(crate) no_wait: bool,
}

/// How long children of a killed process have to end before they are killed.
const SURVIVOR_GRACE: Duration = Duration::from_secs(5);

/// How long the end of a run waits for work that blocks.
const BLOCKED: Duration = Duration::from_secs(2);

/// How many requests of this process may wait.
const CONTROL_LIMIT: usize = 64;

/// How long a process has to end in an orderly way before a take-over kills it.
const TAKE_OVER_GRACE: Duration = Duration::from_secs(15);

/// Ends the process that drives a run, and leaves a word about it for the record. Returns the whole id of the run.
pub(crate) fn take_over(site: &Site, text: &str) -> Result<String, Failure> {
    let run = site.state.find(text).map_err(|error| render::runs(&error))?;
    if let Some(holder) = run.owner().map_err(|error| render::runs(&error))? {
        crate::say::say!(
            "taking the run {} over: ending process {} (at most {} s)",
            run.id().short(),
            holder.pid,
            TAKE_OVER_GRACE.as_secs()
        );
    }
    let Some(ousted) = run.take_over(TAKE_OVER_GRACE).map_err(|error| render::runs(&error))? else {
        crate::say::say!("no process drives the run {}: resuming it", run.id().short());
        return Ok(run.id().to_string());
    };
    crate::say::say!("{ousted}");
    let decision = Decision::Note { text: format!("took the run over: {ousted}") };
    let request = Request::Decide { by: site.by.clone(), decision };
    run.inbox().send(&request).map_err(|error| render::runs(&error))?;
    Ok(run.id().to_string())
}

/// Continues a run from its journal: ends what a killed process left behind, then goes on with the first step that
/// has not completed.
///
/// `confirm` is the token for systems that are others than when the run began.
pub(crate) fn resume(site: &Site, text: &str, manner: &Manner, confirm: Option<&str>) -> Outcome {
    let run = site.state.find(text).map_err(|error| render::runs(&error))?;
    let lock = run.lock(&SystemClock).map_err(|error| render::runs(&error))?;
    for ended in end_survivors(&run.children_lock(), SURVIVOR_GRACE).map_err(|error| render::runs(&error))? {
        crate::say::say!("ended a process that the earlier one had left: {ended}");
    }
    let (header, mut events) = journal::read(run.path()).map_err(|error| render::journal(&error))?;
    let clock: Arc<dyn Clock> = Arc::new(RunClock::resume(Arc::new(ThisMachine), &events));
    let journal = Journal::open(run.path(), Arc::clone(&clock)).map_err(|error| render::journal(&error))?;
    let mut state = fold(&header.plan, &events)?;
    if state.phase == Phase::New {
        let message = format!("the run {} was never declared: nothing was started in it", run.id().short());
        let failure = Failure::new(Exit::Refused, message).code(code::LB0315);
        return Err(failure.help("begin anew with `lifeboat run`"));
    }
    if let Phase::Finished(_) = state.phase {
        return Err(Failure::new(Exit::Refused, format!("the run {} has ended", run.id().short())).help(
            format!(
                "see it with `lifeboat report {}`; a new run begins with `lifeboat run`",
                run.id().short()
            ),
        ));
    }
    let locks = start::lock_resources(site, run.id(), &header.plan, &*clock)?;
    let secrets = start::resolve_secrets(&header.plan)?;
    let command = format!("lifeboat resume {}", run.id().short());
    if let Some(targets) = confirm_again(&header.plan, &state.targets, confirm, &command)? {
        events.extend(start::append(
            &journal,
            vec![EventKind::TargetsConfirmed { by: site.by.clone(), targets }],
        )?);
        state = fold(&header.plan, &events)?;
    }
    let held = Held { run, _lock: lock, locks };
    let begun = Begun { plan: Arc::new(header.plan), journal, clock, state, events, secrets };
    serve(site, held, begun, manner)
}

/// Folds a journal into the state of its run.
pub(crate) fn fold(plan: &Plan, events: &[Event]) -> Result<RunState, Failure> {
    let mut state = RunState::new(plan);
    for event in events {
        state.apply(&event.kind).map_err(|error| {
            Failure::new(Exit::Refused, format!("event {} of the journal is out of place", event.seq))
                .help("the journal was changed from outside, or written by another version")
                .caused_by(&error)
        })?;
    }
    Ok(state)
}

/// What this process holds as long as it drives the run.
struct Held {
    run: RunDir,
    _lock: RunLock,
    locks: ResourceLocks,
}

/// A run that is in its journal.
struct Begun {
    plan: Arc<Plan>,
    journal: Journal,
    /// The time of the run.
    clock: Arc<dyn Clock>,
    state: RunState,
    events: Vec<Event>,
    secrets: Secrets,
}

fn serve(site: &Site, held: Held, begun: Begun, manner: &Manner) -> Outcome {
    let run = held.run.clone();
    let (situation, stopped) = on_runtime(drive_run(site, &run, begun, manner))??;
    stopped.done();
    if let Situation::Finished(_) = situation {
        crash::point(Point::RunFinished);
        held.locks.release().map_err(|error| render::runs(&error))?;
    }
    let ending = end::Ending { state: &site.state, run: &run, situation, report: manner.report.as_deref() };
    let exit = ending.tell()?;
    Ok(if situation == Situation::Stopped { stopped.exit().unwrap_or(exit) } else { exit })
}

/// Runs something on a runtime of its own. However it ends, a blocking task that does not end must not keep the process: the
/// disk that it waits for may be the one whose failure ended the rest.
fn on_runtime<T>(work: impl Future<Output = T>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::internal("the runtime cannot start").caused_by(&error))?;
    let result = runtime.block_on(work);
    runtime.shutdown_timeout(BLOCKED);
    Ok(result)
}

async fn drive_run(
    site: &Site,
    run: &RunDir,
    begun: Begun,
    manner: &Manner,
) -> Result<(Situation, signals::Stopped), Failure> {
    let (controls, receiver) = mpsc::channel(CONTROL_LIMIT);
    let stopped = signals::listen(controls.clone(), run.children_lock())?;
    let paused = begun.state.paused;
    if paused {
        let request = Request::Decide { by: site.by.clone(), decision: Decision::Unpause };
        // The channel is new and has room.
        let _ = controls.try_send(Control::Request(request));
    }
    let redactor = begun.secrets.redactor().clone();
    secrets::know(&redactor);
    for reference in redactor.too_short() {
        crate::say::say!(
            "warning[LB0331]: the secret from {reference} is too short to be removed from output"
        );
    }
    let reporters = reporters(site, run, &begun, controls)?;
    let when_waiting = if manner.no_wait { Patience::Leave } else { Patience::Stay };
    // Without a terminal nobody can answer a held step here, and whoever started it must know at once.
    let interactive = std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
    let when_held = if interactive { when_waiting } else { Patience::Leave };
    let setup = Setup {
        run: run.id(),
        plan: begun.plan,
        registry: Arc::clone(&site.registry),
        journal: begun.journal,
        state: begun.state,
        dir: run.path().to_owned(),
        secrets: Arc::new(begun.secrets),
        output: Arc::new(links::Output {
            redactor: redactor.clone(),
            files: run.output(),
            warned: Mutex::default(),
        }),
        redactor,
        clock: begun.clock,
        reporters,
        controls: receiver,
        requests: Box::new(links::InboxSource::of(run.inbox())),
        when_held,
        when_waiting,
    };
    let driven = tokio::spawn(drive(setup)).await.unwrap_or_else(|error| match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        // Nobody aborts it.
        Err(_) => Ok(Situation::Stopped),
    });
    Ok((driven.map_err(|error| not_driven(run, &error))?, stopped))
}

fn reporters(
    site: &Site,
    run: &RunDir,
    begun: &Begun,
    controls: mpsc::Sender<Control>,
) -> Result<Vec<Box<dyn Reporter>>, Failure> {
    let place = if std::io::stderr().is_terminal() { Place::Terminal } else { Place::Pipe };
    let mut view = View::new(run.id(), Arc::clone(&begun.plan), place);
    // The declaration of a new run is shown; what an earlier process has shown is not.
    match begun.events.as_slice() {
        [declared] | [declared, Event { kind: EventKind::TargetsConfirmed { .. }, .. }] => {
            view.on_event(declared.at_ms, &declared.kind);
        }
        events => view.catch_up(events),
    }
    let view = Aside::new(view)
        .map_err(|error| Failure::internal("the thread that shows the run cannot start").caused_by(&error))?;
    let mut reporters: Vec<Box<dyn Reporter>> = vec![Box::new(view)];
    if std::io::stdin().is_terminal() {
        let mut typed = typed::Typed::default();
        begun.events.iter().for_each(|event| typed.on_event(event.at_ms, &event.kind));
        typed.listen(site.by.clone(), controls);
        reporters.push(Box::new(typed));
    }
    Ok(reporters)
}

fn not_driven(run: &RunDir, error: &lifeboat_engine::run::driver::Error) -> Failure {
    use lifeboat_engine::run::driver::Error;
    let failure = match error {
        Error::Journal(error) => render::journal(error),
        Error::Illegal(error) => Failure::internal("a defect in Lifeboat stopped the run").caused_by(error),
    };
    let help = failure.help.clone().unwrap_or_default();
    let separator = if help.is_empty() { "" } else { "; then: " };
    failure.help(format!("{help}{separator}lifeboat resume {}", run.id().short()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_that_blocks_keeps_no_process_whose_run_could_not_be_driven() {
        let (let_go, gate) = std::sync::mpsc::channel::<()>();
        let result = on_runtime(async {
            let (begun, seen) = tokio::sync::oneshot::channel();
            tokio::task::spawn_blocking(move || {
                begun.send(()).expect("it is waited for");
                // It ends when the test does.
                gate.recv().expect_err("nothing is ever sent");
            });
            seen.await.expect("it has begun");
            Err::<(), _>("the journal cannot be written")
        });
        assert_eq!(result.expect("a runtime"), Err("the journal cannot be written"));
        drop(let_go);
    }
}
