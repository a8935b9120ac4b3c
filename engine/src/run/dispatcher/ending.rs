//! How a run comes to its end.

use crate::code;
use crate::model::event::{AttemptResult, EventKind};
use crate::model::evidence::Created;
use crate::model::ids::StepId;
use crate::model::outcome::{Failure, FailureKind, Mode, Outcome, RunOutcome};
use crate::run::state::{IllegalEvent, Phase, StepPhase};
use crate::run::unit::Unit;

use super::{Action, Dispatcher};

/// Whether a run that ends takes back what its steps have done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Undo {
    /// Every step that has begun.
    Begun,
    Nothing,
}

impl Dispatcher {
    /// Says whether the run is ending and this step is not one of those that still run.
    pub(super) fn ending(&self, unit: Unit) -> bool {
        !self.step(unit).always && matches!(self.state.phase, Phase::Ending(_))
    }

    pub(super) fn begin_ending(
        &mut self,
        outcome: RunOutcome,
        reason: String,
        undo: Undo,
    ) -> Result<(), IllegalEvent> {
        if undo == Undo::Begun {
            self.undos = self.open_undos();
        }
        self.emit(EventKind::EndingBegan { outcome, reason, undo: !self.undos.is_empty() })?;
        self.timers.retain(|(_, unit)| self.plan.at(unit.position).always);
        let main = self.running.iter().filter(|unit| !self.plan.at(unit.position).always);
        self.actions.extend(main.map(|unit| Action::EndAttempt { unit: *unit }));
        self.close_main()
    }

    /// Ends every main step that is not running: none of them will run any more.
    pub(super) fn close_main(&mut self) -> Result<(), IllegalEvent> {
        for at in 0..self.plan.steps.len() {
            let open = self.state.steps[at].outcome().is_none();
            if open && !self.plan.steps[at].always && !self.is_running(at) {
                self.close(Unit::whole(at))?;
            }
        }
        Ok(())
    }

    pub(super) fn close(&mut self, unit: Unit) -> Result<(), IllegalEvent> {
        if unit.element.is_none() && self.state.steps[unit.position].phase == StepPhase::Repeating {
            return self.close_loop(unit.position);
        }
        let state = self.of(unit);
        let outcome = match (&state.phase, &state.last_failure) {
            (StepPhase::Settling(AttemptResult::Succeeded { .. }), _) => Outcome::Succeeded,
            (StepPhase::Decided(outcome), _) => outcome.clone(),
            // `Waiting`, too: a person has granted another attempt, which will not be.
            (
                StepPhase::Settling(_)
                | StepPhase::Held
                | StepPhase::WaitingRetry { .. }
                | StepPhase::Waiting,
                Some(failure),
            ) => Outcome::Failed { failure: failure.clone() },
            (StepPhase::Settling(_), None) => Outcome::Failed { failure: interrupted(&self.id(unit)) },
            _ => Outcome::NotRun { reason: "the run ended before it".to_owned() },
        };
        self.end_unit(unit, outcome)
    }

    /// Cleans up and ends the run once every step has ended.
    pub(super) fn finish(&mut self) -> Result<(), IllegalEvent> {
        let Phase::Ending(outcome) = self.state.phase else { return Ok(()) };
        if self.graph.open != [0, 0] || !self.undos.is_empty() || self.cleaning || self.stopping {
            return Ok(());
        }
        let untried = self.untried_things();
        if self.plan.mode == Mode::Drill && !self.plan.keep && !untried.is_empty() {
            self.cleaning = true;
            self.actions.push(Action::CleanUp(untried));
            return Ok(());
        }
        self.emit(EventKind::RunFinished { outcome })
    }

    /// Returns what was made, newest first, unless this process has tried to remove it already.
    fn untried_things(&self) -> Vec<(StepId, Created)> {
        if self.cleaned {
            return Vec::new();
        }
        self.state.things.iter().rev().cloned().collect()
    }
}

pub(super) fn interrupted(step: &StepId) -> Failure {
    Failure {
        kind: FailureKind::Uncertain,
        code: code::LB0303.id.to_owned(),
        message: format!("`{step}` was ended because the run ended"),
        help: None,
        causes: Vec::new(),
    }
}
