//! `postgres.restore_base` with real backups, whole and damaged.

pub mod support;

use std::fs;
use std::path::PathBuf;

use lifeboat_engine::model::evidence::CreatedKind;
use lifeboat_engine::model::outcome::FailureKind;
use lifeboat_engine::resource::{Postgres, System};
use lifeboat_engine::step::StepError;
use lifeboat_steps::postgres::codes;
use serde_json::{Value, json};
use support::backup::TestStore;
use support::postgres::{Cluster, Options, StopOnDrop, free_port, succeed};
use support::rig::Rig;

const LABEL: &str = "20261121T031207Z-0123abcd";

/// A source with a few rows, its backup, and a place to restore to.
struct Scene {
    source: Cluster,
    store: TestStore,
    target: Postgres,
    rig: Rig,
}

impl Scene {
    fn set() -> Self {
        Self::with("select 1")
    }

    fn with(sql: &str) -> Self {
        let source = Cluster::start(&Options::default());
        source.sql("create table members as select n as id, repeat('x', 100) as name from generate_series(1, 2000) n");
        source.sql(sql);
        let store = TestStore::make();
        store.back_up(&source, LABEL);
        let target = source.place().resource("restored", free_port());
        let rig =
            Rig::drill().resource("backups", store.system()).resource("db", System::Postgres(target.clone()));
        Self { source, store, target, rig }
    }

    fn data_dir(&self) -> PathBuf {
        self.target.data_dir.clone().expect("a data directory")
    }

    async fn restore(&self, existing: &str) -> Result<lifeboat_engine::model::event::Done, StepError> {
        let with = json!({"store": "backups", "backup": LABEL, "cluster": "db", "existing": existing});
        self.rig.run("postgres.restore_base", with).await
    }

    async fn refusal(&self) -> StepError {
        self.restore("refuse").await.expect_err("must be refused")
    }

    /// Compares what was restored with the manifest, by the server's own program.
    fn verify(&self) {
        let mut verify = self.source.place().command("pg_verifybackup");
        let manifest = self.source.place().path().join("manifest");
        fs::copy(self.store.base(LABEL).join("backup_manifest"), &manifest).expect("copy");
        self.source.place().own(&manifest);
        succeed(verify.arg("-m").arg(&manifest).arg(self.data_dir()));
    }

    fn is_startable(&self) -> bool {
        self.data_dir().join("global/pg_control").exists()
    }

    /// Nothing of a failed restore may be left beside or at the place.
    fn assert_untouched(&self) {
        let left: Vec<_> = fs::read_dir(self.source.place().path())
            .expect("the place")
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| name.contains("restored"))
            .collect();
        assert!(left.is_empty(), "left behind: {left:?}");
    }
}

#[tokio::test]
async fn a_backup_becomes_a_cluster_that_starts() {
    let scene = Scene::set();
    let done = scene.restore("refuse").await.expect("restores");
    assert_eq!(done.outputs["system_id"], scene.store.details(LABEL)["system_id"]);
    assert!(done.outputs["files"].as_u64() > Some(500), "{:?}", done.outputs);
    assert!(done.checks.iter().all(|check| check.passed) && done.warnings.is_empty());

    scene.verify();

    let mut start = scene.source.place().command("pg_ctl");
    start.args(["-w", "-o", &format!("-p {} -c listen_addresses=''", scene.target.port), "-l"]);
    start.arg(scene.source.place().path().join("restored.log")).arg("-D").arg(scene.data_dir()).arg("start");
    let _stop = StopOnDrop { place: scene.source.place(), data_dir: scene.data_dir() };
    succeed(&mut start);
    let mut psql = scene.source.place().command("psql");
    psql.args(["-XAt", "-U", "postgres", "-p", &scene.target.port.to_string(), "-h"]);
    psql.arg(scene.source.place().path()).args([
        "-d",
        "postgres",
        "-c",
        "select count(*), sum(id) from members",
    ]);
    assert_eq!(String::from_utf8_lossy(&succeed(&mut psql).stdout).trim(), "2000|2001000");

    let created = &scene.rig.reported().created;
    assert!(created.iter().any(|thing| thing.kind == CreatedKind::Directory { path: scene.data_dir() }));
}

#[tokio::test]
async fn a_step_that_had_finished_does_nothing_again() {
    let scene = Scene::set();
    let first = scene.restore("refuse").await.expect("restores");
    fs::write(scene.data_dir().join("witness"), "here").expect("write");
    assert_eq!(scene.restore("refuse").await.expect("is done"), first);
    assert!(scene.data_dir().join("witness").exists());
}

#[tokio::test]
async fn a_directory_with_files_is_refused_and_can_be_moved_aside() {
    let scene = Scene::set();
    let data_dir = scene.data_dir();
    fs::create_dir(&data_dir).expect("mkdir");
    fs::write(data_dir.join("precious"), "do not lose").expect("write");
    let error = scene.refusal().await;
    assert_eq!((error.code, error.kind), (codes::LB1252, FailureKind::Permanent));
    assert!(error.message.contains("precious") && error.help.expect("help").contains("move_aside"));
    assert_eq!(fs::read_to_string(data_dir.join("precious")).expect("still there"), "do not lose");

    scene.restore("move_aside").await.expect("restores");
    let aside = scene.source.place().path().join(format!("restored.pre-{}", scene.rig.run_id.short()));
    assert_eq!(fs::read_to_string(aside.join("precious")).expect("moved"), "do not lose");
    let moved = CreatedKind::MovedAside { from: data_dir, to: aside };
    assert_eq!(scene.rig.reported().created[0].kind, moved);
    assert!(scene.is_startable());
}

#[tokio::test]
async fn a_failed_restore_puts_back_what_was_moved_aside() {
    let scene = Scene::set();
    fs::create_dir(scene.data_dir()).expect("mkdir");
    fs::write(scene.data_dir().join("precious"), "do not lose").expect("write");
    let tar = scene.store.base_tar(LABEL);
    scene.store.replace_base(LABEL, &tar[..tar.len() / 2]);
    scene.restore("move_aside").await.expect_err("is cut off");
    assert_eq!(fs::read_to_string(scene.data_dir().join("precious")).expect("back"), "do not lose");
    assert!(!scene.is_startable());
    // The end of a drill removes what stands in the journal as made.
    assert!(!scene.rig.made_at().contains(&scene.data_dir()), "{:?}", scene.rig.reported().created);
    scene.rig.undo("postgres.restore_base", with("move_aside")).await.expect("nothing is left to undo");
    assert_eq!(fs::read_to_string(scene.data_dir().join("precious")).expect("still back"), "do not lose");
}

fn with(existing: &str) -> Value {
    json!({"store": "backups", "backup": LABEL, "cluster": "db", "existing": existing})
}

/// A cluster with data of its own, stopped, in the place of which the backup is restored.
fn earlier(scene: &mut Scene) -> Cluster {
    let earlier = Cluster::start(&Options::default());
    earlier.sql("create table earlier as select 42 as answer");
    earlier.stop("fast");
    scene.rig = Rig::drill().resource("backups", scene.store.system()).resource("db", earlier.system());
    earlier
}

#[tokio::test]
async fn undo_brings_the_earlier_cluster_back_and_it_starts() {
    let mut scene = Scene::set();
    let earlier = earlier(&mut scene);
    scene.restore("move_aside").await.expect("restores");
    let done = scene.rig.undo("postgres.restore_base", with("move_aside")).await.expect("undoes");
    let kept = earlier.place().path().join(format!("data.undone-{}", scene.rig.run_id.short()));
    assert!(kept.join("global/pg_control").exists(), "what was restored is kept");
    assert!(done.warnings[0].contains(&kept.display().to_string()), "{:?}", done.warnings);
    assert_eq!(scene.rig.made_at(), [kept], "a drill removes what was restored and nothing else");
    scene.rig.undo("postgres.restore_base", with("move_aside")).await.expect("again is no harm");
    earlier.start_server();
    assert_eq!(earlier.sql("select answer from earlier"), "42");
    let left: Vec<_> = fs::read_dir(earlier.place().path()).expect("the place").flatten().collect();
    let names: Vec<_> = left.iter().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    assert!(
        !names.iter().any(|name| name.contains(".pre-") || name.contains("lifeboat-restore")),
        "{names:?}"
    );
}

#[tokio::test]
async fn undo_touches_nothing_while_a_server_runs_on_the_directory() {
    let mut scene = Scene::set();
    let earlier = earlier(&mut scene);
    scene.restore("move_aside").await.expect("restores");
    // What tells a server is the file with its number, and a process that works in the directory.
    let mut server = std::process::Command::new("sleep")
        .arg("600")
        .current_dir(&earlier.data_dir)
        .spawn()
        .expect("a process in the directory");
    let file = earlier.data_dir.join("postmaster.pid");
    let lines = format!("{}\n{}\n1795241511\n5440\n\n", server.id(), earlier.data_dir.display());
    fs::write(&file, lines).expect("write");
    let error = scene.rig.undo("postgres.restore_base", with("move_aside")).await.expect_err("a server runs");
    server.kill().and_then(|()| server.wait()).expect("it ends");
    assert_eq!(error.code, codes::LB1250);
    let help = error.help.expect("help");
    assert!(help.starts_with("stop the server; then: mv ") && help.contains(".pre-"), "{help}");
    assert!(earlier.data_dir.join("global/pg_control").exists(), "the restored one still stands there");
    fs::remove_file(&file).expect("remove");
    scene.rig.undo("postgres.restore_base", with("move_aside")).await.expect("undoes");
    earlier.start_server();
    assert_eq!(earlier.sql("select answer from earlier"), "42");
}

#[tokio::test]
async fn undo_of_half_a_restore_deletes_it_and_brings_the_earlier_directory_back() {
    let scene = Scene::set();
    fs::create_dir(scene.data_dir()).expect("mkdir");
    fs::write(scene.data_dir().join("precious"), "do not lose").expect("write");
    scene.rig.cancel.cancel();
    scene.restore("move_aside").await.expect_err("is interrupted");
    assert!(!scene.data_dir().join("precious").exists(), "it is aside");
    scene.rig.undo("postgres.restore_base", with("move_aside")).await.expect("undoes");
    assert_eq!(fs::read_to_string(scene.data_dir().join("precious")).expect("back"), "do not lose");
    assert_eq!(scene.rig.made_at(), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn undo_leaves_what_somebody_else_has_put_there() {
    let scene = Scene::set();
    fs::create_dir(scene.data_dir()).expect("mkdir");
    fs::write(scene.data_dir().join("precious"), "do not lose").expect("write");
    scene.restore("move_aside").await.expect("restores");
    fs::remove_dir_all(scene.data_dir()).expect("removed by hand");
    fs::create_dir(scene.data_dir()).expect("mkdir");
    fs::write(scene.data_dir().join("theirs"), "work of the night").expect("write");
    let error = scene.rig.undo("postgres.restore_base", with("move_aside")).await.expect_err("not ours");
    assert_eq!(error.code, codes::LB1252);
    assert!(error.message.contains("this run has not put it there"), "{}", error.message);
    assert!(scene.data_dir().join("theirs").exists());
}

#[tokio::test]
async fn a_live_server_on_the_directory_is_named() {
    let scene = Scene::set();
    let rig = Rig::drill().resource("backups", scene.store.system()).resource("db", scene.source.system());
    let with = json!({"store": "backups", "backup": LABEL, "cluster": "db", "existing": "move_aside"});
    let error = rig.run("postgres.restore_base", with).await.expect_err("the server runs");
    assert_eq!(error.code, codes::LB1250);
    let pid = fs::read_to_string(scene.source.data_dir.join("postmaster.pid")).expect("runs");
    assert!(error.message.contains(pid.lines().next().expect("a pid")), "{}", error.message);
    assert_eq!(scene.source.sql("select count(*) from members"), "2000");
}

#[tokio::test]
async fn an_occupied_port_is_refused_with_its_listener() {
    let mut scene = Scene::set();
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    scene.target.host = Some("127.0.0.1".into());
    scene.target.port = listener.local_addr().expect("an address").port();
    scene.rig = Rig::drill()
        .resource("backups", scene.store.system())
        .resource("db", System::Postgres(scene.target.clone()));
    let error = scene.refusal().await;
    assert_eq!(error.code, codes::LB1251);
    assert!(error.message.contains(&std::process::id().to_string()), "{}", error.message);
    scene.assert_untouched();
}

#[tokio::test]
async fn damaged_archives_are_named_and_leave_nothing() {
    let scene = Scene::set();
    let object = scene.store.base(LABEL).join("base.tar.zst");
    let good = fs::read(&object).expect("an object");
    let tar = scene.store.base_tar(LABEL);

    let mut flipped = good.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 0x40;
    fs::write(&object, &flipped).expect("write");
    expect_damage(&scene, codes::LB1255, "a flipped byte").await;

    fs::write(&object, &good[..good.len() - 1]).expect("write");
    expect_damage(&scene, lifeboat_steps::store::codes::LB1108, "one byte short").await;

    // From here on the marker fits the object, so that only its content can tell.
    fs::write(&object, &good[..good.len() - 1]).expect("write");
    scene.store.write_marker(LABEL, &scene.store.details(LABEL));
    expect_damage(&scene, codes::LB1255, "a cut zstd frame").await;

    let boundary = second_to_last_member(&tar);
    scene.store.replace_base(LABEL, &tar[..boundary]);
    expect_damage(&scene, codes::LB1255, "cut between two members").await;
    scene.store.replace_base(LABEL, &[&tar[..boundary], &[0; 1024]].concat());
    expect_damage(&scene, codes::LB1258, "without its last member").await;

    let mut wrong = tar.clone();
    let at = tar.windows(4).position(|bytes| bytes == b"xxxx").expect("a row");
    wrong[at] = b'y';
    scene.store.replace_base(LABEL, &wrong);
    expect_damage(&scene, codes::LB1258, "a changed table").await;
}

async fn expect_damage(scene: &Scene, code: lifeboat_engine::code::Code, what: &str) {
    let error = scene.refusal().await;
    assert_eq!(error.code, code, "{what}: {}", error.message);
    assert_eq!(error.kind, FailureKind::Permanent, "{what}");
    assert!(!scene.is_startable(), "{what}");
    scene.assert_untouched();
}

/// Larger than what is held of a file in memory: hashing is still at one part of it while the next ones are written.
#[tokio::test]
async fn large_files_come_out_whole_and_one_that_differs_is_named() {
    let scene = Scene::with(
        "create table photos as select repeat(md5(n::text), 30) as body from generate_series(1, 12000) n",
    );
    let file = scene.source.sql("select pg_relation_filepath('photos')");
    assert!(fs::metadata(scene.source.data_dir.join(&file)).expect("a file").len() > 9 << 20);
    let good = scene.store.base_tar(LABEL);
    for row in [1, 6000, 12000] {
        let body = scene.source.sql(&format!("select md5('{row}')")).into_bytes();
        let at = good.windows(body.len()).position(|bytes| bytes == body).expect("a row");
        let mut wrong = good.clone();
        wrong[at] ^= 1;
        scene.store.replace_base(LABEL, &wrong);
        let error = scene.refusal().await;
        assert_eq!(error.code, codes::LB1258, "{}", error.message);
        assert!(error.message.contains(&file), "{}", error.message);
        scene.assert_untouched();
    }
    scene.store.replace_base(LABEL, &good);
    scene.restore("refuse").await.expect("restores");
    scene.verify();
}

/// Where a tar can be cut without any reader of tar noticing.
fn second_to_last_member(tar: &[u8]) -> usize {
    let mut archive = tar::Archive::new(tar);
    let starts: Vec<u64> = archive
        .entries()
        .expect("a tar")
        .map(|entry| entry.expect("a member").raw_header_position())
        .collect();
    usize::try_from(starts[starts.len() - 2]).expect("small")
}

#[tokio::test]
async fn entries_that_lead_out_are_refused() {
    let scene = Scene::set();
    for (name, kind) in [
        ("../outside", tar::EntryType::Regular),
        ("/tmp/lifeboat-outside", tar::EntryType::Regular),
        ("inside", tar::EntryType::Symlink),
        ("inside", tar::EntryType::Link),
        ("inside", tar::EntryType::Fifo),
    ] {
        scene.store.replace_base(LABEL, &one_member(name, kind));
        let error = scene.refusal().await;
        assert_eq!(error.code, codes::LB1256, "{name} {kind:?}: {}", error.message);
        assert!(!scene.source.place().path().join("outside").exists());
        scene.assert_untouched();
    }
}

fn one_member(name: &str, kind: tar::EntryType) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    // `set_path` would refuse what is to be tested.
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_entry_type(kind);
    header.set_size(0);
    if kind == tar::EntryType::Symlink || kind == tar::EntryType::Link {
        header.as_old_mut().linkname[..11].copy_from_slice(b"/etc/passwd");
    }
    header.set_cksum();
    let mut tar = header.as_bytes().to_vec();
    tar.resize(512 * 3, 0);
    tar
}

#[tokio::test]
async fn other_versions_and_tablespaces_without_a_place_are_refused() {
    let scene = Scene::set();
    let mut details = scene.store.details(LABEL);
    details["major"] = Value::from(9);
    scene.store.write_marker(LABEL, &details);
    let error = scene.refusal().await;
    assert_eq!(error.code, codes::LB1246);
    assert!(error.message.contains("Postgres 9"), "{}", error.message);

    fs::write(scene.store.base(LABEL).join("16385.tar.zst"), "x").expect("write");
    scene.store.write_marker(LABEL, &details);
    let error = scene.refusal().await;
    assert!(error.code == codes::LB1255 && error.message.contains("tablespace 16385"), "{error}");
    details["tablespaces"] = json!([{"oid": "16386", "location": "/srv/fast"}]);
    scene.store.write_marker(LABEL, &details);
    let error = scene.refusal().await;
    assert!(error.code == codes::LB1255 && error.message.contains("`16386`"), "{error}");
    scene.assert_untouched();
}

#[tokio::test]
async fn an_interrupted_restore_is_begun_again_by_its_own_step_only() {
    let mut scene = Scene::set();
    scene.rig.cancel.cancel();
    scene.restore("refuse").await.expect_err("is interrupted");
    assert!(scene.data_dir().exists() && !scene.is_startable());
    fs::write(scene.data_dir().join("debris"), "half").expect("write");

    let run_id = scene.rig.run_id;
    let again = |run_id| {
        let mut rig = Rig::drill()
            .resource("backups", scene.store.system())
            .resource("db", System::Postgres(scene.target.clone()));
        rig.run_id = run_id;
        rig
    };
    let (other, own) = (again(lifeboat_engine::model::ids::RunId::generate()), again(run_id));
    scene.rig = other;
    assert_eq!(scene.refusal().await.code, codes::LB1252, "another run keeps its hands off");
    scene.rig = own;
    scene.restore("refuse").await.expect("the same step goes on");
    assert!(scene.is_startable() && !scene.data_dir().join("debris").exists());
}
