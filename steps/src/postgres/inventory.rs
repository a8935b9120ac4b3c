//! What the databases of a cluster consisted of when a backup was taken, kept beside it as `inventory.json`.
//!
//! It is read in snapshots that are older than the backup, so that whatever is restored from the backup is of a later
//! moment. Unlogged tables are left out: a restore empties them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use jiff::Timestamp;
use lifeboat_engine::step::StepError;
use serde::{Deserialize, Serialize};

use super::catalogue::{self, Counts, Objects};
use super::connect::{Client, Login, PgError};
use super::database::PATIENT;
use super::server::QUICK;
use crate::store::{self, Meter, ObjectEntry};

/// The name of the object in a backup.
pub(super) const OBJECT: &str = "inventory.json";

/// What a cluster consisted of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Inventory {
    /// Before the backup began.
    pub(super) taken_at: Timestamp,
    /// What is no part of a database: roles.
    pub(super) cluster: Objects,
    pub(super) databases: BTreeMap<String, Contents>,
    /// What could not be read, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) left_out: Vec<String>,
}

/// What one database consisted of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Contents {
    pub(super) objects: Objects,
    /// Rows by table; absent if they were not counted.
    pub(super) rows: Option<Counts>,
}

/// More connections than this are not opened to one cluster.
const MOST_DATABASES: usize = 24;

const DATABASES: &str = "
    select datname::text from pg_database
    where datallowconn and not datistemplate and has_database_privilege(oid, 'connect') order by 1";

const ROLES: &str = "
    select format('%I', r.rolname), left(encode(sha256(convert_to(format('%s %s %s %s %s %s %s', r.rolsuper, r.rolinherit,
      r.rolcreaterole, r.rolcreatedb, r.rolcanlogin, r.rolreplication, r.rolbypassrls), 'UTF8')), 'hex'), 16)
    from pg_roles r where r.rolname !~ '^pg_'";

/// Tables whose rows survive a restore, and whether the role may read them.
const TABLES: &str = "
    select format('%I.%I', n.nspname, c.relname), has_table_privilege(c.oid, 'select')
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where c.relkind = 'r' and c.relpersistence = 'p' and n.nspname !~ '^pg_' and n.nspname <> 'information_schema'
      and not exists (select from pg_depend e where e.classid = 'pg_class'::regclass and e.objid = c.oid and e.deptype = 'e')
    order by 1";

/// In a snapshot; a lock that somebody holds for long is not waited for, and rows that a policy hides are an error.
const BEGIN: &str = "begin transaction isolation level repeatable read, read only; \
    set local lock_timeout = '5s'; set local row_security = off; set local search_path = ''; select 1";

/// Snapshots of all databases of a cluster.
pub(super) struct Snapshots {
    taken_at: Timestamp,
    cluster: Objects,
    databases: Vec<(String, Client)>,
    left_out: Vec<String>,
}

impl Snapshots {
    /// Takes them.
    pub(super) async fn take(login: &Login) -> Result<Self, StepError> {
        let client = login.connect().await?;
        let taken_at = client.query_one("select clock_timestamp()", &[], QUICK).await?.get(0);
        let cluster = cluster(&client).await?;
        let rows = client.query(DATABASES, &[], QUICK).await?;
        let mut found = Self { taken_at, cluster, databases: Vec::new(), left_out: Vec::new() };
        for (index, row) in rows.iter().enumerate() {
            let name: String = row.get(0);
            if index >= MOST_DATABASES {
                found.left_out.push(format!("database {name}: only {MOST_DATABASES} are looked at"));
                continue;
            }
            match snapshot(login, &name).await {
                Ok(client) => found.databases.push((name, client)),
                Err(error @ PgError::Cancelled) => return Err(error.into()),
                Err(error) => found.left_out.push(format!("database {name}: {error}")),
            }
        }
        Ok(found)
    }

    /// Reads what is in them. Ends early, with what it has, when `stop` is set.
    pub(super) async fn read(self, counts: bool, stop: &AtomicBool) -> Result<Inventory, StepError> {
        let Self { taken_at, cluster, databases, mut left_out } = self;
        let mut found = BTreeMap::new();
        for (name, client) in databases {
            let objects = catalogue::objects(&client).await?;
            let rows = match counts {
                true => Some(count(&client, (&name, &mut left_out), stop).await?),
                false => None,
            };
            found.insert(name, Contents { objects, rows });
        }
        Ok(Inventory { taken_at, cluster, databases: found, left_out })
    }
}

impl Inventory {
    /// Writes it into the directory of a backup in the making.
    pub(super) fn write(&self, dir: &Path) -> Result<ObjectEntry, StepError> {
        let text = serde_json::to_vec(self).expect("an inventory is plain data");
        let path = dir.join(OBJECT);
        std::fs::write(&path, &text).map_err(|error| {
            StepError::transient(store::codes::LB1111, format!("{} cannot be written", path.display()))
                .help("make room in the store (`df -h`)")
                .caused_by(&error)
        })?;
        let digest = store::digest_of(&text[..], &Meter::silent())?;
        Ok(ObjectEntry { name: OBJECT.to_owned(), size: digest.size, sha256: digest.sha256 })
    }
}

/// Reads what is no part of a database.
pub(super) async fn cluster(client: &Client) -> Result<Objects, StepError> {
    let roles = client.query(ROLES, &[], QUICK).await?;
    let roles = roles.iter().map(|row| (row.get(0), row.get(1))).collect();
    Ok(Objects::from([("roles".to_owned(), roles)]))
}

/// Connects to a database and takes a snapshot of it, which lasts as long as the connection.
pub(super) async fn snapshot(login: &Login, database: &str) -> Result<Client, PgError> {
    let client = login.database(database).connect().await?;
    client.batch(BEGIN, QUICK).await?;
    Ok(client)
}

/// Counts the rows of tables, within a snapshot. A table that cannot be read is left out and named.
pub(super) async fn count(
    client: &Client,
    (database, left_out): (&str, &mut Vec<String>),
    stop: &AtomicBool,
) -> Result<Counts, StepError> {
    let tables = client.query(TABLES, &[], PATIENT).await?;
    let mut counts = Counts::new();
    for row in &tables {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let (table, may_read): (String, bool) = (row.get(0), row.get(1));
        if !may_read {
            left_out.push(format!("table {table} of {database}: the role may not read it"));
            continue;
        }
        client.batch("savepoint one", QUICK).await?;
        match client.query_one(&format!("select count(*) from only {table}"), &[], PATIENT).await {
            Ok(row) => drop(counts.insert(table, row.get::<_, i64>(0).unsigned_abs())),
            Err(PgError::Database(error)) => {
                client.batch("rollback to savepoint one", QUICK).await?;
                left_out.push(format!("table {table} of {database}: {error}"));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(counts)
}
