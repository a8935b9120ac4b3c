//! What else is to be known about a step before a run, in sentences.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use crate::expr::input_name;
use crate::plan::{ForEach, PlannedStep, PlannedUndo};
use crate::report::human::count;
use crate::resource::maker;
use crate::run::StepPreview;

/// More elements of a list than this say little.
const SHOWN: usize = 5;

/// Tells of repetition and of systems that earlier steps make.
pub(super) fn notes(step: &PlannedStep, inputs: &Map<String, Value>) -> Vec<String> {
    // In a runbook that is called `inputs` are others.
    let inputs = if step.scope.is_none() { inputs } else { &Map::new() };
    let mut notes: Vec<_> = step.for_each.iter().map(|each| for_each(each, inputs)).collect();
    if let (Some(until), Some(timeout)) = (&step.until, step.timeout) {
        let (condition, every) = (&until.condition, until.every);
        notes.push(format!("repeated every {every} until {condition}, for at most {timeout}"));
    }
    let makers: BTreeSet<_> = step.writes.iter().chain(&step.reads).filter_map(|name| maker(name)).collect();
    notes.extend(makers.into_iter().map(|maker| format!("uses the system made by `{maker}`")));
    notes
}

/// Says for what a step is repeated, and how: `for each of 3 elements, one after the other: a, b, c`.
fn for_each(each: &ForEach, inputs: &Map<String, Value>) -> String {
    let how = match each.max_parallel {
        1 => "one after the other".to_owned(),
        many => format!("{many} at a time"),
    };
    let input = each.list.as_str().and_then(input_name).and_then(|name| inputs.get(name));
    match input.unwrap_or(&each.list) {
        Value::Array(items) => {
            let shown: Vec<_> = items.iter().take(SHOWN).map(ToString::to_string).collect();
            let more = if items.len() > SHOWN { ", …" } else { "" };
            format!("for each of {}, {how}: {}{more}", count(items.len(), "element"), shown.join(", "))
        }
        Value::String(template) => format!("for each of {template}, {how}"),
        other => format!("for each of {other}, {how}"),
    }
}

/// Says how the work of a step is taken back: in the words of its kind, or as what would run.
pub(super) fn undone_by(undo: &PlannedUndo, preview: &StepPreview) -> Vec<String> {
    if let Some(what) = &undo.built_in {
        return vec![what.clone()];
    }
    if !preview.preview.actions.is_empty() {
        return preview.preview.actions.clone();
    }
    let with = undo.step.with.as_object().into_iter().flatten();
    let params: Vec<_> = with.map(|(name, value)| format!("{name}: {value}")).collect();
    vec![format!("{} with {}", undo.step.uses, params.join(", "))]
}
