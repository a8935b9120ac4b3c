//! `postgres.recover` and `postgres.promote` on real clusters with an archive.

pub mod support;

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::model::evidence::Confidence;
use lifeboat_engine::model::outcome::FailureKind;
use lifeboat_engine::resource::{Heartbeat, Postgres, System};
use lifeboat_engine::step::{Probe, StepError};
use lifeboat_steps::postgres::codes;
use lifeboat_steps::postgres::isolation::{Isolation, use_client_program};
use lifeboat_steps::postgres::pidfile::PidFile;
use lifeboat_steps::process::identity::Identity;
use serde_json::{Value, json};
use support::archive::wal_program;
use support::backup::TestStore;
use support::postgres::{Cluster, Options, free_port, succeed, wait_until};
use support::rig::Rig;

const LABEL: &str = "20261121T031207Z-0123abcd";

/// A source that archives, its backup, and a place to restore to.
struct Scene {
    rig: Rig,
    target: Postgres,
    source: Cluster,
    store: TestStore,
}

impl Scene {
    fn set() -> Self {
        Self::set_with(Vec::new())
    }

    fn set_with(settings: Vec<String>) -> Self {
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

    fn rig(store: &TestStore, target: &Postgres) -> Rig {
        Rig::drill().resource("backups", store.system()).resource("db", System::Postgres(target.clone()))
    }

    fn data_dir(&self) -> PathBuf {
        self.target.data_dir.clone().expect("a data directory")
    }

    /// Commits a row and returns a moment after that commit and before any later one.
    fn commit(&self, id: i32) -> Timestamp {
        self.source.sql(&format!("insert into ledger values ({id}, 'committed')"));
        self.now()
    }

    fn now(&self) -> Timestamp {
        let sql = "select to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')";
        self.source.sql(sql).parse().expect("a time")
    }

    async fn restore_base(&self) {
        let with = json!({"store": "backups", "backup": LABEL, "cluster": "db"});
        self.rig.run("postgres.restore_base", with).await.expect("restores");
    }

    async fn recover(&self, target: Option<Timestamp>) -> Result<Done, StepError> {
        self.rig.run("postgres.recover", recover_params(target)).await
    }

    /// Runs SQL on the restored server, over its private socket.
    fn sql(&self, sql: &str) -> String {
        let isolation = Isolation::serving(&self.data_dir()).expect("an isolated server");
        let mut psql = self.source.place().command("psql");
        psql.args(["-XAt", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", "postgres", "-h"])
            .arg(isolation.dir());
        psql.args(["-p", &self.target.port.to_string(), "-c", sql]);
        String::from_utf8(succeed(&mut psql).stdout).expect("UTF-8").trim_end().to_owned()
    }

    fn mark(&self) -> PathBuf {
        self.data_dir().join("lifeboat-unsynced")
    }

    /// The mark that a server writes into the directory without syncing, and the boot of the machine that it names.
    fn unsynced(&self) -> Option<String> {
        fs::read_to_string(self.mark()).ok()
    }

    fn segments(&self) -> Vec<PathBuf> {
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

fn recover_params(target: Option<Timestamp>) -> Value {
    match target {
        Some(target) => json!({"store": "backups", "cluster": "db", "target_time": target.to_string()}),
        None => json!({"store": "backups", "cluster": "db"}),
    }
}

#[tokio::test]
async fn every_commit_before_the_target_is_there_and_none_after() {
    let scene = Scene::set();
    scene.commit(2);
    let target = scene.commit(3);
    scene.commit(4);
    scene.source.archive_wal();
    scene.restore_base().await;
    let done = scene.recover(Some(target)).await.expect("recovers");

    assert_eq!(scene.sql("select string_agg(id::text, ',' order by id) from ledger"), "1,2,3");
    assert_eq!(scene.sql("select pg_is_in_recovery(), pg_get_wal_replay_pause_state()"), "t|paused");
    assert_eq!(scene.sql("show archive_mode"), "off");
    assert_eq!(scene.sql("select current_setting('fsync'), current_setting('full_page_writes')"), "on|on");
    assert_eq!(scene.unsynced(), None);
    assert!(
        done.checks.iter().any(|check| check.name == "what was replayed is durable"),
        "{:?}",
        done.checks
    );
    assert_eq!(done.outputs["end_of_wal"], false);
    assert!(done.checks.len() >= 4 && done.checks.iter().all(|check| check.passed), "{:?}", done.checks);
    let stop = done.outputs["stopped_at"].as_str().expect("a line");
    assert!(stop.starts_with("recovery stopping before commit of transaction"), "{stop}");
    let point = &done.recovery_points[0];
    assert_eq!(point.method, "last replayed commit");
    assert!(point.time.parse::<Timestamp>().expect("a time") < target);
    assert!(done.warnings.is_empty(), "{:?}", done.warnings);

    // Verification works while it waits.
    let with = json!({"cluster": "db", "amcheck": true, "queries": [
        {"name": "ledger", "sql": "select count(*) as n from ledger", "expect": ["rows[0].n == 3"]},
    ]});
    let verified = scene.rig.run("postgres.verify", with).await.expect("is sound");
    assert_eq!(verified.outputs["in_recovery"], true);
    assert!(verified.warnings[0].contains("amcheck"), "{:?}", verified.warnings);

    // The server outlives the step, and a second attempt finds it waiting.
    let pid = PidFile::live(&scene.data_dir()).expect("runs").0.pid;
    let again = scene.recover(Some(target)).await.expect("is adopted");
    assert_eq!(PidFile::live(&scene.data_dir()).expect("runs").0.pid, pid);
    assert_eq!(again.outputs["lsn"], done.outputs["lsn"]);
    let probe = scene.rig.probe("postgres.recover", recover_params(Some(target))).await.expect("answers");
    assert!(matches!(probe, Probe::Done(_)));
}

#[tokio::test]
async fn a_target_after_the_last_commit_goes_to_the_end_and_says_so() {
    let scene = Scene::set();
    scene.commit(2);
    scene.source.sql("insert into beat values (now())");
    scene.source.archive_wal();
    let mut target = scene.target.clone();
    target.heartbeat =
        Some(Heartbeat { database: "postgres".into(), table: "public.beat".into(), column: "at".into() });
    let scene = Scene { rig: Scene::rig(&scene.store, &target), target, ..scene };
    scene.restore_base().await;
    let done = scene.recover(Some(Timestamp::now())).await.expect("recovers");
    assert_eq!(scene.sql("select count(*) from ledger"), "2");
    assert_eq!(scene.sql("select pg_get_wal_replay_pause_state()"), "paused");
    assert_eq!(done.outputs["end_of_wal"], true);
    assert!(done.warnings.iter().any(|warning| warning.contains("no commit in the archive")), "{done:?}");
    assert_eq!(done.recovery_points[0].method, "heartbeat row");
}

/// How new the data is said to be, in the order in which that is trusted.
#[tokio::test]
async fn the_recovery_point_says_how_it_was_found() {
    // More connections than the default: a server that recovers with fewer than its source would give up.
    let settings = ["track_commit_timestamp = on", "max_connections = 150", "max_prepared_transactions = 7"];
    let scene = Scene::set_with(settings.map(ToOwned::to_owned).to_vec());
    // Nothing was committed after the backup: the backup's own word, or what it kept of commits.
    let committed = scene.source.sql(
        "select to_char(pg_xact_commit_timestamp(xmin) at time zone 'UTC', \
        'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') from ledger",
    );
    scene.source.archive_wal();
    scene.restore_base().await;
    let done = scene.recover(None).await.expect("recovers");
    let point = &done.recovery_points[0];
    assert_eq!((point.method.as_str(), point.confidence), ("commit timestamp", Confidence::Measured));
    let time = |text: &str| text.parse::<Timestamp>().expect("a time");
    assert_eq!(time(&point.time), time(&committed));
    assert_eq!(done.outputs.get("last_commit"), Some(&Value::Null), "none was replayed");
}

#[tokio::test]
async fn without_a_target_all_wal_is_replayed() {
    let scene = Scene::set();
    scene.commit(2);
    scene.commit(3);
    scene.source.archive_wal();
    scene.restore_base().await;
    let done = scene.recover(None).await.expect("recovers");
    assert_eq!(scene.sql("select count(*) from ledger"), "3");
    assert_eq!((&done.outputs["end_of_wal"], done.warnings.len()), (&json!(true), 0));
}

#[tokio::test]
async fn a_missing_segment_before_the_target_is_named() {
    let scene = Scene::set();
    scene.commit(2);
    scene.source.archive_wal();
    let target = {
        scene.commit(3);
        scene.source.archive_wal();
        scene.commit(4)
    };
    scene.commit(5);
    scene.source.archive_wal();
    // The second to last but one: row 3 is in it.
    let segments = scene.segments();
    let lost = &segments[segments.len() - 2];
    fs::remove_file(lost).expect("remove");
    scene.restore_base().await;
    let error = scene.recover(Some(target)).await.expect_err("cannot get there");
    let name = lost.file_name().expect("a name").to_string_lossy().into_owned();
    assert_eq!(
        (error.code, error.kind),
        (codes::LB1266, FailureKind::Permanent),
        "{error}: {:?}",
        error.causes
    );
    assert!(error.message.contains(&name), "{}", error.message);
    assert_eq!(PidFile::live(&scene.data_dir()), None, "nothing is left running");
}

#[tokio::test]
async fn a_damaged_segment_is_no_end_of_the_log() {
    let scene = Scene::set();
    scene.commit(2);
    scene.source.archive_wal();
    let target = scene.commit(3);
    scene.commit(4);
    scene.source.archive_wal();
    let segments = scene.segments();
    let damaged = segments.last().expect("a segment");
    let mut bytes = fs::read(damaged).expect("read");
    bytes.truncate(bytes.len() / 2);
    fs::write(damaged, bytes).expect("write");
    scene.restore_base().await;
    let error = scene.recover(Some(target)).await.expect_err("must not pass over it");
    assert_eq!(error.code, codes::LB1266, "{error}: {:?}", error.causes);
    assert!(error.message.contains(&*damaged.file_name().expect("a name").to_string_lossy()));
}

#[tokio::test]
async fn a_target_within_the_backup_is_refused_before_anything_starts() {
    let scene = Scene::set();
    scene.restore_base().await;
    let stop: Timestamp =
        scene.store.details(LABEL)["stop_time"].as_str().expect("text").parse().expect("a time");
    let error = scene.recover(Some(stop)).await.expect_err("too early");
    assert_eq!(error.code, codes::LB1269);
    assert!(error.help.expect("help").contains("select_backup"));
}

#[tokio::test]
async fn only_a_directory_that_was_restored_is_recovered() {
    let scene = Scene::set();
    let rig = Rig::drill().resource("backups", scene.store.system()).resource("db", scene.source.system());
    let error = rig.run("postgres.recover", recover_params(None)).await.expect_err("a live source");
    assert_eq!(error.code, codes::LB1263);
    assert!(!scene.source.data_dir.join("recovery.signal").exists());
}

#[tokio::test]
async fn a_killed_engine_leaves_a_recovery_that_goes_on() {
    let (scene, target) = with_much_log().await;
    let _server = cut_off(&scene, target).await;
    scene.recover(Some(target)).await.expect("goes on");
    assert_eq!(scene.sql("select count(*), max(id) from ledger"), "29|29");
}

/// The children of a killed postmaster notice it a moment later, and keep its memory until then.
fn nobody_works_in(dir: &std::path::Path) -> bool {
    let processes = fs::read_dir("/proc").expect("/proc").flatten();
    !processes
        .into_iter()
        .any(|process| fs::read_link(process.path().join("cwd")).is_ok_and(|cwd| cwd == dir))
}

/// Starts a recovery and drops it as soon as its server runs, as if Lifeboat had been killed: helper and all. Without its
/// helper the server ends by itself when it wants more log, sooner or later.
async fn cut_off(scene: &Scene, target: Timestamp) -> Identity {
    let data_dir = scene.data_dir();
    let until_started = async {
        let deadline = Instant::now() + Duration::from_mins(1);
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
fn end(scene: &Scene, server: &Identity, signal: i32) {
    lifeboat_steps::process::identity::signal(server, signal).expect("a signal, or nobody to get it");
    let gone = || !server.is_alive() && nobody_works_in(&scene.data_dir());
    wait_until("the server and its children are gone", gone);
}

/// A source with enough log that its replay takes a moment, restored up to the base backup.
async fn with_much_log() -> (Scene, Timestamp) {
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

#[tokio::test]
async fn what_was_not_synced_is_never_promoted_or_started() {
    let (scene, target) = with_much_log().await;
    let server = cut_off(&scene, target).await;
    let boot = lifeboat_engine::process::boot_id();
    assert_eq!(scene.unsynced(), Some(boot), "marked before the server starts");
    let error = scene.rig.run("postgres.promote", json!({"cluster": "db"})).await.expect_err("not synced");
    assert_eq!(error.code, codes::LB1226);

    // KILL of the postmaster: the memory of the machine is whole, so the recovery goes on.
    end(&scene, &server, 9);
    for kind in ["postgres.promote", "postgres.start"] {
        let error = scene.rig.run(kind, json!({"cluster": "db"})).await.expect_err("not synced");
        assert_eq!(error.code, codes::LB1226, "{kind}");
        assert!(PidFile::live(&scene.data_dir()).is_none(), "{kind} has started nothing");
    }
    let done = scene.recover(Some(target)).await.expect("goes on");
    assert_eq!((scene.unsynced(), scene.sql("show fsync")), (None, "on".to_owned()));
    assert!(done.checks.iter().all(|check| check.passed));
    assert_eq!(scene.sql("select count(*), max(id) from ledger"), "29|29");
    scene.rig.run("postgres.promote", json!({"cluster": "db"})).await.expect("promotes");
    assert_eq!(scene.sql("select pg_is_in_recovery(), current_setting('fsync')"), "f|on");
}

#[tokio::test]
async fn what_was_not_synced_when_the_machine_went_down_is_refused_for_good() {
    let (scene, target) = with_much_log().await;
    let server = cut_off(&scene, target).await;
    end(&scene, &server, 3);
    // After a power cut everything stands there as before, but the boot is another one.
    fs::write(scene.mark(), "c4b27a2e-5d4f-4f53-9a0d-an-earlier-boot").expect("writes");
    let error = scene.recover(Some(target)).await.expect_err("may be torn");
    assert_eq!((error.code, error.kind), (codes::LB1226, FailureKind::Permanent));
    assert!(error.message.contains(&*scene.data_dir().to_string_lossy()), "{error}");
    for kind in ["postgres.promote", "postgres.start"] {
        let error = scene.rig.run(kind, json!({"cluster": "db"})).await.expect_err("may be torn");
        assert_eq!(error.code, codes::LB1226, "{kind}");
    }
    assert_eq!(PidFile::live(&scene.data_dir()), None, "nothing was started");

    // A service manager that starts the cluster at boot, whose configuration may well name an archive. Nothing tells
    // it to recover, as if somebody had promoted the server before the power cut.
    fs::remove_file(scene.data_dir().join("recovery.signal")).expect("removes");
    let dir = scene.data_dir();
    let log = dir.with_file_name("by-hand.log");
    let mut by_hand = scene.source.place().command("pg_ctl");
    by_hand.arg("-D").arg(&dir).arg("-l").arg(&log).args(["-w", "-t", "60", "start", "-o"]);
    let started = by_hand.arg(format!("-k {} -c listen_addresses=", dir.display())).output().expect("runs");
    assert!(!started.status.success());
    let log = fs::read_to_string(log).expect("a log");
    assert!(log.contains("FATAL:  could not access file \"$libdir/lifeboat-unsynced\""), "{log}");
}

#[tokio::test]
async fn a_kill_between_the_stop_and_the_sync_is_made_good() {
    let scene = Scene::set();
    let target = scene.commit(2);
    scene.commit(3);
    scene.source.archive_wal();
    scene.restore_base().await;
    scene.recover(Some(target)).await.expect("recovers");
    // As a kill right after the stop at the target leaves it: a server that waits, does not sync, and is not synced.
    let isolation = Isolation::serving(&scene.data_dir()).expect("it serves");
    fs::write(isolation.dir().join("postgresql.conf"), "fsync = off\n").expect("writes");
    scene.sql("select pg_reload_conf()");
    fs::write(scene.mark(), lifeboat_engine::process::boot_id()).expect("writes");
    let probe = scene.rig.probe("postgres.recover", recover_params(Some(target))).await.expect("answers");
    assert!(matches!(probe, Probe::NotDone), "{probe:?}");
    let pid = PidFile::live(&scene.data_dir()).expect("runs").0.pid;
    scene.recover(Some(target)).await.expect("is adopted and synced");
    assert_eq!(PidFile::live(&scene.data_dir()).expect("runs").0.pid, pid, "the same server");
    assert_eq!((scene.unsynced(), scene.sql("show fsync")), (None, "on".to_owned()));
}

#[tokio::test]
async fn an_interrupted_recovery_leaves_no_server() {
    let scene = Scene::set();
    let target = scene.commit(2);
    scene.commit(3);
    scene.source.archive_wal();
    scene.restore_base().await;
    scene.rig.cancel.cancel();
    scene.recover(Some(target)).await.expect_err("is interrupted");
    wait_until("the server is gone", || PidFile::live(&scene.data_dir()).is_none());
}

#[tokio::test]
async fn a_promoted_drill_server_is_writable_and_stays_isolated() {
    let scene = Scene::set();
    let target = scene.commit(2);
    scene.commit(3);
    scene.source.archive_wal();
    scene.restore_base().await;
    scene.recover(Some(target)).await.expect("recovers");
    let archived = scene.segments().len();
    let done = scene.rig.run("postgres.promote", json!({"cluster": "db"})).await.expect("promotes");
    assert_eq!(done.outputs["timeline"], 2);
    assert_eq!((&done.outputs["isolated"], &done.outputs["archiving"]), (&json!(true), &json!("off")));
    scene.sql("insert into ledger values (50, 'written by the drill')");
    scene.sql("select pg_switch_wal()");
    assert_eq!(scene.sql("select string_agg(id::text, ',' order by id) from ledger"), "1,2,50");
    assert_eq!(scene.segments().len(), archived, "a drill never archives");

    let probe = scene.rig.probe("postgres.promote", json!({"cluster": "db"})).await.expect("answers");
    assert!(matches!(probe, Probe::Done(_)), "{probe:?}");
    let pid = PidFile::live(&scene.data_dir()).expect("runs").0.pid;
    let ready = scene.rig.run("postgres.wait_ready", json!({"cluster": "db"})).await.expect("is ready");
    assert_eq!(ready.outputs["in_recovery"], false);
    let stopped = scene.rig.run("postgres.stop", json!({"cluster": "db"})).await.expect("stops");
    assert_eq!(stopped.outputs["how"], "fast");
    assert!(!PathBuf::from(format!("/proc/{pid}")).exists() || PidFile::live(&scene.data_dir()).is_none());
    let again = scene.rig.run("postgres.stop", json!({"cluster": "db"})).await.expect("is stopped");
    assert_eq!(again.outputs["stopped"], false);
}

#[tokio::test]
async fn a_recovery_brings_the_server_into_service_with_its_own_configuration() {
    let mut scene = Scene::set();
    let target = scene.commit(2);
    scene.commit(3);
    scene.source.archive_wal();
    // In a segment of its own, so that the log of the source goes on beyond the one in which it is left.
    scene.commit(4);
    scene.source.archive_wal();
    scene.rig.mode = lifeboat_engine::model::outcome::Mode::Recovery;
    scene.restore_base().await;
    scene.recover(Some(target)).await.expect("recovers");
    scene.source.stop("fast");
    let done = scene.rig.run("postgres.promote", json!({"cluster": "db"})).await.expect("promotes");
    assert_eq!((&done.outputs["isolated"], &done.outputs["archiving"]), (&json!(false), &json!("proven")));
    // In the same archive.
    let said = done.warnings.join(" ");
    for word in ["base backup", "LB1833", "`timeline: 2`", "timelines [1]"] {
        assert!(said.contains(word), "no {word:?} in {said}");
    }
    assert!(scene.segments().iter().any(|path| path.to_string_lossy().contains("/00000002")));
    // The isolated server archived nothing, its history included; without that the timeline could not be followed.
    let archive = scene.segments()[0].parent().expect("a directory").to_owned();
    let history = fs::read_to_string(archive.join("00000002.history")).expect("is archived");
    assert!(history.starts_with("1\t"), "{history}");
    assert_eq!(Isolation::serving(&scene.data_dir()), None);
    let beside = fs::read_dir(scene.source.place().path()).expect("the place").flatten();
    let left: Vec<_> =
        beside.filter(|entry| entry.file_name().to_string_lossy().contains("lifeboat")).collect();
    assert!(left.is_empty(), "{left:?}");
    let probe = scene.rig.probe("postgres.promote", json!({"cluster": "db"})).await.expect("answers");
    assert!(matches!(probe, Probe::Done(_)));

    scene.rig.run("postgres.stop", json!({"cluster": "db"})).await.expect("stops");
    let started = scene.rig.run("postgres.start", json!({"cluster": "db"})).await.expect("starts");
    assert_eq!(started.outputs["started"], true);
    let again = scene.rig.run("postgres.start", json!({"cluster": "db"})).await.expect("runs");
    assert_eq!((&again.outputs["started"], &again.outputs["pid"]), (&json!(false), &started.outputs["pid"]));
}

#[tokio::test]
async fn only_a_server_that_this_run_recovered_is_promoted() {
    let scene = Scene::set();
    let rig = Rig::drill().resource("backups", scene.store.system()).resource("db", scene.source.system());
    let error = rig.run("postgres.promote", json!({"cluster": "db"})).await.expect_err("a source");
    assert_eq!(error.code, codes::LB1272);
}

#[tokio::test]
async fn a_server_that_ended_before_its_promotion_comes_back_to_where_it_waited() {
    let scene = Scene::set();
    let target = scene.commit(2);
    scene.commit(3);
    scene.source.archive_wal();
    scene.restore_base().await;
    scene.recover(Some(target)).await.expect("recovers");
    let server = PidFile::live(&scene.data_dir()).expect("runs").1;
    // QUIT: without a checkpoint, as if the power had gone, but with all its children.
    lifeboat_steps::process::identity::signal(&server, 3).expect("quit");
    wait_until("the server is gone", || !server.is_alive());
    // Beside the data directory, where the sync of its disk need not reach.
    let isolation = Isolation::read(&scene.data_dir()).expect("it served");
    fs::write(isolation.dir().join("postgresql.conf"), "fsync = off\n").expect("writes");
    scene.rig.run("postgres.promote", json!({"cluster": "db"})).await.expect("promotes");
    assert_eq!(
        scene.sql("select string_agg(id::text, ',' order by id), current_setting('fsync') from ledger"),
        "1,2|on"
    );
}

#[tokio::test]
async fn a_promotion_that_was_cut_off_is_finished() {
    let scene = Scene::set();
    let target = scene.commit(2);
    scene.commit(3);
    scene.source.archive_wal();
    scene.restore_base().await;
    scene.recover(Some(target)).await.expect("recovers");
    for milliseconds in [5, 30, 120] {
        // Dropped in the middle, as if the process were gone; the helper goes with it.
        let cut = Duration::from_millis(milliseconds);
        tokio::time::timeout(cut, scene.rig.run("postgres.promote", json!({"cluster": "db"}))).await.ok();
    }
    let done = scene.rig.run("postgres.promote", json!({"cluster": "db"})).await.expect("is finished");
    assert_eq!(done.outputs["isolated"], true);
    assert_eq!(scene.sql("select pg_is_in_recovery()"), "f");
    assert_eq!(scene.sql("select string_agg(id::text, ',' order by id) from ledger"), "1,2");
}

#[tokio::test]
async fn a_resource_with_a_host_is_reached_there_with_the_passwords_of_the_backup() {
    let scene = Scene::set();
    scene.source.sql("create role app login password 'of the backup'");
    let target = scene.commit(2);
    scene.commit(3);
    scene.source.archive_wal();
    let mut resource = scene.target.clone();
    resource.host = Some("127.0.0.1".into());
    let scene = Scene { rig: Scene::rig(&scene.store, &resource), target: resource, ..scene };
    scene.restore_base().await;
    scene.recover(Some(target)).await.expect("recovers");
    let as_app = |password: &str| {
        let mut psql = scene.source.place().command("psql");
        psql.args(["-XAt", "-U", "app", "-d", "postgres", "-h", "127.0.0.1", "-c", "select 1", "-p"]);
        psql.arg(scene.target.port.to_string()).env("PGPASSWORD", password).output().expect("psql")
    };
    assert!(as_app("of the backup").status.success());
    assert!(!as_app("another").status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn undo_stops_the_isolated_server_and_removes_its_directory() {
    let scene = Scene::set();
    let target = scene.commit(2);
    scene.commit(3);
    scene.source.archive_wal();
    scene.restore_base().await;
    scene.recover(Some(target)).await.expect("recovers");
    let isolation = Isolation::serving(&scene.data_dir()).expect("it serves");
    scene.rig.undo("postgres.recover", recover_params(Some(target))).await.expect("undoes");
    assert!(PidFile::live(&scene.data_dir()).is_none(), "the server is gone");
    assert!(!isolation.dir().exists());
    scene.rig.undo("postgres.recover", recover_params(Some(target))).await.expect("again is no harm");
    let with = json!({"store": "backups", "backup": LABEL, "cluster": "db"});
    scene.rig.undo("postgres.restore_base", with).await.expect("and so the directory is free");
    assert!(!scene.data_dir().exists());
}
