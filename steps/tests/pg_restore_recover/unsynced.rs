//! Replay does not sync: what a kill or a power cut in the middle of it leaves is not taken for whole.

use lifeboat_engine::model::outcome::FailureKind;
use lifeboat_engine::step::Probe;
use lifeboat_steps::postgres::codes;
use lifeboat_steps::postgres::isolation::Isolation;
use lifeboat_steps::postgres::pidfile::PidFile;
use serde_json::json;
use std::fs;

use super::scene::{Scene, cut_off, end, recover_params, with_much_log};

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
    by_hand.arg("-D").arg(&dir).arg("-l").arg(&log).args(["-w", "start", "-o"]);
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
