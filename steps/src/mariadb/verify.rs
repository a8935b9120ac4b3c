//! `mariadb.verify`

use std::time::Duration;

use async_trait::async_trait;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::model::evidence::{Check, Progress, Unit};
use lifeboat_engine::resource::ResourceKind;
use lifeboat_engine::step::{Effect, KindSpec, StepContext, StepError, StepKind};
use lifeboat_engine::value::{Field, Span, Type};
use serde::Deserialize;
use serde_json::json;

use super::codes;
use super::connect::{Client, Login, PATIENT, literal, quoted, server, text};
use super::dump::{databases, definers, orphans};
use super::facts;
use super::rows::{self, Read};
use crate::sql::{self, NamedQuery, done};

/// Finds out whether the data of a server is whole.
#[derive(Clone, Copy, Debug)]
pub(super) struct Verify;

#[derive(Deserialize)]
struct Params {
    server: String,
    databases: Option<Vec<String>>,
    queries: Vec<NamedQuery>,
    accept: Vec<String>,
    check_tables: bool,
    statement_timeout: Span,
}

const DOC: &str = "\
Proves that the answers come from the resource's own `data_dir`, then looks in every database at:

- tables and views, with `CHECK TABLE`, which reads every page of a table and finds views that refer to something that is \
not there (`check_tables: false` leaves it out);
- foreign keys, with a query for rows that refer to nothing: an import does not look;
- accounts to which views, routines, triggers and events belong, without which they fail when they are used;
- `queries` of your own with what must hold of their rows.

A check that fails makes the step fail; `accept` names objects whose findings are known. What was not checked is in the \
report.";

#[async_trait]
impl StepKind for Verify {
    fn spec(&self) -> KindSpec {
        KindSpec::new("mariadb.verify", "Checks the data of a MariaDB server.", Effect::Read)
            .doc(DOC)
            .param(Field::required("server", Type::reads(ResourceKind::Mariadb), "The server to check."))
            .param(Field::optional(
                "databases",
                Type::list(Type::String),
                "The databases; all but the server's own if absent.",
            ))
            .param(Field::defaulted(
                "queries",
                Type::list(NamedQuery::described("Values for `?`, in order.")),
                json!([]),
                "Statements of your own.",
            ))
            .param(Field::defaulted(
                "accept",
                Type::list(Type::String),
                json!([]),
                "Objects whose findings are no failure, named as the report names them.",
            ))
            .param(Field::defaulted("check_tables", Type::Boolean, true, "Whether every table is read."))
            .param(Field::defaulted(
                "statement_timeout",
                Type::Duration,
                "10m",
                "How long each statement may take.",
            ))
            .output("databases", Type::list(Type::String), "The databases that were checked.")
            .output("checks", Type::Integer, "How many checks were made.")
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let params: Params = ctx.params()?;
        let mariadb = server(ctx, &params.server)?;
        let login = Login::of(ctx, &params.server)?;
        let mut client = login.database(None).connect().await?;
        let facts = facts::read(&mut client).await?;
        facts::check_place(mariadb, &facts)?;
        let names = match &params.databases {
            Some(names) => names.clone(),
            None => databases(&mut client).await?,
        };
        let mut checks = vec![there(&mut client, &names).await?];
        if params.check_tables {
            checks.extend(tables(ctx, &mut client, &names, params.statement_timeout.0).await?);
        }
        checks.push(definers(&mut client, &names).await?);
        checks.extend(orphans(&mut client, &names).await?);
        for query in &params.queries {
            checks.extend(ask(&login, query, params.statement_timeout.0).await?);
        }
        let (checks, accepted) = accept(checks, &params.accept);
        let mut done = done(json!({ "databases": names, "checks": checks.len() }));
        done.checks = sql::verdict(checks, codes::LB2012)?;
        done.facts.insert("server".into(), format!("MariaDB {}", facts.version));
        if !accepted.is_empty() {
            done.facts.insert("accepted".into(), accepted.join("; "));
        }
        if !params.check_tables {
            done.facts.insert("not checked".into(), "the content of tables (`check_tables` is false)".into());
        }
        Ok(done)
    }
}

/// A database that is not there would otherwise pass every check.
async fn there(client: &mut Client, names: &[String]) -> Result<Check, StepError> {
    let list = names.iter().map(|name| literal(name)).collect::<Vec<_>>();
    let list = if list.is_empty() { "''".to_owned() } else { list.join(", ") };
    let sql = format!("select schema_name from information_schema.schemata where schema_name in ({list})");
    let found: Vec<_> = client.rows(&sql, PATIENT).await?.iter().map(|row| text(row, 0)).collect();
    let missing: Vec<_> = names.iter().filter(|name| !found.contains(name)).cloned().collect();
    let passed = missing.is_empty() && !names.is_empty();
    let actual = match (passed, names.is_empty()) {
        (true, _) => "they are there".to_owned(),
        (false, true) => "the server has none but its own".to_owned(),
        (false, false) => format!("missing: {}", missing.join(", ")),
    };
    Ok(Check { name: "databases".into(), expected: "they are there".into(), actual, passed })
}

/// Lets the server read every table, and resolve every view.
async fn tables(
    ctx: &StepContext,
    client: &mut Client,
    names: &[String],
    limit: Duration,
) -> Result<Vec<Check>, StepError> {
    let list = names.iter().map(|name| literal(name)).collect::<Vec<_>>();
    if list.is_empty() {
        return Ok(Vec::new());
    }
    let sql = format!(
        "select table_schema, table_name from information_schema.tables where table_schema in ({})
         and table_type in ('BASE TABLE', 'VIEW', 'SYSTEM VERSIONED') order by 1, 2",
        list.join(", ")
    );
    let all = client.rows(&sql, PATIENT).await?;
    let mut checks = Vec::new();
    for (index, row) in all.iter().enumerate() {
        let (schema, table) = (text(row, 0), text(row, 1));
        ctx.progress(Progress {
            done: index as u64,
            total: Some(all.len() as u64),
            unit: Unit::Items,
            note: format!("table {schema}.{table}"),
        });
        let sql = format!("check table {}.{}", quoted(&schema), quoted(&table));
        let said = client.rows(&sql, limit).await?;
        let said: Vec<_> = said.iter().map(|row| (text(row, 2), text(row, 3))).collect();
        let passed = said.iter().all(|(kind, _)| kind != "error" && kind != "warning")
            && said
                .iter()
                .any(|(kind, word)| kind == "status" && (word == "OK" || word.contains("up to date")));
        let actual = said.iter().map(|(_, word)| word.as_str()).collect::<Vec<_>>().join("; ");
        checks.push(Check { name: format!("table {schema}.{table}"), expected: "OK".into(), actual, passed });
    }
    Ok(checks)
}

/// A statement that cannot be run is a check that did not pass; the others are still made.
async fn ask(login: &Login, query: &NamedQuery, limit: Duration) -> Result<Vec<Check>, StepError> {
    let login = match &query.database {
        Some(database) => login.database(Some(database)),
        None => login.clone(),
    };
    let mut client = login.connect().await?;
    match rows::read(&mut client, &Read { sql: &query.sql, params: &query.params, limit }).await {
        Ok(rows) => Ok(query.judge(rows)),
        Err(error) if login.is_cancelled() => Err(error),
        Err(error) => Ok(vec![query.not_run(&error)]),
    }
}

/// Takes findings out that are known; names them.
fn accept(checks: Vec<Check>, accepted: &[String]) -> (Vec<Check>, Vec<String>) {
    let known =
        |check: &Check| !check.passed && accepted.iter().any(|name| check.name.ends_with(name.as_str()));
    let (known, others): (Vec<_>, Vec<_>) = checks.into_iter().partition(known);
    (others, known.into_iter().map(|check| format!("{}: {}", check.name, check.actual)).collect())
}
