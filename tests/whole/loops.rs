//! Steps that are repeated: for each element of a list, and until a condition holds.

use crate::project::{Project, until};

/// Five elements, two at a time. Each writes that it began and that it ended; the third waits for a file.
const EACH: &str = "
- id: each
  title: Work on {{ item }}
  for_each: [a, b, c, d, e]
  max_parallel: 2
  effect: idempotent
  env: { ITEM: '{{ item }}', NUMBER: '{{ index }}' }
  run: |
    echo $ITEM >> begun
    if [ $ITEM = c ]; then until [ -e go ]; do sleep 0.05; done; fi
    echo $NUMBER >> ended
    echo \"did $ITEM\"
- id: count
  effect: idempotent
  env: { ALL: \"{{ steps.each | map(attribute='stdout') | join(', ') }}\" }
  run: 'echo \"$ALL\" > all'";

#[test]
fn kill_9_in_the_middle_of_a_loop_repeats_no_element_that_had_succeeded() {
    let project = Project::with_steps(EACH);
    let running = project.start(&["run", "job"]);
    // The third waits; the fourth and fifth run beside it, one after the other.
    until("the others are known to have succeeded", || {
        project.lines("ended").len() == 4 && project.report()["steps"][0]["elements"]["succeeded"] == 4
    });
    running.signal("KILL");
    running.end();

    project.write("go", "");
    let resumed = project.run(&["resume"]).expect(0);
    let mut begun = project.lines("begun");
    begun.sort();
    assert_eq!(begun, ["a", "b", "c", "c", "d", "e"], "{}", resumed.all());
    assert_eq!(project.lines("all"), ["did a, did b, did c, did d, did e"], "in the order of the elements");
    let report = project.report();
    assert_eq!(report["outcome"]["state"], "succeeded");
    let elements = &report["steps"][0]["elements"];
    assert_eq!((&elements["total"], &elements["succeeded"]), (&5.into(), &5.into()));
    assert_eq!(elements["listed"][2]["id"], "each[2]");
    assert_eq!(elements["listed"][2]["title"], "Work on c");
    assert_eq!(elements["listed"][2]["attempts"].as_array().unwrap().len(), 2);
}

#[test]
fn a_held_element_is_retried_by_its_name_and_the_rest_goes_on() {
    let project = Project::new();
    project.runbook(
        "job",
        "objective: { rto: 1h }\n",
        "
- id: each
  for_each: [a, b, c]
  effect: idempotent
  recovered: true
  env: { ITEM: '{{ item }}' }
  run: 'echo $ITEM >> done; test $ITEM != b -o -e mended'",
    );
    let held = project.run(&["run", "job"]).expect(6);
    assert!(held.stderr.contains("'each[1]'"), "the command can be pasted: {}", held.stderr);
    assert_eq!(project.lines("done"), ["a", "b"]);
    let status = project.run(&["status"]).expect(0);
    assert!(status.stdout.contains("each[1] is held"), "{}", status.stdout);

    project.write("mended", "");
    project.run(&["retry", "latest", "each[1]"]).expect(0);
    project.run(&["resume"]).expect(0);
    assert_eq!(project.lines("done"), ["a", "b", "b", "c"]);
    let logs = project.run(&["logs", "latest", "--step", "each[1]"]).expect(0);
    assert!(!logs.stdout.contains("each[2]"), "{}", logs.stdout);
}

#[test]
fn many_elements_are_told_in_counts() {
    let project = Project::new();
    let steps = "
- id: each
  for_each: '{{ range(40) | list }}'
  max_parallel: 8
  effect: read
  run: 'test {{ item }} != 30'
  on_error: continue
- { id: after, effect: read, run: 'true' }";
    project.runbook("job", "", steps);
    let ran = project.run(&["run", "job"]).expect(0);
    assert!(ran.stderr.contains("40 elements, 8 at a time"), "{}", ran.stderr);
    assert!(ran.stderr.contains("each[30]") && !ran.stderr.contains("each[29]"), "{}", ran.stderr);
}

#[test]
fn a_step_is_repeated_until_its_condition_holds_and_only_the_last_result_is_kept() {
    let project = Project::with_steps(
        "
- id: wait
  effect: read
  run: 'echo x >> polls; n=$(wc -l < polls); echo \"poll $n\"; test $n -ge 4 && echo ready'
  until: \"'ready' in output.stdout\"
  every: 20ms
  timeout: 1m
  retry: { attempts: 2, delay: 10ms }
- { id: read, effect: idempotent, env: { SEEN: '{{ steps.wait.stdout }}' }, run: 'echo \"$SEEN\" > seen' }",
    );
    project.run(&["run", "job"]).expect(0);
    assert_eq!(project.lines("polls").len(), 4, "a script that fails is not yet there, with retry");
    assert_eq!(project.lines("seen"), ["poll 4", "ready"]);
    let logs = project.run(&["logs", "latest", "--step", "wait"]).expect(0);
    assert!(logs.stdout.contains("poll 4") && !logs.stdout.contains("poll 3"), "{}", logs.stdout);
    let report = project.report();
    assert_eq!(report["steps"][0]["attempts"].as_array().unwrap().len(), 1);
    assert_eq!(report["steps"][0]["checks_passed"], 1);
}

#[test]
fn what_does_not_happen_in_time_fails_with_what_was_seen_last() {
    let project = Project::with_steps(
        "
- id: wait
  effect: read
  run: 'echo x >> polls; wc -l < polls'
  until: output.stdout == 'never'
  every: 100ms
  timeout: 2s",
    );
    let ran = project.run(&["run", "job"]).expect(4);
    let polls = project.lines("polls").len();
    assert!(ran.stderr.contains("LB0334"), "{}", ran.stderr);
    // On a busy machine not even the first poll may come to its end in time.
    assert!(ran.stderr.contains("output.stdout = ") || polls <= 1, "{}", ran.stderr);
    assert!(polls <= 20, "{polls} polls in two seconds");

    let broken = Project::with_steps(
        "
- { id: wait, effect: read, run: 'echo x >> polls; exit 3', until: output.stdout == 'never', every: 50ms, timeout: 5m }",
    );
    broken.run(&["run", "job"]).expect(4);
    assert_eq!(broken.lines("polls").len(), 1, "a permanent failure ends the wait");
}

#[test]
fn a_wait_ends_at_once_when_the_run_is_cancelled() {
    let project = Project::with_steps(
        "
- { id: wait, effect: read, run: 'echo x >> polls', until: output.stdout == 'never', every: 10m, timeout: 1h }",
    );
    let running = project.start(&["run", "job"]);
    until("the first poll is over", || !project.lines("polls").is_empty());
    project.run(&["cancel", "latest", "--reason", "enough"]).expect(0);
    // Less is waited for it than for the next poll.
    running.end().expect(4);
    assert_eq!(project.lines("polls").len(), 1);
}
