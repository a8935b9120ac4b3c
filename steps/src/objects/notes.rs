//! What has arrived whole, part by part, so that a later attempt need not fetch it again.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use lifeboat_engine::plan::hex;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// How far one object was written to its file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Note {
    pub(super) name: String,
    /// Which content it is of.
    pub(super) pin: String,
    pub(super) to: u64,
    /// The checksum of everything up to there: the one that is kept for the whole anyway.
    pub(super) sha256: String,
}

/// What is there of a file, from its beginning.
#[derive(Clone)]
pub(super) struct Intact {
    pub(super) bytes: u64,
    /// The state after these bytes.
    pub(super) sha256: Sha256,
}

/// The notes of a step, one line each. They may be ahead of the files that they speak of: a note counts only when the
/// bytes are there and have the checksum.
#[derive(Debug)]
pub(super) struct Notes {
    path: PathBuf,
    known: BTreeMap<String, Vec<Note>>,
    file: Mutex<File>,
}

impl Notes {
    /// Reads those of earlier attempts. A line that a kill cut short is none.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let mut known = BTreeMap::<String, Vec<Note>>::new();
        let mut file = File::options().create(true).append(true).read(true).open(path)?;
        let lines = BufReader::new(&file).split(b'\n').map_while(Result::ok);
        for note in lines.filter_map(|line| serde_json::from_slice::<Note>(&line).ok()) {
            known.entry(note.name.clone()).or_default().push(note);
        }
        // What follows a line cut short would be part of it.
        file.write_all(b"\n")?;
        Ok(Self { path: path.to_owned(), known, file: Mutex::new(file) })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn add(&self, note: &Note) -> io::Result<()> {
        let mut line = serde_json::to_vec(note).map_err(io::Error::other)?;
        line.push(b'\n');
        self.file.lock().unwrap_or_else(PoisonError::into_inner).write_all(&line)
    }

    /// Returns how much of a file is there from its beginning, by reading it.
    pub(super) fn intact(&self, name: &str, pin: &str, file: &mut File) -> io::Result<Intact> {
        let mut notes: Vec<_> = self.known.get(name).into_iter().flatten().collect();
        notes.retain(|note| note.pin == pin && !pin.is_empty());
        notes.sort_by_key(|note| note.to);
        let mut intact = Intact { bytes: 0, sha256: Sha256::new() };
        let mut read = intact.clone();
        file.seek(SeekFrom::Start(0))?;
        for note in notes {
            if !read.on(file, note.to)? {
                break;
            }
            if hex(&read.sha256.clone().finalize()) == note.sha256 {
                intact = read.clone();
            }
        }
        Ok(intact)
    }
}

impl Intact {
    /// Reads on up to a position. Returns false if the file ends before it.
    fn on(&mut self, file: &mut File, to: u64) -> io::Result<bool> {
        let mut buffer = vec![0; 256 * 1024];
        while self.bytes < to {
            let most = usize::try_from(to - self.bytes).unwrap_or(usize::MAX).min(buffer.len());
            let count = file.read(&mut buffer[..most])?;
            if count == 0 {
                return Ok(false);
            }
            self.sha256.update(&buffer[..count]);
            self.bytes += count as u64;
        }
        Ok(true)
    }
}

impl std::fmt::Debug for Intact {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Intact").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(content: &[u8]) -> Note {
        let sha256 = hex(&Sha256::digest(content));
        Note { name: "a".into(), pin: "v1".into(), to: content.len() as u64, sha256 }
    }

    #[test]
    fn what_was_noted_counts_when_its_bytes_are_there_and_right() {
        let dir = tempfile::tempdir().unwrap();
        let (log, path) = (dir.path().join("notes"), dir.path().join("a"));
        let notes = Notes::open(&log).unwrap();
        notes.add(&note(b"abcdef")).unwrap();
        notes.add(&note(b"abc")).unwrap();
        notes.add(&note(b"abcdefghijkl")).unwrap();
        std::fs::write(&path, "abcdefghij").unwrap();
        let intact = |pin: &str| {
            let notes = Notes::open(&log).unwrap();
            let intact = notes.intact("a", pin, &mut File::open(&path).unwrap()).unwrap();
            let there = &std::fs::read(&path).unwrap()[..usize::try_from(intact.bytes).unwrap()];
            assert_eq!(
                intact.sha256.finalize(),
                Sha256::digest(there),
                "the state is that after these bytes"
            );
            intact.bytes
        };
        assert_eq!(intact("v1"), 6, "the last note speaks of bytes that are not there");
        assert_eq!(intact("v2"), 0, "another content");
        assert_eq!(intact(""), 0, "a content that nothing tells from others");
        std::fs::write(&path, "abcdeXghijkl").unwrap();
        assert_eq!(intact("v1"), 3);
        std::fs::write(&path, "ab").unwrap();
        assert_eq!(intact("v1"), 0, "the note was durable and the bytes were not");
    }

    #[test]
    fn a_line_that_was_cut_short_does_not_spoil_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let (log, path) = (dir.path().join("notes"), dir.path().join("a"));
        std::fs::write(&log, r#"{"name":"a","pin":"v1","t"#).unwrap();
        Notes::open(&log).unwrap().add(&note(b"abc")).unwrap();
        std::fs::write(&path, "abc").unwrap();
        let notes = Notes::open(&log).unwrap();
        assert_eq!(notes.intact("a", "v1", &mut File::open(&path).unwrap()).unwrap().bytes, 3);
    }
}
