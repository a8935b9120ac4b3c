//! Runs from the first step to the exit code.

use crate::project::Project;

const TWO_STEPS: &str = "
- { id: one, effect: idempotent, run: 'echo one >> done' }
- { id: two, effect: idempotent, run: 'echo two >> done' }";

#[test]
fn steps_run_in_order_and_the_report_says_so() {
    let project = Project::with_steps(TWO_STEPS);
    let ran = project.run(&["run", "job"]).expect(0);
    assert_eq!(project.lines("done"), ["one", "two"]);
    assert!(ran.stderr.contains("✓ one") && ran.stderr.contains("✓ two"), "{}", ran.stderr);
    assert_eq!(project.report()["outcome"]["state"], "succeeded");
}

#[test]
fn a_failure_ends_the_run_with_the_output_and_the_command_to_type_next() {
    let project = Project::with_steps(
        "
- { id: one, effect: idempotent, run: 'echo about to fail; echo no such disk >&2; exit 9' }
- { id: two, effect: idempotent, run: 'echo two >> done' }",
    );
    project.write("more", "");
    let ran = project.run(&["run", "job"]).expect(4);
    assert!(ran.stderr.contains("exit code 9"), "{}", ran.stderr);
    assert!(ran.stderr.contains("no such disk"), "the reason is shown: {}", ran.stderr);
    assert!(ran.stderr.contains("LB1001"), "{}", ran.stderr);
    assert_eq!(project.lines("done"), [""; 0]);
    let logs = project.run(&["logs"]).expect(0);
    assert!(logs.stdout.contains("about to fail"), "{}", logs.stdout);
}

#[test]
fn always_steps_run_after_a_failure_and_know_of_it() {
    let project = Project::new();
    project.runbook(
        "job",
        "always:\n  - { id: tell, effect: idempotent, run: 'echo {{ run.summary }} >> told' }\n",
        "- { id: one, effect: idempotent, run: 'exit 1' }",
    );
    project.run(&["run", "job"]).expect(4);
    assert!(project.lines("told")[0].contains("failed: one"), "{:?}", project.lines("told"));
}

#[test]
fn a_recovery_that_takes_longer_than_its_objective_exits_with_5() {
    let project = Project::new();
    let steps = "- { id: one, effect: idempotent, recovered: true, run: 'true' }";
    project.runbook("job", "objective: { rto: 1h }\n", steps);
    project.run(&["run", "job"]).expect(0);
    let ran = project.run(&["run", "job", "--incident-at", "2020-01-01T00:00:00Z"]).expect(5);
    assert!(ran.stdout.contains("missed") || ran.stdout.contains("MISSED"), "{}", ran.stdout);
}

#[test]
fn a_shell_step_with_retry_is_tried_again() {
    let project = Project::with_steps(
        "
- id: flaky
  effect: idempotent
  retry: { attempts: 3, delay: 10ms }
  run: 'echo try >> tries; test $(wc -l < tries) -ge 3'",
    );
    project.run(&["run", "job"]).expect(0);
    assert_eq!(project.lines("tries").len(), 3);
}

#[test]
fn outputs_flow_and_a_hostile_value_cannot_become_a_command() {
    let project = Project::new();
    project.write("hostile", "x'; touch owned; echo \"$(touch owned)\" `touch owned`");
    project.runbook(
        "job",
        "",
        "
- { id: read, effect: read, run: cat hostile }
- { id: use, effect: idempotent, run: 'printf %s {{ steps.read.stdout }} > copy' }",
    );
    project.run(&["run", "job"]).expect(0);
    assert!(!project.file("owned").exists(), "the value was run");
    assert_eq!(project.lines("copy"), project.lines("hostile"));
}

#[test]
fn a_secret_reaches_the_program_and_nobody_else() {
    const SECRET: &str = "correct-horse-battery";
    let project = Project::new();
    project.write("secret", SECRET);
    project
        .write("environments/sandbox.yaml", "environment: sandbox\nsecrets: { key: { file: ../secret } }\n");
    project.runbook(
        "job",
        "",
        "
- id: use
  effect: idempotent
  env: { KEY: { secret: key } }
  run: 'echo it is $KEY; test \"$KEY\" = correct-horse-battery'",
    );
    let ran = project.run(&["run", "job"]).expect(0);
    let logs = project.run(&["logs"]).expect(0);
    assert!(logs.stdout.contains("it is ***"), "{}", logs.stdout);
    for text in [ran.all(), logs.all(), project.report()["steps"].to_string()] {
        assert!(!text.contains("it is correct"), "{text}");
    }
    // The plan holds the script as it is written, which names the value to compare with; nothing else may.
    let found = std::process::Command::new("grep")
        .args(["-rl", "it is correct-horse", ".lifeboat"])
        .current_dir(project.path())
        .output()
        .unwrap();
    assert!(found.stdout.is_empty(), "{}", String::from_utf8_lossy(&found.stdout));
}

#[test]
fn parallel_steps_run_at_the_same_time() {
    let project = Project::with_steps(
        "
- group: both
  parallel: true
  steps:
    - { id: left, effect: idempotent, timeout: 4m, run: 'touch l; until [ -e r ]; do sleep 0.05; done' }
    - { id: right, effect: idempotent, timeout: 4m, run: 'touch r; until [ -e l ]; do sleep 0.05; done' }",
    );
    project.run(&["run", "job"]).expect(0);
}

#[test]
fn state_within_a_work_tree_of_git_is_told_once_and_where_it_matters_always() {
    let project = Project::with_steps("- { id: one, effect: idempotent, run: 'true' }");
    let told = |args: &[&str]| project.run(args).expect(0).stderr.contains("git clean -fdx");
    assert!(!told(&["run", "job"]), "there is no work tree");
    std::fs::create_dir(project.file(".git")).unwrap();
    assert!(!told(&["run", "job"]), "whoever has runs there has been told, or has moved there");
    std::fs::remove_dir_all(project.file(".lifeboat")).unwrap();
    let first = project.run(&["drill", "job"]).expect(0).stderr;
    for text in ["git clean -fdx", ".lifeboat/state, within", "`state:` in lifeboat.yaml"] {
        assert!(first.contains(text), "no {text}: {first}");
    }
    assert!(!told(&["drill", "job"]), "it has been told");
    project.write("environments/sandbox.yaml", "environment: sandbox\nprotected: true\n");
    assert!(told(&["run", "job"]) && told(&["run", "job"]));
    let outside = tempfile::tempdir().unwrap();
    project.write("lifeboat.yaml", &format!("project: test\nstate: {}/state\n", outside.path().display()));
    assert!(!told(&["run", "job"]));
}
