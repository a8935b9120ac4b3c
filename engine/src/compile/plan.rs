use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::analysis::{Analysis, analyse};
use super::bodies::{StepBody, continues};
use super::order::OrderedStep;
use super::resources::named;
use crate::diagnostic::{Diagnostic, Diagnostics, Source, codes, nearest_help};
use crate::expr::{self, ProblemKind, bind_inputs, resource_names};
use crate::model::StepId;
use crate::model::outcome::Mode;
use crate::plan::{Condition, Milestone, Need, OnError, Plan, PlannedGroup, PlannedStep, Retry, hex};
use crate::project::Project;
use crate::resource::{Resource, System};
use crate::spec::{EnvironmentSpec, RunbookSpec};
use crate::step::Registry;
use crate::value::Type;

/// What is to be run, where and how.
#[derive(Clone, Copy, Debug)]
pub struct CompileRequest<'a> {
    pub project: &'a Project,
    pub runbook: &'a RunbookSpec,
    pub environment: &'a EnvironmentSpec,
    pub registry: &'a Registry,
    pub mode: Mode,
    /// Inputs as given; texts are read as the type that is declared.
    pub inputs: &'a Map<String, Value>,
    /// When the incident began, if a person said so. Without it a default that reads `incident` counts as missing.
    pub incident_at: Option<Timestamp>,
}

/// A plan, and what should be said about it all the same.
#[derive(Clone, Debug)]
pub struct Compiled {
    pub plan: Plan,
    pub warnings: Diagnostics,
}

/// Makes the plan of a run. On any error there is none, and all errors are told.
///
/// Does not apply the [`fence`](super::fence), does not look at Git (`plan.commit` is absent) and reads no secret.
pub fn compile(request: &CompileRequest<'_>) -> Result<Compiled, Diagnostics> {
    let mut out = Diagnostics::new();
    check_environment(request, &mut out);
    let environments = vec![request.environment];
    let analysis = analyse(request.project, request.runbook, environments, request.registry, &mut out);
    let inputs = bind(request, &mut out);
    let steps = planned_steps(request, &analysis, &inputs);
    out.sort();
    if out.has_errors() {
        return Err(out);
    }
    Ok(Compiled { plan: assemble(request, &analysis, steps, inputs), warnings: out })
}

fn check_environment(request: &CompileRequest<'_>, out: &mut Diagnostics) {
    let (runbook, environment) = (request.runbook, &request.environment.name.value);
    if runbook.environments.iter().all(|listed| &listed.value != environment) {
        let known = runbook.environments.iter().map(|listed| listed.value.as_str());
        let message = format!("the runbook `{}` does not run in `{environment}`", runbook.name.value);
        out.push(
            Diagnostic::error(codes::LB0144, message)
                .at(&runbook.source, runbook.name.span.clone())
                .maybe_help(nearest_help(environment, "it lists", known)),
        );
    }
    for (name, spec) in &request.environment.resources {
        if matches!(&spec.resource.system, System::Host(host) if !host.local) {
            out.push(
                Diagnostic::error(
                    codes::LB0209,
                    format!("`{name}` is another machine, where no step can run yet"),
                )
                .at(&request.environment.source, spec.span.clone())
                .help("run Lifeboat on that machine with `local: true`; nothing falls back to this one"),
            );
        }
    }
}

fn bind(request: &CompileRequest<'_>, out: &mut Diagnostics) -> Map<String, Value> {
    let runbook = request.runbook;
    let declared: Vec<_> = runbook.inputs.iter().map(|input| input.decl.clone()).collect();
    let incident =
        request.incident_at.map_or_else(|| json!({}), |at| json!({ "started_at": at.to_string() }));
    let mut names = Map::new();
    names.insert("incident".into(), incident);
    names.insert("vars".into(), Value::Object(request.environment.vars.clone()));
    names.insert("resources".into(), resource_names(&resources(request.environment)));
    names.insert(
        "run".into(),
        json!({
            "runbook": runbook.name.value,
            "environment": request.environment.name.value,
            "mode": if request.mode == Mode::Drill { "drill" } else { "recovery" },
        }),
    );
    match bind_inputs(&declared, request.inputs, &names) {
        Ok(bound) => {
            check_resource_inputs(request, &bound, out);
            bound
        }
        Err(problems) => {
            for problem in problems {
                let code = if problem.kind == ProblemKind::Missing { codes::LB0142 } else { codes::LB0143 };
                let mut diagnostic = Diagnostic::error(code, problem.message).maybe_help(problem.help);
                if let Some(input) = runbook.inputs.iter().find(|input| input.decl.name == problem.input) {
                    diagnostic = diagnostic.at(&runbook.source, input.span.clone());
                }
                out.push(diagnostic);
            }
            Map::new()
        }
    }
}

/// Checks that inputs of type `resource` name one of this environment, of the right kind.
fn check_resource_inputs(request: &CompileRequest<'_>, bound: &Map<String, Value>, out: &mut Diagnostics) {
    for input in &request.runbook.inputs {
        let Type::Resource { kinds, .. } = &input.decl.ty else { continue };
        let Some(name) = bound.get(&input.decl.name).and_then(Value::as_str) else { continue };
        let found = request.environment.resources.get(name).map(|spec| spec.resource.kind());
        if !found.is_some_and(|kind| kinds.contains(&kind)) {
            let wanted: Vec<_> = kinds.iter().map(ToString::to_string).collect();
            let message = format!(
                "the input `{}`: `{}` has no {} resource `{name}`",
                input.decl.name,
                request.environment.name.value,
                wanted.join(" or ")
            );
            out.push(
                Diagnostic::error(codes::LB0143, message).at(&request.runbook.source, input.span.clone()),
            );
        }
    }
}

fn resources(environment: &EnvironmentSpec) -> BTreeMap<String, Resource> {
    environment.resources.iter().map(|(name, spec)| (name.clone(), spec.resource.clone())).collect()
}

fn planned_steps(
    request: &CompileRequest<'_>,
    analysis: &Analysis<'_>,
    inputs: &Map<String, Value>,
) -> Vec<PlannedStep> {
    let both = analysis.order.steps.iter().zip(&analysis.bodies);
    both.filter_map(|(step, body)| planned_step(request, analysis, step, body.as_ref()?, inputs)).collect()
}

fn planned_step(
    request: &CompileRequest<'_>,
    analysis: &Analysis<'_>,
    step: &OrderedStep<'_>,
    body: &StepBody<'_>,
    inputs: &Map<String, Value>,
) -> Option<PlannedStep> {
    let common = &step.spec.common;
    let id_of = |at: usize| StepId::new(analysis.order.steps[at].spec.common.id.value.clone()).ok();
    let needs = step.needs.iter().filter_map(|(at, on)| Some(Need { step: id_of(*at)?, on: *on }));
    let mut with = Value::Object(body.with.clone());
    name_resources(&mut with, request.runbook, inputs);
    let named_by_input = |name: String| {
        let input = expr::input_name(&name).and_then(|input| inputs.get(input)).and_then(Value::as_str);
        input.map_or(name.clone(), ToOwned::to_owned)
    };
    let (reads, writes) = named(body);
    let writes: Vec<_> = writes.into_iter().map(named_by_input).collect();
    let mut retry = step.spec.retry.as_ref().map_or_else(Retry::default, |retry| retry.value.clone());
    retry.when = step.spec.retry_when.as_ref().and_then(|node| trimmed(node.text()));
    Some(PlannedStep {
        id: StepId::new(common.id.value.clone()).ok()?,
        title: common.title.clone().unwrap_or_else(|| common.id.value.replace('_', " ")),
        place: place(&request.runbook.source, common.id.span.start),
        group: step
            .group
            .and_then(|at| StepId::new(analysis.order.groups[at].spec.common.id.value.clone()).ok()),
        always: step.always,
        needs: needs.collect(),
        conditions: conditions(step),
        uses: body.kind.name.clone(),
        with,
        env: BTreeMap::new(),
        dir: None,
        effect: body.effect,
        probe: None,
        expect: step.spec.expect.iter().filter_map(|node| trimmed(node.text())).collect(),
        retry,
        timeout: step.spec.timeout,
        budget: common.budget.as_ref().map(|budget| budget.value),
        milestone: milestone(common),
        recovered: common.recovered,
        on_error: on_error(request, step, body),
        destroys: destroys(body, &writes),
        reads: reads.into_iter().map(named_by_input).collect(),
        writes,
        restores: body.kind.restores,
    })
}

fn milestone(common: &crate::spec::Common) -> Option<Milestone> {
    common.milestone.as_ref().map(|milestone| milestone.value.clone())
}

fn place(source: &Arc<Source>, at: usize) -> String {
    format!("{}:{}", source.name, source.position(at).line)
}

fn trimmed(text: Option<&str>) -> Option<String> {
    text.map(|text| text.trim().to_owned())
}

fn conditions(step: &OrderedStep<'_>) -> Vec<Condition> {
    let written = step.conditions.iter().filter_map(|(node, of)| {
        Some(Condition { expression: trimmed(node.text())?, of: StepId::new(*of).ok()? })
    });
    written.collect()
}

/// Replaces `{{ inputs.x }}` by the name of the resource that the input was given.
fn name_resources(value: &mut Value, runbook: &RunbookSpec, inputs: &Map<String, Value>) {
    match value {
        Value::String(text) => {
            let Some(name) = expr::input_name(text) else { return };
            let declared = runbook.inputs.iter().find(|input| input.decl.name == name);
            if declared.is_some_and(|input| matches!(input.decl.ty, Type::Resource { .. }))
                && let Some(bound) = inputs.get(name)
            {
                *value = bound.clone();
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| name_resources(item, runbook, inputs)),
        Value::Object(map) => map.values_mut().for_each(|item| name_resources(item, runbook, inputs)),
        _ => {}
    }
}

fn on_error(request: &CompileRequest<'_>, step: &OrderedStep<'_>, body: &StepBody<'_>) -> OnError {
    match step.spec.on_error {
        Some(said) => said,
        None if continues(step.spec, body.kind, step.always) => OnError::Continue,
        None if request.mode == Mode::Recovery && request.runbook.objective.value.rto.is_some() => {
            OnError::Hold
        }
        None => OnError::Abort,
    }
}

fn destroys(body: &StepBody<'_>, writes: &[String]) -> Vec<String> {
    let Some(what) = &body.kind.destroys else { return Vec::new() };
    if writes.is_empty() {
        vec![what.clone()]
    } else {
        writes.iter().map(|name| format!("`{name}`: {what}")).collect()
    }
}

fn assemble(
    request: &CompileRequest<'_>,
    analysis: &Analysis<'_>,
    steps: Vec<PlannedStep>,
    inputs: Map<String, Value>,
) -> Plan {
    let CompileRequest { project, runbook, environment, .. } = request;
    let sources = [&project.source, &runbook.source, &environment.source];
    Plan {
        format: Plan::FORMAT,
        project: project.spec.name.clone(),
        project_dir: project.spec.dir.clone(),
        runbook: runbook.name.value.clone(),
        title: runbook.title.clone(),
        owner: runbook.owner.clone(),
        environment: environment.name.value.clone(),
        protected: environment.protected,
        mode: request.mode,
        commit: None,
        objective: runbook.objective.value,
        milestones: runbook
            .milestones
            .iter()
            .map(|(name, deadline)| (name.clone(), deadline.value))
            .collect(),
        roles: runbook.roles.clone(),
        inputs,
        vars: environment.vars.clone(),
        resources: resources(environment),
        secrets: environment.secret_refs(),
        auto_approvals: (project.spec.auto_approvals || environment.auto_approvals)
            && request.mode == Mode::Drill
            && !environment.protected,
        keep: false,
        steps,
        groups: planned_groups(analysis),
        sources: sources.iter().map(|source| (source.name.clone(), hash(&source.text))).collect(),
    }
}

fn hash(text: &str) -> String {
    hex(&Sha256::digest(text.as_bytes()))
}

fn planned_groups(analysis: &Analysis<'_>) -> Vec<PlannedGroup> {
    let order = &analysis.order;
    let id = |at: usize| StepId::new(order.groups[at].spec.common.id.value.clone()).ok();
    let planned = order.groups.iter().enumerate().filter_map(|(at, group)| {
        let common = &group.spec.common;
        Some(PlannedGroup {
            id: id(at)?,
            title: common.title.clone().unwrap_or_else(|| common.id.value.replace('_', " ")),
            parent: group.parent.and_then(id),
            parallel: group.spec.parallel,
            max_parallel: group.spec.max_parallel,
            budget: common.budget.as_ref().map(|budget| budget.value),
            milestone: milestone(common),
            recovered: common.recovered,
        })
    });
    planned.collect()
}
