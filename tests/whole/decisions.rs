//! Every word that a person can say, by each of the four ways to say it: the record, the end and the report are the same.

use std::process::Stdio;

use lifeboat_engine::journal;
use lifeboat_engine::model::event::{Decision, EventKind};
use serde_json::{Value, json};

use crate::project::{Project, Running, signal, until};
use crate::terminal::Terminal;

/// How a word reaches the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Typed in the terminal of the run.
    Typed,
    /// A command of another process while one drives the run.
    Alive,
    /// A command while no process drives the run, which is resumed afterwards.
    Away,
    /// Left in the inbox of a process that is killed before it takes it, and so is the command.
    Left,
}

/// Something to say, as it is typed and as a command.
type Word = (&'static str, &'static [&'static str]);

struct Case {
    project: Project,
    /// What the run shows when it waits.
    shows: &'static str,
    words: &'static [Word],
    exit: i32,
    /// What the journal holds from then on, without what only tells of processes.
    tale: &'static [&'static str],
}

const HELD: &str = "- { id: one, effect: idempotent, recovered: true, run: 'test -e mended' }
- { id: after, effect: idempotent, run: 'echo after >> done' }";

fn asking(first: &str, words: &'static [Word], exit: i32, tale: &'static [&'static str]) -> Case {
    let project = Project::with_steps(&format!(
        "- {{ id: ask, {first} }}\n- {{ id: after, effect: idempotent, run: 'echo after >> done' }}"
    ));
    Case { project, shows: "Go?", words, exit, tale }
}

fn held(words: &'static [Word], exit: i32, tale: &'static [&'static str]) -> Case {
    let project = Project::new();
    project.runbook("job", "objective: { rto: 4h }\n", HELD);
    Case { project, shows: "held", words, exit, tale }
}

const APPROVAL: &str = "uses: approval, with: { message: 'Go?' }";

fn approve() -> Case {
    let words: &[Word] = &[("approve rows look right", &["approve", "latest", "-m", "rows look right"])];
    let tale = &[
        "answer ask approve: rows look right",
        "ask succeeded",
        "after succeeded",
        "ends Succeeded",
        "Succeeded",
    ];
    asking(APPROVAL, words, 0, tale)
}

fn reject() -> Case {
    let words: &[Word] = &[("reject", &["reject", "latest", "ask"])];
    let tale = &["answer ask reject", "ask failed", "ends Failed", "after not_run", "Failed"];
    asking(APPROVAL, words, 4, tale)
}

fn value() -> Case {
    let words: &[Word] = &[("answer 41", &["answer", "latest", "ask", "41"])];
    let tale = &["answer ask 41", "ask succeeded", "after succeeded", "ends Succeeded", "Succeeded"];
    asking("uses: ask, with: { message: 'Go?', type: integer }", words, 0, tale)
}

fn by_hand() -> Case {
    let words: &[Word] =
        &[("done in the other console", &["answer", "latest", "ask", "done", "-m", "in the other console"])];
    let tale = &[
        "answer ask done: in the other console",
        "ask succeeded",
        "after succeeded",
        "ends Succeeded",
        "Succeeded",
    ];
    asking("manual: 'Go?'", words, 0, tale)
}

fn note() -> Case {
    let words: &[Word] = &[
        ("note the pager is down", &["note", "latest", "the pager is down"]),
        ("approve", &["approve", "latest", "ask"]),
    ];
    let tale = &[
        "note the pager is down",
        "answer ask approve",
        "ask succeeded",
        "after succeeded",
        "ends Succeeded",
        "Succeeded",
    ];
    asking(APPROVAL, words, 0, tale)
}

fn retry() -> Case {
    let words: &[Word] = &[("retry", &["retry", "latest", "one"])];
    // The recovery is measured, so that it ends with the objective met.
    let case =
        held(words, 0, &["retry one", "one succeeded", "after succeeded", "ends Succeeded", "Succeeded"]);
    case.project.write("later", "");
    case
}

fn skip() -> Case {
    let words: &[Word] = &[("skip not needed", &["skip", "latest", "one", "--reason", "not needed"])];
    let tale = &["skip one: not needed", "one skipped", "after succeeded", "ends Succeeded", "Succeeded"];
    held(words, 5, tale)
}

fn mark_done() -> Case {
    let words: &[Word] =
        &[("done mended by hand", &["skip", "latest", "one", "--done", "--reason", "mended by hand"])];
    let tale =
        &["done one: mended by hand", "one marked_done", "after succeeded", "ends Succeeded", "Succeeded"];
    held(words, 0, tale)
}

fn abort() -> Case {
    let words: &[Word] = &[("abort wrong target", &["abort", "latest", "--reason", "wrong target"])];
    held(words, 4, &["abort: wrong target", "ends Aborted", "after not_run", "one failed", "Aborted"])
}

fn cancel() -> Case {
    let words: &[Word] = &[("cancel wrong target", &["cancel", "latest", "--reason", "wrong target"])];
    asking(
        APPROVAL,
        words,
        4,
        &["cancel: wrong target", "ends Aborted", "after not_run", "ask failed", "Aborted"],
    )
}

const CASES: &[(&str, fn() -> Case)] = &[
    ("approve", approve),
    ("reject", reject),
    ("answer", value),
    ("manual", by_hand),
    ("note", note),
    ("retry", retry),
    ("skip", skip),
    ("done", mark_done),
    ("abort", abort),
    ("cancel", cancel),
];

#[test]
fn words_typed_in_the_terminal_of_the_run() {
    all(Way::Typed);
}

#[test]
fn words_of_another_process_while_one_drives_the_run() {
    all(Way::Alive);
}

#[test]
fn words_said_while_no_process_drives_the_run() {
    all(Way::Away);
}

#[test]
fn words_left_in_the_inbox_of_a_process_that_is_killed() {
    all(Way::Left);
}

fn all(way: Way) {
    for (name, case) in CASES {
        let case = case();
        let exit = case.say(way);
        let told = format!("{name} {way:?}");
        assert_eq!(case.tale(), case.tale, "{told}");
        assert_eq!(exit, case.exit, "{told}");
        case.report_is_whole(&told);
    }
}

impl Case {
    /// Runs to where the run waits, says the words, and returns the exit code of whoever ends the run.
    fn say(&self, way: Way) -> i32 {
        match way {
            Way::Typed => {
                let mut terminal = self.waiting();
                self.mend();
                self.words.iter().for_each(|(typed, _)| {
                    terminal.type_line(typed);
                });
                terminal.end().code().expect("it ends by itself")
            }
            Way::Alive => {
                let mut terminal = self.waiting();
                self.mend();
                for (_, command) in self.words {
                    let ran = self.project.run(command).expect(0);
                    assert!(ran.stderr.contains("recorded in the run"), "{}", ran.stderr);
                    assert!(!ran.stderr.contains("no process drives it"), "{}", ran.stderr);
                }
                terminal.end().code().expect("it ends by itself")
            }
            Way::Away => {
                self.project.run(&["run", "job", "--no-wait"]).expect(6);
                self.mend();
                for (_, command) in self.words {
                    let ran = self.project.run(command).expect(0);
                    assert!(ran.stderr.contains("recorded in the run"), "{}", ran.stderr);
                    assert!(ran.stderr.contains("to carry it out: lifeboat resume"), "{}", ran.stderr);
                }
                self.project.run(&["resume"]).exit
            }
            Way::Left => {
                let terminal = self.waiting();
                signal(terminal.pid(), "STOP");
                for (number, (_, command)) in self.words.iter().enumerate() {
                    let mut words = self.project.command(command);
                    let command = Running::of(words.stdout(Stdio::null()).stderr(Stdio::null()));
                    until("it is in the inbox", || self.inbox() == number + 1);
                    drop(command);
                }
                self.mend();
                // Killed before it could look.
                drop(terminal);
                assert_eq!(self.inbox(), self.words.len());
                let exit = self.project.run(&["resume"]).exit;
                assert_eq!(self.inbox(), 0);
                exit
            }
        }
    }

    fn waiting(&self) -> Terminal {
        let terminal = Terminal::start(&mut self.project.command(&["run", "job"]));
        terminal.until_shows(self.shows);
        terminal
    }

    /// Lets the step that was held succeed, if that is what the case is about.
    fn mend(&self) {
        if self.project.file("later").exists() {
            self.project.write("mended", "");
        }
    }

    fn inbox(&self) -> usize {
        let files = std::fs::read_dir(self.project.run_dir().join("inbox")).expect("an inbox").flatten();
        files.filter(|file| file.path().extension().is_some_and(|extension| extension == "json")).count()
    }

    fn tale(&self) -> Vec<String> {
        let (_, events) = journal::read(&self.project.run_dir()).expect("a journal");
        let waits =
            |kind: &EventKind| matches!(kind, EventKind::QuestionAsked { .. } | EventKind::StepHeld { .. });
        let from = events.iter().position(|event| waits(&event.kind)).expect("it has waited");
        let mut tale: Vec<_> = events[from..].iter().filter_map(|event| in_words(&event.kind)).collect();
        // Steps that end because the run ends do so when their processes are gone, in whatever order.
        let ends = tale.iter().position(|line| line.starts_with("ends ")).map_or(0, |at| at + 1);
        let last = tale.len() - 1;
        tale[ends..last].sort();
        tale
    }

    /// What was said stands in the report once, with the name of who said it.
    fn report_is_whole(&self, told: &str) {
        let report = self.project.report();
        let list = |key: &str| report[key].as_array().cloned().unwrap_or_default();
        let answers =
            list("questions").into_iter().filter(|question| question["answer"] != Value::Null).count();
        let notes = list("decisions").len();
        assert_eq!(answers + notes, self.words.len(), "{told}: {report:#}");
        assert_eq!(list("notes"), Vec::<Value>::new(), "{told}");
    }
}

fn in_words(kind: &EventKind) -> Option<String> {
    Some(match kind {
        EventKind::QuestionAnswered { step, answer, .. } => {
            let comment = answer.comment.as_ref().map(|text| format!(": {text}")).unwrap_or_default();
            format!("answer {step} {}{comment}", answer.choice)
        }
        EventKind::Decided { decision, .. } => match decision {
            Decision::RetryStep { step } => format!("retry {step}"),
            Decision::SkipStep { step, reason } => format!("skip {step}: {reason}"),
            Decision::MarkDone { step, reason } => format!("done {step}: {reason}"),
            Decision::Abort { reason } => format!("abort: {reason}"),
            Decision::Cancel { reason } => format!("cancel: {reason}"),
            Decision::Pause => "pause".to_owned(),
            Decision::Unpause => "continue".to_owned(),
            Decision::Note { text } => format!("note {text}"),
        },
        EventKind::StepFinished { step, outcome } => {
            format!("{step} {}", json!(outcome)["outcome"].as_str().unwrap_or_default())
        }
        EventKind::EndingBegan { outcome, .. } => format!("ends {outcome:?}"),
        EventKind::RunFinished { outcome } => format!("{outcome:?}"),
        EventKind::Refused { reason, .. } => format!("refused {reason}"),
        _ => return None,
    })
}

#[test]
fn a_pause_holds_back_what_would_start_and_lasts_over_a_restart() {
    for way in [Way::Typed, Way::Alive, Way::Away] {
        let case = asking(APPROVAL, &[], 0, &[]);
        if way == Way::Away {
            case.project.run(&["run", "job", "--no-wait"]).expect(6);
            case.project.run(&["pause", "latest"]).expect(0);
            case.project.run(&["approve"]).expect(0);
            // Whoever resumes wants it to go on.
            case.project.run(&["resume"]).expect(0);
        } else {
            let mut terminal = case.waiting();
            let mut say = |typed: &str, command: &[&str]| match way {
                Way::Typed => terminal.type_line(typed),
                _ => drop(case.project.run(command).expect(0)),
            };
            say("pause", &["pause", "latest"]);
            say("approve", &["approve", "latest"]);
            until("it is paused", || case.project.run(&["status"]).stdout.contains("PAUSED"));
            assert!(!case.project.file("done").exists());
            say("continue", &["resume"]);
            assert_eq!(terminal.end().code(), Some(0), "{}", terminal.shown());
        }
        assert_eq!(case.project.lines("done"), ["after"], "{way:?}");
    }
}

#[test]
fn a_resumed_run_asks_again_in_its_terminal() {
    let case = approve();
    case.project.run(&["run", "job", "--no-wait"]).expect(6);
    let mut terminal = Terminal::start(&mut case.project.command(&["resume"]));
    terminal.until_shows("Go?");
    terminal.type_line("approve");
    assert_eq!(terminal.end().code(), Some(0), "{}", terminal.shown());
}

#[test]
fn status_says_what_was_decided_while_nothing_drives_the_run_and_how_to_carry_it_out() {
    for (case, words) in [(approve(), "approve"), (skip(), "skip"), (abort(), "abort"), (retry(), "again")] {
        case.project.run(&["run", "job", "--no-wait"]).expect(6);
        case.project.run(case.words[0].1).expect(0);
        let status = case.project.run(&["status"]).expect(0).stdout;
        let headline = status.lines().next().unwrap_or_default();
        assert!(headline.contains("DECIDED") && headline.contains(words), "{status}");
        assert!(
            status.trim_end().lines().last().is_some_and(|line| line.contains("lifeboat resume")),
            "{status}"
        );
        assert!(!status.contains("Needs a person"), "{status}");
    }
}
