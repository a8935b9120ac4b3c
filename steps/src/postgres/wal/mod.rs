//! Write-ahead log in a store: names, timelines, what is there, how it gets in and out.
//!
//! `archive_command` puts segments in ([`put_main`]); a recovery gets them out through a helper that lives in the
//! Lifeboat process ([`WalServer`]) and a client that Postgres starts for each file ([`get_main`]).
//!
//! The exit codes of the client decide whether a recovery is right: 0 delivered and verified, 1 proven absent,
//! 255 anything else. Postgres takes 1 for the end of the log and ends recovery there, without an error.

mod archive;
mod client;
mod fetch;
mod header;
mod history;
mod names;
mod prefetch;
mod protocol;
mod put;
mod queue;
mod server;

#[cfg(test)]
mod tests;

pub use archive::{
    Archive, Continuity, SegmentRange, WAL_PREFIX, archived_at, is_archived, is_archived_as, systems,
};
pub use client::get_main;
pub use header::{LongHeader, SystemId};
pub use history::{History, Switch};
pub use names::{InvalidLsn, Lsn, Segment, SegmentSize, WalName};
pub(super) use prefetch::{MOST_AHEAD, READ_AHEAD};
pub use put::{Compression, Encryption, PutConfig, put_main};
pub use server::{Answered, Origin, ProvenSource, Request, Served, WalServer, WalSource};

/// How a command that Postgres started must end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalExit {
    /// The exit code of the process.
    pub code: i32,
    /// One line for standard error, where the server's log shows it; empty if there is nothing to say.
    pub message: String,
}

impl WalExit {
    fn silent(code: i32) -> Self {
        Self { code, message: String::new() }
    }
}
