//! Base backups: made, verified, described, and chosen for a recovery.

mod base;
mod checks;
mod choice;
mod program;
mod proof;
mod select;
mod verify;

pub use base::{BackupDetails, BaseBackup, Tablespace};
pub use proof::VerifyBackup;
pub use select::SelectBackup;
