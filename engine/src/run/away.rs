//! Takes down what people decide while no process drives the run.

use uuid::Uuid;

use crate::journal::Journal;
use crate::model::event::{Answer, Decision, Event, EventKind, Person};
use crate::model::request::Request;
use crate::plan::Plan;
use crate::redact::Redactor;

use super::driver::Error;
use super::state::{Phase, RunState};
use super::verdict::{Hearing, Verdict};

/// A run whose lock the caller holds, and which nothing drives.
#[derive(Debug)]
pub struct Away<'a> {
    pub plan: &'a Plan,
    pub journal: &'a Journal,
    /// The fold of the journal so far.
    pub state: &'a mut RunState,
    pub redactor: &'a Redactor,
}

impl Away<'_> {
    /// Records what becomes of a request, durably when this returns, as the process that drives a run would. Returns what was
    /// recorded.
    ///
    /// Nothing is launched, ended or undone: whoever takes the run over next carries the decision out. A request whose id
    /// the journal knows is not taken twice. An ended run takes nothing down any more.
    pub async fn take(&mut self, id: Uuid, request: Request) -> Result<Vec<Event>, Error> {
        if self.journal.knows(id) || matches!(self.state.phase, Phase::Finished(_)) {
            return Ok(Vec::new());
        }
        let request = cleaned(self.redactor, request);
        let by = request.by().clone();
        let hearing = Hearing { run: self.journal.header().run, plan: self.plan, state: self.state };
        let events = match hearing.judge(request) {
            Verdict::Granted(event) => vec![*event],
            Verdict::Known => Vec::new(),
            Verdict::Refused(reason) => vec![refused(self.redactor, id, by, &reason)],
        };
        events.iter().try_for_each(|event| self.state.apply(event))?;
        Ok(self.journal.append_for(vec![id], events).await?)
    }
}

/// Removes secrets from what people wrote. Which step and which question they mean stays as it is: whether there are such
/// is judged by the plan, where a secret never stands.
pub(super) fn cleaned(redactor: &Redactor, request: Request) -> Request {
    let clean = |text: String| redactor.text(&text).into_owned();
    let person = |by: Person| Person { name: clean(by.name), ..by };
    match request {
        Request::Answer { step, question, answer } => {
            let Answer { choice, by, comment, automatic, points, file, parts } = answer;
            let (choice, by, comment) = (clean(choice), person(by), comment.map(clean));
            // Its name is that of the file that is kept, so it stays as it is: `give` refuses one that holds a secret.
            let answer = Answer { choice, by, comment, automatic, points, file, parts };
            Request::Answer { step, question, answer }
        }
        Request::Decide { by, decision } => {
            let decision = match decision {
                Decision::SkipStep { step, reason } => Decision::SkipStep { step, reason: clean(reason) },
                Decision::MarkDone { step, reason } => Decision::MarkDone { step, reason: clean(reason) },
                Decision::Abort { reason } => Decision::Abort { reason: clean(reason) },
                Decision::Cancel { reason } => Decision::Cancel { reason: clean(reason) },
                Decision::Note { text } => Decision::Note { text: clean(text) },
                other @ (Decision::RetryStep { .. } | Decision::Pause | Decision::Unpause) => other,
            };
            Request::Decide { by: person(by), decision }
        }
    }
}

/// Returns what is recorded of a refusal, which may quote what a person wrote.
pub(super) fn refused(redactor: &Redactor, request: Uuid, by: Person, reason: &str) -> EventKind {
    EventKind::Refused { request, by, reason: redactor.text(reason).into_owned() }
}

#[cfg(test)]
mod tests {
    use secrecy::SecretString;

    use super::*;
    use crate::journal::test_support::{TickClock, declared, header};
    use crate::journal::{self, FILE};
    use crate::model::ids::StepId;
    use crate::secret::{SecretRef, Secrets};

    fn redactor(values: &[&str]) -> Redactor {
        let mut secrets = Secrets::default();
        for (at, value) in values.iter().enumerate() {
            secrets.insert(SecretRef::Env(format!("SECRET_{at}")), SecretString::from(*value));
        }
        Redactor::new(&secrets)
    }

    fn requests(step: &StepId, text: &str) -> Vec<Request> {
        let by = Person { name: format!("ann {text}"), uid: 1 };
        let (step, reason) = (step.clone(), text.to_owned());
        let comment = Some(text.to_owned());
        let answer = Answer { comment, ..Answer::new(reason.clone(), by.clone()) };
        let decide = |decision| Request::Decide { by: by.clone(), decision };
        vec![
            Request::Answer { step: step.clone(), question: "approval".into(), answer },
            decide(Decision::SkipStep { step: step.clone(), reason: reason.clone() }),
            decide(Decision::MarkDone { step: step.clone(), reason: reason.clone() }),
            decide(Decision::RetryStep { step }),
            decide(Decision::Abort { reason: reason.clone() }),
            decide(Decision::Cancel { reason: reason.clone() }),
            decide(Decision::Note { text: reason }),
        ]
    }

    #[test]
    fn a_step_that_is_called_as_a_secret_does_not_keep_what_people_wrote_from_being_cleaned() {
        let step = StepId::new("promote").unwrap();
        let redactor = redactor(&["promote", "decide_by_skipping", "correct horse"]);
        for request in requests(&step, "it is correct horse, or not") {
            let after = serde_json::to_string(&cleaned(&redactor, request.clone())).unwrap();
            assert!(!after.contains("correct horse"), "{after}");
            let meant = serde_json::to_string(&request).unwrap().contains("promote");
            assert_eq!(after.contains("promote"), meant, "{after}");
        }
    }

    #[tokio::test]
    async fn a_refusal_does_not_quote_a_secret_that_was_typed_for_the_name_of_a_step() {
        let dir = tempfile::TempDir::new().unwrap();
        let journal = Journal::create(dir.path(), header(), TickClock::starting_at(1)).unwrap();
        let events = journal.append(vec![declared()]).await.unwrap();
        let plan = journal.header().plan.clone();
        let mut state = RunState::new(&plan);
        events.iter().for_each(|event| state.apply(&event.kind).unwrap());
        let redactor = redactor(&["correct_horse"]);
        let mut away = Away { plan: &plan, journal: &journal, state: &mut state, redactor: &redactor };
        let step = StepId::new("correct_horse").unwrap();
        let unknown: Vec<_> = requests(&step, "because").into_iter().take(4).collect();
        let count = unknown.len();
        for request in unknown {
            away.take(Uuid::now_v7(), request).await.unwrap();
        }
        drop(journal);
        let (_, events) = journal::read(dir.path()).unwrap();
        let refused = events.iter().filter(|event| matches!(event.kind, EventKind::Refused { .. }));
        assert_eq!(refused.count(), count, "{events:?}");
        let stored = std::fs::read(dir.path().join(FILE)).unwrap();
        assert!(!String::from_utf8_lossy(&stored).contains("correct_horse"));
    }
}
