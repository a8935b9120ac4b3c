//! `lock`: names that only one run may have at a time.

use crate::project::{Project, until};

const HELD: &str = "- { id: ask, uses: approval, with: { message: 'Go on?' } }";

#[test]
fn a_named_lock_is_kept_until_the_run_ends_and_the_refused_one_is_told_how_to_take_over() {
    let project = Project::new();
    project.write("environments/sandbox.yaml", "environment: sandbox\nvars: { site: north }\n");
    project.runbook("first", "lock: 'schema of {{ vars.site }}'", HELD);
    project.runbook("second", "lock: [other, schema of north]", "- { id: a, effect: read, run: 'true' }");
    project.runbook("third", "lock: schema of south", "- { id: a, effect: read, run: 'true' }");
    project.run(&["run", "first", "--no-wait"]).expect(6);
    let refused = project.run(&["run", "second"]).expect(7);
    for text in ["the lock `schema of north`", "first@sandbox", "no process executes it", "lifeboat resume"] {
        assert!(refused.stderr.contains(text), "no {text}: {}", refused.stderr);
    }
    project.run(&["run", "third"]).expect(0);
    project.run(&["approve"]).expect(0);
    project.run(&["resume"]).expect(0);
    project.run(&["run", "second"]).expect(0);
}

#[test]
fn a_called_runbook_brings_its_locks_along() {
    let project = Project::new();
    project.runbook(
        "inner",
        "inputs: { of: { type: string, description: What } }\nlock: 'schema of {{ inputs.of }}'",
        "- { id: a, uses: approval, with: { message: Go on? } }",
    );
    project.runbook(
        "outer",
        "inputs: { site: { type: string, default: north, description: Which } }",
        "- { id: call, runbook: inner, with: { of: '{{ inputs.site }}' } }",
    );
    project.runbook("other", "lock: schema of north", "- { id: a, effect: read, run: 'true' }");
    let running = project.start(&["run", "outer"]);
    until("it waits", || project.run(&["status"]).stdout.contains("Go on?"));
    assert!(project.run(&["run", "other"]).expect(7).stderr.contains("outer@sandbox"));
    project.run(&["approve"]).expect(0);
    running.end().expect(0);
}

#[test]
fn a_lock_that_only_a_step_could_name_is_refused() {
    let project = Project::new();
    project.runbook(
        "inner",
        "inputs: { of: { type: string, description: What } }\nlock: 'schema of {{ inputs.of }}'",
        "- { id: a, effect: read, run: 'true' }",
    );
    project.runbook(
        "outer",
        "",
        "- { id: look, effect: read, run: echo x }\n- { id: call, runbook: inner, with: { of: '{{ steps.look.stdout }}' } }",
    );
    let refused = project.run(&["run", "outer"]).expect(3);
    assert!(
        refused.stderr.contains("LB0165") && refused.stderr.contains("runbooks/inner.yaml:5"),
        "{}",
        refused.stderr
    );
}
