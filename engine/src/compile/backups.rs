use std::collections::{HashSet, VecDeque};

use super::analysis::Analysis;
use super::bodies::StepBody;
use crate::diagnostic::{Diagnostic, Diagnostics, codes};
use crate::resource::ResourceKind;
use crate::spec::{Site, SiteKind};
use crate::step::Registry;

/// Checks that a step that destroys and restores has chosen or verified a backup in the same store before it.
pub(super) fn check_backups(analysis: &Analysis<'_>, registry: &Registry, out: &mut Diagnostics) {
    for (at, body) in analysis.bodies.iter().enumerate() {
        let Some(body) = body.as_ref().filter(|body| body.kind.destroys.is_some() && body.kind.restores)
        else {
            continue;
        };
        if !family_selects(registry, &body.kind.name) {
            continue;
        }
        for (store, site) in stores(body) {
            if chosen_before(analysis, at, store) {
                continue;
            }
            let message = format!("this step destroys data before a usable backup is known in `{store}`");
            let family = family(&body.kind.name);
            out.push(
                Diagnostic::error(codes::LB0135, message)
                    .at(&analysis.spec.source, site.node.span.clone())
                    .help(format!("put `uses: {family}.select_backup` or `{family}.verify_backup` with `store: {store}` before it")),
            );
        }
    }
}

fn family(kind: &str) -> &str {
    kind.split('.').next().unwrap_or(kind)
}

fn family_selects(registry: &Registry, kind: &str) -> bool {
    registry.specs().any(|spec| spec.selects_backup && family(&spec.name) == family(kind))
}

fn stores<'b>(body: &'b StepBody<'_>) -> impl Iterator<Item = (&'b str, &'b Site)> {
    body.sites.iter().filter_map(|site| match &site.kind {
        SiteKind::Resource { kinds, .. } if kinds.contains(&ResourceKind::Store) => {
            Some((site.node.text()?, site))
        }
        _ => None,
    })
}

fn chosen_before(analysis: &Analysis<'_>, at: usize, store: &str) -> bool {
    let (mut queue, mut seen) = (VecDeque::from([at]), HashSet::from([at]));
    while let Some(at) = queue.pop_front() {
        for (need, _) in &analysis.order.steps[at].needs {
            if !seen.insert(*need) {
                continue;
            }
            let selects = analysis.bodies[*need]
                .as_ref()
                .is_some_and(|body| body.kind.selects_backup && stores(body).any(|(name, _)| name == store));
            if selects {
                return true;
            }
            queue.push_back(*need);
        }
    }
    false
}
