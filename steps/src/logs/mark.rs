//! `logs.mark`: where a log ends now.

use async_trait::async_trait;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::step::{Effect, KindSpec, ParamProblem, StepContext, StepError, StepKind};
use lifeboat_engine::value::Type;
use serde_json::{Map, Value, json};

use super::source::{self, Named};
use super::watch::Mark;

/// Remembers where a log ends.
#[derive(Debug)]
pub(super) struct MarkEnd;

const DOC: &str = "\
A later `logs.check` begins there: `mark: \"{{ steps.before.mark }}\"`. It needs no times in the lines, and finds its place
again when the file was rotated meanwhile, copied and emptied, or packed. A file that does not exist yet is marked at its
beginning.";

#[async_trait]
impl StepKind for MarkEnd {
    fn spec(&self) -> KindSpec {
        let spec = KindSpec::new("logs.mark", "Remembers where a log ends.", Effect::Read).doc(DOC);
        let spec = source::fields().into_iter().fold(spec, KindSpec::param);
        spec.output("mark", Type::Any, "The place, for `mark` of `logs.check`.").output(
            "at",
            Type::Timestamp,
            "The moment.",
        )
    }

    fn check(&self, with: &Map<String, Value>) -> Vec<ParamProblem> {
        source::problem(with, false).into_iter().collect()
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let named: Named = ctx.params()?;
        let mark = Mark::of(&named.source(ctx)?).await?;
        let mark = serde_json::to_value(mark).unwrap_or_default();
        let Value::Object(outputs) = json!({ "at": mark["at"], "mark": mark }) else {
            unreachable!("an object was written")
        };
        Ok(Done { outputs, ..Done::default() })
    }
}
