use async_trait::async_trait;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::step::{Effect, KindSpec, NOTE, Preview, StepContext, StepError, StepKind};
use lifeboat_engine::value::{Field, Type};
use serde::Deserialize;
use serde_json::Map;

/// Writes into the run's record.
#[derive(Debug)]
pub(super) struct Note;

#[derive(Deserialize)]
struct Params {
    text: String,
}

const DOC: &str = "\
Puts a text, Markdown if you like, into the journal; the report shows it among what people said and did, with the step
and the time. For what the reader of the report must know and no check shows: which decision was taken on which grounds,
which numbers a step found. `lifeboat note RUN TEXT` does the same by hand.";

#[async_trait]
impl StepKind for Note {
    fn spec(&self) -> KindSpec {
        KindSpec::new("note", "Puts a text into the run's record.", Effect::Idempotent)
            .doc(DOC)
            .param(Field::required("text", Type::String, "The text."))
            .output("text", Type::String, "The same text.")
    }

    async fn preview(&self, ctx: &StepContext) -> Result<Preview, StepError> {
        let Params { text } = ctx.params()?;
        Ok(Preview { actions: vec![format!("note: {text}")], destroys: Vec::new() })
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let Params { text } = ctx.params()?;
        ctx.record(NOTE, text.clone()).await?;
        let outputs = Map::from_iter([("text".to_owned(), text.into())]);
        Ok(Done { outputs, ..Done::default() })
    }
}
