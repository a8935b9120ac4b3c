use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use lifeboat_engine::resource;
use lifeboat_engine::step::StepError;

use super::beneath;
use super::key::{Key, TEMPORARY};
use super::object::{NewObject, ObjectReader, Put};
use super::{codes, failure};

/// A place where backups are kept.
///
/// Cheap to clone; holds no open file. Every call reaches the root anew, so that a mount that went away shows as
/// an error and never as an empty store.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
}

/// What is known of an object without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metadata {
    pub size: u64,
    /// When it got its content, where that is known.
    pub modified: Option<Timestamp>,
}

/// One object of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    pub key: Key,
    pub size: u64,
}

impl Store {
    /// Opens the store of an environment. Its root must exist.
    pub fn open(resource: &resource::Store) -> Result<Self, StepError> {
        Self::open_url(&resource.url)
    }

    /// Opens a store by its address, `dir:///path`. Its root must exist.
    pub fn open_url(url: &str) -> Result<Self, StepError> {
        let store = Self { root: root_of(url)? };
        store.check_reachable()?;
        Ok(store)
    }

    /// Opens the store of an environment for writing, and makes its root if there is none.
    pub fn open_or_create(resource: &resource::Store) -> Result<Self, StepError> {
        let root = root_of(&resource.url)?;
        std::fs::create_dir_all(&root)
            .map_err(|error| failure::write(format_args!("the store {}", root.display()), &error))?;
        Self::open(resource)
    }

    /// Returns the directory of the store.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the path of an object, for programs that read files. Says nothing of its existence.
    pub fn path_of(&self, key: &Key) -> PathBuf {
        self.root.join(key.as_str())
    }

    /// Finds out whether the store answers at all.
    pub fn check_reachable(&self) -> Result<(), StepError> {
        let root = self.open_root()?;
        beneath::entries(&root).map(|_| ()).map_err(|error| failure::read(self, &error))
    }

    /// Returns what is known of an object, or `None` if the store answers that there is none.
    pub fn metadata(&self, key: &Key) -> Result<Option<Metadata>, StepError> {
        Ok(self.find(key)?.map(|object| Metadata { size: object.size(), modified: object.modified() }))
    }

    /// Opens an object for reading; one that is not there is an error.
    pub fn read(&self, key: &Key) -> Result<ObjectReader, StepError> {
        self.find(key)?.ok_or_else(|| {
            StepError::permanent(codes::LB1104, format!("there is no object `{key}` in {self}"))
                .help(format!("list what is there: `ls -l {}`", self.parent_path(key).display()))
        })
    }

    /// Opens an object for reading, or returns `None` if the store answers that there is none.
    pub fn find(&self, key: &Key) -> Result<Option<ObjectReader>, StepError> {
        let root = self.open_root()?;
        let opened =
            beneath::open_dir(root, &key.parents()).and_then(|dir| beneath::open_file(dir, key.name()));
        match opened.and_then(ObjectReader::new) {
            Ok(object) => Ok(Some(object)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failure::read(format_args!("`{key}` in {self}"), &error)),
        }
    }

    /// Finds an object and proves an absence: `None` only if, in the same root, `witness` is there.
    ///
    /// An unmounted disk shows an empty directory; the witness, an object known to exist, tells it from a store
    /// that lacks the object.
    pub fn find_beside(&self, key: &Key, witness: &Key) -> Result<Option<ObjectReader>, StepError> {
        let root = self.open_root()?;
        let open = |key: &Key| {
            let dir = beneath::open_dir(root.try_clone()?, &key.parents())?;
            beneath::open_file(dir, key.name()).and_then(ObjectReader::new)
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
    pub fn list(&self, prefix: &Key) -> Result<Vec<Listed>, StepError> {
        let mut found = Vec::new();
        if let Some(dir) = self.open_prefix(prefix)? {
            self.list_into(&dir, prefix, &mut found)?;
        }
        Ok(found)
    }

    /// Lists the names of the directories right below a prefix, sorted.
    pub fn list_groups(&self, prefix: &Key) -> Result<Vec<String>, StepError> {
        let Some(dir) = self.open_prefix(prefix)? else { return Ok(Vec::new()) };
        let entries = self.entries(&dir, prefix)?;
        Ok(entries.into_iter().filter(|entry| entry.is_dir).map(|entry| entry.name).collect())
    }

    /// Begins a new object. Nothing is visible under its name until it is committed.
    pub fn create(&self, key: &Key) -> Result<NewObject, StepError> {
        let dir = beneath::make_dir(self.open_root()?, &key.parents())
            .map_err(|error| failure::write(format_args!("`{key}` in {self}"), &error))?;
        NewObject::create(dir, key.clone())
    }

    /// Writes an object durably. Identical content that is there already is success; other content an error.
    pub fn put(&self, key: &Key, content: &[u8]) -> Result<Put, StepError> {
        let mut object = self.create(key)?;
        io::Write::write_all(&mut object, content)
            .map_err(|error| failure::write(format_args!("`{key}` in {self}"), &error))?;
        object.commit()
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

    fn parent_path(&self, key: &Key) -> PathBuf {
        key.parents().iter().fold(self.root.clone(), |path, segment| path.join(segment))
    }
}

impl std::fmt::Display for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the store {}", self.root.display())
    }
}

fn root_of(url: &str) -> Result<PathBuf, StepError> {
    if url.starts_with("s3://") {
        return Err(StepError::permanent(
            codes::LB1102,
            format!("the store `{url}` is in S3, which this build of Lifeboat cannot reach yet"),
        )
        .help("use a `dir:///path` store, for instance on a mount of the bucket"));
    }
    let path = url.strip_prefix("dir://").map(Path::new);
    match path {
        Some(path) if path.is_absolute() && !url.contains('\0') => Ok(path.to_owned()),
        _ => Err(StepError::permanent(codes::LB1101, format!("`{url}` is no address of a store"))
            .help("write `dir:///absolute/path` with three slashes")),
    }
}
