//! Stores that keep the versions of their objects.

use jiff::Timestamp;
use lifeboat_engine::step::StepError;

use super::backend::{Backend, Store};
use super::codes;
use super::policy::Versioning;
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

/// How far the order of a listing can be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Newest first within a name, as S3 promises.
    Promised,
    /// As seen; some servers list versions and marks apart.
    Unknown,
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

    /// Returns the store, for what needs no versions.
    pub(crate) fn as_store(&self) -> Store {
        Store::on(Backend::S3(self.bucket.clone()))
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
