//! The time line: when each step and group ran, and how it kept to its budget.

use std::collections::HashSet;

use super::elements;
use super::fold::{AttemptFold, StepFold};
use super::human::Moment;
use super::model::{
    AttemptEnd, AttemptReport, BudgetReport, Doing, GroupReport, PathStep, StepReport, Verdict,
};
use super::source::View;
use crate::model::event::AttemptResult;
use crate::plan::{Need, Needed, PlannedGroup, PlannedStep};
use crate::value::Span;

/// A length of time beyond every calendar, small enough that sums of it do not overflow.
const FOREVER_MS: i64 = 1 << 50;

/// Returns a length of time in milliseconds.
pub(super) fn millis(span: Span) -> i64 {
    i64::try_from(span.0.as_millis()).map_or(FOREVER_MS, |ms| ms.min(FOREVER_MS))
}

pub(super) fn steps(view: &View<'_>, critical: &[PathStep]) -> Vec<StepReport> {
    let critical: HashSet<_> = critical.iter().map(|part| &part.step).collect();
    let empty = StepFold::default();
    let report = |step: &PlannedStep| {
        let state = view.state(step).unwrap_or(&empty);
        let elements = elements::report(view, step);
        StepReport { critical: critical.contains(&step.id), elements, ..step_report(view, step, state) }
    };
    view.plan.steps.iter().map(report).collect()
}

pub(super) fn step_report(view: &View<'_>, step: &PlannedStep, state: &StepFold<'_>) -> StepReport {
    let spent = |doing| -> i64 {
        state.spans.iter().filter(|span| span.doing == doing).map(|span| span.to.0 - span.from.0).sum()
    };
    let started = state.started();
    let ended = state.ended();
    let took = started.map(|from| (ended.unwrap_or(view.fold.end) - from).max(0));
    let (checks_passed, checks_failed) = count_checks(state);
    StepReport {
        id: step.id.clone(),
        title: step.whole_title(),
        uses: step.uses.clone(),
        place: step.place.clone(),
        group: step.group.clone(),
        always: step.always,
        outcome: state.outcome.map(|(_, outcome)| outcome.clone()),
        doing: state.doing.map(|(_, doing)| doing),
        started_at: started.map(Moment),
        ended_at: ended.map(Moment),
        took_ms: took,
        queued_ms: started.and_then(|from| queued(view, step, from)),
        working_ms: spent(Doing::Working),
        waiting_for_person_ms: spent(Doing::WaitingForPerson),
        waiting_for_retry_ms: spent(Doing::WaitingForRetry),
        held_ms: spent(Doing::Held),
        engine_down_ms: spent(Doing::EngineDown),
        budget: step.budget.map(|budget| judge(millis(budget), took, ended.is_some())),
        attempts: state.attempts.iter().map(attempt_report).collect(),
        spans: state.spans.clone(),
        critical: false,
        recovered: step.recovered,
        destroys: step.destroys.clone(),
        checks_passed,
        checks_failed,
        elements: None,
    }
}

/// Counts the checks of the last attempt that made any.
fn count_checks(state: &StepFold<'_>) -> (usize, usize) {
    let last = state.attempts.iter().rev().map(checks_of).find(|checks| !checks.is_empty());
    let checks = last.unwrap_or_default();
    let passed = checks.iter().filter(|check| check.passed).count();
    (passed, checks.len() - passed)
}

/// Returns the checks that an attempt made.
pub(super) fn checks_of<'a>(attempt: &AttemptFold<'a>) -> &'a [crate::model::Check] {
    match attempt.end {
        Some((_, AttemptResult::Succeeded { done })) => &done.checks,
        Some((_, AttemptResult::Failed { checks, .. })) => checks,
        _ => &[],
    }
}

/// Returns the time between the moment when everything a step needed had ended and its start.
fn queued(view: &View<'_>, step: &PlannedStep, started: i64) -> Option<i64> {
    let last_of = |need: &Need| match view.wiring.find(&need.step)? {
        Needed::Step(at) => view.state(&view.plan.steps[at]).and_then(StepFold::ended),
        Needed::Group(group) => view.last_end(group),
    };
    let needed = step.needs.iter().filter_map(last_of).max();
    let ready = match needed {
        Some(at) => at,
        None if step.always => view.fold.ending.map(|(at, ..)| at)?,
        None => view.fold.declared.as_ref()?.at,
    };
    Some((started - ready).max(0))
}

fn attempt_report(attempt: &AttemptFold<'_>) -> AttemptReport {
    let end = attempt.end;
    AttemptReport {
        attempt: attempt.number,
        started_at: Moment(attempt.from),
        ended_at: end.map(|(at, _)| Moment(at)),
        took_ms: end.map(|(at, _)| at - attempt.from),
        result: end.map(|(_, result)| match result {
            AttemptResult::Succeeded { .. } => AttemptEnd::Succeeded,
            AttemptResult::Failed { .. } => AttemptEnd::Failed,
            AttemptResult::Lost => AttemptEnd::Lost,
            AttemptResult::Interrupted => AttemptEnd::Interrupted,
        }),
        failure: end.and_then(|(_, result)| match result {
            AttemptResult::Failed { failure, .. } => Some(failure.clone()),
            _ => None,
        }),
    }
}

pub(super) fn judge(budget_ms: i64, took: Option<i64>, ended: bool) -> BudgetReport {
    let margin_ms = budget_ms - took.unwrap_or(0);
    let verdict = match took {
        Some(_) if margin_ms < 0 => Some(Verdict::Missed),
        Some(_) if ended => Some(Verdict::Met),
        _ => None,
    };
    BudgetReport { budget_ms, margin_ms, verdict }
}

pub(super) fn groups(view: &View<'_>) -> Vec<GroupReport> {
    view.plan.groups.iter().map(|group| group_report(view, group)).collect()
}

fn group_report(view: &View<'_>, group: &PlannedGroup) -> GroupReport {
    let (started, ended) = group_times(view, group);
    let took = started.map(|from| (ended.unwrap_or(view.fold.end) - from).max(0));
    GroupReport {
        id: group.id.clone(),
        title: group.title.clone(),
        parent: group.parent.clone(),
        started_at: started.map(Moment),
        ended_at: ended.map(Moment),
        took_ms: took,
        budget: group.budget.map(|budget| judge(millis(budget), took, ended.is_some())),
    }
}

/// Returns when the first step of a group started, and when the last ended if all have.
pub(super) fn group_times(view: &View<'_>, group: &PlannedGroup) -> (Option<i64>, Option<i64>) {
    let members = view.members.steps(&group.id);
    let states = || members.iter().map(|&at| view.state(&view.plan.steps[at]));
    let started = states().flatten().filter_map(StepFold::started).min();
    let ends: Option<Vec<i64>> = states().map(|state| state.and_then(StepFold::ended)).collect();
    // A group none of whose steps ran has no times.
    (started, started.and(ends).and_then(|ends| ends.into_iter().max()))
}
