//! One module for each command, or for commands that are alike.

pub(crate) mod confirm;
pub(crate) mod decide;
pub(crate) mod execute;
pub(crate) mod explain;
pub(crate) mod files;
pub(crate) mod graph;
pub(crate) mod init;
pub(crate) mod inputs;
pub(crate) mod list;
pub(crate) mod logs;
pub(crate) mod look;
pub(crate) mod plan;
pub(crate) mod schedule;
pub(crate) mod schema;
pub(crate) mod steps;
pub(crate) mod wal;
pub(crate) mod watch;
