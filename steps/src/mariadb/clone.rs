//! `mariadb.clone`: a server of the run's own.

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::resource::{Access, Heartbeat, Mariadb, Resource, ResourceKind, System, made_by};
use lifeboat_engine::step::{Effect, KindSpec, Preview, Probe, StepContext, StepError, StepKind};
use lifeboat_engine::value::{Field, Type};
use serde::Deserialize;
use serde_json::{Value, json};

use super::codes;
use super::connect::Login;
use super::instance::{self, Isolated};
use crate::home::{Home, keep_away};
use crate::process::OsUser;
use crate::sql::done;
use crate::store::blocking;

/// Under this key a later attempt finds the results of one that had finished.
const MADE: &str = "made";
const STARTS_WITHIN: Duration = Duration::from_secs(120);

/// Makes a server of the run's own.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clone;

#[derive(Deserialize)]
struct Params {
    dir: Option<PathBuf>,
    bin_dir: Option<PathBuf>,
    os_user: String,
    lower_case_table_names: u8,
    buffer_pool_mb: u64,
    heartbeat: Option<Heartbeat>,
}

const DOC: &str = "\
Makes an empty MariaDB server that nobody else uses and that can harm nobody. It listens on a socket in a directory of its \
own and on no port, runs no events, is nobody's replica, reads no configuration of the machine, has a directory for temporary files to itself; `root` \
logs in without a password, whom only the users of the server and of Lifeboat can be. It keeps a binary log of its own, by \
which `mariadb.replay_binlog` proves what it has applied.

Later steps use it as `{ from: STEP }` and may write to it:

```yaml
- { id: clone, uses: mariadb.clone }
- { id: restore, uses: mariadb.restore_dump, with: { server: { from: clone }, store: backups } }
- { id: replay, uses: mariadb.replay_binlog, with: { server: { from: clone }, store: backups, target_time: \"{{ inputs.target_time }}\" } }
- { id: report, effect: read, env: { URL: { connection: { from: clone }, database: shop } }, run: ./report }
```

The files go into a directory of this run and step: in the state of the run, or below `dir`, which must exist. If \
Lifeboat runs as root, the server runs as `os_user`, to whom the state is closed, and without `dir` the files go below \
`/var/tmp`. An attempt that was cut off begins anew.

A drill stops the server and removes the files after `always`, and proves both; a recovery and `--keep` leave them. After \
a crash of the machine what it holds is not to be trusted: make it again.";

#[async_trait]
impl StepKind for Clone {
    fn spec(&self) -> KindSpec {
        let mut spec = KindSpec::new(
            "mariadb.clone",
            "Makes a disposable, isolated MariaDB server of the run's own.",
            Effect::Guarded,
        )
        .doc(DOC)
        .creates(ResourceKind::Mariadb)
        .output("data_dir", Type::Path, "Where its files are.")
        .output("socket", Type::Path, "Its socket.")
        .output("version", Type::String, "The version of the server.");
        spec.params = params();
        spec
    }

    async fn preview(&self, ctx: &StepContext) -> Result<Preview, StepError> {
        let params: Params = ctx.params()?;
        let place = params.dir.map_or("the state of the run".to_owned(), |dir| dir.display().to_string());
        let action = format!("make an empty MariaDB server in {place}, cut off from everything");
        Ok(Preview { actions: vec![action], destroys: Vec::new() })
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let work = Work::new(ctx)?;
        if let Some(done) = work.made_before() {
            return Ok(done);
        }
        keep_away(ctx, &work.name, &work.resource).await?;
        work.clear().await?;
        work.home.make(ctx, work.user.as_ref()).await?;
        work.home.make_socket_dir(ctx, &work.isolated.socket, work.user.as_ref()).await?;
        work.isolated.save(&work.data_dir)?;
        let names = work.isolated.lower_case_table_names;
        instance::install(ctx, work.mariadb(), (&work.data_dir, work.user.as_ref()), names).await?;
        let part = ctx.part(Value::Null, &work.name, work.resource.clone());
        let (_, facts) = instance::start(&part, &work.name, work.mariadb(), STARTS_WITHIN).await?;
        let mut done = done(json!({
            "data_dir": work.data_dir, "socket": work.isolated.socket, "version": facts.version,
        }));
        done.resource = Some(work.resource.to_value());
        ctx.record(MADE, serde_json::to_value(&done).expect("results are JSON")).await?;
        Ok(done)
    }

    async fn probe(&self, ctx: &StepContext) -> Result<Probe, StepError> {
        let work = Work::new(ctx)?;
        let Some(done) = work.made_before() else { return Ok(Probe::NotDone) };
        let part = ctx.part(Value::Null, &work.name, work.resource.clone());
        // A process that no longer answers is no clone.
        Ok(Login::of(&part, &work.name)?.connect().await.map_or(Probe::NotDone, |_| Probe::Done(done)))
    }
}

fn params() -> Vec<Field> {
    let heartbeat = vec![
        Field::required("database", Type::String, "The database it is in."),
        Field::required("table", Type::String, "The table."),
        Field::required("column", Type::String, "The column with the time."),
    ];
    vec![
        Field::optional("dir", Type::Path, "A directory for its files; the state of the run if absent."),
        Field::optional("bin_dir", Type::Path, "Where the programs of MariaDB are; found if absent."),
        Field::defaulted(
            "os_user",
            Type::String,
            "mysql",
            "The system user that runs the server, if Lifeboat is root.",
        ),
        Field::defaulted(
            "lower_case_table_names",
            Type::Integer,
            0,
            "How names of tables are kept; must be that of the source.",
        ),
        Field::defaulted("buffer_pool_mb", Type::Integer, 256, "MiB of memory for data."),
        Field::optional(
            "heartbeat",
            Type::Object(heartbeat),
            "A table that the source writes the time to, for a measured recovery point.",
        ),
    ]
}

/// One clone that is being made.
struct Work<'a> {
    ctx: &'a StepContext,
    name: String,
    home: Home,
    data_dir: PathBuf,
    user: Option<OsUser>,
    isolated: Isolated,
    resource: Resource,
}

impl<'a> Work<'a> {
    fn new(ctx: &'a StepContext) -> Result<Self, StepError> {
        let params: Params = ctx.params()?;
        let mut mariadb = Mariadb {
            bin_dir: params.bin_dir.clone(),
            data_dir: None,
            config_file: None,
            host: None,
            socket: None,
            port: 3306,
            user: "root".into(),
            database: None,
            os_user: Some(params.os_user.clone()),
            password: None,
            tls: None,
            service: None,
            heartbeat: params.heartbeat.clone(),
        };
        let user = instance::owner(&mariadb)?;
        let home = Home::choose(ctx, params.dir.as_deref(), user.as_ref(), codes::LB2009)?;
        let data_dir = home.path.join("data");
        let socket = home.socket("mariadb.sock");
        mariadb.data_dir = Some(data_dir.clone());
        mariadb.socket = Some(socket.clone());
        let isolated = Isolated {
            run: ctx.info.run.to_string(),
            socket,
            server_id: own_server_id(&ctx.info.run.to_string()),
            lower_case_table_names: params.lower_case_table_names,
            buffer_pool_mb: params.buffer_pool_mb,
        };
        let resource = Resource { access: Access::Write, optional: false, system: System::Mariadb(mariadb) };
        Ok(Self { ctx, name: made_by(ctx.info.step.as_str()), home, data_dir, user, isolated, resource })
    }

    fn mariadb(&self) -> &Mariadb {
        let System::Mariadb(mariadb) = &self.resource.system else { unreachable!("made as a MariaDB") };
        mariadb
    }

    /// Returns the results of an attempt that had finished, if its server still runs.
    fn made_before(&self) -> Option<Done> {
        let done = serde_json::from_value(self.ctx.recorded(MADE)?.clone()).ok()?;
        instance::live(&self.data_dir)?;
        Some(done)
    }

    /// Removes what an attempt left that was cut off.
    async fn clear(&self) -> Result<(), StepError> {
        const ENDS_WITHIN: Duration = Duration::from_secs(60);
        // One that was started a moment ago does not work in its data directory yet.
        for leftover in
            [instance::started_before(self.ctx)?, instance::live(&self.data_dir)].into_iter().flatten()
        {
            instance::stop(&leftover, ENDS_WITHIN).await?;
        }
        let dir = self.data_dir.clone();
        blocking(move || remove(&dir)).await
    }
}

fn remove(dir: &Path) -> Result<(), StepError> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(StepError::transient(
            codes::LB2009,
            format!("{} of an earlier attempt cannot be removed", dir.display()),
        )
        .caused_by(&error)),
        _ => Ok(()),
    }
}

/// Returns a number for the server that no server in use has: its own writes are told from those that it replays.
fn own_server_id(run: &str) -> u32 {
    crc32fast::hash(run.as_bytes()) | 0x8000_0000
}
