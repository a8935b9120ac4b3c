//! Removing objects for good. Only what prunes does this, after it has said what it will remove.

use std::io;

use lifeboat_engine::step::StepError;
use rustix::fs::AtFlags;
use rustix::io::Errno;

use super::backend::{Backend, Store};
use super::beneath;
use super::dir::Dir;
use super::failure;
use super::key::Key;
use super::marker::{MARKER, Marker};
#[cfg(feature = "s3")]
use super::partial::OWNER_FILE;
use super::transfer::Meter;

impl Store {
    /// Removes an object durably; one that is not there is success. In a bucket with versions it is only marked as
    /// deleted.
    pub fn remove(&self, key: &Key) -> Result<(), StepError> {
        match &self.backend {
            Backend::Dir(dir) => {
                unlink(dir, key).map_err(|error| failure::write(format_args!("`{key}` in {self}"), &error))
            }
            #[cfg(feature = "s3")]
            Backend::S3(bucket) => bucket.delete(key.as_str(), None),
        }
    }

    /// Removes a backup: its marker first, so that whatever interrupts this, half a backup is never taken for one.
    /// What is gone already is no error.
    pub fn remove_backup(&self, marker: &Marker, meter: &Meter) -> Result<(), StepError> {
        let group = marker.kind.backup(&marker.label)?;
        self.remove(&marker.key(MARKER)?)?;
        for object in self.list(&group)? {
            self.remove(&object.key)?;
            meter.advance(object.size)?;
        }
        match &self.backend {
            Backend::Dir(dir) => remove_dirs(dir, &group)
                .map_err(|error| failure::write(format_args!("`{group}` in {self}"), &error)),
            #[cfg(feature = "s3")]
            Backend::S3(bucket) => bucket.delete(Key::own(&group, OWNER_FILE).as_str(), None),
        }
    }
}

fn unlink(store: &Dir, key: &Key) -> io::Result<()> {
    let root = beneath::open_root(store.root())?;
    let dir = match beneath::open_dir(root, &key.parents()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    match rustix::fs::unlinkat(&dir, key.name(), AtFlags::empty()) {
        Err(Errno::NOENT) => Ok(()),
        other => {
            other?;
            Ok(rustix::fs::fsync(&dir)?)
        }
    }
}

/// Removes the directories of a backup, from the inside; one with something in it stays.
fn remove_dirs(store: &Dir, group: &Key) -> io::Result<()> {
    let root = beneath::open_root(store.root())?;
    let parent = beneath::open_dir(root, &group.parents())?;
    let dir = match beneath::open_dir(parent.try_clone()?, &[group.name()]) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in beneath::entries(&dir)?.iter().filter(|entry| entry.is_dir) {
        remove_empty(&dir, &entry.name)?;
    }
    remove_empty(&parent, group.name())?;
    Ok(rustix::fs::fsync(&parent)?)
}

fn remove_empty(dir: &std::os::fd::OwnedFd, name: &str) -> io::Result<()> {
    match rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
        Err(Errno::NOENT | Errno::NOTEMPTY) => Ok(()),
        other => Ok(other?),
    }
}
