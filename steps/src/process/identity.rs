//! Ends a process that is told from later ones with the same number, and keeps its identity in a file.

use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

pub use lifeboat_engine::process::Identity;
use lifeboat_engine::process::{AFTER_KILL, signal_group};
use lifeboat_engine::step::StepError;
use rustix::process::Signal;

use super::codes;

const POLL: Duration = Duration::from_millis(20);

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

/// Writes an identity to a file, whole or not at all: number, start time and boot on one line.
pub fn save(identity: &Identity, path: &Path) -> Result<(), StepError> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let written = std::fs::create_dir_all(dir).and_then(|()| {
        let mut file = tempfile::NamedTempFile::new_in(dir)?;
        writeln!(file, "{} {} {}", identity.pid, identity.start_ticks, identity.boot_id)?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)
    });
    written.map(drop).map_err(|error| {
        StepError::permanent(codes::LB1007, format!("the pid file {} cannot be written", path.display()))
            .help("correct `pid_file` in the environment's file, or the permissions of its directory")
            .caused_by(&error)
    })
}

/// Reads what [`save`] wrote; `None` if there is no such file or it is not one of ours.
pub fn load(path: &Path) -> Option<Identity> {
    let text = std::fs::read_to_string(path).ok()?;
    let mut words = text.split_whitespace();
    let pid = words.next()?.parse().ok()?;
    let start_ticks = words.next()?.parse().ok()?;
    Some(Identity { pid, start_ticks, boot_id: words.next()?.to_owned() })
}

/// Sends a signal to a process if it is still the same one; false if it is gone.
pub fn signal(identity: &Identity, number: i32) -> Result<bool, StepError> {
    identity.signal(number).map_err(|error| match error.kind() {
        io::ErrorKind::InvalidInput => StepError::permanent(
            codes::LB1008,
            format!("signal {number} cannot be sent to process {}", identity.pid),
        ),
        _ => cannot_end(identity, "may not be signalled").caused_by(&error),
    })
}

/// Ends a process: the signal, then KILL when `patience` is over, then KILL to what is left of its group.
/// Returns only when the process is gone.
pub async fn stop(identity: &Identity, number: i32, patience: Duration) -> Result<Stopped, StepError> {
    let leads_group = identity.leads_group();
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

/// Returns the processes that work in a directory, of programs that are chosen by their name.
///
/// It is the directory itself that counts and not its path: a process in a container has paths of its own.
pub fn working_in(dir: &Path, is_meant: impl Fn(&str) -> bool) -> Vec<Identity> {
    let place = |path: &Path| std::fs::metadata(path).map(|found| (found.dev(), found.ino())).ok();
    let Some(wanted) = place(dir) else { return Vec::new() };
    let works_there = |process: &Path| {
        let name = std::fs::read_to_string(process.join("comm")).unwrap_or_default();
        is_meant(name.trim()) && place(&process.join("cwd")) == Some(wanted)
    };
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let found = processes.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        works_there(&entry.path()).then(|| Identity::of(pid))?
    });
    found.collect()
}

/// Waits until a process is gone; false if it still runs when `patience` is over.
pub async fn gone_within(identity: &Identity, patience: Duration) -> bool {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_file_says_identifies_a_process_or_nothing() {
        let me = Identity::of(std::process::id()).expect("this process runs");
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("run/me.pid");
        save(&me, &file).expect("can be written");
        assert_eq!(load(&file), Some(me));
        std::fs::write(&file, "123\n").expect("can be written");
        assert_eq!(load(&file), None, "a bare number identifies nothing");
    }
}
