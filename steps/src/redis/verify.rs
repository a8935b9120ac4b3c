use std::time::Duration;

use async_trait::async_trait;
use lifeboat_engine::expr;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::model::evidence::Check;
use lifeboat_engine::resource::{ResourceKind, shown};
use lifeboat_engine::step::{Effect, KindSpec, ParamProblem, StepContext, StepError, StepKind};
use lifeboat_engine::value::{Field, Type};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::client::Client;
use super::info::Info;
use super::{ask, codes};

/// Checks what a Redis server holds.
#[derive(Debug)]
pub(super) struct Verify;

#[derive(Deserialize)]
struct Params {
    server: String,
    #[serde(default)]
    expect: Vec<String>,
    #[serde(default)]
    queries: Vec<Query>,
}

#[derive(Deserialize)]
struct Query {
    name: String,
    command: Vec<String>,
    expect: Vec<String>,
}

const ANSWERS_WITHIN: Duration = Duration::from_secs(30);

const DOC: &str = "\
Proves that the server has loaded its data, is writable by clients (no replica) and lost no key to `maxmemory`; then
evaluates `expect` over its numbers and each query over its `result`. Queries are single reading commands, asked as by `redis.query`:

```yaml
queries:
  - { name: sessions, command: [HLEN, sessions], expect: [result > 0] }
```";

#[async_trait]
impl StepKind for Verify {
    fn spec(&self) -> KindSpec {
        let query = vec![
            Field::required("name", Type::String, "What is looked at."),
            Field::required("command", Type::list(Type::String), "A reading command and its arguments."),
            Field::required("expect", Type::conditions(&["result"]), "Conditions over the answer."),
        ];
        let names = ["keys", "databases", "used_memory", "version"];
        KindSpec::new("redis.verify", "Checks what a Redis server holds.", Effect::Read)
            .doc(DOC)
            .param(Field::required("server", Type::reads(ResourceKind::Redis), "The server."))
            .param(Field::optional(
                "expect",
                Type::conditions(&names),
                "Conditions over `keys`, `databases` (keys by number: `databases.db0`), `used_memory` in bytes and `version`.",
            ))
            .param(Field::optional("queries", Type::list(Type::Object(query)), "Commands with what they must answer."))
            .output("keys", Type::Integer, "How many keys it holds.")
            .output("databases", Type::map(Type::Integer), "How many keys each database holds.")
    }

    fn check(&self, with: &Map<String, Value>) -> Vec<ParamProblem> {
        let queries = with.get("queries").and_then(Value::as_array).into_iter().flatten();
        let commands = queries.filter_map(|query| query.get("command")?.as_array());
        let refused = commands.filter_map(|words| {
            let words: Vec<&str> = words.iter().map(|word| word.as_str().unwrap_or("…")).collect();
            ask::refuse_known(&words)
        });
        refused.map(|message| problem("queries", &message)).collect()
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let params: Params = ctx.params()?;
        let mut client = Client::connect(ctx, &params.server).await?;
        let info = client.info().await?;
        let names = numbers(&info);
        let mut checks = basic(&info);
        checks.extend(expr::check_all(shown(&params.server), &params.expect, &names));
        for query in &params.queries {
            let answer = ask::ask(ctx, (&params.server, None), &query.command, ANSWERS_WITHIN).await?;
            let names = Map::from_iter([("result".to_owned(), answer)]);
            checks.extend(expr::check_all(&query.name, &query.expect, &names));
        }
        let failed: Vec<_> =
            checks.iter().filter(|check| !check.passed).map(|check| check.name.clone()).collect();
        if let Some(first) = failed.first() {
            let message = format!(
                "{} of {} checks of `{}` failed, the first: {first}",
                failed.len(),
                checks.len(),
                shown(&params.server)
            );
            return Err(StepError::permanent(codes::LB1310, message).checks(checks));
        }
        let mut outputs = names;
        outputs.retain(|name, _| name == "keys" || name == "databases");
        Ok(Done { outputs, checks, ..Done::default() })
    }
}

fn problem(param: &str, message: &str) -> ParamProblem {
    ParamProblem { param: param.into(), message: message.into(), help: None }
}

fn numbers(info: &Info) -> Map<String, Value> {
    let keyspace = info.keyspace();
    let keys: u64 = keyspace.values().map(|count| count.keys).sum();
    let databases: Map<String, Value> =
        keyspace.iter().map(|(number, count)| (format!("db{number}"), count.keys.into())).collect();
    let written = json!({
        "keys": keys,
        "databases": databases,
        "used_memory": info.number("used_memory"),
        "version": info.text("redis_version"),
    });
    let Value::Object(names) = written else { unreachable!("an object was written") };
    names
}

fn basic(info: &Info) -> Vec<Check> {
    [("loading", "0"), ("role", "master"), ("evicted_keys", "0")]
        .into_iter()
        .map(|(name, expected)| {
            let actual = info.text(name).to_owned();
            Check { name: name.into(), expected: expected.into(), passed: actual == expected, actual }
        })
        .collect()
}
