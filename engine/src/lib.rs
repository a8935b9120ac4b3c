//! The engine of Lifeboat: reads runbooks, compiles them into plans and executes plans with a durable journal.
//!
//! It owns the language, the order of steps, retries, time and the journal. It never prints, never reads the
//! process environment on its own account and never names a step kind: those come from a [`step::Registry`].

pub mod clock;
pub mod code;
pub mod compile;
#[cfg(test)]
mod cpu_time;
pub mod crash;
pub mod diagnostic;
pub mod drawing;
pub mod evidence;
pub mod expr;
pub mod fence;
pub mod journal;
pub mod model;
pub mod notice;
pub mod outlook;
mod pattern;
pub mod plan;
pub mod process;
pub mod project;
pub mod redact;
pub mod report;
pub mod resource;
pub mod run;
pub mod runs;
pub mod secret;
pub mod spec;
pub mod step;
pub mod value;
pub mod yaml;

/// Returns the error codes of the engine, for `lifeboat explain`.
pub fn codes() -> impl Iterator<Item = &'static code::Code> {
    [
        diagnostic::codes::ALL,
        code::ALL,
        journal::codes::ALL,
        runs::codes::ALL,
        secret::codes::ALL,
        evidence::codes::ALL,
    ]
    .into_iter()
    .flatten()
}
