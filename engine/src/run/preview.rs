//! What a plan would do, step by step, without doing or writing anything.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;

use crate::code;
use crate::expr::{self, ExprError};
use crate::model::event::{Answer, Question};
use crate::model::{Created, Progress, RunId, StepId, Stream};
use crate::plan::{NeedOn, Plan, PlannedStep};
use crate::secret::Secrets;
use crate::step::{Preview, Registry, StepContext, StepError, StepInfo, StepLink, StepParts, WorkDir};

use super::names::{Names, Standing};
use super::state::RunState;

/// One step of a plan, with what its kind says about it.
#[derive(Clone, Debug, Serialize)]
pub struct StepPreview {
    pub step: StepId,
    /// The parameters; what depends on earlier steps still stands there as a template.
    pub with: Value,
    /// Empty where everything depends on earlier steps.
    pub preview: Preview,
    pub fate: Fate,
    /// Why the kind could not say what it would do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// What becomes of a step, as far as that is certain before the run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "fate", rename_all = "snake_case")]
pub enum Fate {
    /// It runs, unless something before it fails.
    Runs,
    /// It is skipped, for this reason.
    Skipped { why: String },
    /// A condition decides that reads what earlier steps find out.
    Depends { conditions: Vec<String> },
    /// It runs only if this step fails.
    AfterFailure { step: StepId },
}

/// Previews every step of a plan, then every undo, by position. Reads no secret and touches no system beyond what kinds
/// promise for a preview.
pub async fn preview(plan: &Plan, registry: &Registry, incident_at: Option<Timestamp>) -> Vec<StepPreview> {
    let looker = Looker::new(plan, registry, incident_at.unwrap_or_else(Timestamp::now));
    let mut previews = Vec::with_capacity(plan.steps.len());
    for (position, step) in plan.everything().enumerate() {
        let fate = looker.fate(step);
        let (mut problem, mut preview) = (None, Preview::default());
        let (with, known) = looker.with(step);
        let skipped = matches!(fate, Fate::Skipped { .. });
        // What a kind undoes itself is told in its own words.
        let told = plan.undo_at(position).is_some_and(|undo| undo.built_in.is_some());
        if let Some(kind) = registry.kind(&step.uses).filter(|_| !skipped && !told) {
            match kind.preview(&looker.context(step, with.clone())).await {
                Ok(found) => preview = found,
                Err(error) if known => problem = Some(error.to_string()),
                // A template stands where a value of another type will be.
                Err(_) => {}
            }
        }
        previews.push(StepPreview { step: step.id.clone(), with, preview, fate, problem });
    }
    previews
}

/// What looking at a plan before the run needs, prepared once.
pub(super) struct Looker<'a> {
    shared: Shared<'a>,
    registry: &'a Registry,
    names: Names,
    state: RunState,
}

impl<'a> Looker<'a> {
    pub(super) fn new(plan: &'a Plan, registry: &'a Registry, incident_at: Timestamp) -> Self {
        let run = RunId::generate();
        Self {
            names: Names::new(plan, run, incident_at.as_millisecond()),
            state: RunState::new(plan),
            registry,
            shared: Shared {
                plan,
                run,
                incident_at,
                resources: Arc::new(plan.resources.clone()),
                named_secrets: Arc::new(plan.secrets.clone()),
                secrets: Arc::new(Secrets::default()),
            },
        }
    }

    /// Gives the steps the values of secrets: for a probe only.
    pub(super) fn secrets(&mut self, secrets: Secrets) {
        self.shared.secrets = Arc::new(secrets);
    }

    fn names(&self, step: &PlannedStep, texts: &Value) -> Result<Map<String, Value>, ExprError> {
        let standing = Standing { plan: self.shared.plan, state: &self.state };
        self.names.for_texts(&standing, step.scope, texts)
    }

    /// Evaluates the parameters of a step. False if some depend on earlier steps; these stay as they are written.
    fn with(&self, step: &PlannedStep) -> (Value, bool) {
        let rendered = self.registry.spec(&step.uses).and_then(|spec| {
            let names = self.names(step, &step.with).ok()?;
            expr::render(&step.with, &spec.params, &names).ok()
        });
        match rendered {
            Some(with) => (with, true),
            None => {
                let mut with = step.with.clone();
                if let (Some(with), Value::Object(known)) = (with.as_object_mut(), self.part_of_with(step)) {
                    with.extend(known);
                }
                (with, false)
            }
        }
    }

    /// Evaluates the parameters that do not depend on earlier steps, and leaves the others out.
    pub(super) fn known_with(&self, step: &PlannedStep) -> Value {
        match self.with(step) {
            (with, true) => with,
            _ => self.part_of_with(step),
        }
    }

    fn part_of_with(&self, step: &PlannedStep) -> Value {
        let Some(spec) = self.registry.spec(&step.uses) else { return Value::Object(Map::new()) };
        let mut known = Map::new();
        for field in &spec.params {
            let one = step.with.get(&field.name).map(|value| (field.name.clone(), value.clone()));
            let one = Value::Object(one.into_iter().collect());
            let rendered = self
                .names(step, &one)
                .and_then(|names| expr::render(&one, std::slice::from_ref(field), &names));
            if let Ok(Value::Object(rendered)) = rendered {
                known.extend(rendered);
            }
        }
        Value::Object(known)
    }

    /// Says what becomes of a step.
    pub(super) fn fate(&self, step: &PlannedStep) -> Fate {
        let mut open = Vec::new();
        for condition in &step.conditions {
            let text = Value::String(condition.expression.clone());
            let standing = Standing { plan: self.shared.plan, state: &self.state };
            let Ok(mut names) = self.names.for_texts(&standing, condition.scope, &text) else {
                open.push(condition.expression.clone());
                continue;
            };
            // No step has run: that a name has no value yet does not mean that it will have none.
            names.remove("steps");
            if let Some(why) = expr::known_false(&condition.expression, &names) {
                let group =
                    if condition.of == step.id { String::new() } else { format!(" (`{}`)", condition.of) };
                return Fate::Skipped { why: format!("{why}{group}") };
            }
            if !expr::known_true(&condition.expression, &names) {
                open.push(condition.expression.clone());
            }
        }
        if let Some(need) = step.needs.iter().find(|need| need.on == NeedOn::Failure) {
            return Fate::AfterFailure { step: need.step.clone() };
        }
        if open.is_empty() { Fate::Runs } else { Fate::Depends { conditions: open } }
    }

    pub(super) fn context(&self, step: &PlannedStep, with: Value) -> StepContext {
        self.shared.context(step.id.clone(), with)
    }

    /// Returns a context for looking at a resource, on behalf of no step.
    pub(super) fn context_of(&self, id: StepId) -> StepContext {
        self.shared.context(id, Value::Object(Map::new()))
    }
}

struct Shared<'a> {
    plan: &'a Plan,
    run: RunId,
    incident_at: Timestamp,
    resources: Arc<BTreeMap<String, crate::resource::Resource>>,
    named_secrets: Arc<BTreeMap<String, crate::secret::SecretRef>>,
    secrets: Arc<Secrets>,
}

impl Shared<'_> {
    fn context(&self, step: StepId, with: Value) -> StepContext {
        StepContext::new(StepParts {
            info: StepInfo {
                run: self.run,
                runbook: self.plan.runbook.clone(),
                environment: self.plan.environment.clone(),
                protected: self.plan.protected,
                mode: self.plan.mode,
                step,
                attempt: 1,
                retries: false,
                incident_at: self.incident_at,
                project_dir: self.plan.project_dir.clone(),
                work_dir: WorkDir::within(PathBuf::from("/nonexistent"), ""),
                children_lock: PathBuf::from("/nonexistent"),
            },
            cancel: CancellationToken::new(),
            with,
            resources: Arc::clone(&self.resources),
            named_secrets: Arc::clone(&self.named_secrets),
            secrets: Arc::clone(&self.secrets),
            recorded: Map::new(),
            link: Arc::new(Nowhere),
        })
    }
}

/// A link that leads nowhere: a preview records nothing.
struct Nowhere;

fn refused() -> StepError {
    StepError::permanent(code::LB0351, "a preview has no journal")
}

#[async_trait]
impl StepLink for Nowhere {
    fn progress(&self, _: Progress) {}

    fn line(&self, _: Stream, _: &str) {}

    async fn record(&self, _: &str, _: Value) -> Result<(), StepError> {
        Err(refused())
    }

    async fn created(&self, _: Created) -> Result<(), StepError> {
        Err(refused())
    }

    async fn removed(&self, _: &str, _: &str) -> Result<(), StepError> {
        Err(refused())
    }

    async fn ask(&self, _: Question) -> Result<Answer, StepError> {
        Err(refused())
    }
}
