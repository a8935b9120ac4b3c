//! `run` and `drill`: from words on the command line to a plan, and from a plan to a run.

use std::fmt::Write;
use std::io::{BufRead, IsTerminal};
use std::path::Path;
use std::process::Command as Program;

use jiff::Timestamp;
use lifeboat_engine::diagnostic::codes;
use lifeboat_engine::model::Mode;
use lifeboat_engine::plan::{Commit, Plan};
use lifeboat_engine::project::{Project, RunRequest};
use lifeboat_engine::step::Registry;
use lifeboat_engine::value::parse_timestamp;
use serde_json::{Map, Value};

use crate::args::{RunArgs, Target};
use crate::commands::confirm;
use crate::commands::files::{refuse, warn};
use crate::exit::{Failure, Outcome};
use crate::session::{Declaration, Manner, Site, start};

/// Runs a runbook as a recovery or as a drill.
pub(crate) fn run(project: &Project, site: &Site, args: &RunArgs, mode: Mode) -> Outcome {
    let (mut plan, incident_at) = compile(project, &site.registry, &args.target, mode)?;
    plan.keep = args.keep;
    confirm::confirm(&plan, args.confirm.as_deref())?;
    let incident_at = incident_at.unwrap_or_else(Timestamp::now);
    let manner = Manner { report: args.report.clone(), no_wait: args.no_wait };
    start(site, Declaration { plan, incident_at }, &manner)
}

/// Makes the plan of what was typed.
pub(crate) fn compile(
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

/// Asks Git which commit the files are of, and whether they differ from it. Without its locks: planning writes nothing,
/// not even Git's index.
fn commit(dir: &Path) -> Option<Commit> {
    let git = |args: &[&str]| {
        let output =
            Program::new("git").arg("--no-optional-locks").arg("-C").arg(dir).args(args).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let hash = git(&["rev-parse", "HEAD"])?;
    let dirty = git(&["status", "--porcelain", "--", "."]).is_none_or(|changes| !changes.is_empty());
    Some(Commit { hash, dirty })
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
