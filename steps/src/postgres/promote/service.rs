//! Putting a promoted server into service: its own configuration, and an archive that takes its WAL again.

use std::path::Path;
use std::time::{Duration, Instant};

use lifeboat_engine::step::{StepContext, StepError};

use super::super::backup::wal_of;
use super::super::connect::{Client, Login};
use super::super::isolation::{Isolation, write_private};
use super::super::pidfile::PidFile;
use super::super::server::{self, Expected, Pace, QUICK, ServerLog};
use super::super::timeline::{Place, warning};
use super::super::wal::Archive;
use super::super::{account, lifecycle, local};
use super::opening::{STOPPED, failed};
use crate::process::{Identity, OsUser};
use crate::store::{Store, blocking};

/// How long the first segment may take to be archived.
const ARCHIVING_LIMIT: Duration = Duration::from_mins(2);
const RESTART_LIMIT: Duration = Duration::from_mins(5);

/// Stops the isolated server and starts it with its own configuration.
pub(super) async fn into_service(ctx: &StepContext, name: &str) -> Result<(), StepError> {
    let (_, data_dir) = local::data_dir(ctx, name)?;
    ctx.record(STOPPED, true).await?;
    if let Some((_, running)) = PidFile::live(data_dir) {
        server::stop(&running, Duration::from_mins(1)).await?;
    }
    start_in_service(ctx, name).await
}

pub(super) async fn start_in_service(ctx: &StepContext, name: &str) -> Result<(), StepError> {
    let (postgres, data_dir) = local::data_dir(ctx, name)?;
    queue_histories(data_dir, account::owner(postgres)?.as_ref())?;
    lifecycle::start_own(ctx, name, RESTART_LIMIT).await
}

/// Waits for a server that is on its way into service already.
pub(super) async fn until_in_service(
    ctx: &StepContext,
    name: &str,
    server: &Identity,
) -> Result<(), StepError> {
    let (postgres, data_dir) = local::data_dir(ctx, name)?;
    let log = ServerLog::next(&ctx.work_dir()?.join("postgres.log"));
    let login = Login::of(ctx, postgres)?;
    let expected = Expected { server, data_dir, log: &log };
    server::wait_ready(&login, &expected, RESTART_LIMIT).await.map(drop)
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

/// Says what the next restore will ask, if the server archives where it was restored from and the log of its source goes on
/// there beside its own.
pub(super) async fn parted(
    ctx: &StepContext,
    left: &Isolation,
    timeline: u32,
) -> Result<Option<String>, StepError> {
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
pub(super) async fn prove_archiving(
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
