use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::model::evidence::Check;
use lifeboat_engine::resource::{Postgres, ResourceKind};
use lifeboat_engine::step::{Effect, Finding, FindingState, KindSpec, PreflightFacts, Preview};
use lifeboat_engine::step::{StepContext, StepError, StepKind};
use lifeboat_engine::value::{Field, Type};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::super::backup::{Described, Tablespace, described, is_unmarked};
use super::super::details::BaseDetails;
use super::super::tools::Tools;
use super::super::unsynced::Disk;
use super::super::{account, codes, local, preflight};
use super::flusher::Flusher;
use super::places::{Mapping, Places};
use super::target::{Existing, Found, Target, sync_dir};
use super::unpack::{CONTROL_FILE, HELD_BACK, Job, Unpacked, make_private_dir, unpack, unwritable};
use crate::postgres::backup_manifest::{MANIFEST, Manifest};
use crate::probe::measure;
use crate::process::OsUser;
use crate::store::{HashingReader, Marker, Meter, ObjectEntry, Store, blocking, verify_sizes};

/// Under this key the step finds, after a crash, that it had finished.
const FINISHED: &str = "finished";

/// Unpacks a base backup into a data directory.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct RestoreBase;

#[derive(Deserialize)]
struct Params {
    store: String,
    backup: String,
    cluster: String,
    existing: Existing,
    #[serde(flatten)]
    mapping: Mapping,
}

/// Measures what stands in a directory, for people.
async fn measured(dir: &Path) -> String {
    let dir = dir.to_owned();
    let found = blocking(move || Ok(measure(&dir))).await.ok().flatten();
    found.map_or_else(|| "empty".to_owned(), |found| found.to_string())
}

/// Says whether the place is free. A server there may yet be stopped by an earlier step.
async fn place(cluster: &str, postgres: &Postgres, (target, existing): (Target, Existing)) -> Vec<Finding> {
    const WHAT: &str = "place";
    let at = target.data_dir.display().to_string();
    if let Err(error) = target.check_servers(postgres) {
        let finding = Finding::failed(cluster, WHAT, &error).state(FindingState::Warning);
        return vec![finding.help("an earlier step of the plan must stop it")];
    }
    let finding = match (blocking(move || target.look()).await, existing) {
        (Ok(Found::Foreign(names)), Existing::Refuse) => {
            let detail = format!("{at} is not empty ({})", names.join(", "));
            Finding::ok(cluster, WHAT, detail)
                .state(FindingState::Failed)
                .help("`existing: move_aside` on the step keeps what is there under another name")
        }
        (Ok(Found::Foreign(_)), Existing::MoveAside) => {
            Finding::ok(cluster, WHAT, format!("{at} is not empty and will be moved aside"))
        }
        (Ok(_), _) => Finding::ok(cluster, WHAT, format!("{at} is free")),
        (Err(error), _) => Finding::failed(cluster, WHAT, &error),
    };
    vec![finding]
}

/// A backup that was looked at, and everything needed to unpack it.
struct Source {
    store: Store,
    marker: Marker,
    details: BaseDetails,
    tablespaces: Vec<Tablespace>,
    /// Another tool may have made none.
    manifest: Option<Manifest>,
    /// What cannot be proven of it.
    warnings: Vec<String>,
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

/// What a finished attempt leaves in the journal, so that a repetition does nothing.
#[derive(Serialize, Deserialize)]
struct Finished {
    backup: String,
    inode: u64,
    done: Done,
}

const DOC: &str = "\
Before anything is touched: the backup has a valid marker and all its objects; the programs found are of its major \
version; no server runs on the data directory, and none where this one will listen; the directory is empty or absent, \
or is moved aside (`existing: move_aside`), never deleted; the disk has room.

Each object is read once: decompressed, unpacked and hashed as it streams. Every file is compared with \
`backup_manifest` by size and SHA-256; where the manifest has none, the object is compared with the marker. `global/pg_control` is put in place last, after everything else is \
durable, so that a restore that was cut off cannot be started. After a failure the place is as it was before.

Tablespaces go where `tablespaces` or `tablespace_dir` says, else to the directory that they had on the source, if that \
is empty or absent. A directory with files is refused; with `existing: move_aside` it is renamed like the data \
directory if the cluster that is replaced uses it, and never otherwise. The links of every cluster go on to name its own \
directories, also after an undo.

If the run is aborted, the earlier directory is put back. A complete restore is kept beside it, as nobody knows who has \
used it meanwhile; half a one is deleted. If a server runs on the directory, nothing is touched and the undo fails: a \
`postgres.recover` or `postgres.promote` of the same run stops its own.";

#[async_trait]
impl StepKind for RestoreBase {
    fn spec(&self) -> KindSpec {
        KindSpec::new(
            "postgres.restore_base",
            "Unpacks a base backup into an empty data directory.",
            Effect::Idempotent,
        )
        .doc(DOC)
        .param(Field::required("store", Type::reads(ResourceKind::Store), "Where the backup is."))
        .param(Field::required(
            "backup",
            Type::String,
            "The label of the backup, as `postgres.select_backup` gives it.",
        ))
        .param(Field::required(
            "cluster",
            Type::writes(ResourceKind::Postgres),
            "The cluster whose data directory is filled.",
        ))
        .param(Field::defaulted(
            "existing",
            Type::choice(&["refuse", "move_aside"]),
            "refuse",
            "What to do if the data directory is not empty: stop, or rename it to `<data_dir>.pre-<run>`.",
        ))
        .param(Field::optional(
            "tablespaces",
            Type::Map(Box::new(Type::Path)),
            "Where tablespaces go, by OID or by their directory on the source; to that same directory if absent.",
        ))
        .param(Field::optional(
            "tablespace_dir",
            Type::Path,
            "A directory below which each tablespace that `tablespaces` does not name gets one, named by its OID.",
        ))
        .output("data_dir", Type::Path, "The directory that was filled.")
        .output("bytes", Type::Integer, "Size of the restored files in bytes.")
        .output("files", Type::Integer, "Number of restored files.")
        .output("seconds", Type::Number, "How long it took.")
        .output("system_id", Type::String, "The system identifier of the restored cluster.")
        .undoes(
            "the earlier data directory is put back; what was restored is kept as `<data_dir>.undone-<run>`",
        )
        .destroys("the data directory of `cluster` (with `existing: move_aside` it is renamed, not deleted)")
    }

    async fn preview(&self, ctx: &StepContext) -> Result<Preview, StepError> {
        let params: Params = ctx.params()?;
        let (_, data_dir) = local::data_dir(ctx, &params.cluster)?;
        let target = Target::new(ctx, &params.cluster, data_dir)?;
        let found = blocking(move || target.look()).await?;
        let mut preview = Preview::default();
        let place = data_dir.display();
        preview.actions.push(format!("unpack base backup `{}` into {place}", params.backup));
        match (found, params.existing) {
            (Found::Foreign(_), Existing::MoveAside) => {
                let there = measured(data_dir).await;
                preview
                    .destroys
                    .push(format!("`{}`: {place} ({there}) becomes {place}.pre-<run>", params.cluster));
            }
            (Found::Foreign(names), Existing::Refuse) => {
                let there = names.join(", ");
                preview.destroys.push(format!(
                    "`{}`: nothing; the step is refused while {place} holds {there}",
                    params.cluster
                ));
            }
            (Found::Nothing | Found::Empty | Found::Own, _) => {
                preview
                    .destroys
                    .push(format!("`{}`: nothing, {place} is empty or absent now", params.cluster));
            }
        }
        Ok(preview)
    }

    async fn preflight(&self, ctx: &StepContext, _: &PreflightFacts) -> Result<Vec<Finding>, StepError> {
        /// The backup is chosen by an earlier step, as a rule.
        #[derive(Deserialize)]
        struct Known {
            store: String,
            cluster: String,
            backup: Option<String>,
            existing: Existing,
        }
        let known: Known = ctx.params()?;
        let (postgres, data_dir) = local::data_dir(ctx, &known.cluster)?;
        let store = Store::of(ctx, &known.store).await?;
        let (cluster, backup) = (known.cluster.as_str(), known.backup.as_deref());
        let mut findings =
            preflight::restore(preflight::Wanted { store, cluster, postgres, data_dir, backup }).await?;
        let target = Target::new(ctx, &known.cluster, data_dir)?;
        findings.extend(place(cluster, postgres, (target, known.existing)).await);
        Ok(findings)
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let params: Params = ctx.params()?;
        let (postgres, data_dir) = local::data_dir(ctx, &params.cluster)?;
        let target = Target::new(ctx, &params.cluster, data_dir)?;
        if let Some(done) = finished_before(ctx, &params, &target) {
            return Ok(done);
        }
        let begun = Instant::now();
        let source = open_source(ctx, &params).await?;
        Tools::find_major(postgres, source.details.major)?;
        let owner = account::owner(postgres)?;
        target.check_servers(postgres)?;
        let places = Places::plan(ctx, target, (&source.tablespaces, &params.mapping))?;
        check_space(&places, &source)?;
        places.check_free(params.existing)?;
        places.record(ctx).await?;
        places.make_room(ctx).await?;
        match restore(ctx, &places, owner, source).await {
            Ok(restored) => finish(ctx, &params, &places, &restored, begun.elapsed()).await,
            Err(error) => {
                // An interrupted attempt leaves what it has to the next one, which empties it.
                if !ctx.cancel.is_cancelled()
                    && let Err(left) = places.give_up(ctx).await
                {
                    tracing::warn!("{left}");
                }
                Err(error)
            }
        }
    }

    async fn undo(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let params: Params = ctx.params()?;
        let (_, data_dir) = local::data_dir(ctx, &params.cluster)?;
        Places::placed(ctx, Target::new(ctx, &params.cluster, data_dir)?)?.undo(ctx, filled(ctx)).await
    }
}

/// Returns the inode of the directory that this step has filled.
fn filled(ctx: &StepContext) -> Option<u64> {
    let finished: Finished = serde_json::from_value(ctx.recorded(FINISHED)?.clone()).ok()?;
    Some(finished.inode)
}

/// Returns the results of an attempt of this step that had finished when Lifeboat died.
fn finished_before(ctx: &StepContext, params: &Params, target: &Target) -> Option<Done> {
    let finished: Finished = serde_json::from_value(ctx.recorded(FINISHED)?.clone()).ok()?;
    let same = finished.backup == params.backup && Some(finished.inode) == target.inode();
    if same {
        // It may have died before it could be noted.
        let places = Places::placed(ctx, target.clone());
        places.and_then(|places| places.note_finished(&params.backup)).ok();
    }
    same.then_some(finished.done)
}

async fn open_source(ctx: &StepContext, params: &Params) -> Result<Source, StepError> {
    let (store, label) = (Store::of(ctx, &params.store).await?, params.backup.clone());
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
fn stem(name: &str) -> &str {
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
    reader.read_to_end(&mut text).map_err(|error| damaged(error.to_string()))?;
    if !is_unmarked(&marker.label) && reader.finish().1.sha256 != object.sha256 {
        return Err(damaged("its SHA-256 is not that of the marker".to_owned()));
    }
    Manifest::parse(&text).map(Some).map_err(damaged)
}

/// Every file system must have room for what goes there.
fn check_space(places: &Places, source: &Source) -> Result<(), StepError> {
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
fn in_manifest(oid: &str) -> PathBuf {
    Path::new("pg_tblspc").join(oid)
}

/// What was put in place.
struct Restored {
    source: Source,
    base: Unpacked,
    wal: Unpacked,
}

async fn restore(
    ctx: &StepContext,
    places: &Places,
    owner: Option<OsUser>,
    source: Source,
) -> Result<Restored, StepError> {
    places.take(ctx, &source.marker.label).await?;
    let meter = Meter::bytes(ctx, Some(source.marker.bytes()), "unpacking the base backup");
    let places = places.clone();
    blocking(move || {
        // Opened before anything is written: the sync of it then reports every error since.
        let disk = |target: &Target| {
            Disk::of(&target.data_dir).map_err(|error| unwritable(&target.data_dir, &error))
        };
        let disks = places.targets().map(disk).collect::<Result<Vec<_>, _>>()?;
        places.link(owner.as_ref())?;
        let (base, wal) =
            Work { source: &source, places: &places, owner: owner.as_ref(), meter: &meter }.unpack()?;
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
}

impl Work<'_> {
    /// Returns the files of the cluster and those of its log.
    fn unpack(&self) -> Result<(Unpacked, Unpacked), StepError> {
        let (mut base, mut wal) = (Unpacked::default(), Unpacked::default());
        let data_dir = &self.places.data.data_dir;
        let wal_dir = data_dir.join("pg_wal");
        let flusher = &Flusher::start();
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
        })
    }
}

/// Makes everything durable, and only then gives the control file its name: without it no server starts.
fn publish_control_file(data_dir: &Path, disks: &[Disk]) -> Result<(), StepError> {
    let held_back = data_dir.join(HELD_BACK);
    disks.iter().try_for_each(Disk::sync).map_err(|error| unwritable(data_dir, &error))?;
    std::fs::rename(&held_back, data_dir.join(CONTROL_FILE))
        .map_err(|error| unwritable(&held_back, &error))?;
    sync_dir(&data_dir.join("global"))
}

async fn finish(
    ctx: &StepContext,
    params: &Params,
    places: &Places,
    restored: &Restored,
    took: Duration,
) -> Result<Done, StepError> {
    let done = report(places, restored, took);
    let inode = places.data.inode().unwrap_or_default();
    let finished = Finished { backup: params.backup.clone(), inode, done };
    let value = serde_json::to_value(&finished).expect("results are JSON");
    ctx.record(FINISHED, value).await?;
    // The journal comes first: until it knows, a repetition begins again.
    places.note_finished(&params.backup)?;
    Ok(finished.done)
}

fn report(places: &Places, restored: &Restored, took: Duration) -> Done {
    let Restored { source, base, wal } = restored;
    let (files, bytes) = (base.files + wal.files, base.bytes + wal.bytes);
    let seconds = took.as_secs_f64();
    let outputs = json!({
        "data_dir": places.data.data_dir, "bytes": bytes, "files": files, "seconds": seconds,
        "system_id": source.details.system_id,
    });
    let mut done = local::done(outputs);
    done.checks = checks(source, base);
    done.facts.insert("backup".into(), source.marker.label.clone());
    done.facts.insert("backup stop time".into(), source.details.stop_time.to_string());
    done.facts.insert("Postgres".into(), source.details.version.clone());
    done.facts.insert("rate".into(), format!("{:.1} MB/s", bytes as f64 / 1e6 / seconds.max(1e-3)));
    if let Some(aside) = places.data.aside() {
        done.facts.insert("moved aside".into(), aside.display().to_string());
    }
    for space in &places.spaces {
        let dir = space.target.data_dir.display();
        let aside = space.target.aside().map(|aside| format!(", what was there is now {}", aside.display()));
        let fact = format!("{dir}{}", aside.unwrap_or_default());
        done.facts.insert(format!("tablespace {}", space.oid), fact);
    }
    done.warnings.extend(source.warnings.iter().cloned());
    if source.warnings.is_empty() && !source.manifest.as_ref().is_some_and(Manifest::has_checksums) {
        done.warnings.push(
            "the backup's manifest has no SHA-256 checksums: restored files were compared by size, and the objects \
             by their SHA-256"
                .to_owned(),
        );
    }
    done
}

/// Every one of these has passed, or the step would have failed.
fn checks(source: &Source, base: &Unpacked) -> Vec<Check> {
    let objects = source.marker.objects.len();
    let mut checks = Vec::new();
    if !is_unmarked(&source.marker.label) {
        checks.push(Check {
            name: "objects of the backup match its marker".into(),
            expected: format!(
                "{objects} objects with size, and SHA-256 of the object or of every file in it"
            ),
            actual: format!("{objects} objects"),
            passed: true,
        });
    }
    if let Some(manifest) = &source.manifest {
        let files = manifest.files.len();
        let how = if manifest.has_checksums() { "size and SHA-256" } else { "size" };
        checks.push(Check {
            name: "restored files match backup_manifest".into(),
            expected: format!("{files} files with {how}"),
            actual: format!("{} files", base.seen.len()),
            passed: base.seen.len() == files,
        });
    }
    checks
}
