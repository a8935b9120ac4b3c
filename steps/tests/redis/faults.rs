//! What goes wrong with Redis servers, their files and their disks.

use std::path::{Path, PathBuf};
use std::time::Duration;

use lifeboat_engine::model::evidence::CreatedKind;
use lifeboat_engine::model::outcome::FailureKind;
use redis::Commands;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::restore::{World, names, size};
use crate::support::postgres::wait_until;
use crate::support::redis::Redis;

fn set(server: &Redis, name: &str, value: &str) {
    let _: () = redis::cmd("CONFIG").arg(&["SET", name, value]).query(&mut server.connect()).unwrap();
}

fn info(server: &Redis, field: &str) -> String {
    let text: String = redis::cmd("INFO").query(&mut server.connect()).unwrap();
    let found = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':').map(str::to_owned));
    found.unwrap_or_default().trim().to_owned()
}

/// The process that writes a dump for a server.
fn writer_of(server: &Redis) -> Option<u32> {
    let parent = info(server, "process_id");
    let is_child = |pid: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let after = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        after.split(' ').nth(1) == Some(parent.as_str())
    };
    let pids = std::fs::read_dir("/proc").unwrap().flatten();
    pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).find(is_child)
}

fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

async fn snapshot(
    world: &World,
) -> Result<lifeboat_engine::model::event::Done, lifeboat_engine::step::StepError> {
    world.rig.run("redis.snapshot", json!({ "server": "cache", "store": "backups" })).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_that_cannot_be_written_fails_at_once_and_publishes_nothing() {
    let world = World::new(&[]);
    let dump = world.source.dir.join("dump.rdb");
    std::fs::create_dir(&dump).unwrap();
    std::fs::write(dump.join("in the way"), "x").unwrap();
    let error = snapshot(&world).await.unwrap_err();
    assert_eq!((error.code.id, error.kind), ("LB1303", FailureKind::Transient), "{error:?}");
    std::fs::remove_dir_all(&dump).unwrap();
    // The status of the failed one is still what the server tells, until the next one has ended.
    assert_eq!(snapshot(&world).await.unwrap().outputs["keys"], json!(502));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_is_killed_fails_the_snapshot_and_the_next_one_succeeds() {
    let world = World::new(&[]);
    set(&world.source, "rdb-key-save-delay", "500000");
    let (taken, ()) = tokio::join!(snapshot(&world), async {
        let pid = loop {
            if info(&world.source, "rdb_bgsave_in_progress") == "1"
                && let Some(pid) = writer_of(&world.source)
            {
                break pid;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        kill(pid);
    });
    assert_eq!(taken.unwrap_err().code.id, "LB1303");
    set(&world.source, "rdb-key-save-delay", "0");
    assert_eq!(snapshot(&world).await.unwrap().outputs["keys"], json!(502));
}

/// Stands before the C library: no process begins another one while the file is there.
const NO_FORK: &str = "
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>
pid_t fork(void) {
    if (access(getenv(\"LIFEBOAT_TEST_NO_FORK\"), F_OK)) return ((pid_t(*)(void))dlsym(RTLD_NEXT, \"fork\"))();
    errno = ENOMEM;
    return -1;
}
";

/// A server without memory for a fork while the file is there.
fn forking(dir: &Path, no_fork: &Path) -> Redis {
    use std::process::Command;
    std::fs::create_dir(dir).unwrap();
    let (source, library) = (dir.join("no_fork.c"), dir.join("no_fork.so"));
    std::fs::write(&source, NO_FORK).unwrap();
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).arg("-ldl");
    assert!(cc.status().expect("cc, which Rust needs as well").success());
    let mut server = Command::new("redis-server");
    Redis::start_by(dir, server.env("LD_PRELOAD", library).env("LIFEBOAT_TEST_NO_FORK", no_fork))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fork_that_fails_is_no_snapshot_and_the_next_one_succeeds() {
    let mut world = World::new(&[]);
    let no_fork = world.rig.dir().join("no fork");
    let source = forking(&world.rig.dir().join("forks"), &no_fork);
    let _: () = source.connect().set("a", 1).unwrap();
    world.rig.set_resource("cache", json!({ "kind": "redis", "url": source.url() }));
    std::fs::write(&no_fork, "").unwrap();
    let error = snapshot(&world).await.unwrap_err();
    assert_eq!((error.code.id, error.kind), ("LB1303", FailureKind::Transient), "{error:?}");
    assert!(error.help.as_deref().unwrap_or_default().contains("fork"), "{error:?}");
    let left = names(&world.rig.dir().join("store/redis"));
    assert!(left.iter().all(|name| name.ends_with(".partial")), "{left:?}");
    std::fs::remove_file(&no_fork).unwrap();
    assert_eq!(snapshot(&world).await.unwrap().outputs["keys"], json!(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_waits_for_a_rewrite_of_the_append_only_file() {
    let mut world = World::new(&[]);
    let source = Redis::start(&world.rig.dir().join("aof"), &["--appendonly", "yes"]);
    for number in 0..100 {
        let _: () = source.connect().set(number, number).unwrap();
    }
    set(&source, "rdb-key-save-delay", "5000");
    // It takes half a second from then on, and is usually not over when the snapshot begins.
    let begun: String = redis::cmd("BGREWRITEAOF").query(&mut source.connect()).unwrap();
    assert!(begun.contains("started"), "{begun}");
    world.rig.set_resource("cache", json!({ "kind": "redis", "url": source.url() }));
    assert_eq!(snapshot(&world).await.unwrap().outputs["keys"], json!(100));
    assert_eq!(info(&source, "aof_last_bgrewrite_status"), "ok");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_dies_while_it_writes_is_no_snapshot() {
    let world = World::new(&[]);
    set(&world.source, "rdb-key-save-delay", "500000");
    let pid: u32 = info(&world.source, "process_id").parse().unwrap();
    let (taken, ()) = tokio::join!(snapshot(&world), async {
        while info(&world.source, "rdb_bgsave_in_progress") != "1" {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let writer = writer_of(&world.source);
        kill(pid);
        writer.into_iter().for_each(kill);
    });
    let error = taken.unwrap_err();
    assert!(matches!(error.code.id, "LB1301" | "LB1303"), "{error:?}");
    assert_eq!(error.kind, FailureKind::Transient);
    let label = names(&world.rig.dir().join("store/redis"));
    assert!(label.iter().all(|name| name.ends_with(".partial")), "{label:?}");
}

/// Changes the file of a backup, and its marker as if it had been so from the beginning.
fn forge(world: &World, label: &str, change: impl FnOnce(Vec<u8>) -> Vec<u8>) {
    let dir = world.rig.dir().join("store/redis").join(label);
    let changed = change(std::fs::read(dir.join("dump.rdb")).unwrap());
    std::fs::write(dir.join("dump.rdb"), &changed).unwrap();
    let mut marker: Value =
        serde_json::from_slice(&std::fs::read(dir.join("lifeboat.json")).unwrap()).unwrap();
    marker["objects"][0]["size"] = json!(changed.len());
    let digest: Vec<String> = Sha256::digest(&changed).iter().map(|byte| format!("{byte:02x}")).collect();
    marker["objects"][0]["sha256"] = json!(digest.concat());
    std::fs::write(dir.join("lifeboat.json"), marker.to_string()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_are_damaged_or_too_new_are_refused_before_the_target_is_touched() {
    let world = World::new(&[]);
    let label = world.snapshot("snapshot").await.outputs["backup"].as_str().unwrap().to_owned();
    let file = world.rig.dir().join("store/redis").join(&label).join("dump.rdb");
    let whole = std::fs::read(&file).unwrap();
    let half = whole.len() / 2;
    let flipped = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x55;
        bytes
    };
    // Cut off or changed since, as the checksum of the marker shows.
    for bytes in
        [whole[..whole.len() / 100].to_vec(), whole[..whole.len() - 1].to_vec(), flipped(half), Vec::new()]
    {
        std::fs::write(&file, &bytes).unwrap();
        assert_eq!(world.restore(json!({})).await.unwrap_err().code.id, "LB1305", "{} bytes", bytes.len());
    }
    // So from the beginning: the programs of Redis find it.
    let newer = [b"REDIS0099".to_vec(), whole[9..].to_vec()].concat();
    for (bytes, code) in [
        (whole[..half].to_vec(), "LB1305"),
        (flipped(half), "LB1305"),
        (flipped(whole.len() - 1), "LB1305"),
        (flipped(0), "LB1305"),
        (Vec::new(), "LB1305"),
        (newer, "LB1334"),
    ] {
        forge(&world, &label, |_| bytes);
        let error = world.restore(json!({})).await.unwrap_err();
        assert_eq!(error.code.id, code, "{error:?}");
    }
    assert_eq!(names(&world.target_dir()), Vec::<String>::new());
    forge(&world, &label, |_| whole.clone());
    world.restore(json!({})).await.expect("the whole one is restored");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_have_expired_since_are_counted_and_not_missed() {
    let world = World::new(&[]);
    // On a busy machine they may have expired before the snapshot is taken, and then they live longer.
    let mut taken = false;
    for life in [900, 5_000, 60_000] {
        for number in 0..5 {
            let _: () = world.source.connect().pset_ex(format!("brief:{number}"), "x", life).unwrap();
        }
        taken = world.snapshot(&format!("snapshot_{life}")).await.outputs["keys"] == json!(507);
        if taken {
            break;
        }
    }
    assert!(taken, "a snapshot takes more than a minute");
    wait_until("they expire", || !world.source.connect().exists::<_, bool>("brief:4").unwrap());
    let done = world.restore(json!({})).await.unwrap();
    assert_eq!((&done.outputs["keys"], &done.outputs["expired"]), (&json!(502), &json!(5)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_throws_keys_away_for_want_of_memory_is_no_success() {
    let world = World::new(&["--maxmemory", "3mb", "--maxmemory-policy", "allkeys-random"]);
    for number in 0..50 {
        let noise: String = (0..100_000).map(|at| char::from(b'a' + ((at * number) % 23) as u8)).collect();
        let _: () = world.source.connect().set(format!("large:{number}"), noise).unwrap();
    }
    world.snapshot("snapshot").await;
    let error = world.restore(json!({})).await.unwrap_err();
    assert_eq!(error.code.id, "LB1309");
    assert!(error.message.contains("evicted"), "{}", error.message);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_append_only_file_is_moved_aside_with_the_rest() {
    let world = World::new(&["--appendonly", "yes"]);
    world.snapshot("snapshot").await;
    let dir = world.target_dir().join("appendonlydir");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("appendonly.aof.manifest"), "file appendonly.aof.1.incr.aof seq 1 type i\n")
        .unwrap();
    std::fs::write(dir.join("appendonly.aof.1.incr.aof"), "*3\r\n$3\r\nSET\r\n$100\r\ncut off").unwrap();
    let done = world.restore(json!({ "append_only": "rewrite" })).await.unwrap();
    assert_eq!(done.outputs["keys"], json!(502));
    let aside = PathBuf::from(done.outputs["moved_aside"][0].as_str().unwrap());
    assert!(aside.join("appendonly.aof.1.incr.aof").exists());
}

/// Starts what runs at the target before a restore.
pub(super) async fn start_target(world: &World) {
    world.rig.run("service.start", json!({ "service": "target_service" })).await.unwrap();
    wait_until("it listens", || std::net::TcpStream::connect(("127.0.0.1", world.target_port)).is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_with_replicas_is_refused_unless_they_may_follow() {
    let world = World::new(&["--save", ""]);
    world.snapshot("snapshot").await;
    start_target(&world).await;
    let _: () = world.target().set("mine", 1).unwrap();
    let master = format!("127.0.0.1 {}", world.target_port);
    let replica = Redis::start(&world.rig.dir().join("replica"), &["--replicaof", &master]);
    wait_until("it follows", || info(&replica, "master_link_status") == "up");
    let error = world.restore(json!({})).await.unwrap_err();
    assert_eq!(error.code.id, "LB1335", "{error:?}");
    assert!(world.target().exists::<_, bool>("mine").unwrap());
    world.restore(json!({ "replicas": "accept" })).await.unwrap();
    wait_until("the replica has what was restored", || size(&mut replica.connect(), 0) == 501);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_target_has_left_does_not_write_over_what_is_restored() {
    let world = World::new(&["--save", ""]);
    let label = world.snapshot("snapshot").await.outputs["backup"].as_str().unwrap().to_owned();
    start_target(&world).await;
    let mut target = world.target();
    for number in 0..300 {
        let _: () = target.set(format!("mine:{number}"), number).unwrap();
    }
    // The process that writes its dump lives on for some seconds, and then gives the file its name. It would notice that the
    // server is gone when it tells how far it has come, which is every thousand keys.
    let slow = ["SET", "rdb-key-save-delay", "20000"];
    let _: () = redis::cmd("CONFIG").arg(&slow).query(&mut target).unwrap();
    let dir = world.target_dir();
    let mut told = |name: &str| -> u32 {
        let text: String = redis::cmd("INFO").query(&mut target).unwrap();
        let found =
            text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')?.trim().parse().ok());
        found.unwrap_or_default()
    };
    let server = told("process_id");
    wait_until("it writes, and has told how far it has come", || {
        if told("rdb_bgsave_in_progress") == 0 {
            let _: Option<String> = redis::cmd("BGSAVE").query(&mut world.target()).ok();
        }
        told("current_save_keys_processed") > 0
    });
    kill(server);
    let writes =
        |name: &String| -> Option<u32> { name.strip_prefix("temp-")?.strip_suffix(".rdb")?.parse().ok() };
    let writer = names(&dir).iter().find_map(writes).unwrap();
    wait_until("it is gone", || std::net::TcpStream::connect(("127.0.0.1", world.target_port)).is_err());
    world.restore(json!({})).await.unwrap();
    wait_until("nobody writes any more", || !Path::new(&format!("/proc/{writer}/exe")).exists());
    let stored = world.rig.dir().join("store/redis").join(label).join("dump.rdb");
    let same = std::fs::read(dir.join("dump.rdb")).unwrap() == std::fs::read(stored).unwrap();
    assert!(same, "the server would come up with what it had before");
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_of_a_cluster_and_sentinels_are_refused() {
    let world = World::new(&[]);
    world.snapshot("snapshot").await;
    let node = Redis::start(&world.rig.dir().join("node"), &["--cluster-enabled", "yes"]);
    let file = world.rig.dir().join("sentinel.conf");
    std::fs::write(&file, "# a sentinel keeps its state here\n").unwrap();
    let sentinel =
        Redis::start_with(&world.rig.dir().join("sentinel"), &[file.to_str().unwrap(), "--sentinel"]);
    let mut rig = world.rig;
    for (server, word) in [(&node, "cluster"), (&sentinel, "sentinel")] {
        rig.set_resource(
            "target",
            json!({
                "kind": "redis", "url": server.url(), "data_dir": server.dir,
                "service": { "manager": "process", "command": ["redis-server"] },
            }),
        );
        let error =
            rig.run("redis.restore", json!({ "server": "target", "store": "backups" })).await.unwrap_err();
        assert!(error.code.id == "LB1307" && error.message.contains(word), "{word}: {error:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_without_room_is_found_while_the_server_still_runs() {
    let world = World::new(&["--save", ""]);
    let dir = world.target_dir();
    let Some(_small) = Small::mount(&dir) else { return };
    for number in 0..30_u32 {
        let noise: Vec<u8> = (0..100_000_u32)
            .map(|at| Sha256::digest([at.to_le_bytes(), number.to_le_bytes()].concat())[0])
            .collect();
        let _: () = world.source.connect().set(format!("large:{number}"), noise).unwrap();
    }
    world.snapshot("snapshot").await;
    start_target(&world).await;
    let _: () = world.target().set("mine", 1).unwrap();
    let error = world.restore(json!({})).await.unwrap_err();
    assert_eq!((error.code.id, error.kind), ("LB1336", FailureKind::Transient), "{error:?}");
    assert!(world.target().exists::<_, bool>("mine").unwrap(), "it runs as it did");
    let _ = redis::cmd("SHUTDOWN").arg("NOSAVE").query::<()>(&mut world.target());
}

/// A file system of one mebibyte, unmounted with the value.
struct Small(PathBuf);

impl Small {
    fn mount(dir: &Path) -> Option<Self> {
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
async fn a_snapshot_belongs_to_the_user_of_the_server() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only root may give files away");
        return;
    }
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let world = World::new(&[]);
    world.snapshot("snapshot").await;
    let dump = world.target_dir().join("dump.rdb");
    std::fs::write(&dump, "old").unwrap();
    std::fs::set_permissions(&dump, std::fs::Permissions::from_mode(0o604)).unwrap();
    let nobody = lifeboat_steps::process::OsUser::lookup("nobody").unwrap();
    std::os::unix::fs::chown(&dump, Some(nobody.uid), Some(nobody.gid)).unwrap();
    world.restore(json!({})).await.unwrap();
    let found = std::fs::metadata(&dump).unwrap();
    assert_eq!((found.uid(), found.mode() & 0o777), (nobody.uid, 0o604));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_is_killed_while_it_loads_is_restored_by_the_next_attempt() {
    // 500 keys would take minutes.
    let mut world = World::new(&["--save", "", "--key-load-delay", "500000"]);
    world.snapshot("snapshot").await;
    std::fs::write(world.target_dir().join("dump.rdb"), "old").unwrap();
    let log = || std::fs::read_to_string(world.rig.dir().join("target.log")).unwrap_or_default();
    let server = || {
        world.rig.reported().created.iter().find_map(|thing| match thing.kind {
            CreatedKind::Process { pid, .. } => Some(pid),
            _ => None,
        })
    };
    let (restored, ()) = tokio::join!(world.restore(json!({})), async {
        while !log().contains("Loading RDB") || server().is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        kill(server().unwrap());
    });
    let error = restored.unwrap_err();
    assert_eq!((error.code.id, error.kind), ("LB1309", FailureKind::Uncertain), "{error:?}");
    world.describe_target(&["--save", ""]);
    let done = world.restore(json!({})).await.unwrap();
    assert_eq!(done.outputs["keys"], json!(502));
    let aside = PathBuf::from(done.outputs["moved_aside"][0].as_str().unwrap());
    assert_eq!(std::fs::read_to_string(aside).unwrap(), "old", "what was there before the first attempt");
}
