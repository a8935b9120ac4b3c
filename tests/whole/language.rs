//! Mistakes in files and on the command line: found before anything runs.

use crate::project::Project;

#[test]
fn a_typo_is_shown_with_place_and_suggestion_and_nothing_runs() {
    let project = Project::with_steps("- { id: one, effekt: idempotent, run: 'touch ran' }");
    let ran = project.run(&["check"]).expect(3);
    assert!(ran.all().contains("job.yaml:6"), "{}", ran.all());
    assert!(ran.all().contains("effect"), "{}", ran.all());
    project.run(&["run", "job"]).expect(3);
    assert!(!project.file("ran").exists());
    let runs = project.run(&["runs", "--format", "json"]).json();
    assert_eq!(runs.as_array().map(Vec::len), Some(0), "no run was declared");
}

#[test]
fn missing_inputs_are_listed_all_at_once() {
    let project = Project::new();
    project.runbook(
        "job",
        "inputs:\n  release: { type: string, description: The tag }\n  count: { type: integer, description: How many }\n",
        "- { id: one, effect: idempotent, run: 'echo {{ inputs.release }} {{ inputs.count }} > got' }",
    );
    let ran = project.run(&["run", "job"]).expect(2);
    assert!(ran.stderr.contains("release") && ran.stderr.contains("count"), "{}", ran.stderr);
    let ran = project.run(&["run", "job", "-i", "release=v1", "-i", "count=many"]).expect(2);
    assert!(ran.stderr.contains("count"), "{}", ran.stderr);
    project.run(&["run", "job", "-i", "release=v1", "-i", "count=3"]).expect(0);
    assert_eq!(project.lines("got"), ["v1 3"]);
}

#[test]
fn an_unknown_runbook_or_environment_is_a_usage_error_with_the_nearest_name() {
    let project = Project::with_steps("- { id: one, effect: idempotent, run: 'true' }");
    let ran = project.run(&["run", "jop"]).expect(2);
    assert!(ran.stderr.contains("job"), "{}", ran.stderr);
    let ran = project.run(&["run", "job", "--env", "sandbux"]).expect(2);
    assert!(ran.stderr.contains("sandbox"), "{}", ran.stderr);
}

#[test]
fn a_drill_in_a_protected_environment_is_refused() {
    let project = Project::with_steps("- { id: one, effect: idempotent, run: 'touch ran' }");
    project.write("environments/sandbox.yaml", "environment: sandbox\nprotected: true\n");
    let ran = project.run(&["drill", "job"]).expect(3);
    assert!(ran.all().contains("protected"), "{}", ran.all());
    assert!(!project.file("ran").exists());
}

#[test]
fn plan_writes_nothing() {
    let project = Project::with_steps("- { id: one, effect: idempotent, run: 'touch ran' }");
    let ran = project.run(&["plan", "job"]).expect(0);
    assert!(ran.stdout.contains("touch ran"), "{}", ran.stdout);
    assert!(!project.file("ran").exists() && !project.file(".lifeboat").exists());
}

#[test]
fn outside_a_project_the_error_says_how_to_begin() {
    let elsewhere = tempfile::tempdir().unwrap();
    let project = Project::new();
    let ran = project.run(&["-C", elsewhere.path().to_str().unwrap(), "list"]).expect(2);
    assert!(ran.stderr.contains("lifeboat.yaml"), "{}", ran.stderr);
}

#[test]
fn every_code_that_is_shown_can_be_explained() {
    let project = Project::new();
    project.run(&["explain", "lb0302"]).expect(0);
    project.run(&["explain", "LB9999"]).expect(2);
}
