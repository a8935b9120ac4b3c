//! `mariadb.change`

use async_trait::async_trait;
use lifeboat_engine::expr;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::model::evidence::Check;
use lifeboat_engine::model::outcome::FailureKind;
use lifeboat_engine::resource::ResourceKind;
use lifeboat_engine::step::{
    Effect, KindSpec, ParamProblem, Preview, Probe, StepContext, StepError, StepKind,
};
use lifeboat_engine::value::{Field, Span, Type};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::super::codes;
use super::super::connect::{DbError, Login};
use super::work::Work;
use crate::sql::first_word;

/// Changes data.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Change;

#[derive(Clone, Deserialize)]
pub(super) struct Params {
    server: String,
    database: Option<String>,
    pub(super) tables: Vec<String>,
    pub(super) statements: Vec<Statement>,
    pub(super) max_rows: u64,
    pub(super) invariants: Vec<Invariant>,
    pub(super) dry_run: bool,
    pub(super) approved: Option<String>,
    pub(super) ignore: Vec<String>,
    pub(super) idempotency_key: Option<String>,
    pub(super) max_table_rows: u64,
    pub(super) lock_timeout: Span,
    pub(super) statement_timeout: Span,
}

#[derive(Clone, Deserialize)]
pub(super) struct Statement {
    pub(super) sql: String,
    #[serde(default)]
    pub(super) params: Vec<Value>,
}

#[derive(Clone, Deserialize)]
pub(super) struct Invariant {
    pub(super) name: String,
    pub(super) sql: String,
    #[serde(default)]
    pub(super) params: Vec<Value>,
    pub(super) expect: Vec<String>,
}

/// With these a statement changes rows and cannot end the transaction.
const ALLOWED: [&str; 6] = ["insert", "update", "delete", "replace", "with", "select"];

const DOC: &str = "\
Runs statements that change rows, all in one transaction, and compares `tables` row by row with a snapshot from before. The \
step fails, and nothing is changed, if a table that is not named is changed, also by a trigger, a function or a cascade; if \
more than `max_rows` rows change; or if one of `invariants` does not hold afterwards. A condition of an invariant knows `rows`, \
`row_count`, and `before`, the rows of the same query before the change.

That nothing else is changed is known from InnoDB's own count of what the transaction has changed (the account needs \
`process`): it must be that of the rows that differ, so that each row may be changed once only. Tables of other engines take \
nothing back and are refused, also where a trigger, a function or a view leads to them.

`dry_run: true` takes all of it back and returns the difference and its `digest`. Given as `approved` to a second step with \
the same statements, that one changes exactly this or fails:

```yaml
- id: look
  uses: mariadb.change
  with: &correction
    server: db
    tables: [payments, audit_log]
    max_rows: 4
    statements:
      - { sql: \"update payments set state = 'void' where id = ?\", params: [\"{{ inputs.payment }}\"] }
    dry_run: true
```

Values of `auto_increment` differ between two attempts and are left out of the digest, and so are the columns named in \
`ignore`, such as times.

What was changed is kept on the server, in the database `lifeboat`, in the same transaction (texts and bytes in hexadecimal): \
a change is made once for its `idempotency_key` (run and step if absent), whatever crashes in between and whoever runs it \
again. The output `reverse` is a script that takes it back, row by row, and stops if somebody has changed one of the rows \
since; undo does the same. The way back is tried within the transaction, before the commit; a warning says if it does not \
bring back every byte, which a trigger can be the reason of. Then `reverse` is empty.

All rows of `tables` are locked against writes of others meanwhile, and read twice: `max_table_rows` limits that.";

#[async_trait]
impl StepKind for Change {
    fn spec(&self) -> KindSpec {
        let mut spec = KindSpec::new(
            "mariadb.change",
            "Changes rows in one transaction, compared row by row, with a way back.",
            Effect::Guarded,
        )
        .doc(DOC)
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
        spec.params = params();
        spec
    }

    fn check(&self, with: &Map<String, Value>) -> Vec<ParamProblem> {
        let statements = with.get("statements").and_then(Value::as_array);
        let sqls = statements.into_iter().flatten().filter_map(|one| one.get("sql")?.as_str());
        let refused = |message: String| ParamProblem {
            param: "statements".into(),
            message,
            help: Some(format!("a statement begins with one of: {}", ALLOWED.join(", "))),
        };
        sqls.filter_map(problem).map(refused).collect()
    }

    async fn preview(&self, ctx: &StepContext) -> Result<Preview, StepError> {
        let params: Params = ctx.params()?;
        let mut actions: Vec<_> = params.statements.iter().map(|one| one.sql.trim().to_owned()).collect();
        let dry = if params.dry_run { ", taken back (dry run)" } else { "" };
        actions.push(format!("at most {} rows of {}{dry}", params.max_rows, params.tables.join(", ")));
        Ok(Preview { actions, destroys: Vec::new() })
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let mut work = Work::new(ctx).await?;
        if let Some(message) = work.params.statements.iter().find_map(|one| problem(&one.sql)) {
            return Err(StepError::permanent(codes::LB2068, message).help(format!(
                "a statement begins with one of: {}; nothing was changed",
                ALLOWED.join(", ")
            )));
        }
        if !work.params.dry_run
            && let Some(done) = work.made_before().await?
        {
            return Ok(done);
        }
        let result = work.in_transaction().await;
        work.taken_back(result).await
    }

    async fn probe(&self, ctx: &StepContext) -> Result<Probe, StepError> {
        let mut work = Work::new(ctx).await?;
        if work.params.dry_run {
            return Ok(Probe::NotDone);
        }
        Ok(work.made_before().await?.map_or(Probe::NotDone, Probe::Done))
    }

    async fn undo(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let mut work = Work::new(ctx).await?;
        // What another run has made under the same key is not ours to take back.
        if !work.is_ours().await? {
            return Ok(Done::default());
        }
        let result = work.undo().await;
        work.taken_back(result).await
    }
}

fn params() -> Vec<Field> {
    let values = || Field::optional("params", Type::list(Type::Any), "Values for `?`, in order.");
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
    vec![
        Field::required("server", Type::writes(ResourceKind::Mariadb), "The server."),
        Field::optional("database", Type::String, "The database; that of the resource if not given."),
        Field::required(
            "tables",
            Type::list(Type::String),
            "The tables that may be changed, as `table` or `database.table`; each of InnoDB with a primary key.",
        ),
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
        Field::defaulted(
            "max_table_rows",
            Type::Integer,
            2_000_000,
            "A table with more rows than this is refused: it is locked and read as a whole.",
        ),
        Field::defaulted("lock_timeout", Type::Duration, "10s", "How long to wait for locks."),
        Field::defaulted("statement_timeout", Type::Duration, "5m", "How long each statement may take."),
    ]
}

/// Says why a statement is refused before it runs.
fn problem(sql: &str) -> Option<String> {
    if !ALLOWED.contains(&first_word(sql).as_str()) {
        return Some(format!("a change cannot begin with `{}`", first_word(sql)));
    }
    let lower = sql.to_lowercase();
    let words: Vec<&str> = lower.split_whitespace().collect();
    if words.windows(2).any(|pair| pair[0] == "into" && matches!(pair[1], "outfile" | "dumpfile")) {
        return Some("a change cannot write a file, which no rollback takes back".to_owned());
    }
    lower.contains("setval").then(|| "a change cannot call `setval`, which no rollback takes back".to_owned())
}

impl Params {
    /// Returns how to log in.
    pub(super) fn login(&self, ctx: &StepContext) -> Result<Login, StepError> {
        let login = Login::of(ctx, &self.server)?;
        Ok(if self.database.is_some() { login.database(self.database.as_deref()) } else { login })
    }
}

impl Invariant {
    /// Judges what the query of an invariant has returned.
    pub(super) fn judge(&self, before: &[Value], after: Vec<Value>) -> Vec<Check> {
        let mut names = Map::new();
        names.insert("row_count".into(), after.len().into());
        names.insert("rows".into(), after.into());
        names.insert("before".into(), before.to_vec().into());
        expr::check_all(&self.name, &self.expect, &names)
    }
}

pub(super) fn kept(why: &str) -> StepError {
    StepError::permanent(codes::LB2064, format!("the change cannot be taken back: {why}"))
        .help("its rows before and after stand in lifeboat.changed_rows; decide by hand")
}

/// What the server refuses within the transaction changes nothing.
pub(super) fn refused(error: DbError) -> StepError {
    if error.number() == Some(1205) {
        return StepError::transient(codes::LB2069, format!("rows could not be locked in time: {error}")).help(
            "nothing was changed; see who holds them: select * from information_schema.innodb_trx order by trx_started",
        );
    }
    let error = StepError::from(error);
    let help = error.help.clone().unwrap_or_else(|| "nothing was changed".into());
    error.help(help)
}

/// An end of the transaction that may or may not have come to be.
pub(super) fn uncertain(error: DbError) -> StepError {
    StepError { kind: FailureKind::Uncertain, ..StepError::from(error) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_statements_that_stay_within_the_transaction_are_allowed() {
        for sql in [
            "UPDATE x set y = 1",
            "-- why\n/* and */ with a as (select 1) select 1",
            "replace into x values (1)",
        ] {
            assert_eq!(problem(sql), None, "{sql}");
        }
        for sql in [
            "commit",
            "/* */ rollback",
            "drop table x",
            "truncate x",
            "",
            "call x()",
            "set autocommit = 1",
            "-- update",
            "select SetVal(s, 1)",
            "select 1 INTO OUTFILE '/tmp/x'",
        ] {
            assert!(problem(sql).is_some(), "{sql}");
        }
    }
}
