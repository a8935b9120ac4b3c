//! What else is to be known about a step before a run, in sentences.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::plan::{ForEach, PlannedStep};
use crate::report::human::count;
use crate::resource::maker;

/// More elements of a list than this say little.
const SHOWN: usize = 5;

/// Tells of repetition and of systems that earlier steps make.
pub(super) fn notes(step: &PlannedStep) -> Vec<String> {
    let mut notes: Vec<_> = step.for_each.iter().map(for_each).collect();
    if let (Some(until), Some(timeout)) = (&step.until, step.timeout) {
        let (condition, every) = (&until.condition, until.every);
        notes.push(format!("repeated every {every} until {condition}, for at most {timeout}"));
    }
    let makers: BTreeSet<_> = step.writes.iter().chain(&step.reads).filter_map(|name| maker(name)).collect();
    notes.extend(makers.into_iter().map(|maker| format!("uses the system made by `{maker}`")));
    notes
}

/// Says for what a step is repeated, and how: `for each of 3 elements, one after the other: a, b, c`.
fn for_each(each: &ForEach) -> String {
    let how = match each.max_parallel {
        1 => "one after the other".to_owned(),
        many => format!("{many} at a time"),
    };
    match &each.list {
        Value::Array(items) => {
            let shown: Vec<_> = items.iter().take(SHOWN).map(ToString::to_string).collect();
            let more = if items.len() > SHOWN { ", …" } else { "" };
            format!("for each of {}, {how}: {}{more}", count(items.len(), "element"), shown.join(", "))
        }
        Value::String(template) => format!("for each of {template}, {how}"),
        other => format!("for each of {other}, {how}"),
    }
}
