//! Smoke tests against a real HTTP server.

pub mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use lifeboat_engine::model::outcome::FailureKind;
use lifeboat_engine::secret::SecretRef;
use serde_json::{Value, json};
use support::certs::{Authority, Pair, Says};
use support::rig::Rig;
use support::web::{Reply, Request, Web, closed_port, reply};

fn rig(url: &str) -> Rig {
    let password = SecretRef::Env("PW".into());
    Rig::drill()
        .resource_from("api", json!({ "kind": "http", "url": url }))
        .secret(password.clone(), "s3cret&word")
        .named_secret("demo_password", password)
}

fn smoke(checks: Value) -> Value {
    json!({ "target": "api", "checks": checks, "ready_timeout": "2m" })
}

/// A member system in small: login gives a cookie and a token, and everything else needs both.
fn members(request: &Request) -> Reply {
    let marked = |reply: Reply| reply.header("X-Run", "run-7");
    let allowed = request.header("cookie") == Some("session=c1")
        && request.header("authorization") == Some("Bearer t 1");
    marked(match (request.method.as_str(), request.path.as_str()) {
        ("POST", "/login") if request.body == "password=s3cret%26word&user=demo" => {
            reply(200, r#"{"token": "t 1", "id": 42}"#).header("Set-Cookie", "session=c1; Path=/")
        }
        ("POST", "/login") => reply(401, "no"),
        ("GET", "/members/42?q=t%201") if allowed => reply(200, r#"{"members": [{"id": 42}]}"#),
        ("POST", "/approve") if allowed && request.body == r#"{"id":42,"note":"for t 1"}"# => reply(204, ""),
        ("GET", "/old") => reply(302, "").header("Location", "/new"),
        ("GET", "/new") => reply(200, "arrived"),
        ("GET", "/away") => reply(302, "").header("Location", "http://localhost:1/elsewhere?token=x"),
        _ => reply(403, "forbidden"),
    })
}

fn flow() -> Value {
    json!([
        { "name": "login", "post": "/login", "form": { "user": "demo", "password": { "secret": "demo_password" } },
          "capture": { "token": "json.token", "id": "json.id" }, "expect": ["status == 200"] },
        { "name": "search", "get": "/members/${id}?q=${token}", "headers": { "Authorization": "Bearer ${token}" },
          "expect": ["json.members | length == 1", "json.members[0].id == captured.id", "elapsed_ms < 120000"] },
        { "name": "approve", "post": "/approve", "headers": { "Authorization": "Bearer ${token}" },
          "json": { "id": "${id}", "note": "for ${token}" }, "expect": ["status == 204"] },
    ])
}

#[tokio::test]
async fn a_flow_keeps_cookies_and_uses_what_it_captured() {
    let web = Web::start(members).await;
    let mut with = smoke(flow());
    with["passes"] = json!(2);
    let done = rig(&web.url("")).run("http.smoke", with).await.unwrap();
    assert_eq!((done.outputs["passes"].clone(), done.outputs["checks"].clone()), (json!(2), json!(5)));
    assert_eq!(web.requests().len(), 6, "the whole flow twice");
    assert!(done.checks.iter().all(|check| check.passed));
    assert!(done.facts["login"].starts_with("status 200 in"), "{:?}", done.facts);
}

#[tokio::test]
async fn a_wrong_answer_fails_at_once_with_what_was_found() {
    let web = Web::start(members).await;
    let checks =
        json!([{ "name": "closed", "get": "/members/1", "expect": ["status == 200", "body == 'x'"] }]);
    let error = rig(&web.url("")).run("http.smoke", smoke(checks)).await.unwrap_err();
    assert_eq!((error.kind, error.code.id), (FailureKind::Permanent, "LB1601"));
    assert_eq!(error.checks.len(), 2);
    assert!(error.message.contains("status = 403") && error.causes[1].contains("forbidden"), "{error:?}");
    assert_eq!(web.requests().len(), 1, "it is not asked again");
}

/// What tests rely on that start a server, or that want nobody there.
#[test]
fn a_port_of_a_test_is_nobody_elses() {
    use std::net::{TcpListener, TcpStream};
    let port = closed_port();
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
    let others: Vec<_> = (0..200).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    assert!(others.iter().all(|other| other.local_addr().unwrap().port() != port));
    let server = TcpListener::bind(("127.0.0.1", port)).unwrap();
    TcpStream::connect(("127.0.0.1", port)).unwrap();
    drop(server);
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
}

#[tokio::test]
async fn what_is_not_up_yet_is_waited_for() {
    let port = closed_port();
    let rig = rig(&format!("http://127.0.0.1:{port}"));
    let asked = AtomicU32::new(0);
    let answer = move |_: &Request| match asked.fetch_add(1, Ordering::SeqCst) {
        0 => reply(503, "starting"),
        1 => reply(502, "bad gateway"),
        _ => reply(200, "up"),
    };
    let late = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(400)).await;
        Web::start_at(&format!("127.0.0.1:{port}"), answer).await
    });
    let checks = json!([{ "name": "health", "get": "/health", "expect": ["body == 'up'"] }]);
    let done = rig.run("http.smoke", smoke(checks)).await.unwrap();
    assert_eq!(done.outputs["passes"], json!(1));
    assert_eq!(late.await.unwrap().requests().len(), 3);
}

#[tokio::test]
async fn what_never_comes_up_says_so() {
    let rig = rig(&format!("http://127.0.0.1:{}", closed_port()));
    let mut with = smoke(json!([{ "name": "health", "get": "/" }]));
    with["ready_timeout"] = json!("600ms");
    let error = rig.run("http.smoke", with).await.unwrap_err();
    assert_eq!((error.kind, error.code.id), (FailureKind::Transient, "LB1602"));
    assert!(error.message.contains("refused"), "{}", error.message);
}

#[tokio::test]
async fn a_failure_in_between_breaks_the_row() {
    let asked = AtomicU32::new(0);
    let web = Web::start(move |_| match asked.fetch_add(1, Ordering::SeqCst) {
        1 => reply(503, ""),
        _ => reply(200, ""),
    })
    .await;
    let mut with = smoke(json!([{ "name": "health", "get": "/" }]));
    with["passes"] = json!(2);
    rig(&web.url("")).run("http.smoke", with).await.unwrap();
    assert_eq!(web.requests().len(), 4, "good, bad, good, good");
}

#[tokio::test]
async fn the_instance_that_answers_must_be_the_restored_one() {
    let web = Web::start(members).await;
    let checks = json!([{ "name": "page", "get": "/new" }]);
    let with = |identity: Value| {
        let mut with = smoke(checks.clone());
        with["identity"] = identity;
        with
    };
    let rig = rig(&web.url(""));
    let done = rig.run("http.smoke", with(json!({ "header": "X-Run", "equals": "run-7" }))).await.unwrap();
    assert!(done.checks.iter().any(|check| check.name == "identity" && check.passed));
    let error =
        rig.run("http.smoke", with(json!({ "header": "X-Run", "equals": "run-8" }))).await.unwrap_err();
    assert_eq!(error.code.id, "LB1604");
    assert!(error.message.contains("run-7"), "{}", error.message);
    rig.run("http.smoke", with(json!({ "path": "/new", "equals": "arrived" }))).await.unwrap();
    let by_value = json!({ "path": "/new", "value": "body | upper", "equals": "GONE" });
    assert_eq!(rig.run("http.smoke", with(by_value)).await.unwrap_err().code.id, "LB1604");
}

#[tokio::test]
async fn redirects_are_followed_on_the_same_host_only() {
    let web = Web::start(members).await;
    let rig = rig(&web.url(""));
    let one = |check: Value| smoke(json!([check]));
    rig.run("http.smoke", one(json!({ "name": "old", "get": "/old", "expect": ["body == 'arrived'"] })))
        .await
        .unwrap();
    let plain = json!({ "name": "old", "get": "/old", "follow": false, "expect": ["status == 302"] });
    rig.run("http.smoke", one(plain)).await.unwrap();
    let away = json!({ "name": "away", "get": "/away", "expect": ["status == 302"] });
    let error = rig.run("http.smoke", one(away)).await.unwrap_err();
    assert_eq!(error.code.id, "LB1601");
    assert!(error.message.contains("localhost:1") && !error.message.contains("token"), "{}", error.message);
}

#[tokio::test]
async fn an_unknown_capture_is_an_error_before_anything_is_sent() {
    let web = Web::start(members).await;
    let checks = json!([{ "name": "search", "get": "/members/${id}" }]);
    let error = rig(&web.url("")).run("http.smoke", smoke(checks)).await.unwrap_err();
    assert_eq!(error.code.id, "LB1603");
    assert!(error.message.contains("${id}") && web.requests().is_empty(), "{}", error.message);
}

#[tokio::test]
async fn an_address_pins_the_instance() {
    let web = Web::start(members).await;
    let address = web.url("").trim_start_matches("http://").to_owned();
    let port = address.rsplit_once(':').unwrap().1.to_owned();
    let mut with = smoke(json!([{ "name": "page", "get": "/new" }]));
    with["address"] = json!(address);
    rig(&format!("http://members.invalid:{port}")).run("http.smoke", with).await.unwrap();
    assert_eq!(web.requests()[0].header("host"), Some(format!("members.invalid:{port}").as_str()));
}

#[tokio::test]
async fn waiting_and_single_requests() {
    let asked = AtomicU32::new(0);
    let web =
        Web::start(move |request| match (request.path.as_str(), asked.fetch_add(1, Ordering::SeqCst)) {
            ("/slow", 0..2) => reply(404, ""),
            ("/slow", _) => reply(200, ""),
            _ => reply(201, r#"{"made": 5}"#),
        })
        .await;
    let rig = rig(&web.url("/"));
    rig.run("http.wait", json!({ "target": "api", "path": "/slow" })).await.unwrap();
    assert_eq!(web.requests().len(), 3);
    let never =
        json!({ "target": "api", "path": "/x", "expect": ["json.made == 6"], "ready_timeout": "300ms" });
    assert_eq!(rig.run("http.wait", never).await.unwrap_err().code.id, "LB1602");
    let with =
        json!({ "target": "api", "post": "/things", "json": { "a": 1 }, "capture": { "n": "json.made" } });
    let done = rig.run("http.request", with).await.unwrap();
    assert_eq!(
        (done.outputs["status"].clone(), done.outputs["captured"].clone()),
        (json!(201), json!({ "n": 5 }))
    );
    let mut gone = rig;
    gone.set_resource("api", json!({ "kind": "http", "url": format!("http://127.0.0.1:{}", closed_port()) }));
    let error = gone.run("http.request", json!({ "target": "api", "get": "/" })).await.unwrap_err();
    assert_eq!(error.kind, FailureKind::Uncertain);
}

/// Serves over TLS with a certificate; returns the port. Ends with the test.
async fn serve_tls(pair: Pair) -> u16 {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let chain = vec![CertificateDer::from_pem_slice(pair.certificate.as_bytes()).expect("a certificate")];
    let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).expect("a key");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.expect("versions").with_no_client_auth().with_single_cert(chain, key).expect("fits");
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let port = listener.local_addr().expect("is bound").port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            stream.read_u8().await.ok();
            stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nup")
                .await
                .ok();
            // What is left unread when a connection is closed would take the answer with it.
            tokio::io::copy(&mut stream, &mut tokio::io::sink()).await.ok();
        }
    });
    port
}

/// Answers a handshake as servers in the clear do: they know no such request.
async fn no_tls() -> u16 {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let port = listener.local_addr().expect("is bound").port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            stream.read_u8().await.ok();
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await.ok();
            // What is left unread when a connection is closed would take the answer with it.
            tokio::io::copy(&mut stream, &mut tokio::io::sink()).await.ok();
        }
    });
    port
}

/// Where this is set, the test is the one that trusts the authority in SSL_CERT_FILE.
const TRUSTING: &str = "LIFEBOAT_TEST_TRUSTING";

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_checked_and_what_is_wrong_with_them_is_told_at_once() {
    let with = || {
        let mut with = smoke(json!([{ "name": "up", "get": "/", "expect": ["body == 'up'"] }]));
        with["ready_timeout"] = json!("10h");
        with
    };
    if let Ok(url) = std::env::var(TRUSTING) {
        rig(&url).run("http.smoke", with()).await.expect("its authority is trusted");
        return;
    }
    let authority = Authority::new("Shop authority");
    let dir = tempfile::tempdir().expect("a directory");
    let trusted = authority.file(dir.path(), "ca.pem");
    let good = Says { common_name: "shop", names: &["localhost"], until: None };
    let port = serve_tls(authority.sign(good)).await;
    // Who trusts whom is read when a program starts.
    let trusting = async |url: String, expected: bool| {
        let name = "certificates_are_checked_and_what_is_wrong_with_them_is_told_at_once";
        let mut test = tokio::process::Command::new(std::env::current_exe().expect("this program"));
        test.args(["--exact", name, "--nocapture"]).env(TRUSTING, url).env("SSL_CERT_FILE", &trusted);
        let output = test.output().await.expect("starts");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let said = said + &String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.success(), expected, "{said}");
        said
    };
    let said = trusting(format!("https://localhost:{port}"), true).await;
    assert!(said.contains("1 passed"), "{said}");

    let told = |error: &lifeboat_engine::step::StepError, help: &str| {
        assert_eq!((error.kind, error.code.id), (FailureKind::Permanent, "LB1601"), "{error}");
        assert!(error.help.as_deref().unwrap_or_default().contains(help), "{error:?}");
    };
    let url = format!("https://localhost:{port}");
    let stranger = rig(&url).run("http.smoke", with()).await.expect_err("nobody knows who has signed it");
    told(&stranger, "SSL_CERT_FILE");
    let clear = format!("https://localhost:{}", no_tls().await);
    told(&rig(&clear).run("http.smoke", with()).await.expect_err("it speaks no TLS"), "`http://`");

    let said = trusting(format!("https://127.0.0.1:{port}"), false).await;
    assert!(said.contains("LB1601") && said.contains("a name that is in the certificate"), "{said}");
    let late = Says { until: Some((2021, 3, 1)), ..good };
    let late = serve_tls(authority.sign(late)).await;
    let said = trusting(format!("https://localhost:{late}"), false).await;
    assert!(said.contains("LB1601") && said.contains("renew the certificate"), "{said}");
}
