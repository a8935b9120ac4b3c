//! Recovered rows in a table of their own, beside the live one.

use lifeboat_engine::model::evidence::Check;
use lifeboat_engine::step::StepError;
use serde_json::Value;

use super::super::codes;
use super::super::connect::Client;
use super::super::database::{PATIENT, quoted, text};
use super::merge::refused;
use super::proof;
use super::shape::{self, Name, Shape, list};
use crate::store::Meter;

/// Makes the table with columns, types and primary key of the recovered one, and nothing else of it.
pub(super) async fn make(client: &Client, name: &Name, source: &Shape) -> Result<(), StepError> {
    if shape::find(client, name).await?.is_some() {
        return Err(StepError::permanent(codes::LB1810, format!("there is a table `{name}` already"))
            .help("give `new_table` another name; nothing was written"));
    }
    let columns = source.columns.iter().map(|column| format!("{} {}", quoted(&column.name), column.ty));
    let mut definition: Vec<_> = columns.collect();
    if !source.primary.is_empty() {
        let key = list(source.primary.iter().map(String::as_str), "");
        definition.push(format!("primary key ({key})"));
    }
    let sql = format!("create table {} ({})", name.sql(), definition.join(", "));
    client.batch(&sql, PATIENT).await.map_err(refused)
}

/// Copies the rows, and proves that they are those of the source.
pub(super) async fn fill(
    (source, table, only): (&Client, &Name, Option<&str>),
    (live, name): (&Client, &Name),
    (shape, meter): (&Shape, &Meter),
) -> Result<(i64, Check), StepError> {
    let columns = list(shape.columns.iter().map(|column| column.name.as_str()), "");
    let only = only.unwrap_or("true");
    let out = format!("copy (select {columns} from {} where ({only}\n)) to stdout", table.sql());
    let into = format!("copy {} ({columns}) from stdin", name.sql());
    source.copy_to(&out, (live, &into), meter).await?;
    let row = format!("select row({columns})::text from");
    let expected = proof::digest(source, &format!("{row} {} where ({only}\n)", table.sql())).await?;
    let found = proof::digest(live, &format!("{row} {}", name.sql())).await?;
    Ok((found.rows, proof::check("the rows are those of the source", &expected, &found)))
}

/// Leaves the results with the table.
pub(super) async fn sign(client: &Client, name: &Name, note: &Value) -> Result<(), StepError> {
    let sql = format!("comment on table {} is {}", name.sql(), text(&note.to_string()));
    client.batch(&sql, PATIENT).await.map_err(refused)
}
