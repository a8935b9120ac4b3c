//! Watches what statements do to tables, row by row, within one transaction.

use lifeboat_engine::step::StepError;
use serde_json::{Map, Value, json};

use super::super::codes;
use super::super::connect::Client;
use super::super::database::{PATIENT, quoted};
use crate::change;

/// A table that may be changed.
#[derive(Clone, Debug)]
pub(super) struct Watched {
    pub(super) oid: u32,
    /// As SQL takes it, with its schema.
    pub(super) sql: String,
    pub(super) key: Vec<String>,
    /// Columns that get a value of their own with each attempt, such as numbers of a sequence.
    given: Vec<String>,
}

/// What happened to one row.
///
/// Rows are JSON as the server writes it: read into numbers of ours, a `numeric` would lose digits.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Row {
    /// As SQL takes it.
    pub(super) table: String,
    /// `insert`, `update` or `delete`.
    pub(super) operation: String,
    pub(super) before: Option<String>,
    pub(super) after: Option<String>,
    /// Both without columns that are others each time: what two attempts at one change have in common.
    pub(super) lasting: String,
}

/// What happened, in order, without updates that changed nothing.
pub(super) const SEEN: &str = "
    select row_number() over (order by s.seq) as n, format('%I.%I', n.nspname, c.relname) as relation, s.relation as oid,
      s.operation, s.before, s.after
    from pg_temp.lifeboat_seen s join pg_class c on c.oid = s.relation join pg_namespace n on n.oid = c.relnamespace";

/// Raised within a statement when it has changed too many rows.
pub(super) const TOO_MANY: &str = "LB002";

const TABLE: &str = "
    select c.oid, format('%I.%I', n.nspname, c.relname), c.relkind::text,
      coalesce((select array_agg(a.attname::text order by k.place)
        from pg_index i, unnest(i.indkey::int2[]) with ordinality k(number, place)
        join pg_attribute a on a.attnum = k.number where a.attrelid = c.oid and i.indrelid = c.oid and i.indisprimary), '{}'),
      coalesce((select array_agg(a.attname::text) from pg_attribute a left join pg_attrdef d
        on d.adrelid = a.attrelid and d.adnum = a.attnum
        where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped and a.attgenerated::text = ''
          and (a.attidentity::text <> '' or pg_get_expr(d.adbin, d.adrelid) like 'nextval(%')), '{}')
    from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = to_regclass($1)";

/// Looks a table up by the name that the runbook gives it.
pub(super) async fn find(client: &Client, name: &str) -> Result<Watched, StepError> {
    let rows = client.query(TABLE, &[&name], PATIENT).await?;
    let Some(row) = rows.first() else {
        return Err(unwatched(format!("there is no table `{name}`")));
    };
    if row.get::<_, &str>(2) != "r" {
        return Err(unwatched(format!("`{name}` is no plain table, whose rows can be watched")));
    }
    let key: Vec<String> = row.get(3);
    if key.is_empty() {
        return Err(unwatched(format!("`{name}` has no primary key, so that there would be no way back")));
    }
    Ok(Watched { oid: row.get(0), sql: row.get(1), key, given: row.get(4) })
}

fn unwatched(problem: String) -> StepError {
    StepError::permanent(codes::LB1825, problem).help("nothing was changed; correct `tables`")
}

/// Begins to watch. Everything that this makes goes away with [`end`] or with the transaction.
///
/// A statement fails as soon as it has changed more than `most` rows. What is noted of a row does not depend on the settings
/// of the session, so that it can be compared later.
pub(super) async fn begin(client: &Client, tables: &[Watched], most: u64) -> Result<(), StepError> {
    let mut sql = "
        select set_config('track_counts', 'on', true) where current_setting('track_counts') = 'off';
        create temporary table lifeboat_seen (seq bigint generated always as identity, relation oid, operation text,
          before jsonb, after jsonb) on commit drop;
        create function pg_temp.lifeboat_see() returns trigger language plpgsql security definer
          set timezone = 'UTC' set intervalstyle = 'postgres' set bytea_output = 'hex' set extra_float_digits = 1 as $see$
          declare was jsonb; is_now jsonb; number bigint;
          begin
            if tg_op = 'TRUNCATE' then
              raise exception 'a table may not be truncated in a change';
            end if;
            if tg_op <> 'INSERT' then was := to_jsonb(old); end if;
            if tg_op <> 'DELETE' then is_now := to_jsonb(new); end if;
            if was is distinct from is_now then
              insert into pg_temp.lifeboat_seen (relation, operation, before, after) values (tg_relid, lower(tg_op), was, is_now)
                returning seq into number;
              if number > MOST then
                raise exception using errcode = 'TOO_MANY', message = 'more rows are changed than allowed';
              end if;
            end if;
            return null;
          end $see$;"
        .replace("MOST", &most.to_string())
        .replace("TOO_MANY", TOO_MANY);
    for Watched { sql: table, .. } in tables {
        sql.push_str(&format!(
            "create trigger zzz_lifeboat_see after insert or update or delete on {table}
               for each row execute function pg_temp.lifeboat_see();
             create trigger zzz_lifeboat_truncate before truncate on {table}
               for each statement execute function pg_temp.lifeboat_see();
             alter table {table} enable always trigger zzz_lifeboat_see;
             alter table {table} enable always trigger zzz_lifeboat_truncate;"
        ));
    }
    client.batch(&sql, PATIENT).await.map_err(super::kind::refused)
}

/// Takes the watch away again; what it saw stays until the transaction ends.
pub(super) async fn end(client: &Client, tables: &[Watched]) -> Result<(), StepError> {
    let mut sql = "set constraints all immediate;".to_owned();
    for Watched { sql: table, .. } in tables {
        sql.push_str(&format!(
            "drop trigger zzz_lifeboat_see on {table}; drop trigger zzz_lifeboat_truncate on {table};"
        ));
    }
    sql.push_str("drop function pg_temp.lifeboat_see();");
    client.batch(&sql, PATIENT).await.map_err(super::kind::refused)
}

/// Returns what happened, in order. Columns named in `ignore`, and what a new row got from a sequence, do not last.
pub(super) async fn rows(
    client: &Client,
    tables: &[Watched],
    ignore: &[String],
) -> Result<Vec<Row>, StepError> {
    let sql = format!(
        "select q.relation, q.operation, q.before::text, q.after::text,
           jsonb_build_array(q.before - i.columns, q.after - i.columns)::text
         from ({SEEN}) q cross join lateral (select $1::text[] || case when q.operation = 'insert' then
           array(select jsonb_array_elements_text($2::jsonb -> q.oid::text)) else '{{}}' end as columns) i
         order by q.n"
    );
    let given: Map<String, Value> =
        tables.iter().map(|table| (table.oid.to_string(), json!(table.given))).collect();
    let rows = client.query(&sql, &[&ignore, &Value::Object(given)], PATIENT).await?;
    let one = |row: &tokio_postgres::Row| Row {
        table: row.get(0),
        operation: row.get(1),
        before: row.get(2),
        after: row.get(3),
        lasting: row.get(4),
    };
    Ok(rows.iter().map(one).collect())
}

/// Names tables whose rows this transaction has changed although nobody watches them.
pub(super) async fn strays(client: &Client, tables: &[Watched]) -> Result<Vec<String>, StepError> {
    let watched: Vec<u32> = tables.iter().map(|table| table.oid).collect();
    let sql = "select format('%I.%I', schemaname, relname) from pg_stat_xact_all_tables
        where n_tup_ins + n_tup_upd + n_tup_del > 0 and relid <> all ($1)
          and schemaname !~ '^pg_' and schemaname <> 'information_schema' order by 1";
    let rows = client.query(sql, &[&watched], PATIENT).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Returns a text that differs when a table was made, dropped, rewritten or emptied.
pub(super) async fn definitions(client: &Client) -> Result<String, StepError> {
    let sql = "select coalesce(string_agg(format('%s %s', c.oid, pg_relation_filenode(c.oid)), ' ' order by c.oid), '')
        from pg_class c join pg_namespace n on n.oid = c.relnamespace
        where c.relkind in ('r', 'm', 'i') and n.nspname !~ '^pg_' and n.nspname not in ('information_schema', 'lifeboat')";
    Ok(client.query_one(sql, &[], PATIENT).await?.get(0))
}

impl Row {
    /// Returns the row for people: the key, and of an update only what changed.
    pub(super) fn shown(&self, tables: &[Watched]) -> Value {
        let map = |text: &Option<String>| -> Map<String, Value> {
            text.as_ref().and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
        };
        let (before, after) = (&map(&self.before), &map(&self.after));
        let key = tables.iter().find(|table| table.sql == self.table).map_or(&[][..], |table| &table.key);
        let whole = if self.after.is_some() { after } else { before };
        let key: Map<_, _> =
            key.iter().filter_map(|name| Some((name.clone(), whole.get(name)?.clone()))).collect();
        let changed = |of: &Map<String, Value>| -> Map<String, Value> {
            let differs = |name: &String| before.get(name) != after.get(name);
            of.iter()
                .filter(|(name, _)| differs(name))
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect()
        };
        json!({
            "table": self.table, "operation": self.operation, "key": key,
            "before": changed(before), "after": changed(after),
        })
    }
}

/// Returns a digest of a difference; see [`change::digest`].
pub(super) fn digest(rows: &[Row]) -> String {
    let line = |row: &Row| format!("{} {} {}", row.table, row.operation, row.lasting);
    change::digest(rows.iter().map(line).collect())
}

/// Counts what happened by table.
pub(super) fn summary(rows: &[Row]) -> Value {
    change::summary(rows.iter().map(|row| (row.table.clone(), row.operation.as_str())))
}

/// Writes names as a list, with a prefix.
pub(super) fn list(names: &[String], prefix: &str) -> String {
    names.iter().map(|name| format!("{prefix}{}", quoted(name))).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watched() -> Vec<Watched> {
        let name = |name: &str| vec![name.to_owned()];
        vec![Watched { oid: 1, sql: "app.payments".into(), key: name("id"), given: name("id") }]
    }

    fn row(operation: &str, before: Value, after: Value) -> Row {
        let text = |value: Value| (!value.is_null()).then(|| value.to_string());
        let (before, after) = (text(before), text(after));
        Row {
            table: "app.payments".into(),
            operation: operation.into(),
            before,
            after,
            lasting: String::new(),
        }
    }

    #[test]
    fn people_see_the_key_and_what_changed() {
        let update = row(
            "update",
            json!({"id": 1, "amount": 1, "note": "a"}),
            json!({"id": 1, "amount": 2, "note": "a"}),
        );
        let expected = json!({
            "table": "app.payments", "operation": "update", "key": {"id": 1}, "before": {"amount": 1}, "after": {"amount": 2},
        });
        assert_eq!(update.shown(&watched()), expected);
    }
}
