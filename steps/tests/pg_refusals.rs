//! What is found before anything is written: settings, programs, room. Each refusal leaves the world as it was.

pub mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use lifeboat_engine::resource::{Postgres, Store, System};
use lifeboat_engine::step::StepError;
use lifeboat_steps::postgres::codes;
use serde_json::{Value, json};
use support::backup::TestStore;
use support::postgres::{Cluster, Options, free_port};
use support::rig::Rig;

const LABEL: &str = "20261121T031207Z-0123abcd";

/// A disk of one megabyte, which only root can make.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn make(cluster: &Cluster) -> Option<Self> {
        let dir = cluster.place().subdir("small");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=1m,mode=777", "lifeboat-test"]).arg(&dir);
        if !mount.output().is_ok_and(|output| output.status.success()) {
            println!("SKIPPED: only root can make a small disk");
            return None;
        }
        Some(Self(dir))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(Command::new("umount").arg(&self.0).output());
    }
}

fn store_in(dir: &Path) -> System {
    System::Store(Store { url: format!("dir://{}", dir.display()), ..Default::default() })
}

fn nothing_in(dir: &Path) -> bool {
    let base = std::fs::read_dir(dir).into_iter().flatten().flatten();
    base.flat_map(|entry| std::fs::read_dir(entry.path())).flatten().next().is_none()
}

async fn back_up(rig: &Rig) -> StepError {
    let with = json!({"cluster": "db", "store": "backups", "archiving": "optional"});
    rig.run("postgres.base_backup", with).await.expect_err("is refused")
}

#[tokio::test]
async fn a_server_or_programs_that_cannot_make_a_backup_are_refused_before_it() {
    let store = TestStore::make();
    for (settings, why) in [
        (["wal_level = minimal", "max_wal_senders = 0"], "wal_level"),
        (["wal_level = replica", "max_wal_senders = 1"], "max_wal_senders = 1"),
    ] {
        let settings = settings.map(ToOwned::to_owned).to_vec();
        let cluster = Cluster::start(&Options { settings, ..Options::default() });
        let rig = Rig::drill().resource("db", cluster.system()).resource("backups", store.system());
        let error = back_up(&rig).await;
        assert_eq!(error.code, codes::LB1211, "{error}");
        assert!(error.message.contains(why), "{error}");
    }
    let cluster = Cluster::start(&Options::default());
    let bin_dir = Some(cluster.place().subdir("no-programs"));
    let system = System::Postgres(Postgres { bin_dir, ..cluster.resource() });
    let rig = Rig::drill().resource("db", system).resource("backups", store.system());
    assert_eq!(back_up(&rig).await.code, codes::LB1245);
    let dump = json!({"cluster": "db", "store": "backups"});
    assert_eq!(rig.run("postgres.dump", dump).await.expect_err("no programs").code, codes::LB1245);
    assert!(nothing_in(store.path()), "nothing was begun");
}

#[tokio::test]
async fn what_no_backup_holds_is_named() {
    let store = TestStore::make();
    let cluster = Cluster::start(&Options::default());
    let outside = cluster.place().path().join("pg_hba.conf");
    std::fs::copy(cluster.data_dir.join("pg_hba.conf"), &outside).expect("a file");
    cluster.place().own(&outside);
    cluster.sql(&format!("alter system set hba_file = '{}'", outside.display()));
    cluster.stop("fast");
    cluster.start_server();
    let rig = Rig::drill().resource("db", cluster.system()).resource("backups", store.system());
    let with = json!({"cluster": "db", "store": "backups", "archiving": "optional", "compression": "gzip"});
    let done = rig.run("postgres.base_backup", with).await.expect("backs up");
    let named = format!("{} lies outside the data directory", outside.display());
    assert!(done.warnings.iter().any(|warning| warning.starts_with(&named)), "{:?}", done.warnings);
}

#[tokio::test]
async fn a_disk_without_room_is_found_before_the_first_byte() {
    let store = TestStore::make();
    let cluster = Cluster::start(&Options::default());
    store.back_up(&cluster, LABEL);
    let Some(small) = SmallDisk::make(&cluster) else { return };
    let target = Postgres {
        data_dir: Some(small.0.join("data")),
        ..cluster.place().resource("restored", free_port())
    };
    let rig = Rig::drill()
        .resource("db", cluster.system())
        .resource("target", System::Postgres(target))
        .resource("stored", store.system())
        .resource("backups", store_in(&small.0));
    let error = back_up(&rig).await;
    assert_eq!(error.code, codes::LB1213, "{error}");
    let refused = async |kind: &str, with: Value| rig.run(kind, with).await.expect_err("no room");
    let error =
        refused("postgres.restore_base", json!({"store": "stored", "backup": LABEL, "cluster": "target"}))
            .await;
    assert_eq!(error.code, codes::LB1254, "{error}");
    assert!(error.message.contains("small/data"), "{error}");
    // Twenty times what is free, and not to be squeezed.
    cluster.sql("create table wide (text text); alter table wide alter text set storage external");
    cluster.sql("insert into wide select repeat(md5(n::text), 100) from generate_series(1, 6000) n");
    let error = refused("postgres.dump", json!({"cluster": "db", "store": "backups"})).await;
    assert_eq!(error.code, codes::LB1283, "{error}");
    assert!(nothing_in(&small.0) && !small.0.join("data").exists(), "nothing was begun");
}
