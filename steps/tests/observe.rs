//! Watching real web services, logs and scripts for a while.

pub mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use lifeboat_engine::model::evidence::Stream;
use lifeboat_engine::model::outcome::FailureKind;
use serde_json::{Value, json};
use support::rig::Rig;
use support::web::{Web, reply};

/// A web service whose n-th answer is bad where the pattern has an `x`; behind its end all are good.
async fn service(pattern: &'static str) -> (Rig, Web, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let web = Web::start(move |_| {
        let at = count.fetch_add(1, Ordering::SeqCst);
        reply(if pattern.as_bytes().get(at) == Some(&b'x') { 500 } else { 200 }, "")
    })
    .await;
    let rig = Rig::drill().resource_from("site", json!({ "kind": "http", "url": web.url("") }));
    (rig, web, asked)
}

fn health() -> Value {
    json!({ "name": "health", "http": { "target": "site", "get": "/health", "expect": ["status == 200"] } })
}

/// Ten looks: at once and after each of nine intervals. A look may take as long as a slow machine needs.
fn watch(tolerate: Value, checks: Vec<Value>) -> Value {
    json!({ "every": "100ms", "for": "900ms", "limit": "60s", "tolerate": tolerate, "checks": checks })
}

#[tokio::test]
async fn so_many_failures_are_tolerated_and_never_two_in_a_row() {
    let tolerate = json!({ "failures": 2, "in_a_row": 1 });
    let (rig, _web, asked) = service(".x...x").await;
    let done = rig.run("observe", watch(tolerate.clone(), vec![health()])).await.unwrap();
    let of = |name: &str| done.outputs[name].clone();
    assert_eq!((of("looks"), of("failed"), of("in_a_row")), (json!(10), json!(2), json!(1)));
    assert_eq!((of("observed"), of("interruptions")), (json!("900ms"), json!(0)));
    assert_eq!(asked.load(Ordering::SeqCst), 10);
    assert!(
        of("failures")[0]["why"].as_str().unwrap().contains("status == 200 does not hold"),
        "{}",
        of("failures")
    );
    assert_eq!(done.checks[0].actual, "2 of 10 looks failed");
    let printed = rig.reported().text(Stream::Stdout);
    assert_eq!((printed.lines().count(), printed.matches("FAILED health").count()), (10, 2), "{printed}");

    let (rig, _web, asked) = service("..xx").await;
    let error = rig.run("observe", watch(tolerate, vec![health()])).await.unwrap_err();
    assert_eq!((error.code.id, error.kind), ("LB0390", FailureKind::Permanent));
    assert!(error.message.contains("2 looks failed in a row; at most 1 may"), "{}", error.message);
    assert_eq!((error.causes.len(), asked.load(Ordering::SeqCst)), (2, 4), "it does not wait for the end");
}

#[tokio::test]
async fn without_tolerance_nothing_may_fail() {
    let (rig, _web, _) = service(".........x").await;
    let error = rig.run("observe", watch(json!({}), vec![health()])).await.unwrap_err();
    assert!(error.message.contains("1 of 10 looks failed"), "{}", error.message);
}

#[tokio::test]
async fn errors_in_a_log_stay_below_a_number_from_the_beginning_on() {
    let (rig, _web, _) = service("").await;
    let file = rig.dir().join("app.log");
    std::fs::write(&file, "ERROR before\n".repeat(10)).unwrap();
    let errors = |max: u32| json!({ "name": "errors", "logs": { "file": file, "deny": [{ "pattern": "ERROR", "max": max }] } });
    // Each look writes one line.
    let script = format!("echo ERROR >> {}", file.display());
    let writer = json!({ "name": "writer", "run": { "script": script } });
    rig.run("observe", watch(json!({}), vec![writer.clone(), errors(10)])).await.unwrap();
    let error = rig.run_as("again", "observe", watch(json!({}), vec![writer, errors(3)])).await.unwrap_err();
    // Whether a look sees the line that is written meanwhile is open.
    let why = &error.causes[0];
    assert!(why.contains("errors: ") && why.contains("at most 3 lines may be there"), "{why}");
}

#[tokio::test]
async fn what_a_log_must_have_may_come_until_the_end_and_is_never_tolerated() {
    let rig = Rig::drill();
    let file = rig.dir().join("worker.log");
    std::fs::write(&file, "job done before\n").unwrap();
    let required = |least: u32| json!({ "name": "jobs", "logs": { "file": file, "require": [{ "pattern": "job done", "min": least }] } });
    // Each look writes one line: at first there is none, and nine or ten when the last one reads.
    let writer =
        json!({ "name": "writer", "run": { "script": format!("echo job done >> {}", file.display()) } });
    let done = rig.run("observe", watch(json!({}), vec![required(9), writer.clone()])).await.unwrap();
    assert_eq!((&done.outputs["looks"], &done.outputs["failed"]), (&json!(10), &json!(0)));
    let check = done.checks.iter().find(|check| check.name.starts_with("jobs: required")).unwrap();
    assert!(check.passed && check.expected == "at least 9 lines", "{check:?}");

    let tolerant = json!({ "failures": 10 });
    let error =
        rig.run_as("lacking", "observe", watch(tolerant, vec![required(11), writer])).await.unwrap_err();
    assert_eq!((error.code.id, error.kind), ("LB0390", FailureKind::Permanent), "{error}");
    assert!(
        error.message.contains("jobs: required") && error.message.contains("at least 11 lines"),
        "{error}"
    );
    assert!(error.checks.iter().any(|check| !check.passed && check.name.contains("job done")), "{error:?}");
}

#[tokio::test]
async fn a_script_that_takes_too_long_is_ended_and_counts_as_a_failure() {
    let rig = Rig::drill();
    let slow = json!({ "name": "slow", "run": { "script": "sleep 600" } });
    let with = json!({ "every": "100ms", "for": "100ms", "limit": "200ms", "checks": [slow] });
    let error = rig.run("observe", with).await.unwrap_err();
    assert!(error.causes[0].contains("slow: it took longer than 200ms"), "{:?}", error.causes);
}

#[tokio::test]
async fn a_service_is_watched_by_its_manager_and_its_address() {
    let status = Arc::new(AtomicU16::new(200));
    let answer = Arc::clone(&status);
    let web = Web::start(move |_| reply(answer.load(Ordering::SeqCst), "")).await;
    let mut rig = Rig::drill();
    let ready = web.url("/");
    let app = json!({
        "kind": "service", "manager": "process", "command": ["sleep", "600"], "ready": ready, "stop_timeout": "5s"
    });
    rig.set_resource("app", app);
    let with = || watch(json!({}), vec![json!({ "name": "app", "service": { "service": "app" } })]);
    let error = rig.run("observe", with()).await.unwrap_err();
    assert!(error.causes[0].ends_with("app: it does not run"), "{:?}", error.causes);
    rig.run("service.start", json!({ "service": "app" })).await.unwrap();
    rig.run("observe", with()).await.unwrap();
    status.store(503, Ordering::SeqCst);
    let error = rig.run_as("again", "observe", with()).await.unwrap_err();
    assert!(error.causes[0].ends_with("app: it runs and is not ready"), "{:?}", error.causes);
}

#[tokio::test]
async fn an_attempt_after_a_crash_goes_on_with_what_is_left() {
    let (rig, _web, asked) = service("").await;
    let tally = json!({
        "intervals": 6, "looks": 7, "failed": 1, "in_a_row": 0, "longest": 1, "by_check": { "health": 1 },
        "interruptions": 0, "failures": []
    });
    let seen = json!({ "tally": tally, "marks": {} });
    rig.reported().recorded.entry("observe".into()).or_default().insert("observed".into(), seen);
    let tolerate = json!({ "failures": 1 });
    let done = rig.run("observe", watch(tolerate.clone(), vec![health()])).await.unwrap();
    assert_eq!(
        asked.load(Ordering::SeqCst),
        4,
        "at once, and after each of the three intervals that are left"
    );
    assert_eq!((&done.outputs["looks"], &done.outputs["failed"]), (&json!(11), &json!(1)));
    assert_eq!((&done.outputs["interruptions"], &done.outputs["observed"]), (&json!(1), &json!("900ms")));
    assert!(done.warnings[0].contains("interrupted once"), "{:?}", done.warnings);
}

#[tokio::test]
async fn after_a_failure_it_begins_anew() {
    let (rig, _web, asked) = service("x").await;
    rig.run("observe", watch(json!({}), vec![health()])).await.unwrap_err();
    let done = rig.run("observe", watch(json!({}), vec![health()])).await.unwrap();
    assert_eq!((&done.outputs["looks"], &done.outputs["interruptions"]), (&json!(10), &json!(0)));
    assert_eq!(asked.load(Ordering::SeqCst), 11);
}

#[tokio::test]
async fn it_ends_when_it_is_told_to_and_has_recorded_what_it_saw() {
    let (rig, _web, asked) = service("").await;
    let with = json!({ "every": "1h", "for": "1000h", "checks": [health()] });
    let cancel = rig.cancel.clone();
    let watching = async {
        let deadline = Instant::now() + Duration::from_secs(240);
        while asked.load(Ordering::SeqCst) == 0 {
            assert!(Instant::now() < deadline);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        cancel.cancel();
    };
    let ((), ended) = tokio::join!(watching, rig.run("observe", with));
    let error = ended.unwrap_err();
    assert_eq!((error.code.id, error.kind), ("LB0391", FailureKind::Transient));
    assert!(rig.reported().recorded["observe"]["observed"]["tally"].is_object());
}

#[tokio::test]
async fn what_cannot_be_watched_is_refused_before_it_is_looked_at() {
    let (rig, _web, asked) = service("").await;
    let with =
        |every: &str, length: &str, checks: Value| json!({ "every": every, "for": length, "checks": checks });
    for with in [
        with("10ms", "1s", json!([health()])),
        with("2s", "1s", json!([health()])),
        with("100ms", "1000d", json!([health()])),
        with("1s", "1s", json!([])),
        with(
            "1s",
            "1s",
            json!([{ "name": "both", "http": { "target": "site", "get": "/" }, "run": { "script": "true" } }]),
        ),
        with("1s", "1s", json!([{ "name": "none" }])),
    ] {
        let error = rig.run("observe", with.clone()).await.unwrap_err();
        assert_eq!(error.code.id, "LB0392", "{with}");
    }
    let unknown = json!([{ "name": "x", "http": { "target": "absent", "get": "/" } }]);
    let error = rig.run("observe", with("1s", "1h", unknown)).await.unwrap_err();
    assert_eq!(error.code.id, "LB0305", "no look can mend that");
    assert_eq!(asked.load(Ordering::SeqCst), 0);
}
