//! The production that is restored: made, backed up, damaged and stopped once, before the first test that needs it.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use jiff::Timestamp;

use super::machine::{self, Server, command, free_port, hand_over, postgres_bin};
use crate::project::{Ran, until};

pub(crate) const PASSWORD: &str = "a long word for tests";
pub(crate) const UPLOADS: [(&str, &str); 3] =
    [("logo.svg", "<svg/>"), ("2026/11/members.csv", "ada\ngrace\n"), ("2026/empty", "")];
pub(crate) const KEYS: [(&str, &str); 2] = [("session:ada", "logged in"), ("greeting", "good evening")];
/// Deleted by its owner before the incident, so that it must not come back.
pub(crate) const DELETED: u32 = 5;
/// Rows that are there before the backup begins.
pub(crate) const OLD_ROWS: u32 = 20;

/// A row, and when the test asked for it and was told that it is stored.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    pub(crate) id: u32,
    pub(crate) asked: Timestamp,
    pub(crate) stored: Timestamp,
}

/// What production has left: its backups, and what the test knows of it.
pub(crate) struct Source {
    pub(crate) root: PathBuf,
    /// The program, where the user that servers run as can reach it.
    pub(crate) lifeboat: PathBuf,
    pub(crate) postgres_port: u16,
    pub(crate) redis_port: u16,
    pub(crate) rows: Vec<Row>,
    /// When the incident began.
    pub(crate) target: Timestamp,
    /// When there was no backup yet.
    pub(crate) before_backups: Timestamp,
    /// A WAL segment between the backup and the target.
    pub(crate) middle_segment: String,
    /// What a backup with the wrong password said.
    pub(crate) wrong_password: Ran,
}

/// Returns the production; the first call makes it.
pub(crate) fn source() -> &'static Source {
    static SOURCE: OnceLock<(Source, Remover)> = OnceLock::new();
    &SOURCE.get_or_init(make).0
}

/// Removes a directory when the test program ends, in whatever way: statics are never dropped.
struct Remover {
    _child: Child,
}

impl Remover {
    fn of(dir: &Path) -> Self {
        let script = "trap '' INT TERM HUP; read -r nothing; rm -rf -- \"$1\"";
        let mut command = Command::new("sh");
        command.args(["-c", script, "sh"]).arg(dir).stdin(Stdio::piped());
        Self { _child: command.spawn().expect("a shell") }
    }
}

fn make() -> (Source, Remover) {
    // Short, because a socket's path may have 107 bytes.
    let dir = tempfile::Builder::new().prefix("lbw").tempdir_in("/tmp").expect("a directory");
    let remover = Remover::of(dir.path());
    let production = Production::start(dir.keep());
    let source = production.story();
    drop(production);
    (source, remover)
}

/// The servers while they run; ended with the value.
struct Production {
    root: PathBuf,
    lifeboat: PathBuf,
    postgres_port: u16,
    redis_port: u16,
    redis_server: Option<Server>,
}

impl Drop for Production {
    fn drop(&mut self) {
        machine::end_processes(&self.root);
    }
}

impl Production {
    fn start(root: PathBuf) -> Self {
        let mut production = Self {
            lifeboat: root.join("lifeboat"),
            postgres_port: free_port(),
            redis_port: free_port(),
            redis_server: None,
            root,
        };
        production.write_files();
        production.start_postgres();
        production.start_redis();
        production
    }

    fn write_files(&self) {
        let program = Path::new(env!("CARGO_BIN_EXE_lifeboat"));
        if fs::hard_link(program, &self.lifeboat).is_err() {
            fs::copy(program, &self.lifeboat).expect("a copy of the program");
        }
        for dir in ["store", "run", "redis", "project/environments", "project/runbooks"] {
            fs::create_dir_all(self.root.join(dir)).expect("a directory");
        }
        for (name, text) in UPLOADS {
            let path = self.root.join("uploads").join(name);
            fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
            fs::write(path, text).expect("an upload");
        }
        self.write("password", PASSWORD);
        self.write("wrong-password", "not the password");
        self.write("wal-put.json", &format!("{{ \"store\": \"dir://{}/store\" }}", self.root.display()));
        self.write("project/lifeboat.yaml", "project: whole\n");
        for name in ["production", "mistyped"] {
            self.write(&format!("project/environments/{name}.yaml"), &self.environment(name));
        }
        self.write("project/runbooks/backup.yaml", BACKUP);
        for entry in fs::read_dir(&self.root).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path != self.lifeboat {
                hand_over(&path);
            }
        }
        hand_over_top(&self.root);
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.root.join(name);
        fs::write(&path, text).expect("a file");
        if name.ends_with("password") {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("a mode");
        }
    }

    fn environment(&self, name: &str) -> String {
        let password = if name == "mistyped" { "wrong-password" } else { "password" };
        environment(&self.root, name, password, (self.postgres_port, self.redis_port))
    }

    fn start_postgres(&self) {
        let data = self.root.join("postgres");
        let mut initdb = command(postgres_bin().join("initdb"), &self.root);
        initdb.args(["-U", "postgres", "-E", "UTF8", "--locale=C", "--no-sync", "--wal-segsize=1"]);
        initdb.arg("--auth=scram-sha-256").arg("--pwfile").arg(self.root.join("password"));
        succeed(initdb.arg("-D").arg(&data));
        let settings = format!(
            "port = {port}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = '{root}/run'\n\
             fsync = off\nshared_buffers = 16MB\nmax_connections = 20\nmin_wal_size = 2MB\nwal_level = replica\n\
             archive_mode = on\narchive_command = '{root}/lifeboat wal put --config {root}/wal-put.json %p %f'\n",
            port = self.postgres_port,
            root = self.root.display(),
        );
        let mut file =
            fs::OpenOptions::new().append(true).open(data.join("postgresql.conf")).expect("initdb wrote it");
        file.write_all(settings.as_bytes()).expect("settings");
        let mut start = command(postgres_bin().join("pg_ctl"), &self.root);
        start.args(["-s", "-w", "-D"]).arg(&data).arg("-l").arg(self.root.join("postgres.log")).arg("start");
        start.stdout(Stdio::null()).stderr(Stdio::null());
        assert!(start.status().expect("pg_ctl").success(), "see {}/postgres.log", self.root.display());
    }

    fn start_redis(&mut self) {
        let mut server = command("redis-server", &self.root);
        server.args(["--port", &self.redis_port.to_string(), "--bind", "127.0.0.1", "--save", ""]);
        server.arg("--dir").arg(self.root.join("redis"));
        self.redis_server = Some(Server::start(&mut server));
        until("Redis answers", || self.redis(&["PING"]).exit == 0);
    }

    fn redis(&self, args: &[&str]) -> Ran {
        let mut client = command("redis-cli", &self.root);
        Ran::of(client.args(["-h", "127.0.0.1", "-e", "-p", &self.redis_port.to_string()]).args(args))
    }

    fn sql(&self, database: &str, sql: &str) -> String {
        let mut psql = command(postgres_bin().join("psql"), &self.root);
        psql.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-U", "postgres"]);
        psql.args(["-p", &self.postgres_port.to_string(), "-d", database, "-c", sql]);
        Ran::of(psql.env("PGPASSWORD", PASSWORD)).expect(0).stdout.trim().to_owned()
    }

    fn lifeboat(&self, args: &[&str]) -> Ran {
        Ran::of(command(&self.lifeboat, &self.root.join("project")).args(args))
    }

    fn insert(&self, id: u32) -> Row {
        let asked = Timestamp::now();
        self.sql(
            "members",
            &format!("begin; insert into payments values ({id}); insert into heartbeat values (clock_timestamp()); commit"),
        );
        Row { id, asked, stored: Timestamp::now() }
    }

    /// Everything that happens to production.
    fn story(&self) -> Source {
        let before_backups = Timestamp::now();
        let mut rows = self.fill();
        let wrong_password = self.lifeboat(&["run", "backup", "--env", "mistyped"]);
        self.lifeboat(&["run", "backup", "--env", "production"]).expect(0);

        let first = OLD_ROWS + 1;
        rows.extend((first..first + 5).map(|id| self.insert(id)));
        self.sql("members", &format!("delete from payments where id = {DELETED}"));
        self.sql("postgres", "select pg_switch_wal()");
        rows.push(self.insert(first + 5));
        let middle_segment = self.sql("postgres", "select pg_walfile_name(pg_current_wal_lsn())");
        self.sql("postgres", "select pg_switch_wal()");
        let target = self.incident(first + 6, &mut rows);
        self.archive_everything();
        Source {
            root: self.root.clone(),
            lifeboat: self.lifeboat.clone(),
            postgres_port: self.postgres_port,
            redis_port: self.redis_port,
            rows,
            target,
            before_backups,
            middle_segment,
            wrong_password,
        }
    }

    fn fill(&self) -> Vec<Row> {
        self.sql("postgres", "create database members");
        self.sql(
            "members",
            "create table payments (id int primary key); create table heartbeat (at timestamptz)",
        );
        let asked = Timestamp::now();
        self.sql("members", &format!("insert into payments select generate_series(1, {OLD_ROWS})"));
        let stored = Timestamp::now();
        for (key, value) in KEYS {
            assert_eq!(self.redis(&["SET", key, value]).exit, 0);
        }
        (1..=OLD_ROWS).map(|id| Row { id, asked, stored }).collect()
    }

    /// Somebody writes before, during and after the incident; returns when it began.
    fn incident(&self, first: u32, rows: &mut Vec<Row>) -> Timestamp {
        let (stop, written) = (AtomicBool::new(false), std::sync::atomic::AtomicU32::new(0));
        let mut target = Timestamp::UNIX_EPOCH;
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let more = (first..).take_while(|_| !stop.load(Ordering::Relaxed));
                more.map(|id| (self.insert(id), written.fetch_add(1, Ordering::Relaxed)).0)
                    .collect::<Vec<_>>()
            });
            let more = |count| {
                let from = written.load(Ordering::Relaxed);
                until("rows are written", || written.load(Ordering::Relaxed) >= from + count);
            };
            more(3);
            target = Timestamp::now();
            self.sql("members", "delete from payments");
            fs::remove_dir_all(self.root.join("uploads")).expect("the uploads");
            assert_eq!(self.redis(&["FLUSHALL"]).exit, 0);
            more(3);
            stop.store(true, Ordering::Relaxed);
            rows.extend(writer.join().expect("the writer"));
        });
        target
    }

    fn archive_everything(&self) {
        let last = self.sql("postgres", "select pg_walfile_name(pg_switch_wal())");
        let sql = format!("select last_archived_wal >= '{last}' from pg_stat_archiver");
        until("the WAL is archived", || self.sql("postgres", &sql) == "t");
    }
}

/// Only the directory itself: what is in it was handed over already, and the program stays whose it is.
fn hand_over_top(root: &Path) {
    if let Some(account) = machine::account() {
        std::os::unix::fs::chown(root, Some(account.uid), Some(account.gid)).expect("root may change owners");
    }
}

/// The file of a protected environment with production's systems.
pub(crate) fn environment(root: &Path, name: &str, password: &str, (postgres, redis): (u16, u16)) -> String {
    format!(
        "environment: {name}
protected: true
resources:
  db:
    kind: postgres
    bin_dir: {bin}
    data_dir: {root}/postgres
    host: 127.0.0.1
    port: {postgres}
    password: {{ file: {root}/{password} }}
  cache: {{ kind: redis, url: 'redis://127.0.0.1:{redis}', data_dir: {root}/redis }}
  uploads: {{ kind: files, path: {root}/uploads }}
  backups: {{ kind: store, url: 'dir://{root}/store' }}
",
        root = root.display(),
        bin = postgres_bin().display()
    )
}

const BACKUP: &str = "runbook: backup
title: Back everything up
environments: [production, mistyped]
steps:
  - { id: database, runbook: builtin/backup-postgres }
  - { id: cache, runbook: builtin/backup-redis }
  - { id: uploads, runbook: builtin/backup-files }
";

fn succeed(command: &mut Command) {
    let _ = Ran::of(command).expect(0);
}
