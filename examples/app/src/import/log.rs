//! The scheduler's log.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use jiff::{Timestamp, Unit};

const JOB: &str = "members.import_payments";

/// A log to which jobs add lines: when, how bad, which job, what.
#[derive(Clone, Debug)]
pub(super) struct Log(PathBuf);

impl Log {
    pub(super) fn new(path: &Path) -> Self {
        Self(path.to_owned())
    }

    pub(super) fn info(&self, text: &str) -> io::Result<()> {
        self.write("INFO", text)
    }

    pub(super) fn warn(&self, text: &str) -> io::Result<()> {
        self.write("WARN", text)
    }

    pub(super) fn error(&self, text: &str) -> io::Result<()> {
        self.write("ERROR", text)
    }

    /// One write, so that lines of two jobs do not mingle.
    fn write(&self, level: &str, text: &str) -> io::Result<()> {
        let now = Timestamp::now().round(Unit::Millisecond).unwrap_or_else(|_| Timestamp::now());
        let line = format!("{now} {level} {JOB} {text}\n");
        OpenOptions::new().create(true).append(true).open(&self.0)?.write_all(line.as_bytes())
    }
}
