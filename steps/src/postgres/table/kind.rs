//! `postgres.recover_table`

use async_trait::async_trait;
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

use super::super::connect::{Client, Login};
use super::super::database::{PATIENT, stamped};
use super::super::server::QUICK;
use super::super::{codes, local};
use super::merge::{self, Counts, Merge, Mode, Orphans, STAGE, Triggers};
use super::shape::{self, Fit, Name, Shape, unfit};
use super::undo::{Image, is_undone};
use super::{new_table, orphans, proof};
use crate::store::Meter;

/// Brings rows of one table back.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct RecoverTable;

#[derive(Clone, Deserialize)]
struct Params {
    from: String,
    from_database: Option<String>,
    cluster: String,
    database: Option<String>,
    table: String,
    mode: Mode,
    new_table: Option<String>,
    key: Option<Vec<String>>,
    only: Option<String>,
    max_rows: i64,
    dry_run: bool,
    orphans: Orphans,
    triggers: Triggers,
    lock_timeout: Span,
}

const DOC: &str = "\
Brings rows of one table from a recovered copy, such as what `postgres.clone` made or a database that \
`postgres.restore_dump` filled, into the live database. The live table is never dropped, renamed or emptied: foreign keys, \
views and grants follow a table, not its name.

`mode` says what becomes of rows that both have: `insert_missing` leaves the live ones alone, `replace` gives those that \
differ the recovered values, `new_table` copies everything into a table `new_table` of its own, for people to look at. Rows \
are known by the primary key, or by `key`, which needs a unique index. `only` is a condition that chooses rows, in \
columns of the table.

All of it is one transaction: recovered rows are streamed into a temporary table and compared by digest with the source; \
the live table is locked against writes, not reads; both are counted against each other; more than `max_rows` rows to be \
written fail; what will be replaced and what will be written is kept in the schema `rec_RUN_STEP`; then rows are \
written, and the step commits only if they stand as recovered and no foreign key, outbound or inbound, has more orphans \
than before. Computed columns are left to the live table, identity values are kept, sequences go forward where they \
must. Triggers of the user's do not run unless `triggers: on`; those of foreign keys always do.

Recovered rows that refer to rows which are gone fail the step, or are left out with `orphans: skip`. `dry_run: true` \
does everything but moving sequences and takes it back: the same counts, nothing written. With `triggers: on` it runs \
the triggers, too, and what they do outside of the transaction, such as a call of another server, stays.

Undo gives replaced rows their earlier values and deletes inserted ones, unless somebody has changed them since or refers \
to them. The before-image stays until you drop its schema.";

#[async_trait]
impl StepKind for RecoverTable {
    fn spec(&self) -> KindSpec {
        let count = |spec: KindSpec, name: &str, summary: &str| spec.output(name, Type::Integer, summary);
        let mut spec = KindSpec::new(
            "postgres.recover_table",
            "Brings rows of a table back from a recovered copy, in one transaction.",
            Effect::Guarded,
        )
        .doc(DOC);
        spec = count(spec, "recovered", "How many rows the copy has.");
        spec = count(spec, "missing", "How many of them the live table did not have.");
        spec = count(spec, "different", "How many it had with other values.");
        spec = count(spec, "same", "How many it had as they are.");
        spec = count(spec, "only_live", "How many rows only the live table has.");
        spec = count(spec, "skipped", "How many were left out because what they refer to is gone.");
        spec = count(spec, "inserted", "How many rows were inserted; 0 for a dry run.");
        spec = count(spec, "replaced", "How many rows got other values; 0 for a dry run.");
        spec = spec
            .output(
                "before_image",
                Type::String,
                "The schema with the before-image; empty if nothing was written.",
            )
            .undoes("takes the recovered rows back out, unless they have been changed since");
        spec.params = params();
        spec
    }

    fn check(&self, with: &Map<String, Value>) -> Vec<ParamProblem> {
        let new = with.get("mode").and_then(Value::as_str).unwrap_or("insert_missing") == "new_table";
        let problem = |param: &str, message: &str| ParamProblem {
            param: param.to_owned(),
            message: message.to_owned(),
            help: None,
        };
        match (new, with.get("new_table").is_some()) {
            (true, false) => {
                vec![problem("mode", "`mode: new_table` needs `new_table`, the name of that table")]
            }
            (false, true) => vec![problem("new_table", "`new_table` is only used with `mode: new_table`")],
            _ => Vec::new(),
        }
    }

    async fn preview(&self, ctx: &StepContext) -> Result<Preview, StepError> {
        let params: Params = ctx.params()?;
        let how = match params.mode {
            Mode::InsertMissing => "insert rows that are missing".to_owned(),
            Mode::Replace => "insert rows that are missing and replace those that differ".to_owned(),
            Mode::NewTable => {
                format!("copy all rows into `{}`", params.new_table.as_deref().unwrap_or_default())
            }
        };
        let dry = if params.dry_run { ", and take it back (dry run)" } else { "" };
        let actions = vec![
            format!("lock `{}` against writes, {how}, at most {} rows{dry}", params.table, params.max_rows),
            format!("keep what was there in the schema `{}`", image(ctx)),
        ];
        Ok(Preview { actions, destroys: Vec::new() })
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let work = Work::new(ctx).await?;
        if let Some(done) = work.committed().await? {
            return Ok(done);
        }
        let result = work.in_transaction().await;
        if result.is_err() {
            // A connection that is lost takes its transaction with it.
            work.live.batch("rollback", QUICK).await.ok();
        }
        result
    }

    async fn probe(&self, ctx: &StepContext) -> Result<Probe, StepError> {
        Ok(Work::new(ctx).await?.committed().await?.map_or(Probe::NotDone, Probe::Done))
    }

    async fn undo(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let work = Work::new(ctx).await?;
        match work.note().await? {
            Some(note) if !is_undone(&note) => {}
            _ => return Ok(Done::default()),
        }
        let result = work.undo().await;
        if result.is_err() {
            work.live.batch("rollback", QUICK).await.ok();
        }
        result
    }
}

fn params() -> Vec<Field> {
    let choice = Type::choice;
    vec![
        Field::required("from", Type::reads(ResourceKind::Postgres), "The server with the recovered copy."),
        Field::optional("from_database", Type::String, "Its database; that of the resource if not given."),
        Field::required("cluster", Type::writes(ResourceKind::Postgres), "The live server."),
        Field::optional("database", Type::String, "The live database; that of the resource if not given."),
        Field::required("table", Type::String, "The table, as `schema.table`; in `public` without a schema."),
        Field::defaulted(
            "mode",
            choice(&["insert_missing", "replace", "new_table"]),
            "insert_missing",
            "What becomes of rows that both have.",
        ),
        Field::optional(
            "new_table",
            Type::String,
            "For `mode: new_table`: the table that is made, as `schema.table`.",
        ),
        Field::optional(
            "key",
            Type::list(Type::String),
            "The columns that tell rows apart; the primary key if absent.",
        ),
        Field::optional(
            "only",
            Type::Sql,
            "A condition that recovered rows must meet, in columns of the table.",
        ),
        Field::required("max_rows", Type::Integer, "More rows than this to be written fail the step."),
        Field::defaulted("dry_run", Type::Boolean, false, "Whether only to count."),
        Field::defaulted(
            "orphans",
            choice(&["refuse", "skip"]),
            "refuse",
            "What becomes of recovered rows that refer to rows which are gone.",
        ),
        Field::defaulted("triggers", choice(&["off", "on"]), "off", "Whether triggers of the user's run."),
        Field::defaulted(
            "lock_timeout",
            Type::Duration,
            "10s",
            "How long to wait for the lock on the table.",
        ),
    ]
}

/// Names the schema of the before-image: it holds the run and the step, so that nobody else has it.
fn image(ctx: &StepContext) -> String {
    let step = ctx.info.step.as_str().replace(|c: char| !c.is_ascii_alphanumeric(), "_");
    stamped(&format!("rec_{}_{step}", ctx.info.run.short()), "")
}

/// Connects, with the settings under which rows become the same text everywhere. Returns where to, too.
async fn connect(
    ctx: &StepContext,
    cluster: &str,
    database: Option<&str>,
) -> Result<(String, Client), StepError> {
    let login = Login::of(ctx, local::cluster(ctx, cluster)?)?;
    let login = database.map_or(login.clone(), |database| login.database(database));
    let client = login.connect().await?;
    client.batch(proof::SETTINGS, QUICK).await?;
    Ok((format!("{} {}", login.endpoint, login.database), client))
}

/// One attempt: the connection to the live database, and what was asked for.
struct Work<'a> {
    ctx: &'a StepContext,
    params: Params,
    table: Name,
    image: String,
    live: Client,
    /// Where the live database is, to tell it from the copy.
    place: String,
}

impl<'a> Work<'a> {
    async fn new(ctx: &'a StepContext) -> Result<Self, StepError> {
        let params: Params = ctx.params()?;
        let (place, live) = connect(ctx, &params.cluster, params.database.as_deref()).await?;
        Ok(Self { table: Name::parse(&params.table), image: image(ctx), ctx, params, live, place })
    }

    /// Connects to the recovered copy, in one snapshot of it. Undo does without: the copy may be gone by then.
    async fn source(&self) -> Result<Client, StepError> {
        let database = self.params.from_database.as_deref();
        let (place, source) = connect(self.ctx, &self.params.from, database).await?;
        if place == self.place {
            return Err(unfit(format!("the recovered copy and the live database are the same ({place})")));
        }
        let begin = "begin transaction isolation level repeatable read, read only";
        source.batch(begin, QUICK).await?;
        Ok(source)
    }

    /// Returns what an earlier attempt has left in the transaction that it committed.
    async fn note(&self) -> Result<Option<Value>, StepError> {
        let sql = match self.params.mode {
            Mode::NewTable => {
                "select obj_description(c.oid, 'pg_class') from pg_class c join pg_namespace n on n.oid = c.relnamespace
                 where n.nspname = $1 and c.relname = $2"
            }
            _ => "select obj_description(oid, 'pg_namespace') from pg_namespace where nspname = $1 and $2 = ''",
        };
        let name = self.params.new_table.as_deref().map(Name::parse);
        let (first, second) = match &name {
            Some(name) => (name.schema.as_str(), name.table.as_str()),
            None => (self.image.as_str(), ""),
        };
        let rows = self.live.query(sql, &[&first, &second], QUICK).await?;
        let note: Option<String> = rows.first().and_then(|row| row.get(0));
        let note: Option<Value> = note.and_then(|note| serde_json::from_str(&note).ok());
        let key = self.ctx.info.idempotency_key();
        Ok(note.filter(|note| is_undone(note) || note["by"].as_str() == Some(&key)))
    }

    async fn committed(&self) -> Result<Option<Done>, StepError> {
        let note = self.note().await?.filter(|note| !is_undone(note));
        Ok(note.and_then(|note| serde_json::from_value(note["done"].clone()).ok()))
    }

    async fn in_transaction(&self) -> Result<Done, StepError> {
        let source = self.source().await?;
        self.begin().await?;
        let shape = shape::find(&source, &self.table).await?;
        let shape =
            shape.ok_or_else(|| unfit(format!("the recovered copy has no table `{}`", self.table)))?;
        let done = match self.params.mode {
            Mode::NewTable => self.copy_into_new(&source, &shape).await?,
            _ => self.merge(&source, &shape).await?,
        };
        if self.params.dry_run {
            self.live.batch("rollback", QUICK).await?;
            return Ok(done);
        }
        self.live.batch("commit", PATIENT).await.map_err(|error| {
            let refused = merge::refused(error);
            // A server that answers has not committed; silence may mean either.
            if refused.kind == FailureKind::Transient {
                return StepError { kind: FailureKind::Uncertain, ..refused };
            }
            refused
        })?;
        Ok(done)
    }

    async fn merge(&self, source: &Client, shape: &Shape) -> Result<Done, StepError> {
        let live = shape::find(&self.live, &self.table).await?.ok_or_else(|| {
            unfit(format!("the live database has no table `{}`", self.table))
                .help("copy the rows into a new table with `mode: new_table`, or restore the table's definition first")
        })?;
        let fit = Fit::of(shape, &live, self.params.key.as_deref())?;
        let merge = Merge {
            live: &self.live,
            table: &self.table,
            oid: live.oid,
            fit: &fit,
            mode: self.params.mode,
            only: self.params.only.as_deref(),
            image: &self.image,
        };
        let fetched = self.fetch(source, &merge).await?;
        merge.lock().await?;
        let keys = orphans::of(&self.live, live.oid).await?;
        let before = orphans::count_all(&self.live, &keys).await?;
        let (skipped, lost) = merge.orphans(&keys, self.params.orphans).await?;
        let counts = Counts { skipped, ..merge.compare().await? };
        self.refuse(&counts, &lost)?;
        merge.keep_image().await?;
        merge.write(self.params.triggers).await?;
        let mut checks = vec![fetched, merge.prove().await?];
        checks.extend(merge::compare_orphans(&self.live, &keys, &before).await?);
        let mut done = self.done(&counts, checks)?;
        done.warnings.extend(fit.warnings.iter().cloned());
        done.warnings
            .extend(lost.into_iter().map(|lost| format!("left out: {lost}")).filter(|_| skipped > 0));
        merge.sign(&self.signed(&done)).await?;
        let sequences = merge.late_sequences().await?;
        if !self.params.dry_run {
            merge.advance(&sequences).await?;
        }
        Ok(done)
    }

    /// Streams the recovered rows into the live server's temporary table.
    async fn fetch(&self, source: &Client, merge: &Merge<'_>) -> Result<Check, StepError> {
        merge.make_stage().await?;
        let (columns, only) = (merge.fit.list(""), self.params.only.as_deref().unwrap_or("true"));
        let table = self.table.sql();
        let out = format!("copy (select {columns} from {table} where ({only}\n)) to stdout");
        let meter = Meter::bytes(self.ctx, None, "fetching rows");
        let into = format!("copy {STAGE} ({columns}) from stdin");
        source.copy_to(&out, (&self.live, &into), &meter).await?;
        merge.index_stage().await?;
        let rows = format!("select row({columns})::text from {table} where ({only}\n)");
        let expected = proof::digest(source, &rows).await?;
        let found = proof::digest(&self.live, &format!("select row({columns})::text from {STAGE}")).await?;
        Ok(proof::check("the rows arrived as the copy has them", &expected, &found))
    }

    fn refuse(&self, counts: &Counts, lost: &[String]) -> Result<(), StepError> {
        if self.params.orphans == Orphans::Refuse && !lost.is_empty() {
            return Err(StepError::permanent(
                codes::LB1811,
                format!("recovered rows of {} refer to rows that are gone: {}", self.table, lost.join("; ")),
            )
            .help("recover those tables first, or give `orphans: skip`; nothing was written"));
        }
        let replaced = if self.params.mode == Mode::Replace { counts.different } else { 0 };
        self.refuse_many(counts.missing + replaced)
    }

    fn refuse_many(&self, rows: i64) -> Result<(), StepError> {
        if rows <= self.params.max_rows {
            return Ok(());
        }
        let message = format!(
            "{rows} rows of {} would be written, more than `max_rows` ({})",
            self.table, self.params.max_rows
        );
        Err(StepError::permanent(codes::LB1812, message)
            .help("nothing was written; look why there are so many with `dry_run: true`, then choose with `only` or raise `max_rows`"))
    }

    async fn copy_into_new(&self, source: &Client, shape: &Shape) -> Result<Done, StepError> {
        let name = Name::parse(self.params.new_table.as_deref().unwrap_or_default());
        new_table::make(&self.live, &name, shape).await?;
        let meter = Meter::bytes(self.ctx, None, "fetching rows");
        let from = (source, &self.table, self.params.only.as_deref());
        let (rows, check) = new_table::fill(from, (&self.live, &name), (shape, &meter)).await?;
        self.refuse_many(rows)?;
        let counts = Counts { recovered: rows, missing: rows, ..Counts::default() };
        let done = self.done(&counts, vec![check])?;
        new_table::sign(&self.live, &name, &self.signed(&done)).await?;
        Ok(done)
    }

    fn done(&self, counts: &Counts, checks: Vec<Check>) -> Result<Done, StepError> {
        if let Some(failed) = checks.iter().find(|check| !check.passed) {
            let message = format!("{}: expected {}, found {}", failed.name, failed.expected, failed.actual);
            return Err(StepError::permanent(codes::LB1813, message)
                .help("nothing was written; triggers or rules of the live table may change what is written")
                .checks(checks));
        }
        let written = !self.params.dry_run;
        let mut outputs = counts.outputs(self.params.mode, written);
        let image = if written && self.params.mode != Mode::NewTable { self.image.as_str() } else { "" };
        outputs["before_image"] = json!(image);
        let mut done = local::done(outputs);
        done.checks = checks;
        if !image.is_empty() {
            done.facts.insert("before-image".into(), format!("{image}.before and {image}.written"));
        }
        Ok(done)
    }

    fn signed(&self, done: &Done) -> Value {
        json!({ "by": self.ctx.info.idempotency_key(), "done": done })
    }

    /// Whatever needs a lock waits no longer than is good for others: looking at a table needs one, too.
    async fn begin(&self) -> Result<(), StepError> {
        let limit = self.params.lock_timeout.0.as_millis();
        self.live.batch(&format!("begin; set local lock_timeout = {limit}"), QUICK).await?;
        Ok(())
    }

    async fn undo(&self) -> Result<Done, StepError> {
        self.begin().await?;
        let done = match self.params.mode {
            Mode::NewTable => {
                let name = Name::parse(self.params.new_table.as_deref().unwrap_or_default());
                self.live.batch(&format!("drop table {}", name.sql()), QUICK).await?;
                let mut done = Done::default();
                done.facts.insert("dropped".into(), name.to_string());
                done
            }
            _ => {
                let live = shape::find(&self.live, &self.table).await?;
                let live =
                    live.ok_or_else(|| unfit(format!("the live database has no table `{}`", self.table)))?;
                let written = Name { schema: self.image.clone(), table: "written".into() };
                let written = shape::find(&self.live, &written).await?;
                let written =
                    written.ok_or_else(|| unfit(format!("the before-image {} is gone", self.image)))?;
                let fit = Fit::of(&written, &live, self.params.key.as_deref())?;
                let image = Image {
                    live: &self.live,
                    table: &self.table,
                    oid: live.oid,
                    fit: &fit,
                    schema: &self.image,
                };
                image.take_back().await?
            }
        };
        self.live.batch("commit", PATIENT).await?;
        Ok(done)
    }
}
