//! Asks a server with one command of which the server itself says that it changes nothing.

use std::time::Duration;

use lifeboat_engine::step::{StepContext, StepError};
use serde_json::{Map, Number, Value};

use super::client::Client;
use super::codes;

/// What a server says of a command: the flags that decide whether it may be sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Nature {
    flags: Vec<String>,
    /// What it does with its keys, from Redis 7 on: `PFCOUNT` reads and may rewrite what it has read.
    keys: Vec<String>,
    /// The categories of access lists, from Redis 6 on.
    categories: Vec<String>,
    /// True if its second word decides what it does.
    is_container: bool,
}

/// Sends one reading command on a connection of its own and returns the answer, with its types as Redis 6 and later tell them.
///
/// Refused before it is sent unless the server's own description (`COMMAND INFO`) calls the command reading, and nothing
/// that writes, replicates, waits, or holds up all others. A script is run by `EVAL_RO` only, in which the server lets
/// nothing write.
pub(super) async fn ask(
    ctx: &StepContext,
    (name, database): (&str, Option<i64>),
    words: &[String],
    limit: Duration,
) -> Result<Value, StepError> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let mut client = Client::connect_bounded(ctx, (name, database), limit).await?;
    let nature = nature(&mut client, name, &words).await?;
    if let Some(why) = refusal(&nature) {
        return Err(refused(&words, &why));
    }
    client.command::<redis::Value>(&words).await.map(|answer| to_json(&answer))
}

/// Says why a command that is written out cannot be asked, as far as that is known of every server. The server has the last word.
pub(super) fn refuse_known(words: &[&str]) -> Option<String> {
    const WRITERS: [&str; 44] = [
        "APPEND",
        "BGREWRITEAOF",
        "BGSAVE",
        "CONFIG",
        "COPY",
        "DECR",
        "DECRBY",
        "DEL",
        "EVAL",
        "EVALSHA",
        "EXPIRE",
        "FCALL",
        "FLUSHALL",
        "FLUSHDB",
        "GETDEL",
        "GETEX",
        "GETSET",
        "HDEL",
        "HINCRBY",
        "HSET",
        "INCR",
        "INCRBY",
        "LPOP",
        "LPUSH",
        "LREM",
        "LTRIM",
        "MIGRATE",
        "MSET",
        "PERSIST",
        "RENAME",
        "RESTORE",
        "RPOP",
        "RPUSH",
        "SADD",
        "SAVE",
        "SET",
        "SETEX",
        "SHUTDOWN",
        "SREM",
        "SWAPDB",
        "UNLINK",
        "XADD",
        "ZADD",
        "ZREM",
    ];
    let first = words.first().map(|word| word.to_uppercase()).unwrap_or_default();
    match first.as_str() {
        "" => Some("a query has no command".to_owned()),
        "KEYS" => Some("`KEYS` holds the server up for everybody: ask with `SCAN`, or a clone".to_owned()),
        word if WRITERS.contains(&word) => Some(format!("`{word}` is no command that only reads")),
        _ => None,
    }
}

async fn nature(client: &mut Client, name: &str, words: &[&str]) -> Result<Nature, StepError> {
    let Some(first) = words.first() else { return Err(refused(words, "there is no command")) };
    let found = described(client, first).await?;
    let Some(nature) = found else {
        return Err(refused(words, &format!("the server `{name}` has no command of that name")));
    };
    if !nature.is_container {
        return Ok(nature);
    }
    let second = words.get(1).copied().unwrap_or_default();
    let found = described(client, &format!("{first}|{second}")).await?;
    found.ok_or_else(|| refused(words, &format!("the server `{name}` knows no `{first} {second}`")))
}

async fn described(client: &mut Client, command: &str) -> Result<Option<Nature>, StepError> {
    let answer: Value = to_json(&client.command::<redis::Value>(&["COMMAND", "INFO", command]).await?);
    Ok(answer.get(0).and_then(parse))
}

/// Reads one description: name, arity, flags, three positions of keys, categories, tips, keys, subcommands.
fn parse(description: &Value) -> Option<Nature> {
    let texts = |at: usize| -> Vec<String> {
        let of = description.get(at).and_then(Value::as_array);
        of.into_iter().flatten().filter_map(|text| Some(text.as_str()?.to_lowercase())).collect()
    };
    description.get(2)?.as_array()?;
    let is_container = description.get(9).and_then(Value::as_array).is_some_and(|parts| !parts.is_empty());
    let specs = description.get(8).and_then(Value::as_array).into_iter().flatten();
    let of_keys = specs.filter_map(|spec| spec.get("flags")?.as_array()).flatten();
    let keys = of_keys.filter_map(|flag| Some(flag.as_str()?.to_lowercase())).collect();
    Some(Nature { flags: texts(2), keys, categories: texts(6), is_container })
}

/// Says why a command may not be sent; `None` if it may.
fn refusal(nature: &Nature) -> Option<String> {
    let has = |flag: &str| nature.flags.iter().any(|known| known == flag);
    for (flag, why) in [
        ("write", "it writes"),
        ("may_replicate", "it may write"),
        ("admin", "it is a command of administrators"),
        ("pubsub", "it sends or waits for messages"),
        ("blocking", "it may wait for ever"),
    ] {
        if has(flag) {
            return Some(format!("the server says that {why} (`{flag}`)"));
        }
    }
    if let Some(flag) = nature.keys.iter().find(|flag| ["rw", "ow", "rm"].contains(&flag.as_str())) {
        return Some(format!("the server says that it may change its keys (`{}`)", flag.to_uppercase()));
    }
    if !has("readonly") {
        return Some("the server does not say that it only reads (`readonly`)".to_owned());
    }
    let holds_up = nature.categories.iter().any(|category| category == "@dangerous");
    holds_up.then(|| "it holds the server up for everybody (`@dangerous`)".to_owned())
}

fn refused(words: &[&str], why: &str) -> StepError {
    // What follows the first word may be data.
    let command = words.first().copied().unwrap_or_default();
    StepError::permanent(codes::LB1330, format!("`{command}` was not sent: {why}")).help(
        "ask with a reading command such as GET, HGETALL, LRANGE or SCAN; `redis.flush` empties a database",
    )
}

/// Bytes that are no text become `0x…`; a map has text as its keys.
pub(super) fn to_json(value: &redis::Value) -> Value {
    use redis::Value as Redis;
    let list = |items: &[Redis]| Value::Array(items.iter().map(to_json).collect());
    match value {
        Redis::Nil => Value::Null,
        Redis::Int(number) => (*number).into(),
        Redis::BulkString(bytes) => text(bytes).into(),
        Redis::SimpleString(text) | Redis::VerbatimString { text, .. } => text.as_str().into(),
        Redis::Okay => "OK".into(),
        Redis::Array(items) | Redis::Set(items) | Redis::Push { data: items, .. } => list(items),
        Redis::Map(pairs) => {
            let key = |key: &Redis| match to_json(key) {
                Value::String(text) => text,
                other => other.to_string(),
            };
            Value::Object(
                pairs.iter().map(|(name, value)| (key(name), to_json(value))).collect::<Map<_, _>>(),
            )
        }
        // What JSON has no number for is text: `inf`.
        Redis::Double(number) => {
            Number::from_f64(*number).map_or_else(|| number.to_string().into(), Value::Number)
        }
        Redis::Boolean(value) => (*value).into(),
        Redis::BigNumber(digits) => text(digits).into(),
        Redis::Attribute { data, .. } => to_json(data),
        // Within an answer; as the answer itself it is an error before it comes here.
        Redis::ServerError(error) => format!("{error:?}").into(),
        other => format!("{other:?}").into(),
    }
}

fn text(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().fold("0x".to_owned(), |text, byte| format!("{text}{byte:02x}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn nature(flags: &[&str], categories: &[&str]) -> Nature {
        let owned = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
        let (flags, categories) = (owned(flags), owned(categories));
        Nature { flags, categories, keys: Vec::new(), is_container: false }
    }

    #[test]
    fn only_what_the_server_calls_reading_is_sent() {
        assert_eq!(refusal(&nature(&["readonly", "fast"], &["@read"])), None);
        for (flags, categories) in [
            (vec!["write", "denyoom"], vec!["@write"]),
            (vec!["readonly", "write"], vec![]),
            (vec!["readonly", "may_replicate"], vec![]),
            (vec!["readonly", "blocking"], vec![]),
            (vec!["readonly", "admin"], vec![]),
            (vec!["pubsub", "loading"], vec![]),
            (vec!["noscript", "stale"], vec!["@scripting"]),
            (vec!["readonly"], vec!["@keyspace", "@dangerous"]),
            (vec![], vec![]),
        ] {
            assert!(refusal(&nature(&flags, &categories)).is_some(), "{flags:?} {categories:?}");
        }
    }

    #[test]
    fn descriptions_are_read_with_their_subcommands() {
        let get = json!(["get", 2, ["readonly", "fast"], 1, 1, 1, ["@read", "@fast"], [], [], []]);
        assert_eq!(parse(&get), Some(nature(&["readonly", "fast"], &["@read", "@fast"])));
        let count = json!(["pfcount", -2, ["readonly"], 1, -1, 1, [], [], [{ "notes": "…", "flags": ["RW", "access"] }], []]);
        assert!(parse(&count).is_some_and(|found| refusal(&found).is_some_and(|why| why.contains("RW"))));
        let object = json!(["object", -2, [], 0, 0, 0, ["@slow"], [], [], [["object|encoding"]]]);
        assert!(parse(&object).is_some_and(|found| found.is_container));
        // Redis 5 ends after the positions of the keys.
        assert_eq!(parse(&json!(["set", -3, ["write"], 1, 1, 1])), Some(nature(&["write"], &[])));
        assert_eq!(parse(&Value::Null), None);
    }

    #[test]
    fn answers_keep_their_types() {
        let text = |text: &str| redis::Value::BulkString(text.into());
        let answer = redis::Value::Map(vec![
            (text("n"), redis::Value::Int(3)),
            (text("d"), redis::Value::Double(1.5)),
            (text("far"), redis::Value::Double(f64::INFINITY)),
            (text("raw"), redis::Value::BulkString(vec![0xff, 0x00])),
            (text("list"), redis::Value::Array(vec![redis::Value::Boolean(true), redis::Value::Nil])),
        ]);
        let expected = json!({ "n": 3, "d": 1.5, "far": "inf", "raw": "0xff00", "list": [true, null] });
        assert_eq!(to_json(&answer), expected);
    }

    #[test]
    fn commands_that_always_write_are_found_without_a_server() {
        for words in
            [vec!["del", "a"], vec!["EVAL", "return 1", "0"], vec!["FlushAll"], vec!["KEYS", "*"], vec![]]
        {
            assert!(refuse_known(&words).is_some(), "{words:?}");
        }
        assert_eq!(refuse_known(&["GET", "a"]), None);
    }
}
