use std::io::Read;
use std::path::Path;
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

use super::super::details::BaseDetails;
use super::super::tools::Tools;
use super::super::unsynced::Disk;
use super::super::{account, codes, local, preflight};
use super::flusher::Flusher;
use super::target::{Existing, Found, Target, sync_dir};
use super::undo;
use super::unpack::{CONTROL_FILE, HELD_BACK, Job, Unpacked, make_private_dir, unpack, unwritable};
use crate::postgres::backup_manifest::{MANIFEST, Manifest};
use crate::probe::measure;
use crate::process::OsUser;
use crate::store::{BackupKind, HashingReader, Marker, Meter, Store, blocking, read_marker, verify_sizes};

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
    manifest: Manifest,
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
`backup_manifest` by size and SHA-256; where the manifest has none, the object is compared with the marker. \
`global/pg_control` is put in place last, after everything else is durable, so that a restore that was cut off cannot be \
started. After a failure the place is as it was before.

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
        check_space(&target, &source)?;
        make_room(ctx, &params, &target).await?;
        match restore(ctx, &target, owner, source).await {
            Ok(restored) => finish(ctx, &params, &target, &restored, begun.elapsed()).await,
            Err(error) => {
                // An interrupted attempt leaves what it has to the next one, which empties it.
                if !ctx.cancel.is_cancelled()
                    && let Err(left) = target.give_up(ctx).await
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
        undo::undo(ctx, &Target::new(ctx, &params.cluster, data_dir)?, filled(ctx)).await
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
        target.note(&params.backup, true).ok();
    }
    same.then_some(finished.done)
}

async fn open_source(ctx: &StepContext, params: &Params) -> Result<Source, StepError> {
    let (store, label) = (Store::of(ctx, &params.store).await?, params.backup.clone());
    blocking(move || {
        let marker = read_marker(&store, BackupKind::PostgresBase, &label)?;
        let details: BaseDetails = marker.details()?;
        check_objects(&marker)?;
        verify_sizes(&store, &marker)?;
        let manifest = read_manifest(&store, &marker)?;
        Ok(Source { store, marker, details, manifest })
    })
    .await
}

/// Every object must be one that this step can place.
fn check_objects(marker: &Marker) -> Result<(), StepError> {
    let stem = |name: &str| name.split('.').next().unwrap_or_default().to_owned();
    if let Some(space) = marker.objects.iter().find(|object| {
        let stem = stem(&object.name);
        !stem.is_empty() && stem.bytes().all(|byte| byte.is_ascii_digit())
    }) {
        return Err(StepError::permanent(
            codes::LB1257,
            format!("backup `{}` has a tablespace of its own (`{}`)", marker.label, space.name),
        )
        .help("restore it by hand with `pg_basebackup`'s own layout, or move its tables into the default tablespace"));
    }
    for needed in ["base", MANIFEST] {
        if !marker.objects.iter().any(|object| stem(&object.name) == needed) {
            return Err(StepError::permanent(
                codes::LB1255,
                format!("backup `{}` has no `{needed}` among its objects", marker.label),
            )
            .help("restore from another backup"));
        }
    }
    Ok(())
}

fn read_manifest(store: &Store, marker: &Marker) -> Result<Manifest, StepError> {
    let damaged = |why: String| {
        StepError::permanent(
            codes::LB1255,
            format!("`{MANIFEST}` of backup `{}` is damaged: {why}", marker.label),
        )
        .help("restore from another backup")
    };
    let object = marker.objects.iter().find(|object| object.name == MANIFEST);
    let object = object.ok_or_else(|| damaged("the marker does not name it".to_owned()))?;
    let mut reader = HashingReader::new(store.read(&marker.key(MANIFEST)?)?);
    let mut text = Vec::new();
    reader.read_to_end(&mut text).map_err(|error| damaged(error.to_string()))?;
    if reader.finish().1.sha256 != object.sha256 {
        return Err(damaged("its SHA-256 is not that of the marker".to_owned()));
    }
    Manifest::parse(&text).map_err(damaged)
}

fn check_space(target: &Target, source: &Source) -> Result<(), StepError> {
    /// Segments are kept whole at both ends, and the server needs some to start with.
    const EXTRA_SEGMENTS: u64 = 4;
    let wal = source.manifest.wal_bytes() + EXTRA_SEGMENTS * source.details.wal_segment_size;
    let needed = source.manifest.bytes() + wal;
    let free = target.free_space()?;
    if free >= needed {
        return Ok(());
    }
    Err(StepError::transient(
        codes::LB1254,
        format!(
            "{} needs {needed} bytes for backup `{}`, and {free} are free",
            target.data_dir.display(),
            source.marker.label
        ),
    )
    .help("make room (`df -h`), then try again; nothing was touched"))
}

/// Empties the place: what this step made itself is deleted, anything else moved aside if that is allowed.
async fn make_room(ctx: &StepContext, params: &Params, target: &Target) -> Result<(), StepError> {
    match target.look()? {
        Found::Nothing | Found::Empty => Ok(()),
        Found::Own => {
            let target = target.clone();
            blocking(move || target.wipe_own()).await
        }
        Found::Foreign(names) if params.existing == Existing::Refuse => Err(target.in_the_way(&names)),
        Found::Foreign(_) => target.move_aside(ctx).await,
    }
}

/// What was put in place.
struct Restored {
    source: Source,
    base: Unpacked,
    wal: Unpacked,
}

async fn restore(
    ctx: &StepContext,
    target: &Target,
    owner: Option<OsUser>,
    source: Source,
) -> Result<Restored, StepError> {
    target.take(ctx, &source.marker.label).await?;
    let meter = Meter::bytes(ctx, Some(source.marker.bytes()), "unpacking the base backup");
    let target = target.clone();
    blocking(move || {
        // Opened before anything is written: the sync of it then reports every error since.
        let disk = Disk::of(&target.data_dir).map_err(|error| unwritable(&target.data_dir, &error))?;
        let (base, wal) = unpack_all(&source, &target.data_dir, owner.as_ref(), &meter)?;
        if let Some(missing) = source.manifest.files.keys().find(|path| !base.seen.contains(*path)) {
            return Err(StepError::permanent(
                codes::LB1258,
                format!(
                    "{} is in the manifest of backup `{}` and not in its archive",
                    missing.display(),
                    source.marker.label
                ),
            )
            .help("the backup is damaged; restore from another one"));
        }
        publish_control_file(&target.data_dir, &disk)?;
        target.hand_over(owner.as_ref())?;
        Ok(Restored { source, base, wal })
    })
    .await
}

fn unpack_all(
    source: &Source,
    data_dir: &Path,
    owner: Option<&OsUser>,
    meter: &Meter,
) -> Result<(Unpacked, Unpacked), StepError> {
    let (store, marker) = (&source.store, &source.marker);
    let (mut base, mut wal) = (Unpacked::default(), Unpacked::default());
    let wal_dir = data_dir.join("pg_wal");
    let started = Flusher::start();
    let flusher = &started;
    for object in &marker.objects {
        let job = |dir, manifest| Job { store, marker, object, dir, owner, manifest, meter, flusher };
        match object.name.split('.').next() {
            Some("base") => base = unpack(&job(data_dir, Some(&source.manifest)))?,
            Some("pg_wal") => {
                if !wal_dir.is_dir() {
                    make_private_dir(&wal_dir, owner).map_err(|error| unwritable(&wal_dir, &error))?;
                }
                wal = unpack(&job(&wal_dir, None))?;
            }
            _ => meter.advance(object.size)?,
        }
    }
    started.finish().map_err(|error| unwritable(data_dir, &error))?;
    Ok((base, wal))
}

/// Makes everything durable, and only then gives the control file its name: without it no server starts.
fn publish_control_file(data_dir: &Path, disk: &Disk) -> Result<(), StepError> {
    let held_back = data_dir.join(HELD_BACK);
    disk.sync_all(data_dir).map_err(|error| unwritable(data_dir, &error))?;
    std::fs::rename(&held_back, data_dir.join(CONTROL_FILE))
        .map_err(|error| unwritable(&held_back, &error))?;
    sync_dir(&data_dir.join("global"))
}

async fn finish(
    ctx: &StepContext,
    params: &Params,
    target: &Target,
    restored: &Restored,
    took: Duration,
) -> Result<Done, StepError> {
    let done = report(target, restored, took);
    let inode = target.inode().unwrap_or_default();
    let finished = Finished { backup: params.backup.clone(), inode, done };
    let value = serde_json::to_value(&finished).expect("results are JSON");
    ctx.record(FINISHED, value).await?;
    // The journal comes first: until it knows, a repetition begins again.
    target.note(&params.backup, true)?;
    Ok(finished.done)
}

fn report(target: &Target, restored: &Restored, took: Duration) -> Done {
    let Restored { source, base, wal } = restored;
    let (files, bytes) = (base.files + wal.files, base.bytes + wal.bytes);
    let seconds = took.as_secs_f64();
    let outputs = json!({
        "data_dir": target.data_dir, "bytes": bytes, "files": files, "seconds": seconds,
        "system_id": source.details.system_id,
    });
    let mut done = local::done(outputs);
    done.checks = checks(source, base);
    done.facts.insert("backup".into(), source.marker.label.clone());
    done.facts.insert("backup stop time".into(), source.details.stop_time.to_string());
    done.facts.insert("Postgres".into(), source.details.version.clone());
    done.facts.insert("rate".into(), format!("{:.1} MB/s", bytes as f64 / 1e6 / seconds.max(1e-3)));
    if let Some(aside) = target.aside() {
        done.facts.insert("moved aside".into(), aside.display().to_string());
    }
    if !source.manifest.has_checksums() {
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
    let files = source.manifest.files.len();
    let how = if source.manifest.has_checksums() { "size and SHA-256" } else { "size" };
    vec![
        Check {
            name: "objects of the backup match its marker".into(),
            expected: format!(
                "{objects} objects with size, and SHA-256 of the object or of every file in it"
            ),
            actual: format!("{objects} objects"),
            passed: true,
        },
        Check {
            name: "restored files match backup_manifest".into(),
            expected: format!("{files} files with {how}"),
            actual: format!("{} files", base.seen.len()),
            passed: base.seen.len() == files,
        },
    ]
}
