//! Which timeline a recovery follows when nobody has said.
//!
//! A promotion begins a new timeline, and so does a drill whose server archived into the archive of its source. In the
//! archive the two look alike: the newest timeline is the one to follow after a failover, and the wrong one after such a
//! drill. So the newest is taken only if no other goes on beside it, or if a base backup was taken on it, which drills do
//! not do. The server is always told a timeline; it never chooses.

use lifeboat_engine::step::StepError;

use super::codes;
use super::wal::{Archive, Continuity, History, Lsn, Segment, SegmentSize, SystemId};
use crate::store::Store;

/// Where a timeline is looked for.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) store: &'a Store,
    pub(super) system: SystemId,
    pub(super) archive: &'a Archive,
    pub(super) size: SegmentSize,
}

/// A timeline that the recovery does not follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Other {
    timeline: u32,
    /// The last segment that it has.
    last: u64,
}

/// Returns the history of the newest timeline, if it is certain that it is the one to follow. `backups` are the
/// timelines on which base backups were taken.
pub(super) fn newest(place: Place<'_>, backups: &[u32]) -> Result<History, StepError> {
    let mut known = place.archive.timelines();
    known.extend(backups);
    let timeline = known.last().copied().unwrap_or(1);
    let history = place.archive.history(place.store, place.system, timeline)?;
    let others = others(place, &history);
    if others.is_empty() || backups.contains(&timeline) {
        return Ok(history);
    }
    Err(parted(place, &history, &others))
}

/// Returns the timelines that go on beside a history: those that it never was, and those that went on after it left them.
pub(super) fn others(place: Place<'_>, history: &History) -> Vec<Other> {
    let left_at = |timeline: u32| {
        let switch = history.switches.iter().find(|switch| switch.from == timeline);
        switch.map(|switch| Segment::at(timeline, switch.at, place.size).number)
    };
    let beside = |timeline: &u32| {
        let last = place.archive.last_on(*timeline, place.size).unwrap_or(0);
        let beside = match left_at(*timeline) {
            // The segment in which it was left is archived whole if its server lived on for a moment.
            Some(left) => last > left,
            None => *timeline != history.timeline,
        };
        beside.then_some(Other { timeline: *timeline, last })
    };
    place.archive.timelines().iter().filter_map(beside).collect()
}

/// Says of other timelines what people should know.
pub(super) fn warning(place: Place<'_>, history: &History) -> Option<String> {
    let others = others(place, history);
    let named: Vec<_> = others.iter().map(|other| other.timeline).collect();
    (!others.is_empty()).then(|| {
        format!(
            "the archive has WAL of timelines {named:?} that is not part of timeline {}; `timeline` chooses another",
            history.timeline
        )
    })
}

fn parted(place: Place<'_>, history: &History, others: &[Other]) -> StepError {
    let name = |timeline, number| Segment { timeline, number }.name(place.size);
    let end = place.archive.last_on(history.timeline, place.size);
    let end = end.map_or_else(String::new, |number| format!(", up to {}", name(history.timeline, number)));
    let from = history
        .switches
        .last()
        .map_or_else(String::new, |switch| format!(" left timeline {} at {}{end}", switch.from, switch.at));
    let others: Vec<_> = others
        .iter()
        .map(|other| match other.last {
            0 => format!("timeline {} is there", other.timeline),
            last => format!("timeline {} goes on up to {}", other.timeline, name(other.timeline, last)),
        })
        .collect();
    StepError::permanent(
        codes::LB1833,
        format!(
            "the log has parted, and nobody has said which way to go: timeline {}{from}; {}",
            history.timeline,
            others.join("; ")
        ),
    )
    .help(
        "give `timeline`: the one that production wrote at the target, not one that a drill or a test began \
         (`lifeboat explain LB1833`); nothing was touched",
    )
}

/// The error for a position that the archive does not reach without a gap.
pub(super) fn beyond(at: Lsn, (needed, gap): (&str, Option<&str>), walk: &Continuity) -> StepError {
    let end = walk.end().map_or_else(|| "nothing".to_owned(), |end| end.name(walk.size));
    match gap {
        Some(gap) => StepError::permanent(
            codes::LB1222,
            format!("WAL is missing before the target {at}: {gap}; the archive is whole up to {end}"),
        )
        .help("look for it in a copy of the store or in pg_wal of the old server and put it into the archive"),
        None => StepError::permanent(
            codes::LB1834,
            format!("the target {at} is in {needed}, and the archive ends with {end}"),
        )
        .help("give a target up to there, or `target: latest`; or archive what pg_wal of the old server still has"),
    }
}
