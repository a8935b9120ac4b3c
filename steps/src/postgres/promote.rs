//! `postgres.promote`: opens a recovered server for writing.

use std::path::Path;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::model::evidence::Check;
use lifeboat_engine::model::outcome::Mode;
use lifeboat_engine::resource::{Postgres, ResourceKind};
use lifeboat_engine::step::{
    Effect, KindSpec, Preview, Probe, Refusal, Setting, StepContext, StepError, StepKind,
};
use lifeboat_engine::value::{Field, Type};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::backup::wal_of;
use super::connect::{Client, Login, PgError};
use super::controldata::{ClusterState, ControlData};
use super::isolation::{Goal, Isolation, Writes, work_dir, write_private};
use super::pidfile::PidFile;
use super::restore_note::RestoreNote;
use super::server::{self, Expected, Launch, Pace, QUICK, ServerLog};
use super::timeline::{Place, warning};
use super::tools::Tools;
use super::unsynced;
use super::wal::{Archive, WalServer, WalSource};
use super::{account, codes, lifecycle, local, recover};
use crate::process::{Identity, OsUser, identity};
use crate::store::{Store, blocking};

/// How long ending recovery may take: it writes a checkpoint's worth of data in the worst case.
const PROMOTION_LIMIT: Duration = Duration::from_mins(10);
const CHECKPOINT_LIMIT: Duration = Duration::from_mins(30);
/// How long a server may take to stop that must not go on.
const STOP_PATIENCE: Duration = Duration::from_secs(30);
/// How long the first segment may take to be archived.
const ARCHIVING_LIMIT: Duration = Duration::from_mins(2);
const RESTART_LIMIT: Duration = Duration::from_mins(5);

/// Opens a recovered server for writing.
#[derive(Clone, Copy, Debug)]
pub(super) struct Promote;

#[derive(Deserialize)]
struct Params {
    cluster: String,
    isolated: bool,
}

impl Params {
    /// Says whether the server stays cut off: in a drill always.
    fn stays_isolated(&self, ctx: &StepContext) -> bool {
        self.isolated || ctx.info.mode == Mode::Drill
    }
}

const DOC: &str = "\
Ends the recovery of a server that `postgres.recover` left waiting: it goes on a timeline of its own and takes writing \
statements, which is proven with one. Then a checkpoint makes the end of recovery durable.

In a drill the server stays isolated, and with `isolated: true` in a recovery too. Otherwise it is started again with its own configuration; if that archives, \
the step waits for the first segment to be archived, or says that this was not proven. If the source's log goes on in \
that archive beside the server's own, a warning asks for a base backup: until there is one, no restore can know which \
timeline to follow.";

#[async_trait]
impl StepKind for Promote {
    fn spec(&self) -> KindSpec {
        KindSpec::new("postgres.promote", "Opens a recovered server for writing.", Effect::Guarded)
            .doc(DOC)
            .undoes("the server is stopped")
            .param(Field::required("cluster", Type::writes(ResourceKind::Postgres), "The recovered cluster."))
            .param(Field::defaulted(
                "isolated",
                Type::Boolean,
                false,
                "Whether it stays cut off in a recovery too.",
            ))
            .output("timeline", Type::Integer, "The timeline that the server writes now.")
            .output("lsn", Type::String, "Where it writes.")
            .output("isolated", Type::Boolean, "True if it runs cut off, as in a drill.")
            .output(
                "archiving",
                Type::choice(&["proven", "not_proven", "off"]),
                "Whether WAL is archived again.",
            )
    }

    fn refuse(&self, with: &Map<String, Value>, setting: &Setting<'_>) -> Option<Refusal> {
        // In a drill the server stays as it is.
        if setting.mode == Mode::Drill {
            return None;
        }
        lifecycle::refusal(with, setting)
    }

    async fn preview(&self, ctx: &StepContext) -> Result<Preview, StepError> {
        let params: Params = ctx.params()?;
        let (_, data_dir) = local::data_dir(ctx, &params.cluster)?;
        Ok(Preview {
            actions: vec![format!("promote the server on {}", data_dir.display())],
            destroys: Vec::new(),
        })
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let params: Params = ctx.params()?;
        let (postgres, data_dir) = local::data_dir(ctx, &params.cluster)?;
        if !params.stays_isolated(ctx) {
            lifecycle::refuse_managed(&params.cluster, postgres)?;
        }
        let isolation = own_isolation(ctx, data_dir)?;
        unsynced::refuse(data_dir)?;
        if let Some(isolation) = isolation {
            let isolation = match Isolation::serving(data_dir) {
                Some(_) => isolation,
                None => revive(ctx, &params.cluster, isolation).await?,
            };
            let client = connect(ctx, postgres, &isolation).await?;
            if in_recovery(&client).await? {
                promote(ctx, postgres, &isolation, &client).await?;
            }
            settle(&client).await.map_err(|error| with_log(error, &isolation))?;
            if !params.stays_isolated(ctx) {
                drop(client);
                into_service(ctx, &params.cluster).await?;
            }
        } else if PidFile::live(data_dir).is_none() {
            // This step had stopped it to start it again.
            start_in_service(ctx, &params.cluster).await?;
        }
        finish(ctx, postgres, data_dir).await
    }

    async fn probe(&self, ctx: &StepContext) -> Result<Probe, StepError> {
        let params: Params = ctx.params()?;
        let (postgres, data_dir) = local::data_dir(ctx, &params.cluster)?;
        if PidFile::live(data_dir).is_none() {
            return Ok(Probe::NotDone);
        }
        let isolated = Isolation::serving(data_dir).is_some();
        if isolated && !params.stays_isolated(ctx) {
            return Ok(Probe::NotDone);
        }
        let client = Login::of(ctx, postgres)?.connect().await?;
        server::check_identity(&client, data_dir).await?;
        if in_recovery(&client).await? {
            return Ok(Probe::NotDone);
        }
        finish(ctx, postgres, data_dir).await.map(Probe::Done)
    }

    /// Stops the server that this step has put into service. One that is still isolated is left to the step that
    /// started it, and so is any that somebody else has started.
    async fn undo(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let params: Params = ctx.params()?;
        let (_, data_dir) = local::data_dir(ctx, &params.cluster)?;
        let isolated = Isolation::serving(data_dir).is_some();
        let Some((_, running)) = PidFile::live(data_dir).filter(|_| !isolated) else {
            return Ok(Done::default());
        };
        if ctx.recorded(STOPPED).is_some() {
            server::stop(&running, Duration::from_mins(1)).await?;
            ctx.removed(&format!("server:{}", params.cluster), "the server was stopped").await?;
        }
        Ok(Done::default())
    }
}

/// Finds what this run has recovered, whether or not its server still runs. `None` if this step has already stopped
/// it to put it into service.
fn own_isolation(ctx: &StepContext, data_dir: &Path) -> Result<Option<Isolation>, StepError> {
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
const STOPPED: &str = "into_service";

fn not_recovered(data_dir: &Path, why: &str) -> StepError {
    StepError::permanent(
        codes::LB1272,
        format!("the server on {} cannot be promoted: {why}", data_dir.display()),
    )
}

/// Starts the isolated server again, if it ended since it was recovered: with the power, or because the server asked
/// for WAL when Lifeboat had just been killed. It replays to where it was and waits there; one that was promoted
/// already simply starts.
pub(super) async fn revive(
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

async fn in_recovery(client: &Client) -> Result<bool, PgError> {
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

fn failed(why: &str) -> StepError {
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

/// Stops the isolated server and starts it with its own configuration.
async fn into_service(ctx: &StepContext, name: &str) -> Result<(), StepError> {
    let (_, data_dir) = local::data_dir(ctx, name)?;
    ctx.record(STOPPED, true).await?;
    if let Some((_, running)) = PidFile::live(data_dir) {
        server::stop(&running, Duration::from_mins(1)).await?;
    }
    start_in_service(ctx, name).await
}

async fn start_in_service(ctx: &StepContext, name: &str) -> Result<(), StepError> {
    let (postgres, data_dir) = local::data_dir(ctx, name)?;
    queue_histories(data_dir, account::owner(postgres)?.as_ref())?;
    lifecycle::start_own(ctx, name, RESTART_LIMIT).await
}

/// Notes for the archiver that the history of the new timeline waits for it, as Postgres does. The server that was promoted
/// did not archive and made no note, and nobody can follow a timeline without its history.
fn queue_histories(data_dir: &Path, owner: Option<&OsUser>) -> Result<(), StepError> {
    let wal = data_dir.join("pg_wal");
    let status = wal.join("archive_status");
    let noted =
        |name: &str| ["ready", "done"].iter().any(|state| status.join(format!("{name}.{state}")).exists());
    let queue = || -> std::io::Result<()> {
        for entry in std::fs::read_dir(&wal)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name.ends_with(".history") && !noted(&name) {
                write_private(&status.join(format!("{name}.ready")), b"", owner)?;
            }
        }
        Ok(())
    };
    queue().map_err(|error| {
        failed("the history of the new timeline cannot be queued for the archiver")
            .help(format!(
                "check the rights on {} and the room on its disk, then try again",
                status.display()
            ))
            .caused_by(&error)
    })
}

async fn finish(ctx: &StepContext, postgres: &Postgres, data_dir: &Path) -> Result<Done, StepError> {
    let client = Login::of(ctx, postgres)?.connect().await?;
    server::check_identity(&client, data_dir).await?;
    let isolated = Isolation::serving(data_dir).is_some();
    let sql = "select pg_is_in_recovery(), ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int, \
               pg_current_wal_lsn()::text, current_setting('archive_mode')";
    let row = client.query_one(sql, &[], QUICK).await?;
    let (timeline, lsn, archive_mode): (i32, String, String) = (row.get(1), row.get(2), row.get(3));
    let (archiving, warning) =
        if archive_mode == "off" { ("off", None) } else { prove_archiving(ctx, &client).await? };
    let parted = match Isolation::read(data_dir).filter(|_| archiving != "off") {
        // It works; what the archive holds is for later.
        Some(left) => parted(ctx, &left, timeline.unsigned_abs()).await.unwrap_or_else(|error| {
            Some(format!("whether the archive holds one timeline only could not be seen: {error}"))
        }),
        None => None,
    };
    // From here on the directory is a cluster of its own and no restored backup.
    RestoreNote::remove_all(data_dir);
    if !isolated {
        std::fs::remove_dir_all(work_dir(data_dir)).ok();
    }
    let mut done = local::done(json!({
        "timeline": timeline, "lsn": lsn, "isolated": isolated, "archiving": archiving,
    }));
    done.checks = vec![Check {
        name: "the server takes writing statements".into(),
        expected: "not in recovery".into(),
        actual: format!("not in recovery, timeline {timeline}"),
        passed: true,
    }];
    done.warnings.extend(warning.into_iter().chain(parted));
    if !isolated && archiving == "off" {
        done.warnings.push(
            "the restored server does not archive WAL (archive_mode is off): it cannot be restored to a time"
                .into(),
        );
    }
    Ok(done)
}

/// Says what the next restore will ask, if the server archives where it was restored from and the log of its source goes on
/// there beside its own.
async fn parted(ctx: &StepContext, left: &Isolation, timeline: u32) -> Result<Option<String>, StepError> {
    let store = Store::of(ctx, &left.store).await?;
    let (backup, system, size) = (left.backup.clone(), left.system_id, left.segment_size);
    blocking(move || {
        let store = wal_of(store, &backup, &system.to_string())?;
        let archive = Archive::list(&store, system)?;
        if !archive.timelines().contains(&timeline) {
            return Ok(None);
        }
        let place = Place { store: &store, system, archive: &archive, size };
        let history = archive.history(&store, system, timeline)?;
        Ok(warning(place, &history).map(|others| {
            format!(
                "take a base backup of this server now (`postgres.base_backup`): until then a restore from `{}` asks which \
                 timeline to follow (LB1833) and has to be given `timeline: {timeline}`; {others}",
                store
            )
        }))
    })
    .await
}

/// Waits until the archiver has taken a segment of the new timeline.
async fn prove_archiving(
    ctx: &StepContext,
    client: &Client,
) -> Result<(&'static str, Option<String>), StepError> {
    let sql = "select pg_walfile_name(pg_current_wal_lsn())";
    // Something must be in the segment, or switching does nothing.
    client.batch("select pg_create_restore_point('lifeboat promoted')", QUICK).await?;
    let segment: String = client.query_one(sql, &[], QUICK).await?.get(0);
    client.query("select pg_switch_wal()", &[], QUICK).await?;
    let (deadline, pace) = (Instant::now() + ARCHIVING_LIMIT, Pace::start());
    let mut last_failure = None;
    while Instant::now() < deadline && !ctx.cancel.is_cancelled() {
        let sql = "select coalesce(last_archived_wal, ''), last_failed_wal from pg_stat_archiver";
        let row = client.query_one(sql, &[], QUICK).await?;
        let archived: String = row.get(0);
        // Histories and backup labels sort among the segments of their timeline.
        if archived.get(..24).is_some_and(|archived| archived >= segment.as_str()) {
            return Ok(("proven", None));
        }
        last_failure = row.get::<_, Option<String>>(1);
        tokio::time::sleep(pace.pause()).await;
    }
    let why = last_failure.map(|wal| format!("; archiving {wal} failed")).unwrap_or_default();
    Ok((
        "not_proven",
        Some(format!("no segment of the restored server was archived within two minutes{why}")),
    ))
}
