//! Processes that outlived the lifeboat that started them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Signal, getpgrp, kill_process};

use super::durable;
use super::error::Error;
use super::owner::try_exclusive;
use crate::crash::{self, Point};
use crate::process::{AFTER_KILL, Stat, pids, raw, signal_group};

const POLL: Duration = Duration::from_millis(20);

/// How often it is looked again for who holds the lock and was not seen: one that was only made while the list of all
/// processes was read, by another that was gone when its turn came, is seen the next time.
const LOOKS: u32 = 25;

/// A process that was ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    pub pid: u32,
    pub group: u32,
    /// The name of its program.
    pub program: String,
    pub manner: Manner,
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let how = match self.manner {
            Manner::Terminated => "ended",
            Manner::Killed => "killed",
        };
        write!(f, "`{}` (process {}) {how}", self.program, self.pid)
    }
}

/// How it was ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// It, or its group, obeyed SIGTERM.
    Terminated,
    /// It had to be killed.
    Killed,
}

/// Finds every process that has a run's `children.lock` open, ends its process group and proves that all are gone.
///
/// SIGTERM first, SIGKILL after `grace`. Returns what was ended. The caller owns the run and must not have the file
/// open itself. Blocks.
pub fn end_survivors(children_lock: &Path, grace: Duration) -> Result<Vec<Ended>, Error> {
    let file = durable::lock_file(children_lock)?;
    let metadata = file.metadata().map_err(Error::io("read", children_lock))?;
    let mut hunt = Hunt { inode: (metadata.dev(), metadata.ino()), ..Hunt::default() };
    let mut looks = 0;
    loop {
        hunt.end_all(grace)?;
        if try_exclusive(&file).map_err(Error::io("lock", children_lock))? {
            break;
        }
        if looks == LOOKS {
            let what = format!("it cannot be seen by this user, but holds `{}`", children_lock.display());
            return Err(Error::Survivor { what });
        }
        looks += 1;
        std::thread::sleep(POLL);
    }
    crash::point(Point::SurvivorsEnded);
    Ok(hunt.ended.into_values().collect())
}

/// Ends everything that one child of a run has started, also what has left its process group and its session, and that
/// still has the run's `children.lock` open at a certain position.
///
/// SIGTERM first, SIGKILL after `grace`. Returns what was ended. What another user's process does cannot be seen. Blocks.
pub fn end_descendants(children_lock: &Path, position: u64, grace: Duration) -> Result<Vec<Ended>, Error> {
    let metadata = fs::metadata(children_lock).map_err(Error::io("read", children_lock))?;
    let inode = (metadata.dev(), metadata.ino());
    let mut hunt = Hunt { inode, position: Some(position), ..Hunt::default() };
    hunt.end_all(grace)?;
    Ok(hunt.ended.into_values().collect())
}

#[derive(Default)]
struct Hunt {
    inode: (u64, u64),
    /// Only those count who have the file open at this position.
    position: Option<u64>,
    /// Groups that a holder was seen in.
    groups: BTreeSet<u32>,
    ended: BTreeMap<u32, Ended>,
}

impl Hunt {
    fn end_all(&mut self, grace: Duration) -> Result<(), Error> {
        let kill_at = Instant::now() + grace;
        let give_up_at = kill_at + AFTER_KILL;
        let mut told = BTreeSet::new();
        loop {
            let alive = self.look();
            if alive.is_empty() {
                return Ok(());
            }
            let now = Instant::now();
            if now >= give_up_at {
                return Err(Error::Survivor { what: describe(&alive) });
            }
            let signal = if now >= kill_at { Signal::KILL } else { Signal::TERM };
            for (&pid, stat) in &alive {
                self.record(pid, stat, signal);
                let target = self.target(pid, stat);
                // One request is enough; killing is repeated for those who came meanwhile.
                if told.insert(target) || signal == Signal::KILL {
                    target.send(signal);
                }
            }
            std::thread::sleep(POLL);
        }
    }

    /// Returns the holders and the members of their groups that run now.
    fn look(&mut self) -> BTreeMap<u32, Stat> {
        let own = std::process::id();
        let processes: Vec<_> = pids().filter(|&pid| pid != own && !is_own_before_exec(pid)).collect();
        let mut alive = BTreeMap::new();
        for &pid in &processes {
            if self.holds(pid)
                && let Some(stat) = Stat::read(pid).filter(Stat::runs)
            {
                if is_groups_own(stat.group) {
                    self.groups.insert(stat.group);
                }
                alive.insert(pid, stat);
            }
        }
        for &pid in &processes {
            let stat = Stat::read(pid).filter(|stat| stat.runs() && self.groups.contains(&stat.group));
            if let Some(stat) = stat {
                alive.insert(pid, stat);
            }
        }
        alive
    }

    fn holds(&self, pid: u32) -> bool {
        // A process of another user cannot be looked into; the lock itself shows whether one is left.
        let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
        entries.flatten().any(|entry| {
            fs::metadata(entry.path()).is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.inode)
                && self.is_at_position(pid, &entry.file_name().to_string_lossy())
        })
    }

    fn is_at_position(&self, pid: u32, descriptor: &str) -> bool {
        let Some(wanted) = self.position else { return true };
        let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{descriptor}")).unwrap_or_default();
        let position = info.lines().find_map(|line| line.strip_prefix("pos:")?.trim().parse::<u64>().ok());
        position == Some(wanted)
    }

    fn record(&mut self, pid: u32, stat: &Stat, signal: Signal) {
        let manner = if signal == Signal::KILL { Manner::Killed } else { Manner::Terminated };
        let program = stat.program.clone();
        self.ended.entry(pid).and_modify(|ended| ended.manner = manner).or_insert(Ended {
            pid,
            group: stat.group,
            program,
            manner,
        });
    }

    fn target(&self, pid: u32, stat: &Stat) -> Target {
        if self.groups.contains(&stat.group) { Target::Group(stat.group) } else { Target::Process(pid) }
    }
}

/// Whom a signal is sent to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Target {
    Group(u32),
    Process(u32),
}

impl Target {
    fn send(self, signal: Signal) {
        // A failure means that it is gone, or shows as a survivor in the end.
        match self {
            Self::Group(group) => signal_group(group, signal),
            Self::Process(pid) => drop(raw(pid).map(|pid| kill_process(pid, signal))),
        }
    }
}

/// Whether a process is a child of this one that has not executed its program yet. Until then it shares all open
/// files, this process's own `children.lock` among them.
fn is_own_before_exec(pid: u32) -> bool {
    let program = |pid: u32| fs::read_link(format!("/proc/{pid}/exe")).ok();
    let own = std::process::id();
    Stat::read(pid).is_some_and(|stat| stat.parent == own)
        && program(pid).is_some_and(|path| Some(path) == program(own))
}

/// Whether a group is one that lifeboat made for a child: neither ours nor that of a container's first process.
fn is_groups_own(group: u32) -> bool {
    group > 1 && raw(group) != Some(getpgrp())
}

fn describe(alive: &BTreeMap<u32, Stat>) -> String {
    let names: Vec<_> =
        alive.iter().map(|(pid, stat)| format!("process {pid} (`{}`)", stat.program)).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::group_runs;
    use std::os::fd::AsFd;
    use std::os::unix::process::CommandExt;
    use std::process::{Child, Command, Stdio};

    struct Reaped(Child);

    impl Drop for Reaped {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    /// Starts a shell in a group of its own that inherits the lock, as children of steps do, and waits until it
    /// says `ready`.
    fn child(lock: &Path, script: &str) -> Reaped {
        let file = durable::lock_file(lock).unwrap();
        file.lock_shared().unwrap();
        // Only this child may inherit it, and not what another test starts at the same moment.
        let inherited = file.as_fd().try_clone_to_owned().unwrap();
        let child = Command::new("bash")
            .args(["-c", script])
            .stdin(Stdio::from(inherited))
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap();
        let mut child = Reaped(child);
        let mut ready = [0; 6];
        std::io::Read::read_exact(child.0.stdout.as_mut().unwrap(), &mut ready).unwrap();
        child
    }

    fn lock() -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("children.lock");
        durable::lock_file(&path).unwrap();
        (dir, path)
    }

    #[test]
    fn nothing_is_ended_where_nothing_survived() {
        let (_keep, path) = lock();
        assert_eq!(end_survivors(&path, Duration::from_secs(5)).unwrap(), []);
    }

    #[test]
    fn a_survivor_and_its_group_are_ended() {
        let (_keep, path) = lock();
        // The second sleep has not inherited the lock and is of the same group.
        let mut child = child(&path, "sleep 1000 </dev/null & echo ready; sleep 1000; true");
        let pid = child.0.id();
        let ended = end_survivors(&path, Duration::from_secs(10)).unwrap();
        assert!(ended.iter().any(|ended| ended.pid == pid && ended.program == "bash"), "{ended:?}");
        assert!(
            ended.iter().all(|ended| ended.group == pid && ended.manner == Manner::Terminated),
            "{ended:?}"
        );
        assert!(ended.len() >= 2, "{ended:?}");
        child.0.wait().unwrap();
        assert!(!group_runs(pid));
    }

    #[test]
    fn one_that_ignores_the_request_is_killed() {
        let (_keep, path) = lock();
        let child = child(&path, "trap '' TERM; echo ready; while true; do sleep 1000; done");
        let ended = end_survivors(&path, Duration::from_millis(200)).unwrap();
        let bash = ended.iter().find(|ended| ended.pid == child.0.id()).unwrap();
        assert_eq!(bash.manner, Manner::Killed);
    }

    /// As a process does that is made, by one that ends, while the list of all processes is read.
    #[test]
    fn who_is_not_seen_at_once_is_looked_for_again() {
        let (_keep, path) = lock();
        let file = durable::lock_file(&path).unwrap();
        file.lock_shared().unwrap();
        let held = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(200));
            drop(file);
        });
        assert_eq!(end_survivors(&path, Duration::from_millis(10)).unwrap(), []);
        held.join().unwrap();
    }

    #[test]
    fn a_lock_that_nobody_visible_holds_is_an_error() {
        let (_keep, path) = lock();
        // This process is left out of the search, so it stands for one that cannot be looked into.
        let file = durable::lock_file(&path).unwrap();
        file.lock_shared().unwrap();
        let error = end_survivors(&path, Duration::from_millis(10)).unwrap_err();
        assert!(matches!(error, Error::Survivor { .. }), "{error}");
    }
}
