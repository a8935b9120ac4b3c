//! What the backups of several families have in common: a label of their own, and the choice by time.

use jiff::{SignedDuration, Timestamp};
use lifeboat_engine::code::Code;
use lifeboat_engine::step::{StepContext, StepError};
use serde_json::Value;

use crate::store::{self, BackupKind, Catalogue, Marker, Owner, Partial, Store, blocking};

/// What an attempt records, so that a later one finds the backup that it has begun or published.
const LABEL: &str = "label";
/// The key of a marker's details that names the resource the backup was taken of.
pub(crate) const RESOURCE: &str = "resource";

/// How the making of a backup begins.
pub(crate) enum Begun {
    /// An earlier attempt of this step has published it.
    Published(Box<Marker>),
    New(Partial),
}

/// Begins a backup under a label that the step records first, or finds the one that it has published.
pub(crate) async fn begin(ctx: &StepContext, store: &Store, kind: BackupKind) -> Result<Begun, StepError> {
    /// Two steps of one run may begin in the same second: the later one takes the next free second.
    const TRIES: i64 = 60;
    let recorded = ctx.recorded(LABEL).and_then(Value::as_str).map(ToOwned::to_owned);
    let now = Timestamp::now();
    let at = |later| now.checked_add(SignedDuration::from_secs(later)).unwrap_or(now);
    let new = (0..TRIES).map(|later| store::new_label(at(later), &ctx.info.run));
    let mut taken = None;
    for label in recorded.into_iter().chain(new) {
        if let Some(marker) = published(ctx, store, kind, label.clone()).await? {
            return Ok(Begun::Published(Box::new(marker)));
        }
        ctx.record(LABEL, label.clone()).await?;
        let (store, owner) = (store.clone(), Owner::of(&ctx.info));
        match blocking(move || store.begin(kind, &label, &owner)).await {
            Ok(partial) => return Ok(Begun::New(partial)),
            Err(error) if error.code == store::codes::LB1112 || error.code == store::codes::LB1107 => {
                taken = Some(error);
            }
            Err(error) => return Err(error),
        }
    }
    Err(taken.expect("the loop is left with the error of its last label"))
}

/// Returns the backup of a label if this very step has published it.
async fn published(
    ctx: &StepContext,
    store: &Store,
    kind: BackupKind,
    label: String,
) -> Result<Option<Marker>, StepError> {
    let store = store.clone();
    match blocking(move || store::read_marker(&store, kind, &label)).await {
        Ok(marker) => Ok((marker.run == ctx.info.run && marker.step == ctx.info.step).then_some(marker)),
        Err(error) if error.code == store::codes::LB1104 => Ok(None),
        Err(error) => Err(error),
    }
}

/// Which backup is wanted.
pub(crate) struct Wanted {
    pub(crate) kind: BackupKind,
    /// The name of the store's resource, for errors.
    pub(crate) store: String,
    pub(crate) label: Option<String>,
    /// It was finished before this moment.
    pub(crate) before: Option<Timestamp>,
    /// The resource that it was taken of, if the runbook says so.
    pub(crate) source: Option<String>,
    /// The resource that is restored: chosen among several sources if the runbook names none.
    pub(crate) target: String,
    /// The code of the error if none fits.
    pub(crate) none: Code,
}

/// Returns the backup of that label, or the newest one that fits.
pub(crate) async fn choose(store: &Store, wanted: Wanted) -> Result<Marker, StepError> {
    let store = store.clone();
    blocking(move || find(&store, &wanted)).await
}

fn find(store: &Store, wanted: &Wanted) -> Result<Marker, StepError> {
    if let Some(label) = &wanted.label {
        return store::read_marker(store, wanted.kind, label);
    }
    let found = store::catalogue(store, wanted.kind)?;
    fitting(&found, wanted).map(|mut fitting| fitting.remove(0))
}

/// Returns all backups that fit, the newest first; at least one.
pub(crate) fn fitting(found: &Catalogue, wanted: &Wanted) -> Result<Vec<Marker>, StepError> {
    let source = source(found, wanted)?;
    let fits = |marker: &&Marker| {
        source.as_deref().is_none_or(|source| resource_of(marker) == source)
            && wanted.before.is_none_or(|before| marker.finished_at < before)
    };
    let fitting: Vec<Marker> = found.complete.iter().filter(fits).cloned().collect();
    if fitting.is_empty() { Err(none(found, wanted, source.as_deref())) } else { Ok(fitting) }
}

/// Says which resource the backup must be of; `None` if all in the store are of one.
fn source(found: &Catalogue, wanted: &Wanted) -> Result<Option<String>, StepError> {
    if let Some(source) = &wanted.source {
        return Ok(Some(source.clone()));
    }
    let mut sources: Vec<_> = found.complete.iter().map(resource_of).collect();
    sources.sort_unstable();
    sources.dedup();
    if sources.len() <= 1 {
        return Ok(None);
    }
    if sources.contains(&wanted.target.as_str()) {
        return Ok(Some(wanted.target.clone()));
    }
    let named =
        if wanted.target.is_empty() { String::new() } else { format!(", none of them `{}`", wanted.target) };
    let message = format!(
        "the store `{}` has {} backups of several resources ({}){named}",
        wanted.store,
        wanted.kind,
        sources.join(", "),
    );
    Err(StepError::permanent(wanted.none, message).help("say with `source` which of them to restore"))
}

/// Returns the resource that a backup was taken of.
pub(crate) fn resource_of(marker: &Marker) -> &str {
    marker.details.get(RESOURCE).and_then(Value::as_str).unwrap_or_default()
}

fn none(found: &Catalogue, wanted: &Wanted, source: Option<&str>) -> StepError {
    const SHOWN: usize = 20;
    let of = source.map_or(String::new(), |source| format!(" of `{source}`"));
    let before = wanted.before.map_or(String::new(), |before| format!(" that was finished before {before}"));
    let message = format!("the store `{}` has no {} backup{of}{before}", wanted.store, wanted.kind);
    let complete = found.complete.iter().map(|marker| {
        format!("`{}` of `{}` was finished at {}", marker.label, resource_of(marker), marker.finished_at)
    });
    let rejected = found.rejected.iter().map(|rejected| format!("`{}`: {}", rejected.label, rejected.reason));
    let mut error = StepError::permanent(wanted.none, message)
        .help("choose an earlier target time, or name a backup of the store with `backup`");
    error.causes = complete.chain(rejected).take(SHOWN).collect();
    error
}
