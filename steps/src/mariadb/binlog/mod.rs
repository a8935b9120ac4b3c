//! The binary log: shipped file by file, and replayed to a moment.

mod again;
mod apply;
mod archive;
mod events;
mod fetch;
mod gtid;
mod plan;
mod replay;
mod ship;

pub(super) use replay::ReplayBinlog;
pub(super) use ship::ShipBinlogs;
