//! The way back: statements that undo a change row by row, and stop at the first row that is another one now.

use lifeboat_engine::step::StepError;

use super::super::connect::Client;
use super::super::database::{PATIENT, text};
use super::capture::{Row, list};

/// Rows are compared as text that was written under these settings.
pub(super) const SETTINGS: &str = "set local timezone = 'UTC'; set local intervalstyle = 'postgres'; \
    set local bytea_output = 'hex'; set local extra_float_digits = 1";

/// The columns of a table that a statement may set.
struct Columns {
    all: Vec<String>,
    /// Without identity values that are always generated.
    free: Vec<String>,
    key: Vec<String>,
}

const COLUMNS: &str = "
    select a.attname::text, a.attidentity::text = 'a', coalesce(a.attnum = any (i.indkey::int2[]), false)
    from pg_attribute a left join pg_index i on i.indrelid = a.attrelid and i.indisprimary
    where a.attrelid = $1::text::regclass and a.attnum > 0 and not a.attisdropped and a.attgenerated::text = ''
    order by a.attnum";

/// Returns one statement for each row, last first.
pub(super) async fn statements(client: &Client, rows: &[Row]) -> Result<Vec<String>, StepError> {
    let mut known = std::collections::BTreeMap::new();
    let mut statements = Vec::new();
    for row in rows.iter().rev() {
        if !known.contains_key(&row.table) {
            known.insert(row.table.clone(), columns(client, &row.table).await?);
        }
        statements.push(statement(row, &known[&row.table]));
    }
    Ok(statements)
}

async fn columns(client: &Client, table: &str) -> Result<Columns, StepError> {
    let rows = client.query(COLUMNS, &[&table], PATIENT).await?;
    let pick = |wanted: fn(bool, bool) -> bool| {
        let rows = rows.iter().filter(|row| wanted(row.get(1), row.get(2)));
        rows.map(|row| row.get(0)).collect()
    };
    Ok(Columns { all: pick(|_, _| true), free: pick(|always, _| !always), key: pick(|_, key| key) })
}

fn statement(row: &Row, columns: &Columns) -> String {
    let table = &row.table;
    let json = |row: &Option<String>| text(row.as_deref().unwrap_or("{}"));
    let record = |row: &Option<String>| format!("jsonb_populate_record(null::{table}, {}) r", json(row));
    // The key finds the row; that it is still the one that was written is what makes it ours to take back.
    let ours = |row: &Option<String>| {
        format!(
            "({}) = (select {} from {}) and to_jsonb(t) = {}::jsonb",
            list(&columns.key, "t."),
            list(&columns.key, "r."),
            record(row),
            json(row)
        )
    };
    match row.operation.as_str() {
        "insert" => format!("delete from {table} t where {}", ours(&row.after)),
        "delete" => format!(
            "insert into {table} ({}) overriding system value select {} from {}",
            list(&columns.all, ""),
            list(&columns.all, "r."),
            record(&row.before)
        ),
        _ => format!(
            "update {table} t set ({}) = (select {} from {}) where {}",
            list(&columns.free, ""),
            list(&columns.free, "r."),
            record(&row.before),
            ours(&row.after)
        ),
    }
}

/// Returns one statement that runs all of them, each of which must concern exactly one row.
///
/// Rows that a cascade took come after the row that they refer to, so that their order backwards is wrong: what a foreign
/// key refuses is tried again after the others, as long as that gets any further.
pub(super) fn block(statements: &[String]) -> String {
    let todo: Vec<_> = statements.iter().map(|statement| text(statement)).collect();
    let body = format!(
        "declare todo text[] := array[{}]::text[]; rest text[]; one text; n bigint; why text; \
         begin loop rest := '{{}}'; \
         foreach one in array todo loop begin execute one; get diagnostics n = row_count; \
         if n <> 1 then raise exception using errcode = 'LB001', \
         message = 'a row has been changed since; nothing was taken back: ' || left(one, 200); end if; \
         exception when foreign_key_violation or restrict_violation then rest := rest || one; why := sqlerrm; end; end loop; \
         exit when cardinality(rest) = 0; \
         if cardinality(rest) = cardinality(todo) then raise exception using errcode = 'LB001', message = why; end if; \
         todo := rest; end loop; end",
        todo.join(", ")
    );
    format!("do {}", text(&body))
}

/// Returns the statements as a file that `psql` takes: all or nothing.
pub(super) fn script(key: &str, statements: &[String]) -> String {
    format!(
        "-- Takes back the change `{}`, unless somebody has changed its rows since.\n\
         -- psql -v ON_ERROR_STOP=1 -f reverse.sql DATABASE\n\
         begin;\n{SETTINGS};\n{};\n\
         update lifeboat.changes set undone_at = clock_timestamp() where key = {};\ncommit;\n",
        key.replace('\n', " "),
        block(statements),
        text(key)
    )
}
