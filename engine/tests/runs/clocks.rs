//! Clocks that are set, machines that sleep or start anew, and hours without a process: durations and the clock of the
//! objectives stay true, and what happened is told.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use lifeboat_engine::clock::{Machine, RunClock};
use lifeboat_engine::journal::{self, Journal};
use lifeboat_engine::model::RunOutcome;
use lifeboat_engine::model::event::{Done, EventKind};
use lifeboat_engine::plan::{Objective, Plan, PlannedStep, Retry};
use lifeboat_engine::report::human::Moment;
use lifeboat_engine::report::{Owner, RunReport, Source, Verdict};
use lifeboat_engine::run::Situation;
use lifeboat_engine::run::driver::{Control, Setup, drive};
use lifeboat_engine::step::{Effect, KindSpec, Registry, StepContext, StepError, StepKind};
use lifeboat_engine::value::{Field, Span, Type};
use serde_json::json;
use tokio::sync::mpsc;

use crate::plans::{person, plan, step};
use crate::process::{declare, setup};

const SECOND: i64 = 1_000;
const HOUR: i64 = 3_600 * SECOND;

/// 2026-11-21, 10:00 UTC.
const BEGIN: i64 = 1_795_255_200_000;

struct Now {
    wall: i64,
    boot: i64,
    boots: u32,
}

/// A machine whose clocks stand still until a test moves them.
#[derive(Clone)]
struct Fake(Arc<Mutex<Now>>);

impl Fake {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(Now { wall: BEGIN, boot: 50 * HOUR, boots: 1 })))
    }

    /// Time passes, awake or asleep.
    fn pass(&self, ms: i64) {
        let mut now = self.0.lock().unwrap();
        now.wall += ms;
        now.boot += ms;
    }

    fn set_wall(&self, by: i64) {
        self.0.lock().unwrap().wall += by;
    }

    fn restart(&self, after: i64) {
        let mut now = self.0.lock().unwrap();
        now.wall += after;
        now.boot = 20 * SECOND;
        now.boots += 1;
    }
}

impl Machine for Fake {
    fn wall_ms(&self) -> i64 {
        self.0.lock().unwrap().wall
    }

    fn boot_ms(&self) -> i64 {
        self.0.lock().unwrap().boot
    }

    fn boot_id(&self) -> String {
        format!("boot {}", self.0.lock().unwrap().boots)
    }
}

/// Lets time pass and sets the clock, as its parameters say; fails the first time if `fails` is set.
struct Moves(Fake);

#[async_trait]
impl StepKind for Moves {
    fn spec(&self) -> KindSpec {
        KindSpec::new("moves", "Moves clocks.", Effect::Idempotent)
            .param(Field::optional("pass", Type::Integer, "By how much."))
            .param(Field::optional("set", Type::Integer, "By how much."))
            .param(Field::optional("fails", Type::Boolean, "Whether."))
            .param(Field::optional("hang", Type::Boolean, "Whether the first attempt does not end."))
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let number = |name: &str| ctx.with()[name].as_i64().unwrap_or(0);
        self.0.pass(number("pass"));
        self.0.set_wall(number("set"));
        if ctx.with()["fails"] == json!(true) && ctx.info.attempt == 1 {
            return Err(StepError::transient(lifeboat_engine::code::LB0303, "not yet"));
        }
        if ctx.with()["hang"] == json!(true) && ctx.info.attempt == 1 {
            ctx.cancelled().await;
            return Err(StepError::uncertain(lifeboat_engine::code::LB0303, "ended"));
        }
        Ok(Done::default())
    }
}

fn moves(name: &str, needs: &[&str], with: serde_json::Value) -> PlannedStep {
    PlannedStep { uses: "moves".into(), with, ..step(name, needs) }
}

fn recovery(mut steps: Vec<PlannedStep>) -> Plan {
    steps.last_mut().unwrap().recovered = true;
    let rto = Some(Span(Duration::from_secs(4 * 3_600)));
    Plan { objective: Objective { rto, rpo: None }, ..plan(steps) }
}

/// Begins the run, or goes on with it, as a process of its own would.
async fn session(dir: &Path, plan: &Plan, machine: &Fake, controls: mpsc::Receiver<Control>) -> Situation {
    let shared: Arc<dyn Machine> = Arc::new(machine.clone());
    let is_new = !dir.join(journal::FILE).exists();
    let (journal, clock) = if is_new {
        let clock = Arc::new(RunClock::begin(shared));
        let declared = EventKind::RunDeclared {
            plan_digest: plan.digest(),
            incident_at_ms: BEGIN,
            by: person(),
            inputs: serde_json::Map::new(),
            engine: "test".into(),
        };
        (declare(dir, plan, clock.clone(), declared).await, clock)
    } else {
        let clock = Arc::new(RunClock::resume(shared, &journal::read(dir).unwrap().1));
        (Journal::open(dir, clock.clone()).unwrap(), clock)
    };
    let mut registry = Registry::new();
    registry.register(Moves(machine.clone()));
    drive(Setup { clock, controls, ..setup(dir, plan, registry, journal) }).await.unwrap()
}

async fn finish(dir: &Path, plan: &Plan, machine: &Fake) -> RunReport {
    let (_controls, receiver) = mpsc::channel(1);
    let situation = session(dir, plan, machine, receiver).await;
    assert_eq!(situation, Situation::Finished(RunOutcome::Succeeded));
    report(dir)
}

fn report(dir: &Path) -> RunReport {
    let (header, events) = journal::read(dir).unwrap();
    assert!(events.is_sorted_by_key(|event| event.at_ms), "the time of the run never goes back");
    let source = Source {
        run: header.run,
        plan: &header.plan,
        events: &events,
        now: Moment(BEGIN + 1_000 * HOUR),
        owner: Owner::Gone,
    };
    RunReport::of(&source)
}

fn took(report: &RunReport, step: &str) -> i64 {
    report.steps.iter().find(|it| it.id.as_str() == step).and_then(|it| it.took_ms).unwrap()
}

fn warned(report: &RunReport, words: &str) -> bool {
    report.warnings.iter().any(|warning| warning.text.contains(words))
}

#[tokio::test]
async fn a_wall_clock_that_jumps_during_a_step_falsifies_no_duration_and_is_told() {
    for (jump, words) in [(HOUR, "set forward"), (-HOUR, "set back"), (20 * 365 * 24 * HOUR, "set forward")] {
        let (dir, machine) = (tempfile::tempdir().unwrap(), Fake::new());
        let plan = recovery(vec![
            moves("a", &[], json!({ "pass": 10 * SECOND, "set": jump })),
            moves("b", &["a"], json!({ "pass": 20 * SECOND })),
            moves("c", &["b"], json!({ "pass": 5 * SECOND })),
        ]);
        let report = finish(dir.path(), &plan, &machine).await;
        assert_eq!((took(&report, "a"), took(&report, "b")), (10 * SECOND, 20 * SECOND), "{jump}");
        assert_eq!(report.rto.used_ms, 35 * SECOND, "{jump}");
        assert_eq!(report.rto.verdict, Some(Verdict::Met), "{jump}");
        assert_eq!(report.time.total_ms, 35 * SECOND, "{jump}");
        assert!(warned(&report, words), "{jump}: {:?}", report.warnings);
    }
}

#[tokio::test]
async fn a_clock_that_nobody_sets_is_not_talked_about() {
    let (dir, machine) = (tempfile::tempdir().unwrap(), Fake::new());
    // What time servers correct in small steps is no setting.
    let plan = recovery(vec![moves("a", &[], json!({ "pass": HOUR, "set": 1_500 }))]);
    let report = finish(dir.path(), &plan, &machine).await;
    assert_eq!(report.warnings, []);
}

#[tokio::test]
async fn sleep_of_the_machine_counts() {
    let (dir, machine) = (tempfile::tempdir().unwrap(), Fake::new());
    // The clock that stops while the machine sleeps is the one that tests run by: hardly anything of it passes.
    let plan = recovery(vec![moves("a", &[], json!({ "pass": 5 * HOUR }))]);
    let report = finish(dir.path(), &plan, &machine).await;
    assert_eq!(report.rto.used_ms, 5 * HOUR);
    assert_eq!(report.rto.verdict, Some(Verdict::Missed));
    assert_eq!(report.warnings, [], "sleep is no setting of a clock");
}

#[tokio::test]
async fn a_retry_is_due_by_the_time_of_the_run_whatever_the_wall_clock_says() {
    let (dir, machine) = (tempfile::tempdir().unwrap(), Fake::new());
    let retry = Retry { attempts: 2, delay: Span(Duration::from_secs(3_600)), ..Retry::default() };
    let failing = PlannedStep { retry, ..moves("a", &[], json!({ "set": -HOUR, "fails": true })) };
    let plan = recovery(vec![failing]);
    let later = machine.clone();
    let waker = tokio::spawn({
        let path = dir.path().to_owned();
        async move {
            let waits = |event: &lifeboat_engine::model::Event| matches!(event.kind, EventKind::RetryScheduled { at_ms, .. } if at_ms == BEGIN + HOUR);
            while !journal::read(&path).is_ok_and(|(_, events)| events.iter().any(waits)) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            later.pass(HOUR);
        }
    });
    let report =
        tokio::time::timeout(Duration::from_secs(240), finish(dir.path(), &plan, &machine)).await.unwrap();
    waker.await.unwrap();
    assert_eq!(report.rto.used_ms, HOUR);
    assert_eq!(report.time.waiting_for_retry_ms, HOUR);
}

/// Runs until the second step hangs, and stops the process there.
async fn stopped(dir: &Path, machine: &Fake) -> Plan {
    let plan = recovery(vec![
        moves("a", &[], json!({ "pass": 10 * SECOND })),
        moves("b", &["a"], json!({ "hang": true })),
        moves("c", &["b"], json!({ "pass": 5 * SECOND })),
    ]);
    let (controls, receiver) = mpsc::channel(1);
    let stopper = async {
        let hangs = || {
            journal::read(dir).is_ok_and(|(_, events)| {
                events.iter().any(|event| {
                    matches!(&event.kind, EventKind::AttemptStarted { step, .. } if step.as_str() == "b")
                })
            })
        };
        let deadline = std::time::Instant::now() + Duration::from_secs(240);
        while !hangs() {
            assert!(std::time::Instant::now() < deadline, "it never began");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        controls.send(Control::Stop).await.unwrap();
    };
    let (situation, ()) = tokio::join!(session(dir, &plan, machine, receiver), stopper);
    assert_eq!(situation, Situation::Stopped);
    plan
}

#[tokio::test]
async fn hours_without_a_process_count_even_if_the_wall_clock_was_set_back_meanwhile() {
    let (dir, machine) = (tempfile::tempdir().unwrap(), Fake::new());
    let plan = stopped(dir.path(), &machine).await;
    machine.pass(3 * HOUR);
    machine.set_wall(-2 * HOUR);
    let report = finish(dir.path(), &plan, &machine).await;
    assert_eq!(report.rto.used_ms, 3 * HOUR + 15 * SECOND);
    assert_eq!(report.time.engine_down_ms, 3 * HOUR);
    assert!(warned(&report, "set back"), "{:?}", report.warnings);
    let shares = report.time;
    assert_eq!(shares.total_ms, 3 * HOUR + 15 * SECOND);
}

#[tokio::test]
async fn after_a_restart_of_the_machine_the_time_it_was_down_counts() {
    let (dir, machine) = (tempfile::tempdir().unwrap(), Fake::new());
    let plan = stopped(dir.path(), &machine).await;
    // The clock that counts since the start begins anew, far below where it stood.
    machine.restart(2 * HOUR);
    let report = finish(dir.path(), &plan, &machine).await;
    assert_eq!(report.rto.used_ms, 2 * HOUR + 15 * SECOND);
    assert_eq!(report.time.engine_down_ms, 2 * HOUR);
    assert_eq!(report.warnings, []);
}

#[tokio::test]
async fn a_restart_with_a_clock_that_lost_its_time_never_makes_time_go_back() {
    let (dir, machine) = (tempfile::tempdir().unwrap(), Fake::new());
    let plan = stopped(dir.path(), &machine).await;
    machine.restart(-30 * 365 * 24 * HOUR);
    let report = finish(dir.path(), &plan, &machine).await;
    assert_eq!(report.rto.used_ms, 15 * SECOND, "how long it was down is not known, and is not made up");
    assert!(warned(&report, "set back"), "it is told: {:?}", report.warnings);
}
