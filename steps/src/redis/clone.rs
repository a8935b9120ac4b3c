//! `redis.clone`: a server of the run's own that holds a snapshot.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use jiff::Timestamp;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::model::evidence::{Check, Confidence, Progress, RecoveryPoint, Unit};
use lifeboat_engine::resource::{self, Access, Resource, ResourceKind, System, made_by};
use lifeboat_engine::step::{Effect, KindSpec, Preview, Probe, StepContext, StepError, StepKind};
use lifeboat_engine::value::{Field, Span, Type};
use serde::Deserialize;
use serde_json::{Value, json};

use super::client::Client;
use super::info::Info;
use super::restore::{fetch, holds};
use super::snapshot::{DUMP, Details};
use super::{check, codes};
use crate::backup::{self, Wanted};
use crate::home::{Home, keep_away};
use crate::process::{Command, Identity, OsUser, Server, ServerSpec, identity};
use crate::store::{BackupKind, Marker, Store};

/// Under these keys the step finds, after a crash, how far it had come.
const CHOSEN: &str = "chosen";
const MADE: &str = "made";
const TERM: i32 = 15;
const POLL: Duration = Duration::from_millis(50);
const STOPS_WITHIN: Duration = Duration::from_secs(10);

/// Loads a snapshot into a server of the run's own.
#[derive(Debug)]
pub(super) struct Clone;

#[derive(Deserialize)]
struct Params {
    store: String,
    backup: Option<String>,
    target_time: Option<Timestamp>,
    source: Option<String>,
    dir: Option<PathBuf>,
    bin_dir: Option<PathBuf>,
    os_user: Option<String>,
    load_timeout: Span,
}

const DOC: &str = "\
Takes the snapshot named by `backup`, or else the newest that was finished before `target_time`, or else the newest; \
compares its checksum, lets `redis-check-rdb` read it, and loads it into a server that nobody else uses. The step succeeds \
when the server has loaded exactly the keys of the snapshot, expired ones included.

The server listens on a socket in a directory of its own and nowhere else, writes no files, and is nobody's replica. \
Later steps use it as `{ from: STEP }` and may write to it; programs get `unix://PATH` by \
`env: { CACHE_URL: { connection: { from: STEP } } }`.

The files go into a directory of this run and step: in the state of the run, or below `dir`, which must exist. Room on the \
disk and memory are checked before anything is written. A drill stops the server and removes the files after `always`, and \
proves both; a recovery and `--keep` leave them. A job queue in the snapshot runs nothing by itself.";

#[async_trait]
impl StepKind for Clone {
    fn spec(&self) -> KindSpec {
        let mut spec = KindSpec::new(
            "redis.clone",
            "Loads a snapshot into a disposable Redis server of the run's own.",
            Effect::Guarded,
        )
        .doc(DOC)
        .creates(ResourceKind::Redis)
        .restores()
        .output("backup", Type::String, "The label of the snapshot.")
        .output("taken_at", Type::Timestamp, "When the snapshot was taken.")
        .output("keys", Type::Integer, "How many keys the server held when it had loaded.")
        .output("expired", Type::Integer, "How many keys of the snapshot had expired by then.")
        .output("load_seconds", Type::Number, "From the start of the server until it had loaded.")
        .output("socket", Type::Path, "The socket of the server.")
        .output("data_dir", Type::Path, "Where its files are.");
        spec.params = params();
        spec
    }

    async fn preview(&self, ctx: &StepContext) -> Result<Preview, StepError> {
        let params: Params = ctx.params()?;
        let snapshot = match (&params.backup, params.target_time) {
            (Some(label), _) => format!("the snapshot `{label}`"),
            (None, Some(time)) => format!("the newest snapshot before {time}"),
            (None, None) => "the newest snapshot".to_owned(),
        };
        let place = params.dir.map_or("the state of the run".to_owned(), |dir| dir.display().to_string());
        let action = format!("load {snapshot} of `{}` into a server of its own in {place}", params.store);
        Ok(Preview { actions: vec![action], destroys: Vec::new() })
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let work = Work::new(ctx)?;
        if let Some(done) = work.made_before().await {
            return Ok(done);
        }
        keep_away(ctx, &work.name, &work.resource).await?;
        work.stop_leftover().await?;
        let store = Store::of(ctx, &work.params.store).await?;
        let marker = work.choose(&store).await?;
        work.check_room(&marker)?;
        work.home.make(ctx, work.user.as_ref()).await?;
        work.home.make_socket_dir(ctx, &work.socket, work.user.as_ref()).await?;
        work.provide(store, &marker).await?;
        let loaded = work.load().await?;
        let done = work.finish(&marker, &loaded)?;
        ctx.record(MADE, serde_json::to_value(&done).expect("results are JSON")).await?;
        Ok(done)
    }

    async fn probe(&self, ctx: &StepContext) -> Result<Probe, StepError> {
        Ok(Work::new(ctx)?.made_before().await.map_or(Probe::NotDone, Probe::Done))
    }
}

fn params() -> Vec<Field> {
    vec![
        Field::required("store", Type::reads(ResourceKind::Store), "Where the snapshots are."),
        Field::optional("backup", Type::String, "The label of the snapshot."),
        Field::optional("target_time", Type::Timestamp, "The snapshot was finished before it."),
        Field::optional("source", Type::String, "The server that it was taken of, if the store has several."),
        Field::optional("dir", Type::Path, "A directory for its files; the state of the run if absent."),
        Field::optional("bin_dir", Type::Path, "Where `redis-server` is; found if absent."),
        Field::optional(
            "os_user",
            Type::String,
            "The system user that runs the server; who runs Lifeboat if absent.",
        ),
        Field::defaulted("load_timeout", Type::Duration, "10m", "How long the server may load."),
    ]
}

/// A server that has loaded its snapshot.
struct Loaded {
    info: Info,
    took: Duration,
    server: Server,
}

/// One clone that is being made.
struct Work<'a> {
    ctx: &'a StepContext,
    params: Params,
    name: String,
    home: Home,
    socket: PathBuf,
    user: Option<OsUser>,
    resource: Resource,
}

impl<'a> Work<'a> {
    fn new(ctx: &'a StepContext) -> Result<Self, StepError> {
        let params: Params = ctx.params()?;
        let user =
            params.os_user.as_deref().map(OsUser::lookup).transpose()?.filter(|user| !user.is_current());
        let home = Home::choose(ctx, params.dir.as_deref(), user.as_ref(), codes::LB1312)?;
        let socket = home.socket("redis.sock");
        let redis = resource::Redis {
            url: format!("unix://{}", socket.display()),
            password: None,
            tls: None,
            data_dir: Some(home.path.clone()),
            bin_dir: params.bin_dir.clone(),
            config_file: None,
            os_user: params.os_user.clone(),
            service: None,
        };
        let resource = Resource { access: Access::Write, optional: false, system: System::Redis(redis) };
        Ok(Self { ctx, params, name: made_by(ctx.info.step.as_str()), home, socket, user, resource })
    }

    fn redis(&self) -> &resource::Redis {
        let System::Redis(redis) = &self.resource.system else { unreachable!("made as a Redis") };
        redis
    }

    fn pid_file(&self) -> PathBuf {
        self.home.path.join("redis.pid")
    }

    fn running(&self) -> Option<Identity> {
        identity::load(&self.pid_file()).filter(Identity::is_alive)
    }

    /// Returns the results of an attempt that had finished, if its server still runs and answers.
    async fn made_before(&self) -> Option<Done> {
        let done = serde_json::from_value(self.ctx.recorded(MADE)?.clone()).ok()?;
        self.running()?;
        Client::connect_socket(&self.socket, &self.name).await.ok()?;
        Some(done)
    }

    /// Ends the server of an earlier attempt: its record is about to be replaced.
    async fn stop_leftover(&self) -> Result<(), StepError> {
        match self.running() {
            Some(server) => identity::stop(&server, TERM, STOPS_WITHIN).await.map(drop),
            None => Ok(()),
        }
    }

    /// Chooses the snapshot once: a later attempt goes on with the same one.
    async fn choose(&self, store: &Store) -> Result<Marker, StepError> {
        let recorded = self.ctx.recorded(CHOSEN).and_then(Value::as_str).map(ToOwned::to_owned);
        let wanted = Wanted {
            kind: BackupKind::RedisRdb,
            store: self.params.store.clone(),
            label: recorded.or_else(|| self.params.backup.clone()),
            before: self.params.target_time,
            source: self.params.source.clone(),
            target: self.ctx.info.step.to_string(),
            none: codes::LB1304,
        };
        let marker = backup::choose(store, wanted).await?;
        self.ctx.record(CHOSEN, marker.label.clone()).await?;
        Ok(marker)
    }

    /// The file needs room on the disk, and its data at least as much memory.
    fn check_room(&self, marker: &Marker) -> Result<(), StepError> {
        let needed = marker.bytes();
        let refuse = |what: &str, free: u64| {
            let message = format!(
                "the snapshot `{}` needs {needed} bytes of {what}, and {free} are free",
                marker.label
            );
            Err(StepError::transient(codes::LB1313, message)
                .help("make room, or give the step a `dir` on another file system; nothing was touched"))
        };
        let disk = self.home.free_space()?;
        match available_memory() {
            _ if disk < needed => refuse(&format!("disk at {}", self.home.path.display()), disk),
            Some(memory) if memory < needed => refuse("memory", memory),
            _ => Ok(()),
        }
    }

    /// Brings the snapshot into place, and proves that it is whole.
    async fn provide(&self, store: Store, marker: &Marker) -> Result<(), StepError> {
        let file = self.home.path.join(DUMP);
        fetch(self.ctx, store, marker, file.clone()).await?;
        holds(self.ctx, self.redis(), marker, &file).await?;
        let placed =
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).and_then(
                |()| match &self.user {
                    Some(user) => std::os::unix::fs::chown(&file, Some(user.uid), Some(user.gid)),
                    None => Ok(()),
                },
            );
        placed.map_err(|error| {
            StepError::transient(codes::LB1311, format!("{} cannot be placed", file.display()))
                .caused_by(&error)
        })
    }

    async fn load(&self) -> Result<Loaded, StepError> {
        let begun = Instant::now();
        let server = self.start().await?;
        match self.wait_loaded(&server, begun).await {
            Ok(info) => Ok(Loaded { info, took: begun.elapsed(), server }),
            Err(error) => {
                identity::stop(&server.identity, TERM, STOPS_WITHIN).await?;
                Err(error)
            }
        }
    }

    async fn start(&self) -> Result<Server, StepError> {
        let command = Command::new(check::program(self.redis(), "redis-server"))
            .args(["--port", "0", "--save", "", "--appendonly", "no", "--daemonize", "no"])
            .arg("--unixsocket")
            .arg(&self.socket)
            .args(["--unixsocketperm", "700", "--dir"])
            .arg(&self.home.path)
            .args(["--dbfilename", DUMP])
            .dir(&self.home.path)
            .os_user(self.user.as_ref().map(|user| user.name.as_str()))
            .pid_file(self.pid_file());
        let spec = ServerSpec {
            id: format!("server:{}", self.name),
            what: format!("Redis server of {}", self.ctx.info.step),
            log_file: self.ctx.work_dir()?.join("redis.log"),
            stop_signal: TERM,
        };
        Server::start(command, spec, self.ctx).await
    }

    async fn wait_loaded(&self, server: &Server, begun: Instant) -> Result<Info, StepError> {
        loop {
            if let Ok(mut client) = Client::connect_socket(&self.socket, &self.name).await
                && let Ok(info) = client.info().await
            {
                if !info.flag("loading") {
                    return Ok(info);
                }
                if let Some(done) = info.number("loading_loaded_bytes") {
                    let total = info.number("loading_total_bytes");
                    self.ctx.progress(Progress { done, total, unit: Unit::Bytes, note: "loading".into() });
                }
            }
            let problem = match () {
                () if !server.identity.is_alive() => "ended while it loaded the snapshot",
                () if begun.elapsed() >= self.params.load_timeout.0 => {
                    "has not loaded the snapshot within `load_timeout`"
                }
                () if self.ctx.cancel.is_cancelled() => "was not waited for",
                () => {
                    tokio::time::sleep(POLL).await;
                    continue;
                }
            };
            let message = format!("the Redis server of `{}` {problem}", self.ctx.info.step);
            let mut error = StepError::transient(codes::LB1309, message)
                .help(format!("its log is {}", server.log_file().display()));
            error.causes = server.log_tail(10);
            return Err(error);
        }
    }

    fn finish(&self, marker: &Marker, loaded: &Loaded) -> Result<Done, StepError> {
        let details: Details = marker.details()?;
        let Loaded { info, took, server } = loaded;
        let held: u64 = info.keyspace().values().map(|count| count.keys).sum();
        let equal = |name: &str, expected: String, actual: String| {
            let passed = expected == actual;
            Check { name: name.into(), expected, actual, passed }
        };
        let checks = vec![
            equal(
                "keys loaded and expired",
                details.keys.to_string(),
                check::loaded_and_expired(info).to_string(),
            ),
            equal("keys evicted", "0".into(), info.text("evicted_keys").into()),
            equal("role", "master".into(), info.text("role").into()),
        ];
        if let Some(failed) = checks.iter().find(|check| !check.passed) {
            let message = format!(
                "the Redis server of `{}` does not hold the snapshot: {} is {}, not {}",
                self.ctx.info.step, failed.name, failed.actual, failed.expected
            );
            let help =
                format!("its log is {}; choose another snapshot with `backup`", server.log_file().display());
            return Err(StepError::permanent(codes::LB1309, message).help(help).checks(checks));
        }
        let Value::Object(outputs) = json!({
            "backup": marker.label, "taken_at": details.taken_at, "keys": held,
            "expired": details.keys.saturating_sub(held), "load_seconds": took.as_secs_f64(),
            "socket": self.socket, "data_dir": self.home.path,
        }) else {
            unreachable!("an object was written")
        };
        let point = RecoveryPoint {
            resource: self.ctx.info.step.to_string(),
            time: details.taken_at.to_string(),
            position: Some(marker.label.clone()),
            method: "snapshot time".into(),
            confidence: Confidence::Stated,
        };
        let resource = Some(self.resource.to_value());
        Ok(Done { outputs, checks, recovery_points: vec![point], resource, ..Done::default() })
    }
}

/// Returns the bytes of memory that programs can still get.
fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string(Path::new("/proc/meminfo")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}
