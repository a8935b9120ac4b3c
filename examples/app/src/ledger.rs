//! What the traffic did, written down as it happens: one JSON object a line, on disk before anything follows.
//!
//! A write is two lines. `begun` is on disk before the request is sent, so nothing can be in a database that the
//! ledger does not know; `acknowledged` is written only after the answer. A restored system can thus be held against
//! any moment: acknowledged before it must be there, begun at or after it must not, the rest may be either.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write as _};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum Line {
    /// What was there before any traffic.
    Baseline { at: Timestamp, payments: i64, amount_cents: i64 },
    Begun {
        seq: u64,
        at: Timestamp,
        #[serde(flatten)]
        write: Write,
    },
    Acknowledged {
        seq: u64,
        at: Timestamp,
        #[serde(flatten)]
        facts: Facts,
    },
    /// Known not to have happened.
    Refused { seq: u64, at: Timestamp, reason: String },
    /// Nobody knows whether it happened.
    Unknown { seq: u64, at: Timestamp, reason: String },
}

/// What was to be written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum Write {
    Payment { reference: String, member_id: i64, amount_cents: i64 },
    Decision { reference: String, member_id: i64, status: String },
    Upload { reference: String, sha256: String, bytes: u64 },
    Login { user: String },
    Heartbeat,
}

/// What the answer said.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Facts {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) id: Option<i64>,
    /// Where an upload is, within the uploads directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) path: Option<String>,
    /// A key of Redis that does not expire, and what it counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) counter: Option<Counter>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) session: Option<Session>,
    /// The time in a heartbeat row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) beat: Option<Timestamp>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Counter {
    pub(crate) key: String,
    pub(crate) value: i64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Session {
    pub(crate) key: String,
    pub(crate) expires_at: Timestamp,
}

/// A ledger being written. Lines are in the order of the calls.
#[derive(Debug)]
pub(crate) struct Ledger {
    file: Mutex<(File, u64)>,
}

impl Ledger {
    /// Opens a ledger to write at its end, or begins it.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let last = match read(path) {
            Ok(lines) => lines.iter().filter_map(seq).max().unwrap_or(0),
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(error),
        };
        let file = OpenOptions::new().create(true).read(true).append(true).open(path)?;
        drop_torn_line(path, &file)?;
        Ok(Self { file: Mutex::new((file, last)) })
    }

    /// Writes a line; returns once it is on disk.
    pub(crate) fn write(&self, line: &Line) -> io::Result<()> {
        let mut guard = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        append(&mut guard.0, line)
    }

    /// Writes that something is about to be done, named by a number; returns once it is on disk.
    pub(crate) fn begin(&self, write: impl FnOnce(u64) -> Write) -> io::Result<u64> {
        let mut guard = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let (file, last) = &mut *guard;
        *last += 1;
        append(file, &Line::Begun { seq: *last, write: write(*last), at: Timestamp::now() })?;
        Ok(*last)
    }
}

fn append(file: &mut File, line: &Line) -> io::Result<()> {
    let mut text = serde_json::to_vec(line)?;
    text.push(b'\n');
    file.write_all(&text)?;
    file.sync_data()
}

/// A line without its end was cut off by a crash, before anything followed from it.
fn drop_torn_line(path: &Path, file: &File) -> io::Result<()> {
    let bytes = std::fs::read(path)?;
    let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
    if whole == bytes.len() { Ok(()) } else { file.set_len(u64::try_from(whole).unwrap_or(u64::MAX)) }
}

fn seq(line: &Line) -> Option<u64> {
    match line {
        Line::Baseline { .. } => None,
        Line::Begun { seq, .. }
        | Line::Acknowledged { seq, .. }
        | Line::Refused { seq, .. }
        | Line::Unknown { seq, .. } => Some(*seq),
    }
}

/// Reads a ledger, which may still be written. A last line that is cut off is left out; any other bad line is an error.
pub(crate) fn read(path: &Path) -> io::Result<Vec<Line>> {
    let mut reader = BufReader::new(File::open(path)?);
    let mut lines = Vec::new();
    loop {
        let mut text = String::new();
        if reader.read_line(&mut text)? == 0 || !text.ends_with('\n') {
            return Ok(lines);
        }
        let line = serde_json::from_str(&text).map_err(|error| {
            let place = format!("{} line {}: {error}", path.display(), lines.len() + 1);
            io::Error::new(io::ErrorKind::InvalidData, place)
        })?;
        lines.push(line);
    }
}

/// One write with all that is known about it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    pub(crate) begun_at: Timestamp,
    pub(crate) write: Write,
    pub(crate) end: End,
}

/// How a write ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum End {
    Acknowledged(Timestamp, Facts),
    Refused,
    Unknown,
}

/// Brings the two lines of each write together, in the order in which the writes began.
pub(crate) fn entries(lines: &[Line]) -> Vec<Entry> {
    let mut entries = BTreeMap::new();
    for line in lines {
        let (seq, end) = match line {
            Line::Baseline { .. } => continue,
            Line::Begun { seq, at, write } => {
                entries.insert(*seq, Entry { begun_at: *at, write: write.clone(), end: End::Unknown });
                continue;
            }
            Line::Acknowledged { seq, at, facts } => (seq, End::Acknowledged(*at, facts.clone())),
            Line::Refused { seq, .. } => (seq, End::Refused),
            Line::Unknown { seq, .. } => (seq, End::Unknown),
        };
        if let Some(entry) = entries.get_mut(seq) {
            entry.end = end;
        }
    }
    entries.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beat(_: u64) -> Write {
        Write::Heartbeat
    }

    #[test]
    fn a_write_is_known_before_and_after() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        let ledger = Ledger::open(&path).unwrap();
        let first = ledger.begin(beat).unwrap();
        let second = ledger.begin(beat).unwrap();
        let (at, facts) = (Timestamp::now(), Facts { id: Some(7), ..Facts::default() });
        ledger.write(&Line::Acknowledged { seq: second, at, facts: facts.clone() }).unwrap();
        let entries = entries(&read(&path).unwrap());
        assert_eq!(entries.len(), 2);
        assert_eq!((first, &entries[0].end), (1, &End::Unknown));
        assert_eq!(entries[1].end, End::Acknowledged(at, facts));
    }

    #[test]
    fn a_torn_last_line_is_left_out_and_numbers_go_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        Ledger::open(&path).unwrap().begin(beat).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.extend(b"{\"event\":\"begun\",\"se");
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(read(&path).unwrap().len(), 1);
        assert_eq!(Ledger::open(&path).unwrap().begin(beat).unwrap(), 2);
        assert_eq!(read(&path).unwrap().len(), 2);
    }

    #[test]
    fn a_bad_line_in_the_middle_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        std::fs::write(&path, "nonsense\n").unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("line 1"));
    }
}
