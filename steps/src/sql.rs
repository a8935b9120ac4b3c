//! What the families of SQL servers have in common: how rows are judged and named.

use lifeboat_engine::code::Code;
use lifeboat_engine::expr;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::model::evidence::Check;
use lifeboat_engine::step::{StepContext, StepError};
use lifeboat_engine::value::{Field, Type};
use serde::Deserialize;
use serde_json::{Map, Value};

/// More rows than this belong into no journal and no condition.
pub(crate) const MOST_ROWS: usize = 1000;

/// Begins the results of a step with its outputs, which must be a map.
pub(crate) fn done(outputs: Value) -> Done {
    let Value::Object(outputs) = outputs else { unreachable!("outputs are written as a map") };
    Done { outputs, ..Done::default() }
}

/// The names that conditions are about.
pub(crate) fn names(rows: Vec<Value>) -> Map<String, Value> {
    let mut names = Map::new();
    names.insert("row_count".into(), rows.len().into());
    names.insert("rows".into(), rows.into());
    names
}

/// Makes the rows of a query the results of a step, or its failure if one of the conditions does not hold.
pub(crate) fn judged(
    ctx: &StepContext,
    rows: Vec<Value>,
    expect: &[String],
    code: Code,
) -> Result<Done, StepError> {
    let names = names(rows);
    let checks = expr::check_all(ctx.info.step.as_str(), expect, &names);
    let failed: Vec<&str> =
        checks.iter().filter(|check| !check.passed).map(|check| check.expected.as_str()).collect();
    if !failed.is_empty() {
        let message = format!("the result is not as expected: {}", failed.join("; "));
        return Err(StepError::permanent(code, message)
            .help("the report shows what was found; decide whether the data or the expectation is wrong")
            .checks(checks));
    }
    Ok(Done { outputs: names, checks, ..Done::default() })
}

/// Returns the first word of a statement in small letters, comments left out.
pub(crate) fn first_word(sql: &str) -> String {
    let mut rest = sql.trim_start();
    loop {
        rest = match () {
            () if rest.starts_with("--") => rest.split_once('\n').map_or("", |(_, rest)| rest).trim_start(),
            () if rest.starts_with("/*") => rest.split_once("*/").map_or("", |(_, rest)| rest).trim_start(),
            () => break,
        };
    }
    rest.chars().take_while(char::is_ascii_alphabetic).collect::<String>().to_lowercase()
}

/// A statement of a runbook's own, and what must hold of its rows.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct NamedQuery {
    pub(crate) name: String,
    pub(crate) database: Option<String>,
    pub(crate) sql: String,
    #[serde(default)]
    pub(crate) params: Vec<Value>,
    #[serde(default)]
    pub(crate) expect: Vec<String>,
}

impl NamedQuery {
    /// Describes it as a parameter; `values` says how values stand in the statement.
    pub(crate) fn described(values: &str) -> Type {
        let conditions = Type::conditions(&["rows", "row_count"]);
        Type::Object(vec![
            Field::required("name", Type::String, "Names the checks in the report."),
            Field::optional("database", Type::String, "The database; that of the resource if not given."),
            Field::required("sql", Type::Sql, "One reading statement."),
            Field::optional("params", Type::list(Type::Any), values),
            Field::required("expect", conditions, "What must hold of `rows` and `row_count`."),
        ])
    }

    /// Returns the checks of its rows.
    pub(crate) fn judge(&self, rows: Vec<Value>) -> Vec<Check> {
        expr::check_all(&self.name, &self.expect, &names(rows))
    }

    /// Returns the check that did not pass because the statement could not be run.
    pub(crate) fn not_run(&self, error: &StepError) -> Check {
        Check {
            name: format!("{}: the statement runs", self.name),
            expected: "rows".into(),
            actual: error.message.clone(),
            passed: false,
        }
    }
}

/// Returns checks that all passed, or the failure of those that did not.
pub(crate) fn verdict(checks: Vec<Check>, code: Code) -> Result<Vec<Check>, StepError> {
    let failed: Vec<String> = checks
        .iter()
        .filter(|check| !check.passed)
        .map(|check| format!("{} ({})", check.name, check.actual))
        .collect();
    if failed.is_empty() {
        return Ok(checks);
    }
    let total = checks.len();
    let message = format!("{} of {total} checks failed: {}", failed.len(), failed.join("; "));
    Err(StepError::permanent(code, message)
        .help("if the source has the same fault, name the object under `accept`; otherwise restore from another backup")
        .checks(checks))
}
