//! Questions, answers and decisions.

use crate::model::event::{Answer, Decision, EventKind, Person, Question};
use crate::model::ids::StepId;
use crate::model::outcome::Mode;
use crate::model::request::Request;
use crate::run::answer::automatic;
use crate::run::state::{IllegalEvent, StepPhase};
use crate::run::unit::Unit;
use crate::run::verdict::{Hearing, Verdict};

use super::{Action, Dispatcher};

impl Dispatcher {
    /// Takes note that an attempt waits for an answer. A question that an earlier attempt has asked is recorded again, for
    /// whoever looks at this process has not seen it.
    pub(super) fn asked(&mut self, step: StepId, question: Question) -> Result<(), IllegalEvent> {
        let Some(unit) = self.state.unit(&step) else { return Ok(()) };
        let id = question.id.clone();
        if let Some((_, Some(answer))) = self.of(unit).questions.get(&id) {
            let answer = answer.clone();
            self.actions.push(Action::Deliver { step, question: id, answer });
            return Ok(());
        }
        self.emit(EventKind::QuestionAsked { step: step.clone(), question: question.clone() })?;
        let automatic = if self.answers_itself() { automatic(&question) } else { None };
        let Some(choice) = automatic else { return Ok(()) };
        let by = Person { name: "drill settings".to_owned(), uid: 0 };
        self.answer(step, id, Answer { automatic: true, ..Answer::new(choice, by) })
    }

    fn answers_itself(&self) -> bool {
        self.plan.mode == Mode::Drill && self.plan.auto_approvals && !self.plan.protected
    }

    /// Records an answer, and gives it to the attempt that waits if it settles the question.
    fn answer(&mut self, step: StepId, question: String, answer: Answer) -> Result<(), IllegalEvent> {
        self.emit(EventKind::QuestionAnswered { step: step.clone(), question: question.clone(), answer })?;
        let unit = self.state.unit(&step);
        let settled = unit.and_then(|unit| self.of(unit).questions.get(&question)?.1.clone());
        self.actions.extend(settled.map(|answer| Action::Deliver { step, question, answer }));
        Ok(())
    }

    pub(super) fn request(&mut self, request: Request) -> Result<(), IllegalEvent> {
        let by = request.by().clone();
        let hearing = Hearing { run: self.run, plan: &self.plan, state: &self.state };
        match hearing.judge(request) {
            Verdict::Granted(event) => match *event {
                EventKind::QuestionAnswered { step, question, answer } => self.answer(step, question, answer),
                EventKind::Decided { by, decision } => self.decide(by, decision),
                other => self.emit(other),
            },
            Verdict::Known => Ok(()),
            Verdict::Refused(reason) => {
                self.actions.push(Action::Refuse { by, reason });
                Ok(())
            }
        }
    }

    fn decide(&mut self, by: Person, decision: Decision) -> Result<(), IllegalEvent> {
        let held = match &decision {
            Decision::RetryStep { step }
            | Decision::SkipStep { step, .. }
            | Decision::MarkDone { step, .. } => self.state.unit(step),
            _ => None,
        };
        if let Some(unit) = held {
            self.element_released(unit);
        }
        self.emit(EventKind::Decided { by, decision })?;
        match held {
            Some(unit) => self.follow_decision(unit),
            None => self.end_as_decided(),
        }
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
