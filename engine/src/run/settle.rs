//! What follows from the end of an attempt.

use crate::code;
use crate::model::event::AttemptResult;
use crate::model::ids::StepId;
use crate::model::outcome::{Failure, FailureKind, Mode};
use crate::plan::{OnError, PlannedStep};
use crate::step::Effect;

use super::state::StepState;

/// The consequence of an attempt's end.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Consequence {
    Succeed,
    /// Again at once, without waiting: the attempt was lost, not failed.
    Again,
    /// Again after a delay.
    Retry,
    Hold(Failure),
    Fail(Failure),
}

/// What else decides, besides the step and its attempts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Circumstances {
    pub(super) mode: Mode,
    /// A dependant takes the failure over.
    pub(super) handled: bool,
    /// `retry.when` allows another attempt.
    pub(super) retry_allowed: bool,
}

/// Decides what follows for a step or the element of one that `id` names. Pure.
pub(super) fn consequence(
    step: &PlannedStep,
    id: &StepId,
    state: &StepState,
    result: &AttemptResult,
    around: Circumstances,
) -> Consequence {
    match result {
        AttemptResult::Succeeded { .. } => Consequence::Succeed,
        AttemptResult::Lost | AttemptResult::Interrupted => after_loss(step, id, around),
        AttemptResult::Failed { failure, .. } => after_failure(step, state, failure, around),
    }
}

fn after_loss(step: &PlannedStep, id: &StepId, around: Circumstances) -> Consequence {
    if step.effect != Effect::Once {
        return Consequence::Again;
    }
    let failure = Failure {
        kind: FailureKind::Uncertain,
        code: code::LB0307.id.to_owned(),
        message: format!("`{id}` was running when Lifeboat stopped, and must not be repeated unasked"),
        help: Some(
            "find out whether it took effect, then retry it, mark it done, or abort the run".to_owned(),
        ),
        causes: Vec::new(),
    };
    exhausted(step, failure, around)
}

fn after_failure(
    step: &PlannedStep,
    state: &StepState,
    failure: &Failure,
    around: Circumstances,
) -> Consequence {
    let repeatable = match failure.kind {
        FailureKind::Transient => true,
        FailureKind::Permanent => false,
        FailureKind::Uncertain => step.effect != Effect::Once,
    };
    let left = state.used < step.retry.attempts + state.granted;
    if repeatable && left && around.retry_allowed {
        return Consequence::Retry;
    }
    exhausted(step, failure.clone(), around)
}

fn exhausted(step: &PlannedStep, failure: Failure, around: Circumstances) -> Consequence {
    let must_ask = step.effect == Effect::Once && failure.kind == FailureKind::Uncertain;
    match around.mode {
        Mode::Recovery if must_ask => Consequence::Hold(failure),
        _ if around.handled => Consequence::Fail(failure),
        _ if step.on_error == OnError::Hold => Consequence::Hold(failure),
        _ => Consequence::Fail(failure),
    }
}
