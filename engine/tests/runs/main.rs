//! Runs of the engine over step kinds of the tests' own.

mod calls;
mod clocks;
#[path = "../../src/cpu_time.rs"]
mod cpu_time;
mod crashes;
mod dispatch;
mod drive;
mod elements;
mod faults;
mod joins;
mod oracle;
mod plans;
mod prefixes;
mod process;
mod undo;
mod within;
mod world;
