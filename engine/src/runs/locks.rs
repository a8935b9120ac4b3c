//! Locks on the systems that runs write to.
//!
//! Each identity has two files, named after its hash: `.lock`, on which the process of the run holds a lock as long
//! as it lives, and `.json`, which names the run and outlives the process. An open run keeps its locks while nobody
//! executes it: it may have left a system half restored.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::durable;
use super::error::Error;
use super::owner::{elapsed, try_exclusive};
use super::state_dir::StateDir;
use crate::clock::Clock;
use crate::crash::{self, Point};
use crate::fence::names_overlap;
use crate::model::RunId;
use crate::plan::hex;

/// How long to wait for another run that is taking its locks and may be refused.
const PATIENCE: Duration = Duration::from_millis(500);

/// How long to wait until others have taken theirs.
const TURN: Duration = Duration::from_secs(20);

/// What a run wants to have for itself.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub run: RunId,
    /// `restore@production`; locked as well.
    pub by: String,
    /// What it writes to, as resolved: `postgres db1:5432`, `directory /var/www/uploads`, …
    pub identities: BTreeSet<String>,
}

/// What the holder of a lock is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HolderState {
    /// A process executes the run.
    Running,
    /// The run has not ended and nobody executes it: it is held, waits, or its process is gone.
    Stopped,
    /// Its journal cannot be read, so nobody knows.
    Unreadable {
        /// The file that remembers the lock.
        record: PathBuf,
    },
}

impl fmt::Display for HolderState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Running => "running",
            Self::Stopped => "open although no process executes it now",
            Self::Unreadable { .. } => "in an unknown state since its journal cannot be read",
        })
    }
}

/// All locks of a run, held by this process.
///
/// Dropping them without [`ResourceLocks::release`] lets others see that nobody executes the run, and still keeps
/// them out.
#[derive(Debug)]
#[must_use = "the locks are only held as long as this lives"]
pub struct ResourceLocks {
    dir: PathBuf,
    held: Vec<Held>,
}

#[derive(Debug)]
struct Held {
    identity: String,
    record: PathBuf,
    _file: File,
}

/// What the `.json` file says.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    run: RunId,
    by: String,
    identity: String,
    since_ms: i64,
}

impl ResourceLocks {
    /// Takes all that the run wants, or nothing; to be called before its first step and again on resume.
    ///
    /// What an ended run left behind is taken over silently.
    pub fn acquire(state: &StateDir, wanted: &Wanted, clock: &dyn Clock) -> Result<Self, Error> {
        let dir = state.locks_dir();
        let _turn = turn(&dir)?;
        let mut identities = wanted.identities.clone();
        identities.insert(wanted.by.clone());
        refuse_overlapping(state, &identities, wanted.run, clock)?;
        // In the order of the set, so that two runs that want the same never wait for each other.
        let held = identities
            .into_iter()
            .map(|identity| lock(&dir, identity, clock))
            .collect::<Result<Vec<_>, _>>()?;
        for held in &held {
            refuse_if_remembered(state, held, wanted.run, clock)?;
        }
        let fresh =
            !held.iter().any(|held| matches!(read(&held.record), Ok(Some(own)) if own.run == wanted.run));
        crash::point(Point::LocksTaken);
        let locks = Self { dir, held };
        if let Err(error) = locks.write_down(wanted, clock) {
            // A run that was to begin never will; one that is resumed keeps what it had.
            if fresh {
                drop(locks.release());
            }
            return Err(error);
        }
        Ok(locks)
    }

    fn write_down(&self, wanted: &Wanted, clock: &dyn Clock) -> Result<(), Error> {
        for Held { identity, record, .. } in &self.held {
            let (by, identity) = (wanted.by.clone(), identity.clone());
            let content =
                Record { run: wanted.run, by, identity, since_ms: since(record, wanted.run, clock) };
            let text = serde_json::to_vec_pretty(&content).expect("a record is plain text and numbers");
            durable::replace(record, &text)?;
            crash::point(Point::LockRemembered);
        }
        Ok(())
    }

    /// Gives all locks back since the run has ended.
    pub fn release(self) -> Result<(), Error> {
        for held in &self.held {
            match fs::remove_file(&held.record) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::io("remove", &held.record)(error));
                }
                _ => {}
            }
            crash::point(Point::LockForgotten);
        }
        durable::sync_dir(&self.dir)
    }
}

/// Lets one process at a time take locks: two runs may want places within each other, which have different names.
fn turn(dir: &Path) -> Result<File, Error> {
    let path = dir.join(".turn");
    let file = durable::lock_file(&path)?;
    let deadline = Instant::now() + TURN;
    while !try_exclusive(&file).map_err(Error::io("lock", &path))? {
        if Instant::now() >= deadline {
            return Err(Error::LockBusy { what: format!("`{}`", dir.display()) });
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(file)
}

/// Refuses a place that lies within one that another open run has, or around it.
fn refuse_overlapping(
    state: &StateDir,
    identities: &BTreeSet<String>,
    run: RunId,
    clock: &dyn Clock,
) -> Result<(), Error> {
    let dir = state.locks_dir();
    for entry in fs::read_dir(&dir).map_err(Error::io("read", &dir))? {
        let path = entry.map_err(Error::io("read", &dir))?.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        // Whom a broken record names is told where its own place is wanted.
        let Ok(Some(holder)) = read(&path) else { continue };
        let mut mine = identities.iter().filter(|mine| **mine != holder.identity);
        let Some(mine) = mine.find(|mine| names_overlap(mine, &holder.identity)) else { continue };
        if holder.run == run {
            continue;
        }
        if let Some(standing) = standing(state, &holder, &path)? {
            let holder =
                Record { identity: format!("{} (which {mine} overlaps)", holder.identity), ..holder };
            return Err(refused(&holder, standing, clock));
        }
    }
    Ok(())
}

/// Says what the run is doing that a record names; nothing if it has ended or never was.
fn standing(state: &StateDir, holder: &Record, record: &Path) -> Result<Option<HolderState>, Error> {
    let lock = record.with_extension("lock");
    let file = durable::lock_file(&lock)?;
    if !try_exclusive(&file).map_err(Error::io("lock", &lock))? {
        return Ok(Some(HolderState::Running));
    }
    let Some(dir) = state.existing(holder.run) else { return Ok(None) };
    Ok(match dir.is_open() {
        Ok(false) => None,
        Ok(true) if dir.owner()?.is_some() => Some(HolderState::Running),
        Ok(true) => Some(HolderState::Stopped),
        Err(_) => Some(HolderState::Unreadable { record: record.to_owned() }),
    })
}

fn lock(dir: &Path, identity: String, clock: &dyn Clock) -> Result<Held, Error> {
    let name = hex(&Sha256::digest(&identity)[..16]);
    let (path, record) = (dir.join(format!("{name}.lock")), dir.join(format!("{name}.json")));
    let file = durable::lock_file(&path)?;
    let deadline = Instant::now() + PATIENCE;
    while !try_exclusive(&file).map_err(Error::io("lock", &path))? {
        if Instant::now() >= deadline {
            return Err(match read(&record)? {
                Some(holder) => refused(&holder, HolderState::Running, clock),
                None => Error::LockBusy { what: identity },
            });
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(Held { identity, record, _file: file })
}

/// Refuses what an open run that nobody executes still holds.
fn refuse_if_remembered(state: &StateDir, held: &Held, run: RunId, clock: &dyn Clock) -> Result<(), Error> {
    let Some(holder) = read(&held.record)? else { return Ok(()) };
    if holder.run == run {
        return Ok(());
    }
    let Some(dir) = state.existing(holder.run) else { return Ok(()) };
    match dir.is_open() {
        Ok(false) => Ok(()),
        Ok(true) if dir.owner()?.is_some() => Err(refused(&holder, HolderState::Running, clock)),
        Ok(true) => Err(refused(&holder, HolderState::Stopped, clock)),
        Err(_) => Err(refused(&holder, HolderState::Unreadable { record: held.record.clone() }, clock)),
    }
}

fn refused(holder: &Record, state: HolderState, clock: &dyn Clock) -> Error {
    Error::Locked {
        what: holder.identity.clone(),
        run: holder.run,
        by: holder.by.clone(),
        state,
        age: Some(elapsed(clock, holder.since_ms)),
    }
}

/// Since when the run has had the lock: on resume, since it took it first.
fn since(record: &Path, run: RunId, clock: &dyn Clock) -> i64 {
    match read(record) {
        Ok(Some(own)) if own.run == run => own.since_ms,
        _ => clock.now_ms(),
    }
}

fn read(record: &Path) -> Result<Option<Record>, Error> {
    let text = match fs::read(record) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("read", record)(error)),
    };
    // It is replaced as a whole, so this is no half-written one: nobody knows whom it names.
    serde_json::from_slice(&text).map(Some).map_err(|_| Error::LockUnreadable { path: record.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::test_support::{TickClock, declared, finished, header};
    use crate::journal::{FILE, Header, Journal};
    use crate::model::RunOutcome;
    use crate::runs::{RunDir, SystemProbe};

    fn state() -> (tempfile::TempDir, StateDir) {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(&dir.path().join("state"), &SystemProbe).unwrap();
        (dir, state)
    }

    async fn declare(state: &StateDir) -> (RunDir, Journal) {
        let run = RunId::generate();
        let dir = state.create_run(run).unwrap();
        let journal =
            Journal::create(dir.path(), Header { run, ..header() }, TickClock::starting_at(0)).unwrap();
        journal.append(vec![declared()]).await.unwrap();
        (dir, journal)
    }

    fn wanted(run: &RunDir, by: &str, identities: &[&str]) -> Wanted {
        let identities = identities.iter().map(|&identity| identity.to_owned()).collect();
        Wanted { run: run.id(), by: by.to_owned(), identities }
    }

    fn acquire(state: &StateDir, wanted: &Wanted) -> Result<ResourceLocks, Error> {
        ResourceLocks::acquire(state, wanted, &*TickClock::starting_at(10_000))
    }

    fn records(state: &StateDir) -> usize {
        let entries = fs::read_dir(state.locks_dir()).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.extension().is_some_and(|e| e == "json")).count()
    }

    #[tokio::test]
    async fn two_runs_cannot_write_to_the_same_system() {
        let (_keep, state) = state();
        let ((first, _j1), (second, _j2)) = (declare(&state).await, declare(&state).await);
        let held = acquire(&state, &wanted(&first, "restore@staging", &["pg a", "pg b"])).unwrap();
        let error =
            acquire(&state, &wanted(&second, "drill@staging", &["pg 0", "pg b", "pg c"])).unwrap_err();
        let text = error.to_string();
        assert!(
            matches!(&error, Error::Locked { state: HolderState::Running, run, .. } if *run == first.id())
        );
        assert!(text.contains("pg b is locked by the run") && text.contains("restore@staging"), "{text}");
        assert!(error.help().contains(&format!("lifeboat abort {}", first.id().short())));
        assert_eq!(records(&state), 3, "the refused run left nothing");

        let error = acquire(&state, &wanted(&second, "restore@staging", &[])).unwrap_err();
        assert!(matches!(error, Error::Locked { .. }), "one runbook once in one environment: {error}");
        let other = acquire(&state, &wanted(&second, "drill@staging", &["pg 0", "pg c"])).unwrap();
        held.release().unwrap();
        drop(other);
    }

    #[tokio::test]
    async fn an_open_run_keeps_its_locks_without_a_process_and_an_ended_one_does_not() {
        let (_keep, state) = state();
        let ((first, journal), (second, _j2)) = (declare(&state).await, declare(&state).await);
        drop(acquire(&state, &wanted(&first, "restore@staging", &["pg a"])).unwrap());

        let want = wanted(&second, "drill@staging", &["pg a"]);
        let later = TickClock::starting_at(10_000 + 3_600_000);
        let error = ResourceLocks::acquire(&state, &want, &*later).unwrap_err();
        assert!(matches!(&error, Error::Locked { state: HolderState::Stopped, .. }), "{error}");
        assert!(error.to_string().ends_with("for 1h"), "{error}");
        assert!(
            error.help().contains(&format!("lifeboat resume {}", first.id().short())),
            "{}",
            error.help()
        );

        let again = acquire(&state, &wanted(&first, "restore@staging", &["pg a"])).unwrap();
        drop(again);
        journal.append(vec![finished(RunOutcome::Aborted)]).await.unwrap();
        acquire(&state, &want).unwrap().release().unwrap();
        assert_eq!(records(&state), 1, "only the record that nobody took over is left");
    }

    #[tokio::test]
    async fn places_within_each_other_are_one_system() {
        let (_keep, state) = state();
        let ((first, journal), (second, _j2)) = (declare(&state).await, declare(&state).await);
        let held = acquire(&state, &wanted(&first, "a@x", &["/var/www", "s3://b/a"])).unwrap();
        for (mine, running) in
            [("/var/www/uploads", true), ("/var", true), ("s3://b", true), ("/var/www2", false)]
        {
            let taken = acquire(&state, &wanted(&second, "b@x", &[mine]));
            match taken {
                Err(Error::Locked { what, state: HolderState::Running, run, .. }) if running => {
                    assert_eq!(run, first.id());
                    assert!(what.contains(mine) && what.contains("overlaps"), "{what}");
                }
                Ok(locks) if !running => locks.release().unwrap(),
                other => panic!("{mine}: {other:?}"),
            }
        }
        drop(held);
        let error = acquire(&state, &wanted(&second, "b@x", &["/var/www/uploads"])).unwrap_err();
        assert!(matches!(error, Error::Locked { state: HolderState::Stopped, .. }), "{error}");
        // Itself, it may take what it has.
        drop(acquire(&state, &wanted(&first, "a@x", &["/var/www", "/var/www/uploads"])).unwrap());
        journal.append(vec![finished(RunOutcome::Succeeded)]).await.unwrap();
        acquire(&state, &wanted(&second, "b@x", &["/var/www/uploads"])).unwrap().release().unwrap();
    }

    /// Snakemake #2919: a lock stayed for ever after the connection to its host was lost.
    #[tokio::test]
    async fn a_lock_from_a_host_that_is_gone_is_taken_over_with_its_run() {
        let (_keep, state) = state();
        let (run, _journal) = declare(&state).await;
        drop(acquire(&state, &wanted(&run, "restore@staging", &["pg a"])).unwrap());
        // The disk was attached to another machine; process 1 is always there, and another one than it was.
        let gone = r#"{"pid":1,"host":"gone","boot_id":"11111111-2222-3333-4444-555555555555","start_ticks":7,"since_ms":1}"#;
        fs::write(run.path().join("lock"), gone).unwrap();
        assert_eq!(run.owner().unwrap(), None, "what the file says is no lock");
        let lock = run.lock(&*TickClock::starting_at(0)).unwrap();
        assert_eq!(lock.this().pid, std::process::id());
        drop(acquire(&state, &wanted(&run, "restore@staging", &["pg a"])).unwrap());
    }

    #[tokio::test]
    async fn a_resumed_run_has_its_locks_since_it_first_took_them() {
        let (_keep, state) = state();
        let (run, _journal) = declare(&state).await;
        let want = wanted(&run, "restore@staging", &[]);
        let (early, late) = (TickClock::starting_at(1_000), TickClock::starting_at(9_000));
        drop(ResourceLocks::acquire(&state, &want, &*early).unwrap());
        let locks = ResourceLocks::acquire(&state, &want, &*late).unwrap();
        assert_eq!(read(&locks.held[0].record).unwrap().unwrap().since_ms, 1_000);
    }

    #[tokio::test]
    async fn what_cannot_be_read_keeps_others_out_and_what_is_gone_does_not() {
        let (_keep, state) = state();
        let ((first, journal), (second, _j2)) = (declare(&state).await, declare(&state).await);
        drop(journal);
        drop(acquire(&state, &wanted(&first, "restore@staging", &["pg a"])).unwrap());
        let want = wanted(&second, "drill@staging", &["pg a"]);

        for damaged in ["this is no journal at all, only some words in a file", ""] {
            fs::write(first.path().join(FILE), damaged).unwrap();
            let error = acquire(&state, &want).unwrap_err();
            assert!(matches!(&error, Error::Locked { state: HolderState::Unreadable { .. }, .. }), "{error}");
            assert!(error.help().contains(".json"), "{}", error.help());
        }

        fs::remove_dir_all(first.path()).unwrap();
        let locks = acquire(&state, &want).unwrap();
        let record = locks.held.last().unwrap().record.clone();
        drop(locks);
        fs::write(&record, "{").unwrap();
        assert!(matches!(acquire(&state, &want).unwrap_err(), Error::LockUnreadable { .. }));
    }
}
