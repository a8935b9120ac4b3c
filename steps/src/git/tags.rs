//! `git.tags`: which releases there are.

use std::path::PathBuf;

use async_trait::async_trait;
use jiff::Timestamp;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::step::{Effect, KindSpec, ParamProblem, StepContext, StepError, StepKind};
use lifeboat_engine::value::{Field, Type};
use regex::Regex;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::codes;
use super::repository::{Repository, shown};

/// Lists tags.
#[derive(Debug)]
pub(super) struct Tags;

#[derive(Deserialize)]
struct Params {
    dir: PathBuf,
    pattern: Option<String>,
    sort: Sort,
    before: Option<Timestamp>,
    limit: u32,
    allow_none: bool,
    os_user: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Sort {
    Version,
    Date,
}

/// One tag with the commit that it stands for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Tag {
    name: String,
    commit: String,
    date: Timestamp,
}

const DOC: &str = "\
`pattern` is a regular expression that the whole name must match: `v\\d+(\\.\\d+)*` leaves release candidates out. Sorted
by `version`, `v1.10` is newer than `v1.9`, and `v2.0-rc1` older than `v2.0`. `date` is when an annotated tag was made, else
when its commit was; `before` leaves out what is not older than a moment. Tags that stand for no commit are left out with a
warning. It sees what the repository has: `git.checkout` fetches.

```yaml
- id: releases
  uses: git.tags
  with: { dir: /srv/shop, pattern: 'v\\d+(\\.\\d+)*', before: \"{{ incident.started_at }}\" }
- { id: code, uses: git.checkout, with: { dir: /srv/shop, tag: \"{{ steps.releases.newest }}\" } }
```";

const FORMAT: &str = "--format=%(refname:strip=2)%00%(objecttype)%00%(objectname)%00%(*objecttype)%00%(*objectname)%00\
                      %(creatordate:unix)%00";

#[async_trait]
impl StepKind for Tags {
    fn spec(&self) -> KindSpec {
        let tag = vec![
            Field::required("name", Type::String, "Its name."),
            Field::required("commit", Type::String, "The id of its commit."),
            Field::required("date", Type::Timestamp, "When it was made."),
        ];
        KindSpec::new("git.tags", "Lists tags, the newest first.", Effect::Read)
            .doc(DOC)
            .param(Field::required("dir", Type::Path, "The top directory of the work tree."))
            .param(Field::optional("pattern", Type::String, "What the whole name must match."))
            .param(Field::defaulted(
                "sort",
                Type::choice(&["version", "date"]),
                "version",
                "What makes one newer.",
            ))
            .param(Field::optional("before", Type::Timestamp, "Only those made before this moment."))
            .param(Field::defaulted("limit", Type::Integer, 100, "The most that are listed."))
            .param(Field::defaulted("allow_none", Type::Boolean, false, "Succeeds even if no tag fits."))
            .param(Field::optional(
                "os_user",
                Type::String,
                "The system user that git runs as; Lifeboat's own if absent.",
            ))
            .output("tags", Type::list(Type::Object(tag)), "The tags, the newest first.")
            .output("newest", Type::String, "The name of the first one; empty if no tag fits.")
            .output("count", Type::Integer, "How many fit, those beyond `limit` included.")
    }

    fn check(&self, with: &Map<String, Value>) -> Vec<ParamProblem> {
        let problem =
            |param: &str, message: String| ParamProblem { param: param.into(), message, help: None };
        let mut problems = Vec::new();
        if let Some(Err(error)) = with.get("pattern").and_then(Value::as_str).map(whole) {
            problems.push(problem("pattern", error));
        }
        if with.get("limit").and_then(Value::as_i64).is_some_and(|limit| !(1..=1000).contains(&limit)) {
            problems.push(problem("limit", "at least 1 and at most 1000 tags are listed".into()));
        }
        problems
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let params: Params = ctx.params()?;
        let pattern = params.pattern.as_deref().map(whole).transpose().map_err(|error| {
            StepError::permanent(lifeboat_engine::code::LB0304, format!("`pattern` cannot be used: {error}"))
        })?;
        let repository = Repository::open(ctx, &params.dir, params.os_user.as_deref()).await?;
        let sort = match params.sort {
            Sort::Version => "--sort=-version:refname",
            Sort::Date => "--sort=-creatordate",
        };
        // With this setting `v2.0-rc1` is older than `v2.0`.
        let args = ["-c", "versionsort.suffix=-", "for-each-ref", sort, FORMAT, "refs/tags"];
        let printed = repository.names_and_gaps(&args).await?;
        let (all, warnings) = read(&printed);
        let total = all.len();
        let fits = |tag: &Tag| {
            pattern.as_ref().is_none_or(|pattern| pattern.is_match(&tag.name))
                && params.before.is_none_or(|before| tag.date < before)
        };
        let mut tags: Vec<Tag> = all.into_iter().filter(fits).collect();
        if tags.is_empty() && !params.allow_none {
            let message = format!("of {total} tags in {} none fits", repository.dir.display());
            return Err(StepError::permanent(codes::LB1541, message)
                .help("correct `pattern` or `before`; `git fetch --tags` there gets those of the remote"));
        }
        let count = tags.len();
        tags.truncate(usize::try_from(params.limit).unwrap_or(usize::MAX));
        let newest = tags.first().map(|tag| tag.name.clone()).unwrap_or_default();
        let Value::Object(outputs) = json!({ "tags": tags, "newest": newest, "count": count }) else {
            unreachable!("an object was written")
        };
        Ok(Done { outputs, warnings, ..Done::default() })
    }
}

fn whole(pattern: &str) -> Result<Regex, String> {
    Regex::new(&format!("^(?:{pattern})$")).map_err(|error| {
        error.to_string().lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned()
    })
}

/// Reads what git has printed, six fields for each tag.
fn read(printed: &[Vec<u8>]) -> (Vec<Tag>, Vec<String>) {
    let (mut tags, mut warnings) = (Vec::new(), Vec::new());
    for fields in printed.chunks_exact(6) {
        let text = |at: usize| shown(&fields[at]);
        let name = text(0).trim_start_matches('\n').to_owned();
        let commit = match (text(1).as_str(), text(3).as_str()) {
            ("commit", _) => text(2),
            ("tag", "commit") => text(4),
            _ => {
                warnings.push(format!("the tag `{name}` stands for no commit, and is left out"));
                continue;
            }
        };
        match text(5).parse().ok().and_then(|seconds| Timestamp::from_second(seconds).ok()) {
            Some(date) => tags.push(Tag { name, commit, date }),
            None => warnings.push(format!("the tag `{name}` has no date, and is left out")),
        }
    }
    (tags, warnings)
}
