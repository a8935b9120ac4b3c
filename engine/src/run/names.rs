//! The names that expressions of a step see.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::expr::{self, ExprError, InputDecl};
use crate::model::ids::{RunId, StepId};
use crate::model::outcome::{Mode, Outcome, RunOutcome};
use crate::plan::Plan;
use crate::value::{Field, Type};

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

    /// Returns the names that texts of one scope see: the fixed ones, its inputs, and the outputs of the steps that the
    /// texts mention. Copying only those keeps the cost of a run linear in its steps.
    ///
    /// Fails if the inputs of a called runbook are needed and cannot be evaluated.
    pub(super) fn for_texts(
        &self,
        at: &Standing<'_>,
        scope: Option<usize>,
        texts: &Value,
    ) -> Result<Map<String, Value>, ExprError> {
        let mut names = self.fixed.clone();
        if let Some(scope) = scope.filter(|_| mentions(texts, "inputs")) {
            names.insert("inputs".into(), Value::Object(self.inputs(at, scope)?));
        }
        let mut steps = Map::new();
        for id in mentioned_steps(texts) {
            steps.extend(self.outputs(at, scope, &id).map(|outputs| (id, Value::Object(outputs))));
        }
        names.insert("steps".into(), Value::Object(steps));
        if let Some(run) = names.get_mut("run").and_then(Value::as_object_mut)
            && mentions(texts, "summary")
        {
            run.insert("summary".into(), summary(at.plan, at.state).into());
        }
        Ok(names)
    }

    /// Evaluates the inputs of a called runbook: what is given in the scope of the caller, defaults in its own.
    fn inputs(&self, at: &Standing<'_>, scope: usize) -> Result<Map<String, Value>, ExprError> {
        let called = &at.plan.scopes[scope];
        let of = |message: String| ExprError {
            message: format!("{message} (`{}`, called by `{}`)", called.runbook, called.id),
            range: None,
        };
        let with = Value::Object(called.with.clone());
        let names = self.for_texts(at, called.parent, &with)?;
        let fields: Vec<_> = called.inputs.iter().map(InputDecl::as_field).collect();
        let given = expr::render(&with, &fields, &names).map_err(|error| of(error.message))?;
        let given = given.as_object().cloned().unwrap_or_default();
        expr::bind_inputs(&called.inputs, &given, &self.fixed).map_err(|problems| {
            of(problems.into_iter().map(|problem| problem.message).collect::<Vec<_>>().join("; "))
        })
    }

    /// Returns the outputs of a step as its scope names it: of a step that has succeeded, or of a runbook that is
    /// called and has begun. What cannot be evaluated does not exist, as with a step that was skipped.
    fn outputs(&self, at: &Standing<'_>, scope: Option<usize>, name: &str) -> Option<Map<String, Value>> {
        let prefix = scope.map_or(String::new(), |scope| format!("{}/", at.plan.scopes[scope].id));
        let id = StepId::new(format!("{prefix}{name}")).ok()?;
        if let Some(found) = at.state.position(&id) {
            return at.state.steps[found].done.as_ref().map(|done| done.outputs.clone());
        }
        let called = at.plan.scopes.iter().position(|scope| scope.id == id)?;
        at.begun(called).then(|| self.outputs_of(at, called))
    }

    fn outputs_of(&self, at: &Standing<'_>, called: usize) -> Map<String, Value> {
        let declared = at.plan.scopes[called].outputs.iter();
        let evaluated = declared.filter_map(|(name, template)| {
            let names = self.for_texts(at, Some(called), template).ok()?;
            let one = Value::Object(Map::from_iter([(name.clone(), template.clone())]));
            let field = [Field::optional(name, Type::Any, "")];
            expr::render(&one, &field, &names).ok()?.get(name).map(|value| (name.clone(), value.clone()))
        });
        evaluated.collect()
    }
}

/// How a run stands: what its plan says and what has become of its steps.
#[derive(Clone, Copy)]
pub(super) struct Standing<'a> {
    pub(super) plan: &'a Plan,
    pub(super) state: &'a RunState,
}

impl Standing<'_> {
    /// Says whether any step of a called runbook has begun, those of its `always` not counted.
    pub(super) fn begun(&self, scope: usize) -> bool {
        self.plan.steps.iter().zip(&self.state.steps).any(|(step, state)| {
            (state.attempt > 0 || state.done.is_some())
                && step.concludes != Some(scope)
                && self.plan.is_within(step.scope, scope)
        })
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
    let undos = plan.undos.iter().zip(state.steps.iter().skip(plan.steps.len()));
    let not_undone: Vec<_> = undos
        .filter(|(_, undo)| matches!(undo.outcome(), Some(Outcome::Failed { .. })))
        .map(|(undo, _)| undo.of.as_str())
        .collect();
    if !not_undone.is_empty() {
        text.push_str(&format!("; undo failed: {}", not_undone.join(", ")));
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
