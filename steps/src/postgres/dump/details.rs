//! What the marker of a dump says beyond its objects.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::super::catalogue::{Catalogue, Counts};

/// The dump itself in its backup: one file, or a directory.
pub(super) const FILE: &str = "database.dump";
pub(super) const DIRECTORY: &str = "database";
/// The roles of the server, for people; without passwords.
pub(super) const GLOBALS: &str = "globals.sql";

/// The details of a `postgres.dump` marker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DumpDetails {
    /// The cluster that it is of, by the name of its resource.
    pub(super) resource: String,
    pub(super) database: String,
    /// Everything that was committed before this moment is in the dump, and nothing that was not by its snapshot.
    pub(super) taken_at: Timestamp,
    pub(super) server_major: u32,
    pub(super) server_version: String,
    /// The major version of the program that wrote it; an older one cannot read it.
    pub(super) tool_major: u32,
    pub(super) format: Format,
    pub(super) encoding: String,
    pub(super) collate: String,
    pub(super) ctype: String,
    /// The size of the database on disk, indexes included.
    pub(super) database_bytes: u64,
    /// Roles that own something in it, and roles that were granted something.
    pub(super) owners: Vec<String>,
    pub(super) grantees: Vec<String>,
    /// By name, with their versions.
    pub(super) extensions: BTreeMap<String, String>,
    /// `ALTER DATABASE … SET`, which no dump of one database holds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) settings: Vec<String>,
    /// Rows by table in the very snapshot of the dump; absent if they were not counted.
    pub(super) counts: Option<Counts>,
    pub(super) catalogue: Catalogue,
    /// Entries of its table of contents.
    pub(super) entries: u64,
    /// How long it took, reading it back included.
    pub(super) seconds: u64,
}

/// How `pg_dump` writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Format {
    Custom,
    Directory,
}

impl Format {
    /// Returns the name of the dump in its backup.
    pub(super) fn object(self) -> &'static str {
        match self {
            Self::Custom => FILE,
            Self::Directory => DIRECTORY,
        }
    }
}
