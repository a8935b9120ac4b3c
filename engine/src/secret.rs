//! References to secrets, and their values for as long as a process needs them.

pub mod codes;
mod resolve;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::OnceLock;

use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use crate::redact::Redactor;

pub use resolve::Unresolved;

/// Where a secret is kept. The only form in which a secret may stand in a file or a journal.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum SecretRef {
    /// The content of a file, without its last line break. Relative to the environment file.
    File(PathBuf),
    /// A variable of the environment in which `lifeboat` was started.
    Env(String),
    /// The standard output of a program, without its last line break.
    Command(Vec<String>),
}

impl fmt::Display for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "the file `{}`", path.display()),
            Self::Env(name) => write!(f, "the environment variable `{name}`"),
            Self::Command(words) => write!(f, "the command `{}`", words.join(" ")),
        }
    }
}

/// Secrets resolved for one process; never stored. Keys are references, so that one secret named twice is read once.
#[derive(Debug, Default)]
pub struct Secrets {
    values: BTreeMap<SecretRef, SecretString>,
    redactor: OnceLock<Redactor>,
}

impl Secrets {
    /// Keeps a resolved value.
    pub fn insert(&mut self, reference: SecretRef, value: SecretString) {
        self.values.insert(reference, value);
        self.redactor.take();
    }

    /// Returns what removes these secrets from text; made once.
    pub fn redactor(&self) -> &Redactor {
        self.redactor.get_or_init(|| Redactor::new(self))
    }

    /// Returns the value of a reference that was resolved when the process began.
    pub fn get(&self, reference: &SecretRef) -> Option<&SecretString> {
        self.values.get(reference)
    }

    /// Iterates over all values, for the redactor.
    pub fn values(&self) -> impl Iterator<Item = &SecretString> {
        self.values.values()
    }

    /// Iterates over all references with their values.
    pub fn iter(&self) -> impl Iterator<Item = (&SecretRef, &SecretString)> {
        self.values.iter()
    }
}
