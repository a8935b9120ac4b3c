//! Base backups: made, verified, described, and chosen for a recovery.

mod base;
mod checks;
mod choice;
mod described;
mod estimate;
mod program;
mod proof;
mod select;
mod unmarked;
mod verify;

pub use base::{BackupDetails, BaseBackup, Tablespace};
pub use proof::VerifyBackup;
pub use select::SelectBackup;

pub(super) use described::{Described, described, wal_of};
pub(super) use unmarked::is_unmarked;
