//! Taking back what begun steps have done: newest first, one after the other, before `always`.

use std::collections::VecDeque;

use crate::run::state::{IllegalEvent, StepPhase};
use crate::run::unit::Unit;

use super::Dispatcher;

impl Dispatcher {
    pub(super) fn is_undo(&self, unit: Unit) -> bool {
        unit.position >= self.plan.steps.len()
    }

    /// Returns the undos of all that has begun and is not undone yet, newest first.
    pub(super) fn open_undos(&self) -> VecDeque<Unit> {
        let all = self.state.undos_of_begun(&self.plan).into_iter();
        all.filter(|undo| self.of(*undo).outcome().is_none()).collect()
    }

    /// Finds out where the undos stand that an earlier process has begun.
    pub(super) fn take_over_undos(&mut self, now_ms: i64) -> Result<(), IllegalEvent> {
        for undo in self.undos.clone() {
            self.take_over_unit(undo, now_ms)?;
        }
        Ok(())
    }

    /// Lets undos start one after the other until one runs, waits, or none is left.
    pub(super) fn go_on_undoing(&mut self, now_ms: i64) -> Result<(), IllegalEvent> {
        while let Some(&undo) = self.undos.front() {
            // What ran when the run was ended comes to its end first.
            if self.running.is_empty() && self.of(undo).phase == StepPhase::Waiting {
                self.make_ready(undo);
                self.launch_ready(now_ms)?;
            }
            if self.undos.front() == Some(&undo) {
                break;
            }
        }
        Ok(())
    }
}
