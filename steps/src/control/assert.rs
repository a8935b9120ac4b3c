use async_trait::async_trait;
use lifeboat_engine::expr;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::step::{Effect, KindSpec, ParamProblem, StepContext, StepError, StepKind};
use lifeboat_engine::value::{Field, Type};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::codes;

/// Checks conditions over values of the run.
#[derive(Debug)]
pub(super) struct Assert;

const DOC: &str = "\
`values` names what is looked at, each value usually a template; `that` lists bare expressions over `values`. All of
them are evaluated, and each is a check in the report with what was found. One that does not hold, or that cannot be
evaluated, fails the step.

```yaml
- id: nothing_lost
  uses: assert
  with:
    values: { before: \"{{ steps.count.rows }}\", after: \"{{ steps.verify.rows }}\" }
    that: [values.after >= values.before]
```";

#[derive(Deserialize)]
struct Params {
    #[serde(default)]
    values: Map<String, Value>,
    that: Vec<String>,
}

#[async_trait]
impl StepKind for Assert {
    fn spec(&self) -> KindSpec {
        KindSpec::new("assert", "Checks conditions over values of the run.", Effect::Read)
            .doc(DOC)
            .param(Field::optional("values", Type::map(Type::Any), "What the conditions are about, by name."))
            .param(Field::required(
                "that",
                Type::conditions(&["values"]),
                "Conditions, all of which must hold.",
            ))
            .output("passed", Type::Integer, "How many conditions hold: all of them.")
    }

    fn check(&self, with: &Map<String, Value>) -> Vec<ParamProblem> {
        let empty = with.get("that").and_then(Value::as_array).is_some_and(Vec::is_empty);
        let problem = || ParamProblem {
            param: "that".into(),
            message: "nothing is asserted".into(),
            help: Some("write at least one condition".into()),
        };
        empty.then(problem).into_iter().collect()
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let params: Params = ctx.params()?;
        let names = Map::from_iter([("values".to_owned(), Value::Object(params.values))]);
        let checks = expr::check_all("assert", &params.that, &names);
        let failed: Vec<_> = checks.iter().filter(|check| !check.passed).collect();
        if checks.is_empty() {
            return Err(StepError::permanent(codes::LB1020, "nothing is asserted"));
        }
        if let Some(first) = failed.first() {
            let message = format!(
                "{} of {} conditions do not hold, the first: `{}` ({})",
                failed.len(),
                checks.len(),
                first.expected,
                first.actual
            );
            return Err(StepError::permanent(codes::LB1020, message).checks(checks));
        }
        let outputs = Map::from_iter([("passed".to_owned(), checks.len().into())]);
        Ok(Done { outputs, checks, ..Done::default() })
    }
}
