//! What the disk can do, so that the engine can be judged by it.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

/// How large one write is: a page of the journal with its frame.
const WRITE: usize = 4096 + 24;

/// Returns the mean time of one synced write at the end of a file that grows, as the journal's log does.
pub(crate) fn synced_write(dir: &Path, times: u32) -> Duration {
    let path = dir.join("synced");
    let mut file = File::create(&path).expect("a scratch file can be made");
    let page = [0x5a_u8; WRITE];
    let begin = Instant::now();
    for _ in 0..times {
        file.write_all(&page).and_then(|()| file.sync_data()).expect("the disk takes it");
    }
    let each = begin.elapsed() / times;
    std::fs::remove_file(path).expect("it was made here");
    each
}

/// Returns how many bytes this process has sent to disks so far.
pub(crate) fn bytes_written() -> u64 {
    let text = std::fs::read_to_string("/proc/self/io").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("write_bytes: "));
    line.and_then(|number| number.trim().parse().ok()).unwrap_or(0)
}
