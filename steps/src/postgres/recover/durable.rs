//! Makes everything that was replayed durable, once, while the server waits.

use std::sync::Arc;
use std::time::{Duration, Instant};

use lifeboat_engine::model::evidence::{Check, Progress, Unit};
use lifeboat_engine::step::{StepContext, StepError};

use super::super::connect::{Client, PgError};
use super::super::isolation::Writes;
use super::super::server::{QUICK, ServerLog};
use super::super::{codes, unsynced};
use super::pass::Paused;
use super::source::Source;
use crate::store::blocking;

/// Writing what the server still holds: all of its buffers in the worst case.
const CHECKPOINT_LIMIT: Duration = Duration::from_mins(30);
/// How long a server may take to read its configuration again.
const RELOAD_LIMIT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(5);

/// Ends the time in which the server writes without syncing. Does nothing if that has been done.
///
/// The order matters: what the server holds goes to the kernel, the server syncs by itself from then on, and the file
/// system is synced after both, so that no write is covered by neither. A process of the server that has not read the
/// configuration yet reads it before it does anything else.
pub(super) async fn make(ctx: &StepContext, source: &Source<'_>, paused: &Paused) -> Result<(), StepError> {
    let data_dir = &source.data_dir;
    if !unsynced::is_unsynced(data_dir) {
        return Ok(());
    }
    report(ctx, "writing what the server holds");
    let written = paused.client.batch("checkpoint", CHECKPOINT_LIMIT).await;
    written.map_err(|error| unwritten(&paused.log, error))?;
    paused.isolation.set_writes(Writes::Synced, source.owner.as_ref())?;
    paused.client.query("select pg_reload_conf()", &[], QUICK).await?;
    until_synced(ctx, &paused.client).await?;
    report(ctx, "making it durable");
    let (disk, dir, owner) = (Arc::clone(&paused.disk), data_dir.clone(), source.owner.clone());
    blocking(move || unsynced::end(&dir, &disk, owner.as_ref())).await
}

/// A checkpoint says that it failed; the file that could not be written is in the server's log.
fn unwritten(log: &ServerLog, error: PgError) -> StepError {
    let (PgError::Database(_) | PgError::Lost(_), Some(why)) = (&error, log.complaint()) else {
        return error.into_step();
    };
    let message = format!("Postgres cannot write what it has replayed: {why}");
    let mut error = StepError::permanent(codes::LB1267, message).help(format!(
        "look at the disk of the data directory (`df -h`, `dmesg`), then try again: the server still holds what it could \
         not write; its log is {}",
        log.path.display()
    ));
    error.causes = log.fatal();
    error
}

fn report(ctx: &StepContext, note: &str) {
    ctx.progress(Progress { done: 0, total: None, unit: Unit::Bytes, note: note.to_owned() });
}

async fn until_synced(ctx: &StepContext, client: &Client) -> Result<(), StepError> {
    let deadline = Instant::now() + RELOAD_LIMIT;
    while !syncs(client).await? {
        if Instant::now() >= deadline {
            return Err(StepError::transient(
                codes::LB1227,
                "the server does not sync what it writes, although it was told to",
            )
            .help("look at its log, then try again: the recovery goes on from where it is"));
        }
        tokio::select! {
            () = tokio::time::sleep(POLL) => {}
            () = ctx.cancelled() => return Err(PgError::Cancelled.into()),
        }
    }
    Ok(())
}

async fn syncs(client: &Client) -> Result<bool, PgError> {
    let row = client.query_one("select current_setting('fsync')", &[], QUICK).await?;
    Ok(row.get::<_, &str>(0) == "on")
}

/// Shows that the directory is durable and stays so.
pub(super) async fn check(source: &Source<'_>, paused: &Paused) -> Result<Check, StepError> {
    let (synced, syncs) = (!unsynced::is_unsynced(&source.data_dir), syncs(&paused.client).await?);
    let actual = match (synced, syncs) {
        (true, true) => "synced, and fsync is on",
        (true, false) => "synced, and fsync is off",
        (false, _) => "not synced",
    };
    Ok(Check {
        name: "what was replayed is durable".into(),
        expected: "synced, and fsync is on".into(),
        actual: actual.into(),
        passed: synced && syncs,
    })
}
