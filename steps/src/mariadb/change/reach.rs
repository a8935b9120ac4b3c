//! How far statements reach: what they change beyond the tables that are named.
//!
//! InnoDB counts every row that a transaction changes, those of triggers, functions and cascades included: if that is the
//! number of rows that differ in the tables that are named, nothing else was changed. What is no InnoDB table could not be
//! taken back, so that it must not be within reach at all, which is found by the names in the texts of all that may run.

use std::collections::BTreeSet;
use std::time::Duration;

use lifeboat_engine::step::StepError;
use tokio::time::{Instant, sleep};

use super::super::codes;
use super::super::connect::{Client, DbError, PATIENT, literal, number, text};
use super::kind::refused;
use super::tables::Watched;

const SYSTEM: &str = "('mysql', 'sys', 'information_schema', 'performance_schema')";

/// Returns how many rows the transaction of a connection has changed.
pub(super) async fn rows_modified(client: &mut Client) -> Result<u64, StepError> {
    let deadline = Instant::now() + Duration::from_secs(60);
    for attempt in 0.. {
        // The server keeps its answer for a while: it is a new one if it knows of this very question.
        let mark = format!("lifeboat-{}-{attempt}", uuid::Uuid::now_v7().simple());
        let sql = format!(
            "select /* {mark} */ trx_rows_modified, ifnull(trx_query, '') from information_schema.innodb_trx \
             where trx_mysql_thread_id = connection_id()"
        );
        let rows = client.rows(&sql, PATIENT).await.map_err(not_told)?;
        match rows.first() {
            Some(row) if text(row, 1).contains(&mark) => return Ok(number(row, 0)),
            _ if Instant::now() > deadline => break,
            _ => sleep(Duration::from_millis(150)).await,
        }
    }
    Err(StepError::transient(codes::LB2061, "the server does not say what the transaction has changed")
        .help("nothing was changed; try again"))
}

fn not_told(error: DbError) -> StepError {
    match error.number() {
        Some(1227) => StepError::permanent(
            codes::LB2061,
            "the account may not see how many rows a transaction has changed, which proves that nothing else was",
        )
        .help("nothing was changed; grant it: grant process on *.* to …"),
        _ => refused(error),
    }
}

/// Names what may have changed other tables: foreign keys with an action, and triggers.
pub(super) async fn suspects(client: &mut Client, tables: &[Watched]) -> Result<Vec<String>, StepError> {
    let named: BTreeSet<String> = tables.iter().map(Watched::shown).collect();
    let mut found = Vec::new();
    for table in tables {
        let (schema, name) = (literal(&table.schema), literal(&table.name));
        let sql = format!(
            "select constraint_schema, table_name, constraint_name from information_schema.referential_constraints \
             where unique_constraint_schema = {schema} and referenced_table_name = {name} \
             and (delete_rule in ('CASCADE', 'SET NULL') or update_rule in ('CASCADE', 'SET NULL'))"
        );
        for row in client.rows(&sql, PATIENT).await? {
            let child = format!("{}.{}", text(&row, 0), text(&row, 1));
            if !named.contains(&child) {
                found.push(format!("{child} (foreign key `{}`)", text(&row, 2)));
            }
        }
        let sql = format!(
            "select trigger_name from information_schema.triggers \
             where event_object_schema = {schema} and event_object_table = {name}"
        );
        for row in client.rows(&sql, PATIENT).await? {
            found.push(format!("trigger `{}` of {}", text(&row, 0), table.shown()));
        }
    }
    Ok(found)
}

/// Refuses statements that may write to tables that cannot take a change back.
pub(super) async fn refuse_lasting(
    client: &mut Client,
    statements: &[&str],
    tables: &[Watched],
) -> Result<(), StepError> {
    let sql = format!(
        "select table_name, engine from information_schema.tables \
         where table_type = 'BASE TABLE' and engine <> 'InnoDB' and table_schema not in {SYSTEM}"
    );
    let lasting: Vec<(String, String)> =
        client.rows(&sql, PATIENT).await?.iter().map(|row| (text(row, 0), text(row, 1))).collect();
    if lasting.is_empty() {
        return Ok(());
    }
    let programs = programs(client).await?;
    let mut words = words(&statements.join("\n"));
    words.extend(tables.iter().map(|table| table.name.to_lowercase()));
    let reached = reached(words, &programs);
    let Some((name, engine)) = lasting.iter().find(|(name, _)| reached.contains(&name.to_lowercase())) else {
        return Ok(());
    };
    Err(StepError::permanent(
        codes::LB2065,
        format!(
            "the statements, or what they call, reach `{name}`, a table of {engine}, which takes nothing back"
        ),
    )
    .help("nothing was changed; leave it out, or convert it first: alter table … engine = InnoDB"))
}

/// What runs when something is named: the name, and the text.
type Program = (String, BTreeSet<String>);

/// Returns triggers by their table, routines and views by their name.
async fn programs(client: &mut Client) -> Result<Vec<Program>, StepError> {
    let sql = format!(
        "select event_object_table, action_statement from information_schema.triggers where trigger_schema not in {SYSTEM} \
         union all select routine_name, ifnull(routine_definition, '') from information_schema.routines where routine_schema not in {SYSTEM} \
         union all select table_name, view_definition from information_schema.views where table_schema not in {SYSTEM}"
    );
    let rows = client.rows(&sql, PATIENT).await?;
    Ok(rows.iter().map(|row| (text(row, 0).to_lowercase(), words(&text(row, 1)))).collect())
}

/// Adds all words of the programs that are named, and of those that these name.
fn reached(mut words: BTreeSet<String>, programs: &[Program]) -> BTreeSet<String> {
    loop {
        let before = words.len();
        for (name, text) in programs {
            if words.contains(name) {
                words.extend(text.iter().cloned());
            }
        }
        if words.len() == before {
            return words;
        }
    }
}

/// Returns whatever may be a name, in small letters: words, and all that is quoted as a name.
fn words(text: &str) -> BTreeSet<String> {
    let text = text.to_lowercase();
    let plain = text.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == '$'));
    let quoted = text.split('`');
    plain.chain(quoted).filter(|word| !word.is_empty()).map(ToOwned::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_named_leads_on_to_what_that_names() {
        let program = |name: &str, text: &str| (name.to_owned(), words(text));
        let programs = [
            program("orders", "begin call note(new.id); end"),
            program("note", "insert into `old log` values (1)"),
        ];
        let reached_by = |text: &str| reached(words(text), &programs);
        assert!(reached_by("update Orders set x = 1").contains("old log"));
        assert!(!reached_by("update members set x = 1").contains("old log"));
    }
}
