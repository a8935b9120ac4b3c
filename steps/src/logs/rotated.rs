//! The files of one log: the one that grows, and those that it was before.

use std::cmp::Reverse;
use std::fs::{File, Metadata};
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use lifeboat_engine::plan::hex;
use sha2::{Digest, Sha256};

const BUFFER: usize = 256 * 1024;
/// So much of the beginning of a file tells it from others.
const HEAD: u64 = 4096;

/// How a file was packed when it was rotated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Packing {
    None,
    Gzip,
    Zstd,
    /// Packed in a way that is not read here.
    Other,
}

/// A file that the log was written to before.
#[derive(Clone, Debug)]
pub(super) struct Older {
    pub(super) path: PathBuf,
    pub(super) packing: Packing,
    pub(super) metadata: Metadata,
}

/// Returns the files that a log was before, the oldest first: `app.log.1`, `app.log.2.gz`, `app.log-20261122`.
pub(super) fn older(path: &Path) -> io::Result<Vec<Older>> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let other = entry.file_name().to_string_lossy().into_owned();
        let Some(suffix) = other.strip_prefix(&name) else { continue };
        let Some(packing) = packing(suffix) else { continue };
        // One that was removed meanwhile is no part of the log any more.
        let Ok(metadata) = entry.metadata() else { continue };
        if metadata.is_file() {
            found.push(Older { path: entry.path(), packing, metadata });
        }
    }
    found.sort_by_key(|older| {
        let modified = (older.metadata.mtime(), older.metadata.mtime_nsec());
        (modified, Reverse(count(&older.path)))
    });
    Ok(found)
}

/// Returns how a file is packed by what stands behind the name of its log; `None` if it does not belong to it.
fn packing(suffix: &str) -> Option<Packing> {
    let (number, packing) = match suffix.rsplit_once('.') {
        Some((number, "gz")) => (number, Packing::Gzip),
        Some((number, "zst")) => (number, Packing::Zstd),
        Some((number, "xz" | "bz2" | "lz4" | "Z")) => (number, Packing::Other),
        _ => (suffix, Packing::None),
    };
    let mut chars = number.chars();
    let separated = matches!(chars.next(), Some('.' | '-' | '_'));
    let number = chars.as_str();
    let dated = number.starts_with(|c: char| c.is_ascii_digit())
        && number.chars().all(|c| c.is_ascii_digit() || matches!(c, '-' | '_' | '.' | 'T' | ':'));
    (separated && dated).then_some(packing)
}

/// Returns the number in `app.log.2.gz`: among files of one age the greater one is older.
fn count(path: &Path) -> u64 {
    let name = path.to_string_lossy();
    let parts = name.rsplit('.').filter_map(|part| part.parse().ok());
    parts.take(1).next().unwrap_or(0)
}

/// Opens a file of a log as it was before it was packed.
pub(super) fn open(path: &Path, packing: Packing) -> io::Result<Box<dyn BufRead + Send>> {
    let file = BufReader::with_capacity(BUFFER, File::open(path)?);
    Ok(match packing {
        Packing::None => Box::new(file),
        Packing::Gzip => Box::new(BufReader::with_capacity(BUFFER, MultiGzDecoder::new(file))),
        Packing::Zstd => {
            Box::new(BufReader::with_capacity(BUFFER, zstd::stream::read::Decoder::with_buffer(file)?))
        }
        Packing::Other => return Err(io::Error::other("it is packed in a way that is not known here")),
    })
}

/// Returns the checksum of the beginning of a file, as far as `offset`.
pub(super) fn head(path: &Path, packing: Packing, offset: u64) -> io::Result<String> {
    let mut hash = Sha256::new();
    let mut bytes = Vec::new();
    open(path, packing)?.take(offset.min(HEAD)).read_to_end(&mut bytes)?;
    hash.update(&bytes);
    Ok(hex(&hash.finalize()))
}

/// Counts the lines before an offset.
pub(super) fn lines_before(path: &Path, packing: Packing, offset: u64) -> io::Result<u64> {
    let mut from = open(path, packing)?.take(offset);
    let mut lines = 0;
    loop {
        let part = from.fill_buf()?;
        if part.is_empty() {
            return Ok(lines);
        }
        lines += memchr::memchr_iter(b'\n', part).count() as u64;
        let length = part.len();
        from.consume(length);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_a_log_are_told_from_others() {
        for (suffix, expected) in [
            (".1", Some(Packing::None)),
            (".2.gz", Some(Packing::Gzip)),
            ("-20261122", Some(Packing::None)),
            ("-2026-11-22.zst", Some(Packing::Zstd)),
            (".3.xz", Some(Packing::Other)),
            ("", None),
            (".bak", None),
            (".gz", None),
            (".1.bak", None),
            ("2", None),
            ("-old", None),
        ] {
            assert_eq!(packing(suffix), expected, "{suffix}");
        }
    }
}
