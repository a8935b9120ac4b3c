//! Services as plain processes: started once, found again, ended.

pub mod support;

use std::time::{Duration, Instant};

use lifeboat_engine::secret::SecretRef;
use lifeboat_steps::process::{Identity, identity};
use serde_json::{Value, json};
use support::rig::Rig;
use support::web::Web;

fn process(rig: &Rig, script: &str, ready: Option<&str>) -> Value {
    json!({
        "kind": "service", "manager": "process", "command": ["bash", "-c", script], "ready": ready,
        "env": { "TOKEN": { "secret": "token" } },
        "pid_file": rig.dir().join("run/app.pid"), "log_file": rig.dir().join("log/app.log"),
        "stop_timeout": "5s",
    })
}

fn rig() -> Rig {
    let token = SecretRef::Env("TOKEN".into());
    Rig::drill().secret(token.clone(), "t0ken").named_secret("token", token)
}

async fn status(rig: &Rig) -> (Value, Value) {
    let outputs = rig.run("service.status", json!({ "service": "app" })).await.unwrap().outputs;
    (outputs["running"].clone(), outputs["ready"].clone())
}

#[tokio::test]
async fn a_process_is_started_once_and_stopped_from_another_step() {
    let web = Web::start(|_| support::web::reply(204, "")).await;
    let mut rig = rig();
    let script = "echo token $TOKEN; exec sleep 600";
    rig.set_resource("app", process(&rig, script, Some(&web.url("/ready"))));
    assert_eq!(status(&rig).await, (json!(false), json!(true)), "another one answers, but it does not run");

    let with = json!({ "service": "app" });
    let first = rig.run("service.start", with.clone()).await.unwrap();
    assert_eq!(first.outputs["started"], json!(true));
    assert!(first.outputs["ready_seconds"].as_f64().unwrap() < 10.0);
    let again = rig.run("service.start", with.clone()).await.unwrap();
    assert_eq!(again.outputs["started"], json!(false));
    assert_eq!(rig.reported().created.len(), 1);
    assert_eq!(status(&rig).await, (json!(true), json!(true)));
    let log = rig.dir().join("log/app.log");
    let deadline = Instant::now() + Duration::from_secs(10);
    while std::fs::read_to_string(&log).unwrap() != "token t0ken\n" {
        assert!(Instant::now() < deadline, "{:?}", std::fs::read_to_string(&log));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }

    let pid = first.facts["process"].clone();
    let restarted = rig.run("service.restart", with.clone()).await.unwrap();
    assert_ne!(restarted.facts["process"], pid);
    let stopped = rig.run("service.stop", with.clone()).await.unwrap();
    assert_eq!(stopped.outputs["was_running"], json!(true));
    assert_eq!(status(&rig).await.0, json!(false));
    let stopped = rig.run("service.stop", with).await.unwrap();
    assert_eq!(stopped.outputs["was_running"], json!(false));
}

#[tokio::test]
async fn a_process_that_dies_while_starting_fails_at_once_with_its_log() {
    let mut rig = rig();
    let nobody = format!("http://127.0.0.1:{}/", support::web::closed_port());
    rig.set_resource("app", process(&rig, "echo address already in use >&2; exit 1", Some(&nobody)));
    let begun = Instant::now();
    let error = rig.run("service.start", json!({ "service": "app" })).await.unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(20));
    assert_eq!((error.code.id, error.causes), ("LB1503", vec!["address already in use".to_owned()]));
}

#[tokio::test]
async fn a_service_that_does_not_become_ready_says_what_it_answered() {
    let web = Web::start(|_| support::web::reply(503, "starting")).await;
    let mut rig = rig();
    rig.set_resource("app", process(&rig, "exec sleep 600", Some(&web.url("/ready"))));
    let with = json!({ "service": "app", "ready_timeout": "400ms" });
    let error = rig.run("service.start", with).await.unwrap_err();
    assert_eq!(error.code.id, "LB1502");
    assert!(error.message.contains("503"), "{}", error.message);
    assert_eq!(status(&rig).await, (json!(true), json!(false)));
}

#[tokio::test]
async fn a_pid_file_of_a_process_that_is_gone_means_nothing() {
    let mut rig = rig();
    rig.set_resource("app", process(&rig, "exec sleep 600", None));
    let mut stale = Identity::of(std::process::id()).unwrap();
    stale.start_ticks -= 1;
    identity::save(&stale, &rig.dir().join("run/app.pid")).unwrap();
    assert_eq!(status(&rig).await.0, json!(false));
    let done = rig.run("service.start", json!({ "service": "app" })).await.unwrap();
    assert_eq!(done.outputs["started"], json!(true));
    assert!(done.warnings[0].contains("no `ready` address"), "{:?}", done.warnings);
}

#[tokio::test]
async fn a_stranger_with_the_number_of_a_service_is_not_touched_and_the_service_starts_beside_it() {
    let mut stranger = std::process::Command::new("sleep").arg("600").spawn().unwrap();
    let own = Identity::of(stranger.id()).unwrap();
    let before = Identity { start_ticks: own.start_ticks - 1, ..own.clone() };
    let other_boot = Identity { boot_id: "another".into(), ..own.clone() };
    for recorded in [before, other_boot] {
        let mut rig = rig();
        rig.set_resource("app", process(&rig, "exec sleep 600", None));
        let (with, file) = (json!({ "service": "app" }), rig.dir().join("run/app.pid"));
        identity::save(&recorded, &file).unwrap();
        assert_eq!(status(&rig).await.0, json!(false), "{recorded:?}");
        let stopped = rig.run("service.stop", with.clone()).await.unwrap();
        assert_eq!(stopped.outputs["was_running"], json!(false), "{recorded:?}");
        identity::save(&recorded, &file).unwrap();
        let restarted = rig.run("service.restart", with.clone()).await.unwrap();
        assert_ne!(restarted.facts["process"], json!(stranger.id()), "{recorded:?}");
        assert_eq!(status(&rig).await.0, json!(true));
        rig.run("service.stop", with).await.unwrap();
        assert!(own.is_alive(), "the stranger was ended for {recorded:?}");
    }
    stranger.kill().unwrap();
    stranger.wait().unwrap();
}

#[tokio::test]
async fn a_service_without_command_is_refused() {
    let rig = rig().resource_from("app", json!({ "kind": "service", "manager": "process" }));
    let error = rig.run("service.start", json!({ "service": "app" })).await.unwrap_err();
    assert_eq!(error.code.id, "LB1504");
}

/// A web server that answers 503 while the file is there, as one in front of an application would.
async fn gated(file: std::path::PathBuf) -> Web {
    Web::start(move |_| support::web::reply(if file.exists() { 503 } else { 200 }, "")).await
}

#[tokio::test]
async fn a_gate_is_moved_and_seen_from_outside() {
    let mut rig = rig();
    let file = rig.dir().join("closed");
    let web = gated(file.clone()).await;
    let gate = |gate: Value| json!({ "kind": "service", "manager": "systemd", "unit": "app", "gate": gate });
    rig.set_resource("app", gate(json!({ "file": file, "check": web.url("/") })));
    let with = json!({ "gate": "app", "timeout": "2s" });
    let outcome = async |rig: &Rig, kind: &str| {
        let outputs = rig.run(kind, with.clone()).await.unwrap().outputs;
        (outputs["changed"].clone(), outputs["status"].clone())
    };
    assert_eq!(outcome(&rig, "access.open").await, (json!(false), json!(200)));
    assert_eq!(outcome(&rig, "access.close").await, (json!(true), json!(503)));
    assert!(file.exists());
    assert_eq!(outcome(&rig, "access.close").await, (json!(false), json!(503)));
    assert_eq!(outcome(&rig, "access.open").await, (json!(true), json!(200)));
    assert!(!file.exists());

    let (close, open) = (json!(["touch", file]), json!(["rm", file]));
    rig.set_resource("app", gate(json!({ "close": close, "open": open, "check": web.url("/") })));
    assert_eq!(outcome(&rig, "access.close").await, (json!(true), json!(503)));
    assert_eq!(outcome(&rig, "access.open").await, (json!(true), json!(200)));

    // A file that nobody looks at closes nothing.
    let other = rig.dir().join("other");
    rig.set_resource("app", gate(json!({ "file": other, "check": web.url("/") })));
    let error = rig.run("access.close", with.clone()).await.unwrap_err();
    assert_eq!(error.code.id, "LB1506");
    assert!(error.message.contains("gave status 200, not 503"), "{}", error.message);
    rig.set_resource("app", gate(json!({ "close": ["false"], "open": ["false"], "check": web.url("/") })));
    assert_eq!(rig.run("access.close", with.clone()).await.unwrap_err().code.id, "LB1507");
    rig.set_resource("app", json!({ "kind": "service", "manager": "systemd", "unit": "app" }));
    assert_eq!(rig.run("access.close", with).await.unwrap_err().code.id, "LB1505");
}
