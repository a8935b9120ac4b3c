//! Reads files of the archive in whichever form they were stored.

use std::fs::File;
use std::io::{self, Read, Write};
use std::sync::Arc;

use lifeboat_engine::step::StepError;

use super::archive::wal_key;
use super::header::{LongHeader, SystemId, bad_segment};
use super::names::{Segment, SegmentSize, WalName};
use super::queue::{Kept, Queue};
use crate::postgres::codes;
use crate::store::{self, Key, ObjectReader, Store};

/// How a file of the archive is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Zstd,
    Plain,
}

/// In the order in which they are looked for.
pub(super) const FORMS: [Form; 2] = [Form::Zstd, Form::Plain];

impl Form {
    /// Returns what follows the file's own name in its key.
    pub(super) fn suffix(self) -> &'static str {
        match self {
            Self::Zstd => ".zst",
            Self::Plain => "",
        }
    }

    fn decode(self, object: ObjectReader) -> io::Result<Box<dyn Read + Send>> {
        Ok(match self {
            Self::Zstd => Box::new(zstd::stream::read::Decoder::new(object)?),
            Self::Plain => Box::new(object),
        })
    }
}

/// Opens a file of the archive and decompresses it as it is read. `None` if it is there in no form.
pub(super) fn open_form(
    store: &Store,
    system: SystemId,
    name: &str,
) -> Result<Option<Box<dyn Read + Send>>, StepError> {
    open_with(system, name, |key| store.find(key))
}

fn open_with(
    system: SystemId,
    name: &str,
    find: impl Fn(&Key) -> Result<Option<ObjectReader>, StepError>,
) -> Result<Option<Box<dyn Read + Send>>, StepError> {
    let key = wal_key(system, name)?;
    for form in FORMS {
        let stored = Key::new(format!("{key}{}", form.suffix()))?;
        if let Some(object) = find(&stored)? {
            return form.decode(object).map(Some).map_err(|error| undecodable(name, &error));
        }
    }
    Ok(None)
}

/// Where WAL comes from, and what it must be.
#[derive(Clone, Debug)]
pub(super) struct Fetcher {
    pub(super) store: Store,
    pub(super) system: SystemId,
    pub(super) size: SegmentSize,
    /// Known to exist, so that its presence proves that the store answers.
    pub(super) witness: Key,
    /// Where segments are put.
    pub(super) queue: Arc<Queue>,
}

/// A file of the archive, verified.
#[derive(Debug)]
pub(super) enum Found {
    Segment(Kept),
    Small(Vec<u8>),
}

/// Small files are no larger than this.
const SMALL: u64 = 1 << 20;
const CHUNK: usize = 256 * 1024;

impl Fetcher {
    /// Reads a file whole and verifies it. `None` means proven absent.
    pub(super) fn fetch(&self, name: &str) -> Result<Option<Found>, StepError> {
        let kind = WalName::parse(name)?;
        if kind == WalName::Partial {
            return Err(StepError::permanent(
                codes::LB1201,
                format!("{name} is the unfinished end of a timeline, which a recovery must not be given"),
            ));
        }
        let find = |key: &Key| self.store.find_beside(key, &self.witness);
        let Some(reader) = open_with(self.system, name, find)? else { return Ok(None) };
        let found = match kind {
            WalName::Segment => Found::Segment(self.segment(name, reader)?),
            _ => Found::Small(read_small(name, reader)?),
        };
        Ok(Some(found))
    }

    /// Decompresses a segment into a file of the queue, a piece at a time.
    fn segment(&self, name: &str, mut reader: impl Read) -> Result<Kept, StepError> {
        let kept = self.queue.add(name, |file| self.fill(name, &mut reader, file));
        kept.map_err(|error| match error {
            Filling::Bad(error) => error,
            Filling::Unwritable(error) => unwritable(name, &error),
        })
    }

    fn fill(&self, name: &str, from: &mut impl Read, file: &mut File) -> Result<(), Filling> {
        let expected = self.size.bytes();
        let mut buffer = vec![0; CHUNK];
        let mut length = 0;
        loop {
            let count = read_full(from, &mut buffer).map_err(|error| undecodable(name, &error))?;
            if length == 0 {
                self.check_begin(name, &buffer[..count])?;
            }
            length += count as u64;
            if count == 0 || length > expected {
                break;
            }
            file.write_all(&buffer[..count])?;
        }
        if length == expected {
            return Ok(());
        }
        let more = if length > expected { "more than " } else { "" };
        let problem = format_args!("it has {more}{} bytes instead of {expected}", length.min(expected));
        Err(bad_segment(name, problem).into())
    }

    fn check_begin(&self, name: &str, begin: &[u8]) -> Result<(), StepError> {
        let header = LongHeader::check_begin(name, begin, self.size.bytes())?;
        if header.system_id == self.system {
            return Ok(());
        }
        let problem =
            format_args!("it belongs to the cluster {}, and {} is restored", header.system_id, self.system);
        Err(bad_segment(name, problem))
    }

    /// Parses the name of a segment.
    pub(super) fn segment_of(&self, name: &str) -> Option<Segment> {
        Segment::parse(name, self.size).ok()
    }
}

/// Why a segment is not in the queue.
enum Filling {
    Bad(StepError),
    Unwritable(io::Error),
}

impl From<StepError> for Filling {
    fn from(error: StepError) -> Self {
        Self::Bad(error)
    }
}

impl From<io::Error> for Filling {
    fn from(error: io::Error) -> Self {
        Self::Unwritable(error)
    }
}

/// Reads until the buffer is full or the stream ends.
fn read_full(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match from.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Room that is missing may be made while the recovery is tried again.
fn unwritable(name: &str, error: &io::Error) -> StepError {
    StepError::transient(codes::LB1207, format!("{name} cannot be put beside the data directory: {error}"))
        .help("make room (`df -h`) on the disk of the data directory, then try again")
}

fn read_small(name: &str, reader: impl Read) -> Result<Vec<u8>, StepError> {
    let mut bytes = Vec::new();
    reader.take(SMALL + 1).read_to_end(&mut bytes).map_err(|error| undecodable(name, &error))?;
    if bytes.is_empty() || bytes.len() as u64 > SMALL {
        return Err(StepError::permanent(
            codes::LB1202,
            format!("{name} in the archive has {} bytes, which such a file never has", bytes.len()),
        ));
    }
    Ok(bytes)
}

/// A file system's own fault may pass; a stream that cannot be decoded stays as it is.
pub(super) fn undecodable(name: &str, error: &io::Error) -> StepError {
    if let Some(error) = store::of_store(error) {
        return error.clone();
    }
    let message = format!("{name} in the archive cannot be read to its end: {error}");
    if error.raw_os_error().is_some() {
        StepError::transient(codes::LB1207, message)
    } else {
        StepError::permanent(codes::LB1202, message)
            .help("bring it back from a copy of the store or from pg_wal of a server of this cluster")
    }
}
