//! Brings objects into files below a directory of its own, each compared with what the store says of it.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use jiff::Timestamp;
use lifeboat_engine::plan::hex;
use lifeboat_engine::step::StepError;
use rustix::fs::{Gid, Mode, OFlags, Uid};
use sha2::Digest as _;

use super::notes::{Intact, Note, Notes};
use super::whole::{Known, Proof, Whole};
use crate::store::named::Pin;
use crate::store::parallel::by_size;
use crate::store::{Meter, ObjectReader, Store, beneath, codes};

/// After so many bytes of a large object it is noted how far it came, so that a later attempt goes on from there.
const NOTED: u64 = 16 << 20;
const BUFFER: usize = 256 * 1024;

/// One object that is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    /// What the store calls it.
    pub(super) object: String,
    /// A safe path: [`super::names`] has looked at it. One that ends with `/` stands for a directory.
    pub(super) name: String,
    pub(super) size: u64,
    pub(super) modified: Option<Timestamp>,
    pub(super) pin: Pin,
}

/// How many objects were compared with what.
#[derive(Debug, Default)]
pub(super) struct Proven {
    sha256: AtomicU64,
    md5: AtomicU64,
    crc: AtomicU64,
    size: AtomicU64,
}

impl Proven {
    /// Returns the numbers: by SHA-256, by MD5, by a cyclic checksum, and by nothing but the size.
    pub(super) fn counts(&self) -> [u64; 4] {
        [&self.sha256, &self.md5, &self.crc, &self.size].map(|count| count.load(Ordering::Relaxed))
    }

    fn count(&self, proof: Proof) {
        let count = match proof {
            Proof::Sha256 => &self.sha256,
            Proof::Md5 => &self.md5,
            Proof::Crc => &self.crc,
            Proof::Nothing => &self.size,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// The fetching of many objects.
#[derive(Debug)]
pub(super) struct Fetcher {
    pub(super) store: Store,
    /// It must be there; nothing is written outside of it, whatever links somebody puts into it.
    pub(super) root: PathBuf,
    pub(super) owner: Option<(u32, u32)>,
    pub(super) notes: Notes,
    pub(super) meter: Meter,
    pub(super) proven: Proven,
}

impl Fetcher {
    /// Fetches all of them; what is there already and intact is not fetched again.
    pub(super) fn all(&self, wanted: &[Wanted]) -> Result<(), StepError> {
        by_size(wanted, |object| object.size, |object| self.one(object).map(drop))
    }

    /// Fetches one into its file, and returns the SHA-256 of what was written there, as far as it is a file.
    pub(super) fn one(&self, wanted: &Wanted) -> Result<String, StepError> {
        let unwritten = |error: io::Error| self.unwritten(&wanted.name, &error);
        let root = beneath::open_root(&self.root).map_err(unwritten)?;
        if let Some(dir) = wanted.name.strip_suffix('/') {
            let made = beneath::make_dir(root, &dir.split('/').collect::<Vec<_>>());
            return made.map(|_| String::new()).map_err(unwritten);
        }
        let mut parts: Vec<_> = wanted.name.split('/').collect();
        let file_name = parts.pop().unwrap_or_default();
        let dir = beneath::make_dir(root, &parts).map_err(unwritten)?;
        let mut file = open(&dir, file_name).map_err(unwritten)?;
        let begun = self.notes.intact(&wanted.name, &wanted.pin.id(), &mut file).map_err(unwritten)?;
        let at = begun.bytes;
        file.set_len(at).and_then(|()| file.seek(SeekFrom::Start(at))).map_err(unwritten)?;
        self.meter.advance(at)?;
        let sha256 = match at < wanted.size || wanted.size == 0 {
            true => self.fetch(wanted, begun, &mut file)?,
            false => hex(&begun.sha256.finalize()),
        };
        if let Some((uid, gid)) = self.owner {
            let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
            rustix::fs::fchown(&file, uid, gid).map_err(|error| unwritten(error.into()))?;
        }
        if let Some(modified) = wanted.modified {
            file.set_modified(SystemTime::from(modified)).map_err(unwritten)?;
        }
        Ok(sha256)
    }

    /// Writes what is missing of an object, and compares all of it with what the store says.
    fn fetch(&self, wanted: &Wanted, begun: Intact, file: &mut File) -> Result<String, StepError> {
        let found = self.store.open_at(&wanted.object, begun.bytes, &wanted.pin)?;
        let (facts, mut object) = found.ok_or_else(|| {
            let message = format!("{} is no longer there", self.store.address_of(&wanted.object));
            StepError::transient(codes::LB1104, message)
                .help("find out what removes objects: a lifecycle rule, or somebody who may delete them")
        })?;
        if facts.size != wanted.size {
            return Err(unlike(
                &wanted.name,
                &format!("it has {} bytes, and the list says {}", facts.size, wanted.size),
            ));
        }
        let at = begun.bytes;
        let known = Known::of(&self.store, &wanted.object, &facts)?;
        let mut whole = Whole::with(known, begun.sha256);
        take_in(&mut whole, file, at).map_err(|error| self.unwritten(&wanted.name, &error))?;
        self.copy(wanted, (at, &mut object), (file, &mut whole))?;
        self.proven.count(whole.compare().map_err(|why| unlike(&wanted.name, &why))?);
        Ok(whole.sha256())
    }

    /// Copies to the end and notes now and then how far it came.
    fn copy(
        &self,
        wanted: &Wanted,
        (begun, object): (u64, &mut ObjectReader),
        (file, whole): (&mut File, &mut Whole),
    ) -> Result<(), StepError> {
        let most = usize::try_from(wanted.size).unwrap_or(BUFFER).clamp(1, BUFFER);
        let (mut buffer, mut noted, mut at) = (vec![0; most], begun, begun);
        loop {
            let count = match object.read(&mut buffer) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(self.unread(&wanted.object, &error)),
            };
            if count > 0 {
                file.write_all(&buffer[..count]).map_err(|error| self.unwritten(&wanted.name, &error))?;
                whole.update(&buffer[..count]);
                at += count as u64;
            }
            if at - noted >= NOTED || (count == 0 && at > noted) {
                let note =
                    Note { name: wanted.name.clone(), pin: wanted.pin.id(), to: at, sha256: whole.sha256() };
                self.notes.add(&note).map_err(|error| failed("written", self.notes.path(), &error))?;
                noted = at;
            }
            self.meter.advance(count as u64)?;
            if count == 0 {
                break;
            }
        }
        if at == wanted.size { Ok(()) } else { Err(unlike(&wanted.name, &format!("{at} bytes arrived"))) }
    }

    fn unwritten(&self, name: &str, error: &io::Error) -> StepError {
        failed("written", &self.root.join(name), error)
    }

    fn unread(&self, name: &str, error: &io::Error) -> StepError {
        crate::store::of_store(error).cloned().unwrap_or_else(|| {
            StepError::transient(
                codes::LB1103,
                format!("{} cannot be read: {error}", self.store.address_of(name)),
            )
            .help("see whether the store answers; then run the step again")
        })
    }
}

/// Takes in what an earlier attempt wrote, and leaves the file at its end.
fn take_in(whole: &mut Whole, file: &mut File, begun: u64) -> io::Result<()> {
    if begun == 0 || !whole.has_beside() {
        return Ok(());
    }
    file.seek(SeekFrom::Start(0))?;
    let mut buffer = vec![0; BUFFER];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            count => whole.update_beside(&buffer[..count]),
        }
    }
    file.seek(SeekFrom::Start(begun)).map(drop)
}

fn open(dir: &OwnedFd, name: &str) -> io::Result<File> {
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = File::from(rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(0o644))?);
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file")),
    }
}

/// Reports an object whose content is not what its store says that it is.
pub(super) fn unlike(name: &str, problem: &str) -> StepError {
    StepError::transient(codes::LB1122, format!("`{}` is not what it should be: {problem}", name.escape_debug()))
        .help("run the step again; if it repeats, the object is damaged or is being replaced: choose another moment")
}

/// Reports what a directory of ours refuses; the target was not touched yet.
pub(super) fn failed(what: &str, path: &std::path::Path, error: &io::Error) -> StepError {
    StepError::transient(codes::LB1111, format!("{} cannot be {what}: {error}", path.display()))
        .help("check the permissions and the space of the directory; the target was not touched")
}
