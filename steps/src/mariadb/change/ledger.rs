//! What a server keeps of the changes that were made to it: once for each key, with every row before and after.

use lifeboat_engine::step::StepError;
use mysql_async::Value as Cell;
use serde_json::{Map, Value, json};

use super::super::codes;
use super::super::connect::{Client, PATIENT, text};
use super::capture::{Operation, Row};
use super::kind::refused;
use super::tables::{Cells, Watched};
use crate::change::Made;

const MAKE: [&str; 3] = [
    "create database if not exists lifeboat character set utf8mb4 collate utf8mb4_bin \
     comment 'changes made by steps of Lifeboat, with what was there before'",
    "create table if not exists lifeboat.changes (`key` varchar(255) not null primary key, made_by text not null, \
     at datetime(6) not null, result longtext not null, undone_at datetime(6)) \
     engine = InnoDB, character set utf8mb4, collate utf8mb4_bin",
    "create table if not exists lifeboat.changed_rows (`key` varchar(255) not null, seq bigint not null, \
     relation varchar(200) not null, operation varchar(6) not null, `before` longtext, `after` longtext, \
     primary key (`key`, seq), foreign key (`key`) references lifeboat.changes (`key`)) \
     engine = InnoDB, character set utf8mb4, collate utf8mb4_bin",
];

/// Returns the change of a key, `None` if none was made.
pub(super) async fn find(client: &mut Client, key: &str) -> Result<Option<Made>, StepError> {
    if !is_there(client).await? {
        return Ok(None);
    }
    let sql = "select made_by, result, undone_at is not null from lifeboat.changes where `key` = ?";
    let rows = client.exec(sql, (key,), PATIENT).await?;
    Ok(rows.first().map(|row| Made {
        by: text(row, 0),
        result: serde_json::from_str(&text(row, 1)).unwrap_or(Value::Null),
        undone: text(row, 2) == "1",
    }))
}

async fn is_there(client: &mut Client) -> Result<bool, StepError> {
    let sql = "select count(*) from information_schema.tables \
               where table_schema = 'lifeboat' and table_name in ('changes', 'changed_rows')";
    Ok(client.one::<1>(sql).await? == ["2"])
}

/// Makes the tables of the record, which ends the transaction of the connection.
pub(super) async fn make(client: &mut Client) -> Result<(), StepError> {
    client.run("rollback", PATIENT).await.map_err(refused)?;
    if is_there(client).await? {
        return Ok(());
    }
    for sql in MAKE {
        client.run(sql, PATIENT).await.map_err(refused)?;
    }
    Ok(())
}

/// So many rows are written between two reports.
const REPORTED: u64 = 500;

/// Keeps a change, in its own transaction. Fails, so that it is tried again, if the key has been used meanwhile. `report` is told
/// how many rows were written.
pub(super) async fn keep(
    client: &mut Client,
    (key, by): (&str, &str),
    result: &Value,
    (rows, tables): (&[Row], &[Watched]),
    report: impl Fn(u64),
) -> Result<(), StepError> {
    let sql = "insert into lifeboat.changes (`key`, made_by, at, result) values (?, ?, utc_timestamp(6), ?)";
    client.exec(sql, (key, by, result.to_string()), PATIENT).await.map_err(|error| match error.number() {
        Some(1062) => StepError::transient(
            codes::LB2066,
            format!("the change `{key}` is being made by somebody else at this moment"),
        )
        .help("nothing was changed by this attempt; another finds what was made"),
        _ => refused(error),
    })?;
    let sql = "insert into lifeboat.changed_rows (`key`, seq, relation, operation, `before`, `after`) \
               values (?, ?, ?, ?, ?, ?)";
    for (seq, row) in (0_u64..).zip(rows) {
        if seq % REPORTED == 0 {
            report(seq);
        }
        let table = &tables[row.table];
        let text = |cells: &Option<Cells>| match cells {
            None => Cell::NULL,
            Some(cells) => Cell::Bytes(document(table, cells).into_bytes()),
        };
        let values = (key, seq, table.shown(), row.operation.name(), text(&row.before), text(&row.after));
        client.exec(sql, values, PATIENT).await.map_err(refused)?;
    }
    Ok(())
}

fn document(table: &Watched, cells: &Cells) -> String {
    let map: Map<String, Value> =
        table.columns.iter().zip(cells).map(|(column, cell)| (column.name.clone(), json!(cell))).collect();
    Value::Object(map).to_string()
}

/// Returns the rows of a change, in order, as rows of the tables as they are now.
pub(super) async fn rows(client: &mut Client, key: &str, tables: &[Watched]) -> Result<Vec<Row>, StepError> {
    let sql = "select relation, operation, ifnull(`before`, ''), ifnull(`after`, '') \
               from lifeboat.changed_rows where `key` = ? order by seq";
    let kept = client.exec(sql, (key,), PATIENT).await?;
    let one = |row: &mysql_async::Row| {
        let table = tables.iter().position(|table| table.shown() == text(row, 0))?;
        let cells = |index| cells(&tables[table], &text(row, index));
        Some(Row { table, operation: Operation::parse(&text(row, 1)), before: cells(2)?, after: cells(3)? })
    };
    let all: Option<Vec<Row>> = kept.iter().map(one).collect();
    all.ok_or_else(|| {
        super::kind::FAMILY.kept("a table has other columns now, or is no longer named under `tables`")
    })
}

/// Returns a kept row; `None` if the table has other columns now.
#[expect(clippy::option_option, reason = "no row, and a row that cannot be read, are two things")]
fn cells(table: &Watched, text: &str) -> Option<Option<Cells>> {
    if text.is_empty() {
        return Some(None);
    }
    let mut map: std::collections::HashMap<String, Option<String>> = serde_json::from_str(text).ok()?;
    let cells: Option<Cells> = table.columns.iter().map(|column| map.remove(&column.name)).collect();
    cells.filter(|_| map.is_empty()).map(Some)
}

/// Notes that a change was taken back.
pub(super) async fn mark_undone(client: &mut Client, key: &str) -> Result<(), StepError> {
    let sql = "update lifeboat.changes set undone_at = utc_timestamp(6) where `key` = ?";
    client.exec(sql, (key,), PATIENT).await.map_err(refused)?;
    Ok(())
}
