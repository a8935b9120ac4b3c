//! Clocks.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;

/// The built program.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_lifeboat");

/// What one run of a program cost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    pub(crate) wall: Duration,
    /// Processor time of the program and all its children, user and system together.
    pub(crate) cpu: Duration,
}

/// Runs the program in a project, with its output thrown away unless it fails.
pub(crate) fn run(project: &Path, args: &[&str]) -> Cost {
    let (before, begin) = (children_cpu(), Instant::now());
    let output = command(project, args).stdin(Stdio::null()).output().expect("the program starts");
    let cost = Cost { wall: begin.elapsed(), cpu: children_cpu() - before };
    succeeded(args, &output);
    cost
}

/// Makes a command of the program in a project, with nothing of the caller's surroundings that could change it.
pub(crate) fn command(project: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(args).current_dir(project).env_remove("RUST_LOG").env("OPS_WEBHOOK", "http://127.0.0.1:9/");
    command
}

pub(crate) fn succeeded(args: &[&str], output: &Output) {
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?} ended with {}:\n{told}", output.status);
}

/// Returns the processor time of all children that have ended.
pub(crate) fn children_cpu() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).expect("the kernel counts");
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Duration::from_micros(micros.unsigned_abs())
}

/// Returns how many bytes all children that have ended have sent to disks.
pub(crate) fn children_written() -> u64 {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).expect("the kernel counts");
    usage.block_writes().unsigned_abs() * 512
}

/// Runs something several times; returns the least and the median.
pub(crate) fn repeat(times: usize, mut once: impl FnMut() -> Duration) -> (Duration, Duration) {
    let mut all: Vec<_> = (0..times).map(|_| once()).collect();
    all.sort_unstable();
    (all[0], all[all.len() / 2])
}

/// Makes a scratch directory: in `LIFEBOAT_BENCH_DIR`, or beside the program, on the same disk.
pub(crate) fn scratch() -> tempfile::TempDir {
    let beside = || Path::new(PROGRAM).parent().map(PathBuf::from).unwrap_or_default();
    let parent = std::env::var_os("LIFEBOAT_BENCH_DIR").map_or_else(beside, PathBuf::from);
    tempfile::tempdir_in(parent).expect("a scratch directory can be made")
}
