//! HTTP kinds: smoke, wait, request.

mod answer;
pub mod codes;
mod request;
mod session;
mod single;
mod smoke;

use lifeboat_engine::step::Registry;

/// Adds the kinds of this family.
pub fn register(registry: &mut Registry) {
    registry.register(single::Request);
    registry.register(single::Wait);
    registry.register(smoke::Smoke);
}
