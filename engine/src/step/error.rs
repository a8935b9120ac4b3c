use crate::code::Code;
use crate::model::evidence::Check;
use crate::model::outcome::{Failure, FailureKind};

/// Why an attempt failed: classified by the step, because only it knows whether the effect took place.
#[derive(Clone, Debug)]
pub struct StepError {
    pub kind: FailureKind,
    pub code: Code,
    pub message: String,
    pub help: Option<String>,
    pub causes: Vec<String>,
    /// Checks made before it failed, for the report.
    pub checks: Vec<Check>,
}

impl StepError {
    /// A failure that will repeat itself.
    pub fn permanent(code: Code, message: impl Into<String>) -> Self {
        Self::of(FailureKind::Permanent, code, message)
    }

    /// A failure that left the world as it was and may pass.
    pub fn transient(code: Code, message: impl Into<String>) -> Self {
        Self::of(FailureKind::Transient, code, message)
    }

    /// A failure after which nobody knows whether the effect took place.
    pub fn uncertain(code: Code, message: impl Into<String>) -> Self {
        Self::of(FailureKind::Uncertain, code, message)
    }

    fn of(kind: FailureKind, code: Code, message: impl Into<String>) -> Self {
        Self { kind, code, message: message.into(), help: None, causes: Vec::new(), checks: Vec::new() }
    }

    /// Adds what to do next.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Adds an error and its own sources to the causes.
    #[must_use]
    pub fn caused_by(mut self, error: &(dyn std::error::Error + 'static)) -> Self {
        let mut next = Some(error);
        while let Some(error) = next {
            let text = error.to_string();
            if self.causes.last() != Some(&text) {
                self.causes.push(text);
            }
            next = error.source();
        }
        self
    }

    /// Adds the checks made so far.
    #[must_use]
    pub fn checks(mut self, checks: Vec<Check>) -> Self {
        self.checks = checks;
        self
    }

    /// Returns what the journal keeps.
    pub fn to_failure(&self) -> Failure {
        Failure {
            kind: self.kind,
            code: self.code.id.to_owned(),
            message: self.message.clone(),
            help: self.help.clone(),
            causes: self.causes.clone(),
        }
    }
}

impl std::fmt::Display for StepError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}

impl std::error::Error for StepError {}
