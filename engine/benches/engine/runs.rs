//! The rows about runs of steps that do nothing.

use std::path::Path;

use crate::disk;
use crate::steps::{self, Cost};
use crate::table::{Spread, grouped, ms, row};

/// How many synced writes are measured before each run.
const WRITES: usize = 400;

/// How often the short runs are repeated; the quickest one counts, for other programs only ever slow it down.
const TIMES: usize = 5;

/// The rows about the disk, about steps a second, and about what a run costs by its length.
pub(crate) fn rows(scratch: impl Fn() -> tempfile::TempDir, long: bool) {
    disk_rows(scratch().path());
    at_once_rows(&scratch);
    length_rows(&scratch, long);
}

fn disk_rows(dir: &Path) {
    row("a write of 4 KiB in place, synced", "–", Some(&disk::in_place(dir, 2000)), "");
    row("a write of 4 KiB at the end of its file, synced", "–", Some(&disk::growing(dir, 500)), "");
    row("one row into SQLite with its usual log, synced", "–", Some(&disk::sqlite(dir, 1000)), "");
}

fn at_once_rows(scratch: &impl Fn() -> tempfile::TempDir) {
    for (steps, at_once) in [(3_000, 1), (10_000, 10), (20_000, 100)] {
        let (sync, cost) = best(TIMES, steps, at_once, scratch);
        let each = cost.wall.as_secs_f64() / steps as f64;
        let result = format!(
            "{} a second; a step {}, {:.2} synced writes; CPU {}",
            grouped((1.0 / each) as u64),
            ms(cost.wall / steps as u32),
            each / sync.median().as_secs_f64(),
            ms(cost.cpu / steps as u32)
        );
        let aim = match at_once {
            1 => "2 synced writes",
            10 => "",
            _ => "10,000 a second",
        };
        let what = format!("{} steps that do nothing, {at_once} at once", grouped(steps as u64));
        row(&what, &result, Some(&cost.steps), aim);
    }
}

fn length_rows(scratch: &impl Fn() -> tempfile::TempDir, long: bool) {
    let mut all = vec![(1_000, 1), (10_000, 1), (1_000, 100), (10_000, 100), (100_000, 100)];
    if long {
        all.push((100_000, 1));
    }
    for (steps, at_once) in all {
        let (_, cost) = best(1, steps, at_once, scratch);
        let each = |bytes: u64| grouped(bytes / steps as u64);
        let result = format!(
            "{}; a step {}, CPU {}, written {} bytes, journal {} bytes",
            ms(cost.wall),
            ms(cost.wall / steps as u32),
            ms(cost.cpu / steps as u32),
            each(cost.written),
            each(cost.journal)
        );
        let what = format!("a run of {} steps, {at_once} at once", grouped(steps as u64));
        row(&what, &result, Some(&cost.steps), "linear");
    }
}

/// Returns the quickest of several runs, with what a synced write took just before it.
fn best(
    times: usize,
    steps: usize,
    at_once: usize,
    scratch: &impl Fn() -> tempfile::TempDir,
) -> (Spread, Cost) {
    let all = (0..times).map(|_| {
        let dir = scratch();
        let sync = disk::in_place(dir.path(), WRITES);
        (sync, steps::run(dir.path(), steps, at_once))
    });
    all.min_by_key(|(_, cost)| cost.wall).expect("at least one run")
}
