//! Configuration that the built program writes, looked at in a plan, in a run and in all that the run leaves.

use std::fs;
use std::path::Path;

use crate::project::Project;

const SECRETS: [&str; 2] = ["new-secret-of-many-letters", "earlier-secret-of-the-file"];

fn project() -> Project {
    let project = Project::empty();
    project.write("lifeboat.yaml", "project: test\n");
    project.write(
        "environments/sandbox.yaml",
        "environment: sandbox\nsecrets: { app_key: { file: ../key } }\nvars: { port: 8080 }\n",
    );
    project.write("key", &format!("{}\n", SECRETS[0]));
    project.write("app.template", "PORT={{ port }}\nKEY={{ app_key }}\n");
    project.write("etc/app.env", &format!("PORT=80\nKEY={}\n", SECRETS[1]));
    project
}

fn configure(project: &Project, after: &str) {
    let steps = format!(
        "- id: settings\n  uses: files.template\n  with:\n    template: app.template\n    to: etc/app.env\n    \
         values: {{ port: \"{{{{ vars.port }}}}\" }}\n    secrets: {{ app_key: {{ secret: app_key }} }}\n    \
         check: [grep, -q, '^PORT=8080$', '%s']\n\
         - {{ id: after, effect: idempotent, run: '{after}' }}"
    );
    project.runbook("configure", "", &steps);
}

fn files(dir: &Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in fs::read_dir(dir).expect("a directory").flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            files(&entry.path(), found);
        } else {
            found.push(entry.path());
        }
    }
}

fn assert_no_secret(place: &str, content: &[u8]) {
    let text = String::from_utf8_lossy(content);
    for secret in SECRETS {
        assert!(!text.contains(secret), "{place} has {secret}: {text}");
    }
}

#[test]
fn a_configuration_is_written_and_its_secrets_are_in_it_alone() {
    let project = project();
    configure(&project, "grep -c KEY etc/app.env >seen");
    project.run(&["check", "--deny-warnings"]).expect(0);
    let plan = project.run(&["plan", "configure", "--env", "sandbox"]).expect(0);
    assert!(
        plan.all().contains("+ 2: KEY=<app_key>") && plan.all().contains("+ 1: PORT=8080"),
        "{}",
        plan.all()
    );
    let ran = project.run(&["run", "configure"]).expect(0);
    assert_eq!(project.lines("etc/app.env"), ["PORT=8080", &format!("KEY={}", SECRETS[0])]);
    let kept = fs::read_dir(project.file("etc")).expect("a directory").flatten();
    let kept: Vec<_> = kept.filter(|it| it.file_name().to_string_lossy().contains(".pre-")).collect();
    assert_eq!(kept.len(), 1, "the earlier file is kept");
    let report = project.run(&["report"]).expect(0);
    for (place, said) in [("plan", plan.all()), ("run", ran.all()), ("report", report.all())] {
        assert_no_secret(place, said.as_bytes());
    }
    let mut found = Vec::new();
    files(&project.file(".lifeboat"), &mut found);
    assert!(found.len() > 3, "{found:?}");
    for path in found {
        assert_no_secret(&path.display().to_string(), &fs::read(&path).expect("a file"));
    }
}

#[test]
fn an_aborted_run_puts_the_earlier_configuration_back() {
    let project = project();
    configure(&project, "exit 3");
    project.run(&["run", "configure"]).expect(4);
    assert_eq!(project.lines("etc/app.env"), ["PORT=80", &format!("KEY={}", SECRETS[1])]);
    assert_eq!(fs::read_dir(project.file("etc")).expect("a directory").count(), 1);
}
