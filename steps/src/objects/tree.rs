//! A directory as a set of objects: what is in it, read and written without following a link.

use std::collections::BTreeSet;
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use jiff::Timestamp;
use lifeboat_engine::step::StepError;
use rustix::fs::{AtFlags, FileType};
use rustix::io::Errno;

use crate::store::named::Current;
use crate::store::{beneath, codes};

/// What our own temporary names begin with.
pub(super) const OURS: &str = ".lifeboat-";

/// Everything below a directory.
#[derive(Debug, Default)]
pub(super) struct Tree {
    pub(super) files: Vec<Current>,
    pub(super) dirs: BTreeSet<String>,
    /// Links, devices and names that are no text, each with what it is.
    pub(super) odd: Vec<(String, &'static str)>,
}

impl Tree {
    /// Walks a directory, which must be there. Our own temporary files are left out.
    pub(super) fn read(root: &Path) -> Result<Self, StepError> {
        let mut tree = Self::default();
        let walked = beneath::open_root(root).and_then(|dir| tree.walk(&dir, ""));
        walked.map(|()| tree).map_err(|error| {
            StepError::permanent(codes::LB1103, format!("{} cannot be read: {error}", root.display()))
                .help("check that it is there and that the user of Lifeboat may read it: `ls -l`")
        })
    }

    fn walk(&mut self, dir: &OwnedFd, prefix: &str) -> io::Result<()> {
        for entry in rustix::fs::Dir::read_from(dir)? {
            let raw = std::ffi::OsString::from_vec(entry?.file_name().to_bytes().to_vec());
            if raw == "." || raw == ".." || (prefix.is_empty() && raw.to_string_lossy().starts_with(OURS)) {
                continue;
            }
            let Some(text) = raw.to_str() else {
                self.odd.push((format!("{prefix}{}", raw.to_string_lossy()), "its name is no UTF-8 text"));
                continue;
            };
            let name = format!("{prefix}{text}");
            let stat = match rustix::fs::statat(dir, text, AtFlags::SYMLINK_NOFOLLOW) {
                // Gone since the directory was read.
                Err(Errno::NOENT) => continue,
                other => other?,
            };
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::RegularFile => self.files.push(Current {
                    name,
                    size: stat.st_size.unsigned_abs(),
                    modified: Timestamp::new(stat.st_mtime, i32::try_from(stat.st_mtime_nsec).unwrap_or(0))
                        .ok(),
                    etag: None,
                    archived: false,
                }),
                FileType::Directory => {
                    let child = beneath::open_dir(dir.try_clone()?, &[text])?;
                    self.walk(&child, &format!("{name}/"))?;
                    self.dirs.insert(name);
                }
                FileType::Symlink => self.odd.push((name, "it is a symbolic link")),
                _ => self.odd.push((name, "it is neither a file nor a directory")),
            }
        }
        Ok(())
    }

    /// Says what stands where files of these names would be written, beside files.
    pub(super) fn in_the_way<'n>(&self, names: impl Iterator<Item = &'n str>) -> Vec<String> {
        let odd: std::collections::BTreeMap<_, _> =
            self.odd.iter().map(|(name, why)| (name.as_str(), *why)).collect();
        let files: BTreeSet<_> = self.files.iter().map(|file| file.name.as_str()).collect();
        let problem = |name: &str| {
            let plain = name.strip_suffix('/').unwrap_or(name);
            if !name.ends_with('/') && self.dirs.contains(plain) {
                return Some(format!("`{}`: a directory has that name", name.escape_debug()));
            }
            let mut at = plain;
            loop {
                if let Some(why) = odd.get(at) {
                    return Some(format!("`{}`: {why}", at.escape_debug()));
                }
                if at != plain && files.contains(at) {
                    return Some(format!("`{}`: `{}` is a file", name.escape_debug(), at.escape_debug()));
                }
                at = at.rsplit_once('/')?.0;
            }
        };
        let mut found: Vec<_> = names.filter_map(problem).collect();
        found.dedup();
        found
    }
}

/// Opens a file below a directory for reading.
pub(super) fn open(root: &Path, name: &str) -> io::Result<(File, Metadata)> {
    let mut parts: Vec<_> = name.split('/').collect();
    let file_name = parts.pop().unwrap_or_default();
    let dir = beneath::open_dir(beneath::open_root(root)?, &parts)?;
    let file = beneath::open_file(dir, file_name)?;
    let found = file.metadata()?;
    Ok((file, found))
}

/// Says whether a file is the same content as before, as far as the file system tells.
pub(super) fn is_unchanged(before: &Metadata, after: &Metadata) -> bool {
    let facts = |found: &Metadata| {
        (found.ino(), found.size(), found.mtime(), found.mtime_nsec(), found.ctime(), found.ctime_nsec())
    };
    facts(before) == facts(after)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_seen_and_never_followed() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        std::fs::create_dir_all(root.join("a/b")).unwrap();
        std::fs::write(root.join("a/b/c"), "x").unwrap();
        std::fs::write(root.join("f"), "xy").unwrap();
        std::fs::write(root.join(".lifeboat-tmp"), "ours").unwrap();
        std::os::unix::fs::symlink("/etc", root.join("a/etc")).unwrap();
        let tree = Tree::read(root).unwrap();
        let mut names: Vec<_> = tree.files.iter().map(|file| (file.name.as_str(), file.size)).collect();
        names.sort_unstable();
        assert_eq!(names, [("a/b/c", 1), ("f", 2)]);
        assert_eq!(tree.odd, [("a/etc".to_owned(), "it is a symbolic link")]);
        let way = |name: &str| tree.in_the_way([name].into_iter());
        assert_eq!(way("a/etc/passwd"), ["`a/etc`: it is a symbolic link"]);
        assert_eq!(way("a/b"), ["`a/b`: a directory has that name"]);
        assert_eq!(way("f/x"), ["`f/x`: `f` is a file"]);
        assert!(way("a/b/c").is_empty() && way("new/x").is_empty() && way("a/b/").is_empty());
        assert!(open(root, "a/etc/passwd").is_err());
        assert_eq!(Tree::read(&root.join("none")).unwrap_err().code, codes::LB1103);
    }
}
