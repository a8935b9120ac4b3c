//! A server on a data directory of this machine: found by its process, made empty, started, stopped.

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lifeboat_engine::resource::{Manager, Mariadb};
use lifeboat_engine::step::{StepContext, StepError};
use serde::{Deserialize, Serialize};

use super::codes;
use super::connect::{Client, Login};
use super::facts::{self, Facts};
use super::tools;
use crate::process::{Identity, OsUser, Server, ServerSpec, identity};

const TERM: i32 = 15;
const POLL: Duration = Duration::from_millis(50);
/// Beside a data directory: how its server is started cut off from everything.
const ISOLATED: &str = "lifeboat-isolated.json";

/// How a server is started that a step of a run has made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Isolated {
    /// The run that made it.
    pub(super) run: String,
    pub(super) socket: PathBuf,
    pub(super) server_id: u32,
    pub(super) lower_case_table_names: u8,
    pub(super) buffer_pool_mb: u64,
}

impl Isolated {
    /// Reads what was written beside a data directory; `None` if nothing was.
    ///
    /// What cannot be read is no reason to start the server as any other one: it would be open to everybody.
    pub(super) fn of(data_dir: &Path) -> Result<Option<Self>, StepError> {
        let path = data_dir.with_file_name(ISOLATED);
        let unusable = |error: &(dyn std::error::Error + 'static)| {
            let message = format!("how the server was cut off from everything stands in {}", path.display());
            StepError::permanent(codes::LB2008, format!("{message}, which cannot be read"))
                .help("it was not started: remove the clone and make it again")
                .caused_by(error)
        };
        match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|error| unusable(&error)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(unusable(&error)),
        }
    }

    /// Writes it beside a data directory, whole or not at all, and so that it survives a power cut.
    pub(super) fn save(&self, data_dir: &Path) -> Result<(), StepError> {
        let path = data_dir.with_file_name(ISOLATED);
        let text = serde_json::to_vec(self).expect("plain data is JSON");
        let write = || -> std::io::Result<()> {
            let dir = path.parent().unwrap_or(Path::new("/"));
            let mut file = tempfile::NamedTempFile::new_in(dir)?;
            file.write_all(&text)?;
            file.as_file().sync_all()?;
            file.persist(&path).map_err(|error| error.error)?;
            fs::File::open(dir)?.sync_all()
        };
        write().map_err(|error| {
            StepError::transient(codes::LB2009, format!("{} cannot be written", path.display()))
                .caused_by(&error)
        })
    }

    /// Returns the arguments of the server: no network, no events, no replication, a log of its own.
    fn args(&self, data_dir: &Path) -> Vec<String> {
        vec![
            "--no-defaults".into(),
            format!("--datadir={}", data_dir.display()),
            format!("--tmpdir={}", tmp_dir(data_dir).display()),
            format!("--socket={}", self.socket.display()),
            format!("--pid-file={}", data_dir.join("mariadbd.pid").display()),
            "--skip-networking".into(),
            "--skip-name-resolve".into(),
            "--skip-slave-start".into(),
            "--event-scheduler=OFF".into(),
            "--local-infile=OFF".into(),
            format!("--secure-file-priv={}", data_dir.display()),
            "--log-bin=replay".into(),
            "--binlog-format=MIXED".into(),
            "--gtid-strict-mode=ON".into(),
            "--max-allowed-packet=1G".into(),
            // It lives as long as its run; what it holds was made from the store and can be made again.
            "--sync-binlog=0".into(),
            "--innodb-flush-log-at-trx-commit=2".into(),
            format!("--server-id={}", self.server_id),
            format!("--lower-case-table-names={}", self.lower_case_table_names),
            format!("--innodb-buffer-pool-size={}M", self.buffer_pool_mb),
        ]
    }
}

/// Returns the process of the server that runs on a data directory: it works in that directory.
pub(super) fn live(data_dir: &Path) -> Option<Identity> {
    let servers = identity::working_in(data_dir, |name| matches!(name, "mariadbd" | "mysqld"));
    servers.into_iter().next()
}

/// Returns the data directory of a resource; a remote one is refused.
pub(super) fn data_dir<'a>(name: &str, mariadb: &'a Mariadb) -> Result<&'a Path, StepError> {
    mariadb.data_dir.as_deref().ok_or_else(|| {
        StepError::permanent(
            codes::LB2007,
            format!("the MariaDB resource `{name}` has no data directory on this machine"),
        )
        .help("set `data_dir` (and `os_user`) on the resource, or run Lifeboat where the server is")
    })
}

/// Refuses a server that somebody else starts and stops.
pub(super) fn refuse_managed(name: &str, mariadb: &Mariadb) -> Result<(), StepError> {
    let manager = match &mariadb.service {
        None | Some(Manager::Process { .. }) => return Ok(()),
        Some(Manager::Systemd { unit }) => format!("systemd (`{unit}`)"),
        Some(Manager::Docker { container }) => format!("docker (`{container}`)"),
        Some(Manager::Compose { service, .. }) => format!("docker compose (`{service}`)"),
    };
    Err(StepError::permanent(codes::LB2007, format!("the server of `{name}` is run by {manager}"))
        .help("use a `service.start` or `service.stop` step with a service resource for it"))
}

/// Returns the system user that must own a server and its files, `None` if that is whoever runs Lifeboat. As root it is
/// `os_user`, or else the owner of the data directory; root itself is refused.
pub(super) fn owner(mariadb: &Mariadb) -> Result<Option<OsUser>, StepError> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let unknown = |message: &str| {
        StepError::permanent(codes::LB2007, message)
            .help("set `os_user: mysql` on the resource in the environment's file")
    };
    let user = match (&mariadb.os_user, &mariadb.data_dir) {
        (Some(name), _) => OsUser::lookup(name)?,
        (None, Some(dir)) => {
            let uid = fs::metadata(dir).map(|found| found.uid()).unwrap_or(0);
            OsUser::by_uid(uid)
                .ok_or_else(|| unknown("nobody says which system user owns the MariaDB server"))?
        }
        (None, None) => return Err(unknown("nobody says which system user owns the MariaDB server")),
    };
    match user.uid {
        0 => Err(unknown("MariaDB refuses to run as root")),
        _ => Ok(Some(user)),
    }
}

/// Returns where a server that a run has made puts temporary files, beside its data.
///
/// When a server starts it removes all temporary tables in that directory, those of other servers, too.
fn tmp_dir(data_dir: &Path) -> PathBuf {
    data_dir.with_file_name("tmp")
}

fn make_tmp_dir(data_dir: &Path, user: Option<&OsUser>) -> std::io::Result<()> {
    let dir = tmp_dir(data_dir);
    fs::create_dir_all(&dir)?;
    user.map_or(Ok(()), |user| std::os::unix::fs::chown(&dir, Some(user.uid), Some(user.gid)))
}

/// Makes an empty data directory with one account: root, without a password.
pub(super) async fn install(
    ctx: &StepContext,
    mariadb: &Mariadb,
    (data_dir, user): (&Path, Option<&OsUser>),
    lower_case_table_names: u8,
) -> Result<(), StepError> {
    make_tmp_dir(data_dir, user).map_err(|error| {
        let message = format!("{} cannot be made", tmp_dir(data_dir).display());
        StepError::transient(codes::LB2009, message).caused_by(&error)
    })?;
    let command = tools::bare(mariadb, "mariadb-install-db")?
        .arg(format!("--datadir={}", data_dir.display()))
        .arg(format!("--tmpdir={}", tmp_dir(data_dir).display()))
        .args(["--auth-root-authentication-method=normal", "--skip-test-db", "--skip-name-resolve"])
        .arg(format!("--lower-case-table-names={lower_case_table_names}"))
        .quiet_stdout()
        .os_user(user.map(|user| user.name.as_str()));
    let output = command.run(ctx).await?;
    if output.exit_code == 0 {
        return Ok(());
    }
    let mut error = StepError::transient(
        codes::LB2009,
        format!("mariadb-install-db ended with exit code {}", output.exit_code),
    )
    .help("its last lines are below; nothing else was touched");
    error.causes = output.stderr.last_lines(8);
    error.causes.extend(output.stdout.last_lines(8));
    Err(error)
}

/// Starts a server and waits until it takes connections.
pub(super) async fn start(
    ctx: &StepContext,
    name: &str,
    mariadb: &Mariadb,
    within: Duration,
) -> Result<(Client, Facts), StepError> {
    let data_dir = data_dir(name, mariadb)?;
    let user = owner(mariadb)?;
    let isolated = Isolated::of(data_dir)?.filter(|isolated| isolated.run == ctx.info.run.to_string());
    let args = match &isolated {
        Some(isolated) => isolated.args(data_dir),
        None => own_args(mariadb, data_dir),
    };
    let command = crate::process::Command::new(tools::program(mariadb, "mariadbd")?)
        .args(args)
        .env("TZ", "UTC")
        .dir("/")
        .os_user(user.as_ref().map(|user| user.name.as_str()))
        .pid_file(pid_file(ctx)?);
    let spec = ServerSpec {
        id: format!("server:{name}"),
        what: format!("MariaDB server of {}", lifeboat_engine::resource::shown(name)),
        log_file: log_file(ctx)?,
        stop_signal: TERM,
    };
    let server = Server::start(command, spec, ctx).await?;
    ready(ctx, (name, mariadb), Starting::ours(server), within).await
}

/// Where a step keeps which process it has started.
fn pid_file(ctx: &StepContext) -> Result<PathBuf, StepError> {
    Ok(ctx.work_dir()?.join("mariadb.pid"))
}

fn log_file(ctx: &StepContext) -> Result<PathBuf, StepError> {
    Ok(ctx.work_dir()?.join("mariadb.log"))
}

/// Returns the process that an earlier attempt of this step has started, if it still runs. It may be about to become a server.
pub(super) fn started_before(ctx: &StepContext) -> Result<Option<Identity>, StepError> {
    Ok(identity::load(&pid_file(ctx)?).filter(Identity::is_alive))
}

/// Ends what [`started_before`] knows: the step has come to its end.
pub(super) fn forget(ctx: &StepContext) -> Result<(), StepError> {
    let path = pid_file(ctx)?;
    match fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(StepError::transient(codes::LB2008, format!("{} cannot be removed", path.display()))
                .caused_by(&error))
        }
        _ => Ok(()),
    }
}

/// Returns the server that runs on a data directory; one that an earlier attempt has just started is waited for.
pub(super) async fn running(ctx: &StepContext, data_dir: &Path) -> Result<Option<Identity>, StepError> {
    /// How long a process may take until it works in its data directory.
    const APPEARS_WITHIN: Duration = Duration::from_secs(30);
    let deadline = Instant::now() + APPEARS_WITHIN;
    loop {
        if let Some(server) = live(data_dir) {
            return Ok(Some(server));
        }
        if started_before(ctx)?.is_none() || Instant::now() >= deadline {
            return Ok(None);
        }
        tokio::time::sleep(POLL).await;
    }
}

/// A server that is expected to take connections soon.
pub(super) struct Starting {
    identity: Identity,
    /// The one that this attempt has started, whose log is known.
    server: Option<Server>,
}

impl Starting {
    fn ours(server: Server) -> Self {
        Self { identity: server.identity.clone(), server: Some(server) }
    }

    pub(super) fn found(identity: Identity) -> Self {
        Self { identity, server: None }
    }

    fn failed(&self, problem: &str) -> StepError {
        let error = StepError::transient(codes::LB2008, format!("the MariaDB server {problem}"));
        let Some(server) = &self.server else {
            return error.help(format!(
                "it is process {}: look at its log, and check `socket`, or `host` and `port`, of the resource",
                self.identity.pid
            ));
        };
        let mut error = error.help(format!("its whole log is {}", server.log_file().display()));
        error.causes = server.log_tail(12);
        error
    }
}

/// Waits until a server takes connections, and makes sure that it is the one that was meant.
pub(super) async fn ready(
    ctx: &StepContext,
    (name, mariadb): (&str, &Mariadb),
    server: Starting,
    within: Duration,
) -> Result<(Client, Facts), StepError> {
    let login = Login::of(ctx, name)?;
    let (client, facts) = wait_ready(&login, &server, within).await?;
    facts::check_place(mariadb, &facts)?;
    Ok((client, facts))
}

/// The resource says where the server is reached; everything else is its own configuration.
fn own_args(mariadb: &Mariadb, data_dir: &Path) -> Vec<String> {
    let mut args: Vec<String> =
        mariadb.config_file.iter().map(|file| format!("--defaults-file={}", file.display())).collect();
    args.push(format!("--datadir={}", data_dir.display()));
    args.push(format!("--port={}", mariadb.port));
    args.extend(mariadb.socket.iter().map(|socket| format!("--socket={}", socket.display())));
    args
}

async fn wait_ready(
    login: &Login,
    server: &Starting,
    within: Duration,
) -> Result<(Client, Facts), StepError> {
    let deadline = Instant::now() + within;
    loop {
        let refused = match login.connect().await {
            Ok(mut client) => {
                let facts = facts::read(&mut client).await?;
                return Ok((client, facts));
            }
            Err(error) if !error.may_pass() => return Err(error.into()),
            Err(error) => error,
        };
        let problem = match () {
            () if !server.identity.is_alive() => "ended while it was starting".to_owned(),
            () if Instant::now() >= deadline => {
                format!("takes no connections within the time given: {refused}")
            }
            () if login.is_cancelled() => "was not waited for".to_owned(),
            () => {
                tokio::time::sleep(POLL).await;
                continue;
            }
        };
        return Err(server.failed(&problem));
    }
}

/// Asks a server to end, and waits until it has. It is never killed: MyISAM tables would be damaged.
pub(super) async fn stop(running: &Identity, within: Duration) -> Result<bool, StepError> {
    if !identity::signal(running, TERM)? {
        return Ok(false);
    }
    if identity::gone_within(running, within).await {
        return Ok(true);
    }
    Err(StepError::transient(
        codes::LB2008,
        format!("the MariaDB server (process {}) has not ended within the time given", running.pid),
    )
    .help("it is still writing what it holds in memory: wait, and retry with a longer `within`"))
}
