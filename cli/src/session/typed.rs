//! Words typed into the terminal of a run: answers and decisions without a second window.

use std::io::BufRead;
use std::sync::{Arc, Mutex};

use lifeboat_engine::model::event::{Answer, Decision, EventKind, Person, Question};
use lifeboat_engine::model::{Request, StepId};
use lifeboat_engine::run::driver::{Control, Reporter};
use lifeboat_engine::run::{check_answer, wanted};
use tokio::sync::mpsc;

/// What a person could say at the moment.
#[derive(Debug, Default)]
struct Open {
    questions: Vec<(StepId, Question)>,
    held: Vec<StepId>,
}

/// Keeps track of what is open. One half observes the run, the other reads the terminal.
#[derive(Clone, Debug, Default)]
pub(super) struct Typed {
    open: Arc<Mutex<Open>>,
}

impl Reporter for Typed {
    fn on_event(&mut self, _: i64, event: &EventKind) {
        let Ok(mut open) = self.open.lock() else { return };
        match event {
            EventKind::QuestionAsked { step, question } => {
                open.questions.push((step.clone(), question.clone()));
            }
            EventKind::QuestionAnswered { step, .. } | EventKind::AttemptFinished { step, .. } => {
                open.questions.retain(|(asking, _)| asking != step);
            }
            EventKind::StepHeld { step, .. } => open.held.push(step.clone()),
            EventKind::StepFinished { step, .. } | EventKind::AttemptStarted { step, .. } => {
                open.held.retain(|held| held != step);
            }
            _ => {}
        }
    }
}

impl Typed {
    /// Reads lines of the terminal in a thread that ends with the process.
    pub(super) fn listen(&self, by: Person, controls: mpsc::Sender<Control>) {
        let typed = self.clone();
        std::thread::spawn(move || {
            for line in std::io::stdin().lock().lines() {
                let Ok(line) = line else { return };
                match typed.understand(&line, &by) {
                    Ok(Some(request)) => {
                        if controls.blocking_send(Control::Request(request)).is_err() {
                            return;
                        }
                    }
                    Ok(None) => {}
                    Err(hint) => anstream::eprintln!("{hint}"),
                }
            }
        });
    }

    /// Turns a line into a request, or says what could be typed.
    fn understand(&self, line: &str, by: &Person) -> Result<Option<Request>, String> {
        let Ok(open) = self.open.lock() else { return Ok(None) };
        let line = line.trim();
        if line.is_empty() {
            return Ok(None);
        }
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        let rest = rest.trim();
        if let Some((step, question)) = open.questions.first()
            && question.typed.is_some()
            && word == "answer"
        {
            check_answer(question, rest).map_err(|problem| format!("{step}: {problem}"))?;
            let answer = Answer { choice: rest.to_owned(), by: by.clone(), comment: None, automatic: false };
            return Ok(Some(Request::Answer { step: step.clone(), question: question.id.clone(), answer }));
        }
        if let Some((step, question)) = open.questions.first()
            && question.choices.iter().any(|choice| choice == word)
        {
            let comment = (!rest.is_empty()).then(|| rest.to_owned());
            let answer = Answer { choice: word.to_owned(), by: by.clone(), comment, automatic: false };
            return Ok(Some(Request::Answer { step: step.clone(), question: question.id.clone(), answer }));
        }
        let decision = decision(&open, word, rest)?;
        Ok(Some(Request::Decide { by: by.clone(), decision }))
    }
}

fn decision(open: &Open, word: &str, rest: &str) -> Result<Decision, String> {
    let held = || open.held.first().cloned().ok_or_else(|| "no step is held".to_owned());
    let reason = || {
        if rest.is_empty() { Err(format!("say why: {word} REASON")) } else { Ok(rest.to_owned()) }
    };
    match word {
        "retry" => Ok(Decision::RetryStep { step: held()? }),
        "skip" => Ok(Decision::SkipStep { step: held()?, reason: reason()? }),
        "done" => Ok(Decision::MarkDone { step: held()?, reason: reason()? }),
        "note" => Ok(Decision::Note { text: reason()? }),
        "abort" => Ok(Decision::Abort { reason: reason()? }),
        "pause" => Ok(Decision::Pause),
        "continue" => Ok(Decision::Unpause),
        _ => Err(hint(open)),
    }
}

fn hint(open: &Open) -> String {
    if let Some((step, wanted)) = open.questions.first().and_then(|(step, it)| Some((step, wanted(it)?))) {
        return format!("{step} waits: type answer VALUE, where VALUE is {}", wanted.ty.in_words());
    }
    if let Some((step, question)) = open.questions.first() {
        return format!("{step} waits: type {} (and a comment, if you like)", question.choices.join(" or "));
    }
    if let Some(step) = open.held.first() {
        return format!("{step} is held: type retry, skip REASON, done REASON, or abort REASON");
    }
    "nothing waits for you; you can type note TEXT, pause, continue, or abort REASON".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn person() -> Person {
        Person { name: "sam".into(), uid: 1000 }
    }

    fn asking() -> Typed {
        let mut typed = Typed::default();
        let question = Question {
            id: "q".into(),
            role: None,
            message: "Promote?".into(),
            choices: vec!["approve".into(), "reject".into()],
            typed: None,
        };
        typed.on_event(0, &EventKind::QuestionAsked { step: StepId::new("sign_off").unwrap(), question });
        typed
    }

    #[test]
    fn an_answer_carries_its_comment() {
        let request = asking().understand("approve rows look right", &person()).unwrap().unwrap();
        let Request::Answer { answer, .. } = request else { panic!("not an answer: {request:?}") };
        assert_eq!((answer.choice.as_str(), answer.comment.as_deref()), ("approve", Some("rows look right")));
    }

    #[test]
    fn a_word_that_means_nothing_is_answered_with_what_does() {
        let hint = asking().understand("yes", &person()).unwrap_err();
        assert!(hint.contains("approve or reject"), "{hint}");
    }

    #[test]
    fn leaving_out_a_step_needs_a_reason() {
        let mut typed = Typed::default();
        let step = StepId::new("base").unwrap();
        let failure = lifeboat_engine::model::Failure {
            kind: lifeboat_engine::model::FailureKind::Permanent,
            code: "LB0000".into(),
            message: String::new(),
            help: None,
            causes: vec![],
        };
        typed.on_event(0, &EventKind::StepHeld { step, failure });
        assert!(typed.understand("skip", &person()).is_err());
        assert!(typed.understand("skip not needed", &person()).unwrap().is_some());
    }
}
