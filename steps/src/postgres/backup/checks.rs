//! What must hold before a base backup begins.

use std::time::Duration;

use jiff::Timestamp;
use lifeboat_engine::step::StepError;

use super::base::Tablespace;
use crate::postgres::codes;
use crate::postgres::connect::{Client, Login};
use crate::postgres::wal::{SegmentSize, SystemId};
use crate::store::Store;

/// Catalogue queries answer at once; one that does not is stuck behind something.
const LIMIT: Duration = Duration::from_secs(30);

/// What the server says of itself.
#[derive(Clone, Debug)]
pub(super) struct Source {
    pub(super) system: SystemId,
    pub(super) major: u32,
    pub(super) version: String,
    pub(super) segment_size: SegmentSize,
    /// All databases together, uncompressed.
    pub(super) bytes: u64,
    pub(super) archiving: bool,
    pub(super) tablespaces: Vec<Tablespace>,
    /// Configuration files that no base backup holds.
    pub(super) outside: Vec<String>,
    pub(super) now: Timestamp,
}

const FACTS: &str = "\
select (select system_identifier::text from pg_control_system()) as system,
  current_setting('server_version_num')::int4 as version_num,
  current_setting('server_version') as version,
  pg_size_bytes(current_setting('wal_segment_size')) as segment_size,
  pg_is_in_recovery() as standby,
  current_setting('wal_level') as wal_level,
  current_setting('max_wal_senders')::int4 as max_senders,
  (select count(*) from pg_stat_replication)::int4 as senders,
  current_setting('archive_mode') as archive_mode,
  (select rolsuper or rolreplication from pg_roles where rolname = current_user) as may_replicate,
  (select coalesce(sum(pg_database_size(oid)), 0)::int8 from pg_database
    where has_database_privilege(oid, 'connect')) as bytes,
  clock_timestamp() as now";

/// A tablespace without a directory of its own lies within the data directory, and in its archive.
const TABLESPACES: &str = "\
select oid::text as oid, pg_tablespace_location(oid) as location from pg_tablespace
  where spcname not in ('pg_default', 'pg_global') and pg_tablespace_location(oid) like '/%' order by 1";

/// Shows files only to roles that may see them; for others there is no warning.
const OUTSIDE: &str = "\
select f.setting from pg_settings f, pg_settings d
  where f.name in ('config_file', 'hba_file', 'ident_file') and d.name = 'data_directory'
    and left(f.setting, length(d.setting) + 1) <> d.setting || '/' order by 1";

const ARCHIVER: &str = "\
select coalesce(last_failed_wal, '') as failed, coalesce(last_failed_time::text, '') as failed_at,
  coalesce(last_archived_wal, '') as archived,
  coalesce(last_failed_time > coalesce(last_archived_time, '-infinity'), false) as failing
from pg_stat_archiver";

/// Asks the server, and refuses what could not become a backup.
pub(super) async fn inspect(login: &Login) -> Result<Source, StepError> {
    let client = login.connect().await?;
    let row = client.query_one(FACTS, &[], LIMIT).await?;
    if row.get("standby") {
        return Err(unfit("the server is a standby, whose backups cannot be proven complete")
            .help("name the primary as `cluster`"));
    }
    refuse_role(row.get("may_replicate"), &login.user)?;
    refuse_settings(row.get("wal_level"), row.get("max_senders"), row.get("senders"))?;
    let archiving = row.get::<_, &str>("archive_mode") != "off";
    if archiving {
        refuse_failing_archiver(&client).await?;
    }
    let system: String = row.get("system");
    let segment_size: i64 = row.get("segment_size");
    Ok(Source {
        system: system.parse().map_err(|problem: String| unfit(&problem))?,
        major: row.get::<_, i32>("version_num").unsigned_abs() / 10_000,
        version: row.get("version"),
        segment_size: SegmentSize::new(segment_size.unsigned_abs())?,
        bytes: row.get::<_, i64>("bytes").unsigned_abs(),
        archiving,
        tablespaces: tablespaces(&client).await?,
        outside: client.query(OUTSIDE, &[], LIMIT).await?.iter().map(|row| row.get(0)).collect(),
        now: row.get("now"),
    })
}

/// Returns the time by the server's clock.
pub(super) async fn server_time(login: &Login) -> Result<Timestamp, StepError> {
    let client = login.connect().await?;
    Ok(client.query_one("select clock_timestamp()", &[], LIMIT).await?.get(0))
}

/// Says how archiving stands, for an error: what came last and what failed.
pub(super) async fn archiver_state(login: &Login) -> Result<String, StepError> {
    let row = login.connect().await?.query_one(ARCHIVER, &[], LIMIT).await?;
    let (archived, failed): (String, String) = (row.get("archived"), row.get("failed"));
    let last = if archived.is_empty() { "none".to_owned() } else { archived };
    Ok(match failed.is_empty() {
        true => format!("the server says that it archived {last} last, and no failure"),
        false => {
            let failed_at: String = row.get("failed_at");
            format!(
                "the server says that it archived {last} last, and failed to archive {failed} at {failed_at}"
            )
        }
    })
}

async fn tablespaces(client: &Client) -> Result<Vec<Tablespace>, StepError> {
    let rows = client.query(TABLESPACES, &[], LIMIT).await?;
    Ok(rows.iter().map(|row| Tablespace { oid: row.get("oid"), location: row.get("location") }).collect())
}

fn refuse_role(may_replicate: Option<bool>, user: &str) -> Result<(), StepError> {
    if may_replicate == Some(true) {
        return Ok(());
    }
    Err(StepError::permanent(codes::LB1210, format!("the role `{user}` may not take base backups"))
        .help(format!("as a superuser: alter role \"{user}\" replication;")))
}

fn refuse_settings(wal_level: &str, max_senders: i32, senders: i32) -> Result<(), StepError> {
    if wal_level == "minimal" {
        return Err(unfit("wal_level is `minimal`, which writes too little for a backup")
            .help("set wal_level = replica in postgresql.conf and restart the server"));
    }
    // One sends the files, the other the WAL written meanwhile.
    if max_senders - senders < 2 {
        let problem = format!(
            "a backup needs two WAL senders; {senders} of max_wal_senders = {max_senders} are in use"
        );
        return Err(unfit(&problem).help("raise max_wal_senders in postgresql.conf and restart the server"));
    }
    Ok(())
}

async fn refuse_failing_archiver(client: &Client) -> Result<(), StepError> {
    let row = client.query_one(ARCHIVER, &[], LIMIT).await?;
    if !row.get::<_, bool>("failing") {
        return Ok(());
    }
    let (failed, failed_at): (String, String) = (row.get("failed"), row.get("failed_at"));
    Err(StepError::transient(
        codes::LB1212,
        format!("archiving is failing: {failed} could not be archived at {failed_at}, and nothing since"),
    )
    .help("the server's log has the message of archive_command; mend it first, or no time after now can be restored"))
}

/// Refuses a store that is certain to be too small, and warns of one that may be.
///
/// A quarter is what well compressible data takes; a backup that runs out of space publishes nothing.
pub(super) fn space(store: &Store, bytes: u64, compressed: bool) -> Result<Option<String>, StepError> {
    let stat = rustix::fs::statvfs(store.work_dir()).map_err(|error| {
        let place = store.work_dir().display();
        StepError::permanent(codes::LB1213, format!("the free space of {place} cannot be found: {error}"))
    })?;
    let place = store.work_dir().display();
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let least = if compressed { bytes / 4 } else { bytes };
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    if free < least {
        return Err(StepError::permanent(
            codes::LB1213,
            format!(
                "{place} has {} MiB free, and a backup of {} MiB of data needs at least {} MiB",
                mib(free),
                mib(bytes),
                mib(least)
            ),
        )
        .help("make room (`df -h`), or use a larger store"));
    }
    let warning = || format!("{place} has {} MiB free for a backup of {} MiB of data", mib(free), mib(bytes));
    Ok((free < bytes).then(warning))
}

pub(super) fn unfit(problem: &str) -> StepError {
    StepError::permanent(codes::LB1211, format!("no base backup can be taken from this server: {problem}"))
}
