//! Looks at systems before a run, for `lifeboat plan`: what is there, and whether it is fit. Changes nothing.
//!
//! Families look at their own servers; this module has what they share, and the resources that belong to no family.

mod measure;
mod place;
mod reach;

pub(crate) use measure::{Measured, measure};
pub(crate) use place::{age, backup_age, bytes, free_space, space, writable};
pub(crate) use reach::program_found;

use lifeboat_engine::step::Registry;

/// Adds the probes of resources.
pub(crate) fn register(registry: &mut Registry) {
    registry.register_probe(reach::Http);
    registry.register_probe(reach::Channels);
    registry.register_probe(place::Stores);
    registry.register_probe(place::Files);
    registry.register_probe(reach::Services);
}
