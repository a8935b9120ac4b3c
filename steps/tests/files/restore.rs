//! Backups and restores of real directory trees.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use lifeboat_engine::model::evidence::{Confidence, CreatedKind};
use serde_json::{Value, json};

use crate::support::rig::Rig;

/// A rig with a source tree, a store, and a target that does not exist.
pub(super) fn rig() -> Rig {
    let mut rig = Rig::drill();
    let store = format!("dir://{}", rig.dir().join("store").display());
    let (source, target) = (rig.dir().join("source"), rig.dir().join("www/uploads"));
    fs::create_dir_all(source.join("a/deep")).unwrap();
    fs::create_dir_all(source.join("empty")).unwrap();
    fs::create_dir(target.parent().unwrap()).unwrap();
    fs::write(source.join("photo.jpg"), vec![7; 300_000]).unwrap();
    fs::write(source.join("a/note.txt"), "hello").unwrap();
    fs::write(source.join("a/deep/ünï 100%.txt"), "").unwrap();
    fs::write(source.join("a/run.sh"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(source.join("a/run.sh"), fs::Permissions::from_mode(0o750)).unwrap();
    fs::set_permissions(source.join("empty"), fs::Permissions::from_mode(0o711)).unwrap();
    symlink("a/note.txt", source.join("latest")).unwrap();
    let old = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::new(1_000_000_000, 5000);
    fs::File::open(source.join("photo.jpg")).unwrap().set_modified(old).unwrap();
    rig.set_resource("backups", json!({ "kind": "store", "url": store }));
    rig.set_resource("uploads", json!({ "kind": "files", "path": source }));
    rig.set_resource("restored", json!({ "kind": "files", "path": target }));
    rig
}

pub(super) fn source(rig: &Rig) -> PathBuf {
    rig.dir().join("source")
}

pub(super) fn target(rig: &Rig) -> PathBuf {
    rig.dir().join("www/uploads")
}

pub(super) fn backup() -> Value {
    json!({ "files": "uploads", "store": "backups" })
}

pub(super) fn restore() -> Value {
    json!({ "files": "restored", "store": "backups" })
}

/// Lists a tree with what a restore must bring back of each entry.
pub(super) fn tree(root: &Path) -> Vec<(String, u32, i64, i64, Vec<u8>)> {
    let mut found = Vec::new();
    let mut left = vec![root.to_owned()];
    while let Some(path) = left.pop() {
        let of = fs::symlink_metadata(&path).unwrap();
        let content = if of.is_symlink() {
            fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes()
        } else if of.is_dir() {
            left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            Vec::new()
        } else {
            fs::read(&path).unwrap()
        };
        let name = path.strip_prefix(root).unwrap().display().to_string();
        found.push((name, of.mode(), of.mtime(), of.mtime_nsec(), content));
    }
    found.sort();
    found
}

#[tokio::test]
async fn a_tree_comes_back_as_it_was() {
    let rig = rig();
    let before = tree(&source(&rig));
    let taken = rig.run("files.backup", backup()).await.unwrap();
    assert_eq!((taken.outputs["files"].clone(), taken.outputs["bytes"].clone()), (json!(4), json!(300_015)));
    assert_eq!(taken.warnings, Vec::<String>::new());
    let done = rig.run("files.restore", restore()).await.unwrap();
    assert_eq!(tree(&target(&rig)), before);
    assert!(!done.outputs.contains_key("previous"));
    let point = &done.recovery_points[0];
    assert_eq!(
        (json!(point.time), point.confidence),
        (taken.outputs["taken_at"].clone(), Confidence::Stated)
    );
    let created = rig.reported().created.clone();
    assert!(
        matches!(&created[1].kind, CreatedKind::Directory { path } if *path == target(&rig)),
        "{created:?}"
    );
    assert_eq!(rig.run("files.backup", backup()).await.unwrap().outputs, taken.outputs, "not taken twice");
}

#[tokio::test]
async fn the_archive_can_be_unpacked_by_hand() {
    let rig = rig();
    let taken = rig.run("files.backup", backup()).await.unwrap();
    let dir = rig.dir().join("store/files").join(taken.outputs["backup"].as_str().unwrap());
    let by_hand = rig.dir().join("by-hand");
    fs::create_dir(&by_hand).unwrap();
    let unpacked = zstd::Decoder::new(fs::File::open(dir.join("files.tar.zst")).unwrap()).unwrap();
    tar::Archive::new(unpacked).unpack(&by_hand).unwrap();
    let names =
        |root: &Path| tree(root).into_iter().map(|(name, .., content)| (name, content)).collect::<Vec<_>>();
    assert_eq!(names(&by_hand), names(&source(&rig)));
}

#[tokio::test]
async fn what_was_there_is_kept() {
    let rig = rig();
    rig.run("files.backup", backup()).await.unwrap();
    fs::create_dir(target(&rig)).unwrap();
    fs::write(target(&rig).join("damaged"), "x").unwrap();
    let done = rig.run("files.restore", restore()).await.unwrap();
    let previous = PathBuf::from(done.outputs["previous"].as_str().unwrap());
    assert!(previous.display().to_string().contains("uploads.pre-"), "{}", previous.display());
    assert_eq!(fs::read_to_string(previous.join("damaged")).unwrap(), "x");
    assert!(!target(&rig).join("damaged").exists());
    assert_eq!(fs::read_dir(rig.dir().join("www")).unwrap().count(), 2, "nothing else is left");

    // An attempt that follows finds that it is done.
    let inode = fs::metadata(target(&rig)).unwrap().ino();
    let again = rig.run("files.restore", restore()).await.unwrap();
    assert_eq!(again.outputs["previous"], done.outputs["previous"]);
    assert_eq!(fs::metadata(target(&rig)).unwrap().ino(), inode);
}

#[tokio::test]
async fn the_end_of_a_drill_brings_the_old_files_back() {
    let rig = rig();
    rig.run("files.backup", backup()).await.unwrap();
    fs::create_dir(target(&rig)).unwrap();
    fs::write(target(&rig).join("old"), "x").unwrap();
    rig.run("files.restore", restore()).await.unwrap();
    for thing in rig.reported().created.iter().rev() {
        let removal = lifeboat_engine::run::cleanup::remove(thing);
        assert!(removal.removed, "{thing:?}: {}", removal.proof);
    }
    assert_eq!(fs::read_to_string(target(&rig).join("old")).unwrap(), "x");
    assert_eq!(fs::read_dir(rig.dir().join("www")).unwrap().count(), 1, "nothing else is left");
}

#[tokio::test]
async fn a_restore_that_was_lost_just_before_the_exchange_is_finished() {
    let rig = rig();
    rig.run("files.backup", backup()).await.unwrap();
    fs::create_dir(target(&rig)).unwrap();
    fs::write(target(&rig).join("old"), "x").unwrap();
    let done = rig.run("files.restore", restore()).await.unwrap();
    let aside = PathBuf::from(done.outputs["previous"].as_str().unwrap());
    // What a crash between the two renames leaves: the new directory at the name where the old one will be kept.
    let between = rig.dir().join("between");
    fs::rename(&aside, &between).unwrap();
    fs::rename(target(&rig), &aside).unwrap();
    fs::rename(&between, target(&rig)).unwrap();
    let again = rig.run("files.restore", restore()).await.unwrap();
    assert_eq!(again.outputs["previous"], done.outputs["previous"]);
    assert_eq!(tree(&target(&rig)), tree(&source(&rig)));
    assert_eq!(fs::read_to_string(aside.join("old")).unwrap(), "x");
}

#[tokio::test]
async fn an_interrupted_restore_goes_on_and_trusts_nothing() {
    let rig = rig();
    rig.run("files.backup", backup()).await.unwrap();
    let outside = rig.dir().join("outside");
    fs::create_dir(&outside).unwrap();
    let staging = rig.dir().join(format!("www/.uploads.restore-{}", rig.run_id.short()));
    fs::create_dir(&staging).unwrap();
    fs::write(staging.join("photo.jpg"), vec![7; 300_000]).unwrap();
    let kept = fs::metadata(staging.join("photo.jpg")).unwrap().ino();
    // A link in the place of a directory must not lead the restore out of its tree.
    symlink(&outside, staging.join("a")).unwrap();
    fs::write(staging.join("stray"), "x").unwrap();
    rig.run("files.restore", restore()).await.unwrap();
    assert_eq!(tree(&target(&rig)), tree(&source(&rig)));
    assert_eq!(fs::metadata(target(&rig).join("photo.jpg")).unwrap().ino(), kept);
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
}

#[tokio::test]
async fn a_wrong_file_of_an_earlier_attempt_is_written_again() {
    let rig = rig();
    rig.run("files.backup", backup()).await.unwrap();
    let staging = rig.dir().join(format!("www/.uploads.restore-{}", rig.run_id.short()));
    fs::create_dir(&staging).unwrap();
    fs::write(staging.join("photo.jpg"), vec![8; 300_000]).unwrap();
    rig.run("files.restore", restore()).await.unwrap();
    assert_eq!(tree(&target(&rig)), tree(&source(&rig)));
}

#[tokio::test]
async fn a_damaged_backup_leaves_the_target_alone() {
    for object in ["files.tar.zst", "manifest.json"] {
        let rig = rig();
        let taken = rig.run("files.backup", backup()).await.unwrap();
        let dir = rig.dir().join("store/files").join(taken.outputs["backup"].as_str().unwrap());
        let mut bytes = fs::read(dir.join(object)).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x20;
        fs::write(dir.join(object), bytes).unwrap();
        fs::create_dir(target(&rig)).unwrap();
        fs::write(target(&rig).join("old"), "x").unwrap();
        let error = rig.run("files.restore", restore()).await.unwrap_err();
        assert_eq!(error.code.id, "LB1408", "{object}: {error:?}");
        assert!(target(&rig).join("old").exists());
        let moved =
            rig.reported().created.iter().any(|thing| matches!(thing.kind, CreatedKind::MovedAside { .. }));
        assert!(!moved, "nothing was moved aside");
    }
}

#[tokio::test]
async fn the_newest_backup_before_the_target_is_chosen() {
    let rig = rig();
    let first = rig.run_as("first", "files.backup", backup()).await.unwrap();
    let between = Timestamp::now();
    fs::write(source(&rig).join("later"), "x").unwrap();
    let second = rig.run_as("second", "files.backup", backup()).await.unwrap();
    let mut with = restore();
    with["target_time"] = json!(between);
    let done = rig.run_as("to_time", "files.restore", with.clone()).await.unwrap();
    assert_eq!(done.outputs["backup"], first.outputs["backup"]);
    let newest = rig.run_as("newest", "files.restore", restore()).await.unwrap();
    assert_eq!(newest.outputs["backup"], second.outputs["backup"]);
    with["target_time"] = json!("2020-01-01T00:00:00Z");
    let error = rig.run_as("early", "files.restore", with).await.unwrap_err();
    assert_eq!((error.code.id, error.causes.len()), ("LB1404", 2));
}

#[tokio::test]
async fn links_out_of_the_tree_are_reported_and_refused() {
    let rig = rig();
    symlink("/etc/passwd", source(&rig).join("out")).unwrap();
    let taken = rig.run("files.backup", backup()).await.unwrap();
    assert!(taken.warnings[0].contains("lead out"), "{:?}", taken.warnings);
    let error = rig.run("files.restore", restore()).await.unwrap_err();
    assert_eq!(error.code.id, "LB1405");
    let mut with = restore();
    with["outside_links"] = json!("keep");
    rig.run_as("kept", "files.restore", with).await.unwrap();
    assert_eq!(fs::read_link(target(&rig).join("out")).unwrap(), Path::new("/etc/passwd"));
}

#[tokio::test]
async fn nothing_is_not_backed_up_and_sockets_are_left_out() {
    let mut rig = rig();
    let empty = rig.dir().join("nothing");
    fs::create_dir(&empty).unwrap();
    rig.set_resource("uploads", json!({ "kind": "files", "path": empty }));
    assert_eq!(rig.run("files.backup", backup()).await.unwrap_err().code.id, "LB1403");
    rig.set_resource("uploads", json!({ "kind": "files", "path": "/no/such/dir" }));
    assert_eq!(rig.run_as("absent", "files.backup", backup()).await.unwrap_err().code.id, "LB1401");
    let _socket = std::os::unix::net::UnixListener::bind(empty.join("s")).unwrap();
    fs::write(empty.join("f"), "x").unwrap();
    rig.set_resource("uploads", json!({ "kind": "files", "path": empty }));
    let done = rig.run_as("socket", "files.backup", backup()).await.unwrap();
    assert_eq!(done.outputs["files"], json!(1));
    assert!(done.warnings[0].contains("special files"), "{:?}", done.warnings);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_changes_all_the_time_fails_the_backup() {
    let rig = rig();
    let path = source(&rig).join("growing");
    let length = 12_000_000;
    fs::write(&path, vec![1; length]).unwrap();
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writer = std::thread::spawn({
        let (stop, path) = (stop.clone(), path.clone());
        move || {
            let file = fs::File::options().append(true).open(&path).unwrap();
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                std::io::Write::write_all(&mut &file, b"x").unwrap();
            }
        }
    });
    while fs::metadata(&path).unwrap().len() <= length as u64 {
        tokio::task::yield_now().await;
    }
    let result = rig.run("files.backup", backup()).await;
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    writer.join().unwrap();
    assert_eq!(result.unwrap_err().code.id, "LB1402");
    rig.run("files.backup", backup()).await.expect("a later attempt goes through");
}

#[tokio::test]
async fn verification_counts_every_difference() {
    let mut rig = rig();
    rig.run("files.backup", backup()).await.unwrap();
    rig.run("files.restore", restore()).await.unwrap();
    let done = rig.run("files.verify", restore()).await.unwrap();
    assert_eq!((done.outputs["missing"].clone(), done.outputs["extra"].clone()), (json!(0), json!(0)));
    fs::remove_file(target(&rig).join("a/note.txt")).unwrap();
    fs::write(target(&rig).join("photo.jpg"), vec![9; 300_000]).unwrap();
    fs::write(target(&rig).join("new"), "x").unwrap();
    let error = rig.run("files.verify", restore()).await.unwrap_err();
    assert_eq!(error.code.id, "LB1409");
    assert_eq!(error.causes, ["missing: a/note.txt", "different: photo.jpg", "not in the backup: new"]);
    let mut with = restore();
    with["expect"] = json!(["missing == 1", "different == 1", "extra == 1"]);
    rig.run("files.verify", with).await.unwrap();
    rig.set_resource("restored", json!({ "kind": "files", "path": rig.dir().join("absent") }));
    assert_eq!(rig.run("files.verify", restore()).await.unwrap_err().code.id, "LB1409");
}

#[tokio::test]
async fn restored_files_belong_to_the_owner_of_the_resource() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let mut rig = rig();
    rig.set_resource("restored", json!({ "kind": "files", "path": target(&rig), "owner": "nobody" }));
    rig.run("files.backup", backup()).await.unwrap();
    rig.run("files.restore", restore()).await.unwrap();
    let nobody = lifeboat_steps::process::OsUser::lookup("nobody").unwrap();
    let found = fs::metadata(target(&rig).join("a/note.txt")).unwrap();
    assert_eq!((found.uid(), found.gid()), (nobody.uid, nobody.gid));
}

/// Makes a target with something in it and restores over it.
pub(super) async fn restored_over_something() -> Rig {
    let rig = rig();
    rig.run("files.backup", backup()).await.unwrap();
    fs::create_dir(target(&rig)).unwrap();
    fs::write(target(&rig).join("earlier"), "x").unwrap();
    rig.run("files.restore", restore()).await.unwrap();
    rig
}

fn undone(rig: &Rig) -> PathBuf {
    rig.dir().join(format!("www/uploads.undone-{}", rig.run_id.short()))
}

#[tokio::test]
async fn undo_brings_the_earlier_directory_back_and_keeps_what_was_restored() {
    let rig = restored_over_something().await;
    rig.undo("files.restore", restore()).await.unwrap();
    assert_eq!(fs::read_to_string(target(&rig).join("earlier")).unwrap(), "x");
    assert_eq!(tree(&undone(&rig)), tree(&source(&rig)));
    assert_eq!(rig.made_at(), [undone(&rig)], "a drill removes what was restored and nothing else");
    rig.undo("files.restore", restore()).await.unwrap();
    assert_eq!(fs::read_to_string(target(&rig).join("earlier")).unwrap(), "x", "again is no harm");
    assert_eq!(fs::read_dir(rig.dir().join("www")).unwrap().count(), 2);
}

#[tokio::test]
async fn undo_where_nothing_was_leaves_nothing() {
    let rig = rig();
    rig.run("files.backup", backup()).await.unwrap();
    rig.run("files.restore", restore()).await.unwrap();
    rig.undo("files.restore", restore()).await.unwrap();
    assert!(!target(&rig).exists() && undone(&rig).exists());
    rig.undo("files.restore", restore()).await.unwrap();
    assert!(!target(&rig).exists() && undone(&rig).exists());
}

#[tokio::test]
async fn undo_goes_on_from_every_place_in_which_a_crash_can_leave_it() {
    // After the exchange of an undo that was killed: the earlier directory is back, the restored one beside it.
    let rig = restored_over_something().await;
    let aside = rig.dir().join(format!("www/uploads.pre-{}", rig.run_id.short()));
    let third = rig.dir().join("www/third");
    fs::rename(target(&rig), &third).unwrap();
    fs::rename(&aside, target(&rig)).unwrap();
    fs::rename(&third, &aside).unwrap();
    rig.undo("files.restore", restore()).await.unwrap();
    assert_eq!(fs::read_to_string(target(&rig).join("earlier")).unwrap(), "x");
    assert!(undone(&rig).exists() && !aside.exists());

    // Between two renames on a file system that cannot exchange: nothing stands at the target.
    let rig = restored_over_something().await;
    let aside = rig.dir().join(format!("www/uploads.pre-{}", rig.run_id.short()));
    fs::rename(target(&rig), undone(&rig)).unwrap();
    rig.undo("files.restore", restore()).await.unwrap();
    assert_eq!(fs::read_to_string(target(&rig).join("earlier")).unwrap(), "x");
    assert!(!aside.exists());
}

#[tokio::test]
async fn undo_leaves_files_that_somebody_else_has_put_there() {
    let rig = restored_over_something().await;
    fs::rename(target(&rig), rig.dir().join("www/elsewhere")).unwrap();
    fs::create_dir(target(&rig)).unwrap();
    fs::write(target(&rig).join("theirs"), "x").unwrap();
    let error = rig.undo("files.restore", restore()).await.unwrap_err();
    assert_eq!(error.code.id, "LB1406");
    assert!(error.message.contains("stays aside"), "{}", error.message);
    assert!(target(&rig).join("theirs").exists());
}

fn mark(path: &Path, name: &str, value: &[u8]) -> bool {
    rustix::fs::setxattr(path, name, value, rustix::fs::XattrFlags::empty()).is_ok()
}

fn marked(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 100];
    let length = rustix::fs::getxattr(path, name, value.as_mut_slice()).ok()?;
    Some(value[..length].to_vec())
}

#[tokio::test]
async fn attributes_of_programs_come_back_and_those_that_do_not_are_told() {
    let rig = rig();
    let (file, dir) = ("a/note.txt", "a/deep");
    let takes = mark(&source(&rig).join(file), "user.note", &[0, 1, 255]);
    assert_eq!(mark(&source(&rig).join(dir), "user.of a directory", b"x"), takes);
    fs::set_permissions(source(&rig).join(file), fs::Permissions::from_mode(0o400)).unwrap();
    let taken = rig.run("files.backup", backup()).await.unwrap();
    assert!(taken.warnings.is_empty(), "all that is there is kept: {taken:?}");
    let done = rig.run("files.restore", restore()).await.unwrap();
    assert!(done.warnings.is_empty(), "{:?}", done.warnings);
    let wanted = takes.then(|| vec![0, 1, 255]);
    assert_eq!(marked(&target(&rig).join(file), "user.note"), wanted);
    assert_eq!(marked(&target(&rig).join(dir), "user.of a directory").is_some(), takes);
    assert_eq!(fs::metadata(target(&rig).join(file)).unwrap().mode() & 0o777, 0o400);

    // Something takes them away before the end of the step is known: it does not say that all is as it was.
    if takes {
        rustix::fs::removexattr(target(&rig).join(file), "user.note").unwrap();
        let again = rig.run("files.restore", restore()).await.unwrap();
        assert!(
            again.warnings[0].contains("1 entries") && again.warnings[0].contains(file),
            "{:?}",
            again.warnings
        );
    }
}

#[tokio::test]
async fn access_lists_are_told_and_not_kept() {
    let rig = rig();
    // Version 2: the owner, the user 1, the group, a mask, all others.
    let entries =
        [(1_u16, 6_u16, u32::MAX), (2, 4, 1), (4, 4, u32::MAX), (16, 4, u32::MAX), (32, 4, u32::MAX)];
    let mut list = 2_u32.to_le_bytes().to_vec();
    for (tag, rights, id) in entries {
        list.extend(tag.to_le_bytes().into_iter().chain(rights.to_le_bytes()).chain(id.to_le_bytes()));
    }
    let has_list = mark(&source(&rig).join("a/note.txt"), "system.posix_acl_access", &list);
    let taken = rig.run("files.backup", backup()).await.unwrap();
    let told = taken.warnings.iter().any(|told| told.contains("1 entries have access lists"));
    assert_eq!(told, has_list, "{:?}", taken.warnings);
    let done = rig.run("files.restore", restore()).await.unwrap();
    let told = done
        .warnings
        .iter()
        .any(|told| told.contains("`a/note.txt`") && told.contains("access lists are not"));
    assert_eq!(told, has_list, "{:?}", done.warnings);
}
