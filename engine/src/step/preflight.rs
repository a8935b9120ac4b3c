use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use serde::Serialize;

use super::{StepContext, StepError};
use crate::code::Code;
use crate::model::{Mode, StepId};
use crate::resource::{Resource, ResourceKind};

/// What was found of a system before a run.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    /// What was looked at: a resource, a secret, a step.
    pub subject: String,
    /// What about it: `login`, `free space`.
    pub what: String,
    pub state: FindingState,
    /// What is there, for people. Never holds a secret.
    pub detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
    /// True if the run could succeed all the same and only an objective be missed.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub objective: bool,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FindingState {
    /// The run would fail, or miss an objective.
    Failed,
    Warning,
    /// It could not be found out.
    Unknown,
    Ok,
}

impl Finding {
    /// Begins a finding that all is well.
    pub fn ok(subject: impl Into<String>, what: &str, detail: impl Into<String>) -> Self {
        let (subject, what, detail) = (subject.into(), what.to_owned(), detail.into());
        Self { subject, what, state: FindingState::Ok, detail, help: None, objective: false }
    }

    /// Makes a finding of an error.
    pub fn failed(subject: impl Into<String>, what: &str, error: &StepError) -> Self {
        let causes = error.causes.iter().map(|cause| format!(": {cause}"));
        let detail = format!("{}{}", error.message, causes.collect::<String>());
        let finding = Self::ok(subject, what, detail).state(FindingState::Failed);
        match &error.help {
            Some(help) => finding.help(help),
            None => finding,
        }
    }

    /// Says how bad it is.
    #[must_use]
    pub fn state(mut self, state: FindingState) -> Self {
        self.state = state;
        self
    }

    /// Says what to do about it.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Says that it is an objective that is missed.
    #[must_use]
    pub fn objective(mut self) -> Self {
        self.objective = true;
        self
    }
}

/// What a probe must know of the plan.
#[derive(Clone, Debug)]
pub struct PreflightFacts {
    pub mode: Mode,
    pub rto: Option<Duration>,
    pub rpo: Option<Duration>,
    pub now: Timestamp,
    /// Resources that steps destroy or replace, with the first step that does: what is there now need not work.
    pub replaced: BTreeMap<String, StepId>,
    /// Resources that steps write.
    pub written: BTreeSet<String>,
    /// Resources that steps read or write.
    pub used: BTreeSet<String>,
    /// True if the plan starts services, so that what they serve may be down before it.
    pub starts_services: bool,
}

/// Looks at one kind of resource before a run. Changes nothing: connections are closed, no file is made.
#[async_trait]
pub trait ResourceProbe: Send + Sync + 'static {
    /// Says which resources it looks at.
    fn kinds(&self) -> &[ResourceKind];

    /// Looks at one of them.
    async fn probe(&self, ctx: &StepContext, name: &str, facts: &PreflightFacts) -> Vec<Finding>;
}

/// Where a step would run.
#[derive(Clone, Copy, Debug)]
pub struct Setting<'a> {
    pub mode: Mode,
    pub resources: &'a BTreeMap<String, Resource>,
}

/// Why a step can only fail in an environment.
#[derive(Clone, Debug)]
pub struct Refusal {
    pub code: Code,
    pub message: String,
    pub help: String,
}
