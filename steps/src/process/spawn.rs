//! What happens in a child between fork and exec.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};

use lifeboat_engine::step::StepError;
use rustix::fs::FlockOperation;
use rustix::io::FdFlags;
use rustix::process::{Gid, Resource, Rlimit, getrlimit, setrlimit};

use super::{OsUser, codes};

/// Makes the child switch to a user, all its groups included.
pub(super) fn run_as(command: &mut process::Command, user: &OsUser) {
    let (uid, gid) = (user.uid, user.gid);
    let groups: Vec<Gid> = user.groups.iter().map(|&group| Gid::from_raw(group)).collect();
    let switch = move || OsUser::become_it(uid, gid, &groups);
    // SAFETY: the closure only makes system calls, on data allocated before the fork.
    unsafe { command.pre_exec(switch) };
}

/// Makes the child, and whatever it starts, hold the lock of `file` for as long as it lives.
pub(super) fn inherit(command: &mut process::Command, file: &File) {
    let descriptor = file.as_raw_fd();
    let keep_open = move || {
        // SAFETY: the caller keeps `file` open until the child has been started.
        let borrowed = unsafe { rustix::fd::BorrowedFd::borrow_raw(descriptor) };
        rustix::io::fcntl_setfd(borrowed, FdFlags::empty())?;
        Ok(())
    };
    // SAFETY: the closure makes one system call and allocates nothing.
    unsafe { command.pre_exec(keep_open) };
}

/// Keeps the memory of the child, and of whatever it starts, out of core dumps: secrets are in its variables.
pub(super) fn without_core(command: &mut process::Command) {
    let limit = || {
        let maximum = getrlimit(Resource::Core).maximum;
        Ok(setrlimit(Resource::Core, Rlimit { current: Some(0), maximum })?)
    };
    // SAFETY: the closure makes two system calls and allocates nothing.
    unsafe { command.pre_exec(limit) };
}

/// Gives the child huge pages, which a process that drives a run forgoes and hands on.
pub(super) fn huge_pages(command: &mut process::Command) {
    let allow = || {
        // SAFETY: the call takes numbers only. A kernel without huge pages refuses it, harmlessly.
        unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 0, 0, 0, 0) };
        Ok(())
    };
    // SAFETY: the closure makes one system call.
    unsafe { command.pre_exec(allow) };
}

/// Gives the child all signals as they are by default. What the shell or `nohup` that started Lifeboat made it ignore
/// would be ignored by the child too, and Postgres, for one, is stopped by SIGINT and SIGQUIT.
pub(super) fn default_signals(command: &mut process::Command) {
    const LAST_OF_OLD: i32 = 31;
    let reset = || {
        for number in 1..=LAST_OF_OLD {
            // SAFETY: setting a default disposition is safe between fork and exec. Two signals refuse it, harmlessly.
            unsafe { libc::signal(number, libc::SIG_DFL) };
        }
        Ok(())
    };
    // SAFETY: the closure makes system calls only and allocates nothing.
    unsafe { command.pre_exec(reset) };
}

/// Makes the child the leader of a session of its own, out of reach of the terminal.
pub(super) fn new_session(command: &mut process::Command) {
    let detach = || rustix::process::setsid().map(drop).map_err(std::io::Error::from);
    // SAFETY: the closure makes one system call.
    unsafe { command.pre_exec(detach) };
}

/// The open file that a child and all that it starts inherit.
pub(super) struct ChildrenLock {
    pub(super) file: File,
    /// The position of the file. Nobody reads or writes it, so that it tells the children of one command from those of
    /// another, wherever they have gone: `/proc` shows it.
    pub(super) mark: u64,
}

fn next_mark() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    (u64::from(process::id()) << 24) + NEXT.fetch_add(1, Ordering::Relaxed) % (1 << 24)
}

/// Opens the file whose shared lock tells survivors of a crash, and takes the lock.
pub(super) fn open_children_lock(path: &Path) -> Result<ChildrenLock, StepError> {
    let opened = File::options().create(true).append(true).open(path);
    let locked = opened.and_then(|mut file| {
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared)?;
        let mark = next_mark();
        file.seek(SeekFrom::Start(mark))?;
        Ok(ChildrenLock { file, mark })
    });
    locked.map_err(|error| {
        StepError::transient(codes::LB1002, format!("cannot lock {} for a child process", path.display()))
            .help("look for survivors of an earlier process with `lifeboat status`, then `lifeboat resume`")
            .caused_by(&error)
    })
}
