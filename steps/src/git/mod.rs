//! Git kinds: checkout of a tag or a commit, and the list of tags.

mod checkout;
pub mod codes;
mod interrupted;
mod repository;
mod tags;

use lifeboat_engine::step::Registry;

/// Adds the kinds of this family.
pub fn register(registry: &mut Registry) {
    registry.register(checkout::Checkout);
    registry.register(tags::Tags);
}
