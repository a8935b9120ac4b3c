//! What people say at the wrong moment, twice, or against each other: each is refused with what to do instead.

use std::thread;

use lifeboat_engine::journal;
use lifeboat_engine::model::event::EventKind;

use crate::project::{Project, Ran, until};

const APPROVAL: &str = "
- { id: ask, uses: approval, with: { message: 'Promote?' } }
- { id: after, effect: idempotent, run: 'echo after >> done' }";

/// A project in which two of three people must approve.
fn two_of_three() -> Project {
    let project = Project::new();
    project.write(
        "lifeboat.yaml",
        "project: test\npeople: { ada: { contact: '+49 30 1' }, sam: , bob: , kim: }\nroles: { lead: [ada, sam, bob] }\n",
    );
    project.runbook(
        "job",
        "roles: { lead: Decides }\n",
        "- { id: ask, uses: approval, with: { role: lead, message: 'Promote?', minimum: 2 } }
- { id: after, effect: idempotent, run: 'echo {{ steps.ask.by }} : {{ steps.ask.comment }} >> done' }",
    );
    project.run(&["check", "--deny-warnings"]).expect(0);
    project
}

fn waiting(project: &Project, runs: &[&str]) {
    project.run(runs).expect(6);
}

fn refused(ran: &Ran, texts: &[&str]) {
    assert_eq!(ran.exit, 7, "{}", ran.stderr);
    for text in texts {
        assert!(ran.stderr.contains(text), "no `{text}`: {}", ran.stderr);
    }
    assert!(ran.stderr.contains("help: ") || ran.stderr.contains("lifeboat "), "{}", ran.stderr);
}

/// How many events of a run fit.
fn count(project: &Project, fits: impl Fn(&EventKind) -> bool) -> usize {
    let (_, events) = journal::read(&project.run_dir()).expect("a journal");
    events.iter().filter(|event| fits(&event.kind)).count()
}

#[test]
fn an_approval_takes_different_people_of_the_role_who_did_not_start_the_run() {
    let project = two_of_three();
    waiting(&project, &["run", "job", "--no-wait", "--as", "ada"]);
    refused(
        &project.run(&["approve", "latest", "--as", "kim"]),
        &["ada, sam, bob", "kim does not have that role", "--as NAME"],
    );
    refused(&project.run(&["approve", "latest", "--as", "ada"]), &["ada started this run", "allow_starter"]);
    project.run(&["approve", "latest", "--as", "sam", "-m", "rows fit"]).expect(0);
    let status = project.run(&["status"]).expect(0).stdout;
    assert!(status.contains("1 of 2 have approved: sam"), "{status}");
    assert!(status.trim_end().ends_with(" ask"), "it still waits, and says what to type: {status}");
    refused(
        &project.run(&["approve", "latest", "--as", "sam"]),
        &["sam has said approve", "1 of 2", "other people"],
    );
    project.run(&["approve", "latest", "--as", "bob", "-m", "sums fit"]).expect(0);
    let ran = project.run(&["resume"]).expect(0);
    assert_eq!(project.lines("done"), ["sam and bob : sam: rows fit; bob: sums fit"], "{}", ran.stderr);
    let report = project.report();
    assert_eq!(report["questions"][0]["before"][0]["by"]["name"], "sam");
    assert_eq!(report["questions"][0]["answer"]["by"]["name"], "bob");
    // What was not granted is in the record too.
    assert_eq!(count(&project, |kind| matches!(kind, EventKind::Refused { .. })), 3);
}

#[test]
fn one_rejection_settles_an_approval_that_takes_two() {
    let project = two_of_three();
    waiting(&project, &["run", "job", "--no-wait", "--as", "ada"]);
    project.run(&["approve", "latest", "--as", "sam"]).expect(0);
    project.run(&["reject", "latest", "ask", "--as", "bob", "-m", "wrong rows"]).expect(0);
    let ran = project.run(&["resume"]).expect(4);
    assert!(ran.all().contains("bob refused approval: wrong rows"), "{}", ran.all());
}

#[test]
fn whoever_started_the_run_may_approve_where_the_runbook_allows_it() {
    let project = two_of_three();
    project.runbook(
        "job",
        "roles: { lead: Decides }\n",
        "- { id: ask, uses: approval, with: { role: lead, message: 'Promote?', allow_starter: true } }",
    );
    waiting(&project, &["run", "job", "--no-wait", "--as", "ada"]);
    project.run(&["approve", "latest", "--as", "ada"]).expect(0);
    project.run(&["resume"]).expect(0);
}

#[test]
fn a_run_that_nobody_could_approve_is_refused_before_it_begins() {
    let project = two_of_three();
    project.write("lifeboat.yaml", "project: test\npeople: { ada: , sam: }\nroles: { lead: [ada, sam] }\n");
    let ran = project.run(&["run", "job", "--as", "ada"]);
    refused(&ran, &["LB0371", "`ask` takes the approval of 2 people of `lead`", "nothing has begun"]);
    assert!(
        !project.file(".lifeboat/state/runs").exists()
            || std::fs::read_dir(project.file(".lifeboat/state/runs")).expect("runs").next().is_none()
    );
    project.write("lifeboat.yaml", "project: test\npeople: { ada: , sam: }\nroles: { lead: [ada] }\n");
    let ran = project.run(&["check"]).expect(3);
    assert!(
        ran.all().contains("LB0370") && ran.all().contains("2 people of `lead` must approve"),
        "{}",
        ran.all()
    );
}

#[test]
fn an_approval_that_may_come_is_looked_at_before_the_run_as_one_that_comes() {
    let project = two_of_three();
    project.write("lifeboat.yaml", "project: test\npeople: { ada: , sam: }\nroles: { lead: [ada, sam] }\n");
    let under = |condition: &str| {
        let steps = format!(
            "- {{ id: look, effect: read, run: 'echo many' }}
- group: careful
  if: \"{condition}\"
  steps:
    - {{ id: ask, uses: approval, with: {{ role: lead, message: 'Promote?', minimum: 2 }} }}"
        );
        let head = "roles: { lead: Decides }\ninputs: { careful: { type: boolean, default: false } }\n";
        project.runbook("job", head, &steps);
        project.run(&["run", "job", "--as", "ada"])
    };
    let found_out = under("steps.look.stdout == 'many'");
    refused(&found_out, &["LB0371", "`ask` where it comes to it (`if: steps.look.stdout == 'many'`)"]);
    refused(&under("not inputs.careful"), &["LB0371", "`ask` takes the approval of 2 people"]);
    // What is known not to come does not stand in the way.
    under("inputs.careful").expect(0);
}

#[test]
fn a_decision_about_an_unknown_step_names_the_one_that_was_meant() {
    let project = Project::with_steps(APPROVAL);
    waiting(&project, &["run", "job", "--no-wait"]);
    refused(&project.run(&["retry", "latest", "aftr"]), &["no step `aftr`", "did you mean `after`?"]);
    let ran = project.run(&["approve", "latest", "aks"]).expect(2);
    assert!(ran.stderr.contains("did you mean `ask`?"), "{}", ran.stderr);
}

#[test]
fn a_decision_about_a_step_that_is_not_held_says_where_it_is() {
    let project = Project::with_steps(APPROVAL);
    waiting(&project, &["run", "job", "--no-wait"]);
    refused(&project.run(&["retry", "latest", "after"]), &["`after` is not held", "it has not started"]);
    refused(
        &project.run(&["skip", "latest", "ask", "--reason", "x"]),
        &["`ask` is not held", "waits for an answer"],
    );
}

#[test]
fn a_decision_after_the_end_is_refused() {
    let project = Project::with_steps("- { id: one, effect: idempotent, run: 'true' }");
    project.run(&["run", "job"]).expect(0);
    for command in [
        &["approve", "latest"][..],
        &["retry", "latest", "one"],
        &["abort", "latest"],
        &["note", "latest", "x"],
    ] {
        refused(&project.run(command), &["has ended", "lifeboat report"]);
    }
}

#[test]
fn an_approval_after_its_timeout_is_refused_and_says_how_to_be_asked_anew() {
    let project = Project::new();
    project.runbook(
        "job",
        "objective: { rto: 4h }\n",
        "- { id: ask, uses: approval, with: { message: 'Promote?' }, timeout: 5s, on_error: hold, recovered: true }",
    );
    waiting(&project, &["run", "job"]);
    refused(
        &project.run(&["approve", "latest", "ask"]),
        &["`ask` asks no more", "it is held", "lifeboat retry"],
    );
    // On a busy machine an answer may come after the time again, and then it is asked once more.
    until("an answer comes in time", || {
        project.run(&["retry", "latest", "ask"]).expect(0);
        let mut running = project.start(&["resume"]);
        until("it asks anew", || {
            running.has_ended() || project.run(&["status"]).stdout.contains("WAITING for")
        });
        let granted = project.run(&["approve", "latest", "ask"]).exit == 0;
        running.end().expect(if granted { 0 } else { 6 });
        granted
    });
}

#[test]
fn an_approval_of_a_step_that_still_runs_is_refused() {
    let project = Project::with_steps(
        "- { id: long, effect: idempotent, run: 'touch begun; until test -e go; do sleep 0.1; done' }",
    );
    let running = project.start(&["run", "job"]);
    until("it runs", || project.file("begun").exists());
    refused(&project.run(&["approve", "latest", "long"]), &["`long` asks nothing", "it is running"]);
    project.write("go", "");
    running.end().expect(0);
}

#[test]
fn two_parallel_approvals_are_separate() {
    let project = Project::with_steps(
        "- group: both
  parallel: true
  steps:
    - { id: left, uses: approval, with: { message: 'Left?' } }
    - { id: right, uses: approval, with: { message: 'Right?' } }",
    );
    waiting(&project, &["run", "job", "--no-wait"]);
    let ran = project.run(&["approve", "latest"]).expect(2);
    assert!(ran.stderr.contains("several steps wait: left, right"), "{}", ran.stderr);
    project.run(&["approve", "latest", "right"]).expect(0);
    project.run(&["resume", "--no-wait"]).expect(6);
    let status = project.run(&["status"]).stdout;
    assert!(status.contains("Left?") && !status.contains("Right?"), "{status}");
    project.run(&["approve", "latest"]).expect(0);
    project.run(&["resume"]).expect(0);
}

#[test]
fn a_paused_run_can_be_ended() {
    let project = Project::with_steps(APPROVAL);
    let running = project.start(&["run", "job"]);
    until("it asks", || project.run(&["status"]).stdout.contains("Promote?"));
    project.run(&["pause", "latest"]).expect(0);
    project.run(&["abort", "latest", "--reason", "wrong target"]).expect(0);
    running.end().expect(4);
    assert_eq!(project.report()["outcome"]["state"], "aborted");
}

#[test]
fn a_deadline_ends_its_attempt_while_the_run_is_paused() {
    let paused = |limit: &str| {
        let project = Project::with_steps(&format!(
            "- {{ id: ask, uses: approval, with: {{ message: 'Promote?' }}, timeout: {limit} }}"
        ));
        let mut running = project.start(&["run", "job"]);
        until("it asks", || running.has_ended() || project.run(&["status"]).stdout.contains("Promote?"));
        let paused = project.run(&["pause", "latest"]).exit == 0;
        let ran = running.end().expect(4);
        assert!(ran.all().contains(&format!("`ask` did not end within {limit}")), "{}", ran.all());
        refused(&project.run(&["approve", "latest", "ask"]), &["has ended"]);
        paused
    };
    // On a busy machine a command may take longer than the step may.
    assert!(["2s", "15s", "1m"].into_iter().any(paused), "a pause takes more than a minute");
}

#[test]
fn of_two_answers_at_the_same_moment_the_first_counts_and_the_other_is_told() {
    for drive in [true, false] {
        let project = Project::with_steps(APPROVAL);
        let running = if drive {
            let running = project.start(&["run", "job"]);
            until("it asks", || project.run(&["status"]).stdout.contains("Promote?"));
            Some(running)
        } else {
            waiting(&project, &["run", "job", "--no-wait"]);
            None
        };
        let say = |word: &'static str, name: &'static str| {
            let mut command = project.command(&[word, "latest", "ask", "--as", name]);
            thread::spawn(move || Ran::of(&mut command))
        };
        let said = [say("approve", "ada"), say("reject", "sam")];
        let [ada, sam] = said.map(|it| it.join().expect("it ran"));
        let (winner, loser, told) = if ada.exit == 0 {
            (&ada, &sam, "answered already: approve by ada")
        } else {
            (&sam, &ada, "answered already: reject by sam")
        };
        assert_eq!(winner.exit, 0, "{}", winner.stderr);
        // The run may have come to its end by then.
        assert!(loser.stderr.contains(told) || loser.stderr.contains("has ended"), "{}", loser.stderr);
        assert_eq!(loser.exit, 7);
        let exit = if ada.exit == 0 { 0 } else { 4 };
        match running {
            Some(running) => running.end(),
            None => project.run(&["resume"]),
        }
        .expect(exit);
        assert_eq!(count(&project, |kind| matches!(kind, EventKind::QuestionAnswered { .. })), 1);
    }
}

#[test]
fn of_a_retry_and_an_abort_at_the_same_moment_both_see_the_other() {
    let project = Project::new();
    project.runbook(
        "job",
        "objective: { rto: 4h }\n",
        "- { id: one, effect: idempotent, recovered: true, run: 'false' }",
    );
    waiting(&project, &["run", "job"]);
    let say = |words: &'static [&'static str]| {
        let mut command = project.command(words);
        thread::spawn(move || Ran::of(&mut command))
    };
    let said = [say(&["retry", "latest", "one", "--as", "ada"]), say(&["abort", "latest", "--as", "sam"])];
    let [retry, abort] = said.map(|it| it.join().expect("it ran"));
    // Who ends a run ends it, whatever was to be tried again; who comes after that is told.
    assert_eq!(abort.exit, 0, "{}", abort.stderr);
    if retry.exit != 0 {
        refused(&retry, &["cannot be retried: sam has ended the run"]);
    }
    project.run(&["resume"]).expect(4);
    assert_eq!(project.report()["outcome"]["state"], "aborted");
}

#[test]
fn an_answer_given_twice_by_the_same_person_is_one_answer() {
    let project = Project::with_steps(APPROVAL);
    waiting(&project, &["run", "job", "--no-wait"]);
    for _ in 0..2 {
        project.run(&["approve", "latest", "ask", "--as", "ada"]).expect(0);
    }
    refused(
        &project.run(&["approve", "latest", "ask", "--as", "sam"]),
        &["answered already: approve by ada"],
    );
    assert_eq!(count(&project, |kind| matches!(kind, EventKind::QuestionAnswered { .. })), 1);
}

#[test]
fn a_request_that_comes_twice_is_one_event() {
    let project = Project::with_steps(APPROVAL);
    waiting(&project, &["run", "job", "--no-wait"]);
    let file = project.run_dir().join("inbox/0199a5c0-7d00-7000-8000-000000000001.json");
    let request =
        r#"{"request":"decide","by":{"name":"ada","uid":1},"decision":{"decision":"note","text":"twice"}}"#;
    for _ in 0..2 {
        std::fs::write(&file, request).expect("a request");
        project.run(&["note", "latest", "another"]).expect(0);
        assert!(!file.exists());
    }
    let twice = |kind: &EventKind| format!("{kind:?}").contains("twice");
    assert_eq!(count(&project, twice), 1);
    // The same when a process drives the run.
    std::fs::write(&file, request).expect("a request");
    let running = project.start(&["resume"]);
    until("it is taken away", || !file.exists());
    project.run(&["approve", "latest"]).expect(0);
    running.end().expect(0);
    assert_eq!(count(&project, twice), 1);
}
