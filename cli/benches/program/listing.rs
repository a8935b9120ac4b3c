//! What it costs to find a run among ten thousand.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use lifeboat_engine::clock::SystemClock;
use lifeboat_engine::journal::{Header, Journal};
use lifeboat_engine::model::event::{AttemptResult, Done, EventKind, Person};
use lifeboat_engine::model::{Outcome, RunId, RunOutcome};
use lifeboat_engine::plan::Plan;
use lifeboat_engine::runs::{StateDir, SystemProbe};

use crate::measure::{repeat, run, scratch};
use crate::project;
use crate::table::ms;

const RUNS: usize = 10_000;

/// Lists and finds runs in a state directory with 10,000 of them, each with a journal of its own.
pub(crate) fn runs() {
    let dir = scratch();
    project::single(dir.path(), &project::asserts(20, false)).expect("the project can be written");
    run(dir.path(), &["run", "bench", "--env", "staging"]);
    let state = StateDir::open(&dir.path().join(".lifeboat/state"), &SystemProbe).expect("a state directory");
    let template = state.find("latest").expect("the run just made");
    let plan =
        Journal::open(template.path(), Arc::new(SystemClock)).expect("its journal").header().plan.clone();

    // Making them is not what is measured: where nothing has to reach a disk it takes seconds, not minutes.
    let made = Instant::now();
    let quick = quick();
    let many = StateDir::open(&quick.path().join("state"), &SystemProbe).expect("a state directory");
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let mut ids: Vec<RunId> = (1..RUNS).map(|_| declare(&many, &plan, &runtime)).collect();
    ids.push(declare(&many, &plan, &runtime));
    eprintln!("made {RUNS} runs in {}, each with {} bytes of plan", ms(made.elapsed()), plan_bytes(&plan));
    let yaml = dir.path().join("lifeboat.yaml");
    let text = std::fs::read_to_string(&yaml).expect("the project's file");
    std::fs::write(&yaml, format!("{text}state: {}\n", many.path().display())).expect("the project's file");

    let index = many.path().join("index.db");
    let rebuilt = repeat(3, || {
        drop(std::fs::remove_file(&index));
        run(dir.path(), &["runs"]).wall
    });
    row("`runs` of 10,000, index built anew, wall", rebuilt);
    row("`runs` of 10,000, wall", repeat(25, || run(dir.path(), &["runs"]).wall));
    row("`runs` of 10,000, CPU", repeat(25, || run(dir.path(), &["runs"]).cpu));
    let old = ids[RUNS / 2].short();
    row("`status RUN` among 10,000, wall", repeat(25, || run(dir.path(), &["status", &old]).wall));
    row("`status RUN` among 10,000, CPU", repeat(25, || run(dir.path(), &["status", &old]).cpu));
    row("`status` (latest) among 10,000, wall", repeat(25, || run(dir.path(), &["status"]).wall));
    row("`status` (latest) among 10,000, CPU", repeat(25, || run(dir.path(), &["status"]).cpu));
}

fn row(what: &str, (least, median): (std::time::Duration, std::time::Duration)) {
    println!("| {what} | {} | {} |", ms(least), ms(median));
}

/// A scratch directory in memory where there is one; the kernel keeps what is read in memory anyway.
fn quick() -> tempfile::TempDir {
    let memory = PathBuf::from("/dev/shm");
    match std::env::var_os("LIFEBOAT_BENCH_DIR") {
        None if memory.is_dir() => tempfile::tempdir_in(memory).expect("a scratch directory can be made"),
        _ => scratch(),
    }
}

fn plan_bytes(plan: &Plan) -> usize {
    serde_json::to_string(plan).map_or(0, |text| text.len())
}

/// Makes a run that has ended, with the events of all its steps.
fn declare(state: &StateDir, plan: &Plan, runtime: &tokio::runtime::Runtime) -> RunId {
    let run = RunId::generate();
    let dir = state.create_run(run).expect("a directory");
    let header = Header { run, engine: "bench".into(), created_ms: 0, plan: plan.clone() };
    let journal = Journal::create(dir.path(), header, Arc::new(SystemClock)).expect("a journal");
    let mut events = vec![EventKind::RunDeclared {
        plan_digest: plan.digest(),
        incident_at_ms: 0,
        by: Person { name: "ada".into(), uid: 1_000 },
        inputs: plan.inputs.clone(),
        engine: "bench".into(),
    }];
    for step in &plan.steps {
        let id = || step.id.clone();
        events.push(EventKind::AttemptStarted { step: id(), attempt: 1, with: step.with.clone() });
        let result = AttemptResult::Succeeded { done: Done::default() };
        events.push(EventKind::AttemptFinished { step: id(), attempt: 1, result });
        events.push(EventKind::StepFinished { step: id(), outcome: Outcome::Succeeded });
    }
    let (outcome, reason) = (RunOutcome::Succeeded, "every step has ended".to_owned());
    events.push(EventKind::EndingBegan { outcome, reason, undo: false });
    events.push(EventKind::RunFinished { outcome });
    runtime.block_on(journal.append(events)).expect("events");
    drop(journal);
    run
}
