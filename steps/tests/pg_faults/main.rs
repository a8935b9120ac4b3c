//! What goes wrong with backups, logs, targets, disks and dumps, and what Lifeboat makes of it: each ends in a state that is
//! known, with a message that names the object, and the world is as it was.
//!
//! One source is backed up and archived once ([`scene::original`]); each case damages a copy of its store.

#[path = "../support/mod.rs"]
pub mod support;

mod base;
mod bucket;
mod disk;
mod dumps;
mod failing;
mod scene;
mod target;
mod wal;
