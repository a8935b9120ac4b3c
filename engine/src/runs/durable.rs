//! Files that survive a power cut.
//!
//! A directory with the set-group-id bit is shared with its group, and so is all that is made in it, whatever the umask of
//! the process says; everything else is for its owner alone.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use super::error::Error;
use crate::crash::{self, Point};

/// Makes the names in a directory durable.
pub(super) fn sync_dir(dir: &Path) -> Result<(), Error> {
    File::open(dir).and_then(|file| file.sync_all()).map_err(Error::io("make durable", dir))
}

/// Says whether a directory is shared with its group.
pub(crate) fn is_shared(dir: &Path) -> bool {
    fs::metadata(dir).is_ok_and(|metadata| metadata.mode() & 0o2000 != 0)
}

/// Gives a file that was just made to the group, if it stands in a shared directory.
pub(crate) fn share(path: &Path) -> io::Result<()> {
    if path.parent().is_some_and(is_shared) {
        fs::set_permissions(path, fs::Permissions::from_mode(0o660))?;
    }
    Ok(())
}

/// Makes a directory that only its owner, or the group of a shared one, can enter, durably; it may exist.
pub(super) fn private_dir(dir: &Path) -> Result<(), Error> {
    let parent = dir.parent().unwrap_or(Path::new("/"));
    let make = || -> io::Result<()> {
        DirBuilder::new().mode(0o700).create(dir)?;
        if is_shared(parent) {
            fs::set_permissions(dir, fs::Permissions::from_mode(0o2770))?;
        }
        Ok(())
    };
    match make() {
        Ok(()) => sync_dir(parent),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => Ok(()),
        Err(error) => Err(Error::io("create", dir)(error)),
    }
}

/// Makes the directories that lead from one, which usually exists, to one within it, for its owner alone or for the group of a shared
/// one; they may exist. Their names survive a power cut when something else makes them durable.
pub(crate) fn dirs_within(base: &Path, dir: &Path) -> io::Result<()> {
    let mut made = base.to_owned();
    let mut mode = None;
    if !base.is_dir() {
        DirBuilder::new().recursive(true).mode(0o700).create(base)?;
    }
    for part in dir.strip_prefix(base).unwrap_or(Path::new("")).components() {
        made.push(part);
        match DirBuilder::new().mode(0o700).create(&made) {
            Ok(()) if *mode.get_or_insert_with(|| is_shared(base)) => {
                fs::set_permissions(&made, fs::Permissions::from_mode(0o2770))?;
            }
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists || !made.is_dir() => {
                return Err(error);
            }
            _ => {}
        }
    }
    Ok(())
}

/// Puts a whole file in its place: readers see the old content or the new one, never a part.
pub(super) fn replace(path: &Path, content: &[u8]) -> Result<(), Error> {
    let dir = path.parent().expect("files of the state directory stand in a directory");
    let name = path.file_name().expect("files have names").to_string_lossy();
    let temporary = dir.join(format!(".{name}.{}.tmp", std::process::id()));
    let write = || -> io::Result<()> {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        share(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        crash::point(Point::FileWritten);
        fs::rename(&temporary, path)
    };
    write().map_err(|error| {
        // What is left of it would only take room, which may be what is missing.
        drop(fs::remove_file(&temporary));
        Error::io("write", path)(error)
    })?;
    crash::point(Point::FileRenamed);
    sync_dir(dir)
}

/// Opens a lock file, made if it is missing. Its content is never read.
pub(super) fn lock_file(path: &Path) -> Result<File, Error> {
    let is_new = !path.exists();
    let open = || -> io::Result<File> {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        if is_new {
            share(path)?;
        }
        Ok(file)
    };
    open().map_err(Error::io("open", path))
}
