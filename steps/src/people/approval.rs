use async_trait::async_trait;
use lifeboat_engine::model::event::{ApprovalRule, Done, Question};
use lifeboat_engine::step::{Effect, KindSpec, ParamProblem, Preview, StepContext, StepError, StepKind};
use lifeboat_engine::value::{Field, Type};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{ask, because, codes, outputs, warnings};

const APPROVE: &str = "approve";
const REJECT: &str = "reject";

/// Asks a role for approval.
#[derive(Debug)]
pub(super) struct Approval;

#[derive(Deserialize)]
struct Params {
    role: Option<String>,
    message: String,
    #[serde(default = "one")]
    minimum: u32,
    #[serde(default)]
    allow_starter: bool,
}

fn one() -> u32 {
    1
}

const DOC: &str = "\
Waits until someone approves or rejects, in the terminal of the run or with `lifeboat approve` and `lifeboat reject` from
anywhere. A rejection fails the step at once. An answer survives a crash of Lifeboat, and its comment is kept.

Where `lifeboat.yaml` names people, only those of the role count, each of them once, and not whoever started the run unless
`allow_starter` says so. Where it names none, any answer of anybody counts.

```yaml
- id: sign_off
  uses: approval
  with: { role: database_lead, message: Promote?, minimum: 2 }
```";

#[async_trait]
impl StepKind for Approval {
    fn spec(&self) -> KindSpec {
        let spec = KindSpec::new("approval", "Asks a person for approval and waits.", Effect::Read)
            .doc(DOC)
            .param(Field::optional("role", Type::String, "Who is asked: a role of the runbook."))
            .param(Field::required("message", Type::String, "What is to be approved."))
            .param(Field::defaulted("minimum", Type::Integer, 1, "How many different people must approve."))
            .param(Field::defaulted(
                "allow_starter",
                Type::Boolean,
                false,
                "Whether the person who started the run may approve.",
            ))
            .output("by", Type::String, "Who approved; several names if several had to.")
            .output("comment", Type::String, "What they said; may be empty.")
            .output("automatic", Type::Boolean, "Whether drill settings answered in nobody's name.");
        KindSpec { waits_for_people: true, ..spec }
    }

    fn check(&self, with: &Map<String, Value>) -> Vec<ParamProblem> {
        let few =
            with.get("minimum").and_then(Value::as_i64).is_some_and(|minimum| !(1..=100).contains(&minimum));
        let problem = || ParamProblem {
            param: "minimum".into(),
            message: "must be from 1 to 100".into(),
            help: Some("an approval that nobody has to give is no approval".into()),
        };
        few.then(problem).into_iter().collect()
    }

    async fn preview(&self, ctx: &StepContext) -> Result<Preview, StepError> {
        let params: Params = ctx.params()?;
        let whom = params.role.as_deref().unwrap_or("anyone");
        let many = if params.minimum > 1 { format!(" ({} people)", params.minimum) } else { String::new() };
        Ok(Preview { actions: vec![format!("ask {whom}{many}: {}", params.message)], destroys: Vec::new() })
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let Params { role, message, minimum, allow_starter } = ctx.params()?;
        // A number that a template gave: too small must not mean that nobody is asked.
        let rule = Some(ApprovalRule { minimum: minimum.max(1), allow_starter });
        let choices = vec![APPROVE.to_owned(), REJECT.to_owned()];
        let answer = ask(
            ctx,
            Question { id: "approval".into(), role, message, choices, typed: None, rule, points: Vec::new() },
        )
        .await?;
        if answer.choice == APPROVE {
            return Ok(Done { outputs: outputs(&answer), warnings: warnings(&answer), ..Done::default() });
        }
        let message = format!("{} refused approval{}", answer.by.name, because(&answer));
        Err(StepError::permanent(codes::LB1701, message)
            .help("settle the reason; `lifeboat retry` asks anew, `lifeboat abort` ends the run"))
    }
}
