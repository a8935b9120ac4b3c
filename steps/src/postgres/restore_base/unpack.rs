//! Streams a tar object of a store into a directory: read, hash and decompress on one thread, unpack on another.
//!
//! Nothing but plain files and directories below the directory is ever made. What the tar says of owners, modes and
//! times is not used: the server's user owns everything, and nobody else may read it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use flate2::read::MultiGzDecoder;
use lifeboat_engine::plan::hex;
use lifeboat_engine::step::StepError;
use sha2::{Digest as _, Sha256};

use super::super::codes;
use crate::postgres::backup_manifest::Manifest;
use crate::process::OsUser;
use crate::store::{Digest, HashingReader, Key, Marker, Meter, ObjectEntry, Store};

const CHUNK: usize = 256 * 1024;
/// Chunks between the two threads: enough to smooth, little memory.
const QUEUE: usize = 16;

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
    pub(super) owner: Option<&'a OsUser>,
    /// If given, every file must be in it with size and checksum.
    pub(super) manifest: Option<&'a Manifest>,
    pub(super) meter: &'a Meter,
}

/// What was made.
#[derive(Debug, Default)]
pub(super) struct Unpacked {
    pub(super) files: u64,
    pub(super) bytes: u64,
    /// Relative to the directory; only those that a manifest must have.
    pub(super) seen: std::collections::BTreeSet<PathBuf>,
}

/// Unpacks one object. When it returns, size and checksum of the object match the marker.
pub(super) fn unpack(job: &Job<'_>) -> Result<Unpacked, StepError> {
    let key = job.marker.key(&job.object.name)?;
    let (sender, receiver) = sync_channel(QUEUE);
    let give_up = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| read_object(job, &key, sender, &give_up));
        let unpacked = unpack_tar(job, Chunks::new(receiver));
        if unpacked.as_ref().is_err_and(|error| error.code == codes::LB1259) {
            give_up.store(true, Ordering::Release);
        }
        let digest = reader.join().expect("reading an object does not panic");
        // A store that fails, or an object that is not what its marker says, shows as a broken archive: the cause
        // goes first.
        if let Some(digest) = digest? {
            check_object(job, &digest)?;
        }
        unpacked
    })
}

fn check_object(job: &Job<'_>, digest: &Digest) -> Result<(), StepError> {
    let expected = job.object;
    if digest.size == expected.size && digest.sha256 == expected.sha256 {
        return Ok(());
    }
    Err(damaged(
        job,
        &format!(
            "it has {} bytes with SHA-256 {}, and the marker says {} bytes with {}",
            digest.size, digest.sha256, expected.size, expected.sha256
        ),
    ))
}

/// Reads the object to its end even where the archive in it is broken, because its checksum is the better error.
/// Returns `None` if unpacking gave up for a reason of its own.
fn read_object(
    job: &Job<'_>,
    key: &Key,
    sender: SyncSender<io::Result<Vec<u8>>>,
    give_up: &AtomicBool,
) -> Result<Option<Digest>, StepError> {
    let counted = Counted { inner: job.store.read(key)?, meter: job.meter, stopped: None };
    let mut hashed = HashingReader::new(counted);
    decode(&job.object.name, &mut hashed, &sender)?;
    drop(sender);
    let mut buffer = vec![0; CHUNK];
    // What follows the compressed stream, or what a broken stream left unread.
    let rest = loop {
        if give_up.load(Ordering::Acquire) {
            return Ok(None);
        }
        match hashed.read(&mut buffer) {
            Ok(0) => break Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => break Err(error),
        }
    };
    let (counted, digest) = hashed.finish();
    if let Some(stopped) = counted.stopped {
        return Err(stopped);
    }
    rest.map_err(|error| {
        StepError::transient(codes::LB1255, format!("`{key}` cannot be read: {error}"))
            .help("check that the store is mounted and readable, then retry")
    })?;
    Ok(Some(digest))
}

/// Sends decompressed chunks, then an empty one; or the first error. Ends early if nobody listens any more.
fn decode(
    name: &str,
    from: &mut dyn Read,
    sender: &SyncSender<io::Result<Vec<u8>>>,
) -> Result<(), StepError> {
    let decoder: io::Result<Box<dyn Read + '_>> = match name {
        _ if name.ends_with(".tar") => Ok(Box::new(from)),
        _ if name.ends_with(".gz") => Ok(Box::new(MultiGzDecoder::new(from))),
        _ if name.ends_with(".zst") => {
            zstd::Decoder::new(from).map(|decoder| Box::new(decoder) as Box<dyn Read + '_>)
        }
        _ => {
            return Err(StepError::permanent(
                codes::LB1255,
                format!("`{name}` has a form that is not known: .tar, .tar.gz and .tar.zst are"),
            ));
        }
    };
    let mut decoder = match decoder {
        Ok(decoder) => decoder,
        Err(error) => {
            drop(sender.send(Err(error)));
            return Ok(());
        }
    };
    loop {
        let mut chunk = vec![0; CHUNK];
        let sent = match decoder.read(&mut chunk) {
            Ok(count) => {
                chunk.truncate(count);
                let sent = sender.send(Ok(chunk));
                if count == 0 {
                    return Ok(());
                }
                sent
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => {
                drop(sender.send(Err(error)));
                return Ok(());
            }
        };
        if sent.is_err() {
            return Ok(());
        }
    }
}

/// Counts what is read, and ends reading when the attempt must end.
struct Counted<'a, R> {
    inner: R,
    meter: &'a Meter,
    stopped: Option<StepError>,
}

impl<R: Read> Read for Counted<'_, R> {
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

/// The chunks of the other thread as a stream. An empty chunk is the proper end; without it, it was cut off.
struct Chunks {
    receiver: Receiver<io::Result<Vec<u8>>>,
    current: Vec<u8>,
    at: usize,
    ended: bool,
}

impl Chunks {
    fn new(receiver: Receiver<io::Result<Vec<u8>>>) -> Self {
        Self { receiver, current: Vec::new(), at: 0, ended: false }
    }
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.current.len() && !self.ended {
            self.current = match self.receiver.recv() {
                Ok(chunk) => chunk?,
                Err(_) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the object ended early")),
            };
            self.at = 0;
            self.ended = self.current.is_empty();
        }
        let count = buffer.len().min(self.current.len() - self.at);
        buffer[..count].copy_from_slice(&self.current[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

fn unpack_tar(job: &Job<'_>, chunks: Chunks) -> Result<Unpacked, StepError> {
    let mut archive = tar::Archive::new(chunks);
    let mut unpacked = Unpacked::default();
    let broken = |error: &io::Error| damaged(job, &error.to_string());
    for entry in archive.entries().map_err(|error| broken(&error))? {
        let mut entry = entry.map_err(|error| broken(&error))?;
        let path = contained(job, &entry.path_bytes())?;
        match entry.header().entry_type() {
            tar::EntryType::Directory => make_dir(job, &path)?,
            tar::EntryType::Regular => write_file(job, &mut entry, path, &mut unpacked)?,
            other => {
                return Err(refused(
                    job,
                    &format!("{} is neither a file nor a directory ({other:?})", path.display()),
                ));
            }
        }
    }
    // The end of the archive is not the end of the stream: what follows still has to decompress without an error.
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(|error| broken(&error))?;
    Ok(unpacked)
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

fn write_file(
    job: &Job<'_>,
    from: &mut impl Read,
    path: PathBuf,
    unpacked: &mut Unpacked,
) -> Result<(), StepError> {
    let place = if path == Path::new(CONTROL_FILE) { HELD_BACK.into() } else { path.clone() };
    let full = job.dir.join(place);
    make_dir(job, path.parent().unwrap_or(Path::new("")))?;
    let expected = job.manifest.map(|manifest| manifest.files.get(&path));
    let hash = matches!(expected, Some(Some(file)) if file.sha256.is_some());
    let (size, sha256) = copy_file(job, from, &full, hash)?;
    unpacked.files += 1;
    unpacked.bytes += size;
    match expected {
        // WAL has no entries, wherever it comes from.
        None => return Ok(()),
        Some(None) if path.starts_with("pg_wal") => return Ok(()),
        Some(None) => return Err(mismatch(&path, "is in the archive and not in the manifest")),
        Some(Some(file)) if file.size != size => {
            return Err(mismatch(&path, &format!("has {size} bytes, and the manifest says {}", file.size)));
        }
        Some(Some(file)) if file.sha256 != sha256 => {
            return Err(mismatch(&path, "has another SHA-256 than the manifest says"));
        }
        Some(Some(_)) => {}
    }
    if unpacked.seen.insert(path.clone()) { Ok(()) } else { Err(mismatch(&path, "is in the archive twice")) }
}

fn copy_file(
    job: &Job<'_>,
    from: &mut impl Read,
    full: &Path,
    hash: bool,
) -> Result<(u64, Option<String>), StepError> {
    let mut file = create_file(full, job.owner).map_err(|error| unwritable(full, &error))?;
    let mut state = hash.then(Sha256::new);
    let mut buffer = vec![0; CHUNK];
    let mut size = 0;
    loop {
        let count = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(damaged(job, &error.to_string())),
        };
        file.write_all(&buffer[..count]).map_err(|error| unwritable(full, &error))?;
        if let Some(state) = &mut state {
            state.update(&buffer[..count]);
        }
        size += count as u64;
    }
    Ok((size, state.map(|state| hex(&state.finalize()))))
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

fn mismatch(path: &Path, why: &str) -> StepError {
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
