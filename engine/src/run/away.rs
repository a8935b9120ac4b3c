//! Takes down what people decide while no process drives the run.

use uuid::Uuid;

use crate::journal::Journal;
use crate::model::event::EventKind;
use crate::model::request::Request;
use crate::plan::Plan;
use crate::redact::Redactor;

use super::driver::Error;
use super::state::{Phase, RunState};
use super::verdict::{Hearing, Verdict};

/// A run whose lock the caller holds, and which nothing drives.
#[derive(Debug)]
pub struct Away<'a> {
    pub plan: &'a Plan,
    pub journal: &'a Journal,
    /// The fold of the journal so far.
    pub state: RunState,
    pub redactor: &'a Redactor,
}

impl Away<'_> {
    /// Records what becomes of a request, durably when this returns, as the process that drives a run would.
    ///
    /// Nothing is launched, ended or undone: whoever takes the run over next carries the decision out. A request whose id
    /// the journal knows is not taken twice. An ended run takes nothing down any more.
    pub async fn take(&mut self, id: Uuid, request: Request) -> Result<(), Error> {
        if self.journal.knows(id) || matches!(self.state.phase, Phase::Finished(_)) {
            return Ok(());
        }
        let request = cleaned(self.redactor, request);
        let by = request.by().clone();
        let hearing = Hearing { run: self.journal.header().run, plan: self.plan, state: &self.state };
        let events = match hearing.judge(request) {
            Verdict::Granted(event) => vec![event],
            Verdict::Known => Vec::new(),
            Verdict::Refused(reason) => vec![EventKind::Refused { request: id, by, reason }],
        };
        events.iter().try_for_each(|event| self.state.apply(event))?;
        self.journal.append_for(vec![id], events).await?;
        Ok(())
    }
}

/// Removes secrets from what people wrote.
pub(super) fn cleaned(redactor: &Redactor, request: Request) -> Request {
    redactor.clean(request.clone()).unwrap_or(request)
}
