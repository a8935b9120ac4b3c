use std::path::{Path, PathBuf};

use async_trait::async_trait;
use jiff::Timestamp;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::resource::{self, ResourceKind, System};
use lifeboat_engine::step::{Effect, KindSpec, Preview, StepContext, StepError, StepKind};
use lifeboat_engine::value::{Field, Type};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::archive::{self, Archived};
use super::codes;
use super::manifest::{ARCHIVE, Content, MANIFEST, Manifest};
use crate::backup::{self, Begun};
use crate::store::{BackupKind, Marker, Meter, ObjectEntry, Partial, Store, blocking, digest_of};

/// Backs a directory up into a store.
#[derive(Debug)]
pub(super) struct Backup;

/// What a marker keeps of a backup of files.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Details {
    /// The directory that it is of, by the name of its resource.
    pub(super) resource: String,
    /// Every change before this moment is in the backup.
    pub(super) taken_at: Timestamp,
    pub(super) files: u64,
    /// Of all files, before compression.
    pub(super) bytes: u64,
    /// The newest change of a file in it.
    pub(super) newest: Option<Timestamp>,
}

#[derive(Deserialize)]
struct Params {
    files: String,
    store: String,
    allow_empty: bool,
}

const DOC: &str = "\
Walks the directory and writes a manifest (path, type, size, mode, owner, time, link target and SHA-256 of everything)
and a compressed archive that `tar --zstd -xf` can unpack by hand. A file that changes while it is read is read again;
one that keeps changing fails the step. Sockets and devices are left out with a warning; hard links become files of
their own; attributes that programs give to files (`user.*`) are kept, access lists and attributes of the system are not, which a warning says where there are some. An empty directory is an error unless `allow_empty`.

Every change made before the step began is in the backup; one made meanwhile may be.";

#[async_trait]
impl StepKind for Backup {
    fn spec(&self) -> KindSpec {
        KindSpec::new("files.backup", "Backs a directory up into a store.", Effect::Idempotent)
            .doc(DOC)
            .param(Field::required("files", Type::reads(ResourceKind::Files), "The directory."))
            .param(Field::required("store", Type::writes(ResourceKind::Store), "Where the backup goes."))
            .param(Field::defaulted("allow_empty", Type::Boolean, false, "Whether it may hold no file."))
            .output("backup", Type::String, "The label of the backup in the store.")
            .output("taken_at", Type::Timestamp, "Every change before it is in the backup.")
            .output("files", Type::Integer, "How many files it holds.")
            .output("bytes", Type::Integer, "Their size before compression.")
            .output("stored_bytes", Type::Integer, "The size of the backup in the store.")
    }

    async fn preview(&self, ctx: &StepContext) -> Result<Preview, StepError> {
        let params: Params = ctx.params()?;
        let path = &files_of(ctx, &params.files)?.path;
        Ok(Preview { actions: vec![format!("read all of {}", path.display())], destroys: Vec::new() })
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let params: Params = ctx.params()?;
        let root = files_of(ctx, &params.files)?.path.clone();
        let store = Store::of_for_writing(ctx, &params.store).await?;
        match backup::begin(ctx, &store, BackupKind::Files).await? {
            Begun::Published(marker) => done(&marker, Vec::new()),
            Begun::New(partial) => {
                let meter = Meter::bytes(ctx, None, "reading");
                let partial = partial.counting(Meter::bytes(ctx, None, "sending"));
                let (marker, warnings) = blocking(move || take(&root, &params, partial, &meter)).await?;
                done(&marker, warnings)
            }
        }
    }
}

pub(super) fn files_of<'a>(ctx: &'a StepContext, name: &str) -> Result<&'a resource::Files, StepError> {
    ctx.system(name, |system| match system {
        System::Files(files) => Some(files),
        _ => None,
    })
}

fn take(
    root: &Path,
    params: &Params,
    partial: Partial,
    meter: &Meter,
) -> Result<(Marker, Vec<String>), StepError> {
    let started_at = Timestamp::now();
    let root = root.canonicalize().map_err(|error| {
        StepError::permanent(codes::LB1401, format!("the directory {} cannot be read", root.display()))
            .help("correct `path` of the resource; is its disk mounted?")
            .caused_by(&error)
    })?;
    let Archived { manifest, digest, warnings } =
        archive::archive(&root, &partial.path().join(ARCHIVE), meter)?;
    let files = manifest.files().len();
    if files == 0 && !params.allow_empty {
        let message = format!("{} holds no file", root.display());
        return Err(StepError::permanent(codes::LB1403, message)
            .help("is its disk mounted? If it may be empty, give the step `allow_empty: true`"));
    }
    let details = Details {
        resource: params.files.clone(),
        taken_at: started_at,
        files: files as u64,
        bytes: manifest.bytes(),
        newest: newest(&manifest),
    };
    let archive = ObjectEntry { name: ARCHIVE.into(), size: digest.size, sha256: digest.sha256 };
    let written = write_manifest(&partial.path().join(MANIFEST), &manifest)?;
    let details = serde_json::to_value(details).expect("plain data can be written");
    let marker = partial.publish((started_at, Timestamp::now()), vec![archive, written], details)?;
    Ok((marker, warnings))
}

fn write_manifest(path: &PathBuf, manifest: &Manifest) -> Result<ObjectEntry, StepError> {
    let bytes = serde_json::to_vec(manifest).expect("plain data can be written");
    std::fs::write(path, &bytes).map_err(|error| archive::failed("written", path, &error))?;
    let digest = digest_of(bytes.as_slice(), &Meter::silent())?;
    Ok(ObjectEntry { name: MANIFEST.into(), size: digest.size, sha256: digest.sha256 })
}

fn newest(manifest: &Manifest) -> Option<Timestamp> {
    let files = manifest.entries.iter().filter(|entry| matches!(entry.content, Content::File { .. }));
    let (seconds, nanoseconds) = files.map(|entry| entry.mtime).max()?;
    Timestamp::new(seconds, i32::try_from(nanoseconds).ok()?).ok()
}

fn done(marker: &Marker, warnings: Vec<String>) -> Result<Done, StepError> {
    let details: Details = marker.details()?;
    let Value::Object(outputs) = json!({
        "backup": marker.label,
        "taken_at": details.taken_at,
        "files": details.files,
        "bytes": details.bytes,
        "stored_bytes": marker.bytes(),
    }) else {
        unreachable!("an object was written")
    };
    Ok(Done { outputs, warnings, ..Done::default() })
}
