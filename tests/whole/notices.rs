//! Notices: who hears of a run without looking at it.

use lifeboat_engine::journal::Reader;

use crate::project::{Project, until};
use crate::receiver::Receiver;

const ALL: &str = "project: test
people: { ada: { name: Ada, contact: +49 30 1234, roles: [lead] } }
roles: { lead: [ada] }
notices:
  held: ops
  waiting: ops
  paused: ops
  interrupted: ops
  failed: [ops, pager]
  succeeded: ops
  aborted: ops
";

fn project(ops: &Receiver, pager: &Receiver) -> Project {
    let project = Project::new();
    project.write("lifeboat.yaml", ALL);
    project.write("ops", &ops.url());
    project.write("pager", &pager.url());
    project.write(
        "environments/sandbox.yaml",
        "environment: sandbox\nresources:\n  ops: { kind: webhook, webhook: { file: ../ops } }\n  \
         pager: { kind: slack, webhook: { file: ../pager } }\n",
    );
    project
}

#[test]
fn a_wait_and_the_end_are_told_with_whom_and_what_to_type() {
    let (ops, pager) = (Receiver::answering("200 OK"), Receiver::answering("200 OK"));
    let project = project(&ops, &pager);
    project.runbook(
        "job",
        "roles: { lead: Decides }",
        "- { id: ask, uses: approval, with: { role: lead, message: 'Promote?' } }",
    );
    project.run(&["check", "--deny-warnings"]).expect(0);
    let running = project.start(&["run", "job"]);
    until("it is told", || ops.occasions() == ["waiting"]);
    let post = &ops.posts()[0];
    let message = post["message"].as_str().expect("a text");
    for text in ["job@sandbox", "WAITING", "Promote?", "ask: Ada (+49 30 1234)"] {
        assert!(message.contains(text), "no {text}: {message}");
    }
    let command = post["command"].as_str().expect("a command");
    assert!(command.starts_with("lifeboat approve ") && command.ends_with(" ask"), "{command}");
    let words: Vec<_> = command.split(' ').skip(1).collect();
    // Whoever runs the test does not have the role, and takes the name of somebody who has.
    let words: Vec<_> = words.into_iter().chain(["--as", "ada"]).collect();
    project.run(&words).expect(0);
    let ran = running.end().expect(0);
    assert!(ran.stderr.contains("ask: Ada (+49 30 1234)"), "{}", ran.stderr);
    assert_eq!(ops.occasions(), ["waiting", "succeeded"]);
    // The head in the message is the head of the journal.
    let hash = ops.posts()[1]["hash"].as_str().expect("a hash").to_owned();
    assert_eq!(hash.len(), 64);
    let runs = std::fs::read_dir(project.file(".lifeboat/state/runs")).expect("runs");
    let run = runs.flatten().next().expect("a run").path();
    let head = Reader::open(&run).and_then(|reader| reader.verify()).expect("a whole journal");
    assert_eq!(head.hash(), hash);
    assert!(ops.posts()[1]["message"].as_str().expect("a text").contains(&hash));
    assert!(pager.posts().is_empty());
}

#[test]
fn a_held_run_and_its_abort_are_told_before_the_process_leaves() {
    let (ops, pager) = (Receiver::answering("200 OK"), Receiver::answering("200 OK"));
    let project = project(&ops, &pager);
    project.runbook(
        "job",
        "objective: { rto: 4h }",
        "- { id: one, effect: idempotent, recovered: true, run: 'echo no disk >&2; exit 9' }",
    );
    project.run(&["run", "job"]).expect(6);
    assert_eq!(ops.occasions(), ["held"]);
    let post = &ops.posts()[0];
    assert_eq!(post["step"], "one");
    assert!(post["message"].as_str().expect("a text").contains("exit code 9"), "{post}");
    assert!(post["command"].as_str().expect("a text").starts_with("lifeboat retry "), "{post}");
    project.run(&["abort", "latest", "--reason", "enough"]).expect(0);
    project.run(&["resume"]).expect(4);
    assert_eq!(ops.occasions(), ["held", "aborted"]);
}

#[test]
fn a_failure_goes_to_every_channel_and_one_that_is_down_changes_nothing() {
    let (ops, pager) = (Receiver::answering("500 Broken"), Receiver::answering("200 OK"));
    let project = project(&ops, &pager);
    project.runbook("job", "", "- { id: one, effect: idempotent, run: 'exit 9' }");
    let ran = project.run(&["run", "job"]).expect(4);
    assert!(ran.stderr.contains("did not reach `ops`"), "{}", ran.stderr);
    assert_eq!(pager.posts().len(), 1);
    assert!(pager.posts()[0]["text"].as_str().expect("a text").contains("FAILED"));
    let report = project.report().to_string();
    assert!(report.contains("did not reach `ops`"), "{report}");
    assert!(!report.contains("hook-of-this-test"), "the address is a secret");
}

#[test]
fn a_crash_is_told_by_whoever_takes_the_run_over() {
    let (ops, pager) = (Receiver::answering("200 OK"), Receiver::answering("200 OK"));
    let project = project(&ops, &pager);
    project.runbook(
        "job",
        "",
        "- { id: slow, effect: idempotent, run: 'touch begun; test -e again || sleep 600' }",
    );
    let running = project.start(&["run", "job"]);
    until("it runs", || project.file("begun").exists());
    drop(running);
    project.write("again", "");
    project.run(&["resume"]).expect(0);
    assert_eq!(ops.occasions(), ["interrupted", "succeeded"]);
    assert!(ops.posts()[0]["message"].as_str().expect("a text").contains("`slow`"));
}

#[test]
fn a_channel_that_an_environment_lacks_is_found_by_check() {
    let (ops, pager) = (Receiver::answering("200 OK"), Receiver::answering("200 OK"));
    let project = project(&ops, &pager);
    project.runbook("job", "", "- { id: one, effect: read, run: 'true' }");
    project.write(
        "environments/sandbox.yaml",
        "environment: sandbox\nresources:\n  ops: { kind: host, local: true }\n  pagerr: { kind: slack, webhook: { env: X } }\n",
    );
    let ran = project.run(&["check"]).expect(3);
    for text in ["LB0168", "`ops` is a host in `sandbox`", "did you mean `pagerr`?", "lifeboat.yaml:9:17"] {
        assert!(ran.stdout.contains(text), "no {text}: {}", ran.stdout);
    }
    // A run goes on, for a missing channel must not stop a recovery.
    project.write("environments/sandbox.yaml", "environment: sandbox\n");
    let ran = project.run(&["run", "job"]).expect(0);
    assert!(ran.stderr.contains("warning[LB0168]"), "{}", ran.stderr);
}
