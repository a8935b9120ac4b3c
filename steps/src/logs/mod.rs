//! Log kinds: `logs.check` looks for what must and must not be there, `logs.mark` remembers where a log ends.
//!
//! [`Watch`] reads a log bit by bit, for who looks again and again.

mod check;
pub mod codes;
mod file;
mod judge;
mod lines;
mod mark;
mod rotated;
mod source;
mod stream;
mod time;
mod watch;

pub(crate) use judge::When;
pub(crate) use watch::{Mark, Watch};

use lifeboat_engine::step::Registry;

/// Adds the kinds of this family.
pub fn register(registry: &mut Registry) {
    registry.register(check::Check);
    registry.register(mark::MarkEnd);
}
