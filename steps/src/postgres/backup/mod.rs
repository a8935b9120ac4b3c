//! Base backups: made, verified, described, and chosen for a recovery.

mod base;
mod checks;
mod choice;
mod program;
mod select;
mod verify;

pub use base::{BackupDetails, BaseBackup, Tablespace};
pub use select::SelectBackup;
