//! What has to be done, found out before anything is touched.

use lifeboat_engine::step::StepError;

use super::super::names::{Case, unusable};
use super::super::restore::listed;
use super::compare::is_same;
use super::kind::{Extra, Links, Params};
use super::side::{Listing, Side};
use crate::store::named::Current;
use crate::store::parallel::each;
use crate::store::{Meter, codes};

/// Comparing reads files and waits for servers.
const COMPARED_AT_ONCE: usize = 8;

/// What has to be done.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Names with what they are at the source, in order.
    pub(super) copy: Vec<(String, Current)>,
    pub(super) unchanged: u64,
    pub(super) extra: Vec<(String, Current)>,
    pub(super) objects: u64,
    pub(super) bytes: u64,
    pub(super) skipped: Vec<String>,
}

impl Plan {
    pub(super) fn bytes_to_copy(&self) -> u64 {
        self.copy.iter().map(|(_, object)| object.size).sum()
    }
}

/// Lists both places and compares them.
pub(super) fn plan(
    (from, to): (&Side, &Side),
    params: &Params,
    case: Case,
    meter: &Meter,
) -> Result<Plan, StepError> {
    let (source, target) = (from.list()?, to.list()?);
    let mut plan = Plan { objects: source.objects.len() as u64, ..Plan::default() };
    plan.bytes = source.objects.values().map(|object| object.size).sum();
    if source.objects.is_empty() && !params.allow_empty {
        return Err(StepError::permanent(codes::LB1152, format!("{from} is empty"))
            .help("is it the right place, and is it mounted? If it is empty indeed, give the step `allow_empty: true`"));
    }
    links(from, &source, params, &mut plan)?;
    names(to, &source, case)?;
    in_the_way(to, (&source, &target))?;
    archived(&source)?;
    let mut compared = Vec::new();
    for (name, object) in source.objects {
        match target.objects.get(&name) {
            Some(other) if other.size == object.size => compared.push((name, object, other)),
            _ => plan.copy.push((name, object)),
        }
    }
    let differ = std::sync::Mutex::new(Vec::new());
    each(&compared, COMPARED_AT_ONCE, |(name, object, other)| {
        if !is_same((from, object), (to, other), meter)? {
            let mut differ = differ.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            differ.push((name.clone(), object.clone()));
        }
        meter.advance(1)
    })?;
    let differ = differ.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    plan.unchanged = (compared.len() - differ.len()) as u64;
    let known: std::collections::BTreeSet<String> = compared
        .into_iter()
        .map(|(name, ..)| name)
        .chain(plan.copy.iter().map(|(name, _)| name.clone()))
        .collect();
    plan.copy.extend(differ);
    plan.copy.sort_by(|a, b| a.0.cmp(&b.0));
    plan.extra = target.objects.into_iter().filter(|(name, _)| !known.contains(name)).collect();
    extra(to, &plan, params)?;
    Ok(plan)
}

/// Links of a source are nothing that a store could hold.
fn links(from: &Side, source: &Listing, params: &Params, plan: &mut Plan) -> Result<(), StepError> {
    let named: Vec<_> =
        source.tree.odd.iter().map(|(name, why)| format!("`{}`: {why}", name.escape_debug())).collect();
    if !named.is_empty() && params.links == Links::Refuse {
        let message = format!("{} things in {from} cannot be objects", named.len());
        return Err(listed(StepError::permanent(codes::LB1119, message), named).help(
            "take them away, leave them out with `links: skip`, or back the directory up with `files.backup`, which \
             keeps links",
        ));
    }
    plan.skipped = named;
    Ok(())
}

/// Refuses names that the target cannot have.
fn names(to: &Side, source: &Listing, case: Case) -> Result<(), StepError> {
    let named: Vec<_> = match to {
        Side::Dir(_) => {
            let mut bad = unusable(source.objects.keys().map(String::as_str), case);
            bad.extend(
                source.objects.iter().filter(|(name, object)| name.ends_with('/') && object.size > 0).map(
                    |(name, _)| super::super::names::Unusable {
                        name: name.clone(),
                        why: "it has content and the name of a directory".to_owned(),
                    },
                ),
            );
            let ours = source.objects.keys().filter(|name| name.starts_with(super::super::tree::OURS));
            let ours = ours.map(|name| format!("`{}`: it is a name of Lifeboat's own", name.escape_debug()));
            bad.iter().map(|it| format!("`{}`: {}", it.name.escape_debug(), it.why)).chain(ours).collect()
        }
        Side::Store(part) => {
            source.objects.keys().filter_map(|name| part.key(name).err()).map(|error| error.message).collect()
        }
    };
    if named.is_empty() {
        return Ok(());
    }
    let message = format!("{} names of the source cannot be names in {to}", named.len());
    Err(listed(StepError::permanent(codes::LB1119, message), named)
        .help("nothing was written; rename them at the source, or copy another prefix"))
}

fn in_the_way(to: &Side, (source, target): (&Listing, &Listing)) -> Result<(), StepError> {
    let named = target.tree.in_the_way(source.objects.keys().map(String::as_str));
    if named.is_empty() {
        return Ok(());
    }
    let message = format!("{} things in {to} stand where files would be written", named.len());
    Err(listed(StepError::permanent(codes::LB1120, message), named)
        .help("nothing was written; move them away, or give the step an empty directory"))
}

fn archived(source: &Listing) -> Result<(), StepError> {
    let archived = source.objects.values().filter(|object| object.archived);
    let named: Vec<_> = archived.map(|object| format!("`{}`", object.name.escape_debug())).collect();
    if named.is_empty() {
        return Ok(());
    }
    let message = format!("{} objects lie in an archive and cannot be read at once", named.len());
    Err(listed(StepError::permanent(codes::LB1116, message), named)
        .help("request them with `aws s3api restore-object` and run the step again"))
}

/// Refuses to remove more than the runbook expects: a source that is not the right one would empty the target.
fn extra(to: &Side, plan: &Plan, params: &Params) -> Result<(), StepError> {
    let count = plan.extra.len() as u64;
    if params.extra == Extra::Keep || count <= params.max_removed {
        return Ok(());
    }
    let named = plan.extra.iter().map(|(name, _)| format!("`{}`", name.escape_debug())).collect();
    let message = format!(
        "{count} objects of {to} are not in the source, and at most {} may be removed",
        params.max_removed
    );
    Err(listed(StepError::permanent(codes::LB1153, message), named)
        .help("is it the right source? If so, give the step a larger `max_removed`; nothing was touched"))
}
