//! Stores that keep the versions of their objects.

use jiff::Timestamp;
use lifeboat_engine::step::StepError;

use super::backend::{Backend, ObjectReader, Store};
use super::codes;
use super::s3::{Bucket, Version};

/// One version of an object, or the mark of its deletion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Below the prefix of the store. Anything that a server allows.
    pub(crate) name: String,
    pub(crate) id: String,
    pub(crate) modified: Timestamp,
    pub(crate) latest: bool,
    /// `None` for the mark of a deletion.
    pub(crate) object: Option<Stored>,
}

/// What a version holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) size: u64,
    pub(crate) etag: Option<String>,
    /// It must be brought back from an archive before it can be read.
    pub(crate) archived: bool,
}

/// One object as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Current {
    /// Below the prefix of the store.
    pub(crate) name: String,
    pub(crate) size: u64,
    pub(crate) modified: Option<Timestamp>,
}

/// How far the order of a listing can be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Newest first within a name, as S3 promises.
    Promised,
    /// As seen; some servers list versions and marks apart.
    Unknown,
}

/// Whether a bucket keeps versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Versioning {
    Enabled,
    Suspended,
    Never,
}

/// A store that can keep versions. Its calls block.
#[derive(Clone, Debug)]
pub(crate) struct Versioned {
    bucket: Bucket,
}

impl Store {
    /// Returns the store as one with versions; a directory has none.
    pub(crate) fn versioned(&self) -> Result<Versioned, StepError> {
        match &self.backend {
            Backend::S3(bucket) => Ok(Versioned { bucket: bucket.clone() }),
            Backend::Dir(_) => Err(StepError::permanent(
                codes::LB1117,
                format!("{self} is a directory, which keeps no versions of its objects"),
            )
            .help("back the directory up with `files.backup`, and restore it with `files.restore` and `target_time`")),
        }
    }

    /// Lists everything in the store as it is now, names that are no keys included.
    pub(crate) fn everything(&self) -> Result<Vec<Current>, StepError> {
        match &self.backend {
            Backend::S3(bucket) => bucket.list_names(""),
            Backend::Dir(dir) => dir.everything(),
        }
    }
}

impl Versioned {
    pub(crate) fn order(&self) -> Order {
        if self.bucket.is_s3() { Order::Promised } else { Order::Unknown }
    }

    pub(crate) fn versioning(&self) -> Result<Versioning, StepError> {
        self.bucket.versioning()
    }

    /// Returns after how many days versions that are not current are forgotten, if a rule says so.
    pub(crate) fn forgets_after_days(&self) -> Result<Option<u32>, StepError> {
        self.bucket.forgets_after_days()
    }

    /// Goes through all versions and marks below a text, page by page.
    pub(crate) fn each_version(
        &self,
        below: &str,
        each: impl FnMut(Vec<Entry>) -> Result<(), StepError>,
    ) -> Result<(), StepError> {
        self.bucket.each_version(below, each)
    }

    /// Opens one version for reading, with its MD5 if the server knows it.
    pub(crate) fn read(&self, name: &str, id: &str) -> Result<(ObjectReader, Option<String>), StepError> {
        let full = format!("{}{name}", self.bucket.prefix());
        let found = self.bucket.find_full(full, Some(id.to_owned()))?.ok_or_else(|| {
            let name = name.escape_debug();
            StepError::permanent(codes::LB1104, format!("version {id} of `{name}` is no longer in {self}"))
                .help("find out what removes versions: a lifecycle rule, or somebody who may delete them")
        })?;
        let md5 = found.md5();
        Ok((ObjectReader::from(found), md5))
    }

    /// Copies a version to a name of another store of the same server, or to the top of its own.
    pub(crate) fn copy(&self, (name, id, size): (&str, &str, u64), to: &Self) -> Result<(), StepError> {
        let key = format!("{}{name}", self.bucket.prefix());
        let version = Version { key, id: id.to_owned(), size };
        to.bucket.copy_version(&self.bucket, &version, &format!("{}{name}", to.bucket.prefix()))
    }

    /// Puts a mark of deletion on top of an object. Its versions stay.
    pub(crate) fn mark_deleted(&self, name: &str) -> Result<(), StepError> {
        self.bucket.delete(name, None)
    }

    /// Takes a mark of deletion away.
    pub(crate) fn remove_mark(&self, name: &str, id: &str) -> Result<(), StepError> {
        self.bucket.delete(name, Some(id.to_owned()))
    }

    /// Says whether both are on one server, so that it can copy between them.
    pub(crate) fn is_beside(&self, other: &Self) -> bool {
        self.bucket.endpoint() == other.bucket.endpoint()
    }

    /// Says whether both are the same place.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.is_beside(other)
            && self.bucket.name() == other.bucket.name()
            && self.bucket.prefix() == other.bucket.prefix()
    }

    /// Says whether one holds the other.
    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        let (mine, theirs) = (self.bucket.prefix(), other.bucket.prefix());
        self.is_beside(other)
            && self.bucket.name() == other.bucket.name()
            && (mine.starts_with(theirs) || theirs.starts_with(mine))
    }
}

impl std::fmt::Display for Versioned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.bucket.fmt(f)
    }
}
