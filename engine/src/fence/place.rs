//! Directories and files, found as they are on this machine.

use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A path with links resolved and everything that exists of it.
pub(super) struct Place {
    pub(super) path: PathBuf,
    exists: bool,
    /// Device and inode of what exists of it, innermost first: the same directory may be mounted in two places.
    nodes: Vec<(u64, u64)>,
}

impl Place {
    pub(super) fn find(path: &Path) -> Self {
        let path = resolved(path);
        let node = |path: &Path| fs::metadata(path).ok().map(|found| (found.dev(), found.ino()));
        let exists = node(&path).is_some();
        let nodes = path.ancestors().filter_map(node).collect();
        Self { path, exists, nodes }
    }

    /// Says whether it is the other one or lies within it.
    fn is_in(&self, outer: &Self) -> bool {
        let mounted = || outer.exists && outer.nodes.first().is_some_and(|node| self.nodes.contains(node));
        self.path.starts_with(&outer.path) || mounted()
    }

    pub(super) fn overlaps(&self, other: &Self) -> bool {
        self.is_in(other) || other.is_in(self)
    }
}

/// Resolves symbolic links as far as the path exists.
pub(super) fn resolved(path: &Path) -> PathBuf {
    let mut missing = Vec::new();
    let mut existing = path;
    loop {
        if let Ok(real) = existing.canonicalize() {
            return missing.into_iter().rev().fold(real, |path, part| path.join(part));
        }
        match (existing.parent(), existing.file_name()) {
            (Some(parent), Some(name)) => {
                missing.push(name);
                existing = parent;
            }
            _ => return path.to_owned(),
        }
    }
}

/// Returns the data directory as the server that uses this one knows it: `postmaster.pid` is in no backup, so that a
/// restored copy does not name its source.
pub(super) fn served_as(data_dir: &Path) -> Option<PathBuf> {
    let text = fs::read_to_string(data_dir.join("postmaster.pid")).ok()?;
    text.lines().nth(1).map(str::trim).filter(|line| line.starts_with('/')).map(PathBuf::from)
}

/// Returns device and inode of the control file, which may be reached through a link inside the directory.
pub(super) fn control_file(data_dir: &Path) -> Option<(u64, u64)> {
    let found = fs::metadata(data_dir.join("global/pg_control")).ok()?;
    Some((found.dev(), found.ino()))
}

/// Reads the system identifier, with which the control file begins.
pub(super) fn system_identifier(data_dir: &Path) -> Option<u64> {
    let mut bytes = [0; 8];
    fs::File::open(data_dir.join("global/pg_control")).ok()?.read_exact(&mut bytes).ok()?;
    Some(u64::from_ne_bytes(bytes))
}
