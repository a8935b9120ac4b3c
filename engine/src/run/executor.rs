//! Runs attempts: one task each, with a time limit, an orderly end and nothing left behind.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Map, Value};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::code;
use crate::compile::{written, written_paths};
use crate::crash::{self, Point};
use crate::fence::{Fence, Origin};
use crate::model::event::{AttemptResult, Done};
use crate::model::ids::{Attempt, RunId, StepId};
use crate::model::outcome::{Failure, FailureKind, Mode};
use crate::plan::{Plan, PlannedStep};
use crate::resource::{Resource, maker};
use crate::runs::Past;
use crate::secret::{SecretRef, Secrets};
use crate::step::{Probe, Registry, StepContext, StepError, StepInfo, StepKind, StepParts, WorkDir};

use super::link::{AttemptLink, Message, OutputSink};
use super::poll::{Poll, PollLink, Seen};
use super::unit::Unit;
use super::within::{Cleaner, Maker, Quiet};

/// How long an attempt has to end itself once it is told to; its children get less, so that it can report on them.
pub(super) const GRACE: Duration = Duration::from_secs(30);

/// How long people have to answer in a drill, if the step says nothing else.
const DRILL_PATIENCE: Duration = Duration::from_secs(30 * 60);

/// What attempts of a run share.
pub(super) struct Executor {
    plan: Arc<Plan>,
    registry: Arc<Registry>,
    run: RunId,
    incident_at: Timestamp,
    /// The directory of the run's state.
    dir: PathBuf,
    resources: Arc<BTreeMap<String, Resource>>,
    fence: Arc<Fence>,
    named_secrets: Arc<BTreeMap<String, SecretRef>>,
    secrets: Arc<Secrets>,
    output: Arc<dyn OutputSink>,
    messages: mpsc::Sender<Message>,
    running: HashMap<StepId, CancellationToken>,
}

/// What an executor is made from.
pub(super) struct ExecutorParts {
    pub(super) plan: Arc<Plan>,
    pub(super) registry: Arc<Registry>,
    pub(super) run: RunId,
    pub(super) incident_at: Timestamp,
    pub(super) dir: PathBuf,
    pub(super) secrets: Arc<Secrets>,
    pub(super) output: Arc<dyn OutputSink>,
    pub(super) messages: mpsc::Sender<Message>,
}

/// One attempt as the dispatcher wants it.
pub(super) struct Launch {
    pub(super) unit: Unit,
    pub(super) attempt: Attempt,
    pub(super) with: Value,
    pub(super) probe: bool,
    /// What `until` may read.
    pub(super) names: Map<String, Value>,
    pub(super) recorded: Map<String, Value>,
    /// The systems that earlier steps have made.
    pub(super) made: BTreeMap<String, Resource>,
}

impl Executor {
    pub(super) fn new(parts: ExecutorParts) -> Self {
        let ExecutorParts { plan, registry, run, incident_at, dir, secrets, output, messages } = parts;
        Self {
            resources: Arc::new(plan.resources.clone()),
            fence: Arc::new(Fence::of(&plan)),
            named_secrets: Arc::new(plan.secrets.clone()),
            plan,
            registry,
            run,
            incident_at,
            dir,
            secrets,
            output,
            messages,
            running: HashMap::new(),
        }
    }

    /// Starts an attempt whose start is durable. Its end arrives as a message.
    pub(super) fn launch(&mut self, launch: Launch) {
        let plan = Arc::clone(&self.plan);
        let step = plan.at(launch.unit.position);
        let cancel = CancellationToken::new();
        let (id, attempt, position) = (launch.unit.id(&plan), launch.attempt, launch.unit.position);
        self.running.insert(id.clone(), cancel.clone());
        let (messages, output) = (self.messages.clone(), Arc::clone(&self.output));
        let work = self.prepare(step, launch, &cancel);
        let limit = self.time_limit(step);
        crash::point(match (plan.undo_at(position).is_some(), step.always) {
            (true, _) => Point::UndoLaunched,
            (false, true) => Point::AlwaysLaunched,
            (false, false) => Point::AttemptLaunched,
        });
        tokio::spawn(async move {
            let (result, printed) = match work {
                Ok(work) => {
                    let link = Arc::clone(&work.link);
                    (work.carry_out(limit, &cancel).await, link.seal().await)
                }
                Err(error) => (failed(&error), Vec::new()),
            };
            let result = with_loss(result, output.ended(&id, attempt));
            crash::point(Point::AttemptEnded);
            // If nobody listens, the engine is ending and finds the attempt in the journal on resume.
            let _ = messages.send(Message::Ended { step: id, attempt, result, output: printed }).await;
        });
    }

    /// Where what steps print is kept.
    pub(super) fn output(&self) -> Arc<dyn OutputSink> {
        Arc::clone(&self.output)
    }

    /// Tells an attempt to end.
    pub(super) fn end(&mut self, unit: Unit) {
        if let Some(cancel) = self.running.get(&unit.id(&self.plan)) {
            cancel.cancel();
        }
    }

    /// Tells every attempt to end.
    pub(super) fn end_all(&mut self) {
        self.running.values().for_each(CancellationToken::cancel);
    }

    /// Takes note that an attempt has ended.
    pub(super) fn ended(&mut self, step: &StepId) {
        self.running.remove(step);
    }

    /// Says whether any attempt runs.
    pub(super) fn is_busy(&self) -> bool {
        !self.running.is_empty()
    }

    /// Says whether more than one attempt runs.
    pub(super) fn runs_several(&self) -> bool {
        self.running.len() > 1
    }

    fn time_limit(&self, step: &PlannedStep) -> Option<Duration> {
        let people = self.registry.spec(&step.uses).is_some_and(|spec| spec.waits_for_people);
        let patience = (people && self.plan.mode == Mode::Drill).then_some(DRILL_PATIENCE);
        step.timeout.map(|limit| limit.0).or(patience)
    }

    fn prepare(
        &self,
        step: &PlannedStep,
        launch: Launch,
        cancel: &CancellationToken,
    ) -> Result<Work, StepError> {
        let kind = self.kind(step)?;
        let id = launch.unit.id(&self.plan);
        // A kind undoes its own work under the name of the step that did it.
        let undo = self.plan.undo_at(launch.unit.position).filter(|undo| undo.built_in.is_some());
        let of = undo.map(|undo| launch.unit.element.map_or(undo.of.clone(), |at| undo.of.of_element(at)));
        let info = self.info(step, of.as_ref().unwrap_or(&id), launch.attempt);
        let link = Arc::new(AttemptLink {
            step: id,
            attempt: launch.attempt,
            messages: self.messages.clone(),
            output: Arc::clone(&self.output),
            last_progress: Mutex::new(None),
            printed: Mutex::default(),
        });
        let poll = step.until.clone().map(|until| Poll {
            until,
            names: launch.names,
            link: Arc::clone(&link),
            seen: Arc::new(Mutex::new(Seen::default())),
        });
        let context = StepContext::new(StepParts {
            info,
            cancel: cancel.clone(),
            with: launch.with,
            resources: self.resources_and(launch.made),
            named_secrets: Arc::clone(&self.named_secrets),
            secrets: Arc::clone(&self.secrets),
            recorded: launch.recorded,
            link: if poll.is_some() { Arc::new(PollLink(Arc::clone(&link))) } else { Arc::clone(&link) as _ },
        });
        let task = match (of.is_some(), launch.probe) {
            (true, _) => Task::Undo,
            (false, true) => Task::ProbeAndRun,
            (false, false) => Task::Run,
        };
        let context = context.fenced(Arc::clone(&self.fence)).after(Past::beside(&self.dir));
        let context = Arc::new(context);
        let (mut writes, mut paths) = (Vec::new(), Vec::new());
        if !self.fence.is_open() {
            writes = written(step, &self.registry);
            paths = written_paths(step, &self.registry, context.with());
        }
        Ok(Work { kind, context, task, poll, writes, paths, link })
    }

    /// Prepares the removal of what a step has made within a system.
    pub(super) fn cleaner(&self, maker: Maker) -> Result<Cleaner, StepError> {
        let step = self.plan.at(maker.position);
        let context = StepContext::new(StepParts {
            info: self.info(step, &maker.step, 1),
            cancel: CancellationToken::new(),
            with: Value::Object(Map::new()),
            resources: self.resources_and(maker.made),
            named_secrets: Arc::clone(&self.named_secrets),
            secrets: Arc::clone(&self.secrets),
            recorded: Map::new(),
            link: Arc::new(Quiet),
        });
        Ok(Cleaner { kind: self.kind(step)?, context: Arc::new(context.fenced(Arc::clone(&self.fence))) })
    }

    fn kind(&self, step: &PlannedStep) -> Result<Arc<dyn StepKind>, StepError> {
        self.registry
            .kind(&step.uses)
            .ok_or_else(|| StepError::permanent(code::LB0309, format!("no step kind `{}`", step.uses)))
    }

    /// Returns the systems of the environment, and those that steps have made.
    fn resources_and(&self, made: BTreeMap<String, Resource>) -> Arc<BTreeMap<String, Resource>> {
        let mut resources = Arc::clone(&self.resources);
        if !made.is_empty() {
            Arc::make_mut(&mut resources).extend(made);
        }
        resources
    }

    fn info(&self, step: &PlannedStep, id: &StepId, attempt: Attempt) -> StepInfo {
        StepInfo {
            run: self.run,
            runbook: self.plan.runbook.clone(),
            environment: self.plan.environment.clone(),
            protected: self.plan.protected,
            mode: self.plan.mode,
            step: id.clone(),
            attempt,
            retries: step.retry.attempts > 1,
            incident_at: self.incident_at,
            project_dir: self.plan.project_dir.clone(),
            work_dir: WorkDir::within(self.dir.join("work"), id.path()),
            children_lock: self.dir.join("children.lock"),
        }
    }
}

/// One attempt, ready to run.
struct Work {
    kind: Arc<dyn StepKind>,
    context: Arc<StepContext>,
    link: Arc<AttemptLink>,
    task: Task,
    poll: Option<Poll>,
    /// The systems that it writes and that must be compared with those of protected environments first.
    writes: Vec<String>,
    /// Directories that it fills, likewise.
    paths: Vec<PathBuf>,
}

/// What an attempt asks of the kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Task {
    Run,
    /// An earlier attempt may have done the work.
    ProbeAndRun,
    /// Takes the work of the step back.
    Undo,
}

impl Work {
    async fn carry_out(self, limit: Option<Duration>, cancel: &CancellationToken) -> AttemptResult {
        let (id, poll) = (self.context.info.step.clone(), self.poll.clone());
        // A task of its own, so that a panic in a step is a failure of that step only.
        let mut task = tokio::spawn(async move { self.perform().await });
        let joined = tokio::select! {
            joined = &mut task => Some(joined),
            () = expiry(limit) => None,
            () = cancel.cancelled() => {
                return match tokio::time::timeout(GRACE, &mut task).await {
                    Ok(Ok(Ok(done))) => AttemptResult::Succeeded { done },
                    _ => { task.abort(); AttemptResult::Interrupted }
                };
            }
        };
        match joined {
            Some(Ok(Ok(done))) => AttemptResult::Succeeded { done },
            // It was told to end at the same moment, and that is what it says.
            Some(Ok(Err(_))) if cancel.is_cancelled() => AttemptResult::Interrupted,
            Some(Ok(Err(error))) => failed(&error),
            Some(Err(panic)) => failed(&panicked(&panic)),
            None => {
                cancel.cancel();
                if let Ok(Ok(Ok(done))) = tokio::time::timeout(GRACE, &mut task).await {
                    return AttemptResult::Succeeded { done };
                }
                task.abort();
                let limit = limit.unwrap_or_default();
                poll.map_or_else(|| timed_out(id.as_str(), limit), |poll| poll.not_within(id.as_str(), limit))
            }
        }
    }

    async fn perform(self) -> Result<Done, StepError> {
        keep_away(Arc::clone(&self.context), self.writes.clone(), self.paths.clone()).await?;
        if self.task == Task::Undo {
            return self.kind.undo(&self.context).await;
        }
        if self.task == Task::ProbeAndRun
            && let Probe::Done(done) = self.kind.probe(&self.context).await?
        {
            return Ok(done);
        }
        match &self.poll {
            Some(poll) => poll.repeat(&*self.kind, &self.context).await,
            None => self.kind.run(&self.context).await,
        }
    }
}

/// Compares everything that is written with what protected environments name, as it is found at this moment.
pub(super) async fn keep_away(
    context: Arc<StepContext>,
    writes: Vec<String>,
    paths: Vec<PathBuf>,
) -> Result<(), StepError> {
    if writes.is_empty() && paths.is_empty() {
        return Ok(());
    }
    let compared = tokio::task::spawn_blocking(move || {
        let dirs = paths.iter().map(|path| context.info.project_dir.join(path));
        dirs.into_iter().try_for_each(|dir| context.keep_away_from(&dir))?;
        writes.iter().try_for_each(|name| {
            let origin = if maker(name).is_some() { Origin::Run } else { Origin::Environment };
            context.keep_away(name, context.resource(name)?, origin)
        })
    });
    compared.await.map_err(|error| panicked(&error))?
}

async fn expiry(limit: Option<Duration>) {
    match limit {
        Some(limit) => tokio::time::sleep(limit).await,
        None => std::future::pending().await,
    }
}

/// Says with the result of an attempt that not all of its output could be kept.
fn with_loss(result: AttemptResult, lost: Option<String>) -> AttemptResult {
    match (result, lost) {
        (AttemptResult::Succeeded { mut done }, Some(lost)) => {
            done.warnings.push(lost);
            AttemptResult::Succeeded { done }
        }
        (AttemptResult::Failed { mut failure, checks }, Some(lost)) => {
            failure.causes.push(lost);
            AttemptResult::Failed { failure, checks }
        }
        (result, _) => result,
    }
}

fn failed(error: &StepError) -> AttemptResult {
    AttemptResult::Failed { failure: error.to_failure(), checks: error.checks.clone() }
}

fn panicked(error: &tokio::task::JoinError) -> StepError {
    StepError::uncertain(code::LB0350, "the step ended through a defect in Lifeboat")
        .help("report it with the output of `lifeboat logs RUN`; the system may be half changed")
        .caused_by(error)
}

fn timed_out(id: &str, limit: Duration) -> AttemptResult {
    let failure = Failure {
        kind: FailureKind::Uncertain,
        code: code::LB0302.id.to_owned(),
        message: format!("`{id}` did not end within {}", humantime::format_duration(limit)),
        help: Some(
            "see its output with `lifeboat logs`; a step that is merely slow needs a longer `timeout`".into(),
        ),
        causes: Vec::new(),
    };
    AttemptResult::Failed { failure, checks: Vec::new() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::journal::test_support::plan;
    use crate::model::event::Done;
    use crate::model::evidence::Stream;
    use crate::redact::Redactor;
    use crate::step::{Effect, KindSpec};

    struct Kind {
        name: &'static str,
        people: bool,
    }

    #[async_trait::async_trait]
    impl StepKind for Kind {
        fn spec(&self) -> KindSpec {
            let spec = KindSpec::new(self.name, "Waits.", Effect::Read);
            KindSpec { waits_for_people: self.people, ..spec }
        }

        async fn run(&self, _: &StepContext) -> Result<Done, StepError> {
            Ok(Done::default())
        }
    }

    struct NoOutput;

    impl OutputSink for NoOutput {
        fn line(&self, _: &StepId, _: Attempt, _: Stream, line: &str) -> String {
            Redactor::default().text(line).into_owned()
        }
    }

    fn executor(mode: Mode) -> Executor {
        let mut registry = Registry::new();
        registry.register(Kind { name: "ask", people: true });
        registry.register(Kind { name: "work", people: false });
        Executor::new(ExecutorParts {
            plan: Arc::new(Plan { mode, ..plan() }),
            registry: Arc::new(registry),
            run: RunId::generate(),
            incident_at: Timestamp::UNIX_EPOCH,
            dir: PathBuf::new(),
            secrets: Arc::new(Secrets::default()),
            output: Arc::new(NoOutput),
            messages: mpsc::channel(1).0,
        })
    }

    #[test]
    fn people_have_half_an_hour_in_a_drill_and_all_the_time_in_a_recovery() {
        let limit = |mode: Mode, uses: &str, timeout: Option<&str>| {
            let step = json!({
                "id": "a", "title": "A", "place": "x.yaml:1", "group": null, "always": false, "needs": [],
                "conditions": [], "uses": uses, "with": {}, "effect": "read", "expect": [], "timeout": timeout,
                "retry": crate::plan::Retry::default(), "budget": null,
                "milestone": null, "recovered": false, "on_error": "abort", "destroys": [], "writes": [],
                "reads": [], "restores": false
            });
            executor(mode).time_limit(&serde_json::from_value(step).unwrap()).map(|limit| limit.as_secs())
        };
        assert_eq!(limit(Mode::Drill, "ask", None), Some(1800));
        assert_eq!(limit(Mode::Recovery, "ask", None), None);
        assert_eq!(limit(Mode::Drill, "ask", Some("2h")), Some(7200));
        assert_eq!(limit(Mode::Recovery, "ask", Some("10m")), Some(600));
        assert_eq!(limit(Mode::Drill, "work", None), None);
    }
}
