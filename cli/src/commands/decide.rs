//! Commands by which people act on a run: answers, decisions, notes.

use std::time::{Duration, Instant};

use lifeboat_engine::journal;
use lifeboat_engine::model::event::{Answer, Decision, EventKind, Person, Question};
use lifeboat_engine::model::{Request, StepId};
use lifeboat_engine::report::typed;
use lifeboat_engine::run::{Phase, Unit, check_answer, wanted};
use lifeboat_engine::runs::{RunDir, StateDir};

use crate::args::AnswerArgs;
use crate::exit::{Exit, Failure, Outcome};
use crate::render;
use crate::session::fold;

/// How long to wait for the owner of the run to take a request.
const PATIENCE: Duration = Duration::from_secs(10);

/// Which choice a command stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Say {
    /// The choice that lets the step go on.
    Yes,
    No,
    Choice(String),
}

/// Answers the question of a waiting step.
pub(crate) fn answer(state: &StateDir, by: Person, args: &AnswerArgs, say: &Say) -> Outcome {
    let run = state.find(&args.run).map_err(|error| render::runs(&error))?;
    let (step, question) = waiting(&run, args.step.as_deref())?;
    let choice = match say {
        Say::Yes => question.choices.first().cloned(),
        Say::No => question.choices.get(1).cloned(),
        Say::Choice(text) => Some(text.clone()),
    };
    let (short, name) = (run.id().short(), typed(&step));
    let how = match wanted(&question) {
        Some(wanted) => {
            format!("lifeboat answer {short} {name} VALUE, where VALUE is {}", wanted.ty.in_words())
        }
        None => format!("lifeboat answer {short} {name} with {}", question.choices.join(" or ")),
    };
    let Some(choice) = choice else {
        return Err(Failure::usage(format!("`{step}` asks for a value, not for a yes or no")).help(how));
    };
    if let Err(problem) = check_answer(&question, &choice) {
        return Err(Failure::usage(format!("that is no answer to `{step}`: {problem}")).help(how));
    }
    let answer = Answer { choice: choice.clone(), by, comment: args.comment.clone(), automatic: false };
    let request = Request::Answer { step: step.clone(), question: question.id, answer };
    hand_over(&run, &request, &format!("{step}: {choice}"))
}

/// Finds the question that is meant: the only one, or the one of the step named.
fn waiting(run: &RunDir, wanted: Option<&str>) -> Result<(StepId, Question), Failure> {
    let (header, events) = journal::read(run.path()).map_err(|error| render::journal(&error))?;
    let state = fold(&header.plan, &events)?;
    let mut open: Vec<(StepId, Question)> = Vec::new();
    for (at, now) in state.steps.iter().enumerate().filter(|(_, now)| now.outcome().is_none()) {
        let elements = now.elements.as_ref().map_or(0, |elements| elements.states.len());
        let units =
            std::iter::once(Unit::whole(at)).chain((0..elements).map(|element| Unit::element(at, element)));
        for unit in units.filter(|unit| state.of(*unit).outcome().is_none()) {
            let unanswered = state.of(unit).questions.values().filter(|(_, answer)| answer.is_none());
            open.extend(unanswered.map(|(question, _)| (unit.id(&header.plan), question.clone())));
        }
    }
    if let Some(wanted) = wanted {
        open.retain(|(step, _)| step.as_str() == wanted);
    }
    let short = run.id().short();
    match open.len() {
        1 => Ok(open.remove(0)),
        0 => Err(Failure::new(Exit::Refused, format!("nothing in the run {short} waits for an answer"))
            .help(format!("lifeboat status {short}"))),
        _ => {
            let steps: Vec<_> = open.iter().map(|(step, _)| step.as_str()).collect();
            Err(Failure::usage(format!("several steps wait: {}", steps.join(", ")))
                .help(format!("name one: lifeboat approve {short} {}", typed(&open[0].0))))
        }
    }
}

/// Decides about a run or one of its steps.
pub(crate) fn decide(state: &StateDir, by: Person, text: &str, decision: Decision) -> Outcome {
    let run = state.find(text).map_err(|error| render::runs(&error))?;
    let what = match &decision {
        Decision::RetryStep { step } => format!("retry of {step}"),
        Decision::SkipStep { step, .. } => format!("skip of {step}"),
        Decision::MarkDone { step, .. } => format!("{step} done"),
        Decision::Abort { .. } => "abort".to_owned(),
        Decision::Cancel { .. } => "cancel".to_owned(),
        Decision::Pause => "pause".to_owned(),
        Decision::Unpause => "continue".to_owned(),
        Decision::Note { .. } => "note".to_owned(),
    };
    foretell(&run, &decision)?;
    hand_over(&run, &Request::Decide { by, decision }, &what)
}

/// Says what the end of a run brings with it, before it is asked for.
fn foretell(run: &RunDir, decision: &Decision) -> Result<(), Failure> {
    let undoes = match decision {
        Decision::Abort { .. } => true,
        Decision::Cancel { .. } => false,
        _ => return Ok(()),
    };
    let (header, events) = journal::read(run.path()).map_err(|error| render::journal(&error))?;
    let (plan, state) = (&header.plan, fold(&header.plan, &events)?);
    if state.phase != Phase::Main {
        return Ok(());
    }
    let undos = state.undos_of_begun(plan);
    if !undoes {
        let kept = if undos.is_empty() { "" } else { "; `lifeboat abort` would undo what has begun" };
        anstream::eprintln!("nothing is undone{kept}");
        return Ok(());
    }
    if undos.is_empty() {
        anstream::eprintln!("nothing that has begun can be undone");
        return Ok(());
    }
    anstream::eprintln!("what is undone, newest first (`lifeboat cancel` undoes nothing):");
    for unit in undos {
        let Some(undo) = plan.undo_at(unit.position) else { continue };
        let of = unit.element.map_or_else(|| undo.of.clone(), |at| undo.of.of_element(at));
        anstream::eprintln!("  {of}: {}", undo.built_in.as_ref().unwrap_or(&undo.step.title));
    }
    Ok(())
}

/// Says whether another process drives the run and a person has paused it.
pub(crate) fn is_paused_elsewhere(state: &StateDir, text: &str) -> Result<bool, Failure> {
    let run = state.find(text).map_err(|error| render::runs(&error))?;
    if run.owner().map_err(|error| render::runs(&error))?.is_none() {
        return Ok(false);
    }
    let (header, events) = journal::read(run.path()).map_err(|error| render::journal(&error))?;
    Ok(fold(&header.plan, &events)?.paused)
}

/// Parses the name of a step.
pub(crate) fn step_id(text: &str) -> Result<StepId, Failure> {
    StepId::new(text).map_err(|error| Failure::usage(error.to_string()))
}

/// Leaves a request and waits until the owner of the run has taken it. Without an owner it is taken on resume.
fn hand_over(run: &RunDir, request: &Request, what: &str) -> Outcome {
    let short = run.id().short();
    if !run.is_open().map_err(|error| render::runs(&error))? {
        return Err(Failure::new(Exit::Refused, format!("the run {short} has ended")));
    }
    let before = last_seq(run)?;
    let inbox = run.inbox();
    let id = inbox.send(request).map_err(|error| render::runs(&error))?;
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        let waits = inbox.contains(id).map_err(|error| render::runs(&error))?;
        if !waits {
            return taken(run, before, request, what);
        }
        if run.owner().map_err(|error| render::runs(&error))?.is_none() {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    anstream::eprintln!("{what}: left for the run {short}, which no process drives now");
    anstream::eprintln!("to go on: lifeboat resume {short}");
    Ok(Exit::Success)
}

fn last_seq(run: &RunDir) -> Result<u64, Failure> {
    let (_, events) = journal::read(run.path()).map_err(|error| render::journal(&error))?;
    Ok(events.last().map_or(0, |event| event.seq))
}

/// Waits for the journal to tell what became of a request that was taken.
fn taken(run: &RunDir, before: u64, request: &Request, what: &str) -> Outcome {
    let short = run.id().short();
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        let (_, events) = journal::read(run.path()).map_err(|error| render::journal(&error))?;
        for event in events.iter().filter(|event| event.seq > before) {
            match &event.kind {
                EventKind::Noted { step: None, text } => {
                    return Err(
                        Failure::new(Exit::Refused, text.clone()).help(format!("lifeboat status {short}"))
                    );
                }
                kind if grants(kind, request) => {
                    anstream::eprintln!("{what}: taken by the run {short}");
                    return Ok(Exit::Success);
                }
                _ => {}
            }
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Err(Failure::internal(format!("the run {short} took the request and does not say what became of it"))
        .help(format!("lifeboat status {short}")))
}

fn grants(event: &EventKind, request: &Request) -> bool {
    match (event, request) {
        (
            EventKind::QuestionAnswered { step, answer, .. },
            Request::Answer { step: of, answer: given, .. },
        ) => step == of && answer == given,
        (EventKind::Decided { decision, .. }, Request::Decide { decision: wish, .. }) => decision == wish,
        _ => false,
    }
}
