//! Whole runs with a real journal and real time, over step kinds of the tests' own.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use crate::plans::{declared, id, person, plan, step};
use crate::process::{declare, setup};
use async_trait::async_trait;
use lifeboat_engine::clock::{Clock, SystemClock};
use lifeboat_engine::fence::Protected;
use lifeboat_engine::journal;
use lifeboat_engine::model::event::{Answer, AttemptResult, Decision, Done, EventKind, Question};
use lifeboat_engine::model::{Created, CreatedKind, FailureKind, Mode, Outcome, Request, RunOutcome};
use lifeboat_engine::notice::{Messenger, Notice, Occasion};
use lifeboat_engine::plan::{Plan, PlannedStep, Retry};
use lifeboat_engine::resource::{Resource, ResourceKind};
use lifeboat_engine::run::driver::{Control, Patience, Reporter, RequestSource, Setup, drive};
use lifeboat_engine::run::{RunState, Situation};
use lifeboat_engine::secret::Secrets;
use lifeboat_engine::step::{Effect, KindSpec, Registry, StepContext, StepError, StepKind};
use lifeboat_engine::value::{Field, Type};
use serde_json::json;
use tokio::sync::mpsc;

/// Does what its parameter `act` says.
struct Act;

#[async_trait]
impl StepKind for Act {
    fn spec(&self) -> KindSpec {
        KindSpec::new("act", "Acts.", Effect::Idempotent).param(Field::required("act", Type::String, "What."))
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        match ctx.with()["act"].as_str() {
            Some("ask") => {
                let answer = tokio::select! {
                    answer = ctx.ask(question()) => answer?,
                    () = ctx.cancelled() => {
                        return Err(StepError::transient(lifeboat_engine::code::LB0303, "nobody answered"));
                    }
                };
                Ok(Done {
                    outputs: [("by".into(), json!(answer.by.name))].into_iter().collect(),
                    ..Done::default()
                })
            }
            Some("hang") => {
                ctx.cancelled().await;
                Err(StepError::uncertain(lifeboat_engine::code::LB0303, "ended"))
            }
            Some("panic") => panic!("a defect"),
            Some("leave behind") => leave_behind(ctx).await,
            Some("make") => {
                let path = ctx.work_dir()?.to_owned();
                let made = json!({ "kind": "files", "path": path, "access": "write", "optional": false });
                Ok(Done { resource: Some(made), ..Done::default() })
            }
            Some("use") => {
                let system = ctx.resource("from:a")?;
                assert_eq!(system.kind(), ResourceKind::Files);
                Ok(Done::default())
            }
            Some(link) if link.starts_with("link ") => {
                let mut words = link.split(' ').skip(1);
                let (Some(place), Some(to)) = (words.next(), words.next()) else { panic!("two paths") };
                std::fs::remove_dir(place).expect("an empty directory");
                std::os::unix::fs::symlink(to, place).expect("nothing is in the way");
                Ok(Done::default())
            }
            Some(path) if path.starts_with('/') => {
                let kind = CreatedKind::Directory { path: path.into() };
                ctx.created(Created { id: "dir".into(), what: "a directory".into(), kind }).await?;
                std::fs::create_dir(path).expect("the directory is new");
                Ok(Done::default())
            }
            _ => Ok(Done::default()),
        }
    }
}

/// The first attempt fails and leaves something behind that tries to act when the second one runs; the second one tells
/// what became of that.
async fn leave_behind(ctx: &StepContext) -> Result<Done, StepError> {
    let dir = ctx.info.work_dir.path()?.to_owned();
    let file = |name: &str| dir.join(name);
    if ctx.info.attempt == 1 {
        let (link, second, told) = (ctx.link(), file("second"), file("told"));
        tokio::spawn(async move {
            until_there(&second).await;
            let kind = CreatedKind::File { path: "/nowhere".into() };
            let thing = Created { id: "late".into(), what: "a file".into(), kind };
            let refused = [
                link.record("late", json!(1)).await.is_err(),
                link.created(thing).await.is_err(),
                link.ask(question()).await.is_err(),
            ];
            std::fs::write(told, format!("{refused:?}")).expect("a file");
        });
        return Err(StepError::transient(lifeboat_engine::code::LB0303, "again"));
    }
    std::fs::write(file("second"), "").expect("a file");
    until_there(&file("told")).await;
    let told = std::fs::read_to_string(file("told")).expect("a file");
    Ok(Done { outputs: [("refused".into(), json!(told))].into_iter().collect(), ..Done::default() })
}

async fn until_there(path: &Path) {
    let there = async {
        while std::fs::read_to_string(path).is_err() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(240), there).await.expect("it is there in time");
}

fn question() -> Question {
    Question {
        id: "go".into(),
        role: None,
        message: "Go?".into(),
        choices: vec!["approve".into(), "reject".into()],
        typed: None,
        rule: None,
        points: vec![],
    }
}

fn act(name: &str, needs: &[&str], what: &str) -> PlannedStep {
    PlannedStep { uses: "act".into(), with: json!({ "act": what }), ..step(name, needs) }
}

async fn run(dir: &Path, plan: Plan, controls: mpsc::Receiver<Control>) -> Situation {
    run_with(dir, plan, controls, Arc::new(SystemClock), |_| {}).await
}

async fn run_with(
    dir: &Path,
    plan: Plan,
    controls: mpsc::Receiver<Control>,
    clock: Arc<dyn Clock>,
    prepare: impl FnOnce(&mut Registry),
) -> Situation {
    let journal = declare(dir, &plan, clock.clone(), declared()).await;
    let mut registry = Registry::new();
    registry.register(Act);
    prepare(&mut registry);
    let setup = setup(dir, &plan, registry, journal);
    let setup = Setup { clock, controls, when_waiting: Patience::Stay, ..setup };
    drive(setup).await.expect("a journal that can be written")
}

fn outcomes(dir: &Path) -> Vec<(String, Outcome)> {
    let (_, events) = journal::read(dir).expect("a readable journal");
    events
        .into_iter()
        .filter_map(|event| match event.kind {
            EventKind::StepFinished { step, outcome } => Some((step.to_string(), outcome)),
            _ => None,
        })
        .collect()
}

fn code_of(outcome: &Outcome) -> &str {
    match outcome {
        Outcome::Failed { failure } => &failure.code,
        _ => "none",
    }
}

/// Requests that were left before the process began.
struct Left(Vec<(uuid::Uuid, Request)>);

impl RequestSource for Left {
    fn poll(&mut self) -> Vec<(uuid::Uuid, Request)> {
        self.0.clone()
    }

    fn done(&mut self, id: uuid::Uuid) {
        self.0.retain(|(of, _)| *of != id);
    }
}

/// Takes note of all that it is told.
struct Hears(Arc<std::sync::Mutex<Vec<EventKind>>>);

impl Reporter for Hears {
    fn on_event(&mut self, _: i64, event: &EventKind) {
        self.0.lock().expect("nobody panicked").push(event.clone());
    }
}

/// Whoever ends a run whose process hangs is not there any more when another one takes the run over.
#[tokio::test]
async fn what_was_asked_while_nobody_drove_the_run_counts_before_anything_starts() {
    let dir = tempfile::tempdir().unwrap();
    let plan = plan(vec![act("a", &[], "")]);
    let journal = declare(dir.path(), &plan, Arc::new(SystemClock), declared()).await;
    let mut registry = Registry::new();
    registry.register(Act);
    let decide = |decision| (uuid::Uuid::now_v7(), Request::Decide { by: person(), decision });
    let left = vec![
        decide(Decision::Note { text: "it hangs".into() }),
        decide(Decision::Abort { reason: "the wrong system".into() }),
    ];
    let heard = Arc::default();
    let setup = Setup {
        requests: Box::new(Left(left)),
        reporters: vec![Box::new(Hears(Arc::clone(&heard)))],
        ..setup(dir.path(), &plan, registry, journal)
    };
    assert_eq!(drive(setup).await.unwrap(), Situation::Finished(RunOutcome::Aborted));
    let (_, events) = journal::read(dir.path()).unwrap();
    let begun = events.iter().any(|event| matches!(event.kind, EventKind::AttemptStarted { .. }));
    assert!(!begun, "nothing starts in a run that a person has ended: {events:#?}");
    let decided = |events: &[EventKind]| {
        events.iter().filter(|event| matches!(event, EventKind::Decided { .. })).count()
    };
    let recorded: Vec<_> = events.into_iter().map(|event| event.kind).collect();
    assert_eq!((decided(&recorded), decided(&heard.lock().unwrap())), (2, 2), "once each, and shown");
}

#[tokio::test]
async fn a_question_waits_until_it_is_answered() {
    let dir = tempfile::tempdir().unwrap();
    let (controls, receiver) = mpsc::channel(8);
    let work = run(dir.path(), plan(vec![act("a", &[], "ask")]), receiver);
    let answer = async {
        // The question must be in the journal before an answer to it can count.
        let asked = || {
            journal::read(dir.path()).is_ok_and(|(_, events)| {
                events.iter().any(|e| matches!(e.kind, EventKind::QuestionAsked { .. }))
            })
        };
        while !asked() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let answer = Answer::new("approve", person());
        let request = Request::Answer { step: id("a"), question: "go".into(), answer };
        controls.send(Control::Request(request)).await.unwrap();
    };
    let (situation, ()) =
        tokio::time::timeout(Duration::from_secs(240), async { tokio::join!(work, answer) }).await.unwrap();
    assert_eq!(situation, Situation::Finished(RunOutcome::Succeeded));
}

#[tokio::test]
async fn a_step_that_hangs_is_ended_at_its_timeout() {
    let dir = tempfile::tempdir().unwrap();
    let limit = lifeboat_engine::value::Span(Duration::from_millis(50));
    let hanging = PlannedStep { timeout: Some(limit), ..act("a", &[], "hang") };
    let (_controls, receiver) = mpsc::channel(1);
    assert_eq!(run(dir.path(), plan(vec![hanging]), receiver).await, Situation::Finished(RunOutcome::Failed));
    assert_eq!(code_of(&outcomes(dir.path())[0].1), "LB0302");
}

#[tokio::test]
async fn a_question_that_nobody_answers_in_time_fails_a_drill() {
    let dir = tempfile::tempdir().unwrap();
    let limit = lifeboat_engine::value::Span(Duration::from_millis(50));
    let asking = PlannedStep { timeout: Some(limit), ..act("a", &[], "ask") };
    let drill = Plan { mode: Mode::Drill, ..plan(vec![asking]) };
    let (_controls, receiver) = mpsc::channel(1);
    assert_eq!(run(dir.path(), drill, receiver).await, Situation::Finished(RunOutcome::Failed));
    assert_eq!(code_of(&outcomes(dir.path())[0].1), "LB0302");
}

#[tokio::test]
async fn a_panic_in_a_step_is_a_failure_of_that_step_only() {
    let dir = tempfile::tempdir().unwrap();
    let broken = PlannedStep { on_error: lifeboat_engine::plan::OnError::Continue, ..act("a", &[], "panic") };
    let (_controls, receiver) = mpsc::channel(1);
    let situation = run(dir.path(), plan(vec![broken, act("b", &[], "")]), receiver).await;
    assert_eq!(situation, Situation::Finished(RunOutcome::Succeeded));
    let ended = outcomes(dir.path());
    assert!(ended.iter().any(|(step, outcome)| step == "a" && code_of(outcome) == "LB0350"), "{ended:?}");
}

/// kestra-io/kestra#19730: what an attempt had started went on writing for half an hour after the attempt was over.
#[tokio::test]
async fn a_superseded_attempt_can_neither_record_nor_make_nor_ask() {
    let dir = tempfile::tempdir().unwrap();
    let delay = lifeboat_engine::value::Span(Duration::from_millis(1));
    let retry = Retry { attempts: 2, delay, ..Retry::default() };
    let (_controls, receiver) = mpsc::channel(1);
    let step = PlannedStep { retry, ..act("a", &[], "leave behind") };
    assert_eq!(run(dir.path(), plan(vec![step]), receiver).await, Situation::Finished(RunOutcome::Succeeded));
    let (_, events) = journal::read(dir.path()).unwrap();
    let told = events.iter().find_map(|event| match &event.kind {
        EventKind::AttemptFinished { attempt: 2, result: AttemptResult::Succeeded { done }, .. } => {
            done.outputs["refused"].as_str().map(ToOwned::to_owned)
        }
        _ => None,
    });
    assert_eq!(told.as_deref(), Some("[true, true, true]"));
    let late = |event: &EventKind| {
        matches!(
            event,
            EventKind::Recorded { .. } | EventKind::ThingCreated { .. } | EventKind::QuestionAsked { .. }
        )
    };
    assert!(!events.iter().any(|event| late(&event.kind)), "and nothing of it is in the journal");
}

#[tokio::test]
async fn a_drill_removes_what_it_created_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let made = dir.path().join("made");
    let drill = Plan { mode: Mode::Drill, ..plan(vec![act("a", &[], made.to_str().unwrap())]) };
    let (_controls, receiver) = mpsc::channel(1);
    assert_eq!(run(dir.path(), drill, receiver).await, Situation::Finished(RunOutcome::Succeeded));
    assert!(!made.exists());
    let (_, events) = journal::read(dir.path()).unwrap();
    assert!(events.iter().any(|e| matches!(&e.kind, EventKind::ThingRemoved { removed: true, .. })));
}

#[tokio::test]
async fn a_signal_ends_attempts_and_leaves_the_run_open() {
    let dir = tempfile::tempdir().unwrap();
    let (controls, receiver) = mpsc::channel(1);
    controls.send(Control::Stop).await.unwrap();
    let situation = run(dir.path(), plan(vec![act("a", &[], "hang"), act("b", &["a"], "")]), receiver).await;
    assert_eq!(situation, Situation::Stopped);
    assert_eq!(outcomes(dir.path()), []);
}

fn files(path: &Path) -> Resource {
    serde_json::from_value(json!({ "kind": "files", "path": path })).unwrap()
}

#[tokio::test]
async fn a_write_is_compared_with_protected_systems_when_it_begins() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for name in ["target", "protected", "state"] {
        std::fs::create_dir(at(name)).unwrap();
    }
    let made = |name: &str| at(name).display().to_string();
    let write = |name: &str, needs: &[&str], what: &str| PlannedStep {
        writes: vec!["target".into()],
        ..act(name, needs, &made(what))
    };
    let link = format!("link {} {}", made("target"), made("protected"));
    // The plan is in order; the directory becomes a link while the run goes on.
    let steps = vec![write("a", &[], "first"), act("b", &["a"], &link), write("c", &["b"], "second")];
    let mut plan = plan(steps);
    plan.resources.insert("target".into(), files(&at("target")));
    plan.fence = Protected::new("production", "data", &files(&at("protected"))).into_iter().collect();
    let (_controls, receiver) = mpsc::channel(1);
    let situation = run(&at("state"), plan, receiver).await;
    assert_eq!(situation, Situation::Finished(RunOutcome::Failed));
    let ended = outcomes(&at("state"));
    let Outcome::Failed { failure } = &ended[2].1 else { panic!("{ended:?}") };
    assert_eq!((failure.code.as_str(), failure.kind), ("LB0341", FailureKind::Permanent));
    assert!(failure.message.contains("`data` of the protected environment `production`"), "{failure:?}");
    assert!(at("first").exists() && !at("second").exists(), "nothing is written by the step that is refused");
}

#[tokio::test]
async fn what_is_only_read_and_what_is_protected_itself_is_not_fenced() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("target");
    let protected: Vec<_> = Protected::new("production", "data", &files(&target)).into_iter().collect();
    let write = PlannedStep { writes: vec!["target".into()], ..act("a", &[], "") };
    let with = |name: &str, change: fn(&mut Plan, &mut Resource)| {
        let mut plan = plan(vec![write.clone()]);
        let mut resource = files(&target);
        plan.fence.clone_from(&protected);
        change(&mut plan, &mut resource);
        plan.resources.insert("target".into(), resource);
        let state = dir.path().join(name);
        std::fs::create_dir(&state).unwrap();
        async move {
            let (_controls, receiver) = mpsc::channel(1);
            run(&state, plan, receiver).await
        }
    };
    let refused = with("refused", |_, _| {}).await;
    assert_eq!(refused, Situation::Finished(RunOutcome::Failed));
    let read = with("read", |_, resource| resource.access = lifeboat_engine::resource::Access::Read).await;
    assert_eq!(read, Situation::Finished(RunOutcome::Succeeded));
    let recovery = with("recovery", |plan, _| plan.protected = true).await;
    assert_eq!(recovery, Situation::Finished(RunOutcome::Succeeded));
    let drill = with("drill", |plan, _| {
        plan.protected = true;
        plan.mode = Mode::Drill;
    });
    assert_eq!(drill.await, Situation::Finished(RunOutcome::Failed));
}

#[tokio::test]
async fn later_steps_use_what_a_step_has_made_and_so_does_a_resumed_run() {
    let dir = tempfile::tempdir().unwrap();
    let use_it = PlannedStep { writes: vec!["from:a".into()], ..act("b", &["a"], "use") };
    let plan = plan(vec![act("a", &[], "make"), use_it]);
    let (_controls, receiver) = mpsc::channel(1);
    let situation = run(dir.path(), plan.clone(), receiver).await;
    assert_eq!(situation, Situation::Finished(RunOutcome::Succeeded), "{:?}", outcomes(dir.path()));
    let (_, events) = journal::read(dir.path()).unwrap();
    let mut state = RunState::new(&plan);
    events.iter().for_each(|event| state.apply(&event.kind).unwrap());
    assert_eq!(state.made["from:a"].kind(), ResourceKind::Files);
}

#[tokio::test]
async fn a_system_that_was_not_made_is_missed_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let (_controls, receiver) = mpsc::channel(1);
    let use_it = PlannedStep { reads: vec!["from:a".into()], ..act("b", &["a"], "use") };
    run(dir.path(), plan(vec![act("a", &[], ""), use_it]), receiver).await;
    assert_eq!(code_of(&outcomes(dir.path())[1].1), "LB0340");
}

/// A clock that goes on when it is told to, however busy the machine is.
#[derive(Default)]
struct ByHand(AtomicI64);

impl Clock for ByHand {
    fn now_ms(&self) -> i64 {
        self.0.load(Ordering::SeqCst)
    }
}

/// Keeps when each notice was posted.
struct Posts(Arc<ByHand>, Arc<std::sync::Mutex<Vec<(Occasion, i64)>>>);

#[async_trait]
impl Messenger for Posts {
    async fn post(&self, _: &Resource, _: &Secrets, notice: &Notice) -> Result<(), StepError> {
        self.1.lock().expect("nobody panicked").push((notice.occasion, self.0.now_ms()));
        Ok(())
    }
}

#[tokio::test]
async fn whoever_is_waited_for_is_reminded_every_ten_minutes() {
    const MINUTE: i64 = 60 * 1000;
    let dir = tempfile::tempdir().unwrap();
    let (clock, posts) = (Arc::<ByHand>::default(), Arc::default());
    let mut plan = plan(vec![act("a", &[], "ask")]);
    plan.resources.insert("ops".into(), files(dir.path()));
    plan.notices = [Occasion::Waiting, Occasion::Reminder].map(|it| (it, vec!["ops".to_owned()])).into();
    let (controls, receiver) = mpsc::channel(8);
    let messenger = Posts(Arc::clone(&clock), Arc::clone(&posts));
    let prepare = |registry: &mut Registry| registry.set_messenger(messenger);
    let hand = Arc::clone(&clock);
    let work = run_with(dir.path(), plan, receiver, clock, prepare);
    let stop = async {
        while posts.lock().expect("nobody panicked").len() < 4 {
            tokio::time::sleep(Duration::from_millis(20)).await;
            hand.0.fetch_add(MINUTE, Ordering::SeqCst);
        }
        controls.send(Control::Kill).await.unwrap();
    };
    tokio::time::timeout(Duration::from_secs(240), async { tokio::join!(work, stop) }).await.unwrap();
    let posts = posts.lock().unwrap();
    let occasions: Vec<_> = posts.iter().map(|(occasion, _)| *occasion).collect();
    assert_eq!(occasions[0], Occasion::Waiting);
    assert!(occasions[1..].iter().all(|occasion| *occasion == Occasion::Reminder), "{posts:?}");
    // Not sooner; the hand may move once or twice between the decision to post and the post. How much later depends on how
    // often the run looks while the hand moves.
    let gaps: Vec<_> = posts.windows(2).map(|two| two[1].1 - two[0].1).collect();
    assert!(gaps[1..].iter().all(|gap| *gap >= 8 * MINUTE), "{gaps:?}");
}

/// Keeps what each notice says.
struct Words(Arc<std::sync::Mutex<Vec<String>>>);

#[async_trait]
impl Messenger for Words {
    async fn post(&self, _: &Resource, _: &Secrets, notice: &Notice) -> Result<(), StepError> {
        self.0.lock().expect("nobody panicked").push(notice.message.clone());
        Ok(())
    }
}

#[tokio::test]
async fn the_notice_of_the_end_says_why_also_if_an_earlier_process_began_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let mut plan = plan(vec![act("a", &[], "")]);
    plan.resources.insert("ops".into(), files(dir.path()));
    plan.notices = [(Occasion::Failed, vec!["ops".to_owned()])].into();
    let journal = declare(dir.path(), &plan, Arc::new(SystemClock), declared()).await;
    let reason = "`a` failed: the disk is full".to_owned();
    let not_run = Outcome::NotRun { reason: "the run ended before it".into() };
    let begun = vec![
        EventKind::EndingBegan { outcome: RunOutcome::Failed, reason, undo: false },
        EventKind::StepFinished { step: id("a"), outcome: not_run },
    ];
    journal.append(begun).await.unwrap();
    let mut registry = Registry::new();
    registry.register(Act);
    let words = Arc::default();
    registry.set_messenger(Words(Arc::clone(&words)));
    let situation = drive(setup(dir.path(), &plan, registry, journal)).await.unwrap();
    assert_eq!(situation, Situation::Finished(RunOutcome::Failed));
    let words = words.lock().unwrap();
    assert!(words.len() == 1 && words[0].contains("the disk is full"), "{words:?}");
}
