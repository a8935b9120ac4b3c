//! kill -9 of the server, and of MariaDB's own programs, in the middle of a step.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use lifeboat_engine::model::outcome::FailureKind;
use lifeboat_engine::step::StepError;
use serde_json::{Value, json};

use super::change::{SLEEPING, poll};
use super::{binlog, dump};

/// How many dumps wait for the rows of a table.
pub(super) const DUMPING: &str = "select count(*) from information_schema.processlist \
    where info like 'SELECT /*%' and state like 'Waiting for table%'";

/// What people need to know when their server went away.
fn assert_says_what_to_do(error: &StepError) {
    assert_eq!(error.code.id, "LB2055", "{error:?}");
    let help = error.help.as_deref().unwrap_or_default();
    assert!(help.contains("mariadb.start") && help.contains("lifeboat retry"), "{help}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_while_it_is_dumped_leaves_no_dump_and_the_next_attempt_makes_one() {
    let mut world = dump::World::new();
    // With the settings of tests a server that is killed forgets what it has committed within the last second; this commit takes
    // all before it along.
    world
        .source
        .sql("set global innodb_flush_log_at_trx_commit = 1; update shop.orders set total = 4 where id = 2");
    let mut holder = world.source.session("lock tables shop.members write; select sleep(300)");
    poll(&world.source, SLEEPING).await;
    let dumping = async {
        poll(&world.source, DUMPING).await;
        // By its number: the world is borrowed by the step.
        kill(world.source.pid().unwrap());
    };
    let with = json!({ "server": "db", "store": "backups" });
    let (result, ()) = tokio::join!(world.rig.run("mariadb.dump", with.clone()), dumping);
    holder.wait().expect("our own child");
    let error = result.expect_err("the server is gone");
    assert_says_what_to_do(&error);
    assert_eq!(error.kind, FailureKind::Transient);
    let listed = world.restore("restore", json!({})).await.expect_err("there is no dump");
    assert_eq!(listed.code.id, "LB2030", "{listed}");
    world.source.kill();
    world.source.up(&[]);
    let done = world.rig.run("mariadb.dump", with).await.unwrap();
    assert_eq!(done.outputs["rows"], json!(8));
}

fn kill(pid: u32) {
    use rustix::process::{Pid, Signal, kill_process};
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    kill_process(pid, Signal::KILL).expect("our own child");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_while_it_is_restored_is_restored_anew() {
    let mut world = dump::World::new();
    world.dump("dump", json!({})).await.unwrap();
    let mut holder = world.target.session("flush tables with read lock; select sleep(300)");
    poll(&world.target, SLEEPING).await;
    let restoring = async {
        let waiting = "select count(*) from information_schema.processlist where info like 'CREATE%' and command = 'Query'";
        poll(&world.target, waiting).await;
        kill(world.target.pid().unwrap());
    };
    let (result, ()) = tokio::join!(world.restore("restore", json!({})), restoring);
    holder.wait().expect("our own child");
    let error = result.expect_err("the server is gone");
    assert_says_what_to_do(&error);
    assert_eq!(error.kind, FailureKind::Uncertain);
    world.target.kill();
    world.target.up(&[]);
    let done = world.restore("restore", json!({})).await.unwrap();
    assert_eq!(done.outputs["rows"], json!(8));
    let look = "checksum table shop.members, shop.orders";
    assert_eq!(world.target.sql(look), world.source.sql(look));
}

/// Kills the target while the third of five transactions waits, and starts it again with its settings.
async fn killed_in_the_third(world: &mut binlog::World, settings: &[&str]) -> StepError {
    world.target.down();
    world.target.up(settings);
    let mut holder = world.target.session(
        "set sql_log_bin = 0; start transaction; insert into shop.t values (3, null); select sleep(300)",
    );
    poll(&world.target, SLEEPING).await;
    let replaying = async {
        let waiting = "select count(*) from information_schema.innodb_trx where trx_state = 'LOCK WAIT'";
        poll(&world.target, waiting).await;
        kill(world.target.pid().unwrap());
    };
    let (result, ()) = tokio::join!(world.replay("replay", json!({})), replaying);
    holder.wait().expect("our own child");
    world.target.kill();
    world.target.up(settings);
    result.expect_err("the server is gone")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_while_a_log_is_replayed_goes_on_behind_its_last_transaction() {
    let mut world = binlog::World::new().await;
    for n in 1..=5 {
        world.commit(n);
    }
    world.ship("ship").await.unwrap();
    let error = killed_in_the_third(&mut world, &["--innodb-flush-log-at-trx-commit=2"]).await;
    assert_says_what_to_do(&error);
    assert_eq!(error.kind, FailureKind::Uncertain);
    assert_eq!(world.rows(), "1,2");
    let done = world.replay("replay", json!({})).await.unwrap();
    assert_eq!((&done.outputs["planned"], &done.outputs["applied"]), (&json!(5), &json!(3)));
    assert!(done.checks.len() == 3 && done.checks.iter().all(|check| check.passed), "{:?}", done.checks);
    assert_eq!(world.rows(), "1,2,3,4,5");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_may_have_forgotten_what_it_committed_is_not_replayed_into_again() {
    let mut world = binlog::World::new().await;
    for n in 1..=5 {
        world.commit(n);
    }
    world.ship("ship").await.unwrap();
    let settings = ["--innodb-flush-log-at-trx-commit=0"];
    killed_in_the_third(&mut world, &settings).await;
    let error = world.replay("replay", json!({})).await.expect_err("nobody knows what is there");
    assert_eq!((error.code.id, error.kind), ("LB2056", FailureKind::Permanent), "{error}");
    assert!(error.help.as_deref().unwrap_or_default().contains("fresh server"), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_was_ended_in_order_during_a_replay_has_forgotten_nothing() {
    let mut world = binlog::World::new().await;
    for n in 1..=5 {
        world.commit(n);
    }
    world.ship("ship").await.unwrap();
    world.target.sql("set sql_log_bin = 0; insert into shop.t values (3, null)");
    let stopped = world.replay("replay", json!({})).await.unwrap_err();
    assert_eq!(stopped.code.id, "LB2053", "{stopped}");
    world.target.down();
    world.target.up(&["--innodb-flush-log-at-trx-commit=0"]);
    world.target.sql("set sql_log_bin = 0; delete from shop.t where n = 3");
    world.replay("replay", json!({})).await.unwrap();
    assert_eq!(world.rows(), "1,2,3,4,5");
}

/// A directory with MariaDB's programs, one of which is replaced by a script.
pub(super) fn programs(dir: &Path, name: &str, script: &str) -> Value {
    std::fs::create_dir(dir).unwrap();
    for program in ["mariadb", "mariadb-binlog", "mariadb-dump"] {
        std::os::unix::fs::symlink(Path::new("/usr/bin").join(program), dir.join(program)).unwrap();
    }
    std::fs::remove_file(dir.join(name)).unwrap();
    std::fs::write(dir.join(name), script).unwrap();
    std::fs::set_permissions(dir.join(name), std::fs::Permissions::from_mode(0o755)).unwrap();
    json!(dir)
}

#[tokio::test(flavor = "multi_thread")]
async fn half_a_statement_is_never_run_when_the_reader_of_the_log_is_killed() {
    let mut world = binlog::World::new().await;
    world.commit(1);
    world.source.sql("alter table shop.t add column a int\n  , add column b int");
    world.source.sql("insert into shop.t (n, b) values (2, 7)");
    world.ship("ship").await.unwrap();
    // All that it has written until then is a statement, too.
    let script = "#!/bin/sh\n/usr/bin/mariadb-binlog \"$@\" | sed '/add column b/,$d'\nkill -KILL $$\n";
    let mut resource = world.target.resource();
    resource["bin_dir"] = programs(&world.rig.dir().join("bin"), "mariadb-binlog", script);
    world.rig.set_resource("target", resource);
    let error = world.replay("replay", json!({})).await.expect_err("the reader was killed");
    assert!(error.code.id == "LB1003" && error.kind == FailureKind::Uncertain, "{error:?}");
    let columns = "select group_concat(column_name order by ordinal_position) from information_schema.columns where table_name = 't'";
    assert_eq!(world.target.sql(columns), "n,at");
    world.rig.set_resource("target", world.target.resource());
    let done = world.replay("replay", json!({})).await.unwrap();
    // How far the first attempt has come before the reader was missed, nobody knows.
    assert_eq!(done.outputs["planned"], json!(3));
    assert_eq!(world.target.sql(columns), "n,at,a,b");
    assert_eq!(world.target.sql("select group_concat(ifnull(b, '-') order by n) from shop.t"), "-,7");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_of_an_earlier_replay_is_ended_before_anything_is_replayed() {
    let mut world = binlog::World::new().await;
    for n in 1..=3 {
        world.commit(n);
    }
    world.ship("ship").await.unwrap();
    // It is in the middle of the second transaction, and nobody listens to it any more.
    let mut earlier = world.target.session(
        "do get_lock('lifeboat_replay', 0); set sql_log_bin = 0; start transaction; insert into shop.t values (2, null); select sleep(300); commit",
    );
    poll(&world.target, SLEEPING).await;
    let done = world.replay("replay", json!({})).await.unwrap();
    assert_eq!((world.rows().as_str(), &done.outputs["applied"]), ("1,2,3", &json!(3)));
    earlier.wait().expect("our own child");
}

/// In another process: makes servers and waits to be killed. Elsewhere: returns at once.
fn to_be_killed() {
    let Ok(told) = std::env::var("LIFEBOAT_TEST_KEPT") else { return };
    let world = dump::World::new();
    let said = json!({ "dir": world.rig.dir(), "servers": [world.source.pid(), world.target.pid()] });
    std::fs::write(format!("{told}.unfinished"), said.to_string()).unwrap();
    std::fs::rename(format!("{told}.unfinished"), told).unwrap();
    loop {
        std::thread::park();
    }
}

#[test]
fn what_a_killed_test_leaves_is_removed() {
    use crate::support::proxy::eventually;
    to_be_killed();
    let dir = tempfile::tempdir().unwrap();
    let (told, tmp) = (dir.path().join("told"), dir.path().join("tmp"));
    std::fs::create_dir(&tmp).unwrap();
    crate::support::mariadb::open_to_server(dir.path());
    crate::support::mariadb::open_to_server(&tmp);
    let mut test = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "gone::what_a_killed_test_leaves_is_removed"])
        .env("LIFEBOAT_TEST_KEPT", &told)
        .env("TMPDIR", &tmp)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(120);
    while !told.exists() {
        assert!(test.try_wait().unwrap().is_none() && std::time::Instant::now() < deadline, "no servers");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let said: Value = serde_json::from_slice(&std::fs::read(&told).unwrap()).unwrap();
    assert!(std::fs::read_dir(&tmp).unwrap().count() >= 2, "a rig, and what servers are made from");
    test.kill().unwrap();
    test.wait().unwrap();
    eventually("its directories are gone", || std::fs::read_dir(&tmp).unwrap().count() == 0);
    for server in said["servers"].as_array().unwrap() {
        eventually("its servers are gone", || !Path::new(&format!("/proc/{server}/exe")).exists());
    }
}
