//! What connects a run with its directory: redacted output, and requests of other processes.

use lifeboat_engine::model::{Attempt, OutputFile, Request, StepId, Stream};
use lifeboat_engine::redact::Redactor;
use lifeboat_engine::run::driver::{OutputSink, RequestSource};
use lifeboat_engine::runs::{Inbox, OutputFiles, RequestId};

/// Removes secrets from lines of output and stores them.
pub(super) struct Output {
    pub(super) redactor: Redactor,
    pub(super) files: OutputFiles,
}

impl OutputSink for Output {
    fn restart(&self, step: &StepId, attempt: Attempt) {
        if let Err(error) = self.files.restart(step, attempt) {
            tracing::warn!(%step, attempt, %error, "the output of an earlier poll is still there");
        }
    }

    fn line(&self, step: &StepId, attempt: Attempt, stream: Stream, line: &str) -> String {
        let line = self.redactor.text(line).into_owned();
        if let Err(error) = self.files.line(step, attempt, stream, &line) {
            // The step must not fail because its output cannot be kept; the journal will complain if the disk is full.
            tracing::warn!(%step, attempt, %error, "output was not stored");
        }
        line
    }

    fn seal(&self, step: &StepId, attempt: Attempt) -> Vec<OutputFile> {
        self.files.seal(step, attempt).unwrap_or_else(|error| {
            tracing::warn!(%step, attempt, %error, "what a step printed is not tied to the journal");
            Vec::new()
        })
    }
}

/// Requests that other processes leave in the run's inbox.
pub(super) struct InboxSource {
    pub(super) inbox: Inbox,
}

impl RequestSource for InboxSource {
    fn poll(&mut self) -> Vec<(RequestId, Request)> {
        let pending = match self.inbox.pending() {
            Ok(pending) => pending,
            Err(error) => {
                tracing::warn!(%error, "the inbox cannot be read");
                return Vec::new();
            }
        };
        let mut wishes = Vec::new();
        for entry in pending {
            match entry {
                Ok(pending) => wishes.push((pending.id, pending.request)),
                Err(error) => tracing::warn!(%error, "a request was set aside"),
            }
        }
        wishes
    }

    fn done(&mut self, id: RequestId) {
        if let Err(error) = self.inbox.remove(id) {
            tracing::warn!(%error, "a granted request is still in the inbox");
        }
    }
}
