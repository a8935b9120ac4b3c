//! What a transaction has done to tables: its rows compared with those of a snapshot from before, by primary key.

use std::collections::HashMap;

use lifeboat_engine::step::StepError;
use serde_json::{Map, Value, json};

use super::super::connect::{Client, PATIENT, quoted, text};
use super::tables::{self, Cells, Class, Column, Watched};
use crate::change;

/// So many rows of a table are in memory at a time, by their keys.
const CHUNK: usize = 5_000;
/// So many rows are fetched whole by one statement.
const BATCH: usize = 100;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Insert,
    Update,
    Delete,
}

impl Operation {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Insert => "insert",
            Self::Update => "update",
            Self::Delete => "delete",
        }
    }

    pub(super) fn parse(name: &str) -> Self {
        match name {
            "insert" => Self::Insert,
            "update" => Self::Update,
            _ => Self::Delete,
        }
    }
}

/// What happened to one row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    /// Among the tables of the change.
    pub(super) table: usize,
    pub(super) operation: Operation,
    pub(super) before: Option<Cells>,
    pub(super) after: Option<Cells>,
}

/// A transaction, and a snapshot from before what it did.
#[derive(Debug)]
pub(super) struct Pair<'a> {
    pub(super) now: &'a mut Client,
    pub(super) before: &'a mut Client,
}

impl Pair<'_> {
    /// Returns what differs, or `None` if that is more than `most` rows. At most [`CHUNK`] and `most` keys are in memory.
    /// `report` is told how many rows were compared.
    pub(super) async fn difference(
        &mut self,
        tables: &[Watched],
        most: usize,
        report: impl Fn(u64),
    ) -> Result<Option<Vec<Row>>, StepError> {
        let (mut all, mut compared) = (Vec::new(), 0);
        for (index, table) in tables.iter().enumerate() {
            let mut from = None;
            loop {
                let was = prints(self.before, table, (from.as_ref(), None), CHUNK).await?;
                let to = if was.len() == CHUNK { was.last().map(|(key, _)| key.clone()) } else { None };
                let limit = CHUNK + most + 1;
                let is = prints(self.now, table, (from.as_ref(), to.as_ref()), limit).await?;
                compared += was.len() as u64;
                let found = compare(was, is);
                if all.len() + found.len() > most {
                    return Ok(None);
                }
                all.extend(self.fetch(index, table, &found).await?);
                report(compared);
                match to {
                    Some(last) => from = Some(last),
                    None => break,
                }
            }
        }
        Ok(Some(all))
    }

    async fn fetch(
        &mut self,
        index: usize,
        table: &Watched,
        found: &[(Operation, Cells)],
    ) -> Result<Vec<Row>, StepError> {
        let keys = |not: Operation| -> Vec<&Cells> {
            found.iter().filter(|(operation, _)| *operation != not).map(|(_, key)| key).collect()
        };
        let mut before = whole(self.before, table, &keys(Operation::Insert)).await?;
        let mut after = whole(self.now, table, &keys(Operation::Delete)).await?;
        let one = |(operation, key): &(Operation, Cells)| Row {
            table: index,
            operation: *operation,
            before: before.remove(key),
            after: after.remove(key),
        };
        Ok(found.iter().map(one).collect())
    }
}

/// Names what happened to which key, in the order of the keys, those of rows that are gone last.
fn compare(was: Vec<(Cells, String)>, is: Vec<(Cells, String)>) -> Vec<(Operation, Cells)> {
    let order: Vec<Cells> = was.iter().map(|(key, _)| key.clone()).collect();
    let mut was: HashMap<Cells, String> = was.into_iter().collect();
    let mut found = Vec::new();
    for (key, print) in is {
        match was.remove(&key) {
            None => found.push((Operation::Insert, key)),
            Some(before) if before != print => found.push((Operation::Update, key)),
            Some(_) => {}
        }
    }
    found.extend(order.into_iter().filter(|key| was.contains_key(key)).map(|key| (Operation::Delete, key)));
    found
}

/// Returns keys and digests of rows, in the order of the key, after `from` and up to `to`.
async fn prints(
    client: &mut Client,
    table: &Watched,
    (from, to): (Option<&Cells>, Option<&Cells>),
    limit: usize,
) -> Result<Vec<(Cells, String)>, StepError> {
    let keys: Vec<String> = table.key_columns().map(Column::read).collect();
    let prints: Vec<String> =
        table.columns.iter().map(|column| format!("ifnull({}, '~')", column.print())).collect();
    let order: Vec<String> = table.key_columns().map(|column| quoted(&column.name)).collect();
    let bounds = [from.map(|key| beyond(table, key)), to.map(|key| format!("not ({})", beyond(table, key)))];
    let bounds: Vec<String> = bounds.into_iter().flatten().collect();
    let bounds = if bounds.is_empty() { String::new() } else { format!("where {}", bounds.join(" and ")) };
    let sql = format!(
        "select {}, md5(concat_ws('|', {})) from {} force index (primary) {bounds} order by {} limit {limit}",
        keys.join(", "),
        prints.join(", "),
        table.sql(),
        order.join(", ")
    );
    let rows = client.rows(&sql, PATIENT).await?;
    let one = |row: &_| Ok((tables::cells(row, 0, keys.len())?, text(row, keys.len())));
    rows.iter().map(one).collect()
}

/// Returns a condition for the rows after a key, of a form for which the server uses the index.
fn beyond(table: &Watched, key: &Cells) -> String {
    let mut condition = String::new();
    for (column, value) in table.key_columns().zip(key).rev() {
        let (name, value) = (quoted(&column.name), column.write(value.as_deref()));
        condition = match condition.as_str() {
            "" => format!("{name} > {value}"),
            rest => format!("{name} > {value} or ({name} = {value} and ({rest}))"),
        };
    }
    condition
}

async fn whole(
    client: &mut Client,
    table: &Watched,
    keys: &[&Cells],
) -> Result<HashMap<Cells, Cells>, StepError> {
    let columns: Vec<String> = table.columns.iter().map(Column::read).collect();
    let mut all = HashMap::new();
    for keys in keys.chunks(BATCH) {
        let places: Vec<String> = keys.iter().map(|key| format!("({})", table.at(key))).collect();
        let sql = format!("select {} from {} where {}", columns.join(", "), table.sql(), places.join(" or "));
        for row in client.rows(&sql, PATIENT).await? {
            let cells = tables::cells(&row, 0, columns.len())?;
            all.insert(table.key_of(&cells), cells);
        }
    }
    Ok(all)
}

/// Returns a value for people.
fn shown(column: &Column, value: Option<&str>) -> Value {
    let Some(value) = value else { return Value::Null };
    match &column.class {
        Class::Number | Class::Bits => value.parse::<i64>().map_or_else(|_| value.into(), Value::from),
        Class::Float => value.parse::<f64>().map_or_else(|_| value.into(), Value::from),
        Class::Plain => value.into(),
        Class::Bytes => format!("0x{}", value.to_lowercase()).into(),
        Class::Text(_) => {
            let pairs = (0..value.len() / 2).map(|at| u8::from_str_radix(&value[2 * at..2 * at + 2], 16));
            let bytes: Result<Vec<u8>, _> = pairs.collect();
            bytes
                .ok()
                .and_then(|bytes| String::from_utf8(bytes).ok())
                .map_or_else(|| format!("0x{}", value.to_lowercase()).into(), Value::from)
        }
    }
}

impl Row {
    /// Returns the row for people: the key, and of an update only what changed.
    pub(super) fn shown(&self, tables: &[Watched]) -> Value {
        let table = &tables[self.table];
        let value =
            |cells: &Option<Cells>, index: usize| cells.as_ref().and_then(|cells| cells[index].clone());
        let differs = |index: usize| {
            self.before.is_none()
                || self.after.is_none()
                || value(&self.before, index) != value(&self.after, index)
        };
        let map = |cells: &Option<Cells>, wanted: &dyn Fn(usize) -> bool| -> Map<String, Value> {
            let Some(cells) = cells else { return Map::new() };
            let all = table.columns.iter().zip(cells).enumerate();
            all.filter(|(index, _)| wanted(*index))
                .map(|(_, (column, value))| (column.name.clone(), shown(column, value.as_deref())))
                .collect()
        };
        let whole = if self.after.is_some() { &self.after } else { &self.before };
        json!({
            "table": table.shown(), "operation": self.operation.name(),
            "key": map(whole, &|index| table.key.contains(&index)),
            "before": map(&self.before, &differs), "after": map(&self.after, &differs),
        })
    }

    /// What two attempts at one change have in common, in one line.
    fn lasting(&self, tables: &[Watched], ignore: &[String]) -> String {
        let table = &tables[self.table];
        let new = self.operation == Operation::Insert;
        let map = |cells: &Option<Cells>| -> Map<String, Value> {
            let Some(cells) = cells else { return Map::new() };
            let all = table.columns.iter().zip(cells);
            all.filter(|(column, _)| !(ignore.contains(&column.name) || new && column.given))
                .map(|(column, value)| (column.name.clone(), json!(value)))
                .collect()
        };
        json!([table.shown(), self.operation.name(), map(&self.before), map(&self.after)]).to_string()
    }
}

/// Returns a digest of a difference; see [`change::digest`].
pub(super) fn digest(rows: &[Row], tables: &[Watched], ignore: &[String]) -> String {
    change::digest(rows.iter().map(|row| row.lasting(tables, ignore)).collect())
}

/// Counts what happened by table.
pub(super) fn summary(rows: &[Row], tables: &[Watched]) -> Value {
    change::summary(rows.iter().map(|row| (tables[row.table].shown(), row.operation.name())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watched() -> Watched {
        let column = |name: &str, class, given| Column { name: name.into(), class, given };
        let columns = vec![
            column("id", Class::Number, true),
            column("name", Class::Text("utf8mb4".into()), false),
            column("raw", Class::Bytes, false),
        ];
        Watched { schema: "s".into(), name: "t".into(), columns, key: vec![0, 1] }
    }

    fn cells(id: &str, name: &str) -> Cells {
        vec![Some(id.into()), Some(name.into()), None]
    }

    #[test]
    fn keys_that_come_go_or_differ_are_found() {
        let one = |key: &str, print: &str| (vec![Some(key.to_owned())], print.to_owned());
        let found = compare(
            vec![one("1", "a"), one("2", "b"), one("3", "c")],
            vec![one("2", "b"), one("3", "C"), one("4", "d")],
        );
        let key = |key: &str| vec![Some(key.to_owned())];
        let expected =
            [(Operation::Update, key("3")), (Operation::Insert, key("4")), (Operation::Delete, key("1"))];
        assert_eq!(found, expected);
    }

    #[test]
    fn the_rows_after_a_key_of_two_columns_are_found_by_the_index() {
        let key = vec![Some("5".to_owned()), Some("4142".to_owned())];
        assert_eq!(beyond(&watched(), &key), "`id` > 5 or (`id` = 5 and (`name` > _utf8mb4 x'4142'))");
    }

    #[test]
    fn an_approved_difference_is_recognised_without_numbers_given_out_anew() {
        let insert = |id: &str, name: &str| Row {
            table: 0,
            operation: Operation::Insert,
            before: None,
            after: Some(cells(id, name)),
        };
        let tables = [watched()];
        let digest = |rows: &[Row]| digest(rows, &tables, &[]);
        assert_eq!(
            digest(&[insert("1", "41"), insert("2", "42")]),
            digest(&[insert("8", "42"), insert("9", "41")])
        );
        assert_ne!(digest(&[insert("1", "41")]), digest(&[insert("1", "42")]));
        let gone = |id: &str| Row {
            operation: Operation::Delete,
            before: Some(cells(id, "41")),
            after: None,
            ..insert("1", "41")
        };
        assert_ne!(digest(&[gone("1")]), digest(&[gone("2")]));
        assert_eq!(gone("1").shown(&tables)["before"], json!({"id": 1, "name": "A", "raw": null}));
    }
}
