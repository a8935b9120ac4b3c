//! The dispatcher against a slow oracle: random graphs, scripted outcomes, and people and crashes at random moments.
//!
//! After each thing that happens, what runs, what waits and what has ended must be what the oracle says. A few hundred
//! cases; `LIFEBOAT_TEST_LONG=1` tries many thousand.

mod case;
mod model;

use std::collections::BTreeSet;
use std::sync::Arc;

use lifeboat_engine::model::event::{AttemptResult, Decision, EventKind};
use lifeboat_engine::model::{Attempt, Outcome as EndOf, Request, RunId, RunOutcome, StepId};
use lifeboat_engine::plan::Plan;
use lifeboat_engine::run::{Action, Dispatcher, Input, RunState, Situation, StepPhase, Unit};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use serde_json::json;

use crate::plans::{declared, failed, id, person, registry, succeeded};
use case::{Case, Move, Result as Scripted};
use model::{End, Key, Now, Oracle, Outcome, Phase, Stand};

/// The dispatcher as a process drives it.
struct Engine {
    plan: Arc<Plan>,
    dispatcher: Dispatcher,
    journal: Vec<EventKind>,
    running: Vec<(StepId, Attempt)>,
    /// Attempts that were told to end.
    told: BTreeSet<String>,
    refused: usize,
    now_ms: i64,
}

impl Engine {
    fn new(case: &Case) -> Self {
        Self::over(Arc::new(case.plan()), vec![declared()], 0)
    }

    /// What another process makes of a journal.
    fn over(plan: Arc<Plan>, journal: Vec<EventKind>, now_ms: i64) -> Self {
        let mut state = RunState::new(&plan);
        journal.iter().for_each(|event| state.apply(event).expect("a journal of our own"));
        let dispatcher =
            Dispatcher::new(RunId::generate(), Arc::clone(&plan), registry(), state, Box::new(|| 0.0));
        let mut engine = Self {
            plan,
            dispatcher,
            journal,
            running: Vec::new(),
            told: BTreeSet::new(),
            refused: 0,
            now_ms,
        };
        engine.input(Input::EngineStarted { pid: 1, host: "h".into(), boot_id: "b".into() });
        engine
    }

    fn crash(&mut self) {
        *self = Self::over(Arc::clone(&self.plan), std::mem::take(&mut self.journal), self.now_ms);
    }

    fn input(&mut self, input: Input) {
        for action in self.dispatcher.handle(input, self.now_ms).expect("a legal event") {
            match action {
                Action::Append(event) => self.journal.push(event),
                Action::Launch { unit, attempt, .. } => self.running.push((unit.id(&self.plan), attempt)),
                Action::EndAttempt { unit } => drop(self.told.insert(unit.id(&self.plan).to_string())),
                Action::Refuse { .. } => self.refused += 1,
                other => panic!("nobody asks and nothing is made: {other:?}"),
            }
        }
    }

    fn decide(&mut self, decision: Decision) {
        self.input(Input::Request(Request::Decide { by: person(), decision }));
    }

    fn end(&mut self, step: &StepId, result: Scripted) {
        let at = self.running.iter().position(|(running, _)| running == step).expect("it runs");
        let (step, attempt) = self.running.remove(at);
        self.told.remove(step.as_str());
        let result = match result {
            Scripted::Fine => succeeded(json!({})),
            Scripted::Fails(kind) => failed(kind),
            Scripted::Unexpected => succeeded(json!({ "bad": true })),
            Scripted::Interrupted => AttemptResult::Interrupted,
        };
        self.input(Input::AttemptEnded { step, attempt, result });
    }

    fn units(&self) -> impl Iterator<Item = Unit> {
        let steps = self.dispatcher.state().steps.iter().enumerate();
        steps.flat_map(|(at, step)| {
            let count = step.elements.as_ref().map_or(0, |elements| elements.states.len());
            std::iter::once(Unit::whole(at)).chain((0..count).map(move |element| Unit::element(at, element)))
        })
    }

    /// Where everything is that has begun or ended, as the oracle tells it.
    fn tells(&self) -> Vec<String> {
        let told = self.units().filter_map(|unit| {
            let state = self.dispatcher.state().of(unit);
            let now = match &state.phase {
                StepPhase::Running => Now::Running,
                StepPhase::WaitingRetry { at_ms } => Now::Retry(*at_ms),
                StepPhase::Held => Now::Held,
                StepPhase::Ended(outcome) => Now::Over(end(outcome)),
                // Whether an attempt is due, or cut off by a signal, shows in what runs.
                StepPhase::Waiting
                | StepPhase::Settling(_)
                | StepPhase::Repeating
                | StepPhase::Decided(_) => {
                    return None;
                }
            };
            Some(line(unit.id(&self.plan).as_str(), now, state.attempt))
        });
        let mut told: Vec<_> = told.collect();
        told.sort();
        told
    }
}

fn end(outcome: &EndOf) -> End {
    match outcome {
        EndOf::Succeeded => End::Succeeded,
        EndOf::Failed { .. } => End::Failed,
        EndOf::Skipped { .. } => End::Skipped,
        EndOf::NotRun { .. } => End::NotRun,
        EndOf::MarkedDone { .. } => End::MarkedDone,
    }
}

fn line(id: &str, now: Now, attempts: u32) -> String {
    // A retry that is due and may not start yet is still a waiting one to the engine, and needs no place of its own here.
    format!("{id}: {now:?} after {attempts}")
}

impl Oracle<'_> {
    fn tells(&self, at: &Engine) -> Vec<String> {
        let told = self.units.iter().filter_map(|(key, state)| {
            let now = match state.now {
                Now::Idle | Now::Cut => return None,
                Now::Again => match at.phase_of(&key.id()) {
                    StepPhase::WaitingRetry { at_ms } if at_ms <= at.now_ms => Now::Retry(at_ms),
                    StepPhase::Waiting | StepPhase::Settling(_) => return None,
                    _ => Now::Again,
                },
                now => now,
            };
            Some(line(&key.id(), now, state.attempts))
        });
        let mut told: Vec<_> = told.collect();
        told.sort();
        told
    }
}

impl Engine {
    fn phase_of(&self, name: &str) -> StepPhase {
        let unit = self.dispatcher.state().unit(&id(name)).expect("a unit of the run");
        self.dispatcher.state().of(unit).phase.clone()
    }
}

fn outcome(outcome: RunOutcome) -> Outcome {
    match outcome {
        RunOutcome::Succeeded => Outcome::Succeeded,
        RunOutcome::Failed => Outcome::Failed,
        RunOutcome::Aborted => Outcome::Aborted,
    }
}

fn stand(situation: Situation) -> Option<Stand> {
    match situation {
        Situation::Finished(how) => Some(Stand::Finished(outcome(how))),
        Situation::Stopped => Some(Stand::Stopped),
        Situation::Busy => Some(Stand::Busy),
        Situation::Paused => Some(Stand::Paused),
        Situation::Held => Some(Stand::Held),
        Situation::WaitingForPerson | Situation::Stuck => None,
    }
}

/// The engine and the oracle, side by side.
struct Pair<'a> {
    case: &'a Case,
    engine: Engine,
    oracle: Oracle<'a>,
    refusals: usize,
}

type Verdict = std::result::Result<(), TestCaseError>;

impl<'a> Pair<'a> {
    fn new(case: &'a Case) -> Self {
        Self { case, engine: Engine::new(case), oracle: Oracle::new(case), refusals: 0 }
    }

    fn agree(&self) -> Verdict {
        let running: BTreeSet<_> =
            self.engine.running.iter().map(|(step, attempt)| (step.to_string(), *attempt)).collect();
        let expected: BTreeSet<_> =
            self.oracle.running().iter().map(|key| (key.id(), self.oracle.units[key].attempts)).collect();
        prop_assert_eq!(&running, &expected, "what runs");
        prop_assert_eq!(running.len(), self.engine.running.len(), "nothing runs twice");
        prop_assert_eq!(self.engine.tells(), self.oracle.tells(&self.engine), "how everything stands");
        let told: BTreeSet<_> = self
            .oracle
            .running()
            .into_iter()
            .filter(|key| self.oracle.told_to_end(*key))
            .map(Key::id)
            .collect();
        prop_assert_eq!(&self.engine.told, &told, "what was told to end");
        prop_assert_eq!(
            stand(self.engine.dispatcher.situation()),
            Some(self.oracle.stand()),
            "the situation"
        );
        prop_assert_eq!(self.engine.refused, self.refusals, "refusals");
        Ok(())
    }

    fn make(&mut self, happens: Move) -> Verdict {
        let held = self.oracle.held();
        match happens {
            Move::End { which, late } => {
                let running = self.oracle.running();
                if !running.is_empty() {
                    self.end(running[which % running.len()], late);
                }
            }
            Move::Wait(ms) => {
                self.engine.now_ms += i64::from(ms);
                self.engine.input(Input::Tick);
                self.oracle.time_passes(self.engine.now_ms);
            }
            Move::Retry(which) if !held.is_empty() => {
                let key = held[which % held.len()];
                self.engine.decide(Decision::RetryStep { step: id(&key.id()) });
                self.oracle.retry(key);
            }
            Move::Skip(which) if !held.is_empty() => {
                let key = held[which % held.len()];
                self.engine.decide(Decision::SkipStep { step: id(&key.id()), reason: "x".into() });
                self.oracle.decided(key, End::Skipped);
            }
            Move::MarkDone(which) if !held.is_empty() => {
                let key = held[which % held.len()];
                self.engine.decide(Decision::MarkDone { step: id(&key.id()), reason: "x".into() });
                self.oracle.decided(key, End::MarkedDone);
            }
            Move::Retry(_) | Move::Skip(_) | Move::MarkDone(_) => {
                self.engine.decide(Decision::RetryStep { step: id("s0") });
                self.refusals += 1;
            }
            Move::Abort | Move::Cancel => self.end_run(matches!(happens, Move::Abort)),
            Move::Pause | Move::Unpause => {
                let paused = matches!(happens, Move::Pause);
                self.engine.decide(if paused { Decision::Pause } else { Decision::Unpause });
                if !self.oracle.pause(paused) {
                    self.refusals += 1;
                }
            }
            Move::Stop => {
                self.engine.input(Input::Stop);
                self.oracle.stop();
            }
            Move::Crash => {
                self.engine.crash();
                self.refusals = 0;
                self.oracle.crash(self.engine.now_ms);
            }
        }
        self.agree()
    }

    fn end(&mut self, key: Key, late: bool) {
        let step = id(&key.id());
        let scripted = self.case.result(&step, self.oracle.units[&key].attempts);
        let result = if self.oracle.told_to_end(key) && !late { Scripted::Interrupted } else { scripted };
        self.engine.end(&step, result);
        self.oracle.ended(key, result, self.engine.now_ms);
    }

    fn end_run(&mut self, undo: bool) {
        let reason = "x".to_owned();
        self.engine.decide(if undo { Decision::Abort { reason } } else { Decision::Cancel { reason } });
        if !self.oracle.end_run(undo) {
            self.refusals += 1;
        }
    }

    /// Lets the run come to its end, with a person who has every held step tried again.
    fn finish(&mut self) -> Verdict {
        for _ in 0..1000 {
            let next = match self.oracle.stand() {
                Stand::Finished(_) => return Ok(()),
                Stand::Stopped => Move::Crash,
                _ if !self.oracle.running().is_empty() => Move::End { which: 0, late: true },
                Stand::Busy => {
                    let wait = self.oracle.next_retry().expect("a timer") - self.engine.now_ms;
                    Move::Wait(u16::try_from(wait).expect("a short wait"))
                }
                Stand::Paused => Move::Unpause,
                Stand::Held => Move::Retry(0),
            };
            self.make(next)?;
        }
        Err(TestCaseError::fail("it does not end"))
    }
}

/// Whatever a journal is cut at, the run comes to an end from there, and nothing runs again that had succeeded or ended.
fn recovers(case: &Case, journal: &[EventKind]) -> Verdict {
    let completed: BTreeSet<_> = journal.iter().filter_map(completes).collect();
    let mut engine = Engine::over(Arc::new(case.plan()), journal.to_vec(), i64::from(u32::MAX));
    for _ in 0..1000 {
        for (step, _) in &engine.running {
            prop_assert!(!completed.contains(step), "`{}` runs again", step);
        }
        match engine.dispatcher.situation() {
            Situation::Finished(_) => return ends_once(&engine.journal),
            _ if !engine.running.is_empty() => {
                let (step, attempt) = engine.running[0].clone();
                engine.end(&step, case.result(&step, attempt));
            }
            Situation::Busy => {
                engine.now_ms = engine.dispatcher.next_wake_ms().expect("a timer");
                engine.input(Input::Tick);
            }
            Situation::Paused => engine.decide(Decision::Unpause),
            Situation::Held => {
                let held =
                    engine.units().find(|unit| engine.dispatcher.state().of(*unit).phase == StepPhase::Held);
                let step = held.expect("a held step").id(&engine.plan);
                engine.decide(Decision::RetryStep { step });
            }
            other => return Err(TestCaseError::fail(format!("{other:?}"))),
        }
    }
    Err(TestCaseError::fail("it does not end"))
}

fn completes(event: &EventKind) -> Option<StepId> {
    match event {
        EventKind::StepFinished { step, .. } => Some(step.clone()),
        // With `expect` or a person's retry another attempt could follow; there are none after a success here.
        EventKind::AttemptFinished { step, result: AttemptResult::Succeeded { .. }, .. } => {
            Some(step.clone())
        }
        _ => None,
    }
}

fn ends_once(journal: &[EventKind]) -> Verdict {
    let mut ended = BTreeSet::new();
    for event in journal {
        if let EventKind::StepFinished { step, .. } = event {
            prop_assert!(ended.insert(step.clone()), "`{}` ends twice", step);
        }
    }
    Ok(())
}

fn config() -> ProptestConfig {
    let long = std::env::var_os("LIFEBOAT_TEST_LONG").is_some_and(|value| value != "0");
    ProptestConfig {
        cases: if long { 20_000 } else { 400 },
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(
            "tests/runs/oracle/regressions.txt",
        ))),
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn the_engine_does_what_the_oracle_says(case in case::case()) {
        let mut pair = Pair::new(&case);
        pair.agree()?;
        for happens in &case.moves {
            if matches!(pair.oracle.phase, Phase::Finished(_)) {
                break;
            }
            pair.make(*happens)?;
        }
        pair.finish()?;
        ends_once(&pair.engine.journal)?;
        for cut in &case.cuts {
            let journal = &pair.engine.journal;
            recovers(&case, &journal[..1 + cut.index(journal.len() - 1)])?;
        }
    }
}
