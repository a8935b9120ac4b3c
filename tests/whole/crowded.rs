//! Runs of many steps: nothing that a step took is kept, and nobody who only looks holds a run up.

use std::fmt::Write;
use std::process::Stdio;

use lifeboat_engine::model::event::EventKind;

use crate::project::{Project, Ran, until};

#[test]
fn the_files_of_attempts_that_have_ended_are_closed() {
    let elements = (0..80).map(|at| at.to_string()).collect::<Vec<_>>().join(", ");
    let project = Project::with_steps(&format!(
        "- id: each\n  for_each: [{elements}]\n  max_parallel: 4\n  effect: idempotent\n  \
         run: 'echo out; echo err >&2'"
    ));
    let mut command = std::process::Command::new("bash");
    let program = env!("CARGO_BIN_EXE_lifeboat");
    // Fewer files than attempts, each of which prints to two.
    command.args(["-c", "ulimit -n 64; exec \"$0\" run job", program]).current_dir(project.path());
    let ran = Ran::of(command.env("NO_COLOR", "1").stdin(Stdio::null())).expect(0);
    assert!(!ran.stderr.contains("output was not stored"), "{}", ran.stderr);
    let logs = project.run(&["logs", "latest", "--step", "each[79]"]).expect(0);
    assert!(logs.stdout.contains("out"), "{}", logs.all());
}

#[test]
fn a_terminal_that_takes_nothing_more_does_not_hold_the_run_up() {
    let mut steps = String::new();
    for at in 0..500 {
        // Far more text than a pipe holds that nobody reads.
        let title = "a title that says a lot ".repeat(12);
        writeln!(steps, "- {{ id: s{at}, title: {title}, uses: assert, with: {{ that: [1 < 2] }} }}")
            .unwrap();
    }
    let project = Project::with_steps(&steps);
    let mut command = project.command(&["run", "job"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    let runs = project.file(".lifeboat/state/runs");
    until("it has begun", || std::fs::read_dir(&runs).is_ok_and(|mut runs| runs.next().is_some()));
    until("the run has ended although nobody reads what it says", || {
        lifeboat_engine::journal::read(&project.run_dir()).is_ok_and(|(_, events)| {
            events.iter().any(|event| matches!(event.kind, EventKind::RunFinished { .. }))
        })
    });
    let output = child.wait_with_output().expect("a child of ours");
    // More than a pipe holds, or nearly: what nobody has taken for a while after the end is left out.
    assert!(
        output.status.success() && output.stderr.len() > 50_000,
        "{}: {}",
        output.status,
        output.stderr.len()
    );
    assert_eq!(project.report()["outcome"]["state"], "succeeded");
}
