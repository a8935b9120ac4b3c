//! What a report says beside the verdicts: what went wrong, what was made, and what nobody has proven.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::human::Moment;
use crate::model::evidence::Created;
use crate::model::ids::{Attempt, StepId};
use crate::model::outcome::Failure;

/// Something that went wrong on the way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trouble {
    pub at: Moment,
    pub step: StepId,
    pub kind: TroubleKind,
    pub attempt: Option<Attempt>,
    /// Absent for an attempt that was lost or interrupted.
    pub failure: Option<Failure>,
    /// What it cost: the attempt itself, or the time the step was held.
    pub cost_ms: i64,
}

/// What sort of trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TroubleKind {
    AttemptFailed,
    AttemptLost,
    AttemptInterrupted,
    StepHeld,
}

/// Something the run made, and what became of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CreatedReport {
    pub step: StepId,
    pub at: Moment,
    pub thing: Created,
    pub fate: Fate,
    /// How the removal was proven, or why it was not possible.
    pub proof: Option<String>,
}

/// What became of a created thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    Removed,
    /// It is in use, as it should be: a recovery keeps what it makes, and an open run has not cleaned up yet.
    Kept,
    /// It should be gone and is not known to be.
    NotRemoved,
}

/// Evidence of one step by name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepFacts {
    pub step: StepId,
    pub facts: BTreeMap<String, String>,
}

/// Something that this report does not prove.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NotChecked {
    pub step: Option<StepId>,
    pub what: String,
    pub why: String,
}

/// Something that a reader should know.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Warning {
    pub step: Option<StepId>,
    pub text: String,
}
