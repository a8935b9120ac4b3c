//! Taking back what begun steps have done: newest first, one after the other, before `always`.

use std::collections::{HashMap, VecDeque};

use crate::model::ids::StepId;
use crate::run::state::{IllegalEvent, StepPhase};

use super::Dispatcher;

impl Dispatcher {
    pub(super) fn is_undo(&self, at: usize) -> bool {
        at >= self.plan.steps.len()
    }

    /// Returns the positions of the undos of all that has begun and is not undone yet, newest first.
    pub(super) fn undos_of_begun(&self) -> VecDeque<usize> {
        let main = self.plan.steps.len();
        let undos: HashMap<&StepId, usize> =
            self.plan.undos.iter().enumerate().map(|(at, undo)| (&undo.of, main + at)).collect();
        let begun = self.state.begun.iter().rev().filter_map(|at| self.plan.steps.get(*at));
        begun
            .filter_map(|step| undos.get(&step.id).copied())
            .filter(|at| self.state.steps[*at].outcome().is_none())
            .collect()
    }

    /// Lets undos start one after the other until one runs, waits, or none is left.
    pub(super) fn go_on_undoing(&mut self, now_ms: i64) -> Result<(), IllegalEvent> {
        while let Some(&at) = self.undos.front() {
            // What ran when the run was ended comes to its end first.
            let may_start = self.running.is_empty() && self.state.steps[at].phase == StepPhase::Waiting;
            if may_start {
                self.make_ready(at);
                self.launch_ready(now_ms)?;
            }
            if self.undos.front() == Some(&at) {
                break;
            }
        }
        Ok(())
    }
}
