//! Streams a tar object of a store into a directory.
//!
//! Nothing but plain files and directories below the directory is ever made. What the tar says of owners, modes and
//! times is not used: the server's user owns everything, and nobody else may read it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use lifeboat_engine::step::StepError;

use super::super::codes;
use super::super::stream::{self, Broken, EntryType, Form, Tar, stream};
use super::delta::Rewritten;
use super::flusher::Flusher;
use super::hashing::{Hashing, hashed};
use super::target::Existing;
use crate::postgres::backup_manifest::Manifest;
use crate::process::OsUser;
use crate::store::{HashingReader, Marker, Meter, ObjectEntry, ObjectReader, Store};

const CHUNK: usize = 256 * 1024;
/// So much of a large file goes to the disk while the rest of it is still unpacked.
const FLUSHED_AT_ONCE: usize = 32 << 20;

/// Where the control file waits until everything else is durable.
pub(super) const HELD_BACK: &str = "global/pg_control.lifeboat";
pub(super) const CONTROL_FILE: &str = "global/pg_control";

/// One tar object and where it goes.
pub(super) struct Job<'a> {
    pub(super) store: &'a Store,
    pub(super) marker: &'a Marker,
    pub(super) object: &'a ObjectEntry,
    /// The top of what is unpacked.
    pub(super) dir: &'a Path,
    /// What the manifest calls that place: empty for the data directory itself.
    pub(super) prefix: &'a Path,
    pub(super) owner: Option<&'a OsUser>,
    /// If given, every file must be in it with size and checksum.
    pub(super) manifest: Option<&'a Manifest>,
    pub(super) meter: &'a Meter,
    pub(super) flusher: &'a Flusher,
    /// Whether files of an earlier restore stand there.
    pub(super) existing: Existing,
}

/// What was made.
#[derive(Debug, Default)]
pub(super) struct Unpacked {
    pub(super) files: u64,
    pub(super) bytes: u64,
    /// Of these, what stood there already.
    pub(super) kept: u64,
    /// Files that have no SHA-256 in a manifest.
    pub(super) by_size: u64,
    /// Relative to the directory; only those that a manifest must have.
    pub(super) seen: std::collections::BTreeSet<PathBuf>,
}

impl Unpacked {
    /// Adds what another object held.
    pub(super) fn add(&mut self, other: Self) {
        self.files += other.files;
        self.bytes += other.bytes;
        self.kept += other.kept;
        self.by_size += other.by_size;
        self.seen.extend(other.seen);
    }
}

/// Unpacks one object. When it returns, every file is proven: by its own SHA-256 in the manifest, or by that of the
/// object in the marker.
///
/// Both would say the same of a file, and hashing is a third of the work.
pub(super) fn unpack(job: &Job<'_>) -> Result<Unpacked, StepError> {
    let (_, form) = Form::of(&job.object.name).ok_or_else(|| unknown_form(job))?;
    let by_file = job.manifest.is_some_and(Manifest::has_checksums);
    let by_object = !by_file && is_known(job.object);
    let mut counted = Counted { inner: open(job)?, meter: job.meter, stopped: None };
    let (read, unpacked) = stream(&mut counted, (form, by_object), |chunks| {
        hashed(|hashing| Work { job, tar: Tar::new(chunks), hashing }.unpack())
    });
    if let Some(stopped) = counted.stopped {
        return Err(stopped);
    }
    // A store that fails, or an object that is not what its marker says, shows as a broken archive: the cause goes
    // first.
    let read = read.map_err(|error| unreadable(job, &error))?;
    match unpacked {
        Ok(unpacked) => {
            let proven = read.sha256.is_some() || unpacked.by_size == 0 || !is_known(job.object);
            check_object(job, &if proven { read } else { read_again(job)? })?;
            Ok(unpacked)
        }
        Err(Broken::Use(error)) if error.code == codes::LB1259 => Err(error),
        Err(broken) => {
            check_object(job, &read_again(job)?)?;
            Err(match broken {
                Broken::Use(error) => error,
                Broken::Archive(error) => damaged(job, &error.to_string()),
            })
        }
    }
}

fn open(job: &Job<'_>) -> Result<ObjectReader, StepError> {
    job.store.read(&job.marker.key(&job.object.name)?)
}

/// Says whether the checksum of the object is known; of what another tool made it is not.
fn is_known(object: &ObjectEntry) -> bool {
    !object.sha256.is_empty()
}

/// Hashes the whole object.
fn read_again(job: &Job<'_>) -> Result<stream::Read, StepError> {
    // Its bytes have been counted once.
    let mut hashed = HashingReader::new(open(job)?);
    let mut buffer = vec![0; CHUNK];
    loop {
        job.meter.advance(0)?;
        match hashed.read(&mut buffer) {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(unreadable(job, &error)),
        }
    }
    let digest = hashed.finish().1;
    Ok(stream::Read { size: digest.size, sha256: Some(digest.sha256), whole: true })
}

fn check_object(job: &Job<'_>, read: &stream::Read) -> Result<(), StepError> {
    let expected = job.object;
    let same = !is_known(expected) || read.sha256.as_ref().is_none_or(|sha256| *sha256 == expected.sha256);
    if read.whole && read.size == expected.size && same {
        return Ok(());
    }
    let sha256 = read.sha256.as_deref().unwrap_or("not computed");
    if !is_known(expected) {
        let size = expected.size;
        return Err(damaged(
            job,
            &format!("{} bytes of it were read, and the store lists {size}", read.size),
        ));
    }
    Err(damaged(
        job,
        &format!(
            "it has {} bytes with SHA-256 {sha256}, and the marker says {} bytes with {}",
            read.size, expected.size, expected.sha256
        ),
    ))
}

/// Counts what is read, and ends reading when the attempt must end.
struct Counted<'a> {
    inner: ObjectReader,
    meter: &'a Meter,
    stopped: Option<StepError>,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer).inspect_err(|error| {
            // A bucket that fails is not an object that is damaged.
            self.stopped = crate::store::of_store(error).cloned();
        })?;
        if let Err(error) = self.meter.advance(count as u64) {
            self.stopped = Some(error);
            return Err(io::Error::other("interrupted"));
        }
        Ok(count)
    }
}

/// An archive on its way into a directory.
struct Work<'a> {
    job: &'a Job<'a>,
    tar: Tar,
    hashing: &'a Hashing,
}

impl Work<'_> {
    fn unpack(mut self) -> Result<Unpacked, Broken> {
        let mut unpacked = Unpacked::default();
        while let Some(entry) = self.tar.next()? {
            let path = contained(self.job, &entry.name)?;
            match entry.kind {
                EntryType::Directory => make_dir(self.job, &path)?,
                EntryType::Regular => self.file((path, entry.size), &mut unpacked)?,
                other => {
                    let what = format!("{} is neither a file nor a directory ({other:?})", path.display());
                    return Err(refused(self.job, &what).into());
                }
            }
        }
        Ok(unpacked)
    }

    /// Writes one file. Its size is compared at once, its checksum meanwhile.
    fn file(&mut self, (path, size): (PathBuf, u64), unpacked: &mut Unpacked) -> Result<(), Broken> {
        let job = self.job;
        let place = if path == Path::new(CONTROL_FILE) { HELD_BACK.into() } else { path.clone() };
        let full = job.dir.join(place);
        make_dir(job, path.parent().unwrap_or(Path::new("")))?;
        let path = job.prefix.join(path);
        let expected = job.manifest.map(|manifest| manifest.files.get(&path));
        let sha256 = expected.flatten().and_then(|file| file.sha256.as_deref());
        unpacked.kept += self.fill(&full, sha256.is_some())?;
        unpacked.files += 1;
        unpacked.bytes += size;
        unpacked.by_size += u64::from(sha256.is_none());
        let wrong = match expected {
            // WAL has no entries, wherever it comes from.
            None => return Ok(()),
            Some(None) if path.starts_with("pg_wal") => return Ok(()),
            Some(None) => "is in the archive and not in the manifest".to_owned(),
            Some(Some(file)) if file.size != size => {
                format!("has {size} bytes, and the manifest says {}", file.size)
            }
            Some(Some(_)) if !unpacked.seen.insert(path.clone()) => "is in the archive twice".to_owned(),
            Some(Some(_)) => return sha256.map_or(Ok(()), |sha256| self.hashing.end(&path, sha256)),
        };
        Err(mismatch(&path, &wrong).into())
    }

    /// Puts the bytes of the entry into a file, and returns how many of them stood there already.
    fn fill(&mut self, full: &Path, hash: bool) -> Result<u64, Broken> {
        let Self { job, tar, hashing } = self;
        let failed = |error: io::Error| unwritable(full, &error);
        let mut each = |write: &mut dyn FnMut(&[u8]) -> io::Result<()>| {
            tar.each_piece::<Broken>(|piece| {
                write(&piece).map_err(failed)?;
                if hash { hashing.update(piece) } else { Ok(()) }
            })
        };
        if job.existing == Existing::Delta
            && let Some(mut there) = Rewritten::open(full).map_err(failed)?
        {
            each(&mut |bytes| there.write(bytes))?;
            return Ok(there.finish().map_err(failed)?);
        }
        let mut file = create_file(full, job.owner).map_err(failed)?;
        let mut unflushed = 0;
        each(&mut |bytes| {
            file.write_all(bytes)?;
            unflushed += bytes.len();
            if unflushed >= FLUSHED_AT_ONCE {
                job.flusher.flush(&file);
                unflushed = 0;
            }
            Ok(())
        })?;
        Ok(0)
    }
}

/// Turns the name of an entry into a path below the directory, or refuses it.
fn contained(job: &Job<'_>, name: &[u8]) -> Result<PathBuf, StepError> {
    use std::os::unix::ffi::OsStrExt;
    let written = Path::new(std::ffi::OsStr::from_bytes(name));
    let mut path = PathBuf::new();
    for component in written.components() {
        match component {
            Component::Normal(part) => path.push(part),
            Component::CurDir => {}
            Component::RootDir | Component::ParentDir | Component::Prefix(_) => {
                return Err(refused(job, &format!("`{}` leads out of the directory", written.display())));
            }
        }
    }
    Ok(path)
}

/// Makes a directory and what is missing above it; an archive need not name directories before their files.
fn make_dir(job: &Job<'_>, path: &Path) -> Result<(), StepError> {
    let mut full = job.dir.to_path_buf();
    for part in path {
        full.push(part);
        if !full.is_dir() {
            make_private_dir(&full, job.owner).map_err(|error| unwritable(&full, &error))?;
        }
    }
    Ok(())
}

/// Makes one directory that only the server's user can enter.
pub(super) fn make_private_dir(path: &Path, owner: Option<&OsUser>) -> io::Result<()> {
    std::fs::DirBuilder::new().mode(0o700).create(path).and_then(|()| own_path(path, owner))
}

fn create_file(full: &Path, owner: Option<&OsUser>) -> io::Result<File> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(full)?;
    if let Some(owner) = owner {
        std::os::unix::fs::fchown(&file, Some(owner.uid), Some(owner.gid))?;
    }
    Ok(file)
}

/// Gives a path to the server's user.
pub(super) fn own_path(path: &Path, owner: Option<&OsUser>) -> io::Result<()> {
    match owner {
        Some(owner) => std::os::unix::fs::lchown(path, Some(owner.uid), Some(owner.gid)),
        None => Ok(()),
    }
}

fn unknown_form(job: &Job<'_>) -> StepError {
    let name = &job.object.name;
    StepError::permanent(
        codes::LB1255,
        format!("`{name}` has a form that is not known: .tar, .tar.gz and .tar.zst are"),
    )
}

fn unreadable(job: &Job<'_>, error: &io::Error) -> StepError {
    if let Some(error) = crate::store::of_store(error) {
        return error.clone();
    }
    let name = &job.object.name;
    let message = format!("`{name}` of backup `{}` cannot be read: {error}", job.marker.label);
    StepError::transient(codes::LB1255, message)
        .help("check that the store is mounted and readable, then retry")
}

fn damaged(job: &Job<'_>, why: &str) -> StepError {
    StepError::permanent(
        codes::LB1255,
        format!("`{}` of backup `{}` is damaged: {why}", job.object.name, job.marker.label),
    )
    .help("restore from another backup: `lifeboat steps postgres.select_backup` tells how one is chosen")
}

fn refused(job: &Job<'_>, why: &str) -> StepError {
    StepError::permanent(
        codes::LB1256,
        format!("`{}` of backup `{}` was not unpacked: {why}", job.object.name, job.marker.label),
    )
    .help("a base backup never holds such an entry; find out who wrote this object")
}

/// Reports a file that is not what the manifest says.
pub(super) fn mismatch(path: &Path, why: &str) -> StepError {
    StepError::permanent(codes::LB1258, format!("the restored file {} {why}", path.display()))
        .help("the backup is damaged or was put together wrongly; restore from another one")
}

/// Reports that something could not be written; a full disk can be given room.
pub(super) fn unwritable(path: &Path, error: &io::Error) -> StepError {
    let message = format!("{} cannot be written: {error}", path.display());
    if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
        return StepError::transient(codes::LB1259, message).help("make room (`df -h`), then try again");
    }
    StepError::permanent(codes::LB1259, message)
        .help("check the file system and the rights on the directory above")
}
