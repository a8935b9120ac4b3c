//! What shows that a recovery stopped where it should, with all WAL before it replayed.

use jiff::Timestamp;
use lifeboat_engine::model::evidence::Check;
use lifeboat_engine::step::StepError;

use super::super::codes;
use super::super::isolation::Goal;
use super::super::recovery_target::{Edge, RecoveryTarget};
use super::super::wal::{Answered, Lsn, Request, Segment};
use super::pass::{Paused, Replay};
use super::source::Wal;

/// The line of the log in which the server says where it stopped.
pub(super) fn stop_line(paused: &Paused) -> Option<String> {
    let line = paused.log.last_with("recovery stopping ")?;
    line.split_once("recovery stopping ").map(|(_, rest)| format!("recovery stopping {rest}"))
}

/// Makes every check. One that fails makes the step fail although Postgres is content.
pub(super) fn checks(wal: &Wal, paused: &Paused, replay: &Replay) -> Vec<Check> {
    let mut checks = vec![stopped_at_goal(wal, paused, replay)];
    if let Goal::Target(RecoveryTarget::Time(target)) = paused.isolation.goal {
        checks.push(last_commit_before(target, replay));
    }
    checks.push(Check {
        name: "replay waits".into(),
        expected: "in recovery and paused".into(),
        actual: if replay.in_recovery && replay.paused { "in recovery and paused" } else { "not paused" }
            .into(),
        passed: replay.in_recovery && replay.paused,
    });
    checks.push(no_false_absence(wal, paused.requests.as_deref(), replay.lsn));
    checks
}

/// Returns the failure of checks of which at least one has failed.
pub(super) fn verdict(checks: Vec<Check>) -> Result<Vec<Check>, StepError> {
    let failed: Vec<String> = checks
        .iter()
        .filter(|check| !check.passed)
        .map(|check| format!("{}: expected {}, found {}", check.name, check.expected, check.actual))
        .collect();
    if failed.is_empty() {
        return Ok(checks);
    }
    Err(StepError::permanent(codes::LB1270, format!("the recovery is not proven: {}", failed.join("; ")))
        .help("do not use this server; look at its log and the archive, and restore again")
        .checks(checks))
}

fn stopped_at_goal(wal: &Wal, paused: &Paused, replay: &Replay) -> Check {
    let line = stop_line(paused);
    let text = line.as_deref().unwrap_or_default();
    let (expected, passed) = match &paused.isolation.goal {
        Goal::Target(target) => at_target(target, (text, replay.lsn), wal),
        Goal::Through(lsn) => (
            format!("a stop after the last record, at {lsn}"),
            replay.lsn.is_some_and(|replayed| replayed > *lsn),
        ),
        Goal::Farthest => ("a pause".to_owned(), false),
    };
    let actual = line.unwrap_or_else(|| "the log has no line about it".to_owned());
    Check { name: "recovery stopped at its target".into(), expected, actual, passed }
}

/// Compares what the server says of its stop, and how far it is, with what was asked for.
fn at_target(target: &RecoveryTarget, (line, replayed): (&str, Option<Lsn>), wal: &Wal) -> (String, bool) {
    match target {
        RecoveryTarget::Time(time) => (
            format!("a stop before the first commit at or after {time}"),
            commit_time(line).is_some_and(|stopped| stopped >= *time) && is_before(Some(line)),
        ),
        RecoveryTarget::Lsn { at, edge } => {
            let stopped = stop_location(line, *edge).filter(|stopped| stopped >= at);
            let beyond = |stopped: Lsn| match edge {
                Edge::Before => replayed.is_some_and(|replayed| replayed <= stopped),
                Edge::Through => replayed.is_some_and(|replayed| replayed > *at),
            };
            (format!("a stop {target}"), stopped.is_some_and(beyond))
        }
        RecoveryTarget::Transaction { id, edge } => {
            (format!("a stop {target}"), is_transaction(line, *id, *edge))
        }
        RecoveryTarget::RestorePoint(name) => (
            format!("a stop at {target}"),
            line.starts_with(&format!("recovery stopping at restore point \"{name}\", ")),
        ),
        RecoveryTarget::Immediate => {
            let stop = wal.details.stop_lsn.parse::<Lsn>().unwrap_or_default();
            (
                format!("a stop once the backup is consistent, at {stop}"),
                line.starts_with("recovery stopping after reaching consistency")
                    && replayed.is_some_and(|replayed| replayed >= stop),
            )
        }
        RecoveryTarget::Latest => (format!("a stop at {target}"), false),
    }
}

/// Reads `recovery stopping before WAL location (LSN) "0/5000110"`.
fn stop_location(line: &str, edge: Edge) -> Option<Lsn> {
    let side = match edge {
        Edge::Before => "before",
        Edge::Through => "after",
    };
    let rest = line.strip_prefix(&format!("recovery stopping {side} WAL location (LSN) \""))?;
    rest.split('"').next()?.parse().ok()
}

/// Looks for `recovery stopping after commit of transaction 742, time …`.
fn is_transaction(line: &str, id: u32, edge: Edge) -> bool {
    let side = match edge {
        Edge::Before => "before",
        Edge::Through => "after",
    };
    ["commit", "abort"]
        .iter()
        .any(|end| line.starts_with(&format!("recovery stopping {side} {end} of transaction {id},")))
}

fn is_before(line: Option<&str>) -> bool {
    line.is_some_and(|line| line.starts_with("recovery stopping before "))
}

/// Reads the time of `recovery stopping before commit of transaction 742, time 2026-11-21 06:11:51.197869+00`.
fn commit_time(line: &str) -> Option<Timestamp> {
    let text = line.rsplit_once("time ")?.1.trim();
    let (date, rest) = text.split_once(' ')?;
    // An offset such as `+00` or ` UTC`; the server's time zone is set to UTC.
    let time = rest.trim_end_matches("UTC").trim().trim_end_matches("+00");
    format!("{date}T{time}Z").parse().ok()
}

fn last_commit_before(target: Timestamp, replay: &Replay) -> Check {
    let time = replay.last_commit.as_ref().and_then(|time| time.parse::<Timestamp>().ok());
    Check {
        name: "last replayed commit is before the target".into(),
        expected: format!("before {target}"),
        actual: time
            .map_or_else(|| "no commit was replayed after the backup".to_owned(), |time| time.to_string()),
        passed: time.is_none_or(|time| time < target),
    }
}

/// Postgres takes "absent" for the end of the log, so each such answer must be right.
fn no_false_absence(wal: &Wal, requests: Option<&[Request]>, replayed: Option<Lsn>) -> Check {
    let name = "no WAL was reported absent that exists or lies before the stop".to_owned();
    let expected = "none".to_owned();
    let Some(requests) = requests else {
        let reached = replayed.is_some_and(|lsn| covers(wal, lsn));
        let actual = if reached {
            "served by an earlier process; the archive is continuous up to the stop"
        } else {
            "served by an earlier process, and the archive is not continuous up to the stop"
        };
        return Check { name, expected, actual: actual.into(), passed: reached };
    };
    let wrong: Vec<&str> = requests
        .iter()
        .filter(|request| request.answer == Answered::Absent && is_wrong(wal, &request.name, replayed))
        .map(|request| request.name.as_str())
        .collect();
    let actual = match wrong.as_slice() {
        [] => format!("none among {} requests", requests.len()),
        names => names.join(", "),
    };
    Check { name, expected, actual, passed: wrong.is_empty() }
}

fn is_wrong(wal: &Wal, name: &str, replayed: Option<Lsn>) -> bool {
    // History files and the like are asked for on suspicion.
    let Ok(segment) = Segment::parse(name, wal.size) else { return false };
    if wal.archive.has(segment, wal.size) {
        return true;
    }
    let before_stop = replayed.is_some_and(|lsn| segment.number < lsn.0 / wal.size.bytes());
    // Older timelines and newer ones are tried for the same number; one of them holds it.
    let holds = segment.timeline == wal.history.timeline_of(segment.number, wal.size);
    before_stop && holds && !wal.local.contains(name)
}

fn covers(wal: &Wal, lsn: Lsn) -> bool {
    let number = Segment::before(0, lsn, wal.size).number;
    let needed = Segment { timeline: wal.history.timeline_of(number, wal.size), number };
    wal.continuity.contains(needed) || wal.local.contains(&needed.name(wal.size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_stop_line_is_read() {
        let line = "recovery stopping before commit of transaction 742, time 2026-11-21 06:11:51.197869+00";
        let expected: Timestamp = "2026-11-21T06:11:51.197869Z".parse().expect("a time");
        assert_eq!(commit_time(line), Some(expected));
        assert!(is_before(Some(line)));
        let line = "recovery stopping after WAL location (LSN) \"0/5000110\"";
        assert_eq!(commit_time(line), None);
        assert_eq!(stop_location(line, Edge::Through), Some(Lsn(0x0500_0110)));
        assert_eq!(stop_location(line, Edge::Before), None);
    }

    #[test]
    fn a_stop_at_a_transaction_is_told_from_one_at_another() {
        let line = "recovery stopping before commit of transaction 742, time 2026-11-21 06:11:51.197869+00";
        assert!(is_transaction(line, 742, Edge::Before));
        assert!(!is_transaction(line, 74, Edge::Before) && !is_transaction(line, 742, Edge::Through));
    }
}
