//! Objects on their way into a directory: all of them arrive and are made durable beside their places first.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use lifeboat_engine::step::StepError;
use rustix::fs::AtFlags;

use super::super::fetch::failed;
use super::super::tree::OURS;
use crate::store::{beneath, codes};

/// A directory within the target, from which finished files are renamed into their places.
#[derive(Clone, Debug)]
pub(super) struct Staging {
    pub(super) path: PathBuf,
    target: PathBuf,
}

impl Staging {
    pub(super) fn of(target: &Path, step: &str) -> Self {
        Self { path: target.join(format!("{OURS}sync-{step}")), target: target.to_owned() }
    }

    /// Makes the target, if there is none, and the directory in it.
    pub(super) fn make(&self) -> Result<(), StepError> {
        fs::create_dir_all(&self.path).map_err(|error| failed("made", &self.path, &error))
    }

    /// Refuses to begin without the space for all that comes. An attempt that goes on was checked when it began.
    pub(super) fn check_space(&self, bytes: u64, files: u64) -> Result<(), StepError> {
        let there = [self.path.as_path(), &self.target].into_iter().chain(self.target.ancestors());
        let Some(dir) = there.into_iter().find(|dir| dir.is_dir()) else { return Ok(()) };
        if dir == self.path {
            return Ok(());
        }
        let space = rustix::fs::statvfs(dir).map_err(|error| failed("measured", dir, &error.into()))?;
        let free = space.f_bavail.saturating_mul(space.f_frsize);
        let short = |what: &str, needed: u64, free: u64| {
            let message = format!("{} has {free} {what} free, and {needed} are needed", dir.display());
            Err(StepError::permanent(codes::LB1154, message)
                .help("make room there: files arrive beside those that they replace"))
        };
        if free < bytes {
            return short("bytes", bytes, free);
        }
        // Some file systems have no fixed number of inodes and say 0.
        if space.f_files > 0 && space.f_favail < files {
            return short("inodes", files, space.f_favail);
        }
        Ok(())
    }

    /// Makes durable what has arrived, then gives each file its name, replacing what has it.
    pub(super) fn publish<'n>(&self, names: impl Iterator<Item = &'n str>) -> Result<(), StepError> {
        self.sync()?;
        for name in names {
            self.rename(name).map_err(|error| failed("put in place", &self.target.join(name), &error))?;
        }
        self.sync()?;
        fs::remove_dir_all(&self.path).map_err(|error| failed("removed", &self.path, &error))
    }

    fn rename(&self, name: &str) -> io::Result<()> {
        let target = beneath::open_root(&self.target)?;
        if let Some(dir) = name.strip_suffix('/') {
            return make_dirs(target, &dir.split('/').collect::<Vec<_>>()).map(drop);
        }
        let mut parts: Vec<_> = name.split('/').collect();
        let file = parts.pop().unwrap_or_default();
        let from = beneath::open_dir(beneath::open_root(&self.path)?, &parts)?;
        let to = make_dirs(target, &parts)?;
        Ok(rustix::fs::renameat(&from, file, &to, file)?)
    }

    /// Writes everything of the file system to its disk: one call for any number of files.
    fn sync(&self) -> Result<(), StepError> {
        let synced = File::open(&self.path).and_then(|dir| Ok(rustix::fs::syncfs(&dir)?));
        synced.map_err(|error| failed("synced", &self.path, &error))
    }
}

/// Opens a directory below `root` and makes what is missing; all of it is synced at the end.
fn make_dirs(root: OwnedFd, segments: &[&str]) -> io::Result<OwnedFd> {
    segments.iter().try_fold(root, |dir, name| {
        match beneath::open_dir(dir.try_clone()?, &[name]) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => return other,
        }
        rustix::fs::mkdirat(&dir, *name, rustix::fs::Mode::from_raw_mode(0o755))?;
        beneath::open_dir(dir, &[name])
    })
}

/// Removes a file below a directory; the directories that become empty go, too.
pub(super) fn remove(root: &Path, name: &str) -> Result<(), StepError> {
    let removed = || -> io::Result<()> {
        let mut parts: Vec<_> = name.split('/').collect();
        let file = parts.pop().unwrap_or_default();
        let dir = beneath::open_dir(beneath::open_root(root)?, &parts)?;
        rustix::fs::unlinkat(&dir, file, AtFlags::empty())?;
        while let Some(last) = parts.pop() {
            let parent = beneath::open_dir(beneath::open_root(root)?, &parts)?;
            if rustix::fs::unlinkat(&parent, last, AtFlags::REMOVEDIR).is_err() {
                break;
            }
        }
        Ok(())
    };
    match removed() {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(failed("removed", &root.join(name), &error))
        }
        _ => Ok(()),
    }
}
