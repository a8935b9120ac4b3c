use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::codes;
use super::locks::HolderState;
use super::owner::Holder;
use crate::code::Code;
use crate::journal;
use crate::model::RunId;

/// Why the state of runs cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error("the state directory `{path}` cannot be used: {reason}")]
    Refused { path: PathBuf, reason: String, help: String },
    #[error("cannot {action} `{path}`")]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    Journal(#[from] journal::Error),
    #[error("{}", no_such_run(.text, .known))]
    NoSuchRun { text: String, known: Vec<Candidate> },
    #[error("`{text}` is too short to name a run: give at least 4 characters of its id, or `latest`")]
    TooShort { text: String },
    #[error("`{text}` fits {} runs:{}", .candidates.len(), list(.candidates))]
    Ambiguous { text: String, candidates: Vec<Candidate> },
    #[error(
        "the run {} is {}{}{}",
        .run.short(), owned_by(.holder.as_ref()), lasting(.age.as_ref()), still(*.stands_still)
    )]
    Owned {
        run: RunId,
        holder: Option<Holder>,
        age: Option<Duration>,
        /// A signal has stopped the process.
        stands_still: bool,
    },
    #[error(
        "process {} on {}, which drives the run {}, cannot be ended: {why}",
        .holder.pid, .holder.host, .run.short()
    )]
    NotEnded { run: RunId, holder: Holder, why: String },
    #[error(
        "{what} is locked by the run {} ({by}), which is {state}{}",
        .run.short(), lasting(.age.as_ref())
    )]
    Locked {
        /// What both runs write to.
        what: String,
        run: RunId,
        /// `restore@production`.
        by: String,
        state: HolderState,
        /// How long it has been locked.
        age: Option<Duration>,
    },
    #[error("the record `{path}` of a lock cannot be read")]
    LockUnreadable { path: PathBuf },
    #[error("{what} is being locked by another run at this moment")]
    LockBusy { what: String },
    #[error("a process that an earlier lifeboat started is still there: {what}")]
    Survivor { what: String },
    #[error("the request `{path}` cannot be read: {reason}")]
    BadRequest { path: PathBuf, reason: String },
    #[error("the file `{path}` cannot be kept as evidence: {reason}")]
    BadGiven { path: PathBuf, reason: String },
    #[error("the index of runs `{path}` cannot be used")]
    Index {
        path: PathBuf,
        #[source]
        source: rusqlite::Error,
    },
}

/// A run that a text may mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub run: RunId,
    /// `restore@production`; empty if its journal cannot be read.
    pub what: String,
    pub open: bool,
}

fn no_such_run(text: &str, known: &[Candidate]) -> String {
    if known.is_empty() {
        return format!("there is no run `{text}`: no run was ever declared in this state directory");
    }
    format!("there is no run `{text}`; the newest are:{}", list(known))
}

fn list(candidates: &[Candidate]) -> String {
    candidates.iter().fold(String::new(), |mut text, candidate| {
        let state = if candidate.open { "open" } else { "ended" };
        let (run, what) = (candidate.run, &candidate.what);
        write!(text, "\n  {run}  {state:5}  {what}").expect("writing to a string cannot fail");
        text
    })
}

fn owned_by(holder: Option<&Holder>) -> String {
    holder.map_or_else(
        || "owned by another process".to_owned(),
        |holder| format!("owned by process {} on {}", holder.pid, holder.host),
    )
}

fn still(stands_still: bool) -> &'static str {
    if stands_still { ", and stands still since a signal has stopped it" } else { "" }
}

fn lasting(age: Option<&Duration>) -> String {
    // Fractions of a second would only be noise.
    age.map(|age| format!(", for {}", humantime::format_duration(Duration::from_secs(age.as_secs()))))
        .unwrap_or_default()
}

impl Error {
    /// Returns the code whose page explains the error.
    pub fn code(&self) -> Code {
        match self {
            Self::Refused { .. } => codes::LB0320,
            Self::Io { .. } => codes::LB0321,
            Self::Journal(error) => error.code(),
            Self::NoSuchRun { .. } | Self::TooShort { .. } => codes::LB0322,
            Self::Ambiguous { .. } => codes::LB0323,
            Self::Owned { .. } => codes::LB0324,
            Self::NotEnded { .. } => codes::LB0354,
            Self::Locked { .. } | Self::LockUnreadable { .. } | Self::LockBusy { .. } => codes::LB0325,
            Self::Survivor { .. } => codes::LB0326,
            Self::BadRequest { .. } => codes::LB0327,
            Self::BadGiven { .. } => codes::LB1720,
            Self::Index { .. } => codes::LB0328,
        }
    }

    /// Says what to do next.
    pub fn help(&self) -> String {
        match self {
            Self::Refused { help, .. } => help.clone(),
            Self::Io { path, .. } => {
                format!("look at the owner and the free space: `ls -ld {0}`, `df {0}`", path.display())
            }
            Self::Journal(error) => error.help(),
            Self::NoSuchRun { .. } | Self::TooShort { .. } => "`lifeboat runs` lists all runs".to_owned(),
            Self::Ambiguous { .. } => "give more characters of the id".to_owned(),
            Self::Owned { run, .. } => format!(
                "follow it with `lifeboat watch {0}`; if it does nothing any more, take the run over, which ends that process \
                 first: `lifeboat resume {0} --take-over`",
                run.short()
            ),
            Self::NotEnded { run, holder, .. } => format!(
                "end it where it runs, as its user or as root (`kill -KILL {}` on {}), then `lifeboat resume {}`",
                holder.pid,
                holder.host,
                run.short()
            ),
            Self::Locked { run, state: HolderState::Running, .. } => format!(
                "follow it with `lifeboat watch {0}`; `lifeboat abort {0}` ends it and frees the lock; if its process does \
                 nothing any more, take it over: `lifeboat resume {0} --take-over`",
                run.short()
            ),
            Self::Locked { state: HolderState::Unreadable { record }, .. } => format!(
                "look at the systems that it writes to; when it is certain that nothing of it runs any more, remove \
                 `{}`",
                record.display()
            ),
            Self::Locked { run, .. } => format!(
                "take it over with `lifeboat resume {0}`, or end it with `lifeboat abort {0}`, which frees the lock",
                run.short()
            ),
            Self::LockUnreadable { path } => {
                format!("if `lifeboat runs` shows no open run, remove `{}`", path.display())
            }
            Self::LockBusy { .. } => "try again; `lifeboat runs` shows which runs are open".to_owned(),
            Self::Survivor { .. } => "end it by hand (`kill -KILL`), then `lifeboat resume RUN`".to_owned(),
            Self::BadRequest { .. } => "it was set aside; give the command again".to_owned(),
            Self::BadGiven { .. } => {
                "nothing was recorded; give another file, or say in words what it shows (`-m`)".to_owned()
            }
            Self::Index { path, .. } => format!("it is derived: remove `{}` and try again", path.display()),
        }
    }

    /// Wraps an error of the file system.
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}
