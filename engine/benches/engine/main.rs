//! Measures the engine: `cargo bench -p lifeboat-engine`. The numbers of one machine are in `docs/benchmarks.md`.
//!
//! `LIFEBOAT_BENCH_DIR` names a directory on the disk to be measured; `LIFEBOAT_BENCH_LONG` adds the longest runs.

mod disk;
mod runs;
mod shapes;

use std::path::PathBuf;
use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;

fn main() {
    let wanted: Vec<_> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let chosen = |name: &str| wanted.is_empty() || wanted.iter().any(|it| name.contains(it.as_str()));
    let all: [(&str, fn()); 3] =
        [("compile", shapes::compile), ("parallel", runs::parallel), ("length", runs::length)];
    for (_, measure) in all.iter().filter(|(name, _)| chosen(name)) {
        measure();
    }
}

/// Makes a scratch directory on the disk to be measured.
fn scratch() -> tempfile::TempDir {
    let beside = || std::env::current_exe().ok().and_then(|exe| exe.parent().map(PathBuf::from));
    let parent =
        std::env::var_os("LIFEBOAT_BENCH_DIR").map(PathBuf::from).or_else(beside).unwrap_or_default();
    tempfile::tempdir_in(parent).expect("a scratch directory can be made")
}

/// Says whether the longest runs are wanted too.
fn long() -> bool {
    std::env::var_os("LIFEBOAT_BENCH_LONG").is_some()
}

/// Returns the processor time of this process so far, all threads, user and system together.
fn cpu() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_SELF).expect("the kernel counts");
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Duration::from_micros(micros.unsigned_abs())
}

fn ms(duration: Duration) -> String {
    let ms = duration.as_secs_f64() * 1e3;
    if ms < 10.0 { format!("{ms:.2} ms") } else { format!("{ms:.0} ms") }
}
