//! What the disk can do, so that the engine can be judged by it.

use std::fs::{File, OpenOptions};
use std::io::{Seek, Write};
use std::path::Path;
use std::time::Instant;

use rusqlite::Connection;

use crate::table::Spread;

/// How large one write is: a page of the journal with its frame.
const WRITE: usize = 4096 + 24;

/// How many writes go into a file before it is written from its beginning again, as with the log of a journal.
const ROUND: usize = 400;

/// The length of a row of a journal.
const ROW: usize = 300;

/// Measures synced writes at the end of a file that grows.
pub(crate) fn growing(dir: &Path, times: usize) -> Spread {
    let path = dir.join("growing");
    let mut file = File::create(&path).expect("a scratch file can be made");
    let page = [0x5a_u8; WRITE];
    let spread =
        timed(times, |_| file.write_all(&page).and_then(|()| file.sync_data()).expect("the disk takes it"));
    std::fs::remove_file(path).expect("it was made here");
    spread
}

/// Measures synced writes to a file that has its length already: the least that anything durable can cost here.
pub(crate) fn in_place(dir: &Path, times: usize) -> Spread {
    let path = dir.join("in-place");
    std::fs::write(&path, vec![0_u8; WRITE * ROUND]).expect("a scratch file can be made");
    let mut file = OpenOptions::new().write(true).open(&path).expect("it was made here");
    file.sync_all().expect("the disk takes it");
    let page = [0x5a_u8; WRITE];
    let spread = timed(times, |at| {
        if at.is_multiple_of(ROUND) {
            file.rewind().expect("a file has a beginning");
        }
        file.write_all(&page).and_then(|()| file.sync_data()).expect("the disk takes it");
    });
    std::fs::remove_file(path).expect("it was made here");
    spread
}

/// Measures commits of one row with SQLite's usual write-ahead log, each of them synced.
pub(crate) fn sqlite(dir: &Path, times: usize) -> Spread {
    let path = dir.join("plain.db");
    let conn = Connection::open(&path).expect("a scratch file can be made");
    conn.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; CREATE TABLE t (n INTEGER PRIMARY KEY, body TEXT)")
        .expect("a table");
    let body = "x".repeat(ROW);
    let spread = timed(times, |_| {
        conn.prepare_cached("INSERT INTO t (body) VALUES (?1)")
            .and_then(|mut insert| insert.execute([&body]))
            .expect("a row");
    });
    drop(conn);
    std::fs::remove_file(path).expect("it was made here");
    spread
}

fn timed(times: usize, mut once: impl FnMut(usize)) -> Spread {
    let all = (0..times).map(|at| {
        let begin = Instant::now();
        once(at);
        begin.elapsed()
    });
    Spread::of(all.collect())
}

/// Returns how many bytes this process has sent to disks so far.
pub(crate) fn bytes_written() -> u64 {
    let text = std::fs::read_to_string("/proc/self/io").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("write_bytes: "));
    line.and_then(|number| number.trim().parse().ok()).unwrap_or(0)
}
