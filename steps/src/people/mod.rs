//! Questions to people and messages to channels.

pub mod codes;

use lifeboat_engine::step::Registry;

/// Adds the kinds of this family.
pub fn register(registry: &mut Registry) {
    let _ = registry;
}
