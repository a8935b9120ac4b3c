//! Stores of backups: a directory, on this machine or mounted, or a bucket of an object store, with the same layout.
//!
//! ```text
//! base/<label>/       base.tar.zst, pg_wal.tar.zst, <oid>.tar.zst, backup_manifest, lifeboat.json
//! wal/<system id>/    000000010000000000000003.zst, 00000002.history
//! dump/<label>/       database.dump or database/, globals.sql, lifeboat.json
//! redis/<label>/      dump.rdb, lifeboat.json
//! files/<label>/      manifest.json, …, lifeboat.json
//! ```
//!
//! Two rules make a store trustworthy. An object appears under its name whole and durable, or not at all, and is
//! never replaced by different content. A backup exists once its marker `lifeboat.json` does, which is written
//! last; until then its directory is called `<label>.partial`, or, in a bucket, its objects are without a marker.
//!
//! All calls here block. Steps make them within [`blocking`], with a [`Meter`] that carries progress out and
//! cancellation in.

mod address;
mod backend;
pub(crate) mod beneath;
mod catalogue;
pub mod codes;
pub(crate) mod crc;
mod dir;
mod failure;
mod file;
mod key;
mod marker;
pub(crate) mod named;
pub(crate) mod parallel;
mod partial;
pub(crate) mod policy;
mod remove;
#[cfg(feature = "s3")]
mod s3;
pub(crate) mod sums;
mod transfer;
mod uncached;
pub(crate) mod uploads;
#[cfg(feature = "s3")]
pub(crate) mod versions;

#[cfg(test)]
mod tests;

pub use address::Address;
pub use backend::{Listed, Metadata, NewObject, ObjectReader, Put, Store};
pub use catalogue::{Catalogue, Rejected, Rejection, catalogue, read_marker, verify, verify_sizes};
pub use failure::of_store;
pub use key::Key;
pub use marker::{BackupKind, MARKER, Marker, ObjectEntry, new_label};
pub use partial::{Owner, Partial};
#[cfg(feature = "s3")]
pub(crate) use s3::md5_in;
pub use transfer::{Digest, HashingReader, HashingWriter, Meter, blocking, copy, digest_of};
