use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::codes;
use super::format::BUSY;
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
    Newer {
        path: PathBuf,
        what: &'static str,
        found: String,
        known: u32,
        /// The version of lifeboat that began the run, if that can be read.
        engine: Option<String>,
    },
    #[error("the journal `{path}` takes no further events since a write to it failed: {fault}")]
    Closed { path: PathBuf, fault: Fault },
    #[error("an event cannot be stored: {reason}")]
    Unwritable { reason: Arc<str> },
}

/// Why a write to the journal failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("the disk is full")]
    Full,
    #[error("another program has kept it locked for {} s", BUSY.as_secs())]
    Busy,
    #[error("another process has gone on with this run")]
    Superseded,
    #[error("it was removed or replaced while the run went on")]
    Removed,
    #[error("{0}")]
    Other(Arc<str>),
}

impl Fault {
    /// Classifies an error of a commit.
    pub(super) fn of(error: &rusqlite::Error) -> Self {
        use rusqlite::ErrorCode::{
            ConstraintViolation, DatabaseBusy, DatabaseLocked, DiskFull, SystemIoFailure,
        };
        let extended = error.sqlite_error().map_or(0, |error| error.extended_code);
        match error.sqlite_error_code() {
            Some(DiskFull) => Self::Full,
            Some(DatabaseBusy | DatabaseLocked) => Self::Busy,
            // The number of an event is there already: somebody else has written it.
            Some(ConstraintViolation) if extended == rusqlite::ffi::SQLITE_CONSTRAINT_PRIMARYKEY => {
                Self::Superseded
            }
            Some(SystemIoFailure) => Self::Other(format!("{error} ({})", io_failure(extended)).into()),
            _ => Self::Other(error.to_string().into()),
        }
    }

    /// Says whether a later write can succeed although this one did not.
    pub(super) fn may_pass(&self) -> bool {
        matches!(self, Self::Full | Self::Busy | Self::Other(_))
    }

    fn help(&self, path: &Path) -> String {
        let dir = path.parent().unwrap_or(path).display();
        match self {
            Self::Full => format!("nothing further was started: make room on the disk of `{dir}` (`df {dir}`)"),
            Self::Busy => format!(
                "nothing further was started: find out who has the file open (`fuser {}`) and end it",
                path.display()
            ),
            Self::Superseded => {
                "this process has done nothing since; leave the run to the other one, or end that one first".to_owned()
            }
            Self::Removed => {
                "nothing further was started; what was done is only known from what the systems show: look at them before \
                 a new run begins"
                    .to_owned()
            }
            Self::Other(_) => format!(
                "nothing further was started: look at the disk of `{dir}` (`df {dir}`, `dmesg`) and mend it"
            ),
        }
    }
}

/// What SQLite could not do, from its extended code.
fn io_failure(extended: i32) -> &'static str {
    match extended {
        rusqlite::ffi::SQLITE_IOERR_WRITE => "a write was refused",
        rusqlite::ffi::SQLITE_IOERR_FSYNC | rusqlite::ffi::SQLITE_IOERR_DIR_FSYNC => "a sync was refused",
        rusqlite::ffi::SQLITE_IOERR_READ | rusqlite::ffi::SQLITE_IOERR_SHORT_READ => "a read was refused",
        rusqlite::ffi::SQLITE_IOERR_TRUNCATE => "a file cannot be made shorter",
        rusqlite::ffi::SQLITE_IOERR_SHMSIZE | rusqlite::ffi::SQLITE_IOERR_SHMOPEN => {
            "there is no room for the memory that its users share"
        }
        _ => "the system gave no reason",
    }
}

fn at(seq: Option<Seq>) -> String {
    seq.map(|seq| format!(" at event {seq}")).unwrap_or_default()
}

impl Error {
    /// Returns the code whose page explains the error.
    pub fn code(&self) -> Code {
        match self {
            Self::Missing { .. } | Self::Exists { .. } | Self::Unusable { .. } | Self::Unsafe { .. } => {
                codes::LB0310
            }
            Self::Damaged { .. } => codes::LB0311,
            Self::Newer { .. } => codes::LB0312,
            Self::Closed { .. } => codes::LB0313,
            Self::Unwritable { .. } => codes::LB0314,
        }
    }

    /// Says what to do next.
    pub fn help(&self) -> String {
        let fixed = match self {
            Self::Newer { engine: Some(engine), .. } => {
                return format!("the run was begun by lifeboat {engine}: use that version, or a newer one");
            }
            Self::Closed { path, fault } => return fault.help(path),
            Self::Missing { .. } => "`lifeboat runs` lists the runs of this state directory",
            Self::Exists { .. } => "go on with that run: `lifeboat resume RUN`",
            Self::Unusable { .. } => {
                "look at the cause, the free space and the owner of the file, then `lifeboat resume RUN`"
            }
            Self::Unsafe { .. } => "use the released program, which brings its own SQLite",
            Self::Damaged { .. } => {
                "do not resume this run: keep a copy of its directory, look with `lifeboat logs RUN` at what was \
                 done, and start a new run"
            }
            Self::Newer { engine: None, .. } => {
                "go on with the version of lifeboat that began the run, or a newer one"
            }
            Self::Unwritable { .. } => "rename the file or directory so that its name is valid UTF-8",
        };
        fixed.to_owned()
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

    /// Says whether SQLite could not open a file, which may be one of its own beside the journal.
    pub(super) fn is_of_opening(&self) -> bool {
        let Self::Unusable { source, .. } = self else { return false };
        let sqlite = source.downcast_ref::<rusqlite::Error>();
        sqlite.and_then(rusqlite::Error::sqlite_error_code) == Some(rusqlite::ErrorCode::CannotOpen)
    }

    pub(super) fn io(path: &Path, action: &'static str, source: std::io::Error) -> Self {
        Self::Unusable { path: path.to_owned(), action, source: Arc::new(source) }
    }
}
