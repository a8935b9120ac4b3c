//! References to secrets, and their values for as long as a process needs them.

pub mod codes;
mod resolve;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::OnceLock;

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use crate::redact::{self, Redactor};

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
    /// Those that are words which everybody may read.
    words: BTreeSet<SecretRef>,
    redactor: OnceLock<Redactor>,
}

/// A secret that stands in a plan as well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InPlan {
    pub reference: SecretRef,
    /// False if it is so short that it may be an ordinary word: it is not removed from anything then, for that would
    /// spoil the paths and names that steps work with.
    pub removed: bool,
}

impl Secrets {
    /// Keeps a resolved value.
    pub fn insert(&mut self, reference: SecretRef, value: SecretString) {
        self.values.insert(reference, value);
        self.redactor.take();
    }

    /// Finds secrets that stand in a text which is stored and shown anyway, such as a plan.
    pub fn found_in(&mut self, text: &str) -> Vec<InPlan> {
        /// No name of a directory or a database is that long by chance.
        const NO_WORD: usize = 16;
        let mut found = Vec::new();
        for (reference, value) in &self.values {
            let value = value.expose_secret();
            if value.len() >= redact::SHORTEST && text.contains(value) {
                let removed = value.len() >= NO_WORD;
                found.push(InPlan { reference: reference.clone(), removed });
            }
        }
        let words = found.iter().filter(|it| !it.removed).map(|it| it.reference.clone());
        self.words.extend(words);
        self.redactor.take();
        found
    }

    /// Says whether a secret is a word that everybody may read.
    pub(crate) fn is_word(&self, reference: &SecretRef) -> bool {
        self.words.contains(reference)
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
