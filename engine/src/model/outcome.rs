//! How attempts, steps and runs end.

use serde::{Deserialize, Serialize};

/// Whether a run recovers for real or practises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    Recovery,
    Drill,
}

/// What is known of the effect of an attempt that did not succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// Known not to have taken effect; may work if repeated.
    Transient,
    /// Will fail again in the same way.
    Permanent,
    /// It is not known whether the effect took place: timeout, lost connection, kill, crash.
    Uncertain,
}

/// Why an attempt did not succeed, as people read it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    pub kind: FailureKind,
    /// The error code, such as `LB1203`; `lifeboat explain` has a page for each.
    pub code: String,
    /// What went wrong, naming the object.
    pub message: String,
    /// What to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
    /// The chain of causes, outermost first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<String>,
}

/// How a step ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    Succeeded,
    /// Not run, for the reason given; a dependant sees it as success.
    Skipped {
        reason: String,
    },
    Failed {
        failure: Failure,
    },
    /// A person said that its work is done.
    MarkedDone {
        by: String,
        reason: String,
    },
    /// Never started, because the run ended first.
    NotRun {
        reason: String,
    },
}

impl Outcome {
    /// Says whether dependants that need success may go on.
    pub fn is_success(&self) -> bool {
        matches!(self, Self::Succeeded | Self::Skipped { .. } | Self::MarkedDone { .. })
    }
}

/// How a run ended. An ended run is never reopened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunOutcome {
    Succeeded,
    /// A policy of the runbook ended it.
    Failed,
    /// A person ended it.
    Aborted,
}
