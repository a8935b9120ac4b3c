//! The member system on real servers: its workflows, what it does when servers go away, and whether the ledger
//! tells a whole system from a damaged one.

// Public, so that what is not used here is no dead code.
#[path = "../../../steps/tests/support/port.rs"]
pub mod port;
mod servers;

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use reqwest::Method;
use serde_json::{Value, json};
use servers::{PATIENCE, Postgres, Redis, Running, eventually, free_port};

const PASSWORD: &str = "only for this test";

struct System {
    postgres: Postgres,
    redis: Redis,
    base: String,
    uploads: PathBuf,
    ledger: PathBuf,
    app: Running,
    // Last, so that the servers are gone when their directory goes.
    _dir: tempfile::TempDir,
}

impl System {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (postgres, redis) = (Postgres::start(dir.path()), Redis::start());
        postgres.sql("postgres", "CREATE DATABASE members").await;
        let (uploads, ledger) = (dir.path().join("uploads"), dir.path().join("ledger"));
        let port = free_port();
        let mut init = member_app(&postgres, &redis);
        init.args(["init", "--members", "50", "--uploads"]).arg(&uploads);
        assert!(init.status().unwrap().success());
        assert!(init.status().unwrap().success(), "a second time is no error");
        let mut serve = member_app(&postgres, &redis);
        serve.args(["serve", "--instance", "under-test", "--listen", &format!("127.0.0.1:{port}")]);
        let app = Running::start(serve.arg("--uploads").arg(&uploads));
        let base = format!("http://127.0.0.1:{port}");
        let system = Self { postgres, redis, base, uploads, ledger, app, _dir: dir };
        system.wait_for_ready(200).await;
        system
    }

    async fn call(&self, method: Method, path: &str, token: &str, body: Option<Value>) -> (u16, Value) {
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let mut request = client.request(method, format!("{}{path}", self.base)).bearer_auth(token);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let Ok(answer) = request.send().await else { return (0, Value::Null) };
        assert_eq!(answer.headers()["x-instance"], "under-test");
        let status = answer.status().as_u16();
        (status, serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap_or(Value::Null))
    }

    async fn get(&self, path: &str, token: &str) -> (u16, Value) {
        self.call(Method::GET, path, token, None).await
    }

    async fn post(&self, path: &str, token: &str, body: Value) -> (u16, Value) {
        self.call(Method::POST, path, token, Some(body)).await
    }

    async fn log_in(&self) -> String {
        let (status, answer) = self.post("/login", "", json!({"user": "desk", "password": PASSWORD})).await;
        assert_eq!(status, 200, "{answer}");
        answer["token"].as_str().unwrap().to_owned()
    }

    async fn wait_for_ready(&self, wanted: u16) -> Value {
        let deadline = std::time::Instant::now() + PATIENCE;
        loop {
            let (status, answer) = self.get("/health/ready", "").await;
            if status == wanted {
                return answer;
            }
            assert!(std::time::Instant::now() < deadline, "ready answers {status}: {answer}");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }

    fn traffic(&self) -> Running {
        let mut traffic = member_app(&self.postgres, &self.redis);
        traffic.args(["traffic", "--rate", "40", "--upload-bytes", "500", "--base-url", &self.base]);
        Running::start(traffic.arg("--ledger").arg(&self.ledger).stdout(Stdio::null()))
    }

    fn ledger_lines(&self, containing: &str) -> usize {
        let text = std::fs::read_to_string(&self.ledger).unwrap_or_default();
        text.lines().filter(|line| line.contains(containing)).count()
    }

    fn check(&self, target: jiff::Timestamp) -> Output {
        let mut check = member_app(&self.postgres, &self.redis);
        check.args(["ledger-check", "--target", &target.to_string()]);
        check.args(["--files-as-of", &target.to_string(), "--redis-as-of", &target.to_string()]);
        check.arg("--ledger").arg(&self.ledger).arg("--uploads").arg(&self.uploads).output().unwrap()
    }

    fn assert_mismatch(&self, target: jiff::Timestamp, words: &str) {
        let output = self.check(target);
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains(words), "{words}: {text}");
    }
}

fn member_app(postgres: &Postgres, redis: &Redis) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_member-app"));
    command
        .env("DATABASE_URL", postgres.url("members"))
        .env("REDIS_URL", redis.url())
        .env("MEMBER_APP_PASSWORD", PASSWORD);
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn the_workflows_work_and_refuse_what_they_must() {
    let mut system = System::start().await;
    let wrong = json!({"user": "desk", "password": "wrong"});
    assert_eq!(system.post("/login", "", wrong).await.0, 401);
    assert_eq!(system.get("/members", "no-token").await.0, 401);
    let token = system.log_in().await;
    let (_, found) = system.get("/members?q=member7%40", &token).await;
    assert_eq!(found["count"], 1, "{found}");
    decisions(&system, &token).await;
    payments(&system, &token).await;
    media(&system, &token).await;
    assert_eq!(system.get("/nowhere", &token).await.0, 404);
    assert!(system.app.end("TERM").success(), "SIGTERM is a regular end");
}

async fn decisions(system: &System, token: &str) {
    let (_, pending) = system.get("/members?status=pending&limit=1", token).await;
    let id = pending["members"][0]["id"].as_i64().unwrap();
    let path = format!("/members/{id}/status");
    let approve = json!({"status": "approved", "reference": "d1"});
    assert_eq!(system.post(&path, token, approve.clone()).await.0, 200);
    assert_eq!(system.post(&path, token, approve).await.0, 409, "approved already");
    assert_eq!(system.get(&format!("/members/{id}"), token).await.1["status"], "approved");
    let audit = "SELECT old_status || '>' || new_status FROM member_audit WHERE reference = 'd1'";
    assert_eq!(system.postgres.sql("members", audit).await, "pending>approved");
    assert_eq!(
        system
            .post("/members/999999/status", token, json!({"status": "approved", "reference": "d2"}))
            .await
            .0,
        404
    );
}

async fn payments(system: &System, token: &str) {
    let payment = json!({"member_id": 3, "amount_cents": 1250, "method": "cash", "reference": "p1"});
    let (status, first) = system.post("/payments", token, payment.clone()).await;
    assert_eq!((status, &first["counter"]["value"]), (201, &json!(1)), "{first}");
    let (status, second) = system.post("/payments", token, payment).await;
    assert_eq!((status, &second["id"]), (200, &first["id"]), "the same payment");
    for (change, value, expected) in
        [("amount_cents", json!(1), 409), ("amount_cents", json!(0), 422), ("member_id", json!(99999), 404)]
    {
        let mut payment = json!({"member_id": 3, "amount_cents": 9, "method": "card", "reference": "p2"});
        payment[change] = value;
        if expected == 409 {
            payment["reference"] = json!("p1");
        }
        let (status, answer) = system.post("/payments", token, payment).await;
        assert_eq!(status, expected, "{answer}");
    }
    let (_, list) = system.get("/payments?member_id=3", token).await;
    assert_eq!((&list["count"], &list["payments"][0]["reference"]), (&json!(11), &json!("p1")));
}

async fn media(system: &System, token: &str) {
    let (_, feed) = system.get("/feed", token).await;
    assert_eq!((&feed["count"], &feed["cached"]), (&json!(12), &json!(false)));
    assert_eq!(system.get("/feed", token).await.1["cached"], true, "kept in Redis");
    let path = format!("{}/media?title=New&reference=m1", system.base);
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let sent = client.post(path).bearer_auth(token).body("content").send().await.unwrap();
    assert_eq!(sent.status().as_u16(), 201);
    let uploaded: Value = serde_json::from_slice(&sent.bytes().await.unwrap()).unwrap();
    let (_, feed) = system.get("/feed", token).await;
    assert_eq!((&feed["cached"], &feed["items"][0]["id"]), (&json!(false), &uploaded["id"]));
    let fetch = format!("/media/{}", uploaded["id"]);
    assert_eq!(system.get(&fetch, token).await.0, 200);
    let file = system.uploads.join(uploaded["path"].as_str().unwrap());
    std::fs::write(&file, "altered").unwrap();
    assert_eq!(system.get(&fetch, token).await.0, 500, "not what was uploaded");
    std::fs::remove_file(&file).unwrap();
    assert_eq!(system.get(&fetch, token).await.0, 404);
    system.redis.run("FLUSHALL").await;
    let token = system.log_in().await;
    assert_eq!(system.get("/feed", &token).await.1["missing"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_servers_are_reported_and_found_again() {
    let mut system = System::start().await;
    let token = system.log_in().await;
    system.redis.stop();
    let bad = system.wait_for_ready(503).await;
    assert_eq!((&bad["checks"]["postgres"], &bad["ready"]), (&json!("ok"), &json!(false)), "{bad}");
    assert_ne!(bad["checks"]["redis"], "ok");
    assert_eq!(system.get("/members", &token).await.0, 503);
    system.redis.resume();
    system.wait_for_ready(200).await;
    let token = system.log_in().await;
    system.postgres.stop();
    let bad = system.wait_for_ready(503).await;
    assert_eq!(bad["checks"]["redis"], "ok");
    assert_ne!(bad["checks"]["postgres"], "ok");
    assert_eq!(system.get("/members", &token).await.0, 503);
    assert_eq!(system.get("/health/live", "").await.0, 200);
    system.postgres.resume();
    system.wait_for_ready(200).await;
    assert_eq!(system.get("/members", &token).await.0, 200);
    std::fs::rename(&system.uploads, system.uploads.with_extension("gone")).unwrap();
    let bad = system.wait_for_ready(503).await;
    assert_ne!(bad["checks"]["uploads"], "ok");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ledger_tells_a_whole_system_from_a_damaged_one() {
    let system = System::start().await;
    let mut traffic = system.traffic();
    let acknowledged = |kind: &str| system.ledger_lines(&format!("\"kind\":\"{kind}\""));
    eventually("traffic did everything", || {
        acknowledged("payment") > 10
            && acknowledged("upload") > 3
            && acknowledged("decision") > 3
            && acknowledged("heartbeat") > 3
    });
    let halfway = jiff::Timestamp::now();
    eventually("more payments", || system.ledger_lines("\"acknowledged\"") > 120);
    assert!(traffic.end("TERM").success());
    let end = jiff::Timestamp::now();

    let output = system.check(end);
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    system.assert_mismatch(halfway, "is there, begun only at");

    let victim = "SELECT min(path) FROM media WHERE reference LIKE 'traffic-%'";
    let file = system.uploads.join(system.postgres.sql("members", victim).await);
    let content = std::fs::read(&file).unwrap();
    std::fs::write(&file, "other").unwrap();
    system.assert_mismatch(end, "files uploaded before their backup");
    std::fs::write(&file, content).unwrap();
    assert!(system.check(end).status.success());

    let change = "UPDATE payments SET amount_cents = amount_cents + 1 WHERE reference LIKE 'seed-1-1'";
    system.postgres.sql("members", change).await;
    system.assert_mismatch(end, "expected 500 payments");
    system.postgres.sql("members", &change.replace("+ 1", "- 1")).await;
    assert!(system.check(end).status.success());

    system.redis.run("FLUSHALL").await;
    system.assert_mismatch(end, "is missing, was");
    system.postgres.sql("members", "DELETE FROM payments WHERE reference LIKE 'traffic-%'").await;
    system.assert_mismatch(end, "payments acknowledged before the target");
}

struct Imports<'a> {
    system: &'a System,
    dir: PathBuf,
}

impl Imports<'_> {
    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.dir.join(name), text).unwrap();
    }

    fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir.join(name)).unwrap_or_default()
    }

    /// Runs the program in the directory; returns its exit status, what it says of its work, and what it complains of.
    fn run(&self, args: &[&str]) -> (Option<i32>, Value, String) {
        let mut program = member_app(&self.system.postgres, &self.system.redis);
        let output = program.args(args).current_dir(&self.dir).output().unwrap();
        let said = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        (output.status.code(), said, String::from_utf8_lossy(&output.stderr).into_owned())
    }

    async fn count(&self, sql: &str) -> i64 {
        self.system.postgres.sql("members", &format!("SELECT count(*) FROM {sql}")).await.parse().unwrap()
    }
}

/// 120 payments, of which line 71 has a bad amount and the last line is cut off.
fn poisoned() -> String {
    let mut text = "reference,name,email,amount_cents,method\n".to_owned();
    for number in 1..120 {
        let amount = if number == 70 { "12.50".to_owned() } else { (500 + number).to_string() };
        text.push_str(&format!("b-{number},Payer {number},payer{number}@example.org,{amount},transfer\n"));
    }
    text + "b-120,Payer 120,pay"
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_fails_is_finished_and_every_payment_is_there_once() {
    let system = System::start().await;
    let imports = Imports { dir: system.uploads.parent().unwrap().to_owned(), system: &system };
    imports.write("p.csv", &poisoned());
    let import = ["import", "p.csv", "--log", "scheduler.log"];
    let (exit, said, _) = imports.run(&import);
    assert_eq!((exit, &said["inserted"]), (Some(1), &json!(50)), "{said}");
    assert!(said["error"].as_str().unwrap().contains("line 71: amount_cents `12.50`"), "{said}");
    // Half of it is known: what was entered before the batch with the bad line.
    assert_eq!(imports.count("payments WHERE reference LIKE 'b-%'").await, 50);
    assert_eq!(imports.count("import_runs WHERE state = 'failed'").await, 1);
    let log = imports.text("scheduler.log");
    assert!(log.contains(" INFO members.import_payments started run=1 file=p.csv rows=120"), "{log}");
    assert!(log.contains(" ERROR members.import_payments failed run=1 file=p.csv "), "{log}");

    let foreseen = imports.run(&["import", "--check", "p.csv"]).1;
    assert_eq!(foreseen["inserted"], 68, "{foreseen}");
    assert_eq!(imports.count("payments WHERE reference LIKE 'b-%'").await, 50, "a look enters nothing");
    let aside = [&import[..], &["--quarantine", "aside.csv"]].concat();
    for (inserted, there, new_rejects) in [(68, 50, 2), (0, 118, 0)] {
        let (exit, said, complaints) = imports.run(&aside);
        assert_eq!(exit, Some(0), "{complaints}");
        let counts =
            ["rows", "inserted", "already_there", "rejected", "new_rejects"].map(|name| said[name].as_i64());
        assert_eq!(counts, [120, inserted, there, 2, new_rejects].map(Some), "{said}");
        assert_eq!(imports.count("payments WHERE reference LIKE 'b-%'").await, 118);
        assert_eq!(imports.count("payment_audit WHERE action = 'imported'").await, 118);
    }
    let quarantine = imports.text("aside.csv");
    let quarantined: Vec<_> = quarantine.lines().collect();
    assert_eq!(quarantined[0], "line,reason,row");
    assert!(
        quarantined[1].starts_with("71,amount_cents") && quarantined[1].contains("\"b-70,Payer 70,"),
        "{quarantine}"
    );
    assert!(quarantined[2].starts_with("121,the file ends within this line"), "{quarantine}");
    assert_eq!(quarantined.len(), 3, "{quarantine}");
    damaged_files(&imports).await;
    exports(&imports).await;
}

async fn damaged_files(imports: &Imports<'_>) {
    imports.write("other.csv", "Datum;Betrag\n1.11.;5\n");
    let (exit, _, complaints) =
        imports.run(&["import", "other.csv", "--log", "scheduler.log", "--quarantine", "q.csv"]);
    assert_eq!(exit, Some(2));
    assert!(complaints.contains("other.csv: the first line is not `reference,name"), "{complaints}");
    assert!(
        imports.text("scheduler.log").contains("ERROR members.import_payments failed file=other.csv error=")
    );
    assert!(!imports.dir.join("q.csv").exists());
    // The same reference for another payment is no repetition.
    imports.write(
        "clash.csv",
        "reference,name,email,amount_cents,method\nb-1,Payer 1,payer1@example.org,999,transfer\n",
    );
    let (exit, said, _) = imports.run(&["import", "clash.csv", "--log", "scheduler.log"]);
    assert_eq!(exit, Some(1));
    assert!(said["error"].as_str().unwrap().contains("belongs to another payment: 501 cents"), "{said}");
}

async fn exports(imports: &Imports<'_>) {
    assert_eq!(imports.run(&["export", "all.csv"]).0, Some(0));
    let (exit, said, complaints) = imports.run(&["reconcile", "all.csv"]);
    assert_eq!((exit, &said["differences"]), (Some(0), &json!(0)), "{complaints}");
    assert_eq!(said["rows"], imports.count("payments").await, "{said}");
    let correct = "INSERT INTO payments (member_id, amount_cents, method, reference, entered_by, corrects)
        SELECT member_id, -amount_cents, method, 'correction-b-2', entered_by, id FROM payments WHERE reference = 'b-2'";
    imports.system.postgres.sql("members", correct).await;
    let (exit, said, complaints) = imports.run(&["reconcile", "all.csv"]);
    assert_eq!((exit, &said["differences"]), (Some(1), &json!(1)), "{complaints}");
    assert!(complaints.contains("correction-b-2 is not in the export"), "{complaints}");
    let said = imports.run(&["export", "all.csv"]).1;
    assert_eq!(said["corrections"], 1, "{said}");
    assert!(imports.text("all.csv").contains(",-502,transfer,b-2,"));
}
