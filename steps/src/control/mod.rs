//! Control kinds: run, assert, wait.

mod assert;
pub mod codes;
mod run;
mod wait;

use lifeboat_engine::step::Registry;

/// Adds the kinds of this family.
pub fn register(registry: &mut Registry) {
    registry.register(assert::Assert);
    registry.register(run::Run);
    registry.register(wait::Wait);
}
