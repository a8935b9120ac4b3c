use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use jiff::Timestamp;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::model::evidence::{Progress, Unit};
use lifeboat_engine::resource::{self, ResourceKind};
use lifeboat_engine::step::{Effect, KindSpec, Preview, StepContext, StepError, StepKind};
use lifeboat_engine::value::{Field, Span, Type};
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::check::{self, Checked};
use super::client::{self, Client, server};
use super::codes;
use super::info::{Info, KeyCount};
use super::relay::Relay;
use crate::backup::{self, Begun};
use crate::process::Command;
use crate::store::{BackupKind, HashingWriter, Marker, Meter, ObjectEntry, Partial, Store, blocking, copy};

/// The name of the snapshot within its backup.
pub(super) const DUMP: &str = "dump.rdb";

/// Takes a snapshot of a Redis server into a store.
#[derive(Debug)]
pub(super) struct Snapshot;

/// What a marker keeps of a snapshot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Details {
    /// The server that it is of, by the name of its resource.
    pub(super) resource: String,
    /// Every change that was acknowledged before this moment is in the snapshot.
    pub(super) taken_at: Timestamp,
    pub(super) redis_version: String,
    pub(super) keys: u64,
    pub(super) expires: u64,
    /// By the number of the database; absent if the snapshot was not loaded for proof.
    pub(super) databases: Option<BTreeMap<u32, KeyCount>>,
}

#[derive(Deserialize)]
struct Params {
    server: String,
    store: String,
    save_timeout: Span,
    load_check: bool,
}

const DOC: &str = "\
Asks the server for a snapshot (`BGSAVE`), waits until `INFO persistence` says that this very snapshot was written, and
copies the file that `CONFIG GET` names. A server on another machine, or one without readable files here, is asked with
`redis-cli --rdb`. The copy is read whole by `redis-check-rdb` and, with `load_check`, loaded into a throw-away server
on this machine if there is memory for it; its keys per database are stored with the snapshot.

The snapshot holds every change that the server acknowledged before `taken_at`. Afterwards the marker is written, and
with it the backup exists.";

#[async_trait]
impl StepKind for Snapshot {
    fn spec(&self) -> KindSpec {
        KindSpec::new(
            "redis.snapshot",
            "Takes a snapshot of a Redis server into a store.",
            Effect::Idempotent,
        )
        .doc(DOC)
        .param(Field::required("server", Type::reads(ResourceKind::Redis), "The server."))
        .param(Field::required("store", Type::writes(ResourceKind::Store), "Where the snapshot goes."))
        .param(Field::defaulted("save_timeout", Type::Duration, "10m", "How long the server may write."))
        .param(Field::defaulted("load_check", Type::Boolean, true, "Whether it is loaded for proof."))
        .output("backup", Type::String, "The label of the snapshot in the store.")
        .output("taken_at", Type::Timestamp, "Every change acknowledged before it is in the snapshot.")
        .output("keys", Type::Integer, "How many keys it holds, expired ones included.")
        .output("bytes", Type::Integer, "Its size.")
    }

    async fn preview(&self, ctx: &StepContext) -> Result<Preview, StepError> {
        let params: Params = ctx.params()?;
        let url = &server(ctx, &params.server)?.url;
        let actions = vec![format!("BGSAVE on {url}"), "redis-check-rdb dump.rdb".to_owned()];
        Ok(Preview { actions, destroys: Vec::new() })
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let params: Params = ctx.params()?;
        let store = Store::of_for_writing(ctx, &params.store).await?;
        match backup::begin(ctx, &store, BackupKind::RedisRdb).await? {
            Begun::Published(marker) => done(&marker, Vec::new()),
            Begun::New(partial) => take(ctx, &params, partial).await,
        }
    }
}

async fn take(ctx: &StepContext, params: &Params, partial: Partial) -> Result<Done, StepError> {
    let started_at = Timestamp::now();
    let redis = server(ctx, &params.server)?;
    let target = partial.path().join(DUMP);
    let mut client = Client::connect(ctx, &params.server).await?;
    let info = client.info().await?;
    let local = local_file(&mut client).await;
    let asked_at = match local.clone() {
        Some(source) => {
            let asked_at = save(ctx, &mut client, params.save_timeout.0).await?;
            copy_local(ctx, source, target.clone()).await?;
            asked_at
        }
        None => fetch(ctx, params, redis, &target).await?,
    };
    let checked = check::with_tool(ctx, redis, &target).await?;
    if let Some(source) = local {
        check_fresh(&source, asked_at, &checked)?;
    }
    let (databases, warnings) = prove(ctx, params, &target, (&info, &checked)).await?;
    let details = Details {
        resource: params.server.clone(),
        taken_at: checked.created.map_or(asked_at, |created| created.min(asked_at)),
        redis_version: checked.redis_version,
        keys: checked.keys,
        expires: checked.expires,
        databases,
    };
    let object = digest(ctx, target).await?;
    let details = serde_json::to_value(details).expect("plain data can be written");
    let marker =
        blocking(move || partial.publish((started_at, Timestamp::now()), vec![object], details)).await?;
    done(&marker, warnings)
}

fn done(marker: &Marker, warnings: Vec<String>) -> Result<Done, StepError> {
    let details: Details = marker.details()?;
    let Value::Object(outputs) = json!({
        "backup": marker.label,
        "taken_at": details.taken_at,
        "keys": details.keys,
        "bytes": marker.bytes(),
    }) else {
        unreachable!("an object was written")
    };
    let facts = BTreeMap::from([("redis version".to_owned(), details.redis_version)]);
    Ok(Done { outputs, facts, warnings, ..Done::default() })
}

/// Returns the file that the server writes, if it is on this machine and can be read.
async fn local_file(client: &mut Client) -> Option<PathBuf> {
    let settings = client.config(&["dir", "dbfilename"]).await.ok()?;
    let path = Path::new(settings.get("dir")?).join(settings.get("dbfilename")?);
    let port = client.config(&["port"]).await.ok()?.remove("port")?;
    // The same path may exist on this machine and belong to another server: that one is recognised by its process.
    let info = client.info().await.ok()?;
    let pid = info.number("process_id")?;
    let name = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let is_redis = String::from_utf8_lossy(&name).contains("redis");
    let readable = path.parent().is_some_and(|dir| std::fs::read_dir(dir).is_ok());
    (is_redis && readable && info.text("tcp_port") == port).then_some(path)
}

/// Asks for a snapshot and waits until this very one was written. Returns the moment before it was asked for.
async fn save(ctx: &StepContext, client: &mut Client, patience: Duration) -> Result<Timestamp, StepError> {
    let deadline = Instant::now() + patience;
    loop {
        let before = idle(ctx, client, deadline).await?;
        let last = last_save(client).await?;
        let asked_at = Timestamp::now();
        let begun = match client.try_command::<String>(&["BGSAVE", "SCHEDULE"]).await {
            // Otherwise a rewrite of the append-only file runs, and the snapshot comes after it.
            Ok(answer) if answer.contains("started") => Began::Now,
            Ok(_) => Began::Later,
            // Somebody else's snapshot began in between, which may lack changes that are already acknowledged.
            Err(error) if error.to_string().contains("in progress") => continue,
            Err(error) => {
                let message = "the Redis server does not begin a snapshot";
                return Err(StepError::transient(codes::LB1303, message)
                    .help("the server's log names the reason: usually there is no memory for the fork")
                    .caused_by(&error));
            }
        };
        written(ctx, client, (&before, last, begun), deadline).await?;
        return Ok(asked_at);
    }
}

async fn last_save(client: &mut Client) -> Result<u64, StepError> {
    client.command(&["LASTSAVE"]).await
}

/// Waits until no snapshot is being written.
async fn idle(ctx: &StepContext, client: &mut Client, deadline: Instant) -> Result<Info, StepError> {
    loop {
        let info = client.info().await?;
        if !info.flag("rdb_bgsave_in_progress") && !info.flag("loading") {
            return Ok(info);
        }
        pause(ctx, &info, deadline).await?;
    }
}

/// What the server has answered to the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Began {
    Now,
    Later,
}

async fn written(
    ctx: &StepContext,
    client: &mut Client,
    (before, last, began): (&Info, u64, Began),
    deadline: Instant,
) -> Result<(), StepError> {
    loop {
        let info = client.info().await?;
        if !info.flag("rdb_bgsave_in_progress") {
            let saves = |info: &Info| info.number("rdb_saves");
            let ended = match (saves(before), saves(&info)) {
                // Redis 7 counts a snapshot when it begins, whatever becomes of it.
                (Some(before), Some(now)) => now > before,
                // Before Redis 7 only the time of the last good one tells, in whole seconds.
                _ => last_save(client).await? > last || began == Began::Now,
            };
            let is_newer = saves(&info).is_some() || last_save(client).await? > last;
            match info.text("rdb_last_bgsave_status") {
                "ok" if ended && is_newer => return Ok(()),
                "err" if ended => return Err(not_written()),
                _ => {}
            }
        }
        pause(ctx, &info, deadline).await?;
    }
}

fn not_written() -> StepError {
    StepError::transient(codes::LB1303, "the Redis server could not write the snapshot").help(
        "the server's log names the reason: usually disk space, memory, permissions, or somebody has killed the process that \
         writes; the snapshot before it is still there",
    )
}

async fn pause(ctx: &StepContext, info: &Info, deadline: Instant) -> Result<(), StepError> {
    const POLL: Duration = Duration::from_millis(100);
    if Instant::now() >= deadline {
        let message = "the Redis server has not finished its snapshot within `save_timeout`";
        return Err(StepError::transient(codes::LB1303, message).help("raise `save_timeout` of the step"));
    }
    if let (Some(done), Some(total)) =
        (info.number("current_save_keys_processed"), info.number("current_save_keys_total"))
        && total > 0
    {
        ctx.progress(Progress { done, total: Some(total), unit: Unit::Items, note: "writing keys".into() });
    }
    tokio::select! {
        () = ctx.cancelled() => Err(StepError::transient(codes::LB1303, "the snapshot was not waited for")),
        () = tokio::time::sleep(POLL) => Ok(()),
    }
}

async fn copy_local(ctx: &StepContext, source: PathBuf, target: PathBuf) -> Result<(), StepError> {
    // The server replaces the file by a rename, so an open one never changes.
    let meter =
        Meter::bytes(ctx, std::fs::metadata(&source).ok().map(|found| found.len()), "copying the snapshot");
    blocking(move || {
        let failed = |path: &Path, error: &std::io::Error| {
            let message = format!("the Redis snapshot cannot be copied: {}", path.display());
            StepError::transient(codes::LB1303, message).caused_by(error)
        };
        let mut from = File::open(&source).map_err(|error| failed(&source, &error))?;
        let mut to = File::create(&target).map_err(|error| failed(&target, &error))?;
        copy(&mut from, &mut to, &meter).map(drop)
    })
    .await
}

/// Proves that the file that was copied is the snapshot that was asked for, and not that of another server.
fn check_fresh(source: &Path, asked_at: Timestamp, checked: &Checked) -> Result<(), StepError> {
    // The server's clock for it counts seconds and is coarse: it may be some ticks behind ours.
    const COARSE: i64 = 1;
    match checked.created {
        Some(created) if created.as_second() + COARSE < asked_at.as_second() => {
            let message = format!(
                "{} was written at {created}, before the snapshot was asked for at {asked_at}",
                source.display()
            );
            Err(StepError::permanent(codes::LB1303, message)
                .help("the server that answers does not write this file: check `url` of the resource"))
        }
        _ => Ok(()),
    }
}

/// Lets the server send a snapshot as to a replica. Returns the moment before it was asked for.
async fn fetch(
    ctx: &StepContext,
    params: &Params,
    redis: &resource::Redis,
    target: &Path,
) -> Result<Timestamp, StepError> {
    let asked_at = Timestamp::now();
    let mut tool = Command::new(check::program(redis, "redis-cli"));
    if let Some(password) = &redis.password {
        tool = tool.secret_env("REDISCLI_AUTH", ctx.secret(password)?.expose_secret().into());
    }
    let sought = client::target(ctx, (&params.server, None))?;
    let output = if sought.is_protected() {
        let relay = Relay::new(sought)?;
        let tool = tool.arg("-s").arg(relay.socket()).arg("--rdb").arg(target);
        let run = relay.during(tool.run_checked(ctx)).await;
        run.map_err(|error| client::cannot_reach(ctx, &params.server, error))??
    } else {
        tool.args(["-u", redis.url.as_str(), "--rdb"]).arg(target).run_checked(ctx).await?
    };
    if output.stdout.total() + output.stderr.total() == 0 || !target.is_file() {
        let message = format!("`{}` sent no snapshot", params.server);
        return Err(StepError::transient(codes::LB1303, message));
    }
    Ok(asked_at)
}

/// Loads the copy for proof, if this machine has the memory.
async fn prove(
    ctx: &StepContext,
    params: &Params,
    file: &Path,
    (info, checked): (&Info, &Checked),
) -> Result<(Option<BTreeMap<u32, KeyCount>>, Vec<String>), StepError> {
    if !params.load_check {
        return Ok((
            None,
            vec!["the snapshot was not loaded for proof, because `load_check` is false".into()],
        ));
    }
    let needed = info.number("used_memory").unwrap_or(0) / 2 * 3;
    if available_memory().is_some_and(|available| available < needed) {
        let warning =
            format!("the snapshot was not loaded for proof: that may take {needed} bytes of memory");
        return Ok((None, vec![warning]));
    }
    let dir = check::scratch(ctx, "load-check")?;
    let redis = server(ctx, &params.server)?;
    check::with_server(ctx, redis, (file, &dir), checked.keys).await.map(|found| (Some(found), Vec::new()))
}

/// Returns how many bytes new programs may use, as the kernel estimates it.
fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

async fn digest(ctx: &StepContext, file: PathBuf) -> Result<ObjectEntry, StepError> {
    let meter = Meter::bytes(ctx, None, "hashing the snapshot");
    blocking(move || {
        let mut from = File::open(&file).map_err(|error| {
            StepError::transient(codes::LB1303, "the copied snapshot cannot be read").caused_by(&error)
        })?;
        let mut hasher = HashingWriter::new(std::io::sink());
        copy(&mut from, &mut hasher, &meter)?;
        let (_, digest) = hasher.finish();
        Ok(ObjectEntry { name: DUMP.into(), size: digest.size, sha256: digest.sha256 })
    })
    .await
}
