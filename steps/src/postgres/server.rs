//! Starting, watching and stopping a postmaster directly.

use std::fs::File;
use std::io::{BufRead, BufReader, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lifeboat_engine::resource::shown;
use lifeboat_engine::step::{StepContext, StepError};

use super::codes;
use super::connect::{Client, Login, PgError};
use super::isolation;
use super::lock_files;
use super::pidfile::PidFile;
use super::tools::Tools;
use crate::process::{Command, Identity, OsUser, Server, ServerSpec, identity, is_stage};

/// How often a server is asked whether it has got further: at first often, because most things take a moment only.
#[derive(Debug)]
pub(super) struct Pace(Instant);

impl Pace {
    pub(super) fn start() -> Self {
        Self(Instant::now())
    }

    /// Returns how long to wait before the next question.
    pub(super) fn pause(&self) -> Duration {
        const OFTEN: Duration = Duration::from_millis(20);
        const SELDOM: Duration = Duration::from_millis(200);
        if self.0.elapsed() < Duration::from_secs(5) { OFTEN } else { SELDOM }
    }
}

/// Statements about the state of a server answer at once or not at all.
pub(super) const QUICK: Duration = Duration::from_secs(15);

/// Ends sessions and writes a checkpoint.
const FAST: i32 = 2;
/// Ends at once; the next start replays WAL.
const IMMEDIATE: i32 = 3;

/// A server to be started.
pub(super) struct Launch<'a> {
    pub(super) resource: &'a str,
    pub(super) tools: &'a Tools,
    pub(super) owner: Option<&'a OsUser>,
    pub(super) data_dir: &'a Path,
    pub(super) settings: &'a [(String, String)],
    pub(super) log_file: &'a Path,
}

/// Starts a postmaster in a session of its own, recorded before it runs. It outlives the step.
///
/// Waits for what is left of an earlier server, and removes the locks that one was killed with.
pub(super) async fn launch(ctx: &StepContext, launch: &Launch<'_>) -> Result<Server, StepError> {
    alone(ctx, launch.data_dir).await?;
    lock_files::remove_left(ctx, launch).await?;
    let port = launch.settings.iter().find(|(name, _)| name == "port").map_or("", |(_, port)| port);
    let mut command = Command::new(launch.tools.program("postgres"))
        .arg("-D")
        .arg(launch.data_dir)
        .dir(launch.data_dir)
        .env("LC_MESSAGES", "C")
        .os_user(launch.owner.map(|owner| owner.name.as_str()));
    for (name, value) in launch.settings {
        command = command.arg("-c").arg(format!("{name}={value}"));
    }
    let spec = ServerSpec {
        id: format!("server:{}", launch.resource),
        what: format!("Postgres server of {} (port {port})", shown(launch.resource)),
        log_file: launch.log_file.to_path_buf(),
        stop_signal: FAST,
    };
    Server::start(command, spec, ctx).await
}

/// How a server came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    Fast,
    /// It had to be cut short; it recovers from its WAL when it starts again.
    Immediate,
    WasGone,
}

/// Stops a postmaster: fast, and at once when `patience` is over. Never KILL, which would leave shared memory behind.
pub(super) async fn stop(server: &Identity, patience: Duration) -> Result<Ended, StepError> {
    const AFTER_IMMEDIATE: Duration = Duration::from_secs(30);
    if !identity::signal(server, FAST)? {
        return Ok(Ended::WasGone);
    }
    if identity::gone_within(server, patience).await {
        return Ok(Ended::Fast);
    }
    identity::signal(server, IMMEDIATE)?;
    if identity::gone_within(server, AFTER_IMMEDIATE).await {
        return Ok(Ended::Immediate);
    }
    Err(StepError::uncertain(
        codes::LB1262,
        format!("the Postgres server (process {}) does not stop, not even at once", server.pid),
    )
    .help(format!("look at it with `ps -o pid,stat,wchan,args -p {}`", server.pid)))
}

/// Waits until no process of an earlier server works in a data directory any more.
///
/// The children of a killed postmaster notice it a moment later. One that ends a recovery goes on with that meanwhile, and
/// would take away what tells the next server to recover; one that writes pages would write them over what is restored there.
pub(super) async fn alone(ctx: &StepContext, data_dir: &Path) -> Result<(), StepError> {
    match running(ctx, data_dir).await? {
        None => Ok(()),
        Some((file, _)) => Err(still_works(data_dir, file.pid)),
    }
}

/// Returns the server that runs on a data directory. One that has only just begun tells so a moment later; nobody else works
/// there if there is none.
pub(super) async fn running(
    ctx: &StepContext,
    data_dir: &Path,
) -> Result<Option<(PidFile, Identity)>, StepError> {
    const PATIENCE: Duration = Duration::from_mins(1);
    let (deadline, pace) = (Instant::now() + PATIENCE, Pace::start());
    loop {
        let worker = worker_in(data_dir);
        if let Some(live) = PidFile::live(data_dir) {
            return Ok(Some(live));
        }
        let Some(pid) = worker else { return Ok(None) };
        if Instant::now() >= deadline {
            return Err(still_works(data_dir, pid));
        }
        tokio::select! {
            () = tokio::time::sleep(pace.pause()) => {}
            () = ctx.cancelled() => return Err(PgError::Cancelled.into()),
        }
    }
}

fn still_works(data_dir: &Path, pid: u32) -> StepError {
    let message =
        format!("process {pid} of an earlier Postgres server still works in {}", data_dir.display());
    StepError::transient(codes::LB1262, message).help(format!(
        "look at it with `ps -o pid,stat,wchan,args -p {pid}`; `kill -QUIT {pid}` ends it; then try again"
    ))
}

/// Finds a process of Postgres whose working directory is the data directory; one that is about to be a server; or a client that
/// one has started there to fetch WAL: it would put what its server has asked for in the place of what the next one asks for.
fn worker_in(data_dir: &Path) -> Option<u32> {
    let data_dir = data_dir.canonicalize().ok()?;
    let works = |pid: &u32| {
        let process = PathBuf::from(format!("/proc/{pid}"));
        let is_one = |name: String| ["postgres", isolation::CLIENT].contains(&name.trim_end());
        *pid != std::process::id()
            && std::fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd == data_dir)
            && (std::fs::read_to_string(process.join("comm")).is_ok_and(is_one) || is_stage(*pid))
    };
    let processes = std::fs::read_dir("/proc").ok()?.flatten();
    processes.filter_map(|process| process.file_name().to_str()?.parse().ok()).find(works)
}

/// A server that was started, and what it must turn out to be.
pub(super) struct Expected<'a> {
    pub(super) server: &'a Identity,
    pub(super) data_dir: &'a Path,
    pub(super) log: &'a ServerLog,
}

/// Waits until a server takes connections and proves that it is the one on the data directory.
pub(super) async fn wait_ready(
    login: &Login,
    expected: &Expected<'_>,
    limit: Duration,
) -> Result<Client, StepError> {
    let (deadline, pace) = (Instant::now() + limit, Pace::start());
    loop {
        match login.connect().await {
            Ok(client) => {
                check_identity(&client, expected.data_dir).await?;
                return Ok(client);
            }
            Err(error) if !error.may_pass() => return Err(error.into()),
            Err(error) if Instant::now() >= deadline => return Err(not_ready(&error, expected.log, limit)),
            Err(_) if !expected.server.is_alive() => return Err(expected.log.died()),
            Err(_) => {}
        }
        tokio::select! {
            () = tokio::time::sleep(pace.pause()) => {}
            () = login.cancel.cancelled() => return Err(PgError::Cancelled.into()),
        }
    }
}

fn not_ready(error: &PgError, log: &ServerLog, limit: Duration) -> StepError {
    let mut failure = StepError::transient(
        codes::LB1260,
        format!("the server took no connections within {}: {error}", humantime::format_duration(limit)),
    )
    .help(format!("its log is {}", log.path.display()));
    failure.causes = log.tail(10);
    failure
}

/// Proves that a connection goes to the server on this data directory.
pub(super) async fn check_identity(client: &Client, data_dir: &Path) -> Result<(), StepError> {
    let row = client.query_one("select current_setting('data_directory', true)", &[], QUICK).await?;
    let found: Option<String> = row.get(0);
    let wanted = std::fs::canonicalize(data_dir).unwrap_or_else(|_| data_dir.to_path_buf());
    let same = found
        .as_ref()
        .is_some_and(|found| std::fs::canonicalize(found).unwrap_or_else(|_| PathBuf::from(found)) == wanted);
    if same {
        return Ok(());
    }
    Err(StepError::permanent(
        codes::LB1261,
        format!(
            "another server answers: its data directory is {}, not {}",
            found.as_deref().unwrap_or("not shown to this role"),
            data_dir.display()
        ),
    )
    .help("check `port`, `host` and `socket_dir` of the resource; its role must be a superuser"))
}

/// The part of a log file that one server has written.
#[derive(Clone, Debug)]
pub(super) struct ServerLog {
    pub(super) path: PathBuf,
    pub(super) start: u64,
}

impl ServerLog {
    /// The log of a server that is started next: from where the file ends now.
    pub(super) fn next(path: &Path) -> Self {
        let start = std::fs::metadata(path).map_or(0, |metadata| metadata.len());
        Self { path: path.to_path_buf(), start }
    }

    /// Returns how much there is.
    pub(super) fn len(&self) -> u64 {
        std::fs::metadata(&self.path).map_or(0, |metadata| metadata.len().saturating_sub(self.start))
    }

    /// Returns the lines that `wanted` picks, the last `most` of them.
    pub(super) fn pick(&self, most: usize, wanted: impl Fn(&str) -> bool) -> Vec<String> {
        let Ok(mut file) = File::open(&self.path) else { return Vec::new() };
        if file.seek(SeekFrom::Start(self.start)).is_err() {
            return Vec::new();
        }
        let mut picked = std::collections::VecDeque::new();
        for line in BufReader::new(file).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line);
            if wanted(&line) {
                picked.push_back(line.into_owned());
                if picked.len() > most {
                    picked.pop_front();
                }
            }
        }
        picked.into()
    }

    /// Returns the last line with a text.
    pub(super) fn last_with(&self, text: &str) -> Option<String> {
        self.pick(1, |line| line.contains(text)).pop()
    }

    /// Returns the last lines.
    pub(super) fn tail(&self, lines: usize) -> Vec<String> {
        self.pick(lines, |_| true)
    }

    /// Returns what the server said when it gave up: its worst messages with their details and hints.
    pub(super) fn fatal(&self) -> Vec<String> {
        let marks = BAD.iter().chain(&["HINT:", "DETAIL:"]);
        self.pick(8, |line| marks.clone().any(|mark| line.contains(mark)) && !is_turned_away(line))
    }

    /// Returns the worst thing that the server said last, without its time.
    pub(super) fn complaint(&self) -> Option<String> {
        let line =
            self.pick(1, |line| BAD.iter().any(|mark| line.contains(mark)) && !is_turned_away(line)).pop()?;
        let message = BAD.iter().find_map(|mark| line.split_once(mark))?.1;
        Some(message.trim().to_owned())
    }

    /// The error of a server that ended by itself.
    pub(super) fn died(&self) -> StepError {
        let lines = self.fatal();
        let why = lines.iter().find_map(|line| message_of(line)).unwrap_or("it gave no reason");
        let mut error = StepError::permanent(codes::LB1260, format!("the Postgres server ended: {why}"))
            .help(format!("its log is {}", self.path.display()));
        error.causes = if lines.is_empty() { self.tail(10) } else { lines };
        error
    }
}

/// What the server writes before its worst messages.
const BAD: [&str; 3] = ["FATAL:", "PANIC:", "ERROR:"];

/// Sessions that come while the server starts or stops are turned away with FATAL, too.
fn is_turned_away(line: &str) -> bool {
    line.contains("the database system is")
}

/// Returns what follows `FATAL:` or `PANIC:` in a line of the log.
pub(super) fn message_of(line: &str) -> Option<&str> {
    let (_, message) = line.split_once("FATAL:").or_else(|| line.split_once("PANIC:"))?;
    Some(message.trim())
}
