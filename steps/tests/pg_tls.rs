//! Connections over TLS to a real server, whose certificates are made here. What holds for another machine is said of this one:
//! servers of tests listen on the loopback.

pub mod support;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lifeboat_engine::resource::{Postgres, System};
use lifeboat_engine::secret::SecretRef;
use lifeboat_engine::step::StepError;
use lifeboat_steps::postgres::connect::{Client, Login};
use serde_json::{Value, json};
use support::backup::TestStore;
use support::certs::{Authority, Pair, Says, self_signed, written};
use support::postgres::{Cluster, Options, bare};
use support::rig::Rig;

const LIMIT: Duration = Duration::from_secs(240);
const PASSWORD: &str = "a b:c\\d";
/// Nobody comes in without TLS, but over the socket.
const ONLY_TLS: &str = "local all all scram-sha-256\n\
    hostssl all all 127.0.0.1/32 scram-sha-256\nhostssl replication all 127.0.0.1/32 scram-sha-256\n";

/// A server with TLS, its authority, and files of the client.
struct Secured {
    cluster: Cluster,
    authority: Authority,
    files: tempfile::TempDir,
}

impl Secured {
    fn start() -> Self {
        let cluster = Cluster::start(&Options { password: Some(PASSWORD.into()), ..Options::default() });
        let files = tempfile::Builder::new().prefix("lb-tls-").tempdir().expect("a directory");
        let secured = Self { cluster, authority: Authority::new("Shop authority"), files };
        secured.authority.file(secured.files.path(), "ca.pem");
        secured
    }

    /// Lets the server start again with a certificate and rules for who comes in.
    fn serve(&self, pair: &Pair, hba: &str) {
        let dir = &self.cluster.data_dir;
        let own = |name: &str, text: &str| self.cluster.place().own(&written(dir, name, text));
        own("server.crt", &pair.certificate);
        own("server.key", &pair.key);
        own("root.crt", &self.authority.certificate);
        own("pg_hba.conf", hba);
        self.configure("ssl = on\nssl_ca_file = 'root.crt'\n");
    }

    /// Lets the server start again with more settings.
    fn configure(&self, settings: &str) {
        let file = self.cluster.data_dir.join("postgresql.conf");
        let text = std::fs::read_to_string(&file).expect("the configuration") + settings;
        std::fs::write(&file, text).expect("the configuration");
        self.cluster.stop("fast");
        self.cluster.start_server();
    }

    fn sign(&self, names: &[&str]) -> Pair {
        self.authority.sign(Says { common_name: "db.example.org", names, until: None })
    }

    fn file(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    /// The server as another machine has it: by its host alone.
    fn resource(&self, host: &str, tls: Value) -> Postgres {
        Postgres {
            host: Some(host.to_owned()),
            port: self.cluster.port,
            password: Some(password()),
            bin_dir: Some(self.cluster.place().tools.bin_dir.clone()),
            tls: serde_json::from_value(tls).expect("settings of TLS"),
            ..bare()
        }
    }

    fn trusted(&self) -> Value {
        json!({ "ca_file": self.file("ca.pem") })
    }

    async fn connect(&self, host: &str, tls: Value) -> Result<Client, StepError> {
        connect(&self.resource(host, tls)).await
    }

    async fn refused(&self, host: &str, tls: Value) -> StepError {
        self.connect(host, tls).await.expect_err("must be refused")
    }
}

fn password() -> SecretRef {
    SecretRef::Env("PG_TEST_PASSWORD".into())
}

fn rig() -> Rig {
    Rig::drill().secret(password(), PASSWORD)
}

async fn connect(resource: &Postgres) -> Result<Client, StepError> {
    let rig = rig();
    Ok(Login::of(&rig.bare_context(), resource).expect("a login").connect().await?)
}

async fn over_tls(client: &Client) -> bool {
    let sql = "select ssl from pg_stat_ssl where pid = pg_backend_pid()";
    client.query_one(sql, &[], LIMIT).await.expect("one row").get(0)
}

/// An error names the server, has a remedy, and says nothing secret.
fn assert_tells(error: &StepError, code: &str, words: &[&str]) {
    assert_eq!(error.code.id, code, "{error}");
    assert!(error.help.as_ref().is_some_and(|help| !help.is_empty()), "{error}");
    for word in words {
        assert!(error.message.contains(word), "`{word}` is not in: {}", error.message);
    }
    assert!(!format!("{error:?}").contains(PASSWORD));
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_checked_as_far_as_the_mode_says() {
    let server = Secured::start();
    server.serve(&server.sign(&["localhost", "db.example.org"]), ONLY_TLS);

    let client =
        server.connect("localhost", server.trusted()).await.expect("the certificate is for localhost");
    assert!(over_tls(&client).await);

    let wrong = server.refused("127.0.0.1", server.trusted()).await;
    assert_tells(&wrong, "LB1901", &["127.0.0.1", "localhost, db.example.org"]);
    let mut authority_alone = server.trusted();
    authority_alone["mode"] = json!("verify-ca");
    assert!(
        over_tls(&server.connect("127.0.0.1", authority_alone.clone()).await.expect("no name is checked"))
            .await
    );

    let stranger = Authority::new("Somebody else").file(server.files.path(), "stranger.pem");
    for mode in ["verify-full", "verify-ca"] {
        let unknown = server.refused("localhost", json!({ "mode": mode, "ca_file": stranger })).await;
        assert_tells(&unknown, "LB1902", &["CN=db.example.org", "CN=Shop authority", "stranger.pem"]);
    }
    let unknown = server.refused("localhost", json!({})).await;
    assert_tells(&unknown, "LB1902", &["localhost", "CN=Shop authority"]);
    let unchecked = server.connect("127.0.0.1", json!({ "mode": "require" })).await;
    assert!(over_tls(&unchecked.expect("nothing is checked")).await);

    let clear = server.refused("localhost", json!({ "mode": "disable" })).await;
    assert_tells(&clear, "LB1904", &["localhost", "no pg_hba.conf entry"]);
    let here = server.refused("localhost", Value::Null).await;
    assert_tells(&here, "LB1904", &["localhost"]);

    let missing = server.refused("localhost", json!({ "ca_file": server.file("none.pem") })).await;
    assert_tells(&missing, "LB1906", &["none.pem (ca_file)"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_that_nobody_should_trust_are_told_apart() {
    let server = Secured::start();
    let expired = Says { common_name: "db.example.org", names: &["localhost"], until: Some((2021, 3, 1)) };
    server.serve(&server.authority.sign(expired), ONLY_TLS);
    for mode in ["verify-full", "verify-ca"] {
        let mut tls = server.trusted();
        tls["mode"] = json!(mode);
        let late = server.refused("localhost", tls).await;
        assert_tells(&late, "LB1900", &["CN=db.example.org", "localhost", "2021-03-01T00:00:00Z"]);
    }

    server.serve(&server.sign(&[]), ONLY_TLS);
    let nameless = server.refused("localhost", server.trusted()).await;
    assert_tells(&nameless, "LB1901", &["subjectAltName", "CN=db.example.org"]);

    let own = self_signed(Says { common_name: "localhost", names: &["localhost"], until: None });
    server.serve(&own, ONLY_TLS);
    let unknown = server.refused("localhost", server.trusted()).await;
    assert_tells(&unknown, "LB1902", &["`CN=localhost` has signed itself"]);
    let pinned = json!({ "ca_file": written(server.files.path(), "own.pem", &own.certificate) });
    assert!(
        over_tls(&server.connect("localhost", pinned.clone()).await.expect("trusted as it stands")).await
    );
    assert_tells(&server.refused("127.0.0.1", pinned).await, "LB1901", &["it is for localhost"]);
    let late = Says { until: Some((2021, 3, 1)), common_name: "localhost", names: &["localhost"] };
    let late = self_signed(late);
    server.serve(&late, ONLY_TLS);
    let pinned = json!({ "ca_file": written(server.files.path(), "own.pem", &late.certificate) });
    assert_tells(&server.refused("localhost", pinned).await, "LB1900", &["2021-03-01"]);

    server.configure("ssl = off\n");
    for tls in [json!({ "mode": "require" }), server.trusted()] {
        let none = server.refused("localhost", tls).await;
        assert_tells(&none, "LB1903", &["localhost", "in the clear"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_wants_a_certificate_of_the_client_gets_it() {
    let server = Secured::start();
    let hba = "local all all scram-sha-256\nhostssl all all 127.0.0.1/32 cert\n";
    server.serve(&server.sign(&["localhost"]), hba);
    let tls = |name: &str, pair: &Pair| {
        let mut tls = server.trusted();
        tls["cert_file"] = json!(written(server.files.path(), &format!("{name}.pem"), &pair.certificate));
        tls["key_file"] = json!(written(server.files.path(), &format!("{name}.key"), &pair.key));
        tls
    };
    let none = server.refused("localhost", server.trusted()).await;
    assert_tells(&none, "LB1905", &["localhost", "valid client certificate"]);

    let own = server.authority.sign(Says { common_name: "postgres", ..Says::default() });
    assert!(
        over_tls(&server.connect("localhost", tls("client", &own)).await.expect("the role's certificate"))
            .await
    );

    let strange = Authority::new("Somebody else").sign(Says { common_name: "postgres", ..Says::default() });
    let refused = server.refused("localhost", tls("strange", &strange)).await;
    assert_tells(&refused, "LB1905", &["strange.pem"]);
    let other = Pair { key: strange.key, ..own };
    let halves = server.refused("localhost", tls("halves", &other)).await;
    assert_tells(&halves, "LB1906", &["cert_file", "key_file"]);
}

/// Passes connections on, and keeps the first eight bytes of each.
fn listen_in(port: u16) -> (u16, Arc<Mutex<Vec<[u8; 8]>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let own = listener.local_addr().expect("is bound").port();
    let heard: Arc<Mutex<Vec<[u8; 8]>>> = Arc::default();
    let hears = Arc::clone(&heard);
    std::thread::spawn(move || {
        for mut near in listener.incoming().flatten() {
            let hears = Arc::clone(&hears);
            std::thread::spawn(move || -> std::io::Result<()> {
                let mut first = [0; 8];
                near.read_exact(&mut first)?;
                hears.lock().expect("nobody panics with it").push(first);
                let mut far = TcpStream::connect(("127.0.0.1", port))?;
                far.write_all(&first)?;
                let (mut from, mut to) = (far.try_clone()?, near.try_clone()?);
                std::thread::spawn(move || std::io::copy(&mut from, &mut to));
                std::io::copy(&mut near, &mut far)?;
                far.shutdown(std::net::Shutdown::Write)
            });
        }
    });
    (own, heard)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_to_cancel_goes_over_tls_too() {
    /// Length 8, then the code of `SSLRequest`.
    const ASKS_FOR_TLS: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];
    let server = Secured::start();
    server.serve(&server.sign(&["localhost"]), ONLY_TLS);
    let (port, heard) = listen_in(server.cluster.port);
    let resource = Postgres { port, ..server.resource("localhost", server.trusted()) };
    let client = connect(&resource).await.expect("connects");
    let late =
        client.query("select pg_sleep(3600)", &[], Duration::from_millis(500)).await.expect_err("late");
    assert_eq!(StepError::from(late).code.id, "LB1243");
    support::postgres::wait_until("the statement is gone", || {
        let sql = "select count(*) from pg_stat_activity where query like 'select pg_sleep(3600)%' and state = 'active'";
        server.cluster.sql(sql) == "0"
    });
    assert_eq!(*heard.lock().unwrap(), [ASKS_FOR_TLS; 2], "the login and the request to cancel");
}

/// Makes a directory of programs that write down which settings of TLS they were given, and then run.
fn telling_programs(dir: &Path, real: &Path, told: &Path) -> PathBuf {
    let programs = dir.join("programs");
    std::fs::create_dir(&programs).expect("a directory");
    for name in [
        "postgres",
        "pg_dump",
        "pg_restore",
        "pg_dumpall",
        "pg_basebackup",
        "pg_verifybackup",
        "pg_amcheck",
        "pg_controldata",
        "pg_waldump",
    ] {
        let script = format!(
            "#!/bin/sh\n[ -z \"$PGSSLMODE\" ] || echo \"{name} $PGSSLMODE $PGSSLROOTCERT $PGSSLCERT $PGSSLKEY $PGGSSENCMODE\" >> {}\nexec {} \"$@\"\n",
            told.display(),
            real.join(name).display()
        );
        let path = programs.join(name);
        std::fs::write(&path, script).expect("a script");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("our own file");
    }
    programs
}

#[tokio::test(flavor = "multi_thread")]
async fn kinds_that_talk_to_a_server_work_over_tls_and_its_programs_check_the_same() {
    let server = Secured::start();
    // The programs are let in by the certificate that they are given, and by no other.
    let hba = "local all all scram-sha-256\n\
        hostssl all all 127.0.0.1/32 cert\nhostssl replication all 127.0.0.1/32 cert\n";
    server.serve(&server.sign(&["localhost"]), hba);
    let client = server.authority.sign(Says { common_name: "postgres", ..Says::default() });
    let mut tls = server.trusted();
    tls["cert_file"] = json!(written(server.files.path(), "client.pem", &client.certificate));
    tls["key_file"] = json!(written(server.files.path(), "client.key", &client.key));
    let told = server.file("told");
    let real = &server.cluster.place().tools.bin_dir;
    let bin_dir = Some(telling_programs(server.files.path(), real, &told));
    let remote = Postgres { bin_dir, password: None, ..server.resource("localhost", tls) };
    let store = TestStore::make();
    let rig = rig().resource("db", System::Postgres(remote)).resource("backups", store.system());

    let with = |more: Value| {
        let mut with = json!({ "cluster": "db" });
        with.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        with
    };
    rig.run("postgres.create_database", with(json!({ "database": "shop" }))).await.expect("creates");
    server.cluster.sql_in("shop", "create table goods as select n as id from generate_series(1, 100) n");
    let found = rig
        .run("postgres.query", with(json!({ "database": "shop", "sql": "select count(*) as n from goods" })));
    assert_eq!(found.await.expect("reads").outputs["rows"][0]["n"], json!(100));
    rig.run("postgres.dump", with(json!({ "database": "shop", "store": "backups" }))).await.expect("dumps");
    let into = with(json!({ "database": "again", "store": "backups" }));
    rig.run("postgres.restore_dump", into).await.expect("restores");
    assert_eq!(server.cluster.sql_in("again", "select count(*) from goods"), "100");
    rig.run("postgres.verify", with(json!({ "databases": ["shop"] }))).await.expect("verifies");
    rig.run("postgres.base_backup", with(json!({ "store": "backups", "archiving": "optional" })))
        .await
        .expect("backs up");

    let told = std::fs::read_to_string(&told).expect("programs ran");
    let expected = format!(
        " verify-full {} {} {} disable",
        server.file("ca.pem").display(),
        server.file("client.pem").display(),
        server.file("client.key").display()
    );
    for program in ["pg_dump", "pg_restore", "pg_basebackup"] {
        assert!(told.contains(&format!("{program}{expected}\n")), "{program}: {told}");
    }
    assert!(told.lines().all(|line| line.ends_with(&expected)), "{told}");
}

#[tokio::test]
async fn what_needs_the_data_directory_refuses_a_server_on_another_host() {
    let remote = json!({ "kind": "postgres", "host": "db.invalid" });
    let store = TestStore::make();
    let rig = rig().resource_from("db", remote).resource("backups", store.system());
    let mut refused = 0;
    for spec in lifeboat_steps::registry().specs().filter(|spec| spec.name.starts_with("postgres.")) {
        let with = match spec.name.as_str() {
            "postgres.restore_base" => json!({ "cluster": "db", "store": "backups", "backup": "any" }),
            "postgres.recover" => json!({ "cluster": "db", "store": "backups" }),
            "postgres.promote" | "postgres.start" | "postgres.stop" => json!({ "cluster": "db" }),
            _ => continue,
        };
        let error = rig.run(&spec.name, with).await.expect_err(&spec.name);
        assert_eq!(error.code.id, "LB1249", "{}: {error}", spec.name);
        refused += 1;
    }
    assert_eq!(refused, 5);
}
