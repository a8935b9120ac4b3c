//! Uploads in parts that a step has begun, so that a later attempt goes on with them or throws them away.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

/// A part that the server has acknowledged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Acknowledged {
    /// What the server calls its content.
    pub(crate) etag: String,
    pub(crate) size: u64,
    /// CRC64NVME of the content.
    pub(crate) crc: u64,
}

/// An upload that was neither completed nor thrown away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Begun {
    /// The object, by bucket and name.
    pub(crate) object: String,
    /// What was announced of the whole.
    pub(crate) sha256: Option<String>,
    /// By number.
    pub(crate) parts: BTreeMap<i32, Acknowledged>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Began { upload: String, object: String, sha256: Option<String> },
    Sent { upload: String, number: i32, part: Acknowledged },
    Ended { upload: String },
}

/// The notes of a step, one line each.
///
/// A note is no proof: a part counts only if the server lists it under the tag that was noted.
#[derive(Debug)]
pub(crate) struct Uploads {
    file: Mutex<File>,
    /// By the server's name for the upload.
    open: Mutex<BTreeMap<String, Begun>>,
    kept: AtomicU64,
}

impl Uploads {
    /// Reads those of earlier attempts. A line that a kill cut short is none.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let mut file = File::options().create(true).append(true).read(true).open(path)?;
        let mut open = BTreeMap::new();
        let lines = BufReader::new(&file).split(b'\n').map_while(Result::ok);
        for line in lines.filter_map(|line| serde_json::from_slice(&line).ok()) {
            take_in(&mut open, line);
        }
        // What follows a line cut short would be part of it.
        file.write_all(b"\n")?;
        Ok(Self { file: Mutex::new(file), open: Mutex::new(open), kept: AtomicU64::new(0) })
    }

    /// Notes an upload, durably: nobody else knows of it.
    pub(crate) fn began(&self, upload: &str, object: &str, sha256: Option<&str>) -> io::Result<()> {
        let (upload, object) = (upload.to_owned(), object.to_owned());
        self.add(Line::Began { upload, object, sha256: sha256.map(ToOwned::to_owned) })?;
        lock(&self.file).sync_data()
    }

    pub(crate) fn sent(&self, upload: &str, number: i32, part: Acknowledged) -> io::Result<()> {
        self.add(Line::Sent { upload: upload.to_owned(), number, part })
    }

    /// Notes that an upload was completed or is gone.
    pub(crate) fn ended(&self, upload: &str) -> io::Result<()> {
        self.add(Line::Ended { upload: upload.to_owned() })
    }

    /// Returns the uploads to an object that an earlier attempt has left.
    pub(crate) fn to(&self, object: &str) -> Vec<(String, Begun)> {
        let open = lock(&self.open);
        let found = open.iter().filter(|(_, begun)| begun.object == object);
        found.map(|(upload, begun)| (upload.clone(), begun.clone())).collect()
    }

    /// Returns all that are left.
    pub(crate) fn left(&self) -> Vec<(String, Begun)> {
        lock(&self.open).clone().into_iter().collect()
    }

    /// Counts bytes that need not be sent again.
    pub(crate) fn keep(&self, bytes: u64) {
        self.kept.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn kept(&self) -> u64 {
        self.kept.load(Ordering::Relaxed)
    }

    fn add(&self, line: Line) -> io::Result<()> {
        let mut text = serde_json::to_vec(&line).map_err(io::Error::other)?;
        text.push(b'\n');
        lock(&self.file).write_all(&text)?;
        take_in(&mut lock(&self.open), line);
        Ok(())
    }
}

fn take_in(open: &mut BTreeMap<String, Begun>, line: Line) {
    match line {
        Line::Began { upload, object, sha256 } => {
            open.insert(upload, Begun { object, sha256, parts: BTreeMap::new() });
        }
        Line::Sent { upload, number, part } => {
            if let Some(begun) = open.get_mut(&upload) {
                begun.parts.insert(number, part);
            }
        }
        Line::Ended { upload } => drop(open.remove(&upload)),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(number: u64) -> Acknowledged {
        Acknowledged { etag: format!("\"{number}\""), size: 8, crc: u64::MAX - number }
    }

    #[test]
    fn a_later_attempt_finds_what_was_begun_and_not_ended() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("uploads.jsonl");
        let uploads = Uploads::open(&path).unwrap();
        uploads.began("u1", "b/one", Some("abc")).unwrap();
        uploads.sent("u1", 2, part(2)).unwrap();
        uploads.began("u2", "b/two", None).unwrap();
        uploads.ended("u2").unwrap();
        // A kill cuts the last line short.
        File::options().append(true).open(&path).unwrap().write_all(br#"{"sent":{"upl"#).unwrap();
        for _ in 0..2 {
            let later = Uploads::open(&path).unwrap();
            let found = later.to("b/one");
            assert_eq!(found.len(), 1);
            assert_eq!((found[0].0.as_str(), found[0].1.sha256.as_deref()), ("u1", Some("abc")));
            assert_eq!(found[0].1.parts, BTreeMap::from([(2, part(2))]));
            assert_eq!((later.to("b/two").len(), later.left().len()), (0, 1));
        }
        Uploads::open(&path).unwrap().ended("u1").unwrap();
        assert!(Uploads::open(&path).unwrap().left().is_empty());
    }
}
