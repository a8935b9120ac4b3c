//! What has arrived whole, part by part, so that a later attempt need not fetch it again.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use lifeboat_engine::plan::hex;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// One part of one object that was written to its file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Note {
    pub(super) name: String,
    /// Which content it is of.
    pub(super) pin: String,
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) sha256: String,
}

/// The notes of a step, one line each. They may be ahead of the files that they speak of: a part counts only when its
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
    pub(super) fn intact(&self, name: &str, pin: &str, file: &mut File) -> io::Result<u64> {
        let notes =
            self.known.get(name).into_iter().flatten().filter(|note| note.pin == pin && !pin.is_empty());
        let mut end = 0;
        for note in notes {
            // An attempt that began anew noted other parts.
            if note.from == end && note.to > note.from && is_there(file, note)? {
                end = note.to;
            }
        }
        Ok(end)
    }
}

fn is_there(file: &mut File, note: &Note) -> io::Result<bool> {
    file.seek(SeekFrom::Start(note.from))?;
    let (mut state, mut left, mut buffer) = (Sha256::new(), note.to - note.from, vec![0; 256 * 1024]);
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let count = file.read(&mut buffer[..most])?;
        if count == 0 {
            return Ok(false);
        }
        state.update(&buffer[..count]);
        left -= count as u64;
    }
    Ok(hex(&state.finalize()) == note.sha256)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(from: u64, content: &[u8]) -> Note {
        let sha256 = hex(&Sha256::digest(content));
        Note { name: "a".into(), pin: "v1".into(), from, to: from + content.len() as u64, sha256 }
    }

    #[test]
    fn a_part_counts_when_its_bytes_are_there_and_right() {
        let dir = tempfile::tempdir().unwrap();
        let (log, path) = (dir.path().join("notes"), dir.path().join("a"));
        let notes = Notes::open(&log).unwrap();
        notes.add(&note(0, b"abc")).unwrap();
        notes.add(&note(3, b"def")).unwrap();
        notes.add(&note(9, b"jkl")).unwrap();
        std::fs::write(&path, "abcdefghijkl").unwrap();
        let intact = |pin: &str| {
            let notes = Notes::open(&log).unwrap();
            notes.intact("a", pin, &mut File::open(&path).unwrap()).unwrap()
        };
        assert_eq!(intact("v1"), 6, "the part after a gap is no continuation");
        assert_eq!(intact("v2"), 0, "another content");
        assert_eq!(intact(""), 0, "a content that nothing tells from others");
        std::fs::write(&path, "abcdeXghi").unwrap();
        assert_eq!(intact("v1"), 3);
        std::fs::write(&path, "ab").unwrap();
        assert_eq!(intact("v1"), 0, "the note was durable and the bytes were not");
    }

    #[test]
    fn a_line_that_was_cut_short_does_not_spoil_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let (log, path) = (dir.path().join("notes"), dir.path().join("a"));
        std::fs::write(&log, r#"{"name":"a","pin":"v1","fr"#).unwrap();
        Notes::open(&log).unwrap().add(&note(0, b"abc")).unwrap();
        std::fs::write(&path, "abc").unwrap();
        let notes = Notes::open(&log).unwrap();
        assert_eq!(notes.intact("a", "v1", &mut File::open(&path).unwrap()).unwrap(), 3);
    }
}
