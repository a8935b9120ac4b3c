//! One module for each command, or for commands that are alike.

pub(crate) mod explain;
pub(crate) mod steps;
pub(crate) mod wal;
