//! Commands that read the project's files and run nothing: `check`, `show`.

use std::path::{Path, PathBuf};

use lifeboat_engine::diagnostic::{self, Diagnostics, Severity, codes};
use lifeboat_engine::project::{self, Project};
use lifeboat_engine::step::Registry;

use crate::args::{CheckArgs, Format};
use crate::exit::{Exit, Failure, Outcome};
use crate::render;
use crate::shipped;

/// Reads the project that the directory belongs to.
pub(crate) fn load(from: &Path) -> Result<Project, Failure> {
    // Absolute, because the plan outlives this process and its working directory.
    let from = from.canonicalize().map_err(|error| {
        Failure::usage(format!("there is no directory `{}`", from.display())).caused_by(&error)
    })?;
    let project = Project::load(&from).map_err(|problems| refuse(&problems))?;
    Ok(project.with_shipped(shipped::FILES))
}

/// Shows problems on standard error and returns the exit code for them.
pub(crate) fn refuse(problems: &Diagnostics) -> Failure {
    crate::say::prompt!("{}", diagnostic::render(problems, style(&std::io::stderr())));
    // What was typed is a usage error; what stands in the files is an invalid runbook.
    let typed = [codes::LB0142, codes::LB0143, codes::LB0144, codes::LB0201, codes::LB0207];
    let only_typed = problems
        .iter()
        .filter(|problem| problem.severity == Severity::Error)
        .all(|problem| typed.contains(&problem.code));
    Failure::said(if only_typed { Exit::Usage } else { Exit::Invalid })
}

/// Shows warnings that do not stand in the way.
pub(crate) fn warn(problems: &Diagnostics) {
    if !problems.is_empty() {
        crate::say::prompt!("{}", diagnostic::render(problems, style(&std::io::stderr())));
    }
}

fn style(stream: &impl anstream::stream::RawStream) -> diagnostic::Style {
    match anstream::AutoStream::choice(stream) {
        anstream::ColorChoice::Never => diagnostic::Style::Plain,
        _ => diagnostic::Style::Coloured,
    }
}

/// Finds every mistake.
pub(crate) fn check(project: &Project, registry: &Registry, args: &CheckArgs, format: Format) -> Outcome {
    let wanted = args.paths.iter().map(|path| within(project, path)).collect::<Result<Vec<_>, _>>()?;
    let mut problems = project::check_all(project, registry);
    if !wanted.is_empty() {
        problems.retain(|file| wanted.iter().any(|path| Path::new(file).starts_with(path)));
    }
    let text = match format {
        Format::Json => render::json(&diagnostic::to_json(&problems))?,
        Format::Github => diagnostic::to_github(&problems),
        _ => diagnostic::render(&problems, style(&std::io::stdout())),
    };
    crate::say::put!("{text}");
    let (errors, warnings) = problems.counts();
    if errors > 0 || (args.deny_warnings && warnings > 0) {
        crate::say::say!("{}, {}", counted(errors, "error"), counted(warnings, "warning"));
        return Ok(Exit::Invalid);
    }
    let (runbooks, environments) = (project.runbooks.len(), project.environments.len());
    crate::say::say!(
        "{} and {} are in order, {}",
        counted(runbooks, "runbook"),
        counted(environments, "environment"),
        counted(warnings, "warning")
    );
    Ok(Exit::Success)
}

fn counted(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

/// Returns a path that a person gave as one within the project. One that is not there, or not of the project, is
/// refused: that nothing is wrong with it would be a lie.
fn within(project: &Project, path: &Path) -> Result<PathBuf, Failure> {
    let dir = project.spec.dir.canonicalize().unwrap_or_else(|_| project.spec.dir.clone());
    let outside = || {
        Failure::usage(format!("`{}` does not belong to the project in `{}`", path.display(), dir.display()))
            .help("a project is `lifeboat.yaml`, `environments/*.yaml` and `runbooks/*.yaml`; use `-C DIR` for another")
    };
    // As the shell means it, or as somebody means it who has said `-C`.
    let meant = [path.canonicalize(), dir.join(path).canonicalize()];
    let inside = meant.iter().flatten().find_map(|real| real.strip_prefix(&dir).ok());
    let inner = match (inside, &meant) {
        (Some(inner), _) => inner,
        (None, [Err(error), Err(_)]) => {
            return Err(Failure::usage(format!("there is no `{}`", path.display())).caused_by(error));
        }
        (None, _) => return Err(outside()),
    };
    let is_read =
        ["", "lifeboat.yaml", "environments", "runbooks"].iter().any(|known| inner == Path::new(known));
    let parts: Vec<_> = inner.components().collect();
    let is_file = parts.len() == 2
        && (inner.starts_with("environments") || inner.starts_with("runbooks"))
        && inner.extension().is_some_and(|extension| extension == "yaml" || extension == "yml");
    if is_read || is_file { Ok(inner.to_owned()) } else { Err(outside()) }
}

/// Shows one runbook to somebody who has not written it.
pub(crate) fn show(project: &Project, name: &str) -> Outcome {
    let runbook = project.runbook(name).map_err(|problems| refuse(&problems))?;
    crate::say::putln!("{}: {}", runbook.name.value, runbook.title);
    if let Some(owner) = &runbook.owner {
        crate::say::putln!("owner: {owner}");
    }
    if let Some(description) = &runbook.description {
        crate::say::putln!("\n{}", description.trim_end());
    }
    crate::say::putln!("\ninputs:{}", if runbook.inputs.is_empty() { " none" } else { "" });
    for input in &runbook.inputs {
        let decl = &input.decl;
        let default = decl.default.as_ref().map_or(String::new(), |default| format!(" (default: {default})"));
        let text = &decl.description;
        crate::say::putln!("  {}: {}{default}  {text}", decl.name, decl.ty);
    }
    if !runbook.outputs.is_empty() {
        let outputs: Vec<_> = runbook.outputs.iter().map(|output| output.name.as_str()).collect();
        crate::say::putln!("\noutputs: {}", outputs.join(", "));
    }
    if !runbook.calls().is_empty() {
        crate::say::putln!("\ncalls: {}", runbook.calls().join(", "));
    }
    let environments: Vec<_> = runbook.environments.iter().map(|it| it.value.as_str()).collect();
    let shipped =
        if project.shipped.contains_key(name) { " (comes with Lifeboat: any environment)" } else { "" };
    crate::say::putln!("\nin: {}{shipped}", environments.join(", "));
    let env = environments.first().copied().unwrap_or("ENV");
    crate::say::putln!("\nwhat it would do:  lifeboat plan {name} --env {env}");
    crate::say::putln!("rehearse it:       lifeboat drill {name} --env {env}");
    crate::say::putln!("run it for real:   lifeboat run {name} --env {env}");
    Ok(Exit::Success)
}
