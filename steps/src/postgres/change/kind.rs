//! `postgres.change`

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

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
use tokio_postgres::types::ToSql;

use super::super::connect::{Client, Login, PgError};
use super::super::database::PATIENT;
use super::super::rows::TextParam;
use super::super::server::QUICK;
use super::super::{codes, local};
use super::capture::{self, Row, Watched};
use super::{ledger, reverse};

/// Changes data.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Change;

#[derive(Clone, Deserialize)]
struct Params {
    cluster: String,
    database: Option<String>,
    tables: Vec<String>,
    statements: Vec<Statement>,
    max_rows: u64,
    invariants: Vec<Invariant>,
    dry_run: bool,
    approved: Option<String>,
    ignore: Vec<String>,
    idempotency_key: Option<String>,
    lock_timeout: Span,
    statement_timeout: Span,
}

#[derive(Clone, Deserialize)]
struct Statement {
    sql: String,
    #[serde(default)]
    params: Vec<Value>,
}

#[derive(Clone, Deserialize)]
struct Invariant {
    name: String,
    sql: String,
    #[serde(default)]
    params: Vec<Value>,
    expect: Vec<String>,
}

/// How many rows of a difference are outputs; all are in the database.
const SHOWN: usize = 100;
/// More rows than this belong into no change that a person approves.
const MOST: u64 = 100_000;
/// With these a statement changes rows and cannot end the transaction.
const ALLOWED: [&str; 6] = ["insert", "update", "delete", "merge", "with", "select"];

const DOC: &str = "\
Runs statements that change rows, all in one transaction, and watches each row of `tables`: triggers that live only in that \
transaction note it before and after. The step fails, and nothing is changed, if a table that is not named is changed, also \
by a trigger or a cascade; if a table is made, dropped or emptied; if more than `max_rows` rows change; or if one of \
`invariants` does not hold afterwards. A condition of an invariant knows `rows`, `row_count`, and `before`, the rows of the \
same query before the change.

`dry_run: true` takes all of it back and returns the difference and its `digest`. Given as `approved` to a second step with \
the same statements, that one changes exactly this or fails:

```yaml
- id: look
  uses: postgres.change
  with: &correction
    cluster: db
    tables: [payments, audit_log]
    max_rows: 4
    statements:
      - { sql: \"update payments set state = 'void' where id = $1\", params: [\"{{ inputs.payment }}\"] }
    dry_run: true
```

Values of sequences differ between two attempts and are left out of the digest, and so are the columns named in `ignore`, \
such as times.

What was changed is kept in the database, in the schema `lifeboat`, in the same transaction: a change is made once for its \
`idempotency_key` (run and step if absent), whatever crashes in between and whoever runs it again. The output `reverse` is a \
script that takes it back, row by row, and stops if somebody has changed one of the rows since; undo runs it. Columns of \
type `json` come back with other blanks.

The role must own the tables. They are locked against writes of others meanwhile.";

#[async_trait]
impl StepKind for Change {
    fn spec(&self) -> KindSpec {
        let mut spec = KindSpec::new(
            "postgres.change",
            "Changes rows in one transaction, watched row by row, with a way back.",
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
        let work = Work::new(ctx).await?;
        if !work.params.dry_run
            && let Some(done) = work.made_before().await?
        {
            return Ok(done);
        }
        let result = work.in_transaction().await;
        if result.is_err() {
            // A connection that is lost takes its transaction with it.
            work.client.batch("rollback", QUICK).await.ok();
        }
        result
    }

    async fn probe(&self, ctx: &StepContext) -> Result<Probe, StepError> {
        let work = Work::new(ctx).await?;
        if work.params.dry_run {
            return Ok(Probe::NotDone);
        }
        Ok(work.made_before().await?.map_or(Probe::NotDone, Probe::Done))
    }

    async fn undo(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let work = Work::new(ctx).await?;
        let made = ledger::find(&work.client, &work.key).await?;
        // What another run has made under the same key is not ours to take back.
        if !made.is_some_and(|made| !made.undone && made.by == ctx.info.idempotency_key()) {
            return Ok(Done::default());
        }
        let result = work.undo().await;
        if result.is_err() {
            work.client.batch("rollback", QUICK).await.ok();
        }
        result
    }
}

fn params() -> Vec<Field> {
    let values = || Field::optional("params", Type::list(Type::Any), "Values for `$1`, `$2`, …");
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
        Field::required("cluster", Type::writes(ResourceKind::Postgres), "The server."),
        Field::optional("database", Type::String, "The database; that of the resource if not given."),
        Field::required(
            "tables",
            Type::list(Type::String),
            "The tables that may be changed; each with a primary key.",
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
        Field::defaulted("lock_timeout", Type::Duration, "10s", "How long to wait for locks."),
        Field::defaulted("statement_timeout", Type::Duration, "5m", "How long each statement may take."),
    ]
}

fn first_word(sql: &str) -> String {
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

/// Says why a statement is refused before it runs.
fn problem(sql: &str) -> Option<String> {
    if !ALLOWED.contains(&first_word(sql).as_str()) {
        return Some(format!("a change cannot begin with `{}`", first_word(sql)));
    }
    let lasts = sql.to_lowercase().contains("setval");
    lasts.then(|| "a change cannot call `setval`, which no rollback takes back".to_owned())
}

/// One attempt.
struct Work<'a> {
    ctx: &'a StepContext,
    params: Params,
    client: Client,
    key: String,
}

impl<'a> Work<'a> {
    async fn new(ctx: &'a StepContext) -> Result<Self, StepError> {
        let params: Params = ctx.params()?;
        let login = Login::of(ctx, local::cluster(ctx, &params.cluster)?)?;
        let login = params.database.as_ref().map_or(login.clone(), |database| login.database(database));
        let key = params.idempotency_key.clone().unwrap_or_else(|| ctx.info.idempotency_key());
        Ok(Self { client: login.connect().await?, ctx, params, key })
    }

    async fn made_before(&self) -> Result<Option<Done>, StepError> {
        let Some(made) = ledger::find(&self.client, &self.key).await? else { return Ok(None) };
        if made.undone {
            return Err(StepError::permanent(
                codes::LB1826,
                format!("the change `{}` was made by {} and taken back", self.key, made.by),
            )
            .help("to make it again, give it another `idempotency_key`"));
        }
        let mut done: Done = serde_json::from_value(made.result).map_err(|error| {
            StepError::permanent(
                codes::LB1826,
                format!("the record of the change `{}` cannot be read", self.key),
            )
            .caused_by(&error)
        })?;
        if made.by != self.ctx.info.idempotency_key() {
            done.warnings.push(format!("the change `{}` was made before, by {}", self.key, made.by));
        }
        Ok(Some(done))
    }

    async fn in_transaction(&self) -> Result<Done, StepError> {
        if let Some(message) = self.params.statements.iter().find_map(|one| problem(&one.sql)) {
            return Err(StepError::permanent(codes::LB1273, message).help(format!(
                "a statement begins with one of: {}; nothing was changed",
                ALLOWED.join(", ")
            )));
        }
        let begin = format!(
            "begin; set local lock_timeout = {}; set local statement_timeout = {}",
            self.params.lock_timeout.0.as_millis(),
            self.params.statement_timeout.0.as_millis()
        );
        self.client.batch(&begin, QUICK).await?;
        let mut tables = Vec::new();
        for name in &self.params.tables {
            tables.push(capture::find(&self.client, name).await?);
        }
        // From here on others cannot change the tables, and `before` is what the statements find.
        capture::begin(&self.client, &tables, self.params.max_rows.min(MOST)).await?;
        let before = self.invariant_rows().await?;
        // After the watch was set up, which makes triggers and a temporary table.
        let definitions = capture::definitions(&self.client).await?;
        for statement in &self.params.statements {
            self.execute(&statement.sql, &statement.params).await?;
        }
        capture::end(&self.client, &tables).await?;
        self.refuse(&tables, &definitions).await?;
        let rows = capture::rows(&self.client, &tables, &self.params.ignore).await?;
        let checks = self.invariants(&before).await?;
        self.finish(&rows, &tables, checks).await
    }

    async fn execute(&self, sql: &str, params: &[Value]) -> Result<Vec<tokio_postgres::Row>, StepError> {
        let limit = self.params.statement_timeout.0 + Duration::from_secs(5);
        let statement =
            self.client.prepare(sql.trim().trim_end_matches(';'), limit).await.map_err(refused)?;
        if statement.params().len() != params.len() {
            let message = format!(
                "the statement takes {} parameters, and {} are given",
                statement.params().len(),
                params.len()
            );
            return Err(StepError::permanent(codes::LB1273, message).help("nothing was changed"));
        }
        let params: Vec<TextParam> = params.iter().map(TextParam::of).collect();
        let params: Vec<&(dyn ToSql + Sync)> =
            params.iter().map(|param| param as &(dyn ToSql + Sync)).collect();
        self.client.query_prepared(&statement, &params, limit).await.map_err(|error| match error {
            PgError::Database(db) if db.sqlstate == capture::TOO_MANY => self.too_many(),
            other => refused(other),
        })
    }

    fn too_many(&self) -> StepError {
        let most = self.params.max_rows.min(MOST);
        let limit = if self.params.max_rows > MOST { "the most that a change may" } else { "`max_rows`" };
        StepError::permanent(codes::LB1820, format!("more than {most} rows would be changed ({limit})"))
            .help("nothing was changed; look at them with `dry_run: true` and a higher `max_rows`")
    }

    /// Runs the queries of all invariants; each row becomes a map.
    async fn invariant_rows(&self) -> Result<Vec<Vec<Value>>, StepError> {
        let mut all = Vec::new();
        for invariant in &self.params.invariants {
            let sql = format!(
                "select to_jsonb(q) from (\n{}\n) q limit 1001",
                invariant.sql.trim().trim_end_matches(';')
            );
            let rows = self.execute(&sql, &invariant.params).await?;
            all.push(rows.iter().map(|row| row.get(0)).collect());
        }
        Ok(all)
    }

    async fn invariants(&self, before: &[Vec<Value>]) -> Result<Vec<Check>, StepError> {
        let after = self.invariant_rows().await?;
        let mut checks = Vec::new();
        for ((invariant, before), after) in self.params.invariants.iter().zip(before).zip(after) {
            let mut names = Map::new();
            names.insert("row_count".into(), after.len().into());
            names.insert("rows".into(), after.into());
            names.insert("before".into(), before.clone().into());
            checks.extend(expr::check_all(&invariant.name, &invariant.expect, &names));
        }
        let failed: Vec<_> =
            checks.iter().filter(|check| !check.passed).map(|check| check.name.clone()).collect();
        if failed.is_empty() {
            return Ok(checks);
        }
        Err(StepError::permanent(
            codes::LB1822,
            format!("what must hold afterwards would not: {}", failed.join("; ")),
        )
        .help("nothing was changed; the report shows what was found")
        .checks(checks))
    }

    async fn refuse(&self, tables: &[Watched], definitions: &str) -> Result<(), StepError> {
        let strays = capture::strays(&self.client, tables).await?;
        if !strays.is_empty() {
            let message = format!("tables that are not named were changed, too: {}", strays.join(", "));
            return Err(StepError::permanent(codes::LB1821, message)
                .help("nothing was changed; a trigger or a cascade did it: name these under `tables` if it is right"));
        }
        if capture::definitions(&self.client).await? != definitions {
            let message = "a table or an index was made, dropped, rewritten or emptied";
            return Err(StepError::permanent(codes::LB1821, message)
                .help("nothing was changed; a change is of rows, and definitions belong into migrations"));
        }
        Ok(())
    }

    async fn finish(&self, rows: &[Row], tables: &[Watched], checks: Vec<Check>) -> Result<Done, StepError> {
        let digest = capture::digest(rows);
        if let Some(approved) = self.params.approved.as_ref().filter(|approved| **approved != digest) {
            let message =
                format!("the difference is not the one that was approved ({approved}), but {digest}");
            return Err(StepError::permanent(codes::LB1823, message)
                .help("nothing was changed; the data has changed since the dry run: look again, and name columns that differ each time in `ignore`"));
        }
        let shown: Vec<_> = rows.iter().take(SHOWN).map(|row| row.shown(tables)).collect();
        let mut done = local::done(json!({
            "rows": rows.len(), "tables": capture::summary(rows), "difference": shown, "digest": digest,
            "applied": !self.params.dry_run, "reverse": "",
        }));
        done.checks = checks;
        if self.params.dry_run {
            self.client.batch("rollback", QUICK).await?;
            return Ok(done);
        }
        let reverse = self.write_reverse(rows).await?;
        done.outputs.insert("reverse".into(), json!(reverse));
        let by = self.ctx.info.idempotency_key();
        let result = serde_json::to_value(&done).expect("results are JSON");
        ledger::keep(&self.client, (&self.key, &by), &result).await?;
        self.commit().await?;
        Ok(done)
    }

    /// The script exists before the change does.
    async fn write_reverse(&self, rows: &[Row]) -> Result<String, StepError> {
        let statements = reverse::statements(&self.client, rows).await?;
        let path = self.ctx.info.work_dir.path()?.join("reverse.sql");
        let open =
            || std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path);
        let written = open().and_then(|mut file| {
            file.write_all(reverse::script(&self.key, &statements).as_bytes())?;
            file.sync_all()
        });
        written.map_err(|error| {
            StepError::transient(codes::LB1827, format!("{} cannot be written", path.display()))
                .help("nothing was changed; make room in the state directory")
                .caused_by(&error)
        })?;
        Ok(path.display().to_string())
    }

    async fn commit(&self) -> Result<(), StepError> {
        self.client.batch("commit", PATIENT).await.map_err(|error| {
            let error = refused(error);
            // A server that answers has not committed; silence may mean either.
            let unknown = error.kind == FailureKind::Transient;
            StepError { kind: if unknown { FailureKind::Uncertain } else { error.kind }, ..error }
        })
    }

    /// Deleting a row that the change has inserted must not take rows of others with it.
    async fn refuse_cascade(&self, made: &[Row], tables: &[Watched]) -> Result<(), StepError> {
        let count =
            |rows: &[Row], operation: &str| rows.iter().filter(|row| row.operation == operation).count();
        let deleted = count(&capture::rows(&self.client, tables, &[]).await?, "delete");
        let strays = capture::strays(&self.client, tables).await?;
        if deleted <= count(made, "insert") && strays.is_empty() {
            return Ok(());
        }
        Err(kept(&format!(
            "rows of others would go with it, by a cascade ({deleted} deleted; {})",
            strays.join(", ")
        )))
    }

    async fn undo(&self) -> Result<Done, StepError> {
        self.client.batch(&format!("begin; {}", reverse::SETTINGS), QUICK).await?;
        let rows = ledger::rows(&self.client, &self.key).await?;
        let mut tables = Vec::new();
        for name in &self.params.tables {
            tables.push(capture::find(&self.client, name).await?);
        }
        capture::begin(&self.client, &tables, u64::from(u32::MAX)).await?;
        let statements = reverse::statements(&self.client, &rows).await?;
        self.client.batch(&reverse::block(&statements), PATIENT).await.map_err(|error| match error {
            PgError::Database(db) if db.sqlstate == "LB001" || db.sqlstate.starts_with("23") => {
                kept(&db.message)
            }
            other => refused(other),
        })?;
        capture::end(&self.client, &tables).await?;
        self.refuse_cascade(&rows, &tables).await?;
        ledger::mark_undone(&self.client, &self.key).await?;
        self.commit().await?;
        let mut done = Done::default();
        done.facts.insert("rows as before again".into(), rows.len().to_string());
        Ok(done)
    }
}

fn kept(why: &str) -> StepError {
    StepError::permanent(codes::LB1824, format!("the change cannot be taken back: {why}"))
        .help("its rows before and after stand in lifeboat.changed_rows; decide by hand")
}

/// What the server refuses within the transaction changes nothing.
pub(super) fn refused(error: PgError) -> StepError {
    match error {
        PgError::Database(db) if db.sqlstate == "55P03" => {
            StepError::transient(codes::LB1815, format!("a table could not be locked in time: {db}"))
                .help("nothing was changed; see who holds it: select * from pg_stat_activity where state like 'idle in%'")
        }
        other => {
            let error = other.into_step();
            let help = error.help.clone().unwrap_or_else(|| "nothing was changed".into());
            error.help(help)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_statements_that_stay_within_the_transaction_are_allowed() {
        for sql in
            ["UPDATE x set y = 1", "-- why\n/* and */ with a as (select 1) select 1", "  delete from x"]
        {
            assert_eq!(problem(sql), None, "{sql}");
        }
        for sql in [
            "commit",
            "/* */ rollback",
            "drop table x",
            "",
            "do $$ begin end $$",
            "call x()",
            "-- update",
            "select SetVal('s', 1)",
        ] {
            assert!(problem(sql).is_some(), "{sql}");
        }
    }
}
