//! The note beside a data directory that says who fills it, or with what it was filled.
//!
//! It stands outside, so that the restored directory is exactly what the backup's manifest lists.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// What `.<name>.lifeboat-restore` beside a data directory says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RestoreNote {
    pub(super) run: String,
    pub(super) step: String,
    /// The label of the backup.
    pub(super) backup: String,
    /// False while files are being written.
    pub(super) finished: bool,
    /// Of the directory itself, so that another one put in its place is not taken for it.
    device: u64,
    inode: u64,
}

impl RestoreNote {
    /// Returns where the note of a data directory stands.
    pub(super) fn path(data_dir: &Path) -> PathBuf {
        let name = data_dir.file_name().unwrap_or_default().to_string_lossy();
        data_dir.with_file_name(format!(".{name}.lifeboat-restore"))
    }

    /// Reads the note of the directory that stands there now; `None` if there is none or it is about another one.
    pub(super) fn read(data_dir: &Path) -> Option<Self> {
        let note: Self = serde_json::from_slice(&fs::read(Self::path(data_dir)).ok()?).ok()?;
        let metadata = fs::symlink_metadata(data_dir).ok()?;
        (note.device == metadata.dev() && note.inode == metadata.ino()).then_some(note)
    }

    /// Writes a note durably. `run` and `step` say who; the directory must exist.
    pub(super) fn write(
        data_dir: &Path,
        (run, step): (&str, &str),
        backup: &str,
        finished: bool,
    ) -> io::Result<()> {
        let metadata = fs::symlink_metadata(data_dir)?;
        let note = Self {
            run: run.to_owned(),
            step: step.to_owned(),
            backup: backup.to_owned(),
            finished,
            device: metadata.dev(),
            inode: metadata.ino(),
        };
        let path = Self::path(data_dir);
        let temporary = path.with_extension("lifeboat-restore.new");
        fs::write(&temporary, serde_json::to_vec(&note)?)?;
        fs::File::open(&temporary)?.sync_all()?;
        fs::rename(&temporary, &path)?;
        fs::File::open(data_dir.parent().unwrap_or(Path::new("/")))?.sync_all()
    }

    /// Removes the notes of a cluster: beside its directory, and beside those of its tablespaces.
    pub(super) fn remove_all(data_dir: &Path) {
        let links = fs::read_dir(data_dir.join("pg_tblspc")).into_iter().flatten().flatten();
        for dir in links.filter_map(|link| fs::read_link(link.path()).ok()) {
            Self::remove(&dir);
        }
        Self::remove(data_dir);
    }

    /// Removes the note.
    pub(super) fn remove(data_dir: &Path) {
        fs::remove_file(Self::path(data_dir)).ok();
    }
}
