use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use secrecy::SecretString;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;

use super::{StepError, WorkDir};
use crate::code;
use crate::fence::{Fence, Origin};
use crate::model::event::{Answer, Question};
use crate::model::evidence::{Created, Progress, Stream};
use crate::model::ids::{Attempt, RunId, StepId};
use crate::model::outcome::Mode;
use crate::redact::Redactor;
use crate::resource::{Resource, System, maker};
use crate::runs::Past;
use crate::secret::{SecretRef, Secrets};

/// Facts about the run and the attempt that a step may use.
#[derive(Clone, Debug)]
pub struct StepInfo {
    pub run: RunId,
    pub runbook: String,
    pub environment: String,
    pub protected: bool,
    pub mode: Mode,
    pub step: StepId,
    pub attempt: Attempt,
    /// True if the step is repeated after a transient failure: a shell step then calls a non-zero exit transient.
    pub retries: bool,
    pub incident_at: Timestamp,
    /// The directory of `lifeboat.yaml`.
    pub project_dir: PathBuf,
    pub work_dir: WorkDir,
    /// Open this file and hold a shared lock on it in every child, so that survivors of a crash are found.
    pub children_lock: PathBuf,
}

impl StepInfo {
    /// The same in every attempt of this step of this run: for effects that a server can deduplicate.
    pub fn idempotency_key(&self) -> String {
        format!("{}/{}", self.run, self.step)
    }
}

/// The way from an attempt to the journal. The engine implements it; tests may too.
#[async_trait]
pub trait StepLink: Send + Sync {
    /// Reports progress; may be dropped or thinned out.
    fn progress(&self, progress: Progress);
    /// Passes on a line of output; redacted, stored in the step's files and streamed.
    fn line(&self, stream: Stream, line: &str);
    /// Stores a fact durably before it returns; the same key replaces.
    async fn record(&self, key: &str, value: Value) -> Result<(), StepError>;
    /// Records durably that a thing is about to be made.
    async fn created(&self, thing: Created) -> Result<(), StepError>;
    /// Records durably that a thing recorded as made is gone, with how that is known.
    async fn removed(&self, id: &str, proof: &str) -> Result<(), StepError>;
    /// Asks a person and waits; after a crash an answer already given is returned at once.
    async fn ask(&self, question: Question) -> Result<Answer, StepError>;
}

/// Everything one attempt of one step is given.
pub struct StepContext {
    pub info: StepInfo,
    /// Resolves when the attempt must end: time limit, abort or signal. The step ends its children and returns.
    pub cancel: CancellationToken,
    with: Value,
    resources: Arc<BTreeMap<String, Resource>>,
    named_secrets: Arc<BTreeMap<String, SecretRef>>,
    secrets: Arc<Secrets>,
    recorded: Map<String, Value>,
    link: Arc<dyn StepLink>,
    fence: Option<Arc<Fence>>,
    past: Past,
}

/// The parts of a [`StepContext`].
#[expect(missing_debug_implementations, reason = "holds secrets")]
pub struct StepParts {
    pub info: StepInfo,
    pub cancel: CancellationToken,
    pub with: Value,
    pub resources: Arc<BTreeMap<String, Resource>>,
    pub named_secrets: Arc<BTreeMap<String, SecretRef>>,
    pub secrets: Arc<Secrets>,
    /// What earlier attempts recorded.
    pub recorded: Map<String, Value>,
    pub link: Arc<dyn StepLink>,
}

impl StepContext {
    /// Puts a context together.
    pub fn new(parts: StepParts) -> Self {
        let StepParts { info, cancel, with, resources, named_secrets, secrets, recorded, link } = parts;
        Self {
            info,
            cancel,
            with,
            resources,
            named_secrets,
            secrets,
            recorded,
            link,
            fence: None,
            past: Past::UNKNOWN,
        }
    }

    /// Adds what the run must keep away from.
    #[must_use]
    pub fn fenced(self, fence: Arc<Fence>) -> Self {
        Self { fence: Some(fence), ..self }
    }

    /// Adds what earlier runs have measured.
    #[must_use]
    pub fn after(self, past: Past) -> Self {
        Self { past, ..self }
    }

    /// Returns what earlier runs have measured.
    pub fn past(&self) -> &Past {
        &self.past
    }

    /// Refuses a system that a step is about to make or write where a protected environment has one.
    ///
    /// Blocks: looks at the file system and asks for addresses. The engine does this for every system that a step
    /// declares to write; a step that makes one calls it itself, before its first write.
    pub fn keep_away(&self, name: &str, system: &Resource, origin: Origin) -> Result<(), StepError> {
        let Some(fence) = &self.fence else { return Ok(()) };
        let Err(breach) = fence.check(system, origin) else { return Ok(()) };
        let place = format!("`{}` of the protected environment `{}`", breach.name, breach.environment);
        let what = match maker(name) {
            Some(step) => format!("what `{step}` makes"),
            None => format!("`{name}` of `{}`", self.info.environment),
        };
        let message = format!("{what} would be written, and is {place}: {}", breach.place);
        Err(StepError::permanent(code::LB0341, message).help(format!(
            "nothing was written by this step; give environments/{}.yaml a system of its own and begin a new run",
            self.info.environment
        )))
    }

    /// Refuses a directory that a step is about to fill where a protected environment has a system. Blocks.
    pub fn keep_away_from(&self, dir: &Path) -> Result<(), StepError> {
        let Some(fence) = &self.fence else { return Ok(()) };
        let Err(breach) = fence.check_path(dir) else { return Ok(()) };
        let message = format!(
            "{} would be written, and is `{}` of the protected environment `{}`: {}",
            dir.display(),
            breach.name,
            breach.environment,
            breach.place
        );
        Err(StepError::permanent(code::LB0341, message)
            .help("nothing was written by this step; name another directory and begin a new run"))
    }

    /// Returns a context for a part of the work: with parameters of its own, and with a system that is being made.
    ///
    /// A kind whose work is made of others' runs them through this. Facts, things, progress and the time limit are
    /// those of the whole step.
    #[must_use]
    pub fn part(&self, with: Value, name: &str, system: Resource) -> Self {
        let mut resources = (*self.resources).clone();
        resources.insert(name.to_owned(), system);
        Self {
            info: self.info.clone(),
            cancel: self.cancel.clone(),
            with,
            resources: Arc::new(resources),
            named_secrets: Arc::clone(&self.named_secrets),
            secrets: Arc::clone(&self.secrets),
            recorded: self.recorded.clone(),
            link: Arc::clone(&self.link),
            fence: self.fence.clone(),
            past: self.past.clone(),
        }
    }

    /// Returns a context for a look that another kind takes within this step: with parameters and a way to the journal of
    /// its own, and a token that ends the look without ending the step.
    #[must_use]
    pub fn look(&self, with: Value, link: Arc<dyn StepLink>) -> Self {
        Self {
            info: self.info.clone(),
            cancel: self.cancel.child_token(),
            with,
            resources: Arc::clone(&self.resources),
            named_secrets: Arc::clone(&self.named_secrets),
            secrets: Arc::clone(&self.secrets),
            recorded: Map::new(),
            link,
            fence: self.fence.clone(),
            past: self.past.clone(),
        }
    }

    /// Returns the parameters, evaluated and checked against the kind's description, in the step's own type.
    pub fn params<T: DeserializeOwned>(&self) -> Result<T, StepError> {
        serde_path(&self.with)
    }

    /// Returns a directory of this step's own inside the run's state, the same in every attempt, which exists from now on.
    pub fn work_dir(&self) -> Result<&Path, StepError> {
        self.info.work_dir.path()
    }

    /// Returns the evaluated parameters as they are in the journal.
    pub fn with(&self) -> &Value {
        &self.with
    }

    /// Returns a resource of the environment.
    pub fn resource(&self, name: &str) -> Result<&Resource, StepError> {
        self.resources.get(name).ok_or_else(|| {
            if let Some(step) = maker(name) {
                return never_made(step);
            }
            StepError::permanent(
                code::LB0305,
                format!("the environment `{}` has no resource `{name}`", self.info.environment),
            )
            .help("name one of its resources, or add it to the environment's file")
        })
    }

    /// Returns all resources of the environment by name.
    pub fn resources(&self) -> &BTreeMap<String, Resource> {
        &self.resources
    }

    /// Returns a resource as the system that `pick` selects, such as a Postgres cluster.
    pub fn system<'a, T>(
        &'a self,
        name: &str,
        pick: impl FnOnce(&'a System) -> Option<&'a T>,
    ) -> Result<&'a T, StepError> {
        let resource = self.resource(name)?;
        pick(&resource.system).ok_or_else(|| {
            StepError::permanent(
                code::LB0305,
                format!("the resource `{name}` is a {}, which this step cannot use", resource.kind()),
            )
        })
    }

    /// Returns the value of a secret.
    pub fn secret(&self, reference: &SecretRef) -> Result<&SecretString, StepError> {
        self.secrets.get(reference).ok_or_else(|| {
            StepError::permanent(code::LB0306, "a secret of this step was not resolved when the run began")
                .help("`lifeboat resume` resolves all secrets again")
        })
    }

    /// Returns what finds the secrets of the run: for kinds that must cut a text, see [`Redactor::cut`].
    pub fn redactor(&self) -> &Redactor {
        self.secrets.redactor()
    }

    /// Returns the reference behind a name of the environment's `secrets`, or `RESOURCE.password`.
    pub fn named_secret(&self, name: &str) -> Option<&SecretRef> {
        self.named_secrets.get(name)
    }

    /// Returns what an earlier attempt, or this one, recorded under a key before this attempt began.
    pub fn recorded(&self, key: &str) -> Option<&Value> {
        self.recorded.get(key)
    }

    /// Stores a small fact durably, for a later attempt to find.
    pub async fn record(&self, key: &str, value: impl Into<Value> + Send) -> Result<(), StepError> {
        self.link.record(key, value.into()).await
    }

    /// Records durably that a thing is about to be made, before it is.
    pub async fn created(&self, thing: Created) -> Result<(), StepError> {
        self.link.created(thing).await
    }

    /// Records durably that a thing of this run is gone, with how that is known; one that is not known does no harm.
    pub async fn removed(&self, id: &str, proof: &str) -> Result<(), StepError> {
        self.link.removed(id, proof).await
    }

    /// Asks a person and waits for the answer.
    pub async fn ask(&self, question: Question) -> Result<Answer, StepError> {
        self.link.ask(question).await
    }

    /// Reports progress.
    pub fn progress(&self, progress: Progress) {
        self.link.progress(progress);
    }

    /// Passes on a line of output.
    pub fn line(&self, stream: Stream, line: &str) {
        self.link.line(stream, line);
    }

    /// Returns the way to the journal, for work that outlives a borrow of the context.
    pub fn link(&self) -> Arc<dyn StepLink> {
        Arc::clone(&self.link)
    }

    /// Resolves when the attempt must end.
    pub async fn cancelled(&self) {
        self.cancel.cancelled().await;
    }
}

impl std::fmt::Debug for StepContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StepContext").field("info", &self.info).finish_non_exhaustive()
    }
}

fn never_made(step: &str) -> StepError {
    StepError::permanent(code::LB0340, format!("`{step}` has made no system in this run"))
        .help("it was skipped, or a person marked it as done; a new run makes one")
}

fn serde_path<T: DeserializeOwned>(with: &Value) -> Result<T, StepError> {
    serde_json::from_value(with.clone()).map_err(|error| {
        StepError::permanent(code::LB0304, format!("the parameters of this step do not fit: {error}"))
            .help("compare them with `lifeboat steps KIND`")
    })
}
