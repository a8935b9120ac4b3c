//! kill -9 of the program at each moment of every step that changes something, and what the next attempt makes of it.

use std::path::Path;

use serde_json::{Value, json};

use super::change::{PAYMENTS, change, correction, poll, setting};
use super::{binlog, dump};
use crate::support::killed::{self, Fate};
use crate::support::mariadb::{Mariadb, open_to_server, sql_at};
use crate::support::rig::Rig;

const MOST: u64 = 100;

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_that_is_killed_at_any_moment_is_published_once() {
    killed::victim().await;
    let mut world = dump::World::new();
    let with = json!({ "server": "db", "store": "backups" });
    let name = "killed::a_dump_that_is_killed_at_any_moment_is_published_once";
    for moment in 0..MOST {
        world.rig.begin_run();
        let store = world.rig.dir().join("store");
        if store.exists() {
            std::fs::remove_dir_all(&store).unwrap();
        }
        let fate = killed::at(&world.rig, name, ("mariadb.dump", &with), moment);
        let done = world.rig.run("mariadb.dump", with.clone()).await.unwrap();
        assert_eq!(done.outputs["rows"], json!(8), "{moment}");
        assert_eq!(names(&store.join("mariadb")), [done.outputs["backup"].as_str().unwrap()], "{moment}");
        if fate == Fate::Finished {
            assert!(moment >= 4, "only {moment} moments");
            return;
        }
    }
    panic!("it is always killed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_is_killed_at_any_moment_is_made_whole_by_the_next_attempt() {
    killed::victim().await;
    let mut world = dump::World::new();
    world.dump("dump", json!({})).await.unwrap();
    let with = json!({ "server": "target", "store": "backups" });
    let name = "killed::a_restore_that_is_killed_at_any_moment_is_made_whole_by_the_next_attempt";
    let (members, grants) = ("checksum table shop.members, shop.orders", "show grants for app@localhost");
    for moment in 0..MOST {
        world.rig.begin_run();
        world.target.sql(
            "set sql_log_bin = 0; drop database if exists shop; drop database if exists `odd``name`; \
             drop database if exists lifeboat_restored; drop user if exists app@localhost",
        );
        let fate = killed::at(&world.rig, name, ("mariadb.restore_dump", &with), moment);
        let done = world.rig.run("mariadb.restore_dump", with.clone()).await;
        let done = done.unwrap_or_else(|error| panic!("after moment {moment}: {error:?}"));
        assert!(done.checks.iter().all(|check| check.passed), "{moment}");
        assert_eq!(done.outputs["rows"], json!(8), "{moment}");
        for look in [members, grants] {
            assert_eq!(world.target.sql(look), world.source.sql(look), "{moment}");
        }
        assert_eq!(world.target.sql("select @@gtid_binlog_pos"), "", "{moment}: nothing of it is logged");
        if fate == Fate::Finished {
            assert!(moment >= 10, "only {moment} moments");
            return;
        }
    }
    panic!("it is always killed");
}

#[tokio::test(flavor = "multi_thread")]
async fn shipping_that_is_killed_at_any_moment_leaves_no_gap_and_nothing_else() {
    killed::victim().await;
    let mut world = binlog::World::new().await;
    let with = json!({ "server": "db", "store": "backups" });
    let name = "killed::shipping_that_is_killed_at_any_moment_leaves_no_gap_and_nothing_else";
    let mut sent = 0;
    for moment in 0..MOST {
        world.rig.begin_run();
        sent += 1;
        world.commit(sent);
        let fate = killed::at(&world.rig, name, ("mariadb.ship_binlogs", &with), moment);
        let done = world.rig.run("mariadb.ship_binlogs", with.clone()).await;
        let done = done.unwrap_or_else(|error| panic!("after moment {moment}: {error:?}"));
        assert_eq!(done.outputs["gtid"], json!(world.source.sql("select @@gtid_binlog_pos")), "{moment}");
        assert_eq!(world.rig.made_at(), Vec::<std::path::PathBuf>::new(), "{moment}: a directory is left");
        if fate == Fate::Finished {
            assert!(moment >= 5, "only {moment} moments");
            let there = names(&world.shipped(11));
            assert!(there.iter().all(|name| !name.contains(".tmp")), "{there:?}");
            let all = world.replay("replay", json!({})).await.unwrap();
            assert_eq!(all.outputs["planned"], json!(sent));
            return;
        }
    }
    panic!("it is always killed");
}

/// A log of transactions each of which counts: one that is applied twice, or not at all, shows.
async fn counting(transactions: u32) -> binlog::World {
    let world = binlog::World::new().await;
    let mut script = "create table shop.c (n int); insert into shop.c values (0);".to_owned();
    for n in 1..=transactions {
        script.push_str(&format!(
            "begin; insert into shop.t values ({n}, null); update shop.c set n = n + 1; commit;"
        ));
    }
    world.source.sql(&script);
    world.ship("ship").await.unwrap();
    world
}

/// Takes the target back to the dump.
fn empty(world: &mut binlog::World) {
    world.rig.begin_run();
    world.target.sql("set sql_log_bin = 0; drop table if exists shop.c; delete from shop.t; reset master");
}

/// Asserts that all of the source is in the target, once.
fn assert_all_once(world: &binlog::World, planned: &Value, what: &str) {
    for look in ["select count(*), sum(n) from shop.t", "select n from shop.c", "select @@gtid_binlog_pos"] {
        assert_eq!(world.target.sql(look), world.source.sql(look), "{what}: {look}");
    }
    // One for each table that was made before it.
    assert_eq!(*planned, json!(world.source.sql("select n + 2 from shop.c").parse::<u64>().unwrap()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_that_is_killed_at_any_moment_applies_every_transaction_once() {
    killed::victim().await;
    let mut world = counting(8).await;
    let with = json!({ "server": "target", "store": "backups" });
    let name = "killed::a_replay_that_is_killed_at_any_moment_applies_every_transaction_once";
    for moment in 0..MOST {
        empty(&mut world);
        let fate = killed::at(&world.rig, name, ("mariadb.replay_binlog", &with), moment);
        let done = world.rig.run("mariadb.replay_binlog", with.clone()).await;
        let done = done.unwrap_or_else(|error| panic!("after moment {moment}: {error:?}"));
        assert!(done.checks.len() == 3 && done.checks.iter().all(|check| check.passed), "{moment}");
        assert_all_once(&world, &done.outputs["planned"], &moment.to_string());
        assert_eq!(world.rig.made_at(), Vec::<std::path::PathBuf>::new(), "{moment}: a directory is left");
        if fate == Fate::Finished {
            assert!(moment >= 8, "only {moment} moments");
            return;
        }
    }
    panic!("it is always killed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_that_is_killed_between_its_transactions_applies_every_one_once() {
    killed::victim().await;
    let mut world = counting(1500).await;
    let with = json!({ "server": "target", "store": "backups" });
    let name = "killed::a_replay_that_is_killed_between_its_transactions_applies_every_one_once";
    let mut killed = 0;
    for count in [1, 150, 600, 1200] {
        empty(&mut world);
        let socket = world.target.socket();
        let there = || {
            let found = sql_at(&socket, "select count(*) from shop.t").ok().and_then(|it| it.parse().ok());
            found.unwrap_or(0) >= count
        };
        let fate = killed::when(&world.rig, name, ("mariadb.replay_binlog", &with), there);
        killed += u32::from(fate == Fate::Killed);
        let done = world.rig.run("mariadb.replay_binlog", with.clone()).await;
        let done = done.unwrap_or_else(|error| panic!("after {count}: {error:?}"));
        assert_all_once(&world, &done.outputs["planned"], &count.to_string());
        let by_first = done.outputs["planned"].as_u64().unwrap() - done.outputs["applied"].as_u64().unwrap();
        assert!(by_first >= count, "{by_first} of at least {count} were kept");
    }
    assert!(killed > 0, "it was always faster than the kill");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_is_killed_at_any_moment_is_made_once() {
    killed::victim().await;
    let (mut rig, db) = setting();
    let before = db.sql(PAYMENTS);
    let mut after = None;
    let name = "killed::a_change_that_is_killed_at_any_moment_is_made_once";
    for moment in 0..MOST {
        rig.begin_run();
        let with = change(correction());
        let fate = killed::at(&rig, name, ("mariadb.change", &with), moment);
        let made = db.sql("select count(*) from information_schema.tables where table_name = 'changed_rows'");
        if fate == Fate::Killed && made == "1" {
            assert_eq!(
                db.sql("select count(*) from lifeboat.changes where undone_at is null"),
                "0",
                "{moment}"
            );
        }
        let done = rig.run("mariadb.change", with.clone()).await;
        let done = done.unwrap_or_else(|error| panic!("after moment {moment}: {error:?}"));
        assert_eq!(done.outputs["rows"], json!(4), "{moment}");
        // Numbers are given out anew, so that only the first time can be compared with the last.
        let now = db.sql("select count(*), sum(amount) from shop.payments");
        assert_eq!(*after.get_or_insert_with(|| now.clone()), now, "{moment}");
        rig.undo("mariadb.change", with).await.unwrap();
        assert_eq!(db.sql(PAYMENTS), before, "{moment}");
        if fate == Fate::Finished {
            assert!(moment >= 10, "only {moment} moments");
            return;
        }
    }
    panic!("it is always killed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_is_killed_while_it_commits_is_found_or_made_once() {
    killed::victim().await;
    let (rig, db) = setting();
    let first = json!({ "statements": [{ "sql": "delete from payments where id = 30" }] });
    rig.run_as("first", "mariadb.change", change(first)).await.expect("the record exists");
    let with = change(correction());
    let name = "killed::a_change_that_is_killed_while_it_commits_is_found_or_made_once";
    let commits = Commits::held(&db).await;
    let fate = killed::when(&rig, name, ("mariadb.change", &with), || commits.wait(&db));
    assert_eq!(fate, Fate::Killed);
    commits.let_go(&db);
    let done = rig.run("mariadb.change", with).await.expect("found or made");
    assert_eq!(done.outputs["rows"], json!(4));
    assert_eq!(db.sql("select count(*) from lifeboat.changes"), "2");
    // 28 of 29 rows are left and one is new.
    assert_eq!(db.sql("select count(*), sum(amount = -1.25) from shop.payments"), "29\t1");
}

#[tokio::test(flavor = "multi_thread")]
async fn taking_a_change_back_that_is_killed_at_any_moment_is_all_or_nothing() {
    killed::victim().await;
    let (mut rig, db) = setting();
    let before = db.sql(PAYMENTS);
    let name = "killed::taking_a_change_back_that_is_killed_at_any_moment_is_all_or_nothing";
    for moment in 0..MOST {
        rig.begin_run();
        let with = change(correction());
        rig.run("mariadb.change", with.clone()).await.expect("changes");
        let after = db.sql(PAYMENTS);
        let fate = killed::undo_at(&rig, name, ("mariadb.change", &with), moment);
        let found = db.sql(PAYMENTS);
        let expected = if fate == Fate::Finished { &before } else { &after };
        assert_eq!(found, *expected, "after moment {moment}");
        let undone = rig.undo("mariadb.change", with).await;
        undone.unwrap_or_else(|error| panic!("after moment {moment}: {error:?}"));
        assert_eq!(db.sql(PAYMENTS), before, "after moment {moment}");
        assert_eq!(db.sql("select count(*) from lifeboat.changes where undone_at is null"), "0", "{moment}");
        if fate == Fate::Finished {
            assert!(moment >= 3, "only {moment} moments");
            return;
        }
    }
    panic!("it is always killed");
}

#[tokio::test(flavor = "multi_thread")]
async fn taking_a_change_back_that_is_killed_while_it_commits_is_found_or_done_once() {
    killed::victim().await;
    let (rig, db) = setting();
    let (before, with) = (db.sql(PAYMENTS), change(correction()));
    rig.run("mariadb.change", with.clone()).await.expect("changes");
    let name = "killed::taking_a_change_back_that_is_killed_while_it_commits_is_found_or_done_once";
    let commits = Commits::held(&db).await;
    let fate = killed::undo_when(&rig, name, ("mariadb.change", &with), || commits.wait(&db));
    assert_eq!(fate, Fate::Killed);
    commits.let_go(&db);
    rig.undo("mariadb.change", with).await.expect("found or done");
    assert_eq!(db.sql(PAYMENTS), before);
    assert_eq!(db.sql("select count(*), count(undone_at) from lifeboat.changes"), "1\t1");
}

/// Somebody who holds up all commits of a server.
struct Commits(std::process::Child);

impl Commits {
    async fn held(db: &Mariadb) -> Self {
        let holder = db.session(
            "backup stage start; backup stage flush; backup stage block_ddl; backup stage block_commit; select sleep(300)",
        );
        poll(db, super::change::SLEEPING).await;
        Self(holder)
    }

    /// Says whether one waits.
    fn wait(&self, db: &Mariadb) -> bool {
        let sql = "select count(*) from information_schema.processlist where info = 'commit' and state like 'Waiting for backup%'";
        sql_at(&db.socket(), sql).is_ok_and(|found| found != "0")
    }

    fn let_go(mut self, db: &Mariadb) {
        self.0.kill().expect("our own child");
        self.0.wait().expect("our own child");
        let sleeper = db.sql(super::change::SLEEPING);
        db.try_sql(&format!("kill {sleeper}")).ok();
    }
}

/// A server that steps start, on data of a test server that is down.
struct Down {
    rig: Rig,
    db: Mariadb,
}

impl Down {
    fn new() -> Self {
        let mut rig = Rig::drill();
        open_to_server(rig.dir());
        let mut db = Mariadb::start(&rig.dir().join("db"), 1);
        db.sql("create database kept");
        db.down();
        let config = rig.dir().join("my.cnf");
        let settings = format!(
            "[mysqld]\nskip-networking\ntmpdir={}\ninnodb-log-file-size=8M\ninnodb-buffer-pool-size=32M\nlog-bin=binlog\nserver-id=1\n",
            db.dir.join("tmp").display()
        );
        std::fs::write(&config, settings).unwrap();
        let mut resource = db.resource();
        resource["config_file"] = json!(config);
        rig.set_resource("db", resource);
        Self { rig, db }
    }

    /// How many servers work in the data directory.
    fn servers(&self) -> usize {
        let wanted = self.db.data_dir().canonicalize().unwrap();
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        processes
            .filter(|it| std::fs::read_link(it.path().join("cwd")).is_ok_and(|dir| dir == wanted))
            .count()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_is_killed_at_any_moment_leaves_one_server_and_the_next_attempt_finds_it() {
    killed::victim().await;
    let mut world = Down::new();
    let with = json!({ "server": "db" });
    let name = "killed::a_start_that_is_killed_at_any_moment_leaves_one_server_and_the_next_attempt_finds_it";
    for moment in 0..MOST {
        world.rig.begin_run();
        let fate = killed::at(&world.rig, name, ("mariadb.start", &with), moment);
        let done = world.rig.run("mariadb.start", with.clone()).await;
        let done = done.unwrap_or_else(|error| panic!("after moment {moment}: {error:?}"));
        assert_eq!(done.outputs["started"], json!(fate == Fate::Killed), "{moment}");
        assert_eq!((world.servers(), world.db.sql("show databases like 'kept'").as_str()), (1, "kept"));
        assert_eq!(
            world.rig.run("mariadb.stop", with.clone()).await.unwrap().outputs["stopped"],
            json!(true)
        );
        assert_eq!(world.servers(), 0, "{moment}");
        if fate == Fate::Finished {
            assert!(moment >= 2, "only {moment} moments");
            break;
        }
    }
    // Killed while the server is still on its way up: it is waited for, and no other one is started.
    world.rig.begin_run();
    let log = world.rig.dir().join("steps/mariadb_start/mariadb.log");
    let length = || std::fs::metadata(&log).map_or(0, |found| found.len());
    let was = length();
    let fate = killed::when(&world.rig, name, ("mariadb.start", &with), || length() > was);
    let done = world.rig.run("mariadb.start", with.clone()).await.unwrap();
    assert_eq!(done.outputs["started"], json!(fate == Fate::Killed));
    assert_eq!(world.servers(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_that_is_killed_is_finished_by_the_next_attempt() {
    killed::victim().await;
    let world = Down::new();
    let with = json!({ "server": "db" });
    let name = "killed::a_stop_that_is_killed_is_finished_by_the_next_attempt";
    world.rig.run("mariadb.start", with.clone()).await.unwrap();
    let log = world.rig.dir().join("steps/mariadb_start/mariadb.log");
    let ending = || std::fs::read_to_string(&log).is_ok_and(|text| text.contains("Normal shutdown"));
    killed::when(&world.rig, name, ("mariadb.stop", &with), ending);
    world.rig.run("mariadb.stop", with.clone()).await.unwrap();
    assert_eq!(world.servers(), 0);
    let text = std::fs::read_to_string(&log).unwrap();
    assert!(text.contains("Shutdown complete"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_that_is_killed_at_any_moment_is_made_anew() {
    killed::victim().await;
    let mut rig = Rig::drill();
    open_to_server(rig.dir());
    let with = json!({ "dir": rig.dir(), "buffer_pool_mb": 32 });
    let name = "killed::a_clone_that_is_killed_at_any_moment_is_made_anew";
    // Each takes seconds, as a server is made from nothing.
    let step = if std::env::var_os("LIFEBOAT_TEST_LONG").is_some() { 1 } else { 3 };
    for moment in (0..MOST).step_by(step) {
        rig.begin_run();
        let fate = killed::at(&rig, name, ("mariadb.clone", &with), moment);
        let done = rig.run("mariadb.clone", with.clone()).await;
        let done = done.unwrap_or_else(|error| panic!("after moment {moment}: {error:?}"));
        let socket = Path::new(done.outputs["socket"].as_str().unwrap());
        assert_eq!(sql_at(socket, "select @@skip_networking").unwrap(), "1", "{moment}");
        let homes = names(rig.dir()).iter().filter(|name| name.starts_with("lifeboat-")).count();
        assert_eq!(homes as u64, 1 + moment / step as u64, "{moment}: one for each run");
        if fate == Fate::Finished {
            assert!(moment >= 6, "only {moment} moments");
            return;
        }
    }
    panic!("it is always killed");
}
