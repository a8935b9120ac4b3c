//! Base backups: made, verified, described, and chosen for a recovery.

mod base;
mod checks;
mod manifest;
mod program;
mod verify;

pub use base::{BackupDetails, BaseBackup, Tablespace};
