use async_trait::async_trait;
use lifeboat_engine::code::LB0304;
use lifeboat_engine::model::event::{Done, Question};
use lifeboat_engine::model::evidence::Check;
use lifeboat_engine::step::{Effect, KindSpec, ParamProblem, Preview, StepContext, StepError, StepKind};
use lifeboat_engine::value::{Field, Type};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{ask, because, codes, outputs, warnings};

const DONE: &str = "done";
const FAILED: &str = "failed";

/// Asks a person to do something by hand.
#[derive(Debug)]
pub(super) struct Manual;

#[derive(Deserialize)]
struct Params {
    text: String,
    role: Option<String>,
    #[serde(default)]
    checklist: Vec<String>,
}

const DOC: &str = "\
Shows the instructions and waits until someone answers `done` or `failed`. The short form is a text, the long form
names a role and a checklist:

```yaml
- id: check_mail
  manual:
    role: database_lead
    text: Look into the mailbox of the payment provider.
    checklist: [No mail is newer than the target time, The totals agree]
```

Each point of the checklist becomes a check in the report, with the name of whoever answered.";

#[async_trait]
impl StepKind for Manual {
    fn spec(&self) -> KindSpec {
        let spec = KindSpec::new("manual", "Asks a person to do something by hand and waits.", Effect::Read)
            .doc(DOC)
            .param(Field::required("text", Type::String, "What to do."))
            .param(Field::optional("role", Type::String, "Who is asked: a role of the runbook."))
            .param(Field::optional("checklist", Type::list(Type::String), "What to tick off."))
            .output("by", Type::String, "Who answered.")
            .output("comment", Type::String, "What they said; may be empty.")
            .output("automatic", Type::Boolean, "Whether drill settings answered in nobody's name.");
        KindSpec { waits_for_people: true, body_key: Some(("manual".into(), "text".into())), ..spec }
    }

    fn check(&self, with: &Map<String, Value>) -> Vec<ParamProblem> {
        let empty = with.get("text").and_then(Value::as_str).is_some_and(|text| text.trim().is_empty());
        let problem = || ParamProblem {
            param: "text".into(),
            message: "is empty: nobody would know what to do".into(),
            help: Some("say what to do, and how to see that it is done".into()),
        };
        empty.then(problem).into_iter().collect()
    }

    async fn preview(&self, ctx: &StepContext) -> Result<Preview, StepError> {
        let (role, message, _) = read(ctx)?;
        let whom = role.as_deref().unwrap_or("anyone");
        Ok(Preview { actions: vec![format!("ask {whom}: {message}")], destroys: Vec::new() })
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let (role, message, checklist) = read(ctx)?;
        let choices = vec![DONE.to_owned(), FAILED.to_owned()];
        let answer =
            ask(ctx, Question { id: "manual".into(), role, message, choices, typed: None, rule: None })
                .await?;
        if answer.choice != DONE {
            let message = format!("{} could not do it{}", answer.by.name, because(&answer));
            return Err(StepError::permanent(codes::LB1702, message)
                .help("`lifeboat retry` asks anew; or mark the step as done with a reason"));
        }
        // What nobody looked at is no check.
        let looked_at = if answer.automatic { Vec::new() } else { checklist };
        let checks = looked_at.into_iter().map(|point| Check {
            name: point,
            expected: "confirmed".into(),
            actual: format!("confirmed by {}", answer.by.name),
            passed: true,
        });
        let (outputs, warnings) = (outputs(&answer), warnings(&answer));
        Ok(Done { outputs, warnings, checks: checks.collect(), ..Done::default() })
    }
}

/// Returns whom to ask, what to show, and the points of the checklist.
fn read(ctx: &StepContext) -> Result<(Option<String>, String, Vec<String>), StepError> {
    let Params { text, role, checklist } = ctx.params()?;
    if text.trim().is_empty() {
        return Err(StepError::permanent(LB0304, "the instructions are empty"));
    }
    let points = checklist.iter().map(|point| format!("\n  [ ] {point}"));
    let message = std::iter::once(text.trim_end().to_owned()).chain(points).collect();
    Ok((role, message, checklist))
}
