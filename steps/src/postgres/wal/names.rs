use std::fmt;
use std::str::FromStr;

use lifeboat_engine::step::StepError;
use serde::{Deserialize, Serialize};

use crate::postgres::codes;

/// A position in the log, in bytes from its beginning; written `0/3000028`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Lsn(pub u64);

/// Why a text is no position.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no WAL position such as `0/3000028`")]
pub struct InvalidLsn(String);

impl FromStr for Lsn {
    type Err = InvalidLsn;
    fn from_str(text: &str) -> Result<Self, InvalidLsn> {
        let half = |digits: &str| match digits.len() {
            1..=8 if digits.bytes().all(|b| b.is_ascii_hexdigit()) => u64::from_str_radix(digits, 16).ok(),
            _ => None,
        };
        text.split_once('/')
            .and_then(|(high, low)| Some(Self(half(high)? << 32 | half(low)?)))
            .ok_or_else(|| InvalidLsn(text.to_owned()))
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl TryFrom<String> for Lsn {
    type Error = InvalidLsn;
    fn try_from(text: String) -> Result<Self, InvalidLsn> {
        text.parse()
    }
}

impl From<Lsn> for String {
    fn from(lsn: Lsn) -> Self {
        lsn.to_string()
    }
}

/// How long segments are, in bytes: a power of two from 1 MiB to 1 GiB, chosen when the cluster was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct SegmentSize(u64);

impl SegmentSize {
    /// What almost every cluster has.
    pub const DEFAULT: Self = Self(16 << 20);

    /// Checks a size.
    pub fn new(bytes: u64) -> Result<Self, StepError> {
        Self::try_from(bytes).map_err(|problem| StepError::permanent(codes::LB1202, problem))
    }

    /// Returns the size in bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }

    /// How many segments share the middle part of a name.
    fn per_group(self) -> u64 {
        (1 << 32) / self.0
    }
}

impl TryFrom<u64> for SegmentSize {
    type Error = String;
    fn try_from(bytes: u64) -> Result<Self, String> {
        let valid = bytes.is_power_of_two() && (1 << 20..=1 << 30).contains(&bytes);
        if valid {
            Ok(Self(bytes))
        } else {
            Err(format!("{bytes} bytes is no size that WAL segments can have"))
        }
    }
}

impl From<SegmentSize> for u64 {
    fn from(size: SegmentSize) -> Self {
        size.0
    }
}

/// One segment of one timeline, by its number from the beginning of the log.
///
/// Orders by timeline, then by position. Its name depends on the segment size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Segment {
    pub timeline: u32,
    pub number: u64,
}

impl Segment {
    /// Returns the segment that holds the byte at a position.
    pub fn at(timeline: u32, lsn: Lsn, size: SegmentSize) -> Self {
        Self { timeline, number: lsn.0 / size.bytes() }
    }

    /// Returns the segment that holds the last byte before a position: where a backup that ends there ends.
    pub fn before(timeline: u32, lsn: Lsn, size: SegmentSize) -> Self {
        Self { timeline, number: lsn.0.saturating_sub(1) / size.bytes() }
    }

    /// Parses a name of 24 hexadecimal digits.
    pub fn parse(name: &str, size: SegmentSize) -> Result<Self, StepError> {
        let parts = segment_parts(name).filter(|(_, _, low)| u64::from(*low) < size.per_group());
        let (timeline, high, low) = parts.ok_or_else(|| unknown_name(name))?;
        Ok(Self { timeline, number: u64::from(high) * size.per_group() + u64::from(low) })
    }

    /// Returns the file name.
    pub fn name(&self, size: SegmentSize) -> String {
        let (high, low) = (self.number / size.per_group(), self.number % size.per_group());
        format!("{:08X}{high:08X}{low:08X}", self.timeline)
    }

    /// Returns where it begins.
    pub fn start(&self, size: SegmentSize) -> Lsn {
        Lsn(self.number * size.bytes())
    }

    /// Returns the one after it on the same timeline.
    pub fn next(&self) -> Self {
        Self { number: self.number + 1, ..*self }
    }
}

/// What a file of the archive is, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalName {
    /// A whole segment.
    Segment,
    /// The last segment of a timeline that ended, not full. Never served to a recovery.
    Partial,
    /// Where a base backup began and ended.
    BackupLabel,
    /// How a timeline came about.
    History(u32),
}

impl WalName {
    /// Parses a file name as Postgres hands it to `archive_command` and `restore_command`.
    pub fn parse(name: &str) -> Result<Self, StepError> {
        let (stem, rest) = name.split_once('.').map_or((name, None), |(stem, rest)| (stem, Some(rest)));
        let kind = match rest {
            None => segment_parts(stem).map(|_| Self::Segment),
            Some("partial") => segment_parts(stem).map(|_| Self::Partial),
            Some("history") => upper_hex(stem).filter(|timeline| *timeline > 0).map(Self::History),
            Some(rest) => {
                let offset = rest.strip_suffix(".backup").and_then(upper_hex);
                offset.and_then(|_| segment_parts(stem)).map(|_| Self::BackupLabel)
            }
        };
        kind.ok_or_else(|| unknown_name(name))
    }
}

fn segment_parts(name: &str) -> Option<(u32, u32, u32)> {
    if name.len() != 24 || !name.is_ascii() {
        return None;
    }
    let timeline = upper_hex(&name[..8]).filter(|timeline| *timeline > 0)?;
    Some((timeline, upper_hex(&name[8..16])?, upper_hex(&name[16..])?))
}

/// Eight digits as Postgres writes them.
fn upper_hex(digits: &str) -> Option<u32> {
    let valid = digits.len() == 8 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F'));
    if valid { u32::from_str_radix(digits, 16).ok() } else { None }
}

fn unknown_name(name: &str) -> StepError {
    StepError::permanent(codes::LB1201, format!("`{}` is no name of a WAL file", name.escape_debug()))
        .help("pass `%f` of archive_command or restore_command unchanged")
}
