use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;

use serde_json::{Map, Value};

use crate::diagnostic::{Diagnostic, codes};
use crate::fence::{Breach, Fence, Machine, Network, Origin, Protected, Spelled, breach, claims, lock_names};
use crate::model::outcome::Mode;
use crate::plan::{Plan, PlannedStep};
use crate::resource::{Access, Resource, ResourceKind, maker};
use crate::spec::{EnvironmentSpec, ResourceSpec};
use crate::step::{Effect, Registry};
use crate::value::{Field, Type};

/// Refuses a plan that would touch what a protected environment names: a write from an unprotected environment, or
/// anything but reading of `access: read` resources by a drill in a protected one.
///
/// Blocks: looks at the file system of this machine and asks for addresses of hosts. What it finds can change; the
/// executor compares again before each attempt that writes.
pub fn fence<'e>(
    plan: &Plan,
    registry: &Registry,
    environments: impl IntoIterator<Item = &'e EnvironmentSpec>,
) -> Vec<Diagnostic> {
    if plan.protected {
        return if plan.mode == Mode::Drill { drill_in_protected(plan) } else { Vec::new() };
    }
    let mut environments = environments.into_iter();
    let writes = plan.everything().flat_map(|step| written(step, registry)).collect();
    match environments.find(|environment| environment.name.value == plan.environment) {
        Some(own) => {
            let mut found = refused(own, &writes, &plan.fence, &Machine::new());
            found.extend(plan.everything().flat_map(|step| refused_paths(step, plan, registry)));
            found
        }
        None => {
            let message = format!("the project has no environment `{}`", plan.environment);
            vec![Diagnostic::error(codes::LB0207, message)]
        }
    }
}

/// Returns what the protected environments name, as the plan keeps it.
pub(super) fn protected_systems<'e>(
    environments: impl IntoIterator<Item = &'e EnvironmentSpec>,
) -> Vec<Protected> {
    let protected = environments.into_iter().filter(|environment| environment.protected);
    let named = protected.flat_map(|environment| {
        environment
            .resources
            .iter()
            .filter_map(|(name, spec)| Protected::new(&environment.name.value, name, &spec.resource))
    });
    named.collect()
}

/// Returns the systems that a step writes: those that its kind declares, and those that a script which changes
/// something is connected to.
pub(crate) fn written(step: &PlannedStep, registry: &Registry) -> Vec<String> {
    let mut all = step.writes.clone();
    if step.effect != Effect::Read
        && let Some(spec) = registry.spec(&step.uses)
    {
        all.extend(step.with.as_object().map(|with| connections(&spec.params, with)).into_iter().flatten());
    }
    all
}

/// Returns the directories that a step fills, from its parameters as far as they are known.
pub(crate) fn written_paths(step: &PlannedStep, registry: &Registry, with: &Value) -> Vec<PathBuf> {
    let Some(spec) = registry.spec(&step.uses) else { return Vec::new() };
    let named = spec.writes_paths.iter().filter_map(|param| with.get(param)?.as_str());
    named.map(PathBuf::from).collect()
}

/// Returns the systems that variables of a program connect it to.
pub(super) fn connections(params: &[Field], with: &Map<String, Value>) -> impl Iterator<Item = String> {
    let maps = params.iter().filter(|field| field.ty == Type::EnvMap);
    let variables = maps.filter_map(|field| with.get(&field.name)?.as_object()).flat_map(|map| map.values());
    variables.filter_map(|variable| Some(variable.get("connection")?.as_str()?.to_owned()))
}

fn drill_in_protected(plan: &Plan) -> Vec<Diagnostic> {
    let refuse = |step: &PlannedStep, why: String| {
        Diagnostic::error(
            codes::LB0140,
            format!("a drill in the protected environment `{}` would {why}", plan.environment),
        )
        .help(format!("`{}` ({}); drill in an unprotected environment with `--env`", step.id, step.place))
    };
    let mut found = Vec::new();
    for step in plan.everything() {
        // Messages harm nothing, and what the drill itself makes belongs to no environment.
        let is_free = |name: &String| {
            let kind = plan.resources.get(name).map(Resource::kind);
            maker(name).is_some() || matches!(kind, Some(ResourceKind::Slack | ResourceKind::Webhook))
        };
        if let Some(name) = step.writes.iter().find(|name| !is_free(name)) {
            found.push(refuse(step, format!("write `{name}`")));
        }
        let open = |name: &&String| {
            plan.resources.get(*name).is_some_and(|resource| resource.access != Access::Read)
        };
        if let Some(name) = step.reads.iter().find(open) {
            found.push(refuse(step, format!("use `{name}`, which is not declared `access: read`")));
        }
        if step.with.get("script").is_some() && step.effect != Effect::Read {
            found.push(refuse(step, "run a script that changes something".to_owned()));
        }
    }
    found
}

/// Compares the resources that runbooks write with everything that protected environments name, as far as that can be known
/// without asking the network. Each resource is compared once: to find its places is dear, and they are the same for
/// every runbook of a check.
pub(super) struct WriteFence<'p> {
    protected: Vec<Protected>,
    /// By environment and resource.
    known: HashMap<(&'p str, &'p str), Option<Breach>>,
}

impl<'p> WriteFence<'p> {
    /// Keeps away from what the protected ones of these environments name.
    pub(super) fn new(environments: impl IntoIterator<Item = &'p EnvironmentSpec>) -> Self {
        Self { protected: protected_systems(environments), known: HashMap::new() }
    }

    /// Refuses the writes of an unprotected environment that reach a protected one.
    pub(super) fn check(&mut self, own: &'p EnvironmentSpec, writes: &BTreeSet<String>) -> Vec<Diagnostic> {
        let mut found = Vec::new();
        for (name, spec) in writable(own, writes) {
            let breach = self.known.entry((&own.name.value, name)).or_insert_with(|| {
                breach(&claims(&spec.resource, Origin::Environment), &self.protected, &Spelled)
            });
            found.extend(breach.as_ref().map(|breach| refusal(own, name, spec, breach)));
        }
        found
    }
}

/// Returns the resources that are written. To write what may only be read is an error of its own.
fn writable<'o>(
    own: &'o EnvironmentSpec,
    writes: &BTreeSet<String>,
) -> impl Iterator<Item = (&'o String, &'o ResourceSpec)> {
    let specs = writes.iter().filter_map(|name| own.resources.get_key_value(name));
    specs.filter(|(_, spec)| spec.resource.access == Access::Write)
}

fn refused(
    own: &EnvironmentSpec,
    writes: &BTreeSet<String>,
    protected: &[Protected],
    network: &dyn Network,
) -> Vec<Diagnostic> {
    let written = writable(own, writes);
    let found = written.filter_map(|(name, spec)| {
        let breach = breach(&claims(&spec.resource, Origin::Environment), protected, network)?;
        Some(refusal(own, name, spec, &breach))
    });
    found.collect()
}

fn refusal(own: &EnvironmentSpec, name: &str, spec: &ResourceSpec, breach: &Breach) -> Diagnostic {
    let message = format!(
        "`{name}` of `{}` would be written, and is `{}` of the protected environment `{}`: {}",
        own.name.value, breach.name, breach.environment, breach.place
    );
    Diagnostic::error(codes::LB0141, message)
        .at(&own.source, spec.span.clone())
        .help("give this environment a system of its own; declare `access: read` if it is only read")
}

/// Compares the directories that a step fills, where their names are no templates, with what protected environments name.
fn refused_paths(step: &PlannedStep, plan: &Plan, registry: &Registry) -> Vec<Diagnostic> {
    let fence = Fence::new(plan.fence.clone());
    let written = written_paths(step, registry, &step.with);
    let literal = written.iter().filter(|path| !path.to_string_lossy().contains("{{"));
    let found = literal.filter_map(|path| {
        let breach = fence.check_path(&plan.project_dir.join(path)).err()?;
        let message = format!(
            "`{}` would write {}, and that is `{}` of the protected environment `{}`: {}",
            step.id,
            path.display(),
            breach.name,
            breach.environment,
            breach.place
        );
        Some(
            Diagnostic::error(codes::LB0141, message).help(format!("{}; name another directory", step.place)),
        )
    });
    found.collect()
}

/// Returns what a run of the plan must have for itself: the places of everything that it writes, and its locks.
pub fn written_identities(plan: &Plan) -> BTreeSet<String> {
    let written: BTreeSet<_> = plan.everything().flat_map(|step| &step.writes).collect();
    let resources = written.into_iter().filter_map(|name| plan.resources.get(name));
    let named = plan.locks.iter().map(|name| format!("the lock `{name}`"));
    resources.flat_map(|resource| lock_names(resource, &Spelled)).chain(named).collect()
}
