use std::path::{Path, PathBuf};

use async_trait::async_trait;
use jiff::Timestamp;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::model::evidence::{Check, Confidence, RecoveryPoint};
use lifeboat_engine::resource::{self, ResourceKind};
use lifeboat_engine::step::{
    Effect, Finding, KindSpec, PreflightFacts, Preview, StepContext, StepError, StepKind,
};
use lifeboat_engine::value::{Field, Span, Type};
use serde::Deserialize;
use serde_json::{Value, json};

use super::client::{Client, server};
use super::config::{Persistence, check_alone, check_dir, check_role, required};
use super::info::Info;
use super::snapshot::{DUMP, Details};
use super::{check, codes, place, start, undo};
use crate::backup::{self, Wanted};
use crate::probe::{backup_age, measure, program_found, space, writable};
use crate::store::{BackupKind, HashingWriter, Marker, Meter, Store, blocking, copy};

/// Restores a Redis server from a snapshot.
#[derive(Debug)]
pub(super) struct Restore;

#[derive(Deserialize)]
struct Params {
    server: String,
    store: String,
    backup: Option<String>,
    target_time: Option<Timestamp>,
    source: Option<String>,
    append_only: AppendOnly,
    replicas: Replicas,
    load_check: bool,
    load_timeout: Span,
}

/// What to do if others copy the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Replicas {
    Refuse,
    Accept,
}

/// What to do if the append-only file would win over the snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum AppendOnly {
    Refuse,
    Rewrite,
}

const DOC: &str = "\
Takes the snapshot named by `backup`, or else the newest that was finished before `target_time`, or else the newest.
If the store has snapshots of several servers, `source` says of which; without it, of the one with the target's name.
It is fetched, its checksum compared, read by `redis-check-rdb` and, with `load_check`, loaded into a throw-away server,
all before the target is touched.

Then the snapshot is copied beside its place with the owner and mode of the old file, the server is stopped so that it writes
nothing, its dump and append-only files are moved aside (`.pre-RUN`), the snapshot gets its name, and the server is started. The
step succeeds when the server has loaded exactly the keys of the snapshot, expired ones included.

A server with `appendonly yes` would ignore the snapshot: that is refused before anything is touched, unless
`append_only: rewrite` makes the snapshot the base of a new append-only file (Redis 7 and later). Refused are also a replica, a
node of a cluster, a sentinel, a server of an older version than the snapshot, and one that has replicas, unless `replicas`
is `accept`.

The recovery point is the moment the snapshot was taken. Restoring a job queue runs its jobs again: decide for each
database whether to restore it or to leave it empty.";

#[async_trait]
impl StepKind for Restore {
    fn spec(&self) -> KindSpec {
        KindSpec::new("redis.restore", "Restores a Redis server from a snapshot.", Effect::Idempotent)
            .doc(DOC)
            .param(Field::required("server", Type::writes(ResourceKind::Redis), "The server to restore."))
            .param(Field::required("store", Type::reads(ResourceKind::Store), "Where the snapshots are."))
            .param(Field::optional("backup", Type::String, "The label of the snapshot."))
            .param(Field::optional("target_time", Type::Timestamp, "The snapshot was finished before it."))
            .param(Field::optional(
                "source",
                Type::String,
                "The server that it was taken of, if the store has several.",
            ))
            .param(Field::defaulted(
                "append_only",
                Type::choice(&["refuse", "rewrite"]),
                "refuse",
                "What to do if the server has `appendonly yes`.",
            ))
            .param(Field::defaulted(
                "replicas",
                Type::choice(&["refuse", "accept"]),
                "refuse",
                "What to do if the server has replicas, one of which could be promoted meanwhile.",
            ))
            .param(Field::defaulted(
                "load_check",
                Type::Boolean,
                true,
                "Whether it is loaded for proof first.",
            ))
            .param(Field::defaulted("load_timeout", Type::Duration, "10m", "How long the server may load."))
            .output("backup", Type::String, "The label of the snapshot.")
            .output("taken_at", Type::Timestamp, "When the snapshot was taken.")
            .output("keys", Type::Integer, "How many keys the server holds.")
            .output("expired", Type::Integer, "How many keys of the snapshot had expired when it was loaded.")
            .output("load_seconds", Type::Number, "From the start of the server until it had loaded.")
            .output("moved_aside", Type::list(Type::Path), "What stood there before.")
            .undoes("the server is stopped, its earlier files are put back, and it is started again if it ran before")
            .destroys("what the Redis server holds; its files are kept as `.pre-RUN`")
            .restores()
    }

    async fn preview(&self, ctx: &StepContext) -> Result<Preview, StepError> {
        let params: Params = ctx.params()?;
        let redis = server(ctx, &params.server)?;
        let (dir, _) = required(ctx, redis, &params.server)?;
        Ok(Preview {
            actions: vec![
                "load the snapshot into a throw-away server".into(),
                format!(
                    "stop the server at {}, place the snapshot in {}, start it",
                    redis.url,
                    dir.display()
                ),
            ],
            destroys: vec![format!(
                "`{}`: the Redis server at {}, {}",
                params.server,
                redis.url,
                held(dir).await
            )],
        })
    }

    async fn preflight(&self, ctx: &StepContext, facts: &PreflightFacts) -> Result<Vec<Finding>, StepError> {
        let params: Params = ctx.params()?;
        let redis = server(ctx, &params.server)?;
        let (dir, _) = required(ctx, redis, &params.server)?;
        let mut findings = vec![writable(&params.server, &dir.join("dump.rdb"))];
        let programs = ["redis-server", "redis-check-rdb"];
        for name in programs {
            let program = check::program(redis, name);
            findings.push(program_found(&params.server, &program.to_string_lossy()));
        }
        let chosen = match Store::of(ctx, &params.store).await {
            Ok(store) => choose(&store, &params).await,
            Err(error) => Err(error),
        };
        let (name, subject) = (&params.server, format!("{} (of {})", params.store, params.server));
        let (finding, marker) = backup_age(&subject, chosen, params.target_time, facts);
        findings.push(finding);
        if let Some(marker) = marker {
            findings.push(space(name, dir, marker.bytes()));
        }
        Ok(findings)
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let params: Params = ctx.params()?;
        let redis = server(ctx, &params.server)?;
        let store = Store::of(ctx, &params.store).await?;
        let marker = choose(&store, &params).await?;
        let (persistence, mut client) = examine(ctx, &params, redis).await?;
        let snapshot = check::scratch(ctx, "snapshot")?.join(DUMP);
        fetch(ctx, store, &marker, snapshot.clone()).await?;
        if let Some(client) = &mut client {
            check::readable_by(&snapshot, client.info().await?.text("redis_version"), &params.server)?;
        }
        prove(ctx, &params, redis, (&marker, &snapshot)).await?;
        replace(ctx, &params, (&persistence, client), (&marker, &snapshot)).await
    }

    async fn undo(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let params: Params = ctx.params()?;
        undo::undo(ctx, &params.server, params.load_timeout.0).await
    }
}

/// Says what the files of a server hold.
async fn held(dir: &Path) -> String {
    let dir = dir.to_owned();
    match blocking(move || Ok(measure(&dir))).await {
        Ok(Some(found)) => format!("{found} in its directory; kept as `.pre-<run>`"),
        _ => "whose directory is absent".to_owned(),
    }
}

async fn choose(store: &Store, params: &Params) -> Result<Marker, StepError> {
    let wanted = Wanted {
        kind: BackupKind::RedisRdb,
        store: params.store.clone(),
        label: params.backup.clone(),
        before: params.target_time,
        source: params.source.clone(),
        target: params.server.clone(),
        none: codes::LB1304,
    };
    backup::choose(store, wanted).await
}

/// Finds out what the server will load, and refuses whatever cannot end well. Changes nothing.
async fn examine(
    ctx: &StepContext,
    params: &Params,
    redis: &resource::Redis,
) -> Result<(Persistence, Option<Client>), StepError> {
    let (data_dir, _) = required(ctx, redis, &params.server)?;
    let mut client = Client::connect_if_up(ctx, &params.server).await?;
    let persistence = match &mut client {
        Some(client) => {
            let info = client.info().await?;
            // Before anything else is asked: a sentinel has no settings.
            check_alone(&info, &params.server)?;
            let persistence = Persistence::of_running(client).await?;
            check_dir(&persistence.dir, data_dir, &params.server)?;
            check_role(&persistence, &info, &params.server)?;
            check_replicas(params, &info)?;
            persistence
        }
        None => {
            let persistence = Persistence::of_stopped(redis, data_dir)?;
            check_dir(&persistence.dir, data_dir, &params.server)?;
            check_role(&persistence, &Info::default(), &params.server)?;
            persistence
        }
    };
    if persistence.append_only && params.append_only == AppendOnly::Refuse {
        let message = format!(
            "the Redis server `{}` has `appendonly yes`: it would ignore the snapshot and start from its append-only file",
            params.server
        );
        return Err(StepError::permanent(codes::LB1306, message).help(
            "give the step `append_only: rewrite`, or set `appendonly no` in the server's configuration",
        ));
    }
    Ok((persistence, client))
}

/// While a server is stopped, one of its replicas may be promoted with the old data.
fn check_replicas(params: &Params, info: &Info) -> Result<(), StepError> {
    let replicas = info.number("connected_slaves").unwrap_or(0);
    if replicas == 0 || params.replicas == Replicas::Accept {
        return Ok(());
    }
    let message = format!(
        "the Redis server `{}` has {replicas} replicas: one may be promoted with the old data while it is stopped",
        params.server
    );
    Err(StepError::permanent(codes::LB1335, message).help(
        "stop what promotes them, then give the step `replicas: accept`; they will fetch the restored data",
    ))
}

/// Copies the snapshot into a file and compares its checksum.
pub(super) async fn fetch(
    ctx: &StepContext,
    store: Store,
    marker: &Marker,
    path: PathBuf,
) -> Result<(), StepError> {
    let Some(expected) = marker.objects.iter().find(|object| object.name == DUMP).cloned() else {
        let message = format!("the backup `{}` has no `{DUMP}`", marker.label);
        return Err(
            StepError::permanent(codes::LB1305, message).help("choose another snapshot with `backup`")
        );
    };
    let (key, label) = (marker.key(DUMP)?, marker.label.clone());
    let meter = Meter::bytes(ctx, Some(expected.size), "fetching the snapshot");
    let digest = blocking(move || {
        let file = std::fs::File::create(&path).map_err(|error| {
            StepError::transient(codes::LB1311, format!("{} cannot be written", path.display()))
                .caused_by(&error)
        })?;
        let mut to = HashingWriter::new(file);
        copy(&mut store.read(&key)?, &mut to, &meter)?;
        Ok(to.finish().1)
    })
    .await?;
    if (digest.size, &digest.sha256) == (expected.size, &expected.sha256) {
        return Ok(());
    }
    let message = format!(
        "the snapshot `{label}` is damaged: {} bytes with SHA-256 {}, not {} bytes with {}",
        digest.size, digest.sha256, expected.size, expected.sha256
    );
    Err(StepError::permanent(codes::LB1305, message).help("choose another snapshot with `backup`"))
}

async fn prove(
    ctx: &StepContext,
    params: &Params,
    redis: &resource::Redis,
    (marker, snapshot): (&Marker, &Path),
) -> Result<(), StepError> {
    let details = holds(ctx, redis, marker, snapshot).await?;
    if params.load_check {
        let dir = check::scratch(ctx, "load-check")?;
        check::with_server(ctx, redis, (snapshot, &dir), details.keys).await?;
    }
    Ok(())
}

/// Reads a snapshot whole, and compares its keys with what the marker says.
pub(super) async fn holds(
    ctx: &StepContext,
    redis: &resource::Redis,
    marker: &Marker,
    snapshot: &Path,
) -> Result<Details, StepError> {
    let details: Details = marker.details()?;
    let checked = check::with_tool(ctx, redis, snapshot).await?;
    if checked.keys == details.keys {
        return Ok(details);
    }
    let message = format!(
        "the snapshot `{}` holds {} keys, not {} as its marker says",
        marker.label, checked.keys, details.keys
    );
    Err(StepError::permanent(codes::LB1305, message).help("choose another snapshot with `backup`"))
}

/// Stops, moves aside, places, starts, verifies.
async fn replace(
    ctx: &StepContext,
    params: &Params,
    (persistence, client): (&Persistence, Option<Client>),
    (marker, snapshot): (&Marker, &Path),
) -> Result<Done, StepError> {
    let redis = server(ctx, &params.server)?;
    let (data_dir, manager) = required(ctx, redis, &params.server)?;
    let os_user = redis.os_user.as_deref();
    let staged = place::stage(ctx, &params.server, snapshot, (persistence, os_user)).await?;
    undo::note(ctx, persistence, client.is_some()).await?;
    start::stop(ctx, (&params.server, manager), client).await?;
    let aside = place::place(ctx, &params.server, staged, persistence).await?;
    let (mut client, info, took) =
        start::start(ctx, (&params.server, manager), params.load_timeout.0).await?;
    check_dir(&client.dir().await?, data_dir, &params.server)?;
    let details: Details = marker.details()?;
    let checks = checks(&details, &info, persistence);
    if let Some(failed) = checks.iter().find(|check| !check.passed) {
        let message = format!(
            "the Redis server `{}` did not come up with the snapshot: {} is {}, not {}",
            params.server, failed.name, failed.actual, failed.expected
        );
        return Err(StepError::permanent(codes::LB1309, message)
            .help("look at the log of the server; its old files are kept as `.pre-RUN`")
            .checks(checks));
    }
    let held: u64 = info.keyspace().values().map(|count| count.keys).sum();
    let Value::Object(outputs) = json!({
        "backup": marker.label,
        "taken_at": details.taken_at,
        "keys": held,
        "expired": details.keys.saturating_sub(held),
        "load_seconds": took.as_secs_f64(),
        "moved_aside": aside,
    }) else {
        unreachable!("an object was written")
    };
    let point = RecoveryPoint {
        resource: params.server.clone(),
        time: details.taken_at.to_string(),
        position: Some(marker.label.clone()),
        method: "snapshot time".into(),
        confidence: Confidence::Stated,
    };
    Ok(Done { outputs, checks, recovery_points: vec![point], ..Done::default() })
}

fn checks(details: &Details, info: &Info, persistence: &Persistence) -> Vec<Check> {
    let check = |name: &str, expected: String, actual: String| {
        let passed = expected == actual;
        Check { name: name.into(), expected, actual, passed }
    };
    let loaded = check::loaded_and_expired(info);
    let append = if persistence.append_only { "1" } else { "0" };
    let mut checks = vec![
        check("keys loaded and expired", details.keys.to_string(), loaded.to_string()),
        check("keys evicted", "0".into(), info.text("evicted_keys").into()),
        check("append-only file in use", append.into(), info.text("aof_enabled").into()),
        check("role", "master".into(), info.text("role").into()),
    ];
    for (number, stored) in details.databases.iter().flatten() {
        let found = info.keyspace().get(number).copied().unwrap_or_default().keys;
        let least = stored.keys.saturating_sub(stored.expires);
        checks.push(Check {
            name: format!("keys in database {number}"),
            expected: format!("{least} to {}", stored.keys),
            actual: found.to_string(),
            passed: (least..=stored.keys).contains(&found),
        });
    }
    checks
}
