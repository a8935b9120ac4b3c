//! `postgres.restore_dump`

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use jiff::Timestamp;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::model::evidence::{Check, Confidence, Progress, RecoveryPoint, Unit};
use lifeboat_engine::model::outcome::FailureKind;
use lifeboat_engine::resource::{Postgres, ResourceKind};
use lifeboat_engine::step::{Effect, KindSpec, Preview, Probe, StepContext, StepError, StepKind};
use lifeboat_engine::value::{Field, Type};
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::catalogue;
use super::super::connect::{Client, Login};
use super::super::database::{
    self, Facts, Making, PATIENT, Sessions, check_name, connect_beside, find, quoted, stamped, text,
};
use super::super::libpq::{Libpq, tools_for};
use super::super::server::QUICK;
use super::super::tools::Tools;
use super::super::{codes, local};
use super::details::DumpDetails;
use super::fit::{self, Roles, Server};
use super::stage::{self, Staged};
use super::{archive, publish};
use crate::backup::{self, Wanted};
use crate::home::Home;
use crate::probe::bytes;
use crate::store::{self, BackupKind, Marker, Store, blocking};

/// Restores a dump into a new database.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct RestoreDump;

#[derive(Clone, Deserialize)]
struct Params {
    cluster: String,
    database: String,
    store: String,
    backup: Option<String>,
    before: Option<Timestamp>,
    source: Option<String>,
    object: Option<String>,
    taken_at: Option<Timestamp>,
    existing: Existing,
    sessions: Sessions,
    owner: Option<String>,
    privileges: Privileges,
    jobs: u32,
    analyze: bool,
    dir: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Existing {
    Refuse,
    MoveAside,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Privileges {
    Keep,
    Skip,
}

/// The label of the dump, chosen once.
const CHOSEN: &str = "chosen";

const DOC: &str = "\
Restores a dump of `postgres.dump` into a database of its own, `NAME_restore_RUN`, proves it, and only then gives it its \
name, in one transaction: whoever logs in finds all of it or nothing of it. A database that has the name is an error, or \
with `existing: move_aside` renamed to `NAME_pre_RUN` in that same transaction. Nothing is ever restored over it.

Before the first write: the dump's checksums, its table of contents, room, programs that can read it, the right to create \
databases, every role that owns something or was granted something, every extension. `owner` makes one role own \
everything, `privileges: skip` leaves grants out.

`pg_restore` stops at the first error and never gets `--create` or `--clean`, so that it touches no other database. \
Afterwards every table must have the rows that the dump was taken with, and tables, columns, indexes, constraints, \
functions, triggers, sequences, types and policies must be those of the dump. Then planner statistics are made \
(`ANALYZE`).

Without `backup` it takes the newest dump, or the newest whose snapshot was taken `before` a moment. `object` names a dump \
in the store that somebody else made, without a marker: it is read whole first, but nothing says which rows must be in it, \
and when it was taken is only known if `taken_at` says so.

The dump is brought to this machine first, because parallel restores need it as a file: into the state of the run, or \
below `dir`. An attempt that was cut off before the database had its name begins anew; afterwards it is done. Undo \
gives the earlier database its name back and keeps the restored one as `NAME_restore_RUN`; a drill does the same in the \
end, and drops the restored one.";

#[async_trait]
impl StepKind for RestoreDump {
    fn spec(&self) -> KindSpec {
        let mut spec = KindSpec::new(
            "postgres.restore_dump",
            "Restores a dump into a new database, and proves it.",
            Effect::Guarded,
        )
        .doc(DOC)
        .output("database", Type::String, "The restored database.")
        .output("previous", Type::String, "The name that the earlier one has now; empty if there was none.")
        .output("backup", Type::String, "The label of the dump, or its `object`.")
        .output("taken_at", Type::Any, "When its snapshot was taken; null if nobody knows.")
        .output("rows", Type::Integer, "How many rows its tables have.")
        .output("tables", Type::Integer, "How many tables it has.")
        .output("bytes", Type::Integer, "Its size on disk.")
        .restores()
        .destroys("a database of that name, with `existing: move_aside`: it is moved aside")
        .undoes("gives the earlier database its name back, and keeps the restored one under another");
        spec.params = params();
        spec
    }

    async fn preview(&self, ctx: &StepContext) -> Result<Preview, StepError> {
        let params: Params = ctx.params()?;
        let what = params.backup.as_ref().or(params.object.as_ref());
        let what = what.map_or("the newest dump".to_owned(), |name| format!("`{name}`"));
        let actions = vec![
            format!("restore {what} of `{}` into a new database, prove it", params.store),
            format!("rename it to {}", quoted(&params.database)),
        ];
        let login = Login::of(ctx, local::cluster(ctx, &params.cluster)?)?;
        let client = connect_beside(&login, &[&params.database]).await?;
        let found = find(&client, &params.database).await?;
        Ok(Preview { actions, destroys: vec![destroyed(ctx, &params, found)] })
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let params: Params = ctx.params()?;
        check_name(&params.database)?;
        let postgres = local::cluster(ctx, &params.cluster)?;
        let login = Login::of(ctx, postgres)?;
        let client = connect_beside(&login, &[&params.database]).await?;
        if let Some(done) = publish::published(ctx, &client).await? {
            return Ok(done);
        }
        let store = Store::of(ctx, &params.store).await?;
        let work = Work { ctx, params, postgres, login, client, store };
        let result = work.run().await;
        if let Err(error) = &result
            && error.kind == FailureKind::Permanent
        {
            // What cannot be removed now is removed by undo, or named in the report.
            work.forget().await.ok();
        }
        result
    }

    async fn probe(&self, ctx: &StepContext) -> Result<Probe, StepError> {
        let params: Params = ctx.params()?;
        let login = Login::of(ctx, local::cluster(ctx, &params.cluster)?)?;
        let client = connect_beside(&login, &[&params.database]).await?;
        Ok(publish::published(ctx, &client).await?.map_or(Probe::NotDone, Probe::Done))
    }

    async fn undo(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let params: Params = ctx.params()?;
        let postgres = local::cluster(ctx, &params.cluster)?;
        let login = Login::of(ctx, postgres)?;
        let client = connect_beside(&login, &[&params.database]).await?;
        let done = publish::undo(ctx, &client).await?;
        let home = home(ctx, &params, &Libpq::new(postgres, &login))?;
        stage::remove(ctx, &home.path).await?;
        Ok(done)
    }

    async fn clean_up(&self, ctx: &StepContext, resource: &str, handle: &Value) -> Result<String, StepError> {
        database::clean_up(ctx, resource, handle).await
    }
}

fn params() -> Vec<Field> {
    let choice = Type::choice;
    vec![
        Field::required("cluster", Type::writes(ResourceKind::Postgres), "The server."),
        Field::required("database", Type::String, "The name that the restored database gets."),
        Field::required("store", Type::reads(ResourceKind::Store), "Where the dump is."),
        Field::optional("backup", Type::String, "The label of the dump; the newest one if absent."),
        Field::optional(
            "before",
            Type::Timestamp,
            "Takes the newest dump that was finished before this moment.",
        ),
        Field::optional(
            "source",
            Type::String,
            "The cluster that it must be of, if the store has dumps of several.",
        ),
        Field::optional("object", Type::String, "A dump without a marker, by its path in the store."),
        Field::optional("taken_at", Type::Timestamp, "When the dump at `object` was begun."),
        Field::defaulted(
            "existing",
            choice(&["refuse", "move_aside"]),
            "refuse",
            "What to do if the name is taken.",
        ),
        Field::defaulted(
            "sessions",
            choice(&["refuse", "disconnect"]),
            "disconnect",
            "What to do about people who are logged in to a database that is moved aside.",
        ),
        Field::optional("owner", Type::String, "A role that owns everything; as in the dump if absent."),
        Field::defaulted("privileges", choice(&["keep", "skip"]), "keep", "Whether grants are restored."),
        Field::defaulted("jobs", Type::Integer, 2, "How many connections restore at once."),
        Field::defaulted("analyze", Type::Boolean, true, "Whether planner statistics are made."),
        Field::optional("dir", Type::Path, "Where the dump is brought to; the state of the run if absent."),
    ]
}

fn destroyed(ctx: &StepContext, params: &Params, found: Option<Facts>) -> String {
    let name = &params.database;
    match found {
        None => format!("nothing: there is no database `{name}`"),
        Some(found) => {
            let aside = stamped(name, &format!("_pre_{}", ctx.info.run.short()));
            let what = format!("database `{name}`: {}, {} sessions", bytes(found.bytes), found.sessions);
            match params.existing {
                Existing::MoveAside => format!("{what}; renamed to `{aside}`"),
                Existing::Refuse => format!("nothing: {what} is there, and the step fails"),
            }
        }
    }
}

fn home(ctx: &StepContext, params: &Params, libpq: &Libpq<'_>) -> Result<Home, StepError> {
    Home::choose(ctx, params.dir.as_deref(), libpq.user(), codes::LB1283)
}

/// What is known of the dump that is restored.
struct Chosen {
    /// For people.
    name: String,
    details: Option<DumpDetails>,
    marker: Option<Marker>,
}

/// One attempt.
struct Work<'a> {
    ctx: &'a StepContext,
    params: Params,
    postgres: &'a Postgres,
    login: Login,
    client: Client,
    store: Store,
}

impl Work<'_> {
    async fn run(&self) -> Result<Done, StepError> {
        let begun = Instant::now();
        self.check_free().await?;
        let libpq = Libpq::new(self.postgres, &self.login);
        let (chosen, staged) = self.choose(&libpq).await?;
        let server = fit::server(&self.client).await?;
        let tools = self.tools(&server, chosen.details.as_ref()).await?;
        let mut warnings = self.check_fit(&server, &chosen).await?;
        staged.check_room()?;
        staged.bring(self.ctx, &self.store, libpq.user()).await?;
        let dump = archive::Dump { name: &chosen.name, path: &staged.path };
        archive::refuse_plain(dump)?;
        let contents = archive::contents(self.ctx, &tools, dump).await?;
        fit::check_tools(&tools, contents.tool_major)?;
        if chosen.details.is_none() {
            archive::read_whole(self.ctx, &tools, dump).await?;
            warnings.push(unproven(&self.params, contents.tables));
        }
        let into = publish::scratch(self.ctx, &self.client, &self.params.database).await?;
        let restored = self.restore(&into, (&tools, &libpq), (&chosen, &staged)).await;
        let mut done = match restored {
            Ok(done) => done,
            Err(error) => {
                // Left behind by an interruption, it is dropped by the next attempt or by undo.
                if error.kind == FailureKind::Permanent {
                    publish::drop_scratch(self.ctx, &self.client, &into).await.ok();
                }
                return Err(error);
            }
        };
        done.warnings = warnings;
        done.facts.insert("server".into(), format!("Postgres {}", server.version));
        done.facts.insert("seconds".into(), begun.elapsed().as_secs().to_string());
        let aside = (self.params.existing == Existing::MoveAside).then_some(self.params.sessions);
        let done = publish::publish(self.ctx, &self.client, &self.making(&into), (done, aside)).await?;
        staged.remove(self.ctx).await?;
        Ok(done)
    }

    /// Removes the dump that was brought here.
    async fn forget(&self) -> Result<(), StepError> {
        let libpq = Libpq::new(self.postgres, &self.login);
        stage::remove(self.ctx, &home(self.ctx, &self.params, &libpq)?.path).await
    }

    async fn check_free(&self) -> Result<(), StepError> {
        let name = &self.params.database;
        if self.params.existing == Existing::MoveAside || find(&self.client, name).await?.is_none() {
            return Ok(());
        }
        Err(StepError::permanent(codes::LB1800, format!("there is a database `{name}` already; nothing was touched"))
            .help("give `database` another name and exchange them with `postgres.swap_database`, or give `existing: move_aside`"))
    }

    async fn choose(&self, libpq: &Libpq<'_>) -> Result<(Chosen, Staged), StepError> {
        let home = home(self.ctx, &self.params, libpq)?;
        if let Some(object) = self.params.object.clone() {
            let (store, name) = (self.store.clone(), object.clone());
            let staged = blocking(move || Staged::of_object(home, &store, &object)).await?;
            return Ok((Chosen { name, details: None, marker: None }, staged));
        }
        let recorded = self.ctx.recorded(CHOSEN).and_then(Value::as_str).map(ToOwned::to_owned);
        let wanted = Wanted {
            kind: BackupKind::PostgresDump,
            store: self.params.store.clone(),
            label: recorded.or(self.params.backup.clone()),
            before: self.params.before,
            source: self.params.source.clone(),
            target: self.params.cluster.clone(),
            none: codes::LB1280,
        };
        let marker = backup::choose(&self.store, wanted).await?;
        self.ctx.record(CHOSEN, marker.label.as_str()).await?;
        let details: DumpDetails = marker.details()?;
        let (store, sizes) = (self.store.clone(), marker.clone());
        blocking(move || store::verify_sizes(&store, &sizes)).await?;
        let staged = Staged::of_backup(home, &marker, details.format.object())?;
        Ok((Chosen { name: marker.label.clone(), details: Some(details), marker: Some(marker) }, staged))
    }

    /// Programs of the server's version, or of that which wrote the dump if it is newer.
    async fn tools(&self, server: &Server, details: Option<&DumpDetails>) -> Result<Tools, StepError> {
        let major = details.map_or(server.major, |details| details.tool_major.max(server.major));
        let tools = tools_for(self.postgres, major).await;
        match details {
            Some(details) => tools.map_err(|error| {
                let help = error.help.clone().unwrap_or_default();
                let message =
                    format!("the dump was written by pg_dump {}: {}", details.tool_major, error.message);
                StepError::permanent(codes::LB1281, message).help(help)
            }),
            None => tools,
        }
    }

    async fn check_fit(&self, server: &Server, chosen: &Chosen) -> Result<Vec<String>, StepError> {
        let roles = Roles {
            owner: self.params.owner.as_deref(),
            keep_grants: self.params.privileges == Privileges::Keep,
        };
        let Some(details) = &chosen.details else { return Ok(Vec::new()) };
        let mut warnings = fit::check(&self.client, (server, details), (self.postgres, roles)).await?;
        if !details.settings.is_empty() {
            warnings.push(format!(
                "the source had settings of its database that are in no dump; set them with ALTER DATABASE: {}",
                details.settings.join("; ")
            ));
        }
        Ok(warnings)
    }

    /// Makes the database, restores into it, and proves it.
    async fn restore(
        &self,
        into: &str,
        (tools, libpq): (&Tools, &Libpq<'_>),
        (chosen, staged): (&Chosen, &Staged),
    ) -> Result<Done, StepError> {
        self.making(into).record(self.ctx, &self.client, None).await?;
        self.create(into, chosen.details.as_ref()).await?;
        let made = find(&self.client, into).await?.map(|made| made.oid);
        self.making(into).record(self.ctx, &self.client, made).await?;
        self.fill(into, (tools, libpq), (chosen, staged)).await?;
        let client = self.login.database(into).connect().await?;
        let done = self.prove(&client, chosen).await?;
        if self.params.analyze {
            note(self.ctx, "making planner statistics (ANALYZE)");
            client.batch("analyze", PATIENT).await?;
        }
        Ok(done)
    }

    fn making<'b>(&'b self, into: &'b str) -> Making<'b> {
        Making { cluster: &self.params.cluster, scratch: into, database: &self.params.database }
    }

    async fn create(&self, into: &str, details: Option<&DumpDetails>) -> Result<(), StepError> {
        let mut sql = format!("create database {} template template0", quoted(into));
        if let Some(owner) = &self.params.owner {
            sql.push_str(&format!(" owner {}", quoted(owner)));
        }
        if let Some(details) = details {
            sql.push_str(&format!(
                " encoding {} lc_collate {} lc_ctype {}",
                text(&details.encoding),
                text(&details.collate),
                text(&details.ctype)
            ));
        }
        self.client.batch(&sql, PATIENT).await.map_err(|error| {
            let error = error.into_step();
            let message = format!("the database `{into}` cannot be made: {}", error.message);
            StepError { code: codes::LB1281, message, ..error }
        })
    }

    async fn fill(
        &self,
        into: &str,
        (tools, libpq): (&Tools, &Libpq<'_>),
        (chosen, staged): (&Chosen, &Staged),
    ) -> Result<(), StepError> {
        let mut command = libpq
            .command(tools, "pg_restore", into)
            .await?
            .args(arguments(&self.params))
            .env("PGOPTIONS", "-c maintenance_work_mem=256MB -c statement_timeout=0 -c lock_timeout=0")
            .arg(&staged.path);
        command = command.name(format!("pg_restore of {}", chosen.name));
        let total = chosen.details.as_ref().map(|details| details.database_bytes);
        let output = self.watch(into, total, command.run(self.ctx)).await?;
        if output.exit_code == 0 {
            return Ok(());
        }
        let lines = output.stderr.last_lines(8).join("\n");
        let message =
            format!("pg_restore of `{}` ended with exit code {}: {lines}", chosen.name, output.exit_code);
        Err(StepError::permanent(codes::LB1282, message)
            .help("the database in the making was dropped; no other database was touched"))
    }

    /// Reports how large the database has become while a program fills it.
    async fn watch<T>(&self, into: &str, total: Option<u64>, work: impl Future<Output = T>) -> T {
        let mut ticks = tokio::time::interval(Duration::from_secs(1));
        tokio::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                _ = ticks.tick() => {
                    let size = self.client.query_one("select pg_database_size($1::name)", &[&into], QUICK).await;
                    let Ok(row) = size else { continue };
                    let done = row.get::<_, i64>(0).unsigned_abs();
                    let note = "pg_restore".to_owned();
                    self.ctx.progress(Progress { done, total: total.map(|total| total.max(done)), unit: Unit::Bytes, note });
                }
            }
        }
    }

    /// Compares the database with what the dump says of itself.
    async fn prove(&self, client: &Client, chosen: &Chosen) -> Result<Done, StepError> {
        let mut checks = Vec::new();
        let counts = catalogue::count_rows(self.ctx, client, &AtomicBool::new(false)).await?;
        let found = catalogue::read(client).await?;
        if let Some(details) = &chosen.details {
            if let Some(expected) = &details.counts {
                checks.push(catalogue::compare_counts(expected, &counts));
            }
            checks.extend(self.compare_catalogue(client, (details, &found)).await?);
        }
        let failed: Vec<_> = checks.iter().filter(|check| !check.passed).map(describe).collect();
        if !failed.is_empty() {
            let message = format!("the restored database differs from its dump: {}", failed.join("; "));
            return Err(StepError::permanent(codes::LB1284, message)
                .help("it was dropped; choose another dump, and report this: the dump itself was read whole")
                .checks(checks));
        }
        let size = client.query_one("select pg_database_size(current_database())", &[], QUICK).await?;
        let taken_at = chosen.details.as_ref().map(|details| details.taken_at).or(self.params.taken_at);
        let mut done = local::done(json!({
            "database": self.params.database, "previous": "", "backup": chosen.name, "taken_at": taken_at,
            "rows": counts.values().sum::<u64>(), "tables": counts.len(), "bytes": size.get::<_, i64>(0),
        }));
        done.checks = checks;
        done.recovery_points = taken_at.map(|time| self.recovery_point(time, chosen)).into_iter().collect();
        Ok(done)
    }

    /// The server's words for definitions are the same only within a major version.
    async fn compare_catalogue(
        &self,
        client: &Client,
        (details, found): (&DumpDetails, &catalogue::Catalogue),
    ) -> Result<Vec<Check>, StepError> {
        let sql = "select current_setting('server_version_num')::int4 / 10000";
        let major: i32 = client.query_one(sql, &[], QUICK).await?.get(0);
        if major.unsigned_abs() != details.server_major {
            return Ok(Vec::new());
        }
        let mut expected = details.catalogue.clone();
        // Which versions of extensions there are was looked at before; the restore takes those of the server.
        expected.remove("extensions");
        Ok(catalogue::compare(&expected, found))
    }

    fn recovery_point(&self, time: Timestamp, chosen: &Chosen) -> RecoveryPoint {
        RecoveryPoint {
            resource: self.params.cluster.clone(),
            time: time.to_string(),
            position: chosen.marker.as_ref().map(|marker| marker.label.clone()),
            method: "dump snapshot".into(),
            confidence: Confidence::Stated,
        }
    }
}

fn describe(check: &Check) -> String {
    format!("{} ({})", check.name, check.actual)
}

fn note(ctx: &StepContext, note: &str) {
    ctx.progress(Progress { done: 0, total: None, unit: Unit::Items, note: note.to_owned() });
}

fn unproven(params: &Params, tables: u64) -> String {
    let object = params.object.as_deref().unwrap_or_default();
    let taken = match params.taken_at {
        Some(_) => "its `taken_at` is the runbook's word",
        None => "when it was taken is not known, so no recovery point is reported (`taken_at` says it)",
    };
    format!(
        "the dump `{object}` has no marker: it was read whole, but whether all {tables} tables have all their rows cannot \
         be proven, and {taken}"
    )
}

/// The arguments that decide what `pg_restore` may do. Never `--create` or `--clean`: they reach beyond the new database.
fn arguments(params: &Params) -> Vec<String> {
    let mut arguments = vec!["--exit-on-error".to_owned(), format!("--jobs={}", params.jobs.clamp(1, 64))];
    if let Some(owner) = &params.owner {
        arguments.extend(["--no-owner".to_owned(), format!("--role={owner}")]);
    }
    if params.privileges == Privileges::Skip {
        arguments.push("--no-privileges".to_owned());
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_argument_lets_pg_restore_touch_another_database() {
        for (owner, privileges) in [(json!(null), "keep"), (json!("app"), "skip")] {
            let params: Params = serde_json::from_value(json!({
                "cluster": "db", "database": "members", "store": "backups", "existing": "refuse",
                "sessions": "disconnect", "owner": owner, "privileges": privileges, "jobs": 4, "analyze": true,
            }))
            .unwrap();
            let arguments = arguments(&params);
            assert!(arguments.contains(&"--exit-on-error".to_owned()));
            let reaching = ["-C", "--create", "-c", "--clean"];
            assert!(!arguments.iter().any(|argument| reaching.contains(&argument.as_str())), "{arguments:?}");
        }
    }
}
