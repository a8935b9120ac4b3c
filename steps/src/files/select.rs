//! `files.select_backup`: says which backup a restore will use, before anything is touched.

use async_trait::async_trait;
use jiff::Timestamp;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::model::outcome::FailureKind;
use lifeboat_engine::resource::ResourceKind;
use lifeboat_engine::step::{
    Effect, Finding, KindSpec, PreflightFacts, Preview, StepContext, StepError, StepKind,
};
use lifeboat_engine::value::{Field, Type};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::backup::Details;
use super::codes;
use super::manifest::OutsideLinks;
use super::restore::read_manifest;
use crate::backup::{self, Wanted, resource_of};
use crate::probe::backup_age;
use crate::store::{
    BackupKind, Catalogue, Marker, Meter, Store, blocking, catalogue, read_marker, verify, verify_sizes,
};

/// Chooses the backup for a restore.
#[derive(Clone, Copy, Debug)]
pub(super) struct SelectBackup;

#[derive(Clone, Debug, Deserialize)]
struct Params {
    store: String,
    backup: Option<String>,
    target_time: Option<Timestamp>,
    source: Option<String>,
    files: Option<String>,
    read: bool,
}

const DOC: &str = "\
Finds the newest backup that was finished before `target_time`, or else the newest, or looks at the one named by `backup`; \
nothing is written. If the store has backups of several directories, `source` says of which; without it, of the one with \
the name of `files`.

A backup counts when its marker is valid, every object that the marker names is there with its size, and its manifest has the checksum \
of the marker and names nothing outside of its directory. With `read` every byte is read and compared. A backup that fails this is \
passed over for the next older one, with a warning that names it and says why; a named one fails the step, and so does a store in which \
none is left.

Put it before anything is stopped or destroyed, and give the later steps `backup: \"{{ steps.ID.backup }}\"`, so that all of them \
are about the same one.";

#[async_trait]
impl StepKind for SelectBackup {
    fn spec(&self) -> KindSpec {
        let mut spec =
            KindSpec::new("files.select_backup", "Chooses the backup of files for a restore.", Effect::Read)
                .doc(DOC)
                .param(Field::required("store", Type::reads(ResourceKind::Store), "Where the backups are."))
                .param(Field::optional("backup", Type::String, "The label of the backup, if it is known."))
                .param(Field::optional("target_time", Type::Timestamp, "The backup was finished before it."))
                .param(Field::optional(
                    "source",
                    Type::String,
                    "The directory it is of, if the store has several.",
                ))
                .param(Field::optional(
                    "files",
                    Type::reads(ResourceKind::Files),
                    "The directory that is to be restored: its name stands for `source`.",
                ))
                .param(Field::defaulted(
                    "read",
                    Type::Boolean,
                    false,
                    "Whether every byte of it is read and compared.",
                ))
                .output("backup", Type::String, "The label of the backup.")
                .output("source", Type::String, "The directory it is of, by the name of its resource.")
                .output("taken_at", Type::Timestamp, "When it began: every change before is in it.")
                .output("stop_time", Type::Timestamp, "When it was finished.")
                .output("files", Type::Integer, "How many files it holds.")
                .output("bytes", Type::Integer, "Bytes of the backup in the store.")
                .output("restore_bytes", Type::Integer, "Bytes that a restore writes.");
        spec.outputs.push(Field::optional("newest", Type::Timestamp, "The newest change of a file in it."));
        spec
    }

    async fn preview(&self, ctx: &StepContext) -> Result<Preview, StepError> {
        let params: Params = ctx.params()?;
        let what = match (&params.backup, params.target_time) {
            (Some(label), _) => format!("look at the backup `{label}`"),
            (None, Some(time)) => format!("choose the newest usable backup finished before {time}"),
            (None, None) => "choose the newest usable backup".to_owned(),
        };
        Ok(Preview { actions: vec![format!("{what} in `{}`", params.store)], destroys: Vec::new() })
    }

    async fn preflight(&self, ctx: &StepContext, facts: &PreflightFacts) -> Result<Vec<Finding>, StepError> {
        let params: Params = ctx.params()?;
        let target = params.target_time;
        let subject = params.source.as_ref().or(params.files.as_ref());
        let subject =
            subject.map_or(params.store.clone(), |source| format!("{} (of {source})", params.store));
        let chosen = match Store::of(ctx, &params.store).await {
            Ok(store) => blocking(move || choose(&store, &params).map(|choice| choice.marker)).await,
            Err(error) => Err(error),
        };
        Ok(vec![backup_age(&subject, chosen, target, facts).0])
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let params: Params = ctx.params()?;
        let store = Store::of(ctx, &params.store).await?;
        let meter = Meter::bytes(ctx, None, "reading the backup");
        blocking(move || {
            let choice = choose_read(&store, &params, &meter)?;
            done(choice, params.read)
        })
        .await
    }
}

/// A backup that can be used, and newer ones that cannot.
struct Choice {
    marker: Marker,
    warnings: Vec<String>,
    complete: usize,
}

fn choose(store: &Store, params: &Params) -> Result<Choice, StepError> {
    choose_read(store, &Params { read: false, ..params.clone() }, &Meter::silent())
}

fn choose_read(store: &Store, params: &Params, meter: &Meter) -> Result<Choice, StepError> {
    if let Some(label) = &params.backup {
        let marker = read_marker(store, BackupKind::Files, label)?;
        prove(store, &marker, (params.read, meter))?;
        return Ok(Choice { marker, warnings: Vec::new(), complete: 1 });
    }
    let found = catalogue(store, BackupKind::Files)?;
    let (mut warnings, complete) = (rejected(&found), found.complete.len());
    let candidates = backup::fitting(&found, &wanted(params))?;
    for marker in candidates {
        match prove(store, &marker, (params.read, meter)) {
            Ok(()) => return Ok(Choice { marker, warnings, complete }),
            Err(error) if error.kind == FailureKind::Permanent => {
                warnings.push(format!("`{}` is passed over: {}", marker.label, error.message));
            }
            Err(error) => return Err(error),
        }
    }
    let message = format!("no backup of files in the store `{}` is whole", params.store);
    let mut error = StepError::permanent(codes::LB1404, message)
        .help("bring a whole backup back from a copy of the store; nothing was touched");
    error.causes = warnings;
    Err(error)
}

fn wanted(params: &Params) -> Wanted {
    Wanted {
        kind: BackupKind::Files,
        store: params.store.clone(),
        label: None,
        before: params.target_time,
        source: params.source.clone(),
        target: params.files.clone().unwrap_or_default(),
        none: codes::LB1404,
    }
}

/// What is being made is no matter; a marker that cannot be trusted may be the newest backup there is.
fn rejected(found: &Catalogue) -> Vec<String> {
    use crate::store::Rejection::Unfinished;
    let damaged = found.rejected.iter().filter(|one| one.why != Unfinished);
    damaged.map(|one| format!("`{}` is passed over: {}", one.label, one.reason)).collect()
}

fn prove(store: &Store, marker: &Marker, (read, meter): (bool, &Meter)) -> Result<(), StepError> {
    verify_sizes(store, marker)?;
    read_manifest(store, marker, OutsideLinks::Keep)?;
    if read { verify(store, marker, meter) } else { Ok(()) }
}

fn done(choice: Choice, read: bool) -> Result<Done, StepError> {
    let Choice { marker, warnings, complete } = choice;
    let details: Details = marker.details()?;
    let mut outputs: Map<String, Value> = crate::sql::done(json!({
        "backup": marker.label, "source": resource_of(&marker), "taken_at": details.taken_at,
        "stop_time": marker.finished_at, "files": details.files, "bytes": marker.bytes(),
        "restore_bytes": details.bytes,
    }))
    .outputs;
    if let Some(newest) = details.newest {
        outputs.insert("newest".into(), newest.to_string().into());
    }
    let proven = if read { "every byte compared" } else { "sizes of all objects, checksum of the manifest" };
    let facts = [
        ("complete backups".to_owned(), complete.to_string()),
        (format!("looked at in `{}`", marker.label), proven.to_owned()),
    ];
    Ok(Done { outputs, facts: facts.into(), warnings, ..Done::default() })
}
