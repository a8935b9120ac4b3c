//! Telling one process from another that has the same number.

use std::fs;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Returns the start time of a process in clock ticks since boot, or nothing if there is no such process or only its
/// remains, which nobody has collected yet.
pub fn start_ticks(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command name is in parentheses and may hold blanks and parentheses itself.
    let mut fields = stat[stat.rfind(')')? + 1..].split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// Returns the id that the kernel took when it booted.
pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
}

/// A process, told from later ones by its start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub pid: u32,
    pub start_ticks: u64,
    pub boot_id: String,
}

impl Identity {
    /// Returns the identity of a process that runs now.
    pub fn of(pid: u32) -> Option<Self> {
        Some(Self { pid, start_ticks: start_ticks(pid)?, boot_id: boot_id() })
    }

    /// Says whether this very process still runs.
    pub fn is_alive(&self) -> bool {
        self.boot_id == boot_id() && start_ticks(self.pid) == Some(self.start_ticks)
    }

    /// Sends a signal to it, and to nobody else.
    pub fn signal(&self, number: i32) -> std::io::Result<()> {
        if !self.is_alive() {
            return Ok(());
        }
        let (Some(pid), Some(signal)) =
            (i32::try_from(self.pid).ok().and_then(Pid::from_raw), Signal::from_named_raw(number))
        else {
            return Err(std::io::ErrorKind::InvalidInput.into());
        };
        Ok(kill_process(pid, signal)?)
    }

    /// Sends a signal and waits until it is gone; after `patience` it is killed. Blocks. Returns whether it is gone.
    pub fn stop(&self, number: i32, patience: Duration) -> std::io::Result<bool> {
        self.signal(number)?;
        if self.wait_gone(patience) {
            return Ok(true);
        }
        self.signal(Signal::KILL.as_raw())?;
        Ok(self.wait_gone(Duration::from_secs(5)))
    }

    /// Waits until it is gone, at most so long. Blocks.
    pub fn wait_gone(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        while self.is_alive() {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn a_process_is_known_by_its_start_and_gone_when_stopped() {
        let mut child = Command::new("sleep").arg("60").stdin(Stdio::null()).spawn().unwrap();
        let identity = Identity::of(child.id()).unwrap();
        assert!(identity.is_alive());
        let other = Identity { start_ticks: identity.start_ticks + 1, ..identity.clone() };
        assert!(!other.is_alive(), "a later process with the same number is another one");
        assert!(identity.stop(15, Duration::from_secs(5)).unwrap());
        assert!(!identity.is_alive(), "its uncollected remains do not count as alive");
        child.wait().unwrap();
    }
}
