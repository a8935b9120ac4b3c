use async_trait::async_trait;
use lifeboat_engine::code::LB0304;
use lifeboat_engine::model::event::{Answer, Done, Question};
use lifeboat_engine::model::evidence::Check;
use lifeboat_engine::step::{Effect, KindSpec, ParamProblem, Preview, StepContext, StepError, StepKind};
use lifeboat_engine::value::{Field, Type};
use serde::Deserialize;
use serde_json::{Map, Value, json};

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

Each point of the checklist is confirmed by itself, in any order and by whoever has the role, until all are; what is confirmed
survives a crash of Lifeboat. `-m` says in words what shows it, `--file` gives a file that does, which is kept with the run and
becomes part of its evidence:

```sh
lifeboat answer RUN check_mail done --point 1 -m 'newest mail is of 03:09'
lifeboat answer RUN check_mail done --point 2 --file totals.png
lifeboat answer RUN check_mail failed --point 2 -m 'two payments are missing'
```

Each point becomes a check in the report, with the name of whoever confirmed it and what they gave. `failed` settles the step at
once.";

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
            .output("files", Type::list(Type::String), "The names of files that were given as evidence.")
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
        let points = checklist.clone();
        let id = "manual".to_owned();
        let answer =
            ask(ctx, Question { id, role, message, choices, typed: None, rule: None, points }).await?;
        if answer.choice != DONE {
            let points =
                answer.points.iter().filter_map(|point| checklist.get((*point as usize).checked_sub(1)?));
            let which: String = points.map(|point| format!(" (\"{point}\")")).collect();
            let message = format!("{} could not do it{which}{}", answer.by.name, because(&answer));
            return Err(StepError::permanent(codes::LB1702, message)
                .help("`lifeboat retry` asks anew; or mark the step as done with a reason"));
        }
        // What nobody looked at is no check.
        let looked_at = if answer.automatic { Vec::new() } else { checklist };
        let parts = if answer.parts.is_empty() { std::slice::from_ref(&answer) } else { &answer.parts[..] };
        let checks = looked_at.into_iter().zip(1..).map(|(point, number)| {
            let of = parts.iter().find(|part| part.points.contains(&number)).unwrap_or(&answer);
            Check { name: point, expected: "confirmed".into(), actual: confirmed(of), passed: true }
        });
        let files = parts.iter().filter_map(|part| part.file.as_ref()).map(|file| file.name.as_str());
        let (mut outputs, warnings) = (outputs(&answer), warnings(&answer));
        outputs.insert("files".to_owned(), json!(files.collect::<Vec<_>>()));
        Ok(Done { outputs, warnings, checks: checks.collect(), ..Done::default() })
    }
}

/// Says who confirmed something, and what they gave as evidence.
fn confirmed(answer: &Answer) -> String {
    let comment = answer.comment.as_deref().map(str::trim).filter(|comment| !comment.is_empty());
    let comment = comment.map(|comment| format!(": {comment}")).unwrap_or_default();
    let file = answer.file.as_ref().map(|file| format!(" (file {}, SHA-256 {})", file.name, file.sha256));
    format!("confirmed by {}{comment}{}", answer.by.name, file.unwrap_or_default())
}

/// Returns whom to ask, what to show, and the points of the checklist.
fn read(ctx: &StepContext) -> Result<(Option<String>, String, Vec<String>), StepError> {
    let Params { text, role, checklist } = ctx.params()?;
    if text.trim().is_empty() {
        return Err(StepError::permanent(LB0304, "the instructions are empty"));
    }
    let points = checklist.iter().zip(1..).map(|(point, number)| format!("\n  {number}. {point}"));
    let message = std::iter::once(text.trim_end().to_owned()).chain(points).collect();
    Ok((role, message, checklist))
}
