use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::codes;
use crate::code::Code;
use crate::journal;

/// Why evidence cannot be made, or does not hold.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error(transparent)]
    Journal(#[from] journal::Error),
    #[error("`{path}` cannot be {action}")]
    Io {
        path: PathBuf,
        /// `read`, `written`
        action: &'static str,
        #[source]
        source: Arc<io::Error>,
    },
    #[error("no evidence can be made: {place} {what}")]
    NotKept { place: String, what: String },
    #[error("`{path}` is no archive of evidence{}: {what}", at(place))]
    NoArchive {
        path: PathBuf,
        /// The member, or the byte.
        place: Option<String>,
        what: String,
    },
    #[error("the evidence in `{path}` was changed: {place}: {what}")]
    Changed { path: PathBuf, place: String, what: String },
    #[error("the evidence in `{path}` ends with the head {found}, and not with {wanted}")]
    OtherHead { path: PathBuf, found: String, wanted: String },
}

fn at(place: &Option<String>) -> String {
    place.as_ref().map(|place| format!(" at {place}")).unwrap_or_default()
}

impl Error {
    /// Returns the code whose page explains the error.
    pub fn code(&self) -> Code {
        match self {
            Self::Journal(error) => error.code(),
            Self::Io { .. } | Self::NotKept { .. } => codes::LB0385,
            Self::NoArchive { .. } => codes::LB0386,
            Self::Changed { .. } => codes::LB0387,
            Self::OtherHead { .. } => codes::LB0388,
        }
    }

    /// Says what to do next.
    pub fn help(&self) -> String {
        let help = match self {
            Self::Journal(error) => return error.help(),
            Self::Io { .. } => "look at the cause, the free space and the owner of the file",
            Self::NotKept { .. } => {
                "somebody changed the run's directory: keep a copy of it as it is, and find out who and why"
            }
            Self::NoArchive { .. } => {
                "copy the archive again, as it was made: in binary, and not packed anew by another program; `lifeboat evidence \
                 RUN` makes a new one where the run is"
            }
            Self::Changed { .. } => {
                "do not rely on this archive: get another copy, or a new one by `lifeboat evidence RUN` where the run is"
            }
            Self::OtherHead { .. } => {
                "compare the run's id with that of the notice: it is another run, one that went on later, or the end of \
                 the journal was cut off"
            }
        };
        help.to_owned()
    }

    pub(super) fn io(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |error| Self::Io { path, action, source: Arc::new(error) }
    }
}
