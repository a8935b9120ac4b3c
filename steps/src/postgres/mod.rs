//! Postgres: physical backup, point-in-time recovery, verification.

pub mod account;
pub mod backup;
mod backup_manifest;
mod catalogue;
mod change;
mod clone;
pub mod codes;
pub mod connect;
pub mod controldata;
mod database;
pub mod details;
mod dump;
mod inventory;
pub mod isolation;
mod libpq;
mod lifecycle;
pub mod local;
mod lock_files;
mod memory;
pub mod pidfile;
mod preflight;
mod promote;
mod prune;
mod query;
mod recover;
pub mod recovery_target;
mod restore_base;
mod restore_note;
mod rows;
mod server;
mod stream;
mod table;
mod timeline;
pub mod tools;
mod unsynced;
mod verify;
pub mod wal;
mod wal_status;

use lifeboat_engine::step::Registry;

/// Adds the kinds of this family.
pub fn register(registry: &mut Registry) {
    registry.register(backup::BaseBackup);
    registry.register(backup::SelectBackup);
    registry.register(backup::VerifyBackup);
    registry.register(change::Change);
    registry.register(clone::Clone);
    registry.register(database::CreateDatabase);
    registry.register(database::DropDatabase);
    registry.register(database::SwapDatabase);
    registry.register(dump::Dump);
    registry.register(dump::RestoreDump);
    registry.register(lifecycle::Start);
    registry.register(lifecycle::Stop);
    registry.register(lifecycle::WaitReady);
    registry.register(promote::Promote);
    registry.register(prune::Prune);
    registry.register(query::Query);
    registry.register(recover::Recover);
    registry.register(restore_base::RestoreBase);
    registry.register(table::RecoverTable);
    registry.register(verify::Verify);
    registry.register(wal_status::WalStatus);
    registry.register_probe(preflight::Clusters);
}
