//! What people who do not look at a run must hear of.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What a notice is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Occasion {
    /// A step has used up its attempts and waits for a decision.
    Held,
    /// A step asks a person.
    Waiting,
    /// Nobody has answered or decided for a while.
    Reminder,
    Paused,
    /// A signal or a crash took the process away; the run is still open.
    Interrupted,
    Succeeded,
    Failed,
    Aborted,
}

impl Occasion {
    /// All of them, as files spell them, with what they mean.
    pub const ALL: &[(&str, Self, &str)] = &[
        ("held", Self::Held, "a step has used up its attempts and waits for a decision"),
        ("waiting", Self::Waiting, "a step asks a person"),
        ("reminder", Self::Reminder, "a person has been waited for another ten minutes"),
        ("paused", Self::Paused, "a person has paused the run"),
        ("interrupted", Self::Interrupted, "a signal or a crash took the process away, and the run is open"),
        ("succeeded", Self::Succeeded, "the run has succeeded"),
        ("failed", Self::Failed, "the run has failed"),
        ("aborted", Self::Aborted, "a person has ended the run"),
    ];

    /// Returns the occasion that a file names.
    pub fn named(word: &str) -> Option<Self> {
        Self::ALL.iter().find(|(name, ..)| *name == word).map(|(_, occasion, _)| *occasion)
    }
}

impl fmt::Display for Occasion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = Self::ALL.iter().find(|(_, occasion, _)| occasion == self).map(|(name, ..)| *name);
        f.write_str(word.unwrap_or_default())
    }
}
