//! Service kinds: start, stop, restart, status; for systemd, docker, docker compose and plain processes; and the gates
//! before services, `access.close` and `access.open`.
//!
//! [`Unit`] is how other families start and stop what an environment puts under a manager.

pub mod codes;
mod gate;
mod kinds;
mod process;
mod ready;
mod unit;

pub use unit::{Started, Unit};

use lifeboat_engine::step::Registry;

/// Adds the kinds of this family.
pub fn register(registry: &mut Registry) {
    registry.register(gate::Close);
    registry.register(gate::Open);
    registry.register(kinds::Start);
    registry.register(kinds::Stop);
    registry.register(kinds::Restart);
    registry.register(kinds::Status);
}
