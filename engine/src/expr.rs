//! Expressions and templates. The only module that knows minijinja.

use minijinja::{Environment, UndefinedBehavior};
use serde_json::{Map, Value};

use crate::model::evidence::Check;

/// Why an expression has no value.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct ExprError {
    pub message: String,
    /// The byte range within the expression, where known.
    pub range: Option<std::ops::Range<usize>>,
}

/// Evaluates a bare expression over named values.
pub fn evaluate(expression: &str, names: &Map<String, Value>) -> Result<Value, ExprError> {
    let environment = environment();
    let compiled = environment.compile_expression(expression).map_err(|error| from_minijinja(&error))?;
    let value = compiled.eval(minijinja::value::Serde(names)).map_err(|error| from_minijinja(&error))?;
    if value.is_undefined() {
        return Err(ExprError { message: format!("`{expression}` is undefined"), range: None });
    }
    serde_json::to_value(&value).map_err(|error| ExprError { message: error.to_string(), range: None })
}

/// Evaluates an expression that must be true or false.
pub fn holds(expression: &str, names: &Map<String, Value>) -> Result<bool, ExprError> {
    match evaluate(expression, names)? {
        Value::Bool(value) => Ok(value),
        other => {
            Err(ExprError { message: format!("`{expression}` is {other}, not true or false"), range: None })
        }
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
fn describe(condition: &str, names: &Map<String, Value>) -> String {
    let environment = environment();
    let Ok(compiled) = environment.compile_expression(condition) else { return String::new() };
    let mut references: Vec<_> = compiled.undeclared_variables(true).into_iter().collect();
    references.sort();
    let shown: Vec<_> = references
        .iter()
        .filter_map(|name| evaluate(name, names).ok().map(|value| format!("{name} = {}", brief(&value))))
        .collect();
    shown.join(", ")
}

fn brief(value: &Value) -> String {
    const LIMIT: usize = 200;
    let text = value.to_string();
    match text.char_indices().nth(LIMIT) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

fn environment() -> Environment<'static> {
    /// Enough for any condition a person would write; stops loops that were built to hang.
    const FUEL: u64 = 50_000;
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_fuel(Some(FUEL));
    environment
}

fn from_minijinja(error: &minijinja::Error) -> ExprError {
    let message = error.detail().map_or_else(|| error.kind().to_string(), ToOwned::to_owned);
    ExprError { message, range: error.range() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn names() -> Map<String, Value> {
        json!({"rows": [{"n": 3}], "status": 200}).as_object().expect("an object").clone()
    }

    #[test]
    fn conditions_become_checks_with_what_was_found() {
        let checks = check_all("members", &["rows[0].n > 5".into(), "status == 200".into()], &names());
        assert!(!checks[0].passed && checks[1].passed);
        assert!(checks[0].actual.contains('3'), "{}", checks[0].actual);
        assert_eq!(checks[1].actual, "status = 200");
    }

    #[test]
    fn an_undefined_name_is_a_check_that_did_not_pass() {
        let checks = check_all("x", &["missing > 1".into(), "status".into(), "missing".into()], &names());
        assert!(checks.iter().all(|check| !check.passed), "{checks:?}");
    }
}
