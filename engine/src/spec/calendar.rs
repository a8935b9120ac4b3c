//! What `lifeboat.yaml` says of the future: who hears of what, what is drilled how often, what is started when.

use super::keys::{Keys, Spanned};
use super::reader::Reader;
use crate::diagnostic::{Diagnostic, codes};
use crate::notice::Occasion;
use crate::value::{Span, Type};
use crate::yaml::{Entry, Node};

pub(super) const DRILL_KEYS: &[&str] = &["runbook", "environment", "every", "inputs"];
pub(super) const SCHEDULE_KEYS: &[&str] = &["runbook", "drill", "environment", "at", "every", "inputs"];

/// One channel that takes one sort of notice.
#[derive(Clone, Debug)]
pub struct NoticeSpec {
    pub occasion: Occasion,
    /// The name of a resource, in every environment in which runbooks run.
    pub channel: Spanned<String>,
}

/// A runbook that must be drilled so often.
#[derive(Clone, Debug)]
pub struct DrillSpec {
    pub runbook: Spanned<String>,
    pub environment: Spanned<String>,
    pub every: Span,
    /// Its inputs as written.
    pub inputs: Option<Entry>,
}

/// Something that a timer of the system starts.
#[derive(Clone, Debug)]
pub struct ScheduleSpec {
    pub runbook: Spanned<String>,
    pub environment: Spanned<String>,
    /// Whether it is started as a drill.
    pub drill: bool,
    pub when: When,
    /// Its inputs as written.
    pub inputs: Option<Entry>,
}

/// When a timer starts something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Every day at this time of the machine.
    At {
        hour: u8,
        minute: u8,
    },
    Every(Span),
}

/// Reads `notices: { held: ops, failed: [ops, pager] }`.
pub(super) fn read_notices(reader: &mut Reader<'_>, node: &Node) -> Vec<NoticeSpec> {
    let words: Vec<_> = Occasion::ALL.iter().map(|(word, ..)| *word).collect();
    let Some(keys) = Keys::new(reader, node, "`notices`", &words) else { return Vec::new() };
    let mut found = Vec::new();
    for (word, occasion, _) in Occasion::ALL {
        let Some(node) = keys.get(word) else { continue };
        let nodes = node.sequence().map_or_else(|| vec![node], |nodes| nodes.iter().collect());
        for node in nodes {
            let channel = reader.text(node).map(|name| Spanned::new(name, node.span.clone()));
            found.extend(channel.map(|channel| NoticeSpec { occasion: *occasion, channel }));
        }
    }
    found
}

/// Reads the drill calendar.
pub(super) fn read_drills(reader: &mut Reader<'_>, node: &Node) -> Vec<DrillSpec> {
    let Some(nodes) = node.sequence() else {
        reader.wrong(node, "a list of drills");
        return Vec::new();
    };
    nodes.iter().filter_map(|node| read_drill_entry(reader, node)).collect()
}

fn read_drill_entry(reader: &mut Reader<'_>, node: &Node) -> Option<DrillSpec> {
    let keys = Keys::new(reader, node, "a drill", DRILL_KEYS)?;
    let runbook = name(reader, &keys, "runbook", "a drill");
    let environment = name(reader, &keys, "environment", "a drill");
    let every = keys.need(reader, "every", "a drill").and_then(|node| reader.duration(node));
    Some(DrillSpec {
        runbook: runbook?,
        environment: environment?,
        every: every?,
        inputs: keys.entry("inputs").cloned(),
    })
}

/// Reads what timers start.
pub(super) fn read_schedules(reader: &mut Reader<'_>, node: &Node) -> Vec<ScheduleSpec> {
    let Some(nodes) = node.sequence() else {
        reader.wrong(node, "a list of schedules");
        return Vec::new();
    };
    nodes.iter().filter_map(|node| read_schedule(reader, node)).collect()
}

fn read_schedule(reader: &mut Reader<'_>, node: &Node) -> Option<ScheduleSpec> {
    let keys = Keys::new(reader, node, "a schedule", SCHEDULE_KEYS)?;
    let (runbook, drill) = match (keys.get("runbook"), keys.get("drill")) {
        (Some(_), None) => (name(reader, &keys, "runbook", "a schedule"), false),
        (None, Some(_)) => (name(reader, &keys, "drill", "a schedule"), true),
        _ => {
            one_of(reader, &keys, ["runbook", "drill"], "a run of a runbook, or a drill of one");
            (None, false)
        }
    };
    let environment = name(reader, &keys, "environment", "a schedule");
    let when = match (keys.get("at"), keys.get("every")) {
        (Some(at), None) => read_time(reader, at),
        (None, Some(every)) => read_interval(reader, every),
        _ => {
            one_of(reader, &keys, ["at", "every"], "a time of day, or an interval");
            None
        }
    };
    Some(ScheduleSpec {
        runbook: runbook?,
        environment: environment?,
        drill,
        when: when?,
        inputs: keys.entry("inputs").cloned(),
    })
}

fn name(reader: &mut Reader<'_>, keys: &Keys<'_>, key: &str, what: &str) -> Option<Spanned<String>> {
    let node = keys.need(reader, key, what)?;
    Some(Spanned::new(reader.text(node)?, node.span.clone()))
}

fn one_of(reader: &mut Reader<'_>, keys: &Keys<'_>, names: [&str; 2], meaning: &str) {
    let [first, second] = names;
    let both = keys.entry(second).filter(|_| keys.get(first).is_some());
    let span =
        both.map_or_else(|| super::keys::first_line(reader, &keys.node.span), |entry| entry.key.span.clone());
    let code = if both.is_some() { codes::LB0106 } else { codes::LB0105 };
    reader.push(
        Diagnostic::error(code, format!("a schedule has either `{first}` or `{second}`"))
            .at(reader.source, span)
            .help(meaning),
    );
}

/// Reads `"02:30"`.
fn read_time(reader: &mut Reader<'_>, node: &Node) -> Option<When> {
    let text = reader.text(node)?;
    let parts = text.split_once(':').filter(|(hour, minute)| hour.len() == 2 && minute.len() == 2);
    let number = |text: &str, limit: u8| text.parse::<u8>().ok().filter(|number| *number < limit);
    let time = parts.and_then(|(hour, minute)| Some((number(hour, 24)?, number(minute, 60)?)));
    if time.is_none() {
        reader.push(
            Diagnostic::error(codes::LB0166, format!("`{text}` is not a time of day"))
                .at(reader.source, node.span.clone())
                .help("write hours and minutes in quotes: `at: \"02:30\"`"),
        );
    }
    time.map(|(hour, minute)| When::At { hour, minute })
}

fn read_interval(reader: &mut Reader<'_>, node: &Node) -> Option<When> {
    let every = reader.duration(node)?;
    let seconds = every.0.as_secs();
    if every.0.subsec_nanos() != 0 || seconds == 0 || seconds % 60 != 0 {
        reader.push(
            Diagnostic::error(codes::LB0166, format!("a timer cannot start something every {every}"))
                .at(reader.source, node.span.clone())
                .help("write whole minutes, hours, days or weeks"),
        );
        return None;
    }
    Some(When::Every(every))
}

/// Says which of these names was probably meant.
pub(super) fn unknown_person(reader: &mut Reader<'_>, node: &Node, known: &[&str]) {
    let name = node.text().unwrap_or_default();
    reader.push(
        Diagnostic::error(codes::LB0137, format!("`{name}` is not among `people`"))
            .at(reader.source, node.span.clone())
            .suggest(name, "people", known.iter().copied()),
    );
}

/// Reads the group that shares the state directory.
pub(super) fn read_group(reader: &mut Reader<'_>, node: &Node) -> Option<String> {
    match reader.read(node, &Type::String)?.as_str() {
        Some(group) if !group.trim().is_empty() => Some(group.trim().to_owned()),
        _ => {
            reader.error(codes::LB0106, "a group has a name", &node.span);
            None
        }
    }
}
