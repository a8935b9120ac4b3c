//! Files kinds: backup, selection, restore, verify, swap, template.
//!
//! A backup is a manifest of a directory tree and a compressed archive that `tar` can unpack by hand. A restore is
//! unpacked beside its target, read back, and exchanged with it in one rename. Hard links become files of their own;
//! attributes that programs give to files are kept, access lists are counted and told.

mod archive;
mod attributes;
mod backup;
mod case;
pub mod codes;
mod extract;
mod manifest;
mod owner;
mod publish;
mod restore;
mod select;
mod swap;
mod template;
mod verify;

use lifeboat_engine::step::Registry;
#[cfg(feature = "s3")]
pub(crate) use publish::Place;

/// Adds the kinds of this family.
pub fn register(registry: &mut Registry) {
    registry.register(backup::Backup);
    registry.register(restore::Restore);
    registry.register(select::SelectBackup);
    registry.register(swap::Swap);
    registry.register(template::Template);
    registry.register(verify::Verify);
}
