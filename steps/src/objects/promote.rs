use async_trait::async_trait;
use jiff::Timestamp;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::model::evidence::Check;
use lifeboat_engine::resource::ResourceKind;
use lifeboat_engine::step::{Effect, KindSpec, ParamProblem, Preview, StepContext, StepError, StepKind};
use lifeboat_engine::value::{Field, Type};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::choose::Chooser;
use super::{check_key, outputs};
use crate::store::versions::{Entry, Order, Versioned};
use crate::store::{Store, blocking, codes};

/// Makes an older version of an object the current one.
#[derive(Debug)]
pub(super) struct PromoteVersion;

#[derive(Clone, Debug, Deserialize)]
struct Params {
    store: String,
    key: String,
    version: Option<String>,
    at: Option<Timestamp>,
}

const DOC: &str = "\
Copies one version to the top of its object within the server, with all that it carries. No version is removed, so that \
what was current stays below it; `previous` names it, and promotes it again if this was a mistake. The version is named by \
its id, or by a moment: what was current just before `at`. If it is on top already, nothing is done. Afterwards the \
versions are listed again and the top is compared by size and tag.

Refused: a version that does not exist, a deletion mark, a version in an archive, a store without versions.";

#[async_trait]
impl StepKind for PromoteVersion {
    fn spec(&self) -> KindSpec {
        let mut spec = KindSpec::new(
            "store.promote_version",
            "Makes an older version of an object the current one.",
            Effect::Idempotent,
        )
        .doc(DOC)
        .param(Field::required("store", Type::writes(ResourceKind::Store), "The bucket."))
        .param(Field::required("key", Type::String, "The name of the object, below the store's prefix."))
        .param(Field::optional("version", Type::String, "The id of the version."))
        .param(Field::optional(
            "at",
            Type::Timestamp,
            "Instead of an id: what was current just before this moment.",
        ))
        .output("promoted", Type::String, "The id of the version that was copied.")
        .output("version", Type::String, "The id of the version that is current now.")
        .output("bytes", Type::Integer, "Its size.")
        .output("modified", Type::Timestamp, "When the version that was copied was written.")
        .output("changed", Type::Boolean, "False if it was on top already.")
        .destroys("what is current under the name; it stays as an older version");
        spec.outputs.push(Field::optional(
            "previous",
            Type::String,
            "The id of what was on top before, a version or a deletion mark.",
        ));
        spec
    }

    fn check(&self, with: &Map<String, Value>) -> Vec<ParamProblem> {
        if !(with.contains_key("version") && with.contains_key("at")) {
            return Vec::new();
        }
        vec![ParamProblem {
            param: "at".to_owned(),
            message: "`version` and `at` both choose a version".to_owned(),
            help: Some("keep one of them".to_owned()),
        }]
    }

    async fn preview(&self, ctx: &StepContext) -> Result<Preview, StepError> {
        let params: Params = ctx.params()?;
        let store = super::url(ctx, &params.store)?;
        let which = match (&params.version, params.at) {
            (Some(version), _) => format!("version {version}"),
            (None, Some(at)) => format!("what was current just before {at}"),
            (None, None) => return Err(unchosen()),
        };
        Ok(Preview {
            actions: vec![format!("copy {which} of `{}` in {store} to its top", params.key)],
            destroys: vec![format!("`{}` in {store} as it is; it stays as an older version", params.key)],
        })
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let params: Params = ctx.params()?;
        if params.version.is_some() == params.at.is_some() {
            return Err(unchosen());
        }
        check_key(&params.key)?;
        let store = Store::of(ctx, &params.store).await?.versioned()?;
        let (of, wanted) = (store.clone(), params.clone());
        let (chosen, top) = blocking(move || choose(&of, &wanted)).await?;
        let is_top = is_same(&chosen, &top);
        let (at, name) = (store.clone(), params.key.clone());
        let now = blocking(move || {
            if !is_top {
                let size = chosen.object.as_ref().map_or(0, |object| object.size);
                at.copy((&name, &chosen.id, size), &at)?;
            }
            let entries = entries(&at, &name)?;
            let now = entries.into_iter().next().filter(|now| is_copy(&chosen, now));
            now.map(|now| (chosen, now)).ok_or_else(|| {
                let message =
                    format!("`{}` in {at} is not the version that was promoted", name.escape_debug());
                StepError::transient(codes::LB1122, message)
                    .help("something else writes there: stop it, then run the step again")
            })
        })
        .await?;
        Ok(done(&params, (&now.0, &now.1), (!is_top).then_some(&top)))
    }
}

fn unchosen() -> StepError {
    StepError::permanent(codes::LB1157, "a promotion needs one version: `version` or `at`")
        .help("give the id of a version, which `aws s3api list-object-versions` shows, or a moment")
}

/// Lists what there is and was under one name, the newest first.
fn entries(store: &Versioned, name: &str) -> Result<Vec<Entry>, StepError> {
    let mut found = Vec::new();
    store.each_version(name, |page| {
        found.extend(page.into_iter().filter(|entry| entry.name == name));
        Ok(())
    })?;
    if store.order() == Order::Unknown {
        found.sort_by_key(|entry| std::cmp::Reverse((entry.latest, entry.modified)));
    }
    Ok(found)
}

/// Returns the version that is wanted, and what is on top.
fn choose(store: &Versioned, params: &Params) -> Result<(Entry, Entry), StepError> {
    let name = params.key.escape_debug().to_string();
    let found = entries(store, &params.key)?;
    let refuse = |message: String| {
        let known = found.iter().map(|entry| {
            let what =
                entry.object.as_ref().map_or("deleted".to_owned(), |object| format!("{} bytes", object.size));
            format!("{} of {}: {what}", entry.id, entry.modified)
        });
        super::restore::listed(StepError::permanent(codes::LB1157, message), known.collect())
    };
    let Some(top) = found.first() else {
        return Err(refuse(format!("`{name}` in {store} has no version at all")).help(
            "is it the right name? `store.list` shows what is there; a bucket forgets versions by its rules",
        ));
    };
    let id = match (&params.version, params.at) {
        (Some(id), _) => id.clone(),
        (None, at) => {
            let mut chooser = Chooser::new(at.unwrap_or_else(Timestamp::now), Order::Promised);
            chooser.page(found.clone());
            let decided = chooser.finish().decisions.into_iter().next().and_then(|decision| decision.wanted);
            let wanted = decided.ok_or_else(|| {
                refuse(format!("`{name}` in {store} was not there at that moment"))
                    .help("choose one of these versions")
            })?;
            wanted.id
        }
    };
    let chosen = found.iter().find(|entry| entry.id == id);
    let chosen = chosen.ok_or_else(|| {
        refuse(format!("`{name}` in {store} has no version {id}")).help("choose one of these versions")
    })?;
    match &chosen.object {
        None => Err(refuse(format!("{id} is no version of `{name}` but the mark of its deletion"))
            .help("choose one of these versions")),
        Some(object) if object.archived => Err(StepError::permanent(
            codes::LB1116,
            format!("version {id} of `{name}` in {store} lies in an archive"),
        )
        .help("request it with `aws s3api restore-object`, and run the step again when it is there")),
        Some(_) => Ok((chosen.clone(), top.clone())),
    }
}

/// Says whether two are the same content beyond doubt.
fn is_same(wanted: &Entry, top: &Entry) -> bool {
    let (Some(one), Some(other)) = (&wanted.object, &top.object) else { return false };
    wanted.id == top.id || (one.size == other.size && one.etag.is_some() && one.etag == other.etag)
}

/// Says whether what is on top can be the copy that was made. The tags of parts are not those of the whole.
fn is_copy(wanted: &Entry, top: &Entry) -> bool {
    let (Some(one), Some(other)) = (&wanted.object, &top.object) else { return false };
    let of_parts = |tag: &Option<String>| tag.as_deref().is_none_or(|tag| tag.contains('-'));
    is_same(wanted, top) || (one.size == other.size && (of_parts(&one.etag) || of_parts(&other.etag)))
}

fn done(params: &Params, (chosen, now): (&Entry, &Entry), previous: Option<&Entry>) -> Done {
    let size = chosen.object.as_ref().map_or(0, |object| object.size);
    let mut outputs = outputs(json!({
        "promoted": chosen.id, "version": now.id, "bytes": size, "modified": chosen.modified.to_string(),
        "changed": previous.is_some(),
    }));
    if let Some(previous) = previous {
        outputs.insert("previous".to_owned(), json!(previous.id));
    }
    let check = Check {
        name: format!("size of `{}`, on top again", params.key),
        expected: size.to_string(),
        actual: now.object.as_ref().map_or(0, |object| object.size).to_string(),
        passed: true,
    };
    Done { outputs, checks: vec![check], ..Done::default() }
}
