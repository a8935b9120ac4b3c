//! Proves that the archives of a base backup hold what the server's manifest says, to the last byte.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use lifeboat_engine::plan::hex;
use lifeboat_engine::step::StepError;
use sha2::{Digest as _, Sha256};

use crate::postgres::backup_manifest::{MANIFEST, Manifest, ManifestEntry, WalRange};
use crate::postgres::codes;
use crate::postgres::stream::{Broken, Entry, EntryType, Form, Tar, stream};
use crate::postgres::wal::{LongHeader, Segment, SegmentSize, SystemId, WalName};
use crate::store::{Digest, Meter, ObjectEntry};

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
        let (stem, form) = Form::of(name).ok_or_else(|| unknown(name))?;
        let holds = Holds::of(stem).ok_or_else(|| unknown(name))?;
        let file = File::open(dir.join(name)).map_err(|error| damaged(name, &error))?;
        let counted = Counted { inner: file, meter: self.meter.clone() };
        let (read, checked) =
            stream(counted, (form, true), |chunks| self.members(name, &holds, Tar::new(chunks)));
        let read = read.map_err(|error| damaged(name, &error))?;
        checked.map_err(|broken| match broken {
            Broken::Use(error) => error,
            Broken::Archive(error) => damaged(name, &error),
        })?;
        match read.sha256 {
            Some(sha256) if read.whole => Ok(Digest { size: read.size, sha256 }),
            _ => Err(damaged(name, &"it was not read to its end")),
        }
    }

    fn members(&mut self, name: &str, holds: &Holds, mut tar: Tar) -> Result<(), Broken> {
        while let Some(entry) = tar.next()? {
            self.meter.advance(0)?;
            if entry.kind != EntryType::Regular {
                continue;
            }
            match holds {
                Holds::Data { prefix } => self.data_file(name, prefix, (&entry, &mut tar))?,
                Holds::Wal => self.wal_file(name, (&entry, &mut tar))?,
            }
        }
        Ok(())
    }

    fn data_file(
        &mut self,
        archive: &str,
        prefix: &[u8],
        (entry, tar): (&Entry, &mut Tar),
    ) -> Result<(), Broken> {
        let path = PathBuf::from(OsString::from_vec([prefix, &entry.name].concat()));
        let shown = path.display();
        let Some(expected) = self.missing.remove(&path) else {
            let problem = format_args!("`{shown}` is in it, and {MANIFEST} does not name it");
            return Err(damaged(archive, &problem).into());
        };
        let mut state = Sha256::new();
        let size = tar.each_chunk::<Broken>(|bytes| {
            state.update(bytes);
            Ok(self.meter.advance(0)?)
        })?;
        let sha256 = hex(&state.finalize());
        if size != expected.size || Some(sha256) != expected.sha256 {
            return Err(damaged(archive, &format_args!("`{shown}` differs from {MANIFEST}")).into());
        }
        self.files += 1;
        self.data_bytes += size;
        Ok(())
    }

    fn wal_file(&mut self, archive: &str, (entry, tar): (&Entry, &mut Tar)) -> Result<(), Broken> {
        let name = String::from_utf8_lossy(&entry.name).into_owned();
        if WalName::parse(&name).ok() != Some(WalName::Segment) {
            return Ok(());
        }
        let mut begin = Vec::new();
        let size = tar.each_chunk::<Broken>(|bytes| {
            let room = LongHeader::LENGTH - begin.len();
            begin.extend_from_slice(&bytes[..room.min(bytes.len())]);
            Ok(())
        })?;
        let header = LongHeader::check_begin(&name, &begin, size)?;
        if header.system_id != self.expected.system
            || u64::from(header.segment_size) != self.expected.size.bytes()
        {
            return Err(damaged(archive, &format_args!("{name} is of another cluster")).into());
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
