//! Lines of a stream that may hold anything: none takes more than a bounded amount of memory.

use std::io::{self, BufRead};

use lifeboat_engine::redact::Redactor;

/// Longer lines are looked at up to here.
pub(super) const LONGEST: usize = 1024 * 1024;

/// Reads lines one by one.
pub(super) struct Lines<R> {
    from: R,
    redactor: Redactor,
    line: Vec<u8>,
    /// How many lines were longer than what is looked at.
    pub(super) cut: u64,
}

/// One line as it came.
pub(super) struct Line<'a> {
    /// Without its end, and without what is too long.
    pub(super) text: &'a [u8],
    /// How many bytes it took, its end included.
    pub(super) bytes: u64,
    /// Whether it had an end.
    pub(super) complete: bool,
}

impl<R: BufRead> Lines<R> {
    pub(super) fn new(from: R, redactor: Redactor) -> Self {
        Self { from, redactor, line: Vec::new(), cut: 0 }
    }

    /// Returns the next line; `None` at the end.
    pub(super) fn next(&mut self) -> io::Result<Option<Line<'_>>> {
        self.line.clear();
        let limit = LONGEST + self.redactor.reach();
        let (mut bytes, mut complete, mut dropped) = (0, false, false);
        loop {
            let part = match self.from.fill_buf() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                part => part?,
            };
            if part.is_empty() {
                break;
            }
            let end = memchr::memchr(b'\n', part);
            let text = &part[..end.unwrap_or(part.len())];
            let room = limit - self.line.len();
            self.line.extend_from_slice(&text[..text.len().min(room)]);
            dropped |= text.len() > room;
            let taken = end.map_or(part.len(), |end| end + 1);
            complete = end.is_some();
            self.from.consume(taken);
            bytes += taken as u64;
            if complete {
                break;
            }
        }
        if bytes == 0 {
            return Ok(None);
        }
        if dropped || self.line.len() > LONGEST {
            // Half a secret would not be found any more.
            let at = self.redactor.cut(&self.line, LONGEST);
            self.line.truncate(at);
            self.cut += 1;
        } else if self.line.last() == Some(&b'\r') {
            self.line.pop();
        }
        Ok(Some(Line { text: &self.line, bytes, complete }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(bytes: &[u8]) -> (Vec<Vec<u8>>, u64, u64) {
        let mut lines = Lines::new(io::BufReader::with_capacity(7, bytes), Redactor::default());
        let (mut found, mut total) = (Vec::new(), 0);
        while let Some(line) = lines.next().unwrap() {
            found.push(line.text.to_vec());
            total += line.bytes;
        }
        (found, total, lines.cut)
    }

    #[test]
    fn lines_are_what_stands_between_their_ends() {
        let (found, total, cut) = all(b"one\r\n\ntwo \xff\nlast");
        assert_eq!(found, [&b"one"[..], b"", b"two \xff", b"last"]);
        assert_eq!((total, cut), (16, 0));
    }

    #[test]
    fn a_line_without_end_is_bounded() {
        let long = vec![b'x'; 3 * LONGEST];
        let (found, total, cut) = all(&[&long[..], b"\nnext"].concat());
        assert_eq!((found[0].len(), found[1].as_slice()), (LONGEST, &b"next"[..]));
        assert_eq!((total, cut), (3 * LONGEST as u64 + 5, 1));
    }
}
