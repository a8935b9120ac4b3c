//! Inputs: from the command line, from a file, and asked for in a terminal.

use std::os::unix::process::ExitStatusExt;

use rustix::process::Signal;

use crate::project::Project;
use crate::terminal::Terminal;

const INPUTS: &str = "inputs:
  release: { type: string, pattern: 'v\\d+', description: The tag to deploy }
  depth: { type: enum, values: [full, quick], description: How deep to look }
  patience: { type: duration, description: How long to wait }
  count: { type: integer, default: 3, description: How many }";

const STEPS: &str = "- { id: one, effect: idempotent, run: 'echo {{ inputs.release }} {{ inputs.depth }} {{ inputs.patience }} {{ inputs.count }} >> done' }";

fn project() -> Project {
    let project = Project::new();
    project.runbook("job", INPUTS, STEPS);
    project
}

#[test]
fn a_terminal_asks_for_what_is_missing_and_again_for_what_cannot_be_used() {
    let project = project();
    let mut terminal = Terminal::start(&mut project.command(&["run", "job", "-i", "count=5"]));
    terminal.until_shows("input 1 of 3: release: The tag to deploy");
    terminal.type_line("main");
    terminal.until_shows("does not match");
    terminal.type_line("v7");
    terminal.until_shows("input 2 of 3: depth");
    terminal.until_shows("2) quick");
    terminal.type_line("3");
    terminal.until_shows("not one of full, quick");
    terminal.type_line("2");
    terminal.until_shows("such as 90s or 1h 30m");
    terminal.type_line("90");
    terminal.until_shows("no unit");
    terminal.type_line("90s");
    assert_eq!(terminal.end().code(), Some(0), "{}", terminal.shown());
    assert_eq!(project.lines("done"), ["v7 quick 1m 30s 5"]);
}

/// Says whether this process, and so its children, ignore SIGINT.
fn ignores_interrupts() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").expect("facts about this process");
    let line = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).expect("its ignored signals");
    u64::from_str_radix(line.trim(), 16).expect("a mask") & 0b10 != 0
}

#[test]
fn an_interrupted_question_leaves_no_run() {
    let project = project();
    let mut terminal = Terminal::start(&mut project.command(&["run", "job"]));
    terminal.until_shows("input 1 of 3");
    let pid = rustix::process::Pid::from_raw(terminal.pid().cast_signed()).expect("a process");
    // Where the tests themselves were started with SIGINT ignored, the program ignores it as well.
    let signal = if ignores_interrupts() { Signal::TERM } else { Signal::INT };
    rustix::process::kill_process(pid, signal).expect("a signal");
    // A shell tells this as 130.
    assert_eq!(terminal.end().signal(), Some(signal.as_raw()));
    assert_eq!(project.run(&["runs"]).expect(0).stdout, "");

    let mut terminal = Terminal::start(&mut project.command(&["run", "job"]));
    terminal.until_shows("input 1 of 3");
    terminal.type_line("v1\n\u{4}");
    assert_eq!(terminal.end().code(), Some(130), "{}", terminal.shown());
    assert_eq!(project.run(&["runs"]).expect(0).stdout, "");
}

#[test]
fn without_a_terminal_all_are_missed_at_once_with_the_command() {
    let ran = project().run(&["run", "job", "--env", "sandbox", "-i", "count=4"]).expect(2);
    let command = "lifeboat run job --env sandbox -i count=4 -i release=… -i depth=… -i patience=…";
    assert!(ran.stderr.contains(command), "{}", ran.stderr);
    assert_eq!(ran.stderr.matches("LB0142").count(), 3, "{}", ran.stderr);
}

#[test]
fn a_file_of_inputs_is_checked_with_places() {
    let project = project();
    project.write("good.yaml", "release: v3\ndepth: full\npatience: 5m\n");
    project.run(&["run", "job", "--input-file", "good.yaml", "-i", "depth=quick"]).expect(0);
    assert_eq!(project.lines("done"), ["v3 quick 5m 3"]);

    project.write("bad.yaml", "relaese: v3\ndepth: deep\npatience: 90\ncount: many\nrelease: main\n");
    let ran = project.run(&["run", "job", "--input-file", "bad.yaml"]).expect(2);
    for text in [
        "bad.yaml:1:1",
        "did you mean `release`?",
        "bad.yaml:2:8",
        "bad.yaml:3:11",
        "`90` has no unit",
        "bad.yaml:4:8",
        "bad.yaml:5:10",
        "does not match",
    ] {
        assert!(ran.stderr.contains(text), "no {text}:\n{}", ran.stderr);
    }
    project.write("twice.yaml", "release: v3\nrelease: v4\n");
    assert!(project.run(&["run", "job", "--input-file", "twice.yaml"]).expect(2).stderr.contains("LB0103"));
    project.write("list.yaml", "- a\n");
    project.run(&["run", "job", "--input-file", "list.yaml"]).expect(2);
    project.run(&["run", "job", "--input-file", "absent.yaml"]).expect(2);
}
