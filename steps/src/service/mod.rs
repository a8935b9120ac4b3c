//! Service kinds: start, stop, restart, reload, status; for systemd, docker, docker compose and plain processes; and the gates
//! before services, `access.close` and `access.open`.
//!
//! [`Unit`] is how other families start and stop what an environment puts under a manager.

pub mod codes;
mod gate;
mod health;
mod kinds;
mod log;
mod process;
mod reload;
mod standing;
mod unit;

pub(crate) use log::{Log, log_of};
pub use unit::{STOP_PATIENCE, Started, Unit};

use lifeboat_engine::step::Registry;

/// Adds the kinds of this family.
pub fn register(registry: &mut Registry) {
    registry.register(gate::Close);
    registry.register(gate::Open);
    registry.register(kinds::Start);
    registry.register(kinds::Stop);
    registry.register(kinds::Restart);
    registry.register(reload::Reload);
    registry.register(kinds::Status);
}
