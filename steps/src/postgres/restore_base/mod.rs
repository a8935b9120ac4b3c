//! `postgres.restore_base`: unpacks a base backup into a data directory.

mod flusher;
mod kind;
mod listener;
mod target;
mod undo;
mod unpack;

pub(super) use kind::RestoreBase;
