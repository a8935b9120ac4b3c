use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::codes;
use crate::code::Code;
use crate::model::Seq;

/// Why a journal cannot be written or read.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error("there is no journal at `{path}`")]
    Missing { path: PathBuf },
    #[error("there is a journal at `{path}` already")]
    Exists { path: PathBuf },
    #[error("the journal `{path}` was created but no run was ever declared in it")]
    Empty { path: PathBuf },
    #[error("the journal `{path}` cannot be {action}")]
    Unusable {
        path: PathBuf,
        /// `opened`, `read`, …
        action: &'static str,
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    #[error("the journal `{path}` needs SQLite with {what}, which this program does not get here")]
    Unsafe { path: PathBuf, what: String },
    #[error("the journal `{path}` is damaged{}: {what}", at(*.seq))]
    Damaged { path: PathBuf, seq: Option<Seq>, what: String },
    #[error("the journal `{path}` was written in {what} {found}, and this program knows {known}")]
    Newer { path: PathBuf, what: &'static str, found: String, known: u32 },
    #[error("the journal `{path}` takes no further events since a write to it failed: {reason}")]
    Closed { path: PathBuf, reason: Arc<str> },
    #[error("an event cannot be stored: {reason}")]
    Unwritable { reason: Arc<str> },
}

fn at(seq: Option<Seq>) -> String {
    seq.map(|seq| format!(" at event {seq}")).unwrap_or_default()
}

impl Error {
    /// Returns the code whose page explains the error.
    pub fn code(&self) -> Code {
        match self {
            Self::Missing { .. }
            | Self::Exists { .. }
            | Self::Empty { .. }
            | Self::Unusable { .. }
            | Self::Unsafe { .. } => codes::LB0310,
            Self::Damaged { .. } => codes::LB0311,
            Self::Newer { .. } => codes::LB0312,
            Self::Closed { .. } => codes::LB0313,
            Self::Unwritable { .. } => codes::LB0314,
        }
    }

    /// Says what to do next.
    pub fn help(&self) -> &'static str {
        match self {
            Self::Missing { .. } => "`lifeboat runs` lists the runs of this state directory",
            Self::Exists { .. } => "go on with that run: `lifeboat resume RUN`",
            Self::Empty { .. } => "nothing was started in it: start a new run with `lifeboat run`",
            Self::Unusable { .. } => {
                "look at the cause, the free space and the owner of the file, then `lifeboat resume RUN`"
            }
            Self::Unsafe { .. } => "use the released program, which brings its own SQLite",
            Self::Damaged { .. } => {
                "do not resume this run: keep a copy of its directory, look with `lifeboat logs RUN` at what was \
                 done, and start a new run"
            }
            Self::Newer { .. } => "go on with the version of lifeboat that began the run, or a newer one",
            Self::Closed { .. } => {
                "nothing further was started: free space or mend the disk, then `lifeboat resume RUN`"
            }
            Self::Unwritable { .. } => "rename the file or directory so that its name is valid UTF-8",
        }
    }

    /// Classifies an error of SQLite.
    pub(super) fn sqlite(path: &Path, action: &'static str, source: rusqlite::Error) -> Self {
        use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
        let path = path.to_owned();
        match source.sqlite_error_code() {
            Some(DatabaseCorrupt | NotADatabase) => {
                Self::Damaged { path, seq: None, what: source.to_string() }
            }
            _ => Self::Unusable { path, action, source: Arc::new(source) },
        }
    }

    pub(super) fn io(path: &Path, action: &'static str, source: std::io::Error) -> Self {
        Self::Unusable { path: path.to_owned(), action, source: Arc::new(source) }
    }
}
