use std::path::PathBuf;

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use lifeboat_engine::model::event::Done;
use lifeboat_engine::model::evidence::{Check, Confidence, RecoveryPoint};
use lifeboat_engine::resource::{ResourceKind, System};
use lifeboat_engine::step::{Effect, KindSpec, ParamProblem, Preview, StepContext, StepError, StepKind};
use lifeboat_engine::value::{Field, Type};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::choose::{Chooser, Chosen, Decision};
use super::{directory, rollback};
use crate::store::policy::Versioning;
use crate::store::versions::Versioned;
use crate::store::{Store, blocking, codes};

/// Restores objects to what they were at a moment.
#[derive(Debug)]
pub(super) struct RestoreAsOf;

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Params {
    pub(super) store: String,
    pub(super) at: Timestamp,
    pub(super) to: Option<PathBuf>,
    pub(super) into: Option<String>,
    pub(super) existing: Existing,
    pub(super) owner: Option<String>,
    pub(super) allow_empty: bool,
    pub(super) archived: Choice,
    pub(super) unsafe_names: Choice,
    pub(super) incomplete_history: History,
    pub(super) dry_run: bool,
}

/// What is done with a directory that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Existing {
    MoveAside,
    Refuse,
}

/// What is done with objects that cannot be restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Choice {
    Refuse,
    Skip,
}

/// What is done where the list of versions need not be complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum History {
    Refuse,
    Accept,
}

/// What a restore did, by class.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Counts {
    pub(super) objects: u64,
    pub(super) bytes: u64,
    pub(super) copied: u64,
    pub(super) deleted: u64,
    pub(super) undeleted: u64,
    pub(super) unchanged: u64,
    pub(super) absent: u64,
    pub(super) skipped: Vec<String>,
    pub(super) previous: Option<PathBuf>,
    pub(super) checks: Vec<Check>,
}

const DOC: &str = "\
Pages through all versions and deletion marks below the store's prefix and takes, for each name, what it was just \
before `at`: the newest entry before that moment in the order of the server; a deletion mark means that it was not \
there. Versions are never deleted. Every version is read by its id, so that what is written meanwhile changes nothing. \
The times of a bucket have a resolution of one second, and that of an upload in parts is when it began; changes within \
the second of `at` are counted in a warning.

Refused before anything is touched: a bucket without versions or with versioning suspended, a moment that a lifecycle \
rule has passed (both can be accepted with `incomplete_history: accept`), objects in an archive, names that no file can \
have, and an empty result.

**To a directory** (`to`): everything is written beside the target, in a directory of its own, each file is compared \
with size and checksum of the server, all of it is synced and then exchanged with the target in one rename; what was \
there is kept as `.pre-RUN`. An attempt that follows an interrupted one keeps the files that it finds to be right. \
Files get the owner of the directory that was there, or `owner`, and the time of their version.

**Into a store** (`into`) of the same server: into an empty prefix by copies within the server, with all that objects \
carry; or in place, by naming the same store. In place, what was overwritten is copied to the top, what is new gets a \
deletion mark, and deletion marks since then are taken away. Stop whatever writes first. Afterwards the list is read \
again and compared.

A `dir://` store has no versions and is refused; see `files.restore`.";

#[async_trait]
impl StepKind for RestoreAsOf {
    fn spec(&self) -> KindSpec {
        let choice = || Type::choice(&["refuse", "skip"]);
        let mut spec = KindSpec::new(
            "store.restore_as_of",
            "Restores the objects of a store to what they were at a moment.",
            Effect::Idempotent,
        )
        .doc(DOC)
        .param(Field::required("store", Type::reads(ResourceKind::Store), "The bucket with the versions."))
        .param(Field::required("at", Type::Timestamp, "Just before this moment."))
        .param(Field::optional("to", Type::Path, "The directory that is restored."))
        .param(Field::optional(
            "into",
            Type::writes(ResourceKind::Store),
            "The store that is restored into; the same one for in place.",
        ))
        .param(Field::defaulted(
            "existing",
            Type::choice(&["move_aside", "refuse"]),
            "move_aside",
            "What to do with a directory that is there.",
        ))
        .param(Field::optional("owner", Type::String, "The system user that owns the files."))
        .param(Field::defaulted(
            "allow_empty",
            Type::Boolean,
            false,
            "Whether there may have been no object.",
        ))
        .param(Field::defaulted("archived", choice(), "refuse", "What to do with objects in an archive."))
        .param(Field::defaulted(
            "unsafe_names",
            choice(),
            "refuse",
            "What to do with names that no file can have.",
        ))
        .param(Field::defaulted(
            "incomplete_history",
            Type::choice(&["refuse", "accept"]),
            "refuse",
            "What to do where versions may be missing.",
        ))
        .param(Field::defaulted("dry_run", Type::Boolean, false, "Whether to count only, and write nothing."))
        .output("objects", Type::Integer, "How many objects there were at the moment.")
        .output("bytes", Type::Integer, "Their size.")
        .output("copied", Type::Integer, "How many were written to the target.")
        .output("deleted", Type::Integer, "How many newer ones got a deletion mark (in place).")
        .output("undeleted", Type::Integer, "How many lost their deletion marks (in place).")
        .output("unchanged", Type::Integer, "How many were as they should be already.")
        .output("absent", Type::Integer, "How many names were not there at the moment.")
        .output("skipped", Type::list(Type::String), "What was left out, and why.")
        .writes_path("to")
        .destroys("what is in the target: a directory is kept as `.pre-RUN`, objects as older versions")
        .restores();
        spec.outputs.push(Field::optional("previous", Type::Path, "Where the old directory is kept."));
        spec
    }

    fn check(&self, with: &Map<String, Value>) -> Vec<ParamProblem> {
        // A template is absent from `with`, so that only both at once are certain to be wrong.
        if !(with.contains_key("to") && with.contains_key("into")) {
            return Vec::new();
        }
        vec![ParamProblem {
            param: "into".to_owned(),
            message: "`to` and `into` name two targets".to_owned(),
            help: Some("keep `to` for a directory, or `into` for a store".to_owned()),
        }]
    }

    async fn preview(&self, ctx: &StepContext) -> Result<Preview, StepError> {
        let params: Params = ctx.params()?;
        let url = |name: &str| {
            ctx.system(name, |system| match system {
                System::Store(store) => Some(&store.url),
                _ => None,
            })
        };
        let source = url(&params.store)?;
        let list = format!("list all versions of {source} and take those of just before {}", params.at);
        Ok(match (&params.to, &params.into) {
            (Some(to), _) => {
                let (to, short) = (to.display(), ctx.info.run.short());
                let write = format!("write them beside {to}, compare, exchange in one rename");
                Preview {
                    actions: vec![list, write],
                    destroys: vec![format!("{to} becomes {to}.pre-{short}")],
                }
            }
            (None, Some(into)) if url(into)? == source => Preview {
                actions: vec![
                    list,
                    format!("put each object of {source} back as it was; no version is deleted"),
                ],
                destroys: vec![format!(
                    "the objects of {source} as they are; they are kept as older versions"
                )],
            },
            (None, Some(into)) => Preview {
                actions: vec![list, format!("copy them into {}, which must be empty", url(into)?)],
                destroys: Vec::new(),
            },
            (None, None) => return Err(no_target()),
        })
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let params: Params = ctx.params()?;
        if params.to.is_some() == params.into.is_some() {
            return Err(no_target());
        }
        let store = Store::of(ctx, &params.store).await?.versioned()?;
        let (mut warnings, chosen) = choose(ctx, &store, &params).await?;
        refuse_empty(&store, &params, &chosen)?;
        if chosen.same_second > 0 {
            warnings.push(format!(
                "{} changes are of the very second of {} and count as before it",
                chosen.same_second, params.at
            ));
        }
        let counts = match &params.to {
            Some(to) => directory::restore(ctx, &store, (&params, to), chosen).await?,
            None => rollback::restore(ctx, &store, &params, chosen).await?,
        };
        warnings.extend(counts.skipped.iter().map(|what| format!("left out: {what}")));
        Ok(done(&params, counts, warnings))
    }
}

fn no_target() -> StepError {
    StepError::permanent(codes::LB1120, "a restore of objects needs one target: `to` or `into`")
        .help("give `to: /a/directory`, or `into: STORE`, the same one as `store` for in place")
}

/// Lists the versions and decides, after the bucket was found to know enough.
async fn choose(
    ctx: &StepContext,
    store: &Versioned,
    params: &Params,
) -> Result<(Vec<String>, Chosen), StepError> {
    let (store, params, meter) =
        (store.clone(), params.clone(), crate::store::Meter::items(ctx, None, "versions"));
    blocking(move || {
        let warnings = check_history(&store, &params)?;
        let mut chooser = Chooser::new(params.at, store.order());
        store.each_version("", |entries| {
            meter.advance(entries.len() as u64)?;
            chooser.page(entries);
            Ok(())
        })?;
        Ok((warnings, chooser.finish()))
    })
    .await
}

/// Refuses a moment of which the bucket need not know everything.
fn check_history(store: &Versioned, params: &Params) -> Result<Vec<String>, StepError> {
    let now = Timestamp::now();
    if params.at > now {
        return Err(StepError::permanent(codes::LB1118, format!("{} is in the future", params.at))
            .help(format!("give a moment that has passed; it is now {now}")));
    }
    let mut problems = Vec::new();
    match store.versioning()? {
        Versioning::Enabled => {}
        Versioning::Suspended => problems.push((
            codes::LB1117,
            format!("{store} has its versioning suspended, so that each write destroys what was there"),
        )),
        Versioning::Never => {
            return Err(StepError::permanent(codes::LB1117, format!("{store} has never kept versions"))
                .help("restore from a backup of it; `lifeboat explain LB1117` tells how versions are kept from now on"));
        }
    }
    let mut warnings = Vec::new();
    match store.forgets_after_days() {
        Ok(None) => {}
        Ok(Some(days)) => {
            let kept_since = now - SignedDuration::from_hours(24 * i64::from(days));
            if params.at < kept_since {
                problems.push((
                    codes::LB1118,
                    format!(
                        "{store} forgets old versions after {days} days, and {} is before that",
                        params.at
                    ),
                ));
            }
        }
        // Reading the rules is a right of its own.
        Err(error) => warnings.push(format!("not checked for how long versions are kept: {}", error.message)),
    }
    match (params.incomplete_history, problems.first()) {
        (History::Refuse, Some((code, problem))) => Err(StepError::permanent(*code, problem.clone()).help(
            "choose a later moment, or accept what is left with `incomplete_history: accept`; nothing was touched",
        )),
        _ => {
            warnings.extend(problems.into_iter().map(|(_, problem)| problem));
            Ok(warnings)
        }
    }
}

fn refuse_empty(store: &Versioned, params: &Params, chosen: &Chosen) -> Result<(), StepError> {
    if params.allow_empty || chosen.decisions.iter().any(|decision| decision.wanted.is_some()) {
        return Ok(());
    }
    Err(StepError::permanent(
        codes::LB1121,
        format!("{store} held no object just before {} ({} versions listed)", params.at, chosen.versions),
    )
    .help("is it the right bucket and prefix? If it was empty indeed, give the step `allow_empty: true`"))
}

/// Takes out what must be read and lies in an archive, or refuses all of it.
pub(super) fn without_archived(
    params: &Params,
    decisions: Vec<Decision>,
    (is_read, skipped): (fn(&Decision) -> bool, &mut Vec<String>),
) -> Result<Vec<Decision>, StepError> {
    let is_archived = |decision: &Decision| {
        is_read(decision) && decision.wanted.as_ref().is_some_and(|wanted| wanted.stored.archived)
    };
    let (archived, rest): (Vec<_>, Vec<_>) = decisions.into_iter().partition(is_archived);
    let named: Vec<_> = archived
        .iter()
        .map(|decision| format!("`{}` is in an archive", decision.name.escape_debug()))
        .collect();
    if !named.is_empty() && params.archived == Choice::Refuse {
        let message = format!("{} objects lie in an archive and cannot be read at once", named.len());
        return Err(listed(StepError::permanent(codes::LB1116, message), named)
            .help("request them with `aws s3api restore-object` and run the step again, or give it `archived: skip`"));
    }
    skipped.extend(named);
    Ok(rest)
}

/// Adds the first of many to an error.
pub(super) fn listed(mut error: StepError, all: Vec<String>) -> StepError {
    const SHOWN: usize = 20;
    let more = all.len().saturating_sub(SHOWN);
    error.causes = all.into_iter().take(SHOWN).collect();
    if more > 0 {
        error.causes.push(format!("and {more} more"));
    }
    error
}

fn done(params: &Params, counts: Counts, warnings: Vec<String>) -> Done {
    let Value::Object(mut outputs) = json!({
        "objects": counts.objects,
        "bytes": counts.bytes,
        "copied": counts.copied,
        "deleted": counts.deleted,
        "undeleted": counts.undeleted,
        "unchanged": counts.unchanged,
        "absent": counts.absent,
        "skipped": counts.skipped,
    }) else {
        unreachable!("an object was written")
    };
    if let Some(previous) = counts.previous {
        outputs.insert("previous".to_owned(), json!(previous));
    }
    let point = RecoveryPoint {
        resource: params.store.clone(),
        time: params.at.to_string(),
        position: None,
        method: "object versions".into(),
        confidence: Confidence::Measured,
    };
    // Counting is no recovery.
    let recovery_points = if params.dry_run { Vec::new() } else { vec![point] };
    Done { outputs, warnings, checks: counts.checks, recovery_points, ..Done::default() }
}
