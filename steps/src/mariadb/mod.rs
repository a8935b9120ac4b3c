//! MariaDB kinds: dump and restore, binary logs shipped and replayed, verify, query, change, start, stop, clone.
//!
//! A dump says where the binary log stood when it was taken; a replay goes on exactly there, into a server that nobody
//! else writes to, and proves by transaction ids what it has applied.

mod binlog;
mod change;
mod clone;
pub mod codes;
mod connect;
mod dump;
mod facts;
mod instance;
mod lifecycle;
mod packets;
mod preflight;
mod query;
mod rows;
mod structure;
mod tools;
mod verify;

use lifeboat_engine::step::Registry;

/// Adds the kinds of this family.
pub fn register(registry: &mut Registry) {
    registry.register(binlog::ReplayBinlog);
    registry.register(binlog::ShipBinlogs);
    registry.register(change::Change);
    registry.register(clone::Clone);
    registry.register(dump::Dump);
    registry.register(dump::RestoreDump);
    registry.register(lifecycle::Start);
    registry.register(lifecycle::Stop);
    registry.register(query::Query);
    registry.register(verify::Verify);
    registry.register_probe(preflight::Servers);
}
