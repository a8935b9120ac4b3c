//! A world that answers as a script says: the dispatcher without processes, files or time.

use std::collections::VecDeque;
use std::sync::Arc;

use lifeboat_engine::model::event::{AttemptResult, EventKind};
use lifeboat_engine::model::{Attempt, RunId, StepId};
use lifeboat_engine::plan::Plan;
use lifeboat_engine::run::{Action, Dispatcher, Input, RunState, Situation};

use crate::plans::{declared, id, registry};

type Script = Box<dyn Fn(&StepId, Attempt) -> AttemptResult>;

/// Drives a dispatcher: attempts end at once, in the order in which they were launched.
pub(crate) struct World {
    pub(crate) plan: Arc<Plan>,
    pub(crate) dispatcher: Dispatcher,
    pub(crate) journal: Vec<EventKind>,
    /// Every attempt that was really launched, in order; a crash does not empty it.
    pub(crate) launched: Vec<(StepId, Attempt)>,
    /// Every attempt that was told to end.
    pub(crate) ended: Vec<StepId>,
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
            ended: Vec::new(),
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
                Action::Launch { unit, attempt, .. } => {
                    let step = unit.id(&self.plan);
                    self.launched.push((step.clone(), attempt));
                    self.pending.push_back((step, attempt));
                }
                Action::EndAttempt { unit } => self.ended.push(unit.id(&self.plan)),
                Action::Refuse { reason, .. } => self.refused.push(reason),
                _ => {}
            }
        }
    }

    /// Lets one attempt end, or time pass until the next timer. Returns false if neither is left.
    pub(crate) fn turn(&mut self) -> bool {
        if self.end_one(0) {
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

    /// Lets one of the running attempts end, the oldest being 0. Returns false if none runs.
    pub(crate) fn end_one(&mut self, which: usize) -> bool {
        let count = self.pending.len();
        let Some((step, attempt)) = (count > 0).then(|| self.pending.remove(which % count)).flatten() else {
            return false;
        };
        let result = (self.script)(&step, attempt);
        self.input(Input::AttemptEnded { step, attempt, result });
        true
    }

    /// How many attempts run.
    pub(crate) fn running(&self) -> usize {
        self.pending.len()
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
        let unit = self.dispatcher.state().unit(&id(name)).expect("a step of the plan, or an element of one");
        let outcome = self.dispatcher.state().of(unit).outcome();
        let value = serde_json::to_value(outcome).expect("plain data");
        value["outcome"].as_str().unwrap_or("open").to_owned()
    }
}
