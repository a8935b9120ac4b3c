use std::fs::{self, File};
use std::io::{Seek, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use super::durable;
use super::error::Error;
use super::run_dir::RunDir;
use super::survivors::Manner;
use crate::clock::Clock;
use crate::crash::{self, Point};
use crate::process::{AFTER_KILL, Identity, Stat, boot_id};

/// How long to wait for a lock that somebody is only looking at.
const PATIENCE: Duration = Duration::from_millis(500);

/// The process that owns a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    pub pid: u32,
    pub host: String,
    pub boot_id: String,
    /// The start of the process in clock ticks since boot, which tells it from a later one with the same number.
    pub start_ticks: u64,
    /// Since when, milliseconds since 1970 UTC.
    pub since_ms: i64,
}

impl Holder {
    /// Describes this process.
    pub fn this_process(clock: &dyn Clock) -> Self {
        let pid = std::process::id();
        Self {
            pid,
            host: host_name(),
            boot_id: boot_id(),
            start_ticks: Identity::of(pid).map_or(0, |identity| identity.start_ticks),
            since_ms: clock.now_ms(),
        }
    }
}

impl Holder {
    /// Says whether the process was stopped by a signal and does nothing until it gets another.
    fn stands_still(&self) -> bool {
        self.boot_id == boot_id() && Stat::read(self.pid).is_some_and(|stat| stat.is_stopped())
    }
}

fn host_name() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname").map(|name| name.trim().to_owned()).unwrap_or_default()
}

/// The right to write a run's journal; given back when dropped or when the process ends, however it ends.
#[derive(Debug)]
#[must_use = "the run is only owned as long as this lives"]
pub struct RunLock {
    holder: Holder,
    _file: File,
}

impl RunLock {
    pub(super) fn acquire(dir: &RunDir, clock: &dyn Clock) -> Result<Self, Error> {
        let path = dir.path().join("lock");
        let mut file = durable::lock_file(&path)?;
        let deadline = Instant::now() + PATIENCE;
        while !try_exclusive(&file).map_err(Error::io("lock", &path))? {
            if Instant::now() >= deadline {
                return Err(owned(dir, clock));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        crash::point(Point::OwnerLocked);
        let holder = Holder::this_process(clock);
        let text = serde_json::to_vec(&holder).expect("a holder is plain text and numbers");
        // Not replaced by renaming: the lock is on this very file.
        let write = |file: &mut File| -> std::io::Result<()> {
            file.set_len(0)?;
            file.rewind()?;
            file.write_all(&text)?;
            file.sync_all()
        };
        write(&mut file).map_err(Error::io("write", &path))?;
        Ok(Self { holder, _file: file })
    }

    /// Returns how this process is described to others.
    pub fn this(&self) -> &Holder {
        &self.holder
    }

    /// Ends the process that owns a run, orderly at first, and proves that it has let go of the lock.
    pub(super) fn take_from(dir: &RunDir, patience: Duration) -> Result<Option<Ousted>, Error> {
        let Some(holder) = Self::holder(dir)? else { return Ok(None) };
        let path = dir.path().join("lock");
        let file = durable::lock_file(&path)?;
        let (run, pid) = (dir.id(), holder.pid);
        let refuse = |why: String| Error::NotEnded { run, holder: holder.clone(), why };
        let process = Identity { pid, start_ticks: holder.start_ticks, boot_id: holder.boot_id.clone() };
        if !process.is_alive() {
            let why =
                "it cannot be seen from here: it runs in a container or under another kernel".to_owned();
            return Err(refuse(why));
        }
        let signal = |signal: Signal| match process.signal(signal.as_raw()) {
            Ok(_) => Ok(()),
            Err(error) => Err(refuse(error.to_string())),
        };
        // One that stands still would never see the first signal.
        signal(Signal::TERM)?;
        signal(Signal::CONT)?;
        if is_free_within(&file, &path, patience)? {
            return Ok(Some(Ousted { holder, manner: Manner::Terminated }));
        }
        signal(Signal::KILL)?;
        if is_free_within(&file, &path, AFTER_KILL)? {
            return Ok(Some(Ousted { holder, manner: Manner::Killed }));
        }
        Err(refuse("it was killed and is still there: it hangs in the kernel".to_owned()))
    }

    pub(super) fn holder(dir: &RunDir) -> Result<Option<Holder>, Error> {
        let path = dir.path().join("lock");
        let file = durable::lock_file(&path)?;
        match file.try_lock_shared() {
            Ok(()) => Ok(None),
            Err(fs::TryLockError::WouldBlock) => Ok(Some(read_holder(dir).unwrap_or_else(unknown))),
            Err(fs::TryLockError::Error(error)) => Err(Error::io("lock", &path)(error)),
        }
    }
}

/// A process that owned a run until another took it over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ousted {
    pub holder: Holder,
    pub manner: Manner,
}

impl std::fmt::Display for Ousted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let how = match self.manner {
            Manner::Terminated => "ended",
            Manner::Killed => "killed",
        };
        write!(f, "process {} on {} was {how}", self.holder.pid, self.holder.host)
    }
}

fn is_free_within(file: &File, path: &Path, patience: Duration) -> Result<bool, Error> {
    let deadline = Instant::now() + patience;
    loop {
        if try_exclusive(file).map_err(Error::io("lock", path))? {
            // Given back when it is closed; whoever asked takes it anew.
            file.unlock().map_err(Error::io("unlock", path))?;
            return Ok(true);
        }
        if Instant::now() >= deadline {
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Takes an exclusive lock if nobody holds one.
pub(super) fn try_exclusive(file: &File) -> std::io::Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(fs::TryLockError::WouldBlock) => Ok(false),
        Err(fs::TryLockError::Error(error)) => Err(error),
    }
}

fn owned(dir: &RunDir, clock: &dyn Clock) -> Error {
    let holder = read_holder(dir);
    let age = holder.as_ref().map(|holder| elapsed(clock, holder.since_ms));
    let stands_still = holder.as_ref().is_some_and(Holder::stands_still);
    Error::Owned { run: dir.id(), holder, age, stands_still }
}

pub(super) fn elapsed(clock: &dyn Clock, since_ms: i64) -> Duration {
    Duration::from_millis(u64::try_from(clock.now_ms() - since_ms).unwrap_or(0))
}

fn read_holder(dir: &RunDir) -> Option<Holder> {
    serde_json::from_slice(&fs::read(dir.path().join("lock")).ok()?).ok()
}

/// Somebody who has the lock and has not written who they are yet.
fn unknown() -> Holder {
    Holder { pid: 0, host: "unknown".to_owned(), boot_id: String::new(), start_ticks: 0, since_ms: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::test_support::TickClock;
    use crate::model::RunId;

    #[test]
    fn a_second_opener_is_refused_and_told_who_and_how() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::create(dir.path(), RunId::generate()).unwrap();
        assert_eq!(run.owner().unwrap(), None);
        let lock = run.lock(&*TickClock::starting_at(60_000)).unwrap();
        assert_eq!(lock.this().pid, std::process::id());
        assert_eq!(run.owner().unwrap().as_ref(), Some(lock.this()));

        let error = run.lock(&*TickClock::starting_at(60_000 + 125_000)).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(&format!("process {}", std::process::id())), "{text}");
        assert!(text.ends_with("for 2m 5s"), "{text}");
        assert!(error.help().contains(&format!("lifeboat watch {}", run.id().short())), "{}", error.help());

        drop(lock);
        assert_eq!(run.owner().unwrap(), None);
        let _again = run.lock(&*TickClock::starting_at(0)).unwrap();
    }

    #[test]
    fn looking_at_the_owner_does_not_disturb_who_wants_to_own() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::create(dir.path(), RunId::generate()).unwrap();
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    run.owner().unwrap();
                }
            });
            for _ in 0..50 {
                drop(run.lock(&*TickClock::starting_at(0)).unwrap());
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        });
    }
}
