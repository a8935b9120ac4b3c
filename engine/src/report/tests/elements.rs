//! Steps that are repeated for each element of a list.

use serde_json::json;

use super::fixture::{Journal, add, check, failure, id, plan, point, restoring};
use crate::cpu_time::cpu_time;
use crate::model::event::{Decision, Done, EventKind};
use crate::model::outcome::{Failure, Mode, Outcome, RunOutcome};
use crate::plan::{ForEach, Plan};
use crate::report::{LiveStatus, Owner, page};

fn looped(count: usize) -> Plan {
    let mut plan = plan(Mode::Recovery);
    add(&mut plan, "list", "run", "List the shards");
    let step = add(&mut plan, "shard", "postgres.restore_dump", "Restore shard {{ item }}");
    step.for_each = Some(ForEach { list: json!("{{ steps.list.rows }}"), max_parallel: 2 });
    step.recovered = true;
    restoring(step, "db");
    add(&mut plan, "open", "service.start", "Open again");
    assert!(count > 0);
    plan
}

fn element(at: usize) -> String {
    format!("shard[{at}]")
}

fn begun(count: usize) -> Journal {
    let mut journal = Journal::begun(looped(count));
    journal.at(5_000).start("list", 1).at(6_000).ok("list");
    let elements = (0..count).map(|at| json!(format!("s{at}"))).collect();
    journal.push(EventKind::ElementsChosen { step: id("shard"), elements });
    journal
}

fn done(at: usize) -> Done {
    let point = point("db", "2026-11-21T03:11:00Z", "snapshot time");
    Done {
        checks: vec![check("rows", "4", "4")],
        recovery_points: vec![point],
        facts: [("dump".to_owned(), format!("d{at}"))].into(),
        ..Done::default()
    }
}

/// Four shards, two at a time; the second needs a retry, the third is held.
fn held() -> Journal {
    let mut journal = begun(5);
    journal.at(7_000).start("shard[0]", 1).start("shard[1]", 1);
    journal.at(9_000).done("shard[0]", 1, done(0)).start("shard[2]", 1);
    journal
        .at(10_000)
        .fail("shard[1]", 1, failure("LB1104", "the connection was lost"))
        .retry("shard[1]", 2, 15_000);
    journal.at(11_000).server("shard[2]", "scratch server").fail(
        "shard[2]",
        1,
        failure("LB1105", "no such dump"),
    );
    let failure = failure("LB1105", "no such dump");
    journal.push(EventKind::StepHeld { step: id("shard[2]"), failure });
    journal.at(15_000).start("shard[1]", 2).at(16_000);
    journal
}

#[test]
fn a_loop_with_a_held_element_as_it_stands() {
    let status = held().status(Owner::Present);
    let current: Vec<_> = status.current.iter().map(|step| step.step.as_str()).collect();
    assert_eq!(current, ["shard", "shard[1]"], "the held one is under what needs a person");
    assert_eq!(status.current[1].title, "Restore shard s1");
    let progress = status.current[0].progress.as_ref().unwrap();
    assert_eq!((progress.done, progress.total), (1, Some(5)));
    assert_eq!(status.needs_person[0].command, "lifeboat retry 0badcafe 'shard[2]'");
    assert_eq!((status.ended, status.total), (1, 3), "elements are no steps");
    insta::assert_snapshot!(status.page().plain(100));
}

#[test]
fn a_loop_that_a_person_helped_over_in_the_report() {
    let mut journal = held();
    journal.at(18_000).done("shard[1]", 2, done(1));
    journal.decide("ada", Decision::SkipStep { step: id("shard[2]"), reason: "it is empty".into() });
    journal.outcome("shard[2]", Outcome::Skipped { reason: "skipped by ada: it is empty".into() });
    journal.start("shard[3]", 1).start("shard[4]", 1).at(25_000).done("shard[3]", 1, done(3)).done(
        "shard[4]",
        1,
        done(4),
    );
    journal.outcome("shard", Outcome::Succeeded);
    journal.at(26_000).start("open", 1).at(27_000).ok("open");
    journal.push(EventKind::EndingBegan {
        outcome: RunOutcome::Succeeded,
        reason: "all steps ended".into(),
        undo: false,
    });
    journal.end(RunOutcome::Succeeded);
    let report = journal.report();
    let loop_step = report.steps.iter().find(|step| step.id == id("shard")).unwrap();
    let counts = loop_step.elements.as_ref().unwrap();
    assert_eq!((counts.total, counts.succeeded, counts.decided, counts.listed.len()), (5, 4, 1, 5));
    assert_eq!(loop_step.started_at.unwrap().0 + 19_000, loop_step.ended_at.unwrap().0);
    assert_eq!(loop_step.held_ms + loop_step.working_ms + loop_step.waiting_for_retry_ms, 18_000);
    assert!(report.checks.iter().any(|check| check.step == id("shard[3]")));
    assert_eq!(report.rpo.stores[0].step, id("shard[4]"));
    assert_eq!(report.created[0].step, id("shard[2]"));
    assert!(report.not_checked.iter().any(|open| open.step == Some(id("shard[2]"))));
    assert!(report.rto.recovered_at.is_some());
    insta::with_settings!({ filters => vec![(r"\b[0-9a-f]{64}\b", "[digest]")] }, {
        insta::assert_snapshot!(page(&report).plain(100));
    });
}

#[test]
fn a_run_that_an_element_ended_names_it() {
    let mut journal = begun(3);
    let broken = failure("LB1105", "no such dump");
    journal.at(7_000).start("shard[0]", 1).fail("shard[0]", 1, broken.clone());
    journal.outcome("shard[0]", Outcome::Failed { failure: broken.clone() });
    let whole = Failure { message: "`shard[0]` of 3 elements failed: no such dump".into(), ..broken };
    journal.outcome("shard", Outcome::Failed { failure: whole });
    journal.push(EventKind::EndingBegan {
        outcome: RunOutcome::Failed,
        reason: "`shard` failed".into(),
        undo: false,
    });
    journal
        .outcome("open", Outcome::NotRun { reason: "the run ended before it".into() })
        .end(RunOutcome::Failed);
    let report = journal.report();
    let failure = report.outcome.failure.unwrap();
    assert_eq!((failure.step.as_str(), failure.attempts), ("shard", 1));
    assert!(failure.failure.message.contains("shard[0]"));
}

#[test]
fn ten_thousand_elements_are_counted_and_not_listed() {
    let mut journal = begun(10_000);
    for at in 0..10_000 {
        let name = element(at);
        journal.at(7_000 + at as i64).start(&name, 1).done(&name, 1, done(at));
    }
    let begun = cpu_time();
    let status: LiveStatus = journal.status(Owner::Present);
    let report = journal.report();
    let text = page(&report).plain(100);
    let took = cpu_time() - begun;
    assert!(took.as_secs() < 30, "{took:?}");
    assert_eq!(status.current.len(), 1);
    let counts = report.steps[1].elements.as_ref().unwrap();
    assert_eq!((counts.succeeded, counts.listed.len()), (10_000, 0));
    assert_eq!(report.checks.len(), 10_000, "the data have all");
    assert!(text.lines().count() < 150, "{} lines", text.lines().count());
    assert!(text.contains("9980 more of its elements passed"), "{text}");
}
