//! What steps report besides their outputs: progress, checks, recovery points and what they created.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Counts the work of one attempt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    pub done: u64,
    /// The whole, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
    pub unit: Unit,
    /// What is being done now, in a few words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
}

/// What [`Progress`] counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    Bytes,
    Items,
    Seconds,
}

/// Which stream a line of output came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    Stdout,
    Stderr,
}

/// One file of what an attempt printed, as it was when the attempt had ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputFile {
    /// Its name in the attempt's directory: `stdout`, `stderr.tail`.
    pub name: String,
    pub bytes: u64,
    pub sha256: String,
}

/// One thing that was checked, with what was expected and what was found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Check {
    pub name: String,
    pub expected: String,
    pub actual: String,
    pub passed: bool,
}

/// The moment to which one store was restored, and how that is known.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RecoveryPoint {
    /// The resource that was restored.
    pub resource: String,
    /// The newest change that is in the restored data, UTC, RFC 3339.
    pub time: String,
    /// A position in the store's own terms, such as an LSN.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<String>,
    /// How the time was found: `heartbeat row`, `last replayed commit`, `snapshot time`, …
    pub method: String,
    pub confidence: Confidence,
}

/// How much a measured recovery point can be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Confidence {
    /// Read from the restored data itself.
    Measured,
    /// An upper bound of the loss.
    Bound,
    /// Inferred from the backup's own description.
    Stated,
}

/// Something that a step brought into the world and that somebody must one day remove.
///
/// Recorded durably *before* it is made, so that a crash in between leaves a record and not an orphan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Created {
    /// Names it uniquely within the run, such as `server:db`; recording the same id again replaces it.
    pub id: String,
    /// What it is, for people: a noun phrase without the path, `Postgres server of db (port 5440)`.
    pub what: String,
    pub kind: CreatedKind,
}

/// How a created thing is removed, and how its removal is proven.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum CreatedKind {
    /// A server in a session of its own. Start time (clock ticks since boot) and boot id tell it from a later
    /// process with the same number.
    Process { pid: u32, start_ticks: u64, boot_id: String, stop_signal: i32 },
    /// A directory that did not exist, or was empty, before.
    Directory { path: PathBuf },
    /// What stood at `from` was renamed to `to`; removal renames it back.
    MovedAside { from: PathBuf, to: PathBuf },
    /// A file that did not exist before.
    File { path: PathBuf },
    /// Part of a system that the run did not make, such as a database on a server: only the kind of the step that made it
    /// knows how to remove it. `handle` is that kind's own, tells the thing from every other, and holds no secret.
    Within { resource: String, handle: Value },
}

impl CreatedKind {
    /// Says where it is, for people.
    pub fn place(&self) -> String {
        match self {
            Self::Process { pid, .. } => format!("process {pid}"),
            Self::Directory { path } | Self::File { path } | Self::MovedAside { to: path, .. } => {
                format!("`{}`", path.display())
            }
            Self::Within { resource, .. } => format!("on `{resource}`"),
        }
    }
}
