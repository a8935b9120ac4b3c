use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use lifeboat_engine::model::event::Done;
use lifeboat_engine::model::evidence::Check;
use lifeboat_engine::report::human;
use lifeboat_engine::resource::ResourceKind;
use lifeboat_engine::step::{Effect, KindSpec, StepContext, StepError, StepKind};
use lifeboat_engine::value::{Field, Span, Type};
use serde::Deserialize;
use serde_json::{Value, json};

use super::restore::listed;
use super::{glob, outputs, prefix};
use crate::probe::bytes;
use crate::store::named::Current;
use crate::store::{Store, blocking, codes};

/// Lists objects.
#[derive(Debug)]
pub(super) struct List;

/// Finds the newest object.
#[derive(Debug)]
pub(super) struct Latest;

#[derive(Clone, Debug, Deserialize)]
struct Params {
    store: String,
    prefix: Option<String>,
    pattern: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
struct OfList {
    #[serde(flatten)]
    which: Params,
    limit: usize,
}

#[derive(Clone, Debug, Deserialize)]
struct OfLatest {
    #[serde(flatten)]
    which: Params,
    before: Option<Timestamp>,
    max_age: Option<Span>,
    min_size: u64,
}

fn which(spec: KindSpec) -> KindSpec {
    spec.param(Field::required("store", Type::reads(ResourceKind::Store), "Which store."))
        .param(Field::optional("prefix", Type::String, "Only what lies below this, in whole segments."))
        .param(Field::optional(
            "pattern",
            Type::String,
            "Only names like this, below the prefix: `*` stands for any characters and `?` for one.",
        ))
}

#[async_trait]
impl StepKind for List {
    fn spec(&self) -> KindSpec {
        let object = Type::Object(vec![
            Field::required("key", Type::String, "Its name."),
            Field::required("size", Type::Integer, "Its size in bytes."),
            Field::optional("modified", Type::Timestamp, "When it got its content."),
        ]);
        let mut spec = which(
            KindSpec::new("store.list", "Lists the objects of a store.", Effect::Read).doc(
                "Counts all objects that fit and names the first `limit` of them, sorted by name. A prefix is whole \
                 segments: `backup/2026` does not match `backup/2026-old`. No object is no error here.",
            ),
        )
        .param(Field::defaulted("limit", Type::Integer, 1000, "How many are named."))
        .output("count", Type::Integer, "How many objects fit.")
        .output("bytes", Type::Integer, "Their size.")
        .output("objects", Type::list(object), "The first of them.");
        spec.outputs.push(Field::optional(
            "newest",
            Type::Timestamp,
            "When the newest of them got its content.",
        ));
        spec.outputs.push(Field::optional(
            "oldest",
            Type::Timestamp,
            "When the oldest of them got its content.",
        ));
        spec
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let params: OfList = ctx.params()?;
        let found = find(ctx, &params.which).await?;
        let shown: Vec<_> = found.iter().take(params.limit).map(described).collect();
        let times = || found.iter().filter_map(|object| object.modified);
        let mut outputs = outputs(json!({
            "count": found.len(), "bytes": found.iter().map(|object| object.size).sum::<u64>(), "objects": shown,
        }));
        if let (Some(newest), Some(oldest)) = (times().max(), times().min()) {
            outputs.insert("newest".to_owned(), json!(newest.to_string()));
            outputs.insert("oldest".to_owned(), json!(oldest.to_string()));
        }
        Ok(Done { outputs, ..Done::default() })
    }
}

fn described(object: &Current) -> Value {
    let mut described = outputs(json!({ "key": object.name, "size": object.size }));
    if let Some(modified) = object.modified {
        described.insert("modified".to_owned(), json!(modified.to_string()));
    }
    Value::Object(described)
}

/// Lists what fits, by name.
async fn find(ctx: &StepContext, params: &Params) -> Result<Vec<Current>, StepError> {
    let store = Store::of(ctx, &params.store).await?;
    let (below, pattern) = (prefix(params.prefix.as_deref())?, params.pattern.clone());
    blocking(move || {
        let skipped = below.as_ref().map_or(0, |below| below.as_str().len() + 1);
        let mut found = store.everything(below.as_ref())?;
        if let Some(pattern) = &pattern {
            found.retain(|object| object.name.get(skipped..).is_some_and(|name| glob::fits(pattern, name)));
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    })
    .await
}

#[async_trait]
impl StepKind for Latest {
    fn spec(&self) -> KindSpec {
        which(
            KindSpec::new("store.latest", "Finds the newest object of a store.", Effect::Read).doc(
                "The newest object that fits, by the time the store gives it; of two with the same time, the one whose name \
                 comes last. The time of an upload in parts is when it began. It fails if there is none, if the newest is older \
                 than `max_age`, or smaller than `min_size`: an empty dump is the newest one, too. With `before`, what is \
                 newer does not count.",
            ),
        )
        .param(Field::optional("before", Type::Timestamp, "Only objects from before this moment."))
        .param(Field::optional("max_age", Type::Duration, "How old it may be, seen from `before` or from now."))
        .param(Field::defaulted("min_size", Type::Integer, 1, "How many bytes it must have."))
        .output("key", Type::String, "Its name.")
        .output("bytes", Type::Integer, "Its size.")
        .output("modified", Type::Timestamp, "When it got its content.")
        .output("age_seconds", Type::Integer, "How old it is, seen from `before` or from now.")
        .output("count", Type::Integer, "How many objects fit.")
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let params: OfLatest = ctx.params()?;
        let found = find(ctx, &params.which).await?;
        let at = params.before.unwrap_or_else(Timestamp::now);
        let fits = |object: &&Current| {
            let is_before = |before| object.modified.is_some_and(|modified| modified < before);
            !object.name.ends_with('/') && params.before.is_none_or(is_before)
        };
        let newest =
            found.iter().filter(fits).max_by(|a, b| (a.modified, &a.name).cmp(&(b.modified, &b.name)));
        let (newest, modified) = newest
            .and_then(|newest| Some((newest, newest.modified?)))
            .ok_or_else(|| none(&params, &found))?;
        let since = at.duration_since(modified).max(SignedDuration::ZERO);
        let checks = judge(&params, newest, since);
        if checks.iter().any(|check| !check.passed) {
            let message = format!(
                "the newest object of `{}`, `{}`, is {} old and has {}",
                params.which.store,
                newest.name.escape_debug(),
                in_words(since),
                bytes(newest.size)
            );
            return Err(StepError::permanent(codes::LB1156, message)
                .help("find out why nothing newer or whole was written; if it will do, say so with `max_age` or `min_size`")
                .checks(checks));
        }
        let outputs = outputs(json!({
            "key": newest.name, "bytes": newest.size, "modified": modified.to_string(),
            "age_seconds": since.as_secs(), "count": found.len(),
        }));
        Ok(Done { outputs, checks, ..Done::default() })
    }
}

fn judge(params: &OfLatest, newest: &Current, since: SignedDuration) -> Vec<Check> {
    let mut checks = vec![Check {
        name: "bytes of the newest object".to_owned(),
        expected: format!("at least {}", params.min_size),
        actual: newest.size.to_string(),
        passed: newest.size >= params.min_size,
    }];
    if let Some(most) = params.max_age {
        checks.push(Check {
            name: "age of the newest object".to_owned(),
            expected: format!(
                "at most {}",
                human::duration(i64::try_from(most.0.as_millis()).unwrap_or(i64::MAX))
            ),
            actual: in_words(since),
            passed: since.unsigned_abs() <= most.0,
        });
    }
    checks
}

fn in_words(time: SignedDuration) -> String {
    human::duration(i64::try_from(time.as_millis()).unwrap_or(i64::MAX))
}

fn none(params: &OfLatest, found: &[Current]) -> StepError {
    let which = &params.which;
    let like = which.pattern.as_ref().map_or(String::new(), |pattern| format!(" like `{pattern}`"));
    let below = which.prefix.as_ref().map_or(String::new(), |below| format!(" below `{below}`"));
    let before = params.before.map_or(String::new(), |before| format!(" from before {before}"));
    let message = format!("the store `{}` has no object{like}{below}{before}", which.store);
    let names = found.iter().rev().map(|object| format!("`{}`", object.name.escape_debug())).collect();
    listed(StepError::permanent(codes::LB1155, message), names)
        .help("is it the right prefix and pattern? `store.list` shows what is there")
}
