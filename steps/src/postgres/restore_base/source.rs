//! The backup that is restored, and what must hold before anything is touched.

use std::io::Read;
use std::path::{Path, PathBuf};

use lifeboat_engine::resource::Postgres;
use lifeboat_engine::step::{StepContext, StepError};
use serde::Deserialize;

use super::super::backup::{Described, Tablespace, described, is_unmarked};
use super::super::codes;
use super::super::controldata::ControlData;
use super::super::details::BaseDetails;
use super::super::tools::Tools;
use super::delta;
use super::places::Places;
use super::target::Target;
use super::unpack::CONTROL_FILE;
use crate::postgres::backup_manifest::{MANIFEST, Manifest};
use crate::store::{HashingReader, Marker, Store, blocking, of_store, verify_sizes};

/// A backup that was looked at, and everything needed to unpack it.
pub(super) struct Source {
    pub(super) store: Store,
    pub(super) marker: Marker,
    pub(super) details: BaseDetails,
    pub(super) tablespaces: Vec<Tablespace>,
    /// Another tool may have made none.
    pub(super) manifest: Option<Manifest>,
    /// What cannot be proven of it.
    pub(super) warnings: Vec<String>,
}

impl Source {
    /// Returns the bytes of the files below a path, as far as they are known.
    fn bytes_below(&self, path: &Path) -> u64 {
        self.manifest.as_ref().map_or(0, |manifest| manifest.bytes_below(path))
    }

    /// Returns the bytes of all files; what is stored is the least if no manifest tells.
    fn bytes(&self) -> u64 {
        self.manifest.as_ref().map_or_else(|| self.marker.bytes(), Manifest::bytes)
    }
}

/// What the marker of a backup says, as far as it matters here.
#[derive(Deserialize)]
struct Details {
    #[serde(flatten)]
    base: BaseDetails,
    #[serde(default)]
    tablespaces: Vec<Tablespace>,
}

/// Looks at the backup: everything that can be seen before anything is touched.
pub(super) async fn open(ctx: &StepContext, (store, label): (&str, &str)) -> Result<Source, StepError> {
    let (store, label) = (Store::of(ctx, store).await?, label.to_owned());
    blocking(move || {
        let Described { store, marker, warnings } = described(store, &label)?;
        let Details { base: details, tablespaces } = marker.details()?;
        check_objects(&marker, &tablespaces)?;
        verify_sizes(&store, &marker)?;
        let manifest = read_manifest(&store, &marker)?;
        Ok(Source { store, marker, details, tablespaces, manifest, warnings })
    })
    .await
}

/// Every object must be one that this step can place, and every tablespace must be there.
fn check_objects(marker: &Marker, tablespaces: &[Tablespace]) -> Result<(), StepError> {
    let missing = |what: &str| {
        StepError::permanent(codes::LB1255, format!("backup `{}` {what}", marker.label))
            .help("restore from another backup")
    };
    let stems: Vec<_> = marker.objects.iter().map(|object| stem(&object.name)).collect();
    let manifest = (!is_unmarked(&marker.label)).then_some(MANIFEST);
    let spaces = tablespaces.iter().map(|space| space.oid.as_str());
    for needed in ["base"].into_iter().chain(manifest).chain(spaces) {
        if !stems.contains(&needed) {
            return Err(missing(&format!("has no `{needed}` among its objects")));
        }
    }
    let is_space = |stem: &&&str| stem.bytes().all(|byte| byte.is_ascii_digit());
    let named = |stem: &&str| tablespaces.iter().any(|space| space.oid == *stem);
    match stems.iter().filter(is_space).find(|stem| !named(stem)) {
        Some(oid) => {
            Err(missing(&format!("has a tablespace {oid} whose directory its marker does not name")))
        }
        None => Ok(()),
    }
}

/// Returns the name of an object without what tells its form.
pub(super) fn stem(name: &str) -> &str {
    name.split('.').next().unwrap_or_default()
}

fn read_manifest(store: &Store, marker: &Marker) -> Result<Option<Manifest>, StepError> {
    let damaged = |why: String| {
        StepError::permanent(
            codes::LB1255,
            format!("`{MANIFEST}` of backup `{}` is damaged: {why}", marker.label),
        )
        .help("restore from another backup")
    };
    let object = marker.objects.iter().find(|object| object.name == MANIFEST);
    let object = match object {
        None if is_unmarked(&marker.label) => return Ok(None),
        object => object.ok_or_else(|| damaged("the marker does not name it".to_owned()))?,
    };
    let mut reader = HashingReader::new(store.read(&marker.key(MANIFEST)?)?);
    let mut text = Vec::new();
    reader.read_to_end(&mut text).map_err(|error| unread(&marker.label, &error))?;
    if !is_unmarked(&marker.label) && reader.finish().1.sha256 != object.sha256 {
        return Err(damaged("its SHA-256 is not that of the marker".to_owned()));
    }
    Manifest::parse(&text).map(Some).map_err(damaged)
}

/// A store that fails is not a manifest that is damaged.
fn unread(label: &str, error: &std::io::Error) -> StepError {
    of_store(error).cloned().unwrap_or_else(|| {
        let message = format!("`{MANIFEST}` of backup `{label}` cannot be read: {error}");
        StepError::transient(codes::LB1255, message)
            .help("check that the store is mounted and readable, then retry")
    })
}

/// Restoring over an earlier restore needs a list of what belongs there, and a directory of the same cluster.
pub(super) fn check_delta(postgres: &Postgres, data: &Target, source: &Source) -> Result<(), StepError> {
    if source.manifest.is_none() {
        let message =
            format!("backup `{}` has no {MANIFEST}, so that nothing can be kept", source.marker.label);
        return Err(StepError::permanent(codes::LB1835, message).help("use `existing: move_aside`"));
    }
    // A restore that was cut off has none.
    if !data.data_dir.join(CONTROL_FILE).exists() {
        return Ok(());
    }
    let tools = Tools::find_major(postgres, source.details.major)?;
    let found = ControlData::read(&tools, &data.data_dir)?;
    delta::check_system(data, (&found.system_id, &source.details.system_id))
}

/// Every file system must have room for what goes there.
pub(super) fn check_space(places: &Places, source: &Source) -> Result<(), StepError> {
    /// Segments are kept whole at both ends, and the server needs some to start with.
    const EXTRA_SEGMENTS: u64 = 4;
    let mut left = source.bytes();
    let mut needed = Vec::new();
    for space in &places.spaces {
        let bytes = source.bytes_below(&in_manifest(&space.oid));
        left = left.saturating_sub(bytes);
        needed.push((&space.target, bytes));
    }
    let wal = source.manifest.as_ref().map_or(0, Manifest::wal_bytes)
        + EXTRA_SEGMENTS * source.details.wal_segment_size;
    needed.push((&places.data, left + wal));
    for (target, _) in &needed {
        let shared = needed.iter().filter(|(other, _)| other.file_system() == target.file_system());
        let bytes: u64 = shared.map(|(_, bytes)| bytes).sum();
        let free = target.free_space()?;
        if free < bytes {
            let place = target.data_dir.display();
            let label = &source.marker.label;
            return Err(StepError::transient(
                codes::LB1254,
                format!(
                    "the file system of {place} needs {bytes} bytes for backup `{label}`, and {free} are free"
                ),
            )
            .help("make room (`df -h`), then try again; nothing was touched"));
        }
    }
    Ok(())
}

/// Where the manifest has the files of a tablespace.
pub(super) fn in_manifest(oid: &str) -> PathBuf {
    Path::new("pg_tblspc").join(oid)
}
