//! Redis kinds: snapshot, restore, clone, verify, query, flush.
//!
//! A snapshot is an RDB file with its marker. It is loaded into a throw-away server before a restore touches its
//! target, and the target's own count of loaded keys is compared with it afterwards.

mod ask;
mod bounded;
mod check;
mod client;
mod clone;
pub mod codes;
mod config;
mod flush;
mod info;
mod link;
mod place;
mod preflight;
mod query;
mod relay;
mod restore;
mod snapshot;
mod start;
mod undo;
mod verify;

use lifeboat_engine::step::Registry;

/// Adds the kinds of this family.
pub fn register(registry: &mut Registry) {
    registry.register(clone::Clone);
    registry.register(flush::Flush);
    registry.register(query::Query);
    registry.register(snapshot::Snapshot);
    registry.register(restore::Restore);
    registry.register(verify::Verify);
    registry.register_probe(preflight::Servers);
}
