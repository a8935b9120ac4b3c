//! `redis.flush`: empties databases of a server, one by one and never all at once.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use jiff::Timestamp;
use lifeboat_engine::expr;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::model::evidence::Check;
use lifeboat_engine::resource::ResourceKind;
use lifeboat_engine::step::{Effect, KindSpec, ParamProblem, Preview, StepContext, StepError, StepKind};
use lifeboat_engine::value::{Field, Type, parse_timestamp};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::client::{Client, server};
use super::config::check_alone;
use super::info::{Info, KeyCount};
use super::{codes, snapshot};
use crate::sql::done;

/// Empties databases.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flush;

#[derive(Deserialize)]
struct Params {
    server: String,
    databases: Vec<i64>,
    expect: Vec<String>,
    snapshot_to: Option<String>,
}

/// What was counted before the first database was emptied, for an attempt that finds it so.
const COUNTED: &str = "counted";

const DOC: &str = "\
Empties the databases that are listed, each by its number; there is no word for all of them, and `FLUSHALL` is never sent. Before \
anything is touched the role of the server and the keys of every database are looked at, and `expect` must hold of `keys` (of all \
that are to be emptied) and `databases` (by number: `databases.db0`). A replica, a node of a cluster and a sentinel are refused.

With `snapshot_to` a snapshot of the whole server is taken, proven and published in that store first, as by `redis.snapshot`.

Each database is counted, emptied and counted again in one transaction: the second count must be 0, whoever writes at the same time. \
Memory is given back in the background, so that the server answers meanwhile. Keys that come afterwards are new ones. Other databases \
keep every key. A server that keeps no append-only file would load the keys again from its last dump until it has saved: a \
warning says so.

Nothing undoes it but a snapshot. A job queue that is emptied loses its jobs; a cache fills itself.";

#[async_trait]
impl StepKind for Flush {
    fn spec(&self) -> KindSpec {
        let mut spec =
            KindSpec::new("redis.flush", "Empties databases of a Redis server.", Effect::Idempotent)
                .doc(DOC)
                .param(Field::required("server", Type::writes(ResourceKind::Redis), "The server."))
                .param(Field::required(
                    "databases",
                    Type::list(Type::Integer),
                    "The numbers of the databases.",
                ))
                .param(Field::defaulted(
                    "expect",
                    Type::conditions(&["keys", "databases"]),
                    json!([]),
                    "What must hold of `keys` and `databases` before anything is touched.",
                ))
                .param(Field::optional(
                    "snapshot_to",
                    Type::writes(ResourceKind::Store),
                    "The store that gets a snapshot first; none is taken if absent.",
                ))
                .output("keys", Type::Integer, "How many keys were removed.")
                .output("databases", Type::map(Type::Integer), "How many in each database: `db0`.")
                .destroys("all keys of the databases that are listed");
        let backup =
            Field::optional("backup", Type::String, "The label of the snapshot that was taken first.");
        spec.outputs.push(backup);
        spec
    }

    fn check(&self, with: &Map<String, Value>) -> Vec<ParamProblem> {
        let Some(listed) = with.get("databases").and_then(Value::as_array) else { return Vec::new() };
        let numbers: Option<Vec<i64>> = listed.iter().map(Value::as_i64).collect();
        let why = numbers.and_then(|numbers| unfit(&numbers));
        why.map(|message| ParamProblem { param: "databases".into(), message, help: None })
            .into_iter()
            .collect()
    }

    async fn preview(&self, ctx: &StepContext) -> Result<Preview, StepError> {
        let params: Params = ctx.params()?;
        let url = &server(ctx, &params.server)?.url;
        let info = Client::connect(ctx, &params.server).await?.info().await?;
        let keyspace = info.keyspace();
        let of = |number: &i64| u32::try_from(*number).ok().and_then(|number| keyspace.get(&number).copied());
        let destroys = params.databases.iter().map(|number| {
            let KeyCount { keys, expires } = of(number).unwrap_or_default();
            let place = format!("database {number} of `{}` ({url})", params.server);
            match keys {
                0 => format!("{place}: nothing, it is empty now"),
                keys => {
                    format!("{place}: {keys} keys, {expires} of them with a time to live; nothing undoes it")
                }
            }
        });
        let before = params.snapshot_to.as_ref().map(|store| format!("take a snapshot into `{store}`"));
        let each = params.databases.iter().map(|number| format!("FLUSHDB ASYNC in database {number}"));
        Ok(Preview { actions: before.into_iter().chain(each).collect(), destroys: destroys.collect() })
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let params: Params = ctx.params()?;
        if let Some(why) = unfit(&params.databases) {
            return Err(
                StepError::permanent(codes::LB1332, why).help("list each number once, such as `[0, 2]`")
            );
        }
        let (mut clients, info) = examine(ctx, &params).await?;
        let counted = count(&mut clients).await?;
        let checks = expected(ctx, &params, &counted)?;
        let taken = match &params.snapshot_to {
            Some(store) => Some(take_snapshot(ctx, &params, store).await?),
            None => None,
        };
        let counted = first_count(ctx, counted).await?;
        let mut flushed = Flushed { checks, ..Flushed::default() };
        for (number, client) in &mut clients {
            flushed.empty(*number, client, &counted).await?;
        }
        Ok(flushed.done(taken, &info))
    }
}

fn unfit(databases: &[i64]) -> Option<String> {
    let distinct: BTreeSet<_> = databases.iter().collect();
    match databases {
        [] => Some("no database is listed, and there is no word for all of them".to_owned()),
        _ if databases.iter().any(|number| *number < 0) => {
            Some("the numbers of databases begin with 0".to_owned())
        }
        _ if distinct.len() < databases.len() => Some("a database is listed twice".to_owned()),
        _ => None,
    }
}

fn name(number: i64) -> String {
    format!("db{number}")
}

/// Connects to each database, which proves that there is one of that number, and refuses what must not be emptied.
async fn examine(ctx: &StepContext, params: &Params) -> Result<(Vec<(i64, Client)>, Info), StepError> {
    let mut client = Client::connect(ctx, &params.server).await?;
    let info = client.info().await?;
    check_alone(&info, &params.server).map_err(|error| StepError { code: codes::LB1332, ..error })?;
    if info.flag("loading") {
        let message = format!("the Redis server `{}` is loading its data", params.server);
        return Err(StepError::transient(codes::LB1332, message).help("try again when it has loaded"));
    }
    let mut clients = Vec::new();
    for number in &params.databases {
        let client = Client::connect_database(ctx, &params.server, *number).await.map_err(|error| {
            StepError { message: format!("{}, or has no database {number}", error.message), ..error }
        })?;
        clients.push((*number, client));
    }
    Ok((clients, info))
}

async fn count(clients: &mut [(i64, Client)]) -> Result<BTreeMap<String, u64>, StepError> {
    let mut counted = BTreeMap::new();
    for (number, client) in clients {
        counted.insert(name(*number), client.command::<u64>(&["DBSIZE"]).await?);
    }
    Ok(counted)
}

/// Returns the checks of `expect`, or the refusal.
fn expected(
    ctx: &StepContext,
    params: &Params,
    counted: &BTreeMap<String, u64>,
) -> Result<Vec<Check>, StepError> {
    // An earlier attempt has found that they hold, and has perhaps emptied something since.
    if ctx.recorded(COUNTED).is_some() {
        return Ok(Vec::new());
    }
    let names = json!({ "keys": counted.values().sum::<u64>(), "databases": counted });
    let Value::Object(names) = names else { unreachable!("an object was written") };
    let checks = expr::check_all(ctx.info.step.as_str(), &params.expect, &names);
    let failed: Vec<_> =
        checks.iter().filter(|check| !check.passed).map(|check| check.name.as_str()).collect();
    if failed.is_empty() {
        return Ok(checks);
    }
    let found: Vec<_> = counted.iter().map(|(name, keys)| format!("{name} has {keys} keys")).collect();
    let message = format!(
        "`{}` is not emptied: {} does not hold ({})",
        params.server,
        failed.join(", "),
        found.join(", ")
    );
    Err(StepError::permanent(codes::LB1332, message)
        .help("nothing was touched; look at what the databases hold, then correct `databases` or `expect`")
        .checks(checks))
}

async fn first_count(
    ctx: &StepContext,
    counted: BTreeMap<String, u64>,
) -> Result<BTreeMap<String, u64>, StepError> {
    if let Some(earlier) = ctx.recorded(COUNTED) {
        return Ok(serde_json::from_value(earlier.clone()).unwrap_or(counted));
    }
    ctx.record(COUNTED, json!(counted)).await?;
    Ok(counted)
}

async fn take_snapshot(ctx: &StepContext, params: &Params, store: &str) -> Result<Done, StepError> {
    let begun = Timestamp::now();
    let with = json!({ "server": params.server, "store": store, "save_timeout": "10m", "load_check": true });
    let system = ctx.resource(&params.server)?.clone();
    let mut taken = snapshot::Snapshot.run(&ctx.part(with, &params.server, system)).await?;
    let at = taken.outputs.get("taken_at").and_then(Value::as_str).and_then(|at| parse_timestamp(at).ok());
    // In whole seconds, by a coarse clock.
    if let Some(at) = at.filter(|at| at.as_second() + 1 < begun.as_second()) {
        let told =
            format!("the snapshot is of {at}, of an earlier attempt: what was written since is not in it");
        taken.warnings.push(told);
    }
    Ok(taken)
}

/// What was done so far.
#[derive(Default)]
struct Flushed {
    keys: BTreeMap<String, u64>,
    checks: Vec<Check>,
}

impl Flushed {
    async fn empty(
        &mut self,
        number: i64,
        client: &mut Client,
        counted: &BTreeMap<String, u64>,
    ) -> Result<(), StepError> {
        let (before, after) = client.empty_database().await?;
        let name = name(number);
        // An attempt that was lost has emptied it, and nobody has written since.
        let removed = if before == 0 { counted.get(&name).copied().unwrap_or(0) } else { before };
        let check = Check {
            name: format!("keys in database {number} when it was emptied"),
            expected: "0".into(),
            actual: after.to_string(),
            passed: after == 0,
        };
        self.checks.push(check);
        if after > 0 {
            let message = format!("database {number} has {after} keys after it was emptied");
            return Err(StepError::permanent(codes::LB1333, message).checks(std::mem::take(&mut self.checks)));
        }
        self.keys.insert(name, removed);
        Ok(())
    }

    fn done(self, taken: Option<Done>, info: &Info) -> Done {
        let total: u64 = self.keys.values().sum();
        let mut all = done(json!({ "keys": total, "databases": self.keys }));
        all.checks = self.checks;
        if let Some(taken) = taken {
            all.outputs.insert("backup".into(), taken.outputs.get("backup").cloned().unwrap_or_default());
            all.warnings.extend(taken.warnings);
        }
        if total > 0 && !info.flag("aof_enabled") {
            all.warnings.push(
                "the last dump on disk still holds these keys, and the server would load them if it were started before it \
                 saves: `redis-cli BGSAVE` now, unless they are wanted as a copy"
                    .to_owned(),
            );
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn databases_are_listed_once_each() {
        assert_eq!(unfit(&[0, 3]), None);
        for bad in [&[][..], &[-1], &[0, 0]] {
            assert!(unfit(bad).is_some(), "{bad:?}");
        }
    }
}
