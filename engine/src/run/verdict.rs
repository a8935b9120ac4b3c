//! Whether what people ask of a run is granted.
//!
//! It follows from the plan and the state alone, so that a word typed in the run's terminal, a command of another
//! process and one that is given while no process drives the run are judged alike. What was recorded first counts.

use jiff::Timestamp;
use serde_json::Value;

use crate::diagnostic::nearest_help;
use crate::model::event::{Answer, ApprovalRule, AttemptResult, Decision, EventKind, Person, Question};
use crate::model::ids::{RunId, StepId};
use crate::model::outcome::{Mode, Outcome, RunOutcome};
use crate::model::request::Request;
use crate::plan::Plan;
use crate::report::typed;
use crate::step::Registry;

use super::answer::check_answer;
use super::preview::{Fate, Looker};
use super::state::{Phase, RunState, StepPhase};
use super::unit::Unit;

/// What becomes of a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// It is recorded; what follows from it follows from the event.
    Granted(Box<EventKind>),
    /// The same person has said the same before, and it counts: there is nothing more to record.
    Known,
    /// Why not, and what to do instead.
    Refused(String),
}

/// A run to which people say something.
#[derive(Clone, Copy, Debug)]
pub struct Hearing<'a> {
    pub run: RunId,
    pub plan: &'a Plan,
    pub state: &'a RunState,
}

impl Hearing<'_> {
    /// Judges a request.
    pub fn judge(&self, request: Request) -> Verdict {
        if let Phase::Finished(outcome) = self.state.phase {
            return Verdict::Refused(self.over(outcome));
        }
        match request {
            Request::Answer { step, question, answer } => self.judge_answer(step, question, answer),
            Request::Decide { by, decision } => match self.against(&decision) {
                Some(reason) => Verdict::Refused(reason),
                None => Verdict::Granted(Box::new(EventKind::Decided { by, decision })),
            },
        }
    }

    fn over(&self, outcome: RunOutcome) -> String {
        let how = match outcome {
            RunOutcome::Succeeded => "succeeded",
            RunOutcome::Failed => "failed",
            RunOutcome::Aborted => "was aborted",
        };
        let short = self.run.short();
        format!(
            "the run {short} has ended: it {how}, and nothing of it can be decided any more; see `lifeboat report {short}`"
        )
    }

    fn judge_answer(&self, step: StepId, id: String, answer: Answer) -> Verdict {
        let Some(unit) = self.state.unit(&step) else { return Verdict::Refused(self.unknown(&step)) };
        let state = self.state.of(unit);
        let Some((question, given)) = state.questions.get(&id) else {
            return Verdict::Refused(format!(
                "`{step}` asks nothing: {}{}",
                self.standing(unit),
                self.undoing()
            ));
        };
        if let Some(given) = given {
            return self.answered_before(&step, given, &answer);
        }
        let is_over = match &state.phase {
            StepPhase::Held | StepPhase::Decided(_) | StepPhase::Ended(_) => true,
            StepPhase::Settling(result) => {
                !matches!(result, AttemptResult::Lost | AttemptResult::Interrupted)
            }
            _ => false,
        };
        if is_over {
            return Verdict::Refused(format!(
                "`{step}` asks no more: {}{}",
                self.standing(unit),
                self.undoing()
            ));
        }
        if let Err(why) = check_answer(question, &answer.choice) {
            return Verdict::Refused(format!("that is no answer to `{step}`: {why}"));
        }
        let given = state.given(&id);
        if let Some(verdict) = against_points(&step, question, &given, &answer) {
            return verdict;
        }
        match self.may_not(&step, question, &answer) {
            Some(reason) => Verdict::Refused(reason),
            None => Verdict::Granted(Box::new(EventKind::QuestionAnswered { step, question: id, answer })),
        }
    }

    fn answered_before(&self, step: &StepId, given: &Answer, answer: &Answer) -> Verdict {
        if given.by.name == answer.by.name && given.choice == answer.choice {
            return Verdict::Known;
        }
        let short = self.run.short();
        Verdict::Refused(format!(
            "`{step}` was answered already: {} by {}; `{}` by {} does not count (`lifeboat status {short}` shows how the run \
             goes on)",
            given.choice, given.by.name, answer.choice, answer.by.name
        ))
    }

    /// Says why this person cannot give this answer.
    fn may_not(&self, step: &StepId, question: &Question, answer: &Answer) -> Option<String> {
        if answer.automatic {
            return None;
        }
        self.lacks_role(step, question, &answer.by)
            .or_else(|| self.is_starter(step, question, answer))
            .or_else(|| self.has_answered(step, question, answer))
    }

    fn lacks_role(&self, step: &StepId, question: &Question, by: &Person) -> Option<String> {
        let role = question.role.as_ref()?;
        let holders = self.plan.approvers.as_ref()?.get(role)?;
        if holders.contains(&by.name) {
            return None;
        }
        Some(format!(
            "`{step}` asks {role}: {}; {} does not have that role{}. Whoever has it answers, with `--as NAME` where the \
             login is another",
            holders.join(", "),
            by.name,
            self.contacts(role)
        ))
    }

    fn is_starter(&self, step: &StepId, question: &Question, answer: &Answer) -> Option<String> {
        let rule = question.rule.filter(|rule| !rule.allow_starter)?;
        // Where the project names nobody, one name cannot be told from another.
        self.plan.approvers.as_ref()?;
        let starter = self.state.started_by.as_ref()?;
        if starter.name != answer.by.name || question.choices.first() != Some(&answer.choice) {
            return None;
        }
        let contacts = question.role.as_ref().map(|role| self.contacts(role)).unwrap_or_default();
        let who = if rule.minimum > 1 { "other people" } else { "somebody else" };
        Some(format!(
            "{} started this run, and `{step}` takes the approval of {who}{contacts}. A runbook allows it with \
             `allow_starter: true`",
            starter.name
        ))
    }

    fn has_answered(&self, step: &StepId, question: &Question, answer: &Answer) -> Option<String> {
        let ApprovalRule { minimum, .. } = question.rule?;
        let given = self.state.of(self.state.unit(step)?).given(&question.id);
        let same =
            given.iter().find(|given| given.by.name == answer.by.name && given.choice == answer.choice)?;
        Some(format!(
            "{} has said {} to `{step}` already: {} of {minimum}, the others must come from other people",
            same.by.name,
            same.choice,
            given.len()
        ))
    }

    fn contacts(&self, role: &str) -> String {
        let contacts = self.plan.contacts.get(role).filter(|people| !people.is_empty());
        contacts.map(|people| format!(" (ask: {})", people.join(", "))).unwrap_or_default()
    }

    /// Says why a decision cannot be taken now.
    fn against(&self, decision: &Decision) -> Option<String> {
        let (step, verb) = match decision {
            Decision::RetryStep { step } => (step, "retried"),
            Decision::SkipStep { step, .. } => (step, "skipped"),
            Decision::MarkDone { step, .. } => (step, "marked done"),
            Decision::Abort { .. } | Decision::Cancel { .. } => return self.against_ending(),
            Decision::Pause if matches!(self.state.phase, Phase::Ending(_)) => return self.against_ending(),
            Decision::Pause | Decision::Unpause | Decision::Note { .. } => return None,
        };
        let Some(unit) = self.state.unit(step) else { return Some(self.unknown(step)) };
        if let Some((by, _)) = &self.state.ended_by {
            return Some(format!("`{step}` cannot be {verb}: {} has ended the run", by.name));
        }
        if self.state.of(unit).phase == StepPhase::Held {
            return None;
        }
        Some(match self.held_element(unit) {
            Some(element) => {
                format!("`{step}` is not held, but its element `{element}` is: name {}", typed(&element))
            }
            None => format!(
                "`{step}` is not held and cannot be {verb}: {}{}",
                self.standing(unit),
                self.undoing()
            ),
        })
    }

    fn against_ending(&self) -> Option<String> {
        let short = self.run.short();
        if let Some((by, _)) = &self.state.ended_by {
            return Some(format!(
                "{} has ended the run already; `lifeboat status {short}` shows how far it is",
                by.name
            ));
        }
        let Phase::Ending(outcome) = self.state.phase else { return None };
        let how = match outcome {
            RunOutcome::Succeeded => "every step has ended, and only what runs always is left",
            RunOutcome::Failed => "a step has failed",
            RunOutcome::Aborted => "a person has ended it",
        };
        Some(format!("the run is ending already: {how}{}", self.undoing()))
    }

    /// Says, after a refusal, that nothing else is left to decide.
    fn undoing(&self) -> &'static str {
        let open = |unit: &Unit| self.state.of(*unit).outcome().is_none();
        let undoing = self.state.undoing && self.state.undos_of_begun(self.plan).iter().any(open);
        if undoing { "; the run is being undone, which goes on to its end" } else { "" }
    }

    fn unknown(&self, step: &StepId) -> String {
        let whole = step.whole();
        if let Some(elements) = self.state.position(&whole).filter(|_| step.element().is_some()) {
            return match &self.state.steps[elements].elements {
                Some(chosen) => format!("`{whole}` has {} elements, and no `{step}`", chosen.items.len()),
                None => format!("`{whole}` has no element yet: {}", self.standing(Unit::whole(elements))),
            };
        }
        let steps = self.plan.steps.iter().map(|step| step.id.as_str());
        let help = nearest_help(step.as_str(), "its steps", steps).map(|help| format!(" ({help})"));
        format!("the run has no step `{step}`{}", help.unwrap_or_default())
    }

    fn held_element(&self, unit: Unit) -> Option<StepId> {
        let elements =
            self.state.steps[unit.position].elements.as_ref().filter(|_| unit.element.is_none())?;
        let held = elements.states.iter().position(|state| state.phase == StepPhase::Held)?;
        Some(self.plan.at(unit.position).id.of_element(held))
    }

    /// Says where a step is, and what a person can do about it.
    fn standing(&self, unit: Unit) -> String {
        let (state, short) = (self.state.of(unit), self.run.short());
        let step = typed(&unit.id(self.plan));
        match &state.phase {
            StepPhase::Held => {
                format!(
                    "it is held; `lifeboat retry {short} {step}` tries it again, and what it asks is asked anew"
                )
            }
            StepPhase::Waiting if state.attempt == 0 => "it has not started".to_owned(),
            StepPhase::Waiting => match self.state.retried_by.get(&unit) {
                Some(by) => format!("{by} has had it tried again"),
                None => "it is about to be tried again".to_owned(),
            },
            StepPhase::Running if state.asks() => {
                format!("it waits for an answer; `lifeboat status {short}` shows what it asks")
            }
            StepPhase::Running => {
                let by = self.state.retried_by.get(&unit).map(|by| format!(", tried again by {by}"));
                format!("it is running (attempt {}{})", state.attempt, by.unwrap_or_default())
            }
            StepPhase::Repeating => "its elements are running".to_owned(),
            StepPhase::WaitingRetry { .. } => "its next attempt comes by itself".to_owned(),
            StepPhase::Settling(_) => {
                "its last attempt has ended, and what follows from it comes by itself".to_owned()
            }
            StepPhase::Decided(outcome) | StepPhase::Ended(outcome) => {
                format!("it has ended: {}", in_words(outcome))
            }
        }
    }
}

/// Judges which points of a question an answer is about.
fn against_points(step: &StepId, question: &Question, given: &[&Answer], answer: &Answer) -> Option<Verdict> {
    let count = question.points.len();
    let refused = |why: String| Some(Verdict::Refused(why));
    if let Some(point) = answer.points.iter().find(|point| **point == 0 || **point as usize > count) {
        return refused(match count {
            0 => format!("`{step}` asks one thing and has no point {point}"),
            _ => format!("`{step}` has {count} points, and no point {point}"),
        });
    }
    if count == 0 || answer.automatic || question.choices.first() != Some(&answer.choice) {
        return None;
    }
    if answer.points.is_empty() {
        let open: Vec<_> = question.open_points(given).iter().map(ToString::to_string).collect();
        return refused(format!(
            "`{step}` is confirmed point by point: say which, with `--point NUMBER`; open: {}",
            open.join(", ")
        ));
    }
    let confirmed = |point: &&u32| given.iter().any(|before| before.points.contains(point));
    let point = answer.points.iter().find(confirmed)?;
    let before = given.iter().find(|before| before.points.contains(point))?;
    if before.by.name == answer.by.name && before.points == answer.points {
        return Some(Verdict::Known);
    }
    refused(format!("point {point} of `{step}` was confirmed by {} already", before.by.name))
}

/// An approval that the people of its role cannot give if a certain person starts the run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unapprovable {
    pub step: StepId,
    pub role: String,
    pub holders: Vec<String>,
    pub minimum: u64,
    /// The conditions of which nobody knows before the run whether they hold.
    pub conditions: Vec<String>,
}

/// Finds the approvals of a plan that nobody could give, or not enough people. Those that are known to be skipped are left
/// out; those that may come are not.
pub fn unapprovable(
    plan: &Plan,
    registry: &Registry,
    (starter, incident_at): (&str, Timestamp),
) -> Vec<Unapprovable> {
    let answers_itself = plan.mode == Mode::Drill && plan.auto_approvals && !plan.protected;
    let Some(approvers) = plan.approvers.as_ref().filter(|_| !answers_itself) else { return Vec::new() };
    let looker = Looker::new(plan, registry, incident_at);
    let mut found = Vec::new();
    for step in &plan.steps {
        let conditions = match looker.fate(step) {
            Fate::Skipped { .. } => continue,
            Fate::Depends { conditions } => conditions,
            Fate::Runs | Fate::AfterFailure { .. } => Vec::new(),
        };
        let Some(spec) = registry.spec(&step.uses).filter(|spec| spec.waits_for_people) else { continue };
        let with = |key: &str| step.with.get(key);
        let Some(role) = with("role").and_then(|role| role.as_str()) else { continue };
        let Some(holders) = approvers.get(role) else { continue };
        let keeps_out = spec.params.iter().any(|param| param.name == "allow_starter");
        // What a template decides is known only when the step is ready.
        let starter_counts =
            !keeps_out || with("allow_starter").is_some_and(|allow| allow != &Value::Bool(false));
        let minimum = with("minimum").and_then(Value::as_u64).unwrap_or(1);
        let others = holders.iter().filter(|holder| starter_counts || *holder != starter).count();
        if (others as u64) < minimum {
            let (role, holders) = (role.to_owned(), holders.clone());
            found.push(Unapprovable { step: step.id.clone(), role, holders, minimum, conditions });
        }
    }
    found
}

fn in_words(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Succeeded => "succeeded".to_owned(),
        Outcome::Skipped { reason } if reason.starts_with("skipped") => reason.clone(),
        Outcome::Skipped { reason } => format!("skipped: {reason}"),
        Outcome::Failed { failure } => format!("failed: {}", failure.message),
        Outcome::MarkedDone { by, reason } => format!("marked done by {by}: {reason}"),
        Outcome::NotRun { reason } => format!("not run: {reason}"),
    }
}
