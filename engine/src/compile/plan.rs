use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::analysis::analyse;
use super::bodies::{StepBody, continues};
use super::calls::Calls;
use super::fence::protected_systems;
use super::inline::Inlined;
use super::locks::locks;
use super::made::name_made;
use super::promises::notices;
use super::resources::named;
use super::scopes::Scopes;
use crate::diagnostic::{Diagnostic, Diagnostics, Source, codes, nearest_help};
use crate::expr::{self, ProblemKind, bind_inputs, resource_names};
use crate::model::StepId;
use crate::model::outcome::Mode;
use crate::plan::{
    Backoff, Condition, ForEach, Milestone, OnError, Plan, PlannedGroup, PlannedStep, PlannedUndo, Retry,
    Until, hex,
};
use crate::project::Project;
use crate::resource::{Resource, ResourceKind, System, in_words, made_by, maker};
use crate::spec::{Common, EnvironmentSpec, RunbookSpec, SiteKind, StepSpec};
use crate::step::{Effect, Registry, Setting};
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
    let mut calls = Calls::new(request.project, request.registry);
    let analysis = analyse(&mut calls, request.runbook, environments, &mut out);
    let inputs = bind(request, &mut out);
    let inlined = Inlined::of(&analysis);
    let scopes = Scopes::bind(request, &inlined, inputs, &mut out);
    scopes.check_writes(request, &inlined, &mut out);
    check_hosts(request, &inlined, &scopes, &mut out);
    let steps = planned_steps(request, &inlined, &scopes);
    let locks = locks(request, &inlined, &scopes, &mut out);
    let notices = notices(request.project, request.environment, &mut out);
    refuse_steps(request, &inlined, &steps, &mut out);
    let undos = planned_undos(&inlined, &scopes, &steps);
    out.sort();
    if out.has_errors() {
        return Err(out);
    }
    let mut plan = Plan { locks, notices, ..assemble(request, &inlined, (steps, undos), scopes) };
    plan.contacts = contacts(request.project, &plan);
    plan.approvers = approvers(request, &plan);
    Ok(Compiled { plan, warnings: out })
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
}

/// Refuses steps on other machines. Nothing falls back to this one.
fn check_hosts(
    request: &CompileRequest<'_>,
    inlined: &Inlined<'_, '_>,
    scopes: &Scopes,
    out: &mut Diagnostics,
) {
    for step in &inlined.steps {
        let analysis = inlined.files[step.file].analysis;
        for site in analysis.all_sites(step.at) {
            let SiteKind::Resource { kinds, .. } = &site.kind else { continue };
            let Some(text) = site.node.text().filter(|_| kinds.as_slice() == [ResourceKind::Host]) else {
                continue;
            };
            let given = expr::input_name(text).and_then(|input| scopes.inputs[step.file].get(input));
            let name = given.and_then(Value::as_str).unwrap_or(text);
            let found = request.environment.resources.get(name).map(|spec| &spec.resource.system);
            if matches!(found, Some(System::Host(host)) if !host.local) {
                let message = format!(
                    "`{name}` is another machine in `{}`, where no step can run yet",
                    request.environment.name.value
                );
                out.push(
                    Diagnostic::error(codes::LB0209, message)
                        .at(&analysis.spec.source, site.node.span.clone())
                        .help("run Lifeboat on that machine, with `local: true`; nothing falls back to this one"),
                );
            }
        }
    }
}

fn bind(request: &CompileRequest<'_>, out: &mut Diagnostics) -> Map<String, Value> {
    let runbook = request.runbook;
    let declared: Vec<_> = runbook.inputs.iter().map(|input| input.decl.clone()).collect();
    match bind_inputs(&declared, request.inputs, &fixed_names(request)) {
        Ok(bound) => {
            check_resource_inputs(request, runbook, &bound, out);
            bound
        }
        Err(problems) => {
            for problem in problems {
                let code = if problem.kind == ProblemKind::Missing { codes::LB0142 } else { codes::LB0143 };
                let mut diagnostic = Diagnostic::error(code, problem.message).maybe_help(problem.help);
                if let Some(input) = runbook.inputs.iter().find(|input| input.decl.name == problem.input) {
                    diagnostic = diagnostic.at(&runbook.source, input.span.clone());
                    if let Type::Resource { kinds, .. } = &input.decl.ty {
                        let how = diagnostic.help.take().map_or(String::new(), |how| format!("{how}; "));
                        let which = candidates(request.environment, kinds);
                        diagnostic = diagnostic.help(format!("{how}{which}"));
                    }
                }
                out.push(diagnostic);
            }
            Map::new()
        }
    }
}

/// Returns what the defaults of inputs can read before the run.
pub(super) fn fixed_names(request: &CompileRequest<'_>) -> Map<String, Value> {
    let incident =
        request.incident_at.map_or_else(|| json!({}), |at| json!({ "started_at": at.to_string() }));
    let mut names = Map::new();
    names.insert("incident".into(), incident);
    names.insert("vars".into(), Value::Object(request.environment.vars.clone()));
    names.insert("resources".into(), resource_names(&resources(request.environment)));
    names.insert(
        "run".into(),
        json!({
            "runbook": request.runbook.name.value,
            "environment": request.environment.name.value,
            "mode": if request.mode == Mode::Drill { "drill" } else { "recovery" },
        }),
    );
    names
}

/// Checks that inputs of type `resource` name one of this environment, of the right kind.
pub(super) fn check_resource_inputs(
    request: &CompileRequest<'_>,
    runbook: &RunbookSpec,
    bound: &Map<String, Value>,
    out: &mut Diagnostics,
) {
    for input in &runbook.inputs {
        let Type::Resource { kinds, .. } = &input.decl.ty else { continue };
        let Some(name) = bound.get(&input.decl.name).and_then(Value::as_str) else { continue };
        let environment = request.environment;
        let found = environment.resources.get(name).map(|spec| spec.resource.kind());
        if found.is_some_and(|kind| kinds.contains(&kind)) {
            continue;
        }
        let (of, input_name) = (&environment.name.value, &input.decl.name);
        let wanted = kinds.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ");
        let message = match found {
            Some(kind) => format!("the input `{input_name}`: `{name}` is a {kind} in `{of}`, not a {wanted}"),
            None => format!("the input `{input_name}`: `{of}` has no resource `{name}`"),
        };
        out.push(
            Diagnostic::error(codes::LB0143, message)
                .at(&runbook.source, input.span.clone())
                .help(candidates(environment, kinds)),
        );
    }
}

/// Says which resources of an environment are of these kinds.
fn candidates(environment: &EnvironmentSpec, kinds: &[ResourceKind]) -> String {
    let fitting = environment.resources.iter().filter(|(_, spec)| kinds.contains(&spec.resource.kind()));
    let names: Vec<_> = fitting.map(|(name, _)| format!("`{name}`")).collect();
    let wanted = kinds.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ");
    match names.is_empty() {
        true => format!("`{}` has no {wanted}", environment.name.value),
        false => format!("the {wanted} resources of `{}`: {}", environment.name.value, names.join(", ")),
    }
}

fn resources(environment: &EnvironmentSpec) -> BTreeMap<String, Resource> {
    environment.resources.iter().map(|(name, spec)| (name.clone(), spec.resource.clone())).collect()
}

fn planned_steps(
    request: &CompileRequest<'_>,
    inlined: &Inlined<'_, '_>,
    scopes: &Scopes,
) -> Vec<PlannedStep> {
    let both = inlined.steps.iter().enumerate();
    both.filter_map(|(position, step)| {
        let body = inlined.files[step.file].analysis.bodies[step.at].as_ref()?;
        planned_step(request, inlined, scopes, position, body)
    })
    .collect()
}

/// Lets the kinds refuse steps that can only fail in this environment.
fn refuse_steps(
    request: &CompileRequest<'_>,
    inlined: &Inlined<'_, '_>,
    steps: &[PlannedStep],
    out: &mut Diagnostics,
) {
    let resources = resources(request.environment);
    let setting = Setting { mode: request.mode, resources: &resources };
    for step in steps {
        let kind = request.registry.kind(&step.uses);
        let Some(refusal) =
            kind.zip(step.with.as_object()).and_then(|(kind, with)| kind.refuse(with, &setting))
        else {
            continue;
        };
        let mut diagnostic =
            Diagnostic::error(refusal.code, format!("`{}`: {}", step.id, refusal.message)).help(refusal.help);
        let found = (0..inlined.steps.len()).find(|at| inlined.step_id(*at) == step.id.as_str());
        if let Some(at) = found {
            let file = inlined.steps[at].file;
            let source = &inlined.files[file].analysis.spec.source;
            diagnostic = diagnostic.at(source, inlined.step_common(at).id.span.clone());
        }
        out.push(diagnostic);
    }
}

fn planned_step(
    request: &CompileRequest<'_>,
    inlined: &Inlined<'_, '_>,
    scopes: &Scopes,
    position: usize,
    body: &StepBody<'_>,
) -> Option<PlannedStep> {
    let planned = &inlined.steps[position];
    let (file, spec) = (planned.file, inlined.ordered(planned.file, planned.at).spec);
    let (common, runbook) = (&spec.common, inlined.files[file].analysis.spec);
    let Bound { with, reads, writes } = bound(body, inlined, scopes, file);
    Some(PlannedStep {
        id: StepId::new(inlined.step_id(position)).ok()?,
        title: title(common),
        place: place(&runbook.source, common.id.span.start),
        group: planned.group.and_then(|at| group_id(inlined, at)),
        always: planned.always,
        scope: file.checked_sub(1),
        concludes: planned.concludes.and_then(|file| file.checked_sub(1)),
        needs: inlined.planned_needs(&planned.needs),
        conditions: conditions(inlined, file, planned.at),
        uses: body.kind.name.clone(),
        with,
        effect: body.effect,
        expect: spec.expect.iter().filter_map(|node| trimmed(node.text())).collect(),
        retry: planned_retry(spec),
        timeout: spec.timeout,
        budget: common.budget.as_ref().map(|budget| budget.value),
        milestone: milestone(file, common),
        recovered: common.recovered,
        on_error: on_error(request, spec, body, planned.always),
        destroys: destroys(body, &writes),
        reads,
        writes,
        restores: body.kind.restores,
        for_each: body.each.as_ref().map(|each| ForEach {
            list: each.list.clone(),
            max_parallel: spec.repeat.max_parallel.unwrap_or(1),
        }),
        until: until(spec),
    })
}

/// The parameters of a body, with the names that inputs give to resources.
struct Bound {
    with: Value,
    reads: Vec<String>,
    writes: Vec<String>,
}

fn bound(body: &StepBody<'_>, inlined: &Inlined<'_, '_>, scopes: &Scopes, file: usize) -> Bound {
    let mut with = Value::Object(body.with.clone());
    name_resources(&mut with, inlined.files[file].analysis.spec, &scopes.inputs[file]);
    name_made(&mut with, &body.kind.params, inlined, file);
    let in_run = |name: String| {
        if let Some(step) = maker(&name) {
            return made_by(&inlined.written_on(file, step));
        }
        let input = expr::input_name(&name).and_then(|input| scopes.inputs[file].get(input));
        input.and_then(Value::as_str).map_or(name.clone(), ToOwned::to_owned)
    };
    let (reads, writes) = named(&body.sites);
    let (reads, writes) = (reads.into_iter().map(in_run).collect(), writes.into_iter().map(in_run).collect());
    Bound { with, reads, writes }
}

fn planned_retry(spec: &StepSpec) -> Retry {
    let retry = spec.retry.as_ref().map_or_else(Retry::default, |retry| retry.value.clone());
    Retry { when: spec.retry_when.as_ref().and_then(|node| trimmed(node.text())), ..retry }
}

/// Returns what takes the work of steps back: what they say themselves, or else what their kinds do.
fn planned_undos(inlined: &Inlined<'_, '_>, scopes: &Scopes, steps: &[PlannedStep]) -> Vec<PlannedUndo> {
    let by_id: HashMap<_, _> = steps.iter().map(|step| (step.id.as_str(), step)).collect();
    let positions = 0..inlined.steps.len();
    positions
        .filter_map(|position| {
            let step = by_id.get(inlined.step_id(position).as_str()).filter(|step| !step.always)?;
            let planned = &inlined.steps[position];
            let analysis = inlined.files[planned.file].analysis;
            match (&analysis.undos[planned.at], &analysis.bodies[planned.at]) {
                (Some(body), _) => {
                    let spec = &inlined.ordered(planned.file, planned.at).spec.undo.as_ref()?.step;
                    let bound = bound(body, inlined, scopes, planned.file);
                    written_undo(step, &analysis.spec.source, (spec, body), bound)
                }
                (None, Some(body)) => built_in_undo(step, body.kind.undoes.as_ref()?),
                (None, None) => None,
            }
        })
        .collect()
}

/// The undo that a step writes itself.
fn written_undo(
    step: &PlannedStep,
    source: &Arc<Source>,
    (spec, body): (&StepSpec, &StepBody<'_>),
    bound: Bound,
) -> Option<PlannedUndo> {
    let planned = PlannedStep {
        title: spec.common.title.clone().unwrap_or_else(|| untitled(body)),
        place: place(source, spec.common.id.span.start),
        uses: body.kind.name.clone(),
        effect: body.effect,
        retry: planned_retry(spec),
        timeout: spec.timeout,
        destroys: destroys(body, &bound.writes),
        with: bound.with,
        reads: bound.reads,
        writes: bound.writes,
        ..undo_step(step)?
    };
    Some(PlannedUndo { of: step.id.clone(), built_in: None, step: planned })
}

/// What people read of an undo that has no title: the beginning of its script, or its kind.
fn untitled(body: &StepBody<'_>) -> String {
    const MOST: usize = 60;
    let param = body.kind.body_key.as_ref().and_then(|(_, param)| body.with.get(param));
    let first = param.and_then(Value::as_str).and_then(|text| text.trim().lines().next()).unwrap_or_default();
    match first.chars().count() {
        0 => body.kind.name.clone(),
        1..=MOST => first.to_owned(),
        _ => format!("{}…", first.chars().take(MOST).collect::<String>()),
    }
}

/// The undo that the kind of a step brings with it. What it needs to take back it has recorded itself.
fn built_in_undo(step: &PlannedStep, what: &str) -> Option<PlannedUndo> {
    let retry = Retry { attempts: 3, backoff: Backoff::Exponential, ..Retry::default() };
    let planned = PlannedStep { effect: Effect::Idempotent, retry, destroys: Vec::new(), ..undo_step(step)? };
    Some(PlannedUndo { of: step.id.clone(), built_in: Some(what.to_owned()), step: planned })
}

/// What every undo has in common: it takes place alone, and whatever becomes of it, the rest goes on.
fn undo_step(step: &PlannedStep) -> Option<PlannedStep> {
    Some(PlannedStep {
        id: StepId::new(format!("{}/undo", step.id)).ok()?,
        title: format!("Undo: {}", step.title),
        group: None,
        always: true,
        concludes: None,
        needs: Vec::new(),
        conditions: Vec::new(),
        expect: Vec::new(),
        timeout: None,
        budget: None,
        milestone: None,
        recovered: false,
        on_error: OnError::Continue,
        restores: false,
        for_each: None,
        until: None,
        ..step.clone()
    })
}

pub(super) fn title(common: &Common) -> String {
    common.title.clone().unwrap_or_else(|| common.id.value.replace('_', " "))
}

fn until(spec: &StepSpec) -> Option<Until> {
    let until = spec.repeat.until.as_ref()?;
    Some(Until { condition: trimmed(until.condition.text())?, every: until.every })
}

fn group_id(inlined: &Inlined<'_, '_>, at: usize) -> Option<StepId> {
    let group = &inlined.groups[at];
    StepId::new(inlined.id(group.file, group.place)).ok()
}

/// Returns the moment that a step or group marks; those of called runbooks mean nothing to the caller.
fn milestone(file: usize, common: &Common) -> Option<Milestone> {
    common.milestone.as_ref().filter(|_| file == 0).map(|milestone| milestone.value.clone())
}

fn place(source: &Arc<Source>, at: usize) -> String {
    format!("{}:{}", source.name, source.position(at).line)
}

fn trimmed(text: Option<&str>) -> Option<String> {
    text.map(|text| text.trim().to_owned())
}

/// Returns the conditions of a step: those of the call that it is part of, outermost first, then its own.
fn conditions(inlined: &Inlined<'_, '_>, file: usize, at: usize) -> Vec<Condition> {
    let caller = inlined.files[file].caller;
    let mut all = caller.map(|caller| conditions(inlined, caller.file, caller.at)).unwrap_or_default();
    all.extend(inlined.ordered(file, at).conditions.iter().filter_map(|(node, of)| {
        let of = StepId::new(inlined.written_on(file, of)).ok()?;
        Some(Condition { expression: trimmed(node.text())?, of, scope: file.checked_sub(1) })
    }));
    all
}

/// Replaces `{{ inputs.x }}` by the name of the resource that the input was given.
pub(super) fn name_resources(value: &mut Value, runbook: &RunbookSpec, inputs: &Map<String, Value>) {
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

fn on_error(request: &CompileRequest<'_>, spec: &StepSpec, body: &StepBody<'_>, always: bool) -> OnError {
    match spec.on_error {
        Some(said) => said,
        None if continues(spec, body.kind, always) => OnError::Continue,
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
        writes.iter().map(|name| format!("{}: {what}", in_words(name))).collect()
    }
}

fn assemble(
    request: &CompileRequest<'_>,
    inlined: &Inlined<'_, '_>,
    (steps, undos): (Vec<PlannedStep>, Vec<PlannedUndo>),
    scopes: Scopes,
) -> Plan {
    let CompileRequest { project, runbook, environment, .. } = request;
    let (inputs, called) = scopes.into_plan();
    let runbooks = || inlined.files.iter().map(|file| file.analysis.spec);
    let sources = [&project.source, &environment.source];
    let sources = sources.into_iter().chain(runbooks().map(|runbook| &runbook.source));
    let groups = planned_groups(inlined);
    Plan {
        format: Plan::format_for(&groups),
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
        // The words of the caller come last, so that they stand.
        roles: runbooks().collect::<Vec<_>>().into_iter().rev().flat_map(role_words).collect(),
        inputs,
        vars: environment.vars.clone(),
        resources: resources(environment),
        secrets: environment.secret_refs(),
        auto_approvals: (project.spec.auto_approvals || environment.auto_approvals)
            && request.mode == Mode::Drill
            && !environment.protected,
        keep: false,
        steps,
        groups,
        undos,
        scopes: called,
        locks: Vec::new(),
        notices: BTreeMap::new(),
        approvers: None,
        contacts: BTreeMap::new(),
        fence: if environment.protected && request.mode == Mode::Recovery {
            Vec::new()
        } else {
            protected_systems(project.environments.values())
        },
        sources: sources.map(|source| (source.name.clone(), hash(&source.text))).collect(),
    }
}

fn role_words(runbook: &RunbookSpec) -> Vec<(String, String)> {
    runbook.roles.iter().map(|(role, words)| (role.clone(), words.value.clone())).collect()
}

/// Returns how to reach the people of each role that the plan names.
fn contacts(project: &Project, plan: &Plan) -> BTreeMap<String, Vec<String>> {
    let asked = plan.steps.iter().filter_map(|step| step.with.get("role").and_then(Value::as_str));
    let roles = plan.roles.keys().map(String::as_str).chain(asked);
    let people = roles.map(|role| (role.to_owned(), project.spec.contacts(role)));
    people.filter(|(_, people)| !people.is_empty()).collect()
}

/// Returns who holds each role that the plan asks, as people are called when they act.
fn approvers(request: &CompileRequest<'_>, plan: &Plan) -> Option<BTreeMap<String, Vec<String>>> {
    let project = &request.project.spec;
    let asks = |step: &&PlannedStep| request.registry.spec(&step.uses).is_some_and(|it| it.waits_for_people);
    let asking: Vec<_> = plan.steps.iter().filter(asks).collect();
    if project.people.is_empty() || asking.is_empty() {
        return None;
    }
    let roles = asking.iter().filter_map(|step| step.with.get("role").and_then(Value::as_str));
    let roles = roles.chain(plan.roles.keys().map(String::as_str));
    let held = roles.map(|role| (role.to_owned(), project.holders(role)));
    Some(held.filter(|(_, people)| !people.is_empty()).collect())
}

fn hash(text: &str) -> String {
    hex(&Sha256::digest(text.as_bytes()))
}

fn planned_groups(inlined: &Inlined<'_, '_>) -> Vec<PlannedGroup> {
    let planned = inlined.groups.iter().enumerate().filter_map(|(at, group)| {
        let common = inlined.common(group.file, group.place);
        let (parallel, max_parallel) = inlined.limits(group);
        Some(PlannedGroup {
            id: group_id(inlined, at)?,
            title: title(common),
            parent: group.parent.and_then(|at| group_id(inlined, at)),
            parallel,
            max_parallel,
            budget: common.budget.as_ref().map(|budget| budget.value),
            milestone: milestone(group.file, common),
            recovered: common.recovered,
            ends: group.ends.iter().filter_map(|at| StepId::new(inlined.step_id(*at)).ok()).collect(),
        })
    });
    planned.collect()
}
