//! Directory trees: backup, restore and verification by manifest.

pub mod codes;

use lifeboat_engine::step::Registry;

/// Adds the kinds of this family.
pub fn register(registry: &mut Registry) {
    let _ = registry;
}
