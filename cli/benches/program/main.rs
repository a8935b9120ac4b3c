//! Measures the built program: `cargo bench -p lifeboat`. The numbers of one machine are in `docs/benchmarks.md`.
//!
//! What is slow on a busy machine is judged by processor time, of which the least and the median of several runs are told.

#[path = "../../../engine/benches/engine/disk.rs"]
mod disk;
mod language;
mod life;
mod listing;
mod measure;
mod project;
#[path = "../../../engine/benches/engine/runs.rs"]
mod runs;
#[path = "../../../engine/benches/engine/steps.rs"]
mod steps;
#[path = "../../../engine/benches/engine/table.rs"]
mod table;

/// The allocator of the program, for what runs in this process.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    let wanted: Vec<_> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let chosen = |name: &str| wanted.is_empty() || wanted.iter().any(|it| name.contains(it.as_str()));
    if chosen("engine") {
        engine();
    } else if chosen("program") {
        table::head();
        life::rows();
    }
    let all: [(&str, fn()); 4] = [
        ("start", language::start),
        ("check", language::check),
        ("plan", language::plan),
        ("runs", listing::runs),
    ];
    let all: Vec<_> = all.iter().filter(|(name, _)| chosen(name)).collect();
    if !all.is_empty() {
        println!("| what | least | median |");
        println!("|---|---|---|");
    }
    for (_, measure) in all {
        measure();
    }
}

/// The one table of what it costs to run steps.
fn engine() {
    let long = std::env::var_os("LIFEBOAT_BENCH_LONG").is_some();
    table::head();
    runs::rows(measure::scratch, long);
    life::rows();
}
