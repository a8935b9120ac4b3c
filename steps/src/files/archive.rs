//! Walks a directory tree into a manifest and an archive.

use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use lifeboat_engine::step::StepError;
use rustix::fs::OFlags;
use tar::{Builder, EntryType, Header};

use super::codes;
use super::manifest::{Content, Entry, Manifest, RawPath, leads_out};
use super::owner::Owners;
use crate::store::{Digest, HashingReader, HashingWriter, Meter};

/// Files up to this size are read again if they change meanwhile; larger ones go straight into the archive.
const IN_MEMORY: u64 = 8 * 1024 * 1024;
const READ_AGAIN: u32 = 5;
const BUFFER: usize = 256 * 1024;

/// What was archived.
pub(super) struct Archived {
    pub(super) manifest: Manifest,
    pub(super) digest: Digest,
    pub(super) warnings: Vec<String>,
}

struct Walk<'a, W: Write> {
    root: &'a Path,
    builder: Builder<W>,
    owners: Owners,
    entries: Vec<Entry>,
    meter: &'a Meter,
    vanished: u64,
    special: Vec<String>,
    outside: Vec<String>,
    /// What has access lists, or attributes that are not kept.
    marked: Vec<String>,
}

/// Archives everything below `root` into `target`.
pub(super) fn archive(root: &Path, target: &Path, meter: &Meter) -> Result<Archived, StepError> {
    let file = File::create_new(target).map_err(|error| failed("written", target, &error))?;
    let packed = compressor(HashingWriter::new(file)).map_err(|error| failed("written", target, &error))?;
    let mut walk = Walk {
        root,
        builder: Builder::new(packed),
        owners: Owners::load(),
        entries: Vec::new(),
        meter,
        vanished: 0,
        special: Vec::new(),
        outside: Vec::new(),
        marked: Vec::new(),
    };
    let found = fs::metadata(root).map_err(|error| failed("read", root, &error))?;
    walk.push(Path::new("."), &found, Content::Dir);
    walk.dir(Path::new(""))?;
    let warnings = walk.warnings();
    let finish = |builder: Builder<_>| -> io::Result<Digest> {
        let packed: zstd::Encoder<'_, HashingWriter<File>> = builder.into_inner()?;
        let (file, digest) = packed.finish()?.finish();
        file.sync_all()?;
        Ok(digest)
    };
    let digest = finish(walk.builder).map_err(|error| failed("written", target, &error))?;
    Ok(Archived { manifest: Manifest::new(walk.entries), digest, warnings })
}

fn compressor<W: Write>(to: W) -> io::Result<zstd::Encoder<'static, W>> {
    const LEVEL: i32 = 3;
    let mut encoder = zstd::Encoder::new(to, LEVEL)?;
    encoder.include_checksum(true)?;
    let workers = std::thread::available_parallelism().map_or(1, |count| count.get().min(4));
    encoder.multithread(u32::try_from(workers).unwrap_or(1))?;
    Ok(encoder)
}

impl<W: Write> Walk<'_, W> {
    fn dir(&mut self, below: &Path) -> Result<(), StepError> {
        let path = self.root.join(below);
        let listed = fs::read_dir(&path).and_then(|entries| {
            entries.map(|entry| entry.map(|entry| entry.file_name())).collect::<io::Result<Vec<_>>>()
        });
        let mut names = match listed {
            Ok(names) => names,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.vanished += 1;
                return Ok(());
            }
            Err(error) => return Err(failed("read", &path, &error)),
        };
        names.sort();
        for name in names {
            self.entry(&below.join(name))?;
        }
        Ok(())
    }

    fn entry(&mut self, below: &Path) -> Result<(), StepError> {
        let path = self.root.join(below);
        let found = match fs::symlink_metadata(&path) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.vanished += 1;
                return Ok(());
            }
            Err(error) => return Err(failed("read", &path, &error)),
        };
        self.meter.advance(0)?;
        let kind = found.file_type();
        if kind.is_dir() {
            self.header(below, &found, EntryType::Directory, None)?;
            self.push(below, &found, Content::Dir);
            self.dir(below)
        } else if kind.is_symlink() {
            self.link(below, &path, &found)
        } else if kind.is_file() {
            self.file(below, &path)
        } else {
            let what = if kind.is_socket() { "socket" } else { "special file" };
            self.special.push(format!("{what} {}", RawPath(below.to_owned())));
            Ok(())
        }
    }

    fn link(&mut self, below: &Path, path: &Path, found: &Metadata) -> Result<(), StepError> {
        let target = match fs::read_link(path) {
            Ok(target) => target,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.vanished += 1;
                return Ok(());
            }
            Err(error) => return Err(failed("read", path, &error)),
        };
        if leads_out(below, &target) {
            self.outside.push(RawPath(below.to_owned()).to_string());
        }
        self.header(below, found, EntryType::Symlink, Some(&target))?;
        self.push(below, found, Content::Symlink { target: RawPath(target) });
        Ok(())
    }

    fn file(&mut self, below: &Path, path: &Path) -> Result<(), StepError> {
        for _ in 0..READ_AGAIN {
            let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits();
            let opened = fs::OpenOptions::new().read(true).custom_flags(flags.cast_signed()).open(path);
            let mut file = match opened {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    self.vanished += 1;
                    return Ok(());
                }
                Err(error) => return Err(failed("read", path, &error)),
            };
            let before = file.metadata().map_err(|error| failed("read", path, &error))?;
            if before.len() > IN_MEMORY {
                return self.large(below, path, (file, &before));
            }
            let mut content = Vec::with_capacity(usize::try_from(before.len()).unwrap_or(0));
            // One byte more than there was tells that the file grew.
            let read = Read::by_ref(&mut file).take(before.len() + 1).read_to_end(&mut content);
            read.map_err(|error| failed("read", path, &error))?;
            let after = file.metadata().map_err(|error| failed("read", path, &error))?;
            if is_same(&before, &after) && content.len() as u64 == before.len() {
                return self.append(below, (path, &before), content.as_slice()).map(drop);
            }
        }
        Err(changed(path))
    }

    fn large(
        &mut self,
        below: &Path,
        path: &Path,
        (mut file, before): (File, &Metadata),
    ) -> Result<(), StepError> {
        let read = self.append(below, (path, before), &mut file)?;
        let after = file.metadata().map_err(|error| failed("read", path, &error))?;
        if read == before.len() && is_same(before, &after) { Ok(()) } else { Err(changed(path)) }
    }

    /// Writes one file into the archive and the manifest; returns how much of it there was.
    fn append(
        &mut self,
        below: &Path,
        (path, found): (&Path, &Metadata),
        content: impl Read,
    ) -> Result<u64, StepError> {
        let mut content = HashingReader::new(Metered { inner: content.take(found.len()), meter: self.meter });
        let mut header = header(found, EntryType::Regular);
        header.set_size(found.len());
        let padded =
            io::BufReader::with_capacity(BUFFER, &mut content).chain(io::repeat(0)).take(found.len());
        self.builder
            .append_data(&mut header, below, padded)
            .map_err(|error| failed("archived", path, &error))?;
        let (_, digest) = content.finish();
        self.push(below, found, Content::File { size: digest.size, sha256: digest.sha256 });
        Ok(digest.size)
    }

    fn header(
        &mut self,
        below: &Path,
        found: &Metadata,
        kind: EntryType,
        target: Option<&PathBuf>,
    ) -> Result<(), StepError> {
        let mut header = header(found, kind);
        header.set_size(0);
        let written = match target {
            Some(target) => self.builder.append_link(&mut header, below, target),
            None => self.builder.append_data(&mut header, below, io::empty()),
        };
        written.map_err(|error| failed("archived", below, &error))
    }

    fn push(&mut self, below: &Path, found: &Metadata, content: Content) {
        // What cannot be asked for is not kept either way.
        let beyond = super::attributes::read(&self.root.join(below)).unwrap_or_default();
        let path = RawPath(below.to_owned());
        if beyond.has_others {
            self.marked.push(path.to_string());
        }
        self.entries.push(Entry {
            path,
            content,
            mode: found.mode() & 0o7777,
            uid: found.uid(),
            gid: found.gid(),
            user: self.owners.user(found.uid()),
            group: self.owners.group(found.gid()),
            mtime: (found.mtime(), u32::try_from(found.mtime_nsec()).unwrap_or(0)),
            attributes: beyond.digest,
            user_attributes: beyond.of_programs,
        });
    }

    fn warnings(&self) -> Vec<String> {
        const SHOWN: usize = 5;
        let list = |what: &str, names: &[String]| {
            let shown = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
            (!names.is_empty()).then(|| format!("{} {what}: {shown}", names.len()))
        };
        let vanished = (self.vanished > 0)
            .then(|| format!("{} files were removed by another program while the backup ran", self.vanished));
        vanished
            .into_iter()
            .chain(list(
                "entries have access lists or attributes of the system, which are not kept",
                &self.marked,
            ))
            .chain(list("special files are not in the backup", &self.special))
            .chain(list(
                "links lead out of the directory; what they lead to is not in the backup",
                &self.outside,
            ))
            .collect()
    }
}

fn header(found: &Metadata, kind: EntryType) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(found.mode() & 0o7777);
    header.set_uid(found.uid().into());
    header.set_gid(found.gid().into());
    header.set_mtime(u64::try_from(found.mtime()).unwrap_or(0));
    header
}

/// Counts what is read, and ends the reading when the step must end.
struct Metered<'a, R> {
    inner: R,
    meter: &'a Meter,
}

impl<R: Read> Read for Metered<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.meter.advance(count as u64).map_err(io::Error::other)?;
        Ok(count)
    }
}

fn is_same(before: &Metadata, after: &Metadata) -> bool {
    let of = |found: &Metadata| {
        (found.ino(), found.len(), (found.mtime(), found.mtime_nsec()), (found.ctime(), found.ctime_nsec()))
    };
    of(before) == of(after)
}

fn changed(path: &Path) -> StepError {
    StepError::transient(codes::LB1402, format!("{} changed while it was read", path.display()))
        .help("let the program that writes it pause, or give the step `retry`")
}

pub(super) fn failed(what: &str, path: &Path, error: &io::Error) -> StepError {
    // A stop of the step travels through readers as an error of its own.
    if let Some(inner) = error.get_ref().and_then(|inner| inner.downcast_ref::<StepError>()) {
        return inner.clone();
    }
    StepError::transient(codes::LB1401, format!("{} cannot be {what}", path.display()))
        .help("check the path and the permissions of the user that runs Lifeboat")
        .caused_by(error)
}
