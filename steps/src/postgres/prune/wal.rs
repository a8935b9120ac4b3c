//! Decides which segments of the log are needed.

use jiff::Timestamp;
use lifeboat_engine::step::StepError;

use super::super::backup::BackupDetails;
use super::super::wal::{Lsn, Segment, SegmentSize};
use crate::store::{self, Marker};

/// The log that one backup needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Needs {
    pub(super) system: String,
    pub(super) size: SegmentSize,
    /// From start to stop of the backup itself, without which it is nothing.
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) finished: Timestamp,
}

impl Needs {
    /// Reads them from a marker.
    pub(super) fn of(marker: &Marker) -> Result<Self, StepError> {
        let invalid = |problem: String| {
            StepError::permanent(
                store::codes::LB1110,
                format!("the marker of backup `{}` is invalid: {problem}", marker.label),
            )
        };
        let details: BackupDetails = marker.details()?;
        let size = SegmentSize::try_from(details.base.wal_segment_size).map_err(invalid)?;
        let stop: Lsn = details.base.stop_lsn.parse().map_err(|_| invalid("no stop position".to_owned()))?;
        let first = Segment::parse(&details.wal_start_segment, size)?.number;
        Ok(Self {
            system: details.base.system_id,
            size,
            first,
            last: Segment::before(details.base.timeline, stop, size).number,
            finished: marker.finished_at,
        })
    }
}

/// Says whether a segment of a cluster is needed by the backups of it that are kept: within one of them, or from the
/// backup on that reaches the moment `since`, or from the oldest if there is no such moment.
pub(super) fn is_needed(segment: u64, kept: &[Needs], since: Option<Timestamp>) -> bool {
    if kept.iter().any(|needs| (needs.first..=needs.last).contains(&segment)) {
        return true;
    }
    let oldest = kept.iter().map(|needs| needs.first).min();
    let reaching = since.and_then(|since| {
        let before = kept.iter().filter(|needs| needs.finished <= since);
        before.max_by_key(|needs| needs.finished).map(|needs| needs.first)
    });
    // Nothing kept needs nothing, and then nothing is known.
    reaching.or(oldest).is_none_or(|from| segment >= from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needs(first: u64, last: u64, finished: &str) -> Needs {
        let (system, finished) = ("1".to_owned(), finished.parse().unwrap());
        Needs { system, size: SegmentSize::DEFAULT, first, last, finished }
    }

    #[test]
    fn all_from_the_oldest_kept_backup_on_is_needed() {
        let kept = [needs(50, 51, "2026-11-20T00:00:00Z"), needs(10, 12, "2026-11-01T00:00:00Z")];
        let needed = |segment| is_needed(segment, &kept, None);
        assert!(!needed(9) && needed(10) && needed(30) && needed(99));
        assert!(is_needed(1, &[], None), "without a backup nothing is known");
    }

    #[test]
    fn older_backups_keep_only_their_own() {
        let kept = [
            needs(50, 51, "2026-11-20T00:00:00Z"),
            needs(30, 31, "2026-11-10T00:00:00Z"),
            needs(10, 12, "2026-11-01T00:00:00Z"),
        ];
        let since = Some("2026-11-15T00:00:00Z".parse().unwrap());
        let needed = |segment| is_needed(segment, &kept, since);
        assert!(
            needed(10) && needed(12) && !needed(13) && !needed(29),
            "the oldest can only be restored as it is"
        );
        assert!(needed(30) && needed(40) && needed(99), "each moment since then can be reached");
        let long_ago = Some("2026-10-01T00:00:00Z".parse().unwrap());
        assert!(is_needed(20, &kept, long_ago), "no backup reaches that moment: the oldest must do");
    }
}
