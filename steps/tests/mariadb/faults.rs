//! What can be wrong with a server, a program or a disk while it is dumped, shipped and replayed.

use std::path::{Path, PathBuf};

use lifeboat_engine::model::outcome::FailureKind;
use serde_json::json;

use super::change::{SLEEPING, poll};
use super::gone::{DUMPING, programs};
use super::{binlog, dump};
use crate::support::mariadb::Mariadb;

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_structure_during_a_dump_is_found_and_nothing_is_published() {
    let world = dump::World::new();
    // The dump waits for the rows of a table, and meanwhile there is another table.
    let mut holder = world.source.session("lock tables shop.members write; select sleep(300)");
    poll(&world.source, SLEEPING).await;
    let altering = async {
        poll(&world.source, DUMPING).await;
        world.source.sql("create table shop.extra (id int primary key)");
        world.source.sql(&format!("kill query {}", world.source.sql(SLEEPING)));
    };
    let (result, ()) = tokio::join!(world.dump("dump", json!({})), altering);
    holder.wait().expect("our own child");
    let error = result.expect_err("the structure has changed");
    assert_eq!(error.code.id, "LB2022", "{error}");
    assert!(error.causes.iter().any(|cause| cause.contains("extra")), "{:?}", error.causes);
    let none = world.restore("restore", json!({})).await.expect_err("nothing was published");
    assert_eq!(none.code.id, "LB2030", "{none}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_without_its_last_line_is_not_published() {
    let mut world = dump::World::new();
    // The program says that all is well, and is cut off all the same.
    let script = "#!/bin/sh\n/usr/bin/mariadb-dump \"$@\" | head -n -3\n";
    let mut resource = world.source.resource();
    resource["bin_dir"] = programs(&world.rig.dir().join("bin"), "mariadb-dump", script);
    world.rig.set_resource("db", resource);
    let error = world.dump("dump", json!({})).await.expect_err("it is cut off");
    assert_eq!((error.code.id, error.kind), ("LB2021", FailureKind::Transient), "{error}");
    let none = world.restore("restore", json!({})).await.expect_err("nothing was published");
    assert_eq!(none.code.id, "LB2030", "{none}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_a_log_can_be_dumped_and_nothing_be_replayed_after_it() {
    let mut world = dump::World::new();
    world.source.down();
    world.source.up(&["--skip-log-bin"]);
    let done = world.dump("dump", json!({})).await.unwrap();
    assert!(done.outputs["position"].is_null());
    assert!(done.warnings.iter().any(|warning| warning.contains("no binary log")), "{:?}", done.warnings);
    world.restore("restore", json!({})).await.unwrap();
    let with = json!({ "server": "target", "store": "backups" });
    let error = world.rig.run("mariadb.replay_binlog", with).await.expect_err("from where?");
    assert_eq!(error.code.id, "LB2050", "{error}");
    let with = json!({ "server": "db", "store": "backups" });
    let error = world.rig.run("mariadb.ship_binlogs", with).await.expect_err("there is none");
    assert!(error.code.id == "LB2040" && error.help.unwrap().contains("log_bin"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_applies_nothing_and_says_it_did_is_not_believed() {
    let mut world = binlog::World::new().await;
    world.commit(1);
    world.ship("ship").await.unwrap();
    let script = "#!/bin/sh\nsed '/all is replayed/q' > /dev/null\n\
        echo 'ERROR 1644 (45000) at line 1: Lifeboat: all is replayed' >&2\nexit 1\n";
    let mut resource = world.target.resource();
    resource["bin_dir"] = programs(&world.rig.dir().join("bin"), "mariadb", script);
    world.rig.set_resource("target", resource);
    let error = world.replay("replay", json!({})).await.expect_err("nothing was applied");
    assert!(error.code.id == "LB2054" && error.message.starts_with("0 of 1 planned"), "{error}");
    assert!(error.checks.iter().any(|check| !check.passed));
}

/// Polls until a connection was idle for longer than servers of this test allow if nobody says otherwise.
async fn idle(db: &Mariadb) {
    poll(db, "select count(*) from information_schema.processlist where command = 'Sleep' and time >= 2")
        .await;
}

fn impatient(db: &mut Mariadb) {
    db.down();
    db.up(&["--wait-timeout=1", "--max-statement-time=1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_impatient_server_is_dumped_restored_and_replayed_however_long_it_takes() {
    let mut world = binlog::World::new().await;
    impatient(&mut world.source);
    impatient(&mut world.target);
    let wake = |db: &Mariadb| db.sql(&format!("kill query {}", db.sql(SLEEPING)));

    // The dump waits for a table, and the connection that will look at the structure afterwards is idle.
    world.rig.begin_run();
    let mut holder =
        world.source.session("set max_statement_time = 0; lock tables shop.t write; select sleep(300)");
    poll(&world.source, SLEEPING).await;
    let waiting = async {
        poll(&world.source, DUMPING).await;
        idle(&world.source).await;
        wake(&world.source);
    };
    tokio::join!(world.dump("dump"), waiting);
    holder.wait().expect("our own child");

    world.target.sql("set sql_log_bin = 0; drop database shop; drop database lifeboat_restored");
    let mut holder =
        world.target.session("set max_statement_time = 0; flush tables with read lock; select sleep(300)");
    poll(&world.target, SLEEPING).await;
    let waiting = async {
        let creating = "select count(*) from information_schema.processlist where info like 'CREATE%' and command = 'Query'";
        poll(&world.target, creating).await;
        idle(&world.target).await;
        wake(&world.target);
    };
    tokio::join!(world.restore("restore"), waiting);
    holder.wait().expect("our own child");

    for n in 1..=3 {
        world.commit(n);
    }
    world.ship("ship").await.unwrap();
    let holding = "set max_statement_time = 0, sql_log_bin = 0; start transaction; insert into shop.t values (2, null); select sleep(300); rollback";
    let mut holder = world.target.session(holding);
    poll(&world.target, SLEEPING).await;
    let waiting = async {
        let locked = "select count(*) from information_schema.innodb_trx where trx_state = 'LOCK WAIT'";
        poll(&world.target, locked).await;
        idle(&world.target).await;
        wake(&world.target);
    };
    let (replayed, ()) = tokio::join!(world.replay("replay", json!({})), waiting);
    holder.wait().expect("our own child");
    assert_eq!(replayed.unwrap().outputs["applied"], json!(3));
    assert_eq!(world.rows(), "1,2,3");
}

/// As MariaDB's clients were before May 2024, and MySQL's are.
const OLD_CLIENT: &str = r#"#!/bin/sh
for word; do
  if [ "$word" = --version ]; then echo "mariadb  Ver 15.1 Distrib 10.11.6-MariaDB, for debian-linux-gnu"; exit 0; fi
done
IFS= read -r first
case "$first" in
  *sandbox*) echo "ERROR at line 1: Unknown command '\\-'." >&2; exit 1 ;;
esac
{ printf '%s\n' "$first"; cat; } | /usr/bin/mariadb "$@"
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_know_the_sandbox_line_does_not_get_it() {
    let mut world = dump::World::new();
    world.dump("dump", json!({})).await.unwrap();
    let mut resource = world.target.resource();
    resource["bin_dir"] = programs(&world.rig.dir().join("bin"), "mariadb", OLD_CLIENT);
    world.rig.set_resource("target", resource);
    let done = world.restore("restore", json!({})).await.unwrap();
    assert_eq!(done.outputs["rows"], json!(8));
    let grants = "show grants for app@localhost";
    assert_eq!(world.target.sql(grants), world.source.sql(grants));
}

/// A file system of one mebibyte, unmounted with the value.
struct Small(PathBuf);

impl Small {
    fn mount(dir: &Path) -> Option<Self> {
        std::fs::create_dir_all(dir).unwrap();
        let mut mount = std::process::Command::new("mount");
        let made = mount.args(["-t", "tmpfs", "-o", "size=1m", "lifeboat-test"]).arg(dir).output();
        if made.is_ok_and(|output| output.status.success()) {
            return Some(Self(dir.to_owned()));
        }
        eprintln!("SKIPPED: only root may mount a small file system, where mounting is allowed");
        None
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        drop(std::process::Command::new("umount").arg("-l").arg(&self.0).output());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_stops_a_dump_shipping_and_a_replay_and_a_retry_with_room_succeeds() {
    let mut world = binlog::World::new().await;
    let small = world.rig.dir().join("small");
    let Some(mounted) = Small::mount(&small) else { return };
    // What does not compress.
    world.source.sql(
        "use shop; alter table t add column noise longblob; \
         insert into t (n, noise) select seq, concat(random_bytes(1024), random_bytes(1024)) from seq_1_to_1500",
    );
    let store = |url: &str| json!({ "kind": "store", "url": url });
    let url = format!("dir://{}", small.display());
    world.rig.set_resource("full", store(&url));
    let with = json!({ "server": "db", "store": "full", "users": false });
    let error = world.rig.run("mariadb.dump", with.clone()).await.expect_err("there is no room");
    assert_eq!((error.code.id, error.kind), ("LB1111", FailureKind::Transient), "{error}");
    assert!(error.message.contains(small.to_str().unwrap()), "{error}");
    let ship = json!({ "server": "db", "store": "full" });
    let error = world.rig.run("mariadb.ship_binlogs", ship).await.expect_err("there is no room");
    assert_eq!(error.kind, FailureKind::Transient, "{error}");
    world.ship("ship").await.unwrap();
    let mut replay = json!({ "server": "target", "store": "backups", "dir": small });
    let error = world.rig.run("mariadb.replay_binlog", replay.clone()).await.expect_err("there is no room");
    assert_eq!((error.code.id, error.kind), ("LB2041", FailureKind::Transient), "{error}");
    assert!(error.message.contains(small.to_str().unwrap()), "{error}");
    assert_eq!(world.rows(), "NULL", "nothing was replayed");

    drop(mounted);
    world.rig.run("mariadb.dump", with).await.unwrap();
    replay["dir"] = json!(world.rig.dir());
    let done = world.rig.run_as("anew", "mariadb.replay_binlog", replay).await.unwrap();
    assert_eq!(done.outputs["planned"], json!(2));
    let sums = "select count(*), sum(crc32(noise)) from shop.t";
    assert_eq!(world.target.sql(sums), world.source.sql(sums));
}
