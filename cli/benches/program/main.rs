//! Measures the built program: `cargo bench -p lifeboat`. The numbers of one machine are in `docs/benchmarks.md`.
//!
//! What is slow on a busy machine is judged by processor time, of which the least and the median of several runs are told.

mod language;
mod measure;
mod project;
mod runs;

fn main() {
    let wanted: Vec<_> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let chosen = |name: &str| wanted.is_empty() || wanted.iter().any(|it| name.contains(it.as_str()));
    let all: [(&str, fn()); 4] = [
        ("start", language::start),
        ("check", language::check),
        ("plan", language::plan),
        ("runs", runs::runs),
    ];
    println!("| what | least | median |");
    println!("|---|---|---|");
    for (_, measure) in all.iter().filter(|(name, _)| chosen(name)) {
        measure();
    }
}
