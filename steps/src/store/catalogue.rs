use std::io::Read;

use lifeboat_engine::step::StepError;

use super::backend::Store;
use super::marker::{BackupKind, MARKER, Marker};
use super::partial::PARTIAL;
use super::transfer::{Meter, digest_of};
use super::{codes, failure, marker};

/// The backups of one kind in a store.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Catalogue {
    /// Those with a valid marker, the one that finished last first.
    pub complete: Vec<Marker>,
    /// Everything else that stands where backups do.
    pub rejected: Vec<Rejected>,
}

/// Something that is no usable backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    pub label: String,
    pub why: Rejection,
    /// For people.
    pub reason: String,
}

/// Why something is no usable backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// It is being made, or its maker died.
    Unfinished,
    /// Its marker is missing.
    NoMarker,
    /// Its marker cannot be trusted.
    InvalidMarker,
}

/// Markers are small; anything larger is none.
const MARKER_LIMIT: u64 = 64 * 1024 * 1024;

/// Lists the backups of one kind. Reads the markers, not the objects.
pub fn catalogue(store: &Store, kind: BackupKind) -> Result<Catalogue, StepError> {
    store.check_reachable()?;
    let mut catalogue = Catalogue::default();
    for name in store.list_groups(&kind.prefix())? {
        if name.strip_suffix(PARTIAL).is_some() {
            let reason = "it is still being made, or was never finished".to_owned();
            catalogue.rejected.push(Rejected { label: name, why: Rejection::Unfinished, reason });
            continue;
        }
        match read_marker(store, kind, &name) {
            Ok(marker) => catalogue.complete.push(marker),
            Err(error) if error.code == codes::LB1104 => {
                let reason = format!("it has no {MARKER}, so it was never finished");
                catalogue.rejected.push(Rejected { label: name, why: Rejection::NoMarker, reason });
            }
            Err(error) if error.code == codes::LB1110 || error.code == codes::LB1106 => {
                let why = Rejection::InvalidMarker;
                catalogue.rejected.push(Rejected { label: name, why, reason: error.message });
            }
            Err(error) => return Err(error),
        }
    }
    catalogue.complete.sort_by(|a, b| (b.finished_at, &b.label).cmp(&(a.finished_at, &a.label)));
    Ok(catalogue)
}

/// Reads and checks the marker of one backup.
pub fn read_marker(store: &Store, kind: BackupKind, label: &str) -> Result<Marker, StepError> {
    let key = kind.backup(label)?.join(MARKER)?;
    let mut text = Vec::new();
    store
        .read(&key)?
        .take(MARKER_LIMIT)
        .read_to_end(&mut text)
        .map_err(|error| failure::read(format_args!("`{key}`"), &error))?;
    Marker::parse(&text, kind, label)
}

/// Finds out whether every object of a backup is there with its size, without reading it.
pub fn verify_sizes(store: &Store, marker: &Marker) -> Result<(), StepError> {
    for object in &marker.objects {
        let key = marker.key(&object.name)?;
        match store.metadata(&key)? {
            None => return Err(mismatch(marker, &object.name, format_args!("it is missing"))),
            Some(found) if found.size != object.size => {
                let problem = format_args!("it has {} bytes, not {}", found.size, object.size);
                return Err(mismatch(marker, &object.name, problem));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// Reads every object of a backup and compares size and SHA-256 with the marker. Counts bytes.
pub fn verify(store: &Store, marker: &Marker, meter: &Meter) -> Result<(), StepError> {
    verify_sizes(store, marker)?;
    for object in &marker.objects {
        let digest = digest_of(store.read(&marker.key(&object.name)?)?, meter)?;
        if digest.size != object.size || digest.sha256 != object.sha256 {
            let problem = format_args!("its SHA-256 is {}, not {}", digest.sha256, object.sha256);
            return Err(mismatch(marker, &object.name, problem));
        }
    }
    Ok(())
}

fn mismatch(marker: &marker::Marker, object: &str, problem: impl std::fmt::Display) -> StepError {
    StepError::permanent(
        codes::LB1108,
        format!("`{object}` of the {} backup `{}` is damaged: {problem}", marker.kind, marker.label),
    )
    .help("do not restore from this backup; choose another one, or bring this object back from a copy of the store")
}
