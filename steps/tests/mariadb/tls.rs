//! Connections over TLS, with certificates that are made here.

use std::path::Path;

use lifeboat_engine::secret::SecretRef;
use lifeboat_engine::step::StepError;
use serde_json::{Value, json};

use crate::support::backup::TestStore;
use crate::support::certs::{Authority, Pair, Says, written};
use crate::support::mariadb::{Mariadb, open_to_server};
use crate::support::rig::Rig;
use crate::support::web::closed_port;

const PASSWORD: &str = "it's #1";

/// A server that listens on the loopback and shows a certificate of an authority.
struct Secured {
    server: Mariadb,
    authority: Authority,
    files: tempfile::TempDir,
    port: u16,
}

impl Secured {
    fn start(pair: impl FnOnce(&Authority) -> Pair) -> Self {
        let files = tempfile::Builder::new().prefix("lb-tls-").tempdir().expect("a directory");
        let authority = Authority::new("Shop authority");
        authority.file(files.path(), "ca.pem");
        let mut server = Mariadb::start(&files.path().join("db"), 1);
        open_to_server(files.path());
        server.try_sql(&format!(
            "create user ann@'%' identified by {0:?} require ssl; grant all on *.* to ann@'%' with grant option; \
             create user eve@'%' identified by {0:?} require x509; create user bob@'%' identified by {0:?}",
            PASSWORD
        ))
        .expect("accounts");
        server.down();
        let mut secured = Self { server, port: closed_port(), files, authority };
        let pair = pair(&secured.authority);
        secured.serve(Some(&pair));
        secured
    }

    /// Starts the server with a certificate, or without TLS.
    fn serve(&mut self, pair: Option<&Pair>) {
        self.server.down();
        let settings = match pair {
            None => vec!["--skip-ssl".to_owned()],
            Some(pair) => {
                let file = |name: &str, text: &str| {
                    let path = written(&self.server.dir, name, text);
                    open_file(&path);
                    path.display().to_string()
                };
                vec![
                    format!("--ssl-cert={}", file("server.pem", &pair.certificate)),
                    format!("--ssl-key={}", file("server.key", &pair.key)),
                    format!("--ssl-ca={}", file("ca.pem", &self.authority.certificate)),
                ]
            }
        };
        let network = [
            "--skip-networking=0".to_owned(),
            "--bind-address=127.0.0.1".to_owned(),
            format!("--port={}", self.port),
        ];
        let all: Vec<_> = network.iter().chain(&settings).map(String::as_str).collect();
        self.server.up(&all);
    }

    /// The server as another machine has it: by its host alone.
    fn resource(&self, (user, host): (&str, &str), tls: Value) -> Value {
        let mut resource = json!({
            "kind": "mariadb", "host": host, "port": self.port, "user": user, "password": { "env": "PW" },
        });
        if !tls.is_null() {
            resource["tls"] = tls;
        }
        resource
    }

    fn trusted(&self) -> Value {
        json!({ "ca_file": self.files.path().join("ca.pem") })
    }

    /// Returns the cipher of a connection, nothing for one in the clear.
    async fn cipher(&self, who: (&str, &str), tls: Value) -> Result<String, StepError> {
        let rig = rig().resource_from("db", self.resource(who, tls));
        let sql = "select variable_value as cipher from information_schema.session_status where variable_name = 'SSL_CIPHER'";
        let done = rig.run("mariadb.query", json!({ "server": "db", "sql": sql })).await?;
        Ok(done.outputs["rows"][0]["cipher"].as_str().unwrap_or_default().to_owned())
    }

    async fn refused(&self, host: &str, tls: Value) -> StepError {
        self.cipher(("ann", host), tls).await.expect_err("must be refused")
    }
}

fn open_file(path: &Path) {
    if let Some((uid, gid)) = crate::support::mariadb::mysql_user() {
        std::os::unix::fs::chown(path, Some(uid), Some(gid)).expect("root may give things away");
    }
}

fn rig() -> Rig {
    Rig::drill().secret(SecretRef::Env("PW".into()), PASSWORD)
}

fn assert_tells(error: &StepError, code: &str, words: &[&str]) {
    assert_eq!(error.code.id, code, "{error}");
    assert!(error.help.as_ref().is_some_and(|help| !help.is_empty()), "{error}");
    for word in words {
        assert!(error.message.contains(word), "`{word}` is not in: {}", error.message);
    }
    assert!(!format!("{error:?}").contains(PASSWORD));
}

fn of_localhost(authority: &Authority) -> Pair {
    authority.sign(Says {
        common_name: "db.example.org",
        names: &["localhost", "db.example.org"],
        until: None,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_checked_as_far_as_the_mode_says() {
    let mut server = Secured::start(of_localhost);
    let ann = |host| ("ann", host);
    assert_ne!(server.cipher(ann("localhost"), server.trusted()).await.expect("is for localhost"), "");
    let wrong = server.refused("127.0.0.1", server.trusted()).await;
    assert_tells(&wrong, "LB1901", &["127.0.0.1", "localhost, db.example.org"]);
    let mut authority_alone = server.trusted();
    authority_alone["mode"] = json!("verify-ca");
    assert_ne!(
        server.cipher(ann("127.0.0.1"), authority_alone.clone()).await.expect("no name is checked"),
        ""
    );
    assert_ne!(
        server.cipher(ann("127.0.0.1"), json!({ "mode": "require" })).await.expect("nothing is checked"),
        ""
    );

    let stranger = Authority::new("Somebody else").file(server.files.path(), "stranger.pem");
    for mode in ["verify-full", "verify-ca"] {
        let unknown = server.refused("localhost", json!({ "mode": mode, "ca_file": stranger })).await;
        assert_tells(&unknown, "LB1902", &["localhost", "stranger.pem"]);
    }
    // As MariaDB's programs are used for `verify-ca`: they look at no name, and at the authority all the same.
    let own = |ca: &Path| {
        let ca = format!("--ssl-ca={}", ca.display());
        let port = format!("--port={}", server.port);
        let words = [
            "--no-defaults",
            "--protocol=tcp",
            "--host=127.0.0.1",
            "--user=ann",
            "--ssl=1",
            "--ssl-verify-server-cert=0",
        ];
        let mut client = std::process::Command::new("mariadb");
        client.args(words).args([&ca, &port]).args(["-e", "select 1"]).env("MYSQL_PWD", PASSWORD);
        client.output().expect("mariadb starts").status.success()
    };
    assert_eq!((own(&server.files.path().join("ca.pem")), own(&stranger)), (true, false));
    assert_tells(&server.refused("localhost", json!({})).await, "LB1902", &["localhost"]);
    assert_tells(
        &server.refused("localhost", json!({ "ca_file": "/nowhere/ca.pem" })).await,
        "LB1906",
        &["/nowhere/ca.pem"],
    );

    // The server does not say that TLS is what is missing.
    let clear = server.refused("localhost", json!({ "mode": "disable" })).await;
    assert_tells(&clear, "LB2001", &["the connection had no TLS"]);
    server.server.try_sql("set global require_secure_transport = on").expect("a setting");
    let demanded = server.cipher(("bob", "localhost"), Value::Null).await.expect_err("wants TLS");
    assert_tells(&demanded, "LB2001", &["the connection had no TLS"]);

    server.serve(None);
    for tls in [json!({ "mode": "require" }), server.trusted()] {
        assert_tells(&server.refused("localhost", tls).await, "LB1903", &["localhost", "in the clear"]);
    }
    let late = Says { common_name: "db.example.org", names: &["localhost"], until: Some((2021, 3, 1)) };
    let late = server.authority.sign(late);
    server.serve(Some(&late));
    assert_tells(&server.refused("localhost", server.trusted()).await, "LB1900", &["2021-03-01T00:00:00Z"]);
    assert_tells(&server.refused("localhost", authority_alone).await, "LB1900", &["2021-03-01T00:00:00Z"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_check_what_is_checked_here_and_show_the_clients_certificate() {
    let server = Secured::start(of_localhost);
    server.server.try_sql("grant all on *.* to eve@'%' with grant option").expect("rights");
    server
        .server
        .try_sql("create database shop; use shop; create table goods as select seq as id from seq_1_to_100")
        .expect("rows");
    let none = server.cipher(("eve", "localhost"), server.trusted()).await.expect_err("wants a certificate");
    assert_tells(&none, "LB2001", &["no client certificate was shown"]);

    let client = server.authority.sign(Says { common_name: "lifeboat", ..Says::default() });
    let mut tls = server.trusted();
    tls["cert_file"] = json!(written(server.files.path(), "client.pem", &client.certificate));
    tls["key_file"] = json!(written(server.files.path(), "client.key", &client.key));
    let store = TestStore::make();
    let mut rig = rig().resource("backups", store.system());
    rig.set_resource("db", server.resource(("eve", "localhost"), tls));
    rig.run("mariadb.dump", json!({ "server": "db", "store": "backups", "databases": ["shop"] }))
        .await
        .expect("dumps");
    server.server.try_sql("drop database shop").expect("dropped");
    rig.run("mariadb.restore_dump", json!({ "server": "db", "store": "backups" })).await.expect("restores");
    assert_eq!(server.server.try_sql("select count(*) from shop.goods").expect("counts"), "100");
}
