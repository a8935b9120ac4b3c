use jiff::Timestamp;
use lifeboat_engine::model::ids::{RunId, StepId};
use lifeboat_engine::step::StepError;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::codes;
use super::key::Key;

/// The object that makes a backup one.
pub const MARKER: &str = "lifeboat.json";

/// The version of markers that this program writes; a newer one is refused.
pub(super) const FORMAT: u32 = 1;

/// What a backup is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum BackupKind {
    #[serde(rename = "postgres.base")]
    PostgresBase,
    #[serde(rename = "postgres.dump")]
    PostgresDump,
    #[serde(rename = "redis.rdb")]
    RedisRdb,
    #[serde(rename = "files")]
    Files,
}

impl BackupKind {
    /// Returns the prefix in a store that holds all backups of the kind.
    pub fn prefix(self) -> Key {
        let name = match self {
            Self::PostgresBase => "base",
            Self::PostgresDump => "dump",
            Self::RedisRdb => "redis",
            Self::Files => "files",
        };
        Key::new(name).expect("the prefixes are plain names")
    }

    /// Returns the key of a backup's directory.
    pub fn backup(self, label: &str) -> Result<Key, StepError> {
        self.prefix().join(label)
    }
}

impl std::fmt::Display for BackupKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::PostgresBase => "postgres.base",
            Self::PostgresDump => "postgres.dump",
            Self::RedisRdb => "redis.rdb",
            Self::Files => "files",
        })
    }
}

/// The description of a complete backup, written after everything that it describes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Marker {
    pub format: u32,
    pub kind: BackupKind,
    pub label: String,
    pub run: RunId,
    pub step: StepId,
    pub started_at: Timestamp,
    pub finished_at: Timestamp,
    /// Every object of the backup but the marker.
    pub objects: Vec<ObjectEntry>,
    /// What the family knows of it: positions, versions, counts.
    pub details: serde_json::Value,
}

/// One object of a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectEntry {
    /// Its name within the backup; may have `/` in it.
    pub name: String,
    pub size: u64,
    /// In lower-case hexadecimal.
    pub sha256: String,
}

impl Marker {
    /// Returns the details in the family's own type.
    pub fn details<T: DeserializeOwned>(&self) -> Result<T, StepError> {
        serde_json::from_value(self.details.clone()).map_err(|error| {
            invalid(&self.label, format_args!("its details do not fit a {} backup: {error}", self.kind))
        })
    }

    /// Returns the sum of the sizes of its objects in bytes.
    pub fn bytes(&self) -> u64 {
        self.objects.iter().map(|object| object.size).sum()
    }

    /// Returns the key of one of its objects.
    pub fn key(&self, object: &str) -> Result<Key, StepError> {
        // What another tool made is named by its whole path.
        if self.label.contains('/') {
            return Key::new(format!("{}/{object}", self.label));
        }
        self.kind.backup(&self.label)?.join(object)
    }

    /// Returns the text of the object.
    pub(super) fn to_text(&self) -> Vec<u8> {
        let mut text = serde_json::to_vec_pretty(self).expect("plain data can be written");
        text.push(b'\n');
        text
    }

    /// Reads a marker and checks that it is one of `kind` for `label`.
    pub(super) fn parse(text: &[u8], kind: BackupKind, label: &str) -> Result<Self, StepError> {
        /// Read first, so that a newer form is named as such.
        #[derive(Deserialize)]
        struct Head {
            format: u32,
        }
        let head: Head = serde_json::from_slice(text)
            .map_err(|error| invalid(label, format_args!("it is no marker: {error}")))?;
        if head.format != FORMAT {
            return Err(invalid(
                label,
                format_args!("it has format {}, and this Lifeboat knows format {FORMAT}", head.format),
            ));
        }
        let marker: Self = serde_json::from_slice(text)
            .map_err(|error| invalid(label, format_args!("it cannot be understood: {error}")))?;
        marker.check(kind, label)?;
        Ok(marker)
    }

    fn check(&self, kind: BackupKind, label: &str) -> Result<(), StepError> {
        if self.kind != kind {
            return Err(invalid(label, format_args!("it describes a {} backup, not {kind}", self.kind)));
        }
        if self.label != label {
            return Err(invalid(label, format_args!("it describes the backup `{}`", self.label)));
        }
        if self.finished_at < self.started_at {
            return Err(invalid(label, format_args!("it finished before it started")));
        }
        if self.objects.is_empty() {
            return Err(invalid(label, format_args!("it names no object")));
        }
        for object in &self.objects {
            self.key(&object.name)
                .map_err(|error| invalid(label, format_args!("an object is misnamed: {}", error.message)))?;
        }
        Ok(())
    }
}

pub(super) fn invalid(label: &str, problem: impl std::fmt::Display) -> StepError {
    StepError::permanent(
        codes::LB1110,
        format!("the marker {MARKER} of backup `{label}` is invalid: {problem}"),
    )
    .help("the backup is not used; choose another one, and compare the marker with a copy of the store")
}

/// Makes the label of a backup that begins now: `20261121T031207Z-` and eight characters of the run id.
///
/// A step records its label before it uses it, so that a later attempt goes on with the same one.
pub fn new_label(started_at: Timestamp, run: &RunId) -> String {
    format!("{}-{}", started_at.strftime("%Y%m%dT%H%M%SZ"), run.short())
}
