//! Compares databases with what they held when a backup was taken.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::atomic::AtomicBool;

use lifeboat_engine::model::evidence::Check;
use lifeboat_engine::step::{StepContext, StepError};
use serde::Deserialize;

use super::super::backup::{Described, described, is_unmarked};
use super::super::catalogue::{self, Counts, Objects};
use super::super::codes;
use super::super::connect::Login;
use super::super::details::BaseDetails;
use super::super::inventory::{self, Contents, Inventory};
use super::findings::Findings;
use crate::store::{self, HashingReader, Marker, Store, blocking};

/// What may have become of rows since the backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Rows {
    NotFewer,
    Exact,
    Report,
}

/// What may have become of objects since the backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kept {
    NoneMissing,
    Same,
    Report,
}

/// A backup whose objects are there, and what the databases held when it was taken.
pub(super) struct Against {
    pub(super) marker: Marker,
    /// Absent if the backup was taken without.
    pub(super) inventory: Option<Inventory>,
}

/// How the comparison is made.
pub(super) struct Rules<'a> {
    pub(super) objects: Kept,
    pub(super) rows: Rows,
    pub(super) accept: &'a [String],
}

impl Against {
    /// Reads the marker of a backup of this cluster, and proves that its objects are there.
    pub(super) async fn open(
        ctx: &StepContext,
        (store, label): (&str, &str),
        system_id: &str,
    ) -> Result<Self, StepError> {
        let (store, label) = (Store::of(ctx, store).await?, label.to_owned());
        let found = blocking(move || {
            let Described { store, marker, .. } = described(store, &label)?;
            store::verify_sizes(&store, &marker)?;
            let inventory = read(&store, &marker)?;
            Ok(Self { marker, inventory })
        })
        .await?;
        let details: BaseDetails = found.marker.details()?;
        if details.system_id == system_id {
            return Ok(found);
        }
        let message = format!(
            "backup `{}` is of the cluster {}, and the server is of the cluster {system_id}",
            found.marker.label, details.system_id
        );
        Err(StepError::permanent(codes::LB1852, message)
            .help("name the backup that the server was restored from; `postgres.select_backup` gives it"))
    }

    /// Says that the backup is there.
    pub(super) fn presence(&self) -> Check {
        let objects = self.marker.objects.len();
        let (name, size) = match is_unmarked(&self.marker.label) {
            true => ("the backup is there", ""),
            false => ("the backup is there with its marker", " of the size in the marker"),
        };
        Check {
            name: name.into(),
            expected: format!("`{}`, {objects} objects{size}", self.marker.label),
            actual: format!("{objects} objects"),
            passed: true,
        }
    }
}

fn read(store: &Store, marker: &Marker) -> Result<Option<Inventory>, StepError> {
    let Some(object) = marker.objects.iter().find(|object| object.name == inventory::OBJECT) else {
        return Ok(None);
    };
    let damaged = |why: String| {
        StepError::permanent(
            codes::LB1850,
            format!("`{}` of backup `{}` cannot be used: {why}", inventory::OBJECT, marker.label),
        )
        .help("leave `backup` out of the step to verify without it; take a new backup")
    };
    let mut reader = HashingReader::new(store.read(&marker.key(inventory::OBJECT)?)?);
    let mut text = Vec::new();
    reader.read_to_end(&mut text).map_err(|error| damaged(error.to_string()))?;
    if reader.finish().1.sha256 != object.sha256 {
        return Err(damaged("its SHA-256 is not that of the marker".to_owned()));
    }
    serde_json::from_slice(&text).map(Some).map_err(|error| damaged(error.to_string()))
}

/// Compares the cluster and the databases that are looked at.
pub(super) async fn check(
    login: &Login,
    (inventory, looked_at): (&Inventory, &[String]),
    rules: &Rules<'_>,
) -> Result<Vec<Check>, StepError> {
    let client = login.connect().await?;
    let mut cluster = objects(&inventory.cluster, &inventory::cluster(&client).await?, rules.objects);
    cluster.notes.extend(inventory.left_out.iter().map(|left| format!("left out at the backup: {left}")));
    let mut checks = Vec::new();
    for (name, expected) in &inventory.databases {
        cluster.looked_at += 1;
        if !looked_at.contains(name) {
            if !exists(&client, name).await? {
                cluster.wrong.push((name.clone(), "is missing (databases)".to_owned()));
            }
            continue;
        }
        let (actual, left_out) = contents(login, (name, expected)).await?;
        let found = objects(&expected.objects, &actual.objects, rules.objects);
        checks.push(found.check(format!("{name}: objects of the backup are there"), "objects", rules.accept));
        match (&expected.rows, &actual.rows) {
            (Some(expected), Some(found)) => {
                let mut found = rows((expected, found), &actual.objects, rules.rows);
                found.notes.extend(left_out);
                checks.push(found.check(
                    format!("{name}: rows of the backup are there"),
                    "tables",
                    rules.accept,
                ));
            }
            _ => cluster.notes.push(format!("rows of {name} were not counted at the backup")),
        }
    }
    let name = "roles and databases of the backup are there".to_owned();
    checks.insert(0, cluster.check(name, "roles and databases", rules.accept));
    Ok(checks)
}

async fn exists(client: &super::super::connect::Client, name: &str) -> Result<bool, StepError> {
    let sql = "select from pg_database where datname = $1";
    Ok(!client.query(sql, &[&name], super::super::server::QUICK).await?.is_empty())
}

async fn contents(
    login: &Login,
    (name, expected): (&str, &Contents),
) -> Result<(Contents, Vec<String>), StepError> {
    let client = inventory::snapshot(login, name).await?;
    let objects = catalogue::objects(&client).await?;
    let mut left_out = Vec::new();
    let rows = match expected.rows {
        Some(_) => Some(inventory::count(&client, (name, &mut left_out), &AtomicBool::new(false)).await?),
        None => None,
    };
    Ok((Contents { objects, rows }, left_out))
}

const TABLES: &str = "tables and views";

/// Finds what is missing and what is another one. What belongs to a missing table is not named again.
fn objects(expected: &Objects, actual: &Objects, rule: Kept) -> Findings {
    let mut found = Findings::default();
    let (mut missing, mut changed, mut added) = (Vec::new(), Vec::new(), 0);
    let none = BTreeMap::new();
    let tables = expected.iter().filter(|(kind, _)| kind.as_str() == TABLES);
    let others = expected.iter().filter(|(kind, _)| kind.as_str() != TABLES);
    for (kind, expected) in tables.chain(others) {
        let actual = actual.get(kind).unwrap_or(&none);
        found.looked_at += expected.len();
        added += actual.keys().filter(|name| !expected.contains_key(*name)).count();
        for (name, digest) in expected {
            match actual.get(name) {
                None if !belongs(&missing, name) => {
                    missing.push((name.clone(), format!("is missing ({kind})")))
                }
                Some(found) if found != digest => {
                    changed.push((name.clone(), format!("is another one ({kind})")))
                }
                _ => {}
            }
        }
    }
    let noted = |these: &[(String, String)]| {
        these.iter().map(|(name, problem)| format!("{name} {problem}")).collect::<Vec<_>>()
    };
    if rule == Kept::Report {
        found.notes.extend(noted(&missing));
    } else {
        found.wrong.extend(missing);
    }
    if rule == Kept::Same {
        found.wrong.extend(changed);
    } else {
        found.notes.extend(noted(&changed));
    }
    match (added, rule) {
        (0, _) => {}
        (added, Kept::Same) => {
            found.wrong.push((format!("{added} objects"), "are more than then".to_owned()))
        }
        (added, _) => found.notes.push(format!("{added} objects more than then")),
    }
    found
}

fn belongs(missing: &[(String, String)], name: &str) -> bool {
    missing
        .iter()
        .any(|(table, _)| name.strip_prefix(table.as_str()).is_some_and(|rest| rest.starts_with('.')))
}

/// Compares counts. A table that is missing is a finding of the objects.
fn rows((expected, actual): (&Counts, &Counts), objects: &Objects, rule: Rows) -> Findings {
    let mut found = Findings { looked_at: expected.len(), ..Findings::default() };
    let is_there = |table: &str| objects.get(TABLES).is_some_and(|tables| tables.contains_key(table));
    for (table, then) in expected {
        let problem = match actual.get(table) {
            Some(now) if now == then => continue,
            Some(now) => format!("has {now} rows and had {then}"),
            None if is_there(table) => "could not be counted".to_owned(),
            None => continue,
        };
        let is_wrong = match rule {
            Rows::Report => false,
            Rows::Exact => true,
            Rows::NotFewer => actual.get(table).is_none_or(|now| now < then),
        };
        if is_wrong {
            found.wrong.push((table.clone(), problem));
        } else if rule == Rows::Report {
            found.notes.push(format!("{table} {problem}"));
        }
    }
    let total = |counts: &Counts| counts.values().sum::<u64>();
    found.notes.push(format!("{} rows, then {}", total(actual), total(expected)));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(kinds: &[(&str, &[(&str, &str)])]) -> Objects {
        let own = |(name, digest): &(&str, &str)| ((*name).to_owned(), (*digest).to_owned());
        kinds.iter().map(|(kind, all)| ((*kind).to_owned(), all.iter().map(own).collect())).collect()
    }

    #[test]
    fn what_belongs_to_a_missing_table_is_not_named_again() {
        let expected =
            all(&[("columns", &[("a.b.c", "1"), ("a.bb.c", "1")]), (TABLES, &[("a.b", "1"), ("a.bb", "1")])]);
        let found = objects(
            &expected,
            &all(&[("columns", &[("a.bb.c", "2"), ("a.bb.d", "1")]), (TABLES, &[("a.bb", "1")])]),
            Kept::NoneMissing,
        );
        assert_eq!(found.wrong, [("a.b".to_owned(), "is missing (tables and views)".to_owned())]);
        assert_eq!(found.notes, ["a.bb.c is another one (columns)", "1 objects more than then"]);
        let found = objects(&expected, &all(&[]), Kept::Report);
        assert!(found.wrong.is_empty() && found.notes.len() == 2, "{found:?}");
    }

    #[test]
    fn each_rule_about_rows_finds_what_it_says() {
        let counts = |all: &[(&str, u64)]| {
            all.iter().map(|(name, rows)| ((*name).to_owned(), *rows)).collect::<Counts>()
        };
        let (then, tables) =
            (counts(&[("t", 5), ("u", 5), ("gone", 1)]), all(&[(TABLES, &[("t", "1"), ("u", "1")])]));
        let wrong = |now: &[(&str, u64)], rule| {
            let found = rows((&then, &counts(now)), &tables, rule);
            found.wrong.into_iter().map(|(name, _)| name).collect::<Vec<_>>()
        };
        assert_eq!(wrong(&[("t", 4), ("u", 6)], Rows::NotFewer), ["t"]);
        assert_eq!(wrong(&[("t", 4), ("u", 6)], Rows::Exact), ["t", "u"]);
        assert_eq!(wrong(&[("t", 4), ("u", 6)], Rows::Report), [""; 0]);
        assert_eq!(wrong(&[("t", 5)], Rows::NotFewer), ["u"], "a table that is there must be counted");
    }
}
