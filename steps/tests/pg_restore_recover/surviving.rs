//! Commits that the lost server had not archived.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::model::outcome::FailureKind;
use lifeboat_engine::step::StepError;
use lifeboat_steps::postgres::codes;
use serde_json::{Value, json};

use super::scene::{LABEL, Scene, recover_params};
use crate::support::postgres::{free_port, wait_until};

const ALL: &str = "select string_agg(id::text, ',' order by id) from ledger";

/// Rows 1 and 2 are in the archive, 3 to 5 stand in `pg_wal` of the source alone: each in a segment of its own. Returns a
/// moment between 4 and 5, when the source has crashed.
fn lost(scene: &Scene) -> Timestamp {
    scene.commit(2);
    scene.source.archive_wal();
    unarchived(scene)
}

fn unarchived(scene: &Scene) -> Timestamp {
    scene.source.sql("alter system set archive_command = 'false'");
    scene.source.sql("select pg_reload_conf()");
    wait_until("nothing is archived any more", || scene.source.sql("show archive_command") == "false");
    scene.commit(3);
    scene.source.sql("select pg_switch_wal()");
    let target = scene.commit(4);
    scene.source.sql("select pg_switch_wal()");
    scene.commit(5);
    scene.source.stop("immediate");
    target
}

/// Restores in the place of the source, whose directory is moved aside.
async fn in_place(scene: &mut Scene) -> PathBuf {
    scene.target = scene.source.resource();
    scene.rig = Scene::rig(&scene.store, &scene.target);
    let with = json!({"store": "backups", "backup": LABEL, "cluster": "db", "existing": "move_aside"});
    let done = scene.rig.run("postgres.restore_base", with).await.expect("restores");
    PathBuf::from(&done.facts["moved aside"])
}

/// Restores to another place.
async fn elsewhere(scene: &mut Scene, name: &str) {
    scene.target = scene.source.place().resource(name, free_port());
    scene.rig = Scene::rig(&scene.store, &scene.target);
    scene.restore_base().await;
}

async fn recover(scene: &Scene, target: Option<Timestamp>, from: &str) -> Result<Done, StepError> {
    let mut with = recover_params(target);
    with["surviving_wal"] = Value::from(from);
    scene.rig.run("postgres.recover", with).await
}

async fn stop(scene: &Scene) {
    scene.rig.undo("postgres.recover", recover_params(None)).await.expect("stops");
}

fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = fs::read_dir(dir).expect("a directory").flatten().map(|entry| entry.path());
    entries
        .filter(|path| path.is_file())
        .map(|path| (path.clone(), fs::read(&path).expect("reads")))
        .collect()
}

#[tokio::test]
async fn commits_that_were_not_archived_come_from_the_directory_that_was_moved_aside() {
    let mut scene = Scene::set();
    let target = lost(&scene);
    let archived = scene.segments();
    let old = in_place(&mut scene).await;
    let before = contents(&old.join("pg_wal"));
    let done = scene.recover(None).await.expect("recovers");
    assert_eq!(scene.sql(ALL), "1,2,3,4,5");
    assert!(done.checks.iter().all(|check| check.passed), "{:?}", done.checks);
    let warning = done.warnings.iter().find(|warning| warning.contains("the archive lacks WAL"));
    let warning = warning.unwrap_or_else(|| panic!("{:?}", done.warnings));
    assert!(warning.contains(&old.display().to_string()) && warning.contains("base backup"), "{warning}");
    assert_eq!(contents(&old.join("pg_wal")), before, "what was lost stays as it is");
    assert_eq!(scene.segments(), archived, "nothing is put into the archive");
    // Another attempt finds the server waiting.
    scene.recover(None).await.expect("is there");
    stop(&scene).await;

    // On another machine, to a moment that is in none of the archive.
    elsewhere(&mut scene, "elsewhere").await;
    let done = recover(&scene, Some(target), &old.display().to_string()).await.expect("recovers");
    assert_eq!((scene.sql(ALL).as_str(), &done.outputs["end_of_wal"]), ("1,2,3,4", &json!(false)));
    scene.rig.run("postgres.promote", json!({"cluster": "db"})).await.expect("promotes");
    scene.sql("insert into ledger values (6, 'on the new timeline')");
    assert_eq!(scene.sql(ALL), "1,2,3,4,6", "what lies behind the target is not replayed");
    stop(&scene).await;

    // Without it the log ends where the archive does.
    elsewhere(&mut scene, "without").await;
    let done = scene.recover(Some(target)).await.expect("recovers");
    assert_eq!((scene.sql(ALL).as_str(), &done.outputs["end_of_wal"]), ("1,2", &json!(true)));
    assert!(!done.warnings.iter().any(|warning| warning.contains("lacks WAL")), "{:?}", done.warnings);
    stop(&scene).await;
}

#[tokio::test]
async fn a_gap_of_the_archive_is_filled_from_the_lost_server() {
    let mut scene = Scene::set();
    scene.commit(2);
    scene.source.archive_wal();
    scene.commit(3);
    scene.source.archive_wal();
    scene.source.stop("immediate");
    let segments = scene.segments();
    let [.., gap, _] = segments.as_slice() else { panic!("two segments at least: {segments:?}") };
    fs::remove_file(gap).expect("removes");
    let old = in_place(&mut scene).await;
    let error = recover(&scene, None, "none").await.expect_err("a segment is missing");
    assert_eq!(error.code, codes::LB1266, "{error}");
    let name = gap.file_name().expect("a name");
    // Damaged, it is no end of the log: the archive goes on behind it.
    let survivor = old.join("pg_wal").join(name);
    let whole = fs::read(&survivor).expect("reads");
    let mut damaged = whole.clone();
    damaged[300] ^= 1;
    fs::write(&survivor, damaged).expect("writes");
    let error = scene.recover(None).await.expect_err("is damaged");
    assert_eq!(error.code, codes::LB1880, "{error}");
    assert!(error.message.contains(&name.to_string_lossy().into_owned()), "{error}");
    fs::write(&survivor, whole).expect("writes");
    // What the attempt has left under the name of the segment is not taken for it.
    let here = scene.data_dir().join("pg_wal").join(name);
    scene.recover(None).await.expect("recovers");
    assert_eq!(scene.sql(ALL), "1,2,3");
    assert_eq!(fs::read(&here).ok(), fs::read(old.join("pg_wal").join(name)).ok());
    stop(&scene).await;
}

#[tokio::test]
async fn what_cannot_be_read_or_is_of_another_log_is_never_taken() {
    let mut scene = Scene::set();
    lost(&scene);
    let archived = scene.segments().last().expect("archived").file_name().expect("a name").to_owned();
    let old = in_place(&mut scene).await;
    let wal = old.join("pg_wal");
    let path = wal.display().to_string();
    let first =
        contents(&wal).into_keys().find(|path| path.file_name() > Some(&archived)).expect("unarchived");
    let whole = fs::read(&first).expect("reads");

    // A disk that does not give it back.
    fs::remove_file(&first).expect("removes");
    fs::create_dir(&first).expect("makes");
    let error = scene.recover(None).await.expect_err("cannot be read");
    assert_eq!((error.code, error.kind), (codes::LB1836, FailureKind::Transient), "{error}");
    assert!(error.message.contains(&first.display().to_string()), "{error}");
    assert!(error.help.as_deref().expect("help").contains("surviving_wal: none"), "{error:?}");
    fs::remove_dir(&first).expect("removes");
    let error = recover(&scene, None, "/nonexistent/pg_wal").await.expect_err("is not there");
    assert!(error.code == codes::LB1836 && error.message.contains("/nonexistent"), "{error}");

    // One that waits under this name to be written, as Postgres keeps old ones.
    fs::copy(wal.join(&archived), &first).expect("copies");
    let done = recover(&scene, None, &path).await.expect("recovers");
    assert_eq!(scene.sql(ALL), "1,2");
    assert!(done.warnings.iter().any(|warning| warning.contains("no WAL with which")), "{:?}", done.warnings);
    stop(&scene).await;

    // The log of a copy of the cluster that went on by itself.
    fs::write(&first, whole).expect("writes");
    let before = wal.join(&archived);
    let mut other = fs::read(&before).expect("reads");
    *other.last_mut().expect("bytes") ^= 1;
    fs::write(&before, other).expect("writes");
    let error = recover(&scene, None, &path).await.expect_err("another log");
    assert_eq!((error.code, error.kind), (codes::LB1836, FailureKind::Permanent), "{error}");
    assert!(error.message.contains(archived.to_str().expect("text")), "{error}");
    let done = scene.recover(None).await.expect("recovers");
    assert_eq!(scene.sql(ALL), "1,2");
    assert!(done.warnings.iter().any(|warning| warning.contains("is not used")), "{:?}", done.warnings);
    stop(&scene).await;
}

#[tokio::test]
async fn a_timeline_is_known_by_its_history_and_not_by_its_number() {
    let mut scene = Scene::set();
    scene.source.stop("fast");
    let signal = scene.source.data_dir.join("recovery.signal");
    fs::write(&signal, "").expect("writes");
    scene.source.place().own(&signal);
    let conf = scene.source.data_dir.join("postgresql.auto.conf");
    fs::write(&conf, "restore_command = 'false'\n").expect("writes");
    scene.source.place().own(&conf);
    scene.source.start_server();
    wait_until("the source is promoted", || scene.source.sql("select pg_is_in_recovery()") == "f");
    scene.commit(2);
    scene.source.archive_wal();
    unarchived(&scene);
    let old = in_place(&mut scene).await;
    let history = old.join("pg_wal/00000002.history");
    let own = fs::read_to_string(&history).expect("reads");
    fs::write(&history, "1\t0/100\tanother promotion\n").expect("writes");
    let done = scene.recover(None).await.expect("recovers");
    assert_eq!((scene.sql(ALL).as_str(), &done.outputs["timeline"]), ("1,2", &json!(2)));
    assert!(done.warnings.iter().any(|warning| warning.contains("00000002.history")), "{:?}", done.warnings);
    stop(&scene).await;

    fs::write(&history, own).expect("writes");
    elsewhere(&mut scene, "elsewhere").await;
    recover(&scene, None, &old.display().to_string()).await.expect("recovers");
    assert_eq!(scene.sql(ALL), "1,2,3,4,5");
    stop(&scene).await;
}
