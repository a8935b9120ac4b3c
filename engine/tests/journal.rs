//! The journal against a real `kill -9`: nothing that was acknowledged may be lost.
//!
//! The test starts this very test binary again as the writer.

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use lifeboat_engine::clock::SystemClock;
use lifeboat_engine::journal::{FILE, Header, Journal, Reader, read};
use lifeboat_engine::model::event::EventKind;
use lifeboat_engine::model::{RunId, StepId, Stream};
use lifeboat_engine::runs::{Manner, StateDir, SystemProbe, end_survivors};
use rusqlite::Connection;
use serde_json::json;

use common::{declared, plan};

/// Tells the test binary that it is the writer, and where.
const WRITER: &str = "LIFEBOAT_TEST_WRITER";

const ROUNDS: u64 = 8;

fn step() -> StepId {
    StepId::new("base").unwrap()
}

fn fact(writer: usize, n: u64) -> EventKind {
    EventKind::Recorded { step: step(), key: format!("{writer}"), value: json!({ "n": n }) }
}

/// The writer: owns the run, keeps a child alive, and says which events are durable.
#[test]
fn writer() {
    let Some(root) = std::env::var_os(WRITER) else { return };
    let state = StateDir::open(Path::new(&root), &SystemProbe).unwrap();
    let run = state.find("latest").unwrap();
    let _lock = run.lock(&SystemClock).unwrap();
    let journal = Arc::new(Journal::open(run.path(), Arc::new(SystemClock)).unwrap());
    let child = Killed(child_with_lock(&run.children_lock()));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    runtime.block_on(async {
        let writers = (0..4).map(|writer| tokio::spawn(write_forever(Arc::clone(&journal), writer)));
        for writer in writers.collect::<Vec<_>>() {
            writer.await.unwrap();
        }
    });
    drop(child);
}

async fn write_forever(journal: Arc<Journal>, writer: usize) {
    for n in 0.. {
        let line = format!("line {n}");
        journal.advise(EventKind::OutputLine { step: step(), attempt: 1, stream: Stream::Stdout, line });
        let events = journal.append(vec![fact(writer, n)]).await.unwrap();
        // One write, so that what the parent reads is whole or not there.
        let text = format!("ack {} {writer} {n}\n", events[0].seq);
        std::io::stdout().write_all(text.as_bytes()).unwrap();
    }
}

fn child_with_lock(path: &Path) -> Child {
    let file = std::fs::File::open(path).unwrap();
    file.lock_shared().unwrap();
    let mut command = Command::new("sleep");
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    command.arg("1000").stdin(file).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a writer, kills it after so many acknowledgements, and returns all that it gave.
fn write_and_kill(root: &Path, acknowledgements: u64) -> Vec<(u64, usize, u64)> {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "writer", "--nocapture"])
        .env(WRITER, root)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut child = Killed(child);
    let mut output = BufReader::new(child.0.stdout.take().unwrap());
    let mut lines = Vec::new();
    while (lines.len() as u64) < acknowledgements {
        let mut line = String::new();
        assert_ne!(output.read_line(&mut line).unwrap(), 0, "the writer ended by itself");
        lines.extend(acknowledged(&line));
    }
    child.0.kill().unwrap();
    child.0.wait().unwrap();
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    lines.extend(rest.lines().filter_map(acknowledged));
    lines
}

/// Ends what the killed writers left, whatever became of the test.
struct Survivors(std::path::PathBuf);

impl Drop for Survivors {
    fn drop(&mut self) {
        let _ = end_survivors(&self.0, Duration::ZERO);
    }
}

fn acknowledged(line: &str) -> Option<(u64, usize, u64)> {
    let mut words = line.trim_end().strip_prefix("ack ")?.split(' ');
    Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?, words.next()?.parse().ok()?))
}

#[test]
fn kill_9_loses_no_acknowledged_event_and_leaves_a_run_that_can_be_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("state");
    let state = StateDir::open(&root, &SystemProbe).unwrap();
    let run = RunId::generate();
    let run_dir = state.create_run(run).unwrap();
    let _survivors = Survivors(run_dir.children_lock());
    let header = Header { run, engine: "0.1.0".into(), created_ms: 0, plan: plan() };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let journal = Journal::create(run_dir.path(), header, Arc::new(SystemClock)).unwrap();
    runtime.block_on(journal.append(vec![declared()])).unwrap();
    drop(journal);

    for round in 0..ROUNDS {
        let acknowledged = write_and_kill(&root, 1 + round * 40);
        assert!(run_dir.owner().unwrap().is_none(), "the lock of a killed process is free");
        let ended = end_survivors(&run_dir.children_lock(), Duration::from_secs(5)).unwrap();
        assert_eq!(ended.iter().map(|ended| ended.program.as_str()).collect::<Vec<_>>(), ["sleep"]);

        let reader = Reader::open(run_dir.path()).unwrap();
        reader.verify().unwrap();
        let events = reader.events().unwrap();
        assert!(events.iter().map(|event| event.seq).eq(1..=events.len() as u64), "round {round}: a gap");
        for (seq, writer, n) in acknowledged {
            let event = events.get(seq as usize - 1);
            assert_eq!(event.map(|event| &event.kind), Some(&fact(writer, n)), "round {round}: event {seq}");
        }
    }
}

#[test]
fn a_process_that_does_not_listen_is_killed_when_its_run_is_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("state");
    let state = StateDir::open(&root, &SystemProbe).unwrap();
    let run = RunId::generate();
    let run_dir = state.create_run(run).unwrap();
    let _survivors = Survivors(run_dir.children_lock());
    let header = Header { run, engine: "0.1.0".into(), created_ms: 0, plan: plan() };
    drop(Journal::create(run_dir.path(), header, Arc::new(SystemClock)).unwrap());
    assert_eq!(run_dir.take_over(Duration::ZERO).unwrap(), None, "nobody has it");

    // What is ignored is inherited.
    let child = Command::new("bash")
        .args(["-c", "trap '' TERM; exec \"$0\" --exact writer --nocapture"])
        .arg(std::env::current_exe().unwrap())
        .env(WRITER, &root)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut child = Killed(child);
    let mut output = BufReader::new(child.0.stdout.take().unwrap()).lines();
    assert!(output.any(|line| acknowledged(&line.unwrap()).is_some()), "it writes");
    // Somebody must read on, or it would stand still in a write.
    let drain = std::thread::spawn(move || output.count());
    let ousted = run_dir.take_over(Duration::from_millis(300)).unwrap().expect("it had the run");
    assert_eq!((ousted.holder.pid, ousted.manner), (child.0.id(), Manner::Killed));
    drain.join().unwrap();
    assert!(!child.0.wait().unwrap().success());
    let _lock = run_dir.lock(&SystemClock).unwrap();
    Reader::open(run_dir.path()).unwrap().verify().unwrap();
}

/// A run of lifeboat 0.1.0 in format 1, which waits for an approval; `tests/whole/faults.rs` carries on with it.
const FORMAT_1: &str = include_str!("fixtures/journal-1.sql");

/// Its head, as that version printed it.
const HEAD_1: &str = "4ff9a5f66487b9d4f362bcd083bfce595113dc31eced3ea8ee7375a7a5caf443";

fn version(dir: &Path) -> u32 {
    let conn = Connection::open(dir.join(FILE)).unwrap();
    conn.query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap()
}

#[tokio::test]
async fn a_journal_of_an_older_format_is_read_as_it_is_and_migrated_when_it_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    Connection::open(dir.join(FILE)).unwrap().execute_batch(FORMAT_1).unwrap();

    let (header, events) = read(dir).unwrap();
    assert_eq!(
        (header.engine.as_str(), header.plan.runbook.as_str(), events.len()),
        ("0.1.0", "restore", 10)
    );
    assert_eq!(Reader::open(dir).unwrap().verify().unwrap().hash(), HEAD_1);
    assert_eq!(version(dir), 1, "looking changes nothing");

    let journal = Journal::open(dir, Arc::new(SystemClock)).unwrap();
    assert_eq!(version(dir), 3);
    assert_eq!(journal.head().hash(), HEAD_1, "what was written down elsewhere still proves the old part");
    journal.append(vec![fact(0, 1)]).await.unwrap();
    let head = journal.head();
    drop(journal);
    let reader = Reader::open(dir).unwrap();
    assert_eq!(reader.verify().unwrap(), head);
    assert_eq!(reader.events().unwrap()[..10], events);
    let again = Journal::open(dir, Arc::new(SystemClock)).unwrap();
    assert_eq!(again.head(), head, "a migrated journal is opened like any other");
}
