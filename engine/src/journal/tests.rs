use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use rusqlite::Connection;
use tempfile::TempDir;
use uuid::Uuid;

use super::test_support::{
    KINDS, TickClock, declared, event_kind, finished, header, line, number_of, plan, started,
};
use super::{Error, FILE, Fault, Header, Journal, Reader, read};
use crate::model::{Event, EventKind, RunOutcome};

fn create(dir: &Path) -> Journal {
    Journal::create(dir, header(), TickClock::starting_at(1_000)).unwrap()
}

fn open(dir: &Path) -> Result<Journal, Error> {
    Journal::open(dir, TickClock::starting_at(5_000))
}

/// Changes a journal behind its back.
fn tamper(dir: &Path, sql: &str) {
    Connection::open(dir.join(FILE)).unwrap().execute_batch(sql).unwrap();
}

/// Waits for what a background thread will do soon.
fn eventually<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(240);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "it never happened");
        std::thread::sleep(Duration::from_millis(5));
    }
}

async fn with_events(dir: &Path, count: u32) -> Vec<Event> {
    let journal = create(dir);
    let mut events = journal.append(vec![declared()]).await.unwrap();
    for attempt in 1..=count {
        events.extend(journal.append(vec![started(attempt)]).await.unwrap());
    }
    events
}

#[tokio::test]
async fn events_are_numbered_without_gaps_and_read_back() {
    let dir = TempDir::new().unwrap();
    let journal = create(dir.path());
    let first = journal.append(vec![declared(), line("a")]).await.unwrap();
    let second = journal.append(vec![started(1)]).await.unwrap();
    assert_eq!(
        first.iter().map(|event| (event.seq, event.at_ms)).collect::<Vec<_>>(),
        [(1, 1000), (2, 1001)]
    );
    assert_eq!((second[0].seq, second[0].at_ms), (3, 1002));

    let (header, events) = read(dir.path()).unwrap();
    assert_eq!(header, *journal.header());
    assert_eq!(header.plan, plan());
    assert_eq!(events, [first, second].concat());
}

#[tokio::test]
async fn a_reopened_journal_goes_on_where_it_stood() {
    let dir = TempDir::new().unwrap();
    with_events(dir.path(), 2).await;
    let head = Reader::open(dir.path()).unwrap().verify().unwrap();

    let journal = open(dir.path()).unwrap();
    assert_eq!(journal.head(), head);
    let event = journal.append(vec![finished(RunOutcome::Failed)]).await.unwrap().remove(0);
    assert_eq!((event.seq, event.at_ms), (4, 5_000));
    assert_ne!(journal.head().hash(), head.hash());

    let reader = Reader::open(dir.path()).unwrap();
    assert_eq!(reader.verify().unwrap(), journal.head());
    assert!(reader.is_finished().unwrap());
}

#[tokio::test]
async fn advisory_events_are_written_soon_and_left_out_of_recovery() {
    let dir = TempDir::new().unwrap();
    let journal = create(dir.path());
    journal.append(vec![declared()]).await.unwrap();
    let before = journal.head();
    journal.advise(line("one"));
    journal.advise(line("two"));

    let reader = Reader::open(dir.path()).unwrap();
    let new = eventually(|| Some(reader.since(1, 10).unwrap()).filter(|events| events.len() == 2));
    assert_eq!(new[0].kind, line("one"));
    assert_eq!(reader.essential().unwrap().len(), 1);
    assert_eq!(reader.verify().unwrap().hash(), before.hash(), "advisory events are not in the chain");
    assert_eq!(reader.verify().unwrap().seq, 3);
}

#[tokio::test]
async fn advisory_events_stand_before_the_essential_event_that_follows_them() {
    let dir = TempDir::new().unwrap();
    let journal = create(dir.path());
    journal.append(vec![declared()]).await.unwrap();
    journal.advise(line("before"));
    let event = journal.append(vec![started(1)]).await.unwrap().remove(0);
    assert_eq!(event.seq, 3);
    assert_eq!(read(dir.path()).unwrap().1[1].kind, line("before"));
}

#[tokio::test]
async fn a_flood_of_advice_is_dropped_and_counted() {
    let dir = TempDir::new().unwrap();
    let journal = create(dir.path());
    // Holds the file, so that the writer cannot keep up.
    let blocker = Connection::open(dir.path().join(FILE)).unwrap();
    blocker.execute_batch("BEGIN IMMEDIATE").unwrap();
    for n in 0..20_000 {
        journal.advise(line(&n.to_string()));
    }
    blocker.execute_batch("ROLLBACK").unwrap();
    journal.append(vec![declared()]).await.unwrap();
    drop(journal);

    let (_, events) = read(dir.path()).unwrap();
    let dropped: usize = events
        .iter()
        .find_map(|event| match &event.kind {
            EventKind::Noted { text, .. } => text.split(' ').next()?.parse().ok(),
            _ => None,
        })
        .expect("a note says how many were dropped");
    let kept = events.iter().filter(|event| matches!(event.kind, EventKind::OutputLine { .. })).count();
    assert_eq!(kept + dropped, 20_000);
    assert!(kept >= 10_000);
}

#[tokio::test]
async fn dropping_a_journal_writes_what_is_queued_and_leaves_one_file() {
    let dir = TempDir::new().unwrap();
    let journal = create(dir.path());
    journal.append(vec![declared()]).await.unwrap();
    journal.advise(line("last words"));
    drop(journal);
    let names: Vec<_> =
        std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, [FILE]);
    assert_eq!(read(dir.path()).unwrap().1[1].kind, line("last words"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_appends_share_commits_and_stay_whole() {
    let dir = TempDir::new().unwrap();
    let journal = Arc::new(create(dir.path()));
    let tasks: Vec<_> = (0..16)
        .map(|task| {
            let journal = Arc::clone(&journal);
            tokio::spawn(async move {
                for n in 0..20 {
                    let events = journal.append(vec![started(task * 100 + n), line("x")]).await.unwrap();
                    assert_eq!(events[1].seq, events[0].seq + 1, "one append is not mixed with others");
                    assert_eq!(events[0].kind, started(task * 100 + n));
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let reader = Reader::open(dir.path()).unwrap();
    let events = reader.events().unwrap();
    assert!(events.iter().map(|event| event.seq).eq(1..=640));
    assert_eq!(reader.verify().unwrap(), journal.head());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_follow_a_run_that_is_being_written() {
    let dir = TempDir::new().unwrap();
    let journal = create(dir.path());
    let path = dir.path().to_owned();
    let follower = std::thread::spawn(move || {
        let reader = Reader::open(&path).unwrap();
        let mut seen = 0;
        eventually(|| {
            for event in reader.since(seen, 7).unwrap() {
                assert_eq!(event.seq, seen + 1);
                seen = event.seq;
            }
            reader.is_finished().unwrap().then_some(())
        });
        seen + reader.since(seen, usize::MAX).unwrap().len() as u64
    });
    for attempt in 1..200 {
        journal.append(vec![started(attempt)]).await.unwrap();
    }
    journal.append(vec![finished(RunOutcome::Succeeded)]).await.unwrap();
    assert_eq!(follower.join().unwrap(), 200);
}

#[tokio::test]
async fn requests_are_known_once_their_events_are_durable_and_after_a_restart() {
    let dir = TempDir::new().unwrap();
    let (id, other) = (Uuid::now_v7(), Uuid::now_v7());
    let journal = create(dir.path());
    journal.append(vec![declared()]).await.unwrap();
    assert!(!journal.knows(id));
    assert_eq!(journal.append_for(vec![id, other], vec![started(1)]).await.unwrap()[0].seq, 2);
    assert!(journal.knows(id) && journal.knows(other));
    journal.append_for(vec![id], Vec::new()).await.unwrap();
    drop(journal);

    let journal = open(dir.path()).unwrap();
    assert!(journal.knows(id) && journal.knows(other) && !journal.knows(Uuid::now_v7()));

    let fault = "CREATE TRIGGER fault BEFORE INSERT ON events BEGIN SELECT RAISE(FAIL, 'no'); END";
    tamper(dir.path(), fault);
    let third = Uuid::now_v7();
    journal.append_for(vec![third], vec![started(2)]).await.unwrap_err();
    assert!(!journal.knows(third), "nothing of a failed commit is known");
}

#[tokio::test]
async fn the_first_failed_write_closes_the_journal_for_good() {
    let dir = TempDir::new().unwrap();
    let journal = create(dir.path());
    journal.append(vec![declared()]).await.unwrap();
    let fault = "CREATE TRIGGER fault BEFORE INSERT ON events WHEN NEW.seq = 4 \
                 BEGIN SELECT RAISE(FAIL, 'disk on fire'); END";
    tamper(dir.path(), fault);
    journal.append(vec![started(1)]).await.unwrap();

    let error = journal.append(vec![started(2), started(3)]).await.unwrap_err();
    assert!(
        matches!(&error, Error::Closed { fault, .. } if fault.to_string().contains("disk on fire")),
        "{error}"
    );
    assert_eq!(error.code().id, "LB0313");
    tamper(dir.path(), "DROP TRIGGER fault");
    let error = journal.append(vec![started(4)]).await.unwrap_err();
    assert!(matches!(error, Error::Closed { .. }), "it stays closed: {error}");
    journal.advise(line("nobody hears this"));
    drop(journal);

    let (_, events) = read(dir.path()).unwrap();
    assert_eq!(events.len(), 2, "nothing of the failed commit is there");
    assert_eq!(open(dir.path()).unwrap().append(vec![started(2)]).await.unwrap()[0].seq, 3);
}

#[tokio::test]
async fn a_full_disk_loses_nothing_that_was_acknowledged() {
    let dir = TempDir::new().unwrap();
    drop(create(dir.path()));
    let journal = super::writer::open_limited(dir.path(), TickClock::starting_at(0), 40).unwrap();
    let mut acknowledged = Vec::new();
    let error = loop {
        match journal.append(vec![EventKind::Noted { step: None, text: "x".repeat(3_000) }]).await {
            Ok(events) => acknowledged.extend(events),
            Err(error) => break error,
        }
        assert!(acknowledged.len() < 1_000, "the limit does not hold");
    };
    assert!(matches!(&error, Error::Closed { fault: Fault::Full, .. }), "{error}");
    drop(journal);
    assert!(!acknowledged.is_empty());
    assert_eq!(read(dir.path()).unwrap().1, acknowledged);
}

#[tokio::test]
async fn an_event_that_cannot_be_stored_is_refused_and_the_journal_goes_on() {
    use std::os::unix::ffi::OsStringExt;
    let dir = TempDir::new().unwrap();
    let journal = create(dir.path());
    let path = std::ffi::OsString::from_vec(vec![b'/', 0xff]).into();
    let thing = crate::model::Created {
        id: "d".into(),
        what: "a directory".into(),
        kind: crate::model::CreatedKind::Directory { path },
    };
    let step = crate::model::StepId::new("base").unwrap();
    let error = journal.append(vec![declared(), EventKind::ThingCreated { step, thing }]).await.unwrap_err();
    assert!(matches!(error, Error::Unwritable { .. }));
    assert_eq!(journal.append(vec![declared()]).await.unwrap()[0].seq, 1);
}

#[tokio::test]
async fn every_change_of_the_past_is_found_with_its_place() {
    let cases = [
        ("UPDATE events SET body = replace(body, '\"n\":2', '\"n\":9') WHERE seq = 3", 3),
        ("UPDATE events SET at_ms = at_ms + 1 WHERE seq = 2", 2),
        ("DELETE FROM events WHERE seq = 2", 2),
        ("DELETE FROM events WHERE seq = 4; UPDATE events SET seq = 4 WHERE seq = 5", 4),
        ("UPDATE events SET hash = zeroblob(32) WHERE seq = 5", 5),
        ("UPDATE events SET class = 'advisory', hash = NULL WHERE seq = 2", 2),
        ("UPDATE events SET kind = 'run_finished' WHERE seq = 2", 2),
        ("UPDATE events SET body = '{' WHERE seq = 4", 4),
        ("UPDATE meta SET plan = replace(plan, 'staging', 'elsewhere')", 1),
        ("UPDATE meta SET created_ms = 0", 1),
    ];
    for (sql, bad) in cases {
        let dir = TempDir::new().unwrap();
        with_events(dir.path(), 5).await;
        tamper(dir.path(), sql);
        let error = open(dir.path()).unwrap_err();
        assert!(matches!(error, Error::Damaged { seq: Some(seq), .. } if seq == bad), "{sql}: {error}");
    }
}

#[tokio::test]
async fn a_torn_or_foreign_file_is_refused_with_a_clear_error() {
    let whole = TempDir::new().unwrap();
    with_events(whole.path(), 200).await;
    let bytes = std::fs::read(whole.path().join(FILE)).unwrap();
    let mut overwritten = bytes.clone();
    overwritten[8_192..12_288].fill(0xa5);
    let cases = [bytes[..bytes.len() / 2].to_vec(), overwritten, b"hello, this is no database".repeat(99)];
    for content in cases {
        let dir = TempDir::new().unwrap();
        std::fs::write(dir.path().join(FILE), content).unwrap();
        let error = open(dir.path()).unwrap_err();
        assert_eq!(error.code().id, "LB0311", "{error}");
        assert!(error.to_string().contains(FILE));
    }
}

#[tokio::test]
async fn newer_foreign_empty_missing_and_second_journals_are_told_apart() {
    let dir = TempDir::new().unwrap();
    assert!(matches!(open(dir.path()).unwrap_err(), Error::Missing { .. }));
    assert!(matches!(Reader::open(dir.path()).unwrap_err(), Error::Missing { .. }));
    assert!(!dir.path().join(FILE).exists(), "looking makes no file");

    std::fs::write(dir.path().join(FILE), "").unwrap();
    let error = open(dir.path()).unwrap_err();
    assert!(matches!(&error, Error::Damaged { what, .. } if what == "it is empty"), "{error}");
    let again = Journal::create(dir.path(), header(), TickClock::starting_at(0)).unwrap_err();
    assert!(matches!(again, Error::Exists { .. }));

    let dir = TempDir::new().unwrap();
    with_events(dir.path(), 1).await;
    tamper(dir.path(), "PRAGMA user_version = 4; UPDATE meta SET engine = '9.1.0'");
    let error = open(dir.path()).unwrap_err();
    assert!(matches!(&error, Error::Newer { found, known: 3, .. } if found == "4"), "{error}");
    assert!(error.help().contains("lifeboat 9.1.0"), "{}", error.help());
    tamper(dir.path(), "PRAGMA user_version = 3; PRAGMA application_id = 7");
    assert!(matches!(open(dir.path()).unwrap_err(), Error::Damaged { .. }));
}

#[tokio::test]
async fn a_plan_of_a_newer_form_is_refused() {
    let dir = TempDir::new().unwrap();
    let header =
        Header { plan: crate::plan::Plan { format: crate::plan::Plan::FORMAT + 1, ..plan() }, ..header() };
    drop(Journal::create(dir.path(), header, TickClock::starting_at(0)).unwrap());
    let error = Reader::open(dir.path()).unwrap_err();
    assert!(matches!(error, Error::Newer { what: "plan format", .. }), "{error}");
}

#[tokio::test]
async fn an_unknown_kind_is_skipped_if_advisory_and_refused_if_essential() {
    let dir = TempDir::new().unwrap();
    with_events(dir.path(), 1).await;
    tamper(dir.path(), r#"INSERT INTO events VALUES (3, 0, 'advisory', 'sung', '{"kind":"sung"}', NULL)"#);
    let reader = Reader::open(dir.path()).unwrap();
    assert_eq!(reader.events().unwrap().len(), 2);
    assert_eq!(reader.verify().unwrap().seq, 3);
    tamper(
        dir.path(),
        r#"INSERT INTO events VALUES (4, 0, 'essential', 'sworn', '{"kind":"sworn"}', zeroblob(32))"#,
    );
    assert!(matches!(reader.events().unwrap_err(), Error::Damaged { seq: Some(4), .. }));
}

#[test]
fn the_file_belongs_to_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let dir = TempDir::new().unwrap();
    let journal = create(dir.path());
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o077, 0, "{:?}", entry.file_name());
    }
    drop(journal);
}

#[test]
fn generated_events_cover_every_kind() {
    let mut seen = [false; KINDS];
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    for _ in 0..1_000 {
        let kind = event_kind().new_tree(&mut runner).unwrap().current();
        seen[number_of(&kind)] = true;
    }
    assert_eq!(seen, [true; KINDS]);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    #[test]
    fn every_event_is_read_back_as_it_was_written(kinds in proptest::collection::vec(event_kind(), 1..24)) {
        let dir = TempDir::new().unwrap();
        let journal = create(dir.path());
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let written = runtime.block_on(journal.append(kinds.clone())).unwrap();
        drop(journal);
        let reader = Reader::open(dir.path()).unwrap();
        prop_assert_eq!(reader.events().unwrap(), written.clone());
        prop_assert!(written.into_iter().map(|event| event.kind).eq(kinds));
        reader.verify().unwrap();
    }
}

#[test]
fn looking_for_a_journal_does_not_keep_it_from_being_made() {
    for _ in 0..20 {
        let dir = tempfile::tempdir().unwrap();
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let (path, seen) = (dir.path().to_owned(), Arc::clone(&stop));
        let looking = std::thread::spawn(move || {
            while !seen.load(std::sync::atomic::Ordering::Relaxed) {
                match Reader::open(&path) {
                    Ok(_) | Err(Error::Missing { .. }) => {}
                    Err(error) => panic!("a journal is there whole or not at all: {error}"),
                }
            }
        });
        let made = Journal::create(dir.path(), header(), TickClock::starting_at(0));
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        looking.join().unwrap();
        made.unwrap();
    }
}

#[tokio::test]
async fn a_journal_that_was_removed_is_noticed_although_nothing_is_appended() {
    let dir = TempDir::new().unwrap();
    let journal = create(dir.path());
    journal.append(vec![declared()]).await.unwrap();
    assert!(journal.fault().is_none());
    std::fs::remove_file(dir.path().join(FILE)).unwrap();
    let fault = eventually(|| journal.fault());
    assert!(matches!(fault, Error::Closed { fault: Fault::Removed, .. }), "{fault}");
    let error = journal.append(vec![started(1)]).await.unwrap_err();
    assert!(matches!(error, Error::Closed { fault: Fault::Removed, .. }), "{error}");
}

#[tokio::test]
async fn a_writer_that_was_superseded_notices_it_although_it_appends_nothing() {
    let dir = TempDir::new().unwrap();
    let old = create(dir.path());
    old.append(vec![declared()]).await.unwrap();
    let new = open(dir.path()).unwrap();
    new.append(vec![started(1)]).await.unwrap();
    let fault = eventually(|| old.fault());
    assert!(matches!(fault, Error::Closed { fault: Fault::Superseded, .. }), "{fault}");
    // Its own events close no journal.
    new.append(vec![started(2)]).await.unwrap();
    let before = new.looks();
    eventually(|| (new.looks() >= before + 3).then_some(()));
    assert!(new.fault().is_none());
}
