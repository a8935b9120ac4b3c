//! `observe`: looks at systems again and again for a while, and tolerates so many failures.
//!
//! What it looks at are other kinds, taken from the registry by name, so that it knows none of their families.

pub mod codes;
mod kind;
mod look;
mod tally;

use lifeboat_engine::step::Registry;

/// Adds the kind. Must come after those that it looks with.
pub fn register(registry: &mut Registry) {
    let observe = kind::Observe::with(registry);
    registry.register(observe);
}
