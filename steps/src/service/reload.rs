//! `service.reload`: a new configuration taken up by a service that goes on running.

use async_trait::async_trait;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::model::evidence::Check;
use lifeboat_engine::resource::{Manager, ResourceKind, Service};
use lifeboat_engine::step::{Effect, KindSpec, Preview, StepContext, StepError, StepKind};
use lifeboat_engine::value::{Field, Type};
use serde::Deserialize;
use serde_json::json;

use super::health::Wait;
use super::kinds::{Times, done, ready_timeout, service, stable_for};
use super::standing::Standing;
use super::unit::{Started, UNASKED, Unit};
use super::{codes, process};
use crate::process::{Command, identity};

const HUP: i32 = 1;
const SHOWN_LINES: usize = 20;

/// Makes a service read its configuration again.
#[derive(Debug)]
pub(super) struct Reload;

#[derive(Deserialize)]
struct Params {
    service: String,
    main_process: Main,
    untested: bool,
    #[serde(flatten)]
    times: Times,
}

/// What becomes of the main process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Main {
    Kept,
    Replaced,
    Either,
}

const DOC: &str = "\
The configuration is tested first, with the command `test` of the service's resource, such as `[nginx, -t]`. If it fails
nothing is reloaded, and the service goes on with what it has. A service without `test` is refused unless the step says
`untested: true`.

Then comes its command `reload`; if it has none, `systemctl reload`, or the signal HUP to the container or the process.
Both commands run in the container where there is one, and for a process as its user, in its directory, with its
variables. Afterwards the service must be ready as after `service.start`, and its main process must be the one from
before; `main_process` says what else is expected. Sessions that a server keeps on its old configuration until they end
are not seen.

```yaml
- { id: proxy, uses: service.reload, with: { service: nginx } }
```";

#[async_trait]
impl StepKind for Reload {
    fn spec(&self) -> KindSpec {
        let summary = "Tests the configuration of a service and makes it read it again.";
        KindSpec::new("service.reload", summary, Effect::Idempotent)
            .doc(DOC)
            .param(Field::required("service", Type::writes(ResourceKind::Service), "The service."))
            .param(Field::defaulted(
                "main_process",
                Type::choice(&["kept", "replaced", "either"]),
                "kept",
                "What becomes of its main process.",
            ))
            .param(Field::defaulted("untested", Type::Boolean, false, "Reloads although it has no `test`."))
            .param(ready_timeout())
            .param(stable_for())
            .output(
                "main_process",
                Type::String,
                "Its main process as the manager knows it; empty if it does not.",
            )
            .output("replaced", Type::Boolean, "Whether its main process is another one than before.")
            .output("ready_seconds", Type::Number, "How long it took to become ready.")
    }

    async fn preview(&self, ctx: &StepContext) -> Result<Preview, StepError> {
        let params: Params = ctx.params()?;
        let service = service(ctx, &params.service)?;
        let unit = Unit { name: &params.service, manager: &service.manager };
        let test = Some(&service.test).filter(|test| !test.is_empty());
        let test = test.map(|test| unit.inside(test).join(" "));
        let reload = match unit.reload_line(&service) {
            Some(line) => line.join(" "),
            None => format!("send HUP to the process of `{}`", params.service),
        };
        Ok(Preview { actions: test.into_iter().chain([reload]).collect(), destroys: Vec::new() })
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let params: Params = ctx.params()?;
        let service = service(ctx, &params.service)?;
        let unit = Unit { name: &params.service, manager: &service.manager };
        let before = Standing::of(&unit, ctx).await?;
        if !before.running {
            let message =
                format!("the service `{}` does not run, so it has nothing to reload", params.service);
            return Err(StepError::permanent(codes::LB1520, message).help("start it: `service.start`"));
        }
        let tested = test(ctx, &unit, &service, params.untested).await?;
        reload(ctx, &unit, &service).await?;
        let expected = params.times.expected(service.ready.as_deref());
        let (waited, after) = Wait::new(ctx, unit, expected, &Started::AlreadyRunning).run().await?;
        let replaced = before.main != after.main;
        judge(params.main_process, (&params.service, &before, &after))?;
        let outputs = json!({
            "main_process": after.main, "replaced": replaced, "ready_seconds": waited.as_secs_f64(),
        });
        let mut done = Done { checks: tested.into_iter().collect(), ..done(outputs) };
        done.warnings.extend(super::kinds::unproven(&params.service, &service, &after));
        if service.test.is_empty() {
            done.warnings.push(format!("the configuration of `{}` was not tested", params.service));
        }
        Ok(done)
    }
}

/// Runs the service's own test of its configuration.
async fn test(
    ctx: &StepContext,
    unit: &Unit<'_>,
    service: &Service,
    untested: bool,
) -> Result<Option<Check>, StepError> {
    if service.test.is_empty() {
        return match untested {
            true => Ok(None),
            false => {
                let message = format!("the service `{}` has no `test` of its configuration", unit.name);
                Err(StepError::permanent(codes::LB1521, message).help(
                    "give its resource one, such as `test: [nginx, -t]`, or say `untested: true` on the step",
                ))
            }
        };
    }
    let line = unit.inside(&service.test).join(" ");
    let output = unit.own(&service.test, ctx)?.run(ctx).await?;
    if output.exit_code != 0 {
        let message = format!(
            "the configuration of `{}` is wrong: `{line}` ended with exit code {}; nothing was reloaded",
            unit.name, output.exit_code
        );
        let mut error = StepError::permanent(codes::LB1522, message);
        error.causes = output.stderr.last_lines(SHOWN_LINES);
        error.causes.extend(output.stdout.last_lines(SHOWN_LINES));
        return Err(
            error.help("mend the configuration and retry; the service runs on with the one that it has")
        );
    }
    let name = format!("configuration of {}", unit.name);
    Ok(Some(Check { name, expected: format!("`{line}` succeeds"), actual: "it does".into(), passed: true }))
}

async fn reload(ctx: &StepContext, unit: &Unit<'_>, service: &Service) -> Result<(), StepError> {
    let command = match (unit.manager, service.reload.is_empty()) {
        (Manager::Process { .. }, true) => return hang_up(ctx, unit),
        (_, true) => unit.program(&unit.reload_line(service).unwrap_or_default()),
        (_, false) => unit.own(&service.reload, ctx)?,
    };
    command.run_checked(ctx).await.map(drop)
}

/// Sends HUP to the process, if it is still the one that was recorded.
fn hang_up(ctx: &StepContext, unit: &Unit<'_>) -> Result<(), StepError> {
    let found = process::running(unit, ctx);
    match found.map(|found| identity::signal(&found, HUP)).transpose()? {
        Some(true) => Ok(()),
        _ => {
            let message = format!("the process of `{}` ended before it was told to reload", unit.name);
            Err(StepError::permanent(codes::LB1520, message).help("start it: `service.start`"))
        }
    }
}

fn judge(main: Main, (name, before, after): (&str, &Standing, &Standing)) -> Result<(), StepError> {
    let message = match (main, before.main == after.main) {
        (Main::Kept, false) => {
            format!(
                "`{name}` did not reload, it began anew: its main process was {}, and is {}",
                before.main, after.main
            )
        }
        (Main::Replaced, true) => {
            format!("`{name}` still has its main process {}, which was to be replaced", after.main)
        }
        _ => return Ok(()),
    };
    Err(StepError::permanent(codes::LB1523, message)
        .help("see its log for what happened; say what is expected with `main_process`"))
}

impl Unit<'_> {
    /// Returns a command of the resource as it is run: in the container, where there is one.
    pub(super) fn inside(&self, words: &[String]) -> Vec<String> {
        let before: &[&str] = match self.manager {
            Manager::Docker { container } => &["docker", "exec", container],
            Manager::Compose { service, .. } => &["docker", "compose", "exec", "-T", service],
            Manager::Systemd { .. } | Manager::Process { .. } => &[],
        };
        before.iter().map(|&word| word.to_owned()).chain(words.iter().cloned()).collect()
    }

    /// Returns what reloads the service; `None` for a process that gets a signal.
    fn reload_line(&self, service: &Service) -> Option<Vec<String>> {
        if !service.reload.is_empty() {
            return Some(self.inside(&service.reload));
        }
        let words: &[&str] = match self.manager {
            Manager::Systemd { unit } => &["systemctl", "reload", UNASKED, "--", unit],
            Manager::Docker { container } => &["docker", "kill", "--signal=HUP", container],
            Manager::Compose { service, .. } => &["docker", "compose", "kill", "--signal=HUP", service],
            Manager::Process { .. } => return None,
        };
        Some(words.iter().map(|&word| word.to_owned()).collect())
    }

    /// Begins a command of the resource, with what its own program is given.
    fn own(&self, words: &[String], ctx: &StepContext) -> Result<Command, StepError> {
        let command = self.program(&self.inside(words));
        match self.manager {
            Manager::Process { dir, os_user, env, .. } => {
                let command = command.os_user(os_user.as_deref()).env_values(ctx, env)?;
                Ok(match dir {
                    Some(dir) => command.dir(dir),
                    None => command,
                })
            }
            _ => Ok(command),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(manager: &Manager, reload: &[&str]) -> (String, Option<String>) {
        let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
        let service = Service {
            manager: manager.clone(),
            ready: None,
            test: words(&["nginx", "-t"]),
            reload: words(reload),
            gate: None,
        };
        let unit = Unit { name: "app", manager };
        (unit.inside(&service.test).join(" "), unit.reload_line(&service).map(|line| line.join(" ")))
    }

    #[test]
    fn managers_are_asked_to_reload_with_exactly_these_commands() {
        let of = |manager: &Manager, reload: &[&str]| {
            let (test, reload) = lines(manager, reload);
            [test, reload.unwrap_or_default()]
        };
        let systemd = Manager::Systemd { unit: "nginx".into() };
        assert_eq!(of(&systemd, &[]), ["nginx -t", "systemctl reload --no-ask-password -- nginx"]);
        assert_eq!(of(&systemd, &["nginx", "-s", "reload"]), ["nginx -t", "nginx -s reload"]);
        let docker = Manager::Docker { container: "web".into() };
        assert_eq!(of(&docker, &[]), ["docker exec web nginx -t", "docker kill --signal=HUP web"]);
        let compose = Manager::Compose { service: "web".into(), project_dir: None };
        assert_eq!(
            of(&compose, &[]),
            ["docker compose exec -T web nginx -t", "docker compose kill --signal=HUP web"]
        );
        assert_eq!(of(&compose, &["nginx", "-s", "reload"])[1], "docker compose exec -T web nginx -s reload");
    }
}
