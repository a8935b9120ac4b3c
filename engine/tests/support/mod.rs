//! Plans by hand, and a world that answers as a script says: the dispatcher without processes, files or time.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use async_trait::async_trait;
use lifeboat_engine::model::event::{AttemptResult, Done, EventKind, Person};
use lifeboat_engine::model::{Attempt, Failure, FailureKind, Mode, RunId, StepId};
use lifeboat_engine::plan::{Need, NeedOn, Objective, OnError, Plan, PlannedStep, Retry};
use lifeboat_engine::run::{Action, Dispatcher, Input, RunState, Situation};
use lifeboat_engine::step::{Effect, KindSpec, Registry, StepContext, StepError, StepKind};
use lifeboat_engine::value::{Field, Type};
use serde_json::{Map, Value, json};

/// A kind that is never run: the script speaks for it.
struct Scripted;

#[async_trait]
impl StepKind for Scripted {
    fn spec(&self) -> KindSpec {
        KindSpec::new("scripted", "Does what the test says.", Effect::Idempotent)
            .param(Field::optional("text", Type::Any, "Anything."))
    }

    async fn run(&self, _: &StepContext) -> Result<Done, StepError> {
        Ok(Done::default())
    }
}

pub(crate) fn registry() -> Arc<Registry> {
    let mut registry = Registry::new();
    registry.register(Scripted);
    Arc::new(registry)
}

pub(crate) fn id(text: &str) -> StepId {
    StepId::new(text).expect("a valid id")
}

/// A step that needs the steps named, on success.
pub(crate) fn step(name: &str, needs: &[&str]) -> PlannedStep {
    PlannedStep {
        id: id(name),
        title: name.to_owned(),
        place: "test.yaml:1".to_owned(),
        group: None,
        always: false,
        needs: needs.iter().map(|need| Need { step: id(need), on: NeedOn::Success }).collect(),
        conditions: Vec::new(),
        uses: "scripted".to_owned(),
        with: json!({}),
        env: BTreeMap::new(),
        dir: None,
        effect: Effect::Idempotent,
        probe: None,
        expect: Vec::new(),
        retry: Retry::default(),
        timeout: None,
        budget: None,
        milestone: None,
        recovered: false,
        on_error: OnError::Abort,
        destroys: Vec::new(),
        reads: Vec::new(),
        writes: Vec::new(),
        restores: false,
    }
}

pub(crate) fn always(name: &str, needs: &[&str]) -> PlannedStep {
    PlannedStep { always: true, on_error: OnError::Continue, ..step(name, needs) }
}

pub(crate) fn plan(steps: Vec<PlannedStep>) -> Plan {
    Plan {
        format: Plan::FORMAT,
        project: "test".to_owned(),
        project_dir: "/nowhere".into(),
        runbook: "test".to_owned(),
        title: "Test".to_owned(),
        owner: None,
        environment: "sandbox".to_owned(),
        protected: false,
        mode: Mode::Recovery,
        commit: None,
        objective: Objective::default(),
        milestones: BTreeMap::new(),
        roles: BTreeMap::new(),
        inputs: Map::new(),
        vars: Map::new(),
        resources: BTreeMap::new(),
        secrets: BTreeMap::new(),
        auto_approvals: false,
        keep: false,
        steps,
        groups: Vec::new(),
        sources: BTreeMap::new(),
    }
}

pub(crate) fn declared() -> EventKind {
    EventKind::RunDeclared {
        plan_digest: String::new(),
        incident_at_ms: 0,
        by: person(),
        inputs: Map::new(),
        engine: "test".to_owned(),
    }
}

pub(crate) fn person() -> Person {
    Person { name: "sam".to_owned(), uid: 1000 }
}

pub(crate) fn succeeded(outputs: Value) -> AttemptResult {
    let outputs = outputs.as_object().cloned().unwrap_or_default();
    AttemptResult::Succeeded { done: Done { outputs, ..Done::default() } }
}

pub(crate) fn failed(kind: FailureKind) -> AttemptResult {
    let failure =
        Failure { kind, code: "LB0000".into(), message: "no".into(), help: None, causes: Vec::new() };
    AttemptResult::Failed { failure, checks: Vec::new() }
}

type Script = Box<dyn Fn(&StepId, Attempt) -> AttemptResult>;

/// Drives a dispatcher: attempts end at once, in the order in which they were launched.
pub(crate) struct World {
    pub(crate) plan: Arc<Plan>,
    pub(crate) dispatcher: Dispatcher,
    pub(crate) journal: Vec<EventKind>,
    /// Every attempt that was really launched, in order; a crash does not empty it.
    pub(crate) launched: Vec<(StepId, Attempt)>,
    pub(crate) refused: Vec<String>,
    pub(crate) now_ms: i64,
    pending: VecDeque<(StepId, Attempt)>,
    script: Script,
}

impl World {
    pub(crate) fn new(plan: Plan, script: impl Fn(&StepId, Attempt) -> AttemptResult + 'static) -> Self {
        Self::resume(plan, vec![declared()], script)
    }

    /// Takes a run over from its journal, as a new process does.
    pub(crate) fn resume(
        plan: Plan,
        journal: Vec<EventKind>,
        script: impl Fn(&StepId, Attempt) -> AttemptResult + 'static,
    ) -> Self {
        let plan = Arc::new(plan);
        let mut state = RunState::new(&plan);
        journal.iter().for_each(|event| state.apply(event).expect("a journal of our own"));
        let dispatcher =
            Dispatcher::new(RunId::generate(), Arc::clone(&plan), registry(), state, Box::new(|| 0.0));
        let mut world = Self {
            plan,
            dispatcher,
            journal,
            launched: Vec::new(),
            refused: Vec::new(),
            now_ms: 0,
            pending: VecDeque::new(),
            script: Box::new(script),
        };
        world.input(Input::EngineStarted { pid: 1, host: "h".into(), boot_id: "b".into() });
        world
    }

    pub(crate) fn input(&mut self, input: Input) {
        let actions = self.dispatcher.handle(input, self.now_ms).expect("a legal event");
        for action in actions {
            match action {
                Action::Append(event) => self.journal.push(event),
                Action::Launch { position, attempt, .. } => {
                    let step = self.plan.steps[position].id.clone();
                    self.launched.push((step.clone(), attempt));
                    self.pending.push_back((step, attempt));
                }
                Action::Refuse { reason } => self.refused.push(reason),
                _ => {}
            }
        }
    }

    /// Lets one attempt end, or time pass until the next timer. Returns false if neither is left.
    pub(crate) fn turn(&mut self) -> bool {
        if let Some((step, attempt)) = self.pending.pop_front() {
            let result = (self.script)(&step, attempt);
            self.input(Input::AttemptEnded { step, attempt, result });
            return true;
        }
        match self.dispatcher.next_wake_ms() {
            Some(due) => {
                self.now_ms = self.now_ms.max(due);
                self.input(Input::Tick);
                true
            }
            None => false,
        }
    }

    pub(crate) fn run(&mut self) -> Situation {
        while self.turn() {}
        self.dispatcher.situation()
    }

    /// The steps that were launched, by name.
    pub(crate) fn order(&self) -> Vec<&str> {
        self.launched.iter().map(|(step, _)| step.as_str()).collect()
    }

    pub(crate) fn outcome_of(&self, name: &str) -> String {
        let at = self.dispatcher.state().position(&id(name)).expect("a step of the plan");
        let outcome = self.dispatcher.state().steps[at].outcome();
        let value = serde_json::to_value(outcome).expect("plain data");
        value["outcome"].as_str().unwrap_or("open").to_owned()
    }
}
