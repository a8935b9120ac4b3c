//! One start of the server towards one goal.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use lifeboat_engine::model::evidence::{Progress, Unit};
use lifeboat_engine::step::{StepContext, StepError};

use super::super::connect::{Client, Login, PgError};
use super::super::isolation::{Goal, Isolation, Writes};
use super::super::server::{self, Expected, Launch, Pace, QUICK, ServerLog};
use super::super::unsynced::{self, Disk};
use super::super::wal::{Answered, Lsn, MOST_AHEAD, READ_AHEAD, Request, Segment, WalServer, WalSource};
use super::super::{codes, server::message_of};
use super::flushing::Flushing;
use super::source::Source;
use crate::process::{Identity, OsUser};
use crate::store::blocking;

/// A server that gets no further for this long is stuck: even a large checkpoint writes to the log meanwhile.
const STALLED_AFTER: Duration = Duration::from_mins(3);
/// How often a server that answers is asked how far it is: what waits for the answer is the whole recovery.
const WATCHED: Duration = Duration::from_millis(50);
/// How often people are told.
const TOLD: Duration = Duration::from_millis(250);
/// How long a server may take to stop after a failure or an interruption.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// A server that waits where it should.
pub(super) struct Paused {
    pub(super) client: Client,
    pub(super) isolation: Isolation,
    pub(super) log: ServerLog,
    /// Every request for WAL, if this process has served them all.
    pub(super) requests: Option<Vec<Request>>,
    /// Opened before the server wrote anything, if this process has started it.
    pub(super) disk: Arc<Disk>,
}

/// Where a pass goes to.
pub(super) struct Course {
    pub(super) goal: Goal,
    /// The last segment of the archive, if an earlier pass has found that the log does not fill it.
    pub(super) ends_within: Option<String>,
}

/// How a pass came to its end.
pub(super) enum Outcome {
    Paused(Box<Paused>),
    /// All WAL was replayed before the goal came; this is the last record.
    WalEnded {
        last: Option<Lsn>,
        log: ServerLog,
        /// The last segment of the archive, if the log does not fill it.
        within: Option<String>,
    },
}

/// Starts the server towards a goal and watches it until it waits there or ends.
pub(super) async fn run(
    ctx: &StepContext,
    source: &Source<'_>,
    course: Course,
) -> Result<Outcome, StepError> {
    // What is left of an earlier server may still write into the log.
    server::alone(ctx, &source.data_dir).await?;
    let log = ServerLog::next(&ctx.work_dir()?.join("postgres.log"));
    let isolation = describe(ctx, source, course, &log);
    check_room(&isolation, source.surviving.bytes(&source.wal))?;
    let disk = Arc::new(unsynced::disk_of(&source.data_dir)?);
    bring_surviving(source).await?;
    request_recovery(&source.data_dir, source.owner.as_ref())?;
    let writes = unsynced::begin(&source.data_dir, source.owner.as_ref())?;
    isolation.prepare(ctx, source.postgres, (writes, source.owner.as_ref())).await?;
    let helper = serve_wal(source, &isolation).await?;
    let mut settings = isolation.settings(source.postgres, source.tools.version.major, &source.control);
    settings.extend(isolation.recovery_settings(helper.restore_command(&isolation.client())));
    let launched = server::launch(
        ctx,
        &Launch {
            resource: &isolation.resource,
            tools: &source.tools,
            owner: source.owner.as_ref(),
            data_dir: &source.data_dir,
            settings: &settings,
            log_file: &log.path,
        },
    )
    .await?;
    let flushing = (writes == Writes::Deferred).then(|| Flushing::start(&source.data_dir));
    let watch =
        Watch { ctx, source, isolation: &isolation, log: &log, helper: &helper, told: Mutex::default() };
    let ended = watch.until_end(&launched.identity).await;
    if !matches!(ended, Ok(Seen::Paused(_))) {
        server::stop(&launched.identity, STOP_PATIENCE).await?;
    }
    match ended? {
        Seen::Paused(client) => {
            let requests = Some(helper.shutdown());
            Ok(Outcome::Paused(Box::new(Paused { client: *client, isolation, log, requests, disk })))
        }
        Seen::WalEnded { within } => {
            // The next pass opens the disk anew.
            let end = move || {
                if let Some(flushing) = flushing {
                    flushing.end();
                }
                Ok(())
            };
            blocking(end).await?;
            Ok(Outcome::WalEnded { last: last_record(&log), log, within })
        }
    }
}

fn describe(ctx: &StepContext, source: &Source<'_>, course: Course, log: &ServerLog) -> Isolation {
    Isolation {
        run: ctx.info.run.to_string(),
        resource: source.params.cluster.clone(),
        data_dir: source.data_dir.clone(),
        port: source.postgres.port,
        store: source.params.store.clone(),
        backup: source.wal.backup.clone(),
        system_id: source.wal.system_id,
        segment_size: source.wal.size,
        log_file: log.path.clone(),
        log_start: log.start,
        goal: course.goal,
        target: source.target.clone(),
        timeline: source.wal.timeline_setting(),
        waits_at: None,
        ends_within: course.ends_within,
    }
}

/// WAL is read ahead beside the data directory and stays in it until the next restart point. How much the data
/// themselves grow is known to nobody.
fn check_room(isolation: &Isolation, surviving: u64) -> Result<(), StepError> {
    let needed =
        surviving + isolation.least_wal() + READ_AHEAD.min(MOST_AHEAD * isolation.segment_size.bytes());
    let free = isolation.free_for_wal().unwrap_or(u64::MAX);
    if free >= needed {
        return Ok(());
    }
    let place = isolation.data_dir.display();
    Err(StepError::transient(
        codes::LB1254,
        format!("replaying WAL in {place} needs {needed} bytes to begin with, and {free} are free"),
    )
    .help("make room (`df -h`), then try again; no server was started"))
}

/// Copies what the lost server had not archived. While the server that recovers is down, nobody else writes there.
async fn bring_surviving(source: &Source<'_>) -> Result<(), StepError> {
    let (surviving, wal) = (source.surviving.clone(), source.wal.clone());
    let (data_dir, owner) = (source.data_dir.clone(), source.owner.clone());
    blocking(move || surviving.place(&wal, (&data_dir, owner.as_ref()))).await
}

/// Asks for archive recovery; with `standby.signal` the server would never end it.
pub(in super::super) fn request_recovery(data_dir: &Path, owner: Option<&OsUser>) -> Result<(), StepError> {
    let signal = data_dir.join("recovery.signal");
    let failed = |error: std::io::Error| {
        StepError::permanent(codes::LB1260, format!("{} cannot be written: {error}", signal.display()))
            .help("check the rights on the data directory and the room on its disk (`df -h`), then try again")
    };
    match std::fs::remove_file(data_dir.join("standby.signal")) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let file = std::fs::OpenOptions::new().write(true).create(true).truncate(false).open(&signal);
    let file = file.map_err(failed)?;
    if let Some(owner) = owner {
        std::os::unix::fs::fchown(&file, Some(owner.uid), Some(owner.gid)).map_err(failed)?;
    }
    file.sync_all().map_err(failed)
}

async fn serve_wal(source: &Source<'_>, isolation: &Isolation) -> Result<WalServer, StepError> {
    let wal = WalSource {
        store: source.wal.store.clone(),
        system_id: source.wal.system_id,
        segment_size: source.wal.size,
        backup: source.wal.backup.clone(),
        proven: Some(source.wal.continuity.clone()),
        first: first_segment(source),
        socket: isolation.wal_socket(),
        owner: source.owner.as_ref().map(|owner| (owner.uid, owner.gid)),
    };
    WalServer::listen(blocking(move || wal.prove()).await?)
}

/// A directory that was restored and never started asks for the log of its backup; any other one tells only when it
/// asks.
fn first_segment(source: &Source<'_>) -> Option<Segment> {
    let fresh = source.data_dir.join("backup_label").exists();
    fresh.then(|| Segment::at(source.wal.details.timeline, source.wal.start(), source.wal.size))
}

/// Returns where the last record that was replayed begins, from `redo done at 0/5000110 system usage: …`.
fn last_record(log: &ServerLog) -> Option<Lsn> {
    let line = log.last_with("redo done at ")?;
    line.split_once("redo done at ")?.1.split_whitespace().next()?.parse().ok()
}

enum Seen {
    Paused(Box<Client>),
    WalEnded { within: Option<String> },
}

/// What changes while a recovery gets on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Position {
    replayed: Option<Lsn>,
    requests: usize,
    log: u64,
}

struct Watch<'a> {
    ctx: &'a StepContext,
    source: &'a Source<'a>,
    isolation: &'a Isolation,
    log: &'a ServerLog,
    helper: &'a WalServer,
    told: Mutex<Option<Instant>>,
}

impl Watch<'_> {
    async fn until_end(&self, server: &Identity) -> Result<Seen, StepError> {
        let login = Login::isolated(self.ctx, self.source.postgres, self.isolation)?;
        let expected = Expected { server, data_dir: &self.source.data_dir, log: self.log };
        let mut client: Option<Client> = None;
        let (mut position, mut changed) = (Position::default(), Instant::now());
        let pace = Pace::start();
        loop {
            if self.ctx.cancel.is_cancelled() {
                return Err(PgError::Cancelled.into());
            }
            let replay = match &client {
                Some(client) => Some(replay_state(client).await),
                None => None,
            };
            let mut now = Position {
                replayed: position.replayed,
                requests: self.helper.served().requests,
                log: self.log.len(),
            };
            match replay {
                Some(Ok(replay)) if replay.paused => {
                    return Ok(Seen::Paused(Box::new(client.expect("it answered"))));
                }
                Some(Ok(replay)) if !replay.in_recovery => return Err(self.opened_early()),
                Some(Ok(replay)) => {
                    now.replayed = replay.lsn;
                    self.report(&replay);
                }
                Some(Err(_)) => client = None,
                None => client = self.try_connect(&login, &expected).await?,
            }
            if !server.is_alive() {
                return self.ended_by_itself();
            }
            if now != position {
                (position, changed) = (now, Instant::now());
            } else if changed.elapsed() > STALLED_AFTER {
                return Err(self.stalled(&position));
            }
            let pause = if client.is_some() { WATCHED } else { pace.pause() };
            tokio::time::sleep(pause).await;
        }
    }

    async fn try_connect(&self, login: &Login, expected: &Expected<'_>) -> Result<Option<Client>, StepError> {
        match login.connect().await {
            Ok(client) => match server::check_identity(&client, expected.data_dir).await {
                Ok(()) => Ok(Some(client)),
                // It ends, or has no time: the next question shows which.
                Err(error) if error.code != codes::LB1261 => Ok(None),
                Err(error) => Err(error),
            },
            Err(error) if error.may_pass() => {
                self.report(&Replay::default());
                Ok(None)
            }
            // A server that ends closes its connections in many ways; its log tells why.
            Err(_) if !expected.server.is_alive() => Ok(None),
            Err(PgError::Database(db)) if db.sqlstate.starts_with("57") => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn report(&self, replay: &Replay) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_some_and(|at| at.elapsed() < TOLD) {
            return;
        }
        *told = Some(Instant::now());
        drop(told);
        let start = self.source.wal.start();
        let served = self.helper.served();
        let fetched = served.delivered;
        let note = match (replay.lsn, &replay.last_commit) {
            (Some(lsn), Some(commit)) => format!("replayed to {lsn}, last commit {commit}"),
            (Some(lsn), None) => format!("replayed to {lsn}"),
            (None, _) => format!("{fetched} WAL files fetched"),
        };
        let done = match replay.lsn {
            Some(lsn) => lsn.0.saturating_sub(start.0),
            None => served.bytes,
        };
        self.ctx.progress(Progress { done, total: None, unit: Unit::Bytes, note });
    }

    /// The server has ended: at the end of the WAL, which may be as expected, or because of a fault.
    fn ended_by_itself(&self) -> Result<Seen, StepError> {
        const UNREACHED: &str = "recovery ended before configured recovery target was reached";
        const TOO_EARLY: &str = "requested recovery stop point is before consistent recovery point";
        if let Some(failed) = self.failed_request() {
            return Err(failed);
        }
        if self.log.last_with(TOO_EARLY).is_some() {
            return Err(self.failure(codes::LB1269, "the target is before the end of the backup").help(
                "restore an older backup: `postgres.select_backup` with this target finds the one that fits",
            ));
        }
        if self.log.last_with(UNREACHED).is_none() {
            let lines = self.log.fatal();
            let why = lines.iter().find_map(|line| message_of(line)).unwrap_or("it gave no reason");
            return Err(self.failure(codes::LB1267, &format!("Postgres gave up the recovery: {why}")));
        }
        let reached = self.reached();
        match (self.broken_off(reached), self.source.wal.first_gap()) {
            (Some(error), _) => Err(error),
            (None, Some(gap)) => Err(self.missing(gap)),
            (None, None) => Ok(Seen::WalEnded { within: self.last_of_archive(reached) }),
        }
    }

    /// Returns the last segment that the server wanted: it goes from one to the next, and stops where it cannot read on.
    fn reached(&self) -> Option<Segment> {
        let requests = self.helper.requests();
        let segments = requests.iter().filter_map(|it| Segment::parse(&it.name, self.source.wal.size).ok());
        segments.max_by_key(|segment| segment.number)
    }

    /// To Postgres a record that makes no sense is the end of the log, wherever it is.
    fn broken_off(&self, reached: Option<Segment>) -> Option<StepError> {
        let (reached, end) = (reached?, self.source.surviving.archived_end?);
        if reached.number >= end.number {
            return None;
        }
        let name = |segment: Segment| segment.name(self.source.wal.size);
        let message = format!(
            "the log cannot be read beyond the WAL segment {}: it is damaged, although the archive goes on to {}",
            name(reached),
            name(end)
        );
        let mut error = self.failure(codes::LB1880, &message).help(format!(
            "bring {} back from another copy of the store or from pg_wal of the source, then try again; or start a new \
             run with a target before it, or from a backup after it; what Postgres says is in {}",
            name(reached),
            self.log.path.display()
        ));
        error.causes = self.log.tail(10);
        Some(error)
    }

    /// Returns the name of the last segment of the archive if the log ends within it, as it does after a crash of the
    /// source, and if it is damaged. Otherwise the server would have asked for the one that follows.
    fn last_of_archive(&self, reached: Option<Segment>) -> Option<String> {
        let (reached, end) = (reached?, self.source.surviving.archived_end?);
        (reached.number == end.number).then(|| end.name(self.source.wal.size))
    }

    /// A request that the helper could not answer is the cause of the end, not its effect.
    fn failed_request(&self) -> Option<StepError> {
        let requests = self.helper.requests();
        let last = requests.last()?;
        let Answered::Failed(why) = &last.answer else { return None };
        Some(
            StepError::transient(
                codes::LB1266,
                format!("the WAL file {} could not be delivered to the recovery: {why}", last.name),
            )
            .help("mend the store, then try again: the recovery goes on from where it was"),
        )
    }

    fn missing(&self, segment: &str) -> StepError {
        let wal = &self.source.wal;
        let more = match wal.continuity.missing_count {
            0 | 1 => String::new(),
            count => format!(" ({count} are missing in all)"),
        };
        self.failure(
            codes::LB1266,
            &format!(
                "the WAL segment {segment} is missing from the archive{more}, and the target is beyond it; later \
                 segments are there"
            ),
        )
        .help(
            "find the segment in a copy of the store and put it back with `lifeboat wal put`, then try again; or start a \
             new run with the source's directory as `surviving_wal`, with a target before it, or from a backup after it",
        )
    }

    fn stalled(&self, position: &Position) -> StepError {
        let at = position.replayed.map_or_else(|| "the start".to_owned(), |lsn| lsn.to_string());
        let message = format!(
            "the recovery has made no progress for {} at {at}",
            humantime::format_duration(STALLED_AFTER)
        );
        let mut error = StepError::transient(codes::LB1268, message)
            .help(format!("its log is {}; the recovery can be tried again", self.log.path.display()));
        error.causes = self.log.tail(10);
        error
    }

    fn opened_early(&self) -> StepError {
        self.failure(codes::LB1270, "the server opened for writing instead of waiting at the target")
    }

    fn failure(&self, code: lifeboat_engine::code::Code, message: &str) -> StepError {
        let mut error =
            StepError::permanent(code, message).help(format!("its log is {}", self.log.path.display()));
        error.causes = self.log.fatal();
        error
    }
}

/// How far a server in recovery is.
#[derive(Clone, Debug, Default)]
pub(in super::super) struct Replay {
    pub(in super::super) in_recovery: bool,
    pub(in super::super) paused: bool,
    pub(in super::super) lsn: Option<Lsn>,
    /// UTC, RFC 3339. `None` if no transaction was replayed.
    pub(in super::super) last_commit: Option<String>,
}

/// Asks a server how far it is.
pub(in super::super) async fn replay_state(client: &Client) -> Result<Replay, PgError> {
    // The function that tells apart "asked to pause" and "paused" came with Postgres 14.
    const PAUSED: &str = "pg_get_wal_replay_pause_state() = 'paused'";
    const PAUSED_13: &str = "pg_is_wal_replay_paused()";
    let version = client.query_one("select current_setting('server_version_num')::int", &[], QUICK).await?;
    let paused = if version.get::<_, i32>(0) >= 140_000 { PAUSED } else { PAUSED_13 };
    let sql = format!(
        "select pg_is_in_recovery(), case when pg_is_in_recovery() then {paused} else false end, \
         coalesce(pg_last_wal_replay_lsn()::text, ''), \
         to_char(pg_last_xact_replay_timestamp() at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')"
    );
    let row = client.query_one(&sql, &[], QUICK).await?;
    let lsn: String = row.get(2);
    Ok(Replay { in_recovery: row.get(0), paused: row.get(1), lsn: lsn.parse().ok(), last_commit: row.get(3) })
}
