//! What becomes of transfers on a bad way to a bucket: the right bytes or a clear error, never a wrong file.

pub mod support;

use std::path::PathBuf;
use std::time::Duration;

use lifeboat_engine::model::event::Done;
use lifeboat_engine::model::outcome::FailureKind;
use lifeboat_engine::secret::SecretRef;
use lifeboat_engine::step::StepError;
use serde_json::{Value, json};
use support::bucket::{Bucket, Versions, endpoint, noise};
use support::killed;
use support::proxy::{Fault, Proxy};
use support::rig::Rig;

/// A bucket behind a proxy, and a step that uses it.
struct Way {
    bucket: Bucket,
    proxy: Proxy,
    rig: Rig,
}

impl Way {
    fn make() -> Self {
        let (bucket, proxy) = (Bucket::make(Versions::None), Proxy::before(endpoint()));
        let (id, secret) = (SecretRef::Env("S3_ID".into()), SecretRef::Env("S3_SECRET".into()));
        let rig = Rig::drill().secret(id, "testing").secret(secret, "testing");
        let mut way = Self { bucket, proxy, rig };
        way.set_bucket("bucket", "up");
        way
    }

    /// Describes what lies below a prefix as a store of that name.
    fn set_bucket(&mut self, name: &str, prefix: &str) {
        let url = format!("s3://{}/{prefix}", self.bucket.name);
        let written = json!({
            "kind": "store", "url": url, "endpoint": self.proxy.endpoint,
            "access_key": { "env": "S3_ID" }, "secret_key": { "env": "S3_SECRET" },
        });
        self.rig.set_resource(name, written);
    }

    fn target(&self) -> PathBuf {
        self.rig.dir().join("target")
    }

    async fn get(&self, step: &str, key: &str) -> Result<Done, StepError> {
        let with = json!({ "store": "bucket", "key": key, "to": self.target(), "existing": "replace" });
        self.rig.run_as(step, "store.get", with).await
    }

    /// Sends a file in a process that is killed when all its parts but one have arrived.
    fn killed_while_part_is_missing(
        &self,
        test: &str,
        (kind, with): (&str, &Value),
        missing: usize,
        all: usize,
    ) {
        self.proxy.on(&format!("partNumber={missing}&"), Fault::Silence);
        let notes = self.rig.dir().join("steps").join(kind.replace('.', "_")).join("uploads.jsonl");
        let noted = || std::fs::read_to_string(&notes).unwrap_or_default().matches("\"sent\"").count();
        let before = noted();
        let fate = killed::when(&self.rig, test, (kind, with), || noted() == before + all - 1);
        assert_eq!(fate, killed::Fate::Killed);
        self.proxy.heal();
    }

    /// Which parts were sent since so many requests, sorted.
    fn parts_sent(&self, since: usize) -> Vec<String> {
        let heads = self.proxy.seen();
        let number = |head: &String| Some(head.split_once("partNumber=")?.1.split('&').next()?.to_owned());
        let mut parts: Vec<_> = heads[since..].iter().filter_map(number).collect();
        parts.sort();
        // A busy server may be asked twice.
        parts.dedup();
        parts
    }

    fn with_range(&self, text: &str) -> usize {
        self.proxy.seen().iter().filter(|head| head.to_lowercase().contains(text)).count()
    }
}

#[tokio::test]
async fn what_passes_ends_in_the_right_bytes() {
    let way = Way::make();
    let content = noise((20 << 20) + 5);
    way.bucket.put("up/large", content.clone());
    let drip = Fault::Drip(256 << 10, Duration::from_millis(2));
    let faults = [
        (4, Fault::Cut(3 << 20)),
        (3, Fault::Cut(0)),
        (3, Fault::ResetAfterHead),
        (4, Fault::Status(503, "SlowDown")),
        (3, Fault::Status(429, "TooManyRequests")),
        (2, Fault::Status(408, "RequestTimeout")),
        (2, Fault::Status(500, "InternalError")),
        (2, Fault::Longer),
        (9, drip),
    ];
    for (number, (count, fault)) in faults.into_iter().enumerate() {
        way.proxy.heal();
        way.proxy.times(count, "GET /lb-", fault.clone());
        let before = way.proxy.hit().len();
        let done = way.get(&format!("get{number}"), "large").await;
        let done = done.unwrap_or_else(|error| panic!("{fault:?}: {error}"));
        assert!(std::fs::read(way.target()).unwrap() == content, "{fault:?}");
        assert_eq!(done.outputs["proven"], json!("md5"), "{fault:?}");
        assert!(way.proxy.hit().len() > before, "{fault:?} happened");
        std::fs::remove_file(way.target()).unwrap();
    }
}

#[tokio::test]
async fn what_does_not_pass_is_a_clear_error_and_no_file() {
    let way = Way::make();
    way.bucket.put("up/large", noise(9 << 20));
    std::fs::write(way.target(), "of before").unwrap();
    for (fault, code, kind, help) in [
        (Fault::Status(403, "RequestTimeTooSkewed"), "LB1113", FailureKind::Permanent, "timedatectl"),
        (Fault::Status(403, "AccessDenied"), "LB1113", FailureKind::Permanent, "s3:GetObject"),
        (Fault::NoRange, "LB1103", FailureKind::Permanent, "aws s3 ls"),
        (Fault::Status(503, "SlowDown"), "LB1103", FailureKind::Transient, "run it again"),
    ] {
        way.proxy.heal();
        way.proxy.on("x-id=GetObject", fault.clone());
        let error = way.get("get", "large").await.expect_err("is no success");
        assert_eq!((error.code.id, error.kind), (code, kind), "{fault:?}: {error}");
        assert!(error.message.contains("`large`"), "{}", error.message);
        assert!(error.help.clone().unwrap().contains(help), "{:?}", error.help);
        assert_eq!(std::fs::read_to_string(way.target()).unwrap(), "of before", "{fault:?}");
    }
}

/// A bit that no layer below has noticed: of what another program has written, and of what carries Lifeboat's own checksum.
#[tokio::test]
async fn what_was_changed_on_its_way_gets_no_name() {
    let mut way = Way::make();
    let (dir, source) = (way.rig.dir().join("store"), way.rig.dir().join("source"));
    std::fs::create_dir(&dir).unwrap();
    std::fs::create_dir(&source).unwrap();
    way.rig.set_resource("dir", json!({ "kind": "store", "url": format!("dir://{}", dir.display()) }));
    way.set_bucket("copy", "copy");
    for (key, byte) in [("small", 3), ("large", 4 << 20)] {
        if key == "small" {
            way.bucket.put("up/small", "content");
        } else {
            way.bucket.delete("up/small");
            std::fs::write(source.join(key), noise((17 << 20) + 3)).unwrap();
            way.rig.run_as("up", "store.sync", json!({ "from_dir": source, "to": "bucket" })).await.unwrap();
        }
        way.proxy.on(&format!("GET /lb-*/up/{key}?"), Fault::Flip(byte));
        std::fs::write(way.target(), "of before").unwrap();
        let error = way.get(&format!("get_{key}"), key).await.expect_err("it is another content");
        assert_eq!((error.code.id, error.kind), ("LB1122", FailureKind::Transient), "{error}");
        assert_eq!(std::fs::read_to_string(way.target()).unwrap(), "of before");
        std::fs::remove_file(way.target()).unwrap();
        for to in [json!({ "to_dir": way.target() }), json!({ "to": "dir" }), json!({ "to": "copy" })] {
            let mut with = json!({ "from": "bucket" });
            with.as_object_mut().unwrap().extend(to.as_object().unwrap().clone());
            let error = way.rig.run("store.sync", with).await.expect_err("it is another content");
            assert_eq!((error.code.id, error.kind), ("LB1122", FailureKind::Transient), "{to}: {error}");
            assert!(!way.target().join(key).exists() && !dir.join(key).exists(), "{to}");
            assert_eq!(way.bucket.get(&format!("copy/{key}")), None, "{to}");
        }
        std::fs::remove_dir_all(way.target()).unwrap();
    }
    assert_eq!(way.bucket.unfinished_uploads(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sync_between_stores_that_is_killed_is_finished_by_the_next_attempt() {
    killed::victim().await;
    let mut way = Way::make();
    let dir = way.rig.dir().join("store");
    std::fs::create_dir(&dir).unwrap();
    way.rig.set_resource("dir", json!({ "kind": "store", "url": format!("dir://{}", dir.display()) }));
    way.set_bucket("copy", "copy");
    let large = noise((17 << 20) + 3);
    way.bucket.put("up/large", large.clone());
    way.bucket.put("up/small", "content");
    let name = "a_sync_between_stores_that_is_killed_is_finished_by_the_next_attempt";

    // Killed while the last part is sent, and then while the second one is read.
    let across = json!({ "from": "bucket", "to": "copy" });
    way.proxy.on("PUT /lb-*/copy/large?*partNumber=3&", Fault::Silence);
    let fate = killed::when(&way.rig, name, ("store.sync", &across), || !way.proxy.hit().is_empty());
    assert_eq!((fate, way.bucket.get("copy/large")), (killed::Fate::Killed, None));
    assert_eq!(way.bucket.unfinished_uploads(), 1);
    way.proxy.heal();
    way.rig.run("store.sync", across).await.unwrap();
    assert!(way.bucket.get("copy/large").unwrap() == large);
    assert_eq!(way.bucket.get("copy/small").as_deref(), Some(&b"content"[..]));
    assert_eq!(way.bucket.unfinished_uploads(), 0, "what the killed one has sent is thrown away");

    let down = json!({ "from": "bucket", "to": "dir" });
    let hits = way.proxy.hit().len();
    way.proxy.on("GET /lb-*/up/large?*bytes=8388608-", Fault::Silence);
    let fate = killed::when(&way.rig, name, ("store.sync", &down), || way.proxy.hit().len() > hits);
    assert_eq!((fate, dir.join("large").exists()), (killed::Fate::Killed, false));
    way.proxy.heal();
    way.rig.run("store.sync", down).await.unwrap();
    assert!(std::fs::read(dir.join("large")).unwrap() == large);
    assert_eq!(std::fs::read_to_string(dir.join("small")).unwrap(), "content");
}

/// A file system of so many inodes, unmounted with the value.
struct Crowded(PathBuf);

impl Crowded {
    fn mount(dir: &std::path::Path, inodes: u32) -> Option<Self> {
        std::fs::create_dir_all(dir).unwrap();
        let mut mount = std::process::Command::new("mount");
        let size = format!("size=64m,nr_inodes={inodes}");
        let made = mount.args(["-t", "tmpfs", "-o", &size, "lifeboat-test"]).arg(dir).output();
        if made.is_ok_and(|output| output.status.success()) {
            return Some(Self(dir.to_owned()));
        }
        eprintln!("SKIPPED: only root may mount a small file system, where mounting is allowed");
        None
    }

    fn grow(&self) {
        let mut mount = std::process::Command::new("mount");
        let grown = mount.args(["-o", "remount,nr_inodes=1000"]).arg(&self.0).output();
        assert!(grown.expect("mount is there").status.success());
    }
}

impl Drop for Crowded {
    fn drop(&mut self) {
        drop(std::process::Command::new("umount").arg("-l").arg(&self.0).output());
    }
}

/// There is room for all files, and not for the directories around them: it fails in the middle.
#[tokio::test]
async fn a_disk_that_fills_up_in_the_middle_leaves_what_was_there_and_a_retry_goes_on() {
    let way = Way::make();
    way.bucket.set_versioning(aws_sdk_s3::types::BucketVersioningStatus::Enabled);
    for number in 0..10 {
        way.bucket.put(&format!("up/{number}/a/b/c"), format!("content {number}"));
    }
    let at = support::bucket::next_second();
    let disk = way.rig.dir().join("disk");
    let target = disk.join("www");
    for (kind, with) in [
        ("store.sync", json!({ "from": "bucket", "to_dir": target })),
        ("store.restore_as_of", json!({ "store": "bucket", "at": at.to_string(), "to": target })),
    ] {
        let Some(small) = Crowded::mount(&disk, 24) else { return };
        std::fs::create_dir(&target).unwrap();
        std::fs::write(target.join("of before"), "x").unwrap();
        let error = way.rig.run(kind, with.clone()).await.expect_err("there is no room");
        assert_eq!((error.code.id, error.kind), ("LB1111", FailureKind::Transient), "{kind}: {error}");
        assert!(error.message.contains("No space left"), "{kind}: {error}");
        assert_eq!(std::fs::read_to_string(target.join("of before")).unwrap(), "x", "{kind}");
        assert!(!target.join("0").exists(), "{kind}");
        small.grow();
        way.rig.run(kind, with).await.unwrap_or_else(|error| panic!("{kind}: {error:?}"));
        for number in 0..10 {
            let path = target.join(format!("{number}/a/b/c"));
            assert_eq!(std::fs::read_to_string(path).unwrap(), format!("content {number}"), "{kind}");
        }
    }

    let Some(small) = Crowded::mount(&disk, 24) else { return };
    way.bucket.put("up/large", noise(3 << 20));
    let shrunk = ["-o", "remount,size=1m"];
    assert!(std::process::Command::new("mount").args(shrunk).arg(&disk).status().unwrap().success());
    let file = disk.join("large");
    let with = json!({ "store": "bucket", "key": "large", "to": file });
    let error = way.rig.run("store.get", with.clone()).await.expect_err("there is no room");
    assert_eq!((error.code.id, error.kind), ("LB1111", FailureKind::Transient), "{error}");
    assert!(!file.exists());
    let grown = ["-o", "remount,size=8m"];
    assert!(std::process::Command::new("mount").args(grown).arg(&disk).status().unwrap().success());
    way.rig.run("store.get", with).await.unwrap();
    assert!(std::fs::read(&file).unwrap() == noise(3 << 20));
    assert_eq!(std::fs::read_dir(&disk).unwrap().count(), 1, "nothing is left beside it");
    drop(small);
}

/// Two writers at once, as S3 tells them: nobody has won yet.
#[tokio::test]
async fn a_conflict_of_two_writers_is_tried_again() {
    let way = Way::make();
    let file = way.rig.dir().join("file");
    let with = |key: &str| json!({ "file": file, "store": "bucket", "key": key });
    std::fs::write(&file, "small").unwrap();
    way.proxy.times(2, "PUT /lb-*/up/small?", Fault::Status(409, "ConditionalRequestConflict"));
    way.rig.run_as("small", "store.put", with("small")).await.unwrap();
    assert_eq!(way.proxy.hit().len(), 2);
    assert_eq!(way.bucket.get("up/small").as_deref(), Some(&b"small"[..]));

    // Of an upload in parts nobody knows what is left of it: the next attempt asks.
    let content = noise((17 << 20) + 3);
    std::fs::write(&file, &content).unwrap();
    way.proxy.times(1, "POST /lb-*/up/large?*uploadId=", Fault::Status(409, "ConditionalRequestConflict"));
    let error = way.rig.run_as("large", "store.put", with("large")).await.expect_err("a conflict");
    assert_eq!((error.code.id, error.kind), ("LB1111", FailureKind::Transient), "{error}");
    assert_eq!(way.bucket.get("up/large"), None);
    way.rig.run_as("large", "store.put", with("large")).await.unwrap();
    assert!(way.bucket.get("up/large").unwrap() == content);
    assert_eq!(way.bucket.unfinished_uploads(), 0);
}

#[tokio::test]
async fn a_later_attempt_goes_on_after_the_last_part_that_is_intact() {
    let way = Way::make();
    let content = noise((40 << 20) + 1);
    way.bucket.put("up/large", content.clone());
    way.proxy.on("bytes=33554432-", Fault::Status(404, "NoSuchKey"));
    assert!(way.get("get", "large").await.is_err());
    assert!(!way.target().exists());
    way.proxy.heal();
    let before = way.with_range("range: bytes=0-");
    way.get("get", "large").await.unwrap();
    assert!(std::fs::read(way.target()).unwrap() == content);
    assert_eq!(way.with_range("range: bytes=0-"), before, "what had arrived is not fetched again");

    // Other content since then: what had arrived is of no use, and is not mixed with it.
    way.rig.reported().recorded.clear();
    std::fs::remove_file(way.target()).unwrap();
    way.proxy.on("bytes=33554432-", Fault::Status(404, "NoSuchKey"));
    assert!(way.get("other", "large").await.is_err());
    way.proxy.heal();
    let mut other = content;
    other[5] ^= 1;
    way.bucket.put("up/large", other.clone());
    way.get("other", "large").await.unwrap();
    assert!(std::fs::read(way.target()).unwrap() == other);
}

#[tokio::test]
async fn many_small_objects_come_and_go_through_bursts_of_refusals() {
    let way = Way::make();
    let source = way.rig.dir().join("source");
    std::fs::create_dir(&source).unwrap();
    for number in 0..60 {
        std::fs::write(source.join(format!("{number}")), format!("content {number}")).unwrap();
    }
    way.proxy.times(20, "PUT /lb-", Fault::Status(503, "SlowDown"));
    // Whether these were carried out nobody knows; they are sent again.
    way.proxy.times(3, "PUT /lb-", Fault::ResetAfterHead);
    let up = json!({ "from_dir": source, "to": "bucket" });
    way.rig.run("store.sync", up).await.unwrap();
    assert_eq!(way.bucket.keys().len(), 60);
    way.proxy.times(20, "x-id=GetObject", Fault::Status(503, "SlowDown"));
    way.proxy.times(5, "x-id=GetObject", Fault::Cut(4));
    let down = json!({ "from": "bucket", "to_dir": way.target() });
    let done = way.rig.run_as("down", "store.sync", down).await.unwrap();
    assert_eq!(done.outputs["copied"], Value::from(60));
    for number in 0..60 {
        let content = std::fs::read_to_string(way.target().join(number.to_string())).unwrap();
        assert_eq!(content, format!("content {number}"));
    }
}

#[tokio::test]
async fn an_interrupted_sync_leaves_the_directory_as_it_was_and_goes_on() {
    let way = Way::make();
    for number in 0..10 {
        way.bucket.put(&format!("up/{number}"), format!("content {number}"));
    }
    std::fs::create_dir(way.target()).unwrap();
    std::fs::write(way.target().join("3"), "old").unwrap();
    way.proxy.on("/up/7?", Fault::Status(403, "AccessDenied"));
    let with = json!({ "from": "bucket", "to_dir": way.target() });
    assert_eq!(way.rig.run("store.sync", with.clone()).await.unwrap_err().code.id, "LB1113");
    let names = || -> Vec<String> {
        let entries = std::fs::read_dir(way.target()).unwrap().flatten();
        entries
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| !name.starts_with('.'))
            .collect()
    };
    assert_eq!(names(), ["3"], "nothing has its name before all of it is there");
    assert_eq!(std::fs::read_to_string(way.target().join("3")).unwrap(), "old");
    way.proxy.heal();
    way.rig.run("store.sync", with).await.unwrap();
    assert_eq!(names().len(), 10);
    let left = std::fs::read_dir(way.target()).unwrap().flatten().count();
    assert_eq!(left, 10, "nothing of the transfer is left");
    let made = way.rig.made_at();
    assert!(made.is_empty(), "{made:?}");
}

#[tokio::test]
async fn a_large_file_is_sent_through_resets_and_is_whole() {
    let way = Way::make();
    let file = way.rig.dir().join("file");
    let content = noise((33 << 20) + 3);
    std::fs::write(&file, &content).unwrap();
    way.proxy.times(2, "partNumber=", Fault::Status(503, "SlowDown"));
    way.proxy.times(1, "partNumber=", Fault::ResetAfterHead);
    way.proxy.times(1, "POST /lb-", Fault::Status(500, "InternalError"));
    let with = json!({ "file": file, "store": "bucket", "key": "large" });
    way.rig.run("store.put", with).await.unwrap();
    assert!(way.bucket.get("up/large").unwrap() == content);
    // One that cannot be ended leaves nothing: neither an object nor an upload.
    way.proxy.heal();
    way.proxy.on("partNumber=2", Fault::Status(403, "AccessDenied"));
    let with = json!({ "file": file, "store": "bucket", "key": "other" });
    assert_eq!(way.rig.run_as("other", "store.put", with).await.unwrap_err().code.id, "LB1113");
    assert_eq!(way.bucket.keys(), ["up/large"]);
    assert_eq!(way.bucket.unfinished_uploads(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_was_killed_goes_on_with_the_parts_that_are_missing() {
    killed::victim().await;
    let way = Way::make();
    let file = way.rig.dir().join("file");
    let mut content = noise((41 << 20) + 3);
    let with = json!({ "file": file, "store": "bucket", "key": "large", "existing": "replace" });
    let name = "an_upload_that_was_killed_goes_on_with_the_parts_that_are_missing";

    std::fs::write(&file, &content).unwrap();
    way.killed_while_part_is_missing(name, ("store.put", &with), 4, 6);
    assert_eq!((way.bucket.keys().len(), way.bucket.unfinished_uploads()), (0, 1));
    let before = way.proxy.seen().len();
    let done = way.rig.run("store.put", with.clone()).await.unwrap();
    assert!(way.bucket.get("up/large").unwrap() == content);
    assert_eq!(way.parts_sent(before), ["4"]);
    assert_eq!(way.bucket.unfinished_uploads(), 0);
    assert!(done.facts.contains_key("sent by an earlier attempt"), "{:?}", done.facts);

    // What was sent of another content is thrown away, and not mixed with it.
    content[3] ^= 1;
    std::fs::write(&file, &content).unwrap();
    way.killed_while_part_is_missing(name, ("store.put", &with), 5, 6);
    content[40 << 20] ^= 1;
    std::fs::write(&file, &content).unwrap();
    let before = way.proxy.seen().len();
    let done = way.rig.run("store.put", with.clone()).await.unwrap();
    assert!(way.bucket.get("up/large").unwrap() == content);
    assert_eq!(way.parts_sent(before), ["1", "2", "3", "4", "5", "6"]);
    assert_eq!(way.bucket.unfinished_uploads(), 0);
    assert!(done.facts.is_empty(), "{:?}", done.facts);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_is_not_gone_on_with_when_the_server_has_lost_it() {
    killed::victim().await;
    let way = Way::make();
    let file = way.rig.dir().join("file");
    let content = noise((17 << 20) + 3);
    std::fs::write(&file, &content).unwrap();
    let with = json!({ "file": file, "store": "bucket", "key": "large" });
    let name = "an_upload_is_not_gone_on_with_when_the_server_has_lost_it";
    way.killed_while_part_is_missing(name, ("store.put", &with), 2, 3);
    way.bucket.abort_uploads();
    let before = way.proxy.seen().len();
    way.rig.run("store.put", with).await.unwrap();
    assert!(way.bucket.get("up/large").unwrap() == content);
    assert_eq!(way.parts_sent(before), ["1", "2", "3"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_that_may_pass_keeps_what_was_sent() {
    let way = Way::make();
    let file = way.rig.dir().join("file");
    let content = noise((33 << 20) + 3);
    std::fs::write(&file, &content).unwrap();
    let with = json!({ "file": file, "store": "bucket", "key": "large" });
    way.proxy.on("partNumber=3&", Fault::Status(503, "SlowDown"));
    let error = way.rig.run("store.put", with.clone()).await.unwrap_err();
    assert_eq!((error.code.id, error.kind), ("LB1111", FailureKind::Transient), "{error:?}");
    assert_eq!(way.bucket.unfinished_uploads(), 1);
    way.proxy.heal();
    let before = way.proxy.seen().len();
    way.rig.run("store.put", with).await.unwrap();
    assert!(way.bucket.get("up/large").unwrap() == content);
    assert_eq!(way.parts_sent(before), ["3"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sync_goes_on_with_its_uploads_and_throws_away_those_of_files_that_are_gone() {
    killed::victim().await;
    let way = Way::make();
    let source = way.rig.dir().join("source");
    std::fs::create_dir(&source).unwrap();
    let content = noise((17 << 20) + 3);
    std::fs::write(source.join("one"), &content).unwrap();
    let with = json!({ "from_dir": source, "to": "bucket" });
    let name = "a_sync_goes_on_with_its_uploads_and_throws_away_those_of_files_that_are_gone";
    way.killed_while_part_is_missing(name, ("store.sync", &with), 2, 3);
    let before = way.proxy.seen().len();
    way.rig.run("store.sync", with.clone()).await.unwrap();
    assert!(way.bucket.get("up/one").unwrap() == content);
    assert_eq!((way.parts_sent(before), way.bucket.unfinished_uploads()), (vec!["2".to_owned()], 0));

    std::fs::write(source.join("two"), &content).unwrap();
    way.killed_while_part_is_missing(name, ("store.sync", &with), 2, 3);
    assert_eq!(way.bucket.unfinished_uploads(), 1);
    std::fs::remove_file(source.join("two")).unwrap();
    way.rig.run("store.sync", with).await.unwrap();
    assert_eq!((way.bucket.keys(), way.bucket.unfinished_uploads()), (vec!["up/one".to_owned()], 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_was_killed_while_it_was_sent_leaves_nothing_of_that_attempt() {
    killed::victim().await;
    let mut way = Way::make();
    let (source, scratch) = (way.rig.dir().join("source"), way.rig.dir().join("scratch"));
    std::fs::create_dir(&source).unwrap();
    std::fs::create_dir(&scratch).unwrap();
    std::fs::write(source.join("noise"), noise(18 << 20)).unwrap();
    way.rig.set_resource("files", json!({ "kind": "files", "path": source }));
    way.rig.set_resource(
        "bucket",
        json!({
            "kind": "store", "url": format!("s3://{}/up", way.bucket.name), "endpoint": way.proxy.endpoint,
            "access_key": { "env": "S3_ID" }, "secret_key": { "env": "S3_SECRET" }, "scratch": scratch,
        }),
    );
    let with = json!({ "files": "files", "store": "bucket" });
    let name = "a_backup_that_was_killed_while_it_was_sent_leaves_nothing_of_that_attempt";
    way.proxy.on("partNumber=2&", Fault::Silence);
    let fate = killed::when(&way.rig, name, ("files.backup", &with), || !way.proxy.hit().is_empty());
    assert_eq!(fate, killed::Fate::Killed);
    way.proxy.heal();
    assert_eq!(way.bucket.unfinished_uploads(), 1);
    let done = way.rig.run("files.backup", with).await.unwrap();
    assert_eq!(way.bucket.unfinished_uploads(), 0);
    let label = done.outputs["backup"].as_str().unwrap();
    let verify = json!({ "store": "bucket", "prefix": format!("files/{label}"), "unproven": "refuse" });
    way.rig.run("store.verify", verify).await.unwrap();
    assert_eq!(std::fs::read_dir(&scratch).unwrap().count(), 0, "what was put together there is gone");
}
