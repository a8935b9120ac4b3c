//! Data loss: the recovery point of each store against the target asked for and against the incident.

use std::collections::BTreeMap;

use super::fold::StepFold;
use super::human::{self, Moment};
use super::model::{Rpo, StoreLoss, Unmeasured, Verdict};
use super::source::View;
use super::standing;
use super::timeline::millis;
use crate::model::event::AttemptResult;
use crate::model::evidence::{Confidence, RecoveryPoint};
use crate::model::ids::StepId;
use crate::model::outcome::Outcome;
use crate::value::parse_timestamp;

/// The input that names the moment to restore to.
const TARGET_INPUT: &str = "target_time";
/// Why no loss is known of a runbook that is no recovery.
pub(super) const RESTORES_NOTHING: &str = "no step of this runbook restores data";

pub(super) fn rpo(view: &View<'_>) -> Rpo {
    let target = target(view);
    let points = points(view);
    let unmeasured = unmeasured(view, &points);
    let incident = view.fold.incident;
    let mut stores: Vec<StoreLoss> =
        points.into_iter().map(|(_, (step, point))| store_loss(step, point, target, incident)).collect();
    stores.sort_by_key(|store| std::cmp::Reverse(store.loss_ms));
    let worst_ms = stores.iter().filter_map(|store| store.loss_ms).max();
    let objective_ms = view.plan.objective.rpo.map(millis);
    let (verdict, reason) = judge(view, objective_ms, &stores, &unmeasured);
    let verdict = objective_ms.and(Some(verdict));
    Rpo { objective_ms, verdict, reason, target: target.map(Moment), stores, unmeasured, worst_ms }
}

fn target(view: &View<'_>) -> Option<i64> {
    let declared = view.fold.declared.as_ref().and_then(|declared| declared.inputs.get(TARGET_INPUT));
    let value = declared.or_else(|| view.plan.inputs.get(TARGET_INPUT))?;
    parse_timestamp(value.as_str()?).ok().map(|stamp| stamp.as_millisecond())
}

/// Returns the last recovery point that was reported for each resource, with the step it came from.
fn points<'a>(view: &View<'a>) -> BTreeMap<&'a str, (&'a StepId, &'a RecoveryPoint)> {
    let mut found: Vec<(i64, usize, &StepId, &RecoveryPoint)> = Vec::new();
    for (index, step) in view.plan.steps.iter().enumerate() {
        for (id, state) in view.units(step) {
            for attempt in &state.attempts {
                if let Some((at, AttemptResult::Succeeded { done })) = attempt.end {
                    found.extend(done.recovery_points.iter().map(|point| (at, index, id, point)));
                }
            }
        }
    }
    found.sort_by_key(|(at, index, ..)| (*at, *index));
    found.into_iter().map(|(_, _, step, point)| (point.resource.as_str(), (step, point))).collect()
}

fn store_loss(step: &StepId, point: &RecoveryPoint, target: Option<i64>, incident: i64) -> StoreLoss {
    let time = parse_timestamp(&point.time).ok().map(|stamp| stamp.as_millisecond());
    let before = |moment: i64| time.map(|time| (moment - time).max(0));
    let against_target_ms = target.and_then(before);
    let against_incident_ms = before(incident);
    StoreLoss {
        resource: point.resource.clone(),
        step: step.clone(),
        time: point.time.clone(),
        position: point.position.clone(),
        method: point.method.clone(),
        confidence: point.confidence,
        against_target_ms,
        against_incident_ms,
        loss_ms: against_target_ms.max(against_incident_ms),
        beyond_target: matches!((time, target), (Some(time), Some(target)) if time > target),
    }
}

/// Finds the restoring steps that leave a store without a recovery point.
fn unmeasured(view: &View<'_>, points: &BTreeMap<&str, (&StepId, &RecoveryPoint)>) -> Vec<Unmeasured> {
    let mut found = Vec::new();
    for step in view.plan.steps.iter().filter(|step| step.restores) {
        let state = view.state(step);
        if state.is_some_and(reported) {
            continue;
        }
        let silent = view.elements(step).find(|(_, element)| !reported(element));
        let every = state.and_then(|state| Some((state.elements?.1.len(), state.begun.len())));
        if silent.is_none() && every.is_some_and(|(chosen, begun)| chosen > 0 && chosen == begun) {
            continue;
        }
        let succeeded = matches!(state.and_then(|state| state.outcome), Some((_, Outcome::Succeeded)));
        // A step that did not restore leaves no gap where another one restored the same stores, or where this
        // environment does not have them.
        let covered =
            |name: &String| points.contains_key(name.as_str()) || !view.plan.resources.contains_key(name);
        if !succeeded && !step.writes.is_empty() && step.writes.iter().all(covered) {
            continue;
        }
        found.push(Unmeasured {
            step: silent.map_or(&step.id, |(id, _)| id).clone(),
            resources: step.writes.clone(),
            why: why(view, silent.map(|(_, element)| element).or(state)),
        });
    }
    found
}

fn reported(state: &StepFold<'_>) -> bool {
    state.attempts.iter().any(|attempt| {
        matches!(attempt.end, Some((_, AttemptResult::Succeeded { done })) if !done.recovery_points.is_empty())
    })
}

fn why(view: &View<'_>, state: Option<&StepFold<'_>>) -> String {
    match state.and_then(|state| state.outcome).map(|(_, outcome)| outcome) {
        Some(Outcome::Succeeded) => "it reported no recovery point".to_owned(),
        Some(Outcome::Skipped { reason }) => format!("it was {}", standing::skipped(reason)),
        Some(Outcome::Failed { failure }) => format!("it failed ({})", failure.code),
        Some(Outcome::MarkedDone { by, reason }) => {
            format!("{by} marked it as done ({reason}), and a person's word measures nothing")
        }
        Some(Outcome::NotRun { reason }) => format!("it was not run: {reason}"),
        None if view.is_ended() => "it was not run".to_owned(),
        None if state.and_then(StepFold::started).is_some() => "it has not finished".to_owned(),
        None => "it has not run yet".to_owned(),
    }
}

fn judge(
    view: &View<'_>,
    objective: Option<i64>,
    stores: &[StoreLoss],
    unmeasured: &[Unmeasured],
) -> (Verdict, String) {
    let limit = objective.unwrap_or(i64::MAX);
    let over = |store: &&StoreLoss| store.loss_ms.is_some_and(|loss| loss > limit);
    let certain = |store: &&StoreLoss| store.confidence != Confidence::Bound;
    if let Some(store) = stores.iter().find(|store| over(store) && certain(store)) {
        let loss = human::duration(store.loss_ms.unwrap_or(0));
        let limit = human::duration(limit);
        return (Verdict::Missed, format!("`{}` lost {loss}, more than the {limit} allowed", store.resource));
    }
    let unknown = |reason: String| (Verdict::NotMeasured, reason);
    if let Some(gap) = unmeasured.first() {
        let more = match unmeasured.len() {
            1 => String::new(),
            count => format!(" (and {} more)", count - 1),
        };
        return unknown(format!("no recovery point from `{}`{more}: {}", gap.step, gap.why));
    }
    if let Some(store) = stores.iter().find(|store| store.loss_ms.is_none()) {
        return unknown(format!("the recovery point of `{}` is no moment: `{}`", store.resource, store.time));
    }
    if let Some(store) = stores.iter().find(over) {
        let loss = human::duration(store.loss_ms.unwrap_or(0));
        return unknown(format!(
            "`{}` lost at most {loss}, and how much of that is not known; a heartbeat row would measure it",
            store.resource
        ));
    }
    let Some(worst) = stores.first() else {
        let none = view.plan.steps.iter().all(|step| !step.restores);
        let why = if none { RESTORES_NOTHING } else { "no store was restored" };
        return unknown(why.to_owned());
    };
    let loss = human::duration(worst.loss_ms.unwrap_or(0));
    (
        Verdict::Met,
        format!("the worst of {} is `{}` with {loss}", human::count(stores.len(), "store"), worst.resource),
    )
}
