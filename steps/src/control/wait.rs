use std::time::Duration;

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use lifeboat_engine::model::event::Done;
use lifeboat_engine::model::evidence::{Progress, Unit};
use lifeboat_engine::step::{Effect, KindSpec, ParamProblem, Preview, StepContext, StepError, StepKind};
use lifeboat_engine::value::{Field, Span, Type};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::codes;

/// Waits for a length of time or until a moment.
#[derive(Debug)]
pub(super) struct Wait;

/// What an attempt records, so that the next one waits for the same moment.
const UNTIL: &str = "until";

#[derive(Deserialize)]
struct Params {
    #[serde(rename = "for")]
    length: Option<Span>,
    until: Option<Timestamp>,
}

#[async_trait]
impl StepKind for Wait {
    fn spec(&self) -> KindSpec {
        KindSpec::new("wait", "Waits for a length of time or until a moment.", Effect::Read)
            .doc(
                "Give either `for` or `until`. The moment is recorded when the step begins: an attempt after a crash \
                 waits for what is left. A moment that has passed is no error.",
            )
            .param(Field::optional("for", Type::Duration, "How long to wait."))
            .param(Field::optional("until", Type::Timestamp, "The moment to wait for."))
            .output("until", Type::Timestamp, "The moment that was waited for.")
    }

    fn check(&self, with: &Map<String, Value>) -> Vec<ParamProblem> {
        let both = with.contains_key("for") && with.contains_key("until");
        let problem = || ParamProblem {
            param: "until".into(),
            message: "`for` and `until` cannot both be given".into(),
            help: Some("remove one of them".into()),
        };
        both.then(problem).into_iter().collect()
    }

    async fn preview(&self, ctx: &StepContext) -> Result<Preview, StepError> {
        let params: Params = ctx.params()?;
        let action = match (params.length, params.until) {
            (Some(length), _) => format!("wait {length}"),
            (None, Some(until)) => format!("wait until {until}"),
            (None, None) => return Err(neither()),
        };
        Ok(Preview { actions: vec![action], destroys: Vec::new() })
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let until = moment(ctx)?;
        ctx.record(UNTIL, until.to_string()).await?;
        let total = left(until);
        loop {
            let left = left(until);
            report(ctx, total, left);
            if left.is_zero() {
                break;
            }
            // The wall clock decides, looked at every second: it goes on while the machine sleeps.
            let pause = left.min(Duration::from_secs(1));
            tokio::select! {
                () = ctx.cancelled() => {
                    return Err(StepError::transient(codes::LB1022, format!("waiting until {until} ended early")));
                }
                () = tokio::time::sleep(pause) => {}
            }
        }
        let outputs = Map::from_iter([("until".to_owned(), until.to_string().into())]);
        Ok(Done { outputs, ..Done::default() })
    }
}

fn moment(ctx: &StepContext) -> Result<Timestamp, StepError> {
    let params: Params = ctx.params()?;
    let recorded = ctx.recorded(UNTIL).and_then(Value::as_str).and_then(|text| text.parse().ok());
    match (recorded, params.until, params.length) {
        (Some(moment), _, _) | (None, Some(moment), _) => Ok(moment),
        (None, None, Some(Span(length))) => {
            let length = SignedDuration::try_from(length).unwrap_or(SignedDuration::MAX);
            Ok(Timestamp::now().checked_add(length).unwrap_or(Timestamp::MAX))
        }
        (None, None, None) => Err(neither()),
    }
}

fn left(until: Timestamp) -> Duration {
    Duration::try_from(until.duration_since(Timestamp::now())).unwrap_or_default()
}

fn report(ctx: &StepContext, total: Duration, left: Duration) {
    let done = total.saturating_sub(left).as_secs();
    ctx.progress(Progress {
        done,
        total: Some(total.as_secs()),
        unit: Unit::Seconds,
        note: "waiting".into(),
    });
}

fn neither() -> StepError {
    StepError::permanent(lifeboat_engine::code::LB0304, "a waiting step needs `for` or `until`")
        .help("write for example `for: 30s`")
}
