//! The parameters of a change.

use lifeboat_engine::expr;
use lifeboat_engine::model::evidence::Check;
use lifeboat_engine::value::{Field, Span, Type};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::Family;

/// More rows than this belong into no change that a person approves.
const MOST: u64 = 100_000;

/// What a step gives, beside its server.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Params {
    pub(crate) database: Option<String>,
    pub(crate) tables: Vec<String>,
    pub(crate) statements: Vec<Statement>,
    max_rows: u64,
    pub(crate) invariants: Vec<Invariant>,
    pub(crate) dry_run: bool,
    pub(crate) approved: Option<String>,
    pub(crate) ignore: Vec<String>,
    pub(crate) idempotency_key: Option<String>,
    pub(crate) lock_timeout: Span,
    pub(crate) statement_timeout: Span,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Statement {
    pub(crate) sql: String,
    #[serde(default)]
    pub(crate) params: Vec<Value>,
}

/// What must hold after the change, perhaps compared with before.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Invariant {
    pub(crate) name: String,
    pub(crate) sql: String,
    #[serde(default)]
    pub(crate) params: Vec<Value>,
    expect: Vec<String>,
}

impl Params {
    /// Returns how many rows may be changed.
    pub(crate) fn most(&self) -> u64 {
        self.max_rows.min(MOST)
    }

    /// Says what limits that.
    pub(super) fn limit(&self) -> &'static str {
        if self.max_rows > MOST { "the most that a change may" } else { "`max_rows`" }
    }

    /// Says in words what the step may change.
    pub(super) fn scope(&self) -> String {
        let dry = if self.dry_run { ", taken back (dry run)" } else { "" };
        format!("at most {} rows of {}{dry}", self.max_rows, self.tables.join(", "))
    }
}

impl Invariant {
    /// Judges what its query has returned, before and after.
    fn judge(&self, before: &[Value], after: Vec<Value>) -> Vec<Check> {
        let mut names = Map::new();
        names.insert("row_count".into(), after.len().into());
        names.insert("rows".into(), after.into());
        names.insert("before".into(), before.to_vec().into());
        expr::check_all(&self.name, &self.expect, &names)
    }
}

/// Judges all invariants by the rows of their queries, before and after.
pub(super) fn judge(invariants: &[Invariant], before: &[Vec<Value>], after: Vec<Vec<Value>>) -> Vec<Check> {
    let all = invariants.iter().zip(before).zip(after);
    all.flat_map(|((invariant, before), after)| invariant.judge(before, after)).collect()
}

/// Describes the parameters of a kind.
pub(super) fn fields(family: &Family) -> Vec<Field> {
    let values = || Field::optional("params", Type::list(Type::Any), family.values);
    let statement = vec![Field::required("sql", Type::Sql, "One statement."), values()];
    let invariant = vec![
        Field::required("name", Type::String, "Names it in the report."),
        Field::required("sql", Type::Sql, "One reading statement."),
        values(),
        Field::required(
            "expect",
            Type::conditions(&["rows", "row_count", "before"]),
            "What must hold afterwards.",
        ),
    ];
    let (server, kind) = family.server;
    let mut fields = vec![
        Field::required(server, Type::writes(kind), "The server."),
        Field::optional("database", Type::String, "The database; that of the resource if not given."),
        Field::required("tables", Type::list(Type::String), family.tables),
        Field::required("statements", Type::list(Type::Object(statement)), "What to run, in order."),
        Field::required("max_rows", Type::Integer, "More changed rows than this fail the step."),
        Field::defaulted(
            "invariants",
            Type::list(Type::Object(invariant)),
            json!([]),
            "What must hold afterwards.",
        ),
        Field::defaulted(
            "dry_run",
            Type::Boolean,
            false,
            "Whether to take it back and only show the difference.",
        ),
        Field::optional(
            "approved",
            Type::String,
            "The `digest` of a dry run: another difference fails the step.",
        ),
        Field::defaulted(
            "ignore",
            Type::list(Type::String),
            json!([]),
            "Columns that are no part of the digest.",
        ),
        Field::optional(
            "idempotency_key",
            Type::String,
            "The change is made once for it; run and step if absent.",
        ),
    ];
    fields.extend((family.more)());
    fields.push(Field::defaulted("lock_timeout", Type::Duration, "10s", "How long to wait for locks."));
    fields.push(Field::defaulted(
        "statement_timeout",
        Type::Duration,
        "5m",
        "How long each statement may take.",
    ));
    fields
}
