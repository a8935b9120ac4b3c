//! Throwaway Postgres clusters. Skips nothing: without the server programs the tests fail. `LIFEBOAT_TEST_PG_BIN` names the
//! directory of the programs, to test with another version than the newest one installed.

use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use lifeboat_engine::resource::{Postgres, System};

use lifeboat_steps::postgres::controldata::ControlData;
use lifeboat_steps::postgres::tools::Tools;
use lifeboat_steps::process::OsUser;

pub use super::port::closed_port as free_port;

/// How a cluster is made.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Switches archiving on, into `wal/<system id>/` below this directory.
    pub archive_to: Option<PathBuf>,
    /// Further settings, `name = value`.
    pub settings: Vec<String>,
    /// Lets everybody in without a password unless this one is given; then all logins need it.
    pub password: Option<String>,
    /// Whether `initdb` switches page checksums on.
    pub data_checksums: bool,
}

/// A cluster below a temporary directory that an unprivileged user owns. Ends with the value.
#[derive(Debug)]
pub struct Cluster {
    pub data_dir: PathBuf,
    pub socket_dir: PathBuf,
    pub port: u16,
    password: Option<String>,
    place: Place,
}

/// A short temporary directory of the server's user, and that user.
#[derive(Debug)]
pub struct Place {
    dir: tempfile::TempDir,
    pub account: Option<OsUser>,
    pub tools: Tools,
}

impl Place {
    /// Makes a directory that the user `postgres` owns if the test runs as root, and whoever runs it otherwise.
    /// Its path is short, because a socket's path may have 107 bytes.
    pub fn make() -> Self {
        let dir = tempfile::Builder::new().prefix("lbpg").tempdir_in("/tmp").expect("a temporary directory");
        super::keeper::watch(dir.path());
        let account = rustix::process::geteuid()
            .is_root()
            .then(|| OsUser::lookup("postgres").expect("as root, tests need a user `postgres`"));
        let place = Self { dir, account, tools: Tools::find(&named()).expect("Postgres server programs") };
        place.own(place.path());
        place
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Gives a path to the server's user.
    pub fn own(&self, path: &Path) {
        if let Some(account) = &self.account {
            chown(path, Some(account.uid), Some(account.gid)).expect("root may change owners");
        }
    }

    /// Makes a directory of the server's user.
    pub fn subdir(&self, name: &str) -> PathBuf {
        let dir = self.path().join(name);
        std::fs::create_dir_all(&dir).expect("a directory");
        self.own(&dir);
        dir
    }

    /// Begins a command as the server's user.
    pub fn command(&self, program: &str) -> Command {
        use std::os::unix::process::CommandExt;
        let mut command = Command::new(self.tools.program(program));
        if let Some(account) = &self.account {
            command.uid(account.uid).gid(account.gid);
        }
        command.current_dir(self.path()).stdin(Stdio::null()).env("LC_ALL", "C").env("TZ", "UTC");
        command.env("PGCTLTIMEOUT", PATIENCE.as_secs().to_string());
        command
    }

    /// Says whether the installation has the files of an extension.
    pub fn has_extension(&self, name: &str) -> bool {
        let shared = succeed(self.command("pg_config").arg("--sharedir"));
        let shared = PathBuf::from(String::from_utf8_lossy(&shared.stdout).trim());
        shared.join("extension").join(format!("{name}.control")).exists()
    }

    /// Describes a server that could stand at a place below this one; nothing is made.
    pub fn resource(&self, name: &str, port: u16) -> Postgres {
        Postgres {
            bin_dir: Some(self.tools.bin_dir.clone()),
            data_dir: Some(self.path().join(name)),
            socket_dir: Some(self.path().to_path_buf()),
            port,
            os_user: self.account.as_ref().map(|account| account.name.clone()),
            ..bare()
        }
    }
}

/// A resource with nothing but defaults.
pub fn bare() -> Postgres {
    serde_json::from_value(serde_json::json!({})).expect("everything has a default")
}

/// A resource with the programs that the tests are to use.
fn named() -> Postgres {
    Postgres { bin_dir: std::env::var_os("LIFEBOAT_TEST_PG_BIN").map(PathBuf::from), ..bare() }
}

impl Cluster {
    /// Makes a cluster and starts it.
    pub fn start(options: &Options) -> Self {
        let place = Place::make();
        let cluster = Self {
            data_dir: place.path().join("data"),
            socket_dir: place.path().to_path_buf(),
            port: free_port(),
            password: options.password.clone(),
            place,
        };
        cluster.init(options);
        cluster.configure(options);
        cluster.start_server();
        cluster
    }

    fn init(&self, options: &Options) {
        let mut command = self.place.command("initdb");
        command.args(["-U", "postgres", "-E", "UTF8", "--locale=C", "--no-sync", "--wal-segsize=1", "-D"]);
        command.arg(&self.data_dir);
        if options.data_checksums {
            command.arg("--data-checksums");
        }
        if let Some(password) = &options.password {
            let file = self.place.path().join("initial-password");
            std::fs::write(&file, password).expect("a password file");
            self.place.own(&file);
            command.args(["--auth=scram-sha-256", "--pwfile"]).arg(&file);
        } else {
            command.arg("--auth=trust");
        }
        succeed(&mut command);
    }

    fn configure(&self, options: &Options) {
        let mut lines = vec![
            format!("port = {}", self.port),
            format!("unix_socket_directories = '{}'", self.socket_dir.display()),
            "listen_addresses = '127.0.0.1'".to_owned(),
            "fsync = off".to_owned(),
            "shared_buffers = 16MB".to_owned(),
            "max_connections = 30".to_owned(),
            "wal_level = replica".to_owned(),
            "timezone = 'UTC'".to_owned(),
            "max_wal_size = 64MB".to_owned(),
            "min_wal_size = 2MB".to_owned(),
        ];
        if let Some(store) = &options.archive_to {
            lines.push("archive_mode = on".to_owned());
            lines.push(format!("archive_command = '{}'", self.archive_command(store)));
        }
        lines.extend(options.settings.iter().cloned());
        let file = self.data_dir.join("postgresql.conf");
        let mut text = std::fs::read_to_string(&file).expect("initdb wrote it");
        text.push_str(&lines.join("\n"));
        text.push('\n');
        std::fs::write(&file, text).expect("the configuration");
    }

    /// A plain copy, which appears under its name whole or not at all.
    fn archive_command(&self, store: &Path) -> String {
        let control = ControlData::read(&self.place.tools, &self.data_dir).expect("a control file");
        let wal = store.join("wal").join(control.system_id);
        std::fs::create_dir_all(&wal).expect("the store");
        self.place.own(&wal);
        let dir = wal.display();
        format!("test ! -f {dir}/%f && cp %p {dir}/.%f.tmp && mv {dir}/.%f.tmp {dir}/%f")
    }

    /// Starts the server again after [`Cluster::stop`].
    pub fn start_server(&self) {
        let log = self.place.path().join("source.log");
        let mut command = self.place.command("pg_ctl");
        command.args(["-w", "-D"]).arg(&self.data_dir).arg("-l").arg(&log).arg("start");
        succeed(&mut command);
    }

    /// Stops the server: `fast`, `immediate` or `smart`.
    pub fn stop(&self, mode: &str) {
        let mut command = self.place.command("pg_ctl");
        command.args(["-w", "-m", mode, "-D"]).arg(&self.data_dir).arg("stop");
        succeed(&mut command);
    }

    /// Runs SQL in a database and returns what `psql -At` prints, without the last line break.
    pub fn sql_in(&self, database: &str, sql: &str) -> String {
        let mut command = self.place.command("psql");
        command.args(["-X", "-At", "-q", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-h"]);
        command.arg(&self.socket_dir).args(["-p", &self.port.to_string(), "-d", database, "-c", sql]);
        if let Some(password) = &self.password {
            command.env("PGPASSWORD", password);
        }
        let output = succeed(&mut command);
        String::from_utf8(output.stdout).expect("UTF-8").trim_end().to_owned()
    }

    /// Runs SQL in the database `postgres`.
    pub fn sql(&self, sql: &str) -> String {
        self.sql_in("postgres", sql)
    }

    /// Ends the current WAL segment and waits until the archiver has taken it.
    pub fn archive_wal(&self) {
        let segment = self.sql("select pg_walfile_name(pg_current_wal_lsn())");
        self.sql("select pg_switch_wal()");
        wait_until("the archiver took the segment", || {
            let last = self.sql("select coalesce(last_archived_wal, '') from pg_stat_archiver");
            // History files sort among segments of their timeline.
            last.len() >= 24 && last[..24] >= segment[..]
        });
    }

    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Describes the cluster as a resource, over its Unix socket.
    pub fn resource(&self) -> Postgres {
        Postgres { data_dir: Some(self.data_dir.clone()), ..self.place.resource("data", self.port) }
    }

    pub fn system(&self) -> System {
        System::Postgres(self.resource())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let mut command = self.place.command("pg_ctl");
        command.args(["-w", "-m", "immediate", "-D"]).arg(&self.data_dir).arg("stop");
        drop(command.output());
    }
}

/// Ends a server that a step left running, when the test ends.
#[derive(Debug)]
pub struct StopOnDrop<'a> {
    pub place: &'a Place,
    pub data_dir: PathBuf,
}

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        let mut command = self.place.command("pg_ctl");
        command.args(["-w", "-m", "immediate", "-D"]).arg(&self.data_dir).arg("stop");
        drop(command.output());
    }
}

/// How long is waited for what another process does, on the busiest of machines: only a test that fails waits so long. An
/// archiver alone, which has failed three times, rests for a minute.
pub const PATIENCE: Duration = Duration::from_secs(240);

/// Polls until something is so, for some minutes at most.
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Runs a command that must succeed.
pub fn succeed(command: &mut Command) -> Output {
    // pg_ctl hands its descriptors on to the server, and a pipe would never see its end.
    let out = tempfile::tempfile().expect("a temporary file");
    let err = tempfile::tempfile().expect("a temporary file");
    command.stdout(out.try_clone().expect("a descriptor")).stderr(err.try_clone().expect("a descriptor"));
    let status = command.status().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let output = Output { status, stdout: read_back(out), stderr: read_back(err) };
    assert!(status.success(), "{command:?} failed: {}", String::from_utf8_lossy(&output.stderr));
    output
}

fn read_back(mut file: std::fs::File) -> Vec<u8> {
    use std::io::{Read, Seek};
    let mut bytes = Vec::new();
    file.rewind().expect("a regular file");
    file.read_to_end(&mut bytes).expect("a regular file");
    bytes
}
