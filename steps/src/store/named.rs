//! Objects by the names that a store gives them, and what it says of their content.

use std::sync::Arc;

use jiff::Timestamp;
use lifeboat_engine::step::StepError;

use super::backend::{Backend, NewObject, ObjectReader, Store};
use super::crc::Crc;
use super::key::Key;
use super::sums::Sums;
use super::uploads::Uploads;

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

/// A checksum of the whole content that a server keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kept {
    Sha256(String),
    Crc(Crc),
}

/// What is done where something has the name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Existing {
    /// It stays; the same content is success.
    #[default]
    Keep,
    /// It is replaced.
    Replace,
}

/// What is said of a content before it is sent. It is held against it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Announced {
    #[default]
    Nothing,
    Sha256(String),
    /// It was read before for all of these.
    Sums(Arc<Sums>),
}

impl Announced {
    pub(crate) fn sha256(&self) -> Option<&str> {
        match self {
            Self::Nothing => None,
            Self::Sha256(known) => Some(known),
            Self::Sums(sums) => Some(&sums.digest.sha256),
        }
    }
}

/// How an object is written.
#[derive(Clone, Debug, Default)]
pub(crate) struct Intent {
    pub(crate) existing: Existing,
    pub(crate) announced: Announced,
    /// Where it is noted how far an upload came, for a later attempt.
    pub(crate) uploads: Option<Arc<Uploads>>,
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

    /// Returns the checksum that the server keeps of an object's whole content, where it says so.
    pub(crate) fn kept(&self, name: &str, pin: &Pin) -> Result<Option<Kept>, StepError> {
        match &self.backend {
            #[cfg(feature = "s3")]
            Backend::S3(bucket) => bucket.kept(name, pin),
            Backend::Dir(_) => Ok(None),
        }
    }

    /// Says whether an object carries what is announced of it: a directory has no place for that.
    pub(crate) fn carries_checksums(&self) -> bool {
        match &self.backend {
            #[cfg(feature = "s3")]
            Backend::S3(_) => true,
            Backend::Dir(_) => false,
        }
    }

    /// Begins an object.
    pub(crate) fn write_object(&self, key: &Key, intent: Intent) -> Result<NewObject, StepError> {
        Ok(match &self.backend {
            #[cfg(feature = "s3")]
            Backend::S3(bucket) => bucket.upload(key, intent).into(),
            Backend::Dir(dir) => dir.create(key, intent.existing)?.into(),
        })
    }

    /// Throws away what earlier attempts have sent and nobody will go on with. What cannot be removed now stays noted.
    pub(crate) fn clear(&self, uploads: &Uploads) {
        match &self.backend {
            #[cfg(feature = "s3")]
            Backend::S3(bucket) => bucket.clear(uploads),
            Backend::Dir(_) => drop(uploads.left()),
        }
    }

    /// Says where an object is, for people.
    pub(crate) fn address_of(&self, name: &str) -> String {
        format!("`{}` in {self}", name.escape_debug())
    }
}
