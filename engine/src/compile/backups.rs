use std::collections::HashMap;

use super::analysis::Analysis;
use super::bodies::StepBody;
use crate::diagnostic::{Diagnostic, Diagnostics, codes};
use crate::resource::ResourceKind;
use crate::spec::{Site, SiteKind};
use crate::step::Registry;

/// Checks that a step that destroys and restores has chosen or verified a backup in the same store before it.
pub(super) fn check_backups(analysis: &Analysis<'_>, registry: &Registry, out: &mut Diagnostics) {
    let mut by_store: HashMap<&str, Vec<bool>> = HashMap::new();
    for (at, body) in analysis.bodies.iter().enumerate() {
        let Some(body) = body.as_ref().filter(|body| body.kind.destroys.is_some() && body.kind.restores)
        else {
            continue;
        };
        if selecting(registry, &body.kind.name).is_empty() {
            continue;
        }
        for (store, site) in stores(body) {
            if by_store.entry(store).or_insert_with(|| chosen(analysis, store))[at] {
                continue;
            }
            let message = format!("this step destroys data before a usable backup is known in `{store}`");
            let selecting = selecting(registry, &body.kind.name).join("` or `");
            out.push(
                Diagnostic::error(codes::LB0135, message)
                    .at(&analysis.spec.source, site.node.span.clone())
                    .help(format!("put `uses: {selecting}` with `store: {store}` before it")),
            );
        }
    }
}

fn family(kind: &str) -> &str {
    kind.split('.').next().unwrap_or(kind)
}

/// Returns the kinds of a family that choose or verify a backup.
fn selecting<'r>(registry: &'r Registry, kind: &str) -> Vec<&'r str> {
    let specs = registry.specs().filter(|spec| spec.selects_backup && family(&spec.name) == family(kind));
    let mut names: Vec<&str> = specs.map(|spec| spec.name.as_str()).collect();
    names.sort_unstable();
    names
}

fn stores<'b>(body: &'b StepBody<'_>) -> impl Iterator<Item = (&'b str, &'b Site)> {
    body.sites.iter().filter_map(|site| match &site.kind {
        SiteKind::Resource { kinds, .. } if kinds.contains(&ResourceKind::Store) => {
            Some((site.node.text()?, site))
        }
        _ => None,
    })
}

/// Returns for every step whether one that it comes after has chosen or verified a backup in a store. Also where steps
/// wait for each other in a circle.
fn chosen(analysis: &Analysis<'_>, store: &str) -> Vec<bool> {
    let steps = &analysis.order.steps;
    // Behind the steps stand the groups that are needed as a whole.
    let groups = &analysis.order.groups;
    let mut dependants = vec![Vec::new(); steps.len() + groups.len()];
    for (at, step) in steps.iter().enumerate() {
        step.needs.iter().for_each(|(need, _)| dependants[*need].push(at));
        step.whole.iter().for_each(|group| dependants[steps.len() + group].push(at));
    }
    for (at, group) in groups.iter().enumerate().filter(|(_, group)| group.needed_whole) {
        group.ends.iter().for_each(|end| dependants[*end].push(steps.len() + at));
    }
    let selects =
        |body: &StepBody<'_>| body.kind.selects_backup && stores(body).any(|(name, _)| name == store);
    let selecting = |at: &usize| analysis.bodies[*at].as_ref().is_some_and(selects);
    let mut queue: Vec<_> = (0..steps.len()).filter(selecting).collect();
    let mut chosen = vec![false; dependants.len()];
    while let Some(before) = queue.pop() {
        for at in &dependants[before] {
            if !std::mem::replace(&mut chosen[*at], true) {
                queue.push(*at);
            }
        }
    }
    chosen
}
