//! Reading statements whose rows become JSON.

use std::time::Duration;

use lifeboat_engine::plan::hex;
use lifeboat_engine::step::StepError;
use mysql_async::consts::ColumnType;
use mysql_async::{Params, Row, Value as Cell};
use serde_json::{Map, Value};

use super::codes;
use super::connect::{Client, QUICK};
use crate::sql::{MOST_ROWS, first_word};

/// With these a statement reads. `with` may begin one that writes, which a reading transaction refuses.
const READING: [&str; 8] = ["select", "with", "show", "explain", "describe", "desc", "table", "values"];

/// Nor does more than this, in all rows together.
const MOST_BYTES: usize = 1 << 20;

/// A statement to be read.
#[derive(Clone, Debug)]
pub(super) struct Read<'a> {
    pub(super) sql: &'a str,
    /// Values for `?`, in order.
    pub(super) params: &'a [Value],
    pub(super) limit: Duration,
}

/// Says whether a statement writes a file of the server.
pub(super) fn writes_file(sql: &str) -> bool {
    let lower = sql.to_lowercase();
    let words: Vec<&str> = lower.split_whitespace().collect();
    words.windows(2).any(|pair| pair[0] == "into" && matches!(pair[1], "outfile" | "dumpfile"))
}

/// Says why a statement is not read; `None` if it may be.
pub(super) fn refusal(sql: &str) -> Option<String> {
    if writes_file(sql) {
        return Some("it writes a file".to_owned());
    }
    let word = first_word(sql);
    (!READING.contains(&word.as_str())).then(|| format!("it begins with `{word}`"))
}

/// Runs a statement in a read-only transaction and returns its rows as maps from column to value.
///
/// Integers and floating point numbers keep their type; times are RFC 3339 in UTC where the server knows their zone;
/// bytes that are no text are `0x…`; all else, `decimal` above all, is text.
pub(super) async fn read(client: &mut Client, read: &Read<'_>) -> Result<Vec<Value>, StepError> {
    if let Some(why) = refusal(read.sql) {
        return Err(StepError::permanent(codes::LB2011, format!("the statement is not run, because {why}"))
            .help("a query reads; use `mariadb.change` to change rows"));
    }
    client.run(&format!("set max_statement_time = {}", read.limit.as_secs_f64()), QUICK).await?;
    client.run("start transaction with consistent snapshot, read only", QUICK).await?;
    let rows = run(client, read).await;
    // A connection that is lost takes its transaction with it.
    client.run("rollback", QUICK).await.ok();
    rows
}

async fn run(client: &mut Client, read: &Read<'_>) -> Result<Vec<Value>, StepError> {
    // A little more than the server's own limit, so that its clearer error comes first.
    let limit = read.limit + Duration::from_secs(2);
    let sql = read.sql.trim().trim_end_matches(';');
    let params = match read.params {
        [] => Params::Empty,
        values => Params::Positional(values.iter().map(bound).collect()),
    };
    let rows = client.exec(sql, params, limit).await?;
    let rows: Vec<Value> = rows.iter().map(to_json).collect();
    let bytes: usize = rows.iter().map(|row| row.to_string().len()).sum();
    let problem = match () {
        () if rows.len() > MOST_ROWS => format!("gives more than {MOST_ROWS} rows"),
        () if bytes > MOST_BYTES => format!("gives {bytes} bytes, more than {MOST_BYTES}"),
        () => return Ok(rows),
    };
    Err(StepError::permanent(codes::LB2011, format!("the statement {problem}"))
        .help("let it count or aggregate, or give it a `limit`"))
}

/// Returns a value as the server gets it.
pub(super) fn bound(value: &Value) -> Cell {
    match value {
        Value::Null => Cell::NULL,
        Value::Bool(yes) => Cell::Int(i64::from(*yes)),
        Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(whole), _) => Cell::Int(whole),
            (None, Some(whole)) => Cell::UInt(whole),
            // As text, which the server reads as exactly what was written.
            (None, None) => Cell::Bytes(number.to_string().into_bytes()),
        },
        Value::String(text) => Cell::Bytes(text.clone().into_bytes()),
        other => Cell::Bytes(other.to_string().into_bytes()),
    }
}

/// What the type of a column says about its times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Times {
    Day,
    /// Of no zone that the server knows.
    Local,
    Utc,
}

/// Returns a row as a map from column to value.
pub(super) fn to_json(row: &Row) -> Value {
    let columns = row.columns();
    let cells = columns.iter().enumerate().map(|(index, column)| {
        let times = match column.column_type() {
            ColumnType::MYSQL_TYPE_TIMESTAMP => Times::Utc,
            ColumnType::MYSQL_TYPE_DATE => Times::Day,
            _ => Times::Local,
        };
        (column.name_str().into_owned(), cell(row.as_ref(index), times))
    });
    Value::Object(cells.collect::<Map<_, _>>())
}

fn cell(cell: Option<&Cell>, times: Times) -> Value {
    match cell {
        None | Some(Cell::NULL) => Value::Null,
        Some(Cell::Int(number)) => Value::from(*number),
        Some(Cell::UInt(number)) => Value::from(*number),
        Some(Cell::Float(number)) => float(f64::from(*number)),
        Some(Cell::Double(number)) => float(*number),
        Some(Cell::Bytes(bytes)) => match std::str::from_utf8(bytes) {
            Ok(text) => Value::from(text),
            Err(_) => Value::from(format!("0x{}", hex(bytes))),
        },
        Some(Cell::Date(year, month, day, hour, minute, second, micro)) => {
            let date = format!("{year:04}-{month:02}-{day:02}");
            let time = format!("T{hour:02}:{minute:02}:{second:02}{}", fraction(*micro));
            Value::from(match times {
                Times::Day => date,
                Times::Local => format!("{date}{time}"),
                Times::Utc => format!("{date}{time}Z"),
            })
        }
        Some(Cell::Time(negative, days, hours, minutes, seconds, micro)) => {
            let sign = if *negative { "-" } else { "" };
            let hours = days * 24 + u32::from(*hours);
            Value::from(format!("{sign}{hours:02}:{minutes:02}:{seconds:02}{}", fraction(*micro)))
        }
    }
}

fn fraction(micro: u32) -> String {
    if micro > 0 { format!(".{micro:06}") } else { String::new() }
}

/// JSON has no `NaN` and no infinity; they are written as text.
fn float(number: f64) -> Value {
    serde_json::Number::from_f64(number).map_or_else(|| Value::from(number.to_string()), Value::Number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_reading_statements_are_run() {
        for sql in ["select 1", "-- why\n WITH a as (select 1) select 1", "show status", "explain select 1"] {
            assert_eq!(refusal(sql), None, "{sql}");
        }
        for sql in ["delete from x", "set global x = 1", "call p()", "flush tables", "commit", ""] {
            assert!(refusal(sql).is_some(), "{sql}");
        }
        assert!(refusal("select 1 INTO  OUTFILE '/tmp/x'").is_some());
    }

    #[test]
    fn values_keep_what_they_are() {
        assert_eq!(
            cell(Some(&Cell::Date(2026, 11, 21, 3, 4, 5, 60)), Times::Utc),
            "2026-11-21T03:04:05.000060Z"
        );
        assert_eq!(cell(Some(&Cell::Date(2026, 11, 21, 0, 0, 0, 0)), Times::Day), "2026-11-21");
        assert_eq!(cell(Some(&Cell::Time(true, 1, 2, 3, 4, 0)), Times::Local), "-26:03:04");
        assert_eq!(cell(Some(&Cell::Bytes(vec![0, 255])), Times::Local), "0x00ff");
        assert_eq!(bound(&Value::from(1.5)), Cell::Bytes(b"1.5".to_vec()));
    }
}
