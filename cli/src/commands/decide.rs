//! Commands by which people act on a run: answers, decisions, notes.

use std::path::Path;
use std::time::{Duration, Instant};

use lifeboat_engine::journal::{self, Reader};
use lifeboat_engine::model::event::{Answer, Decision, EventKind, GivenFile, Person, Question};
use lifeboat_engine::model::{Request, RunId, StepId};
use lifeboat_engine::plan::Plan;
use lifeboat_engine::redact::Redactor;
use lifeboat_engine::report::typed;
use lifeboat_engine::run::{Hearing, Phase, RunState, StepPhase, Unit, Verdict, check_answer, wanted};
use lifeboat_engine::runs::{RequestId, RunDir, StateDir};

use crate::args::AnswerArgs;
use crate::exit::{Exit, Failure, Outcome};
use crate::render;
use crate::session::{fold, resolve_readable, take_down};

/// How long to wait for the owner of the run to take a request.
const PATIENCE: Duration = Duration::from_secs(10);

/// Which choice a command stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Say {
    /// The choice that lets the step go on.
    Yes,
    No,
    /// A choice or a value, and the points that it is about.
    Choice(String, Vec<u32>),
}

/// Answers the question of a waiting step.
pub(crate) fn answer(state: &StateDir, by: Person, args: &AnswerArgs, say: &Say) -> Outcome {
    let run = state.find(&args.run).map_err(|error| render::runs(&error))?;
    let told = Told::read(&run)?;
    let (step, question) = match args.step.as_deref() {
        Some(name) => told.question_of(&step_id(name)?)?,
        None => told.only_question()?,
    };
    let choice = match say {
        Say::Yes => question.choices.first().cloned(),
        Say::No => question.choices.get(1).cloned(),
        Say::Choice(text, _) => Some(text.clone()),
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
    let points = match say {
        Say::Choice(_, points) => points.clone(),
        Say::Yes | Say::No => Vec::new(),
    };
    let what = match &points[..] {
        [] => format!("{step}: {choice}"),
        points => format!(
            "{step}: {choice}, point {}",
            points.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
        ),
    };
    let file = args.said.file.as_ref().map(|file| give(&run, &told.plan, file)).transpose()?;
    let answer = Answer { comment: args.said.comment.clone(), points, file, ..Answer::new(choice, by) };
    let request = Request::Answer { step: step.clone(), question: question.id, answer };
    hand_over(&run, &request, &what)
}

/// Keeps a file that goes with an answer, unless it holds a secret.
fn give(run: &RunDir, plan: &Plan, file: &Path) -> Result<Box<GivenFile>, Failure> {
    let redactor = Redactor::new(&resolve_readable(plan)?);
    run.give(file, &redactor).map(Box::new).map_err(|error| render::runs(&error))
}

/// A run as its journal tells it.
struct Told {
    run: RunId,
    plan: Plan,
    state: RunState,
}

impl Told {
    fn read(run: &RunDir) -> Result<Self, Failure> {
        let (header, events) = journal::read(run.path()).map_err(|error| render::journal(&error))?;
        let state = fold(&header.plan, &events)?;
        Ok(Self { run: run.id(), plan: header.plan, state })
    }

    /// Returns the question of a step: the one that is open, else the last; it is the journal that refuses an answer.
    fn question_of(&self, step: &StepId) -> Result<(StepId, Question), Failure> {
        let known = self.state.unit(step).and_then(|unit| {
            let questions = &self.state.of(unit).questions;
            let open = questions.values().find(|(_, answer)| answer.is_none());
            open.or_else(|| questions.values().next_back()).map(|(question, _)| question.clone())
        });
        if let Some(question) = known {
            return Ok((step.clone(), question));
        }
        let by = Person { name: String::new(), uid: 0 };
        let nothing = Answer::new(String::new(), by);
        let request = Request::Answer { step: step.clone(), question: String::new(), answer: nothing };
        let hearing = Hearing { run: self.run, plan: &self.plan, state: &self.state };
        let exit = if self.state.unit(step).is_some() { Exit::Refused } else { Exit::Usage };
        match hearing.judge(request) {
            Verdict::Refused(reason) => {
                Err(Failure::new(exit, reason).help(format!("lifeboat status {}", self.run.short())))
            }
            Verdict::Granted(_) | Verdict::Known => Err(Failure::internal(format!("`{step}` asks nothing"))),
        }
    }

    /// Returns the question that is meant when no step is named.
    fn only_question(&self) -> Result<(StepId, Question), Failure> {
        let short = self.run.short();
        if matches!(self.state.phase, Phase::Finished(_)) {
            return Err(ended(&short));
        }
        let mut open = self.open_questions();
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

    fn open_questions(&self) -> Vec<(StepId, Question)> {
        let mut open = Vec::new();
        for (at, now) in self.state.steps.iter().enumerate().filter(|(_, now)| now.outcome().is_none()) {
            let elements = now.elements.as_ref().map_or(0, |elements| elements.states.len());
            let units = std::iter::once(Unit::whole(at))
                .chain((0..elements).map(|element| Unit::element(at, element)));
            for (unit, state) in units.map(|unit| (unit, self.state.of(unit))) {
                if state.outcome().is_none() && state.phase != StepPhase::Held {
                    let unanswered = state.questions.values().filter(|(_, answer)| answer.is_none());
                    open.extend(unanswered.map(|(question, _)| (unit.id(&self.plan), question.clone())));
                }
            }
        }
        open
    }
}

fn ended(short: &str) -> Failure {
    Failure::new(Exit::Refused, format!("the run {short} has ended; nothing of it can be decided any more"))
        .help(format!("see how with `lifeboat report {short}`"))
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
        crate::say::say!("nothing is undone{kept}");
        return Ok(());
    }
    if undos.is_empty() {
        crate::say::say!("nothing that has begun can be undone");
        return Ok(());
    }
    crate::say::say!("what is undone, newest first (`lifeboat cancel` undoes nothing):");
    for unit in undos {
        let Some(undo) = plan.undo_at(unit.position) else { continue };
        let of = unit.element.map_or_else(|| undo.of.clone(), |at| undo.of.of_element(at));
        crate::say::say!("  {of}: {}", undo.built_in.as_ref().unwrap_or(&undo.step.title));
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

/// Leaves a request and sees that it is judged: by the process that drives the run, or by this one if none does.
fn hand_over(run: &RunDir, request: &Request, what: &str) -> Outcome {
    let short = run.id().short();
    if !run.is_open().map_err(|error| render::runs(&error))? {
        return Err(ended(&short));
    }
    let id = run.inbox().send(request).map_err(|error| render::runs(&error))?;
    let reader = Reader::open(run.path()).map_err(|error| render::journal(&error))?;
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if reader.knows(id).map_err(|error| render::journal(&error))? {
            return told(run, &reader, id, what);
        }
        if run.owner().map_err(|error| render::runs(&error))?.is_none() {
            let taken = take_down(run);
            if reader.knows(id).map_err(|error| render::journal(&error))? {
                return told(run, &reader, id, what);
            }
            if taken? && !run.is_open().map_err(|error| render::runs(&error))? {
                // The run has come to its end in the meantime.
                return Err(ended(&short));
            }
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    crate::say::say!("{what}: left for the run {short}, whose process has not taken it yet");
    crate::say::say!("to see what becomes of it: lifeboat status {short}");
    Ok(Exit::Waiting)
}

/// Says what became of a request that is in the journal.
fn told(run: &RunDir, reader: &Reader, id: RequestId, what: &str) -> Outcome {
    let short = run.id().short();
    let events = reader.events().map_err(|error| render::journal(&error))?;
    let refused = events.into_iter().rev().find_map(|event| match event.kind {
        EventKind::Refused { request, reason, .. } if request == id => Some(reason),
        _ => None,
    });
    if let Some(reason) = refused {
        return Err(Failure::new(Exit::Refused, reason).help(format!("lifeboat status {short}")));
    }
    crate::say::say!("{what}: recorded in the run {short}");
    if run.owner().map_err(|error| render::runs(&error))?.is_none() && run.is_open().is_ok_and(|open| open) {
        crate::say::say!("no process drives it now; to carry it out: lifeboat resume {short}");
    }
    Ok(Exit::Success)
}
