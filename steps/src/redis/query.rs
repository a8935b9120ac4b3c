//! `redis.query`: one reading command and what must hold of its answer.

use async_trait::async_trait;
use lifeboat_engine::expr;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::resource::ResourceKind;
use lifeboat_engine::step::{Effect, KindSpec, ParamProblem, StepContext, StepError, StepKind};
use lifeboat_engine::value::{Field, Span, Type};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{ask, codes};
use crate::sql::MOST_ROWS;

/// Asks a Redis server.
#[derive(Clone, Copy, Debug)]
pub(super) struct Query;

#[derive(Deserialize)]
struct Params {
    server: String,
    database: Option<i64>,
    command: Vec<String>,
    expect: Vec<String>,
    statement_timeout: Span,
}

const DOC: &str = "\
Sends one command, each word an element of the list, so that nothing is quoted. Before it is sent the server is asked what the \
command does (`COMMAND INFO`): it must be flagged `readonly`, and must not be able to write, to replicate, to wait, or to hold up \
everybody else, as `KEYS` does. `EVAL` is refused whatever its script does; in `EVAL_RO` the server itself lets nothing write.

`result` is the answer with its types: text, integers, numbers, booleans, lists, and maps for hashes; `null` for what is not \
there; bytes that are no text are `0x…`. `rows` is the same as a list: the elements of a list, `{ key, value }` for each \
entry of a map, the one answer otherwise, nothing for `null`. At most 1000 rows and 1 MiB. The step fails if a condition of `expect` \
does not hold. Redis 6 or later.

```yaml
uses: redis.query
with: { server: cache, database: 3, command: [HGETALL, settings], expect: [\"result.site == 'members'\"] }
```";

#[async_trait]
impl StepKind for Query {
    fn spec(&self) -> KindSpec {
        let names = ["result", "rows", "row_count"];
        KindSpec::new("redis.query", "Sends a reading command and checks its answer.", Effect::Read)
            .doc(DOC)
            .param(Field::required("server", Type::reads(ResourceKind::Redis), "The server to ask."))
            .param(Field::optional(
                "database",
                Type::Integer,
                "The number of the database; that of the resource if not given.",
            ))
            .param(Field::required(
                "command",
                Type::list(Type::String),
                "A reading command and its arguments.",
            ))
            .param(Field::defaulted(
                "expect",
                Type::conditions(&names),
                json!([]),
                "What must hold of `result`, `rows` and `row_count`.",
            ))
            .param(Field::defaulted(
                "statement_timeout",
                Type::Duration,
                "30s",
                "How long the answer may take.",
            ))
            .output("result", Type::Any, "The answer.")
            .output("rows", Type::list(Type::Any), "The answer as a list.")
            .output("row_count", Type::Integer, "How many rows there are.")
    }

    fn check(&self, with: &Map<String, Value>) -> Vec<ParamProblem> {
        let Some(words) = with.get("command").and_then(Value::as_array) else { return Vec::new() };
        let words: Vec<&str> = words.iter().map(|word| word.as_str().unwrap_or("…")).collect();
        let problem = |message| ParamProblem {
            param: "command".into(),
            message,
            help: Some("`redis.flush` empties a database; other changes are a `run` step".into()),
        };
        ask::refuse_known(&words).map(problem).into_iter().collect()
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let params: Params = ctx.params()?;
        let at = (params.server.as_str(), params.database);
        let result = ask::ask(ctx, at, &params.command, params.statement_timeout.0).await?;
        let rows = rows(&result);
        if rows.len() > MOST_ROWS {
            let message = format!("the answer has {} rows, and at most {MOST_ROWS} are taken", rows.len());
            return Err(StepError::permanent(codes::LB1331, message)
                .help("ask for a part: LRANGE, ZRANGE or XRANGE with a limit, HGET, or only for the count"));
        }
        let outputs = outputs(result, rows);
        let checks = expr::check_all(ctx.info.step.as_str(), &params.expect, &outputs);
        let failed: Vec<&str> =
            checks.iter().filter(|check| !check.passed).map(|check| check.expected.as_str()).collect();
        if failed.is_empty() {
            return Ok(Done { outputs, checks, ..Done::default() });
        }
        let message = format!("the answer is not as expected: {}", failed.join("; "));
        Err(StepError::permanent(codes::LB1310, message)
            .help("the report shows what was found; decide whether the data or the expectation is wrong")
            .checks(checks))
    }
}

fn outputs(result: Value, rows: Vec<Value>) -> Map<String, Value> {
    let mut outputs = Map::new();
    outputs.insert("result".into(), result);
    outputs.insert("row_count".into(), rows.len().into());
    outputs.insert("rows".into(), rows.into());
    outputs
}

fn rows(result: &Value) -> Vec<Value> {
    match result {
        Value::Null => Vec::new(),
        Value::Array(items) => items.clone(),
        Value::Object(map) => map.iter().map(|(key, value)| json!({ "key": key, "value": value })).collect(),
        one => vec![one.clone()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_answer_has_rows() {
        assert_eq!(rows(&Value::Null), Vec::<Value>::new());
        assert_eq!(rows(&json!(7)), [json!(7)]);
        assert_eq!(rows(&json!([1, 2])), [json!(1), json!(2)]);
        assert_eq!(rows(&json!({ "a": 1 })), [json!({ "key": "a", "value": 1 })]);
    }
}
