//! Connections over TLS, with certificates that are made here.

use lifeboat_engine::secret::SecretRef;
use lifeboat_engine::step::StepError;
use serde_json::{Value, json};

use crate::support::backup::TestStore;
use crate::support::certs::{Authority, Pair, Says, written};
use crate::support::redis::Redis;
use crate::support::rig::Rig;
use crate::support::web::closed_port;

const PASSWORD: &str = "s3cret word";

/// A server that listens on the loopback, in the clear and over TLS.
struct Secured {
    server: Redis,
    authority: Authority,
    files: tempfile::TempDir,
    port: u16,
}

impl Secured {
    /// Starts a server; `clients` is what it wants of their certificates.
    fn start(clients: &str, pair: impl FnOnce(&Authority) -> Pair) -> Self {
        let files = tempfile::Builder::new().prefix("lb-tls-").tempdir().expect("a directory");
        let authority = Authority::new("Shop authority");
        let ca = authority.file(files.path(), "ca.pem");
        let pair = pair(&authority);
        let certificate = written(files.path(), "server.pem", &pair.certificate);
        let key = written(files.path(), "server.key", &pair.key);
        let port = closed_port();
        let [ca, certificate, key] = [ca, certificate, key].map(|path| path.display().to_string());
        let port_word = port.to_string();
        let server = Redis::start(
            &files.path().join("data"),
            &[
                "--requirepass",
                PASSWORD,
                "--tls-port",
                &port_word,
                "--tls-cert-file",
                &certificate,
                "--tls-key-file",
                &key,
                "--tls-ca-cert-file",
                &ca,
                "--tls-auth-clients",
                clients,
            ],
        );
        Self { server, authority, files, port }
    }

    fn trusted(&self) -> Value {
        json!({ "ca_file": self.files.path().join("ca.pem") })
    }

    fn resource(&self, host: &str, tls: Value) -> Value {
        let url = format!("rediss://{host}:{}", self.port);
        let mut resource = json!({ "kind": "redis", "url": url, "password": { "env": "PW" } });
        if !tls.is_null() {
            resource["tls"] = tls;
        }
        resource
    }

    /// Asks for how many keys there are.
    async fn keys(&self, host: &str, tls: Value) -> Result<Value, StepError> {
        keys(self.resource(host, tls)).await
    }

    async fn refused(&self, host: &str, tls: Value) -> StepError {
        self.keys(host, tls).await.expect_err("must be refused")
    }

    fn fill(&self) {
        let mut clear = crate::support::redis::connect(self.server.port, Some(PASSWORD));
        for number in 0..100 {
            redis::cmd("SET").arg(format!("key {number}")).arg("value").exec(&mut clear).expect("is set");
        }
    }
}

fn rig() -> Rig {
    Rig::drill().secret(SecretRef::Env("PW".into()), PASSWORD)
}

async fn keys(resource: Value) -> Result<Value, StepError> {
    let rig = rig().resource_from("cache", resource);
    let done = rig.run("redis.query", json!({ "server": "cache", "command": ["DBSIZE"] })).await?;
    Ok(done.outputs["result"].clone())
}

fn assert_tells(error: &StepError, code: &str, words: &[&str]) {
    assert_eq!(error.code.id, code, "{error}");
    assert!(error.help.as_ref().is_some_and(|help| !help.is_empty()), "{error}");
    for word in words {
        assert!(error.message.contains(word), "`{word}` is not in: {}", error.message);
    }
    assert!(!format!("{error:?}").contains(PASSWORD));
}

/// Answers like a Redis in the clear, which takes a handshake for a command that it does not know as soon as a line ends in
/// it: by chance, so that no real server is asked.
fn no_tls() -> u16 {
    use std::io::{Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("is bound").port();
    std::thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            client.read_exact(&mut [0; 1]).ok();
            client.write_all(b"-ERR unknown command\r\n").ok();
            // What is left unread when a connection is closed would take the answer with it.
            std::io::copy(&mut client, &mut std::io::sink()).ok();
        }
    });
    port
}

fn of_localhost(authority: &Authority) -> Pair {
    authority.sign(Says { common_name: "cache.example.org", names: &["localhost"], until: None })
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_checked_as_far_as_the_mode_says() {
    let server = Secured::start("no", of_localhost);
    server.fill();
    assert_eq!(server.keys("localhost", server.trusted()).await.expect("is for localhost"), json!(100));
    assert_tells(
        &server.refused("127.0.0.1", server.trusted()).await,
        "LB1901",
        &["127.0.0.1", "it is for localhost"],
    );
    let mut authority_alone = server.trusted();
    authority_alone["mode"] = json!("verify-ca");
    assert_eq!(server.keys("127.0.0.1", authority_alone).await.expect("no name is checked"), json!(100));
    assert_eq!(server.keys("127.0.0.1", json!({ "mode": "require" })).await.expect("nothing is"), json!(100));
    let stranger = Authority::new("Somebody else").file(server.files.path(), "stranger.pem");
    let unknown = server.refused("localhost", json!({ "ca_file": stranger })).await;
    assert_tells(&unknown, "LB1902", &["CN=Shop authority", "stranger.pem"]);
    assert_tells(&server.refused("localhost", Value::Null).await, "LB1902", &["CN=Shop authority"]);

    let error = keys(json!({ "kind": "redis", "url": format!("rediss://localhost:{}", no_tls()) })).await;
    assert_tells(&error.expect_err("is no TLS"), "LB1903", &["localhost"]);
    // A real one waits for the rest of the line, without a word.
    let clear = format!("rediss://localhost:{}", server.server.port);
    let error = keys(json!({ "kind": "redis", "url": clear, "password": { "env": "PW" } })).await;
    assert_tells(&error.expect_err("is no TLS"), "LB1903", &["localhost", "in the clear"]);
    let of_tls = json!({ "kind": "redis", "url": format!("redis://localhost:{}", server.port), "password": { "env": "PW" } });
    let cut = keys(of_tls).await.expect_err("is TLS");
    assert!(cut.code.id == "LB1301" && cut.help.as_ref().unwrap().contains("rediss"), "{cut:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_has_expired_is_told() {
    let late = Says { common_name: "cache.example.org", names: &["localhost"], until: Some((2021, 3, 1)) };
    let server = Secured::start("no", |authority| authority.sign(late));
    let error = server.refused("localhost", server.trusted()).await;
    assert_tells(&error, "LB1900", &["CN=cache.example.org", "2021-03-01T00:00:00Z"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_fetched_over_tls_from_a_server_that_wants_a_certificate() {
    let server = Secured::start("yes", of_localhost);
    server.fill();
    assert_tells(
        &server.refused("localhost", server.trusted()).await,
        "LB1905",
        &["localhost", "client certificate"],
    );
    let client = server.authority.sign(Says { common_name: "lifeboat", ..Says::default() });
    let mut tls = server.trusted();
    tls["cert_file"] = json!(written(server.files.path(), "client.pem", &client.certificate));
    tls["key_file"] = json!(written(server.files.path(), "client.key", &client.key));
    // As on another machine, its files cannot be read.
    let mut clear = crate::support::redis::connect(server.server.port, Some(PASSWORD));
    redis::cmd("CONFIG").arg(&["SET", "port", "0"]).exec(&mut clear).expect("only TLS is left");
    let store = TestStore::make();
    let rig =
        rig().resource("backups", store.system()).resource_from("cache", server.resource("localhost", tls));
    let done =
        rig.run("redis.snapshot", json!({ "server": "cache", "store": "backups" })).await.expect("fetched");
    assert_eq!(done.outputs["keys"], json!(100));
    let strange = Authority::new("Somebody else").sign(Says { common_name: "lifeboat", ..Says::default() });
    let mut tls = server.trusted();
    tls["cert_file"] = json!(written(server.files.path(), "strange.pem", &strange.certificate));
    tls["key_file"] = json!(written(server.files.path(), "strange.key", &strange.key));
    assert_tells(&server.refused("localhost", tls).await, "LB1905", &["strange.pem"]);
}
