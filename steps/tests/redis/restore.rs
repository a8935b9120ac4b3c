//! Snapshots and restores of real Redis servers.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::model::evidence::{Confidence, CreatedKind};
use lifeboat_engine::secret::SecretRef;
use lifeboat_engine::step::StepError;
use redis::Commands;
use serde_json::{Value, json};

use crate::support;
use crate::support::redis::{Redis, connect};
use crate::support::rig::Rig;

/// A source with data, a store, and the description of a target that steps start themselves.
pub(super) struct World {
    pub(super) rig: Rig,
    pub(super) source: Redis,
    pub(super) target_port: u16,
}

impl World {
    pub(super) fn new(target_settings: &[&str]) -> Self {
        let rig = Rig::drill();
        let source = Redis::start(&rig.dir().join("source"), &[]);
        fill(&mut source.connect());
        let target_port = support::web::closed_port();
        let mut world = Self { rig, source, target_port };
        std::fs::create_dir(world.target_dir()).unwrap();
        let store = format!("dir://{}", world.rig.dir().join("store").display());
        world.rig.set_resource("backups", json!({ "kind": "store", "url": store }));
        world.rig.set_resource("cache", json!({ "kind": "redis", "url": world.source.url() }));
        world.describe_target(target_settings);
        world
    }

    pub(super) fn target_dir(&self) -> PathBuf {
        self.rig.dir().join("target")
    }

    pub(super) fn describe_target(&mut self, settings: &[&str]) {
        let dir = self.target_dir();
        let mut command = vec!["redis-server".to_owned(), "--port".into(), self.target_port.to_string()];
        command.extend(["--bind", "127.0.0.1", "--dir", dir.to_str().unwrap()].map(ToOwned::to_owned));
        command.extend(settings.iter().map(|&word| word.to_owned()));
        let written = json!({
            "kind": "redis", "url": format!("redis://127.0.0.1:{}", self.target_port), "data_dir": dir,
            "service": {
                "manager": "process", "command": command,
                "pid_file": self.rig.dir().join("target.pid"), "log_file": self.rig.dir().join("target.log"),
            },
        });
        let mut service = written["service"].clone();
        service["kind"] = json!("service");
        self.rig.set_resource("target_service", service);
        self.rig.set_resource("target", written);
    }

    pub(super) async fn snapshot(&self, step: &str) -> Done {
        self.rig
            .run_as(step, "redis.snapshot", json!({ "server": "cache", "store": "backups" }))
            .await
            .unwrap()
    }

    pub(super) async fn restore(&self, more: Value) -> Result<Done, StepError> {
        let mut with = json!({ "server": "target", "store": "backups" });
        with.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.rig.run("redis.restore", with).await
    }

    pub(super) fn target(&self) -> redis::Connection {
        connect(self.target_port, None)
    }
}

fn fill(connection: &mut redis::Connection) {
    for number in 0..500 {
        let _: () = connection.set(format!("member:{number}"), number).unwrap();
    }
    let _: () = connection.set_ex("session:1", "x", 3600).unwrap();
    let _: () = redis::cmd("SELECT").arg(3).query(connection).unwrap();
    let _: () = connection.hset("settings", "site", "members").unwrap();
}

pub(super) fn size(connection: &mut redis::Connection, database: u32) -> u64 {
    let _: () = redis::cmd("SELECT").arg(database).query(connection).unwrap();
    redis::cmd("DBSIZE").query(connection).unwrap()
}

pub(super) fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_holds_what_was_acknowledged_before_it_and_is_described() {
    let world = World::new(&[]);
    let before = Timestamp::now();
    let done = world.snapshot("snapshot").await;
    assert_eq!(done.outputs["keys"], json!(502));
    let taken_at: Timestamp = done.outputs["taken_at"].as_str().unwrap().parse().unwrap();
    // The server's clock for it is coarse.
    assert!(taken_at.as_second() + 1 >= before.as_second() && taken_at <= Timestamp::now());
    let label = done.outputs["backup"].as_str().unwrap();
    let dir = world.rig.dir().join("store/redis").join(label);
    assert_eq!(names(&dir), ["dump.rdb", "lifeboat.json"]);
    let marker: Value = serde_json::from_slice(&std::fs::read(dir.join("lifeboat.json")).unwrap()).unwrap();
    assert_eq!(
        marker["details"]["databases"],
        json!({
            "0": { "keys": 501, "expires": 1 }, "3": { "keys": 1, "expires": 0 },
        })
    );
    // A second attempt of the same step finds its backup and takes no other one.
    assert_eq!(world.snapshot("snapshot").await.outputs, done.outputs);
    assert_eq!(names(&world.rig.dir().join("store/redis")).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_files_are_out_of_reach_is_asked_as_by_a_replica() {
    let password = SecretRef::Env("PW".into());
    let mut world = World::new(&[]);
    let locked = Redis::start(
        &world.rig.dir().join("locked"),
        &["--requirepass", "s3cret pass", "--rename-command", "CONFIG", ""],
    );
    let _: () = connect(locked.port, Some("s3cret%20pass")).set("a", 1).unwrap();
    world.rig = world.rig.secret(password, "s3cret pass");
    world
        .rig
        .set_resource("cache", json!({ "kind": "redis", "url": locked.url(), "password": { "env": "PW" } }));
    let done = world.snapshot("snapshot").await;
    assert_eq!(done.outputs["keys"], json!(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_named() {
    let world = World::new(&[]);
    let locked = Redis::start(&world.rig.dir().join("locked"), &["--requirepass", "right"]);
    let mut rig = world.rig;
    rig.set_resource("cache", json!({ "kind": "redis", "url": locked.url() }));
    let error = rig.run("redis.verify", json!({ "server": "cache" })).await.unwrap_err();
    assert!(matches!(error.code.id, "LB1301" | "LB1302"), "{error:?}");
    assert!(error.causes.join(" ").contains("NOAUTH"), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_server_is_restored_and_its_old_files_are_kept() {
    let world = World::new(&["--save", "1 1"]);
    let taken = world.snapshot("snapshot").await;
    std::fs::write(world.target_dir().join("dump.rdb"), "old").unwrap();
    let done = world.restore(json!({})).await.unwrap();
    assert_eq!((done.outputs["keys"].clone(), done.outputs["expired"].clone()), (json!(502), json!(0)));
    let point = &done.recovery_points[0];
    assert_eq!(point.confidence, Confidence::Stated);
    assert_eq!(json!(point.time), taken.outputs["taken_at"]);
    assert!(done.checks.iter().all(|check| check.passed), "{:?}", done.checks);
    assert_eq!(size(&mut world.target(), 0), 501);
    assert_eq!(size(&mut world.target(), 3), 1);
    let aside = PathBuf::from(done.outputs["moved_aside"][0].as_str().unwrap());
    assert_eq!(std::fs::read_to_string(&aside).unwrap(), "old");
    let recorded = &world.rig.reported().created;
    let moved = recorded
        .iter()
        .any(|thing| matches!(&thing.kind, CreatedKind::MovedAside { to, .. } if *to == aside));
    assert!(moved, "{recorded:?}");
    let served = recorded.iter().any(|thing| matches!(thing.kind, CreatedKind::Process { .. }));
    assert!(served, "the server is recorded");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_server_with_save_points_cannot_overwrite_the_snapshot() {
    let world = World::new(&["--save", "1 1"]);
    world.snapshot("snapshot").await;
    // What runs before the restore is started by the same description.
    world.restore(json!({})).await.unwrap();
    let _: () = redis::cmd("FLUSHALL").query(&mut world.target()).unwrap();
    let _: () = world.target().set("later", 1).unwrap();
    let again =
        world.rig.run_as("again", "redis.restore", json!({ "server": "target", "store": "backups" })).await;
    assert_eq!(again.unwrap().outputs["keys"], json!(502));
    assert!(!world.target().exists::<_, bool>("later").unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_append_only_file_that_would_win_is_refused_before_anything_is_touched() {
    let world = World::new(&["--appendonly", "yes"]);
    world.snapshot("snapshot").await;
    let error = world.restore(json!({})).await.unwrap_err();
    assert_eq!(error.code.id, "LB1306");
    assert_eq!(names(&world.target_dir()), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_append_only_file_is_rebuilt_from_the_snapshot_and_survives_a_restart() {
    let world = World::new(&["--appendonly", "yes"]);
    world.snapshot("snapshot").await;
    {
        let old = Redis::start(&world.target_dir(), &["--appendonly", "yes"]);
        let _: () = old.connect().set("old", 1).unwrap();
    }
    let done = world.restore(json!({ "append_only": "rewrite" })).await.unwrap();
    assert_eq!(done.outputs["keys"], json!(502));
    assert_eq!(done.outputs["moved_aside"].as_array().unwrap().len(), 1, "{:?}", names(&world.target_dir()));
    let _: () = world.target().set("written after", 1).unwrap();
    let stop = redis::cmd("SHUTDOWN").query::<()>(&mut world.target());
    assert!(stop.is_err(), "the connection closes");
    let again = Redis::start(&world.target_dir(), &["--appendonly", "yes"]);
    assert_eq!(size(&mut again.connect(), 0), 502, "snapshot and later write");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_snapshot_before_the_target_is_chosen() {
    let world = World::new(&[]);
    let first = world.snapshot("first").await;
    let between = Timestamp::now();
    let _: () = world.source.connect().set("later", 1).unwrap();
    world.snapshot("second").await;
    let chosen = world.restore(json!({ "target_time": between })).await.unwrap();
    assert_eq!(chosen.outputs["backup"], first.outputs["backup"]);
    let early = world.rig.run_as(
        "early",
        "redis.restore",
        json!({ "server": "target", "store": "backups", "target_time": "2020-01-01T00:00:00Z" }),
    );
    let error = early.await.unwrap_err();
    assert_eq!(error.code.id, "LB1304");
    assert_eq!(error.causes.len(), 2, "{:?}", error.causes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_of_another_server_is_not_taken_for_this_ones() {
    let mut world = World::new(&[]);
    let wanted = world.snapshot("first").await;
    let queue = Redis::start(&world.rig.dir().join("queue"), &[]);
    world.rig.set_resource("queue", json!({ "kind": "redis", "url": queue.url() }));
    let other = json!({ "server": "queue", "store": "backups" });
    world.rig.run_as("queue", "redis.snapshot", other).await.unwrap();
    assert_eq!(world.restore(json!({})).await.unwrap_err().code.id, "LB1304");
    let done = world.restore(json!({ "source": "cache" })).await.unwrap();
    assert_eq!(done.outputs["backup"], wanted.outputs["backup"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_snapshot_is_refused_before_the_target_is_touched() {
    let world = World::new(&[]);
    let label = world.snapshot("snapshot").await.outputs["backup"].as_str().unwrap().to_owned();
    let file = world.rig.dir().join("store/redis").join(label).join("dump.rdb");
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xff;
    std::fs::write(&file, bytes).unwrap();
    let error = world.restore(json!({})).await.unwrap_err();
    assert_eq!(error.code.id, "LB1305");
    assert_eq!(names(&world.target_dir()), Vec::<String>::new());
    assert!(world.rig.reported().created.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn another_server_on_the_port_is_not_touched() {
    let world = World::new(&[]);
    world.snapshot("snapshot").await;
    let mut rig = world.rig;
    let written = json!({
        "kind": "redis", "url": world.source.url(), "data_dir": rig.dir().join("target"),
        "service": { "manager": "process", "command": ["redis-server"] },
    });
    rig.set_resource("target", written);
    let error =
        rig.run("redis.restore", json!({ "server": "target", "store": "backups" })).await.unwrap_err();
    assert_eq!(error.code.id, "LB1308");
    assert_eq!(size(&mut world.source.connect(), 0), 501);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_and_an_undescribed_server_are_refused() {
    let world = World::new(&[]);
    world.snapshot("snapshot").await;
    let replica = Redis::start(
        &world.rig.dir().join("replica"),
        &["--replicaof", &format!("127.0.0.1 {}", world.source.port)],
    );
    let mut rig = world.rig;
    let with = json!({ "server": "target", "store": "backups" });
    rig.set_resource(
        "target",
        json!({
            "kind": "redis", "url": replica.url(), "data_dir": replica.dir,
            "service": { "manager": "process", "command": ["redis-server"] },
        }),
    );
    assert_eq!(rig.run("redis.restore", with.clone()).await.unwrap_err().code.id, "LB1307");
    rig.set_resource("target", json!({ "kind": "redis", "url": world.source.url() }));
    let error = rig.run("redis.restore", with).await.unwrap_err();
    assert_eq!(error.code.id, "LB1307");
    assert!(error.message.contains("data_dir"), "{}", error.message);
}

#[tokio::test(flavor = "multi_thread")]
async fn verification_counts_and_asks() {
    let world = World::new(&[]);
    let query = |expect: &str| {
        json!({ "server": "cache", "expect": ["keys == 502", "databases.db3 == 1"], "queries": [
            { "name": "site", "command": ["GET", "member:7"], "expect": [expect] },
        ] })
    };
    let done = world.rig.run("redis.verify", query("result == '7'")).await.unwrap();
    assert_eq!(done.outputs["keys"], json!(502));
    let error = world.rig.run("redis.verify", query("result == '8'")).await.unwrap_err();
    assert_eq!(error.code.id, "LB1310");
    assert_eq!(error.checks.iter().filter(|check| !check.passed).count(), 1);
    let writing = json!({ "server": "cache", "queries": [{ "name": "x", "command": ["DEL", "a"], "expect": ["true"] }] });
    assert_eq!(world.rig.run("redis.verify", writing).await.unwrap_err().code.id, "LB1330");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_cannot_start_says_why() {
    let world = World::new(&["--no-such-setting", "1"]);
    world.snapshot("snapshot").await;
    let error = world.restore(json!({})).await.unwrap_err();
    assert_eq!(error.code.id, "LB1309");
    assert!(error.causes.join(" ").contains("no-such-setting"), "{:?}", error.causes);
}

fn with() -> Value {
    json!({ "server": "target", "store": "backups" })
}

#[tokio::test(flavor = "multi_thread")]
async fn undo_of_a_restore_brings_the_earlier_data_back_and_the_server_runs_as_before() {
    let world = World::new(&["--save", "3600 1"]);
    world.snapshot("snapshot").await;
    // What runs before the restore, with data of its own.
    world.rig.run("service.start", json!({ "service": "target_service" })).await.unwrap();
    support::postgres::wait_until("it listens", || {
        std::net::TcpStream::connect(("127.0.0.1", world.target_port)).is_ok()
    });
    let _: () = world.target().set("mine", "earlier").unwrap();
    let _: () = redis::cmd("SAVE").query(&mut world.target()).unwrap();
    world.restore(json!({})).await.unwrap();
    assert_eq!(size(&mut world.target(), 0), 501);
    world.rig.undo("redis.restore", with()).await.unwrap();
    let mine: Option<String> = world.target().get("mine").unwrap();
    assert_eq!((mine.as_deref(), size(&mut world.target(), 0)), (Some("earlier"), 1));
    let kept = world.target_dir().join(format!("dump.rdb.undone-{}", world.rig.run_id.short()));
    assert!(kept.exists(), "{:?}", names(&world.target_dir()));
    assert!(!world.rig.made_at().contains(&world.target_dir().join("dump.rdb")));
    world.rig.undo("redis.restore", with()).await.unwrap();
    let mine: Option<String> = world.target().get("mine").unwrap();
    assert_eq!(mine.as_deref(), Some("earlier"), "again is no harm");
}

#[tokio::test(flavor = "multi_thread")]
async fn undo_leaves_a_server_stopped_that_did_not_run() {
    let world = World::new(&["--save", ""]);
    world.snapshot("snapshot").await;
    std::fs::write(world.target_dir().join("dump.rdb"), "old").unwrap();
    world.restore(json!({})).await.unwrap();
    world.rig.undo("redis.restore", with()).await.unwrap();
    assert_eq!(std::fs::read_to_string(world.target_dir().join("dump.rdb")).unwrap(), "old");
    assert!(std::net::TcpStream::connect(("127.0.0.1", world.target_port)).is_err(), "nothing listens");
}

#[tokio::test(flavor = "multi_thread")]
async fn undo_of_a_restore_that_touched_nothing_does_nothing() {
    let world = World::new(&[]);
    world.restore(json!({})).await.unwrap_err();
    world.rig.undo("redis.restore", with()).await.unwrap();
    assert_eq!(names(&world.target_dir()), Vec::<String>::new());
}
