//! Whether a restore brought everything, and whether rows refer to rows that are not there.

use std::collections::BTreeMap;

use lifeboat_engine::model::evidence::{Check, Progress, Unit};
use lifeboat_engine::step::{StepContext, StepError};

use super::super::connect::{Client, PATIENT, literal, number, quoted, text};
use super::super::structure::Structure;

/// Compares the rows of every table with those of the dump.
pub(super) async fn counts(
    ctx: &StepContext,
    client: &mut Client,
    expected: &BTreeMap<String, u64>,
    tables: &Structure,
) -> Result<(Check, u64), StepError> {
    let names: Vec<_> = tables.0.keys().filter_map(|name| name.strip_prefix("table ")).collect();
    let (mut wrong, mut total) = (Vec::new(), 0);
    for (index, name) in names.iter().enumerate() {
        ctx.progress(Progress {
            done: index as u64,
            total: Some(names.len() as u64),
            unit: Unit::Items,
            note: "counting tables".into(),
        });
        let (schema, table) = name.split_once('.').unwrap_or(("", name));
        let sql = format!("select count(*) from {}.{}", quoted(schema), quoted(table));
        let rows = client.rows(&sql, PATIENT).await?;
        let found = rows.first().map_or(0, |row| number(row, 0));
        let wanted = expected.get(*name).copied().unwrap_or(0);
        total += found;
        if found != wanted {
            wrong.push(format!("{name} has {found} rows, not {wanted}"));
        }
    }
    let rows: u64 = expected.values().sum();
    let check = check("rows of every table", format!("{rows} in {} tables", names.len()), wrong, || {
        format!("{total} in {} tables", names.len())
    });
    Ok((check, total))
}

/// Compares what databases consist of with the dump.
pub(super) async fn structure(
    client: &mut Client,
    databases: &[String],
    expected: &Structure,
) -> Result<Check, StepError> {
    let found = Structure::read(client, databases).await?;
    let said = |structure: &Structure| {
        let kinds = ["table", "view", "procedure", "function", "trigger", "event"];
        kinds.map(|kind| format!("{} {kind}s", structure.count(kind))).join(", ")
    };
    Ok(check("structure", said(expected), expected.differences(&found), || said(&found)))
}

/// Names definers of views, routines, triggers and events that are no accounts: what they define fails when it is used.
pub(in super::super) async fn definers(
    client: &mut Client,
    databases: &[String],
) -> Result<Check, StepError> {
    let names = list(databases);
    let sql = format!(
        "select definer, group_concat(what order by what separator ', ') from (
           select definer, concat('view ', table_schema, '.', table_name) what from information_schema.views where table_schema in ({names})
           union all select definer, concat(lower(routine_type), ' ', routine_schema, '.', routine_name) from information_schema.routines where routine_schema in ({names})
           union all select definer, concat('trigger ', trigger_schema, '.', trigger_name) from information_schema.triggers where trigger_schema in ({names})
           union all select definer, concat('event ', event_schema, '.', event_name) from information_schema.events where event_schema in ({names})
         ) d where definer not in (select concat(user, '@', host) from mysql.global_priv)
           and definer not in (select user from mysql.global_priv where host = '') group by definer"
    );
    let rows = client.rows(&sql, PATIENT).await?;
    let missing = rows.iter().map(|row| format!("{} ({})", text(row, 0), text(row, 1))).collect();
    Ok(check("accounts that define something", "all are there".into(), missing, || "all are there".into()))
}

/// Looks for rows whose foreign key refers to nothing: `FOREIGN_KEY_CHECKS=0` lets them in, and nobody looks again.
pub(in super::super) async fn orphans(
    client: &mut Client,
    databases: &[String],
) -> Result<Vec<Check>, StepError> {
    let names = list(databases);
    let sql = format!(
        "select constraint_schema, constraint_name, table_schema, table_name, referenced_table_schema, referenced_table_name,
           column_name, referenced_column_name
         from information_schema.key_column_usage
         where constraint_schema in ({names}) and referenced_table_name is not null
         order by constraint_schema, table_name, constraint_name, ordinal_position"
    );
    let mut keys = BTreeMap::<[String; 6], Vec<(String, String)>>::new();
    for row in client.rows(&sql, PATIENT).await? {
        let key = std::array::from_fn(|index| text(&row, index));
        keys.entry(key).or_default().push((text(&row, 6), text(&row, 7)));
    }
    let mut checks = Vec::new();
    for ([_, name, schema, table, of_schema, of_table], columns) in keys {
        let child = format!("{}.{}", quoted(&schema), quoted(&table));
        let parent = format!("{}.{}", quoted(&of_schema), quoted(&of_table));
        let pairs = |one: fn(&(String, String)) -> String, separator: &str| {
            columns.iter().map(one).collect::<Vec<_>>().join(separator)
        };
        let same = pairs(|(own, other)| format!("p.{} = c.{}", quoted(other), quoted(own)), " and ");
        // A key that is null in any column refers to nothing, and may.
        let set = pairs(|(own, _)| format!("c.{} is not null", quoted(own)), " and ");
        let sql = format!(
            "select count(*) from {child} c where {set} and not exists (select 1 from {parent} p where {same})"
        );
        let rows = client.rows(&sql, PATIENT).await?;
        let found = rows.first().map_or(0, |row| number(row, 0));
        checks.push(Check {
            name: format!("foreign key {schema}.{table}.{name}"),
            expected: "0 rows without their parent".into(),
            actual: format!("{found} rows without their parent"),
            passed: found == 0,
        });
    }
    Ok(checks)
}

/// Writes names as a list, which must not be empty.
fn list(databases: &[String]) -> String {
    let names: Vec<_> = databases.iter().map(|name| literal(name)).collect();
    if names.is_empty() { "''".to_owned() } else { names.join(", ") }
}

fn check(name: &str, expected: String, wrong: Vec<String>, found: impl FnOnce() -> String) -> Check {
    const SHOWN: usize = 10;
    let passed = wrong.is_empty();
    let actual = match (passed, wrong.len()) {
        (true, _) => found(),
        (false, ..=SHOWN) => wrong.join("; "),
        (false, count) => format!("{}; and {} more", wrong[..SHOWN].join("; "), count - SHOWN),
    };
    Check { name: name.into(), expected, actual, passed }
}
