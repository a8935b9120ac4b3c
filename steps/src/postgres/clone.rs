//! `postgres.clone`: a cluster of the run's own, restored from a store.

use std::path::PathBuf;

use async_trait::async_trait;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::resource::{Access, Heartbeat, Postgres, Resource, ResourceKind, System, made_by};
use lifeboat_engine::step::{
    Effect, KindSpec, ParamProblem, Preview, Probe, StepContext, StepError, StepKind,
};
use lifeboat_engine::value::{Field, Type};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::backup::SelectBackup;
use super::isolation::{Isolation, work_dir};
use super::promote::Promote;
use super::recover::Recover;
use super::recovery_target::{RecoveryTarget, TargetParams, Targets};
use super::restore_base::RestoreBase;
use super::{account, codes};
use crate::home::{Home, keep_away};
use crate::process::OsUser;

/// Under these keys the step finds, after a crash, how far it had come.
const CHOSEN: &str = "chosen";
const RECOVERED: &str = "recovered";
const MADE: &str = "made";
/// The number in the name of the socket, which nobody else has in its directory.
const PORT: u16 = 5432;

/// Restores a cluster of the run's own.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clone;

#[derive(Deserialize)]
struct Params {
    store: String,
    backup: Option<String>,
    #[serde(flatten)]
    target: TargetParams,
    system_id: Option<String>,
    timeline: Option<u32>,
    dir: Option<PathBuf>,
    bin_dir: Option<PathBuf>,
    os_user: String,
    user: String,
    database: String,
    heartbeat: Option<Heartbeat>,
}

const DOC: &str = "\
Makes a cluster that nobody else uses and that can harm nobody: chosen, restored, recovered and promoted by the rules of \
`postgres.select_backup`, `restore_base`, `recover` and `promote`, one after the other, and cut off in every mode. It \
archives nothing, connects to nothing, loads no libraries and listens on a socket in a directory of its own, where the \
server's user and the one that runs Lifeboat log in as any role without a password.

Later steps use it as `{ from: STEP }` and may write to it:

```yaml
- { id: clone, uses: postgres.clone, with: { store: backups, target_time: \"{{ inputs.target_time }}\" } }
- { id: look, uses: postgres.verify, with: { cluster: { from: clone }, queries: [] } }
- { id: report, effect: read, env: { URL: { connection: { from: clone }, database: shop } }, run: ./report }
```

The files go into a directory of this run and step: in the state of the run, or below `dir`, which must exist. If \
Lifeboat runs as root, the server runs as `os_user`, to whom the state is closed, and without `dir` the files go below \
`/var/tmp`. Room is checked before anything is written. An attempt that was cut off is continued, never begun anew.

A drill stops the server and removes the files after `always`, and proves both; a recovery and `--keep` leave them.";

#[async_trait]
impl StepKind for Clone {
    fn spec(&self) -> KindSpec {
        let mut spec = KindSpec::new(
            "postgres.clone",
            "Restores a backup into a disposable cluster of the run's own.",
            Effect::Guarded,
        )
        .doc(DOC)
        .creates(ResourceKind::Postgres)
        .restores()
        .output("backup", Type::String, "The label of the backup.")
        .output("reached", Type::Timestamp, "The newest change that is in the data.")
        .output(
            "recovery_point",
            Type::Any,
            "`time`, `method`, `confidence` and `position` of the newest change.",
        )
        .output("lsn", Type::String, "How far WAL was replayed.")
        .output(
            "end_of_wal",
            Type::Boolean,
            "True if all WAL was replayed, because no commit follows the target.",
        )
        .output("timeline", Type::Integer, "The timeline that the cluster writes now.")
        .output("system_id", Type::String, "The system identifier, which is that of the source.")
        .output("data_dir", Type::Path, "Where its files are.")
        .output(
            "socket_dir",
            Type::Path,
            "The directory of its socket, for programs that take it as their host.",
        )
        .output("port", Type::Integer, "The number in the name of the socket; no port is open.")
        .output("bytes", Type::Integer, "Size of the restored files in bytes.")
        .output("wal_bytes", Type::Integer, "How much of the log was replayed.")
        .output("base_seconds", Type::Number, "How long the base backup took to be restored.")
        .output("replay_seconds", Type::Number, "How long the log took to be replayed.");
        spec.params = params();
        spec
    }

    fn check(&self, with: &Map<String, Value>) -> Vec<ParamProblem> {
        TargetParams::check(with)
    }

    async fn preview(&self, ctx: &StepContext) -> Result<Preview, StepError> {
        let params: Params = ctx.params()?;
        let backup =
            params.backup.as_ref().map_or("the newest usable base backup".to_owned(), |it| format!("`{it}`"));
        let target = params.target.resolve()?;
        let place = params.dir.map_or("the state of the run".to_owned(), |dir| dir.display().to_string());
        Ok(Preview {
            actions: vec![
                format!("restore {backup} of `{}` into a cluster of its own in {place}", params.store),
                format!("replay WAL to {target} and promote it, cut off from everything"),
            ],
            destroys: Vec::new(),
        })
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let work = Work::new(ctx)?;
        if let Some(done) = work.made_before() {
            return Ok(done);
        }
        keep_away(ctx, &work.name, &work.resource).await?;
        work.home.make(ctx, work.owner.as_ref()).await?;
        let chosen = work.choose().await?;
        let base = work.restore(&chosen).await?;
        let recovered = work.recover(&chosen).await?;
        let promoted = Promote.run(&work.part(json!({ "cluster": work.name, "isolated": true }))).await?;
        let done = work.finish(&chosen, [base, recovered, promoted]);
        ctx.record(MADE, serde_json::to_value(&done).expect("results are JSON")).await?;
        Ok(done)
    }

    async fn probe(&self, ctx: &StepContext) -> Result<Probe, StepError> {
        Ok(Work::new(ctx)?.made_before().map_or(Probe::NotDone, Probe::Done))
    }
}

fn params() -> Vec<Field> {
    let heartbeat = vec![
        Field::required("database", Type::String, "The database it is in."),
        Field::required("table", Type::String, "The table."),
        Field::required("column", Type::String, "The column with the time."),
    ];
    let mut params = vec![
        Field::required("store", Type::reads(ResourceKind::Store), "Where the backup and its WAL are."),
        Field::optional("backup", Type::String, "The label of the backup; the newest that fits if absent."),
        Field::optional("system_id", Type::String, "The cluster, if the store holds several."),
        Field::optional(
            "timeline",
            Type::Integer,
            "The timeline to recover along; chosen as `postgres.select_backup` does if absent.",
        ),
        Field::optional("dir", Type::Path, "A directory for its files; the state of the run if absent."),
        Field::optional("bin_dir", Type::Path, "Where the programs of Postgres are; found if absent."),
        Field::defaulted(
            "os_user",
            Type::String,
            "postgres",
            "The system user that runs the server, if Lifeboat is root.",
        ),
        Field::defaulted("user", Type::String, "postgres", "The role that later steps connect as."),
        Field::defaulted("database", Type::String, "postgres", "The database of connections that name none."),
        Field::optional(
            "heartbeat",
            Type::Object(heartbeat),
            "A table that the source writes the time to, for a measured recovery point.",
        ),
    ];
    params.extend(TargetParams::fields(Targets::All));
    params
}

/// The backup to restore, and the timeline to recover along.
#[derive(serde::Serialize, Deserialize)]
struct Chosen {
    backup: String,
    /// As it was given or chosen.
    timeline: Option<String>,
    warnings: Vec<String>,
}

/// One clone that is being made.
struct Work<'a> {
    ctx: &'a StepContext,
    params: Params,
    name: String,
    home: Home,
    owner: Option<OsUser>,
    resource: Resource,
}

impl<'a> Work<'a> {
    fn new(ctx: &'a StepContext) -> Result<Self, StepError> {
        let params: Params = ctx.params()?;
        let mut postgres = Postgres {
            bin_dir: params.bin_dir.clone(),
            data_dir: None,
            config_file: None,
            host: None,
            socket_dir: None,
            port: PORT,
            user: params.user.clone(),
            database: params.database.clone(),
            os_user: Some(params.os_user.clone()),
            password: None,
            tls: None,
            service: None,
            heartbeat: params.heartbeat.clone(),
        };
        let owner = account::owner(&postgres)?;
        let home = Home::choose(ctx, params.dir.as_deref(), owner.as_ref(), codes::LB1276)?;
        let data_dir = home.path.join("data");
        postgres.socket_dir = Some(work_dir(&data_dir));
        postgres.data_dir = Some(data_dir);
        let resource =
            Resource { access: Access::Write, optional: false, system: System::Postgres(postgres) };
        Ok(Self { ctx, params, name: made_by(ctx.info.step.as_str()), home, owner, resource })
    }

    /// Returns the results of an attempt that had finished, if its server still runs.
    fn made_before(&self) -> Option<Done> {
        let done = serde_json::from_value(self.ctx.recorded(MADE)?.clone()).ok()?;
        let serving = Isolation::serving(&self.home.path.join("data"))?;
        (serving.run == self.ctx.info.run.to_string()).then_some(done)
    }

    /// Returns the context of one part, which sees the cluster as a resource of its own.
    fn part(&self, with: Value) -> StepContext {
        self.ctx.part(with, &self.name, self.resource.clone())
    }

    /// Adds the target to the parameters of a part.
    fn with_target(&self, mut with: Value) -> Value {
        let target = serde_json::to_value(&self.params.target).expect("a target is JSON");
        if let (Value::Object(with), Value::Object(target)) = (&mut with, target) {
            with.extend(target);
        }
        with
    }

    /// Chooses the backup once: a later attempt goes on with the same one.
    async fn choose(&self) -> Result<Chosen, StepError> {
        if let Some(chosen) = self.ctx.recorded(CHOSEN) {
            return serde_json::from_value(chosen.clone()).map_err(|error| unreadable(&error));
        }
        let params = &self.params;
        let chosen = match &params.backup {
            Some(backup) => {
                let timeline = params.timeline.map(|timeline| timeline.to_string());
                Chosen { backup: backup.clone(), timeline, warnings: Vec::new() }
            }
            None => {
                params.target.resolve()?.check_located()?;
                let with = json!({
                    "store": params.store, "system_id": params.system_id, "timeline": params.timeline,
                    "gap": "refuse",
                });
                let done = SelectBackup.run(&self.part(self.with_target(with))).await?;
                let immediate = params.target.resolve()? == RecoveryTarget::Immediate;
                let timeline = (!immediate).then(|| done.outputs["timeline"].to_string());
                let backup = done.outputs["backup"].as_str().unwrap_or_default().to_owned();
                Chosen { backup, timeline, warnings: done.warnings }
            }
        };
        let value = serde_json::to_value(&chosen).expect("a choice is JSON");
        self.ctx.record(CHOSEN, value).await?;
        Ok(chosen)
    }

    async fn restore(&self, chosen: &Chosen) -> Result<Done, StepError> {
        let with = json!({
            "store": self.params.store, "backup": chosen.backup, "cluster": self.name, "existing": "refuse",
            "tablespace_dir": self.home.path.join("tablespaces"),
        });
        RestoreBase.run(&self.part(with)).await
    }

    /// Recovers once: what follows opens the cluster for writing, after which nothing may be replayed over it.
    async fn recover(&self, chosen: &Chosen) -> Result<Done, StepError> {
        if let Some(recovered) = self.ctx.recorded(RECOVERED) {
            return serde_json::from_value(recovered.clone()).map_err(|error| unreadable(&error));
        }
        let with = json!({ "store": self.params.store, "cluster": self.name, "timeline": chosen.timeline, "surviving_wal": "none" });
        let done = Recover.run(&self.part(self.with_target(with))).await?;
        let value = serde_json::to_value(&done).expect("results are JSON");
        self.ctx.record(RECOVERED, value).await?;
        Ok(done)
    }

    fn finish(&self, chosen: &Chosen, parts: [Done; 3]) -> Done {
        let [base, recovered, promoted] = &parts;
        let System::Postgres(postgres) = &self.resource.system else { unreachable!("made as a Postgres") };
        let outputs = json!({
            "backup": chosen.backup, "reached": recovered.outputs["reached"],
            "recovery_point": recovered.outputs["recovery_point"], "lsn": recovered.outputs["lsn"],
            "end_of_wal": recovered.outputs["end_of_wal"], "timeline": promoted.outputs["timeline"],
            "system_id": base.outputs["system_id"], "bytes": base.outputs["bytes"],
            "data_dir": postgres.data_dir, "socket_dir": postgres.socket_dir, "port": postgres.port,
            "base_seconds": base.outputs["seconds"], "replay_seconds": recovered.outputs["seconds"],
            // Notes of an earlier version do not have it.
            "wal_bytes": recovered.outputs.get("wal_bytes").and_then(Value::as_u64).unwrap_or(0),
        });
        let mut done = super::local::done(outputs);
        done.warnings.clone_from(&chosen.warnings);
        for part in parts {
            done.checks.extend(part.checks);
            done.facts.extend(part.facts);
            done.warnings.extend(part.warnings);
            done.recovery_points.extend(part.recovery_points);
        }
        // People know it by the step that made it.
        for point in &mut done.recovery_points {
            point.resource = self.ctx.info.step.to_string();
        }
        done.resource = Some(self.resource.to_value());
        done
    }
}

fn unreadable(error: &serde_json::Error) -> StepError {
    StepError::permanent(codes::LB1277, "what an earlier attempt of this step has noted cannot be read")
        .help("begin a new run; `lifeboat report` names the files that this one leaves")
        .caused_by(error)
}
