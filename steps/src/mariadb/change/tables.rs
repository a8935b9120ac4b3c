//! The tables of a change: which may be changed, and how their values are read and written exactly.

use lifeboat_engine::step::StepError;
use mysql_async::Row as Answer;

use super::super::codes;
use super::super::connect::{Client, PATIENT, literal, number, quoted, text};

/// How values of a column are read as text and written again, without losing anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Class {
    Number,
    Bits,
    Float,
    /// Of a character set; in hexadecimal.
    Text(String),
    /// In hexadecimal.
    Bytes,
    /// Times, addresses: as the server writes them.
    Plain,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Column {
    pub(super) name: String,
    pub(super) class: Class,
    /// Gets a value of its own with each attempt.
    pub(super) given: bool,
}

/// A table that may be changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Watched {
    pub(super) schema: String,
    pub(super) name: String,
    /// Without generated ones.
    pub(super) columns: Vec<Column>,
    /// The columns of the primary key, in its order.
    pub(super) key: Vec<usize>,
}

/// Values of a row, in the order of [`Watched::columns`], or of its key.
pub(super) type Cells = Vec<Option<String>>;

/// What the server answers instead of a value that is too long to be read.
const TOO_LONG: &str = "!";

impl Column {
    /// Reads the value.
    pub(super) fn read(&self) -> String {
        let name = quoted(&self.name);
        match self.class {
            Class::Number | Class::Plain => format!("cast({name} as char)"),
            Class::Bits => format!("cast(cast({name} as unsigned) as char)"),
            // A `float` as text would be rounded to 6 digits.
            Class::Float => format!("cast(cast({name} as double) as char)"),
            // Beyond `max_allowed_packet` the server answers null.
            Class::Text(_) | Class::Bytes => {
                format!("if({name} is null, null, ifnull(hex({name}), '{TOO_LONG}'))")
            }
        }
    }

    /// Reads something that is another when the value is another, and is short.
    pub(super) fn print(&self) -> String {
        match self.class {
            Class::Text(_) | Class::Bytes => format!("md5({})", quoted(&self.name)),
            _ => self.read(),
        }
    }

    /// Writes a value that was read.
    pub(super) fn write(&self, value: Option<&str>) -> String {
        let Some(value) = value else { return "null".to_owned() };
        match &self.class {
            Class::Number | Class::Bits => value.to_owned(),
            Class::Float | Class::Plain => literal(value),
            Class::Text(charset) => format!("_{charset} x'{value}'"),
            Class::Bytes => format!("x'{value}'"),
        }
    }
}

impl Watched {
    /// As SQL takes it.
    pub(super) fn sql(&self) -> String {
        format!("{}.{}", quoted(&self.schema), quoted(&self.name))
    }

    /// As people read it.
    pub(super) fn shown(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }

    pub(super) fn key_columns(&self) -> impl DoubleEndedIterator<Item = &Column> + ExactSizeIterator {
        self.key.iter().map(|index| &self.columns[*index])
    }

    /// Returns the key of a row.
    pub(super) fn key_of(&self, cells: &Cells) -> Cells {
        self.key.iter().map(|index| cells[*index].clone()).collect()
    }

    /// Returns a condition that finds the row of a key.
    pub(super) fn at(&self, key: &Cells) -> String {
        let one = |(column, value): (&Column, &Option<String>)| {
            format!("{} = {}", quoted(&column.name), column.write(value.as_deref()))
        };
        self.key_columns().zip(key).map(one).collect::<Vec<_>>().join(" and ")
    }
}

fn unwatched(problem: String) -> StepError {
    StepError::permanent(codes::LB2065, problem).help("nothing was changed; correct `tables`")
}

/// Looks a table up by the name that the runbook gives it: `table` or `database.table`.
pub(super) async fn find(client: &mut Client, name: &str) -> Result<Watched, StepError> {
    let plain = |part: &str| literal(part.trim().trim_matches('`'));
    let (schema, table) = match name.split_once('.') {
        Some((schema, table)) => (plain(schema), plain(table)),
        None => ("database()".to_owned(), plain(name)),
    };
    let sql = format!(
        "select table_schema, table_name, table_type, ifnull(engine, '') from information_schema.tables \
         where table_schema = {schema} and table_name = {table}"
    );
    let rows = client.rows(&sql, PATIENT).await?;
    let Some(row) = rows.first() else {
        return Err(unwatched(format!("there is no table `{name}`")));
    };
    let (schema, table) = (text(row, 0), text(row, 1));
    if text(row, 2) != "BASE TABLE" || schema == "lifeboat" {
        return Err(unwatched(format!("`{name}` is no plain table, whose rows can be watched")));
    }
    if text(row, 3) != "InnoDB" {
        return Err(unwatched(format!(
            "`{name}` is a table of {}, which cannot take a change back",
            text(row, 3)
        ))
        .help("nothing was changed; convert it first: alter table … engine = InnoDB"));
    }
    let place = format!("table_schema = {} and table_name = {}", literal(&schema), literal(&table));
    let columns = columns(client, name, &place).await?;
    let key = key(client, name, &place, &columns).await?;
    Ok(Watched { schema, name: table, columns, key })
}

async fn columns(client: &mut Client, name: &str, place: &str) -> Result<Vec<Column>, StepError> {
    let sql = format!(
        "select column_name, data_type, ifnull(character_set_name, ''), extra like '%auto_increment%' \
         from information_schema.columns where {place} and is_generated = 'NEVER' order by ordinal_position"
    );
    let one = |row: &Answer| {
        let class = class(&text(row, 1), &text(row, 2)).ok_or_else(|| {
            unwatched(format!(
                "`{name}` has a column `{}` of type {}, which is not known here",
                text(row, 0),
                text(row, 1)
            ))
        })?;
        Ok(Column { name: text(row, 0), class, given: number(row, 3) == 1 })
    };
    client.rows(&sql, PATIENT).await?.iter().map(one).collect()
}

async fn key(
    client: &mut Client,
    name: &str,
    place: &str,
    columns: &[Column],
) -> Result<Vec<usize>, StepError> {
    let sql = format!(
        "select column_name, ifnull(sub_part, '') from information_schema.statistics \
         where {place} and index_name = 'PRIMARY' order by seq_in_index"
    );
    let rows = client.rows(&sql, PATIENT).await?;
    if rows.is_empty() {
        return Err(unwatched(format!("`{name}` has no primary key, so that there would be no way back"))
            .help("nothing was changed; give it one first: alter table … add primary key (…)"));
    }
    let place_of = |row: &Answer| {
        let whole = text(row, 1).is_empty();
        columns.iter().position(|column| whole && column.name == text(row, 0))
    };
    let key: Option<Vec<usize>> = rows.iter().map(place_of).collect();
    key.ok_or_else(|| unwatched(format!("the primary key of `{name}` is made of parts of columns")))
}

fn class(data_type: &str, charset: &str) -> Option<Class> {
    Some(match data_type {
        "tinyint" | "smallint" | "mediumint" | "int" | "bigint" | "decimal" | "year" => Class::Number,
        "bit" => Class::Bits,
        "float" | "double" => Class::Float,
        "date" | "datetime" | "timestamp" | "time" | "uuid" | "inet4" | "inet6" => Class::Plain,
        "char" | "varchar" | "tinytext" | "text" | "mediumtext" | "longtext" | "enum" | "set" => {
            match charset {
                "" | "binary" => Class::Bytes,
                charset => Class::Text(charset.to_owned()),
            }
        }
        "binary" | "varbinary" | "tinyblob" | "blob" | "mediumblob" | "longblob" | "geometry" | "point"
        | "linestring" | "polygon" | "multipoint" | "multilinestring" | "multipolygon"
        | "geometrycollection" => Class::Bytes,
        _ => return None,
    })
}

/// Returns values that were read with [`Column::read`].
pub(super) fn cells(row: &Answer, from: usize, count: usize) -> Result<Cells, StepError> {
    use mysql_async::Value;
    let one = |index| match row.as_ref(index) {
        None | Some(Value::NULL) => Ok(None),
        _ => match text(row, index) {
            long if long == TOO_LONG => Err(StepError::permanent(
                codes::LB2065,
                "a value is longer than `max_allowed_packet` allows it to be read",
            )
            .help(
                "nothing was changed; raise max_allowed_packet of the server to more than twice its length",
            )),
            value => Ok(Some(value)),
        },
    };
    (from..from + count).map(one).collect()
}
