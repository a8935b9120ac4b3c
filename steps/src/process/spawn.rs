//! What happens in a child between fork and exec.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process;

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

/// Makes the child the leader of a session of its own, out of reach of the terminal.
pub(super) fn new_session(command: &mut process::Command) {
    let detach = || rustix::process::setsid().map(drop).map_err(std::io::Error::from);
    // SAFETY: the closure makes one system call.
    unsafe { command.pre_exec(detach) };
}

/// Opens the file whose shared lock tells survivors of a crash, and takes the lock.
pub(super) fn open_children_lock(path: &Path) -> Result<File, StepError> {
    let opened = File::options().create(true).append(true).open(path);
    let locked = opened.and_then(|file| {
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared)?;
        Ok(file)
    });
    locked.map_err(|error| {
        StepError::transient(codes::LB1002, format!("cannot lock {} for a child process", path.display()))
            .help("look for survivors of an earlier process with `lifeboat status`, then `lifeboat resume`")
            .caused_by(&error)
    })
}
