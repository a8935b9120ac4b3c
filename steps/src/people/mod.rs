//! People and messages kinds: approval, ask, manual, note, notify.

mod approval;
pub mod codes;
mod manual;
mod note;
mod notify;
mod question;
mod slack;

use lifeboat_engine::model::event::{Answer, Question};
use lifeboat_engine::step::{Registry, StepContext, StepError};
use serde_json::{Map, Value, json};

/// Adds the kinds of this family.
pub fn register(registry: &mut Registry) {
    registry.register(approval::Approval);
    registry.register(manual::Manual);
    registry.register(note::Note);
    registry.register(notify::Notify);
    registry.register(question::Ask);
    registry.set_messenger(notify::Notices);
}

/// Asks, and waits until there is an answer or the step must end.
async fn ask(ctx: &StepContext, question: Question) -> Result<Answer, StepError> {
    tokio::select! {
        biased;
        answer = ctx.ask(question) => answer,
        () = ctx.cancelled() => {
            Err(StepError::transient(codes::LB1703, "the step had to end before a person answered")
                .help("`lifeboat status` shows the question and how to answer it"))
        }
    }
}

/// Returns who answered what, as outputs.
fn outputs(answer: &Answer) -> Map<String, Value> {
    let written = json!({
        "by": answer.by.name,
        "comment": answer.comment.as_deref().unwrap_or_default(),
        "automatic": answer.automatic,
    });
    let Value::Object(outputs) = written else { unreachable!("an object was written") };
    outputs
}

/// Returns a warning if nobody decided.
fn warnings(answer: &Answer) -> Vec<String> {
    let warning = || "answered automatically, in nobody's name: no evidence of a decision".to_owned();
    answer.automatic.then(warning).into_iter().collect()
}

/// Returns a comment as the end of a sentence.
fn because(answer: &Answer) -> String {
    match answer.comment.as_deref().map(str::trim).filter(|comment| !comment.is_empty()) {
        Some(comment) => format!(": {comment}"),
        None => " without a comment".to_owned(),
    }
}
