//! Whole runs of steps that do nothing, each of them durable: what the engine itself costs.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use lifeboat_engine::clock::SystemClock;
use lifeboat_engine::journal::{Header, Journal};
use lifeboat_engine::model::event::{Done, EventKind, Person};
use lifeboat_engine::model::{Attempt, Mode, Request, RunId, RunOutcome, StepId, Stream};
use lifeboat_engine::plan::{Plan, Retry};
use lifeboat_engine::redact::Redactor;
use lifeboat_engine::run::driver::{OutputSink, Patience, RequestSource, Setup, drive};
use lifeboat_engine::run::{RunState, Situation};
use lifeboat_engine::secret::Secrets;
use lifeboat_engine::step::{Effect, KindSpec, Registry, StepContext, StepError, StepKind};
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;

use crate::disk::{bytes_written, synced_write};
use crate::{cpu, long, ms, scratch};

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

struct NoOutput;

impl OutputSink for NoOutput {
    fn line(&self, _: &StepId, _: Attempt, _: Stream, line: &str) -> String {
        line.to_owned()
    }
}

struct NoRequests;

impl RequestSource for NoRequests {
    fn poll(&mut self) -> Vec<(uuid::Uuid, Request)> {
        Vec::new()
    }

    fn done(&mut self, _: uuid::Uuid) {}
}

/// What one run cost.
struct Cost {
    wall: Duration,
    cpu: Duration,
    written: u64,
    journal: u64,
}

/// Steps a second by how many run at once, and what a step costs beside one synced write.
pub(crate) fn parallel() {
    println!("\n| no-op steps | at once | steps a second | a step | CPU a step | synced writes a step |");
    println!("|---|---|---|---|---|---|");
    for (steps, at_once) in [(3_000, 1), (10_000, 10), (20_000, 100)] {
        let (sync, cost) = best(5, steps, at_once);
        let each = cost.wall / steps;
        println!(
            "| {steps} | {at_once} | {:.0} | {} | {} | {:.2} (one takes {}) |",
            f64::from(steps) / cost.wall.as_secs_f64(),
            ms(each),
            ms(cost.cpu / steps),
            each.as_secs_f64() / sync.as_secs_f64(),
            ms(sync)
        );
    }
}

/// Time and bytes by the length of a run.
pub(crate) fn length() {
    println!(
        "\n| no-op steps | at once | time | CPU a step | bytes written a step | journal, bytes a step |"
    );
    println!("|---|---|---|---|---|---|");
    let mut all = vec![(1_000, 1), (10_000, 1), (1_000, 100), (10_000, 100), (100_000, 100)];
    if long() {
        all.push((100_000, 1));
    }
    for (steps, at_once) in all {
        let (_, cost) = best(1, steps, at_once);
        println!(
            "| {steps} | {at_once} | {} | {} | {} | {} |",
            ms(cost.wall),
            ms(cost.cpu / steps),
            cost.written / u64::from(steps),
            cost.journal / u64::from(steps)
        );
    }
}

/// Returns the quickest of several runs, with the cost of a synced write just before it.
fn best(times: usize, steps: u32, at_once: usize) -> (Duration, Cost) {
    let all = (0..times).map(|_| {
        let dir = scratch();
        let sync = synced_write(dir.path(), 300);
        (sync, run(dir.path(), plan(steps, at_once)))
    });
    all.min_by_key(|(_, cost)| cost.wall).expect("at least one run")
}

fn run(dir: &Path, plan: Plan) -> Cost {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let setup = setup(dir, plan).await;
        let (written, before, begin) = (bytes_written(), cpu(), Instant::now());
        let situation = drive(setup).await.expect("the journal takes it");
        assert_eq!(situation, Situation::Finished(RunOutcome::Succeeded));
        let (wall, cpu, written) = (begin.elapsed(), cpu() - before, bytes_written() - written);
        let journal = std::fs::metadata(dir.join("journal.db")).map_or(0, |file| file.len());
        Cost { wall, cpu, written, journal }
    })
}

async fn setup(dir: &Path, plan: Plan) -> Setup {
    let (run, clock) = (RunId::generate(), Arc::new(SystemClock));
    let header = Header { run, engine: "bench".into(), created_ms: 0, plan: plan.clone() };
    let journal = Journal::create(dir, header, clock.clone()).expect("a new journal");
    let declared = EventKind::RunDeclared {
        plan_digest: String::new(),
        incident_at_ms: 0,
        by: Person { name: "bench".to_owned(), uid: 0 },
        inputs: Map::new(),
        engine: "bench".to_owned(),
    };
    let mut state = RunState::new(&plan);
    state.apply(&declared).expect("the first event");
    journal.append(vec![declared]).await.expect("the declaration");
    let mut registry = Registry::new();
    registry.register(Nothing);
    Setup {
        run,
        plan: Arc::new(plan),
        registry: Arc::new(registry),
        journal,
        state,
        dir: dir.to_owned(),
        secrets: Arc::new(Secrets::default()),
        redactor: Redactor::new(&Secrets::default()),
        output: Arc::new(NoOutput),
        clock,
        reporters: Vec::new(),
        controls: mpsc::channel(1).1,
        requests: Box::new(NoRequests),
        when_held: Patience::Leave,
        when_waiting: Patience::Leave,
    }
}

/// Steps in a chain, or in a group that runs so many at once.
fn plan(steps: u32, at_once: usize) -> Plan {
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

fn step(at: u32, group: Option<&str>) -> Value {
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
