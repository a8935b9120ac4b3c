use std::collections::BTreeMap;
use std::path::PathBuf;

use async_trait::async_trait;
use lifeboat_engine::model::FailureKind;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::report::typed;
use lifeboat_engine::resource::EnvValue;
use lifeboat_engine::step::{
    Effect, KindSpec, ParamProblem, Preview, Probe, StepContext, StepError, StepKind,
};
use lifeboat_engine::value::{Field, Type};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::codes;
use crate::process::{Command, Output};

/// Runs a bash script.
#[derive(Debug)]
pub(super) struct Run;

const DOC: &str = "\
The script runs under `bash -euo pipefail` in `dir`, by default the directory of `lifeboat.yaml`, with standard input
closed. It sees PATH, HOME, LANG, facts about the run as `LIFEBOAT_*`, and its own `env`; nothing else.

An exit code other than 0 fails the step; with `retry` it is tried again. A script that a signal ended has an unknown
effect. Whatever it leaves running in the background ends with it, unless it is in a session of its own.

Only the runbook can say what running the script twice means: give the step an `effect`. With `effect: guarded` and a
`probe` (exit code 0: the work is done, 1: it is not) an attempt whose end is unknown is looked at before it is repeated.";

#[derive(Deserialize)]
struct Params {
    script: String,
    #[serde(default)]
    env: BTreeMap<String, EnvValue>,
    dir: Option<PathBuf>,
    probe: Option<String>,
}

#[async_trait]
impl StepKind for Run {
    fn spec(&self) -> KindSpec {
        let spec = KindSpec::new("run", "Runs a bash script.", Effect::Once)
            .doc(DOC)
            .param(Field::required("script", Type::Script, "The script."))
            .param(Field::optional("env", Type::EnvMap, "Variables of the script."))
            .param(Field::optional(
                "dir",
                Type::Path,
                "Where it runs; the directory of `lifeboat.yaml` if absent.",
            ))
            .param(Field::optional(
                "probe",
                Type::Script,
                "Exits with 0 if the work is done, with 1 if it is not.",
            ))
            .output("exit_code", Type::Integer, "Always 0.")
            .output(
                "stdout",
                Type::String,
                "The last 64 KiB of its standard output, without blanks at the ends.",
            );
        KindSpec { effect: None, body_key: Some(("run".into(), "script".into())), ..spec }
    }

    fn check(&self, with: &Map<String, Value>) -> Vec<ParamProblem> {
        let empty =
            |param: &str| with.get(param).and_then(Value::as_str).is_some_and(|text| text.trim().is_empty());
        ["script", "probe"]
            .into_iter()
            .filter(|param| empty(param))
            .map(|param| ParamProblem {
                param: param.into(),
                message: "the script is empty".into(),
                help: None,
            })
            .collect()
    }

    async fn preview(&self, ctx: &StepContext) -> Result<Preview, StepError> {
        let params: Params = ctx.params()?;
        Ok(Preview { actions: params.script.lines().map(ToOwned::to_owned).collect(), destroys: Vec::new() })
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let params: Params = ctx.params()?;
        let output = bash(&params.script, &params, ctx)?.name("the script").run_checked(ctx).await;
        output.map(done).map_err(|error| classified(error, ctx))
    }

    async fn probe(&self, ctx: &StepContext) -> Result<Probe, StepError> {
        let params: Params = ctx.params()?;
        let Some(probe) = &params.probe else {
            let problem = "a `run` step whose effect is `guarded` needs a `probe`";
            return Err(StepError::permanent(codes::LB1021, problem).help("give it one, or another `effect`"));
        };
        let output = bash(probe, &params, ctx)?.name("the probe").run(ctx).await?;
        match output.exit_code {
            0 => Ok(Probe::Done(done(output))),
            1 => Ok(Probe::NotDone),
            code => {
                let message =
                    format!("the probe ended with exit code {code}: neither 0 (done) nor 1 (not done)");
                let causes = output.to_error("the probe").causes;
                Err(StepError { causes, ..StepError::permanent(codes::LB1021, message) })
            }
        }
    }
}

/// A script that failed will fail again, unless its author says by `retry` that it may not.
fn classified(error: StepError, ctx: &StepContext) -> StepError {
    let kind = match error.kind {
        FailureKind::Permanent if ctx.info.retries => FailureKind::Transient,
        kind => kind,
    };
    let whole = || {
        format!(
            "all that it printed: lifeboat logs {} --step {}",
            ctx.info.run.short(),
            typed(&ctx.info.step)
        )
    };
    let help = error.help.or_else(|| Some(whole()));
    StepError { kind, help, ..error }
}

fn bash(script: &str, params: &Params, ctx: &StepContext) -> Result<Command, StepError> {
    let project = &ctx.info.project_dir;
    let dir = params.dir.as_ref().map_or_else(|| project.clone(), |dir| project.join(dir));
    let command = Command::new("bash").args(["-euo", "pipefail", "-c", script]).dir(dir);
    command.env_values(ctx, &params.env)
}

fn done(output: Output) -> Done {
    let outputs = json!({ "exit_code": output.exit_code, "stdout": output.stdout.tail_text() });
    let Value::Object(outputs) = outputs else { unreachable!("an object was written") };
    Done { outputs, warnings: output.warnings, ..Done::default() }
}
