//! `postgres.wal_status`

use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::model::evidence::{Check, Confidence, RecoveryPoint};
use lifeboat_engine::resource::ResourceKind;
use lifeboat_engine::step::{Effect, KindSpec, StepContext, StepError, StepKind};
use lifeboat_engine::value::{Field, Span, Type};
use serde::Deserialize;
use serde_json::json;

use super::backup::BackupDetails;
use super::connect::{Client, Login};
use super::wal::{Archive, Continuity, Lsn, Segment, SegmentSize, SystemId};
use super::{codes, local};
use crate::store::{BackupKind, Store, blocking, catalogue};

/// Says how far the archive is behind the server.
#[derive(Clone, Copy, Debug)]
pub(super) struct WalStatus;

#[derive(Deserialize)]
struct Params {
    cluster: String,
    store: Option<String>,
    max_lag: Span,
    max_ready: i64,
}

const DOC: &str = "\
Compares what the server has written with what it says that it has archived, and, with `store`, with what really is in the \
archive: the segment that was archived last must be there, there must be a base backup of this cluster, and none may be missing \
from the newest one on.

The step fails if archiving is switched off or failing now, if segments have waited longer than `max_lag` or more than \
`max_ready` of them wait, or if one is missing. A server that has written nothing since its last segment was archived is \
not behind.";

/// What the server says.
struct Server {
    standby: bool,
    archive_mode: String,
    timeline: u32,
    lsn: Lsn,
    size: SegmentSize,
    system: SystemId,
    last_archived: String,
    last_archived_at: Option<Timestamp>,
    failing: bool,
    last_failed: String,
    failed: i64,
    /// Segments that wait to be archived; unknown to a role that may not look.
    ready: Option<i64>,
    now: Timestamp,
}

const STATUS: &str = "
    select pg_is_in_recovery(), current_setting('archive_mode'), (select timeline_id from pg_control_checkpoint()),
      case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_lsn() end::text,
      pg_size_bytes(current_setting('wal_segment_size')), (select system_identifier::text from pg_control_system()),
      coalesce(last_archived_wal, ''), last_archived_time,
      coalesce(last_failed_time > coalesce(last_archived_time, '-infinity'), false), coalesce(last_failed_wal, ''),
      failed_count, clock_timestamp()
    from pg_stat_archiver";

const READY: &str = "select count(*) from pg_ls_archive_statusdir() where name ~ '^[0-9A-F]{24}\\.ready$'";
const LIMIT: Duration = Duration::from_secs(30);

#[async_trait]
impl StepKind for WalStatus {
    fn spec(&self) -> KindSpec {
        KindSpec::new(
            "postgres.wal_status",
            "Finds out whether the archive keeps up with the server.",
            Effect::Read,
        )
        .doc(DOC)
        .param(Field::required("cluster", Type::reads(ResourceKind::Postgres), "The server."))
        .param(Field::optional("store", Type::reads(ResourceKind::Store), "The store with its archive."))
        .param(Field::defaulted(
            "max_lag",
            Type::Duration,
            "15m",
            "How long segments may wait to be archived.",
        ))
        .param(Field::defaulted("max_ready", Type::Integer, 20, "How many segments may wait."))
        .output("current_segment", Type::String, "The segment that the server writes now.")
        .output("last_archived", Type::String, "The segment that it archived last; empty if none.")
        .output("last_archived_at", Type::Any, "When that was; null if none.")
        .output("lag_bytes", Type::Integer, "Bytes of log written since then.")
        .output("lag_seconds", Type::Integer, "Seconds since then; 0 if nothing was written.")
        .output("ready", Type::Any, "How many segments wait; null if the role may not look.")
        .output("failed_count", Type::Integer, "How often archiving has failed since statistics began.")
        .output(
            "recovery_point",
            Type::Any,
            "`time`, `position`, `method` and `confidence` of what could be restored if the server were lost now; null if \
             it has archived nothing.",
        )
        .output("archive_end", Type::String, "The newest segment in the store; empty without `store`.")
        .output(
            "missing",
            Type::list(Type::String),
            "Segments that are missing in the store, the first few.",
        )
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let params: Params = ctx.params()?;
        let login = Login::of(ctx, local::cluster(ctx, &params.cluster)?)?;
        let server = Server::ask(&login.connect().await?).await?;
        let mut checks = server.checks(&params);
        let (mut end, mut missing) = (String::new(), Vec::new());
        if let Some(name) = &params.store {
            let store = Store::of(ctx, name).await?;
            let (system, size, timeline) = (server.system, server.size, server.timeline);
            let found = blocking(move || Found::look(&store, system, (size, timeline))).await?;
            if let Some(walk) = found.walk {
                end = walk.end().map(|end| end.name(size)).unwrap_or_default();
                missing = walk.missing;
            }
            checks.push(found.backup);
            let archive = found.archive;
            checks.extend(server.compare(&archive, &missing));
        }
        let mut done = local::done(json!({
            "current_segment": server.current().name(server.size), "last_archived": server.last_archived,
            "last_archived_at": server.last_archived_at, "lag_bytes": server.lag_bytes(),
            "lag_seconds": server.lag().as_secs(), "ready": server.ready, "failed_count": server.failed,
            "archive_end": end, "missing": missing, "recovery_point": server.recovery_point(&params.cluster),
        }));
        done.checks = verdict(checks)?;
        if server.ready.is_none() {
            done.warnings
                .push("how many segments wait is not known: the role may not look (grant pg_monitor)".into());
        }
        Ok(done)
    }
}

/// What the store has.
struct Found {
    archive: Archive,
    /// From the newest base backup on: what is older may have been pruned.
    walk: Option<Continuity>,
    backup: Check,
}

impl Found {
    fn look(
        store: &Store,
        system: SystemId,
        (size, timeline): (SegmentSize, u32),
    ) -> Result<Self, StepError> {
        let archive = Archive::list(store, system)?;
        let history = archive.history(store, system, timeline)?;
        let newest = catalogue(store, BackupKind::PostgresBase)?.complete.into_iter().find_map(|marker| {
            let details: BackupDetails = marker.details().ok()?;
            let start = Segment::parse(&details.wal_start_segment, size).ok()?;
            (details.base.system_id == system.to_string()).then_some((marker.label, start.number))
        });
        let first = newest.as_ref().map(|(_, first)| *first).or_else(|| archive.first_of(&history, size));
        let walk = first.map(|first| archive.continuity(first, &history, size));
        let label = newest.map(|(label, _)| label);
        let backup = Check {
            name: "the store has a base backup that the log goes on from".into(),
            expected: "one".into(),
            passed: label.is_some(),
            actual: label.unwrap_or_else(|| "none: the log alone restores nothing".into()),
        };
        Ok(Self { archive, walk, backup })
    }
}

impl Server {
    async fn ask(client: &Client) -> Result<Self, StepError> {
        let row = client.query_one(STATUS, &[], LIMIT).await?;
        let unknown = |problem: String| StepError::permanent(codes::LB1831, problem);
        let lsn: Option<String> = row.get(3);
        let ready = client.query_one(READY, &[], LIMIT).await.ok().map(|row| row.get(0));
        Ok(Self {
            standby: row.get(0),
            archive_mode: row.get(1),
            timeline: row.get::<_, i32>(2).unsigned_abs(),
            lsn: lsn.unwrap_or_default().parse().unwrap_or_default(),
            size: SegmentSize::new(row.get::<_, i64>(4).unsigned_abs())?,
            system: row.get::<_, String>(5).parse().map_err(unknown)?,
            last_archived: row.get(6),
            last_archived_at: row.get(7),
            failing: row.get(8),
            last_failed: row.get(9),
            failed: row.get(10),
            ready,
            now: row.get(11),
        })
    }

    fn current(&self) -> Segment {
        Segment::at(self.timeline, self.lsn, self.size)
    }

    /// The position up to which everything is archived, by the server's word.
    fn archived_to(&self) -> Option<Lsn> {
        let name = self.last_archived.get(..24)?;
        let segment = Segment::parse(name, self.size).ok()?;
        Some(Lsn((segment.number + 1) * self.size.bytes()))
    }

    fn lag_bytes(&self) -> u64 {
        self.archived_to().map_or(0, |to| self.lsn.0.saturating_sub(to.0))
    }

    /// How long something has waited. The server writes a little at the beginning of each segment by itself.
    fn lag(&self) -> Duration {
        const IDLE: u64 = 8192;
        match self.last_archived_at {
            Some(at) if self.lag_bytes() > IDLE => self.now.duration_since(at).unsigned_abs(),
            _ => Duration::ZERO,
        }
    }

    /// All that was written before the last segment was archived is in the archive; of what came later nothing is known.
    fn recovery_point(&self, cluster: &str) -> Option<RecoveryPoint> {
        let time = if self.lag().is_zero() { self.now } else { self.last_archived_at? };
        let position = self.archived_to()?.to_string();
        Some(RecoveryPoint {
            resource: cluster.to_owned(),
            time: time.to_string(),
            position: Some(position),
            method: "WAL bound".to_owned(),
            confidence: Confidence::Bound,
        })
    }

    fn checks(&self, params: &Params) -> Vec<Check> {
        let check = |name: &str, expected: String, actual: String, passed| Check {
            name: name.to_owned(),
            expected,
            actual,
            passed,
        };
        let on = self.archive_mode == "always" || self.archive_mode == "on" && !self.standby;
        let failing = if self.failing {
            format!("{} could not be archived", self.last_failed)
        } else {
            "it does not".into()
        };
        let lag = self.lag();
        let mut checks = vec![
            check("the server archives its log", "on".into(), self.archive_mode.clone(), on),
            check("archiving does not fail", "it does not".into(), failing, !self.failing),
            check(
                "segments are archived in time",
                format!("within {}", params.max_lag),
                format!("{} s and {} bytes since {}", lag.as_secs(), self.lag_bytes(), self.last_archived),
                lag <= params.max_lag.0,
            ),
        ];
        if let Some(ready) = self.ready {
            let passed = ready <= params.max_ready;
            checks.push(check(
                "few segments wait",
                format!("at most {}", params.max_ready),
                ready.to_string(),
                passed,
            ));
        }
        checks
    }

    /// Compares the server's word with the store.
    fn compare(&self, archive: &Archive, missing: &[String]) -> Vec<Check> {
        let last = self.last_archived.get(..24).and_then(|name| Segment::parse(name, self.size).ok());
        // The history of a timeline is archived, too, and then it is what was archived last.
        let there = last.map_or(!self.last_archived.is_empty(), |last| archive.has(last, self.size));
        let found = match (last, there) {
            (None, true) => "no segment, but the history of a timeline",
            (None, false) => "the server has archived none",
            (_, true) => "it is there",
            (_, false) => "it is not there",
        };
        vec![
            Check {
                name: "the segment archived last is in the store".into(),
                expected: self.last_archived.clone(),
                actual: found.into(),
                passed: there,
            },
            Check {
                name: "no segment is missing in the store".into(),
                expected: "none".into(),
                actual: if missing.is_empty() { "none".into() } else { missing.join(", ") },
                passed: missing.is_empty(),
            },
        ]
    }
}

fn verdict(checks: Vec<Check>) -> Result<Vec<Check>, StepError> {
    let failed: Vec<_> = checks.iter().filter(|check| !check.passed).collect();
    if failed.is_empty() {
        return Ok(checks);
    }
    let failed: Vec<_> = failed.iter().map(|check| format!("{} ({})", check.name, check.actual)).collect();
    Err(StepError::permanent(codes::LB1831, format!("the archive does not keep up: {}", failed.join("; ")))
        .help("the server's log has the messages of archive_command; until it is mended, nothing newer can be restored")
        .checks(checks))
}
