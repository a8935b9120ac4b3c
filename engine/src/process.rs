//! Telling a process from a later one with the same number, and ending it with its group.

use std::fs;
use std::io;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process, kill_process_group, test_kill_process_group};
use serde::{Deserialize, Serialize};

const POLL: Duration = Duration::from_millis(20);
/// How long a process may take to vanish after KILL; longer means that it hangs in the kernel.
pub const AFTER_KILL: Duration = Duration::from_secs(10);

/// What a test wants to be taken for the boot.
#[cfg(debug_assertions)]
static PRETENDED_BOOT: std::sync::OnceLock<String> = std::sync::OnceLock::new();

/// Makes this process believe that the machine was booted anew, as `LIFEBOAT_BOOT_ID` says. Absent from released builds.
#[cfg(debug_assertions)]
pub fn pretend_boot(id: String) {
    // Set once, before anybody asks.
    drop(PRETENDED_BOOT.set(id));
}

/// Returns the id that the kernel took when it booted; empty if it does not tell.
pub fn boot_id() -> String {
    #[cfg(debug_assertions)]
    if let Some(pretended) = PRETENDED_BOOT.get() {
        return pretended.clone();
    }
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
}

/// A process, told from later ones by its start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub pid: u32,
    /// In clock ticks since boot.
    pub start_ticks: u64,
    pub boot_id: String,
}

impl Identity {
    /// Returns the identity of a process that runs now.
    pub fn of(pid: u32) -> Option<Self> {
        let stat = Stat::read(pid).filter(Stat::runs)?;
        Some(Self { pid, start_ticks: stat.start_ticks, boot_id: boot_id() })
            .filter(|it| !it.boot_id.is_empty())
    }

    /// Says whether this very process still runs. A zombie does not.
    pub fn is_alive(&self) -> bool {
        self.stat().is_some()
    }

    /// Says whether it runs and leads a process group, which then has its number.
    pub fn leads_group(&self) -> bool {
        self.stat().is_some_and(|stat| stat.group == self.pid)
    }

    fn stat(&self) -> Option<Stat> {
        let stat = Stat::read(self.pid).filter(|stat| stat.runs() && stat.start_ticks == self.start_ticks)?;
        (!self.boot_id.is_empty() && self.boot_id == boot_id()).then_some(stat)
    }

    /// Sends a signal to it, and to nobody else; false if it is gone.
    pub fn signal(&self, number: i32) -> io::Result<bool> {
        if !self.is_alive() {
            return Ok(false);
        }
        let (Some(pid), Some(signal)) = (raw(self.pid), Signal::from_named_raw(number)) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        match kill_process(pid, signal) {
            Ok(()) => Ok(true),
            Err(Errno::SRCH) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Sends a signal and waits until it is gone; after `patience` it is killed. What is left of a group that it
    /// led is killed, too. Blocks. Returns whether all is gone.
    pub fn stop(&self, number: i32, patience: Duration) -> io::Result<bool> {
        let leads_group = self.leads_group();
        if !self.signal(number)? {
            return Ok(true);
        }
        if !gone_within(patience, || self.is_alive()) {
            self.signal(Signal::KILL.as_raw())?;
        }
        if leads_group {
            signal_group(self.pid, Signal::KILL);
        }
        Ok(gone_within(AFTER_KILL, || self.is_alive() || leads_group && group_runs(self.pid)))
    }
}

fn gone_within(patience: Duration, runs: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + patience;
    while runs() {
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(POLL);
    }
    true
}

/// Signals all processes of a group; it is no error if none is left.
pub fn signal_group(leader: u32, signal: Signal) {
    if let Some(group) = raw(leader) {
        let _ = kill_process_group(group, signal);
    }
}

/// Says whether a process of this group runs; zombies do not count, for somebody else must bury them.
pub fn group_runs(leader: u32) -> bool {
    let Some(group) = raw(leader) else { return false };
    test_kill_process_group(group) != Err(Errno::SRCH)
        && pids().filter_map(Stat::read).any(|stat| stat.group == leader && stat.runs())
}

/// Returns the number of a process as the kernel takes it; nothing if no process can have it.
pub(crate) fn raw(pid: u32) -> Option<Pid> {
    i32::try_from(pid).ok().and_then(Pid::from_raw)
}

/// Returns the numbers of all processes that run now.
pub(crate) fn pids() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// What `/proc/PID/stat` tells.
pub(crate) struct Stat {
    pub(crate) program: String,
    state: char,
    pub(crate) parent: u32,
    pub(crate) group: u32,
    start_ticks: u64,
}

impl Stat {
    pub(crate) fn read(pid: u32) -> Option<Self> {
        // The name of a program need not be valid UTF-8.
        let bytes = fs::read(format!("/proc/{pid}/stat")).ok()?;
        Self::parse(&String::from_utf8_lossy(&bytes))
    }

    /// The second field is the program's name in parentheses and may itself hold blanks and parentheses.
    fn parse(text: &str) -> Option<Self> {
        let (before, after_name) = text.rsplit_once(')')?;
        let (_, program) = before.split_once('(')?;
        let fields: Vec<&str> = after_name.split_ascii_whitespace().collect();
        // `fields[0]` is field 3 of the manual page proc_pid_stat(5): the state; 4 is the parent, 5 the group, 22 the start
        // time.
        Some(Self {
            program: program.to_owned(),
            state: fields.first()?.chars().next()?,
            parent: fields.get(1)?.parse().ok()?,
            group: fields.get(2)?.parse().ok()?,
            start_ticks: fields.get(19)?.parse().ok()?,
        })
    }

    /// Says whether a signal has stopped it.
    pub(crate) fn is_stopped(&self) -> bool {
        matches!(self.state, 'T' | 't')
    }

    /// Says whether it runs: of a zombie only its remains are left, which nobody has collected yet.
    pub(crate) fn runs(&self) -> bool {
        !matches!(self.state, 'Z' | 'X')
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Stdio};

    #[test]
    fn the_name_of_a_program_cannot_shift_the_fields() {
        let line = "42 (a) b (c) 9) S 1 77 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 123456 1000 10";
        let stat = Stat::parse(line).unwrap();
        assert_eq!((stat.state, stat.parent, stat.group, stat.start_ticks), ('S', 1, 77, 123_456));
        assert_eq!(stat.program, "a) b (c) 9");
        assert!(Stat::parse("42 (x").is_none());
    }

    #[test]
    fn a_process_is_known_by_its_start_and_gone_when_stopped() {
        let mut child = Command::new("sleep").arg("60").stdin(Stdio::null()).spawn().unwrap();
        let identity = Identity::of(child.id()).unwrap();
        assert!(identity.is_alive() && !identity.leads_group());
        let later = Identity { start_ticks: identity.start_ticks + 1, ..identity.clone() };
        assert!(!later.is_alive(), "a later process with the same number is another one");
        assert!(!Identity { boot_id: "another".into(), ..identity.clone() }.is_alive());
        assert!(identity.stop(15, Duration::from_secs(5)).unwrap());
        assert!(!identity.is_alive(), "its uncollected remains do not count as alive");
        assert_eq!(Identity::of(child.id()), None, "nor have they an identity");
        child.wait().unwrap();
        assert!(!identity.signal(15).unwrap());
    }

    #[test]
    fn what_is_left_of_its_group_ends_with_its_leader() {
        let mut leader = Command::new("bash")
            .args(["-c", "sleep 1000 >/dev/null & echo $!; wait"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap();
        let identity = Identity::of(leader.id()).unwrap();
        let mut line = String::new();
        let mut stdout = leader.stdout.take().unwrap();
        while !line.ends_with('\n') {
            let mut byte = [0];
            stdout.read_exact(&mut byte).unwrap();
            line.push(char::from(byte[0]));
        }
        let member = Identity::of(line.trim().parse().unwrap()).unwrap();
        assert!(identity.leads_group() && group_runs(identity.pid));
        assert!(identity.stop(15, Duration::from_secs(5)).unwrap());
        assert!(!member.is_alive() && !group_runs(identity.pid));
        leader.wait().unwrap();
    }
}
