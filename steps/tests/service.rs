//! Services as plain processes: started once, found again, ended.

pub mod support;

use std::sync::atomic::{AtomicUsize, Ordering};
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
    assert!(first.outputs["ready_seconds"].is_f64());
    let again = rig.run("service.start", with.clone()).await.unwrap();
    assert_eq!(again.outputs["started"], json!(false));
    assert_eq!(rig.reported().created.len(), 1);
    assert_eq!(status(&rig).await, (json!(true), json!(true)));
    let log = rig.dir().join("log/app.log");
    let deadline = Instant::now() + Duration::from_secs(240);
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
    let with = json!({ "service": "app", "ready_timeout": "10m" });
    let error = rig.run("service.start", with).await.unwrap_err();
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

/// A server whose configuration is a file: it says at HUP what it has read, ends if that is `die`, and is tested by `grep`.
fn configured(rig: &Rig, ready: &str) -> Value {
    let config = rig.dir().join("app.conf");
    let script = format!(
        "trap 'read -r c < {0}; echo reloaded $c; if [ $c = die ]; then exit 1; fi' HUP; echo up; while :; do sleep 0.05; done",
        config.display()
    );
    let mut service = process(rig, &script, Some(ready));
    service["test"] = json!(["grep", "-q", "^ok\\|^die", config]);
    service
}

#[tokio::test]
async fn a_configuration_is_tested_and_taken_up_by_the_same_process() {
    let web = Web::start(|_| support::web::reply(200, "")).await;
    let mut rig = rig();
    let (config, log) = (rig.dir().join("app.conf"), rig.dir().join("log/app.log"));
    std::fs::write(&config, "ok one\n").unwrap();
    rig.set_resource("app", configured(&rig, &web.url("/")));
    let with = || json!({ "service": "app" });
    let error = rig.run("service.reload", with()).await.unwrap_err();
    assert_eq!(error.code.id, "LB1520", "it does not run");
    rig.run("service.start", with()).await.unwrap();
    let has = async |text: &str, times: usize| {
        let deadline = Instant::now() + Duration::from_secs(60);
        while std::fs::read_to_string(&log).unwrap().matches(text).count() < times {
            assert!(Instant::now() < deadline, "{:?}", std::fs::read_to_string(&log));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    has("up", 1).await;

    std::fs::write(&config, "wrong\n").unwrap();
    let error = rig.run("service.reload", with()).await.unwrap_err();
    assert_eq!(error.code.id, "LB1522");
    assert!(error.message.contains("grep") && error.message.contains("nothing was reloaded"), "{error}");

    std::fs::write(&config, "ok two\n").unwrap();
    let done = rig.run("service.reload", with()).await.unwrap();
    assert_eq!(done.outputs["replaced"], json!(false));
    has("reloaded ok two", 1).await;
    assert!(!std::fs::read_to_string(&log).unwrap().contains("wrong"));
    let error =
        rig.run("service.reload", json!({ "service": "app", "main_process": "replaced" })).await.unwrap_err();
    assert_eq!(error.code.id, "LB1523");
    // Two signals that it has not seen yet are one.
    has("reloaded ok two", 2).await;

    let mut untested = configured(&rig, &web.url("/"));
    untested.as_object_mut().unwrap().remove("test");
    rig.set_resource("app", untested);
    assert_eq!(rig.run("service.reload", with()).await.unwrap_err().code.id, "LB1521");
    let done = rig.run("service.reload", json!({ "service": "app", "untested": true })).await.unwrap();
    assert!(done.warnings[0].contains("was not tested"), "{:?}", done.warnings);
    // What it was told last it must not obey when the file says something else.
    has("reloaded ok two", 3).await;

    // It passes its test, and takes the server down: it ends a little later than the first look.
    std::fs::write(&config, "die\n").unwrap();
    rig.set_resource("app", configured(&rig, &web.url("/")));
    let with = json!({ "service": "app", "stable_for": "20s" });
    let error = rig.run("service.reload", with).await.unwrap_err();
    assert_eq!(error.code.id, "LB1503", "{error}");
}

#[tokio::test]
async fn a_service_that_is_healthy_for_a_moment_is_not_up() {
    let mut rig = rig();
    // It ends when it has been asked twice: the first time it was healthy.
    let (asked, file) = (AtomicUsize::new(0), rig.dir().join("asked"));
    let script = format!("echo out of memory; until test -e {}; do sleep 0.05; done; exit 1", file.display());
    let web = Web::start(move |_| {
        if asked.fetch_add(1, Ordering::SeqCst) == 1 {
            std::fs::write(&file, "").unwrap();
        }
        support::web::reply(200, "")
    })
    .await;
    rig.set_resource("app", process(&rig, &script, Some(&web.url("/"))));
    let with = json!({ "service": "app", "stable_for": "30s" });
    let error = rig.run("service.start", with).await.unwrap_err();
    assert_eq!((error.code.id, error.causes), ("LB1503", vec!["out of memory".to_owned()]));
    assert!(error.message.contains("just after it had become ready"), "{}", error.message);

    // Without an address, too.
    rig.set_resource("app", process(&rig, "sleep 0.5; exit 1", None));
    let error = rig.run("service.start", json!({ "service": "app", "stable_for": "30s" })).await.unwrap_err();
    assert_eq!(error.code.id, "LB1503");
}

#[tokio::test]
async fn a_service_that_answers_now_and_then_is_not_ready() {
    let count = AtomicUsize::new(0);
    let flapping = move |_: &support::web::Request| {
        let odd = count.fetch_add(1, Ordering::SeqCst) % 2 == 1;
        support::web::reply(if odd { 503 } else { 200 }, "")
    };
    let web = Web::start(flapping).await;
    let mut rig = rig();
    rig.set_resource("app", process(&rig, "exec sleep 600", Some(&web.url("/"))));
    let with = json!({ "service": "app", "ready_timeout": "2s", "stable_for": "30s" });
    let error = rig.run("service.start", with).await.unwrap_err();
    assert_eq!(error.code.id, "LB1502");
    assert!(error.message.contains("did not stay so"), "{}", error.message);
}

#[tokio::test]
async fn a_service_that_does_not_end_is_killed() {
    let mut rig = rig();
    let mut stubborn = process(&rig, "trap '' TERM; echo up; while :; do sleep 0.05; done", None);
    stubborn["stop_timeout"] = json!("300ms");
    rig.set_resource("app", stubborn);
    rig.run("service.start", json!({ "service": "app" })).await.unwrap();
    let stopped = rig.run("service.stop", json!({ "service": "app" })).await.unwrap();
    assert_eq!(stopped.outputs["was_running"], json!(true));
    assert_eq!(status(&rig).await.0, json!(false));
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
    let with = json!({ "gate": "app", "timeout": "4m" });
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
    let error = rig.run("access.close", json!({ "gate": "app", "timeout": "1s" })).await.unwrap_err();
    assert_eq!(error.code.id, "LB1506");
    assert!(error.message.contains("gave status 200, not 503"), "{}", error.message);
    rig.set_resource("app", gate(json!({ "close": ["false"], "open": ["false"], "check": web.url("/") })));
    assert_eq!(rig.run("access.close", with.clone()).await.unwrap_err().code.id, "LB1507");
    rig.set_resource("app", json!({ "kind": "service", "manager": "systemd", "unit": "app" }));
    assert_eq!(rig.run("access.close", with).await.unwrap_err().code.id, "LB1505");
}

#[tokio::test]
async fn a_gate_that_only_one_of_several_servers_looks_at_is_not_closed() {
    let count = AtomicUsize::new(0);
    let web = Web::start(move |_| {
        let odd = count.fetch_add(1, Ordering::SeqCst) % 2 == 1;
        support::web::reply(if odd { 200 } else { 503 }, "")
    })
    .await;
    let mut rig = rig();
    let gate = |file: &str| {
        let gate = json!({ "file": rig.dir().join(file), "check": web.url("/") });
        json!({ "kind": "service", "manager": "systemd", "unit": "app", "gate": gate })
    };
    let (there, nowhere) = (gate("closed"), gate("nowhere/closed"));
    rig.set_resource("app", there);
    let with = || json!({ "gate": "app", "timeout": "1s" });
    let error = rig.run("access.close", with()).await.unwrap_err();
    assert_eq!(error.code.id, "LB1506");
    let error = rig.run("access.open", with()).await.unwrap_err();
    assert_eq!(error.code.id, "LB1506");
    rig.set_resource("app", nowhere);
    let error = rig.run("access.close", with()).await.unwrap_err();
    assert_eq!(error.code.id, "LB1507");
    assert!(error.help.unwrap().contains("directory must exist"));
}

#[tokio::test]
async fn a_gate_that_is_waited_for_gives_up_when_the_step_must_end() {
    let mut rig = rig();
    let nobody = format!("http://127.0.0.1:{}/", support::web::closed_port());
    let gate = json!({ "file": rig.dir().join("closed"), "check": nobody });
    rig.set_resource("app", json!({ "kind": "service", "manager": "systemd", "unit": "app", "gate": gate }));
    rig.cancel.cancel();
    let error = rig.run("access.close", json!({ "gate": "app", "timeout": "10h" })).await.unwrap_err();
    assert_eq!(error.code.id, "LB1506");
}
