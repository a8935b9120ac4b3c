//! `mariadb.start`, `mariadb.stop`.

use async_trait::async_trait;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::resource::{ResourceKind, System};
use lifeboat_engine::step::{Effect, KindSpec, Preview, Refusal, Setting, StepContext, StepError, StepKind};
use lifeboat_engine::value::{Field, Span, Type};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::connect::server;
use super::instance::{self, data_dir, refuse_managed};
use crate::sql::done;

#[derive(Deserialize)]
struct Params {
    server: String,
    within: Span,
}

fn params(default: &str, summary: &str) -> Vec<Field> {
    vec![
        Field::required("server", Type::writes(ResourceKind::Mariadb), "The server."),
        Field::defaulted("within", Type::Duration, default, summary),
    ]
}

/// Refuses a step whose server somebody else starts and stops, before anything has run.
fn refusal(with: &Map<String, Value>, setting: &Setting<'_>) -> Option<Refusal> {
    let name = with.get("server")?.as_str()?;
    let System::Mariadb(mariadb) = &setting.resources.get(name)?.system else { return None };
    let error = refuse_managed(name, mariadb).err()?;
    Some(Refusal { code: error.code, message: error.message, help: error.help.unwrap_or_default() })
}

/// Starts a server.
#[derive(Clone, Copy, Debug)]
pub(super) struct Start;

#[async_trait]
impl StepKind for Start {
    fn spec(&self) -> KindSpec {
        let mut spec = KindSpec::new(
            "mariadb.start",
            "Starts the server on a data directory with its own configuration.",
            Effect::Idempotent,
        )
        .doc(
            "Succeeds at once if a server runs on the data directory and takes connections; one that is still starting is waited \
             for. The server is started in a session of its own and \
             outlives Lifeboat; without `config_file` it reads the configuration of the system. Ready means that it takes \
             connections and has its data in `data_dir`. What a `mariadb.clone` has made is started cut off as before. A \
             server that a service manager runs is refused: use `service.start`.",
        )
        .output("pid", Type::Integer, "The process of the server.")
        .output("started", Type::Boolean, "False if it ran already.")
        .output("version", Type::String, "The version of the server.");
        spec.params = params("2m", "How long it may take until it takes connections.");
        spec
    }

    fn refuse(&self, with: &Map<String, Value>, setting: &Setting<'_>) -> Option<Refusal> {
        refusal(with, setting)
    }

    async fn preview(&self, ctx: &StepContext) -> Result<Preview, StepError> {
        let params: Params = ctx.params()?;
        let dir = data_dir(&params.server, server(ctx, &params.server)?)?;
        Ok(Preview { actions: vec![format!("start mariadbd on {}", dir.display())], destroys: Vec::new() })
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let params: Params = ctx.params()?;
        let mariadb = server(ctx, &params.server)?;
        let dir = data_dir(&params.server, mariadb)?;
        let earlier = instance::started_before(ctx)?;
        let found = instance::running(ctx, dir).await?;
        // An attempt that was cut off may have started it.
        let started = found.is_none() || found == earlier;
        let name = params.server.as_str();
        let facts = match found {
            Some(server) => {
                let starting = instance::Starting::found(server);
                instance::ready(ctx, (name, mariadb), starting, params.within.0).await?.1
            }
            None => {
                refuse_managed(name, mariadb)?;
                instance::start(ctx, name, mariadb, params.within.0).await?.1
            }
        };
        let pid = instance::live(dir).map(|server| server.pid);
        instance::forget(ctx)?;
        Ok(done(json!({"pid": pid, "started": started, "version": facts.version})))
    }
}

/// Stops a server.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stop;

#[async_trait]
impl StepKind for Stop {
    fn spec(&self) -> KindSpec {
        let mut spec = KindSpec::new(
            "mariadb.stop",
            "Stops the server on a data directory.",
            Effect::Idempotent,
        )
        .doc(
            "Ends the server that works in the resource's `data_dir` and no other one, in order: sessions are \
             disconnected, and what it holds in memory is written. It is never killed; if it has not ended `within` the \
             time, the step fails and can be repeated. Succeeds if none runs. A server that a service manager runs is \
             refused: it would be started again.",
        )
        .output("stopped", Type::Boolean, "False if no server ran.");
        spec.params = params("5m", "How long it may take to end.");
        spec
    }

    fn refuse(&self, with: &Map<String, Value>, setting: &Setting<'_>) -> Option<Refusal> {
        refusal(with, setting)
    }

    async fn preview(&self, ctx: &StepContext) -> Result<Preview, StepError> {
        let params: Params = ctx.params()?;
        let dir = data_dir(&params.server, server(ctx, &params.server)?)?;
        let action = match instance::live(dir) {
            Some(server) => format!("stop the MariaDB server on {} (process {})", dir.display(), server.pid),
            None => format!("no server runs on {}", dir.display()),
        };
        Ok(Preview { actions: vec![action], destroys: Vec::new() })
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let params: Params = ctx.params()?;
        let mariadb = server(ctx, &params.server)?;
        let Some(running) = instance::live(data_dir(&params.server, mariadb)?) else {
            return Ok(done(json!({"stopped": false})));
        };
        refuse_managed(&params.server, mariadb)?;
        let stopped = instance::stop(&running, params.within.0).await?;
        Ok(done(json!({"stopped": stopped})))
    }
}
