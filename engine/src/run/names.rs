//! The names that expressions of a step see.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::expr;
use crate::model::ids::RunId;
use crate::model::outcome::{Mode, Outcome, RunOutcome};
use crate::plan::Plan;

use super::state::{Phase, RunState};

/// Facts that do not change during a run, prepared once.
#[derive(Clone, Debug)]
pub(super) struct Names {
    fixed: Map<String, Value>,
}

impl Names {
    pub(super) fn new(plan: &Plan, run: RunId, incident_at_ms: i64) -> Self {
        let mut fixed = Map::new();
        fixed.insert("inputs".into(), Value::Object(plan.inputs.clone()));
        fixed.insert("vars".into(), Value::Object(plan.vars.clone()));
        fixed.insert("resources".into(), expr::resource_names(&plan.resources));
        fixed.insert("incident".into(), json!({ "started_at": moment(incident_at_ms) }));
        fixed.insert("run".into(), run_facts(plan, run));
        Self { fixed }
    }

    /// Returns the names for one step: the fixed ones, and the outputs of the steps that its texts mention. Copying
    /// only those keeps the cost of a run linear in its steps.
    pub(super) fn for_texts(&self, plan: &Plan, state: &RunState, texts: &Value) -> Map<String, Value> {
        let mut names = self.fixed.clone();
        let mut steps = Map::new();
        for id in mentioned_steps(texts) {
            let found = crate::model::StepId::new(id.clone()).ok().and_then(|id| state.position(&id));
            if let Some(done) = found.and_then(|at| state.steps[at].done.as_ref()) {
                steps.insert(id, Value::Object(done.outputs.clone()));
            }
        }
        names.insert("steps".into(), Value::Object(steps));
        if let Some(run) = names.get_mut("run").and_then(Value::as_object_mut)
            && mentions(texts, "summary")
        {
            run.insert("summary".into(), summary(plan, state).into());
        }
        names
    }
}

fn run_facts(plan: &Plan, run: RunId) -> Value {
    json!({
        "id": run.to_string(),
        "short": run.short(),
        "runbook": plan.runbook,
        "environment": plan.environment,
        "mode": if plan.mode == Mode::Drill { "drill" } else { "recovery" },
    })
}

/// Writes a moment as every template sees it: UTC, RFC 3339.
fn moment(at_ms: i64) -> String {
    Timestamp::from_millisecond(at_ms).map(|at| at.to_string()).unwrap_or_default()
}

/// Says in one line how the run stands, for messages.
fn summary(plan: &Plan, state: &RunState) -> String {
    let failed: Vec<_> = plan
        .steps
        .iter()
        .zip(&state.steps)
        .filter(|(_, step)| matches!(step.outcome(), Some(Outcome::Failed { .. })))
        .map(|(step, _)| step.id.as_str())
        .collect();
    let ended = match state.phase {
        Phase::Ending(outcome) | Phase::Finished(outcome) => match outcome {
            RunOutcome::Succeeded => "succeeded",
            RunOutcome::Failed => "failed",
            RunOutcome::Aborted => "was aborted",
        },
        Phase::New | Phase::Main => "is running",
    };
    let what = if plan.mode == Mode::Drill { "drill of " } else { "" };
    let mut text = format!("{what}{} in {} {ended}", plan.runbook, plan.environment);
    if !failed.is_empty() {
        text.push_str(&format!("; failed: {}", failed.join(", ")));
    }
    text
}

/// Finds `steps.NAME` in all strings of a value. A name found in mere prose costs a lookup and nothing else.
fn mentioned_steps(texts: &Value) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    collect(texts, &mut found);
    found
}

fn mentions(value: &Value, word: &str) -> bool {
    match value {
        Value::String(text) => text.contains(word),
        Value::Array(items) => items.iter().any(|item| mentions(item, word)),
        Value::Object(map) => map.values().any(|item| mentions(item, word)),
        _ => false,
    }
}

fn collect(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::String(text) => {
            for (at, _) in text.match_indices("steps") {
                let rest = text[at + 5..].trim_start_matches(['.', '[', '"', '\'', ' ']);
                let end = rest.find(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'));
                found.insert(rest[..end.unwrap_or(rest.len())].to_owned());
            }
        }
        Value::Array(items) => items.iter().for_each(|item| collect(item, found)),
        Value::Object(map) => map.values().for_each(|item| collect(item, found)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_found_in_every_spelling() {
        let texts = json!({"a": "{{ steps.choose.backup }}", "b": ["steps['x_1'].n > 2 and steps.y.z"]});
        let found: Vec<_> = mentioned_steps(&texts).into_iter().collect();
        assert_eq!(found, ["choose", "x_1", "y"]);
    }
}
