//! The kind of one family of servers: how it is described, and which statements it takes.

use lifeboat_engine::code::Code;
use lifeboat_engine::resource::ResourceKind;
use lifeboat_engine::step::{Effect, KindSpec, ParamProblem, Preview, StepError};
use lifeboat_engine::value::{Field, Type};
use serde_json::{Map, Value};

use super::params::{Params, Statement, fields};
use crate::sql::first_word;

/// What tells the kind of one family from that of another.
#[derive(Debug)]
pub(crate) struct Family {
    pub(crate) kind: &'static str,
    pub(crate) summary: &'static str,
    pub(crate) doc: &'static str,
    /// The parameter that names the server, and what it takes.
    pub(crate) server: (&'static str, ResourceKind),
    /// Describes how values stand in a statement.
    pub(crate) values: &'static str,
    /// Describes `tables`.
    pub(crate) tables: &'static str,
    /// Further parameters.
    pub(crate) more: fn() -> Vec<Field>,
    /// With these a statement changes rows and cannot end the transaction.
    pub(crate) allowed: [&'static str; 6],
    /// Says what a statement does, beyond `setval`, that no rollback takes back: "call `x`".
    pub(crate) lasting: fn(&str) -> Option<&'static str>,
    pub(crate) codes: Codes,
}

/// The codes of the errors that all families know.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Codes {
    /// A statement that cannot be part of a change.
    pub(crate) statement: Code,
    pub(crate) too_many: Code,
    pub(crate) invariant: Code,
    pub(crate) not_approved: Code,
    /// Rows are others now.
    pub(crate) no_way_back: Code,
    pub(crate) taken_back: Code,
    pub(crate) unwritten: Code,
}

impl Family {
    /// Describes the kind.
    pub(crate) fn spec(&self) -> KindSpec {
        let mut spec = KindSpec::new(self.kind, self.summary, Effect::Guarded)
            .doc(self.doc)
            .output("rows", Type::Integer, "How many rows were changed, or would be.")
            .output(
                "tables",
                Type::list(Type::Any),
                "`table`, `inserted`, `updated` and `deleted` for each table.",
            )
            .output(
                "difference",
                Type::list(Type::Any),
                "The first 100 rows: `table`, `operation`, `key`, and what changed, `before` and `after`.",
            )
            .output("digest", Type::String, "Recognises the difference.")
            .output("applied", Type::Boolean, "False for a dry run.")
            .output("reverse", Type::String, "The script that takes it back; empty for a dry run.")
            .undoes("takes the change back, unless its rows have been changed since");
        spec.params = fields(self);
        spec
    }

    /// Finds statements that can be refused before anything runs.
    pub(crate) fn check(&self, with: &Map<String, Value>) -> Vec<ParamProblem> {
        let statements = with.get("statements").and_then(Value::as_array);
        let sqls = statements.into_iter().flatten().filter_map(|one| one.get("sql")?.as_str());
        let refused = |message: String| ParamProblem {
            param: "statements".into(),
            message,
            help: Some(self.beginnings()),
        };
        sqls.filter_map(|sql| self.problem(sql)).map(refused).collect()
    }

    /// Refuses statements that have come out of templates.
    pub(crate) fn refuse(&self, statements: &[Statement]) -> Result<(), StepError> {
        let Some(message) = statements.iter().find_map(|one| self.problem(&one.sql)) else { return Ok(()) };
        Err(StepError::permanent(self.codes.statement, message)
            .help(format!("{}; nothing was changed", self.beginnings())))
    }

    /// Shows the statements, and what they may change.
    pub(crate) fn preview(&self, params: &Params) -> Preview {
        let mut actions: Vec<_> = params.statements.iter().map(|one| one.sql.trim().to_owned()).collect();
        actions.push(params.scope());
        Preview { actions, destroys: Vec::new() }
    }

    /// Says why a statement is refused before it runs.
    pub(crate) fn problem(&self, sql: &str) -> Option<String> {
        let word = first_word(sql);
        if !self.allowed.contains(&word.as_str()) {
            return Some(format!("a change cannot begin with `{word}`"));
        }
        let setval = || sql.to_lowercase().contains("setval").then_some("call `setval`");
        let lasting = (self.lasting)(sql).or_else(setval)?;
        Some(format!("a change cannot {lasting}, which no rollback takes back"))
    }

    fn beginnings(&self) -> String {
        format!("a statement begins with one of: {}", self.allowed.join(", "))
    }
}
