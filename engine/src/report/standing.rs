//! Who and what the run is, how it stands, and the one command to type next.

use serde_json::Value;

use super::elements::typed;
use super::fold::{QuestionFold, Unheard};
use super::human::{self, Moment};
use super::model::{
    Doing, EngineReport, Identity, Owner, Rpo, Rto, RunStanding, State, StepFailure, Verdict,
};
use super::objectives::{self, Recovery};
use super::source::View;
use super::undo;
use crate::expr::quote;
use crate::model::event::{Answer, Decision, Person, Question};
use crate::model::ids::StepId;
use crate::model::outcome::{Failure, Mode, Outcome, RunOutcome};
use crate::plan::OnError;

/// A difference below this between incident and declaration is the time it took to write the declaration.
const INCIDENT_GIVEN_MS: i64 = 1000;

pub(super) fn identity(view: &View<'_>) -> Identity {
    let plan = view.plan;
    let declared = view.fold.declared.as_ref();
    Identity {
        run: view.source.run,
        short: view.source.run.short(),
        project: plan.project.clone(),
        runbook: plan.runbook.clone(),
        title: plan.title.clone(),
        owner: plan.owner.clone(),
        environment: plan.environment.clone(),
        protected: plan.protected,
        mode: plan.mode,
        commit: plan.commit.clone(),
        plan_digest: declared.map_or_else(|| plan.digest(), |declared| declared.digest.to_owned()),
        engine_version: declared.map(|declared| declared.engine.to_owned()),
        engines: engines(view),
        incident_at: Moment(view.fold.incident),
        incident_given: incident_given(view),
        declared_at: declared.map(|declared| Moment(declared.at)),
        ended_at: view.is_ended().then_some(Moment(view.fold.end)),
        as_of: Moment(view.fold.end),
        declared_by: declared.map(|declared| declared.by.clone()),
        people: people(view),
        inputs: declared.map_or_else(|| plan.inputs.clone(), |declared| declared.inputs.clone()),
        sources: plan.sources.clone(),
        journal: None,
    }
}

fn incident_given(view: &View<'_>) -> bool {
    let declared = view.fold.declared.as_ref();
    declared.is_some_and(|declared| (declared.at - view.fold.incident).abs() >= INCIDENT_GIVEN_MS)
}

fn engines(view: &View<'_>) -> Vec<EngineReport> {
    let report = |engine: &super::fold::Engine<'_>| EngineReport {
        started_at: Moment(engine.at),
        pid: engine.pid,
        host: engine.host.to_owned(),
        down_before_ms: engine.down_before,
    };
    view.fold.engines.iter().map(report).collect()
}

fn people(view: &View<'_>) -> Vec<Person> {
    let declared = view.fold.declared.iter().map(|declared| (declared.at, declared.by));
    let answers =
        view.fold.questions.iter().flat_map(|question| question.before.iter().chain(&question.answer));
    let answered = answers.filter(|(_, answer)| !answer.automatic).map(|(at, answer)| (*at, &answer.by));
    let decided = view.fold.decisions.iter().map(|made| (made.at, made.by));
    let mut all: Vec<(i64, &Person)> = declared.chain(answered).chain(decided).collect();
    all.sort_by_key(|(at, _)| *at);
    let mut people: Vec<Person> = Vec::new();
    for (_, person) in all {
        if !people.contains(person) {
            people.push(person.clone());
        }
    }
    people
}

pub(super) fn state(view: &View<'_>) -> State {
    let fold = &view.fold;
    match fold.finished {
        Some(RunOutcome::Succeeded) => State::Succeeded,
        Some(RunOutcome::Failed) => State::Failed,
        Some(RunOutcome::Aborted) => State::Aborted,
        None if fold.paused => State::Paused,
        None if fold.count(Doing::Working) + fold.count(Doing::EngineDown) > 0 => State::Running,
        None if fold.count(Doing::WaitingForRetry) > 0 => State::Running,
        None if fold.count(Doing::WaitingForPerson) > 0 => State::Waiting,
        None if fold.count(Doing::Held) > 0 => State::Held,
        None => State::Running,
    }
}

/// Says whether a process works on the run; one that was told to stop has left its trace in the journal.
fn owner(view: &View<'_>) -> Owner {
    let stopped = view.fold.count(Doing::EngineDown) > 0 && view.fold.count(Doing::Working) == 0;
    match view.source.owner {
        Owner::Unknown if stopped => Owner::Gone,
        owner => owner,
    }
}

/// Says of a step that it was skipped, once: the reason may begin with the word.
pub(super) fn skipped(reason: &str) -> String {
    if reason.starts_with("skipped") { reason.to_owned() } else { format!("skipped: {reason}") }
}

pub(super) fn standing(view: &View<'_>, rto: &Rto, rpo: &Rpo, warnings: usize) -> RunStanding {
    let state = state(view);
    let failure = failure(view, state);
    let owner = if state.is_ended() { Owner::Gone } else { owner(view) };
    let steps_done = view.plan.steps.iter().filter(|step| {
        view.state(step).and_then(|state| state.outcome).is_some_and(|(_, outcome)| outcome.is_success())
    });
    RunStanding {
        state,
        owner,
        headline: headline(view, state, &Objectives { rto, rpo, warnings }, failure.as_ref()),
        reason: reason(view, state),
        next: next_command(view, state),
        steps_done: steps_done.count(),
        steps_total: view.plan.steps.len(),
        failure,
    }
}

fn reason(view: &View<'_>, state: State) -> Option<String> {
    match state {
        State::Failed | State::Aborted => view.fold.ending.map(|(_, _, reason)| reason.to_owned()),
        _ => None,
    }
}

/// Returns the failure that ended the run, or the one that holds it.
fn failure(view: &View<'_>, state: State) -> Option<StepFailure> {
    match state {
        State::Succeeded | State::Aborted => None,
        State::Failed => failed_step(view).map(|(id, failure)| step_failure(view, id, failure)),
        _ => held_steps(view).into_iter().next().map(|(_, id, failure)| step_failure(view, id, failure)),
    }
}

/// Returns open holds, oldest first.
pub(super) fn held_steps<'a>(view: &View<'a>) -> Vec<(i64, &'a StepId, &'a Failure)> {
    let mut held: Vec<(i64, usize, &StepId, &Failure)> = Vec::new();
    for (index, step) in view.plan.steps.iter().enumerate() {
        let Some(state) = view.state(step) else { continue };
        if state.outcome.is_some() {
            continue;
        }
        for (id, state) in view.units(step) {
            if let (Some((from, None, failure)), None) = (state.held.last(), state.outcome) {
                held.push((*from, index, id, failure));
            }
        }
    }
    held.sort_by_key(|(from, index, ..)| (*from, *index));
    held.into_iter().map(|(from, _, id, failure)| (from, id, failure)).collect()
}

/// Returns the step that ended a failed run, or that holds an open one.
pub(super) fn stopping_step<'a>(view: &View<'a>) -> Option<&'a StepId> {
    match state(view) {
        State::Failed => failed_step(view).map(|(id, _)| id),
        State::Held => held_steps(view).first().map(|(_, id, _)| *id),
        _ => None,
    }
}

fn failed_step<'a>(view: &View<'a>) -> Option<(&'a StepId, &'a Failure)> {
    let mut failed: Vec<(bool, i64, &StepId, &Failure)> = Vec::new();
    for step in view.plan.steps.iter().filter(|step| !step.always || step.concludes.is_some()) {
        let state = view.state(step).filter(|state| !state.ended_with_run);
        if let Some((at, Outcome::Failed { failure })) = state.and_then(|state| state.outcome) {
            failed.push((step.on_error == OnError::Continue, at, &step.id, failure));
        }
    }
    failed.sort_by_key(|(tolerated, at, ..)| (*tolerated, *at));
    failed.first().map(|(_, _, id, failure)| (*id, *failure))
}

fn step_failure(view: &View<'_>, id: &StepId, failure: &Failure) -> StepFailure {
    let whole = id.whole();
    let planned = view.index.get(&whole).map(|&at| &view.plan.steps[at]);
    let failed = planned.and_then(|step| {
        view.elements(step).find(|(_, state)| matches!(state.outcome, Some((_, Outcome::Failed { .. }))))
    });
    let own = view.fold.steps.get(id).filter(|state| !state.attempts.is_empty());
    let attempts = own.or(failed.map(|(_, state)| state)).map_or(0, |state| state.attempts.len());
    StepFailure {
        step: id.clone(),
        title: planned.map(|step| view.title_of(step, id)).unwrap_or_default(),
        place: planned.map(|step| step.place.clone()).unwrap_or_default(),
        attempts: u32::try_from(attempts).unwrap_or(u32::MAX),
        failure: failure.clone(),
    }
}

struct Objectives<'a> {
    rto: &'a Rto,
    rpo: &'a Rpo,
    warnings: usize,
}

fn headline(
    view: &View<'_>,
    state: State,
    objectives: &Objectives<'_>,
    failure: Option<&StepFailure>,
) -> String {
    let used = used(objectives.rto);
    let at = failure.map_or_else(String::new, |failure| format!(" at `{}`", failure.step));
    match state {
        State::Succeeded => succeeded(view, objectives),
        State::Failed if objectives.rto.recovered_at.is_some() => {
            format!("FAILED{at}, after recovery in {used}{}", not_undone(view))
        }
        State::Failed => {
            format!("FAILED{at} after {}{}{}", spent(objectives.rto), not_restored(view), not_undone(view))
        }
        State::Aborted if objectives.rto.recovered_at.is_some() => {
            format!("ABORTED{}, after recovery in {used}{}", by_whom(view), not_undone(view))
        }
        State::Aborted => {
            let rest = format!("{}{}", not_restored(view), not_undone(view));
            format!("ABORTED{} after {}{rest}", by_whom(view), spent(objectives.rto))
        }
        _ if owner(view) == Owner::Gone && !view.fold.unheard.is_empty() => {
            format!("DECIDED: {} · no process carries it out yet · {used} used", unheard(view))
        }
        _ if owner(view) == Owner::Gone => {
            format!("STOPPED{} · no process works on this run · {used} used", stopped_at(view, state))
        }
        State::Running => match undo::report(view).filter(|undo| undo.ended() < undo.steps.len()) {
            Some(undo) => format!("UNDOING · {} of {} undone · {used} used", undo.ended(), undo.steps.len()),
            None => format!("RUNNING · {used} used"),
        },
        State::Waiting => format!("WAITING for {} · {used} used", awaited(view)),
        State::Paused => format!("PAUSED{} · {used} used", paused_by(view)),
        State::Held => format!("HELD{at} · {used} used"),
    }
}

/// Tells what people have decided while no process drove the run.
fn unheard(view: &View<'_>) -> String {
    let words = view.fold.unheard.iter().map(|said| match said {
        Unheard::Answer(step, answer) => format!("{} by {} (`{step}`)", answer.choice, answer.by.name),
        Unheard::Decision(by, decision) => format!("{} by {}", decided(decision), by.name),
    });
    words.collect::<Vec<_>>().join(", ")
}

fn decided(decision: &Decision) -> String {
    match decision {
        Decision::RetryStep { step } => format!("`{step}` again"),
        Decision::SkipStep { step, .. } => format!("skip `{step}`"),
        Decision::MarkDone { step, .. } => format!("`{step}` done"),
        Decision::Abort { .. } => "abort".to_owned(),
        Decision::Cancel { .. } => "cancel".to_owned(),
        Decision::Pause => "pause".to_owned(),
        Decision::Unpause => "go on".to_owned(),
        Decision::Note { .. } => "a note".to_owned(),
    }
}

fn stopped_at(view: &View<'_>, state: State) -> String {
    match state {
        State::Held => {
            held_steps(view).first().map(|(_, id, _)| format!(", held at `{id}`")).unwrap_or_default()
        }
        State::Waiting => format!(", waiting for {}", awaited(view)),
        State::Paused => ", paused".to_owned(),
        _ => String::new(),
    }
}

fn succeeded(view: &View<'_>, objectives: &Objectives<'_>) -> String {
    let Objectives { rto, rpo, warnings } = *objectives;
    let mut parts = Vec::new();
    if rto.recovered_at.is_some() {
        parts.push(format!("RESTORED in {}", used(rto)));
    } else {
        let run = view.fold.declared.as_ref().map_or(0, |declared| view.fold.end - declared.at);
        let took = human::duration(run);
        parts.push(match rto.objective_ms {
            Some(_) => format!("SUCCEEDED in {took}, recovery not measured"),
            None => format!("SUCCEEDED in {took}"),
        });
    }
    if rpo.objective_ms.is_some() || !rpo.stores.is_empty() || !rpo.unmeasured.is_empty() {
        parts.push(loss(rpo));
    }
    if warnings > 0 {
        parts.push(human::count(warnings, "warning"));
    }
    parts.join(" · ")
}

/// Writes how much of the time a run took that did not recover.
fn spent(rto: &Rto) -> String {
    match (rto.objective_ms, rto.verdict) {
        (Some(limit), Some(Verdict::NotMeasured)) => {
            format!("{} of {}", human::duration(rto.used_ms), human::duration(limit))
        }
        _ => used(rto),
    }
}

/// Names what could not be taken back: somebody must do it by hand.
fn not_undone(view: &View<'_>) -> String {
    let failed = undo::report(view).and_then(|undo| undo.failed_words());
    failed.map(|words| format!(" · {words}")).unwrap_or_default()
}

fn not_restored(view: &View<'_>) -> &'static str {
    if objectives::recovery(view) == Recovery::Unmarked { "" } else { " · NOT RESTORED" }
}

/// Writes `3m 12s of 4h (RTO met)`.
fn used(rto: &Rto) -> String {
    let used = human::duration(rto.used_ms);
    match (rto.objective_ms, rto.verdict) {
        (Some(limit), Some(Verdict::NotMeasured)) if rto.left_ms.is_some() => {
            format!("{used} of {}", human::duration(limit))
        }
        (Some(limit), Some(verdict)) => {
            format!("{used} of {} (RTO {})", human::duration(limit), verdict_words(verdict))
        }
        _ => used,
    }
}

/// Writes `data loss 0.8 s of 1h (RPO met)`.
fn loss(rpo: &Rpo) -> String {
    let worst = match rpo.worst_ms {
        Some(worst) => format!("data loss {}", human::duration(worst)),
        None => "data loss unknown".to_owned(),
    };
    match (rpo.objective_ms, rpo.verdict) {
        (Some(limit), Some(verdict)) => {
            format!("{worst} of {} (RPO {})", human::duration(limit), verdict_words(verdict))
        }
        _ if rpo.unmeasured.is_empty() => worst,
        _ => format!("{worst}, not measured everywhere"),
    }
}

/// Writes a verdict as people say it.
pub(super) fn verdict_words(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Met => "met",
        Verdict::Missed => "MISSED",
        Verdict::NotMeasured => "not measured",
        Verdict::AtRisk => "AT RISK",
    }
}

fn by_whom(view: &View<'_>) -> String {
    let ends = |decision: &Decision| matches!(decision, Decision::Abort { .. } | Decision::Cancel { .. });
    let made = view.fold.decisions.iter().rev().find(|made| ends(made.decision));
    made.map(|made| format!(" by {}", made.by.name)).unwrap_or_default()
}

fn paused_by(view: &View<'_>) -> String {
    let made = view.fold.decisions.iter().rev().find(|made| matches!(made.decision, Decision::Pause));
    made.map(|made| format!(" by {}", made.by.name)).unwrap_or_default()
}

fn awaited(view: &View<'_>) -> String {
    let question = open_questions(view).into_iter().next();
    let role = question.and_then(|(_, _, question)| question.role.clone());
    role.unwrap_or_else(|| "a person".to_owned())
}

/// Returns questions that wait for an answer, oldest first.
pub(super) fn open_questions<'a>(view: &View<'a>) -> Vec<(i64, &'a StepId, &'a Question)> {
    open_folds(view).into_iter().map(|question| (question.asked, question.step, question.question)).collect()
}

/// Returns what is known of questions that wait for an answer, oldest first.
pub(super) fn open_folds<'v, 'a>(view: &'v View<'a>) -> Vec<&'v QuestionFold<'a>> {
    let open = |question: &&QuestionFold<'_>| {
        question.answer.is_none() && question.dropped.is_none() && !view.is_ended()
    };
    view.fold.questions.iter().filter(open).collect()
}

/// Returns the one command to type next, if there is something to do.
pub(super) fn next_command(view: &View<'_>, state: State) -> Option<String> {
    let short = view.source.run.short();
    match state {
        State::Succeeded => None,
        // What was not undone stands in the way of another run; the report says what to do about it.
        State::Failed | State::Aborted if !not_undone(view).is_empty() => {
            Some(format!("lifeboat report {short}"))
        }
        State::Failed | State::Aborted => Some(again(view)),
        State::Running | State::Paused if owner(view) == Owner::Gone => {
            Some(format!("lifeboat resume {short}"))
        }
        State::Running => Some(format!("lifeboat watch {short}")),
        State::Paused => Some(format!("lifeboat resume {short}")),
        State::Waiting => {
            let asked = open_folds(view).into_iter().next()?;
            Some(answer_command(view, asked))
        }
        // Resuming alone would only find it held again.
        State::Held => {
            let (_, step, _) = held_steps(view).into_iter().next()?;
            Some(format!("lifeboat retry {short} {}", typed(step)))
        }
    }
}

/// Writes the command that answers a question so that the step goes on.
pub(super) fn answer_command(view: &View<'_>, asked: &QuestionFold<'_>) -> String {
    let (step, question) = (asked.step, asked.question);
    let before: Vec<_> = asked.before.iter().map(|(_, answer)| *answer).collect();
    let (short, step) = (view.source.run.short(), typed(step));
    match question.choices.first().map(String::as_str) {
        Some("approve") => format!("lifeboat approve {short} {step}"),
        Some(choice) if choice.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-') => {
            format!("lifeboat answer {short} {step} {choice}{}", next_point(question, &before))
        }
        None => format!("lifeboat answer {short} {step} VALUE"),
        _ => format!("lifeboat answer {short} {step}"),
    }
}

/// Writes the option that names the next point to confirm, where points are confirmed one by one.
pub fn next_point(question: &Question, given: &[&Answer]) -> String {
    question.open_points(given).first().map(|point| format!(" --point {point}")).unwrap_or_default()
}

/// Writes the command that runs the same runbook again with the same inputs; in a recovery with the clock still at the
/// incident.
fn again(view: &View<'_>) -> String {
    let plan = view.plan;
    let (verb, incident) = match plan.mode {
        Mode::Recovery if view.fold.declared.is_some() => {
            ("run", format!(" --incident-at {}", Moment(view.fold.incident).timestamp()))
        }
        Mode::Recovery => ("run", String::new()),
        Mode::Drill => ("drill", String::new()),
    };
    let inputs: String = plan.inputs.iter().filter_map(|(name, value)| input_argument(name, value)).collect();
    format!("lifeboat {verb} {} --env {}{incident}{inputs}", plan.runbook, plan.environment)
}

/// Writes an input as it is typed.
fn input_argument(name: &str, value: &Value) -> Option<String> {
    let text = match value {
        Value::Null => return None,
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-./:,@+%".contains(c);
    let word = if text.chars().all(is_plain) { text } else { quote(&text) };
    Some(format!(" -i {name}={word}"))
}
