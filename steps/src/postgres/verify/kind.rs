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
use super::super::{codes, local};
use super::amcheck;
use super::catalog::{self, Database};
use crate::sql::{self, NamedQuery};

/// Finds out whether the data of a server is whole.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Verify;

#[derive(Deserialize)]
struct Params {
    cluster: String,
    databases: Option<Vec<String>>,
    queries: Vec<NamedQuery>,
    accept: Vec<String>,
    amcheck: bool,
    statement_timeout: Span,
}

/// What is known of the server before its data is looked at.
struct Server {
    in_recovery: bool,
    version: String,
    data_checksums: String,
}

const DOC: &str = "\
Works on a server that takes writes and on one that waits in recovery. Proves that the answers come from the resource's \
own `data_dir` (directory and system identifier), then looks in every database at:

- indexes that are not valid, constraints that were never validated;
- foreign keys, with a query for rows that refer to nothing (Postgres itself does not look again);
- sequences that would give out values which their columns have already;
- `queries` of your own with what must hold of their rows.

`amcheck: true` has `pg_amcheck` read every page, on a server that takes writes. What was not checked is in the report.
A check that fails makes the step fail; `accept` names objects whose findings are known.";

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
        let postgres = local::cluster(ctx, &params.cluster)?;
        let login = Login::of(ctx, postgres)?;
        let client = login.connect().await?;
        let mut checks = identity(postgres, &client).await?;
        let found = look(&client).await?;
        let databases = databases(&params, &client).await?;
        for (index, name) in databases.iter().enumerate() {
            report_progress(ctx, index, databases.len(), name);
            let client = login.database(name).connect().await?;
            let limit = params.statement_timeout.0;
            checks.extend(
                catalog::check(&Database { name, client: &client, limit, accept: &params.accept }).await?,
            );
        }
        for query in &params.queries {
            checks.extend(run_query(&login, query, params.statement_timeout.0).await?);
        }
        if params.amcheck && !found.in_recovery {
            checks.push(amcheck::run(ctx, postgres, &login, &databases).await?);
        }
        let mut done = local::done(json!({
            "databases": databases, "checks": checks.len(), "in_recovery": found.in_recovery,
        }));
        done.checks = sql::verdict(checks, codes::LB1275)?;
        add_facts(&mut done, &params, &found);
        Ok(done)
    }
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
    let row = client.query_one("select system_identifier::text from pg_control_system()", &[], QUICK).await?;
    let (actual, expected) =
        (row.get::<_, String>(0), ControlData::read(&Tools::find(postgres)?, data_dir)?.system_id);
    let passed = actual == expected;
    Ok(vec![Check {
        name: "the server is the one on the data directory".into(),
        expected: format!("{}, system identifier {expected}", data_dir.display()),
        actual: format!("{}, system identifier {actual}", data_dir.display()),
        passed,
    }])
}

async fn look(client: &Client) -> Result<Server, StepError> {
    let sql =
        "select pg_is_in_recovery(), current_setting('server_version'), current_setting('data_checksums')";
    let row = client.query_one(sql, &[], QUICK).await?;
    Ok(Server { in_recovery: row.get(0), version: row.get(1), data_checksums: row.get(2) })
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

fn add_facts(done: &mut Done, params: &Params, found: &Server) {
    let state = if found.in_recovery { "waits in recovery, reading only" } else { "takes writes" };
    let mut not_checked = vec!["page checksums of files (needs a stopped server)"];
    match (params.amcheck, found.in_recovery) {
        (false, _) => not_checked.push("the content of pages (`amcheck` was not asked for)"),
        (true, true) => {
            not_checked.push("the content of pages (`pg_amcheck` needs a server that takes writes)");
            done.warnings.push(
                "`amcheck` was asked for and not possible: the server is in recovery; verify again after promotion"
                    .to_owned(),
            );
        }
        (true, false) => {}
    }
    done.facts.insert("server".into(), format!("Postgres {}, {state}", found.version));
    done.facts.insert("data checksums".into(), found.data_checksums.clone());
    done.facts.insert("not checked".into(), not_checked.join("; "));
}
