use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::model::evidence::{Check, Created, CreatedKind};
use lifeboat_engine::resource::ResourceKind;
use lifeboat_engine::step::{Effect, KindSpec, ParamProblem, Preview, StepContext, StepError, StepKind};
use lifeboat_engine::value::{Field, Type};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::super::directory::case_of;
use super::super::fetch::{Fetcher, Proven, Wanted, failed, unlike};
use super::super::names::Case;
use super::super::notes::Notes;
use super::super::restore::listed;
use super::super::send::{Sender, uploads_of};
use super::super::whole::{Known, Whole};
use super::super::{outputs, prefix, url};
use super::plan::{Plan, plan};
use super::side::{Part, Side};
use super::staging::{Staging, remove};
use crate::process::OsUser;
use crate::store::named::{Announced, Existing, Intent, Pin};
use crate::store::parallel::{by_size, each};
use crate::store::uploads::Uploads;
use crate::store::{Meter, ObjectReader, Store, blocking, codes, copy};

/// Removals at once: each waits for the server far longer than it works.
const REMOVED_AT_ONCE: usize = 12;

/// Makes a directory or a store like another one.
#[derive(Debug)]
pub(in super::super) struct Sync;

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Params {
    from: Option<String>,
    from_dir: Option<PathBuf>,
    from_prefix: Option<String>,
    to: Option<String>,
    to_dir: Option<PathBuf>,
    to_prefix: Option<String>,
    pub(super) extra: Extra,
    pub(super) max_removed: u64,
    pub(super) allow_empty: bool,
    pub(super) links: Links,
    owner: Option<String>,
    dry_run: bool,
}

/// What is done with objects of the target that the source lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Extra {
    Keep,
    Remove,
}

/// What is done with links, devices and names that are no text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Links {
    Refuse,
    Skip,
}

const DOC: &str = "\
Copies what the target lacks or has with other content: a directory into a store, a store into a directory, or a store into \
another one. Contents are compared, not times: by the MD5 in the tag of an object, or by the SHA-256 that objects written by \
Lifeboat carry; what cannot be told apart without moving it is moved.

Refused before anything is touched: an empty source (unless `allow_empty`), names that the target cannot have (`..`, \
empty segments, two that the file system takes for one, a name that is a file and a directory), links and devices in a \
source directory (`links: skip` leaves them out), anything but files where files would be written, objects in an archive, and \
too little space.

**Into a directory** objects arrive in a directory within it, each is compared with size and checksum of the store, all are \
synced, and only then each gets its name in one rename: no file is ever half, and until everything has arrived the directory \
is as it was. No symbolic link is followed. An attempt that follows an interrupted one goes on after the last part whose \
bytes and checksum are there.

**Into a store** each object appears whole or not at all. A file that changes while it is read is not sent; what comes from another \
store is compared with the checksum that it has there before it gets its name. An attempt that follows \
an interrupted one sends what is missing, of a large file the parts that the server has not acknowledged.

Nothing is removed unless `extra` is `remove`, and then at most `max_removed` objects, or none at all: a mirror carries \
damage and deletions along. This is no backup; a bucket with versions (`store.check_policy`) or `files.backup` is. \
Afterwards the target is listed again and compared by names and sizes.";

#[async_trait]
impl StepKind for Sync {
    fn spec(&self) -> KindSpec {
        let text = |name: &str, summary: &str| Field::optional(name, Type::String, summary);
        let store = |name: &str, ty: Type, summary: &str| Field::optional(name, ty, summary);
        KindSpec::new("store.sync", "Makes a directory or a store like another one.", Effect::Idempotent)
            .doc(DOC)
            .param(store("from", Type::reads(ResourceKind::Store), "The store that is copied."))
            .param(Field::optional("from_dir", Type::Path, "The directory that is copied, instead of a store."))
            .param(text("from_prefix", "Only what lies below this in the store, in whole segments."))
            .param(store("to", Type::writes(ResourceKind::Store), "The store that is written."))
            .param(Field::optional("to_dir", Type::Path, "The directory that is written, instead of a store."))
            .param(text("to_prefix", "Where in the store it goes, in whole segments."))
            .param(Field::defaulted(
                "extra",
                Type::choice(&["keep", "remove"]),
                "keep",
                "What to do with objects of the target that the source lacks.",
            ))
            .param(Field::defaulted(
                "max_removed",
                Type::Integer,
                100,
                "With `extra: remove`, how many may be removed; none is if there are more.",
            ))
            .param(Field::defaulted("allow_empty", Type::Boolean, false, "Whether the source may be empty."))
            .param(Field::defaulted(
                "links",
                Type::choice(&["refuse", "skip"]),
                "refuse",
                "What to do with links and devices in a directory that is copied.",
            ))
            .param(text("owner", "The system user that owns files written into a directory."))
            .param(Field::defaulted("dry_run", Type::Boolean, false, "Whether to count only, and write nothing."))
            .output("objects", Type::Integer, "How many objects the source has.")
            .output("bytes", Type::Integer, "Their size.")
            .output("copied", Type::Integer, "How many were copied, or would be.")
            .output("copied_bytes", Type::Integer, "Their size.")
            .output("unchanged", Type::Integer, "How many the target had already.")
            .output("extra", Type::Integer, "How many the target had that the source lacks.")
            .output("removed", Type::Integer, "How many of those were removed.")
            .output("skipped", Type::list(Type::String), "What was left out, and why.")
            .writes_path("to_dir")
            .destroys("what the target has under the same names with other content; with `extra: remove`, what the source lacks")
    }

    fn check(&self, with: &Map<String, Value>) -> Vec<ParamProblem> {
        let has = |name: &str| with.contains_key(name);
        let problem = |param: &str, message: &str, help: &str| ParamProblem {
            param: param.to_owned(),
            message: message.to_owned(),
            help: Some(help.to_owned()),
        };
        let mut problems = Vec::new();
        // A template is absent from `with`, so that only both at once are certain to be wrong.
        if has("from") && has("from_dir") {
            problems.push(problem("from_dir", "`from` and `from_dir` name two sources", "keep one of them"));
        }
        if has("to") && has("to_dir") {
            problems.push(problem("to_dir", "`to` and `to_dir` name two targets", "keep one of them"));
        }
        if has("from_dir") && has("to_dir") {
            problems.push(problem(
                "to_dir",
                "neither of the two is a store",
                "copy a directory with `files.backup` and `files.restore`, or with a `run` step",
            ));
        }
        problems
    }

    async fn preview(&self, ctx: &StepContext) -> Result<Preview, StepError> {
        let params: Params = ctx.params()?;
        let place = |store: &Option<String>, dir: &Option<PathBuf>, below: &Option<String>| match (store, dir)
        {
            (Some(store), _) => {
                let below = below.as_ref().map_or(String::new(), |below| format!(", below `{below}`"));
                url(ctx, store).map(|url| format!("{url}{below}"))
            }
            (None, Some(dir)) => Ok(dir.display().to_string()),
            (None, None) => Err(unnamed()),
        };
        let from = place(&params.from, &params.from_dir, &params.from_prefix)?;
        let to = place(&params.to, &params.to_dir, &params.to_prefix)?;
        let mut destroys = vec![format!("what {to} has under the same names with other content")];
        if params.extra == Extra::Remove {
            destroys.push(format!("what {to} has and {from} lacks, at most {} objects", params.max_removed));
        }
        Ok(Preview { actions: vec![format!("copy what differs from {from} to {to}")], destroys })
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let params: Params = ctx.params()?;
        let (from, to) = sides(ctx, &params).await?;
        let case = match &to {
            Side::Dir(dir) if dir.is_dir() && !params.dry_run => case_of(dir),
            _ => Case::Tells,
        };
        let meter = Meter::items(ctx, None, "comparing");
        let (source, target, wanted) = (from.clone(), to.clone(), params.clone());
        let plan = blocking(move || plan((&source, &target), &wanted, case, &meter)).await?;
        let mut done = done(&plan, &params);
        if params.dry_run {
            return Ok(done);
        }
        match (&from, &to) {
            (Side::Store(part), Side::Dir(dir)) => down(ctx, (part, dir), &params, &plan).await?,
            (_, Side::Store(part)) => up(ctx, (&from, part), &params, &plan).await?,
            (Side::Dir(_), Side::Dir(_)) => return Err(unnamed()),
        }
        let (keep, extra) = (params.extra == Extra::Keep, plan.extra.len());
        let check = blocking(move || compare((&from, &to), &plan, keep)).await?;
        done.outputs.insert("removed".to_owned(), json!(if keep { 0 } else { extra }));
        done.checks.push(check);
        Ok(done)
    }
}

fn unnamed() -> StepError {
    StepError::permanent(codes::LB1150, "a sync needs one source and one target, and one of them is a store")
        .help("give `from: STORE` or `from_dir: /a/directory`, and `to: STORE` or `to_dir: /a/directory`")
}

async fn sides(ctx: &StepContext, params: &Params) -> Result<(Side, Side), StepError> {
    let from = match (&params.from, &params.from_dir) {
        (Some(store), None) => Side::Store(Part {
            store: Store::of(ctx, store).await?,
            below: prefix(params.from_prefix.as_deref())?,
        }),
        (None, Some(dir)) if dir.is_absolute() => Side::Dir(dir.clone()),
        _ => return Err(unnamed()),
    };
    let to = match (&params.to, &params.to_dir) {
        (Some(store), None) => {
            let store = match params.dry_run {
                true => Store::of(ctx, store).await?,
                false => Store::of_for_writing(ctx, store).await?,
            };
            Side::Store(Part { store, below: prefix(params.to_prefix.as_deref())? })
        }
        (None, Some(dir)) if dir.is_absolute() => Side::Dir(dir.clone()),
        _ => return Err(unnamed()),
    };
    match (&from, &to) {
        (Side::Dir(_), Side::Dir(_)) => Err(unnamed()),
        (Side::Dir(dir), _) if !dir.is_dir() => {
            Err(StepError::permanent(codes::LB1152, format!("{} is no directory", dir.display()))
                .help("check that it is there and mounted"))
        }
        _ => Ok((from, to)),
    }
}

/// Brings objects into a directory.
async fn down(
    ctx: &StepContext,
    (part, dir): (&Part, &Path),
    params: &Params,
    plan: &Plan,
) -> Result<(), StepError> {
    let staging = Staging::of(dir, &format!("{}-{}", ctx.info.run.short(), ctx.info.step));
    staging.check_space(plan.bytes_to_copy(), plan.copy.len() as u64)?;
    let id = |part: &str| format!("store:{}:{part}", ctx.info.step);
    if !dir.exists() {
        let kind = CreatedKind::Directory { path: dir.to_owned() };
        ctx.created(Created { id: id("target"), what: "copied objects".to_owned(), kind }).await?;
    }
    let kind = CreatedKind::Directory { path: staging.path.clone() };
    ctx.created(Created { id: id("staging"), what: "objects on their way".to_owned(), kind }).await?;
    let log = ctx.work_dir()?.join("parts.jsonl");
    let owner = params.owner.as_deref().filter(|_| rustix::process::geteuid().is_root());
    let fetcher = Fetcher {
        store: part.store.clone(),
        root: staging.path.clone(),
        owner: owner.map(OsUser::lookup).transpose()?.map(|user| (user.uid, user.gid)),
        notes: Notes::open(&log).map_err(|error| failed("opened", &log, &error))?,
        meter: Meter::bytes(ctx, Some(plan.bytes_to_copy()), "fetching objects"),
        proven: Proven::default(),
    };
    let object = |(name, object): &(String, crate::store::named::Current)| Wanted {
        object: object.name.clone(),
        name: name.clone(),
        size: object.size,
        modified: object.modified,
        pin: Pin { version: None, etag: object.etag.clone() },
    };
    let wanted: Vec<_> = plan.copy.iter().map(object).collect();
    let removed: Vec<_> = match params.extra {
        Extra::Keep => Vec::new(),
        Extra::Remove => plan.extra.iter().map(|(name, _)| name.clone()).collect(),
    };
    let dir = dir.to_owned();
    blocking(move || {
        staging.make()?;
        fetcher.all(&wanted)?;
        staging.publish(wanted.iter().map(|wanted| wanted.name.as_str()))?;
        removed.iter().try_for_each(|name| remove(&dir, name))
    })
    .await?;
    ctx.removed(&id("staging"), "all of it is in its place").await
}

/// Sends objects into a store.
async fn up(
    ctx: &StepContext,
    (from, to): (&Side, &Part),
    params: &Params,
    plan: &Plan,
) -> Result<(), StepError> {
    let meter = Meter::bytes(ctx, Some(plan.bytes_to_copy()), "sending objects");
    let uploads = uploads_of(ctx)?;
    let (from, to, work) = (from.clone(), to.clone(), plan.copy.clone());
    let removed: Vec<_> = match params.extra {
        Extra::Keep => Vec::new(),
        Extra::Remove => plan.extra.iter().map(|(_, object)| object.name.clone()).collect(),
    };
    blocking(move || {
        let one = |(name, object): &(String, crate::store::named::Current)| {
            let key = to.key(name)?;
            match &from {
                Side::Dir(dir) => {
                    let (store, meter, uploads) = (to.store.clone(), meter.clone(), Arc::clone(&uploads));
                    let (root, existing) = (dir.clone(), Existing::Replace);
                    let sender = Sender { store, root, existing, sums: None, uploads, meter };
                    sender.one(name, &key).map(drop)
                }
                Side::Store(part) => across(part, (&to, &uploads), (object, &key), &meter),
            }
        };
        by_size(&work, |(_, object)| object.size, one)?;
        to.store.clear(&uploads);
        each(&removed, REMOVED_AT_ONCE, |name| to.store.remove(&crate::store::Key::new(name)?))
    })
    .await
}

/// Copies one object from a store to another. Nothing gets its name before its content is what the source says that it is.
fn across(
    from: &Part,
    (to, uploads): (&Part, &Arc<Uploads>),
    (object, key): (&crate::store::named::Current, &crate::store::Key),
    meter: &Meter,
) -> Result<(), StepError> {
    let pin = Pin { version: None, etag: object.etag.clone() };
    let (facts, content) = from.store.open_at(&object.name, 0, &pin)?.ok_or_else(|| {
        let message = format!("{} is no longer there", from.store.address_of(&object.name));
        StepError::transient(codes::LB1104, message).help("run the step again: it lists the source anew")
    })?;
    let mut held = Held { content, whole: Whole::only(Known::of(&from.store, &object.name, &facts)?) };
    let announced = facts.sha256.map_or(Announced::Nothing, Announced::Sha256);
    let uploads = Some(Arc::clone(uploads));
    let mut target =
        to.store.write_object(key, Intent { existing: Existing::Replace, announced, uploads })?;
    copy(&mut held, &mut target, meter)?;
    held.whole.compare().map_err(|why| unlike(&object.name, &why))?;
    target.commit().map(drop)
}

/// A content that is held against what its store knows of it while it is read.
struct Held {
    content: ObjectReader,
    whole: Whole,
}

impl Read for Held {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.content.read(buffer)?;
        self.whole.update(&buffer[..count]);
        Ok(count)
    }
}

/// Lists the target again and compares names and sizes.
fn compare((from, to): (&Side, &Side), plan: &Plan, keep: bool) -> Result<Check, StepError> {
    let target = to.list()?;
    let is_there = |(name, object): &&(String, crate::store::named::Current)| match name.strip_suffix('/') {
        Some(dir) if matches!(to, Side::Dir(_)) => target.tree.dirs.contains(dir),
        _ => target.objects.get(name).is_some_and(|found| found.size == object.size),
    };
    let missing = plan.copy.iter().filter(|copied| !is_there(copied)).map(|(name, _)| name);
    let left = plan
        .extra
        .iter()
        .filter(|(name, _)| !keep && target.objects.contains_key(name))
        .map(|(name, _)| name);
    let wrong: Vec<_> = missing.chain(left).map(|name| format!("`{}`", name.escape_debug())).collect();
    let all = plan.copy.len() + if keep { 0 } else { plan.extra.len() };
    let check = Check {
        name: "names and sizes that are as planned".to_owned(),
        expected: all.to_string(),
        actual: (all - wrong.len()).to_string(),
        passed: wrong.is_empty(),
    };
    if wrong.is_empty() {
        return Ok(check);
    }
    let message = format!("{} objects of {to} are not as those of {from}", wrong.len());
    Err(listed(StepError::transient(codes::LB1122, message), wrong)
        .help("something else writes there: stop it, then run the step again")
        .checks(vec![check]))
}

fn done(plan: &Plan, params: &Params) -> Done {
    let outputs = outputs(json!({
        "objects": plan.objects, "bytes": plan.bytes, "copied": plan.copy.len(),
        "copied_bytes": plan.bytes_to_copy(), "unchanged": plan.unchanged, "extra": plan.extra.len(),
        "removed": 0, "skipped": plan.skipped,
    }));
    let mut warnings: Vec<_> = plan.skipped.iter().map(|what| format!("left out: {what}")).collect();
    if !plan.extra.is_empty() && params.extra == Extra::Keep {
        warnings.push(format!("{} objects of the target are not in the source and stay", plan.extra.len()));
    }
    Done { outputs, warnings, ..Done::default() }
}
