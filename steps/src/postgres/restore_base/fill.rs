//! Fills the places of a restore.

use std::path::{Path, PathBuf};

use lifeboat_engine::step::{StepContext, StepError};

use super::super::codes;
use super::super::unsynced::Disk;
use super::delta;
use super::flusher::Flusher;
use super::places::Places;
use super::source::{Source, in_manifest, stem};
use super::target::{Existing, Target, sync_dir};
use super::unpack::{CONTROL_FILE, HELD_BACK, Job, Unpacked, make_private_dir, unpack, unwritable};
use crate::process::OsUser;
use crate::store::{Meter, ObjectEntry, blocking};

/// What was put in place.
pub(super) struct Restored {
    pub(super) source: Source,
    pub(super) base: Unpacked,
    pub(super) wal: Unpacked,
}

/// Fills every place and makes it durable; the control file comes last.
pub(super) async fn restore(
    ctx: &StepContext,
    places: &Places,
    (owner, existing): (Option<OsUser>, Existing),
    source: Source,
) -> Result<Restored, StepError> {
    places.take(ctx, &source.marker.label).await?;
    let meter = Meter::bytes(ctx, Some(source.marker.bytes()), "unpacking the base backup");
    let places = places.clone();
    blocking(move || {
        // Opened before anything is written: the sync of it then reports every error since.
        let disk = |target: &Target| match Disk::of(&target.data_dir) {
            Ok(disk) => Ok((disk, target.data_dir.clone())),
            Err(error) => Err(unwritable(&target.data_dir, &error)),
        };
        let disks = places.targets().map(disk).collect::<Result<Vec<_>, _>>()?;
        let work = Work { source: &source, places: &places, owner: owner.as_ref(), meter: &meter, existing };
        work.sweep()?;
        places.link(owner.as_ref())?;
        let (base, wal) = work.unpack()?;
        check_whole(&source, &base, &places.data.data_dir)?;
        places.write_map()?;
        publish_control_file(&places.data.data_dir, &disks)?;
        places.targets().try_for_each(|target| target.hand_over(owner.as_ref()))?;
        Ok(Restored { source, base, wal })
    })
    .await
}

/// Everything that the manifest names must have come, and without one at least what comes last.
fn check_whole(source: &Source, base: &Unpacked, data_dir: &Path) -> Result<(), StepError> {
    let mut named = source.manifest.iter().flat_map(|manifest| manifest.files.keys());
    let missing = named.find(|path| !base.seen.contains(*path)).map(|path| path.display().to_string());
    let control = || (!data_dir.join(HELD_BACK).exists()).then(|| CONTROL_FILE.to_owned());
    let Some(missing) = missing.or_else(control) else { return Ok(()) };
    let label = &source.marker.label;
    let message = format!("{missing} belongs to backup `{label}` and is not in its archive");
    Err(StepError::permanent(codes::LB1258, message).help("the backup is damaged; restore from another one"))
}

/// Unpacks every object of a backup.
struct Work<'a> {
    source: &'a Source,
    places: &'a Places,
    owner: Option<&'a OsUser>,
    meter: &'a Meter,
    existing: Existing,
}

impl Work<'_> {
    /// Removes what a restore over an earlier one must not leave.
    fn sweep(&self) -> Result<(), StepError> {
        let (Existing::Delta, Some(manifest)) = (self.existing, &self.source.manifest) else { return Ok(()) };
        delta::sweep(&self.places.data.data_dir, (Path::new(""), manifest))?;
        for space in &self.places.spaces {
            delta::sweep(&space.target.data_dir, (&in_manifest(&space.oid), manifest))?;
        }
        Ok(())
    }

    /// Returns the files of the cluster and those of its log.
    fn unpack(&self) -> Result<(Unpacked, Unpacked), StepError> {
        let (mut base, mut wal) = (Unpacked::default(), Unpacked::default());
        let data_dir = &self.places.data.data_dir;
        let wal_dir = data_dir.join("pg_wal");
        let started = Flusher::start();
        let flusher = &started;
        for object in &self.source.marker.objects {
            let stem = stem(&object.name);
            let space = self.places.spaces.iter().find(|space| space.oid == stem);
            match (stem, space) {
                ("base", _) => base.add(self.one((object, flusher), (data_dir, Some(Path::new(""))))?),
                ("pg_wal", _) => {
                    if !wal_dir.is_dir() {
                        make_private_dir(&wal_dir, self.owner)
                            .map_err(|error| unwritable(&wal_dir, &error))?;
                    }
                    wal = self.one((object, flusher), (&wal_dir, None))?;
                }
                (_, Some(space)) => {
                    let prefix = in_manifest(&space.oid);
                    base.add(self.one((object, flusher), (&space.target.data_dir, Some(&prefix)))?);
                }
                _ => self.meter.advance(object.size)?,
            }
        }
        started.finish().map_err(|error| unwritable(data_dir, &error))?;
        Ok((base, wal))
    }

    /// Unpacks one object into a directory; the manifest knows its files by a prefix, if at all.
    fn one(
        &self,
        (object, flusher): (&ObjectEntry, &Flusher),
        (dir, prefix): (&Path, Option<&Path>),
    ) -> Result<Unpacked, StepError> {
        let Source { store, marker, manifest, .. } = self.source;
        let manifest = manifest.as_ref().filter(|_| prefix.is_some());
        let prefix = prefix.unwrap_or(Path::new(""));
        unpack(&Job {
            store,
            marker,
            object,
            dir,
            prefix,
            owner: self.owner,
            manifest,
            meter: self.meter,
            flusher,
            existing: self.existing,
        })
    }
}

/// Makes everything durable, and only then gives the control file its name: without it no server starts.
fn publish_control_file(data_dir: &Path, disks: &[(Disk, PathBuf)]) -> Result<(), StepError> {
    let held_back = data_dir.join(HELD_BACK);
    for (disk, dir) in disks {
        disk.sync_all(dir).map_err(|error| unwritable(dir, &error))?;
    }
    std::fs::rename(&held_back, data_dir.join(CONTROL_FILE))
        .map_err(|error| unwritable(&held_back, &error))?;
    sync_dir(&data_dir.join("global"))
}
