//! `postgres.prune`

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use jiff::Timestamp;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::resource::ResourceKind;
use lifeboat_engine::step::{Effect, KindSpec, Preview, StepContext, StepError, StepKind};
use lifeboat_engine::value::{Field, Span, Type};
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::wal::Segment;
use super::super::wal::{Archive, SystemId, WAL_PREFIX, WalName};
use super::super::{codes, local};
use super::wal::{Needs, is_needed};
use crate::keep::{self, Keep};
use crate::probe::bytes;
use crate::store::{self, BackupKind, Key, Marker, Meter, Rejection, Store, blocking};

/// Removes old backups.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Prune;

#[derive(Clone, Debug, Deserialize)]
struct Params {
    store: String,
    of: Of,
    keep: Keep,
    recoverable_for: Option<Span>,
    read: bool,
    dry_run: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Of {
    Base,
    Dump,
}

/// What progress says while backups are proven.
const READING: &str = "reading backups that must be whole";
/// Labels whose removal has begun.
const REMOVING: &str = "removing";

const DOC: &str = "\
Keeps the newest backup of each of the last days, weeks and months that have one, and the `last` ones, for each cluster \
(or, of dumps, for each database) apart. Days without a backup do not count: if backups stop, nothing is removed for it. \
Everything else goes, and with base backups the WAL that nothing kept needs: older than the oldest one kept, or, with \
`recoverable_for`, than the newest one that is older than that time; kept backups before it keep the WAL of their own making.

At least `min_verified` of the kept backups must be there whole (marker, every object with its size, the WAL of their own \
making; with `read: true` every byte of them is compared with its marker), or nothing is removed. Only what the catalogue knows is touched: backups without a valid marker stay and are named, \
and while a marker cannot be read no WAL is removed, for nobody knows which it needs. Timeline histories stay.

By default it is a dry run that lists what would go. The marker goes first, so that half a backup is never taken for one; an \
attempt that was cut off goes on. In a bucket with versions objects are marked as deleted.

Do not prune while somebody restores from the store: locks keep runs apart that write it, and a restore only reads it.";

#[async_trait]
impl StepKind for Prune {
    fn spec(&self) -> KindSpec {
        let number = |name: &str, summary: &str| Field::defaulted(name, Type::Integer, 0, summary);
        let keep = vec![
            number("last", "How many of the newest."),
            number("daily", "Of how many days the newest each."),
            number("weekly", "Of how many weeks the newest each."),
            number("monthly", "Of how many months the newest each."),
            Field::defaulted("min_verified", Type::Integer, 1, "How many of those kept must be whole."),
        ];
        KindSpec::new(
            "postgres.prune",
            "Removes old backups and the WAL that nothing kept needs.",
            Effect::Idempotent,
        )
        .doc(DOC)
        .param(Field::required("store", Type::writes(ResourceKind::Store), "Where the backups are."))
        .param(Field::defaulted(
            "of",
            Type::choice(&["base", "dump"]),
            "base",
            "Base backups and WAL, or dumps.",
        ))
        .param(Field::required("keep", Type::Object(keep), "What is kept."))
        .param(Field::optional(
            "recoverable_for",
            Type::Duration,
            "How far back every moment can be reached; to the oldest backup kept if absent.",
        ))
        .param(Field::defaulted(
            "read",
            Type::Boolean,
            false,
            "Whether those that must be whole are read, not only listed.",
        ))
        .param(Field::defaulted("dry_run", Type::Boolean, true, "Whether only to list."))
        .output("kept", Type::list(Type::String), "Labels of the backups that are kept.")
        .output("removed", Type::list(Type::String), "Labels of those that are removed, or would be.")
        .output("wal_segments", Type::Integer, "How many WAL segments are removed, or would be.")
        .output("bytes", Type::Integer, "Bytes that become free, or would.")
        .output("applied", Type::Boolean, "False for a dry run.")
        .destroys("backups that the rules do not keep, and the WAL that none kept needs")
    }

    async fn preview(&self, ctx: &StepContext) -> Result<Preview, StepError> {
        let params: Params = ctx.params()?;
        let store = Store::of(ctx, &params.store).await?;
        let wanted = params.clone();
        let meter = Meter::bytes(ctx, None, READING);
        let plan = blocking(move || plan(&store, &wanted, (Timestamp::now(), &meter))).await?;
        let what = format!(
            "{} backups ({}) and {} WAL segments of `{}`, {} in all",
            plan.remove.len(),
            plan.labels().join(", "),
            plan.wal.len(),
            params.store,
            bytes(plan.bytes())
        );
        Ok(match params.dry_run {
            true => Preview {
                actions: vec![format!("list: {what}")],
                destroys: vec!["nothing: a dry run".into()],
            },
            false => Preview { actions: vec![format!("remove {what}")], destroys: vec![what] },
        })
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let params: Params = ctx.params()?;
        let store = Store::of(ctx, &params.store).await?;
        let (of, wanted) = (store.clone(), params.clone());
        let meter = Meter::bytes(ctx, None, READING);
        let plan = blocking(move || plan(&of, &wanted, (Timestamp::now(), &meter))).await?;
        let mut done = plan.done(&params, ctx.recorded(REMOVING));
        if params.dry_run {
            return Ok(done);
        }
        let earlier: Vec<Marker> = ctx
            .recorded(REMOVING)
            .and_then(|earlier| serde_json::from_value(earlier.clone()).ok())
            .unwrap_or_default();
        let all: Vec<Marker> = earlier.into_iter().chain(plan.remove.iter().cloned()).collect();
        ctx.record(REMOVING, json!(all)).await?;
        let meter = Meter::bytes(ctx, Some(plan.bytes()), "removing");
        let wal = plan.wal.clone();
        blocking(move || {
            for marker in &all {
                store.remove_backup(marker, &meter)?;
            }
            for (key, size) in &wal {
                store.remove(key)?;
                meter.advance(*size)?;
            }
            Ok(())
        })
        .await?;
        done.facts.insert("removed".into(), format!("{} bytes", plan.bytes()));
        Ok(done)
    }
}

/// What goes and what stays.
struct Plan {
    kept: Vec<Marker>,
    remove: Vec<Marker>,
    /// Segments, with their sizes as stored.
    wal: Vec<(Key, u64)>,
    warnings: Vec<String>,
}

impl Plan {
    fn labels(&self) -> Vec<&str> {
        self.remove.iter().map(|marker| marker.label.as_str()).collect()
    }

    fn bytes(&self) -> u64 {
        self.remove.iter().map(Marker::bytes).sum::<u64>()
            + self.wal.iter().map(|(_, size)| size).sum::<u64>()
    }

    /// Returns the results; what an earlier attempt has removed counts, too.
    fn done(&self, params: &Params, earlier: Option<&Value>) -> Done {
        let earlier = earlier.and_then(Value::as_array).into_iter().flatten();
        let labels = earlier.filter_map(|marker| marker["label"].as_str()).chain(self.labels());
        let labels: BTreeSet<&str> = labels.collect();
        let mut done = local::done(json!({
            "kept": self.kept.iter().map(|marker| &marker.label).collect::<Vec<_>>(), "removed": labels,
            "wal_segments": self.wal.len(), "bytes": self.bytes(), "applied": !params.dry_run,
        }));
        done.warnings.clone_from(&self.warnings);
        done
    }
}

fn plan(store: &Store, params: &Params, (now, meter): (Timestamp, &Meter)) -> Result<Plan, StepError> {
    let kind = match params.of {
        Of::Base => BackupKind::PostgresBase,
        Of::Dump => BackupKind::PostgresDump,
    };
    let found = store::catalogue(store, kind)?;
    let mut warnings: Vec<_> = found
        .rejected
        .iter()
        .filter(|one| one.why != Rejection::Unfinished)
        .map(|one| format!("`{}` stays: {}", one.label, one.reason))
        .collect();
    let mut groups = BTreeMap::<String, Vec<Marker>>::new();
    for marker in found.complete {
        groups.entry(group(&marker)).or_default().push(marker);
    }
    let (mut kept, mut remove) = (Vec::new(), Vec::new());
    for (name, markers) in groups {
        let times: Vec<_> = markers.iter().map(|marker| marker.finished_at).collect();
        let keep = keep::kept(&times, params.keep);
        let (mut stay, mut go) = (Vec::new(), Vec::new());
        for (index, marker) in markers.into_iter().enumerate() {
            if keep.contains(&index) { stay.push(marker) } else { go.push(marker) }
        }
        check_whole(store, params, (&name, &stay), meter)?;
        kept.extend(stay);
        remove.extend(go);
    }
    let unreadable = found.rejected.iter().any(|one| one.why != Rejection::Unfinished);
    let wal = match params.of {
        Of::Base if unreadable => {
            warnings
                .push("no WAL is removed, because some backups cannot be read and may need it".to_owned());
            Vec::new()
        }
        Of::Base => unneeded(store, &kept, since(params, now))?,
        Of::Dump => Vec::new(),
    };
    Ok(Plan { kept, remove, wal, warnings })
}

/// Backups of one cluster, or dumps of one database, compete with each other only.
fn group(marker: &Marker) -> String {
    let text = |key: &str| marker.details.get(key).and_then(Value::as_str).unwrap_or_default();
    match marker.kind {
        BackupKind::PostgresBase => text("system_id").to_owned(),
        _ => format!("{} {}", text("resource"), text("database")),
    }
}

fn since(params: &Params, now: Timestamp) -> Option<Timestamp> {
    params.recoverable_for.and_then(|span| now.checked_sub(span.0).ok())
}

/// Refuses to remove anything while too few of the kept backups are whole.
fn check_whole(
    store: &Store,
    params: &Params,
    (name, kept): (&str, &[Marker]),
    meter: &Meter,
) -> Result<(), StepError> {
    let wanted = params.keep.min_verified.max(1);
    let (mut whole, mut problems) = (0, Vec::new());
    for marker in kept {
        // Reading takes its time: no more than are needed.
        if params.read && whole >= wanted {
            break;
        }
        match is_whole(store, marker, params.read.then_some(meter)) {
            Ok(()) => whole += 1,
            Err(error) if error.code == store::codes::LB1108 || error.code == codes::LB1222 => {
                problems.push(format!("`{}`: {}", marker.label, error.message));
            }
            Err(error) => return Err(error),
        }
    }
    if whole >= wanted {
        return Ok(());
    }
    let message = format!(
        "of {name}, {whole} of {} backups that would be kept are whole, and {wanted} must be",
        kept.len()
    );
    let mut error = StepError::permanent(codes::LB1832, message)
        .help("nothing was removed; take a new backup, or keep more of them");
    error.causes = problems;
    Err(error)
}

/// Compares sizes, or reads everything and counts it.
fn is_whole(store: &Store, marker: &Marker, reading: Option<&Meter>) -> Result<(), StepError> {
    match reading {
        Some(meter) => store::verify(store, marker, meter)?,
        None => store::verify_sizes(store, marker)?,
    }
    let archived = marker.details.get("archived").and_then(Value::as_bool) == Some(true);
    if marker.kind != BackupKind::PostgresBase || !archived {
        return Ok(());
    }
    let needs = Needs::of(marker)?;
    let system = system(&needs)?;
    let archive = Archive::list(store, system)?;
    let timeline = marker.details.get("timeline").and_then(Value::as_u64).unwrap_or(1);
    for number in needs.first..=needs.last {
        let segment = Segment { timeline: u32::try_from(timeline).unwrap_or(1), number };
        if !archive.has(segment, needs.size) {
            let name = segment.name(needs.size);
            return Err(StepError::permanent(codes::LB1222, format!("{name} is missing from the archive")));
        }
    }
    Ok(())
}

fn system(needs: &Needs) -> Result<SystemId, StepError> {
    needs.system.parse().map_err(|problem: String| StepError::permanent(store::codes::LB1110, problem))
}

/// Lists the segments that nothing kept needs. A cluster without a kept backup keeps all of its log.
fn unneeded(store: &Store, kept: &[Marker], since: Option<Timestamp>) -> Result<Vec<(Key, u64)>, StepError> {
    let mut systems = BTreeMap::<String, Vec<Needs>>::new();
    for marker in kept {
        let needs = Needs::of(marker)?;
        systems.entry(needs.system.clone()).or_default().push(needs);
    }
    let mut found = Vec::new();
    for (system, needs) in systems {
        let size = needs[0].size;
        for object in store.list(&Key::new(format!("{WAL_PREFIX}/{system}"))?)? {
            let name = object.key.name();
            let name = name.strip_suffix(".zst").unwrap_or(name);
            if WalName::parse(name).ok() != Some(WalName::Segment) {
                continue;
            }
            let segment = Segment::parse(name, size)?;
            if !is_needed(segment.number, &needs, since) {
                found.push((object.key, object.size));
            }
        }
    }
    Ok(found)
}
