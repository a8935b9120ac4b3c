//! `ask` and `note`: values that people give, and texts that stay in the record.

use crate::project::{Project, until};
use crate::terminal::Terminal;

const AMOUNT: &str = "
- { id: amount, uses: ask, with: { message: How many?, type: integer, default: 7 } }
- { id: after, effect: idempotent, run: 'echo {{ steps.amount.value + 1 }} >> done' }";

#[test]
fn a_value_is_checked_when_it_is_given_and_keeps_its_type() {
    let project = Project::with_steps(AMOUNT);
    let running = project.start(&["run", "job"]);
    until("it asks", || project.run(&["status"]).stdout.contains("How many?"));
    let ran = project.run(&["answer", "latest", "amount", "a dozen"]).expect(2);
    assert!(
        ran.stderr.contains("not an integer") && ran.stderr.contains("VALUE is an integer"),
        "{}",
        ran.stderr
    );
    let ran = project.run(&["approve"]).expect(2);
    assert!(ran.stderr.contains("asks for a value"), "{}", ran.stderr);
    project.run(&["answer", "latest", "amount", "41", "--as", "sam"]).expect(0);
    let ran = running.end().expect(0);
    assert!(ran.stderr.contains("lifeboat answer "), "{}", ran.stderr);
    assert_eq!(project.lines("done"), ["42"]);
    assert!(project.report().to_string().contains("sam"));
}

#[test]
fn an_answer_given_while_nobody_drives_counts_on_resume() {
    let project = Project::with_steps(AMOUNT);
    project.run(&["run", "job", "--no-wait"]).expect(6);
    project.run(&["answer", "latest", "amount", "-1"]).expect(0);
    project.run(&["resume"]).expect(0);
    assert_eq!(project.lines("done"), ["0"]);
}

#[test]
fn the_terminal_of_the_run_takes_the_value() {
    let project = Project::with_steps(AMOUNT);
    let mut terminal = Terminal::start(&mut project.command(&["run", "job"]));
    terminal.until_shows("answer VALUE");
    terminal.type_line("answer many");
    terminal.until_shows("not an integer");
    terminal.type_line("answer 9");
    assert_eq!(terminal.end().code(), Some(0), "{}", terminal.shown());
    assert_eq!(project.lines("done"), ["10"]);
}

#[test]
fn a_drill_that_asks_nobody_takes_the_default() {
    let project = Project::with_steps(AMOUNT);
    project.write("lifeboat.yaml", "project: test\ndrill: { approvals: auto }\n");
    project.run(&["drill", "job"]).expect(0);
    assert_eq!(project.lines("done"), ["8"]);
}

#[test]
fn a_retry_asks_anew() {
    let project = Project::new();
    project.runbook(
        "job",
        "objective: { rto: 1h }",
        "- { id: amount, uses: ask, with: { message: How many?, type: integer }, expect: [output.value > 10], recovered: true }",
    );
    project.run(&["run", "job", "--no-wait"]).expect(6);
    project.run(&["answer", "latest", "amount", "3"]).expect(0);
    project.run(&["resume", "--no-wait"]).expect(6);
    project.run(&["retry", "latest", "amount"]).expect(0);
    project.run(&["resume", "--no-wait"]).expect(6);
    project.run(&["answer", "latest", "amount", "30"]).expect(0);
    project.run(&["resume"]).expect(0);
}

#[test]
fn a_note_stands_in_the_report() {
    let project =
        Project::with_steps("- { id: say, uses: note, with: { text: 'The *index* was rebuilt.' } }");
    let ran = project.run(&["run", "job"]).expect(0);
    assert!(ran.stderr.contains("note: The *index* was rebuilt."), "{}", ran.stderr);
    let report = project.report();
    assert_eq!(report["notes"][0]["text"], "The *index* was rebuilt.");
    assert_eq!(report["notes"][0]["step"], "say");
    assert!(project.run(&["report"]).stdout.contains("The *index* was rebuilt."));
}
