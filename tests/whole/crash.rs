//! What is left when the program is killed, and what resume makes of it.

use crate::project::{Project, alive, until};

const LONG: &str = "
- { id: before, effect: idempotent, run: 'echo before >> done' }
- id: long
  effect: idempotent
  run: |
    echo $$ > pid
    echo long >> done
    if [ -e go ]; then exit 0; fi
    sleep 300
- { id: after, effect: idempotent, run: 'echo after >> done' }";

#[test]
fn kill_9_then_resume_ends_survivors_and_repeats_no_completed_step() {
    let project = Project::with_steps(LONG);
    let running = project.start(&["run", "job"]);
    until("the long step runs", || !project.lines("pid").is_empty());
    let pid = project.lines("pid")[0].clone();
    running.signal("KILL");
    running.end();
    assert!(alive(&pid), "the child outlives the program, which is what resume must deal with");

    project.write("go", "");
    let resumed = project.run(&["resume"]).expect(0);
    assert!(!alive(&pid), "the survivor was ended");
    assert!(resumed.stderr.contains("ended a process"), "{}", resumed.stderr);
    assert_eq!(project.lines("done"), ["before", "long", "long", "after"]);
    assert_eq!(project.report()["outcome"]["state"], "succeeded");
}

#[test]
fn a_step_that_must_not_repeat_waits_for_a_person_after_a_crash() {
    let project = Project::new();
    project.runbook(
        "job",
        "objective: { rto: 4h }\n",
        "- { id: once, effect: once, recovered: true, run: 'echo x >> done; touch here; sleep 300' }",
    );
    let running = project.start(&["run", "job"]);
    until("the step runs", || project.file("here").exists());
    running.signal("KILL");
    running.end();

    let resumed = project.run(&["resume"]).expect(6);
    assert!(resumed.stderr.contains("LB0307"), "{}", resumed.stderr);
    assert_eq!(project.lines("done").len(), 1, "it did not run again");
    project.run(&["skip", "latest", "once", "--done", "--reason", "I looked"]).expect(0);
    project.run(&["resume"]).expect(0);
    assert_eq!(project.lines("done").len(), 1);
}

#[test]
fn sigterm_leaves_the_run_open_with_nothing_running() {
    let project = Project::with_steps(LONG);
    let running = project.start(&["run", "job"]);
    until("the long step runs", || !project.lines("pid").is_empty());
    let pid = project.lines("pid")[0].clone();
    running.signal("TERM");
    running.end().expect(143);
    assert!(!alive(&pid), "what it had started was ended");
    project.write("go", "");
    project.run(&["resume"]).expect(0);
    assert_eq!(project.lines("done"), ["before", "long", "long", "after"]);
}

#[test]
fn an_ended_run_is_not_reopened() {
    let project = Project::with_steps("- { id: one, effect: idempotent, run: 'true' }");
    project.run(&["run", "job"]).expect(0);
    let ran = project.run(&["resume"]).expect(7);
    assert!(ran.stderr.contains("has ended"), "{}", ran.stderr);
}

#[test]
fn two_processes_cannot_drive_one_run() {
    let project = Project::with_steps(LONG);
    let running = project.start(&["run", "job"]);
    until("the long step runs", || !project.lines("pid").is_empty());
    project.run(&["resume"]).expect(7);
    running.signal("TERM");
    running.end();
}

#[test]
fn editing_files_does_not_change_a_run_that_has_begun() {
    let project = Project::with_steps(LONG);
    let running = project.start(&["run", "job"]);
    until("the long step runs", || !project.lines("pid").is_empty());
    running.signal("KILL");
    running.end();
    project.runbook("job", "", "- { id: other, effect: idempotent, run: 'echo other >> done' }");
    project.write("go", "");
    project.run(&["resume"]).expect(0);
    assert_eq!(project.lines("done"), ["before", "long", "long", "after"]);
}
