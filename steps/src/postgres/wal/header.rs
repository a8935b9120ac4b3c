use std::fmt;

use lifeboat_engine::step::StepError;
use serde::{Deserialize, Serialize};

use super::names::{Segment, SegmentSize};
use crate::postgres::codes;

/// The identity of a cluster, made when it was initialised and shared by all its copies.
///
/// Written as text everywhere, because it needs more digits than a JSON number keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SystemId(pub u64);

impl fmt::Display for SystemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::str::FromStr for SystemId {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let valid = !text.starts_with('+') && !text.starts_with('0');
        let number = if valid { text.parse().ok() } else { None };
        number.map(Self).ok_or_else(|| format!("`{text}` is no system identifier of a Postgres cluster"))
    }
}

impl TryFrom<String> for SystemId {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<SystemId> for String {
    fn from(id: SystemId) -> Self {
        id.to_string()
    }
}

/// The header of the first page of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LongHeader {
    pub magic: u16,
    /// The timeline of the page; older than the file's in the segment where a timeline began.
    pub timeline: u32,
    /// Where the page is in the log.
    pub address: u64,
    pub system_id: SystemId,
    pub segment_size: u32,
}

impl LongHeader {
    /// How many bytes of a segment it takes.
    pub const LENGTH: usize = 40;

    /// The flag of the first page of a segment.
    const LONG: u16 = 0x0002;

    /// Reads a header, in the byte order of this machine, which Postgres cannot cross either.
    ///
    /// The magic number changes with each major version; all of those since 8.0 begin with the same byte.
    pub fn read(bytes: &[u8]) -> Result<Self, String> {
        let Some(bytes) = bytes.first_chunk::<{ Self::LENGTH }>() else {
            return Err(format!("it has {} bytes only", bytes.len()));
        };
        let u16_at = |at: usize| u16::from_ne_bytes(part(bytes, at));
        let u32_at = |at: usize| u32::from_ne_bytes(part(bytes, at));
        let u64_at = |at: usize| u64::from_ne_bytes(part(bytes, at));
        let (magic, flags) = (u16_at(0), u16_at(2));
        if magic >> 8 != 0xD1 {
            return Err(format!("it does not begin with a WAL page (magic number {magic:04X})"));
        }
        if flags & Self::LONG == 0 {
            return Err("its first page has no long header".to_owned());
        }
        Ok(Self {
            magic,
            timeline: u32_at(4),
            address: u64_at(8),
            system_id: SystemId(u64_at(24)),
            segment_size: u32_at(32),
        })
    }

    /// Checks a whole segment against its name, and returns its header.
    pub fn check_segment(name: &str, bytes: &[u8]) -> Result<Self, StepError> {
        Self::check_begin(name, bytes, bytes.len() as u64)
    }

    /// Checks a segment of `length` bytes by how it begins.
    pub fn check_begin(name: &str, begin: &[u8], length: u64) -> Result<Self, StepError> {
        let header = Self::read(begin).map_err(|problem| bad_segment(name, problem))?;
        let size = SegmentSize::try_from(u64::from(header.segment_size))
            .map_err(|problem| bad_segment(name, format_args!("its header is damaged: {problem}")))?;
        if length != size.bytes() {
            let problem = format_args!("it has {length} bytes, and its header says {}", size.bytes());
            return Err(bad_segment(name, problem));
        }
        let stem = name.strip_suffix(".partial").unwrap_or(name);
        let segment = Segment::parse(stem, size)?;
        if header.address != segment.start(size).0 {
            let other = Segment { timeline: segment.timeline, number: header.address / size.bytes() };
            let problem = format_args!("it holds the position of {}", other.name(size));
            return Err(bad_segment(name, problem));
        }
        if header.timeline == 0 || header.timeline > segment.timeline {
            return Err(bad_segment(name, format_args!("it was written on timeline {}", header.timeline)));
        }
        Ok(header)
    }
}

fn part<const N: usize>(bytes: &[u8; LongHeader::LENGTH], at: usize) -> [u8; N] {
    std::array::from_fn(|offset| bytes[at + offset])
}

/// Reports a file that is no usable segment.
pub(super) fn bad_segment(name: &str, problem: impl fmt::Display) -> StepError {
    StepError::permanent(codes::LB1202, format!("the WAL segment {name} is not usable: {problem}"))
        .help("bring it back from a copy of the store or from pg_wal of a server of this cluster")
}
