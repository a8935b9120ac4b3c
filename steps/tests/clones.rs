//! `postgres.clone` and `redis.clone` on real servers, and what later steps do with them.

pub mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use lifeboat_engine::fence::{Fence, Protected};
use lifeboat_engine::model::event::Done;
use lifeboat_engine::model::evidence::CreatedKind;
use lifeboat_engine::model::outcome::Mode;
use lifeboat_engine::resource::Resource;
use lifeboat_engine::run::cleanup::{Removal, remove};
use lifeboat_engine::step::Probe;
use lifeboat_steps::postgres::isolation::use_client_program;
use lifeboat_steps::process::{Identity, identity};
use redis::Commands;
use serde_json::{Value, json};
use support::archive::wal_program;
use support::backup::TestStore;
use support::postgres::{Cluster, Options};
use support::redis::Redis;
use support::rig::Rig;

const LABEL: &str = "20261121T031207Z-0123abcd";

/// A source that archives, its backup, and a directory for clones.
struct Scene {
    rig: Rig,
    source: Cluster,
    _store: TestStore,
}

impl Scene {
    fn set() -> Self {
        use_client_program(wal_program().to_path_buf());
        let store = TestStore::make();
        let archive_to = Some(store.path().to_path_buf());
        let source = Cluster::start(&Options { archive_to, ..Options::default() });
        source.sql("create table ledger (id int primary key)");
        source.sql("insert into ledger values (1)");
        store.back_up(&source, LABEL);
        let rig = Rig::drill().resource("backups", store.system());
        Self { rig, source, _store: store }
    }

    fn commit(&self, id: i32) -> Timestamp {
        self.source.sql(&format!("insert into ledger values ({id})"));
        Timestamp::now()
    }

    fn params(&self, target: Timestamp) -> Value {
        let dir = self.source.place().subdir("clones");
        let backup = LABEL;
        let bin_dir = &self.source.place().tools.bin_dir;
        json!({
            "store": "backups", "backup": backup, "target_time": target.to_string(), "dir": dir, "bin_dir": bin_dir,
        })
    }

    async fn clone(&mut self, target: Timestamp) -> Done {
        let done = self.rig.run_as("clone", "postgres.clone", self.params(target)).await.expect("clones");
        self.rig.set_resource("from:clone", done.resource.clone().expect("a system"));
        done
    }

    async fn query(&self, sql: &str) -> Value {
        let with = json!({ "cluster": "from:clone", "sql": sql });
        self.rig.run("postgres.query", with).await.expect("answers").outputs["rows"].clone()
    }
}

/// Removes everything as the end of a drill does, newest first, and asserts the proof of each removal.
fn clean_up(rig: &Rig) {
    let created = rig.reported().created.clone();
    for thing in created.iter().rev() {
        let Removal { removed, proof } = remove(thing);
        assert!(removed, "{thing:?}: {proof}");
    }
    for thing in created {
        if let CreatedKind::Directory { path } = thing.kind {
            assert!(!path.exists(), "{}", path.display());
        }
    }
}

fn server(rig: &Rig) -> Identity {
    let created = rig.reported().created.clone();
    let found = created.into_iter().find_map(|thing| match thing.kind {
        CreatedKind::Process { pid, start_ticks, boot_id, .. } => {
            Some(Identity { pid, start_ticks, boot_id })
        }
        _ => None,
    });
    found.expect("a server")
}

async fn kill(server: &Identity, signal: i32) {
    identity::signal(server, signal).expect("it may be signalled");
    assert!(identity::gone_within(server, std::time::Duration::from_secs(240)).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_holds_what_was_there_before_the_target_and_may_be_written() {
    let mut scene = Scene::set();
    let target = scene.commit(2);
    scene.commit(3);
    scene.source.archive_wal();
    // In a recovery, too, it stays cut off.
    scene.rig.mode = Mode::Recovery;
    let done = scene.clone(target).await;
    assert_eq!(done.outputs["end_of_wal"], false);
    assert_eq!((done.outputs["backup"].as_str(), done.outputs["port"].as_u64()), (Some(LABEL), Some(5432)));
    assert!(done.checks.len() > 4 && done.checks.iter().all(|check| check.passed), "{:?}", done.checks);
    assert_eq!(done.recovery_points[0].resource, "clone");
    let reached: Timestamp = done.outputs["reached"].as_str().unwrap().parse().unwrap();
    assert!(reached < target);
    assert_eq!(
        scene.query("select array_agg(id order by id) as ids from ledger").await[0]["ids"],
        json!([1, 2])
    );

    // It is nobody's business: no address, no archive, a directory that only its user may enter.
    let settings = "select current_setting('listen_addresses') as l, current_setting('archive_mode') as a, \
                    pg_is_in_recovery() as r";
    assert_eq!(scene.query(settings).await[0], json!({ "l": "", "a": "off", "r": false }));
    let url = json!({ "URL": { "connection": "from:clone", "database": "postgres" } });
    let psql = scene.source.place().tools.program("psql");
    let script = format!("'{}' -XAtc 'insert into ledger values (9) returning id' \"$URL\"", psql.display());
    let ran = scene.rig.run("run", json!({ "script": script, "env": url })).await.expect("writes");
    assert!(ran.outputs["stdout"].as_str().unwrap().starts_with('9'), "{:?}", ran.outputs);
    assert_eq!(scene.source.sql("select count(*) from ledger"), "3", "the source knows nothing of it");

    // Stopped and started it is still cut off: its own configuration would archive.
    let cluster = json!({ "cluster": "from:clone" });
    scene.rig.run("postgres.stop", cluster.clone()).await.expect("stops");
    scene.rig.run("postgres.start", cluster).await.expect("starts");
    assert_eq!(scene.query(settings).await[0], json!({ "l": "", "a": "off", "r": false }));
    assert_eq!(scene.query("select count(*)::int as n from ledger").await[0]["n"], 3);
    clean_up(&scene.rig);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_clone_goes_on_where_it_was_and_its_server_is_adopted() {
    let mut scene = Scene::set();
    let target = scene.commit(2);
    scene.commit(3);
    scene.source.archive_wal();
    scene.clone(target).await;
    let first = server(&scene.rig);
    let again = |scene: &Scene| {
        let params = scene.params(target);
        let ctx = scene.rig.context("clone", "postgres.clone", params);
        async move { lifeboat_steps::registry().kind("postgres.clone").unwrap().probe(&ctx).await.unwrap() }
    };
    let Probe::Done(done) = again(&scene).await else { panic!("it is done") };
    assert_eq!(done.outputs["backup"], LABEL);
    assert_eq!(server(&scene.rig), first, "the same server");

    // The machine has gone down: nothing is restored again, and what was written after promotion stays.
    let psql = scene.source.place().tools.program("psql");
    let script = format!("'{}' -XAtc 'insert into ledger values (9)' \"$URL\"", psql.display());
    let url = json!({ "URL": { "connection": "from:clone" } });
    scene.rig.run("run", json!({ "script": script, "env": url })).await.expect("writes");
    kill(&first, 3).await;
    assert!(matches!(again(&scene).await, Probe::NotDone));
    scene.clone(target).await;
    assert_ne!(server(&scene.rig), first);
    assert_eq!(scene.query("select count(*)::int as n from ledger").await[0]["n"], 3);

    // Killed before the last note: the recovery, which is noted, is not done again over the open cluster.
    scene.rig.reported().recorded.get_mut("clone").unwrap().remove("made");
    let running = server(&scene.rig);
    scene.clone(target).await;
    assert_eq!(server(&scene.rig), running, "the same server");
    assert_eq!(scene.query("select count(*)::int as n from ledger").await[0]["n"], 3);
    clean_up(&scene.rig);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_has_a_place_of_its_own_or_says_why_not() {
    let mut scene = Scene::set();
    let target = scene.commit(2);
    scene.commit(3);
    scene.source.archive_wal();
    let mut nowhere = scene.params(target);
    nowhere["dir"] = json!("/nowhere/at/all");
    let error = scene.rig.run_as("clone", "postgres.clone", nowhere).await.expect_err("no such directory");
    assert_eq!(error.code.id, "LB1276");
    assert!(scene.rig.reported().created.is_empty(), "nothing was touched");

    // Inside of what a protected environment names.
    let params = scene.params(target);
    let dir = PathBuf::from(params["dir"].as_str().unwrap());
    let protected: Resource = serde_json::from_value(json!({ "kind": "files", "path": dir })).unwrap();
    let fence = fence(&protected);
    let ctx = scene.rig.context("clone", "postgres.clone", params).fenced(fence.into());
    let kind = lifeboat_steps::registry().kind("postgres.clone").unwrap();
    let error = kind.run(&ctx).await.expect_err("fenced");
    assert_eq!(error.code.id, "LB0341", "{error}");
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 0, "nothing was touched");

    // Without `dir`: in the state of the run, or where the server's user can get.
    fs::set_permissions(scene.rig.dir(), fs::Permissions::from_mode(0o700)).unwrap();
    let mut params = scene.params(target);
    params.as_object_mut().unwrap().remove("dir");
    let done = scene.rig.run_as("clone", "postgres.clone", params).await.expect("clones");
    scene.rig.set_resource("from:clone", done.resource.clone().unwrap());
    let data_dir = Path::new(done.outputs["data_dir"].as_str().unwrap());
    let expected = if rustix::process::geteuid().is_root() { Path::new("/var/tmp") } else { scene.rig.dir() };
    assert!(data_dir.starts_with(expected), "{}", data_dir.display());
    assert_eq!(scene.query("select count(*)::int as n from ledger").await[0]["n"], 2);
    clean_up(&scene.rig);
}

/// The fence of a run from an unprotected environment.
fn fence(protected: &Resource) -> Fence {
    let systems: Vec<_> = Protected::new("production", "data", protected).into_iter().collect();
    Fence::new(systems)
}

/// A store with a snapshot of a source that goes on.
struct Cache {
    rig: Rig,
    source: Redis,
}

impl Cache {
    async fn set() -> Self {
        let rig = Rig::drill();
        let source = Redis::start(&rig.dir().join("source"), &[]);
        let mut connection = source.connect();
        for number in 0..200 {
            let _: () = connection.set(format!("member:{number}"), number).unwrap();
        }
        let _: () = redis::cmd("SELECT").arg(3).query(&mut connection).unwrap();
        let _: () = connection.set("other", 1).unwrap();
        let store = format!("dir://{}", rig.dir().join("store").display());
        let rig = rig
            .resource_from("backups", json!({ "kind": "store", "url": store }))
            .resource_from("cache", json!({ "kind": "redis", "url": source.url() }));
        rig.run("redis.snapshot", json!({ "server": "cache", "store": "backups" })).await.unwrap();
        Self { rig, source }
    }

    async fn clone(&mut self) -> Done {
        let done = self.rig.run_as("copy", "redis.clone", json!({ "store": "backups" })).await.unwrap();
        self.rig.set_resource("from:copy", done.resource.clone().expect("a system"));
        done
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_clone_holds_the_snapshot_and_nobody_else_reaches_it() {
    let mut cache = Cache::set().await;
    let _: () = cache.source.connect().set("after", 1).unwrap();
    let done = cache.clone().await;
    assert_eq!((done.outputs["keys"].as_u64(), done.outputs["expired"].as_u64()), (Some(201), Some(0)));
    assert!(done.checks.iter().all(|check| check.passed), "{:?}", done.checks);
    assert_eq!(done.recovery_points[0].resource, "copy");
    let queries = json!([{ "name": "member", "command": ["GET", "member:7"], "expect": ["result == '7'"] },
        { "name": "after", "command": ["EXISTS", "after"], "expect": ["result == 0"] }]);
    let with = json!({ "server": "from:copy", "expect": ["keys == 201"], "queries": queries });
    cache.rig.run("redis.verify", with).await.expect("holds");

    let env = json!({ "URL": { "connection": "from:copy" }, "OTHER": { "connection": "from:copy", "database": "3" } });
    let with = json!({ "script": "echo $URL; echo $OTHER", "env": env });
    let ran = cache.rig.run("run", with).await.expect("runs");
    let socket = done.outputs["socket"].as_str().unwrap();
    let shown = ran.outputs["stdout"].as_str().unwrap().to_owned();
    assert!(
        shown.contains(&format!("unix://{socket}\n")) && shown.contains(&format!("unix://{socket}?db=3")),
        "{shown}"
    );
    let mut connection =
        redis::Client::open(format!("unix://{socket}?db=3")).unwrap().get_connection().unwrap();
    assert_eq!(connection.get::<_, u32>("other").unwrap(), 1);
    let _: () = connection.set("written", 1).unwrap();
    let port: Vec<String> = redis::cmd("CONFIG").arg("GET").arg("port").query(&mut connection).unwrap();
    assert_eq!(port, ["port", "0"]);
    clean_up(&cache.rig);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_clone_is_adopted_or_loaded_again_and_never_twice() {
    let mut cache = Cache::set().await;
    cache.clone().await;
    let first = server(&cache.rig);
    let probe = |cache: &Cache| {
        let ctx = cache.rig.context("copy", "redis.clone", json!({ "store": "backups" }));
        async move { lifeboat_steps::registry().kind("redis.clone").unwrap().probe(&ctx).await.unwrap() }
    };
    assert!(matches!(probe(&cache).await, Probe::Done(_)));
    // Lost before its last note, it is loaded again, and the first server does not stay behind.
    cache.rig.reported().recorded.get_mut("copy").unwrap().remove("made");
    cache.clone().await;
    let second = server(&cache.rig);
    assert!(!first.is_alive() && second.is_alive());
    kill(&second, 9).await;
    assert!(matches!(probe(&cache).await, Probe::NotDone));
    let done = cache.clone().await;
    assert_eq!(done.outputs["keys"], 201);
    clean_up(&cache.rig);
    assert!(!server(&cache.rig).is_alive());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_snapshot_makes_no_clone() {
    let mut cache = Cache::set().await;
    let snapshots = cache.rig.dir().join("store/redis");
    let label = fs::read_dir(&snapshots).unwrap().next().unwrap().unwrap().path();
    let file = label.join("dump.rdb");
    let mut bytes = fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xff;
    fs::write(&file, bytes).unwrap();
    let error = cache.rig.run_as("copy", "redis.clone", json!({ "store": "backups" })).await.unwrap_err();
    assert_eq!(error.code.id, "LB1305");
    let is_server = |kind: &CreatedKind| matches!(kind, CreatedKind::Process { .. });
    assert!(
        cache.rig.reported().created.iter().all(|thing| !is_server(&thing.kind)),
        "no server was started"
    );
    clean_up(&cache.rig);
    cache.rig.set_resource(
        "empty",
        json!({ "kind": "store", "url": format!("dir://{}/none", cache.rig.dir().display()) }),
    );
    fs::create_dir(cache.rig.dir().join("none")).unwrap();
    let error = cache.rig.run_as("second", "redis.clone", json!({ "store": "empty" })).await.unwrap_err();
    assert_eq!(error.code.id, "LB1304");
}
