//! `run` and `drill`: from words on the command line to a plan, and from a plan to a run.

use std::io::{BufRead, IsTerminal};
use std::path::Path;
use std::process::Command as Program;

use jiff::Timestamp;
use lifeboat_engine::diagnostic::codes;
use lifeboat_engine::model::Mode;
use lifeboat_engine::plan::{Commit, Plan};
use lifeboat_engine::project::{Project, RunRequest};
use lifeboat_engine::run::{StepPreview, preview};
use lifeboat_engine::step::Registry;
use lifeboat_engine::value::parse_timestamp;

use crate::args::{RunArgs, Target};
use crate::commands::confirm;
use crate::commands::files::{refuse, warn};
use crate::commands::inputs::Wanted;
use crate::exit::{Failure, Outcome};
use crate::session::{Declaration, Manner, Site, start};

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

/// Makes the plan of what was typed.
pub(crate) fn compile(
    project: &Project,
    registry: &Registry,
    target: &Target,
    mode: Mode,
) -> Result<(Plan, Option<Timestamp>), Failure> {
    let environment = environment(project, target)?;
    let incident_at = match &target.incident_at {
        Some(text) if text == "now" => Some(Timestamp::now()),
        Some(text) => Some(
            parse_timestamp(text).map_err(|problem| Failure::usage(format!("--incident-at: {problem}")))?,
        ),
        None => None,
    };
    let given = Wanted { project, target, environment: &environment, mode }.gather()?;
    let request = RunRequest {
        runbook: &target.runbook,
        environment: &environment,
        mode,
        inputs: &given.values,
        incident_at,
    };
    let compiled = project.compile(&request, registry).map_err(|problems| {
        let failure = refuse(&problems);
        if let Some(command) = &given.command
            && problems.iter().any(|problem| problem.code == codes::LB0142)
        {
            crate::say::say!("\nall of them at once: {command}");
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

/// What came of asking for a line.
#[derive(Debug)]
pub(crate) enum Line {
    Text(String),
    /// The terminal was closed, or Ctrl-D pressed.
    Closed,
    /// There is no terminal.
    Nobody,
}

/// Asks for one line in the terminal. Ctrl-C ends the process, as everywhere before a run has begun.
pub(crate) fn ask_line(prompt: &str) -> Line {
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        return Line::Nobody;
    }
    crate::say::prompt!("{prompt}");
    let mut line = String::new();
    match std::io::stdin().lock().read_line(&mut line) {
        Ok(0) | Err(_) => Line::Closed,
        Ok(_) => Line::Text(line.trim().to_owned()),
    }
}

/// Reads one line from the terminal; `None` without one.
pub(crate) fn ask(prompt: &str) -> Option<String> {
    match ask_line(prompt) {
        Line::Text(line) => Some(line),
        Line::Closed => Some(String::new()),
        Line::Nobody => None,
    }
}
