use serde_json::json;

use super::*;
use crate::journal::Journal;
use crate::journal::test_support::{TickClock, declared, finished, header, plan};
use crate::runs::SystemProbe;

fn state() -> (tempfile::TempDir, StateDir) {
    let dir = tempfile::tempdir().unwrap();
    let state = StateDir::open(&dir.path().join("state"), &SystemProbe).unwrap();
    (dir, state)
}

async fn declare(state: &StateDir, runbook: &str) -> (RunId, Journal) {
    let run = RunId::generate();
    let dir = state.create_run(run).unwrap();
    let header = Header { run, plan: Plan { runbook: runbook.to_owned(), ..plan() }, ..header() };
    let journal = Journal::create(dir.path(), header, TickClock::starting_at(1_000)).unwrap();
    journal.append(vec![declared()]).await.unwrap();
    (run, journal)
}

fn ids(index: &Index, filter: &Filter) -> Vec<RunId> {
    index.list(filter, 10).unwrap().iter().map(|summary| summary.run).collect()
}

#[tokio::test]
async fn runs_are_listed_newest_first_and_filtered() {
    let (_keep, state) = state();
    let (first, journal) = declare(&state, "restore").await;
    let (second, _open) = declare(&state, "drill").await;
    journal.append(vec![finished(RunOutcome::Failed)]).await.unwrap();
    state.create_run(RunId::generate()).unwrap();

    let index = Index::open(&state).unwrap();
    assert_eq!(ids(&index, &Filter::default()), [second, first], "a run without a journal is none");
    assert_eq!(index.list(&Filter::default(), 1).unwrap().len(), 1);
    let only = |filter: Filter| ids(&index, &filter);
    assert_eq!(only(Filter { runbook: Some("restore".into()), ..Filter::default() }), [first]);
    assert_eq!(only(Filter { standing: Some(Standing::Open), ..Filter::default() }), [second]);
    assert_eq!(only(Filter { standing: Some(Standing::Ended), ..Filter::default() }), [first]);
    assert_eq!(only(Filter { mode: Some(Mode::Recovery), ..Filter::default() }), []);
    assert_eq!(only(Filter { environment: Some("staging".into()), ..Filter::default() }).len(), 2);

    let summary = &index.list(&Filter::default(), 10).unwrap()[1];
    assert_eq!(summary.outcome, Some(RunOutcome::Failed));
    assert_eq!((summary.declared_ms, summary.incident_at_ms, summary.ended_ms), (1_000, 900, Some(1_001)));
    assert_eq!((summary.rto_ms, summary.rto_used_ms), (Some(4 * 3_600_000), None));
}

#[tokio::test]
async fn opening_brings_the_index_up_to_date() {
    let (_keep, state) = state();
    let (run, journal) = declare(&state, "restore").await;
    assert_eq!(Index::open(&state).unwrap().list(&Filter::default(), 9).unwrap()[0].outcome, None);
    journal.append(vec![finished(RunOutcome::Succeeded)]).await.unwrap();
    let index = Index::open(&state).unwrap();
    assert_eq!(index.list(&Filter::default(), 9).unwrap()[0].outcome, Some(RunOutcome::Succeeded));
    fs::remove_dir_all(state.run(run).unwrap().path()).unwrap();
    assert_eq!(ids(&Index::open(&state).unwrap(), &Filter::default()), []);
}

#[tokio::test]
async fn an_open_run_that_is_gone_is_forgotten_too() {
    let (_keep, state) = state();
    let (run, journal) = declare(&state, "restore").await;
    assert_eq!(ids(&Index::open(&state).unwrap(), &Filter::default()), [run]);
    drop(journal);
    fs::remove_dir_all(state.run(run).unwrap().path()).unwrap();
    assert_eq!(ids(&Index::open(&state).unwrap(), &Filter::default()), []);
}

#[tokio::test]
async fn where_the_index_cannot_be_written_the_journals_are_read() {
    let (_keep, state) = state();
    let (run, _journal) = declare(&state, "restore").await;
    // In the way of a file, even for root.
    fs::create_dir(path(&state)).unwrap();
    assert_eq!(ids(&Index::open(&state).unwrap(), &Filter::default()), [run]);
    fs::remove_dir(path(&state)).unwrap();
    drop(Index::open(&state).unwrap());
    // Another process that is building it does not lose it, and does not keep others waiting for good.
    let other = Connection::open(path(&state)).unwrap();
    other.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let (second, _open) = declare(&state, "restore").await;
    assert_eq!(ids(&Index::open(&state).unwrap(), &Filter::default()), [second, run]);
    other.execute_batch("ROLLBACK").unwrap();
    let found: i64 = other.query_row("SELECT count(*) FROM runs", [], |row| row.get(0)).unwrap();
    assert_eq!(found, 1, "the file was left alone");
}

#[tokio::test]
async fn an_index_that_is_damaged_or_of_another_form_is_built_anew() {
    let (_keep, state) = state();
    let (run, _journal) = declare(&state, "restore").await;
    drop(Index::open(&state).unwrap());
    let whole = fs::read(path(&state)).unwrap();
    let mut torn = whole.clone();
    torn.truncate(whole.len() / 2);
    for content in [b"no database at all, this".to_vec(), torn] {
        fs::write(path(&state), content).unwrap();
        assert_eq!(ids(&Index::open(&state).unwrap(), &Filter::default()), [run]);
    }
    let conn = Connection::open(path(&state)).unwrap();
    conn.execute_batch("PRAGMA user_version = 99; DROP TABLE runs").unwrap();
    assert_eq!(ids(&Index::open(&state).unwrap(), &Filter::default()), [run]);
    conn.execute_batch("SELECT 1").unwrap();
}

#[tokio::test]
async fn a_run_with_a_damaged_journal_is_named_and_does_not_hide_the_others() {
    let (_keep, state) = state();
    let (good, _journal) = declare(&state, "restore").await;
    let (bad, journal) = declare(&state, "restore").await;
    drop(journal);
    fs::write(state.run(bad).unwrap().path().join(journal::FILE), "not a journal, I am afraid").unwrap();
    let index = Index::open(&state).unwrap();
    assert_eq!(ids(&index, &Filter::default()), [good]);
    assert_eq!(index.unreadable().iter().map(|(run, _)| *run).collect::<Vec<_>>(), [bad]);
}

fn planned(steps: &[(&str, Option<&str>, bool)]) -> Plan {
    let steps: Vec<_> = steps
        .iter()
        .map(|(id, group, recovered)| {
            json!({
                "id": id, "title": id, "place": "x:1", "group": group, "always": false, "needs": [],
                "conditions": [], "uses": "run", "with": {}, "env": {}, "dir": null, "effect": "read",
                "probe": null, "expect": [],
                "retry": { "attempts": 1, "backoff": "fixed", "delay": "1s", "max_delay": null, "jitter": false,
                           "when": null },
                "timeout": null, "budget": null, "milestone": null, "recovered": recovered,
                "on_error": "abort", "destroys": [], "reads": [], "writes": [], "restores": false
            })
        })
        .collect();
    let group = |id: &str, parent: Option<&str>, recovered: bool| {
        json!({ "id": id, "title": id, "parent": parent, "parallel": false, "max_parallel": null, "budget": null,
                "milestone": null, "recovered": recovered })
    };
    let mut plan = serde_json::to_value(plan()).unwrap();
    plan["steps"] = json!(steps);
    plan["groups"] = json!([group("outer", None, true), group("inner", Some("outer"), false)]);
    serde_json::from_value(plan).unwrap()
}

#[test]
fn the_rto_is_used_up_until_the_last_recovered_step_has_succeeded() {
    let plan = planned(&[("before", None, false), ("nested", Some("inner"), false), ("open", None, true)]);
    let finish = |seq, step: &str, outcome: Outcome| Event {
        seq,
        at_ms: 1_000 * seq as i64,
        kind: EventKind::StepFinished { step: StepId::new(step).unwrap(), outcome },
    };
    let mut events = vec![
        Event { seq: 1, at_ms: 950, kind: declared() },
        finish(2, "before", Outcome::Succeeded),
        finish(3, "open", Outcome::Succeeded),
    ];
    let used = |events: &[Event]| {
        RunSummary::of(&Header { plan: plan.clone(), ..header() }, events).unwrap().rto_used_ms
    };
    assert_eq!(used(&events), None, "`nested` is not done");
    events.push(finish(4, "nested", Outcome::Skipped { reason: "not wanted".into() }));
    assert_eq!(used(&events), None, "a skipped step is no recovery");
    events[3] = finish(4, "nested", Outcome::MarkedDone { by: "ada".into(), reason: "by hand".into() });
    assert_eq!(used(&events), Some(4_000 - 900));
}
