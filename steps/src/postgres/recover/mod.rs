//! `postgres.recover`: replays WAL over a restored base backup up to a moment, and waits there.
//!
//! ```text
//! Source   what is recovered, from what: checked before anything is started
//! Pass     one start of the server towards one goal, watched until it pauses or ends
//! proof    what shows that the server stopped where it should, and that no WAL is missing
//! flushing what is written while it replays, sent to the disk
//! Surviving WAL that the lost server had not archived yet, if its directory can be read
//! durable  everything that was replayed, synced once at the end
//! point    how new the data is
//! ```

mod durable;
mod flushing;
mod kind;
mod pass;
mod point;
mod proof;
mod source;
mod surviving;

pub(super) use kind::Recover;
pub(super) use pass::{replay_state, request_recovery};
