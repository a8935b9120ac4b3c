//! Files kinds: backup, restore, verify.
//!
//! A backup is a manifest of a directory tree and a compressed archive that `tar` can unpack by hand. A restore is
//! unpacked beside its target, read back, and exchanged with it in one rename. Hard links become files of their own;
//! extended attributes and access lists are not kept.

mod archive;
mod backup;
pub mod codes;
mod extract;
mod manifest;
mod owner;
mod publish;
mod restore;
mod verify;

use lifeboat_engine::step::Registry;
#[cfg(feature = "s3")]
pub(crate) use publish::Place;

/// Adds the kinds of this family.
pub fn register(registry: &mut Registry) {
    registry.register(backup::Backup);
    registry.register(restore::Restore);
    registry.register(verify::Verify);
}
