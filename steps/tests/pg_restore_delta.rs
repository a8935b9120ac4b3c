//! Restoring over what an earlier restore has left.

pub mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lifeboat_steps::postgres::codes;
use lifeboat_steps::postgres::pidfile::PidFile;
use rustix::process::{Pid, Signal};
use serde_json::{Value, json};
use support::archive::Archive;
use support::journey::Journey;
use support::postgres::{Cluster, Options, succeed, wait_until};

fn delta() -> Value {
    json!({"existing": "delta"})
}

fn data_dir(journey: &Journey) -> PathBuf {
    journey.target.data_dir.clone().expect("a data directory")
}

/// Everything of the directory is as the server's own list says.
fn verify(journey: &Journey, label: &str) {
    let manifest = journey.source.place().path().join("manifest");
    fs::copy(journey.archive.root.join("base").join(label).join("backup_manifest"), &manifest).expect("copy");
    journey.source.place().own(&manifest);
    let mut verify = journey.source.place().command("pg_verifybackup");
    succeed(verify.arg("-m").arg(&manifest).arg(data_dir(journey)));
}

/// Ends the run, and with it the server that waits.
fn next_run(journey: &mut Journey) {
    journey.another_run();
    let dir = data_dir(journey);
    wait_until("the server has ended", || workers(&dir).is_empty());
}

/// A child of a killed postmaster that has not noticed yet goes on to write into the files that it has open.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_restored_while_a_child_of_a_killed_server_works_in_the_directory() {
    let mut journey = Journey::begin(Archive::make());
    let label = journey.back_up().await;
    journey.source.archive_wal();
    journey.restore(&label, json!({})).await.expect("restores");
    journey.recover(json!({"target": "latest"})).await.expect("recovers");
    let dir = data_dir(&journey);
    let (_, server) = PidFile::live(&dir).expect("runs");
    let child = workers(&dir).into_iter().find(|pid| *pid != server.pid).expect("a child");
    // One that stands still notices nothing.
    signal(child, Signal::STOP);
    signal(server.pid, Signal::KILL);
    wait_until("the others are gone", || workers(&dir) == [child]);
    journey.rig.reported().created.clear();
    journey.another_run();
    for with in [delta(), json!({"existing": "move_aside"})] {
        let waits = tokio::time::timeout(Duration::from_secs(2), journey.restore(&label, with)).await;
        assert!(waits.is_err(), "{waits:?}");
        assert!(dir.join("global/pg_control").exists(), "nothing was touched");
    }
    signal(child, Signal::CONT);
    journey.restore(&label, delta()).await.expect("restores over it");
    verify(&journey, &label);
}

fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(pid.cast_signed()).expect("a process");
    rustix::process::kill_process(pid, signal).expect("takes the signal");
}

/// The processes that work in a directory.
fn workers(dir: &Path) -> Vec<u32> {
    let processes = fs::read_dir("/proc").expect("/proc").flatten();
    let pids = processes.filter_map(|process| process.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == dir)).collect()
}

/// The largest file of a database.
fn largest(dir: &Path) -> PathBuf {
    let databases = fs::read_dir(dir.join("base")).expect("databases").flatten();
    let files = databases.flat_map(|database| fs::read_dir(database.path()).expect("files").flatten());
    let largest = files.max_by_key(|file| file.metadata().map_or(0, |metadata| metadata.len()));
    largest.expect("a file").path()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_the_same_is_kept_and_everything_else_becomes_the_backup() {
    let mut journey = Journey::begin(Archive::make());
    journey.source.sql(
        "create table photos as select n as id, repeat('x', 900) as body from generate_series(1, 3000) n",
    );
    let label = journey.back_up().await;
    journey.source.sql("create table late as select 1 as id");
    let target = journey.commit(1);
    journey.commit(2);
    journey.source.archive_wal();

    // Nothing to restore over yet: a restore like any other.
    let first = journey.restore(&label, delta()).await.expect("restores");
    assert_eq!(first.outputs["kept_bytes"], 0);
    journey.recover(json!({"target": "latest"})).await.expect("recovers, too far");
    assert_eq!(journey.ledger(), "1,2");

    next_run(&mut journey);
    let error = journey.restore(&label, json!({})).await.expect_err("not empty");
    assert_eq!(error.code, codes::LB1252);
    let dir = data_dir(&journey);
    let damaged = largest(&dir);
    let elsewhere = journey.source.place().path().join("elsewhere");
    fs::write(&elsewhere, "precious").expect("writes");
    std::os::unix::fs::symlink(&elsewhere, dir.join("base/link")).expect("links");
    // The same name as a file of the backup, and the same length with another content.
    fs::remove_file(dir.join("PG_VERSION")).expect("removes");
    std::os::unix::fs::symlink(&elsewhere, dir.join("PG_VERSION")).expect("links");
    let mut bytes = fs::read(&damaged).expect("reads");
    bytes[70_000] ^= 1;
    fs::write(&damaged, bytes).expect("writes");

    let done = journey.restore(&label, delta()).await.expect("restores over it");
    let (bytes, kept) = (done.outputs["bytes"].as_u64(), done.outputs["kept_bytes"].as_u64());
    let (bytes, kept) = (bytes.expect("a number"), kept.expect("a number"));
    assert!(kept * 10 > bytes * 7 && kept < bytes, "kept {kept} of {bytes}");
    verify(&journey, &label);
    assert_eq!(fs::read_to_string(&elsewhere).expect("reads"), "precious");
    assert!(!dir.join("base/link").exists() && !dir.join("recovery.signal").exists());
    journey.recover(json!({"target_time": target.to_string()})).await.expect("recovers");
    assert_eq!(journey.ledger(), "1");

    cut_off(&mut journey, &label).await;
    refused(&mut journey, &label).await;
}

/// What was cut off cannot be started, and the next attempt goes on with it.
async fn cut_off(journey: &mut Journey, label: &str) {
    next_run(journey);
    journey.rig.cancel.cancel();
    journey.restore(label, delta()).await.expect_err("is interrupted");
    let dir = data_dir(journey);
    assert!(dir.join("base").exists() && !dir.join("global/pg_control").exists());
    journey.another_run();
    assert_eq!(journey.recover(json!({})).await.expect_err("not whole").code, codes::LB1263);
    let done = journey.restore(label, delta()).await.expect("goes on");
    assert!(done.outputs["kept_bytes"].as_u64() > Some(1 << 20), "{:?}", done.outputs);
    verify(journey, label);
}

/// A directory with data of its own is never restored over.
async fn refused(journey: &mut Journey, label: &str) {
    journey.recover(json!({"target": "immediate"})).await.expect("recovers");
    journey.rig.run("postgres.promote", json!({"cluster": "db"})).await.expect("promotes");
    journey.sql("insert into ledger values (50)");
    journey.rig.run("postgres.stop", json!({"cluster": "db"})).await.expect("stops");
    journey.another_run();
    let error = journey.restore(label, delta()).await.expect_err("has data of its own");
    assert!(error.code == codes::LB1835 && error.help.expect("help").contains("move_aside"));
    assert!(data_dir(journey).join("global/pg_control").exists());

    let other = Cluster::start(&Options::default());
    other.stop("fast");
    journey.target = other.resource();
    journey.another_run();
    assert_eq!(journey.restore(label, delta()).await.expect_err("not ours").code, codes::LB1835);
    other.start_server();
    assert_eq!(other.sql("select 1"), "1");
}
