//! Errors of the operating system, as steps report them.

use std::fmt::Display;
use std::io;

use lifeboat_engine::step::StepError;

use super::codes;

/// Says whether a repetition can help: refusals repeat themselves, faults of a disk or network may pass.
fn passes(error: &io::Error) -> bool {
    use io::ErrorKind::{
        InvalidFilename, InvalidInput, NotADirectory, NotFound, PermissionDenied, ReadOnlyFilesystem,
        Unsupported,
    };
    let refused = matches!(
        error.kind(),
        PermissionDenied
            | NotADirectory
            | NotFound
            | ReadOnlyFilesystem
            | InvalidInput
            | Unsupported
            | InvalidFilename
    );
    !refused && error.raw_os_error() != Some(rustix::io::Errno::LOOP.raw_os_error())
}

/// Wraps an error of a store for an interface that knows those of the operating system only.
#[cfg(feature = "s3")]
pub(super) fn as_io(error: StepError) -> io::Error {
    use lifeboat_engine::model::outcome::FailureKind;
    let kind = match error.kind {
        FailureKind::Permanent => io::ErrorKind::Other,
        FailureKind::Transient | FailureKind::Uncertain => io::ErrorKind::ConnectionReset,
    };
    io::Error::new(kind, error)
}

/// Returns the error of a store behind one of an interface that knows those of the operating system only.
pub fn of_store(error: &io::Error) -> Option<&StepError> {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        // An error of the system hides the one in it behind the source of that.
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next =
            inner.map_or_else(|| error.source(), |inner| Some(inner as &(dyn std::error::Error + 'static)));
    }
    None
}

/// Reports that something could not be read.
pub(super) fn read(what: impl Display, error: &io::Error) -> StepError {
    if let Some(error) = of_store(error) {
        return error.clone();
    }
    let message = format!("{what} cannot be read: {error}");
    let failure = if passes(error) {
        StepError::transient(codes::LB1103, message)
    } else {
        StepError::permanent(codes::LB1103, message)
    };
    failure.help("check that the file system is mounted and that this user may read it: `ls -l` and `mount`")
}

/// Reports that something could not be written.
pub(super) fn write(what: impl Display, error: &io::Error) -> StepError {
    if let Some(error) = of_store(error) {
        return error.clone();
    }
    let message = format!("{what} cannot be written: {error}");
    let full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
    let failure = if passes(error) || full {
        StepError::transient(codes::LB1111, message)
    } else {
        StepError::permanent(codes::LB1111, message)
    };
    failure.help(if full {
        "make room in the store (`df -h`), then try again; nothing unfinished counts as a backup"
    } else {
        "check that the file system is mounted for writing and that this user may write to it"
    })
}
