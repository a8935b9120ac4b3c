//! `plan`, `run` and `drill`: from words on the command line to a plan, and from a plan to a run.

use std::collections::HashMap;
use std::fmt::Write;
use std::io::{BufRead, IsTerminal};
use std::path::Path;
use std::process::Command as Program;

use jiff::Timestamp;
use lifeboat_engine::diagnostic::codes;
use lifeboat_engine::model::Mode;
use lifeboat_engine::plan::{Commit, Plan, PlannedUndo};
use lifeboat_engine::project::{Project, RunRequest};
use lifeboat_engine::resource::maker;
use lifeboat_engine::run::{StepPreview, preview};
use lifeboat_engine::step::Registry;
use lifeboat_engine::value::parse_timestamp;
use serde_json::{Map, Value};

use crate::args::{Format, PlanArgs, RunArgs, Target};
use crate::commands::confirm;
use crate::commands::files::{refuse, warn};
use crate::exit::{Exit, Failure, Outcome};
use crate::render;
use crate::session::{Declaration, Manner, Site, start};

/// Shows what a run would do.
pub(crate) fn plan(project: &Project, registry: &Registry, args: &PlanArgs, format: Format) -> Outcome {
    let mode = if args.drill { Mode::Drill } else { Mode::Recovery };
    let (plan, incident_at) = compile(project, registry, &args.target, mode)?;
    let previews = previews(&plan, registry, incident_at)?;
    match format {
        Format::Json => anstream::print!("{}", render::json(&plan)?),
        Format::Yaml => {
            let text = serde_yaml::to_string(&plan)
                .map_err(|error| Failure::internal("YAML cannot be written").caused_by(&error))?;
            anstream::print!("{text}");
        }
        _ => anstream::print!("{}", describe(&plan, &previews)),
    }
    Ok(Exit::Success)
}

/// Asks every kind what it would do.
fn previews(
    plan: &Plan,
    registry: &Registry,
    incident_at: Option<Timestamp>,
) -> Result<Vec<StepPreview>, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::internal("the runtime cannot start").caused_by(&error))?;
    Ok(runtime.block_on(preview(plan, registry, incident_at)))
}

/// Runs a runbook as a recovery or as a drill.
pub(crate) fn run(project: &Project, site: &Site, args: &RunArgs, mode: Mode) -> Outcome {
    let (mut plan, incident_at) = compile(project, &site.registry, &args.target, mode)?;
    plan.keep = args.keep;
    let targets =
        confirm::confirm(&plan, args.confirm.as_deref(), || previews(&plan, &site.registry, incident_at))?;
    let incident_at = incident_at.unwrap_or_else(Timestamp::now);
    let manner = Manner { report: args.report.clone(), no_wait: args.no_wait };
    start(site, Declaration { plan, incident_at, targets }, &manner)
}

fn compile(
    project: &Project,
    registry: &Registry,
    target: &Target,
    mode: Mode,
) -> Result<(Plan, Option<Timestamp>), Failure> {
    let environment = environment(project, target)?;
    let incident_at = match &target.incident_at {
        Some(text) => Some(
            parse_timestamp(text).map_err(|problem| Failure::usage(format!("--incident-at: {problem}")))?,
        ),
        None => None,
    };
    let mut inputs = inputs(target)?;
    let missing = ask_for_missing(project, target, mode, &mut inputs)?;
    let request = RunRequest {
        runbook: &target.runbook,
        environment: &environment,
        mode,
        inputs: &inputs,
        incident_at,
    };
    let compiled = project.compile(&request, registry).map_err(|problems| {
        let failure = refuse(&problems);
        if let Some(command) = &missing
            && problems.iter().any(|problem| problem.code == codes::LB0142)
        {
            anstream::eprintln!("\nall of them at once: {command}");
        }
        failure
    })?;
    warn(&compiled.warnings);
    let mut plan = compiled.plan;
    plan.commit = commit(&project.spec.dir);
    Ok((plan, incident_at))
}

/// The environment named, or the only one that the runbook lists.
fn environment(project: &Project, target: &Target) -> Result<String, Failure> {
    if let Some(name) = &target.env {
        return Ok(name.clone());
    }
    let runbook = project.runbook(&target.runbook).map_err(|problems| refuse(&problems))?;
    match runbook.environments.as_slice() {
        [only] => Ok(only.value.clone()),
        several => {
            let names: Vec<_> = several.iter().map(|it| it.value.as_str()).collect();
            Err(Failure::usage(format!("`{}` runs in several environments", target.runbook))
                .help(format!("name one: --env {}", names.join(" or --env "))))
        }
    }
}

fn inputs(target: &Target) -> Result<Map<String, Value>, Failure> {
    let mut inputs = match &target.input_file {
        Some(path) => read_inputs(path)?,
        None => Map::new(),
    };
    for given in &target.inputs {
        let Some((key, value)) = given.split_once('=') else {
            return Err(Failure::usage(format!("`{given}` is no input")).help("write -i key=value"));
        };
        inputs.insert(key.trim().to_owned(), Value::String(value.to_owned()));
    }
    Ok(inputs)
}

/// Asks for inputs that have no value. Without a terminal returns the command that would give them all.
fn ask_for_missing(
    project: &Project,
    target: &Target,
    mode: Mode,
    inputs: &mut Map<String, Value>,
) -> Result<Option<String>, Failure> {
    let runbook = project.runbook(&target.runbook).map_err(|problems| refuse(&problems))?;
    let mut command = None;
    for input in &runbook.inputs {
        let decl = &input.decl;
        if decl.default.is_some() || inputs.contains_key(&decl.name) {
            continue;
        }
        match ask(&format!("{} ({}; {}): ", decl.name, decl.ty, decl.description)) {
            Some(answer) => {
                inputs.insert(decl.name.clone(), Value::String(answer));
            }
            None => {
                let verb = if mode == Mode::Drill { "drill" } else { "run" };
                let command = command.get_or_insert_with(|| format!("lifeboat {verb} {}", target.runbook));
                let _ = write!(command, " -i {}=…", decl.name);
            }
        }
    }
    Ok(command)
}

fn read_inputs(path: &Path) -> Result<Map<String, Value>, Failure> {
    let unreadable = || Failure::usage(format!("the inputs in `{}` cannot be read", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| unreadable().caused_by(&error))?;
    match serde_yaml::from_str(&text) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(unreadable().help("write one `key: value` a line")),
        Err(error) => Err(unreadable().caused_by(&error)),
    }
}

/// Asks Git which commit the files are of, and whether they differ from it.
fn commit(dir: &Path) -> Option<Commit> {
    let git = |args: &[&str]| {
        let output = Program::new("git").arg("-C").arg(dir).args(args).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let hash = git(&["rev-parse", "HEAD"])?;
    let dirty = git(&["status", "--porcelain", "--", "."]).is_none_or(|changes| !changes.is_empty());
    Some(Commit { hash, dirty })
}

fn describe(plan: &Plan, previews: &[StepPreview]) -> String {
    let mode = if plan.mode == Mode::Drill { "drill" } else { "recovery" };
    let mut text = format!("{} ({}) in {}, {mode}\n", plan.title, plan.runbook, plan.environment);
    let objective = |name: &str, span: Option<lifeboat_engine::value::Span>| {
        span.map_or_else(|| format!("no {name}"), |span| format!("{name} {span}"))
    };
    let (rto, rpo) = (objective("RTO", plan.objective.rto), objective("RPO", plan.objective.rpo));
    let _ = writeln!(text, "{rto}, {rpo}");
    for (name, value) in &plan.inputs {
        let _ = writeln!(text, "input {name} = {value}");
    }
    text.push('\n');
    let undos = plan.undos.iter().zip(previews.iter().skip(plan.steps.len()));
    let undos: HashMap<_, _> = undos.map(|(undo, preview)| (&undo.of, (undo, preview))).collect();
    let width = plan.steps.iter().map(|step| step.id.as_str().len()).max().unwrap_or(0).clamp(16, 40);
    for (number, (step, preview)) in plan.steps.iter().zip(previews).enumerate() {
        let _ = writeln!(text, "{:>3}  {:<width$} {}", number + 1, step.id.as_str(), step.whole_title());
        describe_step(&mut text, step, preview);
        if let Some((undo, preview)) = undos.get(&step.id) {
            describe_undo(&mut text, undo, preview);
        }
    }
    let destroyed = confirm::destroyed(plan, previews);
    if !destroyed.is_empty() {
        let _ = writeln!(text, "\nwhat is destroyed or moved aside:");
        for what in destroyed {
            let _ = writeln!(text, "  {what}");
        }
    }
    if confirm::is_needed(plan) {
        let _ = writeln!(text, "\nto confirm this for an hour: --confirm {}", confirm::token(plan));
    }
    text
}

fn describe_step(text: &mut String, step: &lifeboat_engine::plan::PlannedStep, preview: &StepPreview) {
    let needs: Vec<_> = step.needs.iter().map(|need| need.step.as_str()).collect();
    let after = if needs.is_empty() { "at once".to_owned() } else { format!("after {}", needs.join(", ")) };
    let always = if step.always { ", whatever happens" } else { "" };
    let _ = writeln!(text, "       {} ({}), {after}{always}", step.uses, step.effect);
    for condition in &step.conditions {
        let _ = writeln!(text, "       only if {}", condition.expression);
    }
    if let Some(each) = &step.for_each {
        let _ = writeln!(text, "       {}", for_each(each));
    }
    if let (Some(until), Some(timeout)) = (&step.until, step.timeout) {
        let (condition, every) = (&until.condition, until.every);
        let _ = writeln!(text, "       until {condition}, every {every}, for at most {timeout}");
    }
    let used = step.writes.iter().chain(&step.reads).filter_map(|name| maker(name));
    let used: std::collections::BTreeSet<_> = used.collect();
    for maker in used {
        let _ = writeln!(text, "       uses the system made by `{maker}`");
    }
    if preview.preview.actions.is_empty() {
        for (name, value) in preview.with.as_object().into_iter().flatten() {
            let value = match value.as_str().and_then(maker) {
                Some(step) => format!("made by `{step}`"),
                None => value.to_string(),
            };
            let _ = writeln!(text, "       {name}: {value}");
        }
    }
    for action in &preview.preview.actions {
        let _ = writeln!(text, "       | {action}");
    }
    for what in &preview.preview.destroys {
        let _ = writeln!(text, "       destroys: {what}");
    }
    if let Some(budget) = step.budget {
        let _ = writeln!(text, "       budget {budget}");
    }
}

/// Says how the work of a step is taken back if the run is aborted.
fn describe_undo(text: &mut String, undo: &PlannedUndo, preview: &StepPreview) {
    if let Some(what) = &undo.built_in {
        let _ = writeln!(text, "       undo: {what}");
        return;
    }
    let _ = writeln!(text, "       undo: {}", undo.step.uses);
    let actions = &preview.preview.actions;
    for action in actions {
        let _ = writeln!(text, "           | {action}");
    }
    if actions.is_empty() {
        for (name, value) in undo.step.with.as_object().into_iter().flatten() {
            let _ = writeln!(text, "           {name}: {value}");
        }
    }
}

/// Says for what a step is repeated, and how: `for each of 3 elements, one after the other: a, b, c`.
fn for_each(each: &lifeboat_engine::plan::ForEach) -> String {
    const SHOWN: usize = 5;
    let how = match each.max_parallel {
        1 => "one after the other".to_owned(),
        many => format!("{many} at a time"),
    };
    match &each.list {
        Value::Array(items) => {
            let shown: Vec<_> = items.iter().take(SHOWN).map(ToString::to_string).collect();
            let more = if items.len() > SHOWN { ", …" } else { "" };
            let count = lifeboat_engine::report::human::count(items.len(), "element");
            format!("for each of {count}, {how}: {}{more}", shown.join(", "))
        }
        Value::String(template) => format!("for each of {template}, {how}"),
        other => format!("for each of {other}, {how}"),
    }
}

/// Reads one line from the terminal; `None` without one.
pub(crate) fn ask(prompt: &str) -> Option<String> {
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        return None;
    }
    anstream::eprint!("{prompt}");
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).ok()?;
    Some(line.trim().to_owned())
}
