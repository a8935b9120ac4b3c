//! The state of a run: the fold of its journal.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Map, Value};

use crate::code;
use crate::model::event::{Answer, AttemptResult, Decision, Done, EventKind, Person, Question};
use crate::model::evidence::Created;
use crate::model::ids::{Attempt, StepId};
use crate::model::outcome::{Failure, Outcome, RunOutcome};
use crate::plan::Plan;
use crate::resource::{Resource, made_by};

use super::unit::Unit;

/// Where a run is, after every event so far. Changes in [`RunState::apply`] and nowhere else, so that a fresh run
/// and a resumed one cannot differ.
#[derive(Clone, Debug, PartialEq)]
pub struct RunState {
    pub phase: Phase,
    pub paused: bool,
    pub incident_at_ms: i64,
    pub started_by: Option<Person>,
    /// Who had a step tried again last.
    pub retried_by: BTreeMap<Unit, String>,
    /// By position: all steps, then all undos.
    pub steps: Vec<StepState>,
    /// What has begun, in the order of the first attempts.
    pub begun: Vec<Unit>,
    /// The run ends with undo: what has begun is taken back before `always`.
    pub undoing: bool,
    /// A person has ended the run, and that its end begins is not yet recorded.
    pub ended_by: Option<(Person, Decision)>,
    /// Why the run ends, in words for people; empty until it does.
    pub why_it_ends: String,
    /// What the systems to be written were when destroying them was confirmed; empty where nothing had to be.
    pub targets: Vec<String>,
    /// What was made and not yet removed, in the order in which it was made.
    pub things: Vec<(StepId, Created)>,
    /// The systems that steps have made, under the names that later steps use.
    pub made: BTreeMap<String, Resource>,
    index: HashMap<StepId, usize>,
    /// The positions of the undos of steps, by the positions of the steps.
    undos: HashMap<usize, usize>,
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
    /// By their ids, with the answer once it counts.
    pub questions: BTreeMap<String, (Question, Option<Answer>)>,
    /// Answers to questions that need more of them, by the ids of the questions.
    pub partial: Vec<(String, Answer)>,
    /// What it is repeated for, once that has been evaluated.
    pub elements: Option<Elements>,
}

/// The elements of a step that is repeated for each of them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Elements {
    /// What each of them is.
    pub items: Vec<Value>,
    /// Where each of them is; elements have no elements.
    pub states: Vec<StepState>,
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
    /// A person has decided what becomes of it, and its end is not yet recorded.
    Decided(Outcome),
    /// What it is repeated for is known, and not all elements have ended.
    Repeating,
    Ended(Outcome),
}

/// An event that cannot follow from the state before it: the journal is not one that this program wrote.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the event `{event}` cannot follow here: {reason}")]
pub struct IllegalEvent {
    pub event: String,
    pub reason: String,
}

impl Elements {
    fn new(items: &[Value]) -> Self {
        Self { items: items.to_vec(), states: vec![StepState::default(); items.len()] }
    }
}

impl RunState {
    /// Makes the state of a run that has no event yet.
    pub fn new(plan: &Plan) -> Self {
        let index: HashMap<_, _> =
            plan.everything().enumerate().map(|(at, step)| (step.id.clone(), at)).collect();
        Self {
            phase: Phase::New,
            paused: false,
            incident_at_ms: 0,
            started_by: None,
            retried_by: BTreeMap::new(),
            steps: vec![StepState::default(); plan.steps.len() + plan.undos.len()],
            begun: Vec::new(),
            undoing: false,
            ended_by: None,
            why_it_ends: String::new(),
            targets: Vec::new(),
            things: Vec::new(),
            made: BTreeMap::new(),
            undos: undos(plan, &index),
            index,
        }
    }

    /// Returns the position of a step in the plan.
    pub fn position(&self, id: &StepId) -> Option<usize> {
        self.index.get(id).copied()
    }

    /// Returns the step or element that an id names; `None` for an element that has not been chosen.
    pub fn unit(&self, id: &StepId) -> Option<Unit> {
        let Some(element) = id.element() else { return self.position(id).map(Unit::whole) };
        let position = self.position(&id.whole())?;
        let elements = self.steps[position].elements.as_ref()?;
        (element < elements.states.len()).then_some(Unit::element(position, element))
    }

    /// Returns where a step or an element is.
    ///
    /// # Panics
    ///
    /// If the unit is not one of this run.
    pub fn of(&self, unit: Unit) -> &StepState {
        let step = &self.steps[unit.position];
        match (unit.element, &step.elements) {
            (Some(element), Some(elements)) => &elements.states[element],
            _ => step,
        }
    }

    /// Returns the undos of all that has begun, newest first. An element has one of its own.
    pub fn undos_of_begun(&self, plan: &Plan) -> Vec<Unit> {
        let main = plan.steps.len();
        let begun = self.begun.iter().rev().filter(|unit| unit.position < main);
        begun.filter_map(|unit| Some(Unit { position: *self.undos.get(&unit.position)?, ..*unit })).collect()
    }

    /// Takes one event in. Advisory events change nothing.
    pub fn apply(&mut self, event: &EventKind) -> Result<(), IllegalEvent> {
        match event {
            EventKind::RunDeclared { incident_at_ms, by, .. } => {
                self.expect_phase(event, &[Phase::New])?;
                self.started_by = Some(by.clone());
                self.incident_at_ms = *incident_at_ms;
                self.phase = Phase::Main;
            }
            EventKind::TargetsConfirmed { targets, .. } => self.targets.clone_from(targets),
            EventKind::EndingBegan { outcome, reason, undo } => {
                self.expect_phase(event, &[Phase::Main])?;
                self.undoing = *undo;
                self.why_it_ends.clone_from(reason);
                self.ended_by = None;
                // Who ends a run wants its end, and not what is paused. An end that nobody has asked for waits.
                self.paused &= *outcome != RunOutcome::Aborted;
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
            EventKind::Decided { by, decision } => self.decided(event, by, decision)?,
            _ => self.apply_step(event)?,
        }
        Ok(())
    }

    /// Takes in the system that a step has made.
    fn take_made(&mut self, step: &StepId, result: &AttemptResult) {
        let AttemptResult::Succeeded { done } = result else { return };
        let made = done.resource.clone().and_then(|value| serde_json::from_value(value).ok());
        self.made.extend(made.map(|resource| (made_by(step.as_str()), resource)));
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
                if first {
                    let unit = self.unit(step);
                    self.begun.extend(unit);
                }
            }
            EventKind::ElementsChosen { step, elements } => {
                let state = self.step_mut(event, step)?;
                state.expect(event, "it is not waiting", |phase| *phase == StepPhase::Waiting)?;
                state.elements = Some(Elements::new(elements));
                state.phase = StepPhase::Repeating;
                self.prepare_undos(step, elements);
            }
            EventKind::AttemptFinished { step, attempt, result } => {
                let state = self.step_mut(event, step)?;
                state.expect(event, "no attempt of it is running", |phase| *phase == StepPhase::Running)?;
                state.attempt_finished(result);
                if *attempt == 1 && never_ran(result) {
                    let unit = self.unit(step);
                    self.begun.retain(|begun| Some(*begun) != unit);
                }
                self.take_made(step, result);
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
                self.step_mut(event, step)?.answered(question, answer);
            }
            _ => {}
        }
        Ok(())
    }

    /// Each element is undone by itself.
    fn prepare_undos(&mut self, step: &StepId, elements: &[Value]) {
        let undo = self.position(step).and_then(|at| self.undos.get(&at).copied());
        if let Some(undo) = undo {
            self.steps[undo].elements = Some(Elements::new(elements));
        }
    }

    fn decided(&mut self, event: &EventKind, by: &Person, decision: &Decision) -> Result<(), IllegalEvent> {
        match decision {
            Decision::Pause => self.paused = true,
            Decision::Unpause => self.paused = false,
            Decision::RetryStep { step } => {
                let state = self.step_mut(event, step)?;
                state.granted += 1;
                // What was answered led to the failure: it is asked anew.
                state.questions.clear();
                state.partial.clear();
                state.phase = StepPhase::Waiting;
                let unit = self.unit(step);
                self.retried_by.extend(unit.map(|unit| (unit, by.name.clone())));
            }
            Decision::SkipStep { step, reason } => {
                let reason = format!("skipped by {}: {reason}", by.name);
                self.step_mut(event, step)?.phase = StepPhase::Decided(Outcome::Skipped { reason });
            }
            Decision::MarkDone { step, reason } => {
                let outcome = Outcome::MarkedDone { by: by.name.clone(), reason: reason.clone() };
                self.step_mut(event, step)?.phase = StepPhase::Decided(outcome);
            }
            Decision::Abort { .. } | Decision::Cancel { .. } => {
                self.ended_by = Some((by.clone(), decision.clone()));
            }
            Decision::Note { .. } => {}
        }
        Ok(())
    }

    fn step_mut(&mut self, event: &EventKind, id: &StepId) -> Result<&mut StepState, IllegalEvent> {
        let unknown = || illegal(event, &format!("the plan has no step `{id}`"));
        let unit = self.unit(id).ok_or_else(unknown)?;
        let step = &mut self.steps[unit.position];
        let Some(element) = unit.element else { return Ok(step) };
        step.elements.as_mut().and_then(|elements| elements.states.get_mut(element)).ok_or_else(unknown)
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

    fn answered(&mut self, id: &str, answer: &Answer) {
        let Some((question, slot @ None)) = self.questions.get_mut(id) else { return };
        let mut said: Vec<_> = self.partial.iter().filter(|(of, _)| of == id).map(|(_, it)| it).collect();
        said.push(answer);
        // Whatever is not the first choice settles it at once.
        if question.choices.first() != Some(&answer.choice) {
            *slot = Some(answer.clone());
        } else if question.is_settled_by(&said) {
            *slot = Some(together(&said));
        } else {
            self.partial.push((id.to_owned(), answer.clone()));
        }
    }

    /// Returns the answers to a question that needs more of them.
    pub fn given(&self, question: &str) -> Vec<&Answer> {
        self.partial.iter().filter(|(of, _)| of == question).map(|(_, answer)| answer).collect()
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

/// Makes one answer of those that count only together: each name once, and all comments with their names.
fn together(answers: &[&Answer]) -> Answer {
    let [.., last] = answers else { unreachable!("an answer has just been given") };
    if answers.len() == 1 {
        return (*last).clone();
    }
    let mut names: Vec<&str> = Vec::new();
    for name in answers.iter().map(|answer| answer.by.name.as_str()) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let comments = answers.iter().filter_map(|it| Some(format!("{}: {}", it.by.name, it.comment.as_ref()?)));
    let comments: Vec<_> = comments.collect();
    Answer {
        comment: (!comments.is_empty()).then(|| comments.join("; ")),
        parts: answers.iter().map(|answer| (*answer).clone()).collect(),
        ..Answer::new(last.choice.clone(), Person { name: names.join(" and "), uid: last.by.uid })
    }
}

fn undos(plan: &Plan, index: &HashMap<StepId, usize>) -> HashMap<usize, usize> {
    let undos =
        plan.undos.iter().filter_map(|undo| Some((*index.get(&undo.of)?, *index.get(&undo.step.id)?)));
    undos.collect()
}

/// Says whether an attempt failed before anything of the step ran: there is nothing to undo then.
fn never_ran(result: &AttemptResult) -> bool {
    let before_start = [code::LB0301.id, code::LB0309.id, code::LB0332.id, code::LB0333.id];
    matches!(result, AttemptResult::Failed { failure, .. } if before_start.contains(&failure.code.as_str()))
}

fn illegal(event: &EventKind, reason: &str) -> IllegalEvent {
    let name = serde_json::to_value(event)
        .ok()
        .and_then(|value| value["kind"].as_str().map(ToOwned::to_owned))
        .unwrap_or_default();
    IllegalEvent { event: name, reason: reason.to_owned() }
}
