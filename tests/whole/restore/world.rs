//! One test's project: a copy of the backups, and a sandbox to restore them into.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use lifeboat_engine::journal;
use lifeboat_engine::model::{Event, EventKind};
use serde_json::Value;

use super::machine::{self, Process, command, free_port, hand_over, postgres_bin};
use super::source::{self, DELETED, KEYS, Source, UPLOADS, source};
use crate::project::{Ran, Running};

/// Ended and removed with the value.
pub(crate) struct World {
    pub(crate) source: &'static Source,
    pub(crate) dir: PathBuf,
    pub(crate) postgres_port: u16,
    pub(crate) redis_port: u16,
    pub(crate) gate: Gate,
}

impl World {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let source = source();
        let dir = source.root.join(format!("w{}", COUNT.fetch_add(1, Ordering::Relaxed)));
        let world =
            Self { source, dir, postgres_port: free_port(), redis_port: free_port(), gate: Gate::open() };
        for name in ["project/environments", "project/runbooks", "sandbox"] {
            fs::create_dir_all(world.file(name)).expect("a directory");
        }
        world.copy(&source.root.join("store"), "store");
        world.write("project/lifeboat.yaml", "project: whole\ndrill: { approvals: auto }\n");
        let ports = (source.postgres_port, source.redis_port);
        let production = source::environment(&source.root, "production", "password", ports);
        world.write("project/environments/production.yaml", &production);
        world.write("project/environments/sandbox.yaml", &world.sandbox());
        world.write("project/runbooks/restore.yaml", RESTORE);
        hand_over(&world.dir);
        world
    }

    fn sandbox(&self) -> String {
        SANDBOX
            .replace("SOURCE", &self.source.root.display().to_string())
            .replace("DIR", &self.dir.display().to_string())
            .replace("PSQL", &postgres_bin().join("psql").display().to_string())
            .replace("PG_BIN", &postgres_bin().display().to_string())
            .replace("PG_PORT", &self.postgres_port.to_string())
            .replace("REDIS_PORT", &self.redis_port.to_string())
            .replace("GATE_PORT", &self.gate.port.to_string())
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        let path = self.file(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        fs::write(&path, text).expect("a file");
        hand_over(&path);
    }

    /// Replaces text in a file, which must hold it.
    pub(crate) fn edit(&self, name: &str, from: &str, to: &str) {
        let text = fs::read_to_string(self.file(name)).expect("a file");
        assert!(text.contains(from), "{name} has no {from:?}:\n{text}");
        self.write(name, &text.replace(from, to));
    }

    pub(crate) fn copy(&self, from: &Path, to: &str) {
        let status = Command::new("cp").arg("-a").arg(from).arg(self.file(to)).status().expect("cp runs");
        assert!(status.success());
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = command(&self.source.lifeboat, &self.file("project"));
        command.args(args);
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Ran {
        Ran::of(&mut self.command(args))
    }

    /// Runs the restore as a drill to just before the incident.
    pub(crate) fn drill(&self, more: &[&str]) -> Ran {
        self.run(&self.drill_args(more).iter().map(String::as_str).collect::<Vec<_>>())
    }

    pub(crate) fn start_drill(&self, more: &[&str]) -> Running {
        Running::of(&mut self.drill_command(more))
    }

    pub(crate) fn drill_command(&self, more: &[&str]) -> Command {
        self.command(&self.drill_args(more).iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn drill_args(&self, more: &[&str]) -> Vec<String> {
        let incident = self.source.target.to_string();
        let args = ["drill", "restore", "--env", "sandbox", "--incident-at", &incident];
        args.iter().chain(more).map(|&arg| arg.to_owned()).collect()
    }

    pub(crate) fn report(&self) -> Value {
        self.run(&["report", "--format", "json"]).json()
    }

    /// Reads the journal of the only run; nothing before there is one.
    pub(crate) fn events(&self) -> Vec<EventKind> {
        let runs = fs::read_dir(self.file("project/.lifeboat/state/runs")).into_iter().flatten().flatten();
        let events = runs.last().and_then(|run| journal::read(&run.path()).ok()).map(|(_, events)| events);
        events.unwrap_or_default().into_iter().map(|Event { kind, .. }| kind).collect()
    }

    pub(crate) fn processes(&self) -> Vec<Process> {
        machine::processes(&self.dir)
    }

    /// Asserts that nothing of this world runs any more. A process whose parent has ended may still be about to.
    pub(crate) fn assert_nothing_runs(&self) {
        self.assert_run(&[]);
    }

    /// Asserts that these are the servers of this world, in the order of their names.
    pub(crate) fn assert_servers(&self, names: &[&str]) {
        let servers = || {
            let mut left: Vec<_> =
                machine::servers(&self.dir).into_iter().map(|process| process.name).collect();
            left.sort();
            left
        };
        soon(|| servers() == names);
        assert_eq!(servers(), names, "{:#?}", self.processes());
    }

    /// Asserts that these processes run, and no others.
    pub(crate) fn assert_run(&self, expected: &[Process]) {
        soon(|| self.processes() == expected);
        assert_eq!(self.processes(), expected);
    }

    /// Asserts that what the runbook saw in the restored systems is what was there when the incident began.
    pub(crate) fn assert_restored(&self) {
        let found = |name: &str| {
            let path = self.file("project/found").join(name);
            fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        };
        self.assert_payments();
        let mut keys = KEYS.map(|(key, value)| format!("{key}={value}\n"));
        keys.sort();
        assert_eq!(found("keys"), keys.concat());
        for (name, text) in UPLOADS {
            assert_eq!(found(&format!("uploads/{name}")), text, "{name}");
        }
        let files = found("files");
        assert_eq!(files.lines().count(), UPLOADS.len(), "{files}");
    }

    /// Asserts that the payments that the runbook saw are those of when the incident began.
    pub(crate) fn assert_payments(&self) {
        let path = self.file("project/found/payments");
        let found = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let ids: Vec<u32> = found.lines().map(|id| id.parse().expect("a number")).collect();
        self.assert_rows(&ids);
    }

    /// Rows stored before the target are there, rows asked for after it are not; of those in flight nothing is known.
    fn assert_rows(&self, ids: &[u32]) {
        let target = self.source.target;
        let (mut before, mut after) = (0, 0);
        for row in &self.source.rows {
            let is_there = ids.contains(&row.id);
            if row.id == DELETED {
                assert!(!is_there, "row {DELETED}, deleted before the target, is back");
            } else if row.stored < target {
                before += 1;
                assert!(is_there, "lost: {row:?}, target {target}, found {ids:?}");
            } else if row.asked >= target {
                after += 1;
                assert!(!is_there, "from after the target: {row:?}, target {target}");
            }
        }
        assert!(before > 20 && after > 1, "rows on both sides of the target: {before}, {after}");
        assert!(ids.iter().all(|id| self.source.rows.iter().any(|row| row.id == *id)), "unknown: {ids:?}");
    }
}

/// Waits a while for something to become so.
fn soon(mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_so() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Drop for World {
    fn drop(&mut self) {
        machine::end_processes(&self.dir);
        // What is left goes with the whole.
        drop(fs::remove_dir_all(&self.dir));
    }
}

/// What stands where the application's address would be: says that it is ready once the test lets it.
pub(crate) struct Gate {
    port: u16,
    state: Arc<GateState>,
}

#[derive(Default)]
struct GateState {
    closed: AtomicBool,
    asked: AtomicU32,
    ended: AtomicBool,
}

impl Gate {
    fn open() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let state = Arc::<GateState>::default();
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.ended.load(Ordering::Relaxed) {
                    return;
                }
                shared.asked.fetch_add(1, Ordering::Relaxed);
                let status = if shared.closed.load(Ordering::Relaxed) { "503 Not Ready" } else { "200 OK" };
                // A client that has gone away is no matter of the test.
                let _ = stream.and_then(|mut stream| {
                    let _ = stream.read(&mut [0; 1024])?;
                    write!(stream, "HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
                });
            }
        });
        Self { port, state }
    }

    pub(crate) fn close(&self) {
        self.state.closed.store(true, Ordering::Relaxed);
    }

    pub(crate) fn reopen(&self) {
        self.state.closed.store(false, Ordering::Relaxed);
    }

    pub(crate) fn was_asked(&self) -> bool {
        self.state.asked.load(Ordering::Relaxed) > 0
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.state.ended.store(true, Ordering::Relaxed);
        // Wakes the thread, which then ends.
        drop(std::net::TcpStream::connect(("127.0.0.1", self.port)));
    }
}

const SANDBOX: &str = "environment: sandbox
resources:
  db:
    kind: postgres
    bin_dir: PG_BIN
    data_dir: DIR/sandbox/postgres
    host: 127.0.0.1
    port: PG_PORT
    password: { file: SOURCE/password }
    service: { manager: process }
    heartbeat: { database: members, table: heartbeat, column: at }
  cache:
    kind: redis
    url: redis://127.0.0.1:REDIS_PORT
    data_dir: DIR/sandbox/redis
    service:
      manager: process
      command: [redis-server, --port, 'REDIS_PORT', --bind, 127.0.0.1, --dir, DIR/sandbox/redis, --appendonly, 'no']
  uploads: { kind: files, path: DIR/sandbox/uploads }
  backups: { kind: store, url: 'dir://DIR/store', access: read }
  app:
    kind: service
    manager: process
    dir: DIR/sandbox
    command: [sleep, '600']
    ready: 'http://127.0.0.1:GATE_PORT/ready'
vars: { psql: PSQL }
";

/// One step after the other, so that a test knows what was done when a step runs.
pub(crate) const RESTORE: &str = r#"runbook: restore
title: Restore everything
environments: [sandbox]
objective: { rto: 48h, rpo: 1h }
inputs:
  target_time: { type: timestamp, default: "{{ incident.started_at }}", description: Just before this moment }
steps:
  - id: choose
    title: Choose the backup
    uses: postgres.select_backup
    with: { store: backups, target_time: "{{ inputs.target_time }}" }
  - { id: base, uses: postgres.restore_base, with: { store: backups, backup: "{{ steps.choose.backup }}", cluster: db } }
  - id: recover
    uses: postgres.recover
    with: { store: backups, cluster: db, target_time: "{{ inputs.target_time }}" }
  - id: verify
    uses: postgres.verify
    with:
      cluster: db
      queries:
        - { name: payments, database: members, sql: select count(*) as n from payments, expect: ["rows[0].n > 0"] }
        - { name: takes its time, database: members, sql: select 1 as n from pg_sleep(0.3), expect: ["rows[0].n == 1"] }
  - { id: sign_off, uses: approval, with: { message: Promote? } }
  - { id: promote, uses: postgres.promote, with: { cluster: db } }
  - { id: cache, uses: redis.restore, with: { server: cache, store: backups, target_time: "{{ inputs.target_time }}" } }
  - { id: uploads, uses: files.restore, with: { files: uploads, store: backups, target_time: "{{ inputs.target_time }}" } }
  - { id: app, uses: service.start, with: { service: app } }
  - id: look
    effect: read
    recovered: true
    env:
      DATABASE_URL: { connection: db, database: members }
      REDIS_URL: { connection: cache }
      UPLOADS: { connection: uploads }
    run: |
      rm -rf found
      mkdir found
      {{ vars.psql }} -XAtc 'select id from payments order by id' "$DATABASE_URL" >found/payments
      redis-cli -u "$REDIS_URL" --raw KEYS '*' | sort | while read -r key; do
        printf '%s=%s\n' "$key" "$(redis-cli -u "$REDIS_URL" --raw GET "$key")"
      done >found/keys
      cp -R "$UPLOADS" found/uploads
      find "$UPLOADS" -type f >found/files
"#;
