//! Throwaway servers: each in a directory of its own, on a free port of the loopback, ended when dropped.

use std::net::TcpStream;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

pub(crate) use super::port::closed_port as free_port;

/// How long is waited for what a process does, on the busiest of machines: only a test that fails waits so long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(240);

/// Polls until something holds; fails the test with its name if it never does.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn listens(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).is_ok()
}

/// A child process that does not outlive the test.
#[derive(Debug)]
pub(crate) struct Running(Child);

impl Running {
    pub(crate) fn start(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::null()).spawn().unwrap_or_else(|error| panic!("{command:?}: {error}")))
    }

    pub(crate) fn signal(&self, name: &str) {
        // A process that has ended already cannot be signalled, which is what is wanted.
        let told = Command::new("sh").args(["-c", &format!("kill -{name} {}", self.0.id())]).status();
        drop(told);
    }

    /// Signals and waits for the end.
    pub(crate) fn end(&mut self, signal: &str) -> ExitStatus {
        self.signal(signal);
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("process {} does not end on SIG{signal}", self.0.id());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            // For Postgres this is the immediate shutdown, which ends its children too.
            self.signal("QUIT");
            let deadline = Instant::now() + Duration::from_secs(5);
            while Instant::now() < deadline && matches!(self.0.try_wait(), Ok(None)) {
                std::thread::sleep(Duration::from_millis(20));
            }
            drop(self.0.kill());
            drop(self.0.wait());
        }
    }
}

/// A Postgres cluster. Postgres refuses to run as root, so root runs it as `postgres`.
#[derive(Debug)]
pub(crate) struct Postgres {
    dir: PathBuf,
    pub(crate) port: u16,
    running: Option<Running>,
}

impl Postgres {
    pub(crate) fn start(root: &Path) -> Self {
        let dir = root.join("postgres");
        std::fs::create_dir(&dir).unwrap();
        std::fs::set_permissions(root, PermissionsExt::from_mode(0o755)).unwrap();
        if let Some((uid, gid)) = other_user() {
            chown(&dir, Some(uid), Some(gid)).unwrap();
        }
        let data = dir.join("data");
        let made = program("initdb")
            .args(["-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C", "-N", "-D"])
            .arg(&data)
            .stdout(Stdio::null())
            .status();
        assert!(made.unwrap().success(), "initdb failed");
        let mut server = Self { dir, port: free_port(), running: None };
        server.resume();
        server
    }

    /// Starts it, or starts it again on the same port.
    pub(crate) fn resume(&mut self) {
        let mut command = program("postgres");
        command.arg("-D").arg(self.dir.join("data")).args(["-p", &self.port.to_string()]);
        for setting in ["listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off"] {
            command.args(["-c", setting]);
        }
        command.stderr(std::fs::File::create(self.dir.parent().unwrap().join("postgres.log")).unwrap());
        self.running = Some(Running::start(&mut command));
        let port = self.port;
        eventually("Postgres listens", || listens(port));
    }

    pub(crate) fn stop(&mut self) {
        self.running.take().expect("it runs").end("INT");
    }

    pub(crate) fn url(&self, database: &str) -> String {
        format!("postgresql://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// Runs SQL and returns the first value as text.
    pub(crate) async fn sql(&self, database: &str, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        // Right after its start a server answers that it is starting up.
        let (client, connection) = loop {
            match tokio_postgres::connect(&self.url(database), tokio_postgres::NoTls).await {
                Ok(pair) => break pair,
                Err(error) if Instant::now() > deadline => panic!("{error:?}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        };
        tokio::spawn(connection);
        let answers = client.simple_query(text).await.unwrap();
        let first = answers.iter().find_map(|answer| match answer {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(ToOwned::to_owned),
            _ => None,
        });
        first.unwrap_or_default()
    }
}

/// A program of the newest Postgres here, as a user whom Postgres accepts.
fn program(name: &str) -> Command {
    let mut versions: Vec<_> = std::fs::read_dir("/usr/lib/postgresql")
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default();
    versions.sort_by_key(|path: &PathBuf| {
        path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse::<u32>().ok())
    });
    let installed =
        versions.last().map(|version| version.join("bin").join(name)).filter(|path| path.exists());
    let mut command = Command::new(installed.unwrap_or_else(|| name.into()));
    if let Some((uid, gid)) = other_user() {
        command.uid(uid).gid(gid).current_dir("/");
    }
    command
}

fn other_user() -> Option<(u32, u32)> {
    (id(&["-u"]) == 0).then(|| (id(&["-u", "postgres"]), id(&["-g", "postgres"])))
}

fn id(args: &[&str]) -> u32 {
    let output = Command::new("id").args(args).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().parse().unwrap_or_else(|_| panic!("id {args:?} fails"))
}

/// A Redis server that keeps nothing on disk.
#[derive(Debug)]
pub(crate) struct Redis {
    pub(crate) port: u16,
    running: Option<Running>,
}

impl Redis {
    pub(crate) fn start() -> Self {
        let mut server = Self { port: free_port(), running: None };
        server.resume();
        server
    }

    /// Starts it, or starts it again on the same port, empty.
    pub(crate) fn resume(&mut self) {
        let port = self.port.to_string();
        let mut command = Command::new("redis-server");
        command.args(["--port", &port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
        self.running = Some(Running::start(command.stdout(Stdio::null())));
        let port = self.port;
        eventually("Redis listens", || listens(port));
    }

    pub(crate) fn stop(&mut self) {
        self.running.take().expect("it runs").end("TERM");
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub(crate) async fn run(&self, command: &str) {
        let client = redis::Client::open(self.url()).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        redis::cmd(command).query_async::<()>(&mut connection).await.unwrap();
    }
}
