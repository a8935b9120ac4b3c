//! What is left when the program is killed, and what resume makes of it.

use crate::project::{Project, alive, until};

#[test]
fn kill_9_then_resume_ends_survivors_and_repeats_no_completed_step() {
    let (project, running, pid) = Project::in_a_long_step();
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
    let (project, running, pid) = Project::in_a_long_step();
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
    let (project, running, _) = Project::in_a_long_step();
    project.run(&["resume"]).expect(7);
    running.signal("TERM");
    running.end();
}

#[test]
fn editing_files_does_not_change_a_run_that_has_begun() {
    let (project, running, _) = Project::in_a_long_step();
    running.signal("KILL");
    running.end();
    project.runbook("job", "", "- { id: other, effect: idempotent, run: 'echo other >> done' }");
    project.write("go", "");
    project.run(&["resume"]).expect(0);
    assert_eq!(project.lines("done"), ["before", "long", "long", "after"]);
}

/// A probe decides about an attempt that was cut off: its work is done, and then it does not run again, or it is not.
#[test]
fn a_guarded_step_is_probed_after_a_crash_before_it_is_repeated() {
    for (done_before_the_crash, lines) in [(true, ["work"].as_slice()), (false, &["work", "work"])] {
        let project = Project::with_steps(
            "
- id: guarded
  effect: guarded
  probe: 'echo probe >> probes; test -e result; cat result'
  run: |
    echo work >> done
    if [ -e early ]; then echo 17 > result; fi
    if [ ! -e go ]; then touch here; sleep 300; fi
    echo 17 > result; cat result
- { id: read, effect: idempotent, env: { SEEN: '{{ steps.guarded.stdout }}' }, run: 'echo \"$SEEN\" > seen' }",
        );
        if done_before_the_crash {
            project.write("early", "");
        }
        let running = project.start(&["run", "job"]);
        until("the step runs", || project.file("here").exists());
        running.signal("KILL");
        running.end();
        assert_eq!(project.lines("probes"), [""; 0], "the first attempt needs no probe");
        project.write("go", "");
        project.run(&["resume"]).expect(0);
        assert_eq!(project.lines("probes"), ["probe"]);
        assert_eq!(project.lines("done"), lines, "done before the crash: {done_before_the_crash}");
        assert_eq!(
            project.lines("seen"),
            ["17"],
            "the outputs are those of the probe, or of the second attempt"
        );
    }
}

#[test]
fn in_a_drill_a_step_that_must_not_repeat_fails_after_a_crash() {
    let project =
        Project::with_steps("- { id: once, effect: once, run: 'echo x >> done; touch here; sleep 300' }");
    let running = project.start(&["drill", "job"]);
    until("the step runs", || project.file("here").exists());
    running.signal("KILL");
    running.end();
    let resumed = project.run(&["resume"]).expect(4);
    assert!(resumed.stderr.contains("must not be repeated unasked"), "{}", resumed.stderr);
    assert_eq!(project.lines("done").len(), 1);
}

/// The key is `run/step` for steps, elements, steps of called runbooks, probes and undo, and the same in every attempt.
#[test]
fn programs_are_given_a_key_that_is_the_same_in_every_attempt() {
    let project = Project::new();
    project.write("key", "echo \"$LIFEBOAT_STEP $LIFEBOAT_ATTEMPT $LIFEBOAT_IDEMPOTENCY_KEY\" >> keys\n");
    project.runbook("child", "", "- { id: inner, effect: idempotent, run: . ./key }");
    project.runbook(
        "job",
        "",
        "
- id: flaky
  effect: guarded
  probe: '. ./key; exit 1'
  retry: { attempts: 2, delay: 5ms }
  run: '. ./key; test $LIFEBOAT_ATTEMPT = 2'
- { id: each, for_each: [x, y], effect: idempotent, run: . ./key, undo: . ./key }
- { id: call, runbook: child }
- { id: end, effect: idempotent, run: exit 1 }",
    );
    project.run(&["run", "job"]).expect(4);
    let run = project.report()["identity"]["run"].as_str().expect("an id").to_owned();
    let expected = [
        ("flaky", 1),
        ("flaky", 2),
        ("flaky", 2),
        ("each[0]", 1),
        ("each[1]", 1),
        ("call/inner", 1),
        ("each/undo[1]", 1),
        ("each/undo[0]", 1),
    ];
    let expected: Vec<_> =
        expected.iter().map(|(step, attempt)| format!("{step} {attempt} {run}/{step}")).collect();
    assert_eq!(project.lines("keys"), expected);
}
