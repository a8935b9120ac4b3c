//! Decides which backup a recovery begins with.

use jiff::Timestamp;
use lifeboat_engine::model::evidence::Check;
use lifeboat_engine::step::StepError;
use serde::Deserialize;

use super::base::BackupDetails;
use crate::postgres::recovery_target::RecoveryTarget;
use crate::postgres::wal::{Archive, Continuity, History, Lsn, Segment, SegmentSize, SystemId};
use crate::postgres::{codes, timeline};
use crate::store::{self, Marker, Store, verify_sizes};

/// A complete backup with its details.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub(super) marker: Marker,
    pub(super) details: BackupDetails,
    pub(super) system: SystemId,
    pub(super) size: SegmentSize,
    start: Segment,
    stop: Segment,
    stop_lsn: Lsn,
}

/// What a recovery is to reach.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) target: RecoveryTarget,
    pub(super) history: History,
    pub(super) gap: Gap,
}

/// What to do about missing WAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Gap {
    Refuse,
    Accept,
}

/// The backup, and the WAL that follows it.
#[derive(Debug)]
pub(super) struct Choice<'a> {
    pub(super) candidate: &'a Candidate,
    pub(super) walk: Continuity,
    pub(super) warnings: Vec<String>,
}

impl Candidate {
    pub(super) fn of(marker: &Marker) -> Result<Self, StepError> {
        let details: BackupDetails = marker.details()?;
        let invalid = |problem: String| {
            StepError::permanent(
                store::codes::LB1110,
                format!("the marker of backup `{}` is invalid: {problem}", marker.label),
            )
        };
        let size = SegmentSize::try_from(details.base.wal_segment_size).map_err(invalid)?;
        let lsn = |text: &str| text.parse::<Lsn>().map_err(|problem| invalid(problem.to_string()));
        let (start_lsn, stop_lsn) = (lsn(&details.base.start_lsn)?, lsn(&details.base.stop_lsn)?);
        if start_lsn >= stop_lsn || details.base.timeline == 0 {
            return Err(invalid(format!("it goes from {start_lsn} to {stop_lsn}")));
        }
        Ok(Self {
            marker: marker.clone(),
            system: details.base.system_id.parse().map_err(invalid)?,
            size,
            start: Segment::at(details.base.timeline, start_lsn, size),
            stop: Segment::before(details.base.timeline, stop_lsn, size),
            stop_lsn,
            details,
        })
    }

    fn label(&self) -> &str {
        &self.marker.label
    }

    fn stop_time(&self) -> Timestamp {
        self.details.base.stop_time
    }
}

/// Chooses among backups of one cluster, newest first.
pub(super) fn choose<'a>(
    store: &Store,
    candidates: &'a [Candidate],
    (archive, wanted): (&Archive, &Wanted),
) -> Result<Choice<'a>, StepError> {
    let early: Vec<_> = candidates.iter().filter(|backup| wanted.is_after(backup)).collect();
    if early.is_empty() {
        return Err(none_before(candidates, wanted));
    }
    let mut warnings = Vec::new();
    let on_path =
        |backup: &&&Candidate| wanted.history.contains(backup.details.base.timeline, backup.stop_lsn);
    for candidate in early.iter().filter(on_path) {
        match verify_sizes(store, &candidate.marker) {
            Ok(()) => {}
            Err(error) if error.code == store::codes::LB1108 => {
                warnings.push(format!("backup `{}` is passed over: {}", candidate.label(), error.message));
                continue;
            }
            Err(error) => return Err(error),
        }
        let walk = archive.continuity(candidate.start.number, &wanted.history, candidate.size);
        warnings.extend(wanted.judge(candidate, &walk, candidates)?);
        return Ok(Choice { candidate, walk, warnings });
    }
    match warnings.is_empty() {
        true => Err(none_on_path(&early, wanted)),
        false => Err(StepError::permanent(
            codes::LB1225,
            format!("no base backup that fits is whole: {}", warnings.join("; ")),
        )
        .help("bring the objects back from a copy of the store")),
    }
}

impl Wanted {
    /// Targets are exclusive, and a moment within a backup cannot be reached from it.
    fn is_after(&self, backup: &Candidate) -> bool {
        match &self.target {
            RecoveryTarget::Time(target) => backup.stop_time() < *target,
            RecoveryTarget::Lsn { at, .. } => backup.stop_lsn <= *at,
            _ => true,
        }
    }

    /// A position is in a segment, which must be there with all before it.
    fn check_reach(&self, candidate: &Candidate, walk: &Continuity) -> Result<(), StepError> {
        let RecoveryTarget::Lsn { at, .. } = self.target else { return Ok(()) };
        let number = Segment::at(0, at, candidate.size).number;
        let needed = Segment { timeline: self.history.timeline_of(number, candidate.size), number };
        match walk.contains(needed) {
            true => Ok(()),
            false => {
                let gap = walk.missing.first().map(String::as_str);
                Err(timeline::beyond(at, (&needed.name(candidate.size), gap), walk))
            }
        }
    }

    /// Judges the WAL that follows a backup; returns a warning if it is good enough but not whole.
    fn judge(
        &self,
        candidate: &Candidate,
        walk: &Continuity,
        all: &[Candidate],
    ) -> Result<Option<String>, StepError> {
        let needed = (candidate.start.number..=candidate.stop.number)
            .map(|number| Segment { timeline: self.history.timeline_of(number, candidate.size), number });
        let mut lacking = needed.filter(|segment| !walk.contains(*segment));
        let first = lacking.next().map(|segment| segment.name(candidate.size));
        if first.is_none() && self.target == RecoveryTarget::Immediate {
            return Ok(None);
        }
        if first.is_none() && matches!(self.target, RecoveryTarget::Lsn { .. }) {
            return self.check_reach(candidate, walk).map(|()| None);
        }
        let Some(missing) = first.or_else(|| walk.missing.first().cloned()) else { return Ok(None) };
        let message = gap_message(candidate, walk, &missing);
        if self.gap == Gap::Accept {
            return Ok(Some(message));
        }
        if self.is_proven_before_gap(walk, all) {
            return Ok(Some(format!("{message}; the target lies before that")));
        }
        let later = all.iter().rev().find(|later| {
            let number = Segment::parse(&missing, candidate.size).map_or(0, |segment| segment.number);
            later.start.number > number && self.history.contains(later.details.base.timeline, later.stop_lsn)
        });
        let later = later.map_or_else(String::new, |later| {
            format!("; targets after {} can be reached from backup `{}`", later.stop_time(), later.label())
        });
        Err(StepError::permanent(codes::LB1222, message).help(format!(
            "look for {missing} in a copy of the store or in pg_wal of the old server and put it into the archive; \
             `gap: accept` recovers to the segment before it and loses what follows{later}"
        )))
    }

    /// A backup that was finished after the target, and needs no WAL from behind the gap, proves that the WAL of
    /// the target lies before the gap.
    fn is_proven_before_gap(&self, walk: &Continuity, all: &[Candidate]) -> bool {
        let Some(target) = self.target.time() else { return false };
        all.iter().any(|later| {
            let on_path = self.history.contains(later.details.base.timeline, later.stop_lsn);
            let stop = Segment {
                timeline: self.history.timeline_of(later.stop.number, later.size),
                number: later.stop.number,
            };
            // The stop time is taken after the stop, so the start must be later than the target to be certain that
            // a commit after the target is in the WAL before the gap.
            on_path && later.details.base.start_time > target && walk.contains(stop)
        })
    }
}

fn gap_message(candidate: &Candidate, walk: &Continuity, missing: &str) -> String {
    let label = candidate.label();
    let more = walk.missing_count.saturating_sub(1);
    let others = if more == 0 { String::new() } else { format!(" and {more} more") };
    match walk.end() {
        Some(end) => format!(
            "WAL is missing after backup `{label}`: {missing}{others}; the archive is whole up to {}",
            end.name(candidate.size)
        ),
        None => format!("WAL that backup `{label}` needs is missing from the archive: {missing}{others}"),
    }
}

fn none_before(candidates: &[Candidate], wanted: &Wanted) -> StepError {
    let oldest = candidates.last().map_or_else(String::new, |oldest| {
        let (label, time, lsn) = (oldest.label(), oldest.stop_time(), oldest.stop_lsn);
        format!("; the oldest, `{label}`, was finished at {time}, at {lsn}")
    });
    let target = match &wanted.target {
        RecoveryTarget::Time(target) => target.to_string(),
        RecoveryTarget::Lsn { at, .. } => at.to_string(),
        target => target.to_string(),
    };
    StepError::permanent(codes::LB1221, format!("no base backup was finished before {target}{oldest}")).help(
        "give a later target, or bring an older backup and its WAL back from a copy of the store; the backup after the \
         target is never taken in its place",
    )
}

fn none_on_path(early: &[&Candidate], wanted: &Wanted) -> StepError {
    let found: Vec<_> = early
        .iter()
        .map(|backup| format!("`{}` on timeline {}", backup.label(), backup.details.base.timeline))
        .collect();
    StepError::permanent(
        codes::LB1224,
        format!(
            "no base backup before the target is part of the history of timeline {}: {}",
            wanted.history.timeline,
            found.join(", ")
        ),
    )
    .help("give `timeline` to recover along another one, and read `lifeboat explain LB1224` first")
}

impl Choice<'_> {
    /// Returns what was proven, for the report.
    pub(super) fn checks(&self, wanted: &Wanted) -> Vec<Check> {
        let backup = self.candidate;
        let whole = self.walk.missing_count == 0 && self.walk.contains(backup.start);
        let end = self.walk.end().map_or_else(|| "nothing".to_owned(), |end| end.name(backup.size));
        let check = |name: &str, expected: String, actual: String, passed| Check {
            name: name.to_owned(),
            expected,
            actual,
            passed,
        };
        vec![
            check(
                "backup finished before the target",
                match &wanted.target {
                    RecoveryTarget::Time(target) => format!("before {target}"),
                    RecoveryTarget::Lsn { at, .. } => format!("before {at}"),
                    target => format!("recovery to {target}"),
                },
                format!("{}, at {}", backup.stop_time(), backup.stop_lsn),
                true,
            ),
            check(
                "backup belongs to the timeline",
                format!("history of timeline {}", wanted.history.timeline),
                format!("timeline {} at {}", backup.details.base.timeline, backup.stop_lsn),
                true,
            ),
            check(
                "WAL follows without a gap",
                format!("from {}", backup.details.wal_start_segment),
                format!("{} segments up to {end}", self.walk.count()),
                whole,
            ),
        ]
    }
}
