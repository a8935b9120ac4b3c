use std::collections::BTreeSet;

use jiff::Timestamp;

use crate::compile::{written, written_identities, written_paths};
use crate::fence::{Network, lock_names, path_name};
use crate::plan::Plan;
use crate::step::Registry;

use super::preview::Looker;

/// Returns what a run of the plan must have for itself: the places of everything that its steps write, under every name
/// that they are known by, the systems that scripts which change something are connected to, directories that steps fill,
/// and the locks that the runbook names.
///
/// Blocks: looks at the file system and asks the network for addresses. A directory whose name an earlier step makes
/// cannot be known yet.
pub fn lock_identities(plan: &Plan, registry: &Registry, network: &dyn Network) -> BTreeSet<String> {
    let looker = Looker::new(plan, registry, Timestamp::UNIX_EPOCH);
    let mut found = written_identities(plan);
    for step in plan.everything() {
        let systems = written(step, registry);
        let systems = systems.iter().filter_map(|name| plan.resources.get(name));
        found.extend(systems.flat_map(|system| lock_names(system, network)));
        let paths = written_paths(step, registry, &looker.known_with(step));
        found.extend(paths.iter().map(|path| path_name(&plan.project_dir.join(path))));
    }
    found
}
