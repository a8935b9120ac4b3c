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
                open.questions.retain(|(asking, _)| asking != step);
                open.questions.push((step.clone(), question.clone()));
            }
            // Answered, or ended without an answer.
            EventKind::AttemptFinished { step, .. } => open.questions.retain(|(asking, _)| asking != step),
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
                    Err(hint) => crate::say::say!("{hint}"),
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
        let (word, rest) = first_word(line);
        if let Some(request) = answer(&open, word, rest, by)? {
            return Ok(Some(request));
        }
        let decision = decision(&open, word, rest)?;
        Ok(Some(Request::Decide { by: by.clone(), decision }))
    }
}

fn first_word(text: &str) -> (&str, &str) {
    let (word, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    (word, rest.trim())
}

/// Reads `CHOICE [STEP] [COMMENT]` and `answer [STEP] VALUE`; nothing if no question takes that word.
fn answer(open: &Open, word: &str, rest: &str, by: &Person) -> Result<Option<Request>, String> {
    let takes = |question: &Question| match wanted(question) {
        Some(_) => word == "answer",
        None => question.choices.iter().any(|choice| choice == word),
    };
    let asking: Vec<_> = open.questions.iter().filter(|(_, question)| takes(question)).collect();
    let (named, after) = first_word(rest);
    let (step, question, rest) = match asking.iter().find(|(step, _)| step.as_str() == named) {
        Some((step, question)) => (step, question, after),
        None => match asking.as_slice() {
            [] => return Ok(None),
            // The word is also one for held steps, and one of those is named.
            _ if open.held.iter().any(|held| held.as_str() == named) => return Ok(None),
            [(step, question)] if word != "done" || open.held.is_empty() => (step, question, rest),
            several => {
                let held = open.held.iter().filter(|_| word == "done");
                let steps = several.iter().map(|(step, _)| step).chain(held);
                return Err(name_one(word, steps));
            }
        },
    };
    let typed = wanted(question).is_some();
    let (choice, comment) = if typed { (rest, "") } else { (word, rest) };
    check_answer(question, choice).map_err(|problem| format!("{step}: {problem}"))?;
    let (points, comment) = if question.points.is_empty() { (Vec::new(), comment) } else { points(comment) };
    let comment = (!comment.is_empty()).then(|| comment.to_owned());
    let answer = Answer { comment, points, ..Answer::new(choice, by.clone()) };
    Ok(Some(Request::Answer { step: step.clone(), question: question.id.clone(), answer }))
}

/// Reads `1,3 COMMENT`: the points of a checklist, and what is left.
fn points(text: &str) -> (Vec<u32>, &str) {
    let (numbers, rest) = first_word(text);
    let points: Result<Vec<u32>, _> = numbers.split(',').map(str::parse).collect();
    points.map_or((Vec::new(), text), |points| (points, rest))
}

fn name_one<'s>(word: &str, steps: impl Iterator<Item = &'s StepId>) -> String {
    let steps: Vec<_> = steps.map(StepId::as_str).collect();
    format!("several steps wait: {}; name one: {word} {}", steps.join(", "), steps[0])
}

fn decision(open: &Open, word: &str, rest: &str) -> Result<Decision, String> {
    let say_why = |rest: &str| {
        if rest.is_empty() { Err(format!("say why: {word} REASON")) } else { Ok(rest.to_owned()) }
    };
    match word {
        "retry" | "skip" | "done" => {
            let (step, rest) = held(open, word, rest)?;
            match word {
                "retry" => Ok(Decision::RetryStep { step }),
                "skip" => Ok(Decision::SkipStep { step, reason: say_why(rest)? }),
                _ => Ok(Decision::MarkDone { step, reason: say_why(rest)? }),
            }
        }
        "note" => Ok(Decision::Note { text: say_why(rest)? }),
        "abort" => Ok(Decision::Abort { reason: say_why(rest)? }),
        "cancel" => Ok(Decision::Cancel { reason: say_why(rest)? }),
        "pause" => Ok(Decision::Pause),
        "continue" => Ok(Decision::Unpause),
        _ => Err(hint(open)),
    }
}

/// Finds the held step that is meant: the one named, or the only one.
fn held<'r>(open: &Open, word: &str, rest: &'r str) -> Result<(StepId, &'r str), String> {
    let (named, after) = first_word(rest);
    if let Some(step) = open.held.iter().find(|held| held.as_str() == named) {
        return Ok((step.clone(), after));
    }
    match open.held.as_slice() {
        [] => Err(format!("no step is held, so there is nothing to {word}; {}", hint(open))),
        [step] => Ok((step.clone(), rest)),
        several => Err(name_one(word, several.iter())),
    }
}

fn hint(open: &Open) -> String {
    let mut lines: Vec<String> = open
        .questions
        .iter()
        .map(|(step, question)| match wanted(question) {
            Some(wanted) => {
                format!("{step} waits: type answer VALUE, where VALUE is {}", wanted.ty.in_words())
            }
            None => {
                let point = if question.points.is_empty() { "" } else { " NUMBER" };
                let words = question.choices.join(" or ");
                format!("{step} waits: type {words}{point} (and a comment, if you like)")
            }
        })
        .collect();
    lines.extend(
        open.held
            .iter()
            .map(|step| format!("{step} is held: type retry, skip REASON, done REASON, or abort REASON")),
    );
    if lines.len() > 1 {
        lines.push(format!("several wait: put the name behind the word, as in: {}", example(open)));
    }
    if lines.is_empty() {
        lines.push(
            "nothing waits for you; you can type note TEXT, pause, continue, abort REASON or cancel REASON"
                .to_owned(),
        );
    }
    lines.join("\n")
}

fn example(open: &Open) -> String {
    match (open.questions.first(), open.held.first()) {
        (Some((step, question)), _) => {
            format!("{} {step}", question.choices.first().map_or("answer", String::as_str))
        }
        (None, Some(step)) => format!("retry {step}"),
        (None, None) => String::new(),
    }
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
            rule: None,
            points: vec![],
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

    fn held(step: &str) -> EventKind {
        let failure = lifeboat_engine::model::Failure {
            kind: lifeboat_engine::model::FailureKind::Permanent,
            code: "LB0000".into(),
            message: String::new(),
            help: None,
            causes: vec![],
        };
        EventKind::StepHeld { step: StepId::new(step).unwrap(), failure }
    }

    #[test]
    fn of_several_steps_one_is_named_behind_the_word() {
        let mut typed = asking();
        let Some(Ok((_, question))) =
            typed.open.lock().ok().map(|open| open.questions.first().cloned().ok_or(()))
        else {
            panic!("a question")
        };
        typed.on_event(0, &EventKind::QuestionAsked { step: StepId::new("second").unwrap(), question });
        let refusal = typed.understand("approve fine", &person()).unwrap_err();
        assert!(refusal.contains("sign_off, second") && refusal.contains("approve sign_off"), "{refusal}");
        let request = typed.understand("approve second fine", &person()).unwrap().unwrap();
        let Request::Answer { step, answer, .. } = request else { panic!("not an answer") };
        assert_eq!((step.as_str(), answer.comment.as_deref()), ("second", Some("fine")));
        typed.on_event(0, &held("base"));
        typed.on_event(0, &held("other"));
        assert!(typed.understand("skip broken", &person()).unwrap_err().contains("skip base"));
        let request = typed.understand("skip other broken", &person()).unwrap().unwrap();
        let Request::Decide { decision: Decision::SkipStep { step, reason }, .. } = request else {
            panic!("no skip")
        };
        assert_eq!((step.as_str(), reason.as_str()), ("other", "broken"));
        assert!(typed.understand("help", &person()).unwrap_err().contains("several wait"));
    }

    #[test]
    fn points_of_a_checklist_stand_behind_the_word() {
        let mut typed = Typed::default();
        let question = Question {
            id: "q".into(),
            role: None,
            message: "Look".into(),
            choices: vec!["done".into(), "failed".into()],
            typed: None,
            rule: None,
            points: vec!["one".into(), "two".into(), "three".into()],
        };
        typed.on_event(0, &EventKind::QuestionAsked { step: StepId::new("mail").unwrap(), question });
        let request = typed.understand("done 1,3 seen at 03:40", &person()).unwrap().unwrap();
        let Request::Answer { answer, .. } = request else { panic!("not an answer") };
        assert_eq!((answer.points, answer.comment.as_deref()), (vec![1, 3], Some("seen at 03:40")));
        let request = typed.understand("failed mail 2", &person()).unwrap().unwrap();
        let Request::Answer { answer, .. } = request else { panic!("not an answer") };
        assert_eq!((answer.points, answer.comment), (vec![2], None));
        assert!(typed.understand("help", &person()).unwrap_err().contains("done or failed NUMBER"));
    }

    #[test]
    fn leaving_out_a_step_needs_a_reason() {
        let mut typed = Typed::default();
        typed.on_event(0, &held("base"));
        assert!(typed.understand("skip", &person()).is_err());
        assert!(typed.understand("skip not needed", &person()).unwrap().is_some());
    }
}
