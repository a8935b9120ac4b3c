//! Postgres: physical backup, point-in-time recovery, verification.

pub mod codes;
pub mod wal;

use lifeboat_engine::step::Registry;

/// Adds the kinds of this family.
pub fn register(registry: &mut Registry) {
    let _ = registry;
}
