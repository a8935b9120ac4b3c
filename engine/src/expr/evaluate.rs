use serde_json::{Map, Value};

use super::environment::environment;
use super::references::{references, with_parents};
use super::template::{Shape, guard};
use super::words::explain;
use crate::model::evidence::Check;

/// Why an expression has no value.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct ExprError {
    pub message: String,
    /// The byte range within the expression, where known.
    pub range: Option<std::ops::Range<usize>>,
    /// What to do about it, where known.
    pub help: Option<String>,
}

impl ExprError {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), range: None, help: None }
    }

    /// Says in which parameter it happened.
    pub(super) fn within(mut self, path: &str) -> Self {
        self.message = format!("`{path}`: {}", self.message);
        self
    }
}

/// Evaluates a bare expression over named values.
pub fn evaluate(expression: &str, names: &Map<String, Value>) -> Result<Value, ExprError> {
    guard(expression, Shape::Expression)?;
    let compiled = environment().compile_expression(expression).map_err(|error| from_minijinja(&error))?;
    let names = with_parents(expression, Shape::Expression, names);
    let value = compiled.eval(minijinja::value::Serde(&*names)).map_err(|error| from_minijinja(&error))?;
    if value.is_undefined() {
        return Err(ExprError::new(format!("`{expression}` is undefined")));
    }
    serde_json::to_value(&value).map_err(|error| ExprError::new(error.to_string()))
}

/// Evaluates an expression that must be true or false.
pub fn holds(expression: &str, names: &Map<String, Value>) -> Result<bool, ExprError> {
    match evaluate(expression, names)? {
        Value::Bool(value) => Ok(value),
        other => Err(ExprError::new(format!("`{expression}` is {}, not true or false", brief(&other)))),
    }
}

/// Evaluates a list of conditions into checks, each named `PREFIX: EXPRESSION`. An expression that cannot be
/// evaluated is a check that did not pass, never an absent one.
pub fn check_all(prefix: &str, conditions: &[String], names: &Map<String, Value>) -> Vec<Check> {
    conditions.iter().map(|condition| check_one(prefix, condition, names)).collect()
}

fn check_one(prefix: &str, condition: &str, names: &Map<String, Value>) -> Check {
    let (passed, actual) = match holds(condition, names) {
        Ok(passed) => (passed, describe(condition, names)),
        Err(error) => (false, error.message),
    };
    Check { name: format!("{prefix}: {condition}"), expected: condition.to_owned(), actual, passed }
}

/// Shows the values of the plain references in a condition, such as `rows[0].n = 42`.
pub(super) fn describe(condition: &str, names: &Map<String, Value>) -> String {
    let mut shown = Vec::new();
    for reference in references(condition, Shape::Expression).unwrap_or_default() {
        let Some(text) = condition.get(reference.range) else { continue };
        let Ok(value) = evaluate(text, names) else { continue };
        let line = format!("{text} = {}", brief(&value));
        if !shown.contains(&line) {
            shown.push(line);
        }
    }
    shown.join(", ")
}

pub(super) fn brief(value: &Value) -> String {
    const LIMIT: usize = 200;
    let text = value.to_string();
    match text.char_indices().nth(LIMIT) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

pub(super) fn from_minijinja(error: &minijinja::Error) -> ExprError {
    let message = match error.kind() {
        minijinja::ErrorKind::SyntaxError => return explain(error, error.template_source().unwrap_or("…")),
        minijinja::ErrorKind::OutOfFuel => "the expression takes too long".to_owned(),
        kind => error.detail().map_or_else(|| kind.to_string(), ToOwned::to_owned),
    };
    ExprError { message, range: error.range(), help: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn names() -> Map<String, Value> {
        json!({"rows": [{"n": 3}], "status": 200, "steps": {}}).as_object().expect("an object").clone()
    }

    #[test]
    fn conditions_become_checks_with_what_was_found() {
        let conditions = ["rows[0].n > 5".into(), "status == 200".into(), "rows | length == 1".into()];
        let checks = check_all("members", &conditions, &names());
        assert!(!checks[0].passed && checks[1].passed && checks[2].passed);
        assert_eq!(checks[0].actual, "rows[0].n = 3");
        assert_eq!(checks[1].actual, "status = 200");
        assert_eq!(checks[2].actual, r#"rows = [{"n":3}]"#);
    }

    #[test]
    fn an_undefined_name_is_a_check_that_did_not_pass() {
        let checks = check_all("x", &["missing > 1".into(), "status".into(), "missing".into()], &names());
        assert!(checks.iter().all(|check| !check.passed), "{checks:?}");
    }

    #[test]
    fn what_was_skipped_can_be_provided_for() {
        for (expression, expected) in [
            ("steps.skipped.n | default(7)", json!(7)),
            ("steps.skipped.n is defined", json!(false)),
            ("steps.skipped is defined and steps.skipped.n > 1", json!(false)),
            ("status | default(7)", json!(200)),
        ] {
            assert_eq!(evaluate(expression, &names()), Ok(expected), "{expression}");
        }
        assert!(evaluate("steps.skipped.n", &names()).is_err());
    }
}
