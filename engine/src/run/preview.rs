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
use crate::expr;
use crate::model::event::{Answer, Question};
use crate::model::{Created, Progress, RunId, StepId, Stream};
use crate::plan::{Plan, PlannedStep};
use crate::secret::Secrets;
use crate::step::{KindSpec, Preview, Registry, StepContext, StepError, StepInfo, StepLink, StepParts};
use crate::value::Field;

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
}

/// Previews every step of a plan, then every undo, by position. Reads no secret and touches no system beyond what kinds
/// promise for a preview.
pub async fn preview(plan: &Plan, registry: &Registry, incident_at: Option<Timestamp>) -> Vec<StepPreview> {
    let incident_at = incident_at.unwrap_or_else(Timestamp::now);
    let names = Names::new(plan, RunId::generate(), incident_at.as_millisecond());
    let state = RunState::new(plan);
    let shared = Shared {
        plan,
        incident_at,
        resources: Arc::new(plan.resources.clone()),
        secrets: Arc::new(plan.secrets.clone()),
    };
    let mut previews = Vec::with_capacity(plan.steps.len());
    for (position, step) in plan.everything().enumerate() {
        let standing = Standing { plan, state: &state };
        let rendered = registry.spec(&step.uses).and_then(|spec| {
            let names = names.for_texts(&standing, step.scope, &step.with).ok()?;
            expr::render(&step.with, &spec.params, &names).ok()
        });
        let part = || registry.spec(&step.uses).map(|spec| known_part(&names, &standing, step, spec));
        let known = rendered.clone().or_else(part);
        let preview = match (registry.kind(&step.uses), known) {
            // What a kind undoes itself is told in its own words.
            (Some(kind), Some(known))
                if !plan.undo_at(position).is_some_and(|undo| undo.built_in.is_some()) =>
            {
                kind.preview(&shared.context(step, known)).await.unwrap_or_default()
            }
            _ => Preview::default(),
        };
        let with = rendered.unwrap_or_else(|| step.with.clone());
        previews.push(StepPreview { step: step.id.clone(), with, preview });
    }
    previews
}

/// Evaluates the parameters that do not depend on earlier steps; the others are absent.
fn known_part(names: &Names, standing: &Standing<'_>, step: &PlannedStep, spec: &KindSpec) -> Value {
    let written = step.with.as_object().cloned().unwrap_or_default();
    let one = |field: &Field| {
        let value = written.get(&field.name);
        let with: Map<_, _> = value.map(|value| (field.name.clone(), value.clone())).into_iter().collect();
        let with = Value::Object(with);
        let names = names.for_texts(standing, step.scope, &with).ok()?;
        let rendered = expr::render(&with, std::slice::from_ref(field), &names).ok()?;
        rendered.get(&field.name).map(|value| (field.name.clone(), value.clone()))
    };
    Value::Object(spec.params.iter().filter_map(one).collect())
}

struct Shared<'a> {
    plan: &'a Plan,
    incident_at: Timestamp,
    resources: Arc<BTreeMap<String, crate::resource::Resource>>,
    secrets: Arc<BTreeMap<String, crate::secret::SecretRef>>,
}

impl Shared<'_> {
    fn context(&self, step: &PlannedStep, with: Value) -> StepContext {
        StepContext::new(StepParts {
            info: StepInfo {
                run: RunId::generate(),
                runbook: self.plan.runbook.clone(),
                environment: self.plan.environment.clone(),
                protected: self.plan.protected,
                mode: self.plan.mode,
                step: step.id.clone(),
                attempt: 1,
                retries: false,
                incident_at: self.incident_at,
                project_dir: self.plan.project_dir.clone(),
                work_dir: PathBuf::from("/nonexistent"),
                children_lock: PathBuf::from("/nonexistent"),
            },
            cancel: CancellationToken::new(),
            with,
            resources: Arc::clone(&self.resources),
            named_secrets: Arc::clone(&self.secrets),
            secrets: Arc::new(Secrets::default()),
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
