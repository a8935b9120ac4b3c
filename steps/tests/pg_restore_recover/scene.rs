//! A source that archives, its backup, and a place to restore to; recoveries that are cut off.

use crate::support::archive::wal_program;
use crate::support::backup::TestStore;
use crate::support::postgres::{Cluster, Options, PATIENCE, free_port, succeed, wait_until};
use crate::support::rig::Rig;
use jiff::Timestamp;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::resource::{Postgres, System};
use lifeboat_engine::step::StepError;
use lifeboat_steps::postgres::isolation::{Isolation, use_client_program};
use lifeboat_steps::postgres::pidfile::PidFile;
use lifeboat_steps::process::identity::Identity;
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

pub(super) const LABEL: &str = "20261121T031207Z-0123abcd";

/// A source that archives, its backup, and a place to restore to.
pub(super) struct Scene {
    pub(super) rig: Rig,
    pub(super) target: Postgres,
    pub(super) source: Cluster,
    pub(super) store: TestStore,
}

impl Scene {
    pub(super) fn set() -> Self {
        Self::set_with(Vec::new())
    }

    pub(super) fn set_with(settings: Vec<String>) -> Self {
        use_client_program(wal_program().to_path_buf());
        let store = TestStore::make();
        let archive_to = Some(store.path().to_path_buf());
        let source = Cluster::start(&Options { archive_to, settings, ..Options::default() });
        source.sql("create table ledger (id int primary key, note text)");
        source.sql("create table beat (at timestamptz)");
        source.sql("insert into ledger values (1, 'in the backup')");
        store.back_up(&source, LABEL);
        let target = source.place().resource("restored", free_port());
        let rig = Self::rig(&store, &target);
        Self { rig, target, source, store }
    }

    pub(super) fn rig(store: &TestStore, target: &Postgres) -> Rig {
        Rig::drill().resource("backups", store.system()).resource("db", System::Postgres(target.clone()))
    }

    pub(super) fn data_dir(&self) -> PathBuf {
        self.target.data_dir.clone().expect("a data directory")
    }

    /// Commits a row and returns a moment after that commit and before any later one.
    pub(super) fn commit(&self, id: i32) -> Timestamp {
        self.source.sql(&format!("insert into ledger values ({id}, 'committed')"));
        self.now()
    }

    pub(super) fn now(&self) -> Timestamp {
        let sql = "select to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')";
        self.source.sql(sql).parse().expect("a time")
    }

    pub(super) async fn restore_base(&self) {
        let with = json!({"store": "backups", "backup": LABEL, "cluster": "db"});
        self.rig.run("postgres.restore_base", with).await.expect("restores");
    }

    pub(super) async fn recover(&self, target: Option<Timestamp>) -> Result<Done, StepError> {
        self.rig.run("postgres.recover", recover_params(target)).await
    }

    /// Runs SQL on the restored server, over its private socket.
    pub(super) fn sql(&self, sql: &str) -> String {
        let isolation = Isolation::serving(&self.data_dir()).expect("an isolated server");
        let mut psql = self.source.place().command("psql");
        psql.args(["-XAt", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", "postgres", "-h"])
            .arg(isolation.dir());
        psql.args(["-p", &self.target.port.to_string(), "-c", sql]);
        String::from_utf8(succeed(&mut psql).stdout).expect("UTF-8").trim_end().to_owned()
    }

    pub(super) fn mark(&self) -> PathBuf {
        self.data_dir().join("lifeboat-unsynced")
    }

    /// The mark that a server writes into the directory without syncing, and the boot of the machine that it names.
    pub(super) fn unsynced(&self) -> Option<String> {
        fs::read_to_string(self.mark()).ok()
    }

    pub(super) fn segments(&self) -> Vec<PathBuf> {
        let system = self.store.details(LABEL)["system_id"].as_str().expect("text").to_owned();
        let wal = self.store.path().join("wal").join(system);
        let mut found: Vec<PathBuf> = fs::read_dir(wal)
            .expect("an archive")
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.file_name().is_some_and(|name| name.len() == 24))
            .collect();
        found.sort();
        found
    }
}

pub(super) fn recover_params(target: Option<Timestamp>) -> Value {
    match target {
        Some(target) => json!({"store": "backups", "cluster": "db", "target_time": target.to_string()}),
        None => json!({"store": "backups", "cluster": "db"}),
    }
}

/// The children of a killed postmaster notice it a moment later, and keep its memory until then.
pub(super) fn nobody_works_in(dir: &std::path::Path) -> bool {
    let processes = fs::read_dir("/proc").expect("/proc").flatten();
    !processes
        .into_iter()
        .any(|process| fs::read_link(process.path().join("cwd")).is_ok_and(|cwd| cwd == dir))
}

/// Starts a recovery and drops it as soon as its server runs, as if Lifeboat had been killed: helper and all. Without its
/// helper the server ends by itself when it wants more log, sooner or later.
pub(super) async fn cut_off(scene: &Scene, target: Timestamp) -> Identity {
    let data_dir = scene.data_dir();
    let until_started = async {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some((_, server)) = PidFile::live(&data_dir) {
                return server;
            }
            assert!(Instant::now() < deadline, "the server does not start");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        result = scene.recover(Some(target)) => panic!("faster than its own server: {result:?}"),
        server = until_started => server,
    }
}

/// Ends a server, if it still runs, and waits until nothing of it is left.
pub(super) fn end(scene: &Scene, server: &Identity, signal: i32) {
    lifeboat_steps::process::identity::signal(server, signal).expect("a signal, or nobody to get it");
    let gone = || !server.is_alive() && nobody_works_in(&scene.data_dir());
    wait_until("the server and its children are gone", gone);
}

/// A source with enough log that its replay takes a moment, restored up to the base backup.
pub(super) async fn with_much_log() -> (Scene, Timestamp) {
    let scene = Scene::set();
    for id in 2..30 {
        scene.commit(id);
        scene.source.sql("select pg_switch_wal()");
    }
    let target = scene.now();
    scene.commit(100);
    scene.source.archive_wal();
    scene.restore_base().await;
    (scene, target)
}
