//! What was checked, decided, created and left open.

use super::fold::StepFold;
use super::human::{self, Moment};
use super::model::{
    AnswerReport, CheckReport, CreatedReport, DecisionReport, Fate, NotChecked, NoteReport, QuestionReport,
    Rpo, StepFacts, Trouble, TroubleKind, Warning,
};
use super::source::View;
use super::standing;
use super::timeline::checks_of;
use super::undo;
use crate::clock::NOTABLE_MS;
use crate::model::event::{Answer, AttemptResult};
use crate::model::evidence::Confidence;
use crate::model::ids::StepId;
use crate::model::outcome::{Mode, Outcome};

/// Lists every check: failed ones first, those that a later attempt replaced last.
pub(super) fn checks(view: &View<'_>) -> Vec<CheckReport> {
    let mut all = Vec::new();
    for (id, state) in view.plan.steps.iter().flat_map(|step| view.units(step)) {
        let attempts = &state.attempts;
        let last = attempts.iter().rposition(|attempt| !checks_of(attempt).is_empty());
        for (at, attempt) in attempts.iter().enumerate() {
            all.extend(checks_of(attempt).iter().map(|check| CheckReport {
                step: id.clone(),
                attempt: attempt.number,
                name: check.name.clone(),
                expected: check.expected.clone(),
                actual: check.actual.clone(),
                passed: check.passed,
                superseded: Some(at) != last,
            }));
        }
    }
    all.sort_by_key(|check| (check.superseded, check.passed));
    all
}

fn answered((at, answer): &(i64, &Answer)) -> AnswerReport {
    AnswerReport {
        at: Moment(*at),
        choice: answer.choice.clone(),
        by: answer.by.clone(),
        comment: answer.comment.clone(),
        automatic: answer.automatic,
        points: answer.points.clone(),
        file: answer.file.as_deref().cloned(),
    }
}

pub(super) fn questions(view: &View<'_>) -> Vec<QuestionReport> {
    let end = view.fold.end;
    let report = |asked: &super::fold::QuestionFold<'_>| {
        let until = asked.answer.map(|(at, _)| at).or(asked.dropped).unwrap_or(end);
        QuestionReport {
            step: asked.step.clone(),
            id: asked.question.id.clone(),
            role: asked.question.role.clone(),
            message: asked.question.message.clone(),
            choices: asked.question.choices.clone(),
            points: asked.question.points.clone(),
            asked_at: Moment(asked.asked),
            minimum: asked.question.rule.map(|rule| rule.minimum).filter(|minimum| *minimum > 1),
            before: asked.before.iter().map(answered).collect(),
            answer: asked.answer.as_ref().map(answered),
            waited_ms: until - asked.asked,
            open: asked.answer.is_none() && asked.dropped.is_none() && !view.is_ended(),
        }
    };
    view.fold.questions.iter().map(report).collect()
}

pub(super) fn decisions(view: &View<'_>) -> Vec<DecisionReport> {
    let report = |made: &super::fold::DecisionFold<'_>| DecisionReport {
        at: Moment(made.at),
        by: made.by.clone(),
        decision: made.decision.clone(),
        after_ms: made.after,
    };
    view.fold.decisions.iter().map(report).collect()
}

pub(super) fn notes(view: &View<'_>) -> Vec<NoteReport> {
    let notes = view.fold.notes.iter();
    notes
        .map(|(at, step, text)| NoteReport { at: Moment(*at), step: step.cloned(), text: text.to_string() })
        .collect()
}

/// Lists what went wrong, in the order of time.
pub(super) fn troubles(view: &View<'_>) -> Vec<Trouble> {
    let mut all: Vec<Trouble> = Vec::new();
    let undos = undo::steps(view);
    for (id, state) in view.plan.steps.iter().chain(&undos).flat_map(|step| view.units(step)) {
        all.extend(failed_attempts(id, state));
        all.extend(state.held.iter().map(|(from, end, failure)| Trouble {
            at: Moment(*from),
            step: id.clone(),
            kind: TroubleKind::StepHeld,
            attempt: None,
            failure: Some((*failure).clone()),
            cost_ms: end.unwrap_or(view.fold.end) - from,
        }));
    }
    all.sort_by_key(|trouble| trouble.at);
    all
}

fn failed_attempts(step: &StepId, state: &StepFold<'_>) -> Vec<Trouble> {
    let mut all = Vec::new();
    for attempt in &state.attempts {
        let Some((at, result)) = attempt.end else { continue };
        let (kind, failure) = match result {
            AttemptResult::Succeeded { .. } => continue,
            AttemptResult::Failed { failure, .. } => (TroubleKind::AttemptFailed, Some(failure.clone())),
            AttemptResult::Lost => (TroubleKind::AttemptLost, None),
            AttemptResult::Interrupted => (TroubleKind::AttemptInterrupted, None),
        };
        let cost_ms = at - attempt.from;
        let attempt = Some(attempt.number);
        all.push(Trouble { at: Moment(at), step: step.clone(), kind, attempt, failure, cost_ms });
    }
    all
}

pub(super) fn created(view: &View<'_>) -> Vec<CreatedReport> {
    let cleans = view.plan.mode == Mode::Drill && !view.plan.keep && view.is_ended();
    let report = |made: &super::fold::CreatedFold<'_>| {
        let (fate, proof) = match made.removal {
            Some((true, proof)) => (Fate::Removed, Some(proof.to_owned())),
            Some((false, why)) => (Fate::NotRemoved, Some(why.to_owned())),
            None if cleans => (Fate::NotRemoved, Some("the journal records no removal".to_owned())),
            None => (Fate::Kept, None),
        };
        CreatedReport { step: made.step.clone(), at: Moment(made.at), thing: made.thing.clone(), fate, proof }
    };
    view.fold.created.iter().map(report).collect()
}

pub(super) fn facts(view: &View<'_>) -> Vec<StepFacts> {
    let mut all = Vec::new();
    let undos = undo::steps(view);
    for (id, state) in view.plan.steps.iter().chain(&undos).flat_map(|step| view.units(step)) {
        let attempts = &state.attempts;
        let done = attempts.iter().rev().find_map(|attempt| match attempt.end {
            Some((_, AttemptResult::Succeeded { done })) => Some(done),
            _ => None,
        });
        if let Some(done) = done.filter(|done| !done.facts.is_empty()) {
            all.push(StepFacts { step: id.clone(), facts: done.facts.clone() });
        }
    }
    all
}

/// Lists what a reader might believe proven and is not.
pub(super) fn not_checked(view: &View<'_>, rpo: &Rpo, checks: &[CheckReport]) -> Vec<NotChecked> {
    let mut all = Vec::new();
    if !checks.iter().any(|check| !check.superseded) {
        all.push(NotChecked {
            step: None,
            what: "that the restored systems work".to_owned(),
            why: if view.is_ended() {
                "no step of this run made a check"
            } else {
                "no step has made a check so far"
            }
            .to_owned(),
        });
    }
    for step in &view.plan.steps {
        all.extend(why_unproven(view, view.state(step)).map(|why| NotChecked {
            step: Some(step.id.clone()),
            what: step.whole_title(),
            why,
        }));
        let elements = view.elements(step).filter(|(_, state)| state.outcome.is_some());
        all.extend(elements.filter_map(|(id, state)| {
            let why = why_unproven(view, Some(state))?;
            Some(NotChecked { step: Some(id.clone()), what: view.title_of(step, id), why })
        }));
    }
    for gap in &rpo.unmeasured {
        let what = match gap.resources.as_slice() {
            [] => "how much data was lost".to_owned(),
            names => format!("how much data `{}` lost", names.join("`, `")),
        };
        all.push(NotChecked { step: Some(gap.step.clone()), what, why: gap.why.clone() });
    }
    for store in rpo.stores.iter().filter(|store| store.confidence == Confidence::Stated) {
        all.push(NotChecked {
            step: Some(store.step.clone()),
            what: format!("the recovery point of `{}`", store.resource),
            why: "it is what the backup says of itself, not read from the restored data".to_owned(),
        });
    }
    all
}

fn why_unproven(view: &View<'_>, state: Option<&StepFold<'_>>) -> Option<String> {
    match state.and_then(|state| state.outcome).map(|(_, outcome)| outcome) {
        Some(Outcome::Succeeded | Outcome::Failed { .. }) => None,
        Some(Outcome::Skipped { reason }) => Some(standing::skipped(reason)),
        Some(Outcome::MarkedDone { by, reason }) => Some(format!("marked as done by {by}: {reason}")),
        Some(Outcome::NotRun { reason }) => Some(format!("not run: {reason}")),
        None if view.is_ended() => Some("not run".to_owned()),
        None => None,
    }
}

/// Lists what steps warned of, then what the journal itself gives cause to warn of.
pub(super) fn warnings(view: &View<'_>, rpo: &Rpo, created: &[CreatedReport]) -> Vec<Warning> {
    let mut all = step_warnings(view);
    let mut add = |text: String| all.push(Warning { step: None, text });
    if view.fold.backward_ms > 0 {
        let back = human::duration(view.fold.backward_ms);
        add(format!("the wall clock went back by {back} during the run; durations around it are too short"));
    }
    for ahead in &view.fold.clock_ahead {
        let by = human::duration(ahead.abs());
        let (way, clock) = if *ahead < 0 { ("behind", "was set back") } else { ("ahead", "was set forward") };
        let what = if ahead.abs() < NOTABLE_MS {
            "agrees with the run again".to_owned()
        } else {
            format!("{clock}, and is {by} {way}")
        };
        add(format!(
            "the clock of the machine {what}; times and durations here are of the run's own, which began with it and goes on \
             by a clock that nobody can set"
        ));
    }
    if let Some(declared) = view.fold.declared.as_ref().filter(|declared| declared.at < view.fold.incident) {
        let early = human::duration(view.fold.incident - declared.at);
        add(format!(
            "the incident is {early} later than the start of the run; durations before it count as zero"
        ));
    }
    let digest = view.plan.digest();
    if view.fold.declared.as_ref().is_some_and(|declared| declared.digest != digest) {
        add(format!("the stored plan ({}) is not the one the run was declared with", &digest[..12]));
    }
    for store in rpo.stores.iter().filter(|store| store.beyond_target) {
        add(format!(
            "`{}` holds changes up to {}, after the moment that was asked for: what the incident did may be in it",
            store.resource, store.time
        ));
    }
    for thing in created.iter().filter(|thing| thing.fate == Fate::NotRemoved) {
        let why = thing.proof.clone().unwrap_or_else(|| thing.thing.kind.place());
        add(format!("NOT removed: {} ({why})", thing.thing.what));
    }
    all
}

fn step_warnings(view: &View<'_>) -> Vec<Warning> {
    let mut all = Vec::new();
    let undos = undo::steps(view);
    for (id, state) in view.plan.steps.iter().chain(&undos).flat_map(|step| view.units(step)) {
        for attempt in &state.attempts {
            if let Some((_, AttemptResult::Succeeded { done })) = attempt.end {
                all.extend(
                    done.warnings.iter().map(|text| Warning { step: Some(id.clone()), text: text.clone() }),
                );
            }
        }
        if let (None, Some((_, Outcome::Failed { failure }))) = (id.element(), state.outcome) {
            let text = format!("failed, and the run went on: {}", failure.message);
            if view.fold.finished == Some(crate::model::RunOutcome::Succeeded) {
                all.push(Warning { step: Some(id.clone()), text });
            }
        }
    }
    all
}
