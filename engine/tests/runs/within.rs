//! What steps make within systems that are not the run's own, and how the end of a drill removes it through their kinds.

use std::path::Path;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use lifeboat_engine::clock::SystemClock;
use lifeboat_engine::code;
use lifeboat_engine::fence::Protected;
use lifeboat_engine::journal;
use lifeboat_engine::model::event::{Done, EventKind, Question};
use lifeboat_engine::model::{Created, CreatedKind, Mode, RunOutcome};
use lifeboat_engine::plan::{ForEach, Plan, PlannedStep};
use lifeboat_engine::resource::Resource;
use lifeboat_engine::run::Situation;
use lifeboat_engine::run::driver::drive;
use lifeboat_engine::step::{Effect, KindSpec, Registry, StepContext, StepError, StepKind};
use lifeboat_engine::value::{Field, Type};
use serde_json::{Value, json};

use crate::plans::{declared, plan, step};
use crate::process::{declare, setup};

/// What there is on the server of the test, and how often each of it was to be removed.
#[derive(Clone, Default)]
struct Server(Arc<Mutex<(Vec<String>, Vec<String>)>>);

impl Server {
    fn there(&self) -> Vec<String> {
        self.0.lock().unwrap().0.clone()
    }

    fn tried(&self) -> Vec<String> {
        self.0.lock().unwrap().1.clone()
    }
}

/// Makes something on the server; its name says how its removal goes.
struct Make(Server);

#[async_trait]
impl StepKind for Make {
    fn spec(&self) -> KindSpec {
        let spec = KindSpec::new("make", "Makes.", Effect::Idempotent);
        spec.param(Field::required("name", Type::Any, "What."))
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let name = ctx.with()["name"].as_str().unwrap_or_default().to_owned();
        let kind = CreatedKind::Within { resource: "db".into(), handle: json!({ "name": name }) };
        ctx.created(Created { id: name.clone(), what: format!("database `{name}`"), kind }).await?;
        self.0.0.lock().unwrap().0.push(name.clone());
        if name == "killed" {
            return Err(StepError::permanent(code::LB0303, "the process is gone"));
        }
        Ok(Done::default())
    }

    async fn clean_up(&self, ctx: &StepContext, resource: &str, handle: &Value) -> Result<String, StepError> {
        assert_eq!((resource, ctx.info.mode), ("db", Mode::Drill));
        ctx.resource(resource)?;
        let refused = [
            ctx.record("late", json!(1)).await.is_err(),
            ctx.removed("x", "y").await.is_err(),
            ctx.ask(question()).await.is_err(),
        ];
        assert_eq!(refused, [true; 3], "the journal takes nothing any more");
        let name = handle["name"].as_str().expect("a name").to_owned();
        let first = {
            let mut server = self.0.0.lock().unwrap();
            server.1.push(name.clone());
            server.1.iter().filter(|tried| **tried == name).count() == 1
        };
        match name.as_str() {
            "restarting" if first => return Err(StepError::transient(code::LB0303, "the server starts")),
            "not ours" => {
                return Err(StepError::permanent(code::LB0303, "somebody has renamed it").help("look at it"));
            }
            "panics" => panic!("a defect"),
            _ => {}
        }
        self.0.0.lock().unwrap().0.retain(|there| *there != name);
        Ok(format!("`{name}` does not exist"))
    }
}

fn question() -> Question {
    Question {
        id: "go".into(),
        role: None,
        message: "Go?".into(),
        choices: vec!["approve".into()],
        typed: None,
        rule: None,
        points: vec![],
    }
}

/// Makes something and knows no way to remove it.
struct Careless;

#[async_trait]
impl StepKind for Careless {
    fn spec(&self) -> KindSpec {
        KindSpec::new("careless", "Makes.", Effect::Idempotent)
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let kind = CreatedKind::Within { resource: "db".into(), handle: json!(null) };
        ctx.created(Created { id: "careless".into(), what: "something".into(), kind }).await?;
        Ok(Done::default())
    }
}

fn registry(server: &Server) -> Registry {
    let mut registry = Registry::new();
    registry.register(Make(server.clone()));
    registry.register(Careless);
    registry
}

fn make(id: &str, needs: &[&str], name: &str) -> PlannedStep {
    PlannedStep { uses: "make".into(), with: json!({ "name": name }), ..step(id, needs) }
}

fn files(path: &Path) -> Resource {
    serde_json::from_value(json!({ "kind": "files", "path": path })).unwrap()
}

fn drill(dir: &Path, steps: Vec<PlannedStep>) -> Plan {
    let mut plan = Plan { mode: Mode::Drill, ..plan(steps) };
    plan.resources.insert("db".into(), files(&dir.join("db")));
    plan
}

async fn run(dir: &Path, plan: &Plan, server: &Server) -> Situation {
    let journal = declare(dir, plan, Arc::new(SystemClock), declared()).await;
    drive(setup(dir, plan, registry(server), journal)).await.expect("a journal that can be written")
}

/// What the journal says of removals, in their order.
fn removals(dir: &Path) -> Vec<(String, bool, String)> {
    let events = journal::read(dir).unwrap().1;
    let removals = events.into_iter().filter_map(|event| match event.kind {
        EventKind::ThingRemoved { id, proof, removed } => Some((id, removed, proof)),
        _ => None,
    });
    removals.collect()
}

const SUCCEEDED: Situation = Situation::Finished(RunOutcome::Succeeded);

#[tokio::test]
async fn a_drill_removes_what_it_made_within_a_system_newest_first_with_proof() {
    let (dir, server) = (tempfile::tempdir().unwrap(), Server::default());
    let each = ForEach { list: json!(["x", "y"]), max_parallel: 1 };
    let each = PlannedStep { for_each: Some(each), ..make("c", &["b"], "{{ item }}") };
    let plan = drill(dir.path(), vec![make("a", &[], "one"), make("b", &["a"], "restarting"), each]);
    assert_eq!(run(dir.path(), &plan, &server).await, SUCCEEDED);
    assert_eq!(server.there(), [""; 0]);
    assert_eq!(server.tried(), ["y", "x", "restarting", "restarting", "one"], "what may pass is tried again");
    let expected = ["y", "x", "restarting", "one"];
    let expected = expected.map(|id| (id.to_owned(), true, format!("`{id}` does not exist")));
    assert_eq!(removals(dir.path()), expected);
}

#[tokio::test]
async fn what_cannot_be_removed_keeps_nothing_else_and_says_why() {
    let (dir, server) = (tempfile::tempdir().unwrap(), Server::default());
    let careless = PlannedStep { uses: "careless".into(), ..step("c", &["b"]) };
    let steps =
        vec![make("a", &[], "one"), make("b", &["a"], "not ours"), careless, make("d", &["c"], "panics")];
    let plan = drill(dir.path(), steps);
    assert_eq!(run(dir.path(), &plan, &server).await, SUCCEEDED);
    assert_eq!(server.there(), ["not ours", "panics"]);
    let removals = removals(dir.path());
    let removed: Vec<_> = removals.iter().map(|(id, removed, _)| (id.as_str(), *removed)).collect();
    assert_eq!(removed, [("panics", false), ("careless", false), ("not ours", false), ("one", true)]);
    let why = |id: &str| &removals.iter().find(|(of, ..)| of == id).unwrap().2;
    assert!(why("not ours").contains("somebody has renamed it; look at it"), "{removals:?}");
    assert!(why("careless").starts_with("LB0336"), "{removals:?}");
    assert!(why("panics").contains("defect"), "{removals:?}");
}

#[tokio::test]
async fn a_recovery_keeps_what_it_made_and_so_does_a_drill_that_is_told_to() {
    for (mode, keep) in [(Mode::Recovery, false), (Mode::Drill, true)] {
        let (dir, server) = (tempfile::tempdir().unwrap(), Server::default());
        let plan = Plan { mode, keep, ..drill(dir.path(), vec![make("a", &[], "one")]) };
        assert_eq!(run(dir.path(), &plan, &server).await, SUCCEEDED);
        assert_eq!((server.there(), server.tried()), (vec!["one".to_owned()], vec![]));
    }
}

/// The system was free when the step ran, and is one of a protected environment when the drill ends.
#[tokio::test]
async fn nothing_is_removed_from_what_has_become_a_protected_system() {
    let (dir, server) = (tempfile::tempdir().unwrap(), Server::default());
    let (mine, theirs) = (dir.path().join("db"), dir.path().join("protected"));
    std::fs::create_dir_all(&mine).unwrap();
    std::fs::create_dir_all(&theirs).unwrap();
    let mut plan = drill(dir.path(), vec![make("a", &[], "one")]);
    plan.fence = Protected::new("production", "main", &files(&theirs)).into_iter().collect();
    std::fs::remove_dir(&mine).unwrap();
    std::os::unix::fs::symlink(&theirs, &mine).unwrap();
    assert_eq!(run(dir.path(), &plan, &server).await, SUCCEEDED);
    assert_eq!((server.there(), server.tried()), (vec!["one".to_owned()], vec![]));
    let [(_, false, why)] = &removals(dir.path())[..] else { panic!("one refusal") };
    assert!(why.contains("LB0341") && why.contains("`main` of the protected environment"), "{why}");
}

/// A step that failed half-way, and a process that is gone at every event of the end.
#[tokio::test]
async fn clean_up_goes_on_after_each_of_its_events() {
    let plan_in = |dir: &Path| {
        let steps = vec![make("a", &[], "one"), make("b", &["a"], "two"), make("c", &["b"], "killed")];
        drill(dir, steps)
    };
    let (whole, server) = (tempfile::tempdir().unwrap(), Server::default());
    let failed = Situation::Finished(RunOutcome::Failed);
    assert_eq!(run(whole.path(), &plan_in(whole.path()), &server).await, failed);
    assert_eq!(server.there(), [""; 0], "also what the failed step had recorded");
    let events: Vec<_> = journal::read(whole.path()).unwrap().1.into_iter().map(|event| event.kind).collect();
    let begun = events.iter().position(|event| matches!(event, EventKind::EndingBegan { .. })).unwrap();
    for cut in begun..events.len() {
        let (dir, server) = (tempfile::tempdir().unwrap(), Server::default());
        let plan = plan_in(dir.path());
        // The world may be ahead of the journal: what the next event tells may have happened.
        for ahead in [false, true] {
            let dir = dir.path().join(ahead.to_string());
            std::fs::create_dir(&dir).unwrap();
            let known = &events[1..cut + usize::from(ahead)];
            let gone = |name: &str| {
                known.iter().any(|event| matches!(event, EventKind::ThingRemoved { id, .. } if id == name))
            };
            let there = ["one", "two", "killed"].into_iter().filter(|name| !gone(name));
            server.0.lock().unwrap().0 = there.map(ToOwned::to_owned).collect();
            let journal = declare(&dir, &plan, Arc::new(SystemClock), declared()).await;
            journal.append(events[1..cut].to_vec()).await.unwrap();
            let situation = drive(setup(&dir, &plan, registry(&server), journal)).await.unwrap();
            assert_eq!(situation, failed, "cut at {cut}");
            assert_eq!(server.there(), [""; 0], "cut at {cut}");
            let removed: Vec<_> = removals(&dir).into_iter().map(|(id, removed, _)| (id, removed)).collect();
            let expected = ["killed", "two", "one"].map(|id| (id.to_owned(), true));
            assert_eq!(removed, expected, "cut at {cut}: each once");
        }
    }
}
