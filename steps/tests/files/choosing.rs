//! Backups that are chosen, and directories that trade places.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::restore::{backup, restore, restored_over_something, rig, source, target, tree};

fn select(more: Value) -> Value {
    let mut with = json!({ "store": "backups" });
    with.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    with
}

#[tokio::test]
async fn a_backup_is_chosen_by_time_and_looked_at_before_it_is_named() {
    let rig = rig();
    let first = rig.run_as("first", "files.backup", backup()).await.unwrap();
    let between = Timestamp::now();
    fs::write(source(&rig).join("later"), "x").unwrap();
    let second = rig.run_as("second", "files.backup", backup()).await.unwrap();
    let newest = rig.run("files.select_backup", select(json!({}))).await.unwrap();
    assert_eq!(newest.outputs["backup"], second.outputs["backup"]);
    assert_eq!((&newest.outputs["source"], &newest.outputs["files"]), (&json!("uploads"), &json!(5)));
    assert_eq!(newest.outputs["restore_bytes"], second.outputs["bytes"]);
    let before = rig.run("files.select_backup", select(json!({ "target_time": between }))).await.unwrap();
    assert_eq!(before.outputs["backup"], first.outputs["backup"]);
    assert_eq!(before.outputs["taken_at"], first.outputs["taken_at"]);
    let early = select(json!({ "target_time": "2020-01-01T00:00:00Z" }));
    let error = rig.run("files.select_backup", early).await.unwrap_err();
    assert_eq!((error.code.id, error.causes.len()), ("LB1404", 2));
    let other = select(json!({ "source": "photos" }));
    assert_eq!(rig.run("files.select_backup", other).await.unwrap_err().code.id, "LB1404");
}

#[tokio::test]
async fn a_damaged_backup_is_passed_over_by_name_and_never_silently() {
    let rig = rig();
    let first = rig.run_as("first", "files.backup", backup()).await.unwrap();
    let second = rig.run_as("second", "files.backup", backup()).await.unwrap();
    let label = second.outputs["backup"].as_str().unwrap();
    let archive = rig.dir().join("store/files").join(label).join("files.tar.zst");
    let whole = fs::read(&archive).unwrap();
    // One byte changed: only who reads everything finds it.
    let mut changed = whole.clone();
    changed[whole.len() / 2] ^= 1;
    fs::write(&archive, &changed).unwrap();
    let chosen = rig.run("files.select_backup", select(json!({}))).await.unwrap();
    assert_eq!(chosen.outputs["backup"], second.outputs["backup"]);
    let chosen = rig.run("files.select_backup", select(json!({ "read": true }))).await.unwrap();
    assert_eq!(chosen.outputs["backup"], first.outputs["backup"]);
    assert!(chosen.warnings[0].contains(label), "{:?}", chosen.warnings);
    // Cut off, and without its manifest: found at once.
    fs::write(&archive, &whole[..whole.len() - 1]).unwrap();
    let chosen = rig.run("files.select_backup", select(json!({}))).await.unwrap();
    assert_eq!(chosen.outputs["backup"], first.outputs["backup"]);
    let named = rig.run("files.select_backup", select(json!({ "backup": label }))).await.unwrap_err();
    assert!(named.message.contains(label), "{named:?}");
    fs::write(&archive, &whole).unwrap();
    fs::remove_file(archive.with_file_name("lifeboat.json")).unwrap();
    let chosen = rig.run("files.select_backup", select(json!({}))).await.unwrap();
    assert!(chosen.outputs["backup"] == first.outputs["backup"] && !chosen.warnings.is_empty());
    let only = rig.dir().join("store/files").join(first.outputs["backup"].as_str().unwrap());
    fs::remove_file(only.join("manifest.json")).unwrap();
    let error = rig.run("files.select_backup", select(json!({}))).await.unwrap_err();
    assert!(error.code.id == "LB1404" && error.causes.len() == 2, "{error:?}");
}

fn swap(previous: &Path) -> Value {
    json!({ "files": "restored", "previous": previous })
}

#[tokio::test]
async fn two_directories_trade_places_and_undo_trades_them_back() {
    let rig = rig();
    let beside = rig.dir().join("www/uploads.new");
    for (dir, text) in [(target(&rig), "in use"), (beside.clone(), "kept")] {
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("f"), text).unwrap();
    }
    let content = |dir: &Path| fs::read_to_string(dir.join("f")).unwrap();
    let done = rig.run("files.swap", swap(&beside)).await.unwrap();
    assert_eq!((content(&target(&rig)), content(&beside)), ("kept".into(), "in use".into()));
    assert_eq!(done.outputs["kept"], json!(beside));
    let again = rig.run("files.swap", swap(&beside)).await.unwrap();
    assert_eq!(
        (again.outputs, content(&target(&rig))),
        (done.outputs, "kept".into()),
        "never back and forth"
    );
    for _ in 0..2 {
        rig.undo("files.swap", swap(&beside)).await.unwrap();
        assert_eq!((content(&target(&rig)), content(&beside)), ("in use".into(), "kept".into()));
    }
    assert_eq!(fs::read_dir(rig.dir().join("www")).unwrap().count(), 2);
}

#[tokio::test]
async fn what_cannot_be_exchanged_is_refused_and_untouched() {
    let rig = restored_over_something().await;
    let www = rig.dir().join("www");
    fs::write(www.join("file"), "x").unwrap();
    symlink("uploads", www.join("link")).unwrap();
    fs::create_dir(rig.dir().join("elsewhere")).unwrap();
    let own = www.join(format!("uploads.pre-{}", rig.run_id.short()));
    let before = tree(&www);
    for other in [
        www.join("absent"),
        www.join("file"),
        www.join("link"),
        rig.dir().join("elsewhere"),
        target(&rig),
        own,
    ] {
        let error = rig.run("files.swap", swap(&other)).await.expect_err(other.to_str().unwrap());
        assert_eq!(error.code.id, "LB1430", "{}: {error:?}", other.display());
        assert_eq!(tree(&www), before, "{}", other.display());
    }
}

#[tokio::test]
async fn a_mount_point_is_explained_and_not_renamed() {
    let rig = rig();
    fs::create_dir(target(&rig)).unwrap();
    let mut mount = std::process::Command::new("mount");
    let made = mount.args(["-t", "tmpfs", "-o", "size=1m", "lifeboat-test"]).arg(target(&rig)).output();
    if !made.is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED: only root may mount, where mounting is allowed");
        return;
    }
    rig.run("files.backup", backup()).await.unwrap();
    let beside = rig.dir().join("www/uploads.new");
    fs::create_dir(&beside).unwrap();
    let restored = rig.run("files.restore", restore()).await;
    let swapped = rig.run("files.swap", swap(&beside)).await;
    drop(std::process::Command::new("umount").arg("-l").arg(target(&rig)).output());
    for error in [restored.unwrap_err(), swapped.unwrap_err()] {
        assert!(error.message.contains("mount point"), "{error:?}");
        let help = error.help.unwrap();
        let place = target(&rig).canonicalize().unwrap().display().to_string();
        assert!(
            help.contains(&format!("umount {place}")) && help.contains(&format!("{place}/current")),
            "{help}"
        );
    }
}
