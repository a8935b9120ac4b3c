//! The isolated server that a recovery left waiting: it is found, started again if it has ended, and opened for writing.

use std::path::Path;
use std::time::{Duration, Instant};

use lifeboat_engine::model::outcome::FailureKind;
use lifeboat_engine::resource::Postgres;
use lifeboat_engine::step::{StepContext, StepError};

use super::super::backup::wal_of;
use super::super::connect::{Client, Login, PgError};
use super::super::controldata::{ClusterState, ControlData};
use super::super::isolation::{Goal, Isolation, Writes};
use super::super::pidfile::PidFile;
use super::super::server::{self, Expected, Launch, Pace, QUICK, ServerLog};
use super::super::tools::Tools;
use super::super::unsynced;
use super::super::wal::{WalServer, WalSource};
use super::super::{account, codes, lifecycle, local, recover};
use crate::process::{Identity, identity};
use crate::store::{Store, blocking};

/// How long ending recovery may take: it writes a checkpoint's worth of data in the worst case.
const PROMOTION_LIMIT: Duration = Duration::from_mins(10);
const CHECKPOINT_LIMIT: Duration = Duration::from_mins(30);
/// How long a server may take to stop that must not go on.
const STOP_PATIENCE: Duration = Duration::from_secs(30);

/// Opens the recovered server for writing, proves it with a statement that writes, and makes it durable.
///
/// A server that ends meanwhile is started again, once: one that was being promoted when Lifeboat was killed asks a helper that
/// is gone, and gives up a moment later.
pub(super) async fn open(ctx: &StepContext, name: &str, isolation: Isolation) -> Result<(), StepError> {
    let (postgres, data_dir) = local::data_dir(ctx, name)?;
    let isolation = match (Isolation::serving(data_dir), PidFile::live(data_dir)) {
        (Some(_), Some((_, server))) => match open_running(ctx, postgres, &isolation).await {
            Err(error) if !ctx.cancel.is_cancelled() && has_ended(&server, &error).await => isolation,
            opened => return opened,
        },
        _ => isolation,
    };
    let isolation = revive(ctx, name, isolation).await?;
    open_running(ctx, postgres, &isolation).await
}

/// Says whether a server is gone, or goes because of what the error tells.
async fn has_ended(server: &Identity, error: &StepError) -> bool {
    let patience = if error.kind == FailureKind::Transient { STOP_PATIENCE } else { Duration::ZERO };
    identity::gone_within(server, patience).await
}

async fn open_running(
    ctx: &StepContext,
    postgres: &Postgres,
    isolation: &Isolation,
) -> Result<(), StepError> {
    let client = connect(ctx, postgres, isolation).await?;
    if in_recovery(&client).await? {
        promote(ctx, postgres, isolation, &client).await?;
    }
    settle(&client).await.map_err(|error| with_log(error, isolation))
}

/// Finds what this run has recovered, whether or not its server still runs. `None` if this step has already stopped
/// it to put it into service.
pub(super) fn own_isolation(ctx: &StepContext, data_dir: &Path) -> Result<Option<Isolation>, StepError> {
    let left = Isolation::read(data_dir).filter(|left| left.run == ctx.info.run.to_string());
    let serving = Isolation::serving(data_dir);
    let live = PidFile::live(data_dir).is_some();
    match (left, serving) {
        (_, None) if ctx.recorded(STOPPED).is_some() => Ok(None),
        (Some(left), Some(serving)) if left == serving => Ok(Some(left)),
        (Some(left), None) if !live => Ok(Some(left)),
        _ => Err(not_recovered(data_dir, "this run has not recovered it")
            .help("put a `postgres.recover` step for this cluster before it; nothing was touched")),
    }
}

/// Under this key the step notes that it is about to stop the isolated server for good.
pub(super) const STOPPED: &str = "into_service";

fn not_recovered(data_dir: &Path, why: &str) -> StepError {
    StepError::permanent(
        codes::LB1272,
        format!("the server on {} cannot be promoted: {why}", data_dir.display()),
    )
}

/// Starts the isolated server again, if it ended since it was recovered: with the power, or because the server asked
/// for WAL when Lifeboat had just been killed. It replays to where it was and waits there; one that was promoted
/// already simply starts.
pub(in super::super) async fn revive(
    ctx: &StepContext,
    name: &str,
    mut isolation: Isolation,
) -> Result<Isolation, StepError> {
    let (postgres, data_dir) = local::data_dir(ctx, name)?;
    unsynced::refuse(data_dir)?;
    let tools = Tools::find_major(postgres, lifecycle::major_of(data_dir)?)?;
    let owner = account::owner(postgres)?;
    let control = ControlData::read(&tools, data_dir)?;
    let was_recovering =
        matches!(control.state, ClusterState::InArchiveRecovery | ClusterState::ShutDownInRecovery);
    if was_recovering {
        // A promotion that was cut off may have removed it already. Without it, the server would recover as after a crash
        // of its own, which ends at no target: all that is in the last segment would be replayed.
        recover::request_recovery(data_dir, owner.as_ref())?;
    }
    let log = ServerLog::next(&ctx.work_dir()?.join("postgres.log"));
    (isolation.log_file, isolation.log_start) = (log.path.clone(), log.start);
    isolation.save(owner.as_ref())?;
    // What the recovery had written there for itself may have come back with a power cut.
    isolation.set_writes(Writes::Synced, owner.as_ref())?;
    let helper = serve_wal(ctx, postgres, &isolation).await?;
    let mut settings = isolation.settings(postgres, tools.version.major, &control);
    settings.extend(isolation.recovery_settings(helper.restore_command(&isolation.client())));
    let launch = Launch {
        resource: name,
        tools: &tools,
        owner: owner.as_ref(),
        data_dir,
        settings: &settings,
        log_file: &log.path,
    };
    let started = server::launch(ctx, &launch).await?;
    let login = Login::isolated(ctx, postgres, &isolation)?;
    let expected = Expected { server: &started.identity, data_dir, log: &log };
    let client = server::wait_ready(&login, &expected, PROMOTION_LIMIT).await?;
    let (deadline, pace) = (Instant::now() + PROMOTION_LIMIT, Pace::start());
    loop {
        let replay = recover::replay_state(&client).await;
        match replay {
            Ok(replay) if was_recovering && !replay.in_recovery => {
                server::stop(&started.identity, STOP_PATIENCE).await?;
                let why = "the server opened for writing instead of waiting at the target: do not use it, and restore \
                           again in a new run";
                return Err(with_log(failed(why), &isolation));
            }
            Ok(replay) if replay.paused || !replay.in_recovery => return Ok(isolation),
            Err(_) if !started.identity.is_alive() => return Err(log.died()),
            _ if Instant::now() >= deadline => {
                return Err(with_log(failed("the server has not come back to where it waited"), &isolation));
            }
            _ => {}
        }
        tokio::select! {
            () = tokio::time::sleep(pace.pause()) => {}
            () = ctx.cancelled() => return Err(PgError::Cancelled.into()),
        }
    }
}

async fn connect(ctx: &StepContext, postgres: &Postgres, isolation: &Isolation) -> Result<Client, StepError> {
    let client = Login::isolated(ctx, postgres, isolation)?.connect().await?;
    server::check_identity(&client, &isolation.data_dir).await?;
    Ok(client)
}

pub(super) async fn in_recovery(client: &Client) -> Result<bool, PgError> {
    Ok(client.query_one("select pg_is_in_recovery()", &[], QUICK).await?.get(0))
}

/// Ends recovery. The server asks the archive once more, for the timelines that are taken: the helper must answer.
async fn promote(
    ctx: &StepContext,
    postgres: &Postgres,
    isolation: &Isolation,
    client: &Client,
) -> Result<(), StepError> {
    if isolation.goal == Goal::Farthest {
        return Err(not_recovered(&isolation.data_dir, "its recovery has not come to its end"));
    }
    let helper = serve_wal(ctx, postgres, isolation).await?;
    client.query("select pg_promote(false)", &[], QUICK).await?;
    let server = PidFile::live(&isolation.data_dir).map(|(_, server)| server);
    let promoted = until_writable(ctx, client, server.as_ref()).await;
    drop(helper);
    promoted.map_err(|error| with_log(error, isolation))
}

async fn serve_wal(
    ctx: &StepContext,
    postgres: &Postgres,
    isolation: &Isolation,
) -> Result<WalServer, StepError> {
    let source = WalSource {
        store: wal_of(
            Store::of(ctx, &isolation.store).await?,
            &isolation.backup,
            &isolation.system_id.to_string(),
        )?,
        system_id: isolation.system_id,
        segment_size: isolation.segment_size,
        backup: isolation.backup.clone(),
        proven: None,
        first: None,
        socket: isolation.wal_socket(),
        owner: account::owner(postgres)?.map(|owner| (owner.uid, owner.gid)),
    };
    blocking(move || WalServer::start(source)).await
}

async fn until_writable(
    ctx: &StepContext,
    client: &Client,
    server: Option<&Identity>,
) -> Result<(), StepError> {
    let (deadline, pace) = (Instant::now() + PROMOTION_LIMIT, Pace::start());
    loop {
        match in_recovery(client).await {
            Ok(false) => return Ok(()),
            Ok(true) => {}
            // One that gives up closes its connections first.
            Err(error) => match server {
                Some(server) if identity::gone_within(server, STOP_PATIENCE).await => {
                    return Err(failed("the server ended while it was promoted"));
                }
                _ => return Err(error.into()),
            },
        }
        if Instant::now() >= deadline {
            return Err(failed("the server is still in recovery after 10 minutes"));
        }
        tokio::select! {
            () = tokio::time::sleep(pace.pause()) => {}
            () = ctx.cancelled() => return Err(StepError::uncertain(codes::LB1271, "interrupted while the server was promoted")
                .help("`lifeboat resume` finds out whether it was")),
        }
    }
}

pub(super) fn failed(why: &str) -> StepError {
    StepError::permanent(codes::LB1271, why)
}

fn with_log(mut error: StepError, isolation: &Isolation) -> StepError {
    let log = ServerLog { path: isolation.log_file.clone(), start: isolation.log_start };
    if error.code == codes::LB1271
        && let Some(why) = log.complaint()
    {
        error.message.push_str(&format!("; the last it said: {why}"));
    }
    error.causes.extend(log.fatal());
    error.help(format!("the server's log is {}", isolation.log_file.display()))
}

/// Proves that it takes writing statements, and makes the end of recovery durable.
async fn settle(client: &Client) -> Result<(), StepError> {
    let write = "begin read write; create temporary table lifeboat_writable (n int) on commit drop; \
                 insert into lifeboat_writable values (1); select pg_current_xact_id(); commit";
    client.batch(write, QUICK).await?;
    client.batch("checkpoint", CHECKPOINT_LIMIT).await?;
    Ok(())
}
