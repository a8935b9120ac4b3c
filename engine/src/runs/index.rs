//! The table of all runs: derived from their journals, never trusted more than them.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::Connection;
use serde::{Deserialize, Serialize};

use super::error::Error;
use super::run_dir::RunDir;
use super::state_dir::StateDir;
use crate::journal::{self, Header, Reader};
use crate::model::{Event, EventKind, Mode, Outcome, RunId, RunOutcome, StepId};
use crate::plan::Plan;

/// Another number means another form: the index is thrown away and built anew.
const VERSION: i64 = 1;

const SCHEMA: &str = "
CREATE TABLE runs (
    run            TEXT PRIMARY KEY,
    runbook        TEXT NOT NULL,
    environment    TEXT NOT NULL,
    mode           TEXT NOT NULL,
    outcome        TEXT,
    declared_ms    INTEGER NOT NULL,
    summary        TEXT NOT NULL
) STRICT, WITHOUT ROWID;
";

/// How long another process may keep the index for itself before this one does without.
const BUSY: Duration = Duration::from_secs(3);

/// One run in a list of many.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunSummary {
    pub run: RunId,
    pub runbook: String,
    pub environment: String,
    pub mode: Mode,
    /// `None` as long as the run is open.
    pub outcome: Option<RunOutcome>,
    /// Milliseconds since 1970 UTC, as all times here.
    pub declared_ms: i64,
    pub incident_at_ms: i64,
    pub ended_ms: Option<i64>,
    pub rto_ms: Option<u64>,
    /// From the incident to the end of the last `recovered` step; `None` unless all of them have succeeded.
    pub rto_used_ms: Option<i64>,
}

impl RunSummary {
    /// Derives the summary from a journal; `None` if the run was never declared.
    pub fn of(header: &Header, events: &[Event]) -> Option<Self> {
        let (declared_ms, incident_at_ms) = events.iter().find_map(|event| match event.kind {
            EventKind::RunDeclared { incident_at_ms, .. } => Some((event.at_ms, incident_at_ms)),
            _ => None,
        })?;
        let end = events.iter().rev().find_map(|event| match event.kind {
            EventKind::RunFinished { outcome } => Some((outcome, event.at_ms)),
            _ => None,
        });
        let plan = &header.plan;
        Some(Self {
            run: header.run,
            runbook: plan.runbook.clone(),
            environment: plan.environment.clone(),
            mode: plan.mode,
            outcome: end.map(|(outcome, _)| outcome),
            declared_ms,
            incident_at_ms,
            ended_ms: end.map(|(_, at_ms)| at_ms),
            rto_ms: plan.objective.rto.map(|span| u64::try_from(span.0.as_millis()).unwrap_or(u64::MAX)),
            rto_used_ms: recovered_at(plan, events).map(|at_ms| at_ms - incident_at_ms),
        })
    }
}

/// When the last `recovered` step succeeded, if all of them have. A skipped one is no recovery.
fn recovered_at(plan: &Plan, events: &[Event]) -> Option<i64> {
    let steps =
        plan.steps.iter().filter(|step| step.recovered || in_recovered_group(plan, step.group.as_ref()));
    let ends = steps.map(|step| {
        events.iter().rev().find_map(|event| match &event.kind {
            EventKind::StepFinished {
                step: id,
                outcome: Outcome::Succeeded | Outcome::MarkedDone { .. },
            } if *id == step.id => Some(event.at_ms),
            _ => None,
        })
    });
    ends.collect::<Option<Vec<_>>>()?.into_iter().max()
}

fn in_recovered_group(plan: &Plan, group: Option<&StepId>) -> bool {
    let mut next = group;
    while let Some(group) = next.and_then(|id| plan.groups.iter().find(|group| group.id == *id)) {
        if group.recovered {
            return true;
        }
        next = group.parent.as_ref();
    }
    false
}

/// Which runs to list.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    pub runbook: Option<String>,
    pub environment: Option<String>,
    pub mode: Option<Mode>,
    pub standing: Option<Standing>,
}

/// Whether a run has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Open,
    Ended,
}

/// The table, as fresh as the journals were when it was opened.
#[derive(Debug)]
pub struct Index {
    path: PathBuf,
    conn: Connection,
    unreadable: Vec<(RunId, journal::Error)>,
}

impl Index {
    /// Opens the index and brings it up to date; one that is missing or damaged is silently built anew.
    ///
    /// Where it cannot be written, as on a full disk, or another process is building it, this process makes one for itself
    /// in memory: it takes longer and tells the same.
    pub fn open(state: &StateDir) -> Result<Self, Error> {
        let path = path(state);
        let opened = match Self::connect(&path).and_then(|index| index.refreshed(state)) {
            Err(Error::Index { source, .. }) if is_damaged(&source) => Self::rebuild(state),
            other => other,
        };
        match opened {
            Err(Error::Index { source, .. }) => {
                tracing::warn!("the index of runs cannot be used ({source}): all journals are read instead");
                Self::in_memory(path)?.refreshed(state)
            }
            other => other,
        }
    }

    fn in_memory(path: PathBuf) -> Result<Self, Error> {
        let open = || {
            let conn = Connection::open_in_memory()?;
            conn.execute_batch(SCHEMA)?;
            Ok(conn)
        };
        match open() {
            Ok(conn) => Ok(Self { path, conn, unreadable: Vec::new() }),
            Err(source) => Err(Error::Index { path, source }),
        }
    }

    /// Builds the index anew from all journals.
    pub fn rebuild(state: &StateDir) -> Result<Self, Error> {
        let path = path(state);
        for suffix in ["", "-journal", "-wal", "-shm"] {
            let mut name = path.clone().into_os_string();
            name.push(suffix);
            match fs::remove_file(&name) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::io("remove", Path::new(&name))(error));
                }
                _ => {}
            }
        }
        Self::connect(&path)?.refreshed(state)
    }

    /// Stores what is known of a run now.
    pub fn update(&self, summary: &RunSummary) -> Result<(), Error> {
        self.store(summary).map_err(self.failed())
    }

    /// Returns at most `limit` runs, newest first.
    pub fn list(&self, filter: &Filter, limit: usize) -> Result<Vec<RunSummary>, Error> {
        self.select(filter, limit).map_err(self.failed())
    }

    /// Returns the runs that are not listed because their journals cannot be read.
    pub fn unreadable(&self) -> &[(RunId, journal::Error)] {
        &self.unreadable
    }

    fn connect(path: &Path) -> Result<Self, Error> {
        let open = || -> rusqlite::Result<Connection> {
            let is_new = !path.exists();
            let mut conn = Connection::open(path)?;
            if is_new {
                // If it cannot be shared, others build their own view when they are refused; nothing is lost.
                drop(super::durable::share(path));
            }
            conn.busy_timeout(BUSY)?;
            // It can be built anew at any time, so nothing waits for the disk.
            conn.execute_batch("PRAGMA synchronous = OFF")?;
            let found: i64 = conn.query_row("PRAGMA user_version", [], |row| row.get(0))?;
            if found == VERSION {
                return Ok(conn);
            }
            let tx = conn.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
            let version: i64 = tx.query_row("PRAGMA user_version", [], |row| row.get(0))?;
            if version == 0 {
                tx.execute_batch(SCHEMA)?;
                tx.pragma_update(None, "user_version", VERSION)?;
            } else if version != VERSION {
                return Err(rusqlite::Error::InvalidQuery);
            }
            tx.commit()?;
            Ok(conn)
        };
        let conn = open().map_err(|source| Error::Index { path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned(), conn, unreadable: Vec::new() })
    }

    /// Reads the journals of all runs that are new or were open, and forgets runs that are gone.
    fn refreshed(mut self, state: &StateDir) -> Result<Self, Error> {
        let mut known = self.known().map_err(self.failed())?;
        let mut summaries = Vec::new();
        for run in state.runs()? {
            // What is left in `known` afterwards is gone.
            if known.remove(&run.id()) == Some(Standing::Ended) {
                continue;
            }
            match summarise(&run) {
                Ok(summary) => summaries.extend(summary),
                Err(error) => self.unreadable.push((run.id(), error)),
            }
        }
        if !summaries.is_empty() || !known.is_empty() {
            self.change(&summaries, known.keys()).map_err(self.failed())?;
        }
        Ok(self)
    }

    fn change<'r>(
        &self,
        summaries: &[RunSummary],
        gone: impl Iterator<Item = &'r RunId>,
    ) -> rusqlite::Result<()> {
        // Rolled back where it is not committed: it goes with the transaction.
        let tx = rusqlite::Transaction::new_unchecked(&self.conn, rusqlite::TransactionBehavior::Immediate)?;
        for summary in summaries {
            self.store(summary)?;
        }
        for run in gone {
            self.conn.execute("DELETE FROM runs WHERE run = ?1", [run.to_string()])?;
        }
        tx.commit()
    }

    fn known(&self) -> rusqlite::Result<HashMap<RunId, Standing>> {
        let mut statement = self.conn.prepare("SELECT run, outcome IS NOT NULL FROM runs")?;
        let rows = statement.query_map([], |row| {
            let run = row.get::<_, String>(0)?.parse().map_err(|_| rusqlite::Error::InvalidQuery)?;
            Ok((run, if row.get(1)? { Standing::Ended } else { Standing::Open }))
        })?;
        rows.collect()
    }

    fn store(&self, summary: &RunSummary) -> rusqlite::Result<()> {
        let text = serde_json::to_string(summary).expect("a summary is plain text and numbers");
        let (mode, outcome) = (word(&summary.mode), summary.outcome.as_ref().map(word));
        self.conn
            .prepare_cached("INSERT OR REPLACE INTO runs VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")?
            .execute((
                summary.run.to_string(),
                &summary.runbook,
                &summary.environment,
                mode,
                outcome,
                summary.declared_ms,
                text,
            ))
            .map(drop)
    }

    fn select(&self, filter: &Filter, limit: usize) -> rusqlite::Result<Vec<RunSummary>> {
        let mut statement = self.conn.prepare(
            "SELECT summary FROM runs
             WHERE (?1 IS NULL OR runbook = ?1) AND (?2 IS NULL OR environment = ?2)
               AND (?3 IS NULL OR mode = ?3) AND (?4 IS NULL OR (outcome IS NULL) = ?4)
             ORDER BY run DESC LIMIT ?5",
        )?;
        let open = filter.standing.map(|standing| standing == Standing::Open);
        let mode = filter.mode.as_ref().map(word);
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = statement.query_map((&filter.runbook, &filter.environment, mode, open, limit), |row| {
            row.get::<_, String>(0)
        })?;
        rows.map(|row| serde_json::from_str(&row?).map_err(|_| rusqlite::Error::InvalidQuery)).collect()
    }

    fn failed(&self) -> impl Fn(rusqlite::Error) -> Error + use<> {
        let path = self.path.clone();
        move |source| Error::Index { path: path.clone(), source }
    }
}

/// Says whether what is there is no index of this version. One that cannot be reached or written at this moment is not
/// damaged, and another process that is building it must not lose it to this one.
fn is_damaged(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{
        CannotOpen, DatabaseBusy, DatabaseLocked, DiskFull, PermissionDenied, ReadOnly, SystemIoFailure,
    };
    let at_the_moment =
        [CannotOpen, DatabaseBusy, DatabaseLocked, DiskFull, PermissionDenied, ReadOnly, SystemIoFailure];
    error.sqlite_error_code().is_none_or(|code| !at_the_moment.contains(&code))
}

fn path(state: &StateDir) -> PathBuf {
    state.path().join("index.db")
}

fn summarise(run: &RunDir) -> Result<Option<RunSummary>, journal::Error> {
    let reader = match Reader::open(run.path()) {
        Err(journal::Error::Missing { .. }) => return Ok(None),
        other => other?,
    };
    Ok(RunSummary::of(reader.header(), &reader.essential()?))
}

/// The word that a value is stored as elsewhere too.
fn word(value: &impl Serialize) -> String {
    let value = serde_json::to_value(value).expect("a word is plain text");
    value.as_str().expect("a fieldless variant is a word").to_owned()
}

#[cfg(test)]
mod tests;
