//! Clusters with tablespaces: restored elsewhere, in place, and put back.

pub mod support;

use std::fs;
use std::path::{Path, PathBuf};

use lifeboat_steps::postgres::codes;
use serde_json::json;
use support::archive::Archive;
use support::bucket::{Bucket, Versions};
use support::journey::Journey;

/// A source with a tablespace, where it is, and its OID.
fn with_tablespace(archive: Archive) -> (Journey, PathBuf, String) {
    let journey = Journey::begin(archive);
    let dir = journey.source.place().subdir("fast");
    journey.source.sql(&format!("create tablespace fast location '{}'", dir.display()));
    journey.source.sql("create table photos (id int, body text) tablespace fast");
    journey.source.sql("insert into photos select n, repeat('x', 500) from generate_series(1, 300) n");
    let oid = journey.source.sql("select oid from pg_tablespace where spcname = 'fast'");
    (journey, dir, oid)
}

/// Every file of a directory with its content.
fn content(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).expect("a directory").flatten() {
        let path = entry.path();
        match path.is_dir() {
            true => found.extend(content(&path)),
            false => found.push((path.clone(), fs::read(&path).expect("reads"))),
        }
    }
    found.sort();
    found
}

async fn elsewhere(archive: Archive) {
    let (journey, source_dir, oid) = with_tablespace(archive);
    let label = journey.back_up().await;
    journey.source.sql("insert into photos select n, 'late' from generate_series(301, 310) n");
    let target = journey.commit(1);
    journey.commit(2);
    journey.source.archive_wal();
    let before = content(&source_dir);

    // The source lives on this machine: its directory is in use.
    let error = journey.restore(&label, json!({})).await.expect_err("in use");
    assert_eq!(error.code, codes::LB1257);
    let help = error.help.expect("help");
    assert!(
        error.message.contains(&oid) && help.contains(&format!("\"{oid}\":")),
        "{} {help}",
        error.message
    );
    let error = journey.restore(&label, json!({"existing": "move_aside"})).await.expect_err("not its own");
    assert!(error.code == codes::LB1257 && error.message.contains("does not use it"), "{error}");
    let inside = journey.target.data_dir.clone().expect("a place").join("spaces");
    let error = journey.restore(&label, json!({"tablespace_dir": inside})).await.expect_err("within");
    assert!(error.code == codes::LB1257 && error.message.contains("within each other"), "{error}");
    let error = journey.restore(&label, json!({"tablespaces": {"1": "/srv/x"}})).await.expect_err("unknown");
    assert!(error.code == codes::LB1257 && error.message.contains(&oid), "{error}");
    assert!(!journey.target.data_dir.clone().expect("a place").exists(), "nothing was touched");

    let spaces = journey.source.place().path().join("spaces");
    journey.restore(&label, json!({"tablespace_dir": spaces})).await.expect("restores");
    journey.recover(json!({"target_time": target.to_string()})).await.expect("recovers");
    assert_eq!(journey.sql("select count(*), max(id) from photos"), "310|310");
    assert_eq!(journey.ledger(), "1");
    let there = journey.sql("select pg_tablespace_location(oid) from pg_tablespace where spcname = 'fast'");
    assert_eq!(Path::new(&there), spaces.join(&oid));
    journey.sql("checkpoint");
    assert!(content(&source_dir) == before, "the source's own is untouched");
    journey.rig.run("postgres.promote", json!({"cluster": "db"})).await.expect("promotes");
    journey.sql("insert into photos values (999, 'written')");
    let beside = fs::read_dir(&spaces).expect("reads").flatten();
    let notes: Vec<_> = beside.filter(|entry| entry.file_name() != oid.as_str()).collect();
    assert!(notes.is_empty(), "{notes:?}");
    assert!(
        journey.rig.made_at().contains(&spaces.join(&oid)),
        "a drill removes it: {:?}",
        journey.rig.made_at()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tablespace_goes_where_it_is_told() {
    elsewhere(Archive::make()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tablespace_comes_from_a_bucket_as_well() {
    elsewhere(Archive::in_bucket(Bucket::make(Versions::None).resource("pg"))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_place_and_back_again_every_cluster_names_its_own_directories() {
    let (mut journey, space, _) = with_tablespace(Archive::make());
    let label = journey.back_up().await;
    journey.source.sql("delete from photos where id > 10");
    journey.source.archive_wal();
    journey.source.stop("fast");
    journey.target = journey.source.resource();
    journey.another_run();

    let run = journey.rig.run_id.short();
    let error = journey.restore(&label, json!({})).await.expect_err("in the way");
    assert_eq!(error.code, codes::LB1252);
    journey.restore(&label, json!({"existing": "move_aside"})).await.expect("restores");
    let aside = space.with_file_name(format!("fast.pre-{run}"));
    let earlier = journey.source.data_dir.with_file_name(format!("data.pre-{run}"));
    let links = |cluster: &Path| {
        let link = fs::read_dir(cluster.join("pg_tblspc")).expect("reads").flatten().next().expect("a link");
        fs::read_link(link.path()).expect("is a link")
    };
    assert_eq!((links(&journey.source.data_dir), links(&earlier)), (space.clone(), aside.clone()));
    journey.recover(json!({})).await.expect("recovers");
    assert_eq!(journey.sql("select count(*) from photos"), "10");
    let with = json!({"store": "backups", "cluster": "db"});
    journey.rig.undo("postgres.recover", with).await.expect("stops");

    journey.undo_restore(&label).await.expect("undoes");
    journey.undo_restore(&label).await.expect("again is no harm");
    let kept = journey.source.data_dir.with_file_name(format!("data.undone-{run}"));
    assert_eq!(links(&kept), space.with_file_name(format!("fast.undone-{run}")));
    assert_eq!(links(&journey.source.data_dir), space);
    assert!(!aside.exists() && !earlier.exists());
    journey.source.start_server();
    assert_eq!(journey.source.sql("select count(*), sum(id) from photos"), "10|55");
    // What is kept is a cluster as well, with a directory of its own.
    journey.source.stop("fast");
    assert!(content(&space) != content(&links(&kept)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_tablespace_leaves_everything_as_it_was() {
    let (mut journey, space, oid) = with_tablespace(Archive::make());
    let label = journey.back_up().await;
    journey.source.stop("fast");
    journey.target = journey.source.resource();
    journey.another_run();
    let object = journey.archive.root.join(format!("base/{label}/{oid}.tar.zst"));
    let mut bytes = fs::read(&object).expect("reads");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x40;
    fs::write(&object, bytes).expect("writes");
    let error = journey.restore(&label, json!({"existing": "move_aside"})).await.expect_err("damaged");
    assert!(error.code == codes::LB1255 && error.message.contains(&format!("{oid}.tar")), "{error}");
    let beside = fs::read_dir(journey.source.place().path()).expect("reads").flatten();
    let left: Vec<_> = beside.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    assert!(!left.iter().any(|name| name.contains(".pre-") || name.contains("lifeboat-restore")), "{left:?}");
    assert!(journey.rig.made_at().iter().all(|path| !path.exists()), "{:?}", journey.rig.made_at());
    journey.source.start_server();
    assert_eq!(journey.source.sql("select count(*) from photos"), "300");

    fs::remove_file(&object).expect("removes");
    journey.source.stop("fast");
    let error = journey.restore(&label, json!({"existing": "move_aside"})).await.expect_err("missing");
    assert!(error.message.contains(&format!("{oid}.tar")), "{error}");
    assert!(space.exists() && journey.source.data_dir.exists());
}
