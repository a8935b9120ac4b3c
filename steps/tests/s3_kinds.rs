//! The kinds `store.*` on a server with versions and on directories.

pub mod support;

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::resource::System;
use lifeboat_engine::secret::SecretRef;
use lifeboat_engine::step::StepError;
use serde_json::{Value, json};
use support::bucket::{Bucket, Versions, next_second, noise};

use support::rig::Rig;

fn rig(bucket: &Bucket) -> Rig {
    let (id, secret) = (SecretRef::Env("S3_ID".into()), SecretRef::Env("S3_SECRET".into()));
    let rig = Rig::drill().secret(id.clone(), "testing").secret(secret.clone(), "testing");
    let mut store = bucket.resource("up");
    (store.access_key, store.secret_key) = (Some(id), Some(secret));
    let url = format!("dir://{}", rig.dir().join("store").display());
    std::fs::create_dir(rig.dir().join("store")).unwrap();
    let rig = rig.resource("bucket", System::Store(store));
    rig.resource_from("dir", json!({ "kind": "store", "url": url }))
}

/// The kinds do the same with both.
const STORES: [&str; 2] = ["bucket", "dir"];

fn write(path: &Path, content: impl AsRef<[u8]>) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, content).unwrap();
}

/// Everything below a directory, by name.
fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    fn walk(dir: &Path, prefix: &str, found: &mut Vec<(String, Vec<u8>)>) {
        for entry in std::fs::read_dir(dir).unwrap().flatten() {
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            match entry.file_type().unwrap().is_dir() {
                true => walk(&entry.path(), &format!("{name}/"), found),
                false => found.push((name, std::fs::read(entry.path()).unwrap_or_default())),
            }
        }
    }
    let mut found = Vec::new();
    walk(dir, "", &mut found);
    found.sort();
    found
}

fn code(outcome: Result<Done, StepError>) -> &'static str {
    outcome.expect_err("is refused").code.id
}

#[tokio::test]
async fn a_file_goes_into_a_store_and_comes_back() {
    let bucket = Bucket::make(Versions::Kept);
    let rig = rig(&bucket);
    let (small, large, target) = (rig.dir().join("small"), rig.dir().join("large"), rig.dir().join("back"));
    write(&small, "hello");
    write(&large, noise((21 << 20) + 77));
    for store in STORES {
        for (file, proof) in [(&small, "sha256"), (&large, "sha256")] {
            let put = json!({ "file": file, "store": store, "key": "a b/ä.bin", "existing": "replace" });
            let put = rig.run("store.put", put).await.unwrap();
            assert_eq!(put.outputs["written"], json!(true), "{store}");
            let again = json!({ "file": file, "store": store, "key": "a b/ä.bin" });
            let again = rig.run("store.put", again).await.unwrap();
            assert_eq!(again.outputs["sha256"], put.outputs["sha256"]);
            assert_eq!(again.outputs["written"], json!(false), "{store}: the same content is success");
            let get = json!({ "store": store, "key": "a b/ä.bin", "to": target });
            rig.reported().recorded.clear();
            let get = rig.run("store.get", get).await.unwrap();
            assert!(std::fs::read(&target).unwrap() == std::fs::read(file).unwrap(), "{store}");
            assert_eq!(get.outputs["sha256"], put.outputs["sha256"]);
            // A directory has no place for a checksum.
            assert_eq!(get.outputs["proven"], json!(if store == "dir" { "size" } else { proof }));
            std::fs::remove_file(&target).unwrap();
        }
        let refused = json!({ "file": small, "store": store, "key": "a b/ä.bin" });
        assert_eq!(code(rig.run("store.put", refused).await), "LB1105", "{store}");
    }
    let left = files(rig.dir()).into_iter().filter(|(name, _)| name.contains("lifeboat-get"));
    assert_eq!(left.count(), 0, "nothing is left beside the file");
}

#[tokio::test]
async fn what_is_there_is_kept_and_a_wrong_checksum_is_found() {
    let bucket = Bucket::make(Versions::Kept);
    let rig = rig(&bucket);
    bucket.put("up/a", "one");
    let target = rig.dir().join("file");
    write(&target, "precious");
    let get = |more: Value| {
        let mut with = json!({ "store": "bucket", "key": "a", "to": target });
        with.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        with
    };
    assert_eq!(code(rig.run("store.get", get(json!({}))).await), "LB1120");
    let wrong = json!({ "existing": "replace", "sha256": "00" });
    assert_eq!(code(rig.run("store.get", get(wrong)).await), "LB1108");
    assert_eq!(std::fs::read_to_string(&target).unwrap(), "precious");
    let absent = json!({ "store": "bucket", "key": "none", "to": rig.dir().join("x") });
    assert_eq!(code(rig.run_as("absent", "store.get", absent).await), "LB1104");
    let done = rig.run("store.get", get(json!({ "existing": "replace" }))).await.unwrap();
    assert_eq!(std::fs::read_to_string(&target).unwrap(), "one");
    assert_eq!(done.outputs["proven"], json!("md5"), "it was written by something else");
    // Its end was not recorded: the next attempt finds its work done.
    let again = rig.run("store.get", get(json!({}))).await.unwrap();
    assert_eq!(again.outputs["sha256"], done.outputs["sha256"]);
    // Where a link stands nothing is written, and what it leads to stays.
    let link = rig.dir().join("link");
    std::os::unix::fs::symlink(&target, &link).unwrap();
    let through = json!({ "store": "bucket", "key": "a", "to": link, "existing": "replace" });
    assert_eq!(code(rig.run_as("link", "store.get", through).await), "LB1120");
}

#[tokio::test]
async fn keys_that_lead_elsewhere_are_refused() {
    let bucket = Bucket::make(Versions::Kept);
    let rig = rig(&bucket);
    let file = rig.dir().join("file");
    write(&file, "x");
    let long = "x".repeat(256);
    for key in ["../../etc/x", "/etc/x", "a//b", "a/./b", "", "a\\b", "a\0b", "a/", long.as_str()] {
        for store in STORES {
            let put = json!({ "file": file, "store": store, "key": key });
            assert_eq!(code(rig.run("store.put", put).await), "LB1106", "{key:?}");
            let get = json!({ "store": store, "key": key, "to": rig.dir().join("y") });
            assert_eq!(code(rig.run("store.get", get).await), "LB1106", "{key:?}");
        }
    }
    assert!(bucket.keys().is_empty());
    assert!(!rig.dir().join("y").exists());
    let link = rig.dir().join("store/link");
    std::os::unix::fs::symlink("/tmp", &link).unwrap();
    let through = json!({ "file": file, "store": "dir", "key": "link/lifeboat-escape" });
    assert!(rig.run("store.put", through).await.is_err(), "a link in the way");
    assert!(!Path::new("/tmp/lifeboat-escape").exists());
}

fn source(rig: &Rig) -> PathBuf {
    let dir = rig.dir().join("source");
    for number in 0..30 {
        write(&dir.join(format!("{}/n {number}", number % 3)), format!("content {number}"));
    }
    write(&dir.join("empty"), "");
    write(&dir.join("large"), noise((17 << 20) + 1));
    dir
}

#[tokio::test]
async fn a_directory_and_a_store_are_made_alike_both_ways() {
    let bucket = Bucket::make(Versions::Kept);
    let rig = rig(&bucket);
    let source = source(&rig);
    for store in STORES {
        let target = rig.dir().join(format!("target-{store}"));
        let up = json!({ "from_dir": source, "to": store, "to_prefix": "p/q/" });
        let down = json!({ "from": store, "from_prefix": "p/q", "to_dir": target });
        let dry = json!({ "from_dir": source, "to": store, "to_prefix": "p/q/", "dry_run": true });
        assert_eq!(rig.run("store.sync", dry).await.unwrap().outputs["copied"], json!(32));
        let done = rig.run("store.sync", up.clone()).await.unwrap();
        assert_eq!((&done.outputs["copied"], &done.outputs["unchanged"]), (&json!(32), &json!(0)), "{store}");
        assert!(done.checks.iter().all(|check| check.passed && check.expected == "32"));
        let again = rig.run("store.sync", up.clone()).await.unwrap();
        let expected = if store == "dir" { 32 } else { 0 };
        assert_eq!(again.outputs["copied"], json!(expected), "{store}: tags tell what is the same");
        let done = rig.run_as("down", "store.sync", down.clone()).await.unwrap();
        assert_eq!(done.outputs["copied"], json!(32), "{store}");
        assert!(files(&source) == files(&target), "{store}");
        if store == "dir" {
            continue;
        }
        assert_eq!(rig.run_as("d2", "store.sync", down.clone()).await.unwrap().outputs["copied"], json!(0));
        // The same size and time, and another content.
        let path = target.join("0/n 3");
        let time = std::fs::metadata(&path).unwrap().modified().unwrap();
        write(&path, "CONTENT 3");
        std::fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
        write(&target.join("of its own"), "x");
        let done = rig.run_as("d3", "store.sync", down.clone()).await.unwrap();
        assert_eq!((&done.outputs["copied"], &done.outputs["extra"]), (&json!(1), &json!(1)));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "content 3");
        assert!(target.join("of its own").exists(), "nothing is removed unless it is asked for");
    }
    // From one store to another.
    let across = json!({ "from": "bucket", "from_prefix": "p/q", "to": "dir", "to_prefix": "copy" });
    rig.run_as("across", "store.sync", across).await.unwrap();
    assert!(files(&rig.dir().join("store/copy")) == files(&source));
}

#[tokio::test]
async fn a_mirror_removes_only_what_it_may() {
    let bucket = Bucket::make(Versions::Kept);
    let rig = rig(&bucket);
    let target = rig.dir().join("target");
    bucket.put("up/a", "one");
    for name in ["a", "x", "y/z"] {
        write(&target.join(name), "old");
    }
    let with =
        |most: u32| json!({ "from": "bucket", "to_dir": target, "extra": "remove", "max_removed": most });
    assert_eq!(code(rig.run("store.sync", with(1)).await), "LB1153");
    assert_eq!(std::fs::read_to_string(target.join("a")).unwrap(), "old", "nothing was touched");
    let done = rig.run("store.sync", with(2)).await.unwrap();
    assert_eq!(done.outputs["removed"], json!(2));
    assert_eq!(files(&target), [("a".to_owned(), b"one".to_vec())]);
    assert!(!target.join("y").exists());
    // An empty source empties nothing.
    bucket.delete("up/a");
    assert_eq!(code(rig.run("store.sync", with(9)).await), "LB1152");
    assert_eq!(files(&target).len(), 1);
    // The other way.
    let source = rig.dir().join("s");
    write(&source.join("b"), "two");
    bucket.put("up/old", "old");
    let with = json!({ "from_dir": source, "to": "bucket", "extra": "remove" });
    assert_eq!(rig.run_as("up", "store.sync", with).await.unwrap().outputs["removed"], json!(1));
    assert_eq!(bucket.keys(), ["up/b"]);
}

#[tokio::test]
async fn hostile_names_and_links_write_nothing() {
    let bucket = Bucket::make(Versions::Kept);
    let rig = rig(&bucket);
    let target = rig.dir().join("t/target");
    for (key, cause) in [
        ("../../escape", "lead elsewhere"),
        ("/etc/x", "a part of it is empty"),
        ("a\\b", "a backslash"),
        ("fine/x", "cannot be the directory"),
        (".lifeboat-x", "Lifeboat's own"),
    ] {
        let key = format!("up/{key}");
        bucket.put(&key, "x");
        bucket.put("up/fine", "x");
        let error = rig.run("store.sync", json!({ "from": "bucket", "to_dir": target })).await.unwrap_err();
        assert_eq!(error.code.id, "LB1119", "{key}");
        assert!(error.causes.iter().any(|it| it.contains(cause)), "{key}: {:?}", error.causes);
        assert!(!target.exists(), "{key}");
        bucket.delete(&key);
    }
    // Links of the target are neither followed nor replaced.
    let outside = rig.dir().join("outside");
    write(&outside.join("kept"), "kept");
    bucket.put("up/link/kept", "overwritten");
    std::fs::create_dir_all(&target).unwrap();
    std::os::unix::fs::symlink(&outside, target.join("link")).unwrap();
    let with = json!({ "from": "bucket", "to_dir": target });
    assert_eq!(code(rig.run("store.sync", with.clone()).await), "LB1120");
    assert_eq!(std::fs::read_to_string(outside.join("kept")).unwrap(), "kept");
    std::fs::remove_file(target.join("link")).unwrap();
    std::fs::create_dir(target.join("fine")).unwrap();
    assert_eq!(code(rig.run("store.sync", with).await), "LB1120", "a directory where a file should be");
    // Links of a source are no objects.
    let source = rig.dir().join("source");
    write(&source.join("a"), "a");
    std::os::unix::fs::symlink("/etc/passwd", source.join("b")).unwrap();
    let up = |links: &str| json!({ "from_dir": source, "to": "bucket", "to_prefix": "new", "links": links });
    assert_eq!(code(rig.run("store.sync", up("refuse")).await), "LB1119");
    let done = rig.run("store.sync", up("skip")).await.unwrap();
    assert_eq!((&done.outputs["copied"], done.warnings.len()), (&json!(1), 1));
}

#[tokio::test]
async fn prefixes_are_whole_segments_and_the_newest_object_must_be_fit() {
    let bucket = Bucket::make(Versions::None);
    let rig = rig(&bucket);
    for key in ["up/dump/a.dump", "up/dump-old/z.dump", "up/dump/b.txt"] {
        bucket.put(key, "x");
    }
    next_second();
    bucket.put("up/dump/c.dump", "four");
    bucket.put("up/dump/d.dump", "");
    let list = json!({ "store": "bucket", "prefix": "dump", "pattern": "*.dump", "limit": 2 });
    let listed = rig.run("store.list", list).await.unwrap();
    assert_eq!((&listed.outputs["count"], &listed.outputs["bytes"]), (&json!(3), &json!(5)));
    let names: Vec<_> = listed.outputs["objects"].as_array().unwrap().iter().map(|it| &it["key"]).collect();
    assert_eq!(names, ["dump/a.dump", "dump/c.dump"]);
    let latest = |more: Value| {
        let mut with = json!({ "store": "bucket", "prefix": "dump", "pattern": "*.dump" });
        with.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        with
    };
    // An empty one is the newest, and none to restore from.
    assert_eq!(code(rig.run("store.latest", latest(json!({}))).await), "LB1156");
    bucket.delete("up/dump/d.dump");
    let done = rig.run("store.latest", latest(json!({}))).await.unwrap();
    assert_eq!((&done.outputs["key"], &done.outputs["bytes"]), (&json!("dump/c.dump"), &json!(4)));
    let later = (Timestamp::now() + jiff::SignedDuration::from_hours(3)).to_string();
    let old = latest(json!({ "before": later, "max_age": "2h" }));
    let error = rig.run("store.latest", old).await.unwrap_err();
    assert_eq!(error.code.id, "LB1156");
    assert!(error.message.contains("c.dump"), "{}", error.message);
    let none = latest(json!({ "pattern": "*.sql" }));
    assert_eq!(code(rig.run("store.latest", none).await), "LB1155");
}

#[tokio::test]
async fn an_older_version_is_put_on_top_and_back() {
    let bucket = Bucket::make(Versions::Kept);
    let rig = rig(&bucket);
    bucket.put("up/logo", "one");
    bucket.put("up/logo-2", "another object");
    let at = next_second();
    bucket.put("up/logo", "two");
    next_second();
    bucket.delete("up/logo");
    let with = json!({ "store": "bucket", "key": "logo", "at": at.to_string() });
    let done = rig.run("store.promote_version", with.clone()).await.unwrap();
    assert_eq!(bucket.get("up/logo").as_deref(), Some(&b"one"[..]));
    assert_eq!(done.outputs["changed"], json!(true));
    assert_eq!(bucket.versions("up/logo"), (4, 1), "nothing was removed, the copy is new");
    let again = rig.run("store.promote_version", with).await.unwrap();
    assert_eq!(again.outputs["changed"], json!(false), "a repetition finds its work done");
    let by_id = |id: &Value| json!({ "store": "bucket", "key": "logo", "version": id });
    let mark = &done.outputs["previous"];
    let error = rig.run("store.promote_version", by_id(mark)).await.unwrap_err();
    assert!(error.message.contains("mark of its deletion"), "{}", error.message);
    assert_eq!(error.causes.len(), 4, "{:?}", error.causes);
    assert_eq!(code(rig.run("store.promote_version", by_id(&json!("none"))).await), "LB1157");
    let dir = json!({ "store": "dir", "key": "logo", "version": "x" });
    assert_eq!(code(rig.run("store.promote_version", dir).await), "LB1117");
}

#[tokio::test]
async fn damage_of_objects_is_found() {
    let bucket = Bucket::make(Versions::None);
    let rig = rig(&bucket);
    let source = source(&rig);
    let up = json!({ "from_dir": source, "to": "bucket" });
    rig.run("store.sync", up).await.unwrap();
    let done = rig.run("store.verify", json!({ "store": "bucket" })).await.unwrap();
    assert_eq!((&done.outputs["proven"], &done.outputs["unproven"]), (&json!(32), &json!(0)));
    let against = json!({ "store": "bucket", "against": source });
    rig.run("store.verify", against.clone()).await.unwrap();
    write(&source.join("0/n 3"), "content X");
    write(&source.join("new"), "x");
    let error = rig.run("store.verify", against).await.unwrap_err();
    assert_eq!((error.code.id, error.causes.len()), ("LB1108", 2), "{:?}", error.causes);
    let empty = json!({ "store": "bucket", "prefix": "none" });
    assert_eq!(code(rig.run("store.verify", empty).await), "LB1152");
    // Nobody knows what a file in a directory should be.
    write(&rig.dir().join("store/a"), "x");
    let unproven = json!({ "store": "dir", "unproven": "refuse" });
    assert_eq!(code(rig.run("store.verify", unproven).await), "LB1108");
    let done = rig.run("store.verify", json!({ "store": "dir" })).await.unwrap();
    assert_eq!((&done.outputs["unproven"], done.warnings.len()), (&json!(1), 1));
}

#[tokio::test]
async fn pruning_keeps_what_the_rules_say_and_what_is_whole() {
    let bucket = Bucket::make(Versions::Kept);
    let rig = rig(&bucket);
    for (name, content) in [("d/1.dump", "one"), ("d/2.dump", "two"), ("d/3.dump", ""), ("d/note", "x")] {
        bucket.put(&format!("up/{name}"), content);
        next_second();
    }
    let with = |last: u32, dry_run: bool| {
        json!({
            "store": "bucket", "prefix": "d", "pattern": "*.dump", "keep": { "last": last }, "dry_run": dry_run,
        })
    };
    assert_eq!(code(rig.run("store.prune", with(0, false)).await), "LB1160");
    let error = rig.run("store.prune", with(1, false)).await.unwrap_err();
    assert_eq!(error.code.id, "LB1160", "the only one that would stay is empty");
    assert!(error.causes[0].contains("it is empty"), "{:?}", error.causes);
    assert_eq!(bucket.keys().len(), 4);
    let dry = rig.run("store.prune", with(2, true)).await.unwrap();
    assert_eq!(dry.outputs["removed"], json!(["d/1.dump"]));
    assert_eq!(bucket.keys().len(), 4);
    let done = rig.run("store.prune", with(2, false)).await.unwrap();
    assert_eq!(done.outputs["kept"], json!(["d/3.dump", "d/2.dump"]));
    assert_eq!(bucket.keys(), ["up/d/2.dump", "up/d/3.dump", "up/d/note"]);
}

#[tokio::test]
async fn a_store_must_promise_what_is_required() {
    let kept = Bucket::make(Versions::Kept);
    let rig_kept = rig(&kept);
    let done = rig_kept.run("store.check_policy", json!({ "store": "bucket" })).await.unwrap();
    assert_eq!(done.outputs["versioning"], json!("enabled"));
    assert_eq!(done.outputs["versions_kept_days"], json!("for ever"));
    let none = Bucket::make(Versions::None);
    let rig_none = rig(&none);
    let error = rig_none.run("store.check_policy", json!({ "store": "bucket" })).await.unwrap_err();
    assert_eq!(error.code.id, "LB1158");
    assert_eq!(error.causes[0], "versioning: never, and must be enabled");
    let any = json!({ "store": "bucket", "versioning": "any" });
    let done = rig_none.run("store.check_policy", any.clone()).await.unwrap();
    assert_eq!((&done.outputs["unfinished_uploads"], done.warnings.len()), (&json!("0"), 0), "{done:?}");
    none.begin_upload("up/left");
    none.begin_upload("elsewhere");
    let done = rig_none.run("store.check_policy", any).await.unwrap();
    assert_eq!(done.outputs["unfinished_uploads"], json!("1"));
    assert!(done.warnings[0].contains("AbortIncompleteMultipartUpload"), "{:?}", done.warnings);
    let any = json!({ "store": "bucket", "versioning": "any", "private": "required" });
    assert_eq!(code(rig_none.run("store.check_policy", any).await), "LB1158");
    assert_eq!(code(rig_none.run("store.check_policy", json!({ "store": "dir" })).await), "LB1158");
}

/// An object of another tool: in parts, or encrypted with a key of its own, so that its tag says nothing of its content, and with
/// the checksum that S3 gives to every object.
#[tokio::test]
async fn the_checksum_that_the_server_keeps_is_compared() {
    use aws_sdk_s3::primitives::ByteStream;
    use aws_sdk_s3::types::{ChecksumAlgorithm, ServerSideEncryption};
    let bucket = Bucket::make(Versions::None);
    let rig = rig(&bucket);
    let content = noise((9 << 20) + 5);
    for (algorithm, key) in [
        (ChecksumAlgorithm::Crc64Nvme, "crc64"),
        (ChecksumAlgorithm::Crc32C, "crc32c"),
        (ChecksumAlgorithm::Crc32, "crc32"),
        (ChecksumAlgorithm::Sha256, "sha256"),
    ] {
        let request = bucket.client().put_object().bucket(&bucket.name).key(format!("up/{key}"));
        let request =
            request.checksum_algorithm(algorithm).server_side_encryption(ServerSideEncryption::AwsKms);
        let request = request.body(ByteStream::from(content.clone())).send();
        support::bucket::wait(async move { request.await.map(drop).expect("takes the object") });
        let target = rig.dir().join(key);
        let get = json!({ "store": "bucket", "key": key, "to": target });
        let done = rig.run_as(key, "store.get", get).await.unwrap();
        assert_eq!(done.outputs["proven"], json!(if key == "sha256" { key } else { "crc" }), "{key}");
        assert!(std::fs::read(&target).unwrap() == content);
    }
    let verify = json!({ "store": "bucket", "unproven": "refuse" });
    let done = rig.run("store.verify", verify.clone()).await.unwrap();
    assert_eq!(done.outputs["proven"], json!(4));

    // The same name and size with another content, and the checksum of before.
    let mut other = content;
    other[4 << 20] ^= 1;
    let request = bucket.client().put_object().bucket(&bucket.name).key("up/crc64");
    let request = request
        .checksum_algorithm(ChecksumAlgorithm::Crc64Nvme)
        .checksum_crc64_nvme("AAAAAAAAAAA=")
        .server_side_encryption(ServerSideEncryption::AwsKms);
    let request = request.body(ByteStream::from(other)).send();
    support::bucket::wait(async move { request.await.map(drop).expect("a server that does not compare") });
    let get = json!({ "store": "bucket", "key": "crc64", "to": rig.dir().join("other") });
    let error = rig.run_as("other", "store.get", get).await.unwrap_err();
    assert!(error.code.id == "LB1122" && error.message.contains("CRC64NVME"), "{error:?}");
    assert!(!rig.dir().join("other").exists());
    let error = rig.run("store.verify", verify).await.unwrap_err();
    assert!(error.causes.len() == 1 && error.causes[0].contains("CRC64NVME"), "{error:?}");
}
