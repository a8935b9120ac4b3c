//! Logs in real files that grow, rotate and are emptied.

pub mod support;

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;

use flate2::Compression;
use flate2::write::GzEncoder;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::model::outcome::FailureKind;
use lifeboat_engine::secret::SecretRef;
use lifeboat_engine::step::StepError;
use serde_json::{Value, json};
use support::rig::Rig;

struct Log {
    rig: Rig,
    path: PathBuf,
}

fn log() -> Log {
    let secret = SecretRef::Env("TOKEN".into());
    let rig = Rig::drill().secret(secret, "s3cr3t-t0ken-value");
    let path = rig.dir().join("app.log");
    Log { rig, path }
}

impl Log {
    fn add(&self, text: &str) {
        self.add_bytes(text.as_bytes());
    }

    fn add_bytes(&self, bytes: &[u8]) {
        OpenOptions::new().create(true).append(true).open(&self.path).unwrap().write_all(bytes).unwrap();
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        PathBuf::from(format!("{}{suffix}", self.path.display()))
    }

    async fn check(&self, mut with: Value) -> Result<Done, StepError> {
        with["file"] = json!(self.path);
        self.rig.run("logs.check", with).await
    }

    async fn mark(&self) -> Value {
        let done = self.rig.run("logs.mark", json!({ "file": self.path })).await.unwrap();
        done.outputs["mark"].clone()
    }

    /// How many lines with `E` come behind a mark.
    async fn errors_behind(&self, mark: &Value) -> Value {
        let deny = json!([{ "pattern": "^E", "max": 1000 }]);
        self.check(json!({ "mark": mark, "deny": deny })).await.unwrap().outputs["counts"]["^E"].clone()
    }
}

fn gzip(path: &std::path::Path, text: &str) {
    let mut packed = GzEncoder::new(File::create(path).unwrap(), Compression::fast());
    packed.write_all(text.as_bytes()).unwrap();
    packed.finish().unwrap();
}

/// Makes a file as old as a moment, by the clock of its last change.
fn age(path: &std::path::Path, moment: &str) {
    let at: jiff::Timestamp = moment.parse().unwrap();
    File::options().append(true).open(path).unwrap().set_modified(at.into()).unwrap();
}

#[tokio::test]
async fn what_must_and_must_not_be_there_is_shown_with_its_lines() {
    let log = log();
    log.add("start\nlistening on 80\nERROR one\nok\nERROR two\n");
    log.add_bytes(b"ERROR bytes \xff\xfe and s3cr3t-t0ken-value\nlast ERROR without an end");
    let require = json!([{ "pattern": "listening", "name": "up" }]);
    let done = log.check(json!({ "require": require, "deny": [{ "pattern": "FATAL" }] })).await.unwrap();
    assert_eq!(done.outputs["counts"], json!({ "FATAL": 0, "up": 1 }));
    assert_eq!((&done.outputs["lines"], done.checks.len()), (&json!(7), 2));
    assert_eq!(done.outputs["found"][0]["place"], json!("app.log:2"));
    assert_eq!(done.outputs["bytes"], json!(std::fs::metadata(&log.path).unwrap().len()));

    let deny = json!([{ "pattern": "ERROR", "max": 3 }]);
    let error = log.check(json!({ "deny": deny })).await.unwrap_err();
    assert_eq!((error.code.id, error.kind), ("LB1350", FailureKind::Permanent));
    assert!(error.message.contains("4 lines with `ERROR`; at most 3 lines"), "{}", error.message);
    assert_eq!(error.causes[0], "app.log:3: ERROR one");
    assert_eq!(error.causes[2], "app.log:6: ERROR bytes \u{fffd}\u{fffd} and ***");
    assert_eq!(error.causes[3], "app.log:7: last ERROR without an end");
    assert!(!error.checks[0].passed);

    let ignore = json!({ "deny": [{ "pattern": "ERROR" }], "ignore": ["one|two", "bytes", "last"] });
    log.check(ignore).await.unwrap();
    let error = log.check(json!({ "require": [{ "pattern": "ready" }] })).await.unwrap_err();
    assert_eq!(error.kind, FailureKind::Transient, "it may still come");
    assert!(log.rig.reported().lines.is_empty(), "the log is not printed");
    assert!(log.rig.reported().progress.iter().any(|it| it.done > 0));
}

#[tokio::test]
async fn only_lines_since_a_moment_count_over_rotated_files() {
    let log = log();
    std::fs::write(log.beside(".2"), "2026-11-20T01:00:00Z E0\n").unwrap();
    gzip(&log.beside(".1.gz"), "2026-11-21T02:59:59Z E1\n2026-11-21T03:00:00Z E2\n  E at a further line\n");
    std::fs::write(log.beside(".bak"), "2026-11-21T04:00:00Z E3\n").unwrap();
    log.add("2026-11-21T05:00:00Z E4\n2026-11-21T02:00:00Z E5 written late\n2026-11-21T05:00:01Z E6\n");
    age(&log.beside(".2"), "2026-11-20T01:00:00Z");
    age(&log.beside(".1.gz"), "2026-11-21T03:10:00Z");
    let with = json!({ "since": "2026-11-21T03:00:00Z", "deny": [{ "pattern": "E", "max": 100 }] });
    let done = log.check(with).await.unwrap();
    let found = done.outputs["found"].as_array().unwrap();
    let texts: Vec<_> = found.iter().map(|it| it["place"].as_str().unwrap()).collect();
    assert_eq!(texts, ["app.log.1.gz:2", "app.log.1.gz:3", "app.log:1", "app.log:3"]);
}

#[tokio::test]
async fn a_log_whose_times_cannot_be_read_does_not_pass_for_a_quiet_one() {
    let log = log();
    log.add("22.11.2026 04:00:00 E1\n21.11.2026 04:00:00 E2\n");
    let with = |more: Value| {
        let mut with = json!({ "since": "2026-11-22T00:00:00Z", "deny": [{ "pattern": "E", "max": 9 }] });
        with.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        with
    };
    let error = log.check(with(json!({}))).await.unwrap_err();
    assert_eq!(error.code.id, "LB1352");
    let format = json!({ "timestamp": "%d.%m.%Y %H:%M:%S", "timezone": "Europe/Berlin" });
    assert_eq!(log.check(with(format)).await.unwrap().outputs["counts"]["E"], json!(1));
    let error = log.check(with(json!({ "timezone": "Nowhere/At_All" }))).await.unwrap_err();
    assert_eq!(error.code.id, "LB1354");
}

#[tokio::test]
async fn a_log_is_read_from_where_it_was_marked() {
    let log = log();
    log.add("E before\n");
    let mark = log.mark().await;
    assert_eq!(log.errors_behind(&mark).await, json!(0));
    log.add("ok\nE behind\n");
    let error = log.check(json!({ "mark": mark, "deny": [{ "pattern": "E" }] })).await.unwrap_err();
    assert_eq!(error.causes, ["app.log:3: E behind"], "lines are counted from the beginning of the file");
}

#[tokio::test]
async fn a_marked_place_is_found_again_after_rotations() {
    let log = log();
    log.add("first\nE before\n");
    let mark = log.mark().await;
    log.add("E 1\n");
    std::fs::rename(&log.path, log.beside(".1")).unwrap();
    // Between the rotation and the first line there is no file.
    assert_eq!(log.errors_behind(&mark).await, json!(1));
    log.add("E 2\n");
    assert_eq!(log.errors_behind(&mark).await, json!(2));
    let packed = std::fs::read_to_string(log.beside(".1")).unwrap();
    std::fs::remove_file(log.beside(".1")).unwrap();
    gzip(&log.beside(".2.gz"), &packed);
    age(&log.beside(".2.gz"), "2026-01-01T00:00:00Z");
    std::fs::rename(&log.path, log.beside(".1")).unwrap();
    log.add("E 3\n");
    assert_eq!(log.errors_behind(&mark).await, json!(3), "packed, and another one behind it");
    std::fs::remove_file(log.beside(".2.gz")).unwrap();
    let error = log.check(json!({ "mark": mark, "deny": [{ "pattern": "E" }] })).await.unwrap_err();
    assert_eq!(error.code.id, "LB1353");
}

#[tokio::test]
async fn a_log_that_was_copied_and_emptied_is_followed_and_one_that_was_only_emptied_is_not() {
    let log = log();
    log.add("first\nE before\n");
    let mark = log.mark().await;
    log.add("E 1\n");
    std::fs::copy(&log.path, log.beside(".1")).unwrap();
    File::create(&log.path).unwrap();
    log.add("E 2 of the emptied file, which has become longer than it was before\n");
    assert_eq!(log.errors_behind(&mark).await, json!(2));
    std::fs::remove_file(log.beside(".1")).unwrap();
    let error = log.check(json!({ "mark": mark, "deny": [{ "pattern": "E" }] })).await.unwrap_err();
    assert_eq!(error.code.id, "LB1353");
}

#[tokio::test]
async fn a_log_that_does_not_exist_yet_can_be_marked() {
    let log = log();
    let mark = log.mark().await;
    let error = log.check(json!({ "mark": mark, "deny": [{ "pattern": "E" }] })).await.unwrap_err();
    assert_eq!((error.code.id, error.kind), ("LB1351", FailureKind::Transient));
    log.add("E 1\n");
    assert_eq!(log.errors_behind(&mark).await, json!(1));
}

#[tokio::test]
async fn a_huge_log_is_read_in_bounded_memory_and_shows_a_few_lines() {
    let log = log();
    let line = format!("E {}\n", "x".repeat(1000));
    let mut file = OpenOptions::new().create(true).append(true).open(&log.path).unwrap();
    file.write_all(line.repeat(20_000).as_bytes()).unwrap();
    file.write_all(&vec![b'E'; 3 << 20]).unwrap();
    let done = log.check(json!({ "deny": [{ "pattern": "E", "max": 20_001 }] })).await.unwrap();
    assert_eq!(done.outputs["counts"]["E"], json!(20_001));
    assert_eq!(done.outputs["found"].as_array().unwrap().len(), 5);
    assert!(done.outputs["found"][0]["text"].as_str().unwrap().len() < 310);
    assert!(done.warnings[0].contains("a line is longer than 1 MiB"), "{:?}", done.warnings);
}

#[tokio::test]
async fn a_source_is_named_once_and_something_is_looked_for() {
    let log = log();
    log.add("ok\n");
    let deny = json!([{ "pattern": "E" }]);
    for with in [
        json!({ "deny": deny }),
        json!({ "file": log.path, "unit": "shop", "deny": deny }),
        json!({ "container": "--follow", "deny": deny }),
        json!({ "file": log.path }),
        json!({ "file": log.path, "deny": [{ "pattern": "(" }] }),
        json!({ "file": log.path, "deny": deny, "mark": { "at": "2026-11-21T03:00:00Z" } }),
    ] {
        let error = log.rig.run("logs.check", with.clone()).await.unwrap_err();
        assert_eq!(error.code.id, "LB1354", "{with}");
    }
    let error = log.rig.run("logs.check", json!({ "file": "absent.log", "deny": deny })).await.unwrap_err();
    assert_eq!(error.code.id, "LB1351");
    let error = log.rig.run("logs.check", json!({ "file": "/", "deny": deny })).await.unwrap_err();
    assert_eq!(error.code.id, "LB1351");
}

#[tokio::test]
async fn the_log_of_a_process_is_that_of_its_service() {
    let mut log = log();
    log.add("E 1\n");
    let service =
        json!({ "kind": "service", "manager": "process", "command": ["true"], "log_file": log.path });
    log.rig.set_resource("app", service);
    let with = json!({ "service": "app", "deny": [{ "pattern": "E", "max": 9 }] });
    assert_eq!(log.rig.run("logs.check", with).await.unwrap().outputs["counts"]["E"], json!(1));
}
