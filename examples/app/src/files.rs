//! Files that others read: complete under their name, or not there.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::error::AnyError;

/// Writes a file that only its owner may read, and puts it in the place of what is there once it is on disk.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<(), AnyError> {
    let failed = |error: std::io::Error| format!("cannot write {}: {error}", path.display());
    let name = path.file_name().ok_or_else(|| format!("{} names no file", path.display()))?;
    let folder = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let partial = folder.join(format!(".{}.partial", name.to_string_lossy()));
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let written = options
        .open(&partial)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&partial, path))
        .and_then(|()| File::open(folder)?.sync_all());
    if let Err(error) = written {
        // The error that counts is the first; the leftover is only untidy.
        drop(fs::remove_file(&partial));
        return Err(failed(error).into());
    }
    Ok(())
}
