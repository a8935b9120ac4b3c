//! `lifeboat plan` and `lifeboat graph`, as people and programs see them.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::project::{Project, Ran};

const STEPS: &str = r#"
- { id: look, effect: read, run: "sleep 0.1; echo looked" }
- group: work
  parallel: true
  steps:
    - { id: left, effect: idempotent, run: "echo left", timeout: 1m, retry: { attempts: 2, delay: 5s } }
    - { id: right, effect: idempotent, if: inputs.careful, run: "echo right" }
    - { id: cache, effect: idempotent, if: resources.cache is defined, run: "echo cache" }
- { id: rescue, needs: [{ step: left, on: failure }], effect: idempotent, run: echo help }
- { id: open, needs: [work], effect: idempotent, run: "echo {{ steps.look.stdout }}", recovered: true }
"#;

const HEAD: &str = "objective: { rto: 10m, rpo: 5m }
inputs:
  careful: { type: boolean, default: false, description: Whether to look twice }";

fn project() -> Project {
    let project = Project::new();
    project.write("environments/other.yaml", "environment: other\nresources:\n  cache: { kind: redis, url: 'redis://127.0.0.1:1', optional: true }\n");
    project.runbook("job", HEAD, STEPS);
    let text = fs::read_to_string(project.file("runbooks/job.yaml")).expect("a runbook");
    project.write("runbooks/job.yaml", &text.replace("[sandbox]", "[sandbox, other]"));
    project
}

/// Everything below a directory: what it is, when it changed, and its content.
fn tree(dir: &Path) -> BTreeMap<PathBuf, (u32, i64, i64, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut open = vec![dir.to_owned()];
    while let Some(path) = open.pop() {
        let Ok(meta) = fs::symlink_metadata(&path) else { continue };
        let content = if meta.is_file() { fs::read(&path).expect("readable") } else { Vec::new() };
        if meta.is_dir() {
            open.extend(fs::read_dir(&path).expect("readable").map(|entry| entry.expect("an entry").path()));
        }
        found.insert(path, (meta.mode(), meta.mtime(), meta.mtime_nsec(), content));
    }
    found
}

fn git(project: &Project, args: &[&str]) -> bool {
    let mut git = Command::new("git");
    git.args(["-c", "user.name=t", "-c", "user.email=t@example.org"]).args(args).current_dir(project.path());
    git.output().is_ok_and(|output| output.status.success())
}

/// A plan and a graph, in every form.
const LOOKS: &[&[&str]] = &[
    &["plan", "job", "--env", "sandbox"],
    &["plan", "job", "--env", "sandbox", "--drill", "--format", "json"],
    &["plan", "job", "--env", "other", "--format", "yaml"],
    &["plan", "job", "--env", "sandbox", "--probe"],
    &["graph", "job"],
    &["graph", "job", "--env", "sandbox", "--format", "mermaid"],
];

#[test]
fn a_plan_writes_nothing_anywhere() {
    let project = project();
    let outside = tempfile::tempdir().expect("a directory");
    for name in ["home", "tmp"] {
        fs::create_dir(outside.path().join(name)).expect("a directory");
    }
    let look = |args: &[&str]| {
        let mut command = project.command(args);
        command.env("HOME", outside.path().join("home")).env("TMPDIR", outside.path().join("tmp"));
        command.env("XDG_CACHE_HOME", outside.path().join("home/cache"));
        Ran::of(&mut command).expect(0)
    };
    // Git's index is stale when a file was touched: `git status` would write it anew.
    let in_git = git(&project, &["init", "-q"])
        && git(&project, &["add", "."])
        && git(&project, &["commit", "-qm", "x"]);
    if in_git {
        project.write(
            "runbooks/job.yaml",
            &fs::read_to_string(project.file("runbooks/job.yaml")).expect("a file"),
        );
    }
    let before = (tree(project.path()), tree(outside.path()));
    assert!(!project.file(".lifeboat").exists());
    LOOKS.iter().for_each(|args| drop(look(args)));
    assert!(
        before == (tree(project.path()), tree(outside.path())),
        "a plan without a state directory has written"
    );
    // With runs, one of them open.
    project.run(&["drill", "job", "--env", "sandbox"]).expect(5);
    project.runbook("held", "", "- { id: no, effect: read, run: 'false', on_error: hold }");
    project.run(&["run", "held", "--no-wait"]).expect(6);
    let before = (tree(project.path()), tree(outside.path()));
    LOOKS.iter().for_each(|args| drop(look(args)));
    look(&["plan", "held"]);
    let after = (tree(project.path()), tree(outside.path()));
    let changed: Vec<_> = before
        .0
        .keys()
        .chain(after.0.keys())
        .filter(|path| before.0.get(*path) != after.0.get(*path))
        .collect();
    assert!(changed.is_empty(), "{changed:?}");
    assert!(before.1 == after.1);
}

#[test]
fn a_plan_says_what_is_skipped_why_and_how_long_the_rest_takes() {
    let project = project();
    let ran = project.run(&["plan", "job", "--env", "sandbox", "--drill"]).expect(0);
    let says = |ran: &Ran, text: &str| {
        let flat = ran.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(flat.contains(text), "no {text:?} in:\n{}", ran.stdout);
    };
    says(&ran, "will be skipped: resources.cache is not defined here");
    says(&ran, "will be skipped: `inputs.careful` is false: inputs.careful = false");
    says(&ran, "UNKNOWN no earlier run and no `budget` tells how long this takes: `look`, `left`, `open`");
    says(&ran, "> echo {{ steps.look.stdout }}");
    says(&ran, "only if left fails");
    for _ in 0..2 {
        project.run(&["drill", "job", "--env", "sandbox"]).expect(5);
    }
    let ran = project.run(&["plan", "job", "--env", "sandbox", "--drill"]).expect(0);
    says(&ran, "median of 2 drills");
    says(&ran, "RTO YES");
    // A recovery has not been run, and in another environment nothing has.
    says(&project.run(&["plan", "job", "--env", "sandbox"]).expect(0), "RTO UNKNOWN");
    let other = project.run(&["plan", "job", "--env", "other", "--drill", "-i", "careful=true"]).expect(0);
    says(&other, "RTO UNKNOWN");
    assert!(!other.stdout.contains("will be skipped"), "{}", other.stdout);
}

#[test]
fn programs_read_a_plan_as_its_schema_says() {
    let project = project();
    project.run(&["drill", "job", "--env", "sandbox"]).expect(5);
    let schema = project.run(&["schema", "plan"]).expect(0).json();
    let validator = jsonschema::validator_for(&schema).expect("a schema");
    for more in [&["--drill"][..], &["--probe"], &["--incident-at", "2026-11-21T03:12:00Z"]] {
        let args = [&["plan", "job", "--env", "sandbox", "--format", "json"][..], more].concat();
        let plan = project.run(&args).expect(0).json();
        let problems: Vec<_> = validator.iter_errors(&plan).map(|error| error.to_string()).collect();
        assert!(problems.is_empty(), "{problems:#?}");
        assert_eq!(plan["steps"].as_array().expect("a list").len(), 6);
    }
    let yaml =
        project.run(&["plan", "job", "--env", "sandbox", "--drill", "--format", "yaml"]).expect(0).stdout;
    let plan: Value = serde_yaml::from_str(&yaml).expect("YAML");
    let right = plan["steps"]
        .as_array()
        .expect("a list")
        .iter()
        .find(|step| step["id"] == "right")
        .expect("it is there");
    assert_eq!(
        (right["fate"].as_str(), right["expected"]["source"].as_str()),
        (Some("skipped"), Some("skipped"))
    );
    assert_eq!(plan["steps"][0]["expected"]["runs"], 1, "{yaml}");
}

fn demo(args: &[&str], locale: &str) -> Ran {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/demo");
    let project = Project::empty();
    let mut command = project.command(args);
    command.current_dir(demo).env("LC_ALL", locale);
    Ran::of(&mut command)
}

#[test]
fn the_runbooks_of_the_demonstration_are_drawn() {
    for (name, args) in [
        ("graph_restore", &["graph", "restore"][..]),
        ("graph_backup", &["graph", "backup"]),
        ("graph_drill", &["graph", "drill", "--env", "sandbox"]),
        ("graph_restore_mermaid", &["graph", "restore", "--format", "mermaid"]),
    ] {
        let text = demo(args, "C.UTF-8").expect(0).stdout;
        insta::with_settings!({ omit_expression => true, prepend_module_to_snapshot => false }, {
            insta::assert_snapshot!(name, text);
        });
    }
    let ascii = demo(&["graph", "restore"], "C").expect(0).stdout;
    assert!(ascii.is_ascii() && ascii.contains("+- stores: in parallel -"), "{ascii}");
    let json = demo(&["graph", "restore", "--format", "json"], "C").expect(0).json();
    assert_eq!(json["steps"][1]["needs"][0]["step"], 0, "{json}");
    demo(&["graph", "restor"], "C").expect(2);
    demo(&["graph", "restore", "--format", "html"], "C").expect(2);
}

#[test]
fn a_circle_cannot_be_drawn_and_is_told() {
    let project = Project::with_steps(
        "- { id: a, needs: [b], effect: read, run: 'true' }\n- { id: b, needs: [a], effect: read, run: 'true' }",
    );
    let ran = project.run(&["graph", "job"]).expect(3);
    assert!(ran.stderr.contains("error[LB0130]") && ran.stderr.contains("`a` needs `b`"), "{}", ran.stderr);
}

/// A cluster that systemd runs can be drilled, but not promoted in a recovery: that is said before anything is touched.
#[test]
fn a_promotion_that_must_fail_is_refused_when_it_is_planned() {
    let project = Project::new();
    project.write(
        "environments/sandbox.yaml",
        "environment: sandbox\nresources:\n  db: { kind: postgres, data_dir: /nonexistent/lifeboat, os_user: root, service: { manager: systemd, unit: postgresql } }\n",
    );
    project.runbook("job", "", "- { id: promote, uses: postgres.promote, with: { cluster: db } }");
    for args in [&["plan", "job"][..], &["run", "job"]] {
        let ran = project.run(args).expect(3);
        assert!(
            ran.stderr.contains("error[LB1264]") && ran.stderr.contains("runbooks/job.yaml:"),
            "{}",
            ran.stderr
        );
        assert!(
            !project.file(".lifeboat/state/runs").exists()
                || fs::read_dir(project.file(".lifeboat/state/runs")).expect("readable").next().is_none()
        );
    }
    project.run(&["plan", "job", "--drill"]).expect(0);
}
