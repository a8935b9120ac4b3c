//! Logical backups: taken in one snapshot, restored into databases that are not there yet.

mod details;
mod fit;
mod pour;
mod prove;
mod restore;
mod scan;
mod take;

pub(super) use details::{Position, Restored, STATE, restored_state};
pub(super) use prove::{definers, orphans};
pub(super) use restore::RestoreDump;
pub(super) use take::{Dump, databases};
