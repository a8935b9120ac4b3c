//! A base backup by its label, whoever made it.

use lifeboat_engine::step::StepError;

use super::unmarked::{self, is_unmarked};
use crate::postgres::details::BaseDetails;
use crate::postgres::wal::WAL_PREFIX;
use crate::store::{BackupKind, Key, Marker, Store, read_marker};

/// A backup, and the store in which its WAL stands where Lifeboat puts it.
#[derive(Clone, Debug)]
pub(in super::super) struct Described {
    pub(in super::super) store: Store,
    pub(in super::super) marker: Marker,
    /// What cannot be proven, if another tool has made it.
    pub(in super::super) warnings: Vec<String>,
}

/// Reads what is known of a backup.
pub(in super::super) fn described(store: Store, label: &str) -> Result<Described, StepError> {
    if !is_unmarked(label) {
        let marker = read_marker(&store, BackupKind::PostgresBase, label)?;
        return Ok(Described { store, marker, warnings: Vec::new() });
    }
    let found = unmarked::inspect(&store, label)?;
    let details: BaseDetails = found.marker.details()?;
    let store = wal_of(store, label, &details.system_id)?;
    Ok(Described { store, marker: found.marker, warnings: found.warnings })
}

/// Returns the store in which the WAL of a backup stands where Lifeboat puts it.
pub(in super::super) fn wal_of(store: Store, label: &str, system_id: &str) -> Result<Store, StepError> {
    if !is_unmarked(label) {
        return Ok(store);
    }
    let real = Key::new(WAL_PREFIX)?;
    let shown = real.join(system_id)?;
    Ok(store.flattened(real, shown))
}
