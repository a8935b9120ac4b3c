//! A step context without an engine: what a step reports is kept for the test to look at.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use lifeboat_engine::model::event::{Answer, Person, Question};
use lifeboat_engine::model::evidence::{Created, Progress, Stream};
use lifeboat_engine::model::ids::{RunId, StepId};
use lifeboat_engine::model::outcome::Mode;
use lifeboat_engine::resource::Resource;
use lifeboat_engine::secret::{SecretRef, Secrets};
use lifeboat_engine::step::{StepContext, StepError, StepInfo, StepLink, StepParts};
use lifeboat_engine::value::Field;
use secrecy::SecretString;
use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;

/// Keeps what a step reports; answers questions from a queue.
#[derive(Debug, Default)]
pub struct TestLink {
    seen: Mutex<Seen>,
}

/// What a step has reported so far.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub progress: Vec<Progress>,
    pub lines: Vec<(Stream, String)>,
    pub records: Map<String, Value>,
    pub created: Vec<Created>,
    pub questions: Vec<Question>,
    pub answers: VecDeque<Answer>,
}

impl TestLink {
    /// Returns a copy of what was reported so far.
    pub fn seen(&self) -> Seen {
        self.seen.lock().unwrap().clone()
    }

    /// Returns the text of all lines of one stream.
    pub fn text(&self, stream: Stream) -> String {
        let seen = self.seen();
        let lines = seen.lines.iter().filter(|(of, _)| *of == stream).map(|(_, line)| line.as_str());
        lines.collect::<Vec<_>>().join("\n")
    }

    /// Adds an answer to the queue.
    pub fn will_answer(&self, choice: &str, comment: Option<&str>) {
        let by = Person { name: "tester".into(), uid: 1000 };
        let answer = Answer { choice: choice.into(), by, comment: comment.map(Into::into), automatic: false };
        self.seen.lock().unwrap().answers.push_back(answer);
    }
}

#[async_trait]
impl StepLink for TestLink {
    fn progress(&self, progress: Progress) {
        self.seen.lock().unwrap().progress.push(progress);
    }

    fn line(&self, stream: Stream, line: &str) {
        self.seen.lock().unwrap().lines.push((stream, line.to_owned()));
    }

    async fn record(&self, key: &str, value: Value) -> Result<(), StepError> {
        self.seen.lock().unwrap().records.insert(key.to_owned(), value);
        Ok(())
    }

    async fn created(&self, thing: Created) -> Result<(), StepError> {
        let mut seen = self.seen.lock().unwrap();
        seen.created.retain(|other| other.id != thing.id);
        seen.created.push(thing);
        Ok(())
    }

    async fn ask(&self, question: Question) -> Result<Answer, StepError> {
        let mut seen = self.seen.lock().unwrap();
        seen.questions.push(question);
        Ok(seen.answers.pop_front().expect("the test has queued an answer"))
    }
}

/// Builds contexts for the steps of one test, in a directory of its own.
#[expect(missing_debug_implementations, reason = "holds secrets")]
pub struct Bench {
    pub dir: tempfile::TempDir,
    pub link: Arc<TestLink>,
    pub cancel: CancellationToken,
    pub mode: Mode,
    pub run: RunId,
    resources: BTreeMap<String, Resource>,
    named_secrets: BTreeMap<String, SecretRef>,
    values: Vec<(SecretRef, SecretString)>,
}

impl Bench {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        // Servers that run as another user must be able to pass through.
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        for sub in ["project", "work"] {
            std::fs::create_dir(dir.path().join(sub)).unwrap();
        }
        Self {
            dir,
            link: Arc::default(),
            cancel: CancellationToken::new(),
            mode: Mode::Drill,
            run: RunId::generate(),
            resources: BTreeMap::new(),
            named_secrets: BTreeMap::new(),
            values: Vec::new(),
        }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Adds a resource, written as in an environment's file.
    pub fn resource(mut self, name: &str, written: Value) -> Self {
        self.set_resource(name, written);
        self
    }

    /// Sets a resource, written as in an environment's file.
    pub fn set_resource(&mut self, name: &str, written: Value) {
        self.resources.insert(name.to_owned(), serde_json::from_value(written).unwrap());
    }

    /// Adds a named secret with its value; `RESOURCE.password` names that of a resource.
    pub fn secret(mut self, name: &str, value: &str) -> Self {
        let reference = SecretRef::Env(format!("TEST_{name}"));
        self.named_secrets.insert(name.to_owned(), reference.clone());
        self.values.push((reference, value.to_owned().into()));
        self
    }

    /// Makes the context of an attempt; records of earlier attempts are in it.
    pub fn ctx(&self, with: Value) -> StepContext {
        let mut secrets = Secrets::default();
        for (reference, value) in &self.values {
            secrets.insert(reference.clone(), value.clone());
        }
        StepContext::new(StepParts {
            info: self.info(),
            cancel: self.cancel.clone(),
            with,
            resources: Arc::new(self.resources.clone()),
            named_secrets: Arc::new(self.named_secrets.clone()),
            secrets: Arc::new(secrets),
            recorded: self.link.seen().records,
            link: self.link.clone(),
        })
    }

    /// Makes a context as [`Bench::ctx`] does, with the defaults of a kind filled in.
    pub fn ctx_for(&self, params: &[Field], with: Value) -> StepContext {
        let mut with = with;
        let given = with.as_object_mut().expect("parameters are a map");
        for field in params {
            if let Some(default) = &field.default {
                given.entry(&field.name).or_insert_with(|| default.clone());
            }
        }
        self.ctx(with)
    }

    fn info(&self) -> StepInfo {
        StepInfo {
            run: self.run,
            runbook: "restore".into(),
            environment: "sandbox".into(),
            protected: false,
            mode: self.mode,
            step: StepId::new("tested").unwrap(),
            attempt: 1,
            retries: false,
            incident_at: "2026-11-21T03:12:00Z".parse().unwrap(),
            project_dir: self.path().join("project"),
            work_dir: self.path().join("work"),
            children_lock: self.path().join("children.lock"),
        }
    }
}

impl Default for Bench {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Bench {
    /// Ends the servers that steps have started.
    fn drop(&mut self) {
        use lifeboat_engine::model::evidence::CreatedKind;
        for thing in self.link.seen().created {
            if let CreatedKind::Process { pid, start_ticks, boot_id, .. } = thing.kind {
                let identity = lifeboat_steps::process::Identity { pid, start_ticks, boot_id };
                // KILL, because nothing of it is needed any more.
                let _ = lifeboat_steps::process::identity::signal(&identity, 9);
            }
        }
    }
}

/// No parameters.
pub fn nothing() -> Value {
    json!({})
}
