//! What people and other processes ask of a run.

use serde::{Deserialize, Serialize};

use super::event::{Answer, Decision, Person};
use super::ids::StepId;

/// One wish for a run, turned into events by the process that owns it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    /// Answers a question. The first answer counts; a later one is refused.
    Answer { step: StepId, question: String, answer: Answer },
    /// Decides about the run or one of its steps.
    Decide { by: Person, decision: Decision },
}

impl Request {
    /// Returns whose wish it is.
    pub fn by(&self) -> &Person {
        match self {
            Self::Answer { answer, .. } => &answer.by,
            Self::Decide { by, .. } => by,
        }
    }
}
