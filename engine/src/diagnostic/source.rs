use std::io::ErrorKind;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use super::codes;
use super::{Diagnostic, Diagnostics};

/// The largest file that is read, in bytes.
const MAX_BYTES: u64 = 16 * 1024 * 1024;

/// The text of one file, which knows its lines.
#[derive(Debug)]
pub struct Source {
    /// As shown to people: relative to the project.
    pub name: String,
    pub text: String,
    /// Where each line begins. Found when somebody asks for a position: most files have no problems.
    line_starts: OnceLock<Vec<usize>>,
}

/// A place in a text, both counted from 1; the column counts characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    pub line: usize,
    pub column: usize,
}

impl Source {
    /// Wraps a text that is already in memory.
    pub fn new(name: impl Into<String>, text: impl Into<String>) -> Arc<Self> {
        Arc::new(Self { name: name.into(), text: text.into(), line_starts: OnceLock::new() })
    }

    fn line_starts(&self) -> &[usize] {
        let breaks = self.text.match_indices('\n').map(|(at, _)| at + 1);
        self.line_starts.get_or_init(|| std::iter::once(0).chain(breaks).collect())
    }

    /// Reads a file. A file that cannot be read, is too large or is not UTF-8 becomes a diagnostic.
    pub fn read(path: &Path, name: &str, out: &mut Diagnostics) -> Option<Arc<Self>> {
        match read_limited(path) {
            Ok(bytes) => Self::from_bytes(name, bytes, out),
            Err(error) => {
                let help = match error.kind() {
                    ErrorKind::InvalidInput => {
                        "only regular files are read; rename it, or move it away".to_owned()
                    }
                    _ => format!("check that `{}` exists and may be read", path.display()),
                };
                let message = format!("cannot read `{name}`: {error}");
                out.push(Diagnostic::error(codes::LB0202, message).help(help));
                None
            }
        }
    }

    /// Checks the limits on bytes and wraps them as text.
    pub fn from_bytes(name: &str, bytes: Vec<u8>, out: &mut Diagnostics) -> Option<Arc<Self>> {
        if bytes.len() as u64 > MAX_BYTES {
            out.push(
                Diagnostic::error(codes::LB0102, format!("`{name}` is larger than 16 MiB"))
                    .help("no runbook needs that much text; is it the right file?"),
            );
            return None;
        }
        match String::from_utf8(bytes) {
            Ok(text) => Some(Self::new(name, text)),
            Err(error) => {
                let good = error.utf8_error().valid_up_to();
                let line = 1 + error.as_bytes()[..good].iter().filter(|byte| **byte == b'\n').count();
                out.push(
                    Diagnostic::error(
                        codes::LB0102,
                        format!("`{name}` is not UTF-8: line {line}, byte {good}"),
                    )
                    .help("save the file as UTF-8"),
                );
                None
            }
        }
    }

    /// Returns line and column of a byte offset.
    pub fn position(&self, offset: usize) -> Position {
        let offset = self.floor(offset);
        let line = self.line_starts().partition_point(|start| *start <= offset);
        let start = self.line_starts()[line - 1];
        Position { line, column: self.text[start..offset].chars().count() + 1 }
    }

    /// Returns a range that lies within the text, on character boundaries.
    pub fn clamp(&self, span: Range<usize>) -> Range<usize> {
        let start = self.floor(span.start);
        start..self.floor(span.end).max(start)
    }

    fn floor(&self, offset: usize) -> usize {
        let mut offset = offset.min(self.text.len());
        while !self.text.is_char_boundary(offset) {
            offset -= 1;
        }
        offset
    }
}

/// Reads at most one byte more than allowed, so that a device or a huge file cannot fill the memory.
fn read_limited(path: &Path) -> std::io::Result<Vec<u8>> {
    use std::io::Read;
    // To open a pipe would wait for whoever writes into it.
    let found = std::fs::metadata(path)?;
    let kind = found.file_type();
    if !kind.is_file() {
        let what = if kind.is_dir() { "it is a directory" } else { "it is no regular file" };
        return Err(std::io::Error::new(ErrorKind::InvalidInput, what));
    }
    // With room for the whole, and a byte to see the end, the file is read at once.
    let mut bytes = Vec::with_capacity(usize::try_from(found.len().min(MAX_BYTES)).unwrap_or_default() + 1);
    std::fs::File::open(path)?.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}
