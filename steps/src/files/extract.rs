//! Unpacks an archive into a directory beside the target, and compares a tree with a manifest.

use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use lifeboat_engine::step::StepError;
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};
use rustix::process::{Gid, Uid};
use tar::EntryType;

use super::codes;
use super::manifest::{Content, Entry, Manifest, RawPath};
use super::owner::Owners;
use crate::process::OsUser;
use crate::store::{Digest, HashingWriter, Meter, copy, digest_of};

/// Who owns what is unpacked.
#[derive(Clone, Debug)]
pub(super) enum Ownership {
    /// As recorded, by name where this machine has it.
    Recorded,
    /// This user.
    User(OsUser),
    /// Whoever runs Lifeboat, because only root may give files away.
    Ours,
}

/// What a tree has other than its manifest says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Differences {
    pub(super) missing: Vec<String>,
    pub(super) different: Vec<String>,
    pub(super) extra: Vec<String>,
}

/// Makes `staging` hold exactly what the manifest says. What is there already with the right content stays, so that
/// an interrupted restore goes on. `archive` is the decompressed archive. Returns how many bytes were written.
pub(super) fn extract(
    manifest: &Manifest,
    archive: impl Read,
    staging: &Path,
    (ownership, meter): (&Ownership, &Meter),
) -> Result<u64, StepError> {
    prepare(manifest, staging)?;
    let written = contents(manifest, archive, staging, meter)?;
    for entry in &manifest.entries {
        if let Content::Symlink { target } = &entry.content {
            let path = staging.join(&entry.path.0);
            symlink(&target.0, &path).map_err(|error| failed("made", &path, &error))?;
        }
    }
    let owners = Owners::load();
    // What is in a directory before the directory, whose time and mode it would change or need.
    for entry in manifest.entries.iter().rev() {
        let path = staging.join(&entry.path.0);
        look(entry, &path, ownership, &owners)
            .map_err(|error| failed("given its owner and mode", &path, &error))?;
    }
    let root = File::open(staging).map_err(|error| failed("opened", staging, &error))?;
    rustix::fs::syncfs(&root).map_err(|error| failed("synced", staging, &error.into()))?;
    Ok(written)
}

/// Makes the directories, and removes what an earlier attempt left that does not belong there, links first of all:
/// so no path leads through a link.
fn prepare(manifest: &Manifest, staging: &Path) -> Result<(), StepError> {
    fs::create_dir_all(staging).map_err(|error| failed("made", staging, &error))?;
    writable(staging)?;
    super::case::check(manifest, staging)?;
    let dirs: BTreeSet<&Path> = of(manifest, |content| *content == Content::Dir);
    let files: BTreeSet<&Path> = of(manifest, |content| matches!(content, Content::File { .. }));
    clear(staging, Path::new(""), (&dirs, &files))?;
    for dir in dirs {
        let path = staging.join(dir);
        fs::create_dir_all(&path).map_err(|error| failed("made", &path, &error))?;
    }
    Ok(())
}

fn of(manifest: &Manifest, wanted: impl Fn(&Content) -> bool) -> BTreeSet<&Path> {
    let entries = manifest.entries.iter().filter(|entry| wanted(&entry.content));
    entries.map(|entry| entry.path.0.as_path()).filter(|path| *path != Path::new(".")).collect()
}

fn clear(staging: &Path, below: &Path, keep: (&BTreeSet<&Path>, &BTreeSet<&Path>)) -> Result<(), StepError> {
    let dir = staging.join(below);
    let listed = fs::read_dir(&dir).map_err(|error| failed("read", &dir, &error))?;
    for entry in listed {
        let entry = entry.map_err(|error| failed("read", &dir, &error))?;
        let (below, path) = (below.join(entry.file_name()), entry.path());
        let kind = entry.file_type().map_err(|error| failed("read", &path, &error))?;
        if kind.is_dir() {
            writable(&path)?;
            clear(staging, &below, keep)?;
            if !keep.0.contains(below.as_path()) {
                fs::remove_dir(&path).map_err(|error| failed("removed", &path, &error))?;
            }
        } else if !kind.is_file() || !keep.1.contains(below.as_path()) {
            fs::remove_file(&path).map_err(|error| failed("removed", &path, &error))?;
        }
    }
    Ok(())
}

fn writable(dir: &Path) -> Result<(), StepError> {
    fs::set_permissions(dir, Permissions::from_mode(0o700)).map_err(|error| failed("opened", dir, &error))
}

fn contents(
    manifest: &Manifest,
    archive: impl Read,
    staging: &Path,
    meter: &Meter,
) -> Result<u64, StepError> {
    let mut left = manifest.files();
    let mut written = 0;
    let mut archive = tar::Archive::new(archive);
    let entries = archive.entries().map_err(|error| damaged("its archive cannot be read", &error))?;
    for entry in entries {
        let mut entry = entry.map_err(|error| damaged("its archive cannot be read", &error))?;
        if entry.header().entry_type() != EntryType::Regular {
            continue;
        }
        let below =
            entry.path().map_err(|error| damaged("its archive has a strange path", &error))?.into_owned();
        // Only what the manifest names is written, and the manifest was proven to stay inside.
        let Some((size, sha256, _)) = left.remove(below.as_path()) else { continue };
        let path = staging.join(&below);
        if is_there(&path, size, sha256)? {
            meter.advance(size)?;
            continue;
        }
        let digest = write(&path, &mut entry, meter)?;
        if (digest.size, digest.sha256.as_str()) != (size, sha256) {
            let problem = format!("the content of `{}` is not that of the manifest", RawPath(below));
            return Err(different(&problem));
        }
        written += size;
    }
    match left.keys().next() {
        None => Ok(written),
        Some(path) => Err(different(&format!("its archive ends without `{}`", RawPath(path.to_path_buf())))),
    }
}

/// Says whether an earlier attempt has written this file whole.
fn is_there(path: &Path, size: u64, sha256: &str) -> Result<bool, StepError> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_file() && found.len() == size => {
            let file = File::open(path).map_err(|error| failed("read", path, &error))?;
            Ok(digest_of(file, &Meter::silent())?.sha256 == sha256)
        }
        _ => Ok(false),
    }
}

fn write(path: &Path, from: &mut impl Read, meter: &Meter) -> Result<Digest, StepError> {
    if path.exists() {
        fs::remove_file(path).map_err(|error| failed("removed", path, &error))?;
    }
    let file = File::create_new(path).map_err(|error| failed("written", path, &error))?;
    let mut to = HashingWriter::new(file);
    copy(from, &mut to, meter)?;
    Ok(to.finish().1)
}

fn look(entry: &Entry, path: &Path, ownership: &Ownership, owners: &Owners) -> io::Result<()> {
    let owner = match ownership {
        Ownership::Recorded => Some((
            owners.uid(entry.user.as_deref(), entry.uid),
            owners.gid(entry.group.as_deref(), entry.gid),
        )),
        Ownership::User(user) => Some((user.uid, user.gid)),
        Ownership::Ours => None,
    };
    if let Some((uid, gid)) = owner {
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        rustix::fs::chownat(CWD, path, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    }
    if let Content::Symlink { .. } = entry.content {
        return set_time(path, entry.mtime, AtFlags::SYMLINK_NOFOLLOW);
    }
    // Before the mode, which may forbid it.
    super::attributes::give(path, &entry.user_attributes);
    fs::set_permissions(path, Permissions::from_mode(entry.mode))?;
    set_time(path, entry.mtime, AtFlags::empty())
}

/// By path and not by an open file, because the mode may forbid us to open it.
fn set_time(path: &Path, (seconds, nanoseconds): (i64, u32), flags: AtFlags) -> io::Result<()> {
    let times = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
        last_modification: Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() },
    };
    rustix::fs::utimensat(CWD, path, &times, flags)?;
    Ok(())
}

/// Compares a tree with a manifest, reading every file.
pub(super) fn compare(manifest: &Manifest, root: &Path, meter: &Meter) -> Result<Differences, StepError> {
    let mut differences = Differences::default();
    let mut known = BTreeSet::new();
    for entry in &manifest.entries {
        meter.advance(0)?;
        let path = root.join(&entry.path.0);
        known.insert(entry.path.0.clone());
        let name = entry.path.to_string();
        let Ok(found) = fs::symlink_metadata(&path) else {
            differences.missing.push(name);
            continue;
        };
        let same = match &entry.content {
            Content::Dir => found.is_dir() || (entry.path.0 == Path::new(".") && path.is_dir()),
            Content::Symlink { target } => fs::read_link(&path).is_ok_and(|found| found == target.0),
            Content::File { size, sha256 } => {
                found.is_file() && found.len() == *size && {
                    let file =
                        File::open(&path).map_err(|error| super::archive::failed("read", &path, &error))?;
                    digest_of(file, meter)?.sha256 == *sha256
                }
            }
        };
        if !same {
            differences.different.push(name);
        }
    }
    extra(root, Path::new(""), (&known, &mut differences.extra))?;
    Ok(differences)
}

fn extra(
    root: &Path,
    below: &Path,
    (known, found): (&BTreeSet<PathBuf>, &mut Vec<String>),
) -> Result<(), StepError> {
    let dir = root.join(below);
    let Ok(listed) = fs::read_dir(&dir) else { return Ok(()) };
    for entry in listed {
        let entry = entry.map_err(|error| super::archive::failed("read", &dir, &error))?;
        let below = below.join(entry.file_name());
        if !known.contains(&below) {
            found.push(RawPath(below).to_string());
        } else if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            extra(root, &below, (known, found))?;
        }
    }
    Ok(())
}

fn different(problem: &str) -> StepError {
    StepError::permanent(codes::LB1408, format!("the backup of files is damaged: {problem}"))
        .help("choose another backup with `backup`; the target was not touched")
}

fn damaged(problem: &str, error: &io::Error) -> StepError {
    if let Some(inner) = crate::store::of_store(error) {
        return inner.clone();
    }
    different(problem).caused_by(error)
}

fn failed(what: &str, path: &Path, error: &io::Error) -> StepError {
    StepError::transient(codes::LB1406, format!("{} cannot be {what}", path.display()))
        .help("check the permissions and the space of the directory")
        .caused_by(error)
}
