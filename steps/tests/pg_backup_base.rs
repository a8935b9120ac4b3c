//! `postgres.base_backup` and `wal put` against real servers.

pub mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use lifeboat_engine::model::event::Done;
use lifeboat_engine::resource::{Postgres, System};
use lifeboat_engine::step::StepError;
use lifeboat_steps::postgres::backup::BackupDetails;
use lifeboat_steps::postgres::{codes, wal};
use lifeboat_steps::store::{self, BackupKind, Meter, catalogue, verify};
use serde_json::{Value, json};
use support::archive::{Archive, archiving_by};
use support::postgres::{Cluster, Options};
use support::rig::Rig;

fn rig(archive: &Archive, cluster: &Cluster) -> Rig {
    Rig::drill().resource("db", cluster.system()).resource("backups", archive.system())
}

async fn back_up(rig: &Rig, more: Value) -> Result<Done, StepError> {
    let mut with = json!({"cluster": "db", "store": "backups"});
    with.as_object_mut().expect("a map").extend(more.as_object().expect("a map").clone());
    rig.run("postgres.base_backup", with).await
}

fn labels(archive: &Archive) -> Vec<String> {
    let found = catalogue(&archive.store(), BackupKind::PostgresBase).expect("lists");
    found.complete.into_iter().map(|marker| marker.label).collect()
}

fn stored_wal(archive: &Archive) -> PathBuf {
    let systems = wal::systems(&archive.store()).expect("lists");
    archive.root.join(format!("wal/{}", systems[0]))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_is_whole_described_and_made_once() {
    let archive = Archive::make();
    let cluster = archive.cluster(Options::default());
    cluster.sql("create table t as select generate_series(1, 5000) as n");
    let rig = rig(&archive, &cluster);
    let done = back_up(&rig, json!({})).await.expect("succeeds");
    let label = done.outputs["label"].as_str().expect("text").to_owned();
    assert!(label.ends_with(&format!("-{}", rig.run_id.short())), "{label}");
    assert!(done.checks.len() == 3 && done.checks.iter().all(|check| check.passed), "{:?}", done.checks);

    let store = archive.store();
    let found = catalogue(&store, BackupKind::PostgresBase).expect("lists");
    assert!(found.rejected.is_empty(), "{:?}", found.rejected);
    let marker = &found.complete[0];
    verify(&store, marker, &Meter::silent()).expect("every object as in the marker");
    let details: BackupDetails = marker.details().expect("are complete");
    assert_eq!(details.base.system_id, cluster.sql("select system_identifier from pg_control_system()"));
    let lsn = |text: &str| text.parse::<wal::Lsn>().expect("a position");
    assert!(lsn(&details.base.start_lsn) < lsn(&details.base.stop_lsn));
    assert!(details.base.start_time < details.base.stop_time && details.files > 900, "{details:?}");
    assert_eq!(done.outputs["bytes"].as_u64(), Some(marker.bytes()));
    let names: Vec<_> = marker.objects.iter().map(|object| object.name.as_str()).collect();
    assert_eq!(names, ["backup_manifest", "base.tar.zst", "inventory.json", "pg_wal.tar"]);
    assert!(stored_wal(&archive).join(format!("{}.zst", details.wal_stop_segment)).exists());

    let again = back_up(&rig, json!({})).await.expect("is done already");
    assert_eq!(again.outputs, done.outputs);
    assert_eq!(labels(&archive), [label]);
}

#[tokio::test(flavor = "multi_thread")]
async fn other_forms_work_too() {
    let archive = Archive::make();
    let cluster = archive.cluster(Options::default());
    for (label, compression, object) in [("a", "gzip", "base.tar.gz"), ("b", "none", "base.tar")] {
        let rig = rig(&archive, &cluster);
        back_up(&rig, json!({"label": label, "compression": compression})).await.expect("succeeds");
        assert!(archive.root.join("base").join(label).join(object).exists());
        let taken = back_up(&self::rig(&archive, &cluster), json!({"label": label})).await;
        assert_eq!(taken.expect_err("the label is taken").code, store::codes::LB1112);
    }
    assert_eq!(labels(&archive), ["b", "a"]);
}

/// Makes programs that were built without zstd, as some are: the client refuses it, or the server does, with these words.
fn without_zstd(real: &Path, said: &str) -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().expect("a directory");
    let readable = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(dir.path(), readable.clone()).expect("a mode");
    let refusal = format!("case \"$*\" in *zstd*) echo 'pg_basebackup: error: {said}' >&2; exit 1;; esac");
    for (name, refusal) in [("pg_basebackup", refusal.as_str()), ("pg_dump", "")] {
        let script = format!("#!/bin/sh\n{refusal}\nexec '{}' \"$@\"\n", real.join(name).display());
        let text = dir.path().join("script");
        std::fs::write(&text, script).expect("writes");
        std::fs::set_permissions(&text, readable.clone()).expect("a mode");
        // Who has a program open for writing, or has forked meanwhile, keeps it from being run.
        let copied = Command::new("cp").arg(&text).arg(dir.path().join(name)).status().expect("cp runs");
        assert!(copied.success());
    }
    dir
}

#[tokio::test(flavor = "multi_thread")]
async fn where_zstd_is_not_there_gzip_is_taken_and_told() {
    let archive = Archive::make();
    let cluster = archive.cluster(Options::default());
    for said in [
        "invalid compression specification: this build does not support compression with ZSTD",
        "could not initiate base backup: ERROR:  zstd compression is not supported by this build",
    ] {
        let dir = without_zstd(&cluster.place().tools.bin_dir, said);
        let without = Postgres { bin_dir: Some(dir.path().to_owned()), ..cluster.resource() };
        let rig =
            Rig::drill().resource("db", System::Postgres(without)).resource("backups", archive.system());
        let done = back_up(&rig, json!({})).await.expect("is taken all the same");
        assert!(done.warnings.iter().any(|warning| warning.contains("without zstd")), "{:?}", done.warnings);
        let found = catalogue(&archive.store(), BackupKind::PostgresBase).expect("lists");
        let marker =
            found.complete.iter().find(|marker| marker.label == done.outputs["label"]).expect("is there");
        assert!(marker.objects.iter().any(|object| object.name == "base.tar.gz"), "{marker:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_reaches_the_program_by_file() {
    let archive = Archive::make();
    let cluster = archive.cluster(Options { password: Some("it's: \\ secret".into()), ..Options::default() });
    let reference = lifeboat_engine::secret::SecretRef::Env("DB".into());
    let mut postgres = cluster.resource();
    postgres.password = Some(reference.clone());
    let system = lifeboat_engine::resource::System::Postgres(postgres);
    let with = |password: &str| {
        let rig = Rig::drill().resource("db", system.clone()).resource("backups", archive.system());
        rig.secret(reference.clone(), password)
    };
    let rig = with("it's: \\ secret");
    back_up(&rig, json!({})).await.expect("succeeds");
    let shown: String = rig.reported().lines.iter().map(|(_, line)| line.as_str()).collect();
    assert!(!shown.contains("secret"), "{shown}");
    assert_eq!(back_up(&with("wrong"), json!({})).await.expect_err("refused").code, codes::LB1241);
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_could_not_be_restored_are_refused() {
    let archive = Archive::make();
    let cluster = Cluster::start(&Options::default());
    let error = back_up(&rig(&archive, &cluster), json!({})).await.expect_err("does not archive");
    assert_eq!(error.code, codes::LB1211);
    let done =
        back_up(&rig(&archive, &cluster), json!({"archiving": "optional"})).await.expect("is accepted");
    assert!(done.warnings.iter().any(|warning| warning.contains("archive_mode")), "{:?}", done.warnings);

    cluster.sql("create role plain login");
    let mut postgres = cluster.resource();
    postgres.user = "plain".into();
    postgres.database = "postgres".into();
    let system = lifeboat_engine::resource::System::Postgres(postgres);
    let plain = Rig::drill().resource("db", system).resource("backups", archive.system());
    assert_eq!(back_up(&plain, json!({})).await.expect_err("may not").code, codes::LB1210);
}

#[tokio::test(flavor = "multi_thread")]
async fn archiving_that_fails_or_goes_elsewhere_is_found() {
    let archive = Archive::make();
    let cluster = Cluster::start(&Options { settings: archiving_by("false"), ..Options::default() });
    cluster.sql("select pg_switch_wal()");
    support::postgres::wait_until("archiving fails", || {
        cluster.sql("select failed_count > 0 from pg_stat_archiver") == "t"
    });
    let error = back_up(&rig(&archive, &cluster), json!({})).await.expect_err("archiving fails");
    assert_eq!(error.code, codes::LB1212);

    cluster.sql("alter system set archive_command = 'true'");
    cluster.sql("select pg_reload_conf()");
    support::postgres::wait_until("archiving goes elsewhere", || {
        cluster.sql("select last_archived_time > last_failed_time from pg_stat_archiver") == "t"
    });
    let rig = rig(&archive, &cluster);
    let error = back_up(&rig, json!({"archive_timeout": "1s"})).await.expect_err("its WAL is nowhere");
    assert_eq!(error.code, codes::LB1216);
    assert!(labels(&archive).is_empty());
    let left = std::fs::read_dir(archive.root.join("base")).expect("lists").count();
    assert_eq!(left, 0, "nothing is left of it");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_interrupted_attempt_left_is_replaced() {
    let archive = Archive::make();
    let cluster = archive.cluster(Options::default());
    let rig = rig(&archive, &cluster);
    rig.reported()
        .recorded
        .entry("postgres_base_backup".into())
        .or_default()
        .insert("label".into(), json!("left"));
    let owner = store::Owner {
        run: rig.run_id,
        step: lifeboat_engine::model::ids::StepId::new("postgres_base_backup").expect("an id"),
    };
    let partial = archive.store().begin(BackupKind::PostgresBase, "left", &owner).expect("begins");
    std::fs::create_dir(partial.path().join("incoming")).expect("makes");
    std::fs::write(partial.path().join("incoming/base.tar"), b"half").expect("writes");
    std::fs::write(partial.path().join("base.tar.zst"), b"half").expect("writes");
    let error = back_up(&rig, json!({})).await.expect_err("another process is at it");
    assert_eq!(error.code, store::codes::LB1107);
    drop(partial);
    back_up(&rig, json!({})).await.expect("begins again");
    assert_eq!(labels(&archive), ["left"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_backup_publishes_nothing() {
    let archive = Archive::make();
    let cluster = archive.cluster(Options::default());
    // Holds the backup up in its checkpoint, which a spread one writes slowly.
    cluster.sql("create table t as select repeat('x', 500) as x from generate_series(1, 20000)");
    let rig = rig(&archive, &cluster);
    let stop = async {
        // Progress is reported from the moment the program was started.
        while rig.reported().progress.is_empty() {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        rig.cancel.cancel();
    };
    let (result, ()) = tokio::join!(back_up(&rig, json!({"checkpoint": "spread"})), stop);
    result.expect_err("interrupted");
    assert!(labels(&archive).is_empty());
    let senders = || cluster.sql("select count(*) from pg_stat_replication");
    support::postgres::wait_until("the program is gone", || senders() == "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_history_is_refused_by_the_archive() {
    let archive = Archive::make();
    let cluster = archive.cluster(Options::default());
    cluster.archive_wal();
    let stored = stored_wal(&archive);
    // Right after a switch the position still names the segment before.
    cluster.sql("create table t()");
    let next = cluster.sql("select pg_walfile_name(pg_current_wal_lsn())");
    // What another server of the same history would have archived.
    let intruder = zstd::encode_all(&vec![1_u8; 1 << 20][..], 1).expect("compresses");
    std::fs::write(stored.join(format!("{next}.zst")), &intruder).expect("writes");
    cluster.sql("select pg_switch_wal()");
    support::postgres::wait_until("the archiver is refused", || {
        cluster.sql("select coalesce(last_failed_wal, '') from pg_stat_archiver") == next
    });
    let log = std::fs::read_to_string(cluster.place().path().join("source.log")).expect("reads");
    assert!(log.contains("LB1203") && log.contains(&next), "{log}");
    assert_eq!(std::fs::read(stored.join(format!("{next}.zst"))).expect("reads"), intruder);
    // Postgres has kept its own and archives it once the way is free.
    std::fs::remove_file(stored.join(format!("{next}.zst"))).expect("removes");
    support::postgres::wait_until("the segment is archived", || stored.join(format!("{next}.zst")).exists());
}
