//! Removes what steps have made within systems that are not the run's own: only their kinds know how.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use serde_json::Value;

use crate::code;
use crate::model::event::{Answer, Question};
use crate::model::evidence::{Created, Progress, Stream};
use crate::model::ids::StepId;
use crate::model::outcome::FailureKind;
use crate::resource::Resource;
use crate::step::{StepContext, StepError, StepKind, StepLink};

use super::cleanup::{self, Removal};
use super::executor::{GRACE, keep_away};

/// How long the removal of one thing may take: a server may have much to do before it lets go of one.
const LIMIT: Duration = Duration::from_secs(15 * 60);

/// For how long it is tried again when it fails in a way that may pass: as long as a server takes to start again.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long it waits in between.
const PAUSE: Duration = Duration::from_secs(1);

/// How a thing is removed.
pub(super) enum Removing {
    /// By the engine itself.
    Aside(Created),
    /// By the kind of the step that made it.
    Within { cleaner: Cleaner, resource: String, handle: Value },
    /// By nobody.
    Impossible(StepError),
}

impl Removing {
    pub(super) async fn carry_out(self) -> Removal {
        match self {
            Self::Aside(thing) => cleanup::remove_aside(thing).await,
            Self::Within { cleaner, resource, handle } => cleaner.remove(resource, handle).await,
            Self::Impossible(error) => refused(&error),
        }
    }
}

/// Which step has made a thing, and the systems that there are.
pub(super) struct Maker {
    pub(super) step: StepId,
    /// The position of the step in the plan.
    pub(super) position: usize,
    /// The systems that steps have made.
    pub(super) made: BTreeMap<String, Resource>,
}

/// What the kind of a step needs to remove a thing.
pub(super) struct Cleaner {
    pub(super) kind: Arc<dyn StepKind>,
    pub(super) context: Arc<StepContext>,
}

impl Cleaner {
    /// Removes a thing, compared first with what must be kept away from. Never takes much longer than its limit.
    pub(super) async fn remove(self, resource: String, handle: Value) -> Removal {
        let cancel = self.context.cancel.clone();
        // A task of its own, so that a panic in a kind leaves only this thing behind.
        let mut task = tokio::spawn(async move { self.try_to_remove(&resource, &handle).await });
        let joined = match tokio::time::timeout(LIMIT, &mut task).await {
            Ok(joined) => Some(joined),
            Err(_) => {
                cancel.cancel();
                tokio::time::timeout(GRACE, &mut task).await.ok()
            }
        };
        task.abort();
        match joined {
            Some(Ok(Ok(proof))) => Removal { removed: true, proof },
            Some(Ok(Err(error))) => refused(&error),
            Some(Err(_)) => Removal { removed: false, proof: "its removal ended through a defect".into() },
            None => {
                let limit = humantime::format_duration(LIMIT);
                Removal { removed: false, proof: format!("its removal did not end within {limit}") }
            }
        }
    }

    async fn try_to_remove(self, resource: &str, handle: &Value) -> Result<String, StepError> {
        keep_away(Arc::clone(&self.context), vec![resource.to_owned()], Vec::new()).await?;
        let begun = Instant::now();
        loop {
            match self.kind.clean_up(&self.context, resource, handle).await {
                Err(error) if may_pass(&error) && begun.elapsed() < PATIENCE => {
                    tokio::select! {
                        () = tokio::time::sleep(PAUSE) => {}
                        () = self.context.cancelled() => return Err(error),
                    }
                }
                end => return end,
            }
        }
    }
}

/// Says why something stays, with what to do about it.
fn refused(error: &StepError) -> Removal {
    let mut proof = error.to_string();
    for more in error.causes.iter().chain(&error.help) {
        proof.push_str("; ");
        proof.push_str(more);
    }
    Removal { removed: false, proof }
}

fn may_pass(error: &StepError) -> bool {
    matches!(error.kind, FailureKind::Transient | FailureKind::Uncertain)
}

/// The way to a journal that takes nothing: whoever removes makes nothing, and asks nobody.
pub(super) struct Quiet;

fn closed() -> StepError {
    StepError::permanent(code::LB0351, "what removes things at the end of a drill records nothing")
}

#[async_trait]
impl StepLink for Quiet {
    fn progress(&self, _: Progress) {}

    fn line(&self, _: Stream, _: &str) {}

    async fn record(&self, _: &str, _: Value) -> Result<(), StepError> {
        Err(closed())
    }

    async fn created(&self, _: Created) -> Result<(), StepError> {
        Err(closed())
    }

    async fn removed(&self, _: &str, _: &str) -> Result<(), StepError> {
        Err(closed())
    }

    async fn ask(&self, _: Question) -> Result<Answer, StepError> {
        Err(closed())
    }
}
