//! Attempts that repeat a step until a condition holds.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Map, Value};

use crate::code;
use crate::expr;
use crate::model::event::{Answer, AttemptResult, Done, Question};
use crate::model::evidence::{Check, Created, Progress, Stream, Unit as Measure};
use crate::model::outcome::{Failure, FailureKind};
use crate::plan::Until;
use crate::step::{StepContext, StepError, StepKind, StepLink};

use super::link::AttemptLink;

/// What an attempt waits for, and what it has seen of it so far.
#[derive(Clone)]
pub(super) struct Poll {
    pub(super) until: Until,
    /// What the condition may read besides `output`.
    pub(super) names: Map<String, Value>,
    pub(super) link: Arc<AttemptLink>,
    pub(super) seen: Arc<Mutex<Seen>>,
}

/// The last of several polls.
#[derive(Debug, Default)]
pub(super) struct Seen {
    count: u64,
    /// What the condition read, or why that poll failed.
    last: String,
    check: Option<Check>,
}

impl Poll {
    /// Runs the step again and again until the condition holds, or it fails for good, or the attempt must end. A poll
    /// that fails in a way that may pass counts as one that did not hold.
    pub(super) async fn repeat(&self, kind: &dyn StepKind, context: &StepContext) -> Result<Done, StepError> {
        let mut first = true;
        loop {
            if !std::mem::take(&mut first) {
                // Only what the last poll printed is kept.
                self.link.restart_output();
            }
            match kind.run(context).await {
                Ok(mut done) => {
                    let check = self.look(&done);
                    if check.passed {
                        done.checks.push(check);
                        return Ok(done);
                    }
                    self.note(check.actual.clone(), Some(check));
                }
                Err(error) if error.kind == FailureKind::Permanent => return Err(error),
                // A poll that was cut off has seen nothing: what the one before it saw stands.
                Err(_) if context.cancel.is_cancelled() => {}
                Err(error) => self.note(error.message, None),
            }
            tokio::select! {
                () = tokio::time::sleep(self.until.every.0) => {}
                () = context.cancelled() => {}
            }
            if context.cancel.is_cancelled() {
                return Err(StepError::transient(code::LB0303, "ended while it waited for its condition"));
            }
        }
    }

    fn look(&self, done: &Done) -> Check {
        let mut names = self.names.clone();
        names.insert("output".into(), Value::Object(done.outputs.clone()));
        let conditions = std::slice::from_ref(&self.until.condition);
        expr::check_all("until", conditions, &names).remove(0)
    }

    fn note(&self, last: String, check: Option<Check>) {
        let count = {
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.count += 1;
            seen.last.clone_from(&last);
            seen.check = check;
            seen.count
        };
        let note = if last.is_empty() { "poll".to_owned() } else { format!("{last}; poll") };
        self.link.progress(Progress { done: count, total: None, unit: Measure::Items, note });
    }

    /// Says that the condition did not hold in time, and what was seen last.
    pub(super) fn not_within(&self, step: &str, limit: Duration) -> AttemptResult {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let limit = humantime::format_duration(limit);
        let condition = &self.until.condition;
        let message = match seen.count {
            0 => format!(
                "`{step}` was still at its first poll after {limit}, so `{condition}` was never looked at"
            ),
            1 => format!("`{condition}` did not hold within {limit}; the only poll: {}", seen.last),
            many => {
                format!("`{condition}` did not hold within {limit}; the last of {many} polls: {}", seen.last)
            }
        };
        let failure = Failure {
            kind: FailureKind::Transient,
            code: code::LB0334.id.to_owned(),
            message,
            help: Some("see why it has not happened; if it only needs longer, retry the step".to_owned()),
            causes: Vec::new(),
        };
        AttemptResult::Failed { failure, checks: seen.check.iter().cloned().collect() }
    }
}

/// The link of a step that is repeated: what it says of its progress would hide how often it was repeated.
pub(super) struct PollLink(pub(super) Arc<AttemptLink>);

#[async_trait]
impl StepLink for PollLink {
    fn progress(&self, _: Progress) {}

    fn line(&self, stream: Stream, line: &str) {
        self.0.line(stream, line);
    }

    async fn record(&self, key: &str, value: Value) -> Result<(), StepError> {
        self.0.record(key, value).await
    }

    async fn created(&self, thing: Created) -> Result<(), StepError> {
        self.0.created(thing).await
    }

    async fn removed(&self, id: &str, proof: &str) -> Result<(), StepError> {
        self.0.removed(id, proof).await
    }

    async fn ask(&self, question: Question) -> Result<Answer, StepError> {
        self.0.ask(question).await
    }
}
