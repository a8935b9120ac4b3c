use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use super::error::Error;
use super::output::{MARK, OutputFiles, begin, name, old_tail, stream_length_of_head, tail};
use crate::model::{Attempt, StepId, Stream};

/// What has come of a stream since somebody looked last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Piece {
    /// As it was printed; a line of Lifeboat's says how many bytes before it were not kept.
    pub bytes: Vec<u8>,
    /// Where to look the next time.
    pub next: u64,
}

/// A file that changes while it is looked at is looked at again, at most this often.
const TRIES: usize = 5;

impl OutputFiles {
    /// Returns what has come of a stream from a position on, also while it is written and its files take turns.
    ///
    /// Empty if nothing has. If the attempt has begun its output anew, everything from there.
    pub fn since(
        &self,
        step: &StepId,
        attempt: Attempt,
        stream: Stream,
        position: u64,
    ) -> Result<Piece, Error> {
        let path = self.attempt_dir(step, attempt).join(name(stream));
        look(&path, position).map_err(Error::io("read", &path))
    }
}

fn look(path: &Path, position: u64) -> io::Result<Piece> {
    for _ in 1..TRIES {
        let before = first_byte(&tail(path))?;
        let piece = look_once(path, position)?;
        if first_byte(&tail(path))? == before {
            return Ok(piece);
        }
    }
    look_once(path, position)
}

fn look_once(path: &Path, position: u64) -> io::Result<Piece> {
    let mut piece = Piece { bytes: Vec::new(), next: position };
    let mut end = read_head(path, &mut piece)?;
    for part in [old_tail(path), tail(path)] {
        if let Some(from) = first_byte(&part)? {
            end = read_tail(&part, from, &mut piece)?;
        }
    }
    if end < position {
        return look_once(path, 0);
    }
    Ok(piece)
}

/// Reads what is new of the beginning of a stream; returns where it ends.
fn read_head(path: &Path, piece: &mut Piece) -> io::Result<u64> {
    const NOTE: u64 = 256;
    let Some(mut file) = open(path)? else { return Ok(0) };
    let length = file.metadata()?.len();
    let from = piece.next.min(length).min(length.saturating_sub(NOTE));
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.take(length - from).read_to_end(&mut bytes)?;
    // The note at its end is not part of the stream.
    let end = from + stream_length_of_head(&bytes);
    bytes.truncate(usize::try_from(end - from).unwrap_or(usize::MAX));
    if let Some(new) =
        piece.next.checked_sub(from).and_then(|known| bytes.get(usize::try_from(known).ok()?..))
    {
        piece.bytes.extend_from_slice(new);
        piece.next = piece.next.max(end);
    }
    Ok(end)
}

fn read_tail(path: &Path, from: u64, piece: &mut Piece) -> io::Result<u64> {
    let Some(mut file) = open(path)? else { return Ok(0) };
    let end = from + file.metadata()?.len().saturating_sub(MARK);
    if end <= piece.next {
        return Ok(end);
    }
    if from > piece.next {
        let gap = format!("[lifeboat: {} bytes are left out here]\n", from - piece.next);
        piece.bytes.extend_from_slice(gap.as_bytes());
        piece.next = from;
    }
    file.seek(SeekFrom::Start(MARK + piece.next - from))?;
    let count = file.take(end - piece.next).read_to_end(&mut piece.bytes)?;
    piece.next += count as u64;
    Ok(end)
}

/// Where in the stream a tail file begins; `None` if there is none.
fn first_byte(path: &Path) -> io::Result<Option<u64>> {
    let Some(file) = open(path)? else { return Ok(None) };
    let mut mark = Vec::new();
    file.take(MARK).read_to_end(&mut mark)?;
    Ok(begin(&mark))
}

fn open(path: &Path) -> io::Result<Option<File>> {
    match fs::File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUT: Stream = Stream::Stdout;

    fn step() -> StepId {
        StepId::new("base").unwrap()
    }

    fn files(dir: &Path) -> OutputFiles {
        OutputFiles::limited(dir.to_owned(), 100, 60)
    }

    #[test]
    fn whoever_looks_often_enough_sees_every_byte_once() {
        let dir = tempfile::tempdir().unwrap();
        let files = files(dir.path());
        let (mut seen, mut expected, mut position) = (Vec::new(), Vec::new(), 0);
        assert_eq!(files.since(&step(), 1, OUT, 0).unwrap(), Piece::default());
        for n in 0..200 {
            let line = format!("line {n} {}", "x".repeat(n % 20));
            files.line(&step(), 1, OUT, &line).unwrap();
            expected.extend_from_slice(format!("{line}\n").as_bytes());
            let piece = files.since(&step(), 1, OUT, position).unwrap();
            seen.extend(piece.bytes);
            position = piece.next;
        }
        assert_eq!(String::from_utf8(seen).unwrap(), String::from_utf8(expected).unwrap());
    }

    #[test]
    fn whoever_looks_late_is_told_what_was_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let files = files(dir.path());
        (0..200).for_each(|n| files.line(&step(), 1, OUT, &format!("line {n:04}")).unwrap());
        let all = files.since(&step(), 1, OUT, 0).unwrap();
        assert_eq!(
            all.bytes,
            files
                .read(&step(), 1, OUT)
                .unwrap()
                .split(|b| *b == b'\n')
                .filter(|line| { !line.starts_with(b"[lifeboat: ") || line.ends_with(b"left out here]") })
                .collect::<Vec<_>>()
                .join(&b'\n')
        );
        assert_eq!(all.next, 200 * 10);
        let later = files.since(&step(), 1, OUT, 150).unwrap();
        assert!(later.bytes.starts_with(b"[lifeboat: "), "{later:?}");
        assert!(later.bytes.ends_with(b"line 0199\n"));
        assert_eq!(files.since(&step(), 1, OUT, all.next).unwrap(), Piece { bytes: vec![], next: all.next });
    }

    #[test]
    fn output_that_begins_anew_is_seen_from_there() {
        let dir = tempfile::tempdir().unwrap();
        let files = files(dir.path());
        files.line(&step(), 1, OUT, "the first poll, which is long").unwrap();
        let position = files.since(&step(), 1, OUT, 0).unwrap().next;
        files.restart(&step(), 1).unwrap();
        files.line(&step(), 1, OUT, "second").unwrap();
        assert_eq!(files.since(&step(), 1, OUT, position).unwrap().bytes, b"second\n");
    }
}
