use std::io::Read;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use jiff::Timestamp;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::model::evidence::{Check, Confidence, RecoveryPoint};
use lifeboat_engine::resource::{self, ResourceKind};
use lifeboat_engine::step::{
    Effect, Finding, KindSpec, PreflightFacts, Preview, StepContext, StepError, StepKind,
};
use lifeboat_engine::value::{Field, Type};
use serde::Deserialize;
use serde_json::{Value, json};

use super::backup::{Details, files_of};
use super::codes;
use super::extract::{self, Differences, Ownership};
use super::manifest::{ARCHIVE, MANIFEST, Manifest, OutsideLinks};
use super::publish::Place;
use crate::backup::{self, Wanted};
use crate::probe::{backup_age, measure, space};
use crate::process::OsUser;
use crate::store::{BackupKind, HashingReader, Marker, Meter, Store, blocking, read_marker};

/// What an attempt records, so that the next one goes on with the same backup.
const BACKUP: &str = "backup";

/// Restores a directory from a backup.
#[derive(Debug)]
pub(super) struct Restore;

#[derive(Deserialize)]
struct Params {
    files: String,
    store: String,
    backup: Option<String>,
    target_time: Option<Timestamp>,
    source: Option<String>,
    outside_links: OutsideLinks,
}

const DOC: &str = "\
Takes the backup named by `backup`, or else the newest that was finished before `target_time`, or else the newest. If
the store has backups of several directories, `source` says of which; without it, of the one with the target's name.

The archive is unpacked beside the target on the same file system, every file is read back and compared with the
manifest, all of it is synced, and then it is exchanged with the target in one rename. What was there is kept as
`.pre-RUN`. Until that rename the target is untouched; an attempt that follows an interrupted one keeps what has
been unpacked.

The recovery point is the moment the backup began: every change before it is restored.";

#[async_trait]
impl StepKind for Restore {
    fn spec(&self) -> KindSpec {
        let mut spec =
            KindSpec::new("files.restore", "Restores a directory from a backup.", Effect::Idempotent)
                .doc(DOC)
                .param(Field::required(
                    "files",
                    Type::writes(ResourceKind::Files),
                    "The directory to restore.",
                ))
                .param(Field::required("store", Type::reads(ResourceKind::Store), "Where the backups are."))
                .param(Field::optional("backup", Type::String, "The label of the backup."))
                .param(Field::optional("target_time", Type::Timestamp, "The backup was finished before it."))
                .param(Field::optional(
                    "source",
                    Type::String,
                    "The directory it is of, if the store has several.",
                ))
                .param(Field::defaulted(
                    "outside_links",
                    Type::choice(&["refuse", "keep"]),
                    "refuse",
                    "What to do with links that lead out of the directory.",
                ))
                .output("backup", Type::String, "The label of the backup.")
                .output("taken_at", Type::Timestamp, "When the backup began.")
                .output("files", Type::Integer, "How many files were restored.")
                .output("bytes", Type::Integer, "Their size.")
                .destroys("what is in the directory; it is kept beside it as `.pre-RUN`")
                .undoes("the earlier directory is put back; what was restored is kept as `PATH.undone-RUN`")
                .restores();
        spec.outputs.push(Field::optional("previous", Type::Path, "Where the old directory is kept."));
        spec
    }

    async fn preview(&self, ctx: &StepContext) -> Result<Preview, StepError> {
        let params: Params = ctx.params()?;
        let place = files_of(ctx, &params.files)?.path.clone();
        let path = place.display().to_string();
        let there = blocking(move || Ok(measure(&place))).await?;
        let actions = vec![format!("unpack beside {path}, compare, exchange in one rename")];
        Ok(match there {
            Some(there) => {
                let destroyed = format!("`{}`: {path} ({there}) becomes {path}.pre-<run>", params.files);
                Preview { actions, destroys: vec![destroyed] }
            }
            None => Preview {
                actions,
                destroys: vec![format!("`{}`: nothing, {path} is absent now", params.files)],
            },
        })
    }

    async fn preflight(&self, ctx: &StepContext, facts: &PreflightFacts) -> Result<Vec<Finding>, StepError> {
        let params: Params = ctx.params()?;
        let path = files_of(ctx, &params.files)?.path.clone();
        let (subject, files) = (format!("{} (of {})", params.store, params.files), params.files.clone());
        let chosen = match Store::of(ctx, &params.store).await {
            Ok(store) => find(&store, &params).await,
            Err(error) => Err(error),
        };
        let (finding, marker) = backup_age(&subject, chosen, params.target_time, facts);
        let room = marker.map(|marker| space(&files, &path, marker.bytes()));
        Ok(std::iter::once(finding).chain(room).collect())
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let params: Params = ctx.params()?;
        let files = files_of(ctx, &params.files)?;
        let store = Store::of(ctx, &params.store).await?;
        let marker = choose(ctx, &store, &params).await?;
        let place = Place::of(&files.path, &ctx.info.run.short())?;
        let manifest = manifest_of(&store, &marker, params.outside_links).await?;
        let previous = match place.is_published(ctx, &params.files).await? {
            Some(previous) => previous,
            None => {
                place.check_space(manifest.bytes(), manifest.entries.len() as u64)?;
                place.announce_staging(ctx, &params.files).await?;
                unpack(ctx, (&store, &marker), &manifest, (&place, files)).await?;
                place.publish(ctx, &params.files).await?
            }
        };
        done(&params, &marker, (&manifest, &place.target), previous)
    }

    async fn undo(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let params: Params = ctx.params()?;
        let place = Place::of(&files_of(ctx, &params.files)?.path, &ctx.info.run.short())?;
        let mut done = Done::default();
        if let Some(kept) = place.unpublish(ctx, &params.files).await? {
            done.facts.insert("restored files".into(), kept.display().to_string());
            let note =
                format!("what was restored is kept as {}: delete it when nobody needs it", kept.display());
            done.warnings.push(note);
        }
        Ok(done)
    }
}

async fn choose(ctx: &StepContext, store: &Store, params: &Params) -> Result<Marker, StepError> {
    if let Some(label) = ctx.recorded(BACKUP).and_then(Value::as_str) {
        let (store, label) = (store.clone(), label.to_owned());
        return blocking(move || read_marker(&store, BackupKind::Files, &label)).await;
    }
    let marker = find(store, params).await?;
    ctx.record(BACKUP, marker.label.clone()).await?;
    Ok(marker)
}

/// Returns the backup that the parameters ask for.
async fn find(store: &Store, params: &Params) -> Result<Marker, StepError> {
    let wanted = Wanted {
        kind: BackupKind::Files,
        store: params.store.clone(),
        label: params.backup.clone(),
        before: params.target_time,
        source: params.source.clone(),
        target: params.files.clone(),
        none: codes::LB1404,
    };
    backup::choose(store, wanted).await
}

/// Reads the manifest of a backup, compared with its marker.
pub(super) async fn manifest_of(
    store: &Store,
    marker: &Marker,
    links: OutsideLinks,
) -> Result<Manifest, StepError> {
    let (store, marker) = (store.clone(), marker.clone());
    blocking(move || read_manifest(&store, &marker, links)).await
}

pub(super) fn read_manifest(
    store: &Store,
    marker: &Marker,
    links: OutsideLinks,
) -> Result<Manifest, StepError> {
    let mut reader = HashingReader::new(store.read(&marker.key(MANIFEST)?)?);
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).map_err(|error| damaged(marker, MANIFEST).caused_by(&error))?;
    let (_, digest) = reader.finish();
    let entry = marker.objects.iter().find(|object| object.name == MANIFEST);
    if entry.is_none_or(|entry| entry.sha256 != digest.sha256) {
        return Err(damaged(marker, MANIFEST));
    }
    Manifest::parse(&bytes, links)
}

async fn unpack(
    ctx: &StepContext,
    (store, marker): (&Store, &Marker),
    manifest: &Manifest,
    (place, files): (&Place, &resource::Files),
) -> Result<(), StepError> {
    let ownership = match (&files.owner, rustix::process::geteuid().is_root()) {
        (Some(owner), true) => Ownership::User(OsUser::lookup(owner)?),
        (None, true) => Ownership::Recorded,
        (_, false) => Ownership::Ours,
    };
    let (store, key) = (store.clone(), marker.key(ARCHIVE)?);
    let (manifest, staging) = (manifest.clone(), place.staging.clone());
    let total = manifest.bytes();
    let meter = Meter::bytes(ctx, Some(total), "unpacking");
    let reading = Meter::bytes(ctx, Some(total), "comparing");
    let label = marker.label.clone();
    let differences = blocking(move || {
        let unpacked = zstd::Decoder::new(store.read(&key)?).map_err(|error| not_zstd(&label, &error))?;
        extract::extract(&manifest, unpacked, &staging, (&ownership, &meter))?;
        extract::compare(&manifest, &staging, &reading)
    })
    .await?;
    if differences == Differences::default() {
        return Ok(());
    }
    let mut error = StepError::permanent(
        codes::LB1408,
        format!("the files unpacked in {} are not those of the manifest", place.staging.display()),
    )
    .help("check the disk of the target, then `lifeboat retry`; the target was not touched");
    error.causes = describe(&differences);
    Err(error)
}

/// Shows the first of all differences.
pub(super) fn describe(differences: &Differences) -> Vec<String> {
    const SHOWN: usize = 10;
    let named = |what: &'static str, names: &[String]| {
        let shown: Vec<_> = names.iter().take(SHOWN).map(|name| format!("{what}: {name}")).collect();
        shown
    };
    let mut all = named("missing", &differences.missing);
    all.extend(named("different", &differences.different));
    all.extend(named("not in the backup", &differences.extra));
    all
}

fn done(
    params: &Params,
    marker: &Marker,
    (manifest, root): (&Manifest, &Path),
    previous: Option<PathBuf>,
) -> Result<Done, StepError> {
    let details: Details = marker.details()?;
    let files = manifest.files().len();
    let Value::Object(mut outputs) = json!({
        "backup": marker.label,
        "taken_at": details.taken_at,
        "files": files,
        "bytes": manifest.bytes(),
    }) else {
        unreachable!("an object was written")
    };
    if let Some(previous) = previous {
        outputs.insert("previous".into(), previous.display().to_string().into());
    }
    let point = RecoveryPoint {
        resource: params.files.clone(),
        time: details.taken_at.to_string(),
        position: Some(marker.label.clone()),
        method: "beginning of the backup".into(),
        confidence: Confidence::Stated,
    };
    let unlike = super::attributes::unlike(manifest, root);
    let warnings = unlike.first().map(|first| {
        format!(
            "{} entries do not have the extended attributes and access lists that they had, the first of them `{first}`: \
             attributes of programs (`user.*`) are restored where the file system takes them, access lists are not",
            unlike.len()
        )
    });
    let warnings = warnings.into_iter().collect();
    let checks = vec![Check {
        name: "files read back and compared by SHA-256".into(),
        expected: details.files.to_string(),
        actual: files.to_string(),
        passed: details.files == files as u64,
    }];
    Ok(Done { outputs, checks, recovery_points: vec![point], warnings, ..Done::default() })
}

fn damaged(marker: &Marker, object: &str) -> StepError {
    let message = format!("`{object}` of the backup `{}` is damaged", marker.label);
    StepError::permanent(codes::LB1408, message)
        .help("choose another backup with `backup`; the target was not touched")
}

fn not_zstd(label: &str, error: &std::io::Error) -> StepError {
    let message = format!("the archive of the backup `{label}` cannot be unpacked");
    StepError::permanent(codes::LB1408, message).help("choose another backup with `backup`").caused_by(error)
}
