//! Reads the events once and keeps what the report and the live view need.
//!
//! Time is made monotone first: a wall clock that went back never yields a negative duration.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use serde_json::{Map, Value};

use super::Source;
use super::gaps::gaps_before;
use super::human::Moment;
use super::model::{Activity, Doing, Owner, Segment, StepSpan};
use crate::clock::NOTABLE_MS;
use crate::model::event::{Answer, AttemptResult, Decision, Event, EventKind, Person, Question};
use crate::model::evidence::{Created, Progress};
use crate::model::ids::{Attempt, StepId};
use crate::model::outcome::{Failure, Outcome, RunOutcome};
use crate::step::NOTE;

/// What the journal says, in the shape that reports are computed from.
#[derive(Debug, Default)]
pub(super) struct Fold<'a> {
    pub(super) declared: Option<Declared<'a>>,
    /// When the incident began, as recorded; without a declaration, the time of the report.
    pub(super) incident: i64,
    /// The end of the run, or the time of the report.
    pub(super) end: i64,
    /// The time of the last event.
    pub(super) last: i64,
    pub(super) engines: Vec<Engine<'a>>,
    pub(super) steps: HashMap<&'a StepId, StepFold<'a>>,
    pub(super) segments: Vec<Segment>,
    pub(super) questions: Vec<QuestionFold<'a>>,
    pub(super) decisions: Vec<DecisionFold<'a>>,
    pub(super) notes: Vec<(i64, Option<&'a StepId>, Cow<'a, str>)>,
    pub(super) created: Vec<CreatedFold<'a>>,
    pub(super) ending: Option<(i64, RunOutcome, &'a str)>,
    /// The run ends with undo.
    pub(super) undoing: bool,
    pub(super) finished: Option<RunOutcome>,
    pub(super) paused: bool,
    /// How far the machine's clock was ahead of the run's time, each time that this had changed.
    pub(super) clock_ahead: Vec<i64>,
    /// What people have said since a process has written anything else, newest last.
    pub(super) unheard: Vec<Unheard<'a>>,
    /// The largest step back of the wall clock.
    pub(super) backward_ms: i64,
    created_at: HashMap<&'a str, usize>,
    doing: BTreeMap<Doing, usize>,
}

/// A person's word that nothing has followed from yet.
#[derive(Clone, Copy, Debug)]
pub(super) enum Unheard<'a> {
    Answer(&'a StepId, &'a Answer),
    Decision(&'a Person, &'a Decision),
}

#[derive(Debug)]
pub(super) struct Declared<'a> {
    pub(super) at: i64,
    pub(super) digest: &'a str,
    pub(super) by: &'a Person,
    pub(super) inputs: &'a Map<String, Value>,
    pub(super) engine: &'a str,
}

#[derive(Debug)]
pub(super) struct Engine<'a> {
    pub(super) at: i64,
    pub(super) pid: u32,
    pub(super) host: &'a str,
    pub(super) down_before: i64,
}

#[derive(Debug, Default)]
pub(super) struct StepFold<'a> {
    pub(super) attempts: Vec<AttemptFold<'a>>,
    pub(super) outcome: Option<(i64, &'a Outcome)>,
    /// True if it ended because the run did.
    pub(super) ended_with_run: bool,
    /// Holds, with the end of each if it has ended.
    pub(super) held: Vec<(i64, Option<i64>, &'a Failure)>,
    pub(super) retry_at: Option<(i64, Attempt)>,
    pub(super) spans: Vec<StepSpan>,
    pub(super) doing: Option<(i64, Doing)>,
    /// What it is repeated for, and since when that is known.
    pub(super) elements: Option<(i64, &'a [Value])>,
    /// The ids of the elements that have begun.
    pub(super) begun: Vec<&'a StepId>,
    /// How many of them do what.
    doings: BTreeMap<Doing, usize>,
    open_questions: usize,
}

impl StepFold<'_> {
    pub(super) fn started(&self) -> Option<i64> {
        let chosen = self.elements.map(|(at, _)| at);
        chosen.or_else(|| self.attempts.first().map(|attempt| attempt.from))
    }

    pub(super) fn ended(&self) -> Option<i64> {
        self.outcome.map(|(at, _)| at)
    }
}

#[derive(Debug)]
pub(super) struct AttemptFold<'a> {
    pub(super) number: Attempt,
    pub(super) from: i64,
    pub(super) end: Option<(i64, &'a AttemptResult)>,
    pub(super) progress: Option<&'a Progress>,
    pub(super) line: Option<&'a str>,
}

#[derive(Debug)]
pub(super) struct QuestionFold<'a> {
    pub(super) step: &'a StepId,
    pub(super) question: &'a Question,
    pub(super) asked: i64,
    /// Answers that count only together with the last one.
    pub(super) before: Vec<(i64, &'a Answer)>,
    pub(super) answer: Option<(i64, &'a Answer)>,
    /// When it stopped to matter without an answer.
    pub(super) dropped: Option<i64>,
}

#[derive(Debug)]
pub(super) struct DecisionFold<'a> {
    pub(super) at: i64,
    pub(super) by: &'a Person,
    pub(super) decision: &'a Decision,
    /// How long the step had been held, where this ended it.
    pub(super) after: Option<i64>,
}

#[derive(Debug)]
pub(super) struct CreatedFold<'a> {
    pub(super) step: &'a StepId,
    pub(super) at: i64,
    pub(super) thing: &'a Created,
    /// Whether it was removed, and the proof.
    pub(super) removal: Option<(bool, &'a str)>,
}

impl<'a> Fold<'a> {
    /// Folds all events of a run.
    pub(super) fn of(source: &Source<'a>) -> Self {
        let mut fold = Self::default();
        let times = fold.clamp(source.events);
        let gaps = gaps_before(source.events);
        let first = times.first().copied().unwrap_or(source.now.bounded());
        fold.incident = incident(source.events).unwrap_or(first);
        fold.last = first;
        fold.push(fold.incident, first, Activity::BeforeRun);
        for ((event, &at), &in_gap) in source.events.iter().zip(&times).zip(&gaps) {
            fold.advance(at, in_gap);
            fold.apply(at, &event.kind);
        }
        fold.end = fold.last;
        if fold.finished.is_none() {
            fold.end = source.now.bounded().max(fold.last);
            let (last, end) = (fold.last, fold.end);
            fold.advance(end, source.owner == Owner::Gone && !source.events.is_empty());
            fold.last = last;
        }
        fold.close_open_spans();
        fold
    }

    fn clamp(&mut self, events: &[Event]) -> Vec<i64> {
        let mut highest = i64::MIN;
        let mut times = Vec::with_capacity(events.len());
        for event in events {
            let at = Moment(event.at_ms).bounded();
            if highest > at {
                self.backward_ms = self.backward_ms.max(highest - at);
            }
            highest = highest.max(at);
            times.push(highest);
        }
        times
    }

    /// Accounts for the time since the last event.
    fn advance(&mut self, to: i64, in_gap: bool) {
        if in_gap {
            self.lose_workers();
        }
        let activity = self.activity(in_gap);
        self.push(self.last, to, activity);
        self.last = to;
    }

    /// Marks every step that a process was working on as having none.
    fn lose_workers(&mut self) {
        let at = self.last;
        let lost: Vec<&StepId> = self
            .steps
            .iter()
            .filter(|(_, step)| step.elements.is_none())
            .filter(|(_, step)| matches!(step.doing, Some((_, Doing::Working | Doing::WaitingForRetry))))
            .map(|(id, _)| *id)
            .collect();
        for id in lost {
            self.set_doing(id, at, Some(Doing::EngineDown));
        }
    }

    fn activity(&self, in_gap: bool) -> Activity {
        let some = |doing| self.doing.get(&doing).is_some_and(|count| *count > 0);
        if some(Doing::Working) {
            Activity::Working
        } else if some(Doing::EngineDown) {
            Activity::EngineDown
        } else if self.paused {
            Activity::Paused
        } else if some(Doing::WaitingForPerson) || some(Doing::Held) {
            Activity::WaitingForPerson
        } else if in_gap {
            Activity::EngineDown
        } else if some(Doing::WaitingForRetry) {
            Activity::WaitingForRetry
        } else if self.ending.is_some() {
            Activity::CleaningUp
        } else {
            Activity::BetweenSteps
        }
    }

    fn push(&mut self, from: i64, to: i64, activity: Activity) {
        if to <= from {
            return;
        }
        match self.segments.last_mut() {
            Some(last) if last.activity == activity && last.to.0 == from => last.to = Moment(to),
            _ => self.segments.push(Segment { from: Moment(from), to: Moment(to), activity }),
        }
    }

    /// Takes note of what a step does from now on. A repeated step does what the busiest of its elements does.
    fn set_doing(&mut self, id: &'a StepId, at: i64, doing: Option<Doing>) {
        let before = self.steps.get(id).and_then(|step| step.doing).map(|(_, doing)| doing);
        self.set_own_doing(id, at, doing);
        if id.element().is_none() || before == doing {
            return;
        }
        let Some((&whole, step)) = self.steps.get_key_value(&id.whole()) else { return };
        let mut doings = step.doings.clone();
        if let Some(before) = before {
            *doings.entry(before).or_default() -= 1;
        }
        if let Some(doing) = doing {
            *doings.entry(doing).or_default() += 1;
        }
        let busiest =
            [Doing::Working, Doing::EngineDown, Doing::WaitingForPerson, Doing::Held, Doing::WaitingForRetry]
                .into_iter()
                .find(|doing| doings.get(doing).is_some_and(|count| *count > 0));
        if let Some(step) = self.steps.get_mut(whole) {
            step.doings = doings;
        }
        self.set_own_doing(whole, at, busiest);
    }

    fn set_own_doing(&mut self, id: &'a StepId, at: i64, doing: Option<Doing>) {
        let step = self.steps.entry(id).or_default();
        if step.doing.map(|(_, now)| now) == doing {
            return;
        }
        if let Some((since, was)) = step.doing {
            *self.doing.entry(was).or_default() -= 1;
            if at > since {
                step.spans.push(StepSpan { from: Moment(since), to: Moment(at), doing: was });
            }
        }
        step.doing = doing.map(|doing| (at, doing));
        if let Some(doing) = doing {
            *self.doing.entry(doing).or_default() += 1;
        }
    }

    fn close_open_spans(&mut self) {
        let end = self.end;
        for step in self.steps.values_mut() {
            if let Some((since, doing)) = step.doing
                && end > since
            {
                step.spans.push(StepSpan { from: Moment(since), to: Moment(end), doing });
            }
        }
    }

    fn apply(&mut self, at: i64, kind: &'a EventKind) {
        self.hear(kind);
        match kind {
            EventKind::RunDeclared { plan_digest, by, inputs, engine, .. } => {
                self.declared = Some(Declared { at, digest: plan_digest, by, inputs, engine });
            }
            EventKind::EngineStarted { pid, host, .. } => self.engine_started(at, *pid, host),
            EventKind::ElementsChosen { step, elements } => {
                self.steps.entry(step).or_default().elements = Some((at, elements));
            }
            EventKind::AttemptStarted { step, attempt, .. } => self.attempt_started(at, step, *attempt),
            EventKind::AttemptFinished { step, attempt, result } => {
                self.attempt_finished(at, step, *attempt, result);
            }
            EventKind::RetryScheduled { step, next_attempt, at_ms } => {
                self.steps.entry(step).or_default().retry_at = Some((*at_ms, *next_attempt));
                self.set_doing(step, at, Some(Doing::WaitingForRetry));
            }
            EventKind::StepFinished { step, outcome } => self.step_finished(at, step, outcome),
            EventKind::StepHeld { step, failure } => {
                self.steps.entry(step).or_default().held.push((at, None, failure));
                self.set_doing(step, at, Some(Doing::Held));
            }
            EventKind::ThingCreated { step, thing } => self.thing_created(at, step, thing),
            EventKind::ThingRemoved { id, proof, removed } => {
                if let Some(&index) = self.created_at.get(id.as_str()) {
                    self.created[index].removal = Some((*removed, proof));
                }
            }
            EventKind::QuestionAsked { step, question } => self.asked(at, step, question),
            EventKind::QuestionAnswered { step, question, answer } => {
                self.answered(at, step, question, answer);
            }
            EventKind::Decided { by, decision } => self.decided(at, by, decision),
            EventKind::EndingBegan { outcome, reason, undo } => {
                self.ending = Some((at, *outcome, reason));
                self.undoing = *undo;
                self.paused &= *outcome != RunOutcome::Aborted;
                self.release_held(at);
            }
            EventKind::RunFinished { outcome } => self.finished = Some(*outcome),
            EventKind::Progressed { step, progress, .. } => {
                if let Some(attempt) = self.open_attempt(step) {
                    attempt.progress = Some(progress);
                }
            }
            EventKind::OutputLine { step, line, .. } => {
                if let Some(attempt) = self.open_attempt(step) {
                    attempt.line = Some(line);
                }
            }
            EventKind::ClockRead { run_ms, wall_ms, .. } => self.clock_read(wall_ms.saturating_sub(*run_ms)),
            EventKind::Noted { step, text } => self.notes.push((at, step.as_ref(), Cow::Borrowed(text))),
            EventKind::Notified { occasion, channel, problem: Some(problem) } => {
                let text = format!("a notice ({occasion}) did not reach `{channel}`: {problem}");
                self.notes.push((at, None, Cow::Owned(text)));
            }
            EventKind::Notified { .. } => {}
            EventKind::Recorded { step, key, value: Value::String(text) } if key == NOTE => {
                self.notes.push((at, Some(step), Cow::Borrowed(text)));
            }
            EventKind::Refused { by, reason, .. } => {
                self.notes.push((at, None, Cow::Owned(format!("refused to {}: {reason}", by.name))));
            }
            EventKind::TargetsConfirmed { .. }
            | EventKind::Recorded { .. }
            | EventKind::OutputKept { .. } => {}
        }
    }

    fn clock_read(&mut self, ahead: i64) {
        let known = self.clock_ahead.last().copied().unwrap_or(0);
        if ahead.abs_diff(known) >= NOTABLE_MS.unsigned_abs() {
            self.clock_ahead.push(ahead);
        }
    }

    fn hear(&mut self, kind: &'a EventKind) {
        match kind {
            EventKind::QuestionAnswered { step, answer, .. } => {
                self.unheard.push(Unheard::Answer(step, answer))
            }
            EventKind::Decided { decision: Decision::Note { .. }, .. } => {}
            EventKind::Decided { by, decision } => self.unheard.push(Unheard::Decision(by, decision)),
            EventKind::Noted { .. }
            | EventKind::Notified { .. }
            | EventKind::ClockRead { .. }
            | EventKind::Refused { .. } => {}
            _ => self.unheard.clear(),
        }
    }

    fn engine_started(&mut self, at: i64, pid: u32, host: &'a str) {
        let down_before = self
            .segments
            .iter()
            .rev()
            .take_while(|segment| self.engines.last().is_some_and(|engine| segment.to.0 > engine.at))
            .filter(|segment| segment.activity == Activity::EngineDown)
            .map(|segment| segment.to.0 - segment.from.0)
            .sum();
        self.engines.push(Engine { at, pid, host, down_before });
        let down: Vec<(&StepId, bool)> = self
            .steps
            .iter()
            .filter(|(_, step)| step.elements.is_none())
            .filter(|(_, step)| matches!(step.doing, Some((_, Doing::EngineDown))))
            .map(|(id, step)| (*id, step.retry_at.is_some()))
            .collect();
        for (id, retries) in down {
            self.set_doing(id, at, retries.then_some(Doing::WaitingForRetry));
        }
    }

    fn open_attempt(&mut self, step: &StepId) -> Option<&mut AttemptFold<'a>> {
        self.steps.get_mut(step)?.attempts.last_mut().filter(|attempt| attempt.end.is_none())
    }

    fn attempt_started(&mut self, at: i64, id: &'a StepId, number: Attempt) {
        if number == 1
            && id.element().is_some()
            && let Some(whole) = self.steps.get_mut(&id.whole())
        {
            whole.begun.push(id);
        }
        let step = self.steps.entry(id).or_default();
        end_hold(step, at);
        step.retry_at = None;
        step.attempts.push(AttemptFold { number, from: at, end: None, progress: None, line: None });
        let waiting = step.open_questions > 0;
        self.set_doing(id, at, Some(if waiting { Doing::WaitingForPerson } else { Doing::Working }));
    }

    fn attempt_finished(&mut self, at: i64, id: &'a StepId, number: Attempt, result: &'a AttemptResult) {
        let step = self.steps.entry(id).or_default();
        let attempt = step.attempts.iter_mut().rev().find(|attempt| attempt.number == number);
        if let Some(attempt) = attempt {
            attempt.end = Some((at, result));
        }
        let stopped = matches!(result, AttemptResult::Lost | AttemptResult::Interrupted);
        if stopped && step.open_questions > 0 {
            // A question outlives the process that asked it: the next attempt finds the answer.
            return;
        }
        // Outside the end of the run, an attempt is interrupted only because its process was told to stop.
        let leaving = matches!(result, AttemptResult::Interrupted) && self.ending.is_none();
        self.set_doing(id, at, leaving.then_some(Doing::EngineDown));
    }

    fn step_finished(&mut self, at: i64, id: &'a StepId, outcome: &'a Outcome) {
        let ending = self.ending.is_some();
        let step = self.steps.entry(id).or_default();
        step.outcome = Some((at, outcome));
        step.ended_with_run = ending;
        step.retry_at = None;
        let asks = std::mem::take(&mut step.open_questions) > 0;
        end_hold(step, at);
        for question in self.questions.iter_mut().filter(|question| asks && question.step == id) {
            if question.answer.is_none() && question.dropped.is_none() {
                question.dropped = Some(at);
            }
        }
        self.set_doing(id, at, None);
    }

    fn thing_created(&mut self, at: i64, step: &'a StepId, thing: &'a Created) {
        let entry = CreatedFold { step, at, thing, removal: None };
        match self.created_at.get(thing.id.as_str()) {
            Some(&index) => self.created[index] = entry,
            None => {
                self.created_at.insert(&thing.id, self.created.len());
                self.created.push(entry);
            }
        }
    }

    fn asked(&mut self, at: i64, id: &'a StepId, question: &'a Question) {
        let known = self.questions.iter().any(|asked| asked.step == id && asked.question.id == question.id);
        if known {
            return;
        }
        self.questions.push(QuestionFold {
            step: id,
            question,
            asked: at,
            before: Vec::new(),
            answer: None,
            dropped: None,
        });
        self.steps.entry(id).or_default().open_questions += 1;
        self.set_doing(id, at, Some(Doing::WaitingForPerson));
    }

    fn answered(&mut self, at: i64, id: &'a StepId, question: &str, answer: &'a Answer) {
        let open = self
            .questions
            .iter_mut()
            .find(|asked| asked.step == id && asked.question.id == question && asked.answer.is_none());
        let Some(open) = open else { return };
        let said: Vec<_> = open.before.iter().map(|(_, before)| *before).chain([answer]).collect();
        let is_first = open.question.choices.first() == Some(&answer.choice);
        if is_first && !open.question.is_settled_by(&said) {
            open.before.push((at, answer));
            return;
        }
        open.answer = Some((at, answer));
        let step = self.steps.entry(id).or_default();
        step.open_questions = step.open_questions.saturating_sub(1);
        if step.open_questions == 0 && step.outcome.is_none() {
            let attempting = step.attempts.last().is_some_and(|attempt| attempt.end.is_none());
            self.set_doing(id, at, attempting.then_some(Doing::Working));
        }
    }

    fn decided(&mut self, at: i64, by: &'a Person, decision: &'a Decision) {
        let mut after = None;
        match decision {
            Decision::RetryStep { step }
            | Decision::SkipStep { step, .. }
            | Decision::MarkDone { step, .. } => {
                if let Some(state) = self.steps.get_mut(step) {
                    after = end_hold(state, at);
                    if matches!(state.doing, Some((_, Doing::Held))) {
                        self.set_doing(step, at, None);
                    }
                }
            }
            Decision::Abort { .. } | Decision::Cancel { .. } => {
                self.release_held(at);
                self.drop_questions(at);
            }
            Decision::Pause => self.paused = true,
            Decision::Unpause => self.paused = false,
            Decision::Note { .. } => {}
        }
        self.decisions.push(DecisionFold { at, by, decision, after });
    }

    /// Takes note that nobody's answer matters any more, because the run ends.
    fn drop_questions(&mut self, at: i64) {
        let open = |asked: &&mut QuestionFold<'_>| asked.answer.is_none() && asked.dropped.is_none();
        let mut asking = Vec::new();
        for question in self.questions.iter_mut().filter(open) {
            question.dropped = Some(at);
            asking.push(question.step);
        }
        for step in asking {
            self.steps.entry(step).or_default().open_questions = 0;
            self.set_doing(step, at, None);
        }
    }

    fn release_held(&mut self, at: i64) {
        let held: Vec<&StepId> = self
            .steps
            .iter_mut()
            .filter_map(|(id, step)| {
                end_hold(step, at);
                matches!(step.doing, Some((_, Doing::Held))).then_some(*id)
            })
            .collect();
        for id in held {
            self.set_doing(id, at, None);
        }
    }

    /// Counts the steps that are doing this now.
    pub(super) fn count(&self, doing: Doing) -> usize {
        self.doing.get(&doing).copied().unwrap_or_default()
    }
}

/// Ends the open hold of a step and returns how long it lasted.
fn end_hold(step: &mut StepFold<'_>, at: i64) -> Option<i64> {
    let (from, end, _) = step.held.last_mut().filter(|(_, end, _)| end.is_none())?;
    *end = Some(at);
    Some(at - *from)
}

fn incident(events: &[Event]) -> Option<i64> {
    events.iter().find_map(|event| match event.kind {
        EventKind::RunDeclared { incident_at_ms, .. } => Some(Moment(incident_at_ms).bounded()),
        _ => None,
    })
}
