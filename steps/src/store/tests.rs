use std::io::{Read, Write};

use jiff::Timestamp;
use lifeboat_engine::model::ids::{RunId, StepId};
use lifeboat_engine::resource;
use serde_json::json;
use tempfile::TempDir;

use super::*;

fn store() -> (TempDir, Store) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = Store::open_url(&format!("dir://{}", dir.path().display())).expect("opens");
    (dir, store)
}

fn key(text: &str) -> Key {
    Key::new(text).expect("a valid key")
}

fn owner(step: &str) -> Owner {
    Owner { run: RunId::generate(), step: StepId::new(step).expect("a valid id") }
}

fn text(store: &Store, at: &str) -> String {
    let mut text = String::new();
    store.read(&key(at)).expect("is there").read_to_string(&mut text).expect("reads");
    text
}

/// Publishes a backup with one object.
fn publish(store: &Store, label: &str, finished_at: &str) -> Marker {
    let partial = store.begin(BackupKind::RedisRdb, label, &owner("snapshot")).expect("begins");
    std::fs::write(partial.path().join("dump.rdb"), b"REDIS").expect("writes");
    let objects = vec![entry(b"REDIS")];
    let finished_at: Timestamp = finished_at.parse().expect("a time");
    partial.publish((finished_at, finished_at), objects, json!({"keys": 3})).expect("publishes")
}

fn entry(content: &[u8]) -> ObjectEntry {
    let digest = digest_of(content, &Meter::silent()).expect("reads");
    ObjectEntry { name: "dump.rdb".into(), size: digest.size, sha256: digest.sha256 }
}

#[test]
fn keys_cannot_leave_the_root() {
    for bad in
        ["", "/", "/etc/passwd", "a//b", "a/", "../x", "a/../b", "a/./b", "a\\b", "a\0b", ".lifeboat-x"]
    {
        assert_eq!(Key::new(bad).expect_err(bad).code, codes::LB1106, "{bad:?}");
    }
    assert!(Key::new("wal/7301/000000010000000000000003.zst").is_ok());
    assert!(Key::new("x".repeat(256)).is_err());
}

#[test]
fn an_address_that_is_no_store_is_refused() {
    let open = |url: &str| Store::open_url(url).expect_err(url).code;
    assert_eq!(open("dir://relative"), codes::LB1101);
    assert_eq!(open("/plain/path"), codes::LB1101);
    assert_eq!(open("dir:///no/such/directory/here"), codes::LB1103);
}

#[test]
fn a_new_store_is_made_only_when_asked() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let url = format!("dir://{}/a/b", dir.path().display());
    let resource = Address::new(resource::Store { url: url.clone(), ..Default::default() });
    assert!(Store::open(&resource).is_err());
    Store::open_or_create(&resource).expect("makes it");
    assert!(Store::open(&resource).is_ok());
}

#[test]
fn objects_appear_whole_and_are_never_replaced() {
    let (dir, store) = store();
    let at = key("wal/1/a");
    let mut object = store.create(&at).expect("creates");
    object.write_all(b"one").expect("writes");
    assert_eq!(store.metadata(&at).expect("answers"), None);
    assert_eq!(object.commit().expect("commits"), Put::Written);
    assert_eq!(store.put(&at, b"one").expect("same"), Put::Identical);
    assert_eq!(store.put(&at, b"two").expect_err("differs").code, codes::LB1105);
    assert_eq!(store.put(&at, b"one and more").expect_err("differs").code, codes::LB1105);
    assert_eq!(text(&store, "wal/1/a"), "one");
    drop(store.create(&key("wal/1/b")).expect("creates"));
    let names = std::fs::read_dir(dir.path().join("wal/1")).expect("lists").count();
    assert_eq!(names, 1, "temporary files are gone");
}

#[test]
fn temporary_files_of_dead_writers_are_removed_and_those_of_living_ones_kept() {
    let (dir, store) = store();
    let at = key("wal/1/a");
    store.put(&key("wal/1/x"), b"").expect("writes");
    let temporary = dir.path().join("wal/1/.lifeboat-tmp-a");
    let age = || {
        let old = std::time::SystemTime::now() - std::time::Duration::from_hours(1);
        std::fs::File::open(&temporary).expect("is there").set_modified(old).expect("sets the time");
    };
    let temporaries = || {
        let names = std::fs::read_dir(dir.path().join("wal/1")).expect("lists").flatten();
        names.filter(|entry| entry.file_name().to_string_lossy().starts_with(".lifeboat")).count()
    };
    std::fs::write(&temporary, b"a writer that began just now").expect("writes");
    let second = store.create(&at).expect("creates beside it");
    assert_eq!(temporaries(), 2, "it may be about to lock its file");
    drop(second);
    age();
    let living = store.create(&at).expect("creates");
    assert_eq!(temporaries(), 1, "the old one was removed");
    age();
    assert_eq!(store.put(&at, b"new").expect("writes beside a living one"), Put::Written);
    assert_eq!(temporaries(), 1);
    assert_eq!(living.commit().expect_err("a different one is there").code, codes::LB1105);
    assert_eq!(temporaries(), 0);
}

#[test]
fn writers_at_once_never_take_the_temporary_file_of_one_another() {
    let (dir, store) = store();
    let old = std::time::SystemTime::now() - std::time::Duration::from_hours(1);
    for round in 0..200 {
        let at = key(&format!("wal/1/{round}"));
        let left = dir.path().join(format!("wal/1/.lifeboat-tmp-{round}"));
        std::fs::create_dir_all(left.parent().expect("has one")).expect("makes");
        std::fs::write(&left, b"of a dead writer").expect("writes");
        std::fs::File::open(&left).expect("is there").set_modified(old).expect("sets the time");
        let start = std::sync::Barrier::new(4);
        let put = || {
            start.wait();
            store.put(&at, b"segment").expect("is there, by whomever")
        };
        let puts: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(put)).collect();
            threads.into_iter().map(|thread| thread.join().expect("ends")).collect()
        });
        assert_eq!(puts.iter().filter(|put| **put == Put::Written).count(), 1, "{puts:?}");
        assert_eq!(text(&store, at.as_str()), "segment");
    }
}

#[test]
fn listings_are_sorted_and_hide_temporary_files() {
    let (_dir, store) = store();
    for name in ["wal/2/b", "wal/2/a", "wal/1/c", "base/x/y"] {
        store.put(&key(name), name.as_bytes()).expect("writes");
    }
    let pending = store.create(&key("wal/1/d")).expect("creates");
    let listed = store.list(&key("wal")).expect("lists");
    let found: Vec<_> = listed.iter().map(|object| (object.key.as_str(), object.size)).collect();
    assert_eq!(found, [("wal/1/c", 7), ("wal/2/a", 7), ("wal/2/b", 7)]);
    assert!(store.list(&key("none")).expect("lists").is_empty());
    assert_eq!(store.list_groups(&key("wal")).expect("lists"), ["1", "2"]);
    drop(pending);
}

#[test]
fn symbolic_links_lead_nowhere() {
    let (dir, store) = store();
    let outside = tempfile::tempdir().expect("a temporary directory");
    std::fs::write(outside.path().join("secret"), b"secret").expect("writes");
    std::os::unix::fs::symlink(outside.path(), dir.path().join("wal")).expect("links");
    std::fs::create_dir(dir.path().join("base")).expect("makes");
    std::os::unix::fs::symlink(outside.path().join("secret"), dir.path().join("base/x")).expect("links");
    assert!(store.find(&key("wal/secret")).is_err());
    assert!(store.find(&key("base/x")).is_err());
    assert!(store.create(&key("wal/new")).is_err());
    assert!(store.list(&key("base")).expect("lists").is_empty());
    assert!(!outside.path().join("new").exists());
}

#[test]
fn an_absence_is_proven_by_a_witness() {
    let (_dir, store) = store();
    store.put(&key("base/x/lifeboat.json"), b"{}").expect("writes");
    let witness = key("base/x/lifeboat.json");
    assert!(store.find_beside(&key("wal/1/a"), &witness).expect("answers").is_none());
    let error = store.find_beside(&key("wal/1/a"), &key("base/other")).expect_err("proves nothing");
    assert_eq!(error.code, codes::LB1103);
}

#[test]
fn a_store_that_went_away_is_not_an_empty_one() {
    let (dir, store) = store();
    dir.close().expect("removes");
    assert_eq!(store.list(&key("wal")).expect_err("gone").code, codes::LB1103);
    assert_eq!(store.metadata(&key("wal/a")).expect_err("gone").code, codes::LB1103);
    assert_eq!(catalogue(&store, BackupKind::Files).expect_err("gone").code, codes::LB1103);
}

#[test]
fn a_backup_exists_once_it_is_published() {
    let (dir, store) = store();
    let owner = owner("snapshot");
    let partial = store.begin(BackupKind::RedisRdb, "one", &owner).expect("begins");
    std::fs::write(partial.path().join("dump.rdb"), b"REDIS").expect("writes");
    let during = catalogue(&store, BackupKind::RedisRdb).expect("lists");
    assert!(during.complete.is_empty());
    assert_eq!(during.rejected[0].why, Rejection::Unfinished);
    let now = Timestamp::now();
    let marker = partial.publish((now, now), vec![entry(b"REDIS")], json!({"keys": 3})).expect("publishes");
    let after = catalogue(&store, BackupKind::RedisRdb).expect("lists");
    assert_eq!(after.complete, std::slice::from_ref(&marker));
    assert!(after.rejected.is_empty());
    verify(&store, &marker, &Meter::silent()).expect("is whole");
    assert!(!dir.path().join("redis/one/.lifeboat-owner").exists());
    let again = store.begin(BackupKind::RedisRdb, "one", &owner).expect_err("exists");
    assert_eq!(again.code, codes::LB1112);
}

#[test]
fn what_differs_from_the_marker_is_not_published() {
    let (_dir, store) = store();
    let owner = owner("snapshot");
    let begin = || store.begin(BackupKind::RedisRdb, "one", &owner).expect("begins");
    let now = Timestamp::now();
    let missing = begin().publish((now, now), vec![entry(b"REDIS")], json!({}));
    assert_eq!(missing.expect_err("missing").code, codes::LB1108);
    let partial = begin();
    std::fs::write(partial.path().join("dump.rdb"), b"REDIS").expect("writes");
    std::fs::write(partial.path().join("other"), b"").expect("writes");
    let extra = partial.publish((now, now), vec![entry(b"REDIS")], json!({}));
    assert_eq!(extra.expect_err("extra").code, codes::LB1108);
    assert!(catalogue(&store, BackupKind::RedisRdb).expect("lists").complete.is_empty());
}

#[test]
fn an_unfinished_backup_is_taken_over_only_by_its_own_step() {
    let (_dir, store) = store();
    let (mine, other) = (owner("snapshot"), owner("snapshot"));
    let first = store.begin(BackupKind::RedisRdb, "one", &mine).expect("begins");
    std::fs::write(first.path().join("left"), b"").expect("writes");
    let begin = |owner: &Owner| store.begin(BackupKind::RedisRdb, "one", owner);
    assert_eq!(begin(&mine).expect_err("its maker lives").code, codes::LB1107);
    drop(first);
    assert_eq!(begin(&other).expect_err("not ours").code, codes::LB1107);
    let again = begin(&mine).expect("takes over");
    assert!(!again.path().join("left").exists());
    again.discard().expect("removes");
    assert!(begin(&other).is_ok());
}

#[test]
fn a_directory_of_that_name_with_other_things_in_it_is_left_alone() {
    let (dir, store) = store();
    let path = dir.path().join("redis/one.partial");
    std::fs::create_dir_all(&path).expect("makes");
    std::fs::write(path.join("precious"), b"").expect("writes");
    let error = store.begin(BackupKind::RedisRdb, "one", &owner("snapshot")).expect_err("not ours");
    assert_eq!(error.code, codes::LB1107);
    assert!(path.join("precious").exists());
}

#[test]
fn the_catalogue_is_newest_first_and_says_what_it_leaves_out() {
    let (dir, store) = store();
    publish(&store, "a", "2026-11-20T03:00:00Z");
    publish(&store, "c", "2026-11-19T03:00:00Z");
    publish(&store, "b", "2026-11-21T03:00:00Z");
    std::fs::create_dir(dir.path().join("redis/empty")).expect("makes");
    std::fs::create_dir(dir.path().join("redis/torn")).expect("makes");
    std::fs::write(dir.path().join("redis/torn/lifeboat.json"), b"{\"format\": 1, \"ki").expect("writes");
    std::fs::create_dir(dir.path().join("redis/renamed")).expect("makes");
    let marker = dir.path().join("redis/a/lifeboat.json");
    std::fs::copy(&marker, dir.path().join("redis/renamed/lifeboat.json")).expect("copies");
    let newer = std::fs::read_to_string(&marker).expect("reads").replace("\"format\": 1", "\"format\": 2");
    std::fs::create_dir(dir.path().join("redis/newer")).expect("makes");
    std::fs::write(dir.path().join("redis/newer/lifeboat.json"), newer).expect("writes");
    let found = catalogue(&store, BackupKind::RedisRdb).expect("lists");
    let labels: Vec<_> = found.complete.iter().map(|marker| marker.label.as_str()).collect();
    assert_eq!(labels, ["b", "a", "c"]);
    let rejected: Vec<_> = found.rejected.iter().map(|it| (it.label.as_str(), it.why)).collect();
    use Rejection::{InvalidMarker, NoMarker};
    assert_eq!(
        rejected,
        [("empty", NoMarker), ("newer", InvalidMarker), ("renamed", InvalidMarker), ("torn", InvalidMarker)]
    );
    assert!(found.rejected[1].reason.contains("format 2"), "{}", found.rejected[1].reason);
}

#[test]
fn damage_is_found_by_size_and_by_content() {
    let (dir, store) = store();
    let marker = publish(&store, "a", "2026-11-20T03:00:00Z");
    let path = dir.path().join("redis/a/dump.rdb");
    std::fs::write(&path, b"REDIX").expect("writes");
    verify_sizes(&store, &marker).expect("the size is right");
    assert_eq!(verify(&store, &marker, &Meter::silent()).expect_err("flipped").code, codes::LB1108);
    std::fs::write(&path, b"REDI").expect("writes");
    assert_eq!(verify_sizes(&store, &marker).expect_err("short").code, codes::LB1108);
    std::fs::remove_file(&path).expect("removes");
    assert_eq!(verify_sizes(&store, &marker).expect_err("missing").code, codes::LB1108);
}

#[test]
fn streams_are_hashed_in_both_directions() {
    let known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    let (read, reader) = {
        let mut reader = HashingReader::new(&b"abc"[..]);
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("reads");
        (text, reader.finish().1)
    };
    let mut writer = HashingWriter::new(Vec::new());
    writer.write_all(b"abc").expect("writes");
    let (written, digest) = writer.finish();
    assert_eq!((read.as_bytes(), reader.sha256.as_str(), reader.size), (&b"abc"[..], known, 3));
    assert_eq!((written.as_slice(), &digest), (&b"abc"[..], &reader));
}

#[test]
fn labels_sort_by_time_and_end_with_the_run() {
    let run = RunId::generate();
    let label = new_label("2026-11-21T03:12:07.9Z".parse().expect("a time"), &run);
    assert_eq!(label, format!("20261121T031207Z-{}", run.short()));
}
