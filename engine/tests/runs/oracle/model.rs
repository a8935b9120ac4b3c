//! What the design says a run does, written as plainly as can be: after each thing that happens everything is looked at
//! anew. It shares no code with the engine.

use std::collections::{BTreeMap, BTreeSet};

use lifeboat_engine::model::FailureKind;
use lifeboat_engine::plan::{NeedOn, OnError};
use lifeboat_engine::step::Effect;

use super::case::{Case, DELAY_MS, Result, Step, UNDO_ATTEMPTS, name};

/// A step, an element of one, or the undo of either; in the order in which they start if several can.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    undo: bool,
    step: usize,
    element: Option<usize>,
}

impl Key {
    pub(super) fn id(self) -> String {
        let undo = if self.undo { "/undo" } else { "" };
        let element = self.element.map(|at| format!("[{at}]")).unwrap_or_default();
        format!("{}{undo}{element}", name(self.step))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Succeeded,
    Failed,
    Skipped,
    NotRun,
    MarkedDone,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Now {
    #[default]
    Idle,
    /// To be tried again as soon as it may.
    Again,
    Running,
    /// A signal ended its attempt; what follows is decided by the next process.
    Cut,
    Retry(i64),
    Held,
    Over(End),
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct State {
    pub(super) now: Now,
    pub(super) attempts: u32,
    used: u32,
    granted: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Succeeded,
    Failed,
    Aborted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Main,
    Ending(Outcome),
    Finished(Outcome),
}

/// How a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stand {
    Finished(Outcome),
    Stopped,
    Busy,
    Paused,
    Held,
}

pub(super) struct Oracle<'a> {
    case: &'a Case,
    pub(super) units: BTreeMap<Key, State>,
    /// Steps whose elements are chosen.
    chosen: BTreeSet<usize>,
    begun: Vec<Key>,
    undos: Vec<Key>,
    pub(super) phase: Phase,
    pub(super) paused: bool,
    stopping: bool,
    now_ms: i64,
}

/// How many run at once outside of groups with a limit.
const REST: usize = 16;

impl<'a> Oracle<'a> {
    pub(super) fn new(case: &'a Case) -> Self {
        let units = (0..case.steps.len()).map(|step| (whole(step), State::default())).collect();
        let mut oracle = Self {
            case,
            units,
            chosen: BTreeSet::new(),
            begun: Vec::new(),
            undos: Vec::new(),
            phase: Phase::Main,
            paused: false,
            stopping: false,
            now_ms: 0,
        };
        oracle.go_on();
        oracle
    }

    pub(super) fn running(&self) -> Vec<Key> {
        self.units.iter().filter(|(_, state)| state.now == Now::Running).map(|(key, _)| *key).collect()
    }

    pub(super) fn held(&self) -> Vec<Key> {
        self.units.iter().filter(|(_, state)| state.now == Now::Held).map(|(key, _)| *key).collect()
    }

    /// Says whether an attempt has been told to end.
    pub(super) fn told_to_end(&self, key: Key) -> bool {
        self.stopping || (matches!(self.phase, Phase::Ending(_)) && self.is_main(key))
    }

    pub(super) fn next_retry(&self) -> Option<i64> {
        let due = self.units.values().filter_map(|state| match state.now {
            Now::Retry(due) => Some(due),
            _ => None,
        });
        due.min()
    }

    pub(super) fn stand(&self) -> Stand {
        match self.phase {
            Phase::Finished(outcome) => Stand::Finished(outcome),
            _ if self.stopping && self.running().is_empty() => Stand::Stopped,
            _ if !self.running().is_empty() || self.next_retry().is_some() => Stand::Busy,
            _ if self.paused => Stand::Paused,
            _ => Stand::Held,
        }
    }

    // What happens.

    pub(super) fn ended(&mut self, key: Key, result: Result, now_ms: i64) {
        self.now_ms = now_ms;
        if result == Result::Interrupted {
            self.units.get_mut(&key).unwrap().used -= 1;
        }
        // What follows from a signal is left to the next process, unless the end of the run has settled it already.
        let closing = matches!(self.phase, Phase::Ending(_)) && self.is_main(key);
        if self.stopping && result == Result::Interrupted && !closing {
            self.set(key, Now::Cut);
        } else {
            self.settle(key, result);
        }
        self.go_on();
    }

    pub(super) fn time_passes(&mut self, now_ms: i64) {
        self.now_ms = now_ms;
        self.go_on();
    }

    pub(super) fn retry(&mut self, key: Key) {
        self.units.get_mut(&key).unwrap().granted += 1;
        self.set(key, Now::Again);
        self.go_on();
    }

    pub(super) fn decided(&mut self, key: Key, end: End) {
        self.over(key, end);
        self.go_on();
    }

    /// Returns false if it is too late for that.
    pub(super) fn end_run(&mut self, undo: bool) -> bool {
        let open = self.phase == Phase::Main;
        if open {
            self.end(Outcome::Aborted, undo);
            self.go_on();
        }
        open
    }

    /// Returns false if it is too late for that: nobody pauses an end.
    pub(super) fn pause(&mut self, paused: bool) -> bool {
        let granted = !paused || self.phase == Phase::Main;
        if granted {
            self.paused = paused;
            self.go_on();
        }
        granted
    }

    pub(super) fn stop(&mut self) {
        self.stopping = true;
    }

    /// Another process goes on after this one has been killed or has left.
    pub(super) fn crash(&mut self, now_ms: i64) {
        (self.now_ms, self.stopping) = (now_ms, false);
        let lost = |state: &&mut State| matches!(state.now, Now::Running | Now::Cut);
        for state in self.units.values_mut().filter(lost) {
            state.used -= u32::from(state.now == Now::Running);
            state.now = Now::Cut;
        }
        if matches!(self.phase, Phase::Ending(_)) {
            self.close_main();
        }
        for key in self.cut() {
            // The loss of another one may have ended the run.
            if self.units[&key].now == Now::Cut {
                match self.effect(key) {
                    Effect::Once => self.give_up(key, FailureKind::Uncertain),
                    _ => self.set(key, Now::Again),
                }
            }
        }
        self.go_on();
    }

    fn cut(&self) -> Vec<Key> {
        self.units.iter().filter(|(_, state)| state.now == Now::Cut).map(|(key, _)| *key).collect()
    }

    // What follows.

    fn settle(&mut self, key: Key, result: Result) {
        if matches!(self.phase, Phase::Ending(_)) && self.is_main(key) {
            // Steps that were told to end have no consequence any more but their own end.
            self.over(key, if result == Result::Fine { End::Succeeded } else { End::Failed });
            return;
        }
        let kind = match result {
            Result::Fails(kind) => kind,
            // Nobody has said what an undo is to give.
            Result::Unexpected if !key.undo => FailureKind::Permanent,
            _ => return self.over(key, End::Succeeded),
        };
        let state = self.units[&key];
        let (attempts, once) = if key.undo {
            (UNDO_ATTEMPTS, false)
        } else {
            (self.step(key).attempts, self.effect(key) == Effect::Once)
        };
        let may = kind == FailureKind::Transient || (kind == FailureKind::Uncertain && !once);
        let when = self.step(key).retry_before.is_none_or(|before| key.undo || state.attempts < before);
        if may && when && state.used < attempts + state.granted {
            self.set(key, Now::Retry(self.now_ms + (DELAY_MS << (state.used - 1))));
        } else {
            self.give_up(key, kind);
        }
    }

    /// No attempt is left, or none may follow.
    fn give_up(&mut self, key: Key, kind: FailureKind) {
        if key.undo {
            return self.over(key, End::Failed);
        }
        let ask = self.effect(key) == Effect::Once && kind == FailureKind::Uncertain && !self.case.drill;
        if ask || (!self.is_handled(key.step) && self.step(key).on_error == OnError::Hold) {
            self.set(key, Now::Held);
        } else {
            self.over(key, End::Failed);
        }
    }

    fn over(&mut self, key: Key, end: End) {
        self.set(key, Now::Over(end));
        self.undos.retain(|undo| *undo != key);
        if key.undo {
            return;
        }
        if key.element.is_some() {
            return self.element_over(key.step);
        }
        let fatal = self.step(key).on_error == OnError::Abort && !self.is_handled(key.step);
        if end == End::Failed && fatal && self.phase == Phase::Main {
            self.end(Outcome::Failed, true);
        }
    }

    fn element_over(&mut self, step: usize) {
        let elements = self.elements(step);
        if matches!(self.phase, Phase::Ending(_)) && self.is_main(whole(step)) {
            if elements.iter().all(|(_, state)| state.now != Now::Running) {
                self.close(step);
            }
            return;
        }
        let open = elements.iter().any(|(_, state)| state.attempts > 0 && !matches!(state.now, Now::Over(_)));
        if open {
            return;
        }
        if elements.iter().any(|(_, state)| state.now == Now::Over(End::Failed)) {
            self.over(whole(step), End::Failed);
        } else if elements.iter().all(|(_, state)| matches!(state.now, Now::Over(_))) {
            self.over(whole(step), End::Succeeded);
        }
    }

    fn end(&mut self, outcome: Outcome, undo: bool) {
        self.phase = Phase::Ending(outcome);
        // A person who ends a run lifts the pause; nothing else does.
        self.paused &= outcome != Outcome::Aborted;
        if undo {
            let begun = self.begun.iter().rev().filter(|key| self.case.steps[key.step].undo);
            self.undos = begun.map(|key| Key { undo: true, ..*key }).collect();
            self.units.extend(self.undos.iter().map(|key| (*key, State::default())));
        }
        self.close_main();
    }

    /// Ends all of the main part that does not run.
    fn close_main(&mut self) {
        for step in 0..self.case.steps.len() {
            let runs = self.running().iter().any(|key| !key.undo && key.step == step);
            if self.is_main(whole(step)) && !runs && !matches!(self.units[&whole(step)].now, Now::Over(_)) {
                self.close(step);
            }
        }
    }

    fn close(&mut self, step: usize) {
        if self.chosen.contains(&step) {
            for (key, state) in self.elements(step) {
                if state.attempts > 0 && !matches!(state.now, Now::Over(_)) {
                    self.set(key, Now::Over(End::Failed));
                }
            }
            let ends: Vec<_> = self.elements(step).into_iter().map(|(_, state)| state.now).collect();
            let ended = ends.iter().filter(|now| matches!(now, Now::Over(_))).count();
            let end = match ended {
                _ if ends.contains(&Now::Over(End::Failed)) => End::Failed,
                0 => End::NotRun,
                _ if ended == ends.len() => End::Succeeded,
                _ => End::Failed,
            };
            return self.set(whole(step), Now::Over(end));
        }
        let begun = self.units[&whole(step)].attempts > 0;
        self.set(whole(step), Now::Over(if begun { End::Failed } else { End::NotRun }));
    }

    // What starts.

    fn go_on(&mut self) {
        for state in self.units.values_mut() {
            if matches!(state.now, Now::Retry(due) if due <= self.now_ms) {
                state.now = Now::Again;
            }
        }
        loop {
            if self.phase == Phase::Main && self.part_is_over(false) {
                self.phase = Phase::Ending(Outcome::Succeeded);
            }
            let keys: Vec<_> = self.units.keys().copied().collect();
            match keys.into_iter().find(|key| self.may_start(*key)) {
                Some(key) => self.start(key),
                None => break,
            }
        }
        if let Phase::Ending(outcome) = self.phase
            && self.part_is_over(false)
            && self.part_is_over(true)
            && self.undos.is_empty()
            && !self.stopping
        {
            self.phase = Phase::Finished(outcome);
        }
    }

    fn may_start(&self, key: Key) -> bool {
        !self.stopping
            && !self.paused
            && self.is_its_turn(key)
            && self.wants_to_start(key)
            && self.has_room(key)
    }

    fn is_its_turn(&self, key: Key) -> bool {
        let ending = matches!(self.phase, Phase::Ending(_));
        if key.undo {
            // One after the other, when all else has come to its end.
            return self.undos.first() == Some(&key) && self.running().is_empty();
        }
        match self.step(key).always {
            true => ending && self.part_is_over(false) && self.undos.is_empty(),
            false => self.phase == Phase::Main,
        }
    }

    fn wants_to_start(&self, key: Key) -> bool {
        let over = |needed: &usize| matches!(self.units[&whole(*needed)].now, Now::Over(_));
        match (self.units[&key].now, key.element) {
            (Now::Again, _) => true,
            (Now::Idle, _) if key.undo => true,
            (Now::Idle, None) => {
                !self.chosen.contains(&key.step)
                    && self.step(key).needs.iter().all(|(needed, _)| over(needed))
            }
            (Now::Idle, Some(at)) => self.next_element_may_start(key.step, at),
            _ => false,
        }
    }

    /// In order; none after another one has failed or is held; without `max_parallel` only when the one before has ended.
    fn next_element_may_start(&self, step: usize, at: usize) -> bool {
        let elements = self.elements(step);
        let stopped = elements.iter().any(|(_, it)| matches!(it.now, Now::Held | Now::Over(End::Failed)));
        let before = &elements[..at];
        let in_order = before.iter().all(|(_, it)| it.now != Now::Idle);
        let alone = self.case.steps[step].each.is_some_and(|(_, most)| most == 1);
        !stopped && in_order && (!alone || before.iter().all(|(_, it)| matches!(it.now, Now::Over(_))))
    }

    fn has_room(&self, key: Key) -> bool {
        let running = self.running();
        let of_step = running.iter().filter(|other| other.step == key.step && other.undo == key.undo).count();
        let own =
            self.step(key).each.is_none_or(|(_, most)| key.element.is_none() || of_step < most || key.undo);
        let limits = self.limits(key);
        let groups = limits.iter().all(|(group, most)| {
            running.iter().filter(|other| self.limits(**other).iter().any(|(it, _)| it == group)).count()
                < *most
        });
        let rest = !limits.is_empty()
            || running.iter().filter(|other| self.limits(**other).is_empty()).count() < REST;
        own && groups && rest
    }

    /// The groups around it that have a limit.
    fn limits(&self, key: Key) -> Vec<(usize, usize)> {
        let mut limits = Vec::new();
        let mut group = if key.undo { None } else { self.step(key).group };
        while let Some(at) = group {
            let (parent, most) = self.case.groups[at];
            limits.extend(most.map(|most| (at, most)));
            group = parent;
        }
        limits
    }

    fn start(&mut self, key: Key) {
        let first = self.units[&key].attempts == 0 && key.element.is_none() && !key.undo;
        if first && let Some(end) = self.does_not_run(key.step) {
            return self.over(key, end);
        }
        if let (Some((count, _)), None, false) = (self.step(key).each, key.element, key.undo) {
            self.chosen.insert(key.step);
            let elements = (0..count).map(|at| (Key { element: Some(at), ..key }, State::default()));
            self.units.extend(elements);
            if count == 0 {
                self.over(key, End::Succeeded);
            }
            return;
        }
        let state = self.units.get_mut(&key).unwrap();
        (state.attempts, state.used, state.now) = (state.attempts + 1, state.used + 1, Now::Running);
        if state.attempts == 1 && self.is_main(key) {
            self.begun.push(key);
        }
    }

    /// Why a step ends without having run, if it does.
    fn does_not_run(&self, at: usize) -> Option<End> {
        let step = &self.case.steps[at];
        let end = |needed: usize| match self.units[&whole(needed)].now {
            Now::Over(end) => end,
            other => panic!("s{needed} is needed and {other:?}"),
        };
        let goes_on = |needed: usize| self.case.steps[needed].on_error == OnError::Continue;
        let success = |needed: usize| match end(needed) {
            End::Succeeded | End::Skipped | End::MarkedDone => true,
            End::Failed => goes_on(needed),
            End::NotRun => false,
        };
        let unmet =
            |(needed, on): &&(usize, NeedOn)| *on == NeedOn::Success && !success(*needed) && !step.always;
        if step.needs.iter().find(unmet).is_some() {
            return Some(End::NotRun);
        }
        let failed = |(needed, on): &(usize, NeedOn)| match on {
            NeedOn::Failure => end(*needed) == End::Failed,
            NeedOn::FailureWithin => end(*needed) == End::Failed && !goes_on(*needed),
            NeedOn::Success | NeedOn::Any => false,
        };
        let handles = |on: &NeedOn| matches!(on, NeedOn::Failure | NeedOn::FailureWithin);
        let in_vain = step.needs.iter().any(|(_, on)| handles(on)) && !step.needs.iter().any(failed);
        (in_vain || !step.condition).then_some(End::Skipped)
    }

    // Small questions.

    fn step(&self, key: Key) -> &'a Step {
        &self.case.steps[key.step]
    }

    fn effect(&self, key: Key) -> Effect {
        if key.undo { Effect::Idempotent } else { self.step(key).effect }
    }

    fn is_main(&self, key: Key) -> bool {
        !key.undo && !self.step(key).always
    }

    /// Says whether another step waits for the failure of this one.
    fn is_handled(&self, at: usize) -> bool {
        let handles =
            |step: &Step| step.needs.iter().any(|(needed, on)| *needed == at && *on != NeedOn::Success);
        self.case.steps.iter().any(|step| !step.always && handles(step))
    }

    fn part_is_over(&self, always: bool) -> bool {
        let own = (0..self.case.steps.len()).filter(|at| self.case.steps[*at].always == always);
        own.map(|at| self.units[&whole(at)].now).all(|now| matches!(now, Now::Over(_)))
    }

    fn elements(&self, step: usize) -> Vec<(Key, State)> {
        let own = |key: &Key| key.step == step && key.element.is_some() && !key.undo;
        self.units.iter().filter(|(key, _)| own(key)).map(|(key, state)| (*key, *state)).collect()
    }

    fn set(&mut self, key: Key, now: Now) {
        self.units.get_mut(&key).expect("a unit of this run").now = now;
    }
}

fn whole(step: usize) -> Key {
    Key { undo: false, step, element: None }
}
