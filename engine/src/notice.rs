//! Notices: what people who do not look at a run must hear of, and where it is sent.

use async_trait::async_trait;
use serde::Serialize;

use crate::model::ids::{RunId, StepId};
pub use crate::model::occasion::Occasion;
use crate::model::outcome::Mode;
use crate::resource::Resource;
use crate::secret::Secrets;
use crate::step::StepError;

/// One message about a run, redacted.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Notice {
    pub occasion: Occasion,
    pub run: RunId,
    pub runbook: String,
    pub environment: String,
    pub mode: Mode,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<StepId>,
    /// All of it as text for people: what, which run, what is needed, the command.
    pub message: String,
    /// The one command to type next.
    pub command: String,
    /// The number of the event that it tells of, and the hash of the chain there.
    pub seq: u64,
    pub hash: String,
}

impl Notice {
    /// The same for every delivery of this notice, so that a receiver can tell a repetition.
    pub fn idempotency_key(&self) -> String {
        format!("{}/{}/{}", self.run, self.occasion, self.seq)
    }
}

/// Posts notices. What kinds of channels there are is not the engine's business.
#[async_trait]
pub trait Messenger: Send + Sync {
    /// Posts one notice to a channel of kind `slack` or `webhook`, and returns when the channel has taken it.
    async fn post(&self, channel: &Resource, secrets: &Secrets, notice: &Notice) -> Result<(), StepError>;
}
