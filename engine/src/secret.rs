//! References to secrets, and their values for as long as a process needs them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use secrecy::SecretString;
use serde::{Deserialize, Serialize};

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

/// Secrets resolved for one process; never stored. Keys are references, so that one secret named twice is read once.
#[derive(Debug, Default)]
pub struct Secrets {
    values: BTreeMap<SecretRef, SecretString>,
}

impl Secrets {
    /// Keeps a resolved value.
    pub fn insert(&mut self, reference: SecretRef, value: SecretString) {
        self.values.insert(reference, value);
    }

    /// Returns the value of a reference that was resolved when the process began.
    pub fn get(&self, reference: &SecretRef) -> Option<&SecretString> {
        self.values.get(reference)
    }

    /// Iterates over all values, for the redactor.
    pub fn values(&self) -> impl Iterator<Item = &SecretString> {
        self.values.values()
    }
}
