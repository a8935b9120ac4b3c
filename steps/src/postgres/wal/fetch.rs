//! Reads files of the archive in whichever form they were stored.

use std::io::{self, Read};

use lifeboat_engine::step::StepError;

use super::archive::wal_key;
use super::header::{LongHeader, SystemId, bad_segment};
use super::names::{Segment, SegmentSize, WalName};
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
}

/// Small files are no larger than this.
const SMALL: u64 = 1 << 20;

impl Fetcher {
    /// Reads a file whole and verifies it. `None` means proven absent.
    pub(super) fn fetch(&self, name: &str) -> Result<Option<Vec<u8>>, StepError> {
        let kind = WalName::parse(name)?;
        if kind == WalName::Partial {
            return Err(StepError::permanent(
                codes::LB1201,
                format!("{name} is the unfinished end of a timeline, which a recovery must not be given"),
            ));
        }
        let find = |key: &Key| self.store.find_beside(key, &self.witness);
        let Some(reader) = open_with(self.system, name, find)? else { return Ok(None) };
        match kind {
            WalName::Segment => self.segment(name, reader).map(Some),
            _ => read_small(name, reader).map(Some),
        }
    }

    fn segment(&self, name: &str, reader: impl Read) -> Result<Vec<u8>, StepError> {
        let expected = self.size.bytes();
        let mut bytes = Vec::with_capacity(usize::try_from(expected).unwrap_or_default());
        // One byte more than there may be, so that a longer file is noticed.
        reader.take(expected + 1).read_to_end(&mut bytes).map_err(|error| undecodable(name, &error))?;
        let found = bytes.len() as u64;
        if found != expected {
            let more = if found > expected { "more than " } else { "" };
            let problem = format_args!("it has {more}{} bytes instead of {expected}", found.min(expected));
            return Err(bad_segment(name, problem));
        }
        let header = LongHeader::check_segment(name, &bytes)?;
        if header.system_id != self.system {
            let problem = format_args!(
                "it belongs to the cluster {}, and {} is restored",
                header.system_id, self.system
            );
            return Err(bad_segment(name, problem));
        }
        Ok(bytes)
    }

    /// Parses the name of a segment.
    pub(super) fn segment_of(&self, name: &str) -> Option<Segment> {
        Segment::parse(name, self.size).ok()
    }
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
