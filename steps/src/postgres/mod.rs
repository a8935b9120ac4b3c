//! Postgres: physical backup, point-in-time recovery, verification.

pub mod account;
pub mod backup;
mod backup_manifest;
mod clone;
pub mod codes;
pub mod connect;
pub mod controldata;
pub mod details;
pub mod isolation;
mod lifecycle;
pub mod local;
pub mod pidfile;
mod promote;
mod query;
mod recover;
mod restore_base;
mod restore_note;
mod rows;
mod server;
pub mod tools;
mod verify;
pub mod wal;

use lifeboat_engine::step::Registry;

/// Adds the kinds of this family.
pub fn register(registry: &mut Registry) {
    registry.register(backup::BaseBackup);
    registry.register(backup::SelectBackup);
    registry.register(clone::Clone);
    registry.register(lifecycle::Start);
    registry.register(lifecycle::Stop);
    registry.register(lifecycle::WaitReady);
    registry.register(promote::Promote);
    registry.register(query::Query);
    registry.register(recover::Recover);
    registry.register(restore_base::RestoreBase);
    registry.register(verify::Verify);
}
