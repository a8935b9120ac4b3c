use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use lifeboat_engine::step::StepError;
use rustix::fs::{AtFlags, FlockOperation, OFlags};

use super::backend::{Put, taken};
use super::key::{Key, TEMPORARY};
use super::named::{Existing, Facts, Pin};
use super::uncached::{LARGE, Uncached};
use super::{beneath, failure};

/// An object open for reading, from its beginning.
#[derive(Debug)]
pub(super) struct FileReader {
    file: File,
    size: u64,
    /// Takes the place of the file when a large one is read.
    uncached: Option<Uncached>,
}

impl FileReader {
    pub(super) fn new(file: File) -> io::Result<Self> {
        let size = file.metadata()?.len();
        Ok(Self { file, size, uncached: None })
    }

    /// Returns the size in bytes when it was opened.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Returns when it got its content, as far as the file system tells.
    pub(super) fn modified(&self) -> Option<Timestamp> {
        let modified = self.file.metadata().ok()?.modified().ok()?;
        Timestamp::try_from(modified).ok()
    }

    /// Returns what the file system says of it. A file that is written anew has another tag.
    pub(super) fn facts(&self) -> io::Result<Facts> {
        let found = self.file.metadata()?;
        let etag =
            format!("{:x}-{:x}.{:x}-{:x}", found.ino(), found.mtime(), found.mtime_nsec(), found.size());
        let pin = Pin { version: None, etag: Some(etag) };
        Ok(Facts { size: self.size, modified: self.modified(), pin, sha256: None, md5: None })
    }

    /// Goes on from a position.
    pub(super) fn seek_to(&mut self, from: u64) -> io::Result<()> {
        self.uncached = None;
        self.file.seek(io::SeekFrom::Start(from)).map(drop)
    }
}

impl Read for FileReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.size < LARGE {
            return self.file.read(buffer);
        }
        if self.uncached.is_none() {
            let at = self.file.stream_position()?;
            self.uncached = Some(Uncached::new(self.file.try_clone()?, at));
        }
        self.uncached.as_mut().map_or(Ok(0), |uncached| uncached.read(buffer))
    }
}

/// An object being written. Dropped without [`NewFile::commit`] it leaves nothing behind.
#[derive(Debug)]
#[must_use = "an object that is not committed is thrown away"]
pub(super) struct NewFile {
    dir: OwnedFd,
    key: Key,
    existing: Existing,
    /// Its name until it is published; from then on another writer may use that name.
    temporary: Option<String>,
    file: Option<File>,
}

/// How long an unlocked temporary file is left alone: its writer may be about to lock it.
const STALE_AFTER: Duration = Duration::from_mins(10);

impl NewFile {
    pub(super) fn create(dir: OwnedFd, key: Key, existing: Existing) -> Result<Self, StepError> {
        let (temporary, file) =
            create_temporary(&dir, &key).map_err(|error| failure::write(format_args!("`{key}`"), &error))?;
        // Held until the file is closed; marks the file as one whose writer lives. Where locks do not work, the
        // age alone protects it.
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).ok();
        Ok(Self { dir, key, existing, temporary: Some(temporary), file: Some(file) })
    }

    /// Makes the object durable and visible under its name.
    ///
    /// When this returns, the object survives a power cut. If an object of that name appeared in the meantime, it
    /// stays, unless it was to be replaced: with the same content this is success, with other content an error.
    pub(super) fn commit(mut self) -> Result<Put, StepError> {
        let file = self.file.take().expect("only commit takes the file, and it takes the object");
        let put =
            self.publish(file).map_err(|error| failure::write(format_args!("`{}`", self.key), &error))?;
        put.ok_or_else(|| taken(&self.key))
    }

    /// Returns `None` if a different object has the name.
    fn publish(&mut self, mut file: File) -> io::Result<Option<Put>> {
        file.sync_all()?;
        let temporary = self.temporary.as_deref().expect("only publishing takes the name, and happens once");
        let (from, to) = ((&self.dir, temporary), (&self.dir, self.key.name()));
        let renamed = match self.existing {
            Existing::Keep => beneath::rename_new(from, to),
            Existing::Replace => rustix::fs::renameat(from.0, from.1, to.0, to.1).map_err(io::Error::from),
        };
        let put = match renamed {
            Ok(()) => {
                self.temporary = None;
                Put::Written
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let mut existing = beneath::open_file(&self.dir, self.key.name())?;
                file.rewind()?;
                if !is_same(&mut file, &mut existing)? {
                    return Ok(None);
                }
                // Its writer may have died before it was durable.
                existing.sync_all()?;
                Put::Identical
            }
            Err(error) => return Err(error),
        };
        rustix::fs::fsync(&self.dir)?;
        Ok(Some(put))
    }
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.file {
            Some(file) => file.write(bytes),
            None => Err(io::Error::other("the object is closed")),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            rustix::fs::unlinkat(&self.dir, temporary, AtFlags::empty()).ok();
        }
    }
}

/// Creates a temporary file of a name that belongs to the object, so that what a dead writer left is found without
/// listing a directory that may be very large. While another writer has that name, a random one is added.
fn create_temporary(dir: &OwnedFd, key: &Key) -> io::Result<(String, File)> {
    // Short enough that a long name still leaves room for the random part.
    let name: String = key.name().chars().take(40).collect();
    let usual = format!("{TEMPORARY}tmp-{name}");
    match open_new(dir, &usual) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        opened => return Ok((usual, opened?)),
    }
    if remove_stale(dir, &usual)
        && let Ok(file) = open_new(dir, &usual)
    {
        return Ok((usual, file));
    }
    let other = format!("{usual}-{}", uuid::Uuid::now_v7().simple());
    let file = open_new(dir, &other)?;
    Ok((other, file))
}

fn open_new(dir: &OwnedFd, name: &str) -> io::Result<File> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(dir, name, flags, beneath::FILE_MODE)?.into())
}

/// Removes a temporary file whose writer died, and says whether it did.
fn remove_stale(dir: &OwnedFd, name: &str) -> bool {
    let Ok(file) = beneath::open_file(dir, name) else { return false };
    let Ok(metadata) = file.metadata() else { return false };
    let age = metadata.modified().ok().and_then(|at| SystemTime::now().duration_since(at).ok());
    if age.is_none_or(|age| age <= STALE_AFTER)
        || rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err()
    {
        return false;
    }
    // Somebody else may have removed it before the lock was free, and a living writer have taken the name since.
    let still_named = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|stat| (stat.st_dev, stat.st_ino) == (metadata.dev(), metadata.ino()));
    still_named && rustix::fs::unlinkat(dir, name, AtFlags::empty()).is_ok()
}

/// Compares two streams byte by byte.
fn is_same(a: &mut impl Read, b: &mut impl Read) -> io::Result<bool> {
    const CHUNK: u64 = 64 * 1024;
    let (mut left, mut right) = (Vec::new(), Vec::new());
    loop {
        left.clear();
        right.clear();
        a.by_ref().take(CHUNK).read_to_end(&mut left)?;
        b.by_ref().take(CHUNK).read_to_end(&mut right)?;
        if left != right {
            return Ok(false);
        }
        if left.is_empty() {
            return Ok(true);
        }
    }
}
