//! Questions, answers and decisions.

use crate::model::event::{Answer, Decision, EventKind, Person, Question};
use crate::model::ids::StepId;
use crate::model::outcome::Mode;
use crate::model::request::Request;
use crate::run::answer::{automatic, check_answer};
use crate::run::state::{IllegalEvent, Phase, StepPhase};

use crate::run::unit::Unit;

use super::{Action, Dispatcher};

impl Dispatcher {
    pub(super) fn asked(&mut self, step: StepId, question: Question) -> Result<(), IllegalEvent> {
        let Some(unit) = self.state.unit(&step) else { return Ok(()) };
        let id = question.id.clone();
        let known = self.of(unit).questions.get(&id).cloned();
        if known.is_none() {
            self.emit(EventKind::QuestionAsked { step: step.clone(), question: question.clone() })?;
        }
        match known.and_then(|(_, answer)| answer) {
            Some(answer) => self.actions.push(Action::Deliver { step, question: id, answer }),
            None => {
                let automatic = if self.answers_itself() { automatic(&question) } else { None };
                let Some(choice) = automatic else { return Ok(()) };
                let answer = Answer {
                    choice,
                    by: Person { name: "drill settings".to_owned(), uid: 0 },
                    comment: None,
                    automatic: true,
                };
                self.answer(step, id, answer)?;
            }
        }
        Ok(())
    }

    fn answers_itself(&self) -> bool {
        self.plan.mode == Mode::Drill && self.plan.auto_approvals && !self.plan.protected
    }

    fn answer(&mut self, step: StepId, question: String, answer: Answer) -> Result<(), IllegalEvent> {
        self.emit(EventKind::QuestionAnswered {
            step: step.clone(),
            question: question.clone(),
            answer: answer.clone(),
        })?;
        self.actions.push(Action::Deliver { step, question, answer });
        Ok(())
    }

    pub(super) fn request(&mut self, request: Request) -> Result<(), IllegalEvent> {
        let refusal = match request {
            Request::Answer { step, question, answer } => self.take_answer(step, question, answer)?,
            Request::Decide { by, decision } => self.decide(by, decision)?,
        };
        if let Some(reason) = refusal {
            self.actions.push(Action::Refuse { reason });
        }
        Ok(())
    }

    fn take_answer(
        &mut self,
        step: StepId,
        question: String,
        answer: Answer,
    ) -> Result<Option<String>, IllegalEvent> {
        let unit = self.state.unit(&step);
        if unit.is_some_and(|unit| self.of(unit).outcome().is_some()) {
            return Ok(Some(format!("`{step}` has ended{}", self.why_ended())));
        }
        let asked = unit.and_then(|unit| self.of(unit).questions.get(&question));
        match asked {
            None => Ok(Some(format!("`{step}` asks no question `{question}`"))),
            Some((_, Some(given))) => {
                Ok(Some(format!("`{step}` was answered already: {} by {}", given.choice, given.by.name)))
            }
            Some((known, None)) if check_answer(known, &answer.choice).is_err() => {
                let why = check_answer(known, &answer.choice).err().unwrap_or_default();
                Ok(Some(format!("that is no answer to `{step}`: {why}")))
            }
            Some((_, None)) => self.answer(step, question, answer).map(|()| None),
        }
    }

    fn not_held(&self, step: &StepId) -> String {
        let element = self.state.position(step).and_then(|at| self.held_element(at));
        match element {
            Some(unit) => {
                format!("`{step}` is not held, but its element `{0}` is: name `{0}`", self.id(unit))
            }
            None => format!("`{step}` is not held{}", self.why_ended()),
        }
    }

    /// Says, after a refusal, that the run is being undone and why nothing else is left to decide.
    fn why_ended(&self) -> &'static str {
        if self.undos.is_empty() { "" } else { ": the run is being undone, which goes on to its end" }
    }

    fn decide(&mut self, by: Person, decision: Decision) -> Result<Option<String>, IllegalEvent> {
        let held = match &decision {
            Decision::RetryStep { step }
            | Decision::SkipStep { step, .. }
            | Decision::MarkDone { step, .. } => {
                let unit = self.state.unit(step);
                let Some(unit) = unit.filter(|unit| self.of(*unit).phase == StepPhase::Held) else {
                    return Ok(Some(self.not_held(step)));
                };
                Some(unit)
            }
            Decision::Abort { .. } | Decision::Cancel { .. } if self.state.phase != Phase::Main => {
                return Ok(Some(format!("the run is ending already{}", self.why_ended())));
            }
            _ => None,
        };
        if let Some(unit) = held {
            self.element_released(unit);
        }
        self.emit(EventKind::Decided { by, decision })?;
        match held {
            Some(unit) => self.follow_decision(unit)?,
            None => self.end_as_decided()?,
        }
        Ok(None)
    }

    /// Goes on with a step or an element that a person has decided about.
    pub(super) fn follow_decision(&mut self, unit: Unit) -> Result<(), IllegalEvent> {
        match self.of(unit).phase.clone() {
            StepPhase::Decided(outcome) => self.end_unit(unit, outcome),
            // To be tried again: it waits for its place like everything else.
            _ => {
                self.make_ready(unit);
                Ok(())
            }
        }
    }
}
