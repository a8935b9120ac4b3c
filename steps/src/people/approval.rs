use async_trait::async_trait;
use lifeboat_engine::model::event::{Done, Question};
use lifeboat_engine::step::{Effect, KindSpec, Preview, StepContext, StepError, StepKind};
use lifeboat_engine::value::{Field, Type};
use serde::Deserialize;

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
}

#[async_trait]
impl StepKind for Approval {
    fn spec(&self) -> KindSpec {
        let spec = KindSpec::new("approval", "Asks a person for approval and waits.", Effect::Read)
            .doc(
                "Waits until someone approves or rejects, in the terminal or with `lifeboat approve` and `lifeboat \
                 reject` from anywhere. A rejection fails the step. An answer survives a crash of Lifeboat.",
            )
            .param(Field::optional("role", Type::String, "Who is asked: a role of the runbook."))
            .param(Field::required("message", Type::String, "What is to be approved."))
            .output("by", Type::String, "Who approved.")
            .output("comment", Type::String, "What they said; may be empty.")
            .output("automatic", Type::Boolean, "Whether drill settings answered in nobody's name.");
        KindSpec { waits_for_people: true, ..spec }
    }

    async fn preview(&self, ctx: &StepContext) -> Result<Preview, StepError> {
        let params: Params = ctx.params()?;
        let whom = params.role.as_deref().unwrap_or("anyone");
        Ok(Preview { actions: vec![format!("ask {whom}: {}", params.message)], destroys: Vec::new() })
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let Params { role, message } = ctx.params()?;
        let choices = vec![APPROVE.to_owned(), REJECT.to_owned()];
        let answer =
            ask(ctx, Question { id: "approval".into(), role, message, choices, typed: None }).await?;
        if answer.choice == APPROVE {
            return Ok(Done { outputs: outputs(&answer), warnings: warnings(&answer), ..Done::default() });
        }
        let message = format!("{} refused approval{}", answer.by.name, because(&answer));
        Err(StepError::permanent(codes::LB1701, message)
            .help("settle the reason; `lifeboat retry` asks anew, `lifeboat abort` ends the run"))
    }
}
