//! Tells a process from a later one with the same number, and ends it.

use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use lifeboat_engine::step::StepError;
use rustix::process::{Pid, Signal};
use serde::{Deserialize, Serialize};

use super::codes;

const POLL: Duration = Duration::from_millis(20);
/// How long a process may take to vanish after KILL; longer means that it hangs in the kernel.
const AFTER_KILL: Duration = Duration::from_secs(10);

/// A process, unmistakably: its number, its start time in clock ticks since boot, and the boot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub pid: u32,
    pub start_ticks: u64,
    pub boot_id: String,
}

/// How a process came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// It did not run any more.
    WasGone,
    /// It ended within the time given.
    Ended,
    /// It had to be killed.
    Killed,
}

impl Identity {
    /// Returns the identity of a process that runs now; `None` if there is none.
    pub fn of(pid: u32) -> Option<Self> {
        let stat = Stat::read(pid)?;
        Some(Self { pid, start_ticks: stat.start_ticks, boot_id: boot_id()? })
    }

    /// Writes the identity to a file, whole or not at all: number, start time and boot on one line.
    pub fn save(&self, path: &Path) -> Result<(), StepError> {
        let dir = path.parent().unwrap_or(Path::new("."));
        let written = std::fs::create_dir_all(dir).and_then(|()| {
            let mut file = tempfile::NamedTempFile::new_in(dir)?;
            writeln!(file, "{} {} {}", self.pid, self.start_ticks, self.boot_id)?;
            file.as_file().sync_all()?;
            file.persist(path).map_err(|error| error.error)
        });
        written.map(drop).map_err(|error| {
            StepError::permanent(codes::LB1007, format!("the pid file {} cannot be written", path.display()))
                .help("correct `pid_file` in the environment's file, or the permissions of its directory")
                .caused_by(&error)
        })
    }

    /// Reads what [`Identity::save`] wrote; `None` if there is no such file or it is not one of ours.
    pub fn load(path: &Path) -> Option<Self> {
        let text = std::fs::read_to_string(path).ok()?;
        let mut words = text.split_whitespace();
        let pid = words.next()?.parse().ok()?;
        let start_ticks = words.next()?.parse().ok()?;
        Some(Self { pid, start_ticks, boot_id: words.next()?.to_owned() })
    }

    /// Says whether this very process still runs. A zombie does not.
    pub fn is_alive(&self) -> bool {
        is_alive(self.pid, self.start_ticks, &self.boot_id)
    }
}

/// Returns the id of the current boot of this machine.
pub fn boot_id() -> Option<String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(text.trim().to_owned())
}

/// Says whether the process with this number, start time and boot still runs. A zombie does not.
pub fn is_alive(pid: u32, start_ticks: u64, boot: &str) -> bool {
    Stat::read(pid).is_some_and(|stat| stat.start_ticks == start_ticks && stat.runs())
        && boot_id().as_deref() == Some(boot)
}

/// Sends a signal to a process if it is still the same one; false if it is gone.
pub fn signal(identity: &Identity, number: i32) -> Result<bool, StepError> {
    if !identity.is_alive() {
        return Ok(false);
    }
    let signal = Signal::from_named_raw(number).unwrap_or(Signal::TERM);
    match rustix::process::kill_process(to_pid(identity.pid)?, signal) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::SRCH) => Ok(false),
        Err(error) => Err(cannot_end(identity, "may not be signalled").caused_by(&error)),
    }
}

/// Ends a process: the signal, then KILL when `patience` is over, then KILL to what is left of its group.
/// Returns only when the process is gone.
pub async fn stop(identity: &Identity, number: i32, patience: Duration) -> Result<Stopped, StepError> {
    let leads_group = Stat::read(identity.pid).is_some_and(|stat| stat.group == identity.pid);
    if !signal(identity, number)? {
        return Ok(Stopped::WasGone);
    }
    let mut stopped = Stopped::Ended;
    if !gone_within(identity, patience).await {
        stopped = Stopped::Killed;
        signal(identity, Signal::KILL.as_raw())?;
    }
    if leads_group {
        signal_group(identity.pid, Signal::KILL);
    }
    if gone_within(identity, AFTER_KILL).await {
        Ok(stopped)
    } else {
        Err(cannot_end(identity, "does not end, even after KILL"))
    }
}

async fn gone_within(identity: &Identity, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    while identity.is_alive() {
        if Instant::now() >= deadline {
            return false;
        }
        tokio::time::sleep(POLL).await;
    }
    true
}

fn cannot_end(identity: &Identity, why: &str) -> StepError {
    StepError::uncertain(codes::LB1008, format!("process {} {why}", identity.pid))
        .help(format!("look at it with `ps -o pid,user,stat,wchan,args -p {}`", identity.pid))
}

fn to_pid(pid: u32) -> Result<Pid, StepError> {
    i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .ok_or_else(|| StepError::permanent(codes::LB1008, format!("{pid} is not the number of a process")))
}

/// Signals all processes of a group; it is no error if none is left.
pub(super) fn signal_group(leader: u32, signal: Signal) {
    if let Ok(pid) = to_pid(leader) {
        let _ = rustix::process::kill_process_group(pid, signal);
    }
}

/// Says whether a process of this group runs; zombies do not count, for somebody else must bury them.
pub(super) fn group_runs(leader: u32) -> bool {
    let Ok(pid) = to_pid(leader) else { return false };
    if rustix::process::test_kill_process_group(pid) == Err(rustix::io::Errno::SRCH) {
        return false;
    }
    let Ok(entries) = std::fs::read_dir("/proc") else { return true };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(Stat::read)
        .any(|stat| stat.group == leader && stat.runs())
}

/// What `/proc/PID/stat` tells.
struct Stat {
    state: char,
    group: u32,
    start_ticks: u64,
}

impl Stat {
    fn read(pid: u32) -> Option<Self> {
        // The name of a program need not be valid UTF-8.
        let bytes = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
        Self::parse(&String::from_utf8_lossy(&bytes))
    }

    /// The second field is the program's name in parentheses and may itself hold blanks and parentheses.
    fn parse(text: &str) -> Option<Self> {
        let (_, after_name) = text.rsplit_once(')')?;
        let fields: Vec<&str> = after_name.split_whitespace().collect();
        // `fields[0]` is field 3 of the manual page proc_pid_stat(5): the state; 5 is the group, 22 the start time.
        Some(Self {
            state: fields.first()?.chars().next()?,
            group: fields.get(2)?.parse().ok()?,
            start_ticks: fields.get(19)?.parse().ok()?,
        })
    }

    fn runs(&self) -> bool {
        !matches!(self.state, 'Z' | 'X')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_program_cannot_shift_the_fields() {
        let line = "42 (a) b (c) 9) S 1 77 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 123456 1000 10";
        let stat = Stat::parse(line).expect("a valid line");
        assert_eq!((stat.state, stat.group, stat.start_ticks), ('S', 77, 123_456));
        assert!(Stat::parse("42 (x").is_none());
    }

    #[test]
    fn this_process_is_alive_and_a_changed_identity_is_not() {
        let me = Identity::of(std::process::id()).expect("this process runs");
        assert!(me.is_alive());
        assert!(!Identity { start_ticks: me.start_ticks + 1, ..me.clone() }.is_alive());
        assert!(!Identity { boot_id: "another".into(), ..me.clone() }.is_alive());
        let file = tempfile::tempdir().expect("a directory").path().join("run/me.pid");
        me.save(&file).expect("can be written");
        assert_eq!(Identity::load(&file), Some(me));
        std::fs::write(&file, "123\n").expect("can be written");
        assert_eq!(Identity::load(&file), None, "a bare number identifies nothing");
        std::fs::remove_dir_all(file.parent().expect("has a parent")).expect("can be removed");
    }

    #[test]
    fn a_zombie_is_not_alive() {
        let mut child = std::process::Command::new("true").spawn().expect("true runs");
        let deadline = Instant::now() + Duration::from_secs(5);
        while Stat::read(child.id()).is_some_and(|stat| stat.runs()) {
            assert!(Instant::now() < deadline, "true did not end");
            std::thread::sleep(Duration::from_millis(5));
        }
        let stat = Stat::read(child.id()).expect("a zombie is still listed");
        assert!(!is_alive(child.id(), stat.start_ticks, &boot_id().expect("has a boot id")));
        child.wait().expect("can be waited for");
    }
}
