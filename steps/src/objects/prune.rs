use std::collections::BTreeSet;
use std::io::Read;

use async_trait::async_trait;
use jiff::Timestamp;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::resource::ResourceKind;
use lifeboat_engine::step::{Effect, KindSpec, Preview, StepContext, StepError, StepKind};
use lifeboat_engine::value::{Field, Type};
use serde::Deserialize;
use serde_json::{Value, json};

use super::restore::listed;
use super::{glob, outputs, prefix};
use crate::keep::{Keep, kept};
use crate::probe::bytes;
use crate::store::named::{Current, Pin};
use crate::store::parallel::each;
use crate::store::{
    BackupKind, HashingReader, Key, Marker, Meter, Store, blocking, catalogue, codes, verify_sizes,
};

/// Removes old objects or backups.
#[derive(Debug)]
pub(super) struct Prune;

#[derive(Clone, Debug, Deserialize)]
struct Params {
    store: String,
    of: Of,
    prefix: Option<String>,
    pattern: Option<String>,
    keep: Keep,
    dry_run: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Of {
    Objects,
    Files,
    Redis,
}

/// What a first attempt is about to remove: names of objects or labels of backups.
const REMOVING: &str = "removing";
const AT_ONCE: usize = 8;

const DOC: &str = "\
Keeps the `last` ones and the newest of each of the last days, weeks and months that have one, and removes the others. \
Days without one do not count: if backups stop, nothing is removed for it. `of: objects` is for objects that are backups \
each, such as dumps that something else has written: those below `prefix` whose names are like `pattern`, by the time \
the store gives them. `of: files` and `of: redis` are the backups of `files.backup` and `redis.snapshot`, by their \
markers, each source apart. Base backups, dumps and WAL of Postgres are pruned by `postgres.prune`, which knows what they \
need of each other.

At least `min_verified` of those kept must be whole, or nothing is removed: a backup with its marker and every object with \
its size; an object by reading it and comparing its checksum where the store knows one, and it must not be empty. They are \
tried from the newest on.

Without any rule under `keep` it is refused. By default it is a dry run. In a bucket with versions objects are marked as deleted, and \
the bucket's own rules remove them.";

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
        KindSpec::new("store.prune", "Removes old objects or backups.", Effect::Idempotent)
            .doc(DOC)
            .param(Field::required("store", Type::writes(ResourceKind::Store), "Where they are."))
            .param(Field::defaulted(
                "of",
                Type::choice(&["objects", "files", "redis"]),
                "objects",
                "What is pruned.",
            ))
            .param(Field::optional("prefix", Type::String, "Only objects below this, in whole segments."))
            .param(Field::optional(
                "pattern",
                Type::String,
                "Only objects with names like this, below the prefix.",
            ))
            .param(Field::required("keep", Type::Object(keep), "What is kept."))
            .param(Field::defaulted("dry_run", Type::Boolean, true, "Whether only to list."))
            .output("kept", Type::list(Type::String), "Names or labels of those that are kept.")
            .output("removed", Type::list(Type::String), "Of those that are removed, or would be.")
            .output("bytes", Type::Integer, "Bytes that become free, or would.")
            .output("applied", Type::Boolean, "False for a dry run.")
            .destroys("objects or backups that the rules do not keep")
    }

    async fn preview(&self, ctx: &StepContext) -> Result<Preview, StepError> {
        let params: Params = ctx.params()?;
        let store = Store::of(ctx, &params.store).await?;
        let wanted = params.clone();
        let plan = blocking(move || plan(&store, &wanted)).await?;
        let names = plan.remove.iter().map(|unit| unit.name.as_str()).collect::<Vec<_>>().join(", ");
        let what = format!("{} of `{}` ({names}), {}", plan.remove.len(), params.store, bytes(plan.bytes()));
        Ok(match params.dry_run {
            true => Preview {
                actions: vec![format!("list {what}")],
                destroys: vec!["nothing: a dry run".to_owned()],
            },
            false => Preview { actions: vec![format!("remove {what}")], destroys: vec![what] },
        })
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let params: Params = ctx.params()?;
        let store = Store::of(ctx, &params.store).await?;
        let (of, wanted) = (store.clone(), params.clone());
        let plan = blocking(move || plan(&of, &wanted)).await?;
        let earlier = ctx.recorded(REMOVING).and_then(Value::as_array).cloned().unwrap_or_default();
        let mut removed: BTreeSet<String> =
            earlier.iter().filter_map(Value::as_str).map(ToOwned::to_owned).collect();
        removed.extend(plan.remove.iter().map(|unit| unit.name.clone()));
        let done = Done {
            outputs: outputs(json!({
                "kept": plan.keep.iter().map(|unit| &unit.name).collect::<Vec<_>>(), "removed": removed,
                "bytes": plan.bytes(), "applied": !params.dry_run,
            })),
            warnings: plan.warnings.clone(),
            ..Done::default()
        };
        if params.dry_run {
            return Ok(done);
        }
        ctx.record(REMOVING, json!(removed)).await?;
        let meter = Meter::bytes(ctx, Some(plan.bytes()), "removing");
        blocking(move || {
            each(&plan.remove, AT_ONCE, |unit| match &unit.what {
                What::Backup(marker) => store.remove_backup(marker, &meter),
                What::Object(key) => {
                    store.remove(key)?;
                    meter.advance(unit.bytes)
                }
            })
        })
        .await?;
        Ok(done)
    }
}

/// One thing that is kept or removed as a whole.
#[derive(Clone, Debug)]
struct Unit {
    name: String,
    at: Timestamp,
    bytes: u64,
    what: What,
}

#[derive(Clone, Debug)]
enum What {
    Object(Key),
    Backup(Marker),
}

#[derive(Debug, Default)]
struct Plan {
    keep: Vec<Unit>,
    remove: Vec<Unit>,
    warnings: Vec<String>,
}

impl Plan {
    fn bytes(&self) -> u64 {
        self.remove.iter().map(|unit| unit.bytes).sum()
    }
}

fn plan(store: &Store, params: &Params) -> Result<Plan, StepError> {
    let Keep { last, daily, weekly, monthly, .. } = params.keep;
    if last + daily + weekly + monthly == 0 {
        return Err(StepError::permanent(
            codes::LB1160,
            "`keep` keeps nothing, so that everything would be removed",
        )
        .help("give `keep` at least one of `last`, `daily`, `weekly` and `monthly`"));
    }
    let mut plan = Plan::default();
    let groups = match params.of {
        Of::Objects => vec![objects(store, params, &mut plan.warnings)?],
        Of::Files => backups(store, BackupKind::Files, &mut plan.warnings)?,
        Of::Redis => backups(store, BackupKind::RedisRdb, &mut plan.warnings)?,
    };
    for mut units in groups {
        units.sort_by(|a, b| (b.at, &b.name).cmp(&(a.at, &a.name)));
        let times: Vec<_> = units.iter().map(|unit| unit.at).collect();
        let keep = kept(&times, params.keep);
        let (mut stay, mut go) = (Vec::new(), Vec::new());
        for (index, unit) in units.into_iter().enumerate() {
            if keep.contains(&index) { stay.push(unit) } else { go.push(unit) }
        }
        if !go.is_empty() {
            check_whole(store, params.keep, &stay)?;
        }
        plan.keep.extend(stay);
        plan.remove.extend(go);
    }
    Ok(plan)
}

fn objects(store: &Store, params: &Params, warnings: &mut Vec<String>) -> Result<Vec<Unit>, StepError> {
    let below = prefix(params.prefix.as_deref())?;
    let skipped = below.as_ref().map_or(0, |below| below.as_str().len() + 1);
    let mut units = Vec::new();
    for Current { name, size, modified, .. } in store.everything(below.as_ref())? {
        let short = name.get(skipped..).unwrap_or_default();
        if params.pattern.as_ref().is_some_and(|pattern| !glob::fits(pattern, short)) {
            continue;
        }
        match (Key::new(&*name), modified) {
            (Ok(key), Some(at)) => units.push(Unit { name, at, bytes: size, what: What::Object(key) }),
            _ => warnings.push(format!("`{}` stays: it has no time or no plain name", name.escape_debug())),
        }
    }
    Ok(units)
}

/// Backups of one resource compete with each other only.
fn backups(store: &Store, kind: BackupKind, warnings: &mut Vec<String>) -> Result<Vec<Vec<Unit>>, StepError> {
    let found = catalogue(store, kind)?;
    warnings.extend(found.rejected.iter().map(|one| format!("`{}` stays: {}", one.label, one.reason)));
    let mut groups = std::collections::BTreeMap::<String, Vec<Unit>>::new();
    for marker in found.complete {
        let source = marker.details.get(crate::backup::RESOURCE).and_then(Value::as_str).unwrap_or_default();
        let (name, at, bytes) = (marker.label.clone(), marker.finished_at, marker.bytes());
        groups.entry(source.to_owned()).or_default().push(Unit {
            name,
            at,
            bytes,
            what: What::Backup(marker),
        });
    }
    Ok(groups.into_values().collect())
}

/// Refuses to remove anything while too few of those that would be kept are whole.
fn check_whole(store: &Store, keep: Keep, stay: &[Unit]) -> Result<(), StepError> {
    let wanted = keep.min_verified.max(1);
    let (mut whole, mut problems) = (0, Vec::new());
    for unit in stay {
        if whole == wanted {
            break;
        }
        match is_whole(store, unit) {
            Ok(()) => whole += 1,
            Err(error) if error.code == codes::LB1108 || error.code == codes::LB1116 => {
                problems.push(format!("`{}`: {}", unit.name.escape_debug(), error.message));
            }
            Err(error) => return Err(error),
        }
    }
    if whole >= wanted {
        return Ok(());
    }
    let message = format!("{whole} of {} that would be kept are whole, and {wanted} must be", stay.len());
    Err(listed(StepError::permanent(codes::LB1160, message), problems)
        .help("nothing was removed; take a new backup, or keep more of them"))
}

fn is_whole(store: &Store, unit: &Unit) -> Result<(), StepError> {
    let damaged = |problem: String| Err(StepError::permanent(codes::LB1108, problem));
    let key = match &unit.what {
        What::Backup(marker) => return verify_sizes(store, marker),
        What::Object(key) => key,
    };
    let Some((facts, content)) = store.open_at(key.as_str(), 0, &Pin::default())? else {
        return damaged("it is not there any more".to_owned());
    };
    if facts.size == 0 {
        return damaged("it is empty".to_owned());
    }
    let mut content = HashingReader::new(content);
    let read = std::io::copy(&mut content, &mut std::io::sink());
    if let Err(error) = read {
        return match crate::store::of_store(&error) {
            Some(error) => Err(error.clone()),
            None => damaged(format!("it cannot be read: {error}")),
        };
    }
    let (mut rest, digest) = content.finish();
    let nothing_left = rest.read(&mut [0]).is_ok_and(|count| count == 0);
    match facts.sha256 {
        Some(known) if known != digest.sha256 => {
            damaged(format!("its SHA-256 is {}, not {known}", digest.sha256))
        }
        _ if digest.size != facts.size || !nothing_left => {
            damaged(format!("{} of {} bytes came", digest.size, facts.size))
        }
        _ => Ok(()),
    }
}
