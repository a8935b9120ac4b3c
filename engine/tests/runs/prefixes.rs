//! Recovery from every prefix of the journal of runs that use every feature, by the way that `resume` takes.
//!
//! After each cut the rest is cut off once more, somewhere, so that what is resumed is resumed again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use lifeboat_engine::model::event::{Answer, AttemptResult, Decision, Done, EventKind, Question};
use lifeboat_engine::model::{
    Attempt, Created, CreatedKind, FailureKind, Mode, Outcome, Request, RunId, StepId,
};
use lifeboat_engine::plan::{
    Backoff, Condition, ForEach, Milestone, MilestoneAt, Need, NeedOn, OnError, Plan, PlannedGroup,
    PlannedStep, Retry, Scope, Until,
};
use lifeboat_engine::run::{Action, Dispatcher, Input, RunState, Situation, StepPhase, Unit};
use lifeboat_engine::step::Effect;
use lifeboat_engine::value::Span;
use serde_json::{Map, Value, json};

use crate::plans::{always, declared, failed, id, person, plan, registry, step, with_undo};

/// What the run is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scene {
    Success,
    /// A step fails in the middle and ends the run.
    Fails,
    /// A person ends it while steps wait for people.
    Aborted,
    Cancelled,
    /// What was made is removed in the end.
    Drill,
}

const SCENES: [Scene; 5] = [Scene::Success, Scene::Fails, Scene::Aborted, Scene::Cancelled, Scene::Drill];

fn group(name: &str, parent: Option<&str>, max_parallel: Option<usize>) -> PlannedGroup {
    PlannedGroup {
        id: id(name),
        title: name.to_owned(),
        parent: parent.map(id),
        parallel: max_parallel.is_some(),
        max_parallel,
        budget: Some(Span(Duration::from_secs(60))),
        milestone: None,
        recovered: false,
        ends: Vec::new(),
    }
}

fn retried(attempts: u32) -> Retry {
    let delay = Span(Duration::from_secs(1));
    Retry { attempts, backoff: Backoff::Exponential, delay, jitter: true, ..Retry::default() }
}

fn each(name: &str, list: Value, max_parallel: usize) -> PlannedStep {
    let with = json!({ "text": "{{ item }} {{ index }}" });
    PlannedStep { for_each: Some(ForEach { list, max_parallel }), with, ..step(name, &["first"]) }
}

/// Steps that go side by side after `first`.
fn work() -> Vec<PlannedStep> {
    let in_group = |group: &str, step: PlannedStep| PlannedStep { group: Some(id(group)), ..step };
    let until = Until { condition: "output.n > 0".to_owned(), every: Span(Duration::from_millis(1)) };
    let call = |name: &str, needs: &[&str]| PlannedStep { scope: Some(0), ..step(name, needs) };
    let conclude = Need { step: id("call/say"), on: NeedOn::Any };
    vec![
        in_group("chain", PlannedStep { effect: Effect::Guarded, ..step("guarded", &["first"]) }),
        in_group("chain", PlannedStep { retry: retried(4), ..step("flaky", &["guarded"]) }),
        in_group("work", PlannedStep { retry: retried(3), ..each("each", json!([5, 6, 7, 8]), 2) }),
        in_group("work", each("in_order", json!("{{ steps.first.list }}"), 1)),
        in_group(
            "work",
            PlannedStep { until: Some(until), effect: Effect::Read, ..step("poll", &["first"]) },
        ),
        in_group("work", call("call/say", &["first"])),
        PlannedStep { scope: Some(0), concludes: Some(0), needs: vec![conclude], ..always("call/tidy", &[]) },
    ]
}

/// Steps that fail in every way that the run outlives.
fn failures(scene: Scene) -> Vec<PlannedStep> {
    let on_failure = |name: &str, of: &str| {
        let needs = vec![Need { step: id(of), on: NeedOn::Failure }];
        PlannedStep { needs, ..step(name, &[]) }
    };
    let condition =
        |text: &str, of: &str| vec![Condition { expression: text.into(), of: id(of), scope: None }];
    let all = ["flaky", "each", "in_order", "poll", "call/say", "call/tidy"];
    let on_error = if scene == Scene::Fails { OnError::Abort } else { OnError::Continue };
    vec![
        PlannedStep { on_error: OnError::Continue, ..step("tolerated", &all) },
        step("broken", &["tolerated"]),
        on_failure("mend", "broken"),
        PlannedStep { conditions: condition("steps.first.n > 5", "left_out"), ..step("left_out", &["mend"]) },
        PlannedStep {
            conditions: condition("steps.each[1].n == 1 and steps.call.said == 'x'", "reads"),
            expect: vec!["output.n == 3".to_owned()],
            ..step("reads", &["left_out"])
        },
        PlannedStep { on_error, ..step("breaks", &["reads"]) },
    ]
}

/// Steps that wait for people, side by side.
fn people() -> Vec<PlannedStep> {
    let hold = |name: &str| PlannedStep { on_error: OnError::Hold, ..step(name, &["breaks"]) };
    vec![
        PlannedStep { effect: Effect::Once, ..hold("once") },
        hold("hopeless"),
        hold("by_hand"),
        step("sign", &["breaks"]),
        step("amount", &["breaks"]),
    ]
}

fn whole_plan(scene: Scene) -> Plan {
    let milestone = |name: &str, at| Some(Milestone { name: name.to_owned(), at });
    let first = PlannedStep { milestone: milestone("begun", MilestoneAt::Started), ..step("first", &[]) };
    let last = PlannedStep {
        with: json!({ "text": "{{ steps.amount.value + 1 }} {{ steps.in_order | length }}" }),
        recovered: true,
        milestone: milestone("served", MilestoneAt::Succeeded),
        ..step("last", &["make", "once", "hopeless", "by_hand", "sign", "amount"])
    };
    let mut steps = vec![first];
    steps.extend(work());
    steps.extend(failures(scene));
    steps.push(step("make", &["breaks"]));
    steps.extend(people());
    steps.extend([last, always("tell", &[]), always("tidy", &["tell"])]);
    let called = Scope {
        id: id("call"),
        parent: None,
        runbook: "child".to_owned(),
        always: false,
        needs: Vec::new(),
        inputs: Vec::new(),
        with: Map::new(),
        outputs: Map::from_iter([("said".to_owned(), json!("{{ steps.say.text }}"))]),
    };
    let plan = Plan {
        mode: if scene == Scene::Drill { Mode::Drill } else { Mode::Recovery },
        groups: vec![group("work", None, Some(3)), group("chain", Some("work"), None)],
        scopes: vec![called],
        locks: vec!["everything".to_owned()],
        ..plan(steps)
    };
    let mut plan =
        with_undo(plan, &["first", "guarded", "flaky", "each", "in_order", "call/say", "breaks", "make"]);
    plan.undos[1].step.retry = retried(2);
    plan
}

/// What an attempt brings about. Those that a crash takes away have numbers too.
fn result(step: &StepId, attempt: Attempt) -> AttemptResult {
    let fine = |outputs: Value| {
        let outputs = outputs.as_object().cloned().unwrap_or_default();
        AttemptResult::Succeeded { done: Done { outputs, ..Done::default() } }
    };
    match (step.as_str(), attempt) {
        ("flaky", 1..=2) | ("each[1]" | "guarded/undo", 1) => failed(FailureKind::Transient),
        ("each[2]", 1) => failed(FailureKind::Uncertain),
        ("tolerated" | "broken" | "breaks" | "hopeless" | "by_hand" | "flaky/undo", _) => {
            failed(FailureKind::Permanent)
        }
        ("once", 1) => failed(FailureKind::Uncertain),
        ("first", _) => fine(json!({ "n": 3, "list": ["a", "b"] })),
        ("call/say", _) => fine(json!({ "text": "x" })),
        _ => fine(json!({ "n": step.element().unwrap_or(3) })),
    }
}

fn question(of: &StepId) -> Option<Question> {
    let asks = |id: &str, choices: &[&str]| Question {
        id: id.into(),
        role: Some("lead".to_owned()),
        message: "?".to_owned(),
        choices: choices.iter().map(|&choice| choice.to_owned()).collect(),
        typed: None,
        rule: None,
        points: vec![],
    };
    match of.as_str() {
        "sign" => Some(asks("approval", &["approve", "reject"])),
        "amount" => Some(asks("ask", &["41"])),
        _ => None,
    }
}

/// A run, and the world that it acts on.
struct Stage {
    scene: Scene,
    plan: Arc<Plan>,
    dispatcher: Dispatcher,
    journal: Vec<EventKind>,
    launched: Vec<(StepId, Attempt)>,
    running: VecDeque<(StepId, Attempt)>,
    /// Inputs that follow from actions of the same turn.
    follows: VecDeque<Input>,
    now_ms: i64,
}

impl Stage {
    fn over(scene: Scene, plan: &Arc<Plan>, journal: Vec<EventKind>) -> Self {
        let mut state = RunState::new(plan);
        journal.iter().for_each(|event| state.apply(event).expect("a journal of our own"));
        let dispatcher =
            Dispatcher::new(RunId::generate(), Arc::clone(plan), registry(), state, Box::new(|| 0.5));
        let mut stage = Self {
            scene,
            plan: Arc::clone(plan),
            dispatcher,
            journal,
            launched: Vec::new(),
            running: VecDeque::new(),
            follows: VecDeque::new(),
            now_ms: 0,
        };
        stage.input(Input::EngineStarted { pid: 1, host: "h".into(), boot_id: "b".into() });
        stage
    }

    fn input(&mut self, input: Input) {
        self.follows.push_back(input);
        while let Some(input) = self.follows.pop_front() {
            for action in self.dispatcher.handle(input, self.now_ms).expect("a legal event") {
                self.perform(action);
            }
        }
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Append(event) => self.journal.push(event),
            Action::Launch { unit, attempt, .. } => self.launch(unit.id(&self.plan), attempt),
            Action::EndAttempt { unit } => {
                let step = unit.id(&self.plan);
                let at = self.running.iter().position(|(running, _)| *running == step).expect("it runs");
                let (step, attempt) = self.running.remove(at).expect("it was found");
                let result = AttemptResult::Interrupted;
                self.follows.push_back(Input::AttemptEnded { step, attempt, result });
            }
            Action::Deliver { step, answer, .. } => {
                let at = self.running.iter().position(|(running, _)| *running == step).expect("it waits");
                let (step, attempt) = self.running.remove(at).expect("it was found");
                let outputs =
                    Map::from_iter([("value".to_owned(), answer.choice.parse::<i64>().unwrap_or(0).into())]);
                let result = AttemptResult::Succeeded { done: Done { outputs, ..Done::default() } };
                self.follows.push_back(Input::AttemptEnded { step, attempt, result });
            }
            Action::CleanUp(things) => {
                for (_, Created { id, .. }) in things {
                    let proof = "gone".to_owned();
                    self.follows.push_back(Input::ThingRemoved { id, proof, removed: true });
                }
                self.follows.push_back(Input::CleanedUp);
            }
            Action::Refuse { reason, .. } => panic!("{reason}"),
        }
    }

    fn launch(&mut self, step: StepId, attempt: Attempt) {
        self.launched.push((step.clone(), attempt));
        self.running.push_back((step.clone(), attempt));
        if let Some(question) = question(&step) {
            self.follows.push_back(Input::Asked { step: step.clone(), question });
        }
        if step.as_str() == "make" {
            for name in ["one", "two", "three"] {
                let kind = match name {
                    "three" => CreatedKind::Within { resource: "db".into(), handle: json!({ "oid": 3 }) },
                    _ => CreatedKind::Directory { path: format!("/nowhere/{name}").into() },
                };
                let thing = Created { id: name.into(), what: "a directory".into(), kind };
                self.follows.push_back(Input::ThingCreated { step: step.clone(), thing });
            }
            self.follows.push_back(Input::Recorded { step, key: "at".into(), value: json!(1) });
        }
    }

    fn asks(&self, step: &StepId) -> bool {
        let unit = self.dispatcher.state().unit(step).expect("a unit of the run");
        self.dispatcher.state().of(unit).asks()
    }

    /// Lets the next thing happen; returns false if nothing is left.
    fn turn(&mut self) -> bool {
        let next = self.running.iter().position(|(step, _)| !self.asks(step));
        if let Some((step, attempt)) = next.and_then(|at| self.running.remove(at)) {
            let result = result(&step, attempt);
            self.input(Input::AttemptEnded { step, attempt, result });
            return true;
        }
        if let Some(due) = self.dispatcher.next_wake_ms() {
            self.now_ms = self.now_ms.max(due);
            self.input(Input::Tick);
            return true;
        }
        let decides = self.decision();
        if let Some(request) = decides {
            self.input(Input::Request(request));
            return true;
        }
        false
    }

    /// What people say when nothing goes on without them, one thing after the other.
    fn decision(&self) -> Option<Request> {
        let decide = |decision| Some(Request::Decide { by: person(), decision });
        if self.dispatcher.state().paused {
            return decide(Decision::Unpause);
        }
        let paused =
            |event: &EventKind| matches!(event, EventKind::Decided { decision: Decision::Pause, .. });
        if self.scene != Scene::Drill && !self.journal.iter().any(paused) && !self.running.is_empty() {
            return decide(Decision::Pause);
        }
        let reason = || "enough".to_owned();
        match self.scene {
            Scene::Aborted if !self.running.is_empty() => {
                return decide(Decision::Abort { reason: reason() });
            }
            Scene::Cancelled if !self.running.is_empty() => {
                return decide(Decision::Cancel { reason: reason() });
            }
            _ => {}
        }
        if let Some(step) = self.held() {
            return decide(match step.as_str() {
                "hopeless" => Decision::SkipStep { step, reason: reason() },
                "by_hand" => Decision::MarkDone { step, reason: reason() },
                _ => Decision::RetryStep { step },
            });
        }
        let (step, _) = self.running.iter().find(|(step, _)| self.asks(step))?;
        let question = question(step).expect("it asks");
        let answer = Answer::new(question.choices[0].clone(), person());
        Some(Request::Answer { step: step.clone(), question: question.id, answer })
    }

    fn held(&self) -> Option<StepId> {
        let held = |unit: &Unit| self.dispatcher.state().of(*unit).phase == StepPhase::Held;
        self.units().into_iter().find(held).map(|unit| unit.id(&self.plan))
    }

    fn units(&self) -> Vec<Unit> {
        let steps = self.dispatcher.state().steps.iter().enumerate();
        let units = steps.flat_map(|(at, step)| {
            let count = step.elements.as_ref().map_or(0, |elements| elements.states.len());
            std::iter::once(Unit::whole(at)).chain((0..count).map(move |element| Unit::element(at, element)))
        });
        units.collect()
    }

    fn finish(&mut self) {
        while self.turn() {}
        let situation = self.dispatcher.situation();
        assert!(matches!(situation, Situation::Finished(_)), "{:?}: {situation:?}", self.scene);
    }

    /// What must not depend on crashes: every end, output and answer, and what is left.
    fn canon(&self) -> BTreeMap<String, Value> {
        let state = self.dispatcher.state();
        let units = self.units().into_iter().map(|unit| {
            let of = state.of(unit);
            let outcome = of.outcome().map(|outcome| match outcome {
                // Its message may tell of another attempt.
                Outcome::Failed { .. } => json!("failed"),
                other => serde_json::to_value(other).expect("plain data"),
            });
            let answers: Vec<_> = of.questions.values().map(|(_, answer)| answer.clone()).collect();
            let outputs = of.done.as_ref().map(|done| &done.outputs);
            (unit.id(&self.plan).to_string(), json!([outcome, outputs, answers, of.recorded]))
        });
        let mut canon: BTreeMap<_, _> = units.collect();
        canon.insert("the run".into(), json!([format!("{:?}", state.phase), state.things.len()]));
        canon
    }
}

/// Steps that may not begin another attempt, because they have succeeded or ended.
fn completed(journal: &[EventKind]) -> BTreeSet<StepId> {
    let completed = journal.iter().filter_map(|event| match event {
        EventKind::StepFinished { step, .. }
        | EventKind::AttemptFinished { step, result: AttemptResult::Succeeded { .. }, .. } => {
            Some(step.clone())
        }
        _ => None,
    });
    completed.collect()
}

/// Undos are begun newest first and all of them before `always`, whatever was begun when.
fn undo_is_in_order(plan: &Plan, journal: &[EventKind], told: &str) {
    let first_starts = |event: &EventKind| match event {
        EventKind::AttemptStarted { step, attempt: 1, .. } => Some(step.to_string()),
        _ => None,
    };
    let Some(end) =
        journal.iter().position(|event| matches!(event, EventKind::EndingBegan { undo: true, .. }))
    else {
        return;
    };
    let has_undo =
        |name: &String| plan.undos.iter().any(|undo| name.split('[').next() == Some(undo.of.as_str()));
    let expected: Vec<_> = journal[..end].iter().filter_map(first_starts).filter(has_undo).collect();
    let expected: Vec<_> = expected.iter().rev().map(|name| undo_of(name)).collect();
    let started: Vec<_> = journal[end..].iter().filter_map(first_starts).collect();
    let undone: Vec<_> = started.iter().filter(|name| name.contains("/undo")).cloned().collect();
    assert_eq!(undone, expected, "{told}");
    let always = started.iter().position(|name| name == "tell").expect("`always` runs");
    assert_eq!(
        started[..always].iter().filter(|name| name.contains("/undo")).count(),
        undone.len(),
        "{told}"
    );
}

fn undo_of(name: &str) -> String {
    match name.split_once('[') {
        Some((of, element)) => format!("{of}/undo[{element}"),
        None => format!("{name}/undo"),
    }
}

#[test]
fn every_prefix_of_a_run_that_uses_every_feature_recovers_to_the_same_end() {
    for scene in SCENES {
        let plan = Arc::new(whole_plan(scene));
        let mut whole = Stage::over(scene, &plan, vec![declared()]);
        whole.finish();
        let expected = whole.canon();
        for cut in 1..=whole.journal.len() {
            let told = format!("{scene:?}, cut at {cut} after {:?}", whole.journal[cut - 1]);
            let mut journal = whole.journal[..cut].to_vec();
            // The process that resumes is killed as well, after more and more turns.
            for turns in [cut % 5, cut % 3, usize::MAX] {
                let done = completed(&journal);
                let mut resumed = Stage::over(scene, &plan, journal);
                let mut left = turns;
                while left > 0 && resumed.turn() {
                    left -= 1;
                }
                let again: Vec<_> = resumed.launched.iter().filter(|(step, _)| done.contains(step)).collect();
                assert!(again.is_empty(), "{told}: ran again: {again:?}");
                if turns == usize::MAX {
                    resumed.finish();
                    assert_eq!(resumed.canon(), expected, "{told}");
                    undo_is_in_order(&plan, &resumed.journal, &told);
                }
                journal = resumed.journal;
            }
        }
    }
}

/// The scenes reach what they are made for; otherwise the test above would prove nothing.
#[test]
fn the_scenes_use_every_kind_of_event() {
    let mut kinds = BTreeSet::new();
    for scene in SCENES {
        let mut stage = Stage::over(scene, &Arc::new(whole_plan(scene)), vec![declared()]);
        stage.finish();
        kinds.extend(stage.journal.iter().map(|event| {
            let value = serde_json::to_value(event).expect("plain data");
            let decision =
                value["decision"]["decision"].as_str().map(|word| format!(" {word}")).unwrap_or_default();
            format!("{}{decision}", value["kind"].as_str().expect("a tag"))
        }));
        let starts =
            stage.journal.iter().filter(|event| matches!(event, EventKind::AttemptStarted { .. })).count();
        assert!(starts > 20, "{scene:?} has only {starts} attempts");
    }
    let expected = [
        "attempt_finished",
        "attempt_started",
        "decided abort",
        "decided cancel",
        "decided mark_done",
        "decided pause",
        "decided retry_step",
        "decided skip_step",
        "decided unpause",
        "elements_chosen",
        "ending_began",
        "engine_started",
        "question_answered",
        "question_asked",
        "recorded",
        "retry_scheduled",
        "run_declared",
        "run_finished",
        "step_finished",
        "step_held",
        "thing_created",
        "thing_removed",
    ];
    assert_eq!(kinds.iter().map(String::as_str).collect::<Vec<_>>(), expected);
}
