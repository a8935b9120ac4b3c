//! Stores in buckets: objects, faults of the way to them, and the kinds that keep backups there.

pub mod support;

use std::io::{Read, Write};

use lifeboat_engine::model::outcome::FailureKind;
use lifeboat_engine::secret::SecretRef;
use lifeboat_steps::store::{self, BackupKind, Key, Meter, Put, Store, catalogue, codes, digest_of, verify};
use serde_json::json;
use support::bucket::{Bucket, Versions, endpoint, noise};
use support::flaky::{Flaky, Trouble};
use support::rig::Rig;

fn key(text: &str) -> Key {
    Key::new(text).expect("a valid key")
}

fn write(store: &Store, at: &str, content: &[u8]) -> Result<Put, lifeboat_engine::step::StepError> {
    let mut object = store.create(&key(at))?;
    object.write_all(content).expect("writes");
    object.commit()
}

fn read(store: &Store, at: &str) -> Vec<u8> {
    let mut content = Vec::new();
    store.read(&key(at)).expect("is there").read_to_end(&mut content).expect("reads");
    content
}

#[test]
fn objects_appear_whole_and_are_never_replaced() {
    let bucket = Bucket::make(Versions::None);
    let store = bucket.store("a/b");
    let pending = store.create(&key("wal/1/a")).expect("creates");
    assert_eq!(store.metadata(&key("wal/1/a")).expect("answers"), None);
    drop(pending);
    assert_eq!(write(&store, "wal/1/a", b"one").expect("writes"), Put::Written);
    assert_eq!(write(&store, "wal/1/a", b"one").expect("same"), Put::Identical);
    assert_eq!(write(&store, "wal/1/a", b"two").expect_err("differs").code, codes::LB1105);
    assert_eq!(write(&store, "wal/1/a", b"one and more").expect_err("differs").code, codes::LB1105);
    assert_eq!(read(&store, "wal/1/a"), b"one");
    assert_eq!(write(&store, "wal/1/empty", b"").expect("writes"), Put::Written);
    assert_eq!(read(&store, "wal/1/empty"), b"");
    assert_eq!(bucket.keys(), ["a/b/wal/1/a", "a/b/wal/1/empty"]);
    assert!(store.find(&key("wal/1/none")).expect("answers").is_none());
    assert_eq!(store.read(&key("wal/1/none")).expect_err("absent").code, codes::LB1104);
}

#[test]
fn large_objects_go_in_parts_and_come_back_in_parts() {
    let bucket = Bucket::make(Versions::None);
    let store = bucket.store("");
    // Three parts to send, five to fetch, the last of both incomplete.
    let content = noise((33 << 20) + 12_345);
    assert_eq!(write(&store, "large", &content).expect("writes"), Put::Written);
    assert_eq!(store.metadata(&key("large")).expect("answers").expect("is there").size, content.len() as u64);
    assert!(read(&store, "large") == content, "the content is the same");
    assert_eq!(write(&store, "large", &content).expect("same"), Put::Identical);
    let mut other = content;
    other[20 << 20] ^= 1;
    assert_eq!(write(&store, "large", &other).expect_err("differs").code, codes::LB1105);
    let mut abandoned = store.create(&key("abandoned")).expect("creates");
    abandoned.write_all(&other).expect("writes");
    assert_eq!(bucket.unfinished_uploads(), 1);
    drop(abandoned);
    assert_eq!(bucket.unfinished_uploads(), 0, "nothing is left of uploads that came to nothing");
}

#[test]
fn prefixes_end_at_a_slash_and_listings_go_on_over_pages() {
    let bucket = Bucket::make(Versions::None);
    let store = bucket.store("backup");
    bucket.put("backup-old/wal/x", "another store");
    bucket.put("backup/wal-old/x", "another prefix");
    bucket.put("backup/wal/../../x", "no key of ours");
    bucket.put("backup/wal/1/.lifeboat-tmp", "one of our own");
    bucket.put_many((0..1003).map(|number| format!("backup/wal/1/{number:04}")));
    let listed = store.list(&key("wal")).expect("lists");
    assert_eq!(listed.len(), 1003);
    assert!(listed.is_sorted_by(|a, b| a.key < b.key));
    assert_eq!(store.list_groups(&key("wal")).expect("lists"), ["1"]);
    assert!(store.list(&key("none")).expect("lists").is_empty());
}

#[test]
fn a_stream_that_breaks_goes_on_where_it_broke() {
    let bucket = Bucket::make(Versions::None);
    let content = noise(20 << 20);
    bucket.put("x/large", content.clone());
    let flaky = Flaky::before(endpoint(), Trouble::Cut { after: 3 << 20, connections: 9 });
    let store = Store::open(&bucket.address_at("x", &flaky.endpoint)).expect("answers");
    assert!(read(&store, "large") == content, "the content is the same");
    assert!(flaky.connections() >= 6, "{} connections", flaky.connections());
}

#[test]
fn a_busy_server_is_asked_again_and_a_dead_one_is_transient() {
    let bucket = Bucket::make(Versions::None);
    let flaky = Flaky::before(endpoint(), Trouble::Busy { connections: 3 });
    let store = Store::open(&bucket.address_at("x", &flaky.endpoint)).expect("answers in the end");
    assert_eq!(write(&store, "a", b"one").expect("writes"), Put::Written);
    assert!(flaky.connections() > 3);

    let gone = format!("http://127.0.0.1:{}", support::web::closed_port());
    let error = Store::open(&bucket.address_at("x", &gone)).expect_err("nobody is there");
    assert_eq!((error.code, error.kind), (codes::LB1103, FailureKind::Transient));
    assert!(error.message.contains(&bucket.name), "{}", error.message);
    assert!(error.message.contains("Connection refused"), "{}", error.message);
    assert!(error.help.expect("says what to do").contains(&gone));
}

#[test]
fn a_bucket_that_is_not_there_is_no_empty_store() {
    let bucket = Bucket { name: "lb-no-such-bucket".to_owned() };
    let error = Store::open(&bucket.address_at("x", endpoint())).expect_err("refused");
    assert_eq!((error.code, error.kind), (codes::LB1114, FailureKind::Permanent));
    assert!(error.message.contains("s3://lb-no-such-bucket/x"), "{}", error.message);
}

/// A rig whose store `backups` is in a bucket, with credentials by reference.
fn rig(bucket: &Bucket) -> Rig {
    let (id, secret) = (SecretRef::Env("S3_ID".into()), SecretRef::Env("S3_SECRET".into()));
    let mut rig = Rig::drill().secret(id, "testing").secret(secret, "testing");
    let written = json!({
        "kind": "store", "url": format!("s3://{}/backups", bucket.name), "endpoint": endpoint(),
        "access_key": { "env": "S3_ID" }, "secret_key": { "env": "S3_SECRET" },
        "scratch": rig.dir(),
    });
    rig.set_resource("backups", written);
    rig
}

#[tokio::test]
async fn files_are_backed_up_to_a_bucket_and_restored_from_it() {
    let bucket = Bucket::make(Versions::None);
    let mut rig = rig(&bucket);
    let (source, target) = (rig.dir().join("source"), rig.dir().join("target"));
    std::fs::create_dir_all(source.join("a")).unwrap();
    std::fs::write(source.join("a/large.bin"), noise(18 << 20)).unwrap();
    std::fs::write(source.join("note.txt"), "hello").unwrap();
    rig.set_resource("uploads", json!({ "kind": "files", "path": source }));
    rig.set_resource("restored", json!({ "kind": "files", "path": target }));

    let taken = rig.run("files.backup", json!({ "files": "uploads", "store": "backups" })).await.unwrap();
    let again = rig.run("files.backup", json!({ "files": "uploads", "store": "backups" })).await.unwrap();
    assert_eq!(taken.outputs, again.outputs, "a later attempt finds what it has published");
    let label = taken.outputs["backup"].as_str().unwrap().to_owned();
    let restored =
        rig.run("files.restore", json!({ "files": "restored", "store": "backups" })).await.unwrap();
    assert_eq!(restored.outputs["backup"], json!(label));
    assert!(std::fs::read(target.join("a/large.bin")).unwrap() == noise(18 << 20));
    rig.run("files.verify", json!({ "files": "restored", "store": "backups" })).await.unwrap();
    let scratch = std::fs::read_dir(rig.dir()).unwrap().flatten();
    let left: Vec<_> = scratch.filter(|entry| entry.file_name().to_string_lossy().contains(&label)).collect();
    assert!(left.is_empty(), "the scratch directory is gone: {left:?}");

    // A flipped byte in the bucket is found.
    let manifest = format!("backups/files/{label}/manifest.json");
    let mut bytes = bucket.get(&manifest).unwrap();
    let last = bytes.len() - 2;
    bytes[last] ^= 1;
    bucket.put(&manifest, bytes);
    let error =
        rig.run_as("other", "files.restore", json!({ "files": "restored", "store": "backups" })).await;
    assert_eq!(error.unwrap_err().code.id, "LB1408");
}

#[test]
fn a_backup_exists_once_its_marker_does() {
    use lifeboat_engine::model::ids::{RunId, StepId};
    let bucket = Bucket::make(Versions::None);
    let store = bucket.store("backups");
    let owner = |step: &str| store::Owner { run: RunId::generate(), step: StepId::new(step).expect("an id") };
    let (mine, other) = (owner("mine"), owner("other"));
    let partial = store.begin(BackupKind::RedisRdb, "one", &mine).expect("begins");
    std::fs::write(partial.path().join("dump.rdb"), b"REDIS").expect("writes");
    let found = catalogue(&store, BackupKind::RedisRdb).expect("lists");
    assert!(found.complete.is_empty());
    assert_eq!(store.begin(BackupKind::RedisRdb, "one", &other).expect_err("not ours").code, codes::LB1107);
    let digest = digest_of(&b"REDIS"[..], &Meter::silent()).expect("reads");
    let entry = store::ObjectEntry { name: "dump.rdb".into(), size: digest.size, sha256: digest.sha256 };
    let now = jiff::Timestamp::now();
    let marker = partial.publish((now, now), vec![entry], json!({})).expect("publishes");
    let found = catalogue(&store, BackupKind::RedisRdb).expect("lists");
    assert_eq!(found.complete, std::slice::from_ref(&marker));
    verify(&store, &marker, &Meter::silent()).expect("is whole");
    assert_eq!(store.begin(BackupKind::RedisRdb, "one", &mine).expect_err("exists").code, codes::LB1112);
    bucket.put("backups/redis/one/dump.rdb", "REDIX");
    assert_eq!(verify(&store, &marker, &Meter::silent()).expect_err("flipped").code, codes::LB1108);
    bucket.put("backups/redis/two/dump.rdb", "somebody else's");
    assert_eq!(store.begin(BackupKind::RedisRdb, "two", &mine).expect_err("not ours").code, codes::LB1107);
}

#[test]
fn objects_are_encrypted_as_the_environment_says() {
    let bucket = Bucket::make(Versions::None);
    let mut resource = bucket.resource("x");
    (resource.encryption, resource.kms_key) = (Some("aws:kms".into()), Some("alias/backups".into()));
    let address = store::Address::new(resource).with_keys("testing".into(), "testing".into(), None);
    let store = Store::open(&address).expect("answers");
    write(&store, "small", b"one").expect("writes");
    write(&store, "large", &noise(17 << 20)).expect("writes");
    for key in ["x/small", "x/large"] {
        let request = bucket.client().head_object().bucket(&bucket.name).key(key).send();
        let head = support::bucket::wait(async move { request.await.expect("is there") });
        assert_eq!(head.server_side_encryption().map(AsRef::as_ref), Some("aws:kms"), "{key}");
        assert!(head.ssekms_key_id().is_some_and(|id| id.contains("alias/backups")), "{key}");
    }
}

#[test]
fn the_log_is_encrypted_as_its_configuration_says() {
    use lifeboat_steps::postgres::wal::put_main;
    let bucket = Bucket::make(Versions::None);
    let dir = tempfile::tempdir().expect("a directory");
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("key"), "testing\n").expect("writes");
    let (name, mut segment) = ("000000010000000000000003", noise(1 << 20));
    segment[..16].copy_from_slice(&[0x10, 0xD1, 2, 0, 1, 0, 0, 0, 0, 0, 0x30, 0, 0, 0, 0, 0]);
    segment[24..32].copy_from_slice(&7_300_000_000_000_000_001_u64.to_ne_bytes());
    segment[32..36].copy_from_slice(&(1_u32 << 20).to_ne_bytes());
    std::fs::write(path(name), segment).expect("writes");
    for (number, (encryption, key)) in
        [("aws:kms", Some("alias/backups")), ("AES256", None)].into_iter().enumerate()
    {
        let mut config = json!({
            "store": format!("s3://{}/{number}", bucket.name), "endpoint": endpoint(),
            "access_key": { "file": "key" }, "secret_key": { "file": "key" }, "encryption": encryption,
        });
        if let Some(key) = key {
            config["kms_key"] = json!(key);
        }
        std::fs::write(path("wal.json"), config.to_string()).expect("writes");
        let exit = put_main(&path("wal.json"), &path(name), name);
        assert_eq!((exit.code, exit.message.as_str()), (0, ""));
        let object = format!("{number}/wal/7300000000000000001/{name}.zst");
        let request = bucket.client().head_object().bucket(&bucket.name).key(object).send();
        let head = support::bucket::wait(async move { request.await.expect("is there") });
        assert_eq!(head.server_side_encryption().map(AsRef::as_ref), Some(encryption));
        assert_eq!(head.ssekms_key_id().is_some_and(|id| id.contains("alias/backups")), key.is_some());
    }
}
