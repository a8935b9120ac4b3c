//! `postgres.recover` and `postgres.promote` on real clusters with an archive.

mod promote;
mod recover;
mod scene;
#[path = "../support/mod.rs"]
pub mod support;
mod surviving;
mod unsynced;
