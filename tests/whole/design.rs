//! The example of the design: its runbook and its environments, with the kinds of step that there are.

use std::path::Path;

use crate::project::Project;

/// Copied, because a project that is looked at must stay as it is.
fn project() -> Project {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/corpus/design");
    let project = Project::empty();
    for file in [
        "lifeboat.yaml",
        "runbooks/restore.yaml",
        "environments/production.yaml",
        "environments/staging.yaml",
    ] {
        project.write(file, &std::fs::read_to_string(from.join(file)).expect("a file of the example"));
    }
    project
}

#[test]
fn the_example_of_the_design_compiles_with_the_kinds_that_there_are() {
    project().run(&["check"]).expect(0);
}

#[test]
fn the_plan_of_the_example_says_what_each_step_will_do() {
    let project = project();
    let ran = project.run(&[
        "plan",
        "restore",
        "--env",
        "staging",
        "-i",
        "release=v1.2",
        "-i",
        "target_time=2026-11-20T03:12:00Z",
    ]);
    let text = ran.expect(0).stdout;
    for part in [
        "list all versions of s3://divan-uploads and take those of just before 2026-11-20T03:12:00Z",
        "/var/www/uploads becomes /var/www/uploads.pre-",
        "remove /run/backend-staging/closed",
        "ask https://staging.example.org/ until it answers 200 to 299",
        "git checkout 'v1.2'",
    ] {
        assert!(text.contains(part), "`{part}` is missing:\n{text}");
    }
}

#[test]
fn the_example_cannot_be_planned_with_an_input_that_does_not_fit() {
    let args = [
        "plan",
        "restore",
        "--env",
        "staging",
        "-i",
        "release=latest",
        "-i",
        "target_time=2026-11-20T03:12:00Z",
    ];
    let ran = project().run(&args).expect(2);
    assert!(ran.stderr.contains("release"), "{}", ran.stderr);
}

#[test]
fn mistakes_in_buckets_and_gates_are_found_in_one_pass() {
    let project = Project::new();
    project.write(
        "environments/sandbox.yaml",
        "environment: sandbox
resources:
  local: { kind: store, url: 'dir:///srv/store', region: eu-west-1 }
  half: { kind: store, url: 's3://b/x', access_key: { env: ID } }
  token: { kind: store, url: 's3://b/y', session_token: { env: T } }
  none: { kind: service, manager: systemd, unit: a, gate: { check: 'https://a.example.org/' } }
  both: { kind: service, manager: systemd, unit: b, gate: { file: /run/b, close: [x], open: [y], check: 'https://b.example.org/' } }
  odd: { kind: service, manager: systemd, unit: c, gate: { file: /run/c, check: 'ftp://c.example.org/' } }
",
    );
    let ran = project.run(&["check"]).expect(3);
    let text = ran.all();
    for part in [
        "`region` belongs to a store at `s3://`, not to a directory",
        "`access_key` is of no use without `secret_key`",
        "`session_token` is of no use without `access_key`",
        "a gate is either a `file`, or the two commands `close` and `open`",
        "an address of this kind begins with `http://` or `https://`",
    ] {
        assert!(text.contains(part), "`{part}` is missing:\n{text}");
    }
    let gates = text.matches("a gate is either").count();
    assert_eq!(gates, 2, "{text}");
}

#[test]
fn two_targets_of_a_restore_are_found_by_check() {
    let project = Project::new();
    project.write(
        "environments/sandbox.yaml",
        "environment: sandbox\nresources:\n  up: { kind: store, url: 's3://b/x' }\n",
    );
    let with = "with: { store: up, into: up, to: /srv/x, at: '2026-11-20T03:12:00Z' }";
    project.runbook("job", "", &format!("- {{ id: one, uses: store.restore_as_of, {with} }}"));
    let ran = project.run(&["check"]).expect(3);
    assert!(ran.all().contains("`to` and `into` name two targets"), "{}", ran.all());
}
