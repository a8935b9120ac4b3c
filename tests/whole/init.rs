//! `lifeboat init`: what it writes works as it is, and it overwrites nothing.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::project::Project;

#[test]
fn what_init_writes_passes_check_and_runs_and_drills() {
    let project = Project::empty();
    project.run(&["init"]).expect(0);
    project.run(&["check", "--deny-warnings"]).expect(0);
    project.run(&["plan", "restore"]).expect(0);
    assert!(!project.file("practice").exists(), "plan writes nothing");

    project.run(&["run", "restore"]).expect(0);
    assert_eq!(project.report()["rto"]["verdict"], "met");
    assert_eq!(project.lines("practice/site/index.html"), ["<h1>It works</h1>"]);

    fs::write(project.file("practice/site/index.html"), "defaced\n").expect("a file");
    project.run(&["drill", "restore"]).expect(0);
    assert_eq!(project.lines("practice/site/index.html"), ["<h1>It works</h1>"]);
    let moved = fs::read_dir(project.file("practice")).expect("a folder").flatten().any(|entry| {
        fs::read_to_string(entry.path().join("index.html")).is_ok_and(|text| text == "defaced\n")
    });
    assert!(moved, "what was there is kept");
}

#[test]
fn the_runbook_of_init_fails_where_there_is_nothing_to_restore() {
    let project = Project::empty();
    project.run(&["init"]).expect(0);
    project.run(&["run", "restore"]).expect(0);
    project.run(&["drill", "restore", "-i", "newest=2"]).expect(4);
    fs::write(project.file("practice/backups/first.tar.gz"), "torn").expect("a file");
    project.run(&["drill", "restore"]).expect(4);
    assert_eq!(project.lines("practice/site/index.html"), ["<h1>It works</h1>"], "the site was not touched");
}

#[test]
fn init_names_the_project_and_serves_editors_git_and_ci() {
    let project = Project::empty();
    project.run(&["init", "Shop Recovery"]).expect(0);
    let dir = project.file("Shop Recovery");
    let text = fs::read_to_string(dir.join("lifeboat.yaml")).expect("a file");
    assert!(text.contains("project: shop-recovery\n"), "{text}");
    project.run(&["schema", "--check", "Shop Recovery/.lifeboat/schemas"]).expect(0);
    let hook = dir.join(".lifeboat/hooks/pre-commit").metadata().expect("the hook");
    assert_eq!(hook.permissions().mode() & 0o111, 0o111, "it can be executed");
    let workflow = fs::read_to_string(dir.join(".github/workflows/lifeboat.yaml")).expect("a file");
    serde_yaml::from_str::<serde_json::Value>(&workflow).expect("YAML");
    assert!(workflow.contains("lifeboat check --format github"));
    let ignored = fs::read_to_string(dir.join(".gitignore")).expect("a file");
    assert!(ignored.lines().any(|line| line == "/.lifeboat/state/"), "{ignored}");
}

#[test]
fn init_overwrites_nothing() {
    let project = Project::empty();
    project.write("runbooks/restore.yaml", "mine");
    project.write(".gitignore", "target");
    let ran = project.run(&["init"]).expect(2);
    assert!(ran.stderr.contains("runbooks/restore.yaml"), "{}", ran.stderr);
    assert_eq!(project.lines("runbooks/restore.yaml"), ["mine"]);
    assert!(!project.file("lifeboat.yaml").exists() && !project.file(".github").exists());

    fs::remove_file(project.file("runbooks/restore.yaml")).expect("removed");
    project.run(&["init"]).expect(0);
    assert_eq!(project.lines(".gitignore"), ["target", "/.lifeboat/state/", "/practice/"]);
    project.run(&["init"]).expect(2);
}
