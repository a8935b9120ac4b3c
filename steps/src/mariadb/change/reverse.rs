//! The way back: statements that undo a change row by row, and stop at the first row that is another one now.

use super::super::connect::{Client, DbError, PATIENT, literal, quoted};
use super::capture::{Operation, Row};
use super::tables::{Cells, Column, Watched};

/// Values are compared as text that was written under these settings.
const SETTINGS: &str = "set names utf8mb4; set time_zone = '+00:00', sql_mode = 'STRICT_TRANS_TABLES', \
    foreign_key_checks = 1, unique_checks = 1";

/// Stops with what was in the way.
const CHANGED: &str = "a row has been changed since; nothing was taken back";

/// Returns one statement for each row, last first.
pub(super) fn statements(rows: &[Row], tables: &[Watched]) -> Vec<String> {
    rows.iter().rev().map(|row| statement(row, &tables[row.table])).collect()
}

fn statement(row: &Row, table: &Watched) -> String {
    let none = Cells::new();
    let (before, after) = (row.before.as_ref().unwrap_or(&none), row.after.as_ref().unwrap_or(&none));
    let names = || table.columns.iter().map(|column| quoted(&column.name)).collect::<Vec<_>>();
    let values = || {
        let pairs = table.columns.iter().zip(before);
        pairs.map(|(column, value)| column.write(value.as_deref())).collect::<Vec<_>>()
    };
    match row.operation {
        Operation::Insert => format!("delete from {} where {}", table.sql(), ours(table, after)),
        Operation::Delete => {
            format!("insert into {} ({}) values ({})", table.sql(), names().join(", "), values().join(", "))
        }
        Operation::Update => {
            let set = names().into_iter().zip(values()).map(|(name, value)| format!("{name} = {value}"));
            let set = set.collect::<Vec<_>>().join(", ");
            format!("update {} set {set} where {}", table.sql(), ours(table, after))
        }
    }
}

/// The key finds the row; that it is still the one that was written is what makes it ours to take back.
fn ours(table: &Watched, cells: &Cells) -> String {
    let same = |(column, value): (&Column, &Option<String>)| match value {
        None => format!("{} is null", quoted(&column.name)),
        Some(value) => format!("{} <=> {}", column.read(), literal(value)),
    };
    let all: Vec<String> = table.columns.iter().zip(cells).map(same).collect();
    format!("{} and {}", table.at(&table.key_of(cells)), all.join(" and "))
}

/// Runs statements, each of which must concern exactly one row, and returns them in the order that worked.
///
/// What a foreign key or a unique key refuses is tried again after the others, as long as that gets any further. `report` is told
/// how many have worked.
pub(super) async fn run(
    client: &mut Client,
    statements: Vec<String>,
    report: impl Fn(u64),
) -> Result<Vec<String>, Stopped> {
    /// So many statements are run between two reports.
    const REPORTED: usize = 500;
    let (mut todo, mut ran) = (statements, Vec::new());
    while !todo.is_empty() {
        let (count, mut rest, mut why) = (todo.len(), Vec::new(), String::new());
        for statement in todo {
            if ran.len().is_multiple_of(REPORTED) {
                report(ran.len() as u64);
            }
            match client.run(&statement, PATIENT).await {
                Ok(1) => ran.push(statement),
                Ok(_) => return Err(Stopped::Changed(CHANGED.to_owned())),
                // A duplicate, and foreign keys.
                Err(error) if matches!(error.number(), Some(1062 | 1451 | 1452)) => {
                    rest.push(statement);
                    why = error.to_string();
                }
                Err(error) => return Err(Stopped::Failed(error)),
            }
        }
        if rest.len() == count {
            return Err(Stopped::Changed(why));
        }
        todo = rest;
    }
    Ok(ran)
}

/// Why a change is not taken back.
#[derive(Debug)]
pub(super) enum Stopped {
    /// By rows that are others now.
    Changed(String),
    Failed(DbError),
}

/// Returns the statements as a file that `mariadb` takes: all or nothing, as long as it stops at the first error.
pub(super) fn script(key: &str, statements: &[String]) -> String {
    let mut text = format!(
        "-- Takes back the change `{}`, unless somebody has changed its rows since.\n\
         -- mariadb < reverse.sql    (without --force: the first error ends it, and nothing is taken back)\n\
         {SETTINGS};\nstart transaction;\ndelimiter $lifeboat$\n",
        key.replace(['\n', '\r'], " ")
    );
    let stop = |condition: &str, why: &str| {
        format!("if {condition} then signal sqlstate '45000' set message_text = '{why}'; end if;")
    };
    for statement in statements {
        let check = stop("row_count() <> 1", CHANGED);
        text.push_str(&format!("begin not atomic {statement}; {check} end $lifeboat$\n"));
    }
    // What the server says of transactions is up to a tenth of a second old.
    let check = stop(
        &format!(
            "ifnull((select trx_rows_modified from information_schema.innodb_trx \
             where trx_mysql_thread_id = connection_id()), 0) <> {}",
            statements.len()
        ),
        "other rows would change with these; nothing was taken back",
    );
    text.push_str(&format!("begin not atomic do sleep(0.5); {check} end $lifeboat$\n"));
    text.push_str(&format!(
        "update lifeboat.changes set undone_at = utc_timestamp(6) where `key` = {} $lifeboat$\ncommit $lifeboat$\n",
        literal(key)
    ));
    text
}
