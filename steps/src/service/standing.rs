//! How a service stands, as its manager tells it: whether it runs, as which process, and how healthy.

use lifeboat_engine::resource::Manager;
use lifeboat_engine::step::{StepContext, StepError};

use super::process;
use super::unit::{Unit, unknown};
use crate::process::{Command, Output};

/// What a manager says of a service at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Standing {
    pub(super) running: bool,
    /// Tells its main process, or its processes, from later ones; empty if the manager knows none.
    pub(super) main: String,
    /// What the container's own health check says; `None` if it has none.
    pub(super) health: Option<String>,
}

/// A container in one line: whether it runs, its process, when that began, and its health.
const CONTAINER: &str =
    "{{.State.Running}} {{.State.Pid}} {{.State.StartedAt}} {{with .State.Health}}{{.Status}}{{end}}";

impl Standing {
    /// Says whether its own health check, if it has one, passes.
    pub(super) fn is_healthy(&self) -> bool {
        self.health.as_deref().is_none_or(|health| health == "healthy")
    }

    /// Asks the manager.
    pub(super) async fn of(unit: &Unit<'_>, ctx: &StepContext) -> Result<Self, StepError> {
        match unit.manager {
            Manager::Process { .. } => Ok(process::running(unit, ctx).map_or_else(Self::default, |found| {
                let main = format!("{} {}", found.pid, found.start_ticks);
                Self { running: true, main, health: None }
            })),
            Manager::Systemd { unit: name } => {
                let output = ask(unit, &systemd(name), ctx).await?;
                read_systemd(name, &output)
            }
            Manager::Docker { container } => {
                let output = ask(unit, &inspect(&[container]), ctx).await?;
                read_containers(container, &output)
            }
            Manager::Compose { service, .. } => {
                let listed = ask(unit, &containers(service), ctx).await?;
                if listed.exit_code != 0 {
                    return Err(not_listed(service, &listed));
                }
                let text = listed.stdout.text();
                let ids: Vec<&str> = text.split_whitespace().collect();
                if ids.is_empty() {
                    return Ok(Self::default());
                }
                let output = ask(unit, &inspect(&ids), ctx).await?;
                read_containers(service, &output)
            }
        }
    }
}

async fn ask(unit: &Unit<'_>, line: &[String], ctx: &StepContext) -> Result<Output, StepError> {
    unit.program(line).quiet_stdout().run(ctx).await
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

fn systemd(name: &str) -> Vec<String> {
    words(&["systemctl", "show", "--property=LoadState,ActiveState,MainPID", "--", name])
}

fn containers(service: &str) -> Vec<String> {
    words(&["docker", "compose", "ps", "--all", "--quiet", service])
}

fn inspect(ids: &[&str]) -> Vec<String> {
    let mut line = words(&["docker", "container", "inspect", "--format", CONTAINER]);
    line.extend(words(ids));
    line
}

fn not_listed(service: &str, output: &Output) -> StepError {
    if output.stderr.text().to_lowercase().contains("no such service") {
        return unknown(&format!("docker compose has no service `{service}`"));
    }
    output.to_error("docker compose ps")
}

fn read_systemd(name: &str, output: &Output) -> Result<Standing, StepError> {
    if output.exit_code != 0 {
        return Err(output.to_error("systemctl show"));
    }
    let text = output.stdout.text();
    let of =
        |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=')).unwrap_or("");
    if of("LoadState") == "not-found" {
        return Err(unknown(&format!("systemd has no unit `{name}`")));
    }
    // A unit whose process is gone and that systemd will start again is on its way, and does not run.
    let running = matches!(of("ActiveState"), "active" | "reloading" | "activating");
    Ok(Standing { running, main: of("MainPID").to_owned(), health: None })
}

fn read_containers(name: &str, output: &Output) -> Result<Standing, StepError> {
    if output.exit_code != 0 {
        if output.stderr.text().to_lowercase().contains("no such container") {
            return Err(unknown(&format!("docker has no container `{name}`")));
        }
        return Err(output.to_error("docker container inspect"));
    }
    let text = output.stdout.text();
    let mut standing = Standing { running: !text.is_empty(), ..Standing::default() };
    let (mut mains, mut healths) = (Vec::new(), Vec::new());
    for line in text.lines() {
        let mut parts = line.split_whitespace();
        standing.running &= parts.next() == Some("true");
        mains.push(format!("{} {}", parts.next().unwrap_or_default(), parts.next().unwrap_or_default()));
        healths.extend(parts.next().map(ToOwned::to_owned));
    }
    mains.sort_unstable();
    standing.main = mains.join(", ");
    // Of several containers the worst one counts.
    standing.health = healths.iter().find(|health| *health != "healthy").or(healths.first()).cloned();
    Ok(standing)
}

impl Unit<'_> {
    /// Returns the last lines that it has written, as far as its manager has them; for the reader of an error.
    pub(super) async fn last_lines(&self, ctx: &StepContext) -> Vec<String> {
        const SHOWN: usize = 10;
        let count = SHOWN.to_string();
        let line = match self.manager {
            Manager::Systemd { unit } => {
                words(&["journalctl", "--no-pager", "--output=cat", "--lines", &count, "--unit", unit])
            }
            Manager::Docker { container } => words(&["docker", "logs", "--tail", &count, container]),
            Manager::Compose { service, .. } => {
                let all = ["docker", "compose", "logs", "--no-color", "--no-log-prefix", "--tail", &count];
                [words(&all), words(&[service])].concat()
            }
            Manager::Process { .. } => return Vec::new(),
        };
        let Ok(output) = ask(self, &line, ctx).await else { return Vec::new() };
        let mut lines = output.stderr.last_lines(SHOWN);
        lines.extend(output.stdout.last_lines(SHOWN));
        lines
    }

    /// Begins a program of the manager, where its project is.
    pub(super) fn program(&self, line: &[String]) -> Command {
        let (program, args) = line.split_first().map_or(("", line), |(first, rest)| (first.as_str(), rest));
        let command = Command::new(program).args(args).name(line.join(" "));
        match self.manager {
            Manager::Compose { project_dir: Some(dir), .. } => command.dir(dir),
            _ => command,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(exit_code: i32, stdout: &str, stderr: &str) -> Output {
        Output { exit_code, stdout: stdout.into(), stderr: stderr.into(), warnings: Vec::new() }
    }

    #[test]
    fn systemd_says_which_process_it_is() {
        let of = |state: &str| {
            let text = format!("LoadState=loaded\nActiveState={state}\nMainPID=17\n");
            read_systemd("app", &answer(0, &text, "")).unwrap()
        };
        assert_eq!(of("active"), Standing { running: true, main: "17".into(), health: None });
        assert!(of("reloading").running && of("activating").running);
        assert!(!of("failed").running && !of("deactivating").running);
        let error = read_systemd("app", &answer(0, "LoadState=not-found\nMainPID=0", "")).unwrap_err();
        assert_eq!(error.code.id, "LB1501");
        assert_eq!(
            systemd("app").join(" "),
            "systemctl show --property=LoadState,ActiveState,MainPID -- app"
        );
    }

    #[test]
    fn of_several_containers_the_worst_counts() {
        let one = "true 17 2026-11-22T00:00:00Z healthy\n";
        let found = read_containers("app", &answer(0, one, "")).unwrap();
        assert_eq!(found.main, "17 2026-11-22T00:00:00Z");
        assert!(found.running && found.is_healthy());
        let two = format!("{one}true 18 2026-11-22T00:00:01Z starting\n");
        let found = read_containers("app", &answer(0, &two, "")).unwrap();
        assert!(found.running && !found.is_healthy(), "{found:?}");
        let none = read_containers("app", &answer(0, "true 17 2026-11-22T00:00:00Z \n", "")).unwrap();
        assert_eq!((none.health.clone(), none.is_healthy()), (None, true));
        let dead = format!("{one}false 0 2026-11-22T00:00:01Z \n");
        assert!(!read_containers("app", &answer(0, &dead, "")).unwrap().running);
        let error = read_containers("app", &answer(1, "", "Error: No such container: app")).unwrap_err();
        assert_eq!(error.code.id, "LB1501");
    }
}
