//! The chart of a run: a bar for each step over the time since the incident, laid out in rounded coordinates.

use std::collections::HashSet;

use serde::Serialize;

use super::human::{DayClock, duration};
use super::model::{Activity, GroupReport};
use super::model::{AttemptEnd, AttemptReport, Doing, RunReport, Segment, StepReport, StepSpan, Verdict};
use super::page::Piece;
use crate::model::ids::StepId;

const LABEL_CHAR: f64 = 7.4;
const MAX_LABELS: f64 = 200.0;
const WIDTH: f64 = 880.0;
const RIGHT: f64 = 80.0;
const ROW: f64 = 24.0;
const LEVEL: f64 = 18.0;
/// Estimated width of a character of the labels over the chart.
const CHAR: f64 = 6.6;
/// More rows than a reader can take in; the tables have them all.
const MAX_ROWS: usize = 200;
/// How much longer than the run the axis may get to show the objective's line.
const STRETCH: f64 = 1.5;

/// A chart with everything placed.
#[derive(Debug, Serialize)]
pub(super) struct Chart {
    width: Num,
    height: Num,
    top: Num,
    bottom: Num,
    left: Num,
    desc: String,
    rows: Vec<Row>,
    ticks: Vec<Tick>,
    bands: Vec<Bar>,
    marks: Vec<Mark>,
    notes: Vec<String>,
    /// Classes that occur, with what they mean.
    legend: Vec<(&'static str, &'static str)>,
}

/// A coordinate with one decimal, so that the same run always gives the same text.
type Num = String;

fn num(value: f64) -> Num {
    let text = format!("{value:.1}");
    text.strip_suffix(".0").map_or_else(|| text.clone(), str::to_owned)
}

#[derive(Debug, Serialize)]
struct Row {
    y: Num,
    text_y: Num,
    bar_y: Num,
    label: String,
    class: &'static str,
    title: String,
    bars: Vec<Bar>,
    after_x: Num,
    after: String,
}

#[derive(Debug, Serialize)]
struct Bar {
    x: Num,
    width: Num,
    class: &'static str,
    title: String,
}

#[derive(Debug, Serialize)]
struct Tick {
    x: Num,
    label: String,
}

#[derive(Debug, Serialize)]
struct Mark {
    x: Num,
    text_x: Num,
    text_y: Num,
    anchor: &'static str,
    label: String,
    class: &'static str,
}

/// Places moments on the axis.
struct Axis {
    left: f64,
    incident: i64,
    from: i64,
    to: i64,
}

impl Axis {
    fn x(&self, at: i64) -> f64 {
        let share = (at - self.from) as f64 / (self.to - self.from).max(1) as f64;
        self.left + share.clamp(0.0, 1.0) * (WIDTH - self.left)
    }

    fn bar(&self, from: i64, to: i64, class: &'static str, title: String) -> Bar {
        let (x, end) = (self.x(from), self.x(to));
        Bar { x: num(x), width: num((end - x).max(1.5)), class, title }
    }
}

/// Draws a run; `None` if no step has begun.
pub(super) fn chart(report: &RunReport) -> Option<Chart> {
    let first = report.steps.iter().filter_map(|step| step.started_at).min()?;
    let mut notes = Vec::new();
    let axis = axis(report, first.0, &mut notes);
    let (marks, levels) = marks(report, &axis);
    let top = LEVEL * levels as f64 + 26.0;
    let rows = rows(report, &axis, top, &mut notes);
    let bottom = top + ROW * rows.len() as f64;
    Some(Chart {
        width: num(WIDTH + RIGHT),
        height: num(bottom + 8.0),
        top: num(top),
        bottom: num(bottom),
        left: num(axis.left),
        desc: describe(report),
        legend: legend(&rows),
        bands: bands(report, &axis),
        ticks: ticks(&axis),
        rows,
        marks,
        notes,
    })
}

fn axis(report: &RunReport, first: i64, notes: &mut Vec<String>) -> Axis {
    let incident = report.identity.incident_at.0;
    let end = report.identity.as_of.0.max(first + 1);
    let declared = report.identity.declared_at.map_or(incident, |at| at.0);
    let mut from = incident.min(declared);
    if declared - from > end - declared {
        notes.push(format!(
            "The chart begins with the run, {} after the incident.",
            duration(declared - incident)
        ));
        from = declared;
    }
    let mut to = end;
    if let Some(limit) = report.rto.objective_ms {
        let deadline = incident.saturating_add(limit);
        if ((deadline - from) as f64) <= (end - from) as f64 * STRETCH {
            to = to.max(deadline);
        } else {
            notes.push(format!("The RTO of {} lies beyond the right edge.", duration(limit)));
        }
    }
    Axis { left: labels_width(report), incident, from, to }
}

/// Returns the room that the labels need.
fn labels_width(report: &RunReport) -> f64 {
    let steps = report.steps.iter().filter(|step| step.started_at.is_some()).map(|step| step.id.as_str());
    let groups = report.groups.iter().map(|group| group.id.as_str());
    let longest = steps.chain(groups).map(|id| id.chars().count()).max().unwrap_or(0);
    (longest as f64 * LABEL_CHAR + 26.0).min(MAX_LABELS)
}

/// Places the lines over the chart, and says how many rows of labels they take.
fn marks(report: &RunReport, axis: &Axis) -> (Vec<Mark>, usize) {
    let mut lines: Vec<(i64, String, &'static str)> = Vec::new();
    for mark in &report.milestones {
        let class = if mark.verdict == Some(Verdict::Missed) { "mark missed" } else { "mark" };
        lines.extend(mark.reached_at.map(|at| (at.0, mark.name.clone(), class)));
    }
    if let Some(at) = report.rto.recovered_at {
        lines.push((at.0, format!("recovered, {}", duration(report.rto.used_ms)), "mark recovered"));
    }
    if let Some(limit) = report.rto.objective_ms {
        let deadline = axis.incident.saturating_add(limit);
        if (axis.from..=axis.to).contains(&deadline) {
            lines.push((deadline, format!("RTO {}", duration(limit)), "mark rto"));
        }
    }
    lines.sort();
    let mut ends: Vec<f64> = Vec::new();
    let mut marks = Vec::new();
    for (at, label, class) in lines {
        let label = Piece::plain(label).text;
        let x = axis.x(at);
        let width = label.chars().count() as f64 * CHAR + 8.0;
        let right = x + width <= WIDTH + RIGHT;
        let start = if right { x } else { x - width };
        let level = ends.iter().position(|end| *end <= start).unwrap_or(ends.len());
        if level == ends.len() {
            ends.push(0.0);
        }
        ends[level] = start + width;
        marks.push(Mark {
            x: num(x),
            text_x: num(if right { x + 4.0 } else { x - 4.0 }),
            text_y: num(LEVEL * level as f64 + 13.0),
            anchor: if right { "start" } else { "end" },
            label,
            class,
        });
    }
    (marks, ends.len())
}

fn rows(report: &RunReport, axis: &Axis, top: f64, notes: &mut Vec<String>) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    let mut shown: HashSet<&StepId> = HashSet::new();
    let started: Vec<&StepReport> = report.steps.iter().filter(|step| step.started_at.is_some()).collect();
    for step in &started {
        for group in around(report, step) {
            if shown.insert(&group.id) {
                rows.extend(group_row(group, axis));
            }
        }
        rows.push(step_row(step, axis, &DayClock::new(report.identity.incident_at)));
    }
    let hidden = rows.len().saturating_sub(MAX_ROWS);
    if hidden > 0 {
        rows.truncate(MAX_ROWS);
        notes.push(format!("{hidden} further rows are left out; the time line below has all steps."));
    }
    for (number, row) in rows.iter_mut().enumerate() {
        let y = top + ROW * number as f64;
        let thin = if row.class == "group" { 10.0 } else { 5.0 };
        (row.y, row.text_y, row.bar_y) = (num(y), num(y + 16.0), num(y + thin));
    }
    rows
}

/// Returns the groups around a step, outermost first.
fn around<'a>(report: &'a RunReport, step: &StepReport) -> Vec<&'a GroupReport> {
    let mut found: Vec<&GroupReport> = Vec::new();
    let mut next = step.group.as_ref();
    while let Some(group) = next.and_then(|id| report.groups.iter().find(|group| group.id == *id)) {
        if found.iter().any(|known| known.id == group.id) {
            break;
        }
        found.push(group);
        next = group.parent.as_ref();
    }
    found.reverse();
    found
}

fn group_row(group: &GroupReport, axis: &Axis) -> Option<Row> {
    let (from, took) = (group.started_at?.0, group.took_ms?);
    let bar = axis.bar(from, from + took, "whole", format!("group {}, {}", group.id, duration(took)));
    Some(row(group.id.as_str(), "group", &group.title, vec![bar], (axis, from + took, duration(took))))
}

fn step_row(step: &StepReport, axis: &Axis, clock: &DayClock) -> Row {
    let indent = if step.group.is_some() { "\u{2002}" } else { "" };
    let bars = step.spans.iter().map(|span| {
        let class = span_class(step, span);
        let length = duration(span.to.0 - span.from.0);
        axis.bar(
            span.from.0,
            span.to.0,
            class,
            format!("{}: {} {length}, from {}", step.id, meaning(class), clock.time(span.from)),
        )
    });
    let end =
        step.spans.last().map_or_else(|| step.started_at.map_or(axis.from, |at| at.0), |span| span.to.0);
    let class = if step.critical { "step critical" } else { "step" };
    let took = step.took_ms.map(duration).unwrap_or_default();
    row(&format!("{indent}{}", step.id), class, &step.title, bars.collect(), (axis, end, took))
}

fn row(label: &str, class: &'static str, title: &str, bars: Vec<Bar>, end: (&Axis, i64, String)) -> Row {
    let (axis, at, after) = end;
    let short = match label.chars().count() {
        0..=25 => label.to_owned(),
        _ => format!("{}…", label.chars().take(24).collect::<String>()),
    };
    Row {
        y: Num::new(),
        text_y: Num::new(),
        bar_y: Num::new(),
        label: short,
        class,
        title: Piece::plain(format!("{}: {title}", label.trim())).text,
        bars,
        after_x: num(axis.x(at) + 5.0),
        after,
    }
}

fn span_class(step: &StepReport, span: &StepSpan) -> &'static str {
    match span.doing {
        Doing::Working => {
            let covers = |attempt: &&AttemptReport| {
                attempt.started_at <= span.from && attempt.ended_at.is_none_or(|end| end >= span.to)
            };
            match step.attempts.iter().find(covers).and_then(|attempt| attempt.result) {
                Some(AttemptEnd::Failed) => "failed",
                Some(AttemptEnd::Lost | AttemptEnd::Interrupted) => "lost",
                Some(AttemptEnd::Succeeded) | None => "working",
            }
        }
        Doing::WaitingForPerson => "person",
        Doing::WaitingForRetry => "retry",
        Doing::Held => "held",
        Doing::EngineDown => "down",
    }
}

fn meaning(class: &str) -> &'static str {
    match class {
        "working" => "working",
        "failed" => "attempt that failed",
        "lost" => "attempt that was lost or interrupted",
        "person" => "waiting for a person",
        "retry" => "waiting to retry",
        "held" => "held",
        "down" => "engine down",
        _ => "group",
    }
}

fn legend(rows: &[Row]) -> Vec<(&'static str, &'static str)> {
    let used: HashSet<&str> = rows.iter().flat_map(|row| &row.bars).map(|bar| bar.class).collect();
    let order = ["working", "failed", "lost", "person", "retry", "held", "down"];
    order.into_iter().filter(|class| used.contains(class)).map(|class| (class, meaning(class))).collect()
}

/// Shades the times in which the whole run stood still.
fn bands(report: &RunReport, axis: &Axis) -> Vec<Bar> {
    let band = |segment: &Segment| {
        let (class, name) = match segment.activity {
            Activity::BeforeRun => ("band before", "before the run began"),
            Activity::Paused => ("band paused", "paused"),
            Activity::EngineDown => ("band down", "engine down"),
            _ => return None,
        };
        let (from, to) = (segment.from.0.max(axis.from), segment.to.0);
        (to > from).then(|| axis.bar(from, to, class, format!("{name}, {}", duration(to - from))))
    };
    report.activity.iter().filter_map(band).collect()
}

fn ticks(axis: &Axis) -> Vec<Tick> {
    const STEPS: [i64; 20] = [
        1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200, 86_400,
        172_800, 604_800,
    ];
    let span = axis.to - axis.from;
    let step = STEPS.iter().map(|seconds| seconds * 1000).find(|step| span / step <= 8);
    let step = step.unwrap_or((span / 8).max(1));
    let first = (axis.from - axis.incident).div_euclid(step) * step + axis.incident;
    let first = if first < axis.from { first + step } else { first };
    let count = usize::try_from((axis.to - first) / step + 1).unwrap_or(0).min(12);
    let at = |number: usize| first + step * i64::try_from(number).unwrap_or(0);
    (0..count)
        .map(at)
        .filter(|at| *at <= axis.to)
        .map(|at| Tick { x: num(axis.x(at)), label: duration(at - axis.incident) })
        .collect()
}

/// Says in words what the chart shows, for those who cannot see it.
fn describe(report: &RunReport) -> String {
    let path: Vec<String> = report
        .critical_path
        .actual
        .iter()
        .map(|part| format!("{} {}", part.step, duration(part.took_ms)))
        .collect();
    format!(
        "Each bar is a step of the run over the {} since the incident. Critical path: {}.",
        duration(report.time.total_ms),
        path.join(", then ")
    )
}
