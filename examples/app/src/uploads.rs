//! The directory of media files.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Component, Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::random;

/// A directory in which files are kept under their checksum.
#[derive(Clone, Debug)]
pub(crate) struct Uploads {
    root: PathBuf,
}

impl Uploads {
    /// Names the directory; does not touch it.
    pub(crate) fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Makes the directory if it is not there.
    pub(crate) fn create(&self) -> io::Result<()> {
        fs::create_dir_all(&self.root)
    }

    /// Proves that files can be written and read back.
    pub(crate) fn probe(&self) -> io::Result<()> {
        if !self.root.is_dir() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the directory is not there"));
        }
        let path = self.root.join(format!(".probe-{}", random::hex(&random::bytes::<4>()?)));
        fs::write(&path, b"probe").and_then(|()| fs::remove_file(&path))
    }

    /// Writes a file durably and returns its path within the directory and its SHA-256.
    ///
    /// The file has its name only once all of it is on disk, so a reader or a backup never finds half of one.
    pub(crate) fn put(&self, bytes: &[u8]) -> io::Result<(String, String)> {
        let sha256 = checksum(bytes);
        let relative = format!("{}/{sha256}", &sha256[..2]);
        let (path, folder) = (self.root.join(&relative), self.root.join(&sha256[..2]));
        fs::create_dir_all(&folder)?;
        let partial = folder.join(format!(".{}.partial", random::hex(&random::bytes::<8>()?)));
        let written = File::create(&partial)
            .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
            .and_then(|()| fs::rename(&partial, &path));
        if let Err(error) = written {
            // The error that counts is the first; the leftover is only untidy.
            drop(fs::remove_file(&partial));
            return Err(error);
        }
        File::open(&folder)?.sync_all()?;
        File::open(&self.root)?.sync_all()?;
        Ok((relative, sha256))
    }

    /// Reads a file.
    pub(crate) fn get(&self, relative: &str) -> io::Result<Vec<u8>> {
        fs::read(self.inside(relative)?)
    }

    /// Says whether a file is there.
    pub(crate) fn has(&self, relative: &str) -> bool {
        self.inside(relative).is_ok_and(|path| path.is_file())
    }

    /// Returns the SHA-256 of a file, read in pieces.
    pub(crate) fn checksum_of(&self, relative: &str) -> io::Result<String> {
        let mut file = File::open(self.inside(relative)?)?;
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 64 * 1024];
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(random::hex(&hasher.finalize())),
                n => hasher.update(&buffer[..n]),
            }
        }
    }

    /// A path from the database must not lead out of the directory.
    fn inside(&self, relative: &str) -> io::Result<PathBuf> {
        let path = Path::new(relative);
        let plain = path.components().all(|part| matches!(part, Component::Normal(_)));
        if !plain || relative.is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the path leads out of the uploads"));
        }
        Ok(self.root.join(path))
    }
}

/// Returns the SHA-256 of bytes as text.
pub(crate) fn checksum(bytes: &[u8]) -> String {
    random::hex(&Sha256::digest(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_can_be_read_and_leaves_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let uploads = Uploads::new(dir.path());
        let (path, sha256) = uploads.put(b"picture").unwrap();
        assert_eq!(uploads.get(&path).unwrap(), b"picture");
        assert_eq!(uploads.checksum_of(&path).unwrap(), sha256);
        assert_eq!(uploads.put(b"picture").unwrap().0, path, "the same content is kept once");
        let folder = dir.path().join(&path[..2]);
        assert_eq!(fs::read_dir(folder).unwrap().count(), 1);
    }

    #[test]
    fn paths_stay_inside() {
        let dir = tempfile::tempdir().unwrap();
        let uploads = Uploads::new(dir.path().join("uploads"));
        uploads.create().unwrap();
        fs::write(dir.path().join("outside"), b"x").unwrap();
        for path in ["../outside", "/etc/passwd", "", "a/../../outside"] {
            assert!(uploads.get(path).is_err() && !uploads.has(path), "{path}");
        }
    }

    #[test]
    fn the_probe_finds_a_missing_directory() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Uploads::new(dir.path()).probe().is_ok());
        assert!(Uploads::new(dir.path().join("gone")).probe().is_err());
    }
}
