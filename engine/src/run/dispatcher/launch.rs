//! What may start, and how it starts.

use serde_json::{Map, Value, json};

use crate::code;
use crate::expr;
use crate::model::event::{AttemptResult, EventKind};
use crate::model::ids::StepId;
use crate::model::outcome::{Failure, FailureKind, Outcome};
use crate::plan::{Need, NeedOn};
use crate::run::state::{IllegalEvent, Phase, StepPhase};
use crate::run::unit::Unit;
use crate::step::Effect;

use super::graph::lets_go_on;
use super::{Action, Dispatcher};

impl Dispatcher {
    pub(super) fn fire_timers(&mut self, now_ms: i64) {
        while let Some(&(due, unit)) = self.timers.first() {
            if due > now_ms {
                break;
            }
            self.timers.pop_first();
            self.make_ready(unit);
        }
    }

    pub(super) fn launch_ready(&mut self, now_ms: i64) -> Result<(), IllegalEvent> {
        loop {
            let Some(unit) = self.next_launchable() else { return Ok(()) };
            self.slots.take(unit);
            self.start(unit, now_ms)?;
            self.slots.settled(unit);
        }
    }

    fn next_launchable(&mut self) -> Option<Unit> {
        if self.stopping || self.state.paused || self.state.phase == Phase::New {
            return None;
        }
        let mut slots = std::mem::take(&mut self.slots);
        let next = slots.next(|unit| self.phase_allows(*unit) && self.loop_allows(*unit));
        self.slots = slots;
        next
    }

    fn phase_allows(&self, unit: Unit) -> bool {
        let ending = matches!(self.state.phase, Phase::Ending(_));
        if self.is_undo(unit) {
            return ending;
        }
        let step = self.step(unit);
        if ending && !self.undos.is_empty() {
            // What ran when the run was ended comes to its end first, also if a crash took its attempt away.
            return step.concludes.is_some() && self.is_lost(unit);
        }
        if step.concludes.is_some() {
            // It waits for its own scope only, and the end of the run does not keep it from running.
            true
        } else if step.always {
            ending && self.graph.open[0] == 0
        } else {
            !ending
        }
    }

    /// Says whether the last attempt was taken away by a crash or a signal.
    fn is_lost(&self, unit: Unit) -> bool {
        use AttemptResult::{Interrupted, Lost};
        matches!(&self.of(unit).phase, StepPhase::Settling(Lost | Interrupted))
    }

    pub(super) fn make_ready(&mut self, unit: Unit) {
        self.slots.make_ready(unit);
    }

    pub(super) fn unready(&mut self, unit: Unit) {
        self.slots.forget(unit);
    }

    /// Launches a ready step, or ends it if its needs or conditions say that it must not run.
    fn start(&mut self, unit: Unit, now_ms: i64) -> Result<(), IllegalEvent> {
        if self.of(unit).attempt > 0 || unit.element.is_some() || self.is_undo(unit) {
            return self.launch(unit, now_ms);
        }
        let at = unit.position;
        let by_needs = || self.outcome_by_needs(at, &self.plan.steps[at].needs);
        if let Some(outcome) = self.outcome_by_scope(at).or_else(by_needs) {
            return self.end_unit(unit, outcome);
        }
        match self.skip_reason(at) {
            Ok(None) => self.launch(unit, now_ms),
            Ok(Some(reason)) => self.end_unit(unit, Outcome::Skipped { reason }),
            Err(failure) => self.fail_before_start(unit, failure, now_ms),
        }
    }

    /// Ends a step of a runbook that must not be called, and one that has nothing to conclude.
    fn outcome_by_scope(&self, at: usize) -> Option<Outcome> {
        let step = &self.plan.steps[at];
        if let Some(scope) = step.concludes.filter(|scope| !self.standing().begun(*scope)) {
            let reason = format!("nothing of `{}` has begun", self.plan.scopes[scope].id);
            return Some(Outcome::Skipped { reason });
        }
        let scopes: Vec<_> = self.plan.scopes_of(step.scope).collect();
        scopes.iter().rev().find_map(|scope| self.outcome_by_needs(at, &self.plan.scopes[*scope].needs))
    }

    fn outcome_by_needs(&self, at: usize, needs: &[Need]) -> Option<Outcome> {
        let step = &self.plan.steps[at];
        let (mut missed_failure, mut handles) = (None, false);
        let not_run = |needed: &StepId| {
            let reason = format!("`{needed}`, which it needs, did not succeed");
            Some(Outcome::NotRun { reason })
        };
        for need in needs {
            if let Some(group) = self.graph.group(&need.step) {
                match group.stopped_by.filter(|_| !step.always) {
                    _ if group.open > 0 => return None,
                    Some(end) => return not_run(&self.plan.steps[end].id),
                    None => continue,
                }
            }
            let needed = self.state.position(&need.step)?;
            let outcome = self.state.steps[needed].outcome()?;
            let success = lets_go_on(&self.plan, needed, outcome);
            match need.on {
                NeedOn::Any => {}
                NeedOn::Success if success || step.always => {}
                NeedOn::Success => return not_run(&need.step),
                NeedOn::Failure if matches!(outcome, Outcome::Failed { .. }) => handles = true,
                NeedOn::FailureWithin if !success && matches!(outcome, Outcome::Failed { .. }) => {
                    handles = true
                }
                NeedOn::Failure | NeedOn::FailureWithin => missed_failure = Some(need),
            }
        }
        missed_failure.filter(|_| !handles).map(|need| Outcome::Skipped {
            reason: match need.on {
                NeedOn::FailureWithin => "nothing failed of what it is there for".to_owned(),
                _ => format!("`{}`, whose failure it handles, did not fail", need.step),
            },
        })
    }

    fn skip_reason(&self, at: usize) -> Result<Option<String>, Failure> {
        let step = &self.plan.steps[at];
        for condition in &step.conditions {
            let holds = self
                .names_for(condition.scope, &json!(condition.expression))
                .and_then(|names| expr::holds(&condition.expression, &names))
                .map_err(|error| cannot_evaluate(&format!("`if` of `{}`", condition.of), &error))?;
            if !holds {
                let of =
                    if condition.of == step.id { String::new() } else { format!(" of `{}`", condition.of) };
                return Ok(Some(format!("`if`{of} is false: {}", condition.expression)));
            }
        }
        Ok(None)
    }

    pub(super) fn launch(&mut self, unit: Unit, now_ms: i64) -> Result<(), IllegalEvent> {
        if self.stopping {
            return Ok(());
        }
        if unit.element.is_none() && self.step(unit).for_each.is_some() {
            return self.choose_elements(unit.position, now_ms);
        }
        self.begin_element(unit);
        let (with, names) = match self.render(unit) {
            Ok(rendered) => rendered,
            Err(failure) => return self.fail_before_start(unit, failure, now_ms),
        };
        let attempt = self.of(unit).attempt + 1;
        self.emit(EventKind::AttemptStarted { step: self.id(unit), attempt, with: with.clone() })?;
        self.running.insert(unit);
        self.slots.started(unit.position);
        let probe = self.step(unit).effect == Effect::Guarded && attempt > 1;
        self.actions.push(Action::Launch { unit, attempt, with, probe, names });
        Ok(())
    }

    /// Evaluates the parameters of a step, and what its `until` may read.
    fn render(&self, unit: Unit) -> Result<(Value, Map<String, Value>), Failure> {
        let step = self.step(unit);
        let Some(spec) = self.registry.spec(&step.uses) else {
            return Err(Failure {
                kind: FailureKind::Permanent,
                code: code::LB0309.id.to_owned(),
                message: format!("this version has no step kind `{}`", step.uses),
                help: Some("resume with the version of Lifeboat that began the run".to_owned()),
                causes: Vec::new(),
            });
        };
        self.names_of(unit, &step.with)
            .and_then(|names| expr::render(&step.with, &spec.params, &names))
            .and_then(|with| match &step.until {
                Some(until) => Ok((with, self.names_of(unit, &json!(until.condition))?)),
                None => Ok((with, Map::new())),
            })
            .map_err(|error| cannot_evaluate(&format!("the parameters of `{}`", self.id(unit)), &error))
    }

    /// Fails a step whose texts cannot be evaluated, with an attempt in the journal that shows when.
    pub(super) fn fail_before_start(
        &mut self,
        unit: Unit,
        failure: Failure,
        now_ms: i64,
    ) -> Result<(), IllegalEvent> {
        let step = self.id(unit);
        let attempt = self.of(unit).attempt + 1;
        self.emit(EventKind::AttemptStarted {
            step: step.clone(),
            attempt,
            with: Value::Object(Map::new()),
        })?;
        let result = AttemptResult::Failed { failure, checks: Vec::new() };
        self.emit(EventKind::AttemptFinished { step, attempt, result: result.clone() })?;
        self.settle(unit, &result, now_ms)
    }
}

pub(super) fn cannot_evaluate(what: &str, error: &expr::ExprError) -> Failure {
    Failure {
        kind: FailureKind::Permanent,
        code: code::LB0301.id.to_owned(),
        message: format!("{what} cannot be evaluated: {error}"),
        help: Some(
            "correct the runbook or the input; `lifeboat check` finds most of these beforehand".to_owned(),
        ),
        causes: Vec::new(),
    }
}
