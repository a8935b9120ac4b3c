//! Conditions on the failure of others that can never hold.

use std::collections::HashSet;

use super::analysis::Analysis;
use super::bodies::continues;
use super::order::Place;
use crate::diagnostic::{Diagnostic, Diagnostics, codes};
use crate::plan::NeedOn;
use crate::spec::NeedSpec;

/// Reports steps and groups that wait for a failure that cannot happen, or not together with what else they need.
pub(super) fn check_needs(analysis: &Analysis<'_>, out: &mut Diagnostics) {
    let order = &analysis.order;
    let steps = order.steps.iter().filter(|step| !step.always).map(|step| &step.spec.common);
    let groups = order.groups.iter().map(|group| &group.spec.common);
    for needs in steps.chain(groups).filter_map(|common| common.needs.as_ref()) {
        check_list(analysis, needs, out);
    }
}

fn check_list(analysis: &Analysis<'_>, needs: &[NeedSpec], out: &mut Diagnostics) {
    let failures: Vec<_> = needs
        .iter()
        .filter(|need| need.on == NeedOn::Failure)
        .filter_map(|need| Some((need, *analysis.order.names.get(need.step.value.as_str())?)))
        .collect();
    let mut possible = Vec::new();
    for (need, place) in &failures {
        let name = &need.step.value;
        if can_fail(analysis, *place) {
            possible.push((need, *place));
            continue;
        }
        let message = format!("`{name}` cannot fail: every step in it lets the run go on");
        out.push(
            Diagnostic::error(codes::LB0157, message)
                .at(&analysis.spec.source, need.step.span.clone())
                .help("name the step whose failure is meant, or write `on: any`"),
        );
    }
    if possible.is_empty() {
        return;
    }
    let succeeded = succeeded_before(analysis, needs);
    let never = |place: &Place| members(analysis, *place).iter().all(|at| succeeded.contains(at));
    if !possible.iter().all(|(_, place)| never(place)) {
        return;
    }
    for (need, _) in possible {
        let name = &need.step.value;
        let message =
            format!("this needs a failure of `{name}`, and what only follows when `{name}` succeeded");
        out.push(
            Diagnostic::error(codes::LB0157, message)
                .at(&analysis.spec.source, need.step.span.clone())
                .help("remove one of the two needs"),
        );
    }
}

/// Returns the steps that `on: failure` looks at: those that may end the run, or the very step that is named.
fn members(analysis: &Analysis<'_>, place: Place) -> Vec<usize> {
    match place {
        Place::Step(at) => vec![at],
        Place::Group(at) => {
            let steps = analysis.order.groups[at].steps.iter().copied();
            steps.filter(|at| may_end_run(analysis, *at)).collect()
        }
    }
}

fn can_fail(analysis: &Analysis<'_>, place: Place) -> bool {
    match place {
        Place::Step(at) if analysis.calls.contains_key(&at) => may_end_run(analysis, at),
        Place::Step(_) => true,
        Place::Group(at) => analysis.order.groups[at].steps.iter().any(|at| may_end_run(analysis, *at)),
    }
}

/// Says whether a failure of the step, or in the runbook that it calls, is one after which the run does not go on.
fn may_end_run(analysis: &Analysis<'_>, at: usize) -> bool {
    if let Some(call) = analysis.calls.get(&at) {
        let inner = &call.analysis;
        return (0..inner.order.steps.len()).any(|at| may_end_run(inner, at));
    }
    let step = &analysis.order.steps[at];
    analysis.bodies[at].as_ref().is_none_or(|body| !continues(step.spec, body.kind, step.always))
}

/// Returns the steps that have succeeded, without a failure that was passed over, if the needs of a list are met.
fn succeeded_before(analysis: &Analysis<'_>, needs: &[NeedSpec]) -> HashSet<usize> {
    let order = &analysis.order;
    let named = needs.iter().filter(|need| need.on == NeedOn::Success);
    let mut queue: Vec<usize> = named
        .filter_map(|need| order.names.get(need.step.value.as_str()))
        .flat_map(|place| match place {
            Place::Step(at) => vec![*at],
            // Only steps of the group that no other waits for are sure to have succeeded with it.
            Place::Group(at) => order.groups[*at].ends.clone(),
        })
        .collect();
    let mut seen: HashSet<usize> = queue.iter().copied().collect();
    let mut groups = HashSet::new();
    while let Some(at) = queue.pop() {
        for group in &order.steps[at].whole {
            if groups.insert(*group) {
                queue.extend(order.groups[*group].ends.iter().copied().filter(|end| seen.insert(*end)));
            }
        }
        for (need, on) in &order.steps[at].needs {
            if *on == NeedOn::Success && seen.insert(*need) {
                queue.push(*need);
            }
        }
    }
    seen.retain(|at| may_end_run(analysis, *at));
    seen
}
