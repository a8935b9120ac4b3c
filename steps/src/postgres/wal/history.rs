use lifeboat_engine::step::StepError;

use super::names::{Lsn, Segment, SegmentSize};
use crate::postgres::codes;

/// How a timeline came about: the timelines before it, oldest first, and where each was left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct History {
    pub timeline: u32,
    pub switches: Vec<Switch>,
}

/// Where the log left a timeline for the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Switch {
    pub from: u32,
    pub at: Lsn,
}

impl History {
    /// The history of a timeline that nothing was before: the first one, or one whose past does not matter.
    pub fn root(timeline: u32) -> Self {
        Self { timeline, switches: Vec::new() }
    }

    /// Parses a `.history` file.
    pub fn parse(timeline: u32, text: &str) -> Result<Self, StepError> {
        let mut switches = Vec::<Switch>::new();
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let switch = parse_line(line).ok_or_else(|| invalid(timeline, line))?;
            let ascends = switches.last().is_none_or(|last| last.from < switch.from && last.at <= switch.at);
            if !ascends || switch.from == 0 || switch.from >= timeline {
                return Err(invalid(timeline, line));
            }
            switches.push(switch);
        }
        match switches.is_empty() && timeline > 1 {
            true => Err(invalid(timeline, "it names no earlier timeline")),
            false => Ok(Self { timeline, switches }),
        }
    }

    /// Says whether the log that reached `lsn` on `timeline` is part of this history.
    pub fn contains(&self, timeline: u32, lsn: Lsn) -> bool {
        timeline == self.timeline
            || self.switches.iter().any(|switch| switch.from == timeline && lsn <= switch.at)
    }

    /// Returns all timelines of the history, oldest first.
    pub fn timelines(&self) -> Vec<u32> {
        self.switches.iter().map(|switch| switch.from).chain([self.timeline]).collect()
    }

    /// Returns the timeline on which the log before a position was written.
    pub fn timeline_before(&self, lsn: Lsn) -> u32 {
        self.switches.iter().find(|switch| lsn <= switch.at).map_or(self.timeline, |switch| switch.from)
    }

    /// Returns the timeline whose file holds a segment, by its number.
    ///
    /// The segment in which a timeline began was copied to the new timeline, so it is taken from there.
    pub fn timeline_of(&self, number: u64, size: SegmentSize) -> u32 {
        self.switches
            .iter()
            .find(|switch| number < Segment::at(switch.from, switch.at, size).number)
            .map_or(self.timeline, |switch| switch.from)
    }
}

/// `1<TAB>0/5000060<TAB>no recovery target specified`
fn parse_line(line: &str) -> Option<Switch> {
    let mut parts = line.split_whitespace();
    let from = parts.next()?.parse().ok()?;
    let at = parts.next()?.parse().ok()?;
    Some(Switch { from, at })
}

fn invalid(timeline: u32, line: &str) -> StepError {
    StepError::permanent(
        codes::LB1204,
        format!("the history of timeline {timeline} ({timeline:08X}.history) cannot be understood: `{line}`"),
    )
    .help("bring the file back from pg_wal of the server that was promoted, or from a copy of the store")
}
