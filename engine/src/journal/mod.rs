//! The durable record of one run: a SQLite file that one process writes and any number may read.
//!
//! It owns the form of the file (`docs/journal-format.md`), sequence numbers, the hash chain and durability. It knows
//! nothing of what events mean. [`Journal`] writes and must only be opened by the holder of the run's lock;
//! [`Reader`] reads, also while another process writes.

mod chain;
pub mod codes;
mod error;
mod format;
mod reader;
#[cfg(test)]
pub(crate) mod test_support;
#[cfg(test)]
mod tests;
mod writer;

pub use chain::Head;
pub use error::{Error, Fault};
pub use format::{FORMAT, Header};
pub use reader::{Reader, read};
pub use writer::Journal;

/// The name of the journal inside the directory of its run.
pub const FILE: &str = "journal.db";
