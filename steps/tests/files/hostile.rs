//! Backups that were built to do harm, and processes that die.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::restore::{backup, restore, rig, source, target, tree};
use crate::support::killed;

#[tokio::test]
async fn names_that_lead_out_and_links_in_the_way_write_nothing_outside() {
    let rig = rig();
    let taken = rig.run("files.backup", backup()).await.unwrap();
    let dir = rig.dir().join("store/files").join(taken.outputs["backup"].as_str().unwrap());
    let outside = rig.dir().join("www/outside");
    let entry = |path: &str, kind: &str| {
        let mut entry = json!({
            "path": path, "type": kind, "mode": 0o644, "uid": 0, "gid": 0, "mtime": [0, 0],
        });
        match kind {
            "file" => entry
                .as_object_mut()
                .unwrap()
                .extend([("size".into(), json!(5)), ("sha256".into(), json!(OWNED))]),
            "symlink" => entry["target"] = json!(rig.dir().join("www")),
            _ => {}
        }
        entry
    };
    let root = || entry(".", "dir");
    let through = "link/outside";
    for (entries, archived) in [
        (vec![root(), entry("../outside", "file")], "../outside"),
        (vec![root(), entry("../../etc/x", "file")], "../../etc/x"),
        (vec![root(), entry("%2E%2E/outside", "file")], "../outside"),
        (vec![root(), entry(outside.to_str().unwrap(), "file")], outside.to_str().unwrap()),
        (vec![root(), entry("link", "symlink"), entry(through, "file")], through),
        (vec![root(), entry("a", "file"), entry("a", "file")], "a"),
    ] {
        forge(&dir, &entries, archived);
        let mut with = restore();
        with["outside_links"] = json!("keep");
        let error = rig.run("files.restore", with).await.expect_err(archived);
        assert_eq!(error.code.id, "LB1405", "{archived}: {error:?}");
        assert!(!outside.exists() && !target(&rig).exists(), "{archived}");
    }
    // An archive that holds more than its manifest names: only what is named is written.
    forge(&dir, &[root(), entry("fine", "file")], "../outside");
    let error = rig.run("files.restore", restore()).await.unwrap_err();
    assert_eq!(error.code.id, "LB1408", "{error:?}");
    assert!(!outside.exists() && !target(&rig).exists());
}

/// The checksum of `owned`.
const OWNED: &str = "f5e6d024c05c9cc2746a3e127408b91a8b7a7f2a30da0c259bc54265502ddef4";

/// Makes a backup of these entries and an archive of one file, with a marker that describes them.
fn forge(dir: &Path, entries: &[Value], archived: &str) {
    let mut archive = tar::Builder::new(zstd::Encoder::new(Vec::new(), 1).unwrap());
    let mut header = tar::Header::new_gnu();
    header.set_size(5);
    header.set_mode(0o644);
    // The crate refuses to write such a name itself.
    let name = archived.as_bytes();
    header.as_old_mut().name[..name.len().min(100)].copy_from_slice(&name[..name.len().min(100)]);
    header.set_cksum();
    archive.append(&header, &b"owned"[..]).unwrap();
    let archive = archive.into_inner().unwrap().finish().unwrap();
    let manifest = json!({ "format": 1, "entries": entries }).to_string().into_bytes();
    let mut marker: Value = serde_json::from_slice(&fs::read(dir.join("lifeboat.json")).unwrap()).unwrap();
    for (name, content) in [("files.tar.zst", archive), ("manifest.json", manifest)] {
        let object =
            marker["objects"].as_array_mut().unwrap().iter_mut().find(|it| it["name"] == name).unwrap();
        object["size"] = json!(content.len());
        object["sha256"] = json!(sha256(&content));
        fs::write(dir.join(name), content).unwrap();
    }
    fs::write(dir.join("lifeboat.json"), marker.to_string()).unwrap();
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_is_killed_at_any_moment_is_finished_and_keeps_what_was_there() {
    killed::victim().await;
    let mut rig = rig();
    // Enough that the process is killed in the midst of unpacking, too.
    for number in 0..40 {
        fs::write(source(&rig).join(format!("noise {number}")), vec![number; 100_000]).unwrap();
    }
    rig.run("files.backup", backup()).await.unwrap();
    let name = "hostile::a_restore_that_is_killed_at_any_moment_is_finished_and_keeps_what_was_there";
    for moment in 0..100 {
        rig.begin_run();
        fs::remove_dir_all(rig.dir().join("www")).unwrap();
        fs::create_dir_all(target(&rig)).unwrap();
        fs::write(target(&rig).join("earlier"), "x").unwrap();
        let fate = killed::at(&rig, name, ("files.restore", &restore()), moment);
        // The target is the old or the new directory, whole.
        let is_old = target(&rig).join("earlier").exists();
        assert!(is_old || tree(&target(&rig)) == tree(&source(&rig)), "after moment {moment}");
        let done = rig.run("files.restore", restore()).await;
        let done = done.unwrap_or_else(|error| panic!("after moment {moment}: {error:?}"));
        assert_eq!(tree(&target(&rig)), tree(&source(&rig)), "after moment {moment}");
        let previous = PathBuf::from(done.outputs["previous"].as_str().unwrap());
        assert_eq!(fs::read_to_string(previous.join("earlier")).unwrap(), "x", "after moment {moment}");
        assert_eq!(fs::read_dir(rig.dir().join("www")).unwrap().count(), 2, "after moment {moment}");
        rig.undo("files.restore", restore()).await.unwrap();
        assert!(target(&rig).join("earlier").exists(), "undone after moment {moment}");
        if fate == killed::Fate::Finished {
            assert!(moment > 8, "only {moment} moments");
            return;
        }
    }
    panic!("it is always killed");
}

#[tokio::test]
async fn a_disk_without_room_for_both_is_found_before_the_first_byte() {
    let rig = rig();
    let www = rig.dir().join("www");
    fs::write(source(&rig).join("large"), vec![5; 3 << 20]).unwrap();
    rig.run("files.backup", backup()).await.unwrap();
    let mut mount = std::process::Command::new("mount");
    let made = mount.args(["-t", "tmpfs", "-o", "size=1m", "lifeboat-test"]).arg(&www).output();
    if !made.is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED: only root may mount, where mounting is allowed");
        return;
    }
    let error = rig.run("files.restore", restore()).await;
    let left = fs::read_dir(&www).unwrap().count();
    drop(std::process::Command::new("umount").arg("-l").arg(&www).output());
    assert_eq!((error.unwrap_err().code.id, left), ("LB1407", 0));
}
