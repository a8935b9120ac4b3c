//! `postgres.select_backup`: described stores for every rule, and one real cluster.

pub mod support;

use std::path::PathBuf;

use jiff::Timestamp;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::model::ids::StepId;
use lifeboat_engine::resource::{self, System};
use lifeboat_engine::step::StepError;
use lifeboat_steps::postgres::backup::BackupDetails;
use lifeboat_steps::postgres::codes;
use lifeboat_steps::postgres::details::BaseDetails;
use lifeboat_steps::store::{Address, BackupKind, Key, Meter, ObjectEntry, Owner, Store, digest_of};
use serde_json::{Value, json};
use support::archive::Archive;
use support::postgres::Options;
use support::rig::Rig;

const SYSTEM: &str = "7300000000000000001";
const MIB: u64 = 1 << 20;

/// A store as it is described, and a run that chooses from it.
struct Described {
    rig: Rig,
    store: Store,
    root: PathBuf,
}

/// A backup of one second, from the start of one segment to the end of another.
struct Backup<'a> {
    label: &'a str,
    system: &'a str,
    timeline: u32,
    /// Numbers of the first and last segment.
    wal: (u64, u64),
    stop_time: &'a str,
}

fn backup<'a>(label: &'a str, wal: (u64, u64), stop_time: &'a str) -> Backup<'a> {
    Backup { label, system: SYSTEM, timeline: 1, wal, stop_time }
}

impl Described {
    fn new() -> Self {
        let rig = Rig::drill();
        let root = rig.dir().join("store");
        let url = format!("dir://{}", root.display());
        let resource = resource::Store { url, ..Default::default() };
        let store = Store::open_or_create(&Address::new(resource.clone())).expect("makes it");
        Self { rig: rig.resource("backups", System::Store(resource)), store, root }
    }

    fn add(&self, backup: &Backup<'_>) {
        let (start, stop) = backup.wal;
        let stop_time: Timestamp = backup.stop_time.parse().expect("a time");
        let start_time = stop_time - jiff::SignedDuration::from_secs(1);
        let name = |number| format!("{:08X}{:08X}{number:08X}", backup.timeline, 0);
        let details = BackupDetails {
            base: BaseDetails {
                system_id: backup.system.into(),
                major: 15,
                version: "15.18".into(),
                timeline: backup.timeline,
                start_lsn: format!("0/{:X}", start * MIB + 0x28),
                stop_lsn: format!("0/{:X}", (stop + 1) * MIB),
                start_time,
                stop_time,
                wal_segment_size: MIB,
            },
            files: 1,
            data_bytes: 1000,
            wal_start_segment: name(start),
            wal_stop_segment: name(stop),
            archived: true,
            tablespaces: vec![],
            seconds: 1,
        };
        let owner = Owner { run: self.rig.run_id, step: StepId::new("base").expect("an id") };
        let partial = self.store.begin(BackupKind::PostgresBase, backup.label, &owner).expect("begins");
        std::fs::write(partial.path().join("base.tar"), b"data").expect("writes");
        let digest = digest_of(&b"data"[..], &Meter::silent()).expect("reads");
        let object = ObjectEntry { name: "base.tar".into(), size: digest.size, sha256: digest.sha256 };
        let details = serde_json::to_value(&details).expect("is plain data");
        partial.publish((start_time, stop_time), vec![object], details).expect("publishes");
    }

    fn wal(&self, timeline: u32, numbers: impl IntoIterator<Item = u64>) {
        for number in numbers {
            self.file(&format!("{timeline:08X}{:08X}{number:08X}.zst", 0), b"wal");
        }
    }

    fn file(&self, name: &str, content: &[u8]) {
        let key = Key::new(format!("wal/{SYSTEM}/{name}")).expect("a key");
        self.store.put(&key, content).expect("writes");
    }

    async fn choose(&self, with: Value) -> Result<Done, StepError> {
        let mut all = json!({"store": "backups"});
        all.as_object_mut().expect("a map").extend(with.as_object().expect("a map").clone());
        self.rig.run("postgres.select_backup", all).await
    }

    async fn chosen(&self, target: &str) -> Result<String, StepError> {
        let done = self.choose(json!({"target_time": target})).await?;
        Ok(done.outputs["backup"].as_str().expect("text").to_owned())
    }
}

/// Three backups and whole WAL from the first on.
fn three() -> Described {
    let described = Described::new();
    described.add(&backup("a", (3, 4), "2026-11-20T03:00:00Z"));
    described.add(&backup("b", (8, 9), "2026-11-21T03:00:00Z"));
    described.add(&backup("c", (14, 15), "2026-11-22T03:00:00Z"));
    described.wal(1, 3..=20);
    described
}

#[tokio::test]
async fn the_newest_that_was_finished_before_the_target_is_taken() {
    let described = three();
    assert_eq!(described.chosen("2026-11-21T09:00:00Z").await.expect("fits"), "b");
    assert_eq!(described.chosen("2026-11-21T03:00:00.000001Z").await.expect("fits"), "b");
    assert_eq!(described.chosen("2026-11-21T03:00:00Z").await.expect("fits"), "a", "not before itself");
    assert_eq!(described.chosen("2026-11-21T02:59:59.5Z").await.expect("fits"), "a", "within a backup");
    let done = described.choose(json!({})).await.expect("fits");
    assert_eq!(done.outputs["backup"], "c");
    assert_eq!(done.outputs["start_segment"], "00000001000000000000000E");
    assert_eq!(done.outputs["end_segment"], "000000010000000000000014");
    assert_eq!((&done.outputs["wal_segments"], &done.outputs["timeline"]), (&json!(7), &json!(1)));
    assert_eq!(done.outputs["restore_bytes"], json!(1000 + 7 * MIB));
    assert_eq!(done.outputs["estimated_seconds"], json!(1), "7 MiB of log at 25 MB/s");
    assert!(done.outputs["estimated_by"].as_str().unwrap().contains("25.0 MB/s (assumed"), "{done:?}");
    assert!(done.checks.iter().all(|check| check.passed) && done.warnings.is_empty(), "{done:?}");
}

#[tokio::test]
async fn no_backup_before_the_target_is_an_error_that_names_the_oldest() {
    let error = three().chosen("2026-11-20T02:00:00Z").await.expect_err("none fits");
    assert_eq!(error.code, codes::LB1221);
    assert!(error.message.contains("`a`") && error.message.contains("2026-11-20T03:00:00Z"), "{error}");
}

#[tokio::test]
async fn an_empty_store_is_told_from_one_without_usable_backups() {
    let described = Described::new();
    assert_eq!(described.choose(json!({})).await.expect_err("is empty").code, codes::LB1220);
    let base = described.root.join("base");
    std::fs::create_dir_all(base.join("x.partial")).expect("makes");
    assert_eq!(described.choose(json!({})).await.expect_err("is unfinished").code, codes::LB1220);
    std::fs::create_dir_all(base.join("y")).expect("makes");
    std::fs::write(base.join("y/lifeboat.json"), b"{}").expect("writes");
    let error = described.choose(json!({})).await.expect_err("is damaged");
    assert_eq!(error.code, codes::LB1225);
    assert!(error.message.contains("y: "), "{error}");
}

#[tokio::test]
async fn a_gap_is_named_and_refused_unless_it_is_behind_the_target() {
    let described = three();
    let gone = described.root.join(format!("wal/{SYSTEM}/000000010000000000000011.zst"));
    std::fs::remove_file(gone).expect("removes");
    for with in [json!({}), json!({"target_time": "2026-11-22T05:00:00Z"})] {
        let error = described.choose(with).await.expect_err("has a gap");
        assert_eq!(error.code, codes::LB1222);
        let message = &error.message;
        assert!(
            message.contains("000000010000000000000011") && message.contains("000000010000000000000010"),
            "{error}"
        );
    }
    // The backup of the 22nd, whose WAL is before the gap, proves that the 21st is.
    let done = described.choose(json!({"target_time": "2026-11-21T09:00:00Z"})).await.expect("lies before");
    assert_eq!(
        (&done.outputs["backup"], &done.outputs["end_segment"]),
        (&json!("b"), &json!("000000010000000000000010"))
    );
    assert_eq!(done.warnings.len(), 1, "{:?}", done.warnings);
    let done = described.choose(json!({"gap": "accept"})).await.expect("is accepted");
    assert_eq!(done.outputs["end_segment"], "000000010000000000000010");
    assert!(done.warnings.len() == 1 && done.checks.iter().any(|check| !check.passed), "{done:?}");
}

#[tokio::test]
async fn a_gap_before_a_later_backup_does_not_matter_to_it() {
    let described = three();
    for missing in ["00000001000000000000000B", "00000001000000000000000A"] {
        let gone = described.root.join(format!("wal/{SYSTEM}/{missing}.zst"));
        std::fs::remove_file(gone).expect("removes");
    }
    assert_eq!(described.chosen("2026-11-22T05:00:00Z").await.expect("is after the gap"), "c");
    let error = described.chosen("2026-11-21T09:00:00Z").await.expect_err("may be in the gap");
    assert!(error.message.contains("00000001000000000000000A and 1 more"), "{error}");
    // The start of the WAL of the backup itself.
    let gone = described.root.join(format!("wal/{SYSTEM}/00000001000000000000000F.zst"));
    std::fs::remove_file(gone).expect("removes");
    let error = described.chosen("2026-11-22T05:00:00Z").await.expect_err("lacks its own WAL");
    assert!(error.code == codes::LB1222 && error.message.contains("00000001000000000000000F"), "{error}");
}

#[tokio::test]
async fn a_damaged_backup_is_passed_over_and_named() {
    let described = three();
    std::fs::write(described.root.join("base/c/base.tar"), b"dat").expect("truncates");
    let done = described.choose(json!({})).await.expect("an older one fits");
    assert_eq!(done.outputs["backup"], "b");
    assert!(done.warnings.iter().any(|warning| warning.contains("`c`")), "{:?}", done.warnings);
    for label in ["a", "b"] {
        std::fs::remove_file(described.root.join(format!("base/{label}/base.tar"))).expect("removes");
    }
    assert_eq!(described.choose(json!({})).await.expect_err("none is whole").code, codes::LB1225);
}

#[tokio::test]
async fn several_clusters_in_one_store_must_be_told_apart() {
    let described = three();
    let other = "7400000000000000002";
    described.add(&Backup { system: other, ..backup("x", (3, 4), "2026-11-22T04:00:00Z") });
    let error = described.choose(json!({})).await.expect_err("which one?");
    assert_eq!(error.code, codes::LB1223);
    assert!(error.message.contains(SYSTEM) && error.message.contains(other), "{error}");
    let done = described.choose(json!({"system_id": SYSTEM})).await.expect("is told");
    assert_eq!(done.outputs["backup"], "c");
    let error = described.choose(json!({"system_id": "1"})).await.expect_err("has none");
    assert_eq!(error.code, codes::LB1220);
    let error = described.choose(json!({"system_id": other})).await.expect_err("has no WAL");
    assert_eq!(error.code, codes::LB1222);
}

#[tokio::test]
async fn timelines_are_followed_by_their_history() {
    let described = three();
    // Restored to within segment 12 and promoted; the old primary had gone on, and so had its backups.
    described.file("00000002.history", b"1\t0/C80000\tbefore 2026-11-21 12:00:00+00\n");
    described.wal(2, 12..=18);
    described.add(&Backup { timeline: 2, ..backup("d", (16, 17), "2026-11-23T03:00:00Z") });
    let done = described.choose(json!({"target_time": "2026-11-22T09:00:00Z"})).await.expect("fits");
    assert_eq!(done.outputs["backup"], "b", "`c` is on the part of timeline 1 that was left behind");
    assert_eq!(done.outputs["end_segment"], "000000020000000000000012");
    assert_eq!(done.outputs["timeline"], 2);
    assert_eq!(described.chosen("2026-11-23T09:00:00Z").await.expect("fits"), "d");
    let done = described.choose(json!({"target_time": "2026-11-22T09:00:00Z", "timeline": 1})).await;
    let done = done.expect("fits");
    assert_eq!((&done.outputs["backup"], &done.outputs["timeline"]), (&json!("c"), &json!(1)));
    assert!(done.warnings.iter().any(|warning| warning.contains("[2]")), "{:?}", done.warnings);
    assert_eq!(described.choose(json!({"timeline": 7})).await.expect_err("is unknown").code, codes::LB1224);
}

#[tokio::test]
async fn a_timeline_without_its_history_is_not_guessed() {
    let described = three();
    described.wal(2, 12..=18);
    assert_eq!(described.choose(json!({})).await.expect_err("nobody knows").code, codes::LB1204);
    assert_eq!(described.choose(json!({"timeline": 1})).await.expect("is told").outputs["backup"], "c");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_archive_is_walked_and_its_gap_found() {
    let archive = Archive::make();
    let cluster = archive.cluster(Options::default());
    let rig = Rig::drill().resource("db", cluster.system()).resource("backups", archive.system());
    let made = rig.run("postgres.base_backup", json!({"cluster": "db", "store": "backups"})).await;
    let made = made.expect("succeeds");
    for _ in 0..3 {
        cluster.sql("create table if not exists t(); drop table t");
        cluster.archive_wal();
    }
    let with = json!({"store": "backups", "target_time": Timestamp::now().to_string()});
    let done = rig.run("postgres.select_backup", with.clone()).await.expect("fits");
    assert_eq!(done.outputs["backup"], made.outputs["label"]);
    assert_eq!(done.outputs["start_segment"], made.outputs["wal_start_segment"]);
    let end = done.outputs["end_segment"].as_str().expect("text").to_owned();
    assert!(end.as_str() > made.outputs["wal_stop_segment"].as_str().expect("text"), "{end}");
    // The last but one.
    let system = made.outputs["system_id"].as_str().expect("text");
    let number = u64::from_str_radix(&end[16..], 16).expect("hexadecimal") - 1;
    let missing = format!("{}{number:08X}", &end[..16]);
    std::fs::remove_file(archive.root.join(format!("wal/{system}/{missing}.zst"))).expect("removes");
    let error = rig.run("postgres.select_backup", with).await.expect_err("has a gap");
    assert!(error.code == codes::LB1222 && error.message.contains(&missing), "{error}");
    let early = json!({"store": "backups", "target_time": "2020-01-01T00:00:00Z"});
    assert_eq!(rig.run("postgres.select_backup", early).await.expect_err("too early").code, codes::LB1221);
}
