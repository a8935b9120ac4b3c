//! `lifeboat evidence`: one archive of a run, and its check with nothing else.

use std::fs;

use crate::project::{Project, until};
use crate::receiver::Receiver;

const STEPS: &str = "
- { id: one, effect: read, run: 'echo first; echo oops >&2' }
- { id: each, effect: read, for_each: [a, b], run: 'echo {{ item }}' }";

/// What follows a word in a text.
fn after<'t>(text: &'t str, word: &str) -> &'t str {
    let (_, rest) = text.split_once(word).unwrap_or_else(|| panic!("no `{word}`: {text}"));
    rest.split_whitespace().next().expect("something follows")
}

#[test]
fn the_head_that_was_printed_and_posted_proves_the_archive_anywhere() {
    let ops = Receiver::answering("200 OK");
    let project = Project::with_steps(STEPS);
    project.write("lifeboat.yaml", "project: test\nnotices: { succeeded: ops }\n");
    project.write("ops", &ops.url());
    project.write(
        "environments/sandbox.yaml",
        "environment: sandbox\nresources:\n  ops: { kind: webhook, webhook: { file: ../ops } }\n",
    );
    let ran = project.run(&["run", "job"]).expect(0);
    let head = after(&ran.stderr, "its head: ").to_owned();
    assert_eq!(ops.posts()[0]["hash"], head.as_str(), "the notice has the same");
    assert!(project.run(&["report"]).stdout.contains(&head), "and so has the report");

    let packed = project.run(&["evidence", "-o", "a.tar.gz"]).expect(0);
    assert_eq!(after(&packed.stdout, "head "), head);
    // The state is not needed, nor is the project.
    let elsewhere = Project::empty();
    fs::rename(project.file("a.tar.gz"), elsewhere.file("a.tar.gz")).expect("the same file system");
    let verified = elsewhere.run(&["evidence", "verify", "a.tar.gz", "--head", &head]).expect(0);
    assert!(verified.stdout.starts_with("VERIFIED: job@sandbox"), "{}", verified.stdout);
    assert!(verified.stdout.contains(" 7 files of output and sources"), "{}", verified.stdout);

    let without = elsewhere.run(&["evidence", "verify", "a.tar.gz"]).expect(5);
    assert!(without.stdout.starts_with("CONSISTENT IN ITSELF"), "{}", without.stdout);
    assert!(without.stderr.contains("made up"), "{}", without.stderr);
    let other = "0".repeat(64);
    let refused = elsewhere.run(&["evidence", "verify", "a.tar.gz", "--head", &other]).expect(7);
    assert!(refused.stderr.contains("error[LB0388]") && refused.stderr.contains(&head), "{}", refused.stderr);
    elsewhere.run(&["evidence", "verify", "a.tar.gz", "--head", "abc"]).expect(2);
    elsewhere.run(&["evidence", "verify", "nothing.tar.gz"]).expect(7);
    let mut bytes = fs::read(elsewhere.file("a.tar.gz")).expect("an archive");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(elsewhere.file("a.tar.gz"), bytes).expect("a file");
    elsewhere.run(&["evidence", "verify", "a.tar.gz", "--head", &head]).expect(7);
}

#[test]
fn evidence_of_a_run_that_goes_on_says_so_and_output_of_a_lost_attempt_is_tied_on_resume() {
    let steps =
        "- { id: slow, effect: idempotent, run: 'echo begun; touch begun; test -e again || sleep 600' }";
    let project = Project::with_steps(steps);
    let running = project.start(&["run", "job"]);
    until("it runs", || project.file("begun").exists());
    let printed = project.run_dir().join("output/slow/1/stdout");
    until("what it has printed is kept", || fs::metadata(&printed).is_ok_and(|file| file.len() > 0));
    let packed = project.run(&["evidence", "-o", "a.tar.gz", "--format", "json"]).expect(0).json();
    assert_eq!(packed["ended"], false);
    let head = packed["head"].as_str().expect("a hash");
    let verified =
        project.run(&["evidence", "verify", "a.tar.gz", "--head", head, "--format", "json"]).expect(5).json();
    assert_eq!(verified["outcome"], serde_json::Value::Null);
    assert_eq!(verified["not_in_chain"], serde_json::json!(["output/slow/1/stdout"]));

    drop(running);
    project.write("again", "");
    project.run(&["resume"]).expect(0);
    let packed = project.run(&["evidence", "-o", "b.tar.gz", "--format", "json"]).expect(0).json();
    assert_eq!((&packed["ended"], &packed["not_in_chain"]), (&true.into(), &serde_json::json!([])));
    let (old, new) = (head, packed["head"].as_str().expect("a hash"));
    project.run(&["evidence", "verify", "b.tar.gz", "--head", new]).expect(0);
    project.run(&["evidence", "verify", "b.tar.gz", "--head", old]).expect(7);
}

#[test]
fn what_was_changed_after_the_run_is_named() {
    let project = Project::with_steps(STEPS);
    project.run(&["run", "job"]).expect(0);
    let log = project.run(&["logs"]).stdout;
    assert!(log.contains("first"), "{log}");
    let runs = fs::read_dir(project.file(".lifeboat/state/runs"))
        .expect("runs")
        .next()
        .expect("one")
        .expect("a run");
    fs::write(runs.path().join("output/one/1/stdout"), "second\n").expect("a file");
    let refused = project.run(&["evidence"]).expect(7);
    assert!(
        refused.stderr.contains("LB0385") && refused.stderr.contains("output/one/1/stdout"),
        "{}",
        refused.stderr
    );
}
