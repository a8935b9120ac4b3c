//! What was seen so far, and whether it is too much. Pure, and small enough to be recorded after every look.

use std::collections::BTreeMap;

use jiff::Timestamp;
use lifeboat_engine::value::Span;
use serde::{Deserialize, Serialize};

/// How many failures are remembered with their reasons.
const REMEMBERED: usize = 20;

/// How many looks may fail.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
pub(super) struct Tolerance {
    failures: Option<u64>,
    share: Option<f64>,
    in_a_row: Option<u64>,
}

/// How long and how often is looked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Schedule {
    pub(super) every: Span,
    pub(super) length: Span,
}

/// A look that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Failure {
    pub(super) at: Timestamp,
    pub(super) check: String,
    pub(super) why: String,
}

/// All that was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Tally {
    /// How many times `every` was watched: time in which nobody watched is none.
    pub(super) intervals: u64,
    pub(super) looks: u64,
    pub(super) failed: u64,
    in_a_row: u64,
    pub(super) longest: u64,
    /// How many looks of each check failed.
    pub(super) by_check: BTreeMap<String, u64>,
    /// How often the watching was interrupted.
    pub(super) interruptions: u64,
    /// The last failures.
    pub(super) failures: Vec<Failure>,
}

impl Schedule {
    /// Returns how many intervals there are; the last one may be cut short, and is watched whole.
    pub(super) fn intervals(&self) -> u64 {
        let (length, every) = (self.length.0.as_millis(), self.every.0.as_millis().max(1));
        u64::try_from(length.div_ceil(every)).unwrap_or(u64::MAX)
    }

    /// Returns how often is looked, at the beginning and at the end included.
    fn looks(&self) -> u64 {
        self.intervals().saturating_add(1)
    }
}

impl Tally {
    /// Counts one look by what failed in it.
    pub(super) fn count(&mut self, failures: Vec<Failure>) {
        self.looks += 1;
        if failures.is_empty() {
            self.in_a_row = 0;
            return;
        }
        self.failed += 1;
        self.in_a_row += 1;
        self.longest = self.longest.max(self.in_a_row);
        for failure in failures {
            *self.by_check.entry(failure.check.clone()).or_default() += 1;
            self.failures.push(failure);
        }
        let excess = self.failures.len().saturating_sub(REMEMBERED);
        self.failures.drain(..excess);
    }

    /// Says how long was watched in all.
    pub(super) fn observed(&self, schedule: &Schedule) -> Span {
        let times = u32::try_from(self.intervals).unwrap_or(u32::MAX);
        Span(schedule.every.0.saturating_mul(times).min(schedule.length.0))
    }
}

impl Tolerance {
    /// Returns the most looks that may fail of all that are planned.
    pub(super) fn most(&self, schedule: &Schedule) -> u64 {
        let looks = schedule.looks();
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a share of a number of looks, which is far from where that matters"
        )]
        let share = self.share.map(|share| (share.clamp(0.0, 1.0) * looks as f64).floor() as u64);
        match (self.failures, share) {
            (Some(failures), Some(share)) => failures.min(share),
            (one, other) => one.or(other).unwrap_or(0),
        }
    }

    /// Says why what was seen is too much, as soon as nothing that comes can mend it.
    pub(super) fn exceeded(&self, tally: &Tally, schedule: &Schedule) -> Option<String> {
        let most = self.most(schedule);
        if tally.failed > most {
            let (failed, looks) = (tally.failed, tally.looks);
            return Some(format!(
                "{failed} of {looks} looks failed; of all {} at most {most} may",
                schedule.looks()
            ));
        }
        let row = self.in_a_row.filter(|most| tally.in_a_row > *most)?;
        Some(format!("{} looks failed in a row; at most {row} may", tally.in_a_row))
    }

    /// Says what is wrong with it.
    pub(super) fn problem(&self) -> Option<String> {
        if self.share.is_some_and(|share| !(0.0..1.0).contains(&share)) {
            return Some("`share` is a part of 1: 0.05 is one look in twenty".into());
        }
        let never = self.in_a_row.zip(self.failures).is_some_and(|(row, failures)| row > failures);
        never.then(|| "more failures in a row than failures at all".into())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn schedule(every: u64, length: u64) -> Schedule {
        Schedule { every: Span(Duration::from_secs(every)), length: Span(Duration::from_secs(length)) }
    }

    fn failure() -> Vec<Failure> {
        vec![Failure { at: Timestamp::UNIX_EPOCH, check: "health".into(), why: "status 500".into() }]
    }

    /// Returns after which look of a row it is too much; `.` is a good one.
    fn too_much(tolerance: Tolerance, looks: &str) -> Option<usize> {
        let mut tally = Tally::default();
        looks.chars().position(|look| {
            tally.count(if look == '.' { Vec::new() } else { failure() });
            tolerance.exceeded(&tally, &schedule(10, 900)).is_some()
        })
    }

    #[test]
    fn at_most_two_failures_and_never_two_in_a_row() {
        let tolerance = Tolerance { failures: Some(2), share: None, in_a_row: Some(1) };
        assert_eq!(too_much(tolerance, "..x..x...."), None);
        assert_eq!(too_much(tolerance, ".xx"), Some(2));
        assert_eq!(too_much(tolerance, "x.x..x."), Some(5));
        assert_eq!(too_much(Tolerance::default(), "....x"), Some(4));
    }

    #[test]
    fn a_share_is_of_all_looks_that_are_planned() {
        let tolerance = Tolerance { share: Some(0.05), ..Tolerance::default() };
        assert_eq!(tolerance.most(&schedule(10, 900)), 4, "of 91");
        assert_eq!(too_much(tolerance, "xxxx"), None);
        assert_eq!(too_much(tolerance, "xxxxx"), Some(4));
        let both = Tolerance { failures: Some(1), share: Some(0.05), in_a_row: None };
        assert_eq!(both.most(&schedule(10, 900)), 1, "the stricter one counts");
    }

    #[test]
    fn only_time_that_was_watched_counts() {
        assert_eq!((schedule(10, 900).intervals(), schedule(10, 901).intervals()), (90, 91));
        let tally = Tally { intervals: 7, ..Tally::default() };
        assert_eq!(tally.observed(&schedule(10, 900)).to_string(), "1m 10s");
        let tally = Tally { intervals: 91, ..Tally::default() };
        assert_eq!(tally.observed(&schedule(10, 901)).to_string(), "15m 1s");
    }

    #[test]
    fn however_many_fail_only_some_are_remembered() {
        let mut tally = Tally::default();
        (0..1000).for_each(|_| tally.count(failure()));
        assert_eq!((tally.failed, tally.longest, tally.failures.len()), (1000, 1000, REMEMBERED));
    }
}
