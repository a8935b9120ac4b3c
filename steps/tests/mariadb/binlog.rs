//! The binary log of a real server: shipped, and replayed to a moment between two transactions.

use std::path::PathBuf;

use jiff::Timestamp;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::model::evidence::Confidence;
use lifeboat_engine::model::outcome::FailureKind;
use lifeboat_engine::step::StepError;
use serde_json::{Value, json};

use super::change::{SLEEPING, poll};
use crate::support::mariadb::{Mariadb, open_to_server};
use crate::support::proxy::eventually;
use crate::support::rig::Rig;

/// A source of which a dump is in the store, and a target into which it was restored.
pub(super) struct World {
    pub(super) rig: Rig,
    pub(super) source: Mariadb,
    pub(super) target: Mariadb,
    /// The moment of transactions, in seconds; each has one of its own.
    now: i64,
}

impl World {
    pub(super) async fn new() -> Self {
        let mut rig = Rig::drill();
        open_to_server(rig.dir());
        let source = Mariadb::start(&rig.dir().join("source"), 11);
        source.sql("create database shop; create table shop.t (n int primary key, at datetime)");
        let target = Mariadb::start(&rig.dir().join("target"), 22);
        let store = format!("dir://{}", rig.dir().join("store").display());
        rig.set_resource("backups", json!({ "kind": "store", "url": store }));
        rig.set_resource("db", source.resource());
        rig.set_resource("target", target.resource());
        let world = Self { rig, source, target, now: Timestamp::now().as_second() + 1000 };
        world.dump("dump").await;
        world.restore("restore").await;
        world
    }

    pub(super) async fn dump(&self, step: &str) {
        let with = json!({ "server": "db", "store": "backups", "users": false });
        self.rig.run_as(step, "mariadb.dump", with).await.unwrap();
    }

    pub(super) async fn restore(&self, step: &str) {
        let with = json!({ "server": "target", "store": "backups", "users": "skip" });
        self.rig.run_as(step, "mariadb.restore_dump", with).await.unwrap();
    }

    /// Commits one transaction at a second of its own; returns that second.
    pub(super) fn commit(&mut self, n: u32) -> i64 {
        self.now += 10;
        self.commit_at(self.now, n)
    }

    fn commit_at(&self, second: i64, n: u32) -> i64 {
        self.source.sql(&format!(
            "set timestamp = {second}; insert into shop.t (n, at) values ({n}, from_unixtime({second}))"
        ));
        second
    }

    pub(super) async fn ship(&self, step: &str) -> Result<Done, StepError> {
        self.rig.run_as(step, "mariadb.ship_binlogs", json!({ "server": "db", "store": "backups" })).await
    }

    pub(super) async fn replay(&self, step: &str, until: Value) -> Result<Done, StepError> {
        let mut with = json!({ "server": "target", "store": "backups" });
        with.as_object_mut().unwrap().extend(until.as_object().unwrap().clone());
        self.rig.run_as(step, "mariadb.replay_binlog", with).await
    }

    pub(super) fn rows(&self) -> String {
        self.target.sql("select group_concat(n order by n) from shop.t")
    }

    pub(super) fn shipped(&self, server: u32) -> PathBuf {
        self.rig.dir().join("store/binlog/db").join(server.to_string())
    }
}

fn at(second: i64) -> Value {
    json!({ "target_time": Timestamp::from_second(second).unwrap() })
}

fn files(done: &Done) -> usize {
    done.outputs["shipped"].as_array().unwrap().len()
}

#[tokio::test(flavor = "multi_thread")]
async fn exactly_the_transactions_before_the_target_are_there() {
    let mut world = World::new().await;
    let first = world.commit(1);
    world.source.sql(
        "create temporary table shop.tmp (n int); insert into shop.tmp values (2); flush binary logs; \
         insert into shop.t select n, now() from shop.tmp",
    );
    world.source.sql("set binlog_format = 'ROW'; insert into shop.t values (3, null); update shop.t set n = n + 100 where n = 3");
    // The temporary table is made in one file and read in the next.
    assert_eq!(files(&world.ship("ship1").await.unwrap()), 2);
    // The log is spread over several files, and transactions follow each other by seconds.
    let middle = world.commit(4);
    world.source.sql("flush binary logs; alter table shop.t add note varchar(9)");
    let last = world.commit_at(middle + 10, 5);
    world.commit_at(middle + 10, 6);
    let after = world.commit_at(middle + 20, 7);
    let shipped = world.ship("ship2").await.unwrap();
    assert_eq!(files(&shipped), 2);
    assert_eq!(files(&world.ship("ship3").await.unwrap()), 0, "nothing was written since");
    assert!(first < middle);

    let done = world.replay("replay", at(last)).await.unwrap();
    // 2 and 103 were committed at the machine's own time, before all the others.
    assert_eq!(world.rows(), "1,2,4,103");
    assert_eq!(done.outputs["planned"], done.outputs["applied"]);
    assert!(done.checks.len() == 3 && done.checks.iter().all(|check| check.passed), "{:?}", done.checks);
    assert_eq!(done.outputs["reached"], json!(Timestamp::from_second(middle).unwrap()));
    assert_eq!(done.outputs["end_of_log"], json!(false));
    assert_eq!(done.recovery_points[0].confidence, Confidence::Measured);
    assert_eq!(done.recovery_points[0].time, Timestamp::from_second(middle).unwrap().to_string());
    assert_eq!(world.target.sql("select @@gtid_binlog_pos"), done.outputs["gtid"].as_str().unwrap());
    let again = world.replay("replay", at(last)).await.unwrap();
    assert_eq!((&again.outputs["applied"], world.rows().as_str()), (&json!(0), "1,2,4,103"), "nothing twice");

    // Going on, to the first of two transactions of one second, by its id.
    let second_of_two = done.outputs["stopped_before"].as_str().unwrap().to_owned();
    let (domain, sequence) = second_of_two.rsplit_once('-').unwrap();
    let next = format!("{domain}-{}", sequence.parse::<u64>().unwrap() + 1);
    let done = world.replay("further", json!({ "before_gtid": next })).await.unwrap();
    assert_eq!((world.rows().as_str(), &done.outputs["applied"]), ("1,2,4,5,103", &json!(1)));
    // In the middle of a second nobody knows what was before, and it is said.
    let inside = Timestamp::from_millisecond(after * 1000 + 500).unwrap();
    let done = world.replay("inside", json!({ "target_time": inside })).await.unwrap();
    assert_eq!(world.rows(), "1,2,4,5,6,103");
    assert!(
        done.warnings.iter().any(|it| it.starts_with("1 transactions of the target's own second")),
        "{:?}",
        done.warnings
    );
    let done = world.replay("end", json!({})).await.unwrap();
    assert_eq!((world.rows().as_str(), &done.outputs["end_of_log"]), ("1,2,4,5,6,7,103", &json!(true)));
    // A target that nothing which was shipped reaches.
    let done = world.replay("beyond", at(after + 5000)).await.unwrap();
    assert!(
        done.warnings.iter().any(|it| it.contains("replayed to its end before the target")),
        "{:?}",
        done.warnings
    );
    let note = world.target.sql(
        "select count(*) from information_schema.columns where table_name = 't' and column_name = 'note'",
    );
    assert_eq!(note, "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_more_than_the_server_takes_in_one_statement_is_replayed() {
    let world = World::new().await;
    world.source.sql(
        "use shop; set binlog_format = 'ROW'; create table shop.wide (id int primary key, note varchar(1000)); \
         insert into shop.wide select seq, repeat(seq, 150) from seq_10000_to_40000",
    );
    world.ship("ship").await.unwrap();
    let packet = "select @@global.max_allowed_packet";
    let before = world.target.sql(packet);
    let done = world.replay("replay", json!({})).await.unwrap();
    assert_eq!((&done.outputs["planned"], &done.outputs["applied"]), (&json!(2), &json!(2)));
    let look = "checksum table shop.wide";
    assert_eq!(world.target.sql(look), world.source.sql(look));
    assert_eq!(world.target.sql(packet), before, "the setting is put back");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_active_file_is_never_shipped_and_others_are_what_the_server_has() {
    let mut world = World::new().await;
    world.commit(1);
    let without = json!({ "server": "db", "store": "backups", "rotate": false });
    let done = world.rig.run_as("still", "mariadb.ship_binlogs", without).await.unwrap();
    assert_eq!((files(&done), &done.outputs["covered_until"]), (0, &json!(null)));
    let before = Timestamp::now();
    let done = world.ship("ship").await.unwrap();
    let covered: Timestamp = done.outputs["covered_until"].as_str().unwrap().parse().unwrap();
    assert!(covered >= before);
    let name = done.outputs["newest"].as_str().unwrap();
    let packed = std::fs::File::open(world.shipped(11).join(format!("{name}.zst"))).unwrap();
    let ours = zstd::decode_all(packed).unwrap();
    assert_eq!(ours, std::fs::read(world.source.data_dir().join(name)).unwrap());

    // A description that was never written: the next attempt ships the same file again, and the one begun since.
    std::fs::remove_file(world.shipped(11).join(format!("{name}.json"))).unwrap();
    assert_eq!(files(&world.ship("again").await.unwrap()), 2);
    // A server that was killed leaves a file without an end; the one after it proves that it is whole.
    world.commit(2);
    world.source.kill();
    world.source.up(&[]);
    world.commit(3);
    assert_eq!(files(&world.ship("killed").await.unwrap()), 2);
    let done = world.replay("replay", json!({})).await.unwrap();
    assert_eq!((world.rows().as_str(), &done.outputs["planned"]), ("1,2,3", &json!(3)));
}

/// The names of the binary log files that the server lists.
fn logs(server: &Mariadb) -> Vec<String> {
    let listed = server.sql("show binary logs");
    listed.lines().map(|line| line.split('\t').next().unwrap().to_owned()).collect()
}

/// Purges until it is done: the server silently keeps a file for as long as a connection that
/// has just ended still reads it, or its transactions wait for a checkpoint.
fn purge_all_but_two(server: &Mariadb) {
    let names = logs(server);
    let kept = &names[names.len() - 2..];
    eventually("the server has purged its older files", || {
        server.sql(&format!("purge binary logs to '{}'", kept[0]));
        logs(server) == kept
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn gaps_and_files_of_others_are_failures() {
    let mut world = World::new().await;
    for n in 1..=4 {
        world.commit(n);
        world.source.sql("flush binary logs");
    }
    // One of them is gone before it was shipped.
    let names = logs(&world.source);
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    world.ship("ship").await.unwrap();
    let (json, zst) = (|n: &str| format!("{n}.json"), |n: &str| format!("{n}.zst"));
    let store = world.shipped(11);
    let take = |name: &str| {
        let saved = [json(name), zst(name)].map(|file| std::fs::read(store.join(file)).unwrap());
        [json(name), zst(name)].iter().for_each(|file| std::fs::remove_file(store.join(file)).unwrap());
        saved
    };
    let saved = take(names[1]);
    let gap = world.replay("gap", json!({})).await.unwrap_err();
    assert!(gap.code.id == "LB2042" && gap.message.contains(names[2]), "{gap}");
    assert_eq!(world.rows(), "NULL", "nothing was replayed");
    std::fs::write(store.join(json(names[1])), &saved[0]).unwrap();
    // A damaged file, and one of another history under the same name.
    let mut flipped = saved[1].clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    std::fs::write(store.join(zst(names[1])), flipped).unwrap();
    let damaged = world.replay("damaged", json!({})).await.unwrap_err();
    assert!(["LB1108", "LB1111", "LB2041", "LB1103"].contains(&damaged.code.id), "{damaged}");
    std::fs::write(store.join(zst(names[1])), &saved[1]).unwrap();
    assert_eq!(world.rows(), "NULL");

    let other = Mariadb::start(&world.rig.dir().join("other"), 11);
    other.sql("create database shop; create table shop.t (n int primary key, at datetime)");
    other
        .sql("insert into shop.t values (77, null); flush binary logs; insert into shop.t values (78, null)");
    world.rig.set_resource("db", other.resource());
    let taken = world.ship("other").await.unwrap_err();
    assert_eq!(taken.code.id, "LB2043", "{taken}");
    assert!(world.shipped(11).join(json(names[0])).exists());
    world.rig.set_resource("db", world.source.resource());
    let stream = json!({ "server": "db", "store": "backups", "stream": "elsewhere" });
    world.rig.run_as("elsewhere", "mariadb.ship_binlogs", stream).await.unwrap();
    assert!(world.rig.dir().join("store/binlog/elsewhere/11").is_dir());

    // Purged before it was shipped: found when it happens.
    world.commit(5);
    world.source.sql("flush binary logs");
    world.commit(6);
    world.source.sql("flush binary logs");
    purge_all_but_two(&world.source);
    let purged = world.ship("purged").await.unwrap_err();
    assert!(purged.code.id == "LB2042" && purged.help.unwrap().contains("new dump"));
    let gap = world.replay("gap", json!({})).await.unwrap_err();
    assert_eq!(gap.code.id, "LB2042");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_with_writes_of_its_own_is_refused_and_a_cut_off_replay_goes_on() {
    let mut world = World::new().await;
    let early = world.commit(1);
    for n in 2..=5 {
        world.commit(n);
    }
    world.ship("ship").await.unwrap();
    // The server refuses the third one: the replay stops there, and says what it has.
    world.target.sql("set sql_log_bin = 0; insert into shop.t values (3, null)");
    let stopped = world.replay("replay", json!({})).await.unwrap_err();
    assert!(stopped.code.id == "LB2053" && stopped.message.contains("Duplicate"), "{stopped}");
    assert_eq!(world.rows(), "1,2,3");
    world.target.sql("set sql_log_bin = 0; delete from shop.t where n = 3");
    let done = world.replay("replay", json!({})).await.unwrap();
    assert_eq!((&done.outputs["planned"], &done.outputs["applied"]), (&json!(5), &json!(3)));
    assert_eq!(world.rows(), "1,2,3,4,5");
    // Less than is there cannot be replayed into it any more.
    let back = world.replay("back", at(early + 1)).await.unwrap_err();
    assert_eq!(back.code.id, "LB2051", "{back}");

    world.target.sql("drop database shop; drop database lifeboat_restored; reset master");
    let none = world.replay("none", json!({})).await.unwrap_err();
    assert_eq!(none.code.id, "LB2050", "nothing was restored");
    world.restore("restore_again").await;
    world.target.sql("create user somebody@localhost");
    let own = world.replay("own", json!({})).await.unwrap_err();
    assert!(own.code.id == "LB2051" && own.message.contains("0-22-1"), "{own}");
    assert_eq!(world.rows(), "NULL");
    let early = world.replay("early", at(1_000_000)).await.unwrap_err();
    assert_eq!(early.code.id, "LB2052");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_programs_leave_what_a_retry_completes() {
    let mut world = World::new().await;
    let mut script = String::new();
    for n in 1..=3000 {
        script.push_str(&format!("insert into shop.t values ({n}, now());"));
    }
    world.source.sql(&script);
    world.commit(9000);
    world.ship("ship").await.unwrap();
    // Somebody keeps it from going on after the middle.
    let mut holder = world.target.session(
        "set sql_log_bin = 0; start transaction; insert into shop.t values (1500, null); select sleep(300)",
    );
    let sleeper = poll(&world.target, SLEEPING).await;
    // The step is ended there, as when Lifeboat is told to stop; its programs go with it.
    let cut = async {
        poll(
            &world.target,
            "select count(*) from information_schema.innodb_trx where trx_state = 'LOCK WAIT'",
        )
        .await;
        world.rig.cancel.cancel();
    };
    let (replayed, ()) = tokio::join!(world.replay("replay", json!({})), cut);
    assert!(replayed.is_err());
    assert_eq!(world.target.sql("select count(*) from shop.t"), "1499");
    world.target.sql(&format!("kill {sleeper}"));
    holder.wait().expect("our own child");
    world.rig.cancel = tokio_util::sync::CancellationToken::new();
    let done = world.replay("replay", json!({})).await.unwrap();
    assert_eq!(done.outputs["planned"], json!(3001));
    assert!(done.outputs["applied"].as_u64().unwrap() < 3001);
    let both = "select count(*), sum(n) from shop.t";
    assert_eq!(world.target.sql(both), world.source.sql(both));
    assert!(done.checks.iter().all(|check| check.passed));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_of_a_replica_is_replayed_whole() {
    let mut world = World::new().await;
    // What a replica logs carries the ids of its source, in files of its own.
    world.commit(1);
    world.source.sql("set server_id = 99, gtid_seq_no = 500; insert into shop.t values (2, now())");
    world.source.sql("set server_id = 99, gtid_domain_id = 3; insert into shop.t values (3, now())");
    world.commit(4);
    world.ship("ship").await.unwrap();
    let done = world.replay("replay", json!({})).await.unwrap();
    assert_eq!((world.rows().as_str(), &done.outputs["planned"]), ("1,2,3,4", &json!(4)));
    assert!(done.outputs["gtid"].as_str().unwrap().contains("3-99-1"), "{}", done.outputs["gtid"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_encrypted_log_is_refused_and_what_follows_a_new_dump_is_not() {
    let mut world = World::new().await;
    let keys = world.rig.dir().join("keys");
    std::fs::write(&keys, format!("1;{}\n", "a7".repeat(32))).unwrap();
    world.commit(1);
    let filename = format!("--file-key-management-filename={}", keys.display());
    let plugin = ["--plugin-load-add=file_key_management", filename.as_str()];
    world.source.down();
    world.source.up(&[plugin[0], plugin[1], "--encrypt-binlog=1"]);
    world.commit(2);
    let error = world.ship("ship").await.unwrap_err();
    assert_eq!((error.code.id, error.kind), ("LB2058", FailureKind::Permanent), "{error}");
    assert!(!world.shipped(11).exists());
    // Encrypted files of before are found when they are read.
    world.source.down();
    world.source.up(&plugin);
    world.commit(3);
    let error = world.ship("ship").await.unwrap_err();
    assert!(error.code.id == "LB2058" && error.message.contains("binlog.00000"), "{error}");
    purge_all_but_two(&world.source);
    let stream = json!({ "server": "db", "store": "backups", "stream": "anew" });
    world.rig.run_as("anew", "mariadb.ship_binlogs", stream).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_replica_can_be_the_source() {
    use crate::support::postgres::free_port;
    let mut world = World::new().await;
    // What is dumped and shipped is not the server that the application writes to, but one that follows it.
    let port = free_port();
    let mut primary = Mariadb::start(&world.rig.dir().join("primary"), 7);
    primary.down();
    primary.up(&["--skip-networking=0", "--bind-address=127.0.0.1", &format!("--port={port}")]);
    primary.sql("create user follower@'127.0.0.1' identified by 'pw'; grant replication slave on *.* to follower@'127.0.0.1'");
    world.source.sql("set sql_log_bin = 0; drop database shop; set sql_log_bin = 1; reset master");
    world.source.down();
    world.source.up(&["--log-slave-updates=1"]);
    world.source.sql(&format!(
        "change master to master_host = '127.0.0.1', master_port = {port}, master_user = 'follower', master_password = 'pw', \
         master_use_gtid = slave_pos; start slave"
    ));
    primary.sql("create database shop; create table shop.t (n int primary key, at datetime)");
    let follows = |world: &World| {
        let wanted = primary.sql("select @@gtid_binlog_pos");
        eventually("the replica has followed", || world.source.sql("select @@gtid_slave_pos") == wanted);
    };
    follows(&world);
    world.target.sql("set sql_log_bin = 0; drop database shop; drop database lifeboat_restored");
    world.rig.begin_run();
    world.dump("dump").await;
    world.restore("restore").await;
    let now = Timestamp::now().as_second() + 1000;
    for n in 1..=5 {
        let second = now + i64::from(n) * 10;
        primary.sql(&format!("set timestamp = {second}; insert into shop.t values ({n}, null)"));
    }
    follows(&world);
    let shipped = world.ship("ship").await.unwrap();
    assert_eq!(shipped.outputs["gtid"], json!(primary.sql("select @@gtid_binlog_pos")));
    let done = world.replay("replay", at(now + 35)).await.unwrap();
    assert_eq!((world.rows().as_str(), &done.outputs["planned"]), ("1,2,3", &json!(3)));
    assert!(done.checks.iter().all(|check| check.passed), "{:?}", done.checks);
    assert_eq!(done.outputs["stopped_before"], json!(format!("0-7-{}", last_sequence(&done) + 1)));
}

/// The number of the last transaction in the data.
fn last_sequence(done: &Done) -> u64 {
    done.outputs["gtid"].as_str().unwrap().rsplit('-').next().unwrap().parse().unwrap()
}
