use std::path::PathBuf;
use std::time::Duration;

use lifeboat_engine::resource::Manager;
use lifeboat_engine::step::{StepContext, StepError};
use lifeboat_engine::value::Span;
use serde_json::Value;

use super::{codes, process};
use crate::process::{Command, Output, Server};

/// How long a manager's own program may take to end when it is no longer waited for.
const STOP_GRACE: Duration = Duration::from_secs(10);
/// Without it systemd asks who is not root for a password, on a terminal that this program may not read: it would wait for ever.
pub(super) const UNASKED: &str = "--no-ask-password";
/// How long to wait for a manager to stop a service if nothing else is said.
pub const STOP_PATIENCE: Duration = Duration::from_secs(120);

/// Something that a service manager starts and stops, by the name of its resource.
#[derive(Clone, Copy, Debug)]
pub struct Unit<'a> {
    pub name: &'a str,
    pub manager: &'a Manager,
}

/// What starting a service did.
#[derive(Debug)]
pub enum Started {
    /// It ran already.
    AlreadyRunning,
    /// The manager started it.
    ByManager,
    /// Lifeboat started it as a process.
    Process(Server),
}

/// What a manager is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Start,
    Stop,
    Status,
}

impl Unit<'_> {
    /// Says whether the service runs.
    pub async fn is_running(&self, ctx: &StepContext) -> Result<bool, StepError> {
        if let Manager::Process { .. } = self.manager {
            return Ok(process::running(self, ctx).is_some());
        }
        let output = self.command(Action::Status).quiet_stdout().run(ctx).await?;
        self.read_status(&output)
    }

    /// Starts the service unless it runs. Returns before it is ready.
    pub async fn start(&self, ctx: &StepContext) -> Result<Started, StepError> {
        if self.is_running(ctx).await? {
            return Ok(Started::AlreadyRunning);
        }
        if let Manager::Process { .. } = self.manager {
            return process::start(self, ctx).await.map(Started::Process);
        }
        self.command(Action::Start).run_checked(ctx).await?;
        Ok(Started::ByManager)
    }

    /// Stops the service; true if it ran. Returns once it has ended.
    ///
    /// A process gets TERM and then KILL by the time limit of its resource. A manager is waited for as long as `patience`
    /// says; then the failure is uncertain, for it may still be at it. What a manager starts again at once was not stopped.
    pub async fn stop(&self, ctx: &StepContext, patience: Duration) -> Result<bool, StepError> {
        if let Manager::Process { stop_timeout, .. } = self.manager {
            let patience = stop_timeout.map_or(process::STOP_TIMEOUT, |span| span.0);
            return process::stop(self, ctx, patience).await;
        }
        if !self.is_running(ctx).await? {
            return Ok(false);
        }
        let line = self.line(Action::Stop).join(" ");
        let limited = ctx.look(Value::Null, ctx.link());
        let stopping = self.command(Action::Stop).grace(STOP_GRACE).run_checked(&limited);
        tokio::pin!(stopping);
        tokio::select! {
            stopped = &mut stopping => drop(stopped?),
            () = tokio::time::sleep(patience) => {
                limited.cancel.cancel();
                drop(stopping.await);
                return Err(self.still_runs(&format!("`{line}` did not end within {}", Span(patience))));
            }
        }
        match self.is_running(ctx).await? {
            true => Err(self.still_runs(&format!("`{line}` has ended, and it runs"))),
            false => Ok(true),
        }
    }

    fn still_runs(&self, why: &str) -> StepError {
        StepError::uncertain(codes::LB1524, format!("the service `{}` was not stopped: {why}", self.name))
            .help("see what holds it up, or what starts it again; raise `stop_timeout` if it needs longer to end")
    }

    /// Returns what an action runs, for people.
    pub(super) fn describe_start(&self) -> String {
        match self.manager {
            Manager::Process { command, .. } => command.join(" "),
            _ => self.line(Action::Start).join(" "),
        }
    }

    /// Returns what stopping runs, for people.
    pub(super) fn describe_stop(&self) -> String {
        match self.manager {
            Manager::Process { .. } => format!("end the process of `{}` by its pid file", self.name),
            _ => self.line(Action::Stop).join(" "),
        }
    }

    fn command(&self, action: Action) -> Command {
        self.program(&self.line(action))
    }

    fn line(&self, action: Action) -> Vec<String> {
        let words: Vec<&str> = match (self.manager, action) {
            (Manager::Systemd { unit }, Action::Start) => vec!["systemctl", "start", UNASKED, "--", unit],
            (Manager::Systemd { unit }, Action::Stop) => vec!["systemctl", "stop", UNASKED, "--", unit],
            (Manager::Systemd { unit }, Action::Status) => {
                vec!["systemctl", "show", "--property=LoadState,ActiveState", "--", unit]
            }
            (Manager::Docker { container }, Action::Start) => vec!["docker", "start", container],
            (Manager::Docker { container }, Action::Stop) => vec!["docker", "stop", container],
            (Manager::Docker { container }, Action::Status) => {
                vec!["docker", "container", "inspect", "--format", "{{.State.Running}}", container]
            }
            (Manager::Compose { service, .. }, Action::Start) => {
                vec!["docker", "compose", "up", "--detach", "--no-deps", service]
            }
            (Manager::Compose { service, .. }, Action::Stop) => vec!["docker", "compose", "stop", service],
            (Manager::Compose { service, .. }, Action::Status) => {
                vec!["docker", "compose", "ps", "--all", "--format", "{{.State}}", service]
            }
            (Manager::Process { command, .. }, _) => command.iter().map(String::as_str).collect(),
        };
        words.into_iter().map(ToOwned::to_owned).collect()
    }

    fn read_status(&self, output: &Output) -> Result<bool, StepError> {
        let text = output.stdout.text();
        match self.manager {
            Manager::Systemd { unit } => {
                if output.exit_code != 0 {
                    return Err(output.to_error("systemctl show"));
                }
                let is = |line: &str| text.lines().any(|found| found == line);
                if is("LoadState=not-found") {
                    return Err(unknown(&format!("systemd has no unit `{unit}`")));
                }
                // A unit on its way up or down counts as running: it must be stopped, and not be started again.
                Ok(!is("ActiveState=inactive") && !is("ActiveState=failed"))
            }
            Manager::Docker { container } => match output.exit_code {
                0 => Ok(text == "true"),
                _ if output.stderr.text().to_lowercase().contains("no such container") => {
                    Err(unknown(&format!("docker has no container `{container}`")))
                }
                _ => Err(output.to_error("docker container inspect")),
            },
            Manager::Compose { service, .. } => match output.exit_code {
                0 => Ok(text.lines().any(|state| matches!(state, "running" | "restarting"))),
                _ if output.stderr.text().to_lowercase().contains("no such service") => {
                    Err(unknown(&format!("docker compose has no service `{service}`")))
                }
                _ => Err(output.to_error("docker compose ps")),
            },
            Manager::Process { .. } => Ok(false),
        }
    }
}

/// Where the identity of a process is kept if the environment does not say.
pub(super) fn default_file(ctx: &StepContext, name: &str, extension: &str) -> PathBuf {
    let dir = ctx.info.project_dir.join(".lifeboat/services").join(&ctx.info.environment);
    dir.join(format!("{name}.{extension}"))
}

pub(super) fn unknown(message: &str) -> StepError {
    StepError::permanent(codes::LB1501, message).help("correct the name in the environment's file")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(manager: &Manager) -> [String; 3] {
        let unit = Unit { name: "app", manager };
        [Action::Start, Action::Stop, Action::Status].map(|action| unit.line(action).join(" "))
    }

    #[test]
    fn managers_are_asked_with_exactly_these_commands() {
        let systemd = Manager::Systemd { unit: "postgresql@16-main".into() };
        assert_eq!(
            lines(&systemd),
            [
                "systemctl start --no-ask-password -- postgresql@16-main",
                "systemctl stop --no-ask-password -- postgresql@16-main",
                "systemctl show --property=LoadState,ActiveState -- postgresql@16-main",
            ]
        );
        let docker = Manager::Docker { container: "members".into() };
        assert_eq!(
            lines(&docker),
            [
                "docker start members",
                "docker stop members",
                "docker container inspect --format {{.State.Running}} members",
            ]
        );
        let compose = Manager::Compose { service: "backend".into(), project_dir: Some("/srv/app".into()) };
        assert_eq!(
            lines(&compose),
            [
                "docker compose up --detach --no-deps backend",
                "docker compose stop backend",
                "docker compose ps --all --format {{.State}} backend",
            ]
        );
    }

    fn answer(manager: &Manager, exit_code: i32, stdout: &str, stderr: &str) -> Result<bool, &'static str> {
        let output = Output { exit_code, stdout: stdout.into(), stderr: stderr.into(), warnings: Vec::new() };
        Unit { name: "app", manager }.read_status(&output).map_err(|error| error.code.id)
    }

    #[test]
    fn answers_of_systemd_are_understood() {
        let manager = Manager::Systemd { unit: "app".into() };
        let of = |load: &str, active: &str| {
            answer(&manager, 0, &format!("LoadState={load}\nActiveState={active}\n"), "")
        };
        assert_eq!(of("loaded", "active"), Ok(true));
        assert_eq!(of("loaded", "activating"), Ok(true));
        assert_eq!(of("loaded", "inactive"), Ok(false));
        assert_eq!(of("loaded", "failed"), Ok(false));
        assert_eq!(of("not-found", "inactive"), Err("LB1501"));
        assert_eq!(answer(&manager, 1, "", "System has not been booted with systemd"), Err("LB1001"));
    }

    #[test]
    fn answers_of_docker_are_understood() {
        let docker = Manager::Docker { container: "app".into() };
        assert_eq!(answer(&docker, 0, "true\n", ""), Ok(true));
        assert_eq!(answer(&docker, 0, "false\n", ""), Ok(false));
        assert_eq!(answer(&docker, 1, "", "Error: No such container: app"), Err("LB1501"));
        assert_eq!(answer(&docker, 1, "", "Cannot connect to the Docker daemon"), Err("LB1001"));
        let compose = Manager::Compose { service: "app".into(), project_dir: None };
        assert_eq!(answer(&compose, 0, "exited\n", ""), Ok(false));
        assert_eq!(answer(&compose, 0, "", ""), Ok(false));
        assert_eq!(answer(&compose, 0, "exited\nrunning\n", ""), Ok(true));
        assert_eq!(answer(&compose, 1, "", "no such service: app"), Err("LB1501"));
    }
}
