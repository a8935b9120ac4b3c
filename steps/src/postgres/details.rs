//! What the marker of a base backup says beyond its objects.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The details of a `postgres.base` marker, from the server's own word and clock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseDetails {
    /// WAL of this cluster stands under `wal/<system_id>/` of the same store.
    pub system_id: String,
    /// The major version: only its programs can read the data.
    pub major: u32,
    /// The full version, for people.
    pub version: String,
    /// The timeline on which the backup was made.
    pub timeline: u32,
    pub start_lsn: String,
    /// The data is consistent from here on.
    pub stop_lsn: String,
    pub start_time: Timestamp,
    /// Targets before this moment cannot be reached from this backup.
    pub stop_time: Timestamp,
    /// In bytes.
    pub wal_segment_size: u64,
}
