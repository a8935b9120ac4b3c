//! One thing that is looked at, by a kind of another family.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use lifeboat_engine::code;
use lifeboat_engine::model::event::{Answer, Done, Question};
use lifeboat_engine::model::evidence::{Check, Created, Progress, Stream};
use lifeboat_engine::step::{StepContext, StepError, StepKind, StepLink};
use lifeboat_engine::value::Span;
use serde_json::{Map, Value};

use super::codes;
use crate::logs::{Watch, When};

/// How long a look that takes too long has to end itself.
const GRACE: Duration = Duration::from_secs(5);

/// How a look is taken.
pub(super) enum How {
    /// A kind runs, and succeeds.
    Kind(Arc<dyn StepKind>),
    /// A service runs and is ready.
    Service(Arc<dyn StepKind>),
    /// What came into a log since the beginning is as it may be.
    Log(Box<Watch>),
}

/// Something that is looked at again and again.
pub(super) struct Look {
    pub(super) name: String,
    pub(super) how: How,
    pub(super) with: Map<String, Value>,
}

impl Look {
    /// Looks once. `Ok(Err)` is a look that failed, `Err` something that no further look can mend.
    pub(super) async fn take(
        &mut self,
        ctx: &StepContext,
        limit: Duration,
    ) -> Result<Result<(), String>, StepError> {
        let quiet: Arc<dyn StepLink> = Arc::new(Quiet(ctx.link()));
        let part = ctx.look(Value::Object(self.with.clone()), quiet);
        let looking = once(&mut self.how, &part);
        tokio::pin!(looking);
        let found = tokio::select! {
            found = &mut looking => found,
            () = tokio::time::sleep(limit) => {
                part.cancel.cancel();
                // It ends what it has started; if it cannot, that is ended when it is dropped.
                drop(tokio::time::timeout(GRACE, looking).await);
                return Ok(Err(format!("it took longer than {}", Span(limit))));
            }
        };
        match found {
            Ok(()) => Ok(Ok(())),
            Err(error) if is_fatal(&error) => Err(error),
            Err(error) => Ok(Err(in_words(&error))),
        }
    }

    /// Judges what only counts when all is over: the lines that a log must have by then. `None` where nothing is required.
    pub(super) fn at_the_end(&self) -> Option<Required> {
        let How::Log(watch) = &self.how else { return None };
        self.with.get("require").and_then(Value::as_array).filter(|rules| !rules.is_empty())?;
        let all = match watch.verdict(When::AtTheEnd) {
            Ok(checks) => checks,
            Err(error) if error.checks.is_empty() => {
                return Some(Required { checks: Vec::new(), lacking: Some(in_words(&error)) });
            }
            // What is denied has been judged with each look, as far as that is not tolerated.
            Err(error) => error.checks,
        };
        let of_this = |check: Check| Check { name: format!("{}: {}", self.name, check.name), ..check };
        let required = all.into_iter().filter(|check| check.name.starts_with(REQUIRED));
        let checks: Vec<Check> = required.map(of_this).collect();
        let lacks =
            |check: &Check| format!("{}: {}, and {} must be there", check.name, check.actual, check.expected);
        let lacking = checks.iter().find(|check| !check.passed).map(lacks);
        Some(Required { checks, lacking })
    }
}

/// What was found of the lines that a log must have.
pub(super) struct Required {
    pub(super) checks: Vec<Check>,
    /// Why that is not enough.
    pub(super) lacking: Option<String>,
}

/// What the names of checks begin with that are of required lines.
const REQUIRED: &str = "required";

async fn once(how: &mut How, part: &StepContext) -> Result<(), StepError> {
    match how {
        How::Kind(kind) => kind.run(part).await.map(drop),
        How::Service(kind) => is_up(&kind.run(part).await?),
        How::Log(watch) => {
            watch.look(part).await?;
            watch.verdict(When::SoFar).map(drop)
        }
    }
}

fn is_up(done: &Done) -> Result<(), StepError> {
    let is = |name: &str| done.outputs.get(name).and_then(Value::as_bool).unwrap_or(false);
    match (is("running"), is("ready")) {
        (true, true) => Ok(()),
        (true, false) => Err(StepError::transient(codes::LB0390, "it runs and is not ready")),
        (false, _) => Err(StepError::transient(codes::LB0390, "it does not run")),
    }
}

/// Parameters, resources and secrets do not mend themselves.
fn is_fatal(error: &StepError) -> bool {
    [code::LB0304, code::LB0305, code::LB0306, code::LB0340].contains(&error.code)
}

fn in_words(error: &StepError) -> String {
    const SHOWN: usize = 300;
    let mut text = error.message.replace('\n', " ");
    if let Some(cause) = error.causes.first() {
        text = format!("{text}: {}", cause.replace('\n', " "));
    }
    if text.len() > SHOWN {
        text.truncate(text.floor_char_boundary(SHOWN));
        text.push('…');
    }
    text
}

/// The link of a look: what it prints and how far it is would bury what was found. What it makes is told.
struct Quiet(Arc<dyn StepLink>);

#[async_trait]
impl StepLink for Quiet {
    fn progress(&self, _: Progress) {}

    fn line(&self, _: Stream, _: &str) {}

    async fn record(&self, _: &str, _: Value) -> Result<(), StepError> {
        Ok(())
    }

    async fn created(&self, thing: Created) -> Result<(), StepError> {
        self.0.created(thing).await
    }

    async fn removed(&self, id: &str, proof: &str) -> Result<(), StepError> {
        self.0.removed(id, proof).await
    }

    async fn ask(&self, _: Question) -> Result<Answer, StepError> {
        Err(StepError::permanent(codes::LB0392, "nobody is asked while something is watched"))
    }
}
