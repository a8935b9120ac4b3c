//! The whole way: `wal put`, base backup, restore, and a recovery that gets its WAL from the helper.

pub mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use lifeboat_engine::resource::{Postgres, System};
use lifeboat_steps::postgres::wal::{
    Answered, Archive as Wal, History, SegmentSize, SystemId, WalServer, WalSource,
};
use serde_json::{Map, Value, json};
use support::archive::{Archive, wal_program};
use support::postgres::{Cluster, Options, StopOnDrop, free_port, succeed, wait_until};
use support::rig::Rig;

/// A cluster with a backup and rows before and after it, all archived, and a restored copy that has not started.
struct Scene {
    archive: Archive,
    source: Cluster,
    target: Postgres,
    backup: Map<String, Value>,
    last_segment: String,
}

impl Scene {
    async fn set() -> Self {
        let archive = Archive::make();
        let source = archive.cluster(Options::default());
        source.sql("create table t as select generate_series(1, 100) as n");
        let target = source.place().resource("restored", free_port());
        let rig = Rig::drill()
            .resource("db", source.system())
            .resource("new", System::Postgres(target.clone()))
            .resource("backups", archive.system());
        let made = rig.run("postgres.base_backup", json!({"cluster": "db", "store": "backups"})).await;
        let backup = made.expect("is backed up").outputs;
        // Three segments of 1 MiB, and one more that the switch ends.
        source.sql("insert into t select generate_series(101, 50000)");
        let last_segment = source.sql("select pg_walfile_name(pg_current_wal_lsn())");
        source.archive_wal();
        let with =
            json!({"store": "backups", "backup": backup["label"], "cluster": "new", "existing": "refuse"});
        rig.run("postgres.restore_base", with).await.expect("is restored");
        Self { archive, source, target, backup, last_segment }
    }

    fn data_dir(&self) -> PathBuf {
        self.target.data_dir.clone().expect("a data directory")
    }

    fn text(&self, output: &str) -> &str {
        self.backup[output].as_str().expect("text")
    }

    fn stored(&self, segment: &str) -> PathBuf {
        self.archive.root.join(format!("wal/{}/{segment}.zst", self.text("system_id")))
    }

    /// Starts the helper, with everything proven that was there when it was asked.
    fn helper(&self) -> WalServer {
        let system: SystemId = self.text("system_id").parse().expect("a number");
        let size = SegmentSize::new(1 << 20).expect("a valid size");
        let store = self.archive.store();
        let wal = Wal::list(&store, system).expect("lists");
        let start = lifeboat_steps::postgres::wal::Segment::parse(self.text("wal_start_segment"), size);
        let start = start.expect("a name");
        let proven = wal.continuity(start.number, &History::root(1), size);
        let owner = self.source.place().account.as_ref().map(|account| (account.uid, account.gid));
        WalServer::start(WalSource {
            store,
            system_id: system,
            segment_size: size,
            backup: self.text("label").to_owned(),
            proven: Some(proven),
            first: Some(start),
            socket: self.source.place().path().join("wal.sock"),
            owner,
        })
        .expect("starts")
    }

    /// Begins a recovery to the end of the log, which ends in a promotion.
    fn recover(&self, helper: &WalServer) -> StopOnDrop<'_> {
        let place = self.source.place();
        // The data directory holds the WAL that came with the backup; this must come from the archive.
        for entry in std::fs::read_dir(self.data_dir().join("pg_wal")).expect("lists").flatten() {
            if entry.path().is_file() {
                std::fs::remove_file(entry.path()).expect("removes");
            }
        }
        let signal = self.data_dir().join("recovery.signal");
        std::fs::write(&signal, "").expect("writes");
        place.own(&signal);
        let command = helper.restore_command(&self.archive.program()).replace('\'', "''");
        let settings = format!(
            "\nport = {}\nlisten_addresses = ''\narchive_mode = off\nrestore_command = '{command}'\n",
            self.target.port
        );
        let config = self.data_dir().join("postgresql.conf");
        let text = std::fs::read_to_string(&config).expect("reads") + &settings;
        std::fs::write(&config, text).expect("writes");
        let mut start = place.command("pg_ctl");
        start.args(["-W", "-l"]).arg(self.log()).arg("-D").arg(self.data_dir()).arg("start");
        let stop = StopOnDrop { place, data_dir: self.data_dir() };
        succeed(&mut start);
        stop
    }

    fn log(&self) -> PathBuf {
        self.source.place().path().join("restored.log")
    }

    fn log_text(&self) -> String {
        std::fs::read_to_string(self.log()).unwrap_or_default()
    }

    fn count(&self) -> Option<String> {
        let mut psql = self.source.place().command("psql");
        psql.args(["-XAt", "-U", "postgres", "-d", "postgres", "-p", &self.target.port.to_string(), "-h"]);
        psql.arg(self.source.place().path())
            // Asked once and not for each row: the promotion may come while rows are counted.
            .args(["-c", "select (select count(*) from t) where not pg_is_in_recovery()"]);
        let output = psql.output().expect("psql runs");
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        (output.status.success() && !text.is_empty()).then_some(text)
    }

    fn is_gone(&self) -> bool {
        !self.data_dir().join("postmaster.pid").exists() && !self.log_text().is_empty()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recovery_gets_every_segment_and_ends_where_the_archive_does() {
    let scene = Scene::set().await;
    let helper = scene.helper();
    let _stop = scene.recover(&helper);
    let mut count = None;
    wait_until("the copy is promoted", || {
        count = scene.count();
        count.is_some()
    });
    assert_eq!(count.as_deref(), Some("50000"), "{}", scene.log_text());
    let requests = helper.shutdown();
    let delivered = |name: &str| {
        requests.iter().any(|request| {
            request.name == name
                && matches!(request.answer, Answered::Delivered(_))
                && request.bytes == 1 << 20
        })
    };
    assert!(delivered(scene.text("wal_start_segment")) && delivered(&scene.last_segment), "{requests:?}");
    let failed = requests.iter().find(|request| matches!(request.answer, Answered::Failed(_)));
    assert_eq!(failed, None);
    assert!(requests.iter().any(|request| request.answer == Answered::Absent), "the end was proven");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_segment_that_vanished_stops_the_recovery_and_is_not_its_end() {
    let scene = Scene::set().await;
    let helper = scene.helper();
    let (there, away) = (scene.stored(&scene.last_segment), scene.archive.root.join("away"));
    std::fs::rename(&there, &away).expect("renames");
    let stop = scene.recover(&helper);
    wait_until("the server gives up", || scene.is_gone());
    let log = scene.log_text();
    assert!(log.contains("LB1207") && log.contains("exit code 255"), "{log}");
    assert!(!log.contains("archive recovery complete"), "{log}");
    drop(stop);
    // Brought back, the same recovery goes on to the end.
    std::fs::rename(&away, &there).expect("renames");
    let _stop = scene.recover(&helper);
    wait_until("the copy is promoted", || scene.count().as_deref() == Some("50000"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_helper_that_is_gone_stops_the_recovery() {
    let scene = Scene::set().await;
    let helper = scene.helper();
    let command = helper.restore_command(&scene.archive.program());
    drop(helper);
    let mut get = Command::new("sh");
    get.arg("-c").arg(command.replace("%f", &scene.last_segment).replace("%p", "/tmp/never-written"));
    assert_eq!(get.status().expect("runs").code(), Some(255));
    assert!(!Path::new("/tmp/never-written").exists());
}

/// Kills archivers at every moment of their work: what is in the archive afterwards is whole, or not there.
#[test]
fn a_killed_archiver_leaves_nothing_torn() {
    let archive = Archive::make();
    let cluster = archive.cluster(Options::default());
    cluster.archive_wal();
    cluster.sql("create table t()");
    let segment = cluster.sql("select pg_walfile_name(pg_current_wal_lsn())");
    cluster.archive_wal();
    let system = cluster.sql("select system_identifier from pg_control_system()");
    let dir = archive.root.join("wal").join(system);
    let stored = dir.join(format!("{segment}.zst"));
    let whole = std::fs::read(&stored).expect("reads");
    let source = archive.place.path().join(&segment);
    std::fs::write(&source, zstd::decode_all(&whole[..]).expect("is whole")).expect("writes");
    let put = || {
        let mut put = Command::new(wal_program());
        put.args(["wal", "put", "--config"]).arg(archive.config()).arg(&source).arg(&segment);
        put
    };
    for moment in 0..40 {
        std::fs::remove_file(&stored).ok();
        let mut child = put().spawn().expect("starts");
        std::thread::sleep(std::time::Duration::from_micros(moment * 500));
        child.kill().expect("kills");
        child.wait().expect("ends");
        if let Ok(found) = std::fs::read(&stored) {
            assert!(found == whole, "torn after {moment} half milliseconds");
        }
    }
    assert!(put().status().expect("runs").success(), "what is left of the dead does not stop the next");
    assert!(std::fs::read(&stored).expect("reads") == whole);
}
