//! Proves that the archives of a base backup hold what the server's manifest says, to the last byte.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use lifeboat_engine::plan::hex;
use lifeboat_engine::step::StepError;
use sha2::{Digest as _, Sha256};

use crate::postgres::backup_manifest::{MANIFEST, Manifest, ManifestEntry, WalRange};
use crate::postgres::codes;
use crate::postgres::wal::{LongHeader, Segment, SegmentSize, SystemId, WalName};
use crate::store::{Digest, HashingReader, Meter, ObjectEntry};

/// What a verified backup turned out to be.
#[derive(Debug)]
pub(super) struct Verified {
    pub(super) objects: Vec<ObjectEntry>,
    /// The WAL without which it is not consistent.
    pub(super) wal: WalRange,
    /// Files of the data directory and their bytes, uncompressed.
    pub(super) files: u64,
    pub(super) data_bytes: u64,
}

/// What is known of the server that a backup is of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Expected {
    pub(super) system: SystemId,
    pub(super) size: SegmentSize,
}

/// Reads a whole backup in a directory: every archive to its end blocks, every file against the manifest, every
/// segment from start to stop of the backup. Counts bytes as stored.
pub(super) fn verify(dir: &Path, expected: Expected, meter: &Meter) -> Result<Verified, StepError> {
    let text = std::fs::read(dir.join(MANIFEST)).map_err(|error| damaged(MANIFEST, &error))?;
    let (files, wal) = read_manifest(&text)?;
    let mut check = Check {
        missing: files,
        segments: BTreeSet::new(),
        expected,
        meter: meter.clone(),
        files: 0,
        data_bytes: 0,
    };
    let mut objects = vec![entry(MANIFEST, &crate::store::digest_of(&text[..], meter)?)];
    for name in names(dir).map_err(|error| damaged("the backup", &error))? {
        if name != MANIFEST {
            let digest = check.archive(dir, &name)?;
            objects.push(entry(&name, &digest));
        }
    }
    check.finish(&wal)?;
    objects.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Verified { objects, wal, files: check.files, data_bytes: check.data_bytes })
}

/// A backup of ours has one timeline, and a SHA-256 for every file.
fn read_manifest(text: &[u8]) -> Result<(BTreeMap<PathBuf, ManifestEntry>, WalRange), StepError> {
    let manifest = Manifest::parse(text).and_then(|manifest| {
        let range = manifest.only_range()?;
        if manifest.has_checksums() {
            Ok((manifest.files, range))
        } else {
            Err("a file has no SHA-256".to_owned())
        }
    });
    manifest.map_err(|problem| {
        StepError::permanent(codes::LB1215, format!("{MANIFEST} of the base backup is not usable: {problem}"))
    })
}

fn entry(name: &str, digest: &Digest) -> ObjectEntry {
    ObjectEntry { name: name.to_owned(), size: digest.size, sha256: digest.sha256.clone() }
}

/// Regular files only; our own temporary ones begin with a dot.
fn names(dir: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type()?.is_file() && !name.starts_with('.') {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// What an archive holds, by its name.
enum Holds {
    /// Files of the data directory below a prefix.
    Data {
        prefix: Vec<u8>,
    },
    Wal,
}

impl Holds {
    fn of(stem: &str) -> Option<Self> {
        match stem {
            "base" => Some(Self::Data { prefix: Vec::new() }),
            "pg_wal" => Some(Self::Wal),
            oid if oid.parse::<u32>().is_ok() => {
                Some(Self::Data { prefix: format!("pg_tblspc/{oid}/").into_bytes() })
            }
            _ => None,
        }
    }
}

struct Check {
    missing: BTreeMap<PathBuf, ManifestEntry>,
    /// Whole segments that were found.
    segments: BTreeSet<Segment>,
    expected: Expected,
    meter: Meter,
    files: u64,
    data_bytes: u64,
}

impl Check {
    fn archive(&mut self, dir: &Path, name: &str) -> Result<Digest, StepError> {
        let (stem, form) = name.split_once(".tar").unwrap_or((name, "?"));
        let holds = Holds::of(stem).ok_or_else(|| unknown(name))?;
        let file = File::open(dir.join(name)).map_err(|error| damaged(name, &error))?;
        let mut hashed = HashingReader::new(Counted { inner: file, meter: self.meter.clone() });
        {
            let raw: &mut dyn Read = &mut hashed;
            let decoded: Box<dyn Read + '_> = match form {
                "" => Box::new(raw),
                ".gz" => Box::new(MultiGzDecoder::new(raw)),
                ".zst" => {
                    Box::new(zstd::stream::read::Decoder::new(raw).map_err(|error| damaged(name, &error))?)
                }
                _ => return Err(unknown(name)),
            };
            self.members(name, &holds, Tail::new(decoded))?;
        }
        io::copy(&mut hashed, &mut io::sink()).map_err(|error| damaged(name, &error))?;
        Ok(hashed.finish().1)
    }

    fn members(&mut self, name: &str, holds: &Holds, tail: Tail<'_>) -> Result<(), StepError> {
        let mut archive = tar::Archive::new(tail);
        let mut end = 0;
        for member in archive.entries().map_err(|error| damaged(name, &error))? {
            let mut member = member.map_err(|error| damaged(name, &error))?;
            self.meter.advance(0)?;
            end = member.raw_file_position() + member.size().next_multiple_of(512);
            if !member.header().entry_type().is_file() {
                continue;
            }
            match holds {
                Holds::Data { prefix } => self.data_file(name, prefix, &mut member)?,
                Holds::Wal => self.wal_file(name, &mut member)?,
            }
        }
        let mut tail = archive.into_inner();
        io::copy(&mut tail, &mut io::sink()).map_err(|error| damaged(name, &error))?;
        if tail.ends_properly_after(end) {
            return Ok(());
        }
        Err(damaged(name, &"it ends without the end marks of a tar archive, so it was cut short"))
    }

    fn data_file(&mut self, archive: &str, prefix: &[u8], member: &mut impl Member) -> Result<(), StepError> {
        let path = PathBuf::from(OsString::from_vec([prefix, &member.name()].concat()));
        let shown = path.display();
        let Some(expected) = self.missing.remove(&path) else {
            return Err(damaged(
                archive,
                &format_args!("`{shown}` is in it, and {MANIFEST} does not name it"),
            ));
        };
        let mut state = Sha256::new();
        let size = each_chunk(member, |chunk| {
            state.update(chunk);
            self.meter.advance(0)
        })
        .map_err(|error| error.unwrap_or_else(|error| damaged(archive, &error)))?;
        let sha256 = hex(&state.finalize());
        if size != expected.size || Some(sha256) != expected.sha256 {
            return Err(damaged(archive, &format_args!("`{shown}` differs from {MANIFEST}")));
        }
        self.files += 1;
        self.data_bytes += size;
        Ok(())
    }

    fn wal_file(&mut self, archive: &str, member: &mut impl Member) -> Result<(), StepError> {
        let name = String::from_utf8_lossy(&member.name()).into_owned();
        if WalName::parse(&name).ok() != Some(WalName::Segment) {
            return each_chunk(member, |_| Ok(()))
                .map(drop)
                .map_err(|error| error.unwrap_or_else(|error| damaged(archive, &error)));
        }
        let mut bytes = Vec::new();
        let limit = self.expected.size.bytes() + 1;
        member.take(limit).read_to_end(&mut bytes).map_err(|error| damaged(archive, &error))?;
        let header = LongHeader::check_segment(&name, &bytes)?;
        if header.system_id != self.expected.system
            || u64::from(header.segment_size) != self.expected.size.bytes()
        {
            return Err(damaged(archive, &format_args!("{name} is of another cluster")));
        }
        self.segments.insert(Segment::parse(&name, self.expected.size)?);
        Ok(())
    }

    /// Nothing named may be missing, and the WAL between start and stop must be there.
    fn finish(&self, wal: &WalRange) -> Result<(), StepError> {
        if let Some(path) = self.missing.keys().next() {
            let more = self.missing.len() - 1;
            let problem = format!(
                "`{}`{} named by {MANIFEST} and in no archive",
                path.display(),
                if more == 0 { " is".to_owned() } else { format!(" and {more} more files are") }
            );
            return Err(damaged("the backup", &problem));
        }
        let size = self.expected.size;
        for segment in wal_needed(wal, size) {
            if !self.segments.contains(&segment) {
                let problem =
                    format_args!("the WAL segment {} that it needs is not in it", segment.name(size));
                return Err(damaged("pg_wal.tar", &problem));
            }
        }
        Ok(())
    }
}

/// Returns the segments without which a backup is not consistent.
pub(super) fn wal_needed(wal: &WalRange, size: SegmentSize) -> impl Iterator<Item = Segment> {
    let first = Segment::at(wal.timeline, wal.start, size);
    let last = Segment::before(wal.timeline, wal.end, size);
    (first.number..=last.number).map(move |number| Segment { number, ..first })
}

/// A file within a tar archive.
trait Member: Read {
    fn name(&self) -> Vec<u8>;
}

impl<R: Read> Member for tar::Entry<'_, R> {
    fn name(&self) -> Vec<u8> {
        self.path_bytes().into_owned()
    }
}

/// Either what the caller's function said, or what reading said.
type ChunkError = Result<StepError, io::Error>;

fn each_chunk(
    from: &mut impl Read,
    mut with: impl FnMut(&[u8]) -> Result<(), StepError>,
) -> Result<u64, ChunkError> {
    let mut buffer = vec![0; 128 * 1024];
    let mut size = 0;
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(size),
            Ok(count) => {
                with(&buffer[..count]).map_err(Ok)?;
                size += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Err(error)),
        }
    }
}

/// Counts what is read. That the attempt must end is noticed by whoever asks the meter next: here it would look like
/// a fault of the file.
struct Counted {
    inner: File,
    meter: Meter,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.meter.advance(count as u64).ok();
        Ok(count)
    }
}

/// Remembers how a stream ends: its length, and how many zero bytes stand at its end.
struct Tail<'a> {
    inner: Box<dyn Read + 'a>,
    length: u64,
    zeros: u64,
}

impl<'a> Tail<'a> {
    fn new(inner: Box<dyn Read + 'a>) -> Self {
        Self { inner, length: 0, zeros: 0 }
    }

    /// Says whether nothing but the end marks, two blocks of zeros, follow a position.
    ///
    /// The reader of archives takes the end of the file for the end of the archive, so that one cut between two
    /// members looks whole to it.
    fn ends_properly_after(&self, end: u64) -> bool {
        let rest = self.length.saturating_sub(end);
        rest >= 1024 && self.zeros >= rest
    }
}

impl Read for Tail<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        let read = &buffer[..count];
        self.length += count as u64;
        self.zeros = match read.iter().rposition(|byte| *byte != 0) {
            Some(last) => (count - last - 1) as u64,
            None => self.zeros + count as u64,
        };
        Ok(count)
    }
}

fn unknown(name: &str) -> StepError {
    damaged(name, &"a base backup has no such file")
}

/// Reports a backup that is not whole.
fn damaged(what: &str, problem: &dyn std::fmt::Display) -> StepError {
    StepError::permanent(codes::LB1215, format!("the base backup is not whole: {what}: {problem}")).help(
        "nothing was published; check the disk of the store (`dmesg`, `df -h`), then take the backup again",
    )
}

#[cfg(test)]
mod tests;
