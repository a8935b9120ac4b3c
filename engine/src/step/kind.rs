use std::fmt;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Finding, PreflightFacts, Refusal, Setting, StepContext, StepError};
use crate::code;
use crate::model::event::Done;
use crate::resource::ResourceKind;
use crate::value::Field;

/// What it means to run a step twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// Changes nothing: runs again after a crash.
    Read,
    /// Running it again leads to the same state: runs again after a crash.
    Idempotent,
    /// Asks [`StepKind::probe`] first whether its work is done already.
    Guarded,
    /// Must not be repeated without a person's word.
    Once,
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Idempotent => "idempotent",
            Self::Guarded => "guarded",
            Self::Once => "once",
        })
    }
}

/// What a kind is: its parameters, outputs, effect and documentation. The reference is generated from it.
#[derive(Clone, Debug, Serialize)]
pub struct KindSpec {
    /// `family.verb`, or one word for control kinds.
    pub name: String,
    /// One sentence in the third person: what it does.
    pub summary: String,
    /// The contract in Markdown: what must hold before, what is proven after.
    pub doc: String,
    pub params: Vec<Field>,
    pub outputs: Vec<Field>,
    /// `None` if the runbook must say it, as for shell.
    pub effect: Option<Effect>,
    /// Parameters that name directories which it fills, beside the resources that it writes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub writes_paths: Vec<String>,
    /// What it destroys, if it is destructive.
    pub destroys: Option<String>,
    /// What it undoes itself when a run is aborted, in words that follow "undo:"; `None` if nothing.
    pub undoes: Option<String>,
    /// The key of a step that stands for this kind, with the parameter its value becomes: `run`, `script`.
    pub body_key: Option<(String, String)>,
    /// Whether it measures a recovery point.
    pub restores: bool,
    /// Whether it chooses or verifies a backup in a store, which a destructive restore must have before it. True for
    /// kinds named `FAMILY.select_backup` and `FAMILY.verify_backup`.
    pub selects_backup: bool,
    /// The `on_error` that holds if the step says none: `continue` for messages.
    pub continues_on_error: bool,
    /// Steps that wait for people have no default time limit and hold no slot.
    pub waits_for_people: bool,
    /// The kind of the system that it makes. Later steps use it as `{ from: STEP }`; every success must bring it back
    /// in [`Done::resource`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub creates: Option<ResourceKind>,
}

impl KindSpec {
    /// Begins a description; the rest is added by the methods below.
    pub fn new(name: &str, summary: &str, effect: Effect) -> Self {
        Self {
            name: name.to_owned(),
            summary: summary.to_owned(),
            doc: String::new(),
            params: Vec::new(),
            outputs: Vec::new(),
            writes_paths: Vec::new(),
            effect: Some(effect),
            destroys: None,
            undoes: None,
            body_key: None,
            restores: false,
            selects_backup: name.ends_with(".select_backup") || name.ends_with(".verify_backup"),
            continues_on_error: false,
            waits_for_people: false,
            creates: None,
        }
    }

    /// Adds the contract, in Markdown.
    #[must_use]
    pub fn doc(mut self, markdown: &str) -> Self {
        self.doc = markdown.to_owned();
        self
    }

    /// Adds a parameter.
    #[must_use]
    pub fn param(mut self, field: Field) -> Self {
        self.params.push(field);
        self
    }

    /// Adds an output that every success sets.
    #[must_use]
    pub fn output(mut self, name: &str, ty: crate::value::Type, summary: &str) -> Self {
        self.outputs.push(Field::required(name, ty, summary));
        self
    }

    /// Says that a parameter names a directory which it fills: locked and fenced like a resource that it writes.
    #[must_use]
    pub fn writes_path(mut self, param: &str) -> Self {
        self.writes_paths.push(param.to_owned());
        self
    }

    /// Says what it destroys.
    #[must_use]
    pub fn destroys(mut self, what: &str) -> Self {
        self.destroys = Some(what.to_owned());
        self
    }

    /// Says what it undoes when a run is aborted; [`StepKind::undo`] does it.
    #[must_use]
    pub fn undoes(mut self, what: &str) -> Self {
        self.undoes = Some(what.to_owned());
        self
    }

    /// Says that it makes a system, which later steps of the run use.
    #[must_use]
    pub fn creates(mut self, kind: ResourceKind) -> Self {
        self.creates = Some(kind);
        self
    }

    /// Says that it restores a store and reports a recovery point.
    #[must_use]
    pub fn restores(mut self) -> Self {
        self.restores = true;
        self
    }
}

/// What a probe found.
#[expect(clippy::large_enum_variant, reason = "there is one at a time, and it is taken apart at once")]
#[derive(Clone, Debug)]
pub enum Probe {
    /// The work is done; these are its results.
    Done(Done),
    NotDone,
}

/// What a step will do, for `lifeboat plan`: no secrets.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Preview {
    /// Commands as they will be run, or sentences where there is no command.
    pub actions: Vec<String>,
    /// What will be destroyed or moved aside, with its identity, size and newest data where these can be told; or that
    /// nothing is there. Empty if the kind does not look: its description stands then.
    pub destroys: Vec<String>,
}

/// One kind of step. A value of it is shared by all steps of that kind and holds no state of any run.
#[async_trait]
pub trait StepKind: Send + Sync + 'static {
    /// Describes the kind. Called once, when it is registered.
    fn spec(&self) -> KindSpec;

    /// Checks literal parameters beyond their types; each problem names a parameter. Parameters that hold a
    /// template are absent from `with`. Must do no I/O.
    fn check(&self, with: &serde_json::Map<String, Value>) -> Vec<ParamProblem> {
        let _ = with;
        Vec::new()
    }

    /// Checks which parameters are given, also those that hold a template. Must do no I/O.
    fn check_given(&self, given: &[&str]) -> Vec<ParamProblem> {
        let _ = given;
        Vec::new()
    }

    /// Says what a run would do, without doing it and without writing anything.
    ///
    /// Parameters that depend on earlier steps are absent. Where it cannot say anything without them it fails, which
    /// is shown as nothing.
    async fn preview(&self, ctx: &StepContext) -> Result<Preview, StepError> {
        let _ = ctx;
        Ok(Preview::default())
    }

    /// Looks at the real systems as the step would find them, without changing anything on any of them, and says what
    /// would keep it from succeeding. Parameters that depend on earlier steps are absent from the context.
    async fn preflight(&self, ctx: &StepContext, facts: &PreflightFacts) -> Result<Vec<Finding>, StepError> {
        let _ = (ctx, facts);
        Ok(Vec::new())
    }

    /// Says why a step can only fail in an environment, from its description alone. Must do no I/O.
    fn refuse(&self, with: &serde_json::Map<String, Value>, setting: &Setting<'_>) -> Option<Refusal> {
        let _ = (with, setting);
        None
    }

    /// Does the work. The future may be dropped only after [`StepContext::cancelled`] has resolved and a grace has
    /// passed; children must be ended before it returns.
    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError>;

    /// Takes back what attempts of a step have done, whether they succeeded or not. Only called for kinds that say in
    /// [`KindSpec::undoes`] what that is, with the parameters of the step and what it recorded.
    ///
    /// Must be safe to repeat: it runs again if Lifeboat was killed meanwhile. What is not the step's own work stays.
    async fn undo(&self, ctx: &StepContext) -> Result<Done, StepError> {
        Err(StepError::permanent(
            code::LB0336,
            format!("the kind of `{}` undoes nothing itself", ctx.info.step),
        )
        .help("resume with the version of Lifeboat that began the run"))
    }

    /// Removes what a step of this kind has made within a system that the run did not make, recorded as
    /// [`CreatedKind::Within`](crate::model::evidence::CreatedKind::Within), and says how that is known.
    ///
    /// Called when a drill ends, newest first, with no parameters and a journal that takes nothing: all that it needs is in
    /// `handle`. Must be safe to repeat, and what is gone already is a success. What is not surely the thing that was recorded
    /// stays as it is, and is an error that says why. Tried again for a while after a transient error.
    async fn clean_up(&self, ctx: &StepContext, resource: &str, handle: &Value) -> Result<String, StepError> {
        let _ = handle;
        let message = format!("the kind of `{}` cleans nothing up on `{resource}` itself", ctx.info.step);
        Err(StepError::permanent(code::LB0336, message)
            .help("resume with the version of Lifeboat that began the run"))
    }

    /// Finds out whether an attempt whose end is not known has done its work. Only called for [`Effect::Guarded`].
    async fn probe(&self, ctx: &StepContext) -> Result<Probe, StepError> {
        let _ = ctx;
        Ok(Probe::NotDone)
    }
}

/// A parameter that has the right type and yet cannot be right.
#[derive(Clone, Debug, PartialEq)]
pub struct ParamProblem {
    pub param: String,
    pub message: String,
    pub help: Option<String>,
}
