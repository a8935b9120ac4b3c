//! People: approvals, holds, decisions from another process.

use crate::project::{Project, until};

const APPROVAL: &str = "
- { id: ask, uses: approval, with: { message: 'Promote?' } }
- { id: after, effect: idempotent, run: 'echo after >> done' }";

#[test]
fn an_approval_waits_until_another_process_answers() {
    let project = Project::with_steps(APPROVAL);
    let running = project.start(&["run", "job"]);
    until("it asks", || project.run(&["status"]).stdout.contains("Promote?"));
    assert_eq!(project.lines("done"), [""; 0]);
    project.run(&["approve", "latest", "--as", "sam", "-m", "looks right"]).expect(0);
    running.end().expect(0);
    assert_eq!(project.lines("done"), ["after"]);
    let report = project.report().to_string();
    assert!(report.contains("sam") && report.contains("looks right"), "{report}");
}

#[test]
fn a_rejection_fails_the_step() {
    let project = Project::with_steps(APPROVAL);
    let running = project.start(&["run", "job"]);
    until("it asks", || project.run(&["status"]).stdout.contains("Promote?"));
    project.run(&["reject"]).expect(0);
    running.end().expect(4);
    assert_eq!(project.lines("done"), [""; 0]);
}

#[test]
fn an_answer_given_while_no_process_runs_counts_on_resume() {
    let project = Project::with_steps(APPROVAL);
    project.run(&["run", "job", "--no-wait"]).expect(6);
    let ran = project.run(&["approve"]).expect(0);
    assert!(ran.stderr.contains("lifeboat resume"), "{}", ran.stderr);
    project.run(&["resume"]).expect(0);
    assert_eq!(project.lines("done"), ["after"]);
}

#[test]
fn a_held_step_can_be_mended_and_tried_again() {
    let project = Project::new();
    project.runbook(
        "job",
        "objective: { rto: 4h }\n",
        "- { id: one, effect: idempotent, recovered: true, run: 'test -e mended' }",
    );
    let ran = project.run(&["run", "job"]).expect(6);
    assert!(ran.all().contains("lifeboat retry"), "{}", ran.all());
    project.write("mended", "");
    project.run(&["retry", "latest", "one"]).expect(0);
    project.run(&["resume"]).expect(0);
}

#[test]
fn abort_ends_a_held_run() {
    let project = Project::new();
    project.runbook(
        "job",
        "objective: { rto: 4h }\n",
        "- { id: one, effect: idempotent, recovered: true, run: 'false' }",
    );
    project.run(&["run", "job"]).expect(6);
    project.run(&["abort", "latest", "--reason", "wrong target"]).expect(0);
    project.run(&["resume"]).expect(4);
    assert_eq!(project.report()["outcome"]["state"], "aborted");
}

#[test]
fn a_decision_about_a_step_that_is_not_held_is_refused() {
    let project = Project::with_steps(APPROVAL);
    let running = project.start(&["run", "job"]);
    until("it asks", || project.run(&["status"]).stdout.contains("Promote?"));
    let ran = project.run(&["retry", "latest", "after"]).expect(7);
    assert!(ran.stderr.contains("not held"), "{}", ran.stderr);
    project.run(&["approve"]).expect(0);
    running.end().expect(0);
}
