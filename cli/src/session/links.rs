//! What connects a run with its directory: redacted output, and requests of other processes.

use std::collections::HashSet;
use std::sync::Mutex;

use lifeboat_engine::model::{Attempt, OutputFile, Request, StepId, Stream};
use lifeboat_engine::redact::Redactor;
use lifeboat_engine::run::driver::{OutputSink, RequestSource};
use lifeboat_engine::runs::{self, Inbox, OutputFiles, RequestId};

/// Removes secrets from lines of output and stores them.
pub(super) struct Output {
    pub(super) redactor: Redactor,
    pub(super) files: OutputFiles,
    /// Attempts that people have been told of.
    pub(super) warned: Mutex<HashSet<(StepId, Attempt)>>,
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
            // A restore must not fail at nine tenths because what it prints cannot be kept. It is counted, and the end of
            // the attempt says so in the journal.
            let first = self.warned.lock().is_ok_and(|mut warned| warned.insert((step.clone(), attempt)));
            if first {
                let why = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
                let why = why.unwrap_or_default();
                tracing::warn!("what `{step}` prints cannot be stored, and the step goes on: {error}{why}");
            }
        }
        line
    }

    fn seal(&self, step: &StepId, attempt: Attempt) -> Vec<OutputFile> {
        self.files.seal(step, attempt).unwrap_or_else(|error| {
            tracing::warn!(%step, attempt, %error, "what a step printed is not tied to the journal");
            Vec::new()
        })
    }

    fn ended(&self, step: &StepId, attempt: Attempt) -> Option<String> {
        let lost = self.files.close(step, attempt)?;
        let lines = if lost.lines == 1 { "1 line".to_owned() } else { format!("{} lines", lost.lines) };
        Some(format!("{lines} of its output could not be stored: {}", lost.reason))
    }
}

/// Requests that other processes leave in the run's inbox.
pub(super) struct InboxSource {
    inbox: Inbox,
    /// What went wrong when it was last looked at: it is looked at five times a second, and told once.
    trouble: Option<String>,
}

impl InboxSource {
    pub(super) fn of(inbox: Inbox) -> Self {
        Self { inbox, trouble: None }
    }

    fn tell(&mut self, error: &runs::Error) {
        let text = match std::error::Error::source(error) {
            Some(cause) => format!("{error}: {cause}"),
            None => error.to_string(),
        };
        if self.trouble.as_ref() != Some(&text) {
            tracing::warn!("{text}; what people ask of the run may have to wait");
            self.trouble = Some(text);
        }
    }
}

impl RequestSource for InboxSource {
    fn poll(&mut self) -> Vec<(RequestId, Request)> {
        let pending = match self.inbox.pending() {
            Ok(pending) => pending,
            Err(error) => {
                self.tell(&error);
                return Vec::new();
            }
        };
        let mut wishes = Vec::new();
        let mut trouble = None;
        for entry in pending {
            match entry {
                Ok(pending) => wishes.push((pending.id, pending.request)),
                Err(error @ runs::Error::BadRequest { .. }) => {
                    tracing::warn!(%error, "a request was set aside");
                }
                Err(error) => trouble = trouble.or(Some(error)),
            }
        }
        match trouble {
            Some(error) => self.tell(&error),
            None => self.trouble = None,
        }
        wishes
    }

    fn done(&mut self, id: RequestId) {
        if let Err(error) = self.inbox.remove(id) {
            tracing::warn!(%error, "a granted request is still in the inbox");
        }
    }
}
