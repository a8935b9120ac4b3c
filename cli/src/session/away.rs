//! Decisions about a run that no process drives: taken down by the command that was typed.

use std::sync::Arc;

use lifeboat_engine::clock::{Clock, RunClock, SystemClock, ThisMachine};
use lifeboat_engine::journal::{self, Journal};
use lifeboat_engine::model::event::{Answer, Decision};
use lifeboat_engine::model::{Request, StepId};
use lifeboat_engine::plan::Plan;
use lifeboat_engine::redact::{Redactor, SHORTEST};
use lifeboat_engine::run::Away;
use lifeboat_engine::runs::{self, Pending, RunDir};
use lifeboat_engine::secret::Secrets;

use crate::exit::Failure;
use crate::render;

use super::{fold, start};

/// Takes the run's lock, if nobody has it, and records everything in its inbox, oldest first. `false` if another process
/// has the run: it takes the requests itself.
pub(crate) fn take_down(run: &RunDir) -> Result<bool, Failure> {
    let _lock = match run.lock(&SystemClock) {
        Ok(lock) => lock,
        Err(runs::Error::Owned { .. }) => return Ok(false),
        Err(error) => return Err(render::runs(&error)),
    };
    let inbox = run.inbox();
    let pending = inbox.pending().map_err(|error| render::runs(&error))?;
    if pending.is_empty() {
        return Ok(true);
    }
    let (header, events) = journal::read(run.path()).map_err(|error| render::journal(&error))?;
    let clock: Arc<dyn Clock> = Arc::new(RunClock::resume(Arc::new(ThisMachine), &events));
    let journal = Journal::open(run.path(), clock).map_err(|error| render::journal(&error))?;
    let (mut wishes, mut unread) = (Vec::new(), Vec::new());
    for found in pending {
        match found {
            Ok(wish) => wishes.push(wish),
            Err(error) => unread.push(error),
        }
    }
    let redactor = Redactor::new(&secrets(&header.plan, &wishes)?);
    let mut state = fold(&header.plan, &events)?;
    let mut away = Away { plan: &header.plan, journal: &journal, state: &mut state, redactor: &redactor };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .map_err(|error| Failure::internal("the runtime cannot start").caused_by(&error))?;
    for Pending { id, request } in wishes {
        runtime.block_on(away.take(id, request)).map_err(|error| super::not_driven(run, &error))?;
        inbox.remove(id).map_err(|error| render::runs(&error))?;
    }
    unread.into_iter().find(|error| !is_set_aside(error)).map_or(Ok(true), |error| Err(render::runs(&error)))
}

/// Says whether a file in the inbox was no request, which is told once; everything else is found there again.
fn is_set_aside(error: &runs::Error) -> bool {
    let aside = matches!(error, runs::Error::BadRequest { .. });
    if aside {
        tracing::warn!(%error, "a request was set aside");
    }
    aside
}

/// Reads the secrets of the run only if somebody wrote a text that could hold one. What cannot be read now, such as a command
/// that needs a key, must not keep a person from deciding.
fn secrets(plan: &Plan, wishes: &[Pending]) -> Result<Secrets, Failure> {
    if wishes.iter().any(|wish| holds_text(plan, &wish.request)) {
        start::resolve_readable(plan)
    } else {
        Ok(Secrets::default())
    }
}

/// Says whether a request holds a text that goes into the journal. What is said of a step that the plan does not have is
/// refused with its name, which may be anything.
fn holds_text(plan: &Plan, request: &Request) -> bool {
    let unknown = |step: &StepId| !plan.everything().any(|planned| planned.id == step.whole());
    match request {
        Request::Answer { step, answer: Answer { comment, choice, .. }, .. } => {
            comment.is_some() || choice.len() >= SHORTEST || unknown(step)
        }
        Request::Decide { decision, .. } => match decision {
            Decision::SkipStep { .. }
            | Decision::MarkDone { .. }
            | Decision::Abort { .. }
            | Decision::Cancel { .. }
            | Decision::Note { .. } => true,
            Decision::RetryStep { step } => unknown(step),
            Decision::Pause | Decision::Unpause => false,
        },
    }
}
