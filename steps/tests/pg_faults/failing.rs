//! Disks that fail and disks that are slow, under the engine and under the servers that it starts.
//!
//! The engine is this test program: the tests marked as ignored are run by [`on_failing_and_slow_disks`] in a process that
//! has `faulty_disk.c` before its C library.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use lifeboat_engine::code::Code;
use lifeboat_engine::model::outcome::FailureKind::{self, Permanent, Transient};
use lifeboat_engine::resource::System;
use lifeboat_engine::step::StepError;
use lifeboat_steps::postgres::codes;
use lifeboat_steps::postgres::isolation::work_dir;
use lifeboat_steps::store::codes as store_codes;
use serde_json::json;

use super::disk::walk;
use super::scene::{BURST, Case, LAST, assert_says};
use crate::support::archive::{Archive, wal_program};
use crate::support::faulty_disk::{FaultyDisk, Rule};
use crate::support::journey::Journey;
use crate::support::postgres::Place;
use crate::support::rig::Rig;

/// What the C library says of it.
const BROKEN: &str = "Input/output error";

#[test]
fn on_failing_and_slow_disks() {
    let place = Place::make();
    let disk = FaultyDisk::make(place.path());
    // `pg_dump` is what the programs that talk to a server are found by.
    disk.make_programs(&place.tools.bin_dir, &["postgres", "pg_basebackup", "pg_dump"]);
    disk.again("failing::");
}

/// Returns the library that the process is behind; none if somebody runs the tests one by one.
fn disk() -> Option<&'static FaultyDisk> {
    static DISK: OnceLock<Option<FaultyDisk>> = OnceLock::new();
    let disk = DISK.get_or_init(FaultyDisk::of_this_program).as_ref();
    if disk.is_none() {
        eprintln!("SKIPPED: `on_failing_and_slow_disks` runs this");
    }
    disk
}

fn below(dir: &Path, pattern: &str) -> String {
    let path = dir.canonicalize().expect("a directory").join(pattern);
    path.display().to_string().trim_end_matches('/').to_owned()
}

/// Asserts that something met the rule, and what came of it.
fn fails(rule: &Rule<'_>, error: &StepError, expected: (Code, FailureKind), words: &[&str]) {
    assert!(!rule.hits().is_empty(), "{rule:?} was met by nobody, and yet: {error} {:?}", error.causes);
    assert_says(error, expected, words);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by on_failing_and_slow_disks"]
async fn a_backup_that_cannot_be_read_to_its_end() {
    let Some(disk) = disk() else { return };
    let case = Case::new();
    let store = case.store_now();
    for object in ["lifeboat.json", "backup_manifest", "base.tar", "pg_wal.tar"] {
        let path = case.base(object);
        let rule = disk.on("read", "EIO", &path.display().to_string());
        let error = case.restore().await.expect_err(object);
        let code = if object == "lifeboat.json" { store_codes::LB1103 } else { codes::LB1255 };
        fails(&rule, &error, (code, Transient), &[object, BROKEN]);
        case.assert_untouched();
    }
    assert_eq!(case.store_now(), store, "the store is as it was");
    case.restore().await.expect("can be read again");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by on_failing_and_slow_disks"]
async fn a_disk_that_takes_no_base_backup() {
    let Some(disk) = disk() else { return };
    let case = Case::new();
    let parent = case.data_dir().parent().expect("a parent").to_owned();
    let rows = [
        ("write", "EIO", "target/base/1/*", Permanent, BROKEN),
        ("write", "ENOSPC", "target/pg_wal/*", Transient, "No space left"),
        // The whole of it, and the name that makes it a cluster.
        ("syncfs", "EIO", "target", Permanent, BROKEN),
        ("sync", "EIO", "target/global", Permanent, BROKEN),
    ];
    for (call, what, pattern, kind, words) in rows {
        if call == "syncfs" && !disk.catches_all() {
            eprintln!("SKIPPED: this kernel lets nobody catch the sync of a file system");
            continue;
        }
        let rule = disk.on(call, what, &below(&parent, pattern));
        let error = case.restore().await.expect_err(pattern);
        let place = pattern.trim_end_matches('*');
        fails(&rule, &error, (codes::LB1259, kind), &[place, words]);
        case.assert_untouched();
    }
    case.restore().await.expect("takes it again");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by on_failing_and_slow_disks"]
async fn a_disk_that_fails_while_a_log_is_read_ahead() {
    let Some(disk) = disk() else { return };
    let fails_on = async |call: &str, what: &str, words: &str| {
        let case = Case::new();
        case.restore().await.expect("restores");
        let segments = case.original.segments();
        let segment = &segments[segments.len() - 3];
        let pattern = match call {
            "read" => case.segment(segment).display().to_string(),
            _ => format!("{}/wal/{segment}*", work_dir(&case.data_dir()).display()),
        };
        let rule = disk.on(call, what, &pattern);
        let error = case.recover(None).await.expect_err("cannot be delivered");
        fails(&rule, &error, (codes::LB1266, Transient), &[segment, words]);
        case.assert_no_server();
        drop(rule);
        case.recover(None).await.expect("goes on");
        case.assert_rows(LAST);
    };
    // Each is tried again for a while.
    tokio::join!(fails_on("read", "EIO", BROKEN), fails_on("write", "ENOSPC", "No space left"));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by on_failing_and_slow_disks"]
async fn a_server_whose_disk_fails_while_it_replays() {
    let Some(disk) = disk() else { return };
    let case = Case::new().with_programs(disk.programs());
    case.restore().await.expect("restores");
    // Read when it starts, written while it replays, and written at the end, of which the checkpoint tells.
    for (call, what, pattern, words) in [
        ("read", "EIO", "pg_xact/0000", BROKEN),
        ("write", "EIO", "base/*_fsm", BROKEN),
        ("write", "ENOSPC", "base/*/16384", "No space left"),
    ] {
        let rule = disk.on(call, what, &below(&case.data_dir(), pattern));
        let error = case.recover(None).await.expect_err(pattern);
        let file = pattern.split('*').next().unwrap_or(pattern);
        fails(&rule, &error, (codes::LB1267, Permanent), &[file, words]);
    }
    case.recover(None).await.expect("goes on");
    case.assert_rows(LAST);
}

/// Waits until something has met a rule.
async fn met(rule: &Rule<'_>) {
    let deadline = Instant::now() + Duration::from_mins(2);
    while rule.hits().is_empty() {
        assert!(Instant::now() < deadline, "nobody has met {rule:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A server that replays without `fsync` is synced early, again and again. The kernel tells of an error once: who comes later
/// hears nothing of it.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by on_failing_and_slow_disks"]
async fn an_early_sync_that_fails_is_never_made_good() {
    let Some(disk) = disk() else { return };
    if !disk.catches_all() {
        return eprintln!("SKIPPED: this kernel lets nobody catch the sync of a file system");
    }
    let case = Case::new();
    case.restore().await.expect("restores");
    let segment = case.segment(case.original.segments().last().expect("a segment"));
    let replaying = disk.on("read", "hold", &segment.display().to_string());
    let sync = disk.on("syncfs", "EIO-once", &below(&case.data_dir(), ""));
    // What is held holds the thread that asks.
    let mend = tokio::spawn(async move {
        met(&sync).await;
        drop(replaying);
        sync
    });
    let (recovered, sync) = tokio::join!(case.recover(None), mend);
    let sync = sync.expect("is met");
    let error = recovered.expect_err("something may be lost");
    let words = [&*case.data_dir().display().to_string(), "the disk failed", "move_aside"];
    fails(&sync, &error, (codes::LB1226, Permanent), &words);
    is_lost(&case).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by on_failing_and_slow_disks"]
async fn a_last_sync_that_fails_is_never_made_good() {
    let Some(disk) = disk() else { return };
    if !disk.catches_all() {
        return eprintln!("SKIPPED: this kernel lets nobody catch the sync of a file system");
    }
    let case = Case::new();
    case.restore().await.expect("restores");
    // One that is reached at once, so that the server is started once.
    let target = Some(case.original.moments[BURST.end()]);
    // The configuration says whether the server syncs: it is written before it starts, and again before the last sync.
    let work = work_dir(&case.data_dir()).display().to_string();
    let starting = disk.on("sync", "hold", &format!("{work}/postgresql.ne?"));
    let data_dir = below(&case.data_dir(), "");
    let break_it = tokio::spawn(async move {
        met(&starting).await;
        let ending = disk.on("sync", "hold", &format!("{work}/postgresql.new"));
        drop(starting);
        met(&ending).await;
        let sync = disk.on("syncfs", "EIO-once", &data_dir);
        drop(ending);
        sync
    });
    let (recovered, sync) = tokio::join!(case.recover(target), break_it);
    let sync = sync.expect("is met");
    let error = recovered.expect_err("something may be lost");
    let words = [&*case.data_dir().display().to_string(), BROKEN, "dmesg"];
    fails(&sync, &error, (codes::LB1227, Permanent), &words);
    is_lost(&case).await;
}

/// However well the disk is again, nobody takes the directory for a restored one; a new restore does.
async fn is_lost(case: &Case) {
    for (kind, with) in [
        ("postgres.recover", json!({"store": "backups", "cluster": "db", "timeline": "current"})),
        ("postgres.promote", json!({"cluster": "db"})),
    ] {
        let error = case.rig.run(kind, with).await.expect_err("is lost");
        assert_says(&error, (codes::LB1226, Permanent), &["the disk failed", "move_aside"]);
    }
    let with = json!({"store": "backups", "cluster": "db"});
    case.rig.undo("postgres.recover", with).await.expect("stops the server");
    case.assert_no_server();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by on_failing_and_slow_disks"]
async fn a_server_that_cannot_sync_when_it_is_promoted() {
    let Some(disk) = disk() else { return };
    let case = Case::new().with_programs(disk.programs());
    case.restore().await.expect("restores");
    case.recover(None).await.expect("recovers");
    let rule = disk.on("sync", "EIO", &below(&case.data_dir(), "pg_wal/*"));
    let error = case.rig.run("postgres.promote", json!({"cluster": "db"})).await.expect_err("cannot sync");
    fails(&rule, &error, (codes::LB1271, Permanent), &["pg_wal/", BROKEN]);
    drop(rule);
    case.rig.run("postgres.promote", json!({"cluster": "db"})).await.expect("goes on");
    case.assert_rows(LAST);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by on_failing_and_slow_disks"]
async fn a_store_whose_disk_fails_gets_no_backup_and_no_part_of_one() {
    let Some(disk) = disk() else { return };
    let journey = Journey::begin(Archive::make());
    let mut source = journey.source.resource();
    source.bin_dir = Some(disk.programs());
    let rig = Rig::drill()
        .resource("source", System::Postgres(source))
        .resource("backups", journey.archive.system());
    for (call, what, words) in
        [("write", "EIO", BROKEN), ("write", "ENOSPC", "No space left"), ("sync", "EIO", BROKEN)]
    {
        let rule = disk.on(call, what, &below(&journey.archive.root, "base/*/base.tar*"));
        let with = json!({"cluster": "source", "store": "backups"});
        let error = rig.run("postgres.base_backup", with).await.expect_err("cannot be written");
        assert!(!rule.hits().is_empty(), "{error}");
        let said = format!("{error} {:?}", error.causes);
        assert!(said.contains("base.tar") && said.contains(words), "{said}");
        let published = journey.choose(json!({})).await.expect_err("there is no backup");
        assert_eq!(published.code, codes::LB1220, "{published}");
    }
    let done = rig.run("postgres.base_backup", json!({"cluster": "source", "store": "backups"})).await;
    let label = done.expect("backs up").outputs["label"].clone();
    let chosen = journey.choose(json!({})).await.expect("chooses");
    assert_eq!(chosen.outputs["backup"], label);
}

/// Slow is not broken.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by on_failing_and_slow_disks"]
async fn a_disk_that_takes_its_time() {
    let Some(disk) = disk() else { return };
    let case = Case::new().with_programs(disk.programs());
    let parent = case.data_dir().parent().expect("a parent").to_owned();
    let whole = disk.on("syncfs", "slow:400", &below(&parent, "target"));
    let files = disk.on("sync", "slow:20", &below(&parent, "target/*"));
    case.restore().await.expect("restores");
    case.recover(Some(case.original.moments[BURST.end()])).await.expect("recovers");
    case.rig.run("postgres.promote", json!({"cluster": "db"})).await.expect("promotes");
    case.assert_rows(*BURST.end());
    assert!(!disk.catches_all() || !whole.hits().is_empty(), "the engine syncs the directory");
    let by_the_server = |path: &String| path.contains("/target/pg_wal/");
    assert!(files.hits().iter().any(by_the_server), "the server syncs its log: {:?}", files.hits());
}

/// `archive_command` on a disk that fails: the server keeps the segment and tries again.
#[test]
fn a_segment_is_archived_durably_or_not_at_all() {
    let place = Place::make();
    let disk = FaultyDisk::make(place.path());
    let case = Case::new();
    let name = &case.original.segments()[0];
    let content = zstd::decode_all(&fs::read(case.segment(name)).expect("reads")[..]).expect("is packed");
    let segment = place.path().join(name);
    fs::write(&segment, content).expect("writes");
    let store = place.path().join("store");
    fs::create_dir(&store).expect("makes");
    let config = place.path().join("wal.json");
    fs::write(&config, json!({"store": format!("dir://{}", store.display())}).to_string()).expect("writes");
    let put = || {
        let mut put = Command::new(wal_program());
        put.args(["wal", "put", "--config"]).arg(&config).arg(&segment).arg(name);
        let output = disk.before(&mut put).output().expect("runs");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let rows = [
        ("read", "EIO", segment.display().to_string(), BROKEN),
        ("write", "EIO", below(&store, "wal/*"), BROKEN),
        ("write", "ENOSPC", below(&store, "wal/*"), "No space left"),
        ("sync", "EIO", below(&store, "wal/*"), BROKEN),
    ];
    for (call, what, pattern, words) in rows {
        let rule = disk.on(call, what, &pattern);
        let (code, said) = put();
        assert!(!rule.hits().is_empty(), "{rule:?}");
        assert_eq!(code, Some(1), "{rule:?}: {said}");
        assert!(said.contains(name.as_str()) && said.contains(words), "{said}");
        assert_eq!(walk(&store), Vec::<PathBuf>::new(), "{rule:?}");
    }
    let slow = disk.on("sync", "slow:200", &below(&store, "wal/*"));
    assert_eq!(put(), (Some(0), String::new()));
    assert!(!slow.hits().is_empty());
    assert_eq!(walk(&store).len(), 1);
    // It is there, and yet it is not certain that it stays: nobody says it is archived.
    drop(slow);
    let rule = disk.on("sync", "EIO", &below(&store, "wal/*"));
    let (code, said) = put();
    assert_eq!(code, Some(1), "{rule:?}: {said}");
    assert!(said.contains(name.as_str()) && said.contains(BROKEN), "{said}");
    drop(rule);
    assert_eq!(put().0, Some(0));
}
