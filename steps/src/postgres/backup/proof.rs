//! `postgres.verify_backup`

use std::io::Read;

use async_trait::async_trait;
use jiff::Timestamp;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::model::evidence::Check;
use lifeboat_engine::resource::ResourceKind;
use lifeboat_engine::step::{Effect, KindSpec, Preview, StepContext, StepError, StepKind};
use lifeboat_engine::value::{Field, Span, Type};
use serde::Deserialize;
use serde_json::{Value, json};

use super::base::BackupDetails;
use super::unmarked::is_unmarked;
use crate::postgres::backup_manifest::{MANIFEST, Manifest};
use crate::postgres::wal::{
    Archive, Continuity, History, LongHeader, Lsn, Segment, SegmentSize, SystemId, WAL_PREFIX,
};
use crate::postgres::{codes, local};
use crate::store::{self, BackupKind, Key, Marker, Meter, Store, blocking};

/// `postgres.verify_backup`
#[derive(Clone, Copy, Debug)]
pub struct VerifyBackup;

#[derive(Clone, Debug, Deserialize)]
struct Params {
    store: String,
    of: Of,
    backup: Option<String>,
    wal: Wal,
    max_age: Option<Span>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Of {
    Base,
    Dump,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Wal {
    Skip,
    List,
    Read,
}

const DOC: &str = "\
Reads every object of a backup, the newest one if `backup` names none, and compares size and SHA-256 with its marker. The \
marker was written after every file in the backup had been compared with the server's manifest, and after a dump had been \
read whole, so that the same bytes are the same proof.

For a base backup it also walks the archive from the first WAL segment that the backup needs to the end: with `wal: list` \
every segment must be there, with `wal: read` each is read, decompressed, and looked at: length, magic number, cluster, \
position. A missing or damaged one is an error that names it. `max_age` fails if the newest backup is older.

Nothing is restored: that the data is sound is proven by a drill.";

#[async_trait]
impl StepKind for VerifyBackup {
    fn spec(&self) -> KindSpec {
        KindSpec::new(
            "postgres.verify_backup",
            "Reads a stored backup and its WAL, and proves that they are whole.",
            Effect::Read,
        )
        .doc(DOC)
        .param(Field::required("store", Type::reads(ResourceKind::Store), "Where the backup is."))
        .param(Field::defaulted("of", Type::choice(&["base", "dump"]), "base", "A base backup or a dump."))
        .param(Field::optional("backup", Type::String, "The label; the newest one if absent."))
        .param(Field::defaulted(
            "wal",
            Type::choice(&["skip", "list", "read"]),
            "list",
            "What is looked at of the WAL behind a base backup.",
        ))
        .param(Field::optional("max_age", Type::Duration, "An older backup fails the step."))
        .output("backup", Type::String, "The label of the backup.")
        .output("finished_at", Type::Timestamp, "When it was finished.")
        .output("bytes", Type::Integer, "Bytes that were read of the backup.")
        .output("objects", Type::Integer, "How many objects it has.")
        .output(
            "wal_segments",
            Type::Integer,
            "How many WAL segments follow without a gap; 0 if none were looked at.",
        )
        .output("end_segment", Type::String, "The last of them; empty if none were looked at.")
    }

    async fn preview(&self, ctx: &StepContext) -> Result<Preview, StepError> {
        let params: Params = ctx.params()?;
        let what = params.backup.map_or("the newest backup".to_owned(), |label| format!("`{label}`"));
        let actions = vec![format!("read {what} of `{}` and compare it with its marker", params.store)];
        Ok(Preview { actions, destroys: Vec::new() })
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let params: Params = ctx.params()?;
        let store = Store::of(ctx, &params.store).await?;
        let (found, wanted) = (store.clone(), params.clone());
        let marker = blocking(move || choose(&found, &wanted)).await?;
        check_age(&params, &marker, Timestamp::now())?;
        let meter = Meter::bytes(ctx, Some(marker.bytes()), "reading the backup");
        let (of, read) = (store.clone(), marker.clone());
        blocking(move || {
            store::verify(&of, &read, &meter)?;
            manifest(&of, &read)
        })
        .await?;
        let mut done = local::done(json!({
            "backup": marker.label, "finished_at": marker.finished_at, "bytes": marker.bytes(),
            "objects": marker.objects.len(), "wal_segments": 0, "end_segment": "",
        }));
        done.checks.push(Check {
            name: "every object has the size and SHA-256 of the marker".into(),
            expected: format!("{} objects", marker.objects.len()),
            actual: format!("{} objects, {} bytes read", marker.objects.len(), marker.bytes()),
            passed: true,
        });
        match (params.of, params.wal) {
            (Of::Base, Wal::List | Wal::Read) => walk(ctx, &params, (&store, &marker), &mut done).await?,
            (Of::Base, Wal::Skip) => {
                drop(done.facts.insert("not checked".into(), "the WAL behind the backup".into()))
            }
            (Of::Dump, _) => {}
        }
        Ok(done)
    }
}

fn choose(store: &Store, params: &Params) -> Result<Marker, StepError> {
    let kind = match params.of {
        Of::Base => BackupKind::PostgresBase,
        Of::Dump => BackupKind::PostgresDump,
    };
    if let Some(label) = params.backup.as_deref().filter(|label| is_unmarked(label)) {
        let message = format!(
            "`{label}` was made by another tool and has no marker: nothing says what its bytes must be"
        );
        return Err(StepError::permanent(codes::LB1830, message)
            .help("restore it: `postgres.clone` with this `backup` reads all of it, then `postgres.verify` what came out"));
    }
    if let Some(label) = &params.backup {
        return store::read_marker(store, kind, label);
    }
    let found = store::catalogue(store, kind)?;
    let rejected: Vec<_> =
        found.rejected.iter().map(|one| format!("`{}`: {}", one.label, one.reason)).collect();
    found.complete.into_iter().next().ok_or_else(|| {
        let code = if params.of == Of::Base { codes::LB1220 } else { codes::LB1280 };
        let mut error = StepError::permanent(code, format!("there is no complete {kind} backup in {store}"))
            .help("take one, or name another store");
        error.causes = rejected;
        error
    })
}

fn check_age(params: &Params, marker: &Marker, now: Timestamp) -> Result<(), StepError> {
    let age = now.duration_since(marker.finished_at);
    let Some(limit) = params.max_age.filter(|limit| age.unsigned_abs() > limit.0 && age.is_positive()) else {
        return Ok(());
    };
    let message = format!(
        "the newest backup, `{}`, was finished at {}: longer ago than {limit}",
        marker.label, marker.finished_at
    );
    Err(StepError::permanent(codes::LB1830, message)
        .help("see why no newer one was taken; the last failure is in its run's report"))
}

/// The manifest has a checksum of its own.
fn manifest(store: &Store, marker: &Marker) -> Result<(), StepError> {
    if !marker.objects.iter().any(|object| object.name == MANIFEST) {
        return Ok(());
    }
    let mut text = Vec::new();
    let failed = |problem: String| {
        StepError::permanent(
            codes::LB1830,
            format!("{MANIFEST} of `{}` cannot be used: {problem}", marker.label),
        )
        .help("choose another backup")
    };
    store.read(&marker.key(MANIFEST)?)?.read_to_end(&mut text).map_err(|error| failed(error.to_string()))?;
    Manifest::parse(&text).map(drop).map_err(failed)
}

/// Walks the archive from the backup to the end.
async fn walk(
    ctx: &StepContext,
    params: &Params,
    (store, marker): (&Store, &Marker),
    done: &mut Done,
) -> Result<(), StepError> {
    let details: BackupDetails = marker.details()?;
    let (of, label) = (store.clone(), marker.label.clone());
    let (walk, system) = blocking(move || list(&of, &label, &details)).await?;
    if params.wal == Wal::Read {
        let meter = Meter::items(ctx, Some(walk.count()), "reading WAL");
        let (of, ranges) = (store.clone(), walk.clone());
        blocking(move || read(&of, system, &ranges, &meter)).await?;
    }
    let end = walk.end().map(|end| end.name(walk.size)).unwrap_or_default();
    done.outputs.insert("wal_segments".into(), json!(walk.count()));
    done.outputs.insert("end_segment".into(), Value::from(end.clone()));
    let how = if params.wal == Wal::Read { "read whole" } else { "listed, not read" };
    done.checks.push(Check {
        name: "WAL follows without a gap".into(),
        expected: "every segment".into(),
        actual: format!("{} segments up to {end}, {how}", walk.count()),
        passed: true,
    });
    Ok(())
}

fn list(store: &Store, label: &str, details: &BackupDetails) -> Result<(Continuity, SystemId), StepError> {
    let invalid = |problem: String| {
        StepError::permanent(
            store::codes::LB1110,
            format!("the marker of backup `{label}` is invalid: {problem}"),
        )
    };
    let base = &details.base;
    let size = SegmentSize::try_from(base.wal_segment_size).map_err(invalid)?;
    let system: SystemId = base.system_id.parse().map_err(invalid)?;
    let stop: Lsn = base
        .stop_lsn
        .parse()
        .map_err(|error: crate::postgres::wal::InvalidLsn| invalid(error.to_string()))?;
    let start = Segment::parse(&details.wal_start_segment, size)?;
    let archive = Archive::list(store, system)?;
    let history = newest_history(store, (&archive, system), (base.timeline, stop))?;
    let walk = archive.continuity(start.number, &history, size);
    if walk.missing_count == 0 && walk.contains(start) {
        return Ok((walk, system));
    }
    let first = walk.missing.first().cloned().unwrap_or_else(|| start.name(size));
    let more = walk.missing_count.saturating_sub(1);
    let others = if more == 0 { String::new() } else { format!(" and {more} more") };
    let message = format!("WAL is missing behind backup `{label}`: {first}{others}");
    Err(StepError::permanent(codes::LB1222, message).help(
        "take a new base backup now; bring the segment back from pg_wal of the server or a copy of the store",
    ))
}

/// The newest timeline that goes on from the backup.
fn newest_history(
    store: &Store,
    (archive, system): (&Archive, SystemId),
    (timeline, stop): (u32, Lsn),
) -> Result<History, StepError> {
    for newer in archive.timelines().into_iter().rev().filter(|newer| *newer > timeline) {
        let history = archive.history(store, system, newer)?;
        if history.contains(timeline, stop) {
            return Ok(history);
        }
    }
    Ok(History::root(timeline))
}

/// Reads every segment of a walk.
fn read(store: &Store, system: SystemId, walk: &Continuity, meter: &Meter) -> Result<(), StepError> {
    for range in &walk.proven {
        for number in range.first..=range.last {
            let name = Segment { timeline: range.timeline, number }.name(walk.size);
            segment(store, system, (&name, walk.size))?;
            meter.advance(1)?;
        }
    }
    Ok(())
}

fn segment(store: &Store, system: SystemId, (name, size): (&str, SegmentSize)) -> Result<(), StepError> {
    let damaged = |problem: String| {
        StepError::permanent(codes::LB1202, format!("the archived {name} is damaged: {problem}"))
            .help("bring it back from pg_wal of the server or a copy of the store; until then nothing after it can be restored")
    };
    let plain = Key::new(format!("{WAL_PREFIX}/{system}/{name}"))?;
    let packed = Key::new(format!("{plain}.zst"))?;
    let mut bytes = Vec::new();
    let limit = size.bytes() + 1;
    let read = match store.find(&packed)? {
        Some(object) => zstd::stream::read::Decoder::new(object)
            .and_then(|decoder| decoder.take(limit).read_to_end(&mut bytes)),
        None => store.read(&plain)?.take(limit).read_to_end(&mut bytes),
    };
    read.map_err(|error| damaged(error.to_string()))?;
    let header = LongHeader::check_segment(name, &bytes)?;
    if header.system_id != system {
        return Err(damaged(format!("it is of the cluster {}", header.system_id)));
    }
    Ok(())
}
