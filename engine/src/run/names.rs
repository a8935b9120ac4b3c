//! The names that expressions of a step see.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::expr::{self, ExprError, InputDecl};
use crate::model::ids::{RunId, StepId};
use crate::model::outcome::{Mode, Outcome, RunOutcome};
use crate::plan::Plan;
use crate::value::{Field, Type};

use super::state::{Phase, RunState, StepState};

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
        let mut names = Map::new();
        // Whatever is not mentioned is not copied: an environment may be large, and steps are many.
        for (name, value) in self.fixed.iter().filter(|(name, _)| mentions(texts, name)) {
            let value = if name == "inputs" { self.read_inputs(at, scope, texts)? } else { value.clone() };
            names.insert(name.clone(), value);
        }
        let mut steps = Map::new();
        for id in mentioned(texts, "steps").names {
            steps.extend(self.outputs(at, scope, &id).map(|outputs| (id, outputs)));
        }
        names.insert("steps".into(), Value::Object(steps));
        if let Some(run) = names.get_mut("run").and_then(Value::as_object_mut)
            && mentions(texts, "summary")
        {
            run.insert("summary".into(), summary(at.plan, at.state).into());
        }
        Ok(names)
    }

    /// Returns the inputs that texts read: one that is a long list costs only those who read it.
    fn read_inputs(
        &self,
        at: &Standing<'_>,
        scope: Option<usize>,
        texts: &Value,
    ) -> Result<Value, ExprError> {
        let read = mentioned(texts, "inputs");
        if !read.whole && read.names.is_empty() {
            return Ok(Value::Object(Map::new()));
        }
        let called;
        let inputs = match scope {
            Some(scope) => {
                called = self.inputs(at, scope)?;
                &called
            }
            None => match self.fixed.get("inputs").and_then(Value::as_object) {
                Some(inputs) => inputs,
                None => return Ok(Value::Object(Map::new())),
            },
        };
        let wanted = inputs.iter().filter(|(name, _)| read.whole || read.names.contains(*name));
        Ok(Value::Object(wanted.map(|(name, value)| (name.clone(), value.clone())).collect()))
    }

    /// Evaluates the inputs of a called runbook: what is given in the scope of the caller, defaults in its own.
    fn inputs(&self, at: &Standing<'_>, scope: usize) -> Result<Map<String, Value>, ExprError> {
        let called = &at.plan.scopes[scope];
        let of = |message: String| ExprError {
            message: format!("{message} (`{}`, called by `{}`)", called.runbook, called.id),
            range: None,
            help: None,
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
    /// called and has begun; of a step that was repeated for each element of a list, the list of their outputs. What
    /// cannot be evaluated does not exist, as with a step that was skipped.
    fn outputs(&self, at: &Standing<'_>, scope: Option<usize>, name: &str) -> Option<Value> {
        let prefix = scope.map_or(String::new(), |scope| format!("{}/", at.plan.scopes[scope].id));
        let id = StepId::new(format!("{prefix}{name}")).ok()?;
        if let Some(found) = at.state.position(&id) {
            return outputs_of(&at.state.steps[found]);
        }
        let called = at.plan.scopes.iter().position(|scope| scope.id == id)?;
        at.begun(called).then(|| Value::Object(self.outputs_of_call(at, called)))
    }

    fn outputs_of_call(&self, at: &Standing<'_>, called: usize) -> Map<String, Value> {
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
            (state.attempt > 0 || state.done.is_some() || state.elements.is_some())
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
        "started_at": run.declared_at().to_string(),
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

fn outputs_of(step: &StepState) -> Option<Value> {
    let Some(elements) = &step.elements else {
        return step.done.as_ref().map(|done| Value::Object(done.outputs.clone()));
    };
    let outputs = |state: &StepState| {
        state.done.as_ref().map_or(Value::Null, |done| Value::Object(done.outputs.clone()))
    };
    let succeeded = matches!(step.outcome(), Some(Outcome::Succeeded));
    succeeded.then(|| elements.states.iter().map(outputs).collect())
}

/// What texts read of one namespace.
#[derive(Debug, Default)]
struct Mentioned {
    names: BTreeSet<String>,
    /// Something is read whose name is not written out.
    whole: bool,
}

/// Finds `NAMESPACE.NAME` in all strings of a value. A name found in mere prose costs a lookup and nothing else.
fn mentioned(texts: &Value, namespace: &str) -> Mentioned {
    let mut found = Mentioned::default();
    collect(texts, namespace, &mut found);
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

fn collect(value: &Value, namespace: &str, found: &mut Mentioned) {
    match value {
        Value::String(text) => {
            for (at, _) in text.match_indices(namespace) {
                match name_after(&text[at + namespace.len()..]) {
                    Some(name) => drop(found.names.insert(name.to_owned())),
                    None => found.whole = true,
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| collect(item, namespace, found)),
        Value::Object(map) => map.values().for_each(|item| collect(item, namespace, found)),
        _ => {}
    }
}

/// Returns the name that follows a namespace, `.x` or `['x']`; `None` if it is not written out.
fn name_after(text: &str) -> Option<&str> {
    let text = text.trim_start();
    if let Some(inside) = text.strip_prefix('[').map(str::trim_start) {
        let quote = inside.chars().next().filter(|c| matches!(c, '"' | '\''))?;
        return inside[1..].split(quote).next();
    }
    let rest = text.strip_prefix('.')?.trim_start();
    let end = rest.find(|c: char| !(c.is_alphanumeric() || c == '_'));
    Some(&rest[..end.unwrap_or(rest.len())])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_found_in_every_spelling() {
        let texts = json!({"a": "{{ steps.choose.backup }}", "b": ["steps['x_1'].n > 2 and steps.y.z"]});
        let found = mentioned(&texts, "steps");
        assert_eq!(found.names.iter().collect::<Vec<_>>(), ["choose", "x_1", "y"]);
        assert!(!found.whole);
    }

    #[test]
    fn a_name_that_is_computed_means_all_of_them() {
        for text in ["inputs[item]", "inputs | length", "{{ inputs }}", "inputs [ steps.a.n ]"] {
            assert!(mentioned(&json!([text]), "inputs").whole, "{text}");
        }
        for text in ["inputs.a", "inputs['a b'].c", "{{ inputs . a }}"] {
            assert!(!mentioned(&json!([text]), "inputs").whole, "{text}");
        }
    }
}
