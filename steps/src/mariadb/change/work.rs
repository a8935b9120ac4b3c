//! One attempt at a change, or at taking it back.

use std::time::Duration;

use lifeboat_engine::model::event::Done;
use lifeboat_engine::model::evidence::{Check, Progress, Unit};
use lifeboat_engine::step::{StepContext, StepError};
use mysql_async::Params as Values;
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::connect::{Client, Login, PATIENT, QUICK, number};
use super::super::{codes, rows as read};
use super::capture::{self, Pair, Row};
use super::kind::{FAMILY, refused, uncertain};
use super::reverse::{self, Stopped};
use super::tables::{self, Watched};
use super::{ledger, reach};
use crate::change::{Difference, Params};
use crate::sql::MOST_ROWS;

const SESSION: &str = "set session transaction isolation level repeatable read";

/// What only this kind is given.
#[derive(Deserialize)]
struct Own {
    server: String,
    max_table_rows: u64,
}

pub(super) struct Work<'a> {
    ctx: &'a StepContext,
    pub(super) params: Params,
    max_table_rows: u64,
    /// Makes the change.
    client: Client,
    /// Sees the tables as they were before.
    before: Client,
    key: String,
    /// How many rows the tables had when they were locked.
    locked: u64,
}

impl<'a> Work<'a> {
    pub(super) async fn new(ctx: &'a StepContext) -> Result<Self, StepError> {
        let (params, own): (Params, Own) = (ctx.params()?, ctx.params()?);
        let login = Login::of(ctx, &own.server)?;
        let login =
            if params.database.is_some() { login.database(params.database.as_deref()) } else { login };
        let key = params.idempotency_key.clone().unwrap_or_else(|| ctx.info.idempotency_key());
        let (client, before) = (login.connect().await?, login.connect().await?);
        Ok(Self { ctx, params, max_table_rows: own.max_table_rows, client, before, key, locked: 0 })
    }

    /// Returns what the change of this key has led to, if it was made.
    pub(super) async fn made_before(&mut self) -> Result<Option<Done>, StepError> {
        let made = ledger::find(&mut self.before, &self.key).await?;
        made.map(|made| FAMILY.made_before(self.ctx, &self.key, made)).transpose()
    }

    /// Says whether this run has made the change, and nobody has taken it back.
    pub(super) async fn is_ours(&mut self) -> Result<bool, StepError> {
        let made = ledger::find(&mut self.before, &self.key).await?;
        Ok(made.is_some_and(|made| made.is_ours(self.ctx)))
    }

    /// Takes back what has failed. A connection that is lost takes its transaction with it.
    pub(super) async fn taken_back(&mut self, result: Result<Done, StepError>) -> Result<Done, StepError> {
        if result.is_err() {
            self.client.run("rollback", QUICK).await.ok();
        }
        result
    }

    pub(super) async fn in_transaction(&mut self) -> Result<Done, StepError> {
        let tables = self.lock().await?;
        let sqls: Vec<&str> = self.params.statements.iter().map(|one| one.sql.as_str()).collect();
        reach::refuse_lasting(&mut self.before, &sqls, &tables).await?;
        // One that was cut off at its commit may have got through while this one waited.
        if !self.params.dry_run
            && let Some(done) = self.made_before().await?
        {
            self.client.run("rollback", QUICK).await?;
            return Ok(done);
        }
        self.snapshot().await?;
        let before = self.invariant_rows().await?;
        let count = self.params.statements.len();
        for index in 0..count {
            report(self.ctx, "running statements", index, count);
            let statement = self.params.statements[index].clone();
            self.execute(&statement.sql, &statement.params).await?;
        }
        let rows = self.difference(&tables).await?;
        self.refuse_strays(rows.len(), &tables).await?;
        let checks = self.invariants(&before).await?;
        self.finish(&rows, &tables, checks).await
    }

    /// Begins a transaction in which nobody else can write to the tables.
    async fn lock(&mut self) -> Result<Vec<Watched>, StepError> {
        let seconds = self.params.lock_timeout.0.as_secs().max(1);
        let settings = format!(
            "set innodb_lock_wait_timeout = {seconds}, lock_wait_timeout = {seconds}, foreign_key_checks = 1, \
             unique_checks = 1, max_statement_time = {}",
            self.params.statement_timeout.0.as_secs_f64()
        );
        for sql in [settings.as_str(), SESSION, "start transaction"] {
            self.client.run(sql, QUICK).await.map_err(refused)?;
        }
        let mut all: Vec<Watched> = Vec::new();
        let names = self.params.tables.clone();
        for (index, name) in names.iter().enumerate() {
            report(self.ctx, "locking tables", index, names.len());
            let table = tables::find(&mut self.before, name).await?;
            self.refuse_large(&table).await?;
            let sql = format!("select count(*) from {} force index (primary) for update", table.sql());
            let limit = self.limit();
            let counted = self.client.rows(&sql, limit).await.map_err(refused)?;
            // Nobody can alter it any more.
            let table = tables::find(&mut self.before, name).await?;
            if !all.contains(&table) {
                self.locked += counted.first().map_or(0, |row| number(row, 0));
                all.push(table);
            }
        }
        Ok(all)
    }

    async fn refuse_large(&mut self, table: &Watched) -> Result<(), StepError> {
        let most = self.max_table_rows;
        // One more than allowed is enough to know.
        let sql = format!(
            "select count(*) from (select 1 from {} limit {}) q",
            table.sql(),
            most.saturating_add(1)
        );
        let rows = self.before.rows(&sql, PATIENT).await?;
        if rows.first().is_none_or(|row| number(row, 0) <= most) {
            return Ok(());
        }
        let message =
            format!("`{}` has more than {most} rows, all of which would be locked and read", table.shown());
        Err(StepError::permanent(codes::LB2065, message)
            .help("nothing was changed; raise `max_table_rows` if writes to it can wait that long"))
    }

    async fn snapshot(&mut self) -> Result<(), StepError> {
        self.before.run(SESSION, QUICK).await?;
        self.before.run("start transaction with consistent snapshot, read only", QUICK).await?;
        Ok(())
    }

    /// A little more than the server's own limit, so that its clearer error comes first.
    fn limit(&self) -> Duration {
        self.params.statement_timeout.0 + Duration::from_secs(5)
    }

    async fn execute(&mut self, sql: &str, params: &[Value]) -> Result<Vec<mysql_async::Row>, StepError> {
        let limit = self.limit();
        let values = match params {
            [] => Values::Empty,
            values => Values::Positional(values.iter().map(read::bound).collect()),
        };
        self.client.exec(sql.trim().trim_end_matches(';'), values, limit).await.map_err(refused)
    }

    async fn difference(&mut self, tables: &[Watched]) -> Result<Vec<Row>, StepError> {
        let most = usize::try_from(self.params.most()).unwrap_or(usize::MAX);
        let mut pair = Pair { now: &mut self.client, before: &mut self.before };
        let compared = |rows| report_rows(self.ctx, "comparing rows", rows, self.locked);
        let rows = pair.difference(tables, most, compared).await?;
        rows.ok_or_else(|| FAMILY.too_many(&self.params))
    }

    async fn refuse_strays(&mut self, rows: usize, tables: &[Watched]) -> Result<(), StepError> {
        let modified = reach::rows_modified(&mut self.client).await?;
        if modified == rows as u64 {
            return Ok(());
        }
        let suspects = reach::suspects(&mut self.client, tables).await?;
        let may =
            if suspects.is_empty() { String::new() } else { format!("; look at {}", suspects.join(", ")) };
        let message = format!(
            "the statements made {modified} changes of rows, but {rows} rows of the tables that are named differ{may}"
        );
        Err(StepError::permanent(codes::LB2061, message).help(
            "nothing was changed; name what triggers and cascades change under `tables` if it is right, and change each row once only",
        ))
    }

    /// Runs the queries of all invariants; each row becomes a map.
    async fn invariant_rows(&mut self) -> Result<Vec<Vec<Value>>, StepError> {
        let mut all = Vec::new();
        for invariant in self.params.invariants.clone() {
            if let Some(why) = read::refusal(&invariant.sql) {
                let message = format!("the invariant `{}` does not read: {why}", invariant.name);
                return Err(StepError::permanent(codes::LB2068, message).help("nothing was changed"));
            }
            let rows = self.execute(&invariant.sql, &invariant.params).await?;
            if rows.len() > MOST_ROWS {
                let message = format!("the invariant `{}` gives more than {MOST_ROWS} rows", invariant.name);
                return Err(
                    StepError::permanent(codes::LB2068, message).help("nothing was changed; let it count")
                );
            }
            all.push(rows.iter().map(read::to_json).collect());
        }
        Ok(all)
    }

    async fn invariants(&mut self, before: &[Vec<Value>]) -> Result<Vec<Check>, StepError> {
        let after = self.invariant_rows().await?;
        FAMILY.held(&self.params, before, after)
    }

    async fn finish(
        &mut self,
        rows: &[Row],
        tables: &[Watched],
        checks: Vec<Check>,
    ) -> Result<Done, StepError> {
        let difference = Difference {
            rows: rows.len(),
            tables: capture::summary(rows, tables),
            digest: capture::digest(rows, tables, &self.params.ignore),
            shown: rows.iter().map(|row| row.shown(tables)),
        };
        let mut result = FAMILY.results(&self.params, difference, checks)?;
        let way_back = self.try_way_back(rows, tables).await?;
        if let Err(why) = &way_back {
            result.warnings.push(format!("the change cannot be taken back by a script: {why}"));
        }
        if self.params.dry_run {
            self.client.run("rollback", QUICK).await?;
            return Ok(result);
        }
        if let Ok(statements) = way_back {
            let script = reverse::script(&self.key, &statements);
            result.outputs.insert("reverse".into(), json!(FAMILY.write_reverse(self.ctx, &script)?));
        }
        ledger::make(&mut self.before).await?;
        let by = self.ctx.info.idempotency_key();
        let kept = serde_json::to_value(&result).expect("results are JSON");
        let written = |done| report_rows(self.ctx, "writing down what was changed", done, rows.len() as u64);
        ledger::keep(&mut self.client, (&self.key, &by), &kept, (rows, tables), written).await?;
        report(self.ctx, "committing", rows.len(), rows.len());
        self.client.run("commit", PATIENT).await.map_err(uncertain)?;
        Ok(result)
    }

    /// Takes the change back and makes it again, to know that the way back brings back every byte.
    async fn try_way_back(
        &mut self,
        rows: &[Row],
        tables: &[Watched],
    ) -> Result<Result<Vec<String>, String>, StepError> {
        self.client.run("savepoint lifeboat", QUICK).await.map_err(refused)?;
        let modified = reach::rows_modified(&mut self.client).await?;
        let back = |done| report_rows(self.ctx, "trying the way back", done, rows.len() as u64);
        let ran = match reverse::run(&mut self.client, reverse::statements(rows, tables), back).await {
            Ok(ran) => ran,
            Err(Stopped::Changed(why)) => return self.back_to_savepoint(Err(why)).await,
            Err(Stopped::Failed(error)) if error.number().is_none_or(|code| code == 1205 || code == 1213) => {
                return Err(refused(error));
            }
            Err(Stopped::Failed(error)) => return self.back_to_savepoint(Err(error.to_string())).await,
        };
        let more = reach::rows_modified(&mut self.client).await?.saturating_sub(modified);
        let mut pair = Pair { now: &mut self.client, before: &mut self.before };
        let compared = |rows| report_rows(self.ctx, "comparing rows with before", rows, self.locked);
        let left = pair.difference(tables, rows.len(), compared).await?;
        let result = match left {
            _ if more != rows.len() as u64 => Err("triggers or cascades would change more".to_owned()),
            Some(left) if left.is_empty() => Ok(ran),
            _ => Err("not every byte would come back, perhaps because of a trigger".to_owned()),
        };
        self.back_to_savepoint(result).await
    }

    async fn back_to_savepoint<T>(&mut self, result: T) -> Result<T, StepError> {
        self.client.run("rollback to savepoint lifeboat", PATIENT).await.map_err(refused)?;
        Ok(result)
    }

    pub(super) async fn undo(&mut self) -> Result<Done, StepError> {
        let tables = self.lock().await?;
        if !self.is_ours().await? {
            self.client.run("rollback", QUICK).await?;
            return Ok(Done::default());
        }
        let rows = ledger::rows(&mut self.before, &self.key, &tables).await?;
        let statements = reverse::statements(&rows, &tables);
        let back = |done| report_rows(self.ctx, "taking rows back", done, rows.len() as u64);
        reverse::run(&mut self.client, statements, back).await.map_err(|stopped| match stopped {
            Stopped::Changed(why) => FAMILY.kept(&why),
            Stopped::Failed(error) => refused(error),
        })?;
        // Deleting a row that the change has inserted must not take rows of others with it.
        if reach::rows_modified(&mut self.client).await? != rows.len() as u64 {
            return Err(FAMILY.kept("other rows would change with these, by a trigger or a cascade"));
        }
        ledger::mark_undone(&mut self.client, &self.key).await?;
        report(self.ctx, "committing", rows.len(), rows.len());
        self.client.run("commit", PATIENT).await.map_err(uncertain)?;
        let mut done = Done::default();
        done.facts.insert("rows as before again".into(), rows.len().to_string());
        Ok(done)
    }
}

fn report(ctx: &StepContext, note: &str, done: usize, total: usize) {
    report_rows(ctx, note, done as u64, total as u64);
}

fn report_rows(ctx: &StepContext, note: &str, done: u64, total: u64) {
    ctx.progress(Progress { done, total: Some(total), unit: Unit::Items, note: note.to_owned() });
}
