//! `postgres.recover`: replays WAL over a restored base backup up to a moment, and waits there.
//!
//! ```text
//! Source   what is recovered, from what: checked before anything is started
//! Pass     one start of the server towards one goal, watched until it pauses or ends
//! proof    what shows that the server stopped where it should, and that no WAL is missing
//! durable  everything that was replayed, synced once at the end
//! point    how new the data is
//! ```

mod durable;
mod kind;
mod pass;
mod point;
mod proof;
mod source;

pub(super) use kind::Recover;
pub(super) use pass::{replay_state, request_recovery};
