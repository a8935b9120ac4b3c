//! Measures the engine: `cargo bench -p lifeboat-engine`. The numbers of one machine are in `docs/benchmarks.md`.
//!
//! `LIFEBOAT_BENCH_DIR` names a directory on the disk to be measured; `LIFEBOAT_BENCH_LONG` adds the longest runs.

mod disk;
mod runs;
mod shapes;
mod steps;
mod table;

use std::path::PathBuf;

use table::{cpu, ms};

fn main() {
    let wanted: Vec<_> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let chosen = |name: &str| wanted.is_empty() || wanted.iter().any(|it| name.contains(it.as_str()));
    let all: [(&str, fn()); 2] = [("compile", shapes::compile), ("runs", run)];
    for (_, measure) in all.iter().filter(|(name, _)| chosen(name)) {
        measure();
    }
}

fn run() {
    table::head();
    runs::rows(scratch, std::env::var_os("LIFEBOAT_BENCH_LONG").is_some());
}

/// Makes a scratch directory on the disk to be measured.
fn scratch() -> tempfile::TempDir {
    let beside = || std::env::current_exe().ok().and_then(|exe| exe.parent().map(PathBuf::from));
    let parent =
        std::env::var_os("LIFEBOAT_BENCH_DIR").map(PathBuf::from).or_else(beside).unwrap_or_default();
    tempfile::tempdir_in(parent).expect("a scratch directory can be made")
}
