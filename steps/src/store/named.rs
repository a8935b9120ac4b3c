//! Objects by the names that a store gives them, and what it says of their content.

use std::collections::HashMap;

use jiff::Timestamp;
use lifeboat_engine::step::StepError;

use super::backend::{Backend, NewObject, ObjectReader, Store};
use super::key::Key;

/// Where an object that Lifeboat has written in a bucket carries the SHA-256 of its content.
pub(crate) const SHA256: &str = "lifeboat-sha256";

/// One object as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Current {
    /// Below the prefix of the store. Anything that a server allows.
    pub(crate) name: String,
    pub(crate) size: u64,
    pub(crate) modified: Option<Timestamp>,
    pub(crate) etag: Option<String>,
    /// It must be brought back from an archive before it can be read.
    pub(crate) archived: bool,
}

/// Which content of an object is meant: it may be replaced between a listing and the reading.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pin {
    pub(crate) version: Option<String>,
    pub(crate) etag: Option<String>,
}

impl Pin {
    /// Returns a text that only this content has.
    pub(crate) fn id(&self) -> String {
        self.version.clone().or_else(|| self.etag.clone()).unwrap_or_default()
    }
}

/// What a store says of an object that is open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Of the whole object, wherever the reading began.
    pub(crate) size: u64,
    pub(crate) modified: Option<Timestamp>,
    pub(crate) pin: Pin,
    /// Of the whole content, by whoever wrote it with Lifeboat.
    pub(crate) sha256: Option<String>,
    /// Of the whole content, where the tag of the object is that.
    pub(crate) md5: Option<String>,
}

/// What is done where something has the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Existing {
    /// It stays; the same content is success.
    Keep,
    /// It is replaced.
    Replace,
}

impl Store {
    /// Lists everything below a prefix as it is now, names that are no keys included. The prefix is whole segments;
    /// without one it is the whole store.
    pub(crate) fn everything(&self, below: Option<&Key>) -> Result<Vec<Current>, StepError> {
        match &self.backend {
            #[cfg(feature = "s3")]
            Backend::S3(bucket) => {
                bucket.list_names(&below.map_or(String::new(), |below| format!("{below}/")))
            }
            Backend::Dir(dir) => dir.everything(below),
        }
    }

    /// Opens an object of this content for reading from a position, `None` if there is no such object.
    pub(crate) fn open_at(
        &self,
        name: &str,
        from: u64,
        pin: &Pin,
    ) -> Result<Option<(Facts, ObjectReader)>, StepError> {
        match &self.backend {
            #[cfg(feature = "s3")]
            Backend::S3(bucket) => {
                let found = bucket.find_at(format!("{}{name}", bucket.prefix()), from, pin)?;
                Ok(found.map(|found| (found.facts(), ObjectReader::from(found))))
            }
            Backend::Dir(dir) => {
                let found = dir.find_at(&Key::new(name)?, from, pin)?;
                Ok(found.map(|(facts, found)| (facts, ObjectReader::from(found))))
            }
        }
    }

    /// Returns what a store says of an object without its content, `None` if there is none.
    pub(crate) fn facts(&self, name: &str, pin: &Pin) -> Result<Option<Facts>, StepError> {
        match &self.backend {
            #[cfg(feature = "s3")]
            Backend::S3(bucket) => bucket.facts(name, pin),
            Backend::Dir(dir) => Ok(dir.find_at(&Key::new(name)?, 0, pin)?.map(|(facts, _)| facts)),
        }
    }

    /// Begins an object with metadata, which a directory has no place for.
    pub(crate) fn write_object(
        &self,
        key: &Key,
        existing: Existing,
        metadata: HashMap<String, String>,
    ) -> Result<NewObject, StepError> {
        Ok(match &self.backend {
            #[cfg(feature = "s3")]
            Backend::S3(bucket) => bucket.upload_with(key, existing, metadata).into(),
            Backend::Dir(dir) => {
                drop(metadata);
                dir.create(key, existing)?.into()
            }
        })
    }

    /// Says where an object is, for people.
    pub(crate) fn address_of(&self, name: &str) -> String {
        format!("`{}` in {self}", name.escape_debug())
    }
}
