//! What a store promises of its objects.

use jiff::Timestamp;
use lifeboat_engine::step::StepError;

use super::backend::{Backend, Store};

/// Whether a bucket keeps versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Versioning {
    Enabled,
    Suspended,
    Never,
}

/// What a store says, or why it does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Told<T> {
    Yes(T),
    Unknown(String),
}

/// Uploads in parts that nobody has completed: seen in no listing of objects, and paid for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Unfinished {
    pub(crate) count: usize,
    /// False if there are more.
    pub(crate) is_all: bool,
    /// When the first of them was begun.
    pub(crate) oldest: Option<Timestamp>,
}

/// What a store promises of its objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Policy {
    pub(crate) versioning: Told<Versioning>,
    /// After how many days versions that are not current go, if they do.
    pub(crate) forgets_after_days: Told<Option<u32>>,
    /// Uploads that came to nothing go by themselves.
    pub(crate) clears_uploads: Told<bool>,
    /// Those that are there now, below the prefix of the store.
    pub(crate) unfinished: Told<Unfinished>,
    /// How objects are encrypted whose writer says nothing.
    pub(crate) encryption: Told<Option<String>>,
    /// Nobody is let in without credentials.
    pub(crate) is_private: Told<bool>,
    /// Objects can be locked against removal.
    pub(crate) object_lock: Told<bool>,
}

impl Store {
    /// Asks what the store promises.
    pub(crate) fn policy(&self) -> Result<Policy, StepError> {
        match &self.backend {
            #[cfg(feature = "s3")]
            Backend::S3(bucket) => bucket.policy(),
            Backend::Dir(dir) => dir.policy(),
        }
    }

    /// Says whether the store itself decides whether a name is free, so that of two writers one is refused. May write an
    /// object of our own and remove it.
    pub(crate) fn decides_names(&self) -> Result<bool, StepError> {
        match &self.backend {
            #[cfg(feature = "s3")]
            Backend::S3(bucket) => bucket.decides_names(),
            Backend::Dir(_) => Ok(true),
        }
    }
}
