use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use super::backups::check_backups;
use super::bodies::{StepBody, read_body};
use super::calls::{Call, Calls};
use super::cycle::report_cycles;
use super::expressions::check_expressions;
use super::fence::{WriteFence, connections};
use super::graph::{Graph, GroupNode, Node};
use super::needs::check_needs;
use super::order::Order;
use super::resources::{check_resources, resource_of};
use super::time::check_time;
use super::undo::read_undo;
use crate::diagnostic::{Diagnostic, Diagnostics, codes};
use crate::project::Project;
use crate::resource::Access;
use crate::spec::{EnvironmentSpec, ProjectSpec, RunbookSpec, Site};
use crate::step::{Effect, Registry};

/// A runbook with everything that can be known about it before a run.
pub(super) struct Analysis<'s> {
    pub(super) spec: &'s RunbookSpec,
    pub(super) project: &'s Project,
    pub(super) registry: &'s Registry,
    /// The environments that it is checked against.
    pub(super) environments: Vec<&'s EnvironmentSpec>,
    pub(super) order: Order<'s>,
    /// For every step; `None` if its kind is not known.
    pub(super) bodies: Vec<Option<StepBody<'s>>>,
    /// What takes the work of steps back, where they say so.
    pub(super) undos: Vec<Option<StepBody<'s>>>,
    /// The runbooks that its steps call, by the position of the step.
    pub(super) calls: BTreeMap<usize, Call<'s>>,
    /// Empty if steps wait for each other in a circle.
    pub(super) topological: Vec<usize>,
    pub(super) cyclic: bool,
}

/// Checks a runbook against all environments that it may run in.
pub fn check(project: &Project, spec: &RunbookSpec, registry: &Registry, out: &mut Diagnostics) {
    let mut fence = WriteFence::new(project.environments.values());
    check_one(&mut Calls::new(project, registry), spec, &mut fence, out);
}

/// Checks all runbooks of a project, each of them once, however many others call it.
pub fn check_all(project: &Project, registry: &Registry, out: &mut Diagnostics) {
    let (mut calls, mut fence) =
        (Calls::new(project, registry), WriteFence::new(project.environments.values()));
    for spec in project.runbooks.values() {
        check_one(&mut calls, spec, &mut fence, out);
    }
}

fn check_one<'s>(
    calls: &mut Calls<'s>,
    spec: &'s RunbookSpec,
    fence: &mut WriteFence<'s>,
    out: &mut Diagnostics,
) {
    let project = calls.project;
    let mut environments = Vec::new();
    for name in &spec.environments {
        if let Some(environment) = project.environments.get(&name.value) {
            environments.push(environment);
        } else if !project.broken.contains(&name.value) {
            let known = project.environments.keys().map(String::as_str);
            out.push(
                Diagnostic::error(codes::LB0144, format!("there is no environment `{}`", name.value))
                    .at(&spec.source, name.span.clone())
                    .suggest(&name.value, "environments", known),
            );
        }
    }
    let analysis = analyse(calls, spec, environments, out);
    let writes = analysis.writes();
    for environment in analysis.environments.iter().filter(|environment| !environment.protected) {
        out.extend(fence.check(environment, &writes));
    }
}

impl<'s> Analysis<'s> {
    /// Returns the names of all resources that are written, in called runbooks too. What an input names is written
    /// under the name that the caller gives.
    pub(super) fn writes(&self) -> BTreeSet<String> {
        let own = self.written_names();
        let scripts =
            self.bodies.iter().chain(&self.undos).flatten().filter(|body| body.effect != Effect::Read);
        let connected = scripts.flat_map(|body| connections(&body.kind.params, &body.with));
        own.chain(connected).chain(self.calls.values().flat_map(|call| call.analysis.writes())).collect()
    }

    /// Says whether the resource that an input names is written.
    pub(super) fn writes_input(&self, name: &str) -> bool {
        self.written_names().any(|text| crate::expr::input_name(&text) == Some(name))
    }

    /// Returns the names of the resources that its own steps write, as they stand there.
    fn written_names(&self) -> impl Iterator<Item = String> {
        let sites = (0..self.order.steps.len()).flat_map(|at| self.all_sites(at));
        sites
            .filter_map(resource_of)
            .filter(|(_, access)| *access == Access::Write)
            .map(|(name, _)| name.into_owned())
    }

    /// Returns what later checks must look at in the parameters of a step.
    pub(super) fn sites(&self, at: usize) -> &[Site] {
        match (&self.bodies[at], self.calls.get(&at)) {
            (Some(body), _) => &body.sites,
            (None, Some(call)) => &call.sites,
            (None, None) => &[],
        }
    }

    /// Returns the same of what takes its work back.
    pub(super) fn undo_sites(&self, at: usize) -> &[Site] {
        self.undos[at].as_ref().map_or(&[], |undo| &undo.sites)
    }

    /// Returns what must be looked at in a step and in its undo.
    pub(super) fn all_sites(&self, at: usize) -> impl Iterator<Item = &Site> {
        self.sites(at).iter().chain(self.undo_sites(at))
    }
}

/// Checks a runbook against some environments, and those that it calls.
pub(super) fn analyse<'s>(
    calls: &mut Calls<'s>,
    spec: &'s RunbookSpec,
    environments: Vec<&'s EnvironmentSpec>,
    out: &mut Diagnostics,
) -> Rc<Analysis<'s>> {
    calls.restart();
    let analysis = calls.analysed(spec, environments, out);
    check_time(&analysis, out);
    analysis
}

/// Checks one runbook. Objective and milestones of one that is called mean nothing.
pub(super) fn analyse_one<'s>(
    calls: &mut Calls<'s>,
    spec: &'s RunbookSpec,
    environments: Vec<&'s EnvironmentSpec>,
    out: &mut Diagnostics,
) -> Analysis<'s> {
    let order = Order::build(spec, out);
    let around = calls.around(&spec.source);
    let bodies: Vec<_> = order.steps.iter().map(|step| read_body(&around, step.spec, out)).collect();
    let undos: Vec<_> = order.steps.iter().map(|step| read_undo(&around, step, out)).collect();
    let called = calls.follow(spec, &order, &environments, out);
    let graph = graph_of(&order);
    let cyclic = report_cycles(&order, &graph, &spec.source, out);
    let topological = graph.topological_order().unwrap_or_default();
    let analysis = Analysis {
        spec,
        project: calls.project,
        registry: calls.registry,
        environments,
        order,
        bodies,
        undos,
        calls: called,
        topological,
        cyclic,
    };
    check_needs(&analysis, out);
    check_expressions(&analysis, out);
    check_resources(&analysis, out);
    check_backups(&analysis, calls.registry, out);
    check_roles(&analysis, out);
    check_holders(&calls.project.spec, spec, out);
    check_minimum(&analysis, out);
    analysis
}

fn graph_of(order: &Order<'_>) -> Graph {
    let budget = |common: &crate::spec::Common| common.budget.as_ref().map(|budget| budget.value.0);
    let mut graph = Graph {
        joins: 0,
        steps: order
            .steps
            .iter()
            .map(|step| Node {
                needs: step.needs.iter().map(|(at, _)| *at).collect(),
                budget: budget(&step.spec.common).unwrap_or_default(),
                group: step.group,
            })
            .collect(),
        groups: order
            .groups
            .iter()
            .map(|group| GroupNode { parent: group.parent, budget: budget(&group.spec.common) })
            .collect(),
    };
    let waiting = order.steps.iter().map(|step| step.whole.as_slice());
    graph.join(waiting, |group| order.groups[group].ends.clone());
    graph
}

/// Checks that somebody holds each role, in a project that says who holds which: at 3 am it is too late to find out.
fn check_holders(project: &ProjectSpec, spec: &RunbookSpec, out: &mut Diagnostics) {
    if !project.declares_roles {
        return;
    }
    for (role, words) in &spec.roles {
        if project.roles.get(role).is_none_or(Vec::is_empty) {
            let known = project.roles.keys().map(String::as_str);
            out.push(
                Diagnostic::warning(
                    codes::LB0137,
                    format!("nobody in lifeboat.yaml holds the role `{role}`"),
                )
                .at(&spec.source, words.span.clone())
                .suggest(role, "roles of the project", known),
            );
        }
    }
}

/// Checks that a role has as many people as must approve: the run would wait forever.
fn check_minimum(analysis: &Analysis<'_>, out: &mut Diagnostics) {
    for (step, body) in analysis.order.steps.iter().zip(&analysis.bodies) {
        let Some(body) = body.as_ref().filter(|body| body.kind.waits_for_people) else { continue };
        let Some(role) = body.with.get("role").and_then(|role| role.as_str()) else { continue };
        let Some(minimum) = body.with.get("minimum").and_then(serde_json::Value::as_u64) else { continue };
        let holders = analysis.project.spec.holders(role);
        if holders.is_empty() || holders.len() as u64 >= minimum {
            continue;
        }
        let span = match &step.spec.body {
            crate::spec::Body::Uses { with: Some(node), .. } => {
                node.get("minimum").map(|node| node.span.clone())
            }
            _ => None,
        };
        let message =
            format!("{minimum} people of `{role}` must approve, and lifeboat.yaml names {}", holders.len());
        out.push(
            Diagnostic::error(codes::LB0370, message)
                .at(&analysis.spec.source, span.unwrap_or_else(|| step.spec.common.id.span.clone()))
                .help(format!(
                    "give the role more people under `roles:` of lifeboat.yaml; now: {}",
                    holders.join(", ")
                )),
        );
    }
}

/// Checks that steps ask only roles that the runbook declares.
fn check_roles(analysis: &Analysis<'_>, out: &mut Diagnostics) {
    let steps = analysis.order.steps.iter().zip(&analysis.bodies).map(|(step, body)| (step.spec, body));
    let undos = analysis.order.steps.iter().zip(&analysis.undos);
    let undos = undos.filter_map(|(step, undo)| Some((&*step.spec.undo.as_ref()?.step, undo)));
    for (step, body) in steps.chain(undos) {
        let Some(body) = body.as_ref().filter(|body| body.kind.waits_for_people) else { continue };
        let Some(role) = body.with.get("role").and_then(|role| role.as_str()) else { continue };
        if crate::expr::has_template(role) || analysis.spec.roles.contains_key(role) {
            continue;
        }
        let span = match &step.body {
            crate::spec::Body::Uses { with: Some(node), .. } | crate::spec::Body::Key { value: node, .. } => {
                node.get("role").map(|node| node.span.clone())
            }
            _ => None,
        };
        let known = analysis.spec.roles.keys().map(String::as_str);
        out.push(
            Diagnostic::error(codes::LB0137, format!("the runbook has no role `{role}`"))
                .at(&analysis.spec.source, span.unwrap_or_else(|| step.common.id.span.clone()))
                .help(format!("declare it: `roles: {{ {role}: What this role decides }}`"))
                .suggest(role, "its roles", known),
        );
    }
}
