//! Elements of repeated steps: counted, and listed as far as they are worth a look.

use super::fold::StepFold;
use super::model::{Doing, ElementsReport, StepReport};
use super::source::View;
use super::timeline;
use crate::expr::quote;
use crate::model::ids::StepId;
use crate::model::outcome::Outcome;
use crate::plan::PlannedStep;

/// How many elements of a step a report lists at most.
const MAX_LISTED: usize = 100;

impl<'a> View<'a> {
    /// Returns a step and the elements of it that have begun, in their order.
    pub(super) fn units(&self, step: &'a PlannedStep) -> impl Iterator<Item = (&'a StepId, &StepFold<'a>)> {
        let whole = self.state(step);
        let elements = whole.into_iter().flat_map(|state| &state.begun);
        let found = |id: &&'a StepId| self.fold.steps.get(*id).map(|state| (*id, state));
        whole.map(|state| (&step.id, state)).into_iter().chain(elements.filter_map(found))
    }

    /// Returns the elements of a step that have begun, in their order.
    pub(super) fn elements(
        &self,
        step: &'a PlannedStep,
    ) -> impl Iterator<Item = (&'a StepId, &StepFold<'a>)> {
        self.units(step).skip(1)
    }

    /// Returns the title of a step, or of an element with its item filled in.
    pub(super) fn title_of(&self, step: &PlannedStep, id: &StepId) -> String {
        let items = self.state(step).and_then(|state| state.elements).map(|(_, items)| items);
        let item = id.element().and_then(|index| Some((index, items?.get(index)?)));
        item.map_or_else(|| step.whole_title(), |(index, item)| step.element_title(index, item))
    }
}

/// Writes the id of a step as it is typed: brackets are patterns to a shell.
pub fn typed(step: &StepId) -> String {
    if step.element().is_some() { quote(step.as_str()) } else { step.to_string() }
}

/// Counts the elements of a step. `None` if it is not repeated, or what for is not known yet.
pub(super) fn count(view: &View<'_>, step: &PlannedStep) -> Option<ElementsReport> {
    let state = view.state(step)?;
    let (_, items) = state.elements?;
    let mut counts = ElementsReport { total: items.len(), ..ElementsReport::default() };
    for id in &state.begun {
        let outcome = view.fold.steps.get(*id).and_then(|element| element.outcome);
        *match outcome.map(|(_, outcome)| outcome) {
            Some(Outcome::Succeeded) => &mut counts.succeeded,
            Some(Outcome::Failed { .. }) => &mut counts.failed,
            Some(Outcome::Skipped { .. } | Outcome::MarkedDone { .. }) => &mut counts.decided,
            Some(Outcome::NotRun { .. }) => &mut counts.not_begun,
            None => &mut counts.open,
        } += 1;
    }
    counts.not_begun += items.len() - state.begun.len();
    Some(counts)
}

/// Reports the elements of a step.
pub(super) fn report(view: &View<'_>, step: &PlannedStep) -> Option<ElementsReport> {
    let mut report = count(view, step)?;
    let elements = || view.elements(step);
    let few = elements().count() <= MAX_LISTED;
    let listed = elements().filter(|(_, state)| few || is_notable(state)).take(MAX_LISTED);
    report.listed = listed.map(|(id, state)| one(view, step, id, state)).collect();
    Some(report)
}

fn one(view: &View<'_>, step: &PlannedStep, id: &StepId, state: &StepFold<'_>) -> StepReport {
    let whole = timeline::step_report(view, step, state);
    StepReport {
        id: id.clone(),
        title: view.title_of(step, id),
        // These are of the whole step.
        queued_ms: None,
        budget: None,
        recovered: false,
        destroys: Vec::new(),
        elements: None,
        ..whole
    }
}

/// Says whether something other than a success at the first attempt became of an element.
fn is_notable(state: &StepFold<'_>) -> bool {
    let succeeded = matches!(state.outcome, Some((_, Outcome::Succeeded)));
    !succeeded || state.attempts.len() > 1 || !state.held.is_empty()
}

/// Says whether an element is worth a line of its own while the run is open.
pub(super) fn is_active(state: &StepFold<'_>) -> bool {
    state.outcome.is_none() && !matches!(state.doing, Some((_, Doing::Held | Doing::WaitingForPerson)))
}
