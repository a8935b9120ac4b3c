//! `run`, `assert` and `wait` as the engine runs them.

pub mod support;

use std::time::{Duration, Instant};

use lifeboat_engine::model::outcome::FailureKind;
use lifeboat_engine::secret::SecretRef;
use lifeboat_engine::step::Probe;
use serde_json::json;
use support::rig::Rig;

#[tokio::test]
async fn a_script_gives_its_output_and_stops_at_the_first_failure() {
    let rig = Rig::drill();
    let done = rig.run("run", json!({ "script": "echo hello; pwd" })).await.unwrap();
    let stdout = format!("hello\n{}", rig.dir().canonicalize().unwrap().display());
    assert_eq!(done.outputs["stdout"], json!(stdout));
    assert_eq!(done.outputs["exit_code"], json!(0));

    let script = "false | true; touch went_on";
    let error = rig.run("run", json!({ "script": script })).await.unwrap_err();
    assert_eq!((error.kind, error.code.id), (FailureKind::Permanent, "LB1001"));
    assert!(!rig.dir().join("went_on").exists());
    let unset = rig.run("run", json!({ "script": "echo $NO_SUCH_NAME" })).await.unwrap_err();
    assert!(unset.causes[0].contains("unbound variable"), "{:?}", unset.causes);
}

#[tokio::test]
async fn a_script_runs_in_its_directory() {
    let rig = Rig::drill();
    std::fs::create_dir(rig.dir().join("sub")).unwrap();
    rig.run("run", json!({ "script": "touch here", "dir": "sub" })).await.unwrap();
    assert!(rig.dir().join("sub/here").exists());
}

#[tokio::test]
async fn a_script_gets_secrets_and_connections_in_its_environment() {
    let (password, key) = (SecretRef::Env("PW".into()), SecretRef::Env("KEY".into()));
    let rig = Rig::drill()
        .resource_from("db", json!({ "kind": "postgres", "host": "::1", "port": 5499, "user": "app", "password": { "env": "PW" } }))
        .resource_from("local", json!({ "kind": "postgres", "socket_dir": "/run/pg", "user": "app" }))
        .resource_from("cache", json!({ "kind": "redis", "url": "redis://10.0.0.5:6380/2", "password": { "env": "PW" } }))
        .resource_from("uploads", json!({ "kind": "files", "path": "/srv/uploads" }))
        .secret(password, "p@ss/word")
        .secret(key.clone(), "the-key")
        .named_secret("app_key", key);
    let env = json!({
        "DB": { "connection": "db", "database": "members" },
        "LOCAL": { "connection": "local" },
        "CACHE": { "connection": "cache" },
        "UPLOADS": { "connection": "uploads" },
        "APP_KEY": { "secret": "app_key" },
        "PLAIN": "a b",
    });
    let script = r#"printf '%s\n' "$DB" "$LOCAL" "$CACHE" "$UPLOADS" "$APP_KEY" "$PLAIN""#;
    let done = rig.run("run", json!({ "script": script, "env": env })).await.unwrap();
    let lines: Vec<_> = done.outputs["stdout"].as_str().unwrap().lines().collect();
    assert_eq!(
        lines,
        [
            "postgresql://app:p%40ss%2Fword@[::1]:5499/members",
            "postgresql://app@/postgres?host=%2Frun%2Fpg&port=5432",
            "redis://:p%40ss%2Fword@10.0.0.5:6380/2",
            "/srv/uploads",
            "the-key",
            "a b",
        ]
    );
    let with = json!({ "script": "true", "env": { "X": { "secret": "absent" } } });
    let error = rig.run("run", with).await.unwrap_err();
    assert_eq!(error.code.id, "LB1009");
}

#[tokio::test]
async fn a_probe_tells_whether_the_work_is_done() {
    let rig = Rig::drill();
    let with = |probe: &str| json!({ "script": "touch done", "probe": probe });
    let question = "if [ -e done ]; then echo found; else exit 1; fi";
    assert!(matches!(rig.probe("run", with(question)).await.unwrap(), Probe::NotDone));
    rig.run("run", with(question)).await.unwrap();
    let Probe::Done(done) = rig.probe("run", with(question)).await.unwrap() else { panic!("it is done") };
    assert_eq!(done.outputs["stdout"], json!("found"));
    let error = rig.probe("run", with("no-such-command")).await.unwrap_err();
    assert_eq!(error.code.id, "LB1021");
    assert!(error.message.contains("127"), "{}", error.message);
}

#[tokio::test]
async fn what_a_script_leaves_running_is_a_warning() {
    let done = Rig::drill().run("run", json!({ "script": "sleep 600 >/dev/null 2>&1 &" })).await.unwrap();
    assert!(done.warnings[0].contains("left processes running"), "{:?}", done.warnings);
}

#[tokio::test]
async fn assertions_show_what_was_found() {
    let rig = Rig::drill();
    let with =
        json!({ "values": { "n": 3, "at": "x" }, "that": ["values.n > 2", "values.n == 4", "values.m"] });
    let error = rig.run("assert", with).await.unwrap_err();
    assert_eq!((error.kind, error.code.id), (FailureKind::Permanent, "LB1020"));
    let passed: Vec<_> = error.checks.iter().map(|check| check.passed).collect();
    assert_eq!(passed, [true, false, false]);
    assert!(error.message.contains("values.n = 3"), "{}", error.message);

    let done = rig.run("assert", json!({ "values": { "n": 3 }, "that": ["values.n == 3"] })).await.unwrap();
    assert_eq!(done.outputs["passed"], json!(1));
    assert!(rig.run("assert", json!({ "that": [] })).await.is_err());
}

#[tokio::test]
async fn waiting_takes_its_time_and_a_later_attempt_waits_for_what_is_left() {
    let rig = Rig::drill();
    let begun = Instant::now();
    let done = rig.run("wait", json!({ "for": "300ms" })).await.unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(300));
    let until = done.outputs["until"].clone();
    let again = rig.run("wait", json!({ "for": "1h" })).await.unwrap();
    assert_eq!(again.outputs["until"], until, "the recorded moment counts");
    let past = json!({ "until": "2020-01-01T00:00:00Z" });
    rig.run_as("another", "wait", past).await.unwrap();
}

#[tokio::test]
async fn waiting_can_be_ended() {
    let rig = Rig::drill();
    rig.cancel.cancel();
    let error = rig.run("wait", json!({ "for": "1h" })).await.unwrap_err();
    assert_eq!((error.kind, error.code.id), (FailureKind::Transient, "LB1022"));
}
