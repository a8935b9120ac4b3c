//! Steps that are repeated for each element of a list.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::code;
use crate::expr;
use crate::model::event::EventKind;
use crate::model::outcome::{Failure, FailureKind, Outcome};
use crate::plan::ForEach;
use crate::run::state::{IllegalEvent, StepPhase, StepState};
use crate::run::unit::Unit;
use crate::value::{Field, Type};

use super::Dispatcher;
use super::ending::interrupted;
use super::launch::cannot_evaluate;

/// How far a step has come that is repeated for each element of a list. Derived from its state.
#[derive(Debug, Default)]
pub(super) struct Loop {
    /// The first element that has not begun.
    next: usize,
    /// Elements that have begun and not ended.
    open: BTreeSet<usize>,
    /// How many of these wait for a person's decision.
    held: usize,
    failed: Vec<usize>,
    /// Whoever ends its elements one after the other also ends the step.
    closing: bool,
}

impl Loop {
    fn of(states: &[StepState]) -> Self {
        let mut found = Self { next: states.len(), ..Self::default() };
        for (element, state) in states.iter().enumerate() {
            match &state.phase {
                StepPhase::Ended(Outcome::Failed { .. }) => found.failed.push(element),
                StepPhase::Ended(_) => {}
                StepPhase::Waiting if state.attempt == 0 => {
                    found.next = element;
                    break;
                }
                phase => {
                    found.held += usize::from(*phase == StepPhase::Held);
                    found.open.insert(element);
                }
            }
        }
        found
    }
}

impl Dispatcher {
    /// Evaluates what a step is repeated for, once, and lets the first elements start.
    pub(super) fn choose_elements(&mut self, at: usize, now_ms: i64) -> Result<(), IllegalEvent> {
        match self.evaluate_elements(at) {
            Err(failure) => self.fail_before_start(Unit::whole(at), failure, now_ms),
            Ok(elements) => {
                let step = self.plan.steps[at].id.clone();
                self.emit(EventKind::ElementsChosen { step, elements })?;
                self.loops.insert(at, Loop::default());
                self.go_on_with(at)
            }
        }
    }

    fn evaluate_elements(&self, at: usize) -> Result<Vec<Value>, Failure> {
        let step = &self.plan.steps[at];
        let list = step.for_each.as_ref().map_or(&Value::Null, |each| &each.list);
        let one = json!({ "for_each": list });
        let evaluated = self
            .names_for(step.scope, list)
            .and_then(|names| expr::render(&one, &[Field::required("for_each", Type::Any, "")], &names))
            .map_err(|error| cannot_evaluate(&format!("`for_each` of `{}`", step.id), &error))?;
        match evaluated.get("for_each").cloned() {
            Some(Value::Array(items)) if items.len() <= ForEach::MAX_ELEMENTS => Ok(items),
            Some(Value::Array(items)) => Err(too_many(step.id.as_str(), items.len())),
            other => Err(no_list(step.id.as_str(), &other.unwrap_or_default())),
        }
    }

    /// Finds out how far the steps have come whose elements have been chosen.
    pub(super) fn restore_loops(&mut self) {
        for at in 0..self.plan.steps.len() {
            if self.state.steps[at].phase == StepPhase::Repeating {
                let states = self.state.steps[at].elements.as_ref().map_or(&[][..], |it| &it.states);
                let found = Loop::of(states);
                self.loops.insert(at, found);
            }
        }
    }

    /// Goes on with the elements of a step that had begun when it was taken over.
    pub(super) fn take_over_loop(&mut self, at: usize, now_ms: i64) -> Result<(), IllegalEvent> {
        if let Some(each) = self.loops.get_mut(&at) {
            each.closing = true;
        }
        for unit in self.open_elements(at) {
            self.take_over_unit(unit, now_ms)?;
        }
        if let Some(each) = self.loops.get_mut(&at) {
            each.closing = false;
        }
        if self.is_open(at) { self.go_on_with(at) } else { Ok(()) }
    }

    fn is_open(&self, at: usize) -> bool {
        self.state.steps[at].outcome().is_none()
    }

    /// Says whether one more element may run now. A new one also waits for the one before it if they run in order,
    /// and never starts after another one has failed. An attempt that waits for its retry holds no place.
    pub(super) fn loop_allows(&self, unit: Unit) -> bool {
        let (Some(_), Some(each)) = (unit.element, self.loops.get(&unit.position)) else { return true };
        let limit = self.step(unit).for_each.as_ref().map_or(1, |each| each.max_parallel);
        let room = self.running_elements(unit.position) < limit;
        if self.of(unit).attempt > 0 {
            return room;
        }
        let stopped = each.held > 0 || !each.failed.is_empty();
        !stopped && room && (limit > 1 || each.open.is_empty())
    }

    fn running_elements(&self, at: usize) -> usize {
        self.running.range(Unit::whole(at)..Unit::whole(at + 1)).count()
    }

    /// Takes note that an element starts for the first time, and makes the next one ready.
    pub(super) fn begin_element(&mut self, unit: Unit) {
        let (Some(element), Some(each)) = (unit.element, self.loops.get_mut(&unit.position)) else { return };
        if each.open.insert(element) {
            each.next = element + 1;
        }
        self.offer_next(unit.position);
    }

    fn offer_next(&mut self, at: usize) {
        let count = self.state.steps[at].elements.as_ref().map_or(0, |elements| elements.states.len());
        let next = self.loops.get(&at).map_or(count, |each| each.next);
        if next < count {
            self.make_ready(Unit::element(at, next));
        }
    }

    pub(super) fn element_held(&mut self, unit: Unit) {
        if let (Some(_), Some(each)) = (unit.element, self.loops.get_mut(&unit.position)) {
            each.held += 1;
        }
    }

    /// Takes note that a person has decided about an element.
    pub(super) fn element_released(&mut self, unit: Unit) {
        if let (Some(_), Some(each)) = (unit.element, self.loops.get_mut(&unit.position)) {
            each.held -= 1;
        }
    }

    /// Goes on after the end of an element.
    pub(super) fn element_ended(&mut self, unit: Unit, failed: bool) -> Result<(), IllegalEvent> {
        let (Some(element), Some(each)) = (unit.element, self.loops.get_mut(&unit.position)) else {
            return Ok(());
        };
        each.open.remove(&element);
        if failed {
            each.failed.push(element);
        }
        self.go_on_with(unit.position)
    }

    /// Makes the next element ready, or ends the step if none is left.
    fn go_on_with(&mut self, at: usize) -> Result<(), IllegalEvent> {
        let whole = Unit::whole(at);
        let Some(each) = self.loops.get(&at) else { return Ok(()) };
        let count = self.state.steps[at].elements.as_ref().map_or(0, |elements| elements.states.len());
        if self.ending(whole) {
            return if each.closing || self.is_running(at) { Ok(()) } else { self.close(whole) };
        }
        if !each.open.is_empty() {
            self.offer_next(at);
            return Ok(());
        }
        if !each.failed.is_empty() {
            let failure = self.failure_of_elements(at);
            return self.fail_unit(whole, failure);
        }
        if each.next >= count {
            return self.end_unit(whole, Outcome::Succeeded);
        }
        self.offer_next(at);
        Ok(())
    }

    /// Forgets a step that has ended.
    pub(super) fn end_loop(&mut self, at: usize) {
        if let Some(each) = self.loops.remove(&at) {
            self.unready(Unit::element(at, each.next));
        }
    }

    pub(super) fn any_element_held(&self) -> bool {
        self.loops.values().any(|each| each.held > 0)
    }

    /// Returns the elements of a step that have begun and not ended.
    fn open_elements(&self, at: usize) -> Vec<Unit> {
        let open = self.loops.get(&at).map(|each| &each.open);
        open.into_iter().flatten().map(|element| Unit::element(at, *element)).collect()
    }

    /// Ends a step of which no element runs, those of its elements that are open first.
    pub(super) fn close_loop(&mut self, at: usize) -> Result<(), IllegalEvent> {
        if let Some(each) = self.loops.get_mut(&at) {
            each.closing = true;
        }
        for unit in self.open_elements(at) {
            self.close(unit)?;
        }
        match self.outcome_when_closed(at) {
            Some(outcome) => self.end_unit(Unit::whole(at), outcome),
            None => Ok(()),
        }
    }

    /// Says what became of a step whose elements can no longer all run, because the run ends.
    fn outcome_when_closed(&self, at: usize) -> Option<Outcome> {
        let elements = self.state.steps[at].elements.as_ref()?;
        if self.loops.get(&at).is_some_and(|each| !each.failed.is_empty()) {
            return Some(Outcome::Failed { failure: self.failure_of_elements(at) });
        }
        let ended = elements.states.iter().filter(|state| state.outcome().is_some()).count();
        let count = elements.states.len();
        if ended == 0 {
            return Some(Outcome::NotRun { reason: "the run ended before it".to_owned() });
        }
        if ended == count {
            return Some(Outcome::Succeeded);
        }
        let message = format!("the run ended when {ended} of {count} elements had ended");
        let code = code::LB0303.id.to_owned();
        let failure = Failure { kind: FailureKind::Transient, code, message, help: None, causes: Vec::new() };
        Some(Outcome::Failed { failure })
    }

    fn failure_of_elements(&self, at: usize) -> Failure {
        let failed = self.loops.get(&at).map_or(&[][..], |each| &each.failed);
        let count = self.state.steps[at].elements.as_ref().map_or(0, |elements| elements.states.len());
        let first = Unit::element(at, failed.iter().copied().min().unwrap_or_default());
        let own = match self.of(first).outcome() {
            Some(Outcome::Failed { failure }) => failure.clone(),
            _ => interrupted(&self.id(first)),
        };
        let message = match failed.len() {
            0 | 1 => format!("`{}` of {count} elements failed: {}", self.id(first), own.message),
            many => format!("{many} of {count} elements failed, first `{}`: {}", self.id(first), own.message),
        };
        Failure { message, ..own }
    }
}

fn too_many(step: &str, count: usize) -> Failure {
    Failure {
        kind: FailureKind::Permanent,
        code: code::LB0333.id.to_owned(),
        message: format!(
            "`for_each` of `{step}` has {count} elements, more than the {} allowed",
            ForEach::MAX_ELEMENTS
        ),
        help: Some("give fewer, for example batches, each of which is one element".to_owned()),
        causes: Vec::new(),
    }
}

fn no_list(step: &str, found: &Value) -> Failure {
    let (what, help) = match found {
        Value::Object(_) => ("a map", "for the entries of a map write `{{ … | items }}`"),
        Value::String(_) => {
            ("text", "turn it into a list, for example `{{ … | lines }}` or `{{ … | fromjson }}`")
        }
        Value::Null => ("nothing", "see what the steps before it gave"),
        _ => ("no list", "see what the steps before it gave"),
    };
    Failure {
        kind: FailureKind::Permanent,
        code: code::LB0332.id.to_owned(),
        message: format!("`for_each` of `{step}` needs a list and found {what}"),
        help: Some(help.to_owned()),
        causes: Vec::new(),
    }
}
