//! Reading statements whose rows become JSON.

use std::error::Error;
use std::time::Duration;

use bytes::BytesMut;
use jiff::Timestamp;
use jiff::civil::{Date, DateTime};
use lifeboat_engine::step::StepError;
use serde_json::{Map, Value};
use tokio_postgres::Row;
use tokio_postgres::types::{Format, FromSql, IsNull, Kind, ToSql, Type, to_sql_checked};

use super::codes;
use super::connect::{Client, PgError};

/// More rows than this belong into no journal and no condition.
pub(super) const MOST_ROWS: usize = 1000;

/// Nor does more than this, in all rows together.
const MOST_BYTES: usize = 1 << 20;

/// A statement to be read.
#[derive(Clone, Debug)]
pub(super) struct Read<'a> {
    pub(super) sql: &'a str,
    /// Values for `$1`, `$2`, …
    pub(super) params: &'a [Value],
    pub(super) limit: Duration,
}

/// Runs a statement in a read-only transaction and returns its rows as maps from column to value.
///
/// Booleans, integers, floating point numbers, text and JSON keep their type; arrays become lists; times are RFC 3339
/// in UTC; everything else, `numeric` above all, is text as Postgres writes it.
pub(super) async fn read(client: &Client, read: &Read<'_>) -> Result<Vec<Value>, StepError> {
    client.batch(&begin(read.limit), read.limit).await?;
    let rows = run(client, read).await;
    if rows.is_ok() {
        client.batch("rollback", read.limit).await?;
    } else {
        // A transaction that has failed is over whatever becomes of this.
        client.batch("rollback", read.limit).await.ok();
    }
    rows
}

fn begin(limit: Duration) -> String {
    format!(
        "begin transaction isolation level repeatable read, read only; \
         set local statement_timeout = {}; set local timezone = 'UTC'",
        limit.as_millis()
    )
}

async fn run(client: &Client, read: &Read<'_>) -> Result<Vec<Value>, StepError> {
    // A little more than the server's own limit, so that its clearer error comes first.
    let limit = read.limit + Duration::from_secs(2);
    let sql = read.sql.trim().trim_end_matches(';');
    let plain = client.prepare(sql, limit).await?;
    if plain.params().len() != read.params.len() {
        return Err(StepError::permanent(
            codes::LB1273,
            format!(
                "the statement takes {} parameters, and {} are given",
                plain.params().len(),
                read.params.len()
            ),
        )
        .help("give one value in `params` for each of `$1`, `$2`, …"));
    }
    let columns: Vec<(String, Type)> =
        plain.columns().iter().map(|column| (column.name().to_owned(), column.type_().clone())).collect();
    let statement = match client.prepare(&wrapped(sql, &columns), limit).await {
        Ok(wrapped) => wrapped,
        // `show` and `explain` cannot stand within another statement; they give text.
        Err(PgError::Database(db)) if db.sqlstate == "42601" => {
            client.batch(&format!("rollback; {}", begin(read.limit)), limit).await?;
            client.prepare(sql, limit).await?
        }
        Err(error) => return Err(error.into()),
    };
    let params: Vec<TextParam> = read.params.iter().map(TextParam::of).collect();
    let params: Vec<&(dyn ToSql + Sync)> = params.iter().map(|param| param as &(dyn ToSql + Sync)).collect();
    let mut bytes = 0;
    let fits = |row: &Row| {
        bytes += row.raw_size_bytes();
        bytes <= MOST_BYTES
    };
    let Some(rows) = client.query_while(&statement, &params, limit, fits).await? else {
        return Err(StepError::permanent(
            codes::LB1273,
            format!("the statement gives rows of more than {} KiB", MOST_BYTES >> 10),
        )
        .help("let it count or aggregate, or name the columns that are needed"));
    };
    if rows.len() > MOST_ROWS {
        return Err(StepError::permanent(
            codes::LB1273,
            format!("the statement gives more than {MOST_ROWS} rows"),
        )
        .help("let it count or aggregate, or give it a `limit`"));
    }
    rows.iter().map(|row| to_json(row, &columns)).collect()
}

/// Puts a statement into another one that turns what has no type in JSON into text, and stops after enough rows.
fn wrapped(sql: &str, columns: &[(String, Type)]) -> String {
    if columns.is_empty() {
        return sql.to_owned();
    }
    let names: Vec<String> = (0..columns.len()).map(|index| format!("c{index}")).collect();
    let selected: Vec<String> = columns
        .iter()
        .zip(&names)
        .map(|((_, ty), name)| match ty.kind() {
            Kind::Array(_) => format!("to_jsonb({name})"),
            _ if is_native(ty) => name.clone(),
            _ => format!("{name}::text"),
        })
        .collect();
    format!(
        "select {} from (\n{sql}\n) as q({}) limit {}",
        selected.join(", "),
        names.join(", "),
        MOST_ROWS + 1
    )
}

fn is_native(ty: &Type) -> bool {
    matches!(
        *ty,
        Type::BOOL
            | Type::INT2
            | Type::INT4
            | Type::INT8
            | Type::OID
            | Type::FLOAT4
            | Type::FLOAT8
            | Type::TEXT
            | Type::VARCHAR
            | Type::NAME
            | Type::JSON
            | Type::JSONB
            | Type::TIMESTAMPTZ
            | Type::TIMESTAMP
            | Type::DATE
    )
}

fn to_json(row: &Row, columns: &[(String, Type)]) -> Result<Value, StepError> {
    let mut object = Map::new();
    for (index, (name, _)) in columns.iter().enumerate() {
        object.insert(
            name.clone(),
            cell(row, index).map_err(|error| {
                StepError::permanent(codes::LB1273, format!("the column `{name}` cannot be read: {error}"))
                    .help("cast it to text in the statement: `column::text`")
            })?,
        );
    }
    Ok(Value::Object(object))
}

fn cell(row: &Row, index: usize) -> Result<Value, tokio_postgres::Error> {
    Ok(match *row.columns()[index].type_() {
        Type::BOOL => get::<bool>(row, index)?.map(Value::from),
        Type::INT2 => get::<i16>(row, index)?.map(Value::from),
        Type::INT4 => get::<i32>(row, index)?.map(Value::from),
        Type::INT8 => get::<i64>(row, index)?.map(Value::from),
        Type::OID => get::<u32>(row, index)?.map(Value::from),
        Type::FLOAT4 => get::<f32>(row, index)?.map(|number| float(f64::from(number))),
        Type::FLOAT8 => get::<f64>(row, index)?.map(float),
        Type::JSON | Type::JSONB => get::<Value>(row, index)?,
        Type::TIMESTAMPTZ => get::<Timestamp>(row, index)?.map(|time| Value::from(time.to_string())),
        Type::TIMESTAMP => get::<DateTime>(row, index)?.map(|time| Value::from(time.to_string())),
        Type::DATE => get::<Date>(row, index)?.map(|date| Value::from(date.to_string())),
        _ => get::<String>(row, index)?.map(Value::from),
    }
    .unwrap_or(Value::Null))
}

fn get<'a, T: FromSql<'a>>(row: &'a Row, index: usize) -> Result<Option<T>, tokio_postgres::Error> {
    row.try_get(index)
}

/// JSON has no `NaN` and no infinity; they are written as text.
fn float(number: f64) -> Value {
    serde_json::Number::from_f64(number).map_or_else(|| Value::from(number.to_string()), Value::Number)
}

/// A value given as text, which the server reads as whatever type the statement needs.
#[derive(Debug)]
pub(super) struct TextParam(Option<String>);

impl TextParam {
    pub(super) fn of(value: &Value) -> Self {
        Self(match value {
            Value::Null => None,
            Value::String(text) => Some(text.clone()),
            other => Some(other.to_string()),
        })
    }
}

impl ToSql for TextParam {
    fn to_sql(&self, _ty: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        match &self.0 {
            None => Ok(IsNull::Yes),
            Some(text) => {
                out.extend_from_slice(text.as_bytes());
                Ok(IsNull::No)
            }
        }
    }

    fn accepts(_ty: &Type) -> bool {
        true
    }

    fn encode_format(&self, _ty: &Type) -> Format {
        Format::Text
    }

    to_sql_checked!();
}
