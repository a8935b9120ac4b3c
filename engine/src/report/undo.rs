//! What was taken back when the run was ended.

use super::fold::StepFold;
use super::human::Moment;
use super::model::{UndoReport, UndoneStep};
use super::source::View;
use super::timeline;
use crate::model::ids::StepId;
use crate::model::outcome::Outcome;
use crate::plan::PlannedStep;
use crate::run::RunState;

/// Returns what is or was undone, newest first; nothing of a run that does not end with undo.
pub(super) fn report(view: &View<'_>) -> Option<UndoReport> {
    let (began_at, ..) = view.fold.ending.filter(|_| view.fold.undoing)?;
    let empty = StepFold::default();
    let undone = |(of, what, step): (StepId, Option<String>, PlannedStep)| {
        let state = view.fold.steps.get(&step.id).unwrap_or(&empty);
        UndoneStep { of, what, step: timeline::step_report(view, &step, state) }
    };
    let steps = planned(view).into_iter().map(undone).collect();
    Some(UndoReport { began_at: Moment(began_at), steps })
}

/// Returns the undos of all that had begun, as steps under the names that the journal gives them, newest first.
pub(super) fn steps(view: &View<'_>) -> Vec<PlannedStep> {
    if !view.fold.undoing {
        return Vec::new();
    }
    planned(view).into_iter().map(|(_, _, step)| step).collect()
}

fn planned(view: &View<'_>) -> Vec<(StepId, Option<String>, PlannedStep)> {
    let mut state = RunState::new(view.plan);
    for event in view.source.events {
        // A journal that does not fit is refused elsewhere; here as much is told as can be.
        if state.apply(&event.kind).is_err() {
            break;
        }
    }
    let units = state.undos_of_begun(view.plan).into_iter();
    units
        .filter_map(|unit| {
            let undo = view.plan.undo_at(unit.position)?;
            let of = unit.element.map_or_else(|| undo.of.clone(), |at| undo.of.of_element(at));
            let step = PlannedStep { id: unit.id(view.plan), ..undo.step.clone() };
            Some((of, undo.built_in.clone(), step))
        })
        .collect()
}

impl UndoReport {
    /// Returns the steps whose work could not be taken back.
    pub fn failed(&self) -> Vec<&StepId> {
        let failed = |undone: &&UndoneStep| matches!(undone.step.outcome, Some(Outcome::Failed { .. }));
        self.steps.iter().filter(failed).map(|undone| &undone.of).collect()
    }

    /// Returns how many undos have ended, in whatever way.
    pub fn ended(&self) -> usize {
        self.steps.iter().filter(|undone| undone.step.outcome.is_some()).count()
    }

    /// Names what could not be taken back, for a headline; nothing if everything could.
    pub fn failed_words(&self) -> Option<String> {
        let failed: Vec<_> = self.failed().into_iter().map(|of| format!("`{of}`")).collect();
        (!failed.is_empty()).then(|| format!("UNDO FAILED for {}", failed.join(", ")))
    }
}
