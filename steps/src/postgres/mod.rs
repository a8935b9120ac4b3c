//! Postgres: physical backup, point-in-time recovery, verification.

pub mod account;
pub mod backup;
pub mod codes;
pub mod connect;
pub mod controldata;
pub mod details;
pub mod local;
pub mod pidfile;
mod restore_base;
pub mod tools;
pub mod wal;

use lifeboat_engine::step::Registry;

/// Adds the kinds of this family.
pub fn register(registry: &mut Registry) {
    registry.register(restore_base::RestoreBase);
    registry.register(backup::BaseBackup);
    registry.register(backup::SelectBackup);
}
