//! `pg_amcheck` and what stands in for it: reads every page of B-trees, and of tables, and finds what contradicts itself.

use lifeboat_engine::model::evidence::Check;
use lifeboat_engine::resource::Postgres;
use lifeboat_engine::step::{StepContext, StepError};

use super::super::connect::{Login, PgError};
use super::super::database::quoted;
use super::super::libpq::{Libpq, tools_for};
use super::findings::{Database, Findings, Server};

/// The program came with this version.
const FIRST_WITH_PROGRAM: u32 = 14;

/// What became of the wish.
pub(super) enum Checked {
    Done(Vec<Check>),
    /// Why nothing could be checked, by database.
    NotPossible(Vec<String>),
}

/// Reads every page of some databases: with `pg_amcheck` on a server that takes writes, and otherwise index by index with
/// the extension `amcheck`, which must be there on a server in recovery.
pub(super) async fn run(
    ctx: &StepContext,
    (postgres, login, server): (&Postgres, &Login, &Server),
    databases: &[String],
) -> Result<Checked, StepError> {
    if !server.in_recovery && server.major >= FIRST_WITH_PROGRAM {
        return program(ctx, (postgres, login, server), databases)
            .await
            .map(|check| Checked::Done(vec![check]));
    }
    let (mut checks, mut not_possible) = (Vec::new(), Vec::new());
    for name in databases {
        let client = login.database(name).connect().await?;
        let limit = super::super::database::PATIENT;
        let database = Database { name, client: &client, server, limit, accept: &[] };
        match schema(&database).await? {
            Some(schema) => {
                let found = indexes(&database, &schema).await?;
                checks.push(database.report("B-trees are sound (amcheck)", "indexes", found));
            }
            None => not_possible.push(name.clone()),
        }
    }
    Ok(if checks.is_empty() { Checked::NotPossible(not_possible) } else { Checked::Done(checks) })
}

async fn program(
    ctx: &StepContext,
    (postgres, login, server): (&Postgres, &Login, &Server),
    databases: &[String],
) -> Result<Check, StepError> {
    const CLEAN: i32 = 0;
    const CORRUPT: i32 = 2;
    let tools = tools_for(postgres, server.major).await?;
    let (host, port) = login.address();
    let command = Libpq::new(postgres, login)
        .bare(&tools, "pg_amcheck")
        .args(["--heapallindexed", "--parent-check", "--install-missing", "--no-password"])
        .args(["-U", &login.user, "-h", &host, "-p", &port.to_string()])
        .args(databases.iter().flat_map(|name| ["-d", name.as_str()]));
    let output = login.credentials(command).await?.run(ctx).await?;
    let check = |actual: String, passed: bool| Check {
        name: "pages of tables and indexes are sound (pg_amcheck)".to_owned(),
        expected: "no contradiction".to_owned(),
        actual,
        passed,
    };
    match output.exit_code {
        CLEAN => Ok(check("no contradiction".to_owned(), true)),
        CORRUPT => Ok(check(output.stdout.last_lines(10).join("; "), false)),
        _ => Err(output.to_error("pg_amcheck").help(
            "it needs the extension `amcheck` on the server (package postgresql-contrib) and a superuser; \
             `amcheck: false` leaves it out",
        )),
    }
}

/// Returns where the extension is, having made it where that is possible.
async fn schema(database: &Database<'_>) -> Result<Option<String>, StepError> {
    if !database.server.in_recovery {
        let made = database.client.batch("create extension if not exists amcheck", database.limit).await;
        made.map_err(|error| database.failed(error))?;
    }
    let sql = "select n.nspname::text from pg_extension e join pg_namespace n on n.oid = e.extnamespace where extname = 'amcheck'";
    Ok(database.rows(sql).await?.first().map(|row| row.get(0)))
}

async fn indexes(database: &Database<'_>, schema: &str) -> Result<Findings, StepError> {
    const BTREES: &str = "
        select format('%s', c.oid::regclass), c.oid from pg_class c join pg_am a on a.oid = c.relam
        join pg_index i on i.indexrelid = c.oid
        where a.amname = 'btree' and c.relkind = 'i' and c.relpersistence = 'p' and i.indisvalid and i.indisready
        order by 1";
    // The check of parents takes a lock that a server in recovery does not give.
    let function = if database.server.in_recovery { "bt_index_check" } else { "bt_index_parent_check" };
    let sql = format!("select {}.{function}($1::oid::regclass, true)", quoted(schema));
    let rows = database.rows(BTREES).await?;
    let mut found = Findings { looked_at: rows.len(), ..Findings::default() };
    for row in &rows {
        let (name, oid): (String, u32) = (row.get(0), row.get(1));
        match database.client.query(&sql, &[&oid], database.limit).await {
            Ok(_) => {}
            Err(PgError::Database(error)) => found.wrong.push((name, format!("is damaged: {error}"))),
            Err(error) => return Err(database.failed(error)),
        }
    }
    Ok(found)
}
