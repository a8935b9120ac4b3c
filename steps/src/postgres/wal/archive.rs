use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;

use jiff::Timestamp;
use lifeboat_engine::step::StepError;

use super::fetch::{FORMS, open_form, undecodable};
use super::header::SystemId;
use super::history::History;
use super::names::{Segment, SegmentSize, WalName};
use crate::postgres::codes;
use crate::store::{Key, Store};

/// The prefix in a store that holds the WAL of every cluster.
pub const WAL_PREFIX: &str = "wal";

/// The WAL of one cluster in a store, as it was listed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Archive {
    /// Whole segments, by name.
    segments: BTreeMap<String, u64>,
    /// Timelines that have a history file.
    timelines: BTreeSet<u32>,
    /// What is there and is no WAL file, or is empty.
    pub unknown: Vec<String>,
}

/// What a walk through the archive found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Continuity {
    /// Segments that are there without a gap, from the start of the walk.
    pub proven: Vec<SegmentRange>,
    /// Names that are missing although later segments of the same path are there. The first few.
    pub missing: Vec<String>,
    /// How many are missing in all.
    pub missing_count: u64,
    /// Bytes of the proven segments as they are stored.
    pub stored_bytes: u64,
    pub size: SegmentSize,
}

/// Consecutive segments of one timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentRange {
    pub timeline: u32,
    pub first: u64,
    pub last: u64,
}

/// How many missing names are kept for a message.
const NAMED: usize = 20;

/// Returns the system identifiers that have WAL in a store.
pub fn systems(store: &Store) -> Result<Vec<SystemId>, StepError> {
    let groups = store.list_groups(&Key::new(WAL_PREFIX)?)?;
    Ok(groups.iter().filter_map(|name| name.parse().ok()).collect())
}

/// Returns the key of a WAL file without the suffix that tells its form.
pub(super) fn wal_key(system: SystemId, name: &str) -> Result<Key, StepError> {
    Key::new(format!("{WAL_PREFIX}/{system}/{name}"))
}

/// Says whether a file is in the archive, without reading it.
pub fn is_archived(store: &Store, system: SystemId, name: &str) -> Result<bool, StepError> {
    let key = wal_key(system, name)?;
    for form in FORMS {
        if store.metadata(&Key::new(format!("{key}{}", form.suffix()))?)?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Says whether a file stands in the archive with this content.
pub fn is_archived_as(
    store: &Store,
    system: SystemId,
    (name, content): (&str, &[u8]),
) -> Result<bool, StepError> {
    let Some(reader) = open_form(store, system, name)? else { return Ok(false) };
    let mut archived = Vec::with_capacity(content.len());
    let read = reader.take(content.len() as u64 + 1).read_to_end(&mut archived);
    read.map_err(|error| undecodable(name, &error))?;
    Ok(archived == content)
}

/// Returns when a file was archived, as far as the store tells.
pub fn archived_at(store: &Store, system: SystemId, name: &str) -> Result<Option<Timestamp>, StepError> {
    let key = wal_key(system, name)?;
    for form in FORMS {
        if let Some(found) = store.metadata(&Key::new(format!("{key}{}", form.suffix()))?)? {
            return Ok(found.modified);
        }
    }
    Ok(None)
}

impl Archive {
    /// Lists what is in a store. No WAL at all is an empty archive; a store that does not answer is an error.
    pub fn list(store: &Store, system: SystemId) -> Result<Self, StepError> {
        let mut archive = Self::default();
        for object in store.list(&Key::new(format!("{WAL_PREFIX}/{system}"))?)? {
            archive.add(object.key.name(), object.size);
        }
        Ok(archive)
    }

    /// Adds an object by its name and stored size.
    pub(super) fn add(&mut self, object: &str, size: u64) {
        let name = FORMS.iter().find_map(|form| object.strip_suffix(form.suffix())).unwrap_or(object);
        match WalName::parse(name) {
            Ok(_) if size == 0 => self.unknown.push(object.to_owned()),
            Ok(WalName::Segment) => {
                self.segments.insert(name.to_owned(), size);
            }
            Ok(WalName::History(timeline)) => {
                self.timelines.insert(timeline);
            }
            Ok(WalName::Partial | WalName::BackupLabel) => {}
            Err(_) => self.unknown.push(object.to_owned()),
        }
    }

    /// Says whether a segment is there.
    pub fn has(&self, segment: Segment, size: SegmentSize) -> bool {
        self.segments.contains_key(&segment.name(size))
    }

    /// Returns how many segments there are, of all timelines.
    pub fn len(&self) -> usize {
        self.segments.len()
    }

    /// Says whether there is no segment at all.
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// Returns every timeline that has a segment or a history, ascending.
    pub fn timelines(&self) -> BTreeSet<u32> {
        let of_segments = self.segments.keys().filter_map(|name| u32::from_str_radix(&name[..8], 16).ok());
        of_segments.chain(self.timelines.iter().copied()).collect()
    }

    /// Reads the history of a timeline. Only the first one may have none.
    pub fn history(&self, store: &Store, system: SystemId, timeline: u32) -> Result<History, StepError> {
        if timeline == 1 {
            return Ok(History::root(1));
        }
        let name = format!("{timeline:08X}.history");
        let missing = || {
            StepError::permanent(codes::LB1204, format!("the archive of {system} lacks {name}"))
                .help("copy it from pg_wal of the server that was promoted, with `lifeboat wal put`")
        };
        let reader = open_form(store, system, &name)?.ok_or_else(missing)?;
        let mut text = String::new();
        reader.take(1 << 20).read_to_string(&mut text).map_err(|error| {
            StepError::permanent(codes::LB1204, format!("{name} cannot be read: {error}"))
        })?;
        History::parse(timeline, &text)
    }

    /// Walks from a segment along a history to the last segment that is there, and reports every gap.
    pub fn continuity(&self, start: u64, history: &History, size: SegmentSize) -> Continuity {
        let end = self.last_of(history, size).unwrap_or(0);
        let mut found =
            Continuity { proven: vec![], missing: vec![], missing_count: 0, stored_bytes: 0, size };
        for number in start..=end.max(start) {
            let segment = Segment { timeline: history.timeline_of(number, size), number };
            let name = segment.name(size);
            match self.segments.get(&name) {
                Some(stored) if found.missing_count == 0 => found.extend(segment, *stored),
                Some(_) => {}
                None if number > end => {}
                None => {
                    found.missing_count += 1;
                    if found.missing.len() < NAMED {
                        found.missing.push(name);
                    }
                }
            }
        }
        found
    }

    /// Returns the number of the last segment of one timeline.
    pub fn last_on(&self, timeline: u32, size: SegmentSize) -> Option<u64> {
        let prefix = format!("{timeline:08X}");
        let of_timeline =
            self.segments.range(prefix.clone()..).take_while(|(name, _)| name.starts_with(&prefix));
        of_timeline
            .filter_map(|(name, _)| Segment::parse(name, size).ok())
            .map(|segment| segment.number)
            .max()
    }

    /// Returns the number of the first segment of a history that is there.
    pub fn first_of(&self, history: &History, size: SegmentSize) -> Option<u64> {
        let parsed = self.segments.keys().filter_map(|name| Segment::parse(name, size).ok());
        let of_history =
            parsed.filter(|segment| history.timeline_of(segment.number, size) == segment.timeline);
        of_history.map(|segment| segment.number).min()
    }

    /// Returns the number of the last segment of a history that is there.
    fn last_of(&self, history: &History, size: SegmentSize) -> Option<u64> {
        let parsed = self.segments.keys().filter_map(|name| Segment::parse(name, size).ok());
        let of_history =
            parsed.filter(|segment| history.timeline_of(segment.number, size) == segment.timeline);
        of_history.map(|segment| segment.number).max()
    }
}

impl Continuity {
    fn extend(&mut self, segment: Segment, stored: u64) {
        self.stored_bytes += stored;
        match self.proven.last_mut() {
            Some(range) if range.timeline == segment.timeline => range.last = segment.number,
            _ => self.proven.push(SegmentRange {
                timeline: segment.timeline,
                first: segment.number,
                last: segment.number,
            }),
        }
    }

    /// Returns the last segment that is proven, or `None` if not even the first one is there.
    pub fn end(&self) -> Option<Segment> {
        self.proven.last().map(|range| Segment { timeline: range.timeline, number: range.last })
    }

    /// Says whether a segment is among those that are proven to be there.
    pub fn contains(&self, segment: Segment) -> bool {
        self.proven.iter().any(|range| {
            range.timeline == segment.timeline && (range.first..=range.last).contains(&segment.number)
        })
    }

    /// Returns how many segments are proven.
    pub fn count(&self) -> u64 {
        self.proven.iter().map(|range| range.last - range.first + 1).sum()
    }
}
