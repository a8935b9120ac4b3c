//! Restores into a bucket: in place, or into an empty one of the same server.

use std::collections::{BTreeMap, BTreeSet};

use lifeboat_engine::model::evidence::Check;
use lifeboat_engine::step::{StepContext, StepError};

use super::choose::{Action, Chosen, Decision, Wanted};
use super::restore::{Counts, Params, listed as named, without_archived};
use crate::store::named::Current;
use crate::store::parallel::each;
use crate::store::versions::Versioned;
use crate::store::{Meter, Store, blocking, codes};

/// Requests at once: each waits for the server far longer than it works.
const AT_ONCE: usize = 8;

/// An attempt notes that it is about to change the target, so that a later one knows whose objects it finds there.
const BEGUN: &str = "begun";

/// Restores what was chosen into the store `into`.
pub(super) async fn restore(
    ctx: &StepContext,
    source: &Versioned,
    params: &Params,
    chosen: Chosen,
) -> Result<Counts, StepError> {
    let into = params.into.as_deref().unwrap_or_default();
    let target = Store::of(ctx, into).await?;
    let again = ctx.recorded(BEGUN).is_some();
    let (versioned, place) = look(source, target.clone(), again).await?;
    let mut counts = Counts { absent: absent(&chosen.decisions), ..Counts::default() };
    let is_read: fn(&Decision) -> bool = match place {
        Place::InPlace => |decision| decision.action == Action::Copy,
        Place::Other => |_| true,
    };
    let listed: BTreeSet<_> = chosen.decisions.iter().map(|decision| decision.name.clone()).collect();
    let decisions = without_archived(params, chosen.decisions, (is_read, &mut counts.skipped))?;
    let work: Vec<_> = match place {
        Place::InPlace => {
            decisions.iter().filter(|decision| decision.action != Action::Nothing).cloned().collect()
        }
        Place::Other => decisions.iter().filter(|decision| decision.wanted.is_some()).cloned().collect(),
    };
    count(&mut counts, &decisions, place);
    if params.dry_run {
        return Ok(counts);
    }
    ctx.record(BEGUN, true).await?;
    let meter = Meter::bytes(ctx, Some(bytes_of(&work)), "copying within the server");
    let (from, to) = (source.clone(), versioned.clone());
    blocking(move || each(&work, AT_ONCE, |decision| apply(place, (&from, &to), decision, &meter))).await?;
    let checked = versioned;
    counts.checks = blocking(move || match place {
        Place::InPlace => compare_in_place(&checked, &listed, &decisions),
        Place::Other => compare_copies(&target, &decisions),
    })
    .await?;
    Ok(counts)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    InPlace,
    Other,
}

/// Finds out what the target is, and refuses one that is not free.
async fn look(source: &Versioned, target: Store, again: bool) -> Result<(Versioned, Place), StepError> {
    let versioned = target.versioned().map_err(|error| {
        error.help("`into` is a bucket; restore into a directory with `to: /the/directory`")
    })?;
    if source.is_same(&versioned) {
        return Ok((versioned, Place::InPlace));
    }
    if !source.is_beside(&versioned) {
        return Err(not_free(format!(
            "{source} and {versioned} are on different servers, which cannot copy to each other"
        ))
        .help("restore into a directory with `to`"));
    }
    if source.overlaps(&versioned) {
        return Err(not_free(format!("{source} and {versioned} lie within each other"))
            .help("give the copy a prefix or a bucket of its own"));
    }
    let there = blocking(move || target.everything(None)).await?;
    match there.first() {
        Some(found) if !again => Err(not_free(format!(
            "{versioned} is not empty: it has {} objects, among them `{}`",
            there.len(),
            found.name.escape_debug()
        ))
        .help("give the copy a prefix or a bucket of its own; nothing was touched")),
        _ => Ok((versioned, Place::Other)),
    }
}

fn not_free(message: String) -> StepError {
    StepError::permanent(codes::LB1120, message)
}

fn absent(decisions: &[Decision]) -> u64 {
    decisions.iter().filter(|decision| decision.wanted.is_none()).count() as u64
}

fn bytes_of(decisions: &[Decision]) -> u64 {
    decisions.iter().filter_map(|decision| decision.wanted.as_ref()).map(|wanted| wanted.stored.size).sum()
}

fn count(counts: &mut Counts, decisions: &[Decision], place: Place) {
    let number = |wanted: fn(&Decision) -> bool| decisions.iter().filter(|it| wanted(it)).count() as u64;
    counts.objects = number(|it| it.wanted.is_some());
    counts.bytes = bytes_of(decisions);
    if place == Place::Other {
        counts.copied = counts.objects;
        return;
    }
    counts.copied = number(|it| it.action == Action::Copy);
    counts.deleted = number(|it| it.action == Action::Delete);
    counts.undeleted = number(|it| matches!(it.action, Action::Undelete(_)));
    counts.unchanged = number(|it| it.action == Action::Nothing && it.wanted.is_some());
}

fn apply(
    place: Place,
    (from, to): (&Versioned, &Versioned),
    decision: &Decision,
    meter: &Meter,
) -> Result<(), StepError> {
    meter.advance(0)?;
    let copy = || match &decision.wanted {
        Some(wanted) => from.copy((&decision.name, &wanted.id, wanted.stored.size), to),
        None => Ok(()),
    };
    match (place, &decision.action) {
        (Place::Other, _) | (Place::InPlace, Action::Copy) => copy()?,
        (Place::InPlace, Action::Delete) => to.mark_deleted(&decision.name)?,
        (Place::InPlace, Action::Undelete(marks)) => {
            marks.iter().try_for_each(|id| to.remove_mark(&decision.name, id))?;
        }
        (Place::InPlace, Action::Nothing) => {}
    }
    meter.advance(decision.wanted.as_ref().map_or(0, |wanted| wanted.stored.size))
}

/// Lists again and compares the top of every name with what it should be.
fn compare_in_place(
    store: &Versioned,
    listed: &BTreeSet<String>,
    decisions: &[Decision],
) -> Result<Vec<Check>, StepError> {
    let expected: BTreeMap<&str, Option<&Wanted>> =
        decisions.iter().map(|decision| (decision.name.as_str(), decision.wanted.as_ref())).collect();
    let mut latest = BTreeMap::new();
    store.each_version("", |entries| {
        for entry in entries.into_iter().filter(|entry| entry.latest) {
            latest.insert(entry.name, entry.object);
        }
        Ok(())
    })?;
    let mut wrong = Vec::new();
    for (name, top) in &latest {
        let is_right = match (expected.get(name.as_str()), top) {
            (Some(Some(wanted)), Some(top)) => is_same(wanted, top),
            (Some(None), None) => true,
            // Left out; or new since the list was made, and then it must be gone again.
            (None, top) => listed.contains(name) || top.is_none(),
            _ => false,
        };
        if !is_right {
            wrong.push(format!("`{}`", name.escape_debug()));
        }
    }
    wrong.extend(
        expected
            .iter()
            .filter(|(name, wanted)| wanted.is_some() && !latest.contains_key(**name))
            .map(|(name, _)| format!("`{}`", name.escape_debug())),
    );
    verdict(decisions.len(), wrong)
}

/// Compares names and sizes of what was copied.
fn compare_copies(target: &Store, decisions: &[Decision]) -> Result<Vec<Check>, StepError> {
    let found = target.everything(None)?;
    let found: BTreeMap<_, _> =
        found.iter().map(|Current { name, size, .. }| (name.as_str(), *size)).collect();
    let wanted: BTreeMap<_, _> = decisions
        .iter()
        .filter_map(|decision| Some((decision.name.as_str(), decision.wanted.as_ref()?.stored.size)))
        .collect();
    let missing = wanted.iter().filter(|(name, size)| found.get(*name) != Some(size));
    let extra = found.keys().filter(|name| !wanted.contains_key(*name));
    let wrong = missing.map(|(name, _)| name).chain(extra).map(|name| format!("`{}`", name.escape_debug()));
    verdict(wanted.len(), wrong.collect())
}

/// The tags of parts are not those of the whole, so that they can only tell that two are the same.
fn is_same(wanted: &Wanted, top: &crate::store::versions::Stored) -> bool {
    let tag_of_parts = |tag: &Option<String>| tag.as_deref().is_some_and(|tag| tag.contains('-'));
    wanted.stored.size == top.size
        && (wanted.stored.etag == top.etag || tag_of_parts(&wanted.stored.etag) || tag_of_parts(&top.etag))
}

fn verdict(all: usize, wrong: Vec<String>) -> Result<Vec<Check>, StepError> {
    let check = Check {
        name: "names that are as they were".to_owned(),
        expected: all.to_string(),
        actual: all.saturating_sub(wrong.len()).to_string(),
        passed: wrong.is_empty(),
    };
    if wrong.is_empty() {
        return Ok(vec![check]);
    }
    let message = format!("{} names are not what they were at that moment", wrong.len());
    Err(named(StepError::transient(codes::LB1122, message), wrong)
        .help("something else writes there: stop it, then run the step again")
        .checks(vec![check]))
}
