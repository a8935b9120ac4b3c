//! What the marker of a dump says beyond its objects, and what a restore leaves in the server.

use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::super::connect::{Client, DbError, PATIENT, text};
use super::super::structure::Structure;

/// The dump itself in its backup.
pub(super) const DATA: &str = "databases.sql.zst";
/// The accounts of the server.
pub(super) const USERS: &str = "users.sql.zst";

/// A place in a binary log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super) struct Position {
    pub(in super::super) file: String,
    pub(in super::super) offset: u64,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.offset)
    }
}

/// The details of a `mariadb.dump` marker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DumpDetails {
    /// The server that it is of, by the name of its resource.
    pub(super) resource: String,
    /// Everything that was committed before this moment is in the dump.
    pub(super) taken_at: Timestamp,
    pub(super) server_version: String,
    pub(super) server_id: u32,
    pub(super) hostname: String,
    pub(super) lower_case_table_names: u8,
    pub(super) databases: Vec<String>,
    /// Whether these are all databases of the server.
    pub(super) whole_server: bool,
    /// Where the binary log stood; absent if the server keeps none.
    pub(super) position: Option<Position>,
    pub(super) gtid: Option<String>,
    /// Rows by `database.table`, counted in the dump itself.
    pub(super) counts: Option<BTreeMap<String, u64>>,
    pub(super) structure: Structure,
    /// Tables that no transaction holds together.
    pub(super) not_transactional: Vec<String>,
    pub(super) users: bool,
    /// Bytes of SQL.
    pub(super) sql_bytes: u64,
    pub(super) seconds: u64,
}

/// The table in which a restored server says what was restored into it. No dump holds it.
pub(in super::super) const STATE: &str = "lifeboat_restored";

/// What was restored into a server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super) struct Restored {
    pub(in super::super) backup: String,
    pub(in super::super) resource: String,
    pub(in super::super) server_id: u32,
    pub(in super::super) position: Option<Position>,
    pub(in super::super) gtid: Option<String>,
    pub(in super::super) taken_at: Timestamp,
    pub(in super::super) whole_server: bool,
    pub(in super::super) not_transactional: Vec<String>,
}

impl Restored {
    /// Writes it into the server, as the only thing that was restored there.
    pub(super) async fn save(&self, client: &mut Client) -> Result<(), DbError> {
        for sql in [
            "set sql_log_bin = 0".to_owned(),
            format!("create database if not exists {STATE}"),
            format!(
                "create or replace table {STATE}.state (state longtext not null) engine=InnoDB charset=utf8mb4"
            ),
        ] {
            client.run(&sql, PATIENT).await?;
        }
        let state = serde_json::to_string(self).expect("plain data is JSON");
        client.exec(&format!("insert into {STATE}.state values (?)"), (state,), PATIENT).await?;
        client.run("set sql_log_bin = 1", PATIENT).await?;
        Ok(())
    }
}

/// Reads what was restored into a server; `None` if nothing was.
pub(in super::super) async fn restored_state(client: &mut Client) -> Result<Option<Restored>, DbError> {
    match client.rows(&format!("select state from {STATE}.state"), PATIENT).await {
        Ok(rows) => Ok(rows.first().and_then(|row| serde_json::from_str(&text(row, 0)).ok())),
        // No such database, no such table.
        Err(error) if matches!(error.number(), Some(1049 | 1146)) => Ok(None),
        Err(error) => Err(error),
    }
}
