//! What a database keeps of the changes that were made to it: once for each key, with every row before and after.

use lifeboat_engine::step::StepError;
use serde_json::Value;

use super::super::connect::Client;
use super::super::database::PATIENT;
use super::capture::{Row, SEEN};
use super::kind::refused;
use crate::change::Made;

const MAKE: &str = "
    create schema if not exists lifeboat;
    create table if not exists lifeboat.changes (key text primary key, made_by text not null,
      at timestamptz not null default clock_timestamp(), result jsonb not null, undone_at timestamptz);
    create table if not exists lifeboat.changed_rows (key text not null references lifeboat.changes, seq bigint not null,
      relation text not null, operation text not null, before jsonb, after jsonb, primary key (key, seq));
    comment on schema lifeboat is 'changes made by steps of Lifeboat, with what was there before'";

/// Returns the change of a key, `None` if none was made.
pub(super) async fn find(client: &Client, key: &str) -> Result<Option<Made>, StepError> {
    let there: bool =
        client.query_one("select to_regclass('lifeboat.changes') is not null", &[], PATIENT).await?.get(0);
    if !there {
        return Ok(None);
    }
    let sql = "select made_by, result, undone_at is not null from lifeboat.changes where key = $1";
    let rows = client.query(sql, &[&key], PATIENT).await?;
    Ok(rows.first().map(|row| Made { by: row.get(0), result: row.get(1), undone: row.get(2) }))
}

/// Keeps a change, in its own transaction, with the rows that were seen in it. Fails if the key has been used meanwhile.
pub(super) async fn keep(client: &Client, (key, by): (&str, &str), result: &Value) -> Result<(), StepError> {
    client.batch(MAKE, PATIENT).await.map_err(refused)?;
    let sql = "insert into lifeboat.changes (key, made_by, result) values ($1, $2, $3)";
    client.query(sql, &[&key, &by, result], PATIENT).await.map_err(refused)?;
    let sql = format!(
        "insert into lifeboat.changed_rows select $1, q.n, q.relation, q.operation, q.before, q.after from ({SEEN}) q"
    );
    client.query(&sql, &[&key], PATIENT).await.map_err(refused)?;
    Ok(())
}

/// Returns the rows of a change, in order.
pub(super) async fn rows(client: &Client, key: &str) -> Result<Vec<Row>, StepError> {
    let sql = "select relation, operation, before::text, after::text from lifeboat.changed_rows where key = $1 order by seq";
    let rows = client.query(sql, &[&key], PATIENT).await?;
    let one = |row: &tokio_postgres::Row| Row {
        table: row.get(0),
        operation: row.get(1),
        before: row.get(2),
        after: row.get(3),
        lasting: String::new(),
    };
    Ok(rows.iter().map(one).collect())
}

/// Notes that a change was taken back.
pub(super) async fn mark_undone(client: &Client, key: &str) -> Result<(), StepError> {
    let sql = "update lifeboat.changes set undone_at = clock_timestamp() where key = $1";
    client.query(sql, &[&key], PATIENT).await.map_err(refused)?;
    Ok(())
}
