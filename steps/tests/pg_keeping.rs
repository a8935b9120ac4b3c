//! Backups in a store: verified, watched, pruned.

pub mod support;

use std::path::PathBuf;

use jiff::Timestamp;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::step::StepError;
use lifeboat_steps::postgres::codes;
use lifeboat_steps::store;
use serde_json::{Value, json};
use support::archive::Archive;
use support::backup::TestStore;
use support::bucket::{Bucket, Versions};
use support::postgres::{Cluster, Options, wait_until};
use support::rig::Rig;

/// A cluster that archives into a store, with two base backups and log between and after them.
async fn setting() -> (Rig, Cluster, TestStore) {
    let store = TestStore::make();
    let options = Options { archive_to: Some(store.path().to_owned()), ..Options::default() };
    let cluster = Cluster::start(&options);
    let rig = Rig::drill().resource("db", cluster.system()).resource("backups", store.system());
    cluster.sql("create table t (id int)");
    for label in ["first", "second"] {
        let with = json!({"cluster": "db", "store": "backups", "label": label, "compression": "gzip"});
        rig.run_as(label, "postgres.base_backup", with).await.expect("a backup");
        for _ in 0..2 {
            cluster.sql("insert into t select generate_series(1, 1000)");
            cluster.archive_wal();
        }
    }
    (rig, cluster, store)
}

async fn verify(rig: &Rig, more: Value) -> Result<Done, StepError> {
    let mut with = json!({"store": "backups"});
    let (Value::Object(all), Value::Object(more)) = (&mut with, more) else { panic!("maps") };
    all.extend(more);
    rig.run("postgres.verify_backup", with).await
}

async fn status(rig: &Rig) -> Result<Done, StepError> {
    rig.run("postgres.wal_status", json!({"cluster": "db", "store": "backups"})).await
}

/// The archived segments, oldest first.
fn segments(store: &TestStore) -> Vec<PathBuf> {
    let wal = store.path().join("wal");
    let system = std::fs::read_dir(wal).unwrap().next().unwrap().unwrap().path();
    let mut found: Vec<_> = std::fs::read_dir(system).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| path.file_name().unwrap().len() == 24);
    found.sort();
    found
}

fn flip(path: &std::path::Path, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

#[tokio::test]
async fn damage_in_a_backup_or_behind_it_is_found_and_named() {
    let (rig, cluster, store) = setting().await;
    let done = verify(&rig, json!({"wal": "read"})).await.expect("whole");
    assert_eq!(done.outputs["backup"], json!("second"));
    assert!(done.outputs["wal_segments"].as_u64().unwrap() >= 3, "{done:?}");
    let older = verify(&rig, json!({"backup": "first"})).await.expect("whole");
    assert!(older.outputs["wal_segments"].as_u64() > done.outputs["wal_segments"].as_u64());
    let done = status(&rig).await.expect("keeps up");
    let point = &done.outputs["recovery_point"];
    assert_eq!((&point["method"], &point["confidence"]), (&json!("WAL bound"), &json!("bound")));
    let next = Timestamp::now().duration_since(point["time"].as_str().unwrap().parse().unwrap());
    assert!(next.as_secs() < 60, "nothing waits to be archived: {point}");
    assert_eq!(done.outputs["missing"], json!([]));
    assert_eq!(done.outputs["archive_end"], done.outputs["last_archived"]);
    let error = verify(&rig, json!({"max_age": "1ms"})).await.expect_err("older");
    assert_eq!(error.code, codes::LB1830, "{error}");

    // A segment behind the newest backup is gone: every check that lists finds it.
    let all = segments(&store);
    let lost = &all[all.len() - 2];
    let name = lost.file_name().unwrap().to_string_lossy().into_owned();
    let aside = store.path().join("aside");
    std::fs::rename(lost, &aside).unwrap();
    let error = verify(&rig, json!({})).await.expect_err("a gap");
    assert_eq!(error.code, codes::LB1222);
    assert!(error.message.contains(&name), "{error}");
    let error = status(&rig).await.expect_err("a gap");
    assert_eq!(error.code, codes::LB1831);
    assert!(error.message.contains(&name), "{error}");
    verify(&rig, json!({"wal": "skip"})).await.expect("the backup itself is whole");
    std::fs::rename(&aside, lost).unwrap();

    // Damaged within: only reading finds it.
    flip(lost, 1);
    verify(&rig, json!({})).await.expect("a list does not show it");
    let error = verify(&rig, json!({"wal": "read"})).await.expect_err("damaged");
    assert_eq!(error.code, codes::LB1202);
    assert!(error.message.contains(&name), "{error}");
    flip(lost, 1);
    let archive = store.base("second").join("base.tar.gz");
    flip(&archive, 1000);
    let error = verify(&rig, json!({})).await.expect_err("one bit");
    assert_eq!(error.code, store::codes::LB1108, "{error}");

    cluster.sql("alter system set archive_command = 'false'");
    cluster.sql("select pg_reload_conf()");
    cluster.sql("insert into t values (1)");
    cluster.sql("select pg_switch_wal()");
    wait_until("archiving fails", || cluster.sql("select failed_count > 0 from pg_stat_archiver") == "t");
    let error = status(&rig).await.expect_err("failing");
    assert!(error.message.contains("archiving does not fail"), "{error}");
    let strict = json!({"cluster": "db", "store": "backups", "max_lag": "1ms", "max_ready": 0});
    let error = rig.run("postgres.wal_status", strict).await.expect_err("late");
    for late in ["segments are archived in time", "few segments wait"] {
        assert!(error.message.contains(late), "{late}: {error}");
    }
    assert!(error.checks.iter().any(|check| !check.passed));
}

#[tokio::test]
async fn pruning_removes_what_no_rule_keeps_and_never_the_last_whole_backup() {
    let (rig, _cluster, store) = setting().await;
    let keep = |last: u64, dry_run: bool| json!({"store": "backups", "keep": {"last": last, "min_verified": 1}, "dry_run": dry_run});
    let before = segments(&store);
    let planned = rig.run_as("plan", "postgres.prune", keep(1, true)).await.expect("plans");
    assert_eq!(
        (&planned.outputs["kept"], &planned.outputs["removed"]),
        (&json!(["second"]), &json!(["first"]))
    );
    assert!(planned.outputs["wal_segments"].as_u64().unwrap() >= 2, "{planned:?}");
    assert!(store.base("first").exists() && segments(&store) == before, "a dry run removes nothing");

    // The one that would be kept is damaged.
    let manifest = store.base("second").join("backup_manifest");
    let text = std::fs::read(&manifest).unwrap();
    std::fs::write(&manifest, &text[1..]).unwrap();
    let error = rig.run_as("refused", "postgres.prune", keep(1, false)).await.expect_err("none whole");
    assert_eq!(error.code, codes::LB1832, "{error}");
    std::fs::write(&manifest, &text).unwrap();
    let error = rig.run_as("refused", "postgres.prune", keep(0, false)).await.expect_err("keeps none");
    assert_eq!(error.code, codes::LB1832, "{error}");
    assert!(store.base("first").exists());

    // Damaged within, which only reading shows.
    let archive = store.base("second").join("base.tar.gz");
    flip(&archive, 1000);
    let mut read = keep(1, false);
    read["read"] = json!(true);
    let error = rig.run_as("refused", "postgres.prune", read).await.expect_err("damaged within");
    assert_eq!(error.code, codes::LB1832, "{error}");
    flip(&archive, 1000);

    // A marker that nobody can read may need any of the log.
    std::fs::create_dir_all(store.base("odd")).unwrap();
    std::fs::write(store.base("odd").join("lifeboat.json"), "{}").unwrap();
    let careful = rig.run_as("careful", "postgres.prune", keep(1, true)).await.expect("plans");
    assert_eq!(careful.outputs["wal_segments"], json!(0), "{careful:?}");
    assert_eq!(careful.warnings.len(), 2, "{:?}", careful.warnings);
    std::fs::remove_dir_all(store.base("odd")).unwrap();

    // Killed after the marker: the directory is there, and no backup any more.
    let done = rig.run("postgres.prune", keep(1, false)).await.expect("prunes");
    assert_eq!(done.outputs["removed"], json!(["first"]));
    assert!(!store.base("first").exists());
    std::fs::create_dir_all(store.base("first")).unwrap();
    std::fs::write(store.base("first").join("base.tar.gz"), "left").unwrap();
    let again = rig.run("postgres.prune", keep(1, false)).await.expect("goes on");
    assert_eq!(again.outputs["removed"], json!(["first"]));
    assert!(!store.base("first").exists(), "what was cut off is finished");
    let left = segments(&store);
    assert!(left.len() < before.len() && before.ends_with(&left), "{left:?}");
    verify(&rig, json!({"wal": "read"})).await.expect("all that it needs is there");
}

/// The same in a bucket: two backups, of which the older goes with the log that nothing kept needs.
#[tokio::test(flavor = "multi_thread")]
async fn in_a_bucket_the_newest_counts_only_if_it_is_whole() {
    let bucket = Bucket::make(Versions::None);
    let archive = Archive::in_bucket(bucket.resource("pg"));
    let cluster = archive.cluster(Options::default());
    let rig = Rig::drill().resource("db", cluster.system()).resource("backups", archive.system());
    let rig = archive.secrets().into_iter().fold(rig, |rig, secret| rig.secret(secret, "testing"));
    cluster.sql("create table t (id int)");
    for label in ["first", "second"] {
        let with = json!({"cluster": "db", "store": "backups", "label": label, "compression": "gzip"});
        rig.run_as(label, "postgres.base_backup", with).await.expect("a backup");
        for _ in 0..2 {
            cluster.sql("insert into t select generate_series(1, 1000)");
            cluster.archive_wal();
        }
    }
    let keep = |dry_run: bool| json!({"store": "backups", "keep": {"last": 1}, "dry_run": dry_run});
    let all = bucket.keys();
    let planned = rig.run_as("plan", "postgres.prune", keep(true)).await.expect("plans");
    assert_eq!(planned.outputs["removed"], json!(["first"]));
    assert_eq!(bucket.keys(), all, "a dry run removes nothing");

    let manifest = "pg/base/second/backup_manifest";
    let text = bucket.get(manifest).expect("a manifest");
    bucket.delete(manifest);
    let error = rig.run_as("refused", "postgres.prune", keep(false)).await.expect_err("not whole");
    assert_eq!(error.code, codes::LB1832, "{error}");
    assert!(error.causes[0].contains("second"), "{error:?}");
    bucket.put(manifest, text);
    // Without its marker the newest is no backup, and the older one is what is kept.
    let marker = "pg/base/second/lifeboat.json";
    let text = bucket.get(marker).expect("a marker");
    bucket.delete(marker);
    let careful = rig.run_as("careful", "postgres.prune", keep(false)).await.expect("keeps the other");
    assert_eq!((&careful.outputs["kept"], &careful.outputs["removed"]), (&json!(["first"]), &json!([])));
    bucket.put(marker, text);

    let done = rig.run("postgres.prune", keep(false)).await.expect("prunes");
    assert_eq!(done.outputs["removed"], json!(["first"]));
    let left = bucket.keys();
    assert!(left.len() < all.len() && !left.iter().any(|key| key.contains("/first/")), "{left:?}");
    verify(&rig, json!({"wal": "read"})).await.expect("all that it needs is there");
    let status = status(&rig).await.expect("keeps up");
    assert_eq!(status.outputs["missing"], json!([]));
}
