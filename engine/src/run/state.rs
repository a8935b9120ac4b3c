//! The state of a run: the fold of its journal.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Map, Value};

use crate::code;
use crate::model::event::{Answer, AttemptResult, Done, EventKind, Question};
use crate::model::evidence::Created;
use crate::model::ids::{Attempt, StepId};
use crate::model::outcome::{Failure, Outcome, RunOutcome};
use crate::plan::Plan;

/// Where a run is, after every event so far. Changes in [`RunState::apply`] and nowhere else, so that a fresh run
/// and a resumed one cannot differ.
#[derive(Clone, Debug, PartialEq)]
pub struct RunState {
    pub phase: Phase,
    pub paused: bool,
    pub incident_at_ms: i64,
    /// By position: all steps, then all undos.
    pub steps: Vec<StepState>,
    /// The positions of what has begun, in the order of their first attempts.
    pub begun: Vec<usize>,
    /// The run ends with undo: what has begun is taken back before `always`.
    pub undoing: bool,
    /// What was made and not yet removed, in the order in which it was made.
    pub things: Vec<(StepId, Created)>,
    index: HashMap<StepId, usize>,
}

/// Where the run as a whole is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Before the first event.
    New,
    Main,
    /// Only undo, `always` steps and clean-up are left.
    Ending(RunOutcome),
    Finished(RunOutcome),
}

/// Where one step is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepState {
    pub phase: StepPhase,
    /// The number of the last attempt that started.
    pub attempt: Attempt,
    /// Attempts that count against the limit: not those lost to a crash or a signal.
    pub used: u32,
    /// How many attempts a person has granted beyond the limit.
    pub granted: u32,
    pub done: Option<Done>,
    pub last_failure: Option<Failure>,
    /// Facts that attempts recorded for later ones.
    pub recorded: Map<String, Value>,
    pub questions: BTreeMap<String, (Question, Option<Answer>)>,
}

/// The phases of a step.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum StepPhase {
    /// Has not started, or is to start again.
    #[default]
    Waiting,
    Running,
    /// An attempt has ended and its consequence is not yet recorded.
    Settling(AttemptResult),
    WaitingRetry {
        at_ms: i64,
    },
    Held,
    Ended(Outcome),
}

/// An event that cannot follow from the state before it: the journal is not one that this program wrote.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the event `{event}` cannot follow here: {reason}")]
pub struct IllegalEvent {
    pub event: String,
    pub reason: String,
}

impl RunState {
    /// Makes the state of a run that has no event yet.
    pub fn new(plan: &Plan) -> Self {
        Self {
            phase: Phase::New,
            paused: false,
            incident_at_ms: 0,
            steps: vec![StepState::default(); plan.steps.len() + plan.undos.len()],
            begun: Vec::new(),
            undoing: false,
            things: Vec::new(),
            index: plan.everything().enumerate().map(|(at, step)| (step.id.clone(), at)).collect(),
        }
    }

    /// Returns the position of a step in the plan.
    pub fn position(&self, id: &StepId) -> Option<usize> {
        self.index.get(id).copied()
    }

    /// Takes one event in. Advisory events change nothing.
    pub fn apply(&mut self, event: &EventKind) -> Result<(), IllegalEvent> {
        match event {
            EventKind::RunDeclared { incident_at_ms, .. } => {
                self.expect_phase(event, &[Phase::New])?;
                self.incident_at_ms = *incident_at_ms;
                self.phase = Phase::Main;
            }
            EventKind::EndingBegan { outcome, undo, .. } => {
                self.expect_phase(event, &[Phase::Main])?;
                self.undoing = *undo;
                self.phase = Phase::Ending(*outcome);
            }
            EventKind::RunFinished { outcome } => {
                self.expect_phase(event, &[Phase::Ending(*outcome)])?;
                self.phase = Phase::Finished(*outcome);
            }
            EventKind::ThingCreated { step, thing } => self.thing_created(step, thing),
            EventKind::ThingRemoved { id, removed, .. } => {
                if *removed {
                    self.things.retain(|(_, thing)| &thing.id != id);
                }
            }
            EventKind::Decided { decision, .. } => self.decided(event, decision)?,
            _ => self.apply_step(event)?,
        }
        Ok(())
    }

    fn thing_created(&mut self, step: &StepId, thing: &Created) {
        match self.things.iter_mut().find(|(_, known)| known.id == thing.id) {
            Some(known) => *known = (step.clone(), thing.clone()),
            None => self.things.push((step.clone(), thing.clone())),
        }
    }

    fn apply_step(&mut self, event: &EventKind) -> Result<(), IllegalEvent> {
        match event {
            EventKind::AttemptStarted { step, attempt, .. } => {
                let state = self.step_mut(event, step)?;
                state.expect(event, "it is not waiting", |phase| {
                    matches!(
                        phase,
                        StepPhase::Waiting | StepPhase::WaitingRetry { .. } | StepPhase::Settling(_)
                    )
                })?;
                let first = state.attempt == 0;
                state.attempt = *attempt;
                state.used += 1;
                state.phase = StepPhase::Running;
                if first && let Some(at) = self.position(step) {
                    self.begun.push(at);
                }
            }
            EventKind::AttemptFinished { step, attempt, result } => {
                let state = self.step_mut(event, step)?;
                state.expect(event, "no attempt of it is running", |phase| *phase == StepPhase::Running)?;
                state.attempt_finished(result);
                if *attempt == 1 && never_ran(result) {
                    let at = self.position(step);
                    self.begun.retain(|begun| Some(*begun) != at);
                }
            }
            EventKind::RetryScheduled { step, at_ms, .. } => {
                self.step_mut(event, step)?.phase = StepPhase::WaitingRetry { at_ms: *at_ms };
            }
            EventKind::StepFinished { step, outcome } => {
                let state = self.step_mut(event, step)?;
                state.expect(event, "it has ended already", |phase| !matches!(phase, StepPhase::Ended(_)))?;
                state.phase = StepPhase::Ended(outcome.clone());
            }
            EventKind::StepHeld { step, failure } => {
                let state = self.step_mut(event, step)?;
                state.last_failure = Some(failure.clone());
                state.phase = StepPhase::Held;
            }
            EventKind::Recorded { step, key, value } => {
                self.step_mut(event, step)?.recorded.insert(key.clone(), value.clone());
            }
            EventKind::QuestionAsked { step, question } => {
                self.step_mut(event, step)?
                    .questions
                    .entry(question.id.clone())
                    .or_insert_with(|| (question.clone(), None));
            }
            EventKind::QuestionAnswered { step, question, answer } => {
                if let Some((_, slot)) = self.step_mut(event, step)?.questions.get_mut(question) {
                    slot.get_or_insert_with(|| answer.clone());
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn decided(
        &mut self,
        event: &EventKind,
        decision: &crate::model::event::Decision,
    ) -> Result<(), IllegalEvent> {
        use crate::model::event::Decision;
        match decision {
            Decision::Pause => self.paused = true,
            Decision::Unpause => self.paused = false,
            Decision::RetryStep { step } => {
                let state = self.step_mut(event, step)?;
                state.granted += 1;
                state.phase = StepPhase::Waiting;
            }
            _ => {}
        }
        Ok(())
    }

    fn step_mut(&mut self, event: &EventKind, id: &StepId) -> Result<&mut StepState, IllegalEvent> {
        match self.index.get(id) {
            Some(&at) => Ok(&mut self.steps[at]),
            None => Err(illegal(event, &format!("the plan has no step `{id}`"))),
        }
    }

    fn expect_phase(&self, event: &EventKind, allowed: &[Phase]) -> Result<(), IllegalEvent> {
        if allowed.contains(&self.phase) {
            return Ok(());
        }
        Err(illegal(event, &format!("the run is {:?}", self.phase)))
    }
}

impl StepState {
    fn expect(
        &self,
        event: &EventKind,
        reason: &str,
        allowed: impl FnOnce(&StepPhase) -> bool,
    ) -> Result<(), IllegalEvent> {
        if allowed(&self.phase) { Ok(()) } else { Err(illegal(event, reason)) }
    }

    fn attempt_finished(&mut self, result: &AttemptResult) {
        match result {
            AttemptResult::Succeeded { done } => self.done = Some(done.clone()),
            AttemptResult::Failed { failure, .. } => self.last_failure = Some(failure.clone()),
            // What a crash or a signal took away was not the step's fault.
            AttemptResult::Lost | AttemptResult::Interrupted => self.used -= 1,
        }
        self.phase = StepPhase::Settling(result.clone());
    }

    /// Says whether the running attempt waits for a person's answer.
    pub fn asks(&self) -> bool {
        self.phase == StepPhase::Running && self.questions.values().any(|(_, answer)| answer.is_none())
    }

    /// Returns how the step ended, if it has.
    pub fn outcome(&self) -> Option<&Outcome> {
        match &self.phase {
            StepPhase::Ended(outcome) => Some(outcome),
            _ => None,
        }
    }
}

/// Says whether an attempt failed before anything of the step ran: there is nothing to undo then.
fn never_ran(result: &AttemptResult) -> bool {
    let before_start = [code::LB0301.id, code::LB0309.id];
    matches!(result, AttemptResult::Failed { failure, .. } if before_start.contains(&failure.code.as_str()))
}

fn illegal(event: &EventKind, reason: &str) -> IllegalEvent {
    let name = serde_json::to_value(event)
        .ok()
        .and_then(|value| value["kind"].as_str().map(ToOwned::to_owned))
        .unwrap_or_default();
    IllegalEvent { event: name, reason: reason.to_owned() }
}
