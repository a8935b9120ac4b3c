//! The way from an attempt to the dispatcher.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use crate::code;
use crate::model::event::{Answer, AttemptResult, Question};
use crate::model::evidence::{Created, OutputFile, Progress, Stream};
use crate::model::ids::{Attempt, StepId};
use crate::notice::Occasion;
use crate::redact::Redactor;
use crate::step::{StepError, StepLink};

/// What attempts send to the driver.
#[derive(Debug)]
pub(super) enum Message {
    Ended {
        step: StepId,
        attempt: Attempt,
        result: AttemptResult,
        /// What it has printed.
        output: Vec<OutputFile>,
    },
    /// The reply comes when the fact is durable.
    Record {
        step: StepId,
        attempt: Attempt,
        key: String,
        value: Value,
        reply: oneshot::Sender<()>,
    },
    Created {
        step: StepId,
        attempt: Attempt,
        thing: Created,
        reply: oneshot::Sender<()>,
    },
    Gone {
        id: String,
        proof: String,
        reply: oneshot::Sender<()>,
    },
    Asked {
        step: StepId,
        attempt: Attempt,
        question: Question,
        reply: oneshot::Sender<Answer>,
    },
    Progressed {
        step: StepId,
        attempt: Attempt,
        progress: Progress,
    },
    Line {
        step: StepId,
        attempt: Attempt,
        stream: Stream,
        line: String,
    },
    /// What became of a notice.
    Notified {
        occasion: Occasion,
        channel: String,
        problem: Option<String>,
    },
    Removed {
        id: String,
        proof: String,
        removed: bool,
    },
    CleanedUp,
}

impl Message {
    /// Returns the message without secrets. Lines come clean from the [`OutputSink`].
    pub(super) fn cleaned(self, redactor: &Redactor) -> Self {
        match self {
            Self::Ended { step, attempt, result, output } => {
                let result = redactor.clean(result).unwrap_or_else(|error| spoiled(&error));
                Self::Ended { step, attempt, result, output }
            }
            Self::Record { step, attempt, key, mut value, reply } => {
                redactor.value(&mut value);
                Self::Record { step, attempt, key, value, reply }
            }
            Self::Asked { step, attempt, mut question, reply } => {
                question.message = redactor.text(&question.message).into_owned();
                for point in &mut question.points {
                    *point = redactor.text(point).into_owned();
                }
                Self::Asked { step, attempt, question, reply }
            }
            Self::Progressed { step, attempt, mut progress } => {
                progress.note = redactor.text(&progress.note).into_owned();
                Self::Progressed { step, attempt, progress }
            }
            Self::Notified { occasion, channel, problem } => {
                let problem = problem.map(|text| redactor.text(&text).into_owned());
                Self::Notified { occasion, channel, problem }
            }
            Self::Created { step, attempt, mut thing, reply } => {
                // Where it is must stay as it is: it has to be found again.
                thing.what = redactor.text(&thing.what).into_owned();
                Self::Created { step, attempt, thing, reply }
            }
            Self::Gone { id, proof, reply } => {
                let proof = redactor.text(&proof).into_owned();
                Self::Gone { id, proof, reply }
            }
            Self::Removed { id, proof, removed } => {
                let proof = redactor.text(&proof).into_owned();
                Self::Removed { id, proof, removed }
            }
            other @ (Self::Line { .. } | Self::CleanedUp) => other,
        }
    }
}

/// What is left of a result that cannot be told without its secrets.
fn spoiled(error: &serde_json::Error) -> AttemptResult {
    let failure = StepError::uncertain(code::LB0353, "the result of the step is made of secrets")
        .help("its work may be done; do not return secrets as outputs")
        .caused_by(error)
        .to_failure();
    AttemptResult::Failed { failure, checks: Vec::new() }
}

/// Where lines of output go before anything else: redacted there, and stored whole.
pub trait OutputSink: Send + Sync {
    /// Forgets what an attempt has printed so far, because it begins anew.
    fn restart(&self, step: &StepId, attempt: Attempt) {
        let _ = (step, attempt);
    }

    /// Takes note that an attempt prints nothing more. Returns what of its output could not be stored, in words for
    /// people; nothing if all was.
    fn ended(&self, step: &StepId, attempt: Attempt) -> Option<String> {
        let _ = (step, attempt);
        None
    }

    /// Stores a line and returns it with secrets removed.
    fn line(&self, step: &StepId, attempt: Attempt, stream: Stream, line: &str) -> String;

    /// Closes the files of an attempt, and says what is in them. Blocks on the disk.
    fn seal(&self, step: &StepId, attempt: Attempt) -> Vec<OutputFile> {
        let _ = (step, attempt);
        Vec::new()
    }
}

/// Progress more often than this is of no use to anybody.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(250);

/// The link of one attempt.
pub(super) struct AttemptLink {
    pub(super) step: StepId,
    pub(super) attempt: Attempt,
    pub(super) messages: mpsc::Sender<Message>,
    pub(super) output: Arc<dyn OutputSink>,
    pub(super) last_progress: Mutex<Option<Instant>>,
    pub(super) printed: Mutex<Printed>,
}

/// Whether an attempt has printed anything, and still may.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Printed {
    #[default]
    Nothing,
    Something,
    /// Its output is complete: what still comes, from a thread that could not be ended, comes too late.
    Sealed,
}

impl AttemptLink {
    async fn send<T>(
        &self,
        message: impl FnOnce(oneshot::Sender<T>) -> Message + Send,
    ) -> Result<T, StepError> {
        let (reply, answer) = oneshot::channel();
        self.messages.send(message(reply)).await.map_err(|_| closed())?;
        answer.await.map_err(|_| closed())
    }

    /// Forgets what the attempt has printed so far.
    pub(super) fn restart_output(&self) {
        self.output.restart(&self.step, self.attempt);
    }

    /// Ends the output of the attempt and says what it is.
    pub(super) async fn seal(self: &Arc<Self>) -> Vec<OutputFile> {
        let before = std::mem::replace(&mut *self.printed(), Printed::Sealed);
        if before != Printed::Something {
            return Vec::new();
        }
        let link = Arc::clone(self);
        tokio::task::spawn_blocking(move || link.output.seal(&link.step, link.attempt))
            .await
            .unwrap_or_default()
    }

    fn printed(&self) -> MutexGuard<'_, Printed> {
        self.printed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn progress_is_due(&self) -> bool {
        let Ok(mut last) = self.last_progress.lock() else { return false };
        let due = last.is_none_or(|at| at.elapsed() >= PROGRESS_INTERVAL);
        if due {
            *last = Some(Instant::now());
        }
        due
    }
}

/// Very long lines would fill the queue with what no screen shows.
fn beginning(mut line: String) -> String {
    const SHOWN: usize = 1000;
    if line.len() > SHOWN {
        line.truncate(line.floor_char_boundary(SHOWN));
        line.push('…');
    }
    line
}

fn closed() -> StepError {
    StepError::uncertain(code::LB0351, "the journal takes nothing more, so this step must not go on")
        .help("`lifeboat status RUN` says why; `lifeboat resume RUN` goes on when that is mended")
}

#[async_trait]
impl StepLink for AttemptLink {
    fn progress(&self, progress: Progress) {
        let complete = progress.total.is_some_and(|total| progress.done >= total);
        if self.progress_is_due() || complete {
            // Losing one is harmless: the next says more.
            let _ = self.messages.try_send(Message::Progressed {
                step: self.step.clone(),
                attempt: self.attempt,
                progress,
            });
        }
    }

    fn line(&self, stream: Stream, line: &str) {
        // Held while the line is written, so that nothing is written after the seal.
        let mut printed = self.printed();
        if *printed == Printed::Sealed {
            return;
        }
        *printed = Printed::Something;
        let line = self.output.line(&self.step, self.attempt, stream, line);
        drop(printed);
        // The line is in the step's file; only its live display can be lost, and nobody reads more of it there.
        let line = beginning(line);
        let _ = self.messages.try_send(Message::Line {
            step: self.step.clone(),
            attempt: self.attempt,
            stream,
            line,
        });
    }

    async fn record(&self, key: &str, value: Value) -> Result<(), StepError> {
        let (step, attempt, key) = (self.step.clone(), self.attempt, key.to_owned());
        self.send(|reply| Message::Record { step, attempt, key, value, reply }).await
    }

    async fn created(&self, thing: Created) -> Result<(), StepError> {
        let (step, attempt) = (self.step.clone(), self.attempt);
        self.send(|reply| Message::Created { step, attempt, thing, reply }).await
    }

    async fn removed(&self, id: &str, proof: &str) -> Result<(), StepError> {
        let (id, proof) = (id.to_owned(), proof.to_owned());
        self.send(|reply| Message::Gone { id, proof, reply }).await
    }

    async fn ask(&self, question: Question) -> Result<Answer, StepError> {
        let (step, attempt) = (self.step.clone(), self.attempt);
        self.send(|reply| Message::Asked { step, attempt, question, reply }).await
    }
}
