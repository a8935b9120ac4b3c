use async_trait::async_trait;
use lifeboat_engine::code::LB0304;
use lifeboat_engine::expr::{InputDecl, bind_input, fit};
use lifeboat_engine::model::event::{Done, Question};
use lifeboat_engine::step::{Effect, KindSpec, ParamProblem, Preview, StepContext, StepError, StepKind};
use lifeboat_engine::value::{Field, Type};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{ask, codes, outputs, warnings};

/// Asks a person for a value.
#[derive(Debug)]
pub(super) struct Ask;

#[derive(Deserialize)]
struct Params {
    role: Option<String>,
    message: String,
    #[serde(flatten)]
    answer: AnswerParams,
}

/// What the answer must be.
#[derive(Deserialize)]
struct AnswerParams {
    #[serde(rename = "type", default = "text")]
    ty: String,
    #[serde(default)]
    values: Vec<String>,
    of: Option<String>,
    pattern: Option<String>,
    default: Option<Value>,
}

fn text() -> String {
    "string".to_owned()
}

const TYPES: &[&str] =
    &["string", "integer", "number", "boolean", "enum", "duration", "timestamp", "list", "map", "path"];
const ELEMENTS: &[&str] = &["string", "integer", "number", "boolean", "duration", "timestamp"];

const DOC: &str = "\
Shows the message and waits until somebody gives a value of the type: with `lifeboat answer RUN STEP VALUE` from anywhere,
or with `answer VALUE` in the terminal of the run. What does not fit is refused at once, with the reason, and the step goes on
waiting. The value is the output `value`; an answer survives a crash of Lifeboat.

```yaml
- id: amount
  uses: ask
  with: { role: on_call, message: How many payments does the provider count?, type: integer, default: 0 }
- { id: judge, uses: assert, with: { values: { n: \"{{ steps.amount.value }}\" }, that: [values.n > 0] } }
```

In a drill it fails after 30 minutes. With `drill: { approvals: auto }` the drill answers with `default`, if there is one.";

#[async_trait]
impl StepKind for Ask {
    fn spec(&self) -> KindSpec {
        let spec = KindSpec::new("ask", "Asks a person for a value and waits.", Effect::Read)
            .doc(DOC)
            .param(Field::optional("role", Type::String, "Who is asked: a role of the runbook."))
            .param(Field::required("message", Type::String, "What is asked."))
            .param(Field::defaulted("type", Type::choice(TYPES), "string", "What the answer must be."))
            .param(Field::optional("values", Type::list(Type::String), "enum: the words it takes."))
            .param(Field::optional("of", Type::choice(ELEMENTS), "list, map: what the elements are."))
            .param(Field::optional("pattern", Type::String, "string: what the whole text must match."))
            .param(Field::optional("default", Type::Any, "What a drill that asks nobody answers."))
            .output("value", Type::Any, "What was answered, in its type.")
            .output("by", Type::String, "Who answered.")
            .output("comment", Type::String, "What they said; may be empty.")
            .output("automatic", Type::Boolean, "Whether drill settings answered in nobody's name.");
        KindSpec { waits_for_people: true, ..spec }
    }

    fn check(&self, with: &Map<String, Value>) -> Vec<ParamProblem> {
        // Parameters that hold a template are absent: then nothing can be said yet.
        let Ok(answer) = serde_json::from_value::<AnswerParams>(Value::Object(with.clone())) else {
            return Vec::new();
        };
        let problem =
            |param: &str, message: String| ParamProblem { param: param.into(), message, help: None };
        if answer.ty == "enum" && !with.contains_key("values") {
            return vec![problem("type", "an enum needs its `values`".to_owned())];
        }
        if answer.pattern.is_some() && answer.ty != "string" {
            return vec![problem("pattern", format!("an answer of type {} takes no pattern", answer.ty))];
        }
        let declared = answer.declare();
        if let Some(error) = declared.pattern_error() {
            return vec![problem("pattern", error)];
        }
        let fits = declared.default.as_ref().map(|default| bind_input(&declared, Some(default), &Map::new()));
        fits.and_then(Result::err).map(|error| problem("default", error.message)).into_iter().collect()
    }

    async fn preview(&self, ctx: &StepContext) -> Result<Preview, StepError> {
        let params: Params = ctx.params()?;
        let whom = params.role.as_deref().unwrap_or("anyone");
        let ty = params.answer.declare().ty;
        let action = format!("ask {whom} for {}: {}", ty.in_words(), params.message);
        Ok(Preview { actions: vec![action], destroys: Vec::new() })
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let Params { role, message, answer } = ctx.params()?;
        let declared = answer.declare();
        let typed = serde_json::to_value(&declared).map_err(|error| {
            StepError::permanent(LB0304, "what is asked for cannot be told").caused_by(&error)
        })?;
        let question = Question {
            id: "ask".into(),
            role,
            message,
            choices: Vec::new(),
            typed: Some(typed),
            rule: None,
            points: Vec::new(),
        };
        let given = ask(ctx, question).await?;
        let value = bind_input(&declared, Some(&json!(given.choice)), &Map::new())
            .ok()
            .and_then(|value| fit(&value, &declared.ty).ok())
            .ok_or_else(|| {
                StepError::permanent(codes::LB1705, format!("`{}` is not what was asked for", given.choice))
                    .help("`lifeboat retry` asks anew")
            })?;
        let mut outputs = outputs(&given);
        outputs.insert("value".to_owned(), value);
        Ok(Done { outputs, warnings: warnings(&given), ..Done::default() })
    }
}

impl AnswerParams {
    fn declare(&self) -> InputDecl {
        let element = self.of.as_deref().map_or(Type::Any, named);
        let ty = match self.ty.as_str() {
            "enum" => Type::Choice(self.values.clone()),
            "list" => Type::list(element),
            "map" => Type::map(element),
            word => named(word),
        };
        InputDecl {
            name: "value".to_owned(),
            ty,
            pattern: self.pattern.clone(),
            default: self.default.clone(),
            description: String::new(),
        }
    }
}

fn named(word: &str) -> Type {
    match word {
        "integer" => Type::Integer,
        "number" => Type::Number,
        "boolean" => Type::Boolean,
        "duration" => Type::Duration,
        "timestamp" => Type::Timestamp,
        "path" => Type::Path,
        _ => Type::String,
    }
}
