//! What a table looks like, and whether rows of another one fit into it.

use lifeboat_engine::step::StepError;

use super::super::codes;
use super::super::connect::Client;
use super::super::database::{PATIENT, quoted};

/// A table by schema and name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Name {
    pub(super) schema: String,
    pub(super) table: String,
}

impl Name {
    /// Reads `schema.table`, or a table of the schema `public`. Names are taken as they are written.
    pub(super) fn parse(text: &str) -> Self {
        let (schema, table) = text.split_once('.').unwrap_or(("public", text));
        Self { schema: schema.to_owned(), table: table.to_owned() }
    }

    /// Returns it as SQL takes it.
    pub(super) fn sql(&self) -> String {
        format!("{}.{}", quoted(&self.schema), quoted(&self.table))
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.schema, self.table)
    }
}

/// One column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Column {
    pub(super) name: String,
    pub(super) ty: String,
    not_null: bool,
    identity_always: bool,
    generated: bool,
    has_default: bool,
}

/// A table.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    pub(super) oid: u32,
    pub(super) columns: Vec<Column>,
    /// Columns of the primary key, in its order.
    pub(super) primary: Vec<String>,
    /// Columns of every unique index that is valid, whole and not of expressions.
    unique: Vec<Vec<String>>,
    has_rules: bool,
}

const RELATION: &str = "
    select c.oid, c.relkind::text, exists (select from pg_rewrite r where r.ev_class = c.oid and r.ev_type <> '1')
    from pg_class c join pg_namespace n on n.oid = c.relnamespace where n.nspname = $1 and c.relname = $2";

const COLUMNS: &str = "
    select attname::text, format_type(atttypid, atttypmod), attnotnull, attidentity::text = 'a', attgenerated::text <> '',
      atthasdef or attidentity::text <> ''
    from pg_attribute where attrelid = $1 and attnum > 0 and not attisdropped order by attnum";

const KEYS: &str = "
    select i.indisprimary, (select array_agg(a.attname::text order by k.place)
      from unnest(i.indkey::int2[]) with ordinality k(number, place)
      join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.number where k.place <= i.indnkeyatts)
    from pg_index i
    where i.indrelid = $1 and i.indisunique and i.indisvalid and i.indimmediate and i.indpred is null and i.indexprs is null";

/// Returns a table, `None` if there is none of that name.
pub(super) async fn find(client: &Client, name: &Name) -> Result<Option<Shape>, StepError> {
    let rows = client.query(RELATION, &[&name.schema, &name.table], PATIENT).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let (oid, kind): (u32, String) = (row.get(0), row.get(1));
    if kind != "r" && kind != "p" {
        return Err(unfit(format!("`{name}` is no table")));
    }
    let columns = client.query(COLUMNS, &[&oid], PATIENT).await?;
    let columns = columns.iter().map(|row| Column {
        name: row.get(0),
        ty: row.get(1),
        not_null: row.get(2),
        identity_always: row.get(3),
        generated: row.get(4),
        has_default: row.get(5),
    });
    let columns = columns.collect();
    let (mut primary, mut unique) = (Vec::new(), Vec::new());
    for row in client.query(KEYS, &[&oid], PATIENT).await? {
        let names: Vec<String> = row.get(1);
        if row.get(0) {
            primary.clone_from(&names);
        }
        unique.push(names);
    }
    Ok(Some(Shape { oid, columns, primary, unique, has_rules: row.get(2) }))
}

/// How rows go from one table into another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fit {
    /// Columns that are copied, in the order of the source.
    pub(super) columns: Vec<Column>,
    pub(super) key: Vec<String>,
    /// Columns that a replaced row gets new values in.
    pub(super) values: Vec<String>,
    pub(super) warnings: Vec<String>,
}

impl Fit {
    /// Finds out whether rows of `source` can become rows of `live`, known by `key` or by the primary key.
    pub(super) fn of(source: &Shape, live: &Shape, key: Option<&[String]>) -> Result<Self, StepError> {
        if live.has_rules {
            return Err(unfit(
                "the live table has rewrite rules, which would change what is written".to_owned(),
            ));
        }
        let (mut columns, mut warnings, mut problems) = (Vec::new(), Vec::new(), Vec::new());
        for column in source.columns.iter().filter(|column| !column.generated) {
            match live.columns.iter().find(|other| other.name == column.name) {
                None => problems.push(format!("the live table has no column `{}`", column.name)),
                Some(other) if other.generated => {
                    warnings.push(format!("`{}` is computed by the live table", column.name));
                }
                Some(other) if other.ty != column.ty => problems.push(format!(
                    "`{}` is {} in the recovered table and {} in the live one",
                    column.name, column.ty, other.ty
                )),
                Some(other) => columns.push(other.clone()),
            }
        }
        for column in &live.columns {
            if column.generated || source.columns.iter().any(|other| other.name == column.name) {
                continue;
            }
            if column.not_null && !column.has_default {
                problems.push(format!(
                    "`{}` of the live table needs a value, and was not there then",
                    column.name
                ));
            } else {
                warnings
                    .push(format!("`{}` was not there then: recovered rows get its default", column.name));
            }
        }
        let key = key_of(live, key, &columns, &mut problems);
        if !problems.is_empty() {
            return Err(unfit(problems.join("; ")));
        }
        let values = columns.iter().filter(|column| !key.contains(&column.name) && !column.identity_always);
        let values = values.map(|column| column.name.clone()).collect();
        Ok(Self { columns, key, values, warnings })
    }

    /// Returns the names of the columns as a list, each with a prefix such as `s.`.
    pub(super) fn list(&self, prefix: &str) -> String {
        list(self.columns.iter().map(|column| column.name.as_str()), prefix)
    }

    /// Returns a row as text, which is the same on every server with the same settings.
    pub(super) fn row(&self, alias: &str) -> String {
        format!("row({})::text", self.list(&format!("{alias}.")))
    }

    /// Returns the condition that two rows have the same key.
    pub(super) fn same_key(&self, a: &str, b: &str) -> String {
        let one = |name: &String| format!("{a}.{0} = {b}.{0}", quoted(name));
        self.key.iter().map(one).collect::<Vec<_>>().join(" and ")
    }
}

/// Writes names as SQL takes them.
pub(super) fn list<'a>(names: impl Iterator<Item = &'a str>, prefix: &str) -> String {
    names.map(|name| format!("{prefix}{}", quoted(name))).collect::<Vec<_>>().join(", ")
}

/// The columns that tell rows apart: only a unique index on columns that are never null does.
fn key_of(
    live: &Shape,
    wanted: Option<&[String]>,
    columns: &[Column],
    problems: &mut Vec<String>,
) -> Vec<String> {
    let key = match wanted {
        Some(wanted) => wanted.to_vec(),
        None if live.primary.is_empty() => {
            problems.push(
                "the live table has no primary key: name the columns of a unique index in `key`".into(),
            );
            return Vec::new();
        }
        None => live.primary.clone(),
    };
    let sorted = |names: &[String]| {
        let mut names = names.to_vec();
        names.sort();
        names
    };
    if !live.unique.iter().any(|unique| sorted(unique) == sorted(&key)) {
        problems.push(format!("the live table has no unique index on exactly ({})", key.join(", ")));
    }
    for name in &key {
        match columns.iter().find(|column| &column.name == name) {
            None => problems.push(format!("the key column `{name}` is not in both tables")),
            Some(column) if !column.not_null => problems.push(format!("the key column `{name}` may be null")),
            Some(_) => {}
        }
    }
    key
}

pub(super) fn unfit(problem: String) -> StepError {
    StepError::permanent(codes::LB1810, problem)
        .help("nothing was written; compare the two definitions, or copy the rows into a table of their own with `mode: new_table`")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(name: &str, ty: &str) -> Column {
        Column {
            name: name.into(),
            ty: ty.into(),
            not_null: name == "id",
            identity_always: name == "number",
            generated: name == "search",
            has_default: false,
        }
    }

    fn shape(columns: &[(&str, &str)]) -> Shape {
        let columns = columns.iter().map(|(name, ty)| column(name, ty)).collect();
        let id = vec!["id".to_owned()];
        Shape { oid: 1, columns, primary: id.clone(), unique: vec![id], has_rules: false }
    }

    #[test]
    fn computed_columns_are_left_to_the_live_table() {
        let both = shape(&[("id", "integer"), ("number", "bigint"), ("name", "text"), ("search", "text")]);
        let fit = Fit::of(&both, &both, None).unwrap();
        assert_eq!(fit.list("s."), r#"s."id", s."number", s."name""#);
        assert_eq!((fit.key, fit.values), (vec!["id".to_owned()], vec!["name".to_owned()]));
    }

    #[test]
    fn every_difference_is_named_at_once() {
        let source = shape(&[("id", "integer"), ("name", "text"), ("old", "text")]);
        let mut live = shape(&[("id", "bigint"), ("name", "text"), ("new", "text")]);
        live.columns[2].not_null = true;
        let error = Fit::of(&source, &live, None).unwrap_err();
        for problem in ["`id` is integer", "no column `old`", "`new` of the live table needs a value"] {
            assert!(error.message.contains(problem), "{error}");
        }
    }

    #[test]
    fn a_key_must_tell_rows_apart() {
        let table = shape(&[("id", "integer"), ("name", "text")]);
        let error = Fit::of(&table, &table, Some(&["name".to_owned()])).unwrap_err();
        assert!(error.message.contains("no unique index on exactly (name)"), "{error}");
        let mut nullable = table.clone();
        nullable.unique.push(vec!["name".into()]);
        let error = Fit::of(&table, &nullable, Some(&["name".to_owned()])).unwrap_err();
        assert!(error.message.contains("may be null"), "{error}");
        let mut none = table.clone();
        none.primary.clear();
        assert!(Fit::of(&table, &none, None).unwrap_err().message.contains("no primary key"));
    }

    #[test]
    fn names_have_a_schema() {
        assert_eq!(Name::parse("people").sql(), r#""public"."people""#);
        assert_eq!(Name::parse("app.Odd name").sql(), r#""app"."Odd name""#);
    }
}
