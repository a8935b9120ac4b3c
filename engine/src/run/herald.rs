//! Tells people who do not look: observes a run after its events are durable, and can never change it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::dispatcher::Situation;
use super::link::Message;
use super::state::{RunState, StepPhase, StepState};
use crate::clock::Clock;
use crate::journal::Head;
use crate::model::event::{Answer, AttemptResult, Decision, EventKind, Question};
use crate::model::ids::{RunId, StepId};
use crate::model::outcome::{Mode, RunOutcome};
use crate::notice::{Messenger, Notice, Occasion};
use crate::plan::Plan;
use crate::redact::Redactor;
use crate::report::{next_point, typed};
use crate::secret::Secrets;

/// How long a person may be waited for before the next reminder.
const REMINDER_MS: i64 = 10 * 60 * 1000;

const LOOK_INTERVAL_MS: i64 = 1000;

/// How long the process stays for deliveries when it would leave otherwise.
const FAREWELL: Duration = Duration::from_secs(15);

/// Sends the notices of one run.
pub(super) struct Herald {
    pub(super) run: RunId,
    pub(super) plan: Arc<Plan>,
    pub(super) messenger: Option<Arc<dyn Messenger>>,
    pub(super) secrets: Arc<Secrets>,
    pub(super) redactor: Redactor,
    pub(super) clock: Arc<dyn Clock>,
    /// Where the outcome of a delivery goes.
    pub(super) sender: mpsc::Sender<Message>,
    pub(super) watch: Watch,
    pub(super) posts: JoinSet<()>,
    /// The end of the last post to each channel: what happened later must not be read first.
    pub(super) queues: HashMap<String, oneshot::Receiver<()>>,
}

/// What the herald remembers of what it has seen.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// When the next reminder is due; absent while nobody is waited for.
    remind_at_ms: Option<i64>,
    /// When to look next.
    look_at_ms: i64,
    told_of_loss: bool,
}

/// Something that has happened and that people must hear of.
#[derive(Debug, PartialEq)]
struct News {
    occasion: Occasion,
    step: Option<StepId>,
    /// Who can help, if it is asked for.
    role: Option<String>,
    what: String,
    /// What to type, after `lifeboat `; `RUN` stands for the run.
    command: String,
}

impl Herald {
    /// Takes note of events that are durable, in the state after all of them.
    pub(super) fn observe<'e>(
        &mut self,
        events: impl Iterator<Item = &'e EventKind>,
        state: &RunState,
        head: &Head,
    ) {
        for event in events {
            if let Some(news) = self.watch.news(event, state) {
                self.tell(&news, head);
            }
        }
    }

    /// Reminds of what has been waited for long enough.
    pub(super) fn look(&mut self, state: &RunState, head: &Head) {
        // It goes through all steps, so it is not done for nothing, nor many times a second.
        let now = self.clock.now_ms();
        if !self.plan.notices.contains_key(&Occasion::Reminder) || now < self.watch.look_at_ms {
            return;
        }
        self.watch.look_at_ms = now + LOOK_INTERVAL_MS;
        if self.watch.is_due(now, state, &self.plan)
            && let Some(news) = reminder(state, &self.plan)
        {
            self.tell(&news, head);
        }
    }

    /// Tells that this process leaves, if people have to know, and stays until everything is delivered or given up.
    pub(super) async fn leave(&mut self, situation: Situation, head: &Head) {
        if situation == Situation::Stopped {
            let news = News {
                occasion: Occasion::Interrupted,
                step: None,
                role: None,
                what: "a signal stopped the process; the run is open and nothing of it goes on".to_owned(),
                command: "resume RUN".to_owned(),
            };
            self.tell(&news, head);
        }
        let all = async { while self.posts.join_next().await.is_some() {} };
        if tokio::time::timeout(FAREWELL, all).await.is_err() {
            tracing::warn!("some notices were not delivered before the process left");
        }
    }

    fn tell(&mut self, news: &News, head: &Head) {
        let (Some(messenger), Some(channels)) = (&self.messenger, self.plan.notices.get(&news.occasion))
        else {
            return;
        };
        let notice = self.notice(news, head);
        for name in channels {
            let Some(channel) = self.plan.resources.get(name).cloned() else { continue };
            let (messenger, secrets, notice) =
                (Arc::clone(messenger), Arc::clone(&self.secrets), notice.clone());
            let (sender, channel_name, occasion) = (self.sender.clone(), name.clone(), news.occasion);
            let (posted, after) = oneshot::channel();
            let before = self.queues.insert(name.clone(), after);
            self.posts.spawn(async move {
                if let Some(before) = before {
                    // It also ends when the task before this one was given up.
                    drop(before.await);
                }
                let result = messenger.post(&channel, &secrets, &notice).await;
                drop(posted);
                let problem = result.err().map(|error| error.message);
                // Without a listener the engine is ending, and its last words are in the log of the process.
                let told = Message::Notified { occasion, channel: channel_name, problem };
                drop(sender.send(told).await);
            });
        }
    }

    fn notice(&self, news: &News, head: &Head) -> Notice {
        let plan = &self.plan;
        let short = self.run.short();
        let command = format!("lifeboat {}", news.command.replace("RUN", &short));
        let mark = if plan.mode == Mode::Drill { "[drill] " } else { "" };
        let at = news.step.as_ref().map_or_else(String::new, |step| format!(" at `{step}`"));
        let mut message = format!(
            "{mark}{}@{} ({short}): {}{at}\n{}",
            plan.runbook,
            plan.environment,
            title(news.occasion),
            news.what
        );
        let people = news.role.as_ref().and_then(|role| plan.contacts.get(role));
        message.extend(people.map(|people| format!("\nask: {}", people.join(", "))));
        message.push_str(&format!("\nnext: {command}"));
        if ended(news.occasion) {
            message.push_str(&format!("\njournal: {} events, head {}", head.seq, head.hash()));
        }
        Notice {
            occasion: news.occasion,
            run: self.run,
            runbook: plan.runbook.clone(),
            environment: plan.environment.clone(),
            mode: plan.mode,
            step: news.step.clone(),
            message: self.redactor.text(&message).into_owned(),
            command,
            seq: head.seq,
            hash: head.hash(),
        }
    }
}

fn title(occasion: Occasion) -> &'static str {
    match occasion {
        Occasion::Held => "HELD",
        Occasion::Waiting => "WAITING for a person",
        Occasion::Reminder => "STILL WAITING for a person",
        Occasion::Paused => "paused",
        Occasion::Interrupted => "INTERRUPTED",
        Occasion::Succeeded => "succeeded",
        Occasion::Failed => "FAILED",
        Occasion::Aborted => "aborted",
    }
}

fn ended(occasion: Occasion) -> bool {
    matches!(occasion, Occasion::Succeeded | Occasion::Failed | Occasion::Aborted)
}

impl Watch {
    fn news(&mut self, event: &EventKind, state: &RunState) -> Option<News> {
        let news = |occasion, step: Option<&StepId>, what: String, command: String| {
            Some(News { occasion, step: step.cloned(), role: None, what, command })
        };
        match event {
            EventKind::StepHeld { step, failure } => {
                let what = format!("{} ({})", failure.message, failure.code);
                news(Occasion::Held, Some(step), what, format!("retry RUN {}", typed(step)))
            }
            EventKind::QuestionAsked { step, question } => {
                // In a drill that answers itself the answer is durable together with the question.
                state.of(state.unit(step)?).asks().then_some(())?;
                let what = format!("{}: {}", question.role.as_deref().unwrap_or("anyone"), question.message);
                let found = news(Occasion::Waiting, Some(step), what, answer_command(step, question, &[]));
                found.map(|news| News { role: question.role.clone(), ..news })
            }
            EventKind::Decided { by, decision: Decision::Pause } => {
                news(Occasion::Paused, None, format!("by {}", by.name), "resume RUN".to_owned())
            }
            EventKind::AttemptFinished { step, result: AttemptResult::Lost, .. } if !self.told_of_loss => {
                self.told_of_loss = true;
                let what = format!(
                    "the process that drove it was gone while `{step}` ran; another one has taken the run over"
                );
                news(Occasion::Interrupted, None, what, "status RUN".to_owned())
            }
            EventKind::RunFinished { outcome } => {
                let occasion = match outcome {
                    RunOutcome::Succeeded => Occasion::Succeeded,
                    RunOutcome::Failed => Occasion::Failed,
                    RunOutcome::Aborted => Occasion::Aborted,
                };
                news(occasion, None, state.why_it_ends.clone(), "report RUN".to_owned())
            }
            _ => None,
        }
    }

    /// Says whether a reminder is due, and sets the next one.
    fn is_due(&mut self, now_ms: i64, state: &RunState, plan: &Plan) -> bool {
        match self.remind_at_ms {
            _ if waiting(state, plan).is_empty() => {
                self.remind_at_ms = None;
                false
            }
            Some(due) if now_ms < due => false,
            before => {
                self.remind_at_ms = Some(now_ms + REMINDER_MS);
                before.is_some()
            }
        }
    }
}

/// Returns all that waits for people now: steps, and elements of repeated ones.
fn waiting<'s>(state: &'s RunState, plan: &Plan) -> Vec<(StepId, &'s StepState)> {
    let mut found = Vec::new();
    for (step, now) in plan.steps.iter().zip(&state.steps) {
        let elements = now.elements.iter().flat_map(|elements| elements.states.iter().enumerate());
        let own = std::iter::once((step.id.clone(), now));
        let all = own.chain(elements.map(|(at, element)| (step.id.of_element(at), element)));
        found.extend(all.filter(|(_, state)| state.asks() || state.phase == StepPhase::Held));
    }
    found
}

/// Tells of all that waits for people now.
fn reminder(state: &RunState, plan: &Plan) -> Option<News> {
    let open = waiting(state, plan);
    let (step, first) = open.first()?;
    let lines: Vec<_> = open.iter().map(|(step, now)| waiting_line(step, now)).collect();
    let unanswered = first.questions.values().find(|(_, answer)| answer.is_none());
    let command = match unanswered {
        Some((question, _)) if first.asks() => answer_command(step, question, &first.given(&question.id)),
        _ => format!("retry RUN {}", typed(step)),
    };
    let role = unanswered.and_then(|(question, _)| question.role.clone());
    Some(News {
        occasion: Occasion::Reminder,
        step: Some(step.clone()),
        role,
        what: lines.join("\n"),
        command,
    })
}

fn waiting_line(step: &StepId, now: &StepState) -> String {
    let question = now.questions.values().find(|(_, answer)| answer.is_none()).filter(|_| now.asks());
    match (question, &now.last_failure) {
        (Some((question, _)), _) => format!("`{step}` asks: {}", question.message),
        (None, Some(failure)) => format!("`{step}` is held: {}", failure.message),
        (None, None) => format!("`{step}` is held"),
    }
}

fn answer_command(step: &StepId, question: &Question, given: &[&Answer]) -> String {
    match question.choices.first() {
        Some(choice) if choice == "approve" => format!("approve RUN {}", typed(step)),
        Some(choice) => format!("answer RUN {} {choice}{}", typed(step), next_point(question, given)),
        None => format!("answer RUN {} VALUE", typed(step)),
    }
}
