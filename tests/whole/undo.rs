//! Runs that are ended and take back what they have done.

use crate::project::{Project, until};

/// Moves a directory aside, puts another one in its place, and then waits.
const STEPS: &str = "
- id: move
  effect: idempotent
  run: |
    [ -e data.old ] || mv data data.old
    mkdir -p data
    echo new > data/file
    echo move >> done
  undo: |
    echo undo move >> done
    if [ -e data.old ]; then rm -rf data; mv data.old data; fi
- id: note
  effect: idempotent
  run: echo note >> done
  undo:
    title: Take the note back
    env: { SAID: '{{ steps.note.stdout | default(\"nothing\") }}' }
    run: |
      echo undo note >> done
      touch undoing
      [ -e go ] || sleep 300
- id: long
  effect: idempotent
  run: touch here; sleep 300
- { id: never, effect: idempotent, run: echo never >> done, undo: echo undo never >> done }";

fn project() -> Project {
    let project = Project::with_steps(STEPS);
    let always = "always:\n  - { id: last, effect: idempotent, run: 'echo last >> done' }\n";
    let runbook = std::fs::read_to_string(project.file("runbooks/job.yaml")).expect("a runbook");
    project.write("runbooks/job.yaml", &format!("{runbook}\n{always}"));
    project.write("data/file", "earlier");
    project
}

#[test]
fn an_abort_in_the_middle_takes_back_what_was_done_and_says_so() {
    let project = project();
    project.write("go", "");
    let plan = project.run(&["plan", "job"]).expect(0);
    assert!(
        plan.stdout.contains("undo: echo undo move") && plan.stdout.contains("mv data.old data"),
        "{}",
        plan.stdout
    );
    let running = project.start(&["run", "job"]);
    until("the long step runs", || project.file("here").exists());
    assert_eq!(project.lines("data/file"), ["new"]);
    let aborted = project.run(&["abort", "latest", "--reason", "wrong data"]).expect(0);
    let told: Vec<_> = aborted.stderr.lines().take(3).collect();
    assert!(told[0].starts_with("what is undone, newest first"), "{}", aborted.stderr);
    assert_eq!(told[1..], ["  note: Take the note back", "  move: echo undo move >> done"]);

    let ran = running.end().expect(4);
    assert_eq!(project.lines("done"), ["move", "note", "undo note", "undo move", "last"]);
    assert_eq!(project.lines("data/file"), ["earlier"]);
    assert!(!project.file("data.old").exists());
    assert!(ran.stderr.contains("what has begun is undone, newest first"), "{}", ran.stderr);
    let report = project.report();
    let undone: Vec<_> = report["undo"]["steps"].as_array().expect("steps").iter().collect();
    let told: Vec<_> =
        undone.iter().map(|it| (it["of"].as_str(), it["step"]["outcome"]["outcome"].as_str())).collect();
    assert_eq!(told, [(Some("note"), Some("succeeded")), (Some("move"), Some("succeeded"))]);
    for form in ["text", "markdown", "html"] {
        let text = project.run(&["report", "--format", form]).expect(0).stdout;
        assert!(text.contains("Undo") && text.contains("Take the note back"), "{form}:\n{text}");
    }
    let logs = project.run(&["logs", "--step", "note/undo"]);
    assert_ne!(logs.exit, 2, "the output of an undo can be asked for: {}", logs.stderr);
}

#[test]
fn kill_9_while_something_is_undone_and_resume_only_goes_on_with_that() {
    let project = project();
    let running = project.start(&["run", "job"]);
    until("the long step runs", || project.file("here").exists());
    project.run(&["abort", "latest", "--reason", "wrong data"]).expect(0);
    until("something is undone", || project.file("undoing").exists());
    let status = project.run(&["status"]).expect(0);
    assert!(status.stdout.contains("UNDOING · 0 of 2 undone"), "{}", status.stdout);
    let refused = project.run(&["retry", "latest", "long"]).expect(7);
    assert!(refused.stderr.contains("the run is being undone"), "{}", refused.stderr);
    running.signal("KILL");
    running.end();
    assert_eq!(project.lines("data/file"), ["new"], "not undone yet");

    project.write("go", "");
    project.run(&["resume"]).expect(4);
    // The one that was cut off runs again, what was not undone yet follows, and nothing else does.
    let done = ["move", "note", "undo note", "undo note", "undo move", "last"];
    assert_eq!(project.lines("done"), done);
    assert_eq!(project.lines("data/file"), ["earlier"]);
    project.run(&["resume"]).expect(7);
    assert_eq!(project.lines("done"), done);
}

#[test]
fn cancel_takes_nothing_back() {
    let project = project();
    let running = project.start(&["run", "job"]);
    until("the long step runs", || project.file("here").exists());
    let cancelled = project.run(&["cancel", "latest"]).expect(0);
    assert!(cancelled.stderr.starts_with("nothing is undone"), "{}", cancelled.stderr);
    running.end().expect(4);
    assert_eq!(project.lines("done"), ["move", "note", "last"]);
    assert_eq!(project.lines("data/file"), ["new"]);
    assert!(project.report()["undo"].is_null());
}

#[test]
fn a_failing_undo_is_named_and_the_others_go_on() {
    let project = Project::with_steps(
        "- { id: first, effect: idempotent, run: 'echo first >> done', undo: 'echo undo first >> done' }\n\
         - { id: second, effect: idempotent, run: 'true', undo: 'echo no way back >&2; exit 3' }\n\
         - { id: third, effect: idempotent, run: 'exit 1', undo: 'echo undo third >> done' }",
    );
    let ran = project.run(&["run", "job"]).expect(4);
    assert_eq!(project.lines("done"), ["first", "undo third", "undo first"]);
    let report = project.report();
    let headline = report["outcome"]["headline"].as_str().expect("a headline");
    assert!(
        headline.starts_with("FAILED at `third`") && headline.ends_with("UNDO FAILED for `second`"),
        "{headline}"
    );
    assert!(report["outcome"]["next"].as_str().is_some_and(|next| next.starts_with("lifeboat report")));
    assert!(ran.all().contains("is not undone"), "{}", ran.all());
    let markdown = project.run(&["report", "--format", "markdown"]).expect(0).stdout;
    assert!(markdown.contains("UNDO FAILED"), "{markdown}");
}

#[test]
fn a_drill_that_fails_is_undone_too() {
    let project = Project::with_steps(
        "- { id: one, effect: idempotent, run: 'echo one >> done', undo: 'echo undo one >> done' }\n\
         - { id: two, effect: idempotent, run: 'exit 1' }",
    );
    project.run(&["drill", "job"]).expect(4);
    assert_eq!(project.lines("done"), ["one", "undo one"]);
}

#[test]
fn the_failure_of_a_group_is_handled() {
    let project = Project::with_steps(
        "- group: both\n  steps:\n    - { id: one, effect: idempotent, run: 'exit 1' }\n    \
         - { id: two, effect: idempotent, run: 'echo two >> done' }\n\
         - { id: mend, needs: [{ step: both, on: failure }], effect: idempotent, run: 'echo mend >> done' }",
    );
    project.run(&["run", "job"]).expect(0);
    assert_eq!(project.lines("done"), ["mend"]);
}
