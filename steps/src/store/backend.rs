use std::io::{self, Read};
use std::path::Path;

use jiff::Timestamp;
use lifeboat_engine::resource;
use lifeboat_engine::step::{StepContext, StepError};

use super::address::{Address, Place};
use super::dir::Dir;
use super::file::{FileReader, NewFile};
use super::key::Key;
use super::named::Intent;
#[cfg(feature = "s3")]
use super::s3::{Bucket, ObjectStream, Upload};
use super::transfer::blocking;
use super::{codes, failure};

/// A place where backups are kept: a directory or a bucket.
///
/// Cheap to clone. Every call asks the store anew, so that a mount or a server that went away shows as an error and
/// never as an empty store.
#[derive(Clone, Debug)]
pub struct Store {
    pub(super) backend: Backend,
    /// Keys below the second prefix stand for those below the first, where there is but one level.
    flat: Option<(Key, Key)>,
}

#[derive(Clone, Debug)]
pub(super) enum Backend {
    Dir(Dir),
    #[cfg(feature = "s3")]
    S3(Bucket),
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

/// What writing an object came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    Written,
    /// The same content was there already.
    Identical,
}

/// An object open for reading, from its beginning.
#[derive(Debug)]
pub struct ObjectReader(Reading);

#[derive(Debug)]
enum Reading {
    File(FileReader),
    #[cfg(feature = "s3")]
    Stream(Box<ObjectStream>),
}

/// An object being written. Dropped without [`NewObject::commit`] it leaves nothing behind.
#[derive(Debug)]
#[must_use = "an object that is not committed is thrown away"]
pub struct NewObject(Writing);

#[derive(Debug)]
enum Writing {
    File(NewFile),
    #[cfg(feature = "s3")]
    Upload(Box<Upload>),
}

impl Store {
    /// Opens a store of the environment. A directory must exist, a bucket must answer.
    pub async fn of(ctx: &StepContext, name: &str) -> Result<Self, StepError> {
        let address = Address::of(ctx, name)?;
        blocking(move || Self::open(&address)).await
    }

    /// Opens a store of the environment for writing. A directory is made if there is none.
    pub async fn of_for_writing(ctx: &StepContext, name: &str) -> Result<Self, StepError> {
        let address = Address::of(ctx, name)?;
        blocking(move || Self::open_or_create(&address)).await
    }

    /// Opens a store. A directory must exist, a bucket must answer.
    pub fn open(address: &Address) -> Result<Self, StepError> {
        let backend = match address.place()? {
            Place::Dir(root) => Backend::Dir(Dir::open(root)?),
            #[cfg(feature = "s3")]
            Place::Bucket { bucket, prefix } => Backend::S3(Bucket::open(address, bucket, prefix)?),
            #[cfg(not(feature = "s3"))]
            Place::Bucket { .. } => return Err(no_s3(&address.resource.url)),
        };
        Ok(Self::on(backend))
    }

    pub(super) fn on(backend: Backend) -> Self {
        Self { backend, flat: None }
    }

    /// Opens a store that needs no credentials of its own by its address.
    pub fn open_url(url: &str) -> Result<Self, StepError> {
        let resource = resource::Store { url: url.to_owned(), ..resource::Store::default() };
        Self::open(&Address::new(resource))
    }

    /// Opens a store for writing, and makes its directory if there is none. A bucket is never made.
    pub fn open_or_create(address: &Address) -> Result<Self, StepError> {
        if let Place::Dir(root) = address.place()? {
            Dir::create_root(&root)?;
        }
        Self::open(address)
    }

    /// Returns the store as one in which what stands right below `real` stands below `shown`: for archives of other tools,
    /// whose layout has a level less. For reading.
    pub(crate) fn flattened(mut self, real: Key, shown: Key) -> Self {
        self.flat = Some((real, shown));
        self
    }

    /// Returns the key under which the backend has an object.
    fn real(&self, key: &Key) -> Key {
        let flat = self.flat.as_ref().and_then(|(real, shown)| {
            let name = key.as_str().strip_prefix(shown.as_str())?.strip_prefix('/')?;
            real.join(name).ok()
        });
        flat.unwrap_or_else(|| key.clone())
    }

    fn list_flat(&self, real: &Key, shown: &Key) -> Result<Vec<Listed>, StepError> {
        let one_level = |listed: Listed| {
            let name = listed.key.as_str().strip_prefix(real.as_str())?.strip_prefix('/')?;
            let key = shown.join(name).ok().filter(|_| !name.contains('/'))?;
            Some(Listed { key, size: listed.size })
        };
        Ok(self.list_real(real)?.into_iter().filter_map(one_level).collect())
    }

    /// Returns the directory in which a backup is put together, for its free space.
    pub fn work_dir(&self) -> &Path {
        match &self.backend {
            Backend::Dir(dir) => dir.root(),
            #[cfg(feature = "s3")]
            Backend::S3(bucket) => bucket.scratch(),
        }
    }

    /// Finds out whether the store answers at all.
    pub fn check_reachable(&self) -> Result<(), StepError> {
        match &self.backend {
            Backend::Dir(dir) => dir.check_reachable(),
            #[cfg(feature = "s3")]
            Backend::S3(bucket) => bucket.check_reachable(),
        }
    }

    /// Returns what is known of an object, or `None` if the store answers that there is none.
    pub fn metadata(&self, key: &Key) -> Result<Option<Metadata>, StepError> {
        let key = &self.real(key);
        match &self.backend {
            Backend::Dir(dir) => dir.metadata(key),
            #[cfg(feature = "s3")]
            Backend::S3(bucket) => bucket.metadata(key),
        }
    }

    /// Opens an object for reading; one that is not there is an error.
    pub fn read(&self, key: &Key) -> Result<ObjectReader, StepError> {
        self.find(key)?.ok_or_else(|| {
            StepError::permanent(codes::LB1104, format!("there is no object `{key}` in {self}"))
                .help(format!("list what is there: `{}`", self.look(key)))
        })
    }

    /// Opens an object for reading, or returns `None` if the store answers that there is none.
    pub fn find(&self, key: &Key) -> Result<Option<ObjectReader>, StepError> {
        let key = &self.real(key);
        Ok(match &self.backend {
            Backend::Dir(dir) => dir.find(key)?.map(ObjectReader::from),
            #[cfg(feature = "s3")]
            Backend::S3(bucket) => bucket.find(key)?.map(ObjectReader::from),
        })
    }

    /// Finds an object and proves an absence: `None` only if `witness` is there.
    ///
    /// An unmounted disk shows an empty directory, and a server may answer for another bucket of that name; the
    /// witness, an object known to exist, tells them from a store that lacks the object.
    pub fn find_beside(&self, key: &Key, witness: &Key) -> Result<Option<ObjectReader>, StepError> {
        let (key, witness) = (&self.real(key), &self.real(witness));
        Ok(match &self.backend {
            Backend::Dir(dir) => dir.find_beside(key, witness)?.map(ObjectReader::from),
            #[cfg(feature = "s3")]
            Backend::S3(bucket) => bucket.find_beside(key, witness)?.map(ObjectReader::from),
        })
    }

    /// Lists every object below a prefix, sorted by key. A prefix that is not there has no objects.
    pub fn list(&self, prefix: &Key) -> Result<Vec<Listed>, StepError> {
        match &self.flat {
            Some((real, shown)) if prefix == shown => self.list_flat(real, shown),
            _ => self.list_real(prefix),
        }
    }

    fn list_real(&self, prefix: &Key) -> Result<Vec<Listed>, StepError> {
        match &self.backend {
            Backend::Dir(dir) => dir.list(prefix),
            #[cfg(feature = "s3")]
            Backend::S3(bucket) => bucket.list(prefix),
        }
    }

    /// Lists the names of the directories right below a prefix, sorted.
    pub fn list_groups(&self, prefix: &Key) -> Result<Vec<String>, StepError> {
        match &self.backend {
            Backend::Dir(dir) => dir.list_groups(prefix),
            #[cfg(feature = "s3")]
            Backend::S3(bucket) => bucket.list_groups(prefix),
        }
    }

    /// Begins a new object. Nothing is visible under its name until it is committed.
    pub fn create(&self, key: &Key) -> Result<NewObject, StepError> {
        self.write_object(key, Intent::default())
    }

    /// Writes an object durably. Identical content that is there already is success; other content an error.
    pub fn put(&self, key: &Key, content: &[u8]) -> Result<Put, StepError> {
        let mut object = self.create(key)?;
        io::Write::write_all(&mut object, content)
            .map_err(|error| failure::write(format_args!("`{key}` in {self}"), &error))?;
        object.commit()
    }

    /// Makes sure that an object survives a power cut, whose writer may have died before it did. What a bucket shows
    /// does so already.
    pub fn sync(&self, key: &Key) -> Result<(), StepError> {
        match &self.backend {
            Backend::Dir(dir) => {
                dir.sync(key).map_err(|error| failure::write(format_args!("`{key}` in {self}"), &error))
            }
            #[cfg(feature = "s3")]
            Backend::S3(_) => Ok(()),
        }
    }

    fn look(&self, key: &Key) -> String {
        match &self.backend {
            Backend::Dir(dir) => dir.look(key),
            #[cfg(feature = "s3")]
            Backend::S3(bucket) => bucket.look(key),
        }
    }
}

impl std::fmt::Display for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.backend {
            Backend::Dir(dir) => dir.fmt(f),
            #[cfg(feature = "s3")]
            Backend::S3(bucket) => bucket.fmt(f),
        }
    }
}

impl ObjectReader {
    /// Returns the size in bytes when it was opened.
    pub fn size(&self) -> u64 {
        match &self.0 {
            Reading::File(file) => file.size(),
            #[cfg(feature = "s3")]
            Reading::Stream(stream) => stream.size(),
        }
    }
}

impl From<NewFile> for NewObject {
    fn from(file: NewFile) -> Self {
        Self(Writing::File(file))
    }
}

#[cfg(feature = "s3")]
impl From<Upload> for NewObject {
    fn from(upload: Upload) -> Self {
        Self(Writing::Upload(Box::new(upload)))
    }
}

impl From<FileReader> for ObjectReader {
    fn from(file: FileReader) -> Self {
        Self(Reading::File(file))
    }
}

#[cfg(feature = "s3")]
impl From<ObjectStream> for ObjectReader {
    fn from(stream: ObjectStream) -> Self {
        Self(Reading::Stream(Box::new(stream)))
    }
}

impl Read for ObjectReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.0 {
            Reading::File(file) => file.read(buffer),
            #[cfg(feature = "s3")]
            Reading::Stream(stream) => stream.read(buffer),
        }
    }
}

impl NewObject {
    /// Makes the object durable and visible under its name.
    ///
    /// When this returns, the object survives a power cut. If an object of that name appeared in the meantime, it
    /// stays, unless it was to be replaced: with the same content this is success, with other content an error.
    pub fn commit(self) -> Result<Put, StepError> {
        match self.0 {
            Writing::File(file) => file.commit(),
            #[cfg(feature = "s3")]
            Writing::Upload(upload) => upload.commit(),
        }
    }

    /// Gives up for now: what a later attempt can go on with stays, everything else is thrown away.
    pub(crate) fn leave(self) {
        match self.0 {
            Writing::File(file) => drop(file),
            #[cfg(feature = "s3")]
            Writing::Upload(upload) => upload.leave(),
        }
    }
}

impl io::Write for NewObject {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.0 {
            Writing::File(file) => file.write(bytes),
            #[cfg(feature = "s3")]
            Writing::Upload(upload) => upload.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The error of a name that something else has.
pub(super) fn taken(key: &Key) -> StepError {
    StepError::permanent(
        codes::LB1105,
        format!("`{key}` is in the store already, with different content; it was left as it is"),
    )
    .help("find out who wrote it before anything is removed; `lifeboat explain LB1105` says how")
}

#[cfg(not(feature = "s3"))]
fn no_s3(url: &str) -> StepError {
    StepError::permanent(
        codes::LB1102,
        format!("the store `{url}` is in S3, which this build of Lifeboat cannot reach"),
    )
    .help("use a build with the feature `s3`, or a `dir:///path` store")
}
