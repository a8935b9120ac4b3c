//! Work by hand, confirmed point by point, with evidence in words or in files.

use std::fs;

use crate::project::Project;

const STEPS: &str = "
- id: mail
  manual:
    role: lead
    text: Look into the mailbox of the bank.
    checklist: [No mail is newer than the incident, The totals agree, The bank knows]
- { id: after, effect: idempotent, run: 'echo after >> done' }";

fn waiting() -> Project {
    let project = Project::new();
    project.write(
        "lifeboat.yaml",
        "project: test\npeople: { ada: { name: Ada, contact: \"+49 30 1234\", roles: [lead] }, sam: { name: Sam } }\nroles: { lead: [ada, sam] }\n",
    );
    project.write("environments/sandbox.yaml", "environment: sandbox\nsecrets: { key: { file: ../key } }\n");
    project.write("key", "secret-of-this-test");
    project.runbook("job", "roles: { lead: Decides }", STEPS);
    project.run(&["run", "job", "--no-wait"]).expect(6);
    project
}

#[test]
fn a_checklist_is_confirmed_point_by_point() {
    let project = waiting();
    let say = |more: &[&str]| project.run(&[&["answer", "latest", "mail"][..], more].concat());
    let refused = |more: &[&str], why: &str| {
        let ran = say(more).expect(7);
        assert!(ran.stderr.contains(why), "no {why}: {}", ran.stderr);
    };
    refused(&["done", "--as", "ada"], "open: 1, 2, 3");
    refused(&["done", "--as", "ada", "--point", "4"], "3 points, and no point 4");
    say(&["done", "--as", "ada", "--point", "1,3", "-m", "newest of 03:09; the bank was called"]).expect(0);
    say(&["done", "--as", "ada", "--point", "1,3"]).expect(0);
    refused(&["done", "--as", "sam", "--point", "3"], "was confirmed by Ada (ada) already");
    let status = project.run(&["status"]).stdout;
    for text in ["open: 1 of 3 (2)", "done --point 2", "+49 30 1234"] {
        assert!(status.contains(text), "no {text}: {status}");
    }
    project.run(&["resume", "--no-wait"]).expect(6);
    assert_eq!(project.lines("done"), [""; 0], "two of three are not enough");

    project.write("totals.csv", "day,sum\n1,2\n");
    say(&["done", "--as", "sam", "-p", "2", "--file", &project.file("totals.csv").to_string_lossy()])
        .expect(0);
    project.run(&["resume"]).expect(0);
    assert_eq!(project.lines("done"), ["after"]);
    let report = project.report();
    let checks: Vec<_> =
        report["checks"].as_array().expect("a list").iter().map(|check| check["actual"].as_str()).collect();
    assert_eq!(checks.len(), 3, "{checks:?}");
    let text = format!("{checks:?}");
    assert!(text.contains("confirmed by Ada (ada): newest of 03:09"), "{text}");
    assert!(text.contains("confirmed by Sam (sam) (file totals.csv, SHA-256 "), "{text}");
    let people = project.run(&["report", "--format", "markdown"]).stdout;
    assert!(
        people.contains("for point 1, 3 by Ada") && people.contains("file totals.csv, 12 B, SHA-256"),
        "{people}"
    );
    evidence(&project);
}

/// The file is in the archive, tied to the head; one that was changed afterwards is no evidence.
fn evidence(project: &Project) {
    let written = project.run(&["evidence", "-o", "all.tar.gz"]).expect(0);
    let head = project.report()["journal"]["head"].as_str().map(ToOwned::to_owned);
    let head = head.unwrap_or_else(|| {
        let all = written.all();
        all.split(|c: char| !c.is_ascii_hexdigit()).find(|word| word.len() == 64).expect("a head").to_owned()
    });
    project.run(&["evidence", "verify", "all.tar.gz", "--head", &head]).expect(0);
    let given = fs::read_dir(project.run_dir().join("given")).expect("files").flatten().next().expect("one");
    let file = given.path().join("totals.csv");
    assert_eq!(fs::read_to_string(&file).expect("the file"), "day,sum\n1,2\n");
    fs::write(&file, "day,sum\n1,3\n").expect("a file");
    let ran = project.run(&["evidence", "-o", "forged.tar.gz"]);
    assert!(ran.exit != 0 && ran.all().contains("is not what was given"), "{}", ran.all());
    fs::remove_file(&file).expect("it is there");
    project.run(&["evidence", "-o", "less.tar.gz"]).expect(0);
    let ran = project.run(&["evidence", "verify", "less.tar.gz", "--head", &head]).expect(5);
    assert!(ran.all().contains("totals.csv"), "{}", ran.all());
}

#[test]
fn a_point_that_does_not_hold_settles_it() {
    let project = waiting();
    project.run(&["answer", "latest", "mail", "done", "-p", "1", "--as", "ada"]).expect(0);
    project
        .run(&["answer", "latest", "mail", "failed", "-p", "2", "-m", "two are missing", "--as", "sam"])
        .expect(0);
    let ran = project.run(&["resume"]).expect(4);
    assert!(
        ran.all().contains("Sam (sam) could not do it (\"The totals agree\"): two are missing"),
        "{}",
        ran.all()
    );
    assert_eq!(project.lines("done"), [""; 0]);
}

#[test]
fn what_is_no_evidence_is_refused_and_the_step_waits_on() {
    let project = waiting();
    project.write("dump.txt", "key=secret-of-this-test\n");
    project.write("empty.txt", "");
    for (name, why) in [
        ("dump.txt", "holds a secret"),
        ("empty.txt", "is empty"),
        ("none.txt", "No such file"),
        ("runbooks", "is no file"),
    ] {
        let file = project.file(name);
        let ran = project.run(&[
            "answer",
            "latest",
            "mail",
            "done",
            "-p",
            "1",
            "--as",
            "ada",
            "--file",
            &file.to_string_lossy(),
        ]);
        assert!(
            ran.exit != 0 && ran.stderr.contains("LB1720") && ran.stderr.contains(why),
            "{why}: {}",
            ran.all()
        );
    }
    let status = project.run(&["status"]).stdout;
    assert!(status.contains("open: 3 of 3 (1, 2, 3)"), "{status}");
    assert!(!project.run_dir().join("given").exists());
}

#[test]
fn people_see_what_is_asked_point_by_point() {
    let project = waiting();
    project.run(&["answer", "latest", "mail", "done", "-p", "2", "--as", "sam"]).expect(0);
    let message = project.run(&["status", "--format", "json"]).json()["needs_person"][0].clone();
    let shown = format!(
        "{}\n{}",
        message["message"].as_str().expect("a text"),
        message["command"].as_str().expect("a command")
    );
    insta::with_settings!({ filters => vec![("[0-9a-f]{8}", "RUN")] }, {
        insta::assert_snapshot!("a_checklist_half_done", shown);
    });
}
