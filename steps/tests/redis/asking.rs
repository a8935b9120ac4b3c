//! Questions that change nothing, and databases that are emptied.

use lifeboat_engine::model::event::Done;
use lifeboat_engine::secret::SecretRef;
use lifeboat_engine::step::StepError;
use redis::Commands;
use serde_json::{Value, json};

use super::restore::size;
use crate::support::redis::Redis;
use crate::support::rig::Rig;

/// A server with two databases, and a store.
pub(super) struct World {
    pub(super) rig: Rig,
    server: Redis,
}

impl World {
    pub(super) fn new(settings: &[&str]) -> Self {
        let mut rig = Rig::drill();
        let server = Redis::start(&rig.dir().join("server"), settings);
        let store = format!("dir://{}", rig.dir().join("store").display());
        rig.set_resource("backups", json!({ "kind": "store", "url": store }));
        rig.set_resource("cache", json!({ "kind": "redis", "url": server.url() }));
        let world = Self { rig, server };
        world.fill();
        world
    }

    /// Four keys in database 0, and one in database 3.
    pub(super) fn fill(&self) {
        let mut connection = self.server.connect();
        for number in 0..1200 {
            let _: () = connection.rpush("list", number).unwrap();
        }
        let _: () = connection.set("name", "Ann").unwrap();
        let _: () = connection.set("raw", &[0xff_u8, 0x00][..]).unwrap();
        let _: () = connection.zadd("scores", "Ann", 1.5).unwrap();
        let _: () = redis::cmd("SELECT").arg(3).query(&mut connection).unwrap();
        let _: () = connection.hset("settings", "site", "members").unwrap();
    }

    /// What an attempt does that is killed between two databases.
    pub(super) fn empty_the_first(&self) {
        let _: () = redis::cmd("FLUSHDB").query(&mut self.server.connect()).unwrap();
    }

    async fn ask(&self, command: &[&str], more: Value) -> Result<Done, StepError> {
        let mut with = json!({ "server": "cache", "command": command });
        with.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.rig.run("redis.query", with).await
    }

    async fn flush(&self, more: Value) -> Result<Done, StepError> {
        let mut with = json!({ "server": "cache" });
        with.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.rig.run("redis.flush", with).await
    }

    pub(super) fn keys(&self) -> (u64, u64) {
        let mut connection = self.server.connect();
        (size(&mut connection, 0), size(&mut connection, 3))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_come_with_their_types_and_are_judged() {
    let world = World::new(&[]);
    for (command, result, rows) in [
        (vec!["GET", "name"], json!("Ann"), json!(["Ann"])),
        (vec!["GET", "absent"], Value::Null, json!([])),
        (vec!["GET", "raw"], json!("0xff00"), json!(["0xff00"])),
        (vec!["STRLEN", "name"], json!(3), json!([3])),
        (vec!["ZSCORE", "scores", "Ann"], json!(1.5), json!([1.5])),
        (vec!["LRANGE", "list", "0", "1"], json!(["0", "1"]), json!(["0", "1"])),
        (vec!["OBJECT", "ENCODING", "name"], json!("embstr"), json!(["embstr"])),
        (vec!["EVAL_RO", "return redis.call('GET', KEYS[1])", "1", "name"], json!("Ann"), json!(["Ann"])),
    ] {
        let done =
            world.ask(&command, json!({})).await.unwrap_or_else(|error| panic!("{command:?}: {error:?}"));
        assert_eq!((&done.outputs["result"], &done.outputs["rows"]), (&result, &rows), "{command:?}");
        assert_eq!(done.outputs["row_count"], json!(rows.as_array().unwrap().len()));
    }
    let settings = |expect: &str| json!({ "database": 3, "expect": [expect] });
    let done = world.ask(&["HGETALL", "settings"], settings("result.site == 'members'")).await.unwrap();
    assert_eq!(done.outputs["rows"], json!([{ "key": "site", "value": "members" }]));
    let error = world.ask(&["HGETALL", "settings"], settings("row_count == 2")).await.unwrap_err();
    assert_eq!((error.code.id, error.checks[0].actual.as_str()), ("LB1310", "row_count = 1"));
    let elsewhere = world.ask(&["EXISTS", "settings"], settings("result == 0")).await.unwrap_err();
    assert_eq!(elsewhere.code.id, "LB1310", "database 3 is asked, not 0");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_sent_that_could_write_wait_or_hold_the_server_up() {
    let world = World::new(&["--rename-command", "DEL", "READ"]);
    let before = world.keys();
    for command in [
        vec!["SET", "name", "x"],
        vec!["set", "name", "x"],
        vec!["GETDEL", "name"],
        vec!["FLUSHALL"],
        vec!["EVAL", "return redis.call('GET', KEYS[1])", "1", "name"],
        vec!["EVAL", "return redis.call('READ', KEYS[1])", "1", "name"],
        vec!["SORT", "list", "STORE", "other"],
        vec!["CONFIG", "GET", "dir"],
        vec!["CONFIG", "SET", "save", ""],
        vec!["PFCOUNT", "name"],
        vec!["SUBSCRIBE", "news"],
        vec!["XREAD", "BLOCK", "0", "STREAMS", "s", "$"],
        vec!["KEYS", "*"],
        vec!["MULTI"],
        vec!["DEBUG", "SLEEP", "0"],
        vec!["NO-SUCH", "x"],
        vec!["OBJECT", "NO-SUCH", "x"],
        // What it is called does not matter: the server says what it is.
        vec!["READ", "name"],
    ] {
        let error = world.ask(&command, json!({})).await.expect_err(command[0]);
        assert_eq!(error.code.id, "LB1330", "{command:?}: {error:?}");
    }
    // The server lets nothing write in a script that only reads.
    let script = ["EVAL_RO", "return redis.call('SET', KEYS[1], 'x')", "1", "name"];
    assert_eq!(world.ask(&script, json!({})).await.unwrap_err().code.id, "LB1302");
    assert_eq!(world.keys(), before);
    let name: String = world.server.connect().get("name").unwrap();
    assert_eq!(name, "Ann");
    let mut info = world.server.connect();
    let stats: String = redis::cmd("INFO").arg("commandstats").query(&mut info).unwrap();
    let never = ["cmdstat_eval:", "cmdstat_sort:", "cmdstat_keys:", "cmdstat_flushall:", "cmdstat_del:"];
    assert!(!never.iter().any(|sent| stats.contains(sent)), "{stats}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_of_any_size_takes_no_more_than_its_limit() {
    let world = World::new(&[]);
    let error = world.ask(&["LRANGE", "list", "0", "-1"], json!({})).await.unwrap_err();
    assert_eq!(error.code.id, "LB1331", "more than 1000 rows: {error:?}");
    let _: () = world.server.connect().set("large", "x".repeat(30 << 20)).unwrap();
    let error = world.ask(&["GET", "large"], json!({})).await.unwrap_err();
    assert_eq!(error.code.id, "LB1331", "{error:?}");
    let part = world.ask(&["GETRANGE", "large", "0", "999999"], json!({})).await.unwrap();
    assert_eq!(part.outputs["result"].as_str().map(str::len), Some(1_000_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn listed_databases_are_emptied_and_no_other() {
    let world = World::new(&[]);
    let done = world
        .flush(json!({ "databases": [0], "expect": ["keys < 10", "databases.db0 == 4"] }))
        .await
        .unwrap();
    assert_eq!((&done.outputs["keys"], &done.outputs["databases"]), (&json!(4), &json!({ "db0": 4 })));
    assert_eq!(world.keys(), (0, 1), "the other database keeps its keys");
    assert!(done.checks.iter().all(|check| check.passed), "{:?}", done.checks);
    assert!(done.warnings[0].contains("last dump on disk"), "{:?}", done.warnings);
    // An attempt after one whose end was lost says what that one has removed.
    let again = world.flush(json!({ "databases": [0], "expect": ["keys < 10"] })).await.unwrap();
    assert_eq!(again.outputs, done.outputs);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_can_come_first_and_holds_what_was_emptied() {
    let world = World::new(&[]);
    let done = world.flush(json!({ "databases": [0, 3], "snapshot_to": "backups" })).await.unwrap();
    assert_eq!((world.keys(), &done.outputs["keys"]), ((0, 0), &json!(5)));
    let clone = json!({ "store": "backups", "backup": done.outputs["backup"] });
    let clone = world.rig.run("redis.clone", clone).await.unwrap();
    assert_eq!(clone.outputs["keys"], json!(5));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_emptied_unless_all_that_was_asked_for_holds() {
    let world = World::new(&[]);
    let before = world.keys();
    for (with, code) in [
        (json!({ "databases": [] }), "LB1332"),
        (json!({ "databases": [0, 0] }), "LB1332"),
        (json!({ "databases": [-1] }), "LB1332"),
        (json!({ "databases": [0, 3], "expect": ["keys < 5"] }), "LB1332"),
        (json!({ "databases": [0, 3], "expect": ["databases.db3 == 0"] }), "LB1332"),
        // The first of them exists.
        (json!({ "databases": [0, 99] }), "LB1301"),
    ] {
        let error = world.flush(with.clone()).await.expect_err(&with.to_string());
        assert_eq!(error.code.id, code, "{with}: {error:?}");
        assert_eq!(world.keys(), before, "{with}");
    }
    // A snapshot that cannot be taken stops it, too.
    let dump = world.server.dir.join("dump.rdb");
    std::fs::create_dir(&dump).unwrap();
    std::fs::write(dump.join("in the way"), "x").unwrap();
    let error = world.flush(json!({ "databases": [0], "snapshot_to": "backups" })).await.unwrap_err();
    assert_eq!((error.code.id, world.keys()), ("LB1303", before), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_whose_keys_belong_to_others_too_are_not_emptied() {
    let mut world = World::new(&[]);
    let dir = world.rig.dir().to_owned();
    let master = format!("127.0.0.1 {}", world.server.port);
    let replica = Redis::start(&dir.join("replica"), &["--replicaof", &master]);
    let node = Redis::start(&dir.join("node"), &["--cluster-enabled", "yes"]);
    for (server, word) in [(&replica, "replica"), (&node, "cluster")] {
        world.rig.set_resource("cache", json!({ "kind": "redis", "url": server.url() }));
        let error = world.flush(json!({ "databases": [0] })).await.unwrap_err();
        assert!(error.code.id == "LB1332" && error.message.contains(word), "{error:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_who_may_not_empty_a_database_empties_none() {
    let password = SecretRef::Env("PW".into());
    let mut world = World::new(&[]);
    let mut admin = world.server.connect();
    let _: () = redis::cmd("CONFIG").arg(&["SET", "requirepass", "s3cret"]).query(&mut admin).unwrap();
    let _: () = redis::cmd("ACL").arg(&["SETUSER", "default", "-flushdb"]).query(&mut admin).unwrap();
    world.rig = world.rig.secret(password, "s3cret");
    let url = world.server.url();
    world.rig.set_resource("cache", json!({ "kind": "redis", "url": url, "password": { "env": "PW" } }));
    let error = world.flush(json!({ "databases": [0] })).await.unwrap_err();
    assert_eq!(error.code.id, "LB1302", "{error:?}");
    assert!(error.causes.join(" ").contains("permissions"), "{:?}", error.causes);
    assert_eq!(size(&mut admin, 0), 4);
}
