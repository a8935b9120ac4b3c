use std::time::Duration;

use async_trait::async_trait;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::model::evidence::{Check, Progress, Unit};
use lifeboat_engine::resource::{Postgres, ResourceKind};
use lifeboat_engine::step::{Effect, KindSpec, StepContext, StepError, StepKind};
use lifeboat_engine::value::{Field, Span, Type};
use serde::Deserialize;
use serde_json::json;

use super::super::connect::{Client, Login};
use super::super::controldata::ControlData;
use super::super::rows::{self, Read};
use super::super::server::{self, QUICK};
use super::super::tools::Tools;
use super::super::{codes, lifecycle, local};
use super::against::{self, Against, Kept, Rows, Rules};
use super::amcheck::{self, Checked};
use super::findings::{Database, Server};
use super::{files, reading, relations, surroundings};
use crate::sql::{self, NamedQuery};

/// Finds out whether the data of a server is whole.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Verify;

#[derive(Deserialize)]
pub(super) struct Params {
    pub(super) cluster: String,
    databases: Option<Vec<String>>,
    queries: Vec<NamedQuery>,
    accept: Vec<String>,
    amcheck: bool,
    read_all: bool,
    pub(super) store: Option<String>,
    pub(super) backup: Option<String>,
    objects: Kept,
    rows: Rows,
    files: bool,
    statement_timeout: Span,
}

const DOC: &str = "\
Works on a server that takes writes and on one that waits in recovery. Proves that the answers come from the resource's \
own `data_dir` (directory and system identifier), then looks in every database at:

- indexes that are not valid, constraints that were never validated;
- foreign keys, with a query for rows that refer to nothing (Postgres itself does not look again);
- sequences that would give out values which their columns have already;
- extensions and libraries that this machine lacks, collations that another version of the system sorts differently;
- `queries` of your own with what must hold of their rows.

With `store` and `backup` the databases are compared with what they held when that base backup was begun: roles, databases, \
tables, columns, indexes, functions and all else that is defined, and the rows of every table. What was restored is of a later \
moment, so that by default an object that is missing or a table with fewer rows fails the step, and what is new or changed is \
told. Name tables that shrink in daily use under `accept`. Unlogged tables are empty after a restore and not counted.

`read_all: true` reads every row with `pg_dump`, also in recovery. `amcheck: true` has `pg_amcheck` (before version 14 the \
extension, B-trees only) read every page; in recovery it needs the extension in the database and reads B-trees only.

`files: true` is for a server that does not run: `pg_verifybackup` compares what was restored and not yet recovered with the \
manifest of `backup`; of a server that was stopped cleanly `pg_checksums` reads every page. Rows are not looked at then.

What was not checked is in the report. A check that fails makes the step fail; `accept` names objects whose findings are known.";

#[async_trait]
impl StepKind for Verify {
    fn spec(&self) -> KindSpec {
        let query = NamedQuery::described("Values for `$1`, `$2`, …");
        KindSpec::new("postgres.verify", "Checks the data of a Postgres server.", Effect::Read)
            .doc(DOC)
            .param(Field::required("cluster", Type::reads(ResourceKind::Postgres), "The server to check."))
            .param(Field::optional("databases", Type::list(Type::String), "The databases; all if not given."))
            .param(Field::defaulted("queries", Type::list(query), json!([]), "Statements of your own."))
            .param(Field::defaulted(
                "accept",
                Type::list(Type::String),
                json!([]),
                "Objects whose findings are no failure, named as the report names them.",
            ))
            .param(Field::defaulted(
                "amcheck",
                Type::Boolean,
                false,
                "Whether to read every page with `pg_amcheck`.",
            ))
            .param(Field::defaulted(
                "read_all",
                Type::Boolean,
                false,
                "Whether to read every row with `pg_dump`.",
            ))
            .param(Field::optional("store", Type::reads(ResourceKind::Store), "The store with `backup`."))
            .param(Field::optional(
                "backup",
                Type::String,
                "The label of the base backup to compare with, as `postgres.select_backup` gives it.",
            ))
            .param(Field::defaulted(
                "objects",
                Type::choice(&["none_missing", "same", "report"]),
                "none_missing",
                "What must hold of the objects of `backup`.",
            ))
            .param(Field::defaulted(
                "rows",
                Type::choice(&["not_fewer", "exact", "report"]),
                "not_fewer",
                "What must hold of the rows of each table since `backup`.",
            ))
            .param(Field::defaulted(
                "files",
                Type::Boolean,
                false,
                "Whether to verify the files of a server that does not run.",
            ))
            .param(Field::defaulted(
                "statement_timeout",
                Type::Duration,
                "10m",
                "How long each statement may take.",
            ))
            .output("databases", Type::list(Type::String), "The databases that were checked.")
            .output("checks", Type::Integer, "How many checks were made.")
            .output("in_recovery", Type::Boolean, "True if the server waits in recovery.")
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let params: Params = ctx.params()?;
        check_params(&params)?;
        if params.files {
            return files::verify(ctx, &params).await;
        }
        let postgres = local::cluster(ctx, &params.cluster)?;
        lifecycle::bring_back(ctx, &params.cluster).await?;
        let login = Login::of(ctx, postgres)?;
        let client = login.connect().await?;
        let mut found = Found::default();
        found.checks.extend(identity(postgres, &client).await?);
        let server = look(&client).await?;
        let databases = databases(&params, &client).await?;
        for (index, name) in databases.iter().enumerate() {
            report_progress(ctx, index, databases.len(), name);
            found.checks.extend(database(&params, (&login, &server), name).await?);
        }
        compare(ctx, &params, (&login, &client, &databases), &mut found).await?;
        for query in &params.queries {
            found.checks.extend(run_query(&login, query, params.statement_timeout.0).await?);
        }
        pages(ctx, &params, (postgres, &login, &server, &databases), &mut found).await?;
        found.done(&databases, &server)
    }
}

/// What was found, and what could not be.
#[derive(Default)]
struct Found {
    checks: Vec<Check>,
    not_checked: Vec<String>,
    warnings: Vec<String>,
}

impl Found {
    fn done(mut self, databases: &[String], server: &Server) -> Result<Done, StepError> {
        let state = if server.in_recovery { "waits in recovery, reading only" } else { "takes writes" };
        let mut done = local::done(json!({
            "databases": databases, "checks": self.checks.len(), "in_recovery": server.in_recovery,
        }));
        done.checks = verdict(self.checks)?;
        self.not_checked
            .push("page checksums of files (needs a stopped server and `files: true`)".to_owned());
        let checksums = if server.data_checksums { "on" } else { "off" };
        done.facts.insert("server".into(), format!("Postgres {}, {state}", server.version));
        done.facts.insert("data checksums".into(), checksums.into());
        done.facts.insert("not checked".into(), self.not_checked.join("; "));
        done.warnings = self.warnings;
        Ok(done)
    }
}

/// Each of the two is nothing without the other.
fn check_params(params: &Params) -> Result<(), StepError> {
    if params.store.is_some() == params.backup.is_some() {
        return Ok(());
    }
    Err(StepError::permanent(codes::LB1850, "`store` and `backup` belong together, and one of them is given")
        .help("give both: the label of the backup and the store that it is in"))
}

/// Makes the checks within one database.
async fn database(
    params: &Params,
    (login, server): (&Login, &Server),
    name: &str,
) -> Result<Vec<Check>, StepError> {
    let client = login.database(name).connect().await?;
    let (limit, accept) = (params.statement_timeout.0, params.accept.as_slice());
    let database = Database { name, client: &client, server, limit, accept };
    let mut checks = relations::check(&database).await?;
    checks.extend(surroundings::check(&database).await?);
    Ok(checks)
}

/// Compares with the backup, if one is named.
async fn compare(
    ctx: &StepContext,
    params: &Params,
    (login, client, databases): (&Login, &Client, &[String]),
    found: &mut Found,
) -> Result<(), StepError> {
    let (Some(store), Some(backup)) = (&params.store, &params.backup) else {
        found
            .not_checked
            .push("objects and rows of the backup (`store` and `backup` were not given)".to_owned());
        return Ok(());
    };
    let against = Against::open(ctx, (store, backup), &system_id(client).await?).await?;
    found.checks.push(against.presence());
    let Some(inventory) = &against.inventory else {
        let why = format!("backup `{backup}` has no inventory: its objects and rows cannot be compared");
        found.not_checked.push(why.clone());
        found.warnings.push(why);
        return Ok(());
    };
    let rules = Rules { objects: params.objects, rows: params.rows, accept: &params.accept };
    found.checks.extend(against::check(login, (inventory, databases), &rules).await?);
    Ok(())
}

/// Reads what is stored, as far as that was asked for.
async fn pages(
    ctx: &StepContext,
    params: &Params,
    (postgres, login, server, databases): (&Postgres, &Login, &Server, &[String]),
    found: &mut Found,
) -> Result<(), StepError> {
    if params.read_all {
        for name in databases {
            found.checks.push(reading::run(ctx, (postgres, login, server), name).await?);
        }
    }
    if !params.amcheck {
        found.not_checked.push("the content of pages (`amcheck` was not asked for)".to_owned());
        return Ok(());
    }
    let (checks, without) = match amcheck::run(ctx, (postgres, login, server), databases).await? {
        Checked::Done(checks) => (checks, Vec::new()),
        Checked::NotPossible(databases) => (Vec::new(), databases),
    };
    found.checks.extend(checks);
    if server.in_recovery {
        found
            .not_checked
            .push("the pages of tables (`pg_amcheck` needs a server that takes writes)".to_owned());
    }
    if !without.is_empty() {
        found.warnings.push(format!(
            "`amcheck` was asked for and not possible in {}: the server is in recovery and the extension is not there; \
             verify again after promotion",
            without.join(", ")
        ));
    }
    Ok(())
}

fn report_progress(ctx: &StepContext, index: usize, total: usize, name: &str) {
    ctx.progress(Progress {
        done: index as u64,
        total: Some(total as u64),
        unit: Unit::Items,
        note: format!("database {name}"),
    });
}

/// The server that answers must be the one on the resource's data directory.
async fn identity(postgres: &Postgres, client: &Client) -> Result<Vec<Check>, StepError> {
    let Some(data_dir) = &postgres.data_dir else { return Ok(Vec::new()) };
    server::check_identity(client, data_dir).await?;
    let (actual, expected) =
        (system_id(client).await?, ControlData::read(&Tools::find(postgres)?, data_dir)?.system_id);
    let passed = actual == expected;
    Ok(vec![Check {
        name: "the server is the one on the data directory".into(),
        expected: format!("{}, system identifier {expected}", data_dir.display()),
        actual: format!("{}, system identifier {actual}", data_dir.display()),
        passed,
    }])
}

async fn system_id(client: &Client) -> Result<String, StepError> {
    let row = client.query_one("select system_identifier::text from pg_control_system()", &[], QUICK).await?;
    Ok(row.get(0))
}

async fn look(client: &Client) -> Result<Server, StepError> {
    let sql =
        "select pg_is_in_recovery(), current_setting('server_version'), current_setting('data_checksums'),
        current_setting('server_version_num')::int4";
    let row = client.query_one(sql, &[], QUICK).await?;
    Ok(Server {
        in_recovery: row.get(0),
        version: row.get(1),
        data_checksums: row.get::<_, &str>(2) == "on",
        major: row.get::<_, i32>(3).unsigned_abs() / 10_000,
    })
}

async fn databases(params: &Params, client: &Client) -> Result<Vec<String>, StepError> {
    if let Some(named) = &params.databases {
        return Ok(named.clone());
    }
    let sql = "select datname::text from pg_database where datallowconn and not datistemplate order by 1";
    let rows = client.query(sql, &[], QUICK).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// A statement that cannot be run is a check that did not pass; the others are still made.
async fn run_query(login: &Login, query: &NamedQuery, limit: Duration) -> Result<Vec<Check>, StepError> {
    let login = match &query.database {
        Some(database) => login.database(database),
        None => login.clone(),
    };
    let client = login.connect().await?;
    match rows::read(&client, &Read { sql: &query.sql, params: &query.params, limit }).await {
        Ok(rows) => Ok(query.judge(rows)),
        Err(error) if login.cancel.is_cancelled() => Err(error),
        Err(error) => Ok(vec![query.not_run(&error)]),
    }
}

/// Returns checks that all passed, or the failure of those that did not.
pub(super) fn verdict(checks: Vec<Check>) -> Result<Vec<Check>, StepError> {
    sql::verdict(checks, codes::LB1275)
}
