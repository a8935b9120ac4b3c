use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use lifeboat_engine::step::StepError;

use super::backend::{Listed, Metadata};
use super::beneath;
use super::failure;
use super::file::{FileReader, NewFile};
use super::key::{Key, TEMPORARY};
use super::named::{Current, Existing, Facts, Pin};
use super::policy::{Policy, Told, Unfinished, Versioning};

/// A store in a directory.
///
/// Holds no open file. Every call reaches the root anew, so that a mount that went away shows as an error and never
/// as an empty store.
#[derive(Clone, Debug)]
pub(super) struct Dir {
    root: PathBuf,
}

impl Dir {
    /// Opens a store whose root must exist.
    pub(super) fn open(root: PathBuf) -> Result<Self, StepError> {
        let store = Self { root };
        store.check_reachable()?;
        Ok(store)
    }

    /// Makes the root if there is none.
    pub(super) fn create_root(root: &Path) -> Result<(), StepError> {
        std::fs::create_dir_all(root)
            .map_err(|error| failure::write(format_args!("the store {}", root.display()), &error))
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn path_of(&self, key: &Key) -> PathBuf {
        self.root.join(key.as_str())
    }

    /// Finds out whether the store answers at all.
    pub(super) fn check_reachable(&self) -> Result<(), StepError> {
        let root = self.open_root()?;
        beneath::entries(&root).map(|_| ()).map_err(|error| failure::read(self, &error))
    }

    /// Returns what is known of an object, or `None` if the store answers that there is none.
    pub(super) fn metadata(&self, key: &Key) -> Result<Option<Metadata>, StepError> {
        match self.open_object(key)? {
            Ok(object) => Ok(Some(Metadata { size: object.size(), modified: object.modified() })),
            // As in a bucket, where only what is below it has a name.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::IsADirectory) => {
                Ok(None)
            }
            Err(error) => Err(failure::read(format_args!("`{key}` in {self}"), &error)),
        }
    }

    fn open_object(&self, key: &Key) -> Result<io::Result<FileReader>, StepError> {
        let dir = beneath::open_dir(self.open_root()?, &key.parents());
        let file = dir.and_then(|dir| beneath::open_file(dir, key.name()));
        Ok(file.and_then(FileReader::new))
    }

    /// Opens an object for reading, or returns `None` if the store answers that there is none.
    pub(super) fn find(&self, key: &Key) -> Result<Option<FileReader>, StepError> {
        match self.open_object(key)? {
            Ok(object) => Ok(Some(object)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failure::read(format_args!("`{key}` in {self}"), &error)),
        }
    }

    /// Finds an object and proves an absence: `None` only if, in the same root, `witness` is there.
    ///
    /// An unmounted disk shows an empty directory; the witness, an object known to exist, tells it from a store
    /// that lacks the object.
    pub(super) fn find_beside(&self, key: &Key, witness: &Key) -> Result<Option<FileReader>, StepError> {
        let root = self.open_root()?;
        let open = |key: &Key| {
            let dir = beneath::open_dir(root.try_clone()?, &key.parents())?;
            beneath::open_file(dir, key.name()).and_then(FileReader::new)
        };
        match open(key) {
            Ok(object) => Ok(Some(object)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => match open(witness) {
                Ok(_) => Ok(None),
                Err(error) => Err(failure::read(format_args!("`{witness}` in {self}"), &error)),
            },
            Err(error) => Err(failure::read(format_args!("`{key}` in {self}"), &error)),
        }
    }

    /// Lists every object below a prefix, sorted by key. A prefix that is not there has no objects.
    pub(super) fn list(&self, prefix: &Key) -> Result<Vec<Listed>, StepError> {
        let mut found = Vec::new();
        if let Some(dir) = self.open_prefix(prefix)? {
            self.list_into(&dir, prefix, &mut found)?;
        }
        Ok(found)
    }

    /// Lists everything below a prefix, or in the whole store.
    pub(super) fn everything(&self, below: Option<&Key>) -> Result<Vec<Current>, StepError> {
        let found = match below {
            Some(below) => self.list(below)?,
            None => self.list_all()?,
        };
        found.into_iter().map(|listed| self.current(listed)).filter_map(Result::transpose).collect()
    }

    fn list_all(&self) -> Result<Vec<Listed>, StepError> {
        let root = self.open_root()?;
        let entries = beneath::entries(&root).map_err(|error| failure::read(self, &error))?;
        let mut found = Vec::new();
        for entry in entries.into_iter().filter(|entry| !entry.name.starts_with(TEMPORARY)) {
            let Ok(key) = Key::new(&entry.name) else { continue };
            match entry.is_dir {
                true => found.extend(self.list(&key)?),
                false => found.push(Listed { key, size: entry.size }),
            }
        }
        Ok(found)
    }

    /// Returns what is known of an object, `None` if it has gone since it was listed.
    fn current(&self, listed: Listed) -> Result<Option<Current>, StepError> {
        let Some(found) = self.find_at(&listed.key, 0, &Pin::default())? else { return Ok(None) };
        let Facts { size, modified, pin, .. } = found.0;
        let name = listed.key.as_str().to_owned();
        Ok(Some(Current { name, size, modified, etag: pin.etag, archived: false }))
    }

    /// Lists the names of the directories right below a prefix, sorted.
    pub(super) fn list_groups(&self, prefix: &Key) -> Result<Vec<String>, StepError> {
        let Some(dir) = self.open_prefix(prefix)? else { return Ok(Vec::new()) };
        let entries = self.entries(&dir, prefix)?;
        Ok(entries.into_iter().filter(|entry| entry.is_dir).map(|entry| entry.name).collect())
    }

    /// Opens an object for reading from a position, if it has the content that is meant.
    pub(super) fn find_at(
        &self,
        key: &Key,
        from: u64,
        pin: &Pin,
    ) -> Result<Option<(Facts, FileReader)>, StepError> {
        let Some(mut file) = self.find(key)? else { return Ok(None) };
        let failed = |error: io::Error| failure::read(format_args!("`{key}` in {self}"), &error);
        let facts = file.facts().map_err(failed)?;
        if pin.etag.is_some() && pin.etag != facts.pin.etag {
            let replaced = io::Error::other("it was replaced while it was read");
            return Err(failed(replaced));
        }
        file.seek_to(from).map_err(failed)?;
        Ok(Some((facts, file)))
    }

    /// Begins a new object. Nothing is visible under its name until it is committed.
    pub(super) fn create(&self, key: &Key, existing: Existing) -> Result<NewFile, StepError> {
        let dir = beneath::make_dir(self.open_root()?, &key.parents())
            .map_err(|error| failure::write(format_args!("`{key}` in {self}"), &error))?;
        NewFile::create(dir, key.clone(), existing)
    }

    /// Makes sure that an object survives a power cut, whose writer may have died before it did.
    pub(super) fn sync(&self, key: &Key) -> io::Result<()> {
        let path = self.path_of(key);
        File::open(&path)?.sync_all()?;
        path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
    }

    fn list_into(&self, dir: &OwnedFd, prefix: &Key, found: &mut Vec<Listed>) -> Result<(), StepError> {
        for entry in self.entries(dir, prefix)? {
            // Whatever no key can name was not written here.
            let Ok(key) = prefix.join(&entry.name) else { continue };
            if !entry.is_dir {
                found.push(Listed { key, size: entry.size });
                continue;
            }
            let child = dir.try_clone().and_then(|dir| beneath::open_dir(dir, &[&entry.name]));
            match child {
                Ok(child) => self.list_into(&child, &key, found)?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failure::read(format_args!("`{key}` in {self}"), &error)),
            }
        }
        Ok(())
    }

    fn entries(&self, dir: &OwnedFd, prefix: &Key) -> Result<Vec<beneath::Entry>, StepError> {
        let mut entries = beneath::entries(dir)
            .map_err(|error| failure::read(format_args!("`{prefix}` in {self}"), &error))?;
        entries.retain(|entry| !entry.name.starts_with(TEMPORARY));
        Ok(entries)
    }

    fn open_prefix(&self, prefix: &Key) -> Result<Option<OwnedFd>, StepError> {
        match beneath::open_dir(self.open_root()?, &prefix.segments()) {
            Ok(dir) => Ok(Some(dir)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failure::read(format_args!("`{prefix}` in {self}"), &error)),
        }
    }

    pub(super) fn open_root(&self) -> Result<OwnedFd, StepError> {
        beneath::open_root(&self.root).map_err(|error| {
            let failure = failure::read(self, &error);
            match error.kind() {
                io::ErrorKind::NotFound => failure.help(format!(
                    "mount it, or make it if it is new: `mkdir -p {}`; check `url` of the store in the environment",
                    self.root.display()
                )),
                _ => failure,
            }
        })
    }

    /// Returns what the file system promises: nothing but who may enter.
    pub(super) fn policy(&self) -> Result<Policy, StepError> {
        use std::os::unix::fs::PermissionsExt;
        let root = File::open(&self.root).and_then(|root| root.metadata());
        let mode = root.map_err(|error| failure::read(self, &error))?.permissions().mode();
        let unknown = || "a directory does not say".to_owned();
        Ok(Policy {
            versioning: Told::Yes(Versioning::Never),
            forgets_after_days: Told::Yes(None),
            clears_uploads: Told::Yes(true),
            unfinished: Told::Yes(Unfinished { is_all: true, ..Unfinished::default() }),
            encryption: Told::Unknown(unknown()),
            is_private: Told::Yes(mode & 0o006 == 0),
            object_lock: Told::Yes(false),
        })
    }

    /// Returns the command that shows what is there.
    pub(super) fn look(&self, key: &Key) -> String {
        let parent = key.parents().iter().fold(self.root.clone(), |path, segment| path.join(segment));
        format!("ls -l {}", parent.display())
    }
}

impl std::fmt::Display for Dir {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the store {}", self.root.display())
    }
}
