//! Runs one step the way the engine does, and remembers what it reported.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use jiff::Timestamp;
use lifeboat_engine::expr;
use lifeboat_engine::model::event::{Answer, Done, Person, Question};
use lifeboat_engine::model::evidence::{Created, Progress, Stream};
use lifeboat_engine::model::ids::{RunId, StepId};
use lifeboat_engine::model::outcome::Mode;
use lifeboat_engine::resource::{Access, Resource, System};
use lifeboat_engine::secret::{SecretRef, Secrets};
use lifeboat_engine::step::{
    Probe, Registry, StepContext, StepError, StepInfo, StepLink, StepParts, WorkDir,
};
use lifeboat_engine::value::Type;
use secrecy::SecretString;
use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;

use super::keeper;
use super::killed::Reaper;

/// What steps reported, in order.
#[derive(Debug, Default)]
pub struct Reported {
    pub progress: Vec<Progress>,
    pub lines: Vec<(Stream, String)>,
    /// By step, then by key.
    pub recorded: BTreeMap<String, Map<String, Value>>,
    /// In order; the same id replaces, as in the journal.
    pub created: Vec<Created>,
    pub questions: Vec<Question>,
    /// What will be answered; once it is empty, the first choice.
    pub answers: VecDeque<Answer>,
}

impl Reported {
    /// Returns the text of one stream, line by line.
    pub fn text(&self, stream: Stream) -> String {
        let lines = self.lines.iter().filter(|(of, _)| *of == stream).map(|(_, line)| line.as_str());
        lines.collect::<Vec<_>>().join("\n")
    }
}

/// A recording [`StepLink`].
#[derive(Debug)]
pub struct RigLink {
    step: String,
    run: RunId,
    reported: Arc<Mutex<Reported>>,
    reaper: Option<Arc<Reaper>>,
}

impl RigLink {
    fn reported(&self) -> MutexGuard<'_, Reported> {
        self.reported.lock().expect("no test panics while it holds this")
    }

    /// A moment before something is in the journal, or when it is there.
    fn moment(&self) {
        if let Some(reaper) = &self.reaper {
            reaper.keep(&self.reported().left(self.run));
            reaper.pass();
        }
    }

    fn before(&self) {
        if let Some(reaper) = &self.reaper {
            reaper.pass();
        }
    }
}

impl Reported {
    /// What another process finds of it: in the journal, and nowhere else.
    fn left(&self, run: RunId) -> Value {
        serde_json::json!({ "run": run, "recorded": self.recorded, "created": self.created })
    }
}

#[async_trait]
impl StepLink for RigLink {
    fn progress(&self, progress: Progress) {
        self.before();
        self.reported().progress.push(progress);
    }

    fn line(&self, stream: Stream, line: &str) {
        self.reported().lines.push((stream, line.to_owned()));
    }

    async fn record(&self, key: &str, value: Value) -> Result<(), StepError> {
        self.before();
        self.reported().recorded.entry(self.step.clone()).or_default().insert(key.to_owned(), value);
        self.moment();
        Ok(())
    }

    async fn created(&self, thing: Created) -> Result<(), StepError> {
        self.before();
        {
            let mut reported = self.reported();
            reported.created.retain(|known| known.id != thing.id);
            reported.created.push(thing);
        }
        self.moment();
        Ok(())
    }

    async fn removed(&self, id: &str, _: &str) -> Result<(), StepError> {
        self.before();
        self.reported().created.retain(|known| known.id != id);
        self.moment();
        Ok(())
    }

    async fn ask(&self, question: Question) -> Result<Answer, StepError> {
        let choice = question.choices.first().cloned().unwrap_or_default();
        let mut reported = self.reported();
        reported.questions.push(question);
        if let Some(answer) = reported.answers.pop_front() {
            return Ok(answer);
        }
        Ok(Answer { automatic: true, ..Answer::new(choice, Person { name: "test".into(), uid: 0 }) })
    }
}

/// An environment and a run, in a temporary directory. Steps run through the registry, with defaults filled in as
/// the engine fills them in; what one step recorded is there for its next attempt.
#[expect(missing_debug_implementations, reason = "holds secrets and the registry")]
pub struct Rig {
    pub mode: Mode,
    pub incident_at: Timestamp,
    pub cancel: CancellationToken,
    pub run_id: RunId,
    dir: PathBuf,
    /// Removes the directory, unless it is that of another process.
    own: Option<tempfile::TempDir>,
    reaper: Option<Arc<Reaper>>,
    resources: BTreeMap<String, Resource>,
    named_secrets: BTreeMap<String, SecretRef>,
    secrets: Vec<(SecretRef, String)>,
    reported: Arc<Mutex<Reported>>,
    registry: Registry,
}

impl Rig {
    /// Makes a drill without resources.
    pub fn drill() -> Self {
        let own = tempfile::Builder::new().prefix("lb-rig-").tempdir().expect("a temporary directory");
        keeper::watch(own.path());
        let mut rig = Self::bare();
        rig.dir = own.path().to_owned();
        rig.own = Some(own);
        rig
    }

    fn bare() -> Self {
        Self {
            mode: Mode::Drill,
            incident_at: Timestamp::now(),
            cancel: CancellationToken::new(),
            run_id: RunId::generate(),
            dir: PathBuf::new(),
            own: None,
            reaper: None,
            resources: BTreeMap::new(),
            named_secrets: BTreeMap::new(),
            secrets: Vec::new(),
            reported: Arc::default(),
            registry: lifeboat_steps::registry(),
        }
    }

    /// Goes on with the run of a process that is no more, in its directory, until the reaper ends it.
    pub fn of_another(dir: &Path, left: &Value, reaper: Reaper) -> Self {
        let mut rig = Self::bare();
        rig.dir = dir.to_owned();
        rig.reaper = Some(Arc::new(reaper));
        rig.resources = serde_json::from_value(left["resources"].clone()).expect("resources");
        rig.secrets = serde_json::from_value(left["secrets"].clone()).expect("secrets of the test");
        rig.run_id = serde_json::from_value(left["run"].clone()).expect("a run");
        rig.take_over(left);
        rig
    }

    /// What another process needs to go on with the run.
    pub fn left(&self) -> Value {
        let mut left = self.reported().left(self.run_id);
        left["resources"] = serde_json::to_value(&self.resources).expect("resources are plain data");
        left["secrets"] = serde_json::to_value(&self.secrets).expect("references and texts");
        left
    }

    /// Takes over what the journal of another process holds.
    pub fn take_over(&self, left: &Value) {
        let mut reported = self.reported();
        reported.recorded = serde_json::from_value(left["recorded"].clone()).expect("records");
        reported.created = serde_json::from_value(left["created"].clone()).expect("things");
    }

    /// Begins another run in the same directory.
    pub fn begin_run(&mut self) {
        self.end_servers();
        self.run_id = RunId::generate();
        *self.reported() = Reported::default();
    }

    pub fn children_lock(&self) -> PathBuf {
        self.dir.join("children.lock")
    }

    /// Adds a resource that may be written.
    pub fn resource(mut self, name: &str, system: System) -> Self {
        let resource = Resource { access: Access::Write, optional: false, system };
        self.resources.insert(name.to_owned(), resource);
        self
    }

    /// Adds a resource written as in an environment's file.
    pub fn resource_from(mut self, name: &str, written: Value) -> Self {
        self.set_resource(name, written);
        self
    }

    /// Replaces a resource by one written as in an environment's file.
    pub fn set_resource(&mut self, name: &str, written: Value) {
        let resource = serde_json::from_value(written).expect("a resource");
        self.resources.insert(name.to_owned(), resource);
    }

    /// Gives a secret reference its value.
    pub fn secret(mut self, reference: SecretRef, value: &str) -> Self {
        self.secrets.push((reference, value.to_owned()));
        self
    }

    /// Names a secret, as `secrets:` of an environment does.
    pub fn named_secret(mut self, name: &str, reference: SecretRef) -> Self {
        self.named_secrets.insert(name.to_owned(), reference);
        self
    }

    /// The project directory of the run; each step's work directory is below it.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What steps have reported so far.
    pub fn reported(&self) -> MutexGuard<'_, Reported> {
        self.reported.lock().expect("no test panics while it holds this")
    }

    /// Runs a step named after its kind; its outputs must be those that the kind declares.
    pub async fn run(&self, kind: &str, with: Value) -> Result<Done, StepError> {
        let step = kind.replace('.', "_");
        self.run_as(&step, kind, with).await
    }

    /// Runs a step under a name of its own.
    pub async fn run_as(&self, step: &str, kind: &str, with: Value) -> Result<Done, StepError> {
        let ctx = self.context(step, kind, with);
        let done = self.registry.kind(kind).expect("a registered kind").run(&ctx).await?;
        let spec = self.registry.spec(kind).expect("a registered kind");
        for output in &spec.outputs {
            assert!(
                !output.required || done.outputs.contains_key(&output.name),
                "{kind} did not set `{}`",
                output.name
            );
        }
        for name in done.outputs.keys() {
            assert!(spec.outputs.iter().any(|output| &output.name == name), "{kind} declares no `{name}`");
        }
        Ok(done)
    }

    /// Lets a kind take back what its step of that name has done, as an aborted run does.
    pub async fn undo(&self, kind: &str, with: Value) -> Result<Done, StepError> {
        let spec = self.registry.spec(kind).expect("a registered kind");
        assert!(spec.undoes.is_some(), "{kind} does not say what it undoes");
        let step = kind.replace('.', "_");
        let ctx = self.context(&step, kind, with);
        self.registry.kind(kind).expect("a registered kind").undo(&ctx).await
    }

    /// Removes what a step of a kind has made, newest first, as the end of a drill does; returns how that went within systems.
    pub async fn clean_up(&self, kind: &str) -> Vec<Result<String, StepError>> {
        use lifeboat_engine::model::evidence::CreatedKind;
        let created = self.reported().created.clone();
        let kind = self.registry.kind(kind).expect("a registered kind");
        let mut ends = Vec::new();
        for thing in created.iter().rev() {
            let CreatedKind::Within { resource, handle } = &thing.kind else {
                let removal = lifeboat_engine::run::cleanup::remove(thing);
                assert!(removal.removed, "{}", removal.proof);
                continue;
            };
            let ctx = self.context_with("clean_up", Value::Null);
            let end = kind.clean_up(&ctx, resource, handle).await;
            // Killed before the journal said so, it is done again.
            let again = kind.clean_up(&ctx, resource, handle).await;
            assert_eq!(again.is_ok(), end.is_ok(), "{end:?}, and then {again:?}");
            ends.push(end);
        }
        ends
    }

    /// The places of all that was made and is not known to be gone, where a place is a path.
    pub fn made_at(&self) -> Vec<PathBuf> {
        use lifeboat_engine::model::evidence::CreatedKind;
        let created = &self.reported().created;
        let path = |kind: &CreatedKind| match kind {
            CreatedKind::Directory { path } | CreatedKind::File { path } => Some(path.clone()),
            CreatedKind::MovedAside { to, .. } => Some(to.clone()),
            CreatedKind::Process { .. } | CreatedKind::Within { .. } => None,
        };
        created.iter().filter_map(|thing| path(&thing.kind)).collect()
    }

    /// Asks a guarded kind whether its work is done.
    pub async fn probe(&self, kind: &str, with: Value) -> Result<Probe, StepError> {
        let step = kind.replace('.', "_");
        let ctx = self.context(&step, kind, with);
        self.registry.kind(kind).expect("a registered kind").probe(&ctx).await
    }

    /// Puts the context of a step together.
    pub fn context(&self, step: &str, kind: &str, with: Value) -> StepContext {
        self.context_with(step, self.with_defaults(kind, with))
    }

    /// Puts a context together for code that is no step kind.
    pub fn bare_context(&self) -> StepContext {
        self.context_with("bare", Value::Object(Map::new()))
    }

    fn context_with(&self, step: &str, with: Value) -> StepContext {
        let mut secrets = Secrets::default();
        for (reference, value) in &self.secrets {
            secrets.insert(reference.clone(), SecretString::from(value.clone()));
        }
        let recorded = self.reported().recorded.get(step).cloned().unwrap_or_default();
        StepContext::new(StepParts {
            info: self.info(step),
            cancel: self.cancel.clone(),
            with,
            resources: Arc::new(self.resources.clone()),
            named_secrets: Arc::new(self.named_secrets.clone()),
            secrets: Arc::new(secrets),
            recorded,
            link: Arc::new(RigLink {
                step: step.to_owned(),
                run: self.run_id,
                reported: Arc::clone(&self.reported),
                reaper: self.reaper.clone(),
            }),
        })
    }

    fn info(&self, step: &str) -> StepInfo {
        let work_dir = WorkDir::within(self.dir.join("steps"), step);
        let children_lock = self.children_lock();
        std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&children_lock)
            .expect("a lock file for children");
        StepInfo {
            run: self.run_id,
            runbook: "test".into(),
            environment: "test".into(),
            protected: false,
            mode: self.mode,
            step: StepId::new(step).expect("a step id"),
            attempt: 1,
            retries: false,
            incident_at: self.incident_at,
            project_dir: self.dir.clone(),
            work_dir,
            children_lock,
        }
    }

    fn with_defaults(&self, kind: &str, with: Value) -> Value {
        let spec = self.registry.spec(kind).expect("a registered kind");
        let Value::Object(mut with) = with else { panic!("parameters are a map") };
        for name in with.keys() {
            assert!(spec.params.iter().any(|param| &param.name == name), "{kind} has no parameter `{name}`");
        }
        for param in &spec.params {
            if let (Some(default), false) = (&param.default, with.contains_key(&param.name)) {
                with.insert(param.name.clone(), default.clone());
            }
            assert!(!param.required || with.contains_key(&param.name), "{kind} needs `{}`", param.name);
            // Defaults within a map are filled in as well.
            if let (Some(value), Type::List(_) | Type::Object(_)) = (with.get(&param.name), &param.ty)
                && let Ok(fitted) = expr::fit(value, &param.ty)
            {
                with.insert(param.name.clone(), fitted);
            }
        }
        Value::Object(with)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.end_servers();
        drop(self.own.take());
    }
}

impl Rig {
    /// Ends the servers that steps have started.
    fn end_servers(&self) {
        use lifeboat_engine::model::evidence::CreatedKind;
        use lifeboat_steps::process::{Identity, identity};
        let created = std::mem::take(&mut self.reported().created);
        for thing in created {
            let CreatedKind::Process { pid, start_ticks, boot_id, .. } = thing.kind else { continue };
            let server = Identity { pid, start_ticks, boot_id };
            // QUIT, on which a postmaster ends its children, too.
            drop(identity::signal(&server, 3));
            // A postmaster gives its children five seconds, and ends when they are gone.
            let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
            while server.is_alive() && std::time::Instant::now() < deadline {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            // Who runs the tests in the background of a script has QUIT ignored, and so have servers without a handler.
            drop(identity::signal(&server, 9));
        }
    }
}
