//! Evidence: everything that is known of a run in one archive, which anybody can check against one hash.
//!
//! [`write`](write()) makes the archive from a run's directory, [`verify`] reads nothing but the archive. What ties its parts
//! together is the chain of the journal, whose head was printed and posted when the run ended: plan and essential events
//! are in the chain, files of output and sources by hashes that are in it, and everything else is made from these, so that
//! `verify` makes it again and compares. Advisory events (progress, notices) are in no chain and prove nothing.

pub mod codes;
mod derived;
mod error;
mod line;
mod member;
mod tape;
#[cfg(test)]
mod tests;
mod verify;
mod write;

pub use error::Error;
pub use verify::{Verified, verify};
pub use write::{Written, write};

/// The version of the archive's form.
pub const FORMAT: u32 = 1;

/// The one directory in an archive.
fn root(run: crate::model::RunId) -> String {
    format!("lifeboat-evidence-{}", run.short())
}
