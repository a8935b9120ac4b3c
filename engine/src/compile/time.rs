use std::collections::BTreeSet;

use super::analysis::Analysis;
use super::inline::Inlined;
use super::order::Place;
use crate::diagnostic::{Diagnostic, Diagnostics, codes};
use crate::spec::Common;
use crate::value::Span;

/// Checks the objective against budgets and `recovered`, and milestones against their declaration.
pub(super) fn check_time(analysis: &Analysis<'_>, out: &mut Diagnostics) {
    check_milestones(analysis, out);
    let Some(rto) = analysis.spec.objective.value.rto else { return };
    let inlined = Inlined::of(analysis);
    let ends = recovered_steps(&inlined);
    let span = analysis.spec.objective.span.clone();
    if ends.is_empty() {
        out.push(
            Diagnostic::error(
                codes::LB0131,
                "no step says when the system is recovered, so the RTO cannot be judged",
            )
            .at(&analysis.spec.source, span)
            .help("add `recovered: true` to the step after which users can work again"),
        );
        return;
    }
    let Some(path) = inlined.graph().critical_path(&ends) else { return };
    if path.length <= rto.0 {
        return;
    }
    let budgeted = || path.steps.iter().copied().filter(|at| inlined.step_common(*at).budget.is_some());
    let told: Vec<_> = budgeted().map(|at| inlined.step_id(at)).collect();
    let message = format!(
        "the budgets on the critical path add up to {}, more than the RTO of {rto}",
        Span(path.length)
    );
    let mut diagnostic = Diagnostic::error(codes::LB0132, message).at(&analysis.spec.source, span);
    // Only places of the same file can be pointed at.
    for at in budgeted().filter(|at| inlined.steps[*at].file == 0).take(8) {
        if let Some(budget) = &inlined.step_common(at).budget {
            diagnostic = diagnostic
                .also(budget.span.clone(), format!("{} for `{}`", budget.value, inlined.step_id(at)));
        }
    }
    if !told.is_empty() {
        diagnostic = diagnostic.help(format!("the path with budgets: {}", told.join(", ")));
    }
    out.push(diagnostic);
}

/// Returns the steps that end the RTO clock: those marked, and all steps of groups and calls marked.
fn recovered_steps(inlined: &Inlined<'_, '_>) -> Vec<usize> {
    let marked = |at: &usize| {
        !inlined.steps[*at].always
            && (inlined.step_common(*at).recovered
                || inlined.groups_of(*at).any(|group| inlined.common(group.file, group.place).recovered))
    };
    (0..inlined.steps.len()).filter(marked).collect()
}

fn check_milestones(analysis: &Analysis<'_>, out: &mut Diagnostics) {
    let spec = analysis.spec;
    let mut marked = BTreeSet::new();
    let places = (0..analysis.order.steps.len())
        .map(Place::Step)
        .chain((0..analysis.order.groups.len()).map(Place::Group));
    for place in places {
        let common: &Common = analysis.order.common(place);
        let Some(milestone) = &common.milestone else { continue };
        let name = &milestone.value.name;
        marked.insert(name.as_str());
        if !spec.milestones.contains_key(name) {
            let known = spec.milestones.keys().map(String::as_str);
            out.push(
                Diagnostic::error(codes::LB0136, format!("the milestone `{name}` is not declared"))
                    .at(&spec.source, milestone.span.clone())
                    .help(format!("declare its deadline: `milestones: {{ {name}: 45m }}`"))
                    .suggest(name, "milestones", known),
            );
        }
    }
    for (name, declared) in spec.milestones.iter().filter(|(name, _)| !marked.contains(name.as_str())) {
        out.push(
            Diagnostic::warning(codes::LB0136, format!("no step marks the milestone `{name}`"))
                .at(&spec.source, declared.span.clone())
                .help(format!("add `milestone: {name}` to the step that reaches it")),
        );
    }
}
