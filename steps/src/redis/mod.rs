//! Redis: snapshots and their restore.

pub mod codes;

use lifeboat_engine::step::Registry;

/// Adds the kinds of this family.
pub fn register(registry: &mut Registry) {
    let _ = registry;
}
