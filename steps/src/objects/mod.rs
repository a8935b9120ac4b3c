//! Step kinds for objects: `store.*`.
//!
//! The names of objects are data. Nothing here takes one for a path before [`names`] has looked at it.

mod choose;
mod directory;
mod names;
mod restore;
mod rollback;

use lifeboat_engine::step::Registry;

/// Adds the kinds of this family.
pub fn register(registry: &mut Registry) {
    registry.register(restore::RestoreAsOf);
}
