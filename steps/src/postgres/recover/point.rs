//! How new the recovered data is.

use jiff::Timestamp;
use lifeboat_engine::model::evidence::{Confidence, RecoveryPoint};
use lifeboat_engine::resource::Heartbeat;
use lifeboat_engine::step::{StepContext, StepError};

use super::super::connect::{Login, PgError};
use super::super::server::QUICK;
use super::pass::Replay;
use super::source::Source;

/// A measured recovery point, with what could not be measured.
pub(super) struct Found {
    pub(super) point: RecoveryPoint,
    pub(super) warnings: Vec<String>,
}

/// Finds the newest change in the data: the heartbeat row where the resource has one, else the last commit that was
/// replayed, else the newest commit timestamp that is kept, else the end of the backup.
pub(super) async fn find(
    ctx: &StepContext,
    source: &Source<'_>,
    login: &Login,
    replay: &Replay,
) -> Result<Found, StepError> {
    let mut warnings = Vec::new();
    if let Some(heartbeat) = &source.postgres.heartbeat {
        match newest_heartbeat(login, heartbeat).await {
            Ok(Some(time)) => {
                return Ok(Found {
                    point: point(source, replay, time, "heartbeat row", Confidence::Measured),
                    warnings,
                });
            }
            Ok(None) => warnings.push(format!("the heartbeat table {} is empty", heartbeat.table)),
            Err(error) if ctx.cancel.is_cancelled() => return Err(error),
            Err(error) => warnings.push(format!("the heartbeat could not be read: {}", error.message)),
        }
    }
    let replayed = replay.last_commit.as_ref().and_then(|time| time.parse::<Timestamp>().ok());
    let (time, method, confidence) = match replayed {
        Some(time) => (time, "last replayed commit", Confidence::Measured),
        None => match newest_commit(login).await? {
            Some(time) => (time, "commit timestamp", Confidence::Measured),
            None => (source.wal.details.stop_time, "end of the backup", Confidence::Stated),
        },
    };
    Ok(Found { point: point(source, replay, time, method, confidence), warnings })
}

/// Returns the newest commit timestamp, if the source kept them (`track_commit_timestamp`). They are known when the server
/// has replayed no commit since it was started, as after a recovery that was cut off and went on.
async fn newest_commit(login: &Login) -> Result<Option<Timestamp>, StepError> {
    /// Transactions without a commit have no timestamp; beyond so many the search ends.
    const SQL: &str = "
        select max(pg_xact_commit_timestamp(number::text::xid)) from generate_series(
          greatest(3, (pg_snapshot_xmax(pg_current_snapshot())::text::bigint & 4294967295) - 1000),
          (pg_snapshot_xmax(pg_current_snapshot())::text::bigint & 4294967295) - 1) number";
    let client = login.connect().await?;
    match client.query_one(SQL, &[], QUICK).await {
        Ok(row) => Ok(row.get(0)),
        // The source did not keep them: the setting of this server says nothing about that.
        Err(PgError::Database(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn point(
    source: &Source<'_>,
    replay: &Replay,
    time: Timestamp,
    method: &str,
    confidence: Confidence,
) -> RecoveryPoint {
    RecoveryPoint {
        resource: source.params.cluster.clone(),
        time: time.to_string(),
        position: replay.lsn.map(|lsn| lsn.to_string()),
        method: method.to_owned(),
        confidence,
    }
}

async fn newest_heartbeat(login: &Login, heartbeat: &Heartbeat) -> Result<Option<Timestamp>, StepError> {
    let client = login.database(&heartbeat.database).connect().await?;
    let table: Vec<String> = heartbeat.table.split('.').map(quoted).collect();
    let sql = format!(
        "select to_char(max({}) at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') from {}",
        quoted(&heartbeat.column),
        table.join(".")
    );
    let row = client.query_one(&sql, &[], QUICK).await?;
    let text: Option<String> = row.get(0);
    Ok(text.and_then(|text| text.parse().ok()))
}

/// Quotes a name for SQL.
pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
