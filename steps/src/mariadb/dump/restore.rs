//! `mariadb.restore_dump`

use std::time::Instant;

use async_trait::async_trait;
use jiff::Timestamp;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::model::evidence::{Check, Confidence, RecoveryPoint};
use lifeboat_engine::resource::{Mariadb, ResourceKind};
use lifeboat_engine::step::{Effect, KindSpec, Preview, Probe, StepContext, StepError, StepKind};
use lifeboat_engine::value::{Field, Type};
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::codes;
use super::super::connect::{Client, Login, PATIENT, quoted, server};
use super::super::facts::{self, Facts};
use super::super::packets::Raised;
use super::details::{DATA, DumpDetails, Restored, USERS};
use super::pour::{self, Adapt, Target};
use super::{fit, prove};
use crate::backup::{self, Wanted};
use crate::sql::done;
use crate::store::{self, BackupKind, Marker, Store, blocking};

/// Restores a dump.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct RestoreDump;

#[derive(Clone, Deserialize)]
struct Params {
    server: String,
    store: String,
    backup: Option<String>,
    before: Option<Timestamp>,
    source: Option<String>,
    database: Option<String>,
    users: Users,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Users {
    Restore,
    Skip,
}

/// The label of the dump, chosen once.
const CHOSEN: &str = "chosen";
/// The databases in the making, recorded before one of them is made. They were not there then.
const INTO: &str = "into";
/// The accounts that were there before the first of them was made.
const ACCOUNTS: &str = "accounts";
/// The results.
const RESULT: &str = "result";

const DOC: &str = "\
Restores a dump of `mariadb.dump` into a server that has none of its databases, proves it, and leaves behind what it was. \
Databases are never restored over: one that is there is an error. A dump of one database can be given another name with \
`database`.

Before the first write: the dump's objects and sizes, the version of the server, `lower_case_table_names`, that no events \
would run. The stream is compared with its checksum on the way, the client stops at the first error, and nothing is written \
into the binary log. The first line of newer dumps (`enable the sandbox mode`) is left out for clients that do not know it, \
and only that line.

Afterwards every table must have the rows that the dump holds; tables, columns, indexes, foreign keys, views, routines, \
triggers and events must be those of the source; no row may refer to a row that is not there (the import itself does not \
look). `users: restore` makes accounts that are not there; accounts that are there stay as they are.

Nobody else may write into the server until `mariadb.replay_binlog` has gone on from the position of the dump, which it \
finds in the server, in the database `lifeboat_restored`. An attempt that was cut off begins anew: it drops the databases \
that it has made. Undo does the same.";

#[async_trait]
impl StepKind for RestoreDump {
    fn spec(&self) -> KindSpec {
        let mut spec = KindSpec::new(
            "mariadb.restore_dump",
            "Restores a dump into a server that has none of its databases, and proves it.",
            Effect::Guarded,
        )
        .doc(DOC)
        .output("backup", Type::String, "The label of the dump.")
        .output("databases", Type::list(Type::String), "What was restored.")
        .output("taken_at", Type::Timestamp, "When its snapshot was taken.")
        .output(
            "position",
            Type::Any,
            "`file` and `offset` in the binary log of the source; null if there is none.",
        )
        .output("gtid", Type::String, "The last transactions in it; empty if there are none.")
        .output("tables", Type::Integer, "How many tables it has.")
        .output("rows", Type::Integer, "How many rows they have.")
        .restores()
        .undoes("drops the databases that it has made");
        spec.params = params();
        spec
    }

    async fn preview(&self, ctx: &StepContext) -> Result<Preview, StepError> {
        let params: Params = ctx.params()?;
        let what = params.backup.map_or("the newest dump".to_owned(), |label| format!("`{label}`"));
        let at = super::super::connect::Endpoint::of(server(ctx, &params.server)?);
        let action =
            format!("restore {what} of `{}` into the MariaDB server at {at}, and prove it", params.store);
        Ok(Preview { actions: vec![action], destroys: Vec::new() })
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let work = Work::new(ctx).await?;
        match work.restored_before().await? {
            Some(done) => Ok(done),
            None => work.run().await,
        }
    }

    async fn probe(&self, ctx: &StepContext) -> Result<Probe, StepError> {
        Ok(Work::new(ctx).await?.restored_before().await?.map_or(Probe::NotDone, Probe::Done))
    }

    async fn undo(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let work = Work::new(ctx).await?;
        let mut client = work.connect().await?;
        work.drop_made(&mut client).await?;
        Ok(Done::default())
    }
}

fn params() -> Vec<Field> {
    vec![
        Field::required("server", Type::writes(ResourceKind::Mariadb), "The server."),
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
            "The server that it must be of, if the store has dumps of several.",
        ),
        Field::optional("database", Type::String, "Another name for the database, if the dump holds one."),
        Field::defaulted(
            "users",
            Type::choice(&["restore", "skip"]),
            "restore",
            "Whether accounts that are not there are made.",
        ),
    ]
}

/// One attempt.
struct Work<'a> {
    ctx: &'a StepContext,
    params: Params,
    mariadb: &'a Mariadb,
    login: Login,
}

impl<'a> Work<'a> {
    async fn new(ctx: &'a StepContext) -> Result<Self, StepError> {
        let params: Params = ctx.params()?;
        let mariadb = server(ctx, &params.server)?;
        let login = Login::of(ctx, &params.server)?.database(None);
        Ok(Self { ctx, params, mariadb, login })
    }

    async fn connect(&self) -> Result<Client, StepError> {
        let mut client = self.login.connect().await?;
        let facts = facts::read(&mut client).await?;
        facts::check_place(self.mariadb, &facts)?;
        Ok(client)
    }

    /// Returns the results of an attempt that had finished, if the server still says so.
    async fn restored_before(&self) -> Result<Option<Done>, StepError> {
        let Some(result) = self.ctx.recorded(RESULT) else { return Ok(None) };
        let mut client = self.connect().await?;
        let state = super::restored_state(&mut client).await?;
        let done: Option<Done> = serde_json::from_value(result.clone()).ok();
        Ok(done.filter(|done| {
            state.is_some_and(|state| done.outputs.get("backup") == Some(&json!(state.backup)))
        }))
    }

    async fn run(&self) -> Result<Done, StepError> {
        let begun = Instant::now();
        let store = Store::of(self.ctx, &self.params.store).await?;
        let (marker, details) = self.choose(&store).await?;
        let into = self.into(&details)?;
        let mut client = self.connect().await?;
        let facts = facts::read(&mut client).await?;
        let mut warnings = fit::check(&mut client, &facts, &details).await?;
        self.make_free(&mut client, &into).await?;
        let raised = Raised::on(&mut client).await?;
        let poured = self.pour(&mut client, &store, (&marker, &details)).await;
        raised.put_back(&mut client).await;
        poured?;
        let (checks, rows) = self.prove(&mut client, &details, &into).await?;
        let state = Restored {
            backup: marker.label.clone(),
            resource: details.resource.clone(),
            server_id: details.server_id,
            position: details.position.clone().filter(|_| self.params.database.is_none()),
            gtid: details.gtid.clone(),
            taken_at: details.taken_at,
            whole_server: details.whole_server,
            not_transactional: details.not_transactional.clone(),
        };
        let checks = self.verdict(checks, &mut warnings)?;
        let mut done = self.results(&marker, &details, (&into, rows));
        done.checks = checks;
        done.warnings = warnings;
        add_facts(&mut done, &facts, begun);
        self.ctx.record(RESULT, serde_json::to_value(&done).expect("results are JSON")).await?;
        state.save(&mut client).await?;
        Ok(done)
    }

    /// Chooses the dump once: a later attempt goes on with the same one.
    async fn choose(&self, store: &Store) -> Result<(Marker, DumpDetails), StepError> {
        let recorded = self.ctx.recorded(CHOSEN).and_then(Value::as_str).map(ToOwned::to_owned);
        let wanted = Wanted {
            kind: BackupKind::MariadbDump,
            store: self.params.store.clone(),
            label: recorded.or(self.params.backup.clone()),
            before: self.params.before,
            source: self.params.source.clone(),
            target: self.params.server.clone(),
            none: codes::LB2030,
        };
        let marker = backup::choose(store, wanted).await?;
        self.ctx.record(CHOSEN, marker.label.as_str()).await?;
        let details: DumpDetails = marker.details()?;
        let (store, sizes) = (store.clone(), marker.clone());
        blocking(move || store::verify_sizes(&store, &sizes)).await?;
        Ok((marker, details))
    }

    /// Returns the names that the databases get.
    fn into(&self, details: &DumpDetails) -> Result<Vec<String>, StepError> {
        match (&self.params.database, details.databases.len()) {
            (None, _) => Ok(details.databases.clone()),
            (Some(name), 1) => Ok(vec![name.clone()]),
            (Some(_), count) => Err(StepError::permanent(
                codes::LB2030,
                format!("`database` names one, and the dump holds {count}: {}", details.databases.join(", ")),
            )
            .help("leave it out; nothing was touched")),
        }
    }

    /// Drops what an attempt made that was cut off, and refuses databases of others.
    async fn make_free(&self, client: &mut Client, into: &[String]) -> Result<(), StepError> {
        self.drop_made(client).await?;
        let taken = fit::taken(client, into).await?;
        if taken.is_empty() {
            return self.ctx.record(INTO, json!(into)).await;
        }
        Err(StepError::permanent(
            codes::LB2031,
            format!("the server has {} already; nothing was touched", taken.join(", ")),
        )
        .help("restore into an empty server (`mariadb.clone` makes one), or a dump of one database under another name with `database`"))
    }

    async fn drop_made(&self, client: &mut Client) -> Result<(), StepError> {
        let Some(made) = self.ctx.recorded(INTO).and_then(Value::as_array) else { return Ok(()) };
        client.run("set sql_log_bin = 0", PATIENT).await?;
        for name in made.iter().filter_map(Value::as_str).chain([super::STATE]) {
            client.run(&format!("drop database if exists {}", quoted(name)), PATIENT).await?;
        }
        client.run("set sql_log_bin = 1", PATIENT).await?;
        Ok(())
    }

    async fn pour(
        &self,
        client: &mut Client,
        store: &Store,
        (marker, details): (&Marker, &DumpDetails),
    ) -> Result<(), StepError> {
        let target = Target { ctx: self.ctx, mariadb: self.mariadb, login: &self.login };
        let without_sandbox = !fit::knows_sandbox(self.ctx, self.mariadb).await?;
        if details.users && self.params.users == Users::Restore {
            let without_accounts = self.accounts_before(client).await?;
            let adapt = Adapt { without_sandbox, without_accounts, rename: None };
            pour::pour(&target, store, (marker, USERS), adapt).await?;
        }
        let rename = self.params.database.clone().map(|name| (details.databases[0].clone(), name));
        let adapt = Adapt { without_sandbox, rename, without_accounts: Vec::new() };
        pour::pour(&target, store, (marker, DATA), adapt).await
    }

    /// Returns the accounts that were there before the first attempt. What a later one finds may be half of what one that was
    /// cut off has made: an account without its rights.
    async fn accounts_before(&self, client: &mut Client) -> Result<Vec<String>, StepError> {
        let known = self.ctx.recorded(ACCOUNTS).and_then(|known| serde_json::from_value(known.clone()).ok());
        if let Some(known) = known {
            return Ok(known);
        }
        let found = fit::accounts(client).await?;
        self.ctx.record(ACCOUNTS, json!(found)).await?;
        Ok(found)
    }

    async fn prove(
        &self,
        client: &mut Client,
        details: &DumpDetails,
        into: &[String],
    ) -> Result<(Vec<Check>, u64), StepError> {
        let (mut structure, mut counts) = (details.structure.clone(), details.counts.clone());
        if let Some(name) = &self.params.database {
            let from = &details.databases[0];
            structure = structure.renamed(from, name);
            let rename = |(table, rows): (String, u64)| {
                (
                    table.strip_prefix(from.as_str()).map_or(table.clone(), |rest| format!("{name}{rest}")),
                    rows,
                )
            };
            counts = counts.map(|counts| counts.into_iter().map(rename).collect());
        }
        let mut checks = vec![prove::structure(client, into, &structure).await?];
        let mut rows = 0;
        if let Some(expected) = &counts {
            let (check, found) = prove::counts(self.ctx, client, expected, &structure).await?;
            rows = found;
            checks.push(check);
        }
        checks.push(prove::definers(client, into).await?);
        checks.extend(prove::orphans(client, into).await?);
        Ok((checks, rows))
    }

    /// What differs from the dump fails the step; accounts that were left out on purpose are a warning.
    fn verdict(&self, mut checks: Vec<Check>, warnings: &mut Vec<String>) -> Result<Vec<Check>, StepError> {
        if self.params.users == Users::Skip {
            checks.retain(|check| {
                let missing = check.name.starts_with("accounts") && !check.passed;
                if missing {
                    warnings
                        .push(format!("these define something and are no accounts here: {}", check.actual));
                }
                !missing
            });
        }
        let failed: Vec<_> = checks
            .iter()
            .filter(|check| !check.passed)
            .map(|check| format!("{}: {}", check.name, check.actual))
            .collect();
        match failed.is_empty() {
            true => Ok(checks),
            false => Err(StepError::permanent(
                codes::LB2033,
                format!("what was restored is not what it should be: {}", failed.join("; ")),
            )
            .help("if the source has the same fault, mend it there and dump again; otherwise choose another dump")
            .checks(checks)),
        }
    }

    fn results(&self, marker: &Marker, details: &DumpDetails, (into, rows): (&[String], u64)) -> Done {
        let mut done = done(json!({
            "backup": marker.label, "databases": into, "taken_at": details.taken_at, "position": details.position,
            "gtid": details.gtid.clone().unwrap_or_default(), "tables": details.structure.count("table"), "rows": rows,
        }));
        done.recovery_points.push(RecoveryPoint {
            resource: lifeboat_engine::resource::shown(&self.params.server).to_owned(),
            time: details.taken_at.to_string(),
            position: details.position.as_ref().map(ToString::to_string),
            method: "dump snapshot".into(),
            confidence: Confidence::Stated,
        });
        done
    }
}

fn add_facts(done: &mut Done, facts: &Facts, begun: Instant) {
    done.facts.insert("server".into(), format!("MariaDB {}", facts.version));
    done.facts.insert("seconds".into(), begun.elapsed().as_secs().to_string());
}
