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
use super::super::wal::{History, WalServer, WalSource};
use super::super::{account, codes, lifecycle, local, recover};
use crate::process::{Identity, identity};
use crate::store::{Store, blocking};

/// How long ending recovery may take: it writes a checkpoint's worth of data in the worst case.
const PROMOTION_LIMIT: Duration = Duration::from_mins(10);
const CHECKPOINT_LIMIT: Duration = Duration::from_mins(30);
/// How long a server may take to stop that must not go on.
const STOP_PATIENCE: Duration = Duration::from_secs(30);

/// How long a server that an earlier attempt has started may take to get where it should be, or to end.
const SETTLING_LIMIT: Duration = Duration::from_mins(2);
/// How soon a server that lets people in is asked for its state.
const SOON: Duration = Duration::from_millis(5);

/// Under this key the step notes that it is about to ask for the promotion.
const ASKED: &str = "promotion";

/// Opens the recovered server for writing, proves it with a statement that writes, and makes it durable.
///
/// A server that ends meanwhile is started again, once, if an earlier attempt may be why: one that was being promoted when
/// Lifeboat was killed asks a helper that is gone, and gives up a moment later.
pub(super) async fn open(ctx: &StepContext, name: &str, isolation: Isolation) -> Result<(), StepError> {
    let (postgres, data_dir) = local::data_dir(ctx, name)?;
    if let Some((_, server)) = server::running(ctx, data_dir).await?
        && settles(ctx, postgres, (&isolation, &server)).await?
    {
        match open_running(ctx, postgres, &isolation).await {
            Err(error) if !ctx.cancel.is_cancelled() && is_left_over(ctx, &server, &error).await => {}
            opened => return opened,
        }
    }
    let isolation = revive(ctx, name, isolation).await?;
    open_running(ctx, postgres, &isolation).await
}

/// Waits until a server of this run, which an earlier attempt may have been starting when Lifeboat was killed, waits or is open.
/// `false` if it ends instead, as one does that asks for WAL when its helper is gone.
pub(in super::super) async fn settles(
    ctx: &StepContext,
    postgres: &Postgres,
    (isolation, server): (&Isolation, &Identity),
) -> Result<bool, StepError> {
    let login = Login::isolated(ctx, postgres, isolation)?;
    let (deadline, pace) = (Instant::now() + SETTLING_LIMIT, Pace::start());
    let mut client = None;
    loop {
        let replay = match &client {
            Some(client) => recover::replay_state(client).await.ok(),
            None => None,
        };
        match replay {
            Some(replay) if replay.paused || !replay.in_recovery => return Ok(true),
            Some(_) => {}
            None => client = login.connect().await.ok(),
        }
        if !server.is_alive() {
            return Ok(false);
        }
        // Whoever uses it finds out what is wrong with it.
        if Instant::now() >= deadline {
            return Ok(true);
        }
        tokio::select! {
            () = tokio::time::sleep(if client.is_some() { SOON } else { pace.pause() }) => {}
            () = ctx.cancelled() => return Err(PgError::Cancelled.into()),
        }
    }
}

/// Says whether a server is gone, or goes, for a reason that lies before this attempt.
async fn is_left_over(ctx: &StepContext, server: &Identity, error: &StepError) -> bool {
    let before = error.code == codes::LB1240 || ctx.recorded(ASKED).is_some();
    let patience = if error.kind == FailureKind::Transient { STOP_PATIENCE } else { Duration::ZERO };
    before && identity::gone_within(server, patience).await
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
    prove_where(&client, isolation).await?;
    settle(&client).await.map_err(|error| with_log(error, isolation))
}

/// Fails if the server has opened anywhere but where its recovery waited, and stops it then.
async fn prove_where(client: &Client, isolation: &Isolation) -> Result<(), StepError> {
    let Some(elsewhere) = opened_elsewhere(client, isolation).await? else { return Ok(()) };
    if let Some((_, server)) = PidFile::live(&isolation.data_dir) {
        server::stop(&server, STOP_PATIENCE).await?;
    }
    Err(with_log(failed(&elsewhere), isolation)
        .help("do not use it: restore again in a new run; the server was stopped"))
}

/// Says where a server has opened for writing, if that is not where its recovery waited.
///
/// A server that begins without being told to recover replays all that lies in its directory, as after a crash of its own. It
/// stays on its timeline, and so is found however often it was started since.
pub(super) async fn opened_elsewhere(
    client: &Client,
    isolation: &Isolation,
) -> Result<Option<String>, StepError> {
    let Some(waited) = isolation.waits_at else { return Ok(None) };
    let sql = "select ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int, \
               pg_current_wal_lsn()::text";
    let row = client.query_one(sql, &[], QUICK).await?;
    let timeline = row.get::<_, i32>(0).unsigned_abs();
    let history = isolation.data_dir.join(format!("pg_wal/{timeline:08X}.history"));
    let began = std::fs::read_to_string(history).ok();
    let began = began.and_then(|text| History::parse(timeline, &text).ok()?.switches.last().copied());
    if began.is_some_and(|switch| switch.at == waited) {
        return Ok(None);
    }
    let at: String = row.get(1);
    Ok(Some(format!(
        "the server opened for writing at {at} on timeline {timeline}, and not where its recovery waited, at {waited}: it may \
         have changes from after the target"
    )))
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
    server::alone(ctx, data_dir).await?;
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
            Ok(replay) if was_recovering && !replay.in_recovery && isolation.waits_at.is_none() => {
                server::stop(&started.identity, STOP_PATIENCE).await?;
                let why = "the server opened for writing instead of waiting at the target: do not use it, and restore \
                           again in a new run";
                return Err(with_log(failed(why), &isolation));
            }
            Ok(replay) if replay.paused => return Ok(isolation),
            Ok(replay) if !replay.in_recovery => {
                return prove_where(&client, &isolation).await.map(|()| isolation);
            }
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
    let server = PidFile::live(&isolation.data_dir).map(|(_, server)| server);
    ctx.record(ASKED, true).await?;
    let promoted = match client.query("select pg_promote(false)", &[], QUICK).await {
        Ok(_) => until_writable(ctx, client, server.as_ref()).await,
        Err(error) => Err(gave_up(server.as_ref(), error).await),
    };
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
    WalServer::listen(blocking(move || source.prove()).await?)
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
            Err(error) => return Err(gave_up(server, error).await),
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

/// Says what became of a server that answers no more: one that gives up closes its connections first.
async fn gave_up(server: Option<&Identity>, error: PgError) -> StepError {
    match server {
        Some(server) if identity::gone_within(server, STOP_PATIENCE).await => {
            failed("the server ended while it was promoted")
        }
        _ => error.into(),
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
