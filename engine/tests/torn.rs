//! Journals whose last write was torn, or holds a wrong bit: what is whole is read, the rest is as if it had never been
//! written, and nothing is made up.
//!
//! SQLite's write-ahead log is a header of 32 bytes and frames of a page each, with a header of 24 bytes in front; see
//! <https://sqlite.org/fileformat2.html#the_write_ahead_log>. A frame that ends a commit says how large the file is then.

mod common;

use std::path::Path;
use std::sync::Arc;

use lifeboat_engine::clock::SystemClock;
use lifeboat_engine::journal::{self, FILE, Header, Journal, Reader};
use lifeboat_engine::model::event::EventKind;
use lifeboat_engine::model::{RunId, StepId};
use serde_json::json;

use common::{declared, plan};

const LOG: &str = "journal.db-wal";
const LOG_HEADER: usize = 32;
const FRAME_HEADER: usize = 24;

/// A directory in memory if there is one: what is tested is what files hold, and no cut needs a disk to be synced.
fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// The nth fact; some fill several pages, so that one commit has several frames.
fn fact(n: usize) -> EventKind {
    let text = "x".repeat(if n.is_multiple_of(5) { 9_000 } else { 20 });
    EventKind::Recorded { step: StepId::new("base").unwrap(), key: n.to_string(), value: json!([n, text]) }
}

/// A journal as a process leaves it that is killed: everything of these commits is in the log.
struct Killed {
    file: Vec<u8>,
    log: Vec<u8>,
    /// How many events there are after each commit.
    counts: Vec<usize>,
    events: Vec<EventKind>,
    /// Where each frame ends, and whether it ends a commit.
    frames: Vec<(usize, bool)>,
}

impl Killed {
    fn new(commits: usize) -> Self {
        let dir = directory();
        let header = Header { run: RunId::generate(), engine: "0.1.0".into(), created_ms: 0, plan: plan() };
        let journal = Journal::create(dir.path(), header, Arc::new(SystemClock)).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (mut events, mut counts) = (vec![declared()], vec![1]);
        runtime.block_on(journal.append(vec![declared()])).unwrap();
        for commit in 1..commits {
            let facts: Vec<_> = (0..commit % 3 + 1).map(|at| fact(events.len() + at)).collect();
            events.extend(facts.clone());
            counts.push(events.len());
            runtime.block_on(journal.append(facts)).unwrap();
        }
        // The process is alive: closing would move the log into the file.
        let file = std::fs::read(dir.path().join(FILE)).unwrap();
        let log = std::fs::read(dir.path().join(LOG)).unwrap();
        let frames = frames(&log);
        assert_eq!(frames.iter().filter(|(_, ends)| *ends).count(), commits, "a frame that ends each commit");
        Self { file, log, counts, events, frames }
    }

    /// Puts it into a directory, with this log.
    fn with_log(&self, log: &[u8]) -> tempfile::TempDir {
        let dir = directory();
        std::fs::write(dir.path().join(FILE), &self.file).unwrap();
        std::fs::write(dir.path().join(LOG), log).unwrap();
        dir
    }

    /// The events of all commits whose frames end at or before a place in the log.
    fn whole_until(&self, place: usize) -> &[EventKind] {
        let commits = self.frames.iter().filter(|(end, commit)| *commit && *end <= place).count();
        let count = commits.checked_sub(1).map_or(0, |last| self.counts[last]);
        &self.events[..count]
    }

    /// Goes on with what is left, as `resume` does, and must find exactly these events.
    fn must_hold(&self, log: &[u8], expected: &[EventKind], told: &str) {
        let dir = self.with_log(log);
        assert_eq!(kinds(dir.path()), expected, "{told}");
        Reader::open(dir.path())
            .and_then(|reader| reader.verify())
            .unwrap_or_else(|error| panic!("{told}: {error}"));
        let journal = Journal::open(dir.path(), Arc::new(SystemClock))
            .unwrap_or_else(|error| panic!("{told}: {error}"));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let more = runtime.block_on(journal.append(vec![fact(7)])).unwrap();
        assert_eq!(more[0].seq as usize, expected.len() + 1, "{told}: it goes on where it was cut off");
        drop(journal);
        assert_eq!(kinds(dir.path()).last(), Some(&fact(7)), "{told}");
    }
}

fn kinds(dir: &Path) -> Vec<EventKind> {
    let (_, events) = journal::read(dir).unwrap();
    events.into_iter().map(|event| event.kind).collect()
}

/// Finds the frames of a log: those that bear its salt.
fn frames(log: &[u8]) -> Vec<(usize, bool)> {
    let word = |at: usize| u32::from_be_bytes(log[at..at + 4].try_into().unwrap());
    let page = word(8) as usize;
    let salt = &log[16..24];
    let mut frames = Vec::new();
    let mut at = LOG_HEADER;
    while at + FRAME_HEADER + page <= log.len() && &log[at + 8..at + 16] == salt {
        let end = at + FRAME_HEADER + page;
        frames.push((end, word(at + 4) != 0));
        at = end;
    }
    frames
}

#[test]
fn a_log_that_was_cut_off_anywhere_holds_exactly_its_whole_commits() {
    let killed = Killed::new(8);
    let mut places = vec![0, 1, LOG_HEADER / 2, LOG_HEADER];
    let mut from = LOG_HEADER;
    for (end, _) in &killed.frames {
        // In the frame's header, right behind it, in the page, a byte before the end, and at the end.
        places.extend([from + 7, from + FRAME_HEADER, (from + end) / 2, end - 1, *end]);
        from = *end;
    }
    for place in places {
        let told = format!("cut at {place} of {from}");
        killed.must_hold(&killed.log[..place], killed.whole_until(place), &told);
    }
}

/// A disk may also have written the length and not the content.
#[test]
fn a_tail_of_zeros_or_of_an_earlier_log_is_no_event() {
    let killed = Killed::new(6);
    for (end, _) in &killed.frames {
        for cut in [end - 100, *end] {
            let mut log = killed.log.clone();
            log[cut..].fill(0);
            killed.must_hold(&log, killed.whole_until(cut), &format!("zeros from {cut}"));
            let mut log = killed.log.clone();
            log[cut..].fill(0xA5);
            killed.must_hold(&log, killed.whole_until(cut), &format!("rubbish from {cut}"));
        }
    }
}

#[test]
fn a_wrong_bit_in_the_log_takes_away_its_commit_and_what_follows_and_nothing_before() {
    let killed = Killed::new(6);
    let mut from = LOG_HEADER;
    for (end, _) in &killed.frames {
        for (place, bit) in
            [(from + 1, 0), (from + 5, 3), (from + 18, 7), (from + FRAME_HEADER + 3, 1), (end - 1, 4)]
        {
            let mut log = killed.log.clone();
            log[place] ^= 1 << bit;
            killed.must_hold(
                &log,
                killed.whole_until(from),
                &format!("bit {bit} of byte {place} in a frame from {from}"),
            );
        }
        from = *end;
    }
}

/// The file itself was synced before the log was emptied, so a wrong bit there is damage: it is either refused, or nothing
/// that a run rests on is different.
#[test]
fn a_wrong_bit_in_the_file_is_refused_or_changes_nothing() {
    let killed = Killed::new(8);
    let dir = killed.with_log(&killed.log);
    drop(Journal::open(dir.path(), Arc::new(SystemClock)).unwrap());
    let closed = std::fs::read(dir.path().join(FILE)).unwrap();
    assert!(!dir.path().join(LOG).metadata().is_ok_and(|log| log.len() > 0), "all of it is in the file");
    let (header, events) = journal::read(dir.path()).unwrap();
    let mut refused = 0;
    let mut place = 0;
    while place < closed.len() {
        let mut bytes = closed.clone();
        bytes[place] ^= 1 << (place % 8);
        let dir = directory();
        std::fs::write(dir.path().join(FILE), bytes).unwrap();
        match Journal::open(dir.path(), Arc::new(SystemClock)) {
            Err(error) => {
                assert!(!error.to_string().is_empty() && !error.help().is_empty(), "byte {place}");
                refused += 1;
            }
            Ok(journal) => {
                drop(journal);
                let read = journal::read(dir.path()).unwrap();
                assert_eq!(read, (header.clone(), events.clone()), "byte {place}");
            }
        }
        place += 131;
    }
    assert!(refused > 50, "only {refused} were noticed");
}
