//! Runs of steps that do nothing, driven in this process as the program drives them: locks, journal, output, inbox and
//! redaction are the real ones.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use lifeboat_engine::clock::{Clock, SystemClock};
use lifeboat_engine::journal::{Header, Journal};
use lifeboat_engine::model::event::{Done, EventKind, Person};
use lifeboat_engine::model::{Attempt, Mode, Request, RunId, RunOutcome, StepId, Stream};
use lifeboat_engine::plan::{Plan, Retry};
use lifeboat_engine::redact::Redactor;
use lifeboat_engine::run::driver::{OutputSink, Patience, Reporter, RequestSource, Setup, drive};
use lifeboat_engine::run::{RunState, Situation};
use lifeboat_engine::runs::{Inbox, OutputFiles, ResourceLocks, RunDir, StateDir, SystemProbe, Wanted};
use lifeboat_engine::secret::{SecretRef, Secrets};
use lifeboat_engine::step::{Effect, KindSpec, Registry, StepContext, StepError, StepKind};
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::disk::bytes_written;
use crate::table::{Spread, cpu};

/// What a run cost.
pub(crate) struct Cost {
    pub(crate) wall: Duration,
    pub(crate) cpu: Duration,
    /// What the kernel says that was sent to disks.
    pub(crate) written: u64,
    pub(crate) journal: u64,
    /// From the moment at which the start of a step was durable to the one at which its end was.
    pub(crate) steps: Spread,
}

/// Drives a new run of so many steps in a state directory within `dir`.
pub(crate) fn run(dir: &Path, steps: usize, at_once: usize) -> Cost {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let state = StateDir::open(&dir.join("state"), &SystemProbe).expect("a state directory");
    let (id, plan) = (RunId::generate(), plan(steps, at_once));
    let wanted = Wanted { run: id, by: "bench@bench".to_owned(), identities: BTreeSet::new() };
    let locks = ResourceLocks::acquire(&state, &wanted, &SystemClock).expect("nobody else is here");
    let run = state.create_run(id).expect("a directory for the run");
    let lock = run.lock(&SystemClock).expect("nobody else is here");
    let clocked = Clocked::default();
    let (wall, spent, written) = runtime.block_on(async {
        let setup = setup(&run, plan, &clocked).await;
        let (written, before, begin) = (bytes_written(), cpu(), Instant::now());
        let situation = tokio::spawn(drive(setup)).await.expect("no panic").expect("the journal takes it");
        assert_eq!(situation, Situation::Finished(RunOutcome::Succeeded));
        (begin.elapsed(), cpu() - before, bytes_written() - written)
    });
    locks.release().expect("they are ours");
    drop(lock);
    let journal = std::fs::metadata(run.path().join("journal.db")).map_or(0, |file| file.len());
    let taken = std::mem::take(&mut *clocked.taken.lock().expect("nobody panicked"));
    assert_eq!(taken.len(), steps, "every step has a start and an end");
    Cost { wall, cpu: spent, written, journal, steps: Spread::of(taken) }
}

/// Does nothing.
struct Nothing;

#[async_trait]
impl StepKind for Nothing {
    fn spec(&self) -> KindSpec {
        KindSpec::new("nothing", "Does nothing.", Effect::Idempotent)
    }

    async fn run(&self, _: &StepContext) -> Result<Done, StepError> {
        Ok(Done::default())
    }
}

/// Takes down how long each step takes.
#[derive(Clone, Default)]
struct Clocked {
    started: HashMap<StepId, Instant>,
    taken: Arc<Mutex<Vec<Duration>>>,
}

impl Reporter for Clocked {
    fn on_event(&mut self, _: i64, event: &EventKind) {
        match event {
            EventKind::AttemptStarted { step, .. } => {
                self.started.insert(step.clone(), Instant::now());
            }
            EventKind::StepFinished { step, .. } => {
                let taken = self.started.remove(step).map(|begin| begin.elapsed());
                self.taken.lock().expect("nobody panicked").extend(taken);
            }
            _ => {}
        }
    }
}

/// Output as the program keeps it.
struct Output {
    redactor: Redactor,
    files: OutputFiles,
}

impl OutputSink for Output {
    fn ended(&self, step: &StepId, attempt: Attempt) -> Option<String> {
        self.files.close(step, attempt);
        None
    }

    fn line(&self, step: &StepId, attempt: Attempt, stream: Stream, line: &str) -> String {
        let line = self.redactor.text(line).into_owned();
        self.files.line(step, attempt, stream, &line).expect("the disk takes it");
        line
    }
}

/// Requests as the program finds them.
struct Requests(Inbox);

impl RequestSource for Requests {
    fn poll(&mut self) -> Vec<(Uuid, Request)> {
        let pending = self.0.pending().expect("the inbox can be read");
        pending.into_iter().map(|pending| pending.expect("a request")).map(|it| (it.id, it.request)).collect()
    }

    fn done(&mut self, id: Uuid) {
        self.0.remove(id).expect("it was read");
    }
}

/// Two secrets, so that everything is searched for them.
fn secrets() -> Secrets {
    let mut secrets = Secrets::default();
    for name in ["DATABASE_PASSWORD", "APP_KEY"] {
        secrets.insert(SecretRef::Env(name.to_owned()), format!("not in any text: {name}").into());
    }
    secrets
}

async fn setup(run: &RunDir, plan: Plan, clocked: &Clocked) -> Setup {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let header =
        Header { run: run.id(), engine: "bench".into(), created_ms: clock.now_ms(), plan: plan.clone() };
    let journal = Journal::create(run.path(), header, Arc::clone(&clock)).expect("a new journal");
    let declared = EventKind::RunDeclared {
        plan_digest: plan.digest(),
        incident_at_ms: clock.now_ms(),
        by: Person { name: "bench".to_owned(), uid: 0 },
        inputs: Map::new(),
        engine: "bench".to_owned(),
    };
    let mut state = RunState::new(&plan);
    state.apply(&declared).expect("the first event");
    journal.append(vec![declared]).await.expect("the declaration");
    let mut registry = Registry::new();
    registry.register(Nothing);
    let secrets = secrets();
    let redactor = Redactor::new(&secrets);
    Setup {
        run: run.id(),
        plan: Arc::new(plan),
        registry: Arc::new(registry),
        journal,
        state,
        dir: run.path().to_owned(),
        secrets: Arc::new(secrets),
        output: Arc::new(Output { redactor: redactor.clone(), files: run.output() }),
        redactor,
        clock,
        reporters: vec![Box::new(clocked.clone())],
        controls: mpsc::channel(1).1,
        requests: Box::new(Requests(run.inbox())),
        when_held: Patience::Leave,
        when_waiting: Patience::Leave,
    }
}

/// Steps in a chain, or in a group that runs so many at once.
fn plan(steps: usize, at_once: usize) -> Plan {
    let group = (at_once > 1).then_some("all");
    let groups: Vec<_> = group
        .iter()
        .map(|id| {
            json!({
                "id": id, "title": "All", "parent": null, "parallel": true, "max_parallel": at_once, "budget": null,
                "milestone": null, "recovered": false
            })
        })
        .collect();
    let plan = json!({
        "format": Plan::FORMAT, "project": "bench", "project_dir": "/", "runbook": "bench", "title": "Bench",
        "owner": null, "environment": "bench", "protected": false, "mode": Mode::Recovery, "commit": null,
        "objective": { "rto": null, "rpo": null }, "milestones": {}, "roles": {}, "inputs": {}, "vars": {},
        "resources": {}, "secrets": {}, "auto_approvals": false, "groups": groups, "sources": {},
        "steps": (0..steps).map(|at| step(at, group)).collect::<Vec<_>>()
    });
    serde_json::from_value(plan).expect("a plan")
}

fn step(at: usize, group: Option<&str>) -> Value {
    let before = at.checked_sub(1).filter(|_| group.is_none());
    let needs: Vec<_> =
        before.map(|at| json!({ "step": format!("s{at}"), "on": "success" })).into_iter().collect();
    json!({
        "id": format!("s{at}"), "title": "Nothing", "place": "bench.yaml:1", "group": group, "always": false,
        "needs": needs, "conditions": [], "uses": "nothing", "with": {}, "effect": "idempotent", "expect": [],
        "retry": Retry::default(), "timeout": null, "budget": null, "milestone": null, "recovered": false,
        "on_error": "abort", "destroys": [], "reads": [], "writes": [], "restores": false
    })
}
