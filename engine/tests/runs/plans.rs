//! Plans made by hand.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use lifeboat_engine::model::event::{AttemptResult, Done, EventKind, Person};
use lifeboat_engine::model::{Failure, FailureKind, Mode, StepId};
use lifeboat_engine::plan::{Need, NeedOn, Objective, OnError, Plan, PlannedStep, PlannedUndo, Retry};
use lifeboat_engine::step::{Effect, KindSpec, Registry, StepContext, StepError, StepKind};
use lifeboat_engine::value::{Field, Type};
use serde_json::{Map, Value, json};

/// A kind that is never run: the script speaks for it.
struct Scripted;

#[async_trait]
impl StepKind for Scripted {
    fn spec(&self) -> KindSpec {
        KindSpec::new("scripted", "Does what the test says.", Effect::Idempotent).param(Field::optional(
            "text",
            Type::Any,
            "Anything.",
        ))
    }

    async fn run(&self, _: &StepContext) -> Result<Done, StepError> {
        Ok(Done::default())
    }
}

pub(crate) fn registry() -> Arc<Registry> {
    let mut registry = Registry::new();
    registry.register(Scripted);
    Arc::new(registry)
}

pub(crate) fn id(text: &str) -> StepId {
    StepId::new(text).expect("a valid id")
}

/// A step that needs the steps named, on success.
pub(crate) fn step(name: &str, needs: &[&str]) -> PlannedStep {
    PlannedStep {
        id: id(name),
        title: name.to_owned(),
        place: "test.yaml:1".to_owned(),
        group: None,
        always: false,
        scope: None,
        concludes: None,
        needs: needs.iter().map(|need| Need { step: id(need), on: NeedOn::Success }).collect(),
        conditions: Vec::new(),
        uses: "scripted".to_owned(),
        with: json!({}),
        effect: Effect::Idempotent,
        expect: Vec::new(),
        retry: Retry::default(),
        timeout: None,
        budget: None,
        milestone: None,
        recovered: false,
        on_error: OnError::Abort,
        destroys: Vec::new(),
        reads: Vec::new(),
        writes: Vec::new(),
        restores: false,
        for_each: None,
        until: None,
    }
}

pub(crate) fn always(name: &str, needs: &[&str]) -> PlannedStep {
    PlannedStep { always: true, on_error: OnError::Continue, ..step(name, needs) }
}

/// The plan with an undo for each of these steps.
pub(crate) fn with_undo(plan: Plan, names: &[&str]) -> Plan {
    let undo = |name: &&str| PlannedUndo {
        of: id(name),
        built_in: None,
        step: always(&format!("{name}/undo"), &[]),
    };
    Plan { undos: names.iter().map(undo).collect(), ..plan }
}

pub(crate) fn plan(steps: Vec<PlannedStep>) -> Plan {
    Plan {
        format: Plan::WITHOUT_WHOLE_GROUPS,
        project: "test".to_owned(),
        project_dir: "/nowhere".into(),
        runbook: "test".to_owned(),
        title: "Test".to_owned(),
        owner: None,
        environment: "sandbox".to_owned(),
        protected: false,
        mode: Mode::Recovery,
        commit: None,
        objective: Objective::default(),
        milestones: BTreeMap::new(),
        roles: BTreeMap::new(),
        inputs: Map::new(),
        vars: Map::new(),
        resources: BTreeMap::new(),
        secrets: BTreeMap::new(),
        auto_approvals: false,
        keep: false,
        steps,
        groups: Vec::new(),
        undos: Vec::new(),
        scopes: Vec::new(),
        locks: Vec::new(),
        notices: BTreeMap::default(),
        approvers: None,
        contacts: BTreeMap::default(),
        fence: Vec::new(),
        sources: BTreeMap::new(),
    }
}

pub(crate) fn declared() -> EventKind {
    EventKind::RunDeclared {
        plan_digest: String::new(),
        incident_at_ms: 0,
        by: person(),
        inputs: Map::new(),
        engine: "test".to_owned(),
    }
}

pub(crate) fn person() -> Person {
    Person { name: "sam".to_owned(), uid: 1000 }
}

pub(crate) fn succeeded(outputs: Value) -> AttemptResult {
    let outputs = outputs.as_object().cloned().unwrap_or_default();
    AttemptResult::Succeeded { done: Done { outputs, ..Done::default() } }
}

pub(crate) fn failed(kind: FailureKind) -> AttemptResult {
    let failure =
        Failure { kind, code: "LB0000".into(), message: "no".into(), help: None, causes: Vec::new() };
    AttemptResult::Failed { failure, checks: Vec::new() }
}
