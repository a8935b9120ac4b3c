//! What the driver of a run is given of its directory.

use std::sync::atomic::{AtomicBool, Ordering};

use uuid::Uuid;

use super::inbox::{Inbox, Pending};
use super::output::OutputFiles;
use crate::model::request::Request;
use crate::model::{Attempt, StepId, Stream};
use crate::redact::Redactor;
use crate::run::driver::{OutputSink, RequestSource};

/// Removes secrets from output and stores it.
#[derive(Debug)]
pub struct RedactedOutput {
    files: OutputFiles,
    redactor: Redactor,
    has_failed: AtomicBool,
}

impl RedactedOutput {
    /// Puts both together.
    pub fn new(files: OutputFiles, redactor: Redactor) -> Self {
        Self { files, redactor, has_failed: AtomicBool::new(false) }
    }
}

impl OutputSink for RedactedOutput {
    /// Output that cannot be stored does not stop a recovery: it is told once.
    fn line(&self, step: &StepId, attempt: Attempt, stream: Stream, line: &str) -> String {
        let line = self.redactor.text(line).into_owned();
        if let Err(error) = self.files.line(step, attempt, stream, &line)
            && !self.has_failed.swap(true, Ordering::Relaxed)
        {
            tracing::warn!(%error, "the output of steps cannot be stored");
        }
        line
    }
}

impl RequestSource for Inbox {
    fn poll(&mut self) -> Vec<(Uuid, Request)> {
        let pending = self.pending().unwrap_or_else(|error| vec![Err(error)]);
        pending
            .into_iter()
            .filter_map(|pending| match pending {
                Ok(Pending { id, request }) => Some((id, request)),
                Err(error) => {
                    tracing::warn!(%error, "a request was not taken up");
                    None
                }
            })
            .collect()
    }

    fn done(&mut self, id: Uuid) {
        if let Err(error) = self.remove(id) {
            // It is known by its id, so it has no second effect.
            tracing::warn!(%error, "a request stays in the inbox");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::{SecretRef, Secrets};

    #[test]
    fn output_is_stored_and_shown_without_secrets() {
        let dir = tempfile::tempdir().unwrap();
        let mut secrets = Secrets::default();
        secrets.insert(SecretRef::Env("PW".into()), "hunter22!".to_owned().into());
        let output = RedactedOutput::new(OutputFiles::at(dir.path().to_owned()), Redactor::new(&secrets));
        let step = StepId::new("base").unwrap();
        assert_eq!(output.line(&step, 1, Stream::Stderr, "login hunter22! ok"), "login *** ok");
        assert_eq!(output.files.read(&step, 1, Stream::Stderr).unwrap(), b"login *** ok\n");
    }
}
