//! Restores over what an earlier restore has left: what is the same already is not written again.
//!
//! Only a directory that a `postgres.restore_base` has filled and that no server has been promoted on since is taken. First
//! everything goes that the backup does not have, links and special files included, so that nothing leads a writer out of
//! the directory. Then each file is compared, as it comes from the store, with the one that stands there, and only what
//! differs is written; the checksum of the manifest is that of what came, and so of what stands there then.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use lifeboat_engine::step::StepError;

use super::super::restore_note::RestoreNote;
use super::super::{codes, unsynced};
use super::target::{Found, Target};
use super::unpack::{CONTROL_FILE, unwritable};
use crate::postgres::backup_manifest::Manifest;

/// How much is compared, and written if it differs, at a time.
const PIECE: usize = 64 * 1024;

/// Refuses what an earlier restore has not left.
pub(super) fn check(data: &Target) -> Result<(), StepError> {
    if matches!(data.look()?, Found::Foreign(_)) && RestoreNote::read(&data.data_dir).is_none() {
        return Err(not_ours(data));
    }
    unsynced::refuse_lost(&data.data_dir)
}

/// Says whether one step of one run has filled both directories.
pub(super) fn belongs_together(data: &Target, space: &Target) -> bool {
    let notes = (RestoreNote::read(&data.data_dir), RestoreNote::read(&space.data_dir));
    matches!(notes, (Some(data), Some(space)) if data.run == space.run && data.step == space.step)
}

/// The directory of another cluster shares nothing with the backup.
pub(super) fn check_system(target: &Target, (found, expected): (&str, &str)) -> Result<(), StepError> {
    if found == expected {
        return Ok(());
    }
    Err(StepError::permanent(
        codes::LB1835,
        format!(
            "{} is of the cluster {found}, and the backup is of {expected}: there is nothing to keep",
            target.data_dir.display()
        ),
    )
    .help("use `existing: move_aside`; nothing was touched"))
}

fn not_ours(target: &Target) -> StepError {
    StepError::permanent(
        codes::LB1835,
        format!(
            "{} was not left by a restore of Lifeboat, or a server was promoted on it since",
            target.data_dir.display()
        ),
    )
    .help("to keep it under another name and restore in its place, write `existing: move_aside`; nothing was touched")
}

/// Removes everything that the backup does not have. From the first moment no server can be started on it.
pub(super) fn sweep(dir: &Path, (prefix, manifest): (&Path, &Manifest)) -> Result<(), StepError> {
    let control = dir.join(CONTROL_FILE);
    match fs::remove_file(&control) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(unwritable(&control, &error)),
        _ => {}
    }
    Sweep { manifest, prefix }.dir(dir, Path::new("")).map(drop)
}

struct Sweep<'a> {
    manifest: &'a Manifest,
    prefix: &'a Path,
}

impl Sweep<'_> {
    /// Returns whether anything is left in it.
    fn dir(&self, dir: &Path, path: &Path) -> Result<bool, StepError> {
        let mut left = false;
        for entry in fs::read_dir(dir).map_err(|error| unwritable(dir, &error))? {
            let entry = entry.map_err(|error| unwritable(dir, &error))?;
            let (full, path) = (entry.path(), path.join(entry.file_name()));
            let metadata = fs::symlink_metadata(&full).map_err(|error| unwritable(&full, &error))?;
            if metadata.is_dir() {
                match self.dir(&full, &path)? {
                    true => left = true,
                    false => fs::remove_dir(&full).map_err(|error| unwritable(&full, &error))?,
                }
                continue;
            }
            // Another name of the same file would be changed with it.
            let own = metadata.is_file() && metadata.nlink() == 1;
            if own && self.manifest.files.contains_key(&self.prefix.join(&path)) {
                left = true;
            } else {
                fs::remove_file(&full).map_err(|error| unwritable(&full, &error))?;
            }
        }
        Ok(left)
    }
}

/// A file that stands there already and becomes what comes from the store.
#[derive(Debug)]
pub(super) struct Rewritten {
    file: File,
    at: u64,
    kept: u64,
    there: Vec<u8>,
}

impl Rewritten {
    /// Opens what the sweep has left; `None` if the file is new.
    pub(super) fn open(path: &Path) -> io::Result<Option<Self>> {
        let no_links = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
        match OpenOptions::new().read(true).write(true).custom_flags(no_links).open(path) {
            Ok(file) => Ok(Some(Self { file, at: 0, kept: 0, there: vec![0; PIECE] })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        for piece in bytes.chunks(PIECE) {
            let there = &mut self.there[..piece.len()];
            if read_at(&self.file, there, self.at)? == piece.len() && there == piece {
                self.kept += piece.len() as u64;
            } else {
                self.file.write_all_at(piece, self.at)?;
            }
            self.at += piece.len() as u64;
        }
        Ok(())
    }

    /// Cuts off what was longer, and returns how many bytes were there as they should be.
    pub(super) fn finish(self) -> io::Result<u64> {
        if self.file.metadata()?.len() != self.at {
            self.file.set_len(self.at)?;
        }
        Ok(self.kept)
    }
}

fn read_at(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], at + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rewritten(there: &[u8], chunks: &[&[u8]]) -> (Vec<u8>, u64) {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("file");
        fs::write(&path, there).expect("writes");
        let mut file = Rewritten::open(&path).expect("opens").expect("is there");
        for chunk in chunks {
            file.write(chunk).expect("writes");
        }
        let kept = file.finish().expect("finishes");
        (fs::read(&path).expect("reads"), kept)
    }

    #[test]
    fn only_what_differs_counts_as_written() {
        let content = vec![7; 3 * PIECE];
        assert_eq!(rewritten(&content, &[&content]), (content.clone(), content.len() as u64));
        let mut other = content.clone();
        other[PIECE + 5] = 8;
        let (found, kept) = rewritten(&other, &[&content[..PIECE], &content[PIECE..]]);
        assert!(found == content);
        assert_eq!(kept, 2 * PIECE as u64);
        assert_eq!(rewritten(&content, &[b"short"]), (b"short".to_vec(), 0));
    }

    #[test]
    fn links_are_never_followed() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join("elsewhere"), "precious").expect("writes");
        std::os::unix::fs::symlink("elsewhere", dir.path().join("link")).expect("links");
        assert!(Rewritten::open(&dir.path().join("link")).is_err());
        assert!(Rewritten::open(&dir.path().join("absent")).expect("no error").is_none());
    }

    proptest! {
        #[test]
        fn whatever_stood_there_becomes_what_comes(
            there in proptest::collection::vec(0_u8..2, 0..300),
            comes in proptest::collection::vec(proptest::collection::vec(0_u8..2, 0..100), 0..4),
        ) {
            let chunks: Vec<&[u8]> = comes.iter().map(Vec::as_slice).collect();
            let (found, kept) = rewritten(&there, &chunks);
            prop_assert_eq!(&found, &comes.concat());
            prop_assert!(kept <= there.len().min(found.len()) as u64);
        }
    }
}
