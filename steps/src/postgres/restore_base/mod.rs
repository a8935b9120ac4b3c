//! `postgres.restore_base`: unpacks a base backup into a data directory.

mod delta;
mod fill;
mod flusher;
mod hashing;
mod kind;
mod listener;
mod places;
mod source;
mod target;
mod undo;
mod unpack;

pub(super) use kind::RestoreBase;
pub(super) use target::aside;
