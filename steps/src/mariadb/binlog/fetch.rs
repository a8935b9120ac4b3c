//! Brings the files of a replay to this machine, one after the other, until the moment is found at which it ends.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use lifeboat_engine::step::StepError;

use super::super::codes;
use super::archive::{Archive, Shipped, number};
use super::events::{self, LogFile};
use super::plan::{self, Piece, Plan, Wanted};
use crate::store::Meter;

/// Brings files and reads them, and says what is to be replayed of them.
pub(super) fn plan(
    archive: &Archive,
    wanted: &Wanted,
    (dir, meter): (&Path, &Meter),
) -> Result<Plan, StepError> {
    let files = from_start(&archive.list()?, wanted)?;
    let mut pieces: Vec<Piece> = Vec::new();
    for (index, shipped) in files.iter().enumerate() {
        if let Some(gap) = index.checked_sub(1).and_then(|before| files[before].gap_before(shipped)) {
            return Err(gap_error(&gap));
        }
        let path = dir.join(&shipped.name);
        bring(archive, shipped, &path, meter)?;
        let log = read(shipped, &path)?;
        let ends = plan::ends_in(&log, wanted, index == 0);
        pieces.push(Piece { path, log });
        if ends {
            break;
        }
    }
    // What follows is looked at for transactions with an earlier time, without its data.
    let later = files[pieces.len()..].iter().map(|shipped| shipped.transactions).sum();
    plan::make(pieces, wanted, later)
}

/// Leaves out what is before the dump.
fn from_start(all: &[Shipped], wanted: &Wanted) -> Result<Vec<Shipped>, StepError> {
    let first = number(&wanted.start.file).unwrap_or(0);
    let files: Vec<_> = all.iter().filter(|shipped| shipped.number() >= first).cloned().collect();
    match files.first() {
        Some(found) if found.name == wanted.start.file => Ok(files),
        // A server that has written nothing since has not been asked to begin another file.
        None if all.last().is_some_and(|newest| newest.number() + 1 == first) => Ok(Vec::new()),
        _ => {
            let there = match (all.first(), all.last()) {
                (Some(first), Some(last)) => format!("the store has {} to {}", first.name, last.name),
                _ => "the store has none of this server".to_owned(),
            };
            Err(gap_error(&format!("the dump ends in {}, and {there}", wanted.start.file)))
        }
    }
}

fn gap_error(gap: &str) -> StepError {
    StepError::permanent(codes::LB2042, format!("the binary log cannot be followed: {gap}")).help(
        "nothing was replayed; ship the missing file if the server still has it, or restore a newer dump",
    )
}

/// An earlier attempt may have brought it.
fn bring(archive: &Archive, shipped: &Shipped, path: &Path, meter: &Meter) -> Result<(), StepError> {
    if let Ok(file) = File::open(path)
        && crate::store::digest_of(file, &meter.uncounted())?.sha256 == shipped.sha256
    {
        return meter.advance(shipped.size);
    }
    archive.get(shipped, path, meter)
}

/// Reads a file and holds it against its description.
fn read(shipped: &Shipped, path: &PathBuf) -> Result<LogFile, StepError> {
    let bad = |problem: String| {
        StepError::permanent(codes::LB2041, format!("{} is not as it was shipped: {problem}", shipped.name))
            .help("nothing was replayed; bring this object back from a copy of the store")
    };
    let file = File::open(path).map_err(|error| bad(error.to_string()))?;
    let log =
        events::read(BufReader::with_capacity(256 * 1024, file)).map_err(|error| bad(error.to_string()))?;
    if log.server_id != shipped.server_id {
        return Err(bad(format!("it was written by server {}, not {}", log.server_id, shipped.server_id)));
    }
    if log.after() != shipped.after || log.before.as_ref() != Some(&shipped.before) {
        return Err(bad(format!("it holds [{}], not [{}]", log.after(), shipped.after)));
    }
    Ok(log)
}
