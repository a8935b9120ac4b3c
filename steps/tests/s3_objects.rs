//! `store.restore_as_of` on a server with versions.

pub mod support;

use std::path::{Path, PathBuf};

use aws_sdk_s3::types::{
    BucketLifecycleConfiguration, BucketVersioningStatus, ExpirationStatus, LifecycleRule,
    LifecycleRuleFilter, NoncurrentVersionExpiration, StorageClass,
};
use jiff::{SignedDuration, Timestamp};
use lifeboat_engine::model::event::Done;
use lifeboat_engine::resource::System;
use lifeboat_engine::secret::SecretRef;
use lifeboat_engine::step::StepError;
use serde_json::{Value, json};
use support::bucket::{Bucket, Versions, next_second, wait};
use support::rig::Rig;

const KIND: &str = "store.restore_as_of";

fn rig(bucket: &Bucket) -> Rig {
    let (id, secret) = (SecretRef::Env("S3_ID".into()), SecretRef::Env("S3_SECRET".into()));
    let rig = Rig::drill().secret(id.clone(), "testing").secret(secret.clone(), "testing");
    let store = |prefix: &str| {
        let mut store = bucket.resource(prefix);
        (store.access_key, store.secret_key) = (Some(id.clone()), Some(secret.clone()));
        System::Store(store)
    };
    rig.resource("uploads", store("up")).resource("copy", store("copy")).resource("inner", store("up/inner"))
}

fn target(rig: &Rig) -> PathBuf {
    rig.dir().join("www/uploads")
}

fn content(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

async fn to_directory(rig: &Rig, at: Timestamp, more: Value) -> Result<Done, StepError> {
    std::fs::create_dir_all(target(rig).parent().unwrap()).unwrap();
    let mut with = json!({ "store": "uploads", "at": at.to_string(), "to": target(rig) });
    with.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    rig.run(KIND, with).await
}

async fn refused(rig: &Rig, at: Timestamp, more: Value, code: &str) -> StepError {
    let error = to_directory(rig, at, more).await.expect_err("is refused");
    assert_eq!(error.code.id, code, "{error}");
    assert!(!target(rig).exists(), "nothing was put in place");
    error
}

/// The table of the guidance for rolling S3 back. Returns the moment between before and after.
fn table(bucket: &Bucket) -> Timestamp {
    for key in ["deleted", "overwritten", "changed_twice", "gone", "gone_again", "back", "same"] {
        bucket.put(&format!("up/{key}"), format!("{key} 1"));
    }
    bucket.put("elsewhere/x", "another prefix");
    next_second();
    for key in ["gone", "gone_again", "back"] {
        bucket.delete(&format!("up/{key}"));
    }
    let at = next_second();
    bucket.delete("up/deleted");
    bucket.put("up/new_and_deleted", "new");
    bucket.put("up/new", "new");
    bucket.put("up/overwritten", "overwritten 2");
    bucket.delete("up/changed_twice");
    bucket.put("up/gone", "gone 2");
    bucket.delete("up/gone_again");
    bucket.put("up/back", "back 2");
    next_second();
    bucket.delete("up/new_and_deleted");
    bucket.put("up/changed_twice", "changed_twice 2");
    bucket.delete("up/gone");
    next_second();
    bucket.delete("up/changed_twice");
    at
}

const WANTED: [&str; 4] = ["changed_twice", "deleted", "overwritten", "same"];

#[tokio::test]
async fn a_directory_gets_what_was_there_at_that_moment() {
    let bucket = Bucket::make(Versions::Kept);
    let at = table(&bucket);
    let rig = rig(&bucket);
    std::fs::create_dir_all(target(&rig)).unwrap();
    std::fs::write(target(&rig).join("old"), "of before").unwrap();
    let dry = to_directory(&rig, at, json!({ "dry_run": true })).await.unwrap();
    assert_eq!((dry.outputs["objects"].clone(), dry.recovery_points.len()), (json!(4), 0));
    assert_eq!(content(&target(&rig).join("old")).as_deref(), Some("of before"), "a dry run writes nothing");

    let done = to_directory(&rig, at, json!({})).await.unwrap();
    let mut found: Vec<_> =
        std::fs::read_dir(target(&rig)).unwrap().flatten().map(|it| it.file_name()).collect();
    found.sort();
    assert_eq!(found, WANTED);
    for name in WANTED {
        assert_eq!(content(&target(&rig).join(name)), Some(format!("{name} 1")));
    }
    assert_eq!(done.outputs["absent"], json!(5));
    assert!(done.checks.iter().all(|check| check.passed && check.expected == "4"), "{:?}", done.checks);
    assert_eq!(done.recovery_points[0].time, at.to_string());
    let previous = PathBuf::from(done.outputs["previous"].as_str().unwrap());
    assert_eq!(content(&previous.join("old")).as_deref(), Some("of before"), "what was there is kept");
    let last = rig.reported().progress.last().cloned().unwrap();
    assert_eq!(last.total, Some(last.done), "progress reaches its end");

    // A repetition finds its work done.
    let again = to_directory(&rig, at, json!({})).await.unwrap();
    assert_eq!(again.outputs["previous"], done.outputs["previous"]);
}

#[tokio::test]
async fn in_place_every_case_of_the_table_is_put_right_and_no_version_is_lost() {
    let bucket = Bucket::make(Versions::Kept);
    let at = table(&bucket);
    let rig = rig(&bucket);
    let with = json!({ "store": "uploads", "into": "uploads", "at": at.to_string() });
    let before: Vec<_> =
        ["deleted", "overwritten", "gone_again"].map(|key| bucket.versions(&format!("up/{key}"))).into();
    let done = rig.run(KIND, with.clone()).await.unwrap();
    for key in WANTED {
        assert_eq!(bucket.get(&format!("up/{key}")), Some(format!("{key} 1").into_bytes()), "{key}");
    }
    for key in ["new_and_deleted", "new", "gone", "gone_again", "back"] {
        assert_eq!(bucket.get(&format!("up/{key}")), None, "{key}");
    }
    assert_eq!(bucket.get("elsewhere/x").as_deref(), Some(&b"another prefix"[..]));
    let counts = ["objects", "copied", "deleted", "undeleted", "unchanged", "absent"]
        .map(|key| done.outputs[key].clone());
    assert_eq!(counts, [4, 2, 2, 1, 1, 5].map(Value::from));
    // One mark less, one copy more, nothing at all.
    let after: Vec<_> =
        ["deleted", "overwritten", "gone_again"].map(|key| bucket.versions(&format!("up/{key}"))).into();
    assert_eq!(after[0], (before[0].0, before[0].1 - 1));
    assert_eq!(after[1], (before[1].0 + 1, before[1].1));
    assert_eq!(after[2], before[2]);
}

#[tokio::test]
async fn another_prefix_gets_a_copy_and_must_be_empty() {
    let bucket = Bucket::make(Versions::Kept);
    bucket.put("up/a b/ä+1.txt", "one");
    bucket.put("up/../../etc/x", "a name that no file can have");
    let at = next_second();
    bucket.put("up/a b/ä+1.txt", "two");
    let rig = rig(&bucket);
    let with = |into: &str| json!({ "store": "uploads", "into": into, "at": at.to_string() });
    assert_eq!(rig.run_as("x", KIND, with("inner")).await.unwrap_err().code.id, "LB1120");
    let done = rig.run(KIND, with("copy")).await.unwrap();
    assert_eq!(done.outputs["copied"], json!(2));
    assert_eq!(bucket.get("copy/a b/ä+1.txt").as_deref(), Some(&b"one"[..]));
    assert_eq!(bucket.get("copy/../../etc/x").as_deref(), Some(&b"a name that no file can have"[..]));
    rig.run(KIND, with("copy")).await.expect("a later attempt of the same step finds its own objects");
    let error = rig.run_as("other", KIND, with("copy")).await.expect_err("is not empty");
    assert_eq!(error.code.id, "LB1120");
    assert!(error.message.contains("2 objects"), "{}", error.message);
}

#[tokio::test]
async fn names_that_lead_elsewhere_write_nothing() {
    let bucket = Bucket::make(Versions::Kept);
    for key in ["up/../../escape", "up//etc/x", "up/a", "up/a/b", "up/fine"] {
        bucket.put(key, "x");
    }
    let at = next_second();
    let rig = rig(&bucket);
    let error = refused(&rig, at, json!({}), "LB1119").await;
    assert!(error.causes.iter().any(|cause| cause.contains("`../../escape`")), "{:?}", error.causes);
    assert!(
        error.causes.iter().any(|cause| cause.contains("`a`: a file cannot be the directory")),
        "{:?}",
        error.causes
    );
    let done = to_directory(&rig, at, json!({ "unsafe_names": "skip" })).await.unwrap();
    assert_eq!(done.outputs["skipped"].as_array().unwrap().len(), 3);
    assert_eq!(done.warnings.len(), 3);
    assert_eq!(content(&target(&rig).join("fine")).as_deref(), Some("x"));
    assert_eq!(content(&target(&rig).join("a/b")).as_deref(), Some("x"));
    assert!(!rig.dir().join("escape").exists() && !rig.dir().parent().unwrap().join("escape").exists());
}

#[tokio::test]
async fn an_interrupted_restore_goes_on_with_what_is_intact() {
    let bucket = Bucket::make(Versions::Kept);
    for number in 0..6 {
        bucket.put(&format!("up/{number}"), format!("object {number}"));
    }
    let at = next_second();
    let rig = rig(&bucket);
    // What an attempt that was killed leaves: some files whole and noted, one damaged since, one unfinished.
    let staging = rig.dir().join(format!("www/.uploads.restore-{}", rig.run_id.short()));
    let done = to_directory(&rig, at, json!({})).await.unwrap();
    assert_eq!(done.outputs["objects"], json!(6));
    std::fs::rename(target(&rig), &staging).unwrap();
    rig.reported().recorded.clear();
    std::fs::write(staging.join("3"), "damaged!").unwrap();
    std::fs::write(staging.join("left"), "of another list").unwrap();
    std::fs::remove_file(staging.join("4")).unwrap();
    let inode = |name: &str, dir: &Path| {
        std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(dir.join(name)).unwrap())
    };
    let kept = inode("1", &staging);
    to_directory(&rig, at, json!({})).await.unwrap();
    assert_eq!(inode("1", &target(&rig)), kept, "an intact file is not fetched again");
    for number in 0..6 {
        assert_eq!(content(&target(&rig).join(number.to_string())), Some(format!("object {number}")));
    }
    assert!(!target(&rig).join("left").exists());
}

#[tokio::test]
async fn a_history_that_need_not_be_complete_is_refused() {
    let bucket = Bucket::make(Versions::None);
    bucket.put("up/a", "one");
    let at = next_second();
    let rig = rig(&bucket);
    refused(&rig, at, json!({}), "LB1117").await;
    bucket.set_versioning(BucketVersioningStatus::Suspended);
    refused(&rig, at, json!({}), "LB1117").await;
    // The object of before versioning counts, with its id `null`.
    bucket.set_versioning(BucketVersioningStatus::Enabled);
    bucket.put("up/a", "two");
    let done = to_directory(&rig, at, json!({ "dry_run": true })).await.unwrap();
    assert_eq!(done.outputs["bytes"], json!(3));

    forget_after(&bucket, 30);
    let long_ago = Timestamp::now() - SignedDuration::from_hours(24 * 31);
    let error = refused(&rig, long_ago, json!({}), "LB1118").await;
    assert!(error.message.contains("30 days"), "{}", error.message);
    refused(&rig, long_ago, json!({ "incomplete_history": "accept" }), "LB1121").await;
    refused(&rig, Timestamp::now() + SignedDuration::from_hours(1), json!({}), "LB1118").await;
    let done =
        to_directory(&rig, long_ago, json!({ "incomplete_history": "accept", "allow_empty": true })).await;
    assert!(done.unwrap().warnings.iter().any(|warning| warning.contains("30 days")));
}

fn forget_after(bucket: &Bucket, days: i32) {
    let rule = LifecycleRule::builder()
        .id("old")
        .status(ExpirationStatus::Enabled)
        .filter(LifecycleRuleFilter::builder().prefix("").build())
        .noncurrent_version_expiration(NoncurrentVersionExpiration::builder().noncurrent_days(days).build())
        .build()
        .unwrap();
    let rules = BucketLifecycleConfiguration::builder().rules(rule).build().unwrap();
    let request = bucket.client().put_bucket_lifecycle_configuration().bucket(&bucket.name);
    let request = request.lifecycle_configuration(rules).send();
    wait(async move { request.await.map(drop).expect("takes the rule") });
}

#[tokio::test]
async fn archived_objects_are_named_before_anything_is_written() {
    let bucket = Bucket::make(Versions::Kept);
    bucket.put("up/a", "one");
    let request =
        bucket.client().put_object().bucket(&bucket.name).key("up/cold").storage_class(StorageClass::Glacier);
    let request = request.send();
    wait(async move { request.await.map(drop).expect("takes it") });
    let at = next_second();
    let rig = rig(&bucket);
    let error = refused(&rig, at, json!({}), "LB1116").await;
    assert!(error.causes[0].contains("`cold`"), "{:?}", error.causes);
    let done = to_directory(&rig, at, json!({ "archived": "skip" })).await.unwrap();
    assert_eq!(done.outputs["objects"], json!(1));
}

#[tokio::test]
async fn many_versions_come_in_pages_and_large_objects_in_parts() {
    let bucket = Bucket::make(Versions::Kept);
    let large: Vec<u8> = (0u32..5_000_000).flat_map(u32::to_le_bytes).collect();
    bucket.put("up/large", large.clone());
    bucket.put_many((0..1010).map(|number| format!("up/many/{number:04}")));
    let at = next_second();
    let rig = rig(&bucket);
    let done = to_directory(&rig, at, json!({})).await.unwrap();
    assert_eq!(done.outputs["objects"], json!(1011));
    assert!(std::fs::read(target(&rig).join("large")).unwrap() == large);
    assert_eq!(std::fs::read_dir(target(&rig).join("many")).unwrap().count(), 1010);
}

#[tokio::test]
async fn a_directory_store_has_no_versions() {
    let mut rig = Rig::drill();
    let url = format!("dir://{}", rig.dir().display());
    rig.set_resource("uploads", json!({ "kind": "store", "url": url }));
    let error = refused(&rig, Timestamp::now(), json!({}), "LB1117").await;
    assert!(error.help.unwrap().contains("files.restore"));
}

/// A server that answers the list of versions in two pages, the first one of deletion marks only.
fn paging_server(request: &support::web::Request) -> support::web::Reply {
    let mark = |id: &str, second: u32, latest: bool| {
        format!(
            "<DeleteMarker><Key>up/a%20b%2B</Key><VersionId>{id}</VersionId><IsLatest>{latest}</IsLatest>\
             <LastModified>2026-11-20T00:00:{second:02}.000Z</LastModified></DeleteMarker>"
        )
    };
    let list = |inner: &str| {
        format!(
            "<ListVersionsResult><Name>b</Name><EncodingType>url</EncodingType>{inner}</ListVersionsResult>"
        )
    };
    let body = match request.path.as_str() {
        path if path.contains("versioning") => {
            "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>".to_owned()
        }
        path if path.contains("lifecycle") => {
            let none = "<Error><Code>NoSuchLifecycleConfiguration</Code><Message>none</Message></Error>";
            return support::web::reply(404, none);
        }
        path if path.contains("list-type=2") => {
            "<ListBucketResult><Name>b</Name><IsTruncated>false</IsTruncated></ListBucketResult>".to_owned()
        }
        path if path.contains("key-marker=up%2Fa%20b%2B") && path.contains("version-id-marker=D2") => list(
            "<IsTruncated>false</IsTruncated><Version><Key>up/a%20b%2B</Key><VersionId>null</VersionId>\
             <IsLatest>false</IsLatest><LastModified>2026-11-20T00:00:01.000Z</LastModified><ETag>&quot;e&quot;</ETag>\
             <Size>7</Size><StorageClass>STANDARD</StorageClass></Version>",
        ),
        path if path.contains("versions") && !path.contains("marker=") => list(&format!(
            "<IsTruncated>true</IsTruncated><NextKeyMarker>up/a%20b%2B</NextKeyMarker>\
             <NextVersionIdMarker>D2</NextVersionIdMarker>{}{}",
            mark("D3", 9, true),
            mark("D2", 8, false)
        )),
        other => {
            return support::web::reply(
                400,
                &format!("<Error><Code>Odd</Code><Message>{other}</Message></Error>"),
            );
        }
    };
    support::web::reply(200, &body).header("content-type", "application/xml")
}

#[tokio::test]
async fn a_page_of_marks_alone_is_no_end_and_both_markers_lead_on() {
    let server = support::web::Web::start(paging_server).await;
    let bucket = Bucket { name: "b".to_owned() };
    let (id, secret) = (SecretRef::Env("S3_ID".into()), SecretRef::Env("S3_SECRET".into()));
    let mut store = bucket.resource_at("up", server.url("").trim_end_matches('/'));
    (store.access_key, store.secret_key) = (Some(id.clone()), Some(secret.clone()));
    let rig = Rig::drill().secret(id, "testing").secret(secret, "testing");
    let rig = rig.resource("uploads", System::Store(store));
    let counts = |at: &str| {
        let with =
            json!({ "store": "uploads", "into": "uploads", "at": at, "dry_run": true, "allow_empty": true });
        let rig = &rig;
        async move {
            let done = rig.run(KIND, with).await.unwrap();
            ["objects", "bytes", "undeleted", "absent"].map(|key| done.outputs[key].clone())
        }
    };
    assert_eq!(counts("2026-11-20T00:00:05Z").await, [1, 7, 1, 0].map(Value::from));
    assert_eq!(counts("2026-11-20T00:00:09Z").await, [0, 0, 0, 1].map(Value::from));
    assert_eq!(
        counts("2026-11-20T00:00:01Z").await,
        [0, 0, 0, 1].map(Value::from),
        "the moment itself is after it"
    );
}

#[tokio::test]
async fn what_an_object_carries_comes_back_with_it_and_null_versions_count() {
    let bucket = Bucket::make(Versions::None);
    let request = bucket.client().put_object().bucket(&bucket.name).key("up/a").body(b"one".to_vec().into());
    let request = request.content_type("text/x-note").cache_control("max-age=7").metadata("owner", "ops");
    let request = request.storage_class(StorageClass::StandardIa).tagging("team=a%20b").send();
    wait(async move { request.await.map(drop).expect("takes it") });
    let at = next_second();
    bucket.set_versioning(BucketVersioningStatus::Enabled);
    bucket.put("up/a", "two");
    let rig = rig(&bucket);
    let done =
        rig.run(KIND, json!({ "store": "uploads", "into": "uploads", "at": at.to_string() })).await.unwrap();
    assert_eq!(done.outputs["copied"], json!(1));
    assert_eq!(bucket.get("up/a").as_deref(), Some(&b"one"[..]));
    let request = bucket.client().head_object().bucket(&bucket.name).key("up/a").send();
    let head = wait(async move { request.await.expect("is there") });
    assert_eq!((head.content_type(), head.cache_control()), (Some("text/x-note"), Some("max-age=7")));
    assert_eq!(head.storage_class(), Some(&StorageClass::StandardIa), "and not the default of the bucket");
    assert_eq!(head.metadata().and_then(|all| all.get("owner")).map(String::as_str), Some("ops"));
    let request = bucket.client().get_object_tagging().bucket(&bucket.name).key("up/a").send();
    let tags = wait(async move { request.await.expect("is there") });
    assert_eq!(tags.tag_set().first().map(|tag| (tag.key(), tag.value())), Some(("team", "a b")));
}
