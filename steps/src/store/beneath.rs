//! Directories below a root, reached one name at a time without following a symbolic link.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::CLOEXEC).union(OFlags::RDONLY);

/// Group members may read what Lifeboat writes. Others may pass through directories and read nothing: the user of
/// the Postgres server writes its backup below them when Lifeboat runs as root.
pub(crate) const DIRECTORY_MODE: Mode = Mode::from_raw_mode(0o751);
pub(crate) const FILE_MODE: Mode = Mode::from_raw_mode(0o640);

/// Opens the root itself, which may be a symbolic link.
pub(crate) fn open_root(root: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(root, DIRECTORY, Mode::empty())?)
}

/// Opens a directory below `root`.
pub(crate) fn open_dir(root: OwnedFd, segments: &[&str]) -> io::Result<OwnedFd> {
    segments.iter().try_fold(root, |dir, &name| open_child(&dir, name))
}

/// Opens a directory below `root` and makes what is missing of it, durably.
pub(crate) fn make_dir(root: OwnedFd, segments: &[&str]) -> io::Result<OwnedFd> {
    segments.iter().try_fold(root, |dir, &name| {
        match rustix::fs::mkdirat(&dir, name, DIRECTORY_MODE) {
            Ok(()) => rustix::fs::fsync(&dir)?,
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        open_child(&dir, name)
    })
}

fn open_child(dir: &OwnedFd, name: &str) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(dir, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?)
}

/// Opens a regular file for reading; anything else is an error.
pub(crate) fn open_file(dir: impl AsFd, name: &str) -> io::Result<std::fs::File> {
    // A fifo would otherwise block for ever.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = std::fs::File::from(rustix::fs::openat(dir, name, flags, Mode::empty())?);
    let metadata = file.metadata()?;
    if metadata.is_file() {
        return Ok(file);
    }
    let kind = if metadata.is_dir() { io::ErrorKind::IsADirectory } else { io::ErrorKind::InvalidInput };
    Err(io::Error::new(kind, "it is not a regular file"))
}

/// One entry of a directory.
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) size: u64,
    pub(crate) is_dir: bool,
}

/// Returns the files and directories in a directory, by name. Links, devices and names that are not UTF-8 are
/// nothing that Lifeboat wrote and are left out.
pub(crate) fn entries(dir: &OwnedFd) -> io::Result<Vec<Entry>> {
    let mut found = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let raw = entry.file_name().to_bytes();
        let Ok(name) = OsString::from_vec(raw.to_vec()).into_string() else { continue };
        if name == "." || name == ".." {
            continue;
        }
        let stat = match rustix::fs::statat(dir, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            // Gone since the directory was read.
            Err(Errno::NOENT) => continue,
            Err(error) => return Err(error.into()),
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {
                found.push(Entry { name, size: stat.st_size.unsigned_abs(), is_dir: false })
            }
            FileType::Directory => found.push(Entry { name, size: 0, is_dir: true }),
            _ => {}
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// Renames within one file system, never onto something that exists.
pub(crate) fn rename_new(from: (&OwnedFd, &str), to: (&OwnedFd, &str)) -> io::Result<()> {
    let flags = rustix::fs::RenameFlags::NOREPLACE;
    match rustix::fs::renameat_with(from.0, from.1, to.0, to.1, flags) {
        // Some network file systems know no such flag.
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => rename_new_by_link(from, to),
        other => Ok(other?),
    }
}

fn rename_new_by_link(from: (&OwnedFd, &str), to: (&OwnedFd, &str)) -> io::Result<()> {
    let stat = rustix::fs::statat(from.0, from.1, AtFlags::SYMLINK_NOFOLLOW)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        // Renaming onto a directory with something in it fails by itself; an empty one holds nothing to lose.
        return Ok(rustix::fs::renameat(from.0, from.1, to.0, to.1)?);
    }
    rustix::fs::linkat(from.0, from.1, to.0, to.1, AtFlags::empty())?;
    Ok(rustix::fs::unlinkat(from.0, from.1, AtFlags::empty())?)
}
