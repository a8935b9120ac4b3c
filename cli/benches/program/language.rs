//! What it costs to read, check and plan runbooks.

use crate::measure::{repeat, run, scratch};
use crate::project;
use crate::table::ms;

fn row(what: &str, (least, median): (std::time::Duration, std::time::Duration)) {
    println!("| {what} | {} | {} |", ms(least), ms(median));
}

/// `lifeboat --version`: what every call pays.
pub(crate) fn start() {
    let dir = scratch();
    row("start-up (`--version`), wall", repeat(50, || run(dir.path(), &["--version"]).wall));
    row("start-up (`--version`), CPU", repeat(50, || run(dir.path(), &["--version"]).cpu));
}

/// `lifeboat check` of a project of 100 runbooks of 50 steps.
pub(crate) fn check() {
    let dir = scratch();
    project::realistic(dir.path(), 100).expect("the project can be written");
    row("`check`, 100 runbooks of 50 steps, CPU", repeat(25, || run(dir.path(), &["check"]).cpu));
    row("`check`, 100 runbooks of 50 steps, wall", repeat(25, || run(dir.path(), &["check"]).wall));
}

/// `lifeboat plan` of one long runbook, printing included.
pub(crate) fn plan() {
    for (steps, times) in [(1_000, 9), (10_000, 5), (100_000, 3)] {
        for (parallel, shape) in [(false, "in sequence"), (true, "in one parallel group")] {
            let dir = scratch();
            project::single(dir.path(), &project::asserts(steps, parallel))
                .expect("the project can be written");
            let cost = repeat(times, || run(dir.path(), &["plan", "bench", "--env", "staging"]).cpu);
            row(&format!("`plan`, {steps} steps {shape}, CPU"), cost);
        }
    }
}
