//! Questions, answers and decisions.

use crate::model::event::{Answer, Decision, EventKind, Person, Question};
use crate::model::ids::StepId;
use crate::model::outcome::{Mode, Outcome, RunOutcome};
use crate::model::request::Request;
use crate::run::state::{IllegalEvent, Phase, StepPhase};

use super::ending::Undo;
use super::{Action, Dispatcher};

impl Dispatcher {
    pub(super) fn asked(&mut self, step: StepId, question: Question) -> Result<(), IllegalEvent> {
        let Some(at) = self.state.position(&step) else { return Ok(()) };
        let id = question.id.clone();
        let known = self.state.steps[at].questions.get(&id).cloned();
        if known.is_none() {
            self.emit(EventKind::QuestionAsked { step: step.clone(), question: question.clone() })?;
        }
        match known.and_then(|(_, answer)| answer) {
            Some(answer) => self.actions.push(Action::Deliver { step, question: id, answer }),
            None if self.answers_itself() => {
                let answer = Answer {
                    choice: question.choices.first().cloned().unwrap_or_default(),
                    by: Person { name: "drill settings".to_owned(), uid: 0 },
                    comment: None,
                    automatic: true,
                };
                self.answer(step, id, answer)?;
            }
            None => {}
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

    pub(super) fn request(&mut self, request: Request, now_ms: i64) -> Result<(), IllegalEvent> {
        let refusal = match request {
            Request::Answer { step, question, answer } => self.take_answer(step, question, answer)?,
            Request::Decide { by, decision } => self.decide(by, decision, now_ms)?,
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
        let position = self.state.position(&step);
        if position.is_some_and(|at| self.state.steps[at].outcome().is_some()) {
            return Ok(Some(format!("`{step}` has ended{}", self.why_ended())));
        }
        let asked = position.and_then(|at| self.state.steps[at].questions.get(&question));
        match asked {
            None => Ok(Some(format!("`{step}` asks no question `{question}`"))),
            Some((_, Some(given))) => {
                Ok(Some(format!("`{step}` was answered already: {} by {}", given.choice, given.by.name)))
            }
            Some((known, None)) if !known.choices.contains(&answer.choice) => Ok(Some(format!(
                "`{}` is no answer to `{step}`: {}",
                answer.choice,
                known.choices.join(" or ")
            ))),
            Some((_, None)) => self.answer(step, question, answer).map(|()| None),
        }
    }

    /// Says, after a refusal, that the run is being undone and why nothing else is left to decide.
    fn why_ended(&self) -> &'static str {
        if self.undos.is_empty() { "" } else { ": the run is being undone, which goes on to its end" }
    }

    fn decide(
        &mut self,
        by: Person,
        decision: Decision,
        now_ms: i64,
    ) -> Result<Option<String>, IllegalEvent> {
        let held = match &decision {
            Decision::RetryStep { step }
            | Decision::SkipStep { step, .. }
            | Decision::MarkDone { step, .. } => {
                let at = self.state.position(step);
                let Some(at) = at.filter(|at| self.state.steps[*at].phase == StepPhase::Held) else {
                    return Ok(Some(format!("`{step}` is not held{}", self.why_ended())));
                };
                Some(at)
            }
            Decision::Abort { .. } | Decision::Cancel { .. } if self.state.phase != Phase::Main => {
                return Ok(Some(format!("the run is ending already{}", self.why_ended())));
            }
            _ => None,
        };
        let name = by.name.clone();
        self.emit(EventKind::Decided { by, decision: decision.clone() })?;
        match (decision, held) {
            (Decision::RetryStep { .. }, Some(at)) => self.launch(at, now_ms)?,
            (Decision::SkipStep { reason, .. }, Some(at)) => {
                self.end_step(at, Outcome::Skipped { reason: format!("skipped by {name}: {reason}") })?;
            }
            (Decision::MarkDone { reason, .. }, Some(at)) => {
                self.end_step(at, Outcome::MarkedDone { by: name, reason })?;
            }
            (Decision::Abort { reason }, _) => {
                self.begin_ending(RunOutcome::Aborted, format!("ended by {name}: {reason}"), Undo::Begun)?;
            }
            (Decision::Cancel { reason }, _) => {
                self.begin_ending(RunOutcome::Aborted, format!("ended by {name}: {reason}"), Undo::Nothing)?;
            }
            _ => {}
        }
        Ok(None)
    }
}
