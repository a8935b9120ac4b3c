//! Stores of backups: a directory, on this machine or mounted, with the same layout that object stores get.
//!
//! ```text
//! base/<label>/       base.tar.zst, pg_wal.tar.zst, <oid>.tar.zst, backup_manifest, lifeboat.json
//! wal/<system id>/    000000010000000000000003.zst, 00000002.history
//! redis/<label>/      dump.rdb, lifeboat.json
//! files/<label>/      manifest.json, …, lifeboat.json
//! ```
//!
//! Two rules make a store trustworthy. An object appears under its name whole and durable, or not at all, and is
//! never replaced by different content. A backup exists once its marker `lifeboat.json` does, which is written
//! last; until then its directory is called `<label>.partial`.
//!
//! All calls here block. Steps make them within [`blocking`], with a [`Meter`] that carries progress out and
//! cancellation in.

mod beneath;
mod catalogue;
pub mod codes;
mod dir;
mod failure;
mod key;
mod marker;
mod object;
mod partial;
mod transfer;

#[cfg(test)]
mod tests;

pub use catalogue::{Catalogue, Rejected, Rejection, catalogue, read_marker, verify, verify_sizes};
pub use dir::{Listed, Metadata, Store};
pub use key::Key;
pub use marker::{BackupKind, MARKER, Marker, ObjectEntry, new_label};
pub use object::{NewObject, ObjectReader, Put};
pub use partial::{Owner, Partial};
pub use transfer::{Digest, HashingReader, HashingWriter, Meter, blocking, copy, digest_of};
