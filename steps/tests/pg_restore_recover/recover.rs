//! `postgres.recover`: what is there afterwards, and what is refused.

use crate::support::postgres::wait_until;
use crate::support::rig::Rig;
use jiff::Timestamp;
use lifeboat_engine::model::evidence::Confidence;
use lifeboat_engine::model::outcome::FailureKind;
use lifeboat_engine::resource::Heartbeat;
use lifeboat_engine::step::Probe;
use lifeboat_steps::postgres::codes;
use lifeboat_steps::postgres::isolation::Isolation;
use lifeboat_steps::postgres::pidfile::PidFile;
use serde_json::{Value, json};
use std::fs;

use super::scene::{LABEL, Scene, cut_off, recover_params, with_much_log};

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
