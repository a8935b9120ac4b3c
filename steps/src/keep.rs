//! Decides which backups are kept.

use std::collections::BTreeSet;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Deserialize;

/// How many are kept, of which period the newest each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Keep {
    /// The newest ones, whenever they were taken.
    pub(crate) last: usize,
    pub(crate) daily: usize,
    pub(crate) weekly: usize,
    pub(crate) monthly: usize,
    /// Of those kept, at least so many must be whole.
    pub(crate) min_verified: usize,
}

/// Returns which of these backups are kept: their positions in the list, which is newest first.
///
/// Days, weeks and months without a backup do not count, so that nothing is dropped because nothing was taken. Days are
/// those of UTC.
pub(crate) fn kept(finished: &[Timestamp], keep: Keep) -> BTreeSet<usize> {
    let mut kept: BTreeSet<usize> = (0..finished.len().min(keep.last)).collect();
    let date = |at: &Timestamp| at.to_zoned(TimeZone::UTC).date();
    let week = |at: &Timestamp| {
        let week = date(at).iso_week_date();
        (i32::from(week.year()), i32::from(week.week()))
    };
    let day = |at: &Timestamp| (i32::from(date(at).year()), i32::from(date(at).day_of_year()));
    let month = |at: &Timestamp| (i32::from(date(at).year()), i32::from(date(at).month()));
    kept.extend(newest_of_each(finished, keep.daily, day));
    kept.extend(newest_of_each(finished, keep.weekly, week));
    kept.extend(newest_of_each(finished, keep.monthly, month));
    kept
}

fn newest_of_each(
    finished: &[Timestamp],
    most: usize,
    period: impl Fn(&Timestamp) -> (i32, i32),
) -> Vec<usize> {
    let mut seen = BTreeSet::new();
    let mut kept = Vec::new();
    for (index, at) in finished.iter().enumerate() {
        if seen.len() < most && seen.insert(period(at)) {
            kept.push(index);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(texts: &[&str]) -> Vec<Timestamp> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn the_newest_of_each_period_is_kept() {
        let finished = times(&[
            "2026-11-21T12:00:00Z",
            "2026-11-21T00:00:00Z",
            "2026-11-20T00:00:00Z",
            "2026-11-16T00:00:00Z", // The Monday of that week.
            "2026-11-15T00:00:00Z", // The Sunday before.
            "2026-10-31T00:00:00Z",
            "2026-09-01T00:00:00Z",
        ]);
        let kept = |keep: Keep| kept(&finished, keep).into_iter().collect::<Vec<_>>();
        let none = Keep::default();
        assert_eq!(kept(none), Vec::<usize>::new());
        assert_eq!(kept(Keep { last: 2, ..none }), [0, 1]);
        assert_eq!(kept(Keep { daily: 3, ..none }), [0, 2, 3]);
        assert_eq!(kept(Keep { weekly: 2, ..none }), [0, 4]);
        assert_eq!(kept(Keep { monthly: 2, ..none }), [0, 5]);
        assert_eq!(kept(Keep { last: 1, daily: 2, weekly: 3, monthly: 9, min_verified: 0 }), [0, 2, 4, 5, 6]);
    }

    #[test]
    fn days_without_a_backup_do_not_count() {
        let finished = times(&["2026-11-21T12:00:00Z", "2026-06-01T00:00:00Z", "2026-01-01T00:00:00Z"]);
        let keep = Keep { daily: 3, ..Keep::default() };
        assert_eq!(kept(&finished, keep).len(), 3, "a backup that stopped months ago loses nothing");
    }
}
