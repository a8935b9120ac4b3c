//! `postgres.start`, `postgres.stop`, `postgres.wait_ready`.

use std::path::Path;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::resource::{Manager, Postgres, ResourceKind, System};
use lifeboat_engine::step::{Effect, KindSpec, Preview, Refusal, Setting, StepContext, StepError, StepKind};
use lifeboat_engine::value::{Field, Span, Type};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::connect::{Login, PgError};
use super::isolation::Isolation;
use super::lock_files::socket_setting;
use super::pidfile::PidFile;
use super::server::{self, Ended, Expected, Launch, Pace, ServerLog};
use super::tools::Tools;
use super::unsynced;
use super::{account, codes, local, promote};

#[derive(Deserialize)]
struct Params {
    cluster: String,
    within: Span,
}

fn cluster(access: Type) -> Field {
    Field::required("cluster", access, "The cluster.")
}

fn within(default: &str, summary: &str) -> Field {
    Field::defaulted("within", Type::Duration, default, summary)
}

/// Starts the server of a cluster with its own configuration.
#[derive(Clone, Copy, Debug)]
pub(super) struct Start;

#[async_trait]
impl StepKind for Start {
    fn spec(&self) -> KindSpec {
        KindSpec::new("postgres.start", "Starts the server of a cluster with its own configuration.", Effect::Idempotent)
            .doc(
                "Succeeds at once if a server runs on the data directory. The server is started in a session of its \
                 own and outlives Lifeboat. Ready means that it takes connections and is the one on `data_dir`. What this run has recovered and \
                 not put into service, and what a `postgres.clone` has made, is started cut off as before. A \
                 cluster that a service manager runs is refused: use `service.start`.",
            )
            .param(cluster(Type::writes(ResourceKind::Postgres)))
            .param(within("1m", "How long it may take until it accepts connections."))
            .output("pid", Type::Integer, "The process of the server.")
            .output("port", Type::Integer, "Where it listens.")
            .output("started", Type::Boolean, "False if it ran already.")
    }

    fn refuse(&self, with: &Map<String, Value>, setting: &Setting<'_>) -> Option<Refusal> {
        refusal(with, setting)
    }

    async fn preview(&self, ctx: &StepContext) -> Result<Preview, StepError> {
        let params: Params = ctx.params()?;
        let (_, data_dir) = local::data_dir(ctx, &params.cluster)?;
        Ok(Preview {
            actions: vec![format!("start postgres on {}", data_dir.display())],
            destroys: Vec::new(),
        })
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let params: Params = ctx.params()?;
        let (postgres, data_dir) = local::data_dir(ctx, &params.cluster)?;
        let before = PidFile::live(data_dir).map(|(_, server)| server);
        bring_back(ctx, &params.cluster).await?;
        if server::running(ctx, data_dir).await?.is_none() {
            start_own(ctx, &params.cluster, params.within.0).await?;
        }
        let login = Login::of(ctx, postgres)?;
        wait(&login, data_dir, params.within.0).await?;
        let server = PidFile::live(data_dir).map(|(_, server)| server);
        let started = before.is_none() || before != server;
        let pid = server.map(|server| server.pid);
        Ok(local::done(json!({"pid": pid, "port": postgres.port, "started": started})))
    }
}

/// Starts the isolated server of this run again, if it has ended since it was recovered, or is about to: killed, or with the
/// machine. Does nothing for any other server.
pub(super) async fn bring_back(ctx: &StepContext, name: &str) -> Result<(), StepError> {
    let Ok((postgres, data_dir)) = local::data_dir(ctx, name) else { return Ok(()) };
    let Some(isolation) = left_isolated(ctx, data_dir) else { return Ok(()) };
    if let Some((_, server)) = server::running(ctx, data_dir).await? {
        let is_other = Isolation::serving(data_dir).is_none() && server.is_alive();
        if is_other || promote::settles(ctx, postgres, (&isolation, &server)).await? {
            return Ok(());
        }
    }
    promote::revive(ctx, name, isolation).await.map(drop)
}

/// Finds the description of a server that this run has recovered and not put into service: it is started as it was,
/// for its own configuration would connect it to the world that its data comes from.
fn left_isolated(ctx: &StepContext, data_dir: &Path) -> Option<Isolation> {
    Isolation::read(data_dir).filter(|left| left.run == ctx.info.run.to_string())
}

/// Starts a server with its own configuration and waits until it takes connections.
pub(super) async fn start_own(ctx: &StepContext, name: &str, within: Duration) -> Result<(), StepError> {
    let (postgres, data_dir) = local::data_dir(ctx, name)?;
    refuse_managed(name, postgres)?;
    unsynced::refuse(data_dir)?;
    let major = major_of(data_dir)?;
    let tools = Tools::find_major(postgres, major)?;
    let owner = account::owner(postgres)?;
    let log = ServerLog::next(&ctx.work_dir()?.join("postgres.log"));
    let settings = own_settings(postgres);
    let launch = Launch {
        resource: name,
        tools: &tools,
        owner: owner.as_ref(),
        data_dir,
        settings: &settings,
        log_file: &log.path,
    };
    let started = server::launch(ctx, &launch).await?;
    let login = Login::of(ctx, postgres)?;
    let expected = Expected { server: &started.identity, data_dir, log: &log };
    server::wait_ready(&login, &expected, within).await.map(drop)
}

/// The resource says where the server is reached; everything else is its own configuration.
fn own_settings(postgres: &Postgres) -> Vec<(String, String)> {
    let mut settings = vec![("port".to_owned(), postgres.port.to_string())];
    if let Some(file) = &postgres.config_file {
        settings.push(("config_file".to_owned(), file.display().to_string()));
    }
    let socket_dir = postgres.host.as_deref().filter(|host| host.starts_with('/')).map(Path::new);
    settings.extend(socket_dir.or(postgres.socket_dir.as_deref()).map(|dir| socket_setting([dir])));
    settings
}

/// Refuses a step whose cluster somebody else starts and stops, before anything has run.
pub(super) fn refusal(with: &Map<String, Value>, setting: &Setting<'_>) -> Option<Refusal> {
    let name = with.get("cluster")?.as_str()?;
    let System::Postgres(postgres) = &setting.resources.get(name)?.system else { return None };
    let error = refuse_managed(name, postgres).err()?;
    Some(Refusal { code: error.code, message: error.message, help: error.help.unwrap_or_default() })
}

pub(super) fn refuse_managed(name: &str, postgres: &Postgres) -> Result<(), StepError> {
    let manager = match &postgres.service {
        None | Some(Manager::Process { .. }) => return Ok(()),
        Some(Manager::Systemd { unit }) => format!("systemd (`{unit}`)"),
        Some(Manager::Docker { container }) => format!("docker (`{container}`)"),
        Some(Manager::Compose { service, .. }) => format!("docker compose (`{service}`)"),
    };
    Err(StepError::permanent(codes::LB1264, format!("the server of `{name}` is run by {manager}"))
        .help("use a `service.start` or `service.stop` step with a service resource for it"))
}

/// Returns the major version of a data directory.
pub(super) fn major_of(data_dir: &Path) -> Result<u32, StepError> {
    let path = data_dir.join("PG_VERSION");
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    text.trim().parse().map_err(|_| {
        StepError::permanent(
            codes::LB1247,
            format!("{} is no Postgres data directory: it has no PG_VERSION", data_dir.display()),
        )
        .help("check `data_dir` of the resource, or restore into it first")
    })
}

/// Stops the server of a cluster.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stop;

#[async_trait]
impl StepKind for Stop {
    fn spec(&self) -> KindSpec {
        KindSpec::new("postgres.stop", "Stops the server of a cluster.", Effect::Idempotent)
            .doc(
                "Stops the server that runs on the resource's `data_dir` and no other one: fast, and when `within` is \
                 over, at once. Succeeds if none runs. A cluster that a service manager runs is refused: it would be \
                 started again.",
            )
            .param(cluster(Type::writes(ResourceKind::Postgres)))
            .param(within("1m", "How long sessions may take to end before the server is stopped at once."))
            .output("stopped", Type::Boolean, "False if no server ran.")
            .output("how", Type::choice(&["fast", "immediate", "none"]), "How it was stopped.")
    }

    fn refuse(&self, with: &Map<String, Value>, setting: &Setting<'_>) -> Option<Refusal> {
        refusal(with, setting)
    }

    async fn preview(&self, ctx: &StepContext) -> Result<Preview, StepError> {
        let params: Params = ctx.params()?;
        let (_, data_dir) = local::data_dir(ctx, &params.cluster)?;
        let action = match PidFile::live(data_dir) {
            Some((file, _)) => {
                format!("stop the Postgres server on {} (process {})", data_dir.display(), file.pid)
            }
            None => format!("no server runs on {}", data_dir.display()),
        };
        Ok(Preview { actions: vec![action], destroys: Vec::new() })
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let params: Params = ctx.params()?;
        let (postgres, data_dir) = local::data_dir(ctx, &params.cluster)?;
        let Some((_, running)) = PidFile::live(data_dir) else {
            return Ok(local::done(json!({"stopped": false, "how": "none"})));
        };
        refuse_managed(&params.cluster, postgres)?;
        let (stopped, how) = match server::stop(&running, params.within.0).await? {
            Ended::Fast => (true, "fast"),
            Ended::Immediate => (true, "immediate"),
            Ended::WasGone => (false, "none"),
        };
        let mut done = local::done(json!({"stopped": stopped, "how": how}));
        if how == "immediate" {
            done.warnings.push(
                "sessions did not end in time: the server was stopped at once and recovers when it starts"
                    .into(),
            );
        }
        Ok(done)
    }
}

/// Waits until a server takes connections.
#[derive(Clone, Copy, Debug)]
pub(super) struct WaitReady;

#[async_trait]
impl StepKind for WaitReady {
    fn spec(&self) -> KindSpec {
        KindSpec::new("postgres.wait_ready", "Waits until a Postgres server takes connections.", Effect::Read)
            .doc(
                "Logs in, which a server also allows while it recovers: `in_recovery` tells. If the resource has a \
                 `data_dir`, the server that answers must be the one on it.",
            )
            .param(cluster(Type::reads(ResourceKind::Postgres)))
            .param(within("1m", "How long to wait."))
            .output("in_recovery", Type::Boolean, "True if it only takes reading statements.")
            .output("version", Type::String, "The version of the server.")
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let params: Params = ctx.params()?;
        let postgres = local::cluster(ctx, &params.cluster)?;
        let login = Login::of(ctx, postgres)?;
        let client = match &postgres.data_dir {
            Some(data_dir) => wait(&login, data_dir, params.within.0).await?,
            None => wait_any(&login, params.within.0).await?,
        };
        let sql = "select pg_is_in_recovery(), current_setting('server_version')";
        let row = client.query_one(sql, &[], server::QUICK).await?;
        let (in_recovery, version): (bool, String) = (row.get(0), row.get(1));
        Ok(local::done(json!({"in_recovery": in_recovery, "version": version})))
    }
}

async fn wait(login: &Login, data_dir: &Path, within: Duration) -> Result<super::connect::Client, StepError> {
    let client = wait_any(login, within).await?;
    server::check_identity(&client, data_dir).await?;
    Ok(client)
}

async fn wait_any(login: &Login, within: Duration) -> Result<super::connect::Client, StepError> {
    let (deadline, pace) = (Instant::now() + within, Pace::start());
    loop {
        match login.connect().await {
            Ok(client) => return Ok(client),
            Err(error) if !error.may_pass() || Instant::now() >= deadline => return Err(error.into()),
            Err(_) => {}
        }
        tokio::select! {
            () = tokio::time::sleep(pace.pause()) => {}
            () = login.cancel.cancelled() => return Err(PgError::Cancelled.into()),
        }
    }
}
