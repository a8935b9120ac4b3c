use std::collections::HashMap;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Map, Value};

use super::forecast::{Expected, Forecast, Known, forecast};
use super::history::History;
use super::notes::{notes, undone_by};
use crate::model::{Mode, StepId};
use crate::plan::{Commit, Need, Objective, OnError, Plan, PlannedStep, Retry};
use crate::run::{Fate, StepPreview};
use crate::step::{Effect, Finding, Registry};
use crate::value::Span;

/// A plan with all that is known before it runs. Its JSON is versioned: `schemas/plan.schema.json`.
#[derive(Clone, Debug, Serialize)]
pub struct Outlook {
    /// The version of this form.
    pub format: u32,
    pub runbook: String,
    pub title: String,
    pub environment: String,
    pub protected: bool,
    pub mode: Mode,
    pub commit: Option<Commit>,
    /// Names this very plan.
    pub digest: String,
    /// When the incident began, if a person said so.
    pub incident_at: Option<Timestamp>,
    pub objective: Objective,
    pub inputs: Map<String, Value>,
    pub steps: Vec<StepOutlook>,
    pub groups: Vec<crate::plan::PlannedGroup>,
    /// Everything that is destroyed or moved aside, in the order of the plan.
    pub destroys: Vec<Destruction>,
    pub forecast: Forecast,
    /// What was found of the real systems; absent if nobody looked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub findings: Option<Vec<Finding>>,
    /// Confirms this very plan for an hour; absent if nothing must be confirmed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub confirm: Option<String>,
}

/// One step with what is known of it.
#[derive(Clone, Debug, Serialize)]
pub struct StepOutlook {
    pub id: StepId,
    pub title: String,
    pub place: String,
    pub uses: String,
    pub effect: Effect,
    pub group: Option<StepId>,
    pub always: bool,
    pub needs: Vec<Need>,
    #[serde(flatten)]
    pub fate: Fate,
    /// Parameters; what depends on earlier steps still stands there as a template.
    pub with: Value,
    pub actions: Vec<Action>,
    pub destroys: Vec<String>,
    /// Repetition, and systems that earlier steps make, in sentences.
    pub notes: Vec<String>,
    /// What takes its work back when the run is aborted: commands or sentences; empty if nothing does.
    pub undo: Vec<Action>,
    /// Why the kind could not say what it would do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    pub reads: Vec<String>,
    pub writes: Vec<String>,
    pub expected: Expected,
    pub times: Times,
    pub critical: bool,
    pub timeout: Option<Span>,
    pub budget: Option<Span>,
    pub retry: Retry,
    pub on_error: OnError,
    pub milestone: Option<String>,
    pub recovered: bool,
}

/// A command or a sentence: what a step does, one thing after the other.
pub type Action = String;

/// When a step is expected to run, in milliseconds from the start of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Times {
    pub start_ms: i64,
    pub finish_ms: i64,
}

/// What one step destroys or moves aside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Destruction {
    pub step: StepId,
    pub what: String,
}

/// What an outlook is made from.
#[derive(Clone, Copy, Debug)]
pub struct Basis<'a> {
    pub plan: &'a Plan,
    pub registry: &'a Registry,
    pub previews: &'a [StepPreview],
    pub history: &'a History,
    pub incident_at: Option<Timestamp>,
    pub now: Timestamp,
}

impl Outlook {
    /// The version of the form that this program writes.
    pub const FORMAT: u32 = 1;

    /// Puts together what is known.
    pub fn of(basis: Basis<'_>) -> Self {
        let Basis { plan, registry, previews, history, incident_at, now } = basis;
        let fates: Vec<Fate> =
            previews.iter().take(plan.steps.len()).map(|preview| preview.fate.clone()).collect();
        let used_ms = incident_at.map_or(0, |at| (now.as_millisecond() - at.as_millisecond()).max(0));
        let made = forecast(&Known { plan, registry, history, fates: &fates, used_ms });
        let critical: std::collections::HashSet<&StepId> =
            made.forecast.critical_path.iter().map(|part| &part.step).collect();
        let undos = plan.undos.iter().zip(previews.iter().skip(plan.steps.len()));
        let undos: HashMap<_, _> = undos.map(|(undo, preview)| (&undo.of, (undo, preview))).collect();
        let steps = plan.steps.iter().zip(previews).enumerate();
        let steps: Vec<StepOutlook> = steps
            .map(|(at, (step, preview))| {
                let times = Times { start_ms: made.schedule.start[at], finish_ms: made.schedule.finish[at] };
                let critical = critical.contains(&step.id);
                let undo = undos.get(&step.id).map(|(undo, preview)| undone_by(undo, preview));
                let known = StepOutlook::of(step, preview, made.expected[at].clone(), times);
                let (undo, notes) = (undo.unwrap_or_default(), notes(step, &plan.inputs));
                StepOutlook { critical, undo, notes, ..known }
            })
            .collect();
        let destroyed = steps.iter().flat_map(|step| {
            step.destroys.iter().map(|what| Destruction { step: step.id.clone(), what: what.clone() })
        });
        Self {
            format: Self::FORMAT,
            runbook: plan.runbook.clone(),
            title: plan.title.clone(),
            environment: plan.environment.clone(),
            protected: plan.protected,
            mode: plan.mode,
            commit: plan.commit.clone(),
            digest: plan.digest(),
            incident_at,
            objective: plan.objective,
            inputs: plan.inputs.clone(),
            destroys: destroyed.collect(),
            steps,
            groups: plan.groups.clone(),
            forecast: made.forecast,
            findings: None,
            confirm: None,
        }
    }
}

impl StepOutlook {
    /// Tells what is known of a step alone: neither notes nor undo, and not on the critical path.
    fn of(step: &PlannedStep, preview: &StepPreview, expected: Expected, times: Times) -> Self {
        Self {
            id: step.id.clone(),
            title: step.whole_title(),
            place: step.place.clone(),
            uses: step.uses.clone(),
            effect: step.effect,
            group: step.group.clone(),
            always: step.always,
            needs: step.needs.clone(),
            fate: preview.fate.clone(),
            with: preview.with.clone(),
            actions: preview.preview.actions.clone(),
            destroys: destroys(step, preview),
            notes: Vec::new(),
            undo: Vec::new(),
            problem: preview.problem.clone(),
            reads: step.reads.clone(),
            writes: step.writes.clone(),
            expected,
            times,
            critical: false,
            timeout: step.timeout,
            budget: step.budget,
            retry: step.retry.clone(),
            on_error: step.on_error,
            milestone: step.milestone.as_ref().map(|milestone| milestone.name.clone()),
            recovered: step.recovered,
        }
    }
}

/// What the kind says of the real thing, or else what its description says. A step that is skipped destroys nothing.
fn destroys(step: &PlannedStep, preview: &StepPreview) -> Vec<String> {
    match (&preview.fate, preview.preview.destroys.is_empty()) {
        (Fate::Skipped { .. }, _) => Vec::new(),
        (_, true) => step.destroys.clone(),
        (_, false) => preview.preview.destroys.clone(),
    }
}
