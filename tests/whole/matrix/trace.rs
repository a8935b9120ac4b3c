//! What a run has left, held against what was promised.

use std::collections::{BTreeMap, BTreeSet};

use lifeboat_engine::journal::{self, Reader};
use lifeboat_engine::model::event::{AttemptResult, Decision, EventKind};
use lifeboat_engine::model::{Event, RunId};
use lifeboat_engine::plan::Plan;
use lifeboat_engine::run::{Phase, RunState, StepPhase, StepState, Unit};
use lifeboat_engine::runs::{RunDir, StateDir};
use serde_json::{Value, json};

use crate::project::Project;

/// A run as its journal tells it.
pub(super) struct Trace {
    pub(super) run: RunId,
    pub(super) plan: Plan,
    pub(super) events: Vec<Event>,
    pub(super) state: RunState,
}

impl Trace {
    /// Reads the only run that was declared; there may be directories of runs that never were.
    pub(super) fn read(project: &Project) -> Option<Self> {
        let state = StateDir::look(&project.file(".lifeboat/state"))?;
        let mut found: Vec<_> =
            state.runs().expect("a readable directory").iter().filter_map(Self::of).collect();
        assert!(found.len() <= 1, "one run was asked for, and {} were declared", found.len());
        found.pop()
    }

    fn of(run: &RunDir) -> Option<Self> {
        let (header, events) = match journal::read(run.path()) {
            Ok(read) => read,
            Err(journal::Error::Missing { .. }) => return None,
            Err(error) => panic!("the journal of {} is not readable: {error}", run.id()),
        };
        let mut state = RunState::new(&header.plan);
        for event in &events {
            state.apply(&event.kind).unwrap_or_else(|error| panic!("event {}: {error}", event.seq));
        }
        (!events.is_empty()).then_some(Self { run: run.id(), plan: header.plan, events, state })
    }

    pub(super) fn has_ended(&self) -> bool {
        matches!(self.state.phase, Phase::Finished(_))
    }

    /// Everything that has a state of its own: steps, elements and undos.
    pub(super) fn units(&self) -> Vec<Unit> {
        let steps = self.state.steps.iter().enumerate();
        let units = steps.flat_map(|(at, step)| {
            let count = step.elements.as_ref().map_or(0, |elements| elements.states.len());
            std::iter::once(Unit::whole(at)).chain((0..count).map(move |element| Unit::element(at, element)))
        });
        units.collect()
    }

    /// The steps that are held.
    pub(super) fn held(&self) -> Vec<String> {
        self.named(|state| state.phase == StepPhase::Held)
    }

    /// The steps that wait for an answer, running or cut off.
    pub(super) fn asking(&self) -> Vec<String> {
        let open = |state: &StepState| {
            state.outcome().is_none() && state.questions.values().any(|(_, answer)| answer.is_none())
        };
        self.named(open)
    }

    fn named(&self, fits: impl Fn(&StepState) -> bool) -> Vec<String> {
        let units = self.units().into_iter().filter(|unit| fits(self.state.of(*unit)));
        units.map(|unit| unit.id(&self.plan).to_string()).collect()
    }

    /// What must be the same however often the run was cut off: the end of everything, what it put out, what people
    /// decided about it, and what is left of what was made.
    pub(super) fn canon(&self) -> Value {
        let steps: BTreeMap<_, _> = self
            .units()
            .into_iter()
            .map(|unit| {
                let state = self.state.of(unit);
                let outcome = state.outcome().map(|outcome| {
                    let mut outcome = serde_json::to_value(outcome).expect("plain data");
                    // Which of several failures was told last depends on what was cut off.
                    outcome.as_object_mut().map(|outcome| outcome.remove("failure"));
                    outcome
                });
                let outputs = state
                    .done
                    .as_ref()
                    .map(|done| done.outputs.clone())
                    .filter(|_| !changes(unit.id(&self.plan).as_str()));
                let answers: Vec<_> = state
                    .questions
                    .values()
                    .map(|(_, answer)| answer.as_ref().map(|answer| &answer.choice))
                    .collect();
                let asked = json!(answers);
                (
                    unit.id(&self.plan).to_string(),
                    json!({ "end": outcome, "outputs": outputs, "answers": asked }),
                )
            })
            .collect();
        json!({ "end": format!("{:?}", self.state.phase), "steps": steps, "left": self.state.things.len() })
    }

    /// Holds the trace of the effects against the journal.
    pub(super) fn verify(&self, project: &Project) {
        let state = StateDir::look(&project.file(".lifeboat/state")).expect("a state directory");
        let dir = state.run(self.run).expect("the run");
        Reader::open(dir.path()).and_then(|reader| reader.verify()).expect("an unbroken chain");
        assert!(dir.owner().expect("a lock").is_none(), "nobody owns it any more");
        self.nothing_runs_after_its_end();
        self.effects_follow_the_journal(&project.lines("effects"));
        self.undo_is_newest_first();
    }

    /// A completed step is recorded once and never runs again.
    fn nothing_runs_after_its_end(&self) {
        let (mut ended, mut done) = (BTreeSet::new(), BTreeSet::new());
        for event in &self.events {
            match &event.kind {
                EventKind::StepFinished { step, .. } => {
                    assert!(ended.insert(step.clone()), "event {}: `{step}` ends a second time", event.seq);
                }
                EventKind::AttemptFinished { step, result: AttemptResult::Succeeded { .. }, .. } => {
                    assert!(
                        done.insert(step.clone()),
                        "event {}: `{step}` succeeds a second time",
                        event.seq
                    );
                }
                EventKind::AttemptStarted { step, .. } => {
                    let over = ended.contains(step) || done.contains(step);
                    assert!(!over, "event {}: `{step}` runs again after its end", event.seq);
                }
                _ => {}
            }
        }
    }

    /// No attempt acts that is not in the journal, none acts twice, and one that succeeded has acted.
    fn effects_follow_the_journal(&self, lines: &[String]) {
        let mut acted: BTreeMap<(String, u32), usize> = BTreeMap::new();
        for line in lines {
            let (key, attempt) = line.rsplit_once(' ').expect("a key and an attempt");
            let step = key
                .strip_prefix(&format!("{}/", self.run))
                .unwrap_or_else(|| panic!("a key `run/step`, not {key}"));
            *acted.entry((step.to_owned(), attempt.parse().expect("a number"))).or_default() += 1;
        }
        let (mut started, mut succeeded) = (BTreeSet::new(), BTreeSet::new());
        for event in &self.events {
            match &event.kind {
                EventKind::AttemptStarted { step, attempt, .. } => {
                    assert!(
                        started.insert((step.to_string(), *attempt)),
                        "`{step}` begins attempt {attempt} twice"
                    );
                }
                EventKind::AttemptFinished { step, attempt, result: AttemptResult::Succeeded { .. } } => {
                    succeeded.insert((step.to_string(), *attempt));
                }
                _ => {}
            }
        }
        for (who, times) in &acted {
            assert!(started.contains(who), "{who:?} acted without a start in the journal");
            assert!(*times == 1 || who.0 == "poll", "{who:?} acted {times} times");
        }
        for who in succeeded.iter().filter(|who| acts(&self.plan, &who.0)) {
            let probed = who.1 > 1 && who.0 == "guarded";
            assert!(probed || acted.contains_key(who), "{who:?} succeeded without an effect");
        }
    }

    /// Everything that had begun is undone, newest first, after the last attempt of the main part and before `always`.
    fn undo_is_newest_first(&self) {
        let (mut begun, mut undone) = (Vec::new(), Vec::new());
        let mut undoing = false;
        for event in &self.events {
            match &event.kind {
                EventKind::EndingBegan { undo, .. } => undoing = *undo,
                EventKind::AttemptStarted { step, attempt: 1, .. } if step.as_str().contains("/undo") => {
                    undone.push(step.to_string());
                }
                EventKind::AttemptStarted { step, attempt: 1, .. } if !undoing => {
                    begun.push(step.to_string())
                }
                EventKind::AttemptStarted { step, .. } if ["tell", "tidy"].contains(&step.as_str()) => {
                    assert_eq!(
                        undone.len(),
                        if undoing { self.undoable(&begun).len() } else { 0 },
                        "before `always`"
                    );
                }
                _ => {}
            }
        }
        if undoing {
            assert_eq!(undone, self.undoable(&begun));
        }
    }

    /// The undos of what has begun, newest first.
    fn undoable(&self, begun: &[String]) -> Vec<String> {
        let newest = begun.iter().rev().map(|name| name.split_once('[').unwrap_or((name, "")));
        let undos = newest.filter(|(of, _)| self.plan.undos.iter().any(|undo| undo.of.as_str() == *of));
        undos
            .map(
                |(of, rest)| if rest.is_empty() { format!("{of}/undo") } else { format!("{of}/undo[{rest}") },
            )
            .collect()
    }
}

/// Says whether what a step puts out depends on how often it was cut off.
fn changes(step: &str) -> bool {
    matches!(step, "poll" | "serve")
}

/// Says whether a step is a script of ours.
fn acts(plan: &Plan, step: &str) -> bool {
    let of = step.split('[').next().unwrap_or(step);
    plan.everything().any(|known| known.id.as_str() == of && known.uses == "run")
}

/// The decisions that people have made, without those that only a crash made necessary.
pub(super) fn decisions(events: &[Event]) -> BTreeSet<String> {
    let decided = events.iter().filter_map(|event| match &event.kind {
        EventKind::Decided { decision: Decision::SkipStep { step, reason }, .. } => {
            Some(format!("skip {step} {reason}"))
        }
        EventKind::Decided { decision: Decision::MarkDone { step, reason }, .. } => {
            Some(format!("done {step} {reason}"))
        }
        EventKind::Decided { decision: Decision::Note { text }, .. } => Some(format!("note {text}")),
        _ => None,
    });
    decided.collect()
}
