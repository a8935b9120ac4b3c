//! The job itself, and a look at what it would do.

use std::collections::HashMap;
use std::path::Path;

use serde_json::{Value, json};
use tokio_postgres::{Client, Transaction};

use super::judge::{Fate, Known, judge};
use super::log::Log;
use super::rows::{Captured, Line, Row};
use crate::error::{AnyError, database_message};
use crate::files;

/// How many lines are entered in one transaction.
const BATCH: usize = 50;
/// Who enters what is imported.
const USER: &str = "desk";

/// What becomes of lines that cannot be entered.
#[derive(Clone, Copy, Debug)]
pub(super) enum Rejects<'a> {
    /// The job ends at the first one, as the scheduler has it.
    End,
    /// They are put into a file, and the job goes on.
    Aside(&'a Path),
}

/// One reading of a file.
pub(super) struct Job<'a> {
    pub(super) client: Client,
    pub(super) captured: &'a Captured,
    pub(super) log: &'a Log,
    pub(super) rejects: Rejects<'a>,
}

/// How many lines there were, and what became of them.
#[derive(Clone, Debug, Default)]
pub(super) struct Counts {
    run: Option<i64>,
    /// Entered, or to be entered.
    inserted: i64,
    already_there: i64,
    rejected: i64,
    /// Of the rejected lines, those that were not put aside before.
    new_rejects: i64,
    inserted_cents: i64,
    error: Option<String>,
}

impl Counts {
    pub(super) fn is_complete(&self) -> bool {
        self.error.is_none()
    }

    /// How many rows were neither entered nor put aside before.
    fn left(&self) -> i64 {
        self.inserted + self.new_rejects
    }

    /// Says it as a line of JSON.
    pub(super) fn told(&self, captured: &Captured) -> Value {
        json!({
            "run": self.run, "file": captured.name, "sha256": captured.sha256, "rows": captured.lines.len(),
            "inserted": self.inserted, "already_there": self.already_there, "rejected": self.rejected,
            "new_rejects": self.new_rejects, "left": self.left(), "inserted_cents": self.inserted_cents, "error": self.error,
        })
    }

    fn add(&mut self, other: &Self) {
        self.inserted += other.inserted;
        self.already_there += other.already_there;
        self.rejected += other.rejected;
        self.new_rejects += other.new_rejects;
        self.inserted_cents += other.inserted_cents;
    }
}

/// Says what a job that puts bad lines aside would do, in a transaction that only reads.
pub(super) async fn foresee(client: &mut Client, captured: &Captured) -> Result<Counts, AnyError> {
    let told = |error: tokio_postgres::Error| database_message(&error);
    let transaction = client.build_transaction().read_only(true).start().await.map_err(told)?;
    let mut known = known(&transaction, &captured.lines).await?;
    let aside = "SELECT line FROM import_rejects WHERE sha256 = $1";
    let aside = transaction.query(aside, &[&captured.sha256]).await.map_err(told)?;
    let aside: Vec<i64> = aside.iter().map(|row| row.get(0)).collect();
    let mut counts = Counts::default();
    for line in &captured.lines {
        match judge(&line.row, &known) {
            Fate::Enter(row) => {
                counts.inserted += 1;
                counts.inserted_cents += row.amount_cents;
                known.insert(row.reference.clone(), Known::of(row));
            }
            Fate::There => counts.already_there += 1,
            Fate::Reject(_) => {
                counts.rejected += 1;
                counts.new_rejects += i64::from(!aside.contains(&line.number));
            }
        }
    }
    Ok(counts)
}

impl Job<'_> {
    /// Reads the whole file, or up to the first line that ends the job.
    pub(super) async fn run(mut self) -> Result<Counts, AnyError> {
        self.lock().await?;
        let run = self.begin().await?;
        let name = &self.captured.name;
        self.log.info(&format!("started run={run} file={name} rows={}", self.captured.lines.len()))?;
        let mut counts = Counts { run: Some(run), ..Counts::default() };
        for batch in self.captured.lines.chunks(BATCH) {
            match self.enter(run, batch).await? {
                Ok(done) => counts.add(&done),
                Err(why) => {
                    counts.error = Some(why);
                    break;
                }
            }
        }
        if counts.is_complete() {
            self.put_aside(&counts).await?;
        }
        self.end(run, &counts).await?;
        Ok(counts)
    }

    /// Two jobs at once would both find that a payment is not there.
    async fn lock(&self) -> Result<(), AnyError> {
        let lock = "SELECT pg_try_advisory_lock(hashtext('member-app import'))";
        let row = self.client.query_one(lock, &[]).await.map_err(|error| database_message(&error))?;
        if row.get(0) { Ok(()) } else { Err("another import is at work; wait for its end".into()) }
    }

    async fn begin(&self) -> Result<i64, AnyError> {
        let insert = "INSERT INTO import_runs (file, sha256, rows_read) VALUES ($1, $2, $3) RETURNING id";
        let rows = i64::try_from(self.captured.lines.len())?;
        let row = self.client.query_one(insert, &[&self.captured.name, &self.captured.sha256, &rows]).await;
        Ok(row.map_err(|error| database_message(&error))?.get(0))
    }

    /// Enters some lines, all or none. The inner error says which line ends the job.
    async fn enter(&mut self, run: i64, lines: &[Line]) -> Result<Result<Counts, String>, AnyError> {
        let transaction = self.client.transaction().await.map_err(|error| database_message(&error))?;
        let mut known = known(&transaction, lines).await?;
        let mut counts = Counts::default();
        for line in lines {
            match judge(&line.row, &known) {
                Fate::Enter(row) => {
                    insert(&transaction, (run, line.number), row)
                        .await
                        .map_err(|error| database_message(&error))?;
                    counts.inserted += 1;
                    counts.inserted_cents += row.amount_cents;
                    known.insert(row.reference.clone(), Known::of(row));
                }
                Fate::There => counts.already_there += 1,
                Fate::Reject(why) if matches!(self.rejects, Rejects::End) => {
                    return Ok(Err(format!("line {}: {why}", line.number)));
                }
                Fate::Reject(why) => {
                    counts.rejected += 1;
                    counts.new_rejects +=
                        reject(&transaction, (run, &self.captured.sha256), (line, &why)).await?;
                }
            }
        }
        transaction.commit().await.map_err(|error| database_message(&error))?;
        Ok(Ok(counts))
    }

    /// Writes all lines of this file that were ever put aside, so that the file is the same however often it is written.
    async fn put_aside(&self, counts: &Counts) -> Result<(), AnyError> {
        let Rejects::Aside(path) = self.rejects else { return Ok(()) };
        let rows = "SELECT line, reason, content FROM import_rejects WHERE sha256 = $1 ORDER BY line";
        let rows = self.client.query(rows, &[&self.captured.sha256]).await;
        let rows = rows.map_err(|error| database_message(&error))?;
        let mut writer = csv::Writer::from_writer(Vec::new());
        writer.write_record(["line", "reason", "row"])?;
        for row in &rows {
            let line = row.get::<_, i64>(0).to_string();
            writer.write_record([line.as_str(), row.get(1), row.get(2)])?;
        }
        files::replace(path, &writer.into_inner().map_err(|error| error.to_string())?)?;
        if counts.new_rejects > 0 {
            let name = &self.captured.name;
            self.log.warn(&format!(
                "quarantined file={name} rows={} into={}",
                counts.new_rejects,
                path.display()
            ))?;
        }
        Ok(())
    }

    async fn end(&self, run: i64, counts: &Counts) -> Result<(), AnyError> {
        let state = if counts.is_complete() { "succeeded" } else { "failed" };
        let update = "
            UPDATE import_runs SET state = $2, inserted = $3, already_there = $4, rejected = $5, error = $6,
                finished_at = clock_timestamp() WHERE id = $1";
        let Counts { inserted, already_there, rejected, error, .. } = counts;
        let params: [&(dyn tokio_postgres::types::ToSql + Sync); 6] =
            [&run, &state, inserted, already_there, rejected, error];
        self.client.execute(update, &params).await.map_err(|error| database_message(&error))?;
        let line = format!(
            "run={run} file={} rows={} inserted={inserted} already_there={already_there} rejected={rejected}",
            self.captured.name,
            self.captured.lines.len()
        );
        match error {
            None => self.log.info(&format!("finished {line}"))?,
            Some(error) => self.log.error(&format!("failed {line} error={}", json!(error)))?,
        }
        Ok(())
    }
}

/// Returns those payments that lines name and that are there.
async fn known(transaction: &Transaction<'_>, lines: &[Line]) -> Result<HashMap<String, Known>, AnyError> {
    let references: Vec<_> =
        lines.iter().filter_map(|line| Some(&line.row.as_ref().ok()?.reference)).collect();
    let rows = "
        SELECT p.reference, lower(m.email), p.amount_cents, p.method
        FROM payments p JOIN members m ON m.id = p.member_id WHERE p.reference = ANY ($1)";
    let rows = transaction.query(rows, &[&references]).await.map_err(|error| database_message(&error))?;
    let known = |row: &tokio_postgres::Row| {
        (row.get(0), Known { email: row.get(1), amount_cents: row.get(2), method: row.get(3) })
    };
    Ok(rows.iter().map(known).collect())
}

/// Enters a payment, and its member if nobody has that address.
async fn insert(
    transaction: &Transaction<'_>,
    (run, line): (i64, i64),
    row: &Row,
) -> Result<(), tokio_postgres::Error> {
    let member = "INSERT INTO members (name, email) VALUES ($1, $2) ON CONFLICT (email) DO NOTHING";
    transaction.execute(member, &[&row.name, &row.email]).await?;
    let payment = "
        INSERT INTO payments (member_id, amount_cents, method, reference, entered_by)
        SELECT m.id, $2, $3, $4, u.id FROM members m, users u WHERE m.email = $1 AND u.name = $5";
    transaction
        .execute(payment, &[&row.email, &row.amount_cents, &row.method, &row.reference, &USER])
        .await?;
    let audit = "
        INSERT INTO payment_audit (payment, action, user_id, amount_cents, reason)
        SELECT $1, 'imported', u.id, $2, $3 FROM users u WHERE u.name = $4";
    let reason = format!("import run {run}, line {line}");
    transaction.execute(audit, &[&row.reference, &row.amount_cents, &reason, &USER]).await?;
    Ok(())
}

/// Notes a line that is put aside; 0 if it is noted already.
async fn reject(
    transaction: &Transaction<'_>,
    (run, sha256): (i64, &str),
    (line, why): (&Line, &str),
) -> Result<i64, AnyError> {
    let insert = "
        INSERT INTO import_rejects (run_id, sha256, line, reason, content) VALUES ($1, $2, $3, $4, $5)
        ON CONFLICT (sha256, line) DO NOTHING";
    let params: [&(dyn tokio_postgres::types::ToSql + Sync); 5] =
        [&run, &sha256, &line.number, &why, &line.content];
    let count = transaction.execute(insert, &params).await.map_err(|error| database_message(&error))?;
    Ok(i64::try_from(count)?)
}
