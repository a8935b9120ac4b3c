//! The proof of a restore: what a backup says that the databases held, and files, pages and rows of what was restored.

pub mod support;

use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use lifeboat_engine::model::event::Done;
use lifeboat_engine::model::evidence::Check;
use lifeboat_engine::resource::{Postgres, System};
use lifeboat_engine::step::StepError;
use lifeboat_steps::postgres::codes;
use lifeboat_steps::postgres::isolation::{Isolation, use_client_program};
use serde_json::{Value, json};
use support::archive::wal_program;
use support::backup::TestStore;
use support::postgres::{Cluster, Options, free_port, succeed};
use support::rig::Rig;

/// A source that archives, with a backup of it.
struct Scene {
    rig: Rig,
    source: Cluster,
    target: Postgres,
    store: TestStore,
}

impl Scene {
    async fn set(data_checksums: bool) -> Self {
        use_client_program(wal_program().to_path_buf());
        let store = TestStore::make();
        let archive_to = Some(store.path().to_owned());
        let source = Cluster::start(&Options { archive_to, data_checksums, ..Options::default() });
        source.sql("create role clerk");
        source.sql("create database members");
        source.sql_in("members", MEMBERS);
        let target = source.place().resource("restored", free_port());
        let rig = Rig::drill()
            .resource("source", source.system())
            .resource("db", System::Postgres(target.clone()))
            .resource("backups", store.system());
        let with = json!({"cluster": "source", "store": "backups", "label": "one", "compression": "gzip"});
        let done = rig.run("postgres.base_backup", with).await.expect("backs up");
        assert_eq!(done.warnings, [""; 0]);
        Self { rig, source, target, store }
    }

    /// Verifies the source, which the backup is of.
    async fn verify(&self, more: Value) -> Result<Done, StepError> {
        self.verify_cluster("source", more).await
    }

    async fn verify_cluster(&self, cluster: &str, more: Value) -> Result<Done, StepError> {
        let mut with = json!({"cluster": cluster, "store": "backups", "backup": "one"});
        let (Value::Object(all), Value::Object(more)) = (&mut with, more) else { panic!("maps") };
        all.extend(more);
        self.rig.run("postgres.verify", with).await
    }

    fn members(&self, sql: &str) -> String {
        self.source.sql_in("members", sql)
    }

    /// Runs SQL on the restored server, over its private socket.
    fn restored(&self, sql: &str) -> String {
        let isolation = Isolation::serving(&self.data_dir()).expect("an isolated server");
        let mut psql = self.source.place().command("psql");
        psql.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", "members", "-h"])
            .arg(isolation.dir());
        psql.args(["-p", &self.target.port.to_string(), "-c", sql]);
        String::from_utf8(succeed(&mut psql).stdout).expect("UTF-8").trim_end().to_owned()
    }

    fn data_dir(&self) -> PathBuf {
        self.target.data_dir.clone().expect("a data directory")
    }
}

const MEMBERS: &str = "
    create table people (id serial primary key, name text not null);
    create table payments (id int primary key, person int references people);
    create unlogged table sessions (id serial primary key, person int references people);
    create view names as select name from people;
    insert into people (name) select 'p' || n from generate_series(1, 50) n;
    insert into payments select n, n from generate_series(1, 50) n;
    insert into sessions (person) select n from generate_series(1, 50) n;
    create index people_name on people (name);";

fn failed(result: Result<Done, StepError>) -> Vec<Check> {
    let error = result.expect_err("must be found");
    assert_eq!(error.code, codes::LB1275, "{error}");
    error.checks.into_iter().filter(|check| !check.passed).collect()
}

fn assert_only(failed: &[Check], name: &str, actual: &str) {
    assert_eq!(failed.len(), 1, "{failed:?}");
    assert!(failed[0].name.contains(name) && failed[0].actual.contains(actual), "{:?}", failed[0]);
}

#[tokio::test]
async fn what_is_missing_since_the_backup_is_named_and_what_is_new_is_told() {
    let scene = Scene::set(false).await;
    let done = scene.verify(json!({})).await.expect("nothing has changed");
    assert!(done.checks.iter().any(|check| check.actual.contains("100 rows, then 100")), "{:?}", done.checks);
    scene.verify(json!({"rows": "exact", "objects": "same"})).await.expect("nothing has changed");

    // One row fewer.
    scene.members("delete from payments where id = 50");
    assert_only(
        &failed(scene.verify(json!({})).await),
        "members: rows",
        "public.payments has 49 rows and had 50",
    );
    scene.verify(json!({"accept": ["public.payments"]})).await.expect("accepted");
    let told = scene.verify(json!({"rows": "report"})).await.expect("only told");
    assert!(
        told.checks.iter().any(|check| check.actual.contains("payments has 49 rows")),
        "{:?}",
        told.checks
    );
    // One more is fine, unless nothing may have changed.
    scene.members("insert into payments values (50, 50), (51, 50)");
    scene.verify(json!({})).await.expect("more rows");
    assert_only(
        &failed(scene.verify(json!({"rows": "exact"})).await),
        "members: rows",
        "has 51 rows and had 50",
    );

    scene.members(
        "alter table people add column born date; drop view names; create view names as select 'x' as name",
    );
    let done = scene.verify(json!({})).await.expect("new and changed objects");
    let told = |text: &str| done.checks.iter().any(|check| check.actual.contains(text));
    assert!(
        told("public.names is another one (views)") && told("1 objects more than then"),
        "{:?}",
        done.checks
    );
    assert_eq!(failed(scene.verify(json!({"objects": "same"})).await).len(), 1);

    scene.members("drop extension plpgsql; drop table sessions; drop index people_name");
    scene.source.sql("drop role clerk; alter database members rename to lost");
    let found = failed(scene.verify(json!({})).await);
    assert!(
        found[0].actual.contains("clerk is missing") && found[0].actual.contains("members is missing"),
        "{found:?}"
    );
    scene.source.sql("create role clerk; alter database lost rename to members");
    let found = failed(scene.verify(json!({})).await);
    assert_eq!(found.len(), 1, "{found:?}");
    for lost in
        ["plpgsql is missing (extensions)", "public.sessions is missing", "public.people_name is missing"]
    {
        assert!(found[0].actual.contains(lost), "{lost}: {found:?}");
    }
}

#[tokio::test]
async fn a_backup_that_is_damaged_or_of_another_cluster_proves_nothing() {
    let scene = Scene::set(false).await;
    let path = scene.store.base("one").join("inventory.json");
    let text = std::fs::read(&path).expect("an inventory");
    let mut flipped = text.clone();
    flipped[text.len() / 2] ^= 1;
    std::fs::write(&path, flipped).expect("the store");
    let error = scene.verify(json!({})).await.expect_err("damaged");
    assert_eq!(error.code, codes::LB1850, "{error}");
    std::fs::remove_file(&path).expect("the store");
    let error = scene.verify(json!({})).await.expect_err("missing");
    assert!(error.message.contains("inventory.json"), "{error}");
    let details = scene.store.details("one");
    scene.store.write_marker("one", &details);
    let done = scene.verify(json!({})).await.expect("an older backup has none");
    assert!(done.warnings[0].contains("no inventory"), "{:?}", done.warnings);
    assert!(done.facts["not checked"].contains("no inventory"));

    let mut other = details.clone();
    other["system_id"] = json!("1");
    scene.store.write_marker("one", &other);
    assert_eq!(scene.verify(json!({})).await.expect_err("another").code, codes::LB1852);
    let error = scene.rig.run("postgres.verify", json!({"cluster": "source", "backup": "one"})).await;
    assert_eq!(error.expect_err("half of it").code, codes::LB1850);
}

/// A role that may replicate and read nothing makes a backup whose inventory has no rows, and says so.
#[tokio::test]
async fn a_role_that_may_not_read_rows_makes_a_backup_all_the_same() {
    let scene = Scene::set(false).await;
    scene.source.sql("create role keeper login replication");
    scene.source.sql("grant pg_monitor to keeper");
    let system = Postgres { user: "keeper".into(), ..scene.source.resource() };
    let rig =
        Rig::drill().resource("source", System::Postgres(system)).resource("backups", scene.store.system());
    let with = json!({"cluster": "source", "store": "backups", "label": "two", "compression": "gzip"});
    let done = rig.run("postgres.base_backup", with).await.expect("backs up");
    assert!(done.warnings.iter().any(|warning| warning.contains("public.people")), "{:?}", done.warnings);
    let text = std::fs::read(scene.store.base("two").join("inventory.json")).expect("an inventory");
    let inventory: Value = serde_json::from_slice(&text).expect("JSON");
    assert_eq!(inventory["databases"]["members"]["rows"], json!({}));
    assert!(inventory["databases"]["members"]["objects"]["columns"]["public.people.name"].is_string());
}

#[tokio::test]
async fn what_was_restored_is_proven_at_each_of_its_stages() {
    let scene = Scene::set(true).await;
    scene.members("insert into payments values (51, 50)");
    scene.source.archive_wal();
    let with = json!({"store": "backups", "backup": "one", "cluster": "db"});
    scene.rig.run("postgres.restore_base", with).await.expect("restores");

    // Restored, not recovered: the manifest proves the files.
    let files = json!({"files": true});
    let done = scene.verify_cluster("db", files.clone()).await.expect("as in the manifest");
    assert!(done.checks[0].name.contains("pg_verifybackup"), "{:?}", done.checks);
    let file = scene.data_dir().join("base/1/PG_VERSION");
    let text = std::fs::read(&file).expect("a file");
    std::fs::write(&file, b"xx\n").expect("own file");
    assert_only(
        &failed(scene.verify_cluster("db", files.clone()).await),
        "pg_verifybackup",
        "base/1/PG_VERSION",
    );
    std::fs::write(&file, text).expect("own file");
    let alone = scene.rig.run("postgres.verify", json!({"cluster": "db", "files": true})).await;
    assert_eq!(alone.expect_err("nothing to compare with").code, codes::LB1851);

    // Recovered, waiting: everything but the check of parents, and unlogged tables, which nobody can read now.
    scene.rig.run("postgres.recover", json!({"store": "backups", "cluster": "db"})).await.expect("recovers");
    let done = scene.verify_cluster("db", json!({"read_all": true, "amcheck": true})).await.expect("sound");
    assert!(done.checks.iter().any(|check| check.actual.contains("101 rows, then 100")), "{:?}", done.checks);
    let read = |check: &Check| check.actual == "every row was read, with page checksums";
    assert_eq!(done.checks.iter().filter(|check| read(check)).count(), 2, "{:?}", done.checks);
    assert!(done.warnings[0].contains("members"), "the extension is not there: {:?}", done.warnings);
    assert_eq!(scene.verify_cluster("db", files.clone()).await.expect_err("runs").code, codes::LB1250);

    // Promoted: a page of a table is damaged, which only those who read it notice.
    scene.rig.run("postgres.promote", json!({"cluster": "db", "isolated": true})).await.expect("promotes");
    scene.verify_cluster("db", json!({"objects": "same"})).await.expect("the same objects");
    let page = scene.restored("select pg_relation_filepath('people')");
    scene.rig.run("postgres.stop", json!({"cluster": "db"})).await.expect("stops");
    let done = scene.verify_cluster("db", files.clone()).await.expect("every page");
    assert!(done.checks[0].name.contains("pg_checksums"), "{:?}", done.checks);
    flip(&scene.data_dir().join(&page), 8000);
    assert_only(&failed(scene.verify_cluster("db", files).await), "pg_checksums", "checksum");
}

fn flip(path: &Path, at: u64) {
    let mut file = std::fs::File::options().read(true).write(true).open(path).expect("a file");
    let mut byte = [0];
    file.seek(SeekFrom::Start(at)).and_then(|_| file.read_exact(&mut byte)).expect("long enough");
    byte[0] ^= 0x40;
    file.seek(SeekFrom::Start(at)).and_then(|_| file.write_all(&byte)).expect("a file");
}

/// Damages a file of the stopped source and starts it again.
fn damage(cluster: &Cluster, relation: &str, at: u64) {
    let file = cluster.sql_in("members", &format!("select pg_relation_filepath('{relation}')"));
    cluster.sql("checkpoint");
    cluster.stop("fast");
    flip(&cluster.data_dir.join(file), at);
    cluster.start_server();
}

#[tokio::test]
async fn a_damaged_page_of_a_table_is_found_by_reading_all_rows() {
    let scene = Scene::set(true).await;
    damage(&scene.source, "payments", 8100);
    let with = json!({"cluster": "source", "read_all": true, "accept": ["payments.payments_person_fkey"]});
    let found = failed(scene.rig.run("postgres.verify", with).await);
    assert_only(&found, "members: every row can be read", "invalid page");
    // Whatever else comes upon it says so, too.
    let found = failed(scene.rig.run("postgres.verify", json!({"cluster": "source"})).await);
    assert_only(&found, "foreign keys hold", "payments.payments_person_fkey could not be looked at");
}

#[tokio::test]
async fn a_damaged_index_is_found_by_amcheck() {
    if !has_contrib() {
        return;
    }
    let scene = Scene::set(false).await;
    let amcheck = json!({"amcheck": true});
    scene.verify(amcheck.clone()).await.expect("sound");
    // The length of the last line pointer's item: the first key of the index.
    damage(&scene.source, "people_name", 8192 + 8100);
    assert_only(&failed(scene.verify(amcheck).await), "pg_amcheck", "people_name");
}

/// Whether the extensions of `postgresql-contrib` are there.
fn has_contrib() -> bool {
    let there = support::postgres::Place::make().has_extension("amcheck");
    if !there {
        println!("SKIPPED: this Postgres has no amcheck");
    }
    there
}
