//! A log in files: where it was read to, and what is new since, over rotations.

use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use lifeboat_engine::step::StepError;
use serde::{Deserialize, Serialize};

use super::codes;
use super::lines::Lines;
use super::rotated::{self, Older, Packing};
use super::watch::{Ending, Scan};

/// How far a log was read, or where it ended when it was marked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Position {
    device: u64,
    /// 0 if there was no file yet.
    inode: u64,
    offset: u64,
    /// How many lines are before it, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    lines: Option<u64>,
    /// The checksum of the beginning of the file: a copy of it has the same.
    head: String,
    pub(super) at: Timestamp,
}

/// Where the reading begins.
#[derive(Clone, Debug)]
pub(super) enum From {
    /// At the beginning of the file.
    Beginning,
    /// With the first line of this moment, in whatever file it is.
    Moment(Timestamp),
    Position(Position),
}

/// A file that is to be read, from where.
struct Part {
    path: PathBuf,
    packing: Packing,
    offset: u64,
    /// How many lines are before it.
    lines: Option<u64>,
    /// It may still grow.
    current: bool,
}

/// Returns where a log ends now.
pub(super) fn end_of(path: &Path) -> Result<Position, StepError> {
    let at = Timestamp::now();
    match std::fs::metadata(path) {
        Ok(metadata) if !metadata.is_file() => Err(unreadable(path, &io::Error::other("it is no file"))),
        Ok(metadata) => position(path, metadata.len(), None, at).map_err(|error| unreadable(path, &error)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Ok(Position { device: 0, inode: 0, offset: 0, lines: Some(0), head: String::new(), at })
        }
        Err(error) => Err(unreadable(path, &error)),
    }
}

fn position(path: &Path, offset: u64, lines: Option<u64>, at: Timestamp) -> io::Result<Position> {
    let metadata = std::fs::metadata(path)?;
    let head = rotated::head(path, Packing::None, offset)?;
    Ok(Position { device: metadata.dev(), inode: metadata.ino(), offset, lines, head, at })
}

/// Reads what is there from a place on, and returns how far it came.
pub(super) fn read(scan: &mut Scan, path: &Path, from: &From) -> Result<Position, StepError> {
    let at = Timestamp::now();
    let parts = match from {
        From::Beginning => vec![whole(path)],
        From::Moment(moment) => since(path, *moment)?,
        From::Position(position) => behind(path, position)?,
    };
    let mut reached = None;
    for part in &parts {
        let failed = |error: &io::Error| unreadable(&part.path, error);
        let (offset, lines) = read_part(scan, part).map_err(|error| match error {
            Broken::Io(error) => failed(&error),
            Broken::Ended(error) => error,
        })?;
        if part.current {
            reached = Some(position(&part.path, offset, lines, at).map_err(|error| failed(&error))?);
        }
    }
    // Between two rotations there may be no file for a moment; what was read is behind it.
    Ok(reached.unwrap_or(Position {
        device: 0,
        inode: 0,
        offset: 0,
        lines: Some(0),
        head: String::new(),
        at,
    }))
}

fn whole(path: &Path) -> Part {
    Part { path: path.to_owned(), packing: Packing::None, offset: 0, lines: Some(0), current: true }
}

fn part_of(older: &Older, offset: u64, lines: Option<u64>) -> Part {
    Part { path: older.path.clone(), packing: older.packing, offset, lines, current: false }
}

/// Returns the files that may have lines of a moment or later: what was last written before it has none.
fn since(path: &Path, moment: Timestamp) -> Result<Vec<Part>, StepError> {
    let older = rotated::older(path).map_err(|error| unreadable(path, &error))?;
    let late = |older: &&Older| older.metadata.mtime() >= moment.as_second();
    let mut parts: Vec<Part> = older.iter().filter(late).map(|older| part_of(older, 0, Some(0))).collect();
    if path.exists() || parts.is_empty() {
        parts.push(whole(path));
    }
    Ok(parts)
}

/// Returns the files that have what came behind a position.
fn behind(path: &Path, position: &Position) -> Result<Vec<Part>, StepError> {
    if position.offset == 0 && position.inode == 0 {
        return since(path, position.at);
    }
    let is_it = |found: &std::fs::Metadata, path: &Path| {
        (found.dev(), found.ino()) == (position.device, position.inode)
            && found.len() >= position.offset
            && rotated::head(path, Packing::None, position.offset).is_ok_and(|head| head == position.head)
    };
    if std::fs::metadata(path).is_ok_and(|found| is_it(&found, path)) {
        let (offset, lines) = (position.offset, position.lines);
        return Ok(vec![Part { offset, lines, ..whole(path) }]);
    }
    let older = rotated::older(path).map_err(|error| unreadable(path, &error))?;
    let is_copy = |older: &Older| {
        position.offset > 0
            && rotated::head(&older.path, older.packing, position.offset)
                .is_ok_and(|head| head == position.head)
    };
    let found = older
        .iter()
        .position(|older| older.packing == Packing::None && is_it(&older.metadata, &older.path))
        .or_else(|| older.iter().rposition(is_copy));
    let Some(found) = found else { return Err(gone(path, position)) };
    let mut parts = vec![part_of(&older[found], position.offset, position.lines)];
    parts.extend(older[found + 1..].iter().map(|older| part_of(older, 0, Some(0))));
    if path.exists() {
        parts.push(whole(path));
    }
    Ok(parts)
}

enum Broken {
    Io(io::Error),
    Ended(StepError),
}

impl std::convert::From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Reads one file up to where it ends now. Returns how far it came, and how many lines that is.
fn read_part(scan: &mut Scan, part: &Part) -> Result<(u64, Option<u64>), Broken> {
    let mut from = rotated::open(&part.path, part.packing)?;
    if part.offset > 0 {
        io::copy(&mut (&mut from).take(part.offset), &mut io::sink())?;
    }
    let end = match part.current {
        true => std::fs::metadata(&part.path)?.len().saturating_sub(part.offset),
        false => u64::MAX,
    };
    let name = part.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut lines = Lines::new(from.take(end), scan.redactor().clone());
    let (mut offset, mut count, mut before) = (part.offset, 0_u64, part.lines);
    while let Some(line) = lines.next()? {
        if !line.complete && part.current && scan.ending == Ending::Grows {
            break;
        }
        offset += line.bytes;
        count += 1;
        scan.take(line.text, None, || {
            let before = *before.get_or_insert_with(|| {
                rotated::lines_before(&part.path, part.packing, part.offset).unwrap_or(0)
            });
            format!("{name}:{}", before + count)
        });
        scan.advance(line.bytes).map_err(Broken::Ended)?;
    }
    scan.cut += lines.cut;
    Ok((offset, before.map(|before| before + count)))
}

fn unreadable(path: &Path, error: &io::Error) -> StepError {
    let message = format!("the log {} cannot be read", path.display());
    let help = match error.kind() {
        io::ErrorKind::NotFound => {
            "does the program write there? Correct the path, or start the program first"
        }
        io::ErrorKind::PermissionDenied => "let the user of Lifeboat read it, often by the group `adm`",
        _ => "try to read it by hand, as the same user",
    };
    StepError::transient(codes::LB1351, message).help(help).caused_by(error)
}

fn gone(path: &Path, position: &Position) -> StepError {
    let message = format!(
        "what {} had at {} is not there any more, so what came behind it is not known",
        path.display(),
        position.at
    );
    StepError::permanent(codes::LB1353, message)
        .help("it was emptied, or rotated and removed; keep rotated files for longer, or look with `since`")
}
