use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use lifeboat_engine::model::ids::{RunId, StepId};
use lifeboat_engine::step::{StepError, StepInfo};
use rustix::fs::{FlockOperation, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::backend::{Backend, Store};
use super::dir::Dir;
use super::key::Key;
use super::marker::{BackupKind, FORMAT, MARKER, Marker, ObjectEntry};
use super::transfer::Meter;
use super::{beneath, codes, failure};

/// What the name of a backup in the making ends with.
pub(super) const PARTIAL: &str = ".partial";

/// Names the maker within a backup in the making; locked while the maker lives.
pub(super) const OWNER_FILE: &str = ".lifeboat-owner";

/// The step that makes a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    pub run: RunId,
    pub step: StepId,
}

impl Owner {
    /// Returns the owner that a step is.
    pub fn of(info: &StepInfo) -> Self {
        Self { run: info.run, step: info.step.clone() }
    }
}

/// A backup in the making: a directory that becomes the backup when it is published.
///
/// In a directory store it is there already, under the name `<label>.partial`: dropped without
/// [`Partial::publish`] it stays, is no backup, and is thrown away by the next attempt of the same step. The lock on
/// it ends with the value or the process. For a bucket it is a scratch directory of this machine that is removed with
/// the value; what was sent of it is no backup before its marker is.
#[derive(Debug)]
#[must_use = "a backup that is not published does not exist"]
pub struct Partial {
    store: Store,
    kind: BackupKind,
    label: String,
    owner: Owner,
    path: PathBuf,
    sent: Meter,
    _hold: Hold,
}

/// What ends with a backup in the making.
#[derive(Debug)]
enum Hold {
    Lock {
        _file: File,
    },
    #[cfg(feature = "s3")]
    Scratch {
        _dir: tempfile::TempDir,
    },
}

impl Store {
    /// Begins a backup in an empty directory of its own.
    ///
    /// What an earlier attempt of the same step left is removed. A backup in the making of another step, or one that
    /// a living process holds, is left alone and an error; so is a label that is published already.
    pub fn begin(&self, kind: BackupKind, label: &str, owner: &Owner) -> Result<Partial, StepError> {
        check_label(label)?;
        let (path, hold) = match &self.backend {
            Backend::Dir(dir) => {
                check_free(dir, kind, label)?;
                let (path, file) = claim(dir, kind, (label, owner))?;
                (path, Hold::Lock { _file: file })
            }
            #[cfg(feature = "s3")]
            Backend::S3(bucket) => {
                bucket.claim(kind, label, owner)?;
                let dir = scratch(bucket.scratch(), label)?;
                (dir.path().to_owned(), Hold::Scratch { _dir: dir })
            }
        };
        let (store, label, owner) = (self.clone(), label.to_owned(), owner.clone());
        let partial = Partial { store, kind, label, owner, path, sent: Meter::silent(), _hold: hold };
        partial.clear().map_err(|error| failure::write(partial.path.display(), &error))?;
        Ok(partial)
    }
}

/// Makes and locks the directory `<label>.partial`.
fn claim(dir: &Dir, kind: BackupKind, (label, owner): (&str, &Owner)) -> Result<(PathBuf, File), StepError> {
    let key = kind.prefix().join(&format!("{label}{PARTIAL}"))?;
    let path = dir.path_of(&key);
    let made = beneath::make_dir(dir.open_root()?, &key.segments())
        .map_err(|error| failure::write(format_args!("`{key}` in {dir}"), &error))?;
    drop(made);
    let lock = take_over(&path, owner)?;
    Ok((path, lock))
}

/// Makes a directory on this machine that goes away with its value. As in a store, others may pass through it.
#[cfg(feature = "s3")]
fn scratch(parent: &Path, label: &str) -> Result<tempfile::TempDir, StepError> {
    use std::os::unix::fs::PermissionsExt;
    let prefix = format!("lifeboat-{label}-");
    remove_scratch(parent, &prefix);
    let made = tempfile::Builder::new().prefix(&prefix).rand_bytes(RANDOM).tempdir_in(parent);
    made.and_then(|dir| {
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o751))?;
        Ok(dir)
    })
    .map_err(|error| {
        failure::write(format_args!("the scratch directory {}", parent.display()), &error)
            .help("a backup is put together there before it is sent; give the store `scratch: /a/directory/with/room`")
    })
}

/// How many random characters the name of a scratch directory ends with.
#[cfg(feature = "s3")]
const RANDOM: usize = 6;

/// Removes what an earlier attempt has left that was killed. The label is ours, so nobody else works there.
#[cfg(feature = "s3")]
fn remove_scratch(parent: &Path, prefix: &str) {
    use std::os::unix::fs::MetadataExt;
    let ours = rustix::process::geteuid().as_raw();
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let rest = name.to_str().and_then(|name| name.strip_prefix(prefix));
        let is_dir = entry.metadata().is_ok_and(|found| found.is_dir() && found.uid() == ours);
        if is_dir && rest.is_some_and(|rest| rest.len() == RANDOM && !rest.contains('-')) {
            fs::remove_dir_all(entry.path()).ok();
        }
    }
}

impl Partial {
    /// Returns the directory to write into.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the label that the backup will have.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Counts bytes that are sent to a bucket, and ends the sending when the attempt must end.
    pub fn counting(mut self, sent: Meter) -> Self {
        self.sent = sent;
        self
    }

    /// Makes the backup exist: syncs its objects, writes the marker, renames the directory; or, in a bucket, sends the
    /// objects and then the marker.
    ///
    /// `objects` must name every file in it with its size and checksum. When this returns, the backup survives a
    /// power cut; if it fails, there is no backup of this label, or, if only the last sync failed, a whole one.
    pub fn publish(
        self,
        (started_at, finished_at): (Timestamp, Timestamp),
        objects: Vec<ObjectEntry>,
        details: serde_json::Value,
    ) -> Result<Marker, StepError> {
        self.check_objects(&objects)?;
        let Owner { run, step } = self.owner.clone();
        let (kind, label) = (self.kind, self.label.clone());
        let marker =
            Marker { format: FORMAT, kind, label, run, step, started_at, finished_at, objects, details };
        match &self.store.backend {
            Backend::Dir(dir) => {
                check_free(dir, self.kind, &self.label)?;
                self.write(dir, &marker).map_err(|error| failure::write(self.path.display(), &error))?;
            }
            #[cfg(feature = "s3")]
            Backend::S3(bucket) => bucket.publish(&self.path, &marker, &self.sent)?,
        }
        Ok(marker)
    }

    /// Removes what was written.
    pub fn discard(self) -> Result<(), StepError> {
        fs::remove_dir_all(&self.path).map_err(|error| failure::write(self.path.display(), &error))
    }

    fn write(&self, store: &Dir, marker: &Marker) -> io::Result<()> {
        for object in &marker.objects {
            let synced = File::open(self.path.join(&object.name)).and_then(|file| file.sync_all());
            synced.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", object.name)))?;
        }
        sync_tree(&self.path)?;
        let mut file = new_file(&self.path.join(MARKER))?;
        file.write_all(&marker.to_text())?;
        file.sync_all()?;
        File::open(&self.path)?.sync_all()?;
        let parent = beneath::open_dir(beneath::open_root(store.root())?, &self.kind.prefix().segments())?;
        let name = format!("{}{PARTIAL}", self.label);
        beneath::rename_new((&parent, &name), (&parent, &self.label))?;
        rustix::fs::fsync(&parent)?;
        // Only now, so that until here nobody else can take the directory for an abandoned one. Left behind by a
        // crash it does no harm.
        let published = beneath::open_dir(parent, &[&self.label])?;
        rustix::fs::unlinkat(&published, OWNER_FILE, rustix::fs::AtFlags::empty()).ok();
        Ok(())
    }

    /// Compares the files that are there with those that the marker will name.
    fn check_objects(&self, objects: &[ObjectEntry]) -> Result<(), StepError> {
        let mut found = std::collections::BTreeMap::new();
        list_files(&self.path, "", &mut found).map_err(|error| failure::read(self.path.display(), &error))?;
        for object in objects {
            Key::new(object.name.clone())?;
            let size = found.remove(&object.name);
            if size != Some(object.size) {
                return Err(unlike(&self.label, &object.name, size, Some(object.size)));
            }
        }
        match found.into_iter().next() {
            None => Ok(()),
            Some((name, size)) => Err(unlike(&self.label, &name, Some(size), None)),
        }
    }

    /// Removes everything but the owner file.
    fn clear(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            if entry.file_name() == OWNER_FILE {
                continue;
            }
            if entry.file_type()?.is_dir() {
                fs::remove_dir_all(entry.path())?;
            } else {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
}

fn unlike(label: &str, object: &str, found: Option<u64>, expected: Option<u64>) -> StepError {
    let show = |size: Option<u64>| size.map_or_else(|| "absent".to_owned(), |size| format!("{size} bytes"));
    StepError::permanent(
        codes::LB1108,
        format!(
            "`{object}` of the unfinished backup `{label}` is {}, and should be {}",
            show(found),
            show(expected)
        ),
    )
    .help("something else writes into the store; nothing was published")
}

fn check_label(label: &str) -> Result<(), StepError> {
    if !label.contains('/') && !label.ends_with(PARTIAL) && Key::new(label).is_ok() {
        return Ok(());
    }
    Err(StepError::permanent(codes::LB1106, format!("`{label}` cannot be the label of a backup"))
        .help("use letters, digits, `.`, `-` and `_`"))
}

/// The error of a label that has a backup.
pub(super) fn label_taken(key: &Key, store: impl std::fmt::Display) -> StepError {
    StepError::permanent(codes::LB1112, format!("`{key}` is in {store} already"))
        .help("give the backup another label, or leave the label out")
}

/// The error of a backup in the making that is somebody else's.
pub(super) fn not_ours(what: impl std::fmt::Display, problem: &str) -> StepError {
    StepError::permanent(codes::LB1107, format!("the unfinished backup {what} {problem}"))
        .help("if no run is writing it, remove it; it is no backup")
}

fn check_free(store: &Dir, kind: BackupKind, label: &str) -> Result<(), StepError> {
    let key = kind.prefix().join(label)?;
    // Whatever stands there, even without a marker, is not ours to replace.
    match fs::symlink_metadata(store.path_of(&key)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failure::read(format_args!("`{key}` in {store}"), &error)),
        Ok(_) => Err(label_taken(&key, store)),
    }
}

/// Locks a directory for its owner, and refuses one of somebody else.
fn take_over(path: &Path, owner: &Owner) -> Result<File, StepError> {
    let refuse = |problem: String| not_ours(path.display(), &problem);
    let file = path.join(OWNER_FILE);
    let failed = |error: io::Error| failure::write(file.display(), &error);
    let mut lock = open_owner_file(&file).map_err(failed)?;
    // On a file system without locks the lock on the run has to do.
    if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK) {
        return Err(refuse("is being written by another process".to_owned()));
    }
    let written = io::read_to_string(&lock).map_err(failed)?;
    // Whoever died between making the directory and naming itself in it wrote nothing else.
    if written.is_empty() && !is_empty(path).map_err(failed)? {
        return Err(refuse("was made by something else".to_owned()));
    }
    if !written.is_empty() && serde_json::from_str::<Owner>(&written).ok().as_ref() != Some(owner) {
        return Err(refuse(format!("belongs to somebody else: {}", written.trim())));
    }
    if written.is_empty() {
        let text = serde_json::to_string(owner).map_err(|error| failed(io::Error::other(error)))?;
        lock.write_all(text.as_bytes()).and_then(|()| lock.sync_all()).map_err(failed)?;
    }
    Ok(lock)
}

/// Says whether a directory holds nothing but an owner file.
fn is_empty(path: &Path) -> io::Result<bool> {
    let mut names = fs::read_dir(path)?.map(|entry| entry.map(|entry| entry.file_name()));
    names.try_fold(true, |empty, name| name.map(|name| empty && name == OWNER_FILE))
}

fn open_owner_file(path: &Path) -> io::Result<File> {
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, beneath::FILE_MODE)?.into())
}

fn new_file(path: &Path) -> io::Result<File> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, beneath::FILE_MODE)?.into())
}

fn list_files(
    dir: &Path,
    prefix: &str,
    found: &mut std::collections::BTreeMap<String, u64>,
) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if name == OWNER_FILE {
            continue;
        }
        if entry.file_type()?.is_dir() {
            list_files(&entry.path(), &format!("{name}/"), found)?;
        } else {
            found.insert(name, entry.metadata()?.len());
        }
    }
    Ok(())
}

fn sync_tree(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_tree(&entry.path())?;
        }
    }
    File::open(dir)?.sync_all()
}
