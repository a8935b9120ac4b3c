//! A journal that cannot be written: at every event of a run, locked by another process, slow, removed, or taken over.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use lifeboat_engine::clock::SystemClock;
use lifeboat_engine::journal::{self, FILE, Fault, Journal};
use lifeboat_engine::model::event::{Done, EventKind};
use lifeboat_engine::model::{Created, CreatedKind, RunOutcome};
use lifeboat_engine::plan::{Plan, PlannedStep};
use lifeboat_engine::run::Situation;
use lifeboat_engine::run::driver::{Error, Setup, drive};
use lifeboat_engine::step::{Effect, KindSpec, Registry, StepContext, StepError, StepKind};
use lifeboat_engine::value::{Field, Type};
use rusqlite::Connection;
use serde_json::json;

use crate::plans::{always, declared, plan, step};
use crate::process::{declare, setup};

/// What was really done, in order: a side effect that nobody takes back.
#[derive(Clone, Default)]
struct World(Arc<Mutex<Vec<String>>>);

impl World {
    fn did(&self, what: &str) {
        self.0.lock().unwrap().push(what.to_owned());
    }

    fn counts(&self) -> BTreeMap<String, usize> {
        self.0.lock().unwrap().iter().fold(BTreeMap::new(), |mut counts, step| {
            *counts.entry(step.clone()).or_default() += 1;
            counts
        })
    }
}

/// Leaves a trace in the world; `how` makes it write to the journal meanwhile, or hang.
struct Trace(World);

#[async_trait]
impl StepKind for Trace {
    fn spec(&self) -> KindSpec {
        KindSpec::new("trace", "Leaves a trace.", Effect::Idempotent).param(Field::optional(
            "how",
            Type::String,
            "How.",
        ))
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let name = ctx.info.step.as_str();
        self.0.did(name);
        match ctx.with()["how"].as_str() {
            Some("record") => {
                ctx.record("fact", json!(1)).await?;
                self.0.did(&format!("{name} after its fact"));
            }
            Some("create") => {
                let path = ctx.info.work_dir.path()?.join("made");
                let kind = CreatedKind::File { path };
                ctx.created(Created { id: "made".into(), what: "a file".into(), kind }).await?;
                self.0.did(&format!("{name} made it"));
            }
            Some("hang") => {
                ctx.cancelled().await;
                return Err(StepError::uncertain(lifeboat_engine::code::LB0303, "ended"));
            }
            _ => {}
        }
        Ok(Done::default())
    }
}

fn trace(name: &str, needs: &[&str], how: &str) -> PlannedStep {
    PlannedStep { uses: "trace".into(), with: json!({ "how": how }), ..step(name, needs) }
}

/// Steps in sequence and side by side, facts, things, and a step that always runs.
fn moderate() -> Plan {
    let mut last = always("tell", &[]);
    last.uses = "trace".into();
    plan(vec![
        trace("a", &[], ""),
        trace("b", &["a"], "record"),
        trace("c", &["a"], ""),
        trace("d", &["a"], "create"),
        trace("e", &["b", "c", "d"], "record"),
        trace("f", &["e"], ""),
        trace("g", &["e"], "create"),
        trace("h", &["f", "g"], ""),
        trace("i", &["h"], "record"),
        last,
    ])
}

async fn begun(dir: &Path, plan: &Plan) -> Journal {
    declare(dir, plan, Arc::new(SystemClock), declared()).await
}

async fn begin(dir: &Path, plan: &Plan, world: &World) -> Result<Situation, Error> {
    let journal = begun(dir, plan).await;
    go_on(dir, plan, world, journal).await
}

async fn go_on(dir: &Path, plan: &Plan, world: &World, journal: Journal) -> Result<Situation, Error> {
    drive(process(dir, plan, world, journal)).await
}

/// A process that has read the journal and does nothing yet.
fn process(dir: &Path, plan: &Plan, world: &World, journal: Journal) -> Setup {
    let mut registry = Registry::new();
    registry.register(Trace(world.clone()));
    setup(dir, plan, registry, journal)
}

async fn resume(dir: &Path, plan: &Plan, world: &World) -> Result<Situation, Error> {
    go_on(dir, plan, world, Journal::open(dir, Arc::new(SystemClock)).unwrap()).await
}

fn tamper(dir: &Path, sql: &str) {
    Connection::open(dir.join(FILE)).unwrap().execute_batch(sql).unwrap();
}

/// The steps of which the journal has an event that `pick` takes.
fn steps(dir: &Path, pick: impl Fn(&EventKind) -> Option<String>) -> BTreeSet<String> {
    journal::read(dir).unwrap().1.iter().filter_map(|event| pick(&event.kind)).collect()
}

fn started(dir: &Path) -> BTreeSet<String> {
    steps(dir, |kind| match kind {
        EventKind::AttemptStarted { step, .. } => Some(step.to_string()),
        _ => None,
    })
}

fn completed(dir: &Path) -> BTreeSet<String> {
    steps(dir, |kind| match kind {
        EventKind::StepFinished { step, .. } => Some(step.to_string()),
        _ => None,
    })
}

fn fault_of(result: &Result<Situation, Error>) -> &Fault {
    match result {
        Err(Error::Journal(journal::Error::Closed { fault, .. })) => fault,
        other => panic!("the journal was not closed: {other:?}"),
    }
}

const SUCCEEDED: Situation = Situation::Finished(RunOutcome::Succeeded);

#[tokio::test]
async fn whichever_event_cannot_be_written_nothing_follows_from_it_and_the_run_resumes_when_mended() {
    let plan = moderate();
    let mut tried = 0;
    for bad in 2.. {
        let dir = tempfile::tempdir().unwrap();
        let (dir, world) = (dir.path(), World::default());
        let journal = begun(dir, &plan).await;
        tamper(
            dir,
            &format!(
                "CREATE TRIGGER fault BEFORE INSERT ON events WHEN NEW.seq = {bad} \
                 BEGIN SELECT RAISE(FAIL, 'disk on fire'); END"
            ),
        );
        let result = go_on(dir, &plan, &world, journal).await;
        if result.as_ref().is_ok_and(|situation| *situation == SUCCEEDED) {
            break;
        }
        tried += 1;
        assert!(fault_of(&result).to_string().contains("disk on fire"), "event {bad}: {result:?}");

        let (before, known, done) = (world.counts(), started(dir), completed(dir));
        for step in before.keys().filter(|step| !step.contains(' ')) {
            assert!(known.contains(step), "event {bad}: `{step}` began before that was durable");
        }
        let recorded = steps(dir, |kind| match kind {
            EventKind::Recorded { step, .. } => Some(format!("{step} after its fact")),
            EventKind::ThingCreated { step, .. } => Some(format!("{step} made it")),
            _ => None,
        });
        for deed in before.keys().filter(|deed| deed.contains(' ')) {
            assert!(
                recorded.contains(deed),
                "event {bad}: `{deed}` although the record of it is not durable"
            );
        }

        tamper(dir, "DROP TRIGGER fault");
        assert_eq!(resume(dir, &plan, &world).await.unwrap(), SUCCEEDED, "event {bad}");
        let after = world.counts();
        for step in &done {
            assert_eq!(before.get(step), after.get(step), "event {bad}: `{step}` was complete and ran again");
        }
        for step in ["a", "b", "c", "d", "e", "f", "g", "h", "i", "tell"] {
            assert!((1..=2).contains(&after[step]), "event {bad}: `{step}` ran {} times", after[step]);
        }
        journal::Reader::open(dir).unwrap().verify().unwrap();
    }
    assert!(tried >= 35, "only {tried} events were tried");
}

#[tokio::test]
async fn attempts_that_run_are_ended_when_the_journal_fails() {
    let dir = tempfile::tempdir().unwrap();
    let (dir, world) = (dir.path(), World::default());
    let plan = plan(vec![trace("long", &[], "hang"), trace("a", &[], "record"), trace("b", &["a"], "")]);
    let journal = begun(dir, &plan).await;
    tamper(
        dir,
        "CREATE TRIGGER fault BEFORE INSERT ON events WHEN NEW.kind = 'recorded' \
         BEGIN SELECT RAISE(FAIL, 'disk on fire'); END",
    );
    // The one that hangs is told to end, or this would never.
    let result = go_on(dir, &plan, &world, journal).await;
    assert!(fault_of(&result).to_string().contains("disk on fire"), "{result:?}");
    assert_eq!(world.counts().get("b"), None);
}

/// Tells this test binary that it is the other process, and which file it locks.
const HOLDER: &str = "LIFEBOAT_TEST_HOLDER";

/// The other process: keeps the file locked until its standard input ends.
#[test]
fn holder() {
    let Some(path) = std::env::var_os(HOLDER) else { return };
    let conn = Connection::open(path).unwrap();
    conn.execute_batch("BEGIN EXCLUSIVE").unwrap();
    // The test harness prints lines of its own around this one.
    println!("\nlocked");
    std::io::stdout().flush().unwrap();
    std::io::stdin().lock().read_line(&mut String::new()).unwrap();
    conn.execute_batch("ROLLBACK").unwrap();
}

struct Other(Child);

impl Other {
    fn lock(path: &Path) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "faults::holder", "--nocapture"])
            .env(HOLDER, path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut other = Self(child);
        let lines = BufReader::new(other.0.stdout.take().unwrap()).lines();
        assert!(lines.map_while(Result::ok).any(|line| line == "locked"), "the other process has the lock");
        other
    }

    fn let_go(mut self) {
        drop(self.0.stdin.take());
        self.0.wait().unwrap();
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn a_journal_that_another_process_keeps_locked_stops_the_run_with_that_reason() {
    let dir = tempfile::tempdir().unwrap();
    let (dir, world) = (dir.path(), World::default());
    let plan = moderate();
    let journal = begun(dir, &plan).await;
    let other = Other::lock(&dir.join(FILE));
    let result = go_on(dir, &plan, &world, journal).await;
    assert_eq!(*fault_of(&result), Fault::Busy);
    let Err(Error::Journal(error)) = &result else { unreachable!("it has a fault") };
    assert!(error.to_string().contains("another program has kept it locked for 10 s"), "{error}");
    assert!(error.help().contains(&format!("fuser {}", dir.join(FILE).display())), "{}", error.help());
    assert_eq!(world.counts(), BTreeMap::new(), "nothing began");
    other.let_go();
    assert_eq!(resume(dir, &plan, &world).await.unwrap(), SUCCEEDED);
}

#[tokio::test]
async fn on_a_slow_disk_nothing_begins_before_its_start_is_durable() {
    let dir = tempfile::tempdir().unwrap();
    let (dir, world) = (dir.path(), World::default());
    let plan = moderate();
    let journal = begun(dir, &plan).await;
    let other = Other::lock(&dir.join(FILE));
    let (path, seen) = (dir.to_owned(), world.clone());
    let run = tokio::spawn(async move { go_on(&path, &moderate(), &seen, journal).await });
    // Long enough for all steps to begin and end if anything let them.
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(world.counts(), BTreeMap::new(), "something began although the disk has taken nothing");
    other.let_go();
    assert_eq!(run.await.unwrap().unwrap(), SUCCEEDED);
    assert!(world.counts().values().all(|count| *count == 1), "{:?}", world.counts());
}

#[tokio::test]
async fn a_journal_that_is_removed_or_replaced_meanwhile_stops_the_run() {
    for what in [FILE, "journal.db-wal"] {
        let dir = tempfile::tempdir().unwrap();
        let (dir, world) = (dir.path(), World::default());
        let plan = moderate();
        let journal = begun(dir, &plan).await;
        let process = process(dir, &plan, &world, journal);
        std::fs::remove_file(dir.join(what)).unwrap();
        let result = drive(process).await;
        assert_eq!(*fault_of(&result), Fault::Removed, "{what}");
        assert_eq!(world.counts(), BTreeMap::new(), "{what}");
    }
}

#[tokio::test]
async fn a_process_that_was_superseded_can_report_and_start_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (dir, old, new) = (dir.path(), World::default(), World::default());
    let plan = moderate();
    let process = process(dir, &plan, &old, begun(dir, &plan).await);
    // It stands still, and somebody has broken its lock: the other one goes on to the end.
    assert_eq!(resume(dir, &plan, &new).await.unwrap(), SUCCEEDED);
    let (_, events) = journal::read(dir).unwrap();

    let result = drive(process).await;
    assert_eq!(*fault_of(&result), Fault::Superseded);
    let Err(Error::Journal(error)) = &result else { unreachable!("it has a fault") };
    assert!(error.to_string().contains("another process has gone on with this run"), "{error}");
    assert_eq!(old.counts(), BTreeMap::new());
    assert_eq!(journal::read(dir).unwrap().1, events, "not one event was added");
    journal::Reader::open(dir).unwrap().verify().unwrap();
}

/// Nextflow #7471: a run whose cache could not be written ended as if all were well.
#[tokio::test]
async fn a_write_error_at_the_very_end_is_no_success() {
    let dir = tempfile::tempdir().unwrap();
    let (dir, world) = (dir.path(), World::default());
    let plan = plan(vec![trace("a", &[], "")]);
    let journal = begun(dir, &plan).await;
    tamper(
        dir,
        "CREATE TRIGGER fault BEFORE INSERT ON events WHEN NEW.kind = 'run_finished' \
         BEGIN SELECT RAISE(FAIL, 'disk on fire'); END",
    );
    let result = go_on(dir, &plan, &world, journal).await;
    assert!(fault_of(&result).to_string().contains("disk on fire"));
    tamper(dir, "DROP TRIGGER fault");
    assert_eq!(resume(dir, &plan, &world).await.unwrap(), SUCCEEDED);
    // Its end stood in the commit that failed, so that nobody knew of it.
    assert_eq!(world.counts()["a"], 2);
}

#[tokio::test]
async fn the_whole_run_without_a_fault_does_each_thing_once() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::default();
    assert_eq!(begin(dir.path(), &moderate(), &world).await.unwrap(), SUCCEEDED);
    assert!(world.counts().values().all(|count| *count == 1), "{:?}", world.counts());
}
