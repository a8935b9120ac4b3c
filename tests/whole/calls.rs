//! Runbooks that call each other: names, inputs, outputs, `always`, and what is left after a kill.

use crate::project::{Project, until};

/// Calls `region`, which calls `write` twice.
fn project() -> Project {
    let project = Project::new();
    project.runbook(
        "write",
        "inputs:\n  text: { type: string, pattern: '[a-z-]+' }\n  times: { type: integer, default: 2 }\n\
         outputs:\n  said: \"{{ steps.say.stdout | trim }}\"\n\
         always:\n  - { id: tidy, effect: idempotent, run: 'echo tidy {{ inputs.text }} >> done' }\n",
        "- id: say
  effect: idempotent
  run: |
    echo say {{ inputs.text }} >> done
    if [ -e wait ]; then echo $$ > pid; sleep 300; fi
    if [ -e fail ]; then exit 1; fi
    echo {{ inputs.text }} x {{ inputs.times }}
- { id: after, effect: idempotent, run: 'echo after {{ steps.say.stdout | trim }} >> done' }",
    );
    project.runbook(
        "region",
        "inputs:\n  name: { type: string }\n\
         outputs:\n  both: \"{{ steps.one.said }} and {{ steps.two.said }}\"\n",
        "- { id: prefix, effect: read, run: 'echo {{ inputs.name }}-a' }
- { id: one, runbook: write, with: { text: '{{ steps.prefix.stdout | trim }}' } }
- { id: two, runbook: write, with: { text: '{{ inputs.name }}-b', times: 5 } }",
    );
    project.runbook(
        "job",
        "inputs:\n  region: { type: string, default: north }\n\
         always:\n  - { id: last, effect: idempotent, run: 'echo last >> done' }\n",
        "- { id: call, runbook: region, with: { name: '{{ inputs.region }}' }, budget: 1m }
- { id: read, effect: idempotent, run: 'echo read {{ steps.call.both }} >> done' }",
    );
    project
}

const DONE: [&str; 8] = [
    "say north-a",
    "after north-a x 2",
    "tidy north-a",
    "say north-b",
    "after north-b x 5",
    "tidy north-b",
    "read north-a x 2 and north-b x 5",
    "last",
];

#[test]
fn two_levels_pass_inputs_down_and_outputs_up() {
    let project = project();
    project.run(&["check"]).expect(0);
    let plan = project.run(&["plan", "job"]).expect(0).stdout;
    assert!(plan.contains("call/one/say"), "{plan}");
    project.run(&["run", "job"]).expect(0);
    assert_eq!(project.lines("done"), DONE);
    let status = project.run(&["status"]).expect(0).stdout;
    assert!(status.contains("SUCCEEDED in"), "{status}");
    let logs = project.run(&["logs", "latest", "--step", "call/two/say"]).expect(0).stdout;
    assert!(logs.contains("north-b x 5"), "{logs}");
    let report = project.run(&["report"]).expect(0).stdout;
    assert!(report.contains("call/two/after"), "{report}");
}

#[test]
fn kill_9_inside_a_called_runbook_then_resume_repeats_nothing_that_was_done() {
    let project = project();
    project.write("wait", "");
    let running = project.start(&["run", "job"]);
    until("the inner step runs", || !project.lines("pid").is_empty());
    running.signal("KILL");
    running.end();
    std::fs::remove_file(project.file("wait")).unwrap();
    // What the files say now means nothing to the run.
    project.runbook("write", "", "- { id: other, effect: idempotent, run: 'echo other >> done' }");
    project.run(&["resume"]).expect(0);
    assert_eq!(project.lines("done"), [&["say north-a"], &DONE[..]].concat());
}

#[test]
fn always_of_a_called_runbook_runs_when_the_run_fails_inside_it_and_not_where_nothing_began() {
    let project = project();
    project.write("fail", "");
    project.run(&["run", "job"]).expect(4);
    assert_eq!(project.lines("done"), ["say north-a", "tidy north-a", "last"]);
    let report = project.report();
    let step = |id: &str| {
        let steps = report["steps"].as_array().unwrap();
        steps.iter().find(|step| step["id"] == id).unwrap_or_else(|| panic!("{id}"))["outcome"].clone()
    };
    assert_eq!(step("call/one/say")["outcome"], "failed", "{}", step("call/one/say"));
    assert_eq!(step("call/one/tidy")["outcome"], "succeeded");
    assert_eq!(step("call/two/tidy")["outcome"], "skipped");
}

#[test]
fn an_input_that_only_the_run_can_know_is_held_against_its_declaration() {
    let project = project();
    let ran = project.run(&["run", "job", "-i", "region=North"]).expect(4);
    assert!(ran.stderr.contains("LB0301"), "{}", ran.stderr);
    assert!(ran.stderr.contains("the input `text`: \"North-a\" does not match"), "{}", ran.stderr);
    assert!(ran.stderr.contains("called by `call/one`"), "{}", ran.stderr);
}

#[test]
fn a_held_step_of_a_called_runbook_is_named_by_its_whole_id() {
    let project = project();
    project.runbook(
        "job",
        "objective: { rto: 4h }\n",
        "- { id: call, runbook: region, with: { name: north }, recovered: true }",
    );
    project.write("fail", "");
    let ran = project.run(&["run", "job"]).expect(6);
    assert!(ran.stderr.contains("call/one/say"), "{}", ran.stderr);
    std::fs::remove_file(project.file("fail")).unwrap();
    project.run(&["retry", "latest", "call/one/say"]).expect(0);
    project.run(&["resume"]).expect(0);
    assert_eq!(project.lines("done"), [&["say north-a"], &DONE[..6]].concat());
}
