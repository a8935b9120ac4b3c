//! `postgres.change`

use std::time::Duration;

use async_trait::async_trait;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::model::evidence::Check;
use lifeboat_engine::model::outcome::FailureKind;
use lifeboat_engine::resource::ResourceKind;
use lifeboat_engine::step::{KindSpec, ParamProblem, Preview, Probe, StepContext, StepError, StepKind};
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
use crate::change::{Codes, Difference, Family, Params};

/// Changes data.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Change;

static FAMILY: Family = Family {
    kind: "postgres.change",
    summary: "Changes rows in one transaction, watched row by row, with a way back.",
    doc: DOC,
    server: ("cluster", ResourceKind::Postgres),
    values: "Values for `$1`, `$2`, …",
    tables: "The tables that may be changed; each with a primary key.",
    more: Vec::new,
    allowed: ["insert", "update", "delete", "merge", "with", "select"],
    lasting: |_| None,
    codes: Codes {
        statement: codes::LB1273,
        too_many: codes::LB1820,
        invariant: codes::LB1822,
        not_approved: codes::LB1823,
        no_way_back: codes::LB1824,
        taken_back: codes::LB1826,
        unwritten: codes::LB1827,
    },
};

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
        FAMILY.spec()
    }

    fn check(&self, with: &Map<String, Value>) -> Vec<ParamProblem> {
        FAMILY.check(with)
    }

    async fn preview(&self, ctx: &StepContext) -> Result<Preview, StepError> {
        let params: Params = ctx.params()?;
        Ok(FAMILY.preview(&params))
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let work = Work::new(ctx).await?;
        FAMILY.refuse(&work.params.statements)?;
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
        if !made.is_some_and(|made| made.is_ours(ctx)) {
            return Ok(Done::default());
        }
        let result = work.undo().await;
        if result.is_err() {
            work.client.batch("rollback", QUICK).await.ok();
        }
        result
    }
}

/// What only this kind is given.
#[derive(Deserialize)]
struct Own {
    cluster: String,
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
        let (params, own): (Params, Own) = (ctx.params()?, ctx.params()?);
        let login = Login::of(ctx, local::cluster(ctx, &own.cluster)?)?;
        let login = params.database.as_ref().map_or(login.clone(), |database| login.database(database));
        let key = params.idempotency_key.clone().unwrap_or_else(|| ctx.info.idempotency_key());
        Ok(Self { client: login.connect().await?, ctx, params, key })
    }

    async fn made_before(&self) -> Result<Option<Done>, StepError> {
        let made = ledger::find(&self.client, &self.key).await?;
        made.map(|made| FAMILY.made_before(self.ctx, &self.key, made)).transpose()
    }

    async fn in_transaction(&self) -> Result<Done, StepError> {
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
        capture::begin(&self.client, &tables, self.params.most()).await?;
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
            PgError::Database(db) if db.sqlstate == capture::TOO_MANY => FAMILY.too_many(&self.params),
            other => refused(other),
        })
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
        FAMILY.held(&self.params, before, after)
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
        let difference = Difference {
            rows: rows.len(),
            tables: capture::summary(rows),
            digest: capture::digest(rows),
            shown: rows.iter().map(|row| row.shown(tables)),
        };
        let mut done = FAMILY.results(&self.params, difference, checks)?;
        if self.params.dry_run {
            self.client.batch("rollback", QUICK).await?;
            return Ok(done);
        }
        let script = reverse::script(&self.key, &reverse::statements(&self.client, rows).await?);
        done.outputs.insert("reverse".into(), json!(FAMILY.write_reverse(self.ctx, &script)?));
        let by = self.ctx.info.idempotency_key();
        let result = serde_json::to_value(&done).expect("results are JSON");
        ledger::keep(&self.client, (&self.key, &by), &result).await?;
        self.commit().await?;
        Ok(done)
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
        Err(FAMILY.kept(&format!(
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
                FAMILY.kept(&db.message)
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
            assert_eq!(FAMILY.problem(sql), None, "{sql}");
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
            assert!(FAMILY.problem(sql).is_some(), "{sql}");
        }
    }
}
