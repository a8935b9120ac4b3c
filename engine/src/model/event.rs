//! The words of the journal.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::evidence::{Check, Created, OutputFile, Progress, RecoveryPoint, Stream};
use super::ids::{Attempt, Seq, StepId};
use super::occasion::Occasion;
use super::outcome::{Failure, Outcome, RunOutcome};

/// One record of the journal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    pub seq: Seq,
    /// Wall-clock time, milliseconds since 1970 UTC.
    pub at_ms: i64,
    #[serde(flatten)]
    pub kind: EventKind,
}

/// Whether recovery reads an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventClass {
    /// Synced before anything follows from it; the only input of recovery.
    Essential,
    /// Best effort; recovery never reads it.
    Advisory,
}

/// What happened. Names are stored as they are spelled here, in snake case, and never change meaning.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum EventKind {
    /// The run exists. `plan_digest` is the digest of the plan that is stored beside the events.
    RunDeclared {
        plan_digest: String,
        /// When the incident began, milliseconds since 1970 UTC: the RTO clock starts here.
        incident_at_ms: i64,
        by: Person,
        inputs: Map<String, Value>,
        engine: String,
    },
    /// A process took the run over and goes on with it; the first one writes this too.
    EngineStarted {
        pid: u32,
        host: String,
        boot_id: String,
    },
    /// What the systems that are written turned out to be, where destroying them was confirmed: again on resume if
    /// they have changed since.
    TargetsConfirmed {
        by: Person,
        targets: Vec<String>,
    },
    /// What a step is repeated for has been evaluated. What follows names its elements: `step[0]`, `step[1]`, …
    ElementsChosen {
        step: StepId,
        elements: Vec<Value>,
    },
    AttemptStarted {
        step: StepId,
        attempt: Attempt,
        /// The parameters with templates evaluated. Never holds a secret.
        with: Value,
    },
    AttemptFinished {
        step: StepId,
        attempt: Attempt,
        result: AttemptResult,
    },
    /// What an attempt printed is complete; stands before its end. Ties the files to the chain.
    OutputKept {
        step: StepId,
        attempt: Attempt,
        files: Vec<OutputFile>,
    },
    RetryScheduled {
        step: StepId,
        next_attempt: Attempt,
        at_ms: i64,
    },
    /// Follows the last attempt, or replaces attempts altogether.
    StepFinished {
        step: StepId,
        #[serde(flatten)]
        outcome: Outcome,
    },
    /// Its attempts are used up and a person must decide.
    StepHeld {
        step: StepId,
        failure: Failure,
    },
    /// A small fact that a step wants to find again after a crash.
    Recorded {
        step: StepId,
        key: String,
        value: Value,
    },
    /// Written before the thing is made.
    ThingCreated {
        step: StepId,
        thing: Created,
    },
    ThingRemoved {
        id: String,
        /// How the removal was proven, or why it was not possible.
        proof: String,
        removed: bool,
    },
    /// A step waits for a person.
    QuestionAsked {
        step: StepId,
        question: Question,
    },
    QuestionAnswered {
        step: StepId,
        question: String,
        answer: Answer,
    },
    /// A person's word on the run or on a step.
    Decided {
        by: Person,
        decision: Decision,
    },
    /// What a person asked for was not granted, and they were told why. Changes nothing.
    Refused {
        request: Uuid,
        by: Person,
        reason: String,
    },
    /// Nothing further of the main steps starts; undo follows if it is to, then `always` steps.
    EndingBegan {
        outcome: RunOutcome,
        reason: String,
        /// Steps that have begun are undone, newest first.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        undo: bool,
    },
    RunFinished {
        outcome: RunOutcome,
    },

    Progressed {
        step: StepId,
        attempt: Attempt,
        progress: Progress,
    },
    /// A line of output, already redacted; the whole is in the step's files.
    OutputLine {
        step: StepId,
        attempt: Attempt,
        stream: Stream,
        line: String,
    },
    /// What the clocks of the machine showed, in milliseconds: when a process begins to work on the run, and again when the
    /// wall clock was set meanwhile. Later processes go on with the time of the run by it.
    ClockRead {
        /// The time of the run, which all events have.
        run_ms: i64,
        wall_ms: i64,
        /// Since the machine was started, time asleep included.
        boot_ms: i64,
        boot_id: String,
    },
    /// A notice was posted to a channel, or could not be.
    Notified {
        occasion: Occasion,
        channel: String,
        /// Why it was not delivered.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        problem: Option<String>,
    },
    Noted {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        step: Option<StepId>,
        text: String,
    },
}

impl EventKind {
    /// Says whether recovery depends on this kind.
    pub fn class(&self) -> EventClass {
        match self {
            Self::Progressed { .. }
            | Self::OutputLine { .. }
            | Self::ClockRead { .. }
            | Self::Notified { .. }
            | Self::Noted { .. } => EventClass::Advisory,
            _ => EventClass::Essential,
        }
    }
}

/// How one attempt ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "snake_case")]
pub enum AttemptResult {
    Succeeded {
        done: Done,
    },
    Failed {
        failure: Failure,
        /// Checks that had been made before it failed.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        checks: Vec<Check>,
    },
    /// The process that ran it is gone; found on resume. Does not use up an attempt.
    Lost,
    /// Ended by the engine because a person or a signal stopped the run.
    Interrupted,
}

/// What a successful attempt brings back.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Done {
    pub outputs: Map<String, Value>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<Check>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub recovery_points: Vec<RecoveryPoint>,
    /// Further evidence for the report, by name: versions, rates, log lines.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub facts: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// The system that the step has made, as [`crate::resource::Resource`] writes it: references, never a secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource: Option<Value>,
}

/// Who said something: a claim, shown beside the user id it came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Person {
    pub name: String,
    pub uid: u32,
}

/// What a step asks of a person.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Question {
    /// Unique within the step and the same in every attempt.
    pub id: String,
    pub role: Option<String>,
    pub message: String,
    /// The words that can be answered, the first of which lets the step go on.
    pub choices: Vec<String>,
    /// Where a value is asked for instead of a choice: what it must be, in the form in which plans store inputs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub typed: Option<Value>,
    /// Whose answers it takes; without it one answer of anybody who may answer settles it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<ApprovalRule>,
    /// Points that are confirmed one by one: the first choice counts once every one of them is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub points: Vec<String>,
}

impl Question {
    /// Says whether answers that are all its first choice settle it.
    pub fn is_settled_by(&self, answers: &[&Answer]) -> bool {
        if answers.iter().any(|answer| answer.automatic) {
            return true;
        }
        if !self.points.is_empty() {
            return self.open_points(answers).is_empty();
        }
        answers.len() >= self.rule.map_or(1, |rule| rule.minimum as usize)
    }

    /// Returns the points that none of these answers is about, counted from 1.
    pub fn open_points(&self, answers: &[&Answer]) -> Vec<u32> {
        let all = (1..).take(self.points.len());
        all.filter(|point| !answers.iter().any(|answer| answer.points.contains(point))).collect()
    }
}

/// What it takes until a question is answered with its first choice. Any other choice settles it at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApprovalRule {
    /// How many different people must say so.
    pub minimum: u32,
    /// Whether the person who started the run is one of them.
    pub allow_starter: bool,
}

/// What a person answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    pub choice: String,
    pub by: Person,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// True if drill settings answered in nobody's name; no evidence of a decision.
    #[serde(default)]
    pub automatic: bool,
    /// Which points of the question it is about, counted from 1.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub points: Vec<u32>,
    /// A file that shows it, kept with the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<Box<GivenFile>>,
    /// What it was put together from, where several answers settle a question. Each of them is an event of its own.
    #[serde(skip)]
    pub parts: Vec<Answer>,
}

impl Answer {
    /// An answer of a person, to the whole question, without a comment.
    pub fn new(choice: impl Into<String>, by: Person) -> Self {
        let choice = choice.into();
        Self {
            choice,
            by,
            comment: None,
            automatic: false,
            points: Vec::new(),
            file: None,
            parts: Vec::new(),
        }
    }
}

/// A file that a person gave as evidence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GivenFile {
    /// What it was called, without a directory.
    pub name: String,
    pub bytes: u64,
    pub sha256: String,
}

impl GivenFile {
    /// Returns where it is kept, below the directory of such files.
    pub fn place(&self) -> String {
        format!("{}/{}", self.sha256, self.name)
    }
}

/// What people can decide from outside a step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "decision", rename_all = "snake_case")]
pub enum Decision {
    RetryStep { step: StepId },
    SkipStep { step: StepId, reason: String },
    MarkDone { step: StepId, reason: String },
    Abort { reason: String },
    Cancel { reason: String },
    Pause,
    Unpause,
    Note { text: String },
}
