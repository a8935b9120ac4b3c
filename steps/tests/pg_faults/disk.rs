//! Disks that fill up at a moment that the test chooses. Only root can make a file system; `tests/whole/restore/disk.rs`
//! does what an ordinary user can.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use lifeboat_engine::model::outcome::FailureKind::{Permanent, Transient};
use lifeboat_steps::postgres::codes;
use lifeboat_steps::postgres::isolation::work_dir;

use super::scene::{BURST, Case, assert_says};
use crate::support::archive::wal_program;
use crate::support::bucket::endpoint;
use crate::support::postgres::Place;
use crate::support::proxy::{Fault, Proxy};

/// A file system of so many mebibytes; unmounted with the value.
struct Small {
    dir: PathBuf,
}

impl Small {
    fn mount(dir: &Path, megabytes: u32) -> Option<Self> {
        fs::create_dir_all(dir).expect("a directory");
        let options = format!("size={megabytes}m,mode=755");
        let mut mount = Command::new("mount");
        let made = mount.args(["-t", "tmpfs", "-o", &options, "lifeboat-test"]).arg(dir).output();
        if made.is_ok_and(|output| output.status.success()) {
            return Some(Self { dir: dir.to_owned() });
        }
        eprintln!("SKIPPED: only root may mount a small file system, where mounting is allowed");
        None
    }

    /// Takes all room but so many bytes.
    fn fill(&self, leave: u64) {
        use std::io::Write;
        let stat = rustix::fs::statvfs(&self.dir).expect("a file system");
        let take = (stat.f_bfree * stat.f_frsize).saturating_sub(leave);
        let mut ballast = fs::File::create(self.dir.join("ballast")).expect("makes");
        let piece = vec![0; 1 << 16];
        for _ in 0..take / piece.len() as u64 {
            match ballast.write_all(&piece) {
                // What is tested takes room at the same time.
                Err(error) if error.kind() == std::io::ErrorKind::StorageFull => break,
                other => other.expect("writes"),
            }
        }
    }

    fn remount(&self, how: &str) {
        let mut mount = Command::new("mount");
        let done = mount.args(["-o", &format!("remount,{how}")]).arg(&self.dir).output().expect("runs");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }

    fn make_room(&self) {
        fs::remove_file(self.dir.join("ballast")).expect("removes");
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(&self.dir).output());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fills_up_or_takes_nothing_while_a_backup_is_unpacked_and_recovered() {
    let place = Place::make();
    let Some(small) = Small::mount(&place.path().join("disk"), 320) else { return };
    place.own(&small.dir);
    let proxy = Proxy::before(endpoint());
    let case = Case::in_bucket_at(&proxy.endpoint, place, "disk/target");

    // Room was looked for before the first byte, and somebody else takes it then.
    proxy.on("GET *base.tar", Fault::Hold);
    let error = while_held(&proxy, case.restore(), || small.fill(4 << 20)).await.expect_err("is full");
    assert_says(&error, (codes::LB1259, Transient), &["cannot be written", "No space left", "df -h"]);
    small.make_room();
    case.assert_untouched();

    // What was moved aside cannot be put back now, and is as soon as the disk takes it.
    proxy.on("GET *base.tar", Fault::Hold);
    let error = while_held(&proxy, case.restore(), || small.remount("ro")).await.expect_err("takes nothing");
    assert_says(&error, (codes::LB1259, Permanent), &["cannot be written", "Read-only file system"]);
    small.remount("rw");
    case.restore().await.expect("can be written again");

    // So little room that replaying is not even begun.
    let target = Some(case.original.moments[BURST.end()]);
    small.fill(8 << 20);
    let error = case.recover(target).await.expect_err("needs more");
    assert_says(
        &error,
        (codes::LB1254, Transient),
        &["disk/target needs", "are free", "no server was started"],
    );
    assert!(!case.data_dir().join("recovery.signal").exists() && !work_dir(&case.data_dir()).exists());
    case.assert_no_server();
    small.make_room();

    let segments = case.original.segments();
    proxy.on(&segments[segments.len() - 3], Fault::Hold);
    let error = while_held(&proxy, case.recover(target), || small.fill(1 << 17)).await.expect_err("is full");
    let said = format!("{error} {:?}", error.causes);
    assert!([codes::LB1266, codes::LB1267].contains(&error.code) && said.contains("No space left"), "{said}");
    case.assert_no_server();
    small.make_room();
    case.recover(target).await.expect("has room again");
    case.assert_rows(*BURST.end());
    // Detached first, so that the directory below it can be removed.
    drop(small);
    drop(case);
}

/// Polls work until the proxy holds a request, does something, lets it go and returns how the work ends.
async fn while_held<T>(proxy: &Proxy, work: impl Future<Output = T>, act: impl FnOnce()) -> T {
    tokio::pin!(work);
    let hits = proxy.hit().len();
    let held = async {
        while proxy.hit().len() == hits {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        _ = &mut work => panic!("ended before it asked: {:#?}", proxy.seen()),
        () = held => {}
    }
    act();
    proxy.heal();
    work.await
}

/// A store that is full refuses the segment, keeps nothing of it, and takes it when there is room.
#[test]
fn a_full_store_takes_no_segment_and_keeps_no_part_of_one() {
    let place = Place::make();
    let Some(small) = Small::mount(&place.path().join("disk"), 8) else { return };
    let case = Case::new();
    let name = &case.original.segments()[0];
    let content = zstd::decode_all(&fs::read(case.segment(name)).expect("reads")[..]).expect("is packed");
    let segment = place.path().join(name);
    fs::write(&segment, content).expect("writes");
    let config = place.path().join("wal.json");
    let store = small.dir.join("store");
    fs::create_dir(&store).expect("makes");
    let text = serde_json::json!({"store": format!("dir://{}", store.display()), "compression": "none"});
    fs::write(&config, text.to_string()).expect("writes");
    let put = || {
        let mut put = Command::new(wal_program());
        put.args(["wal", "put", "--config"]).arg(&config).arg(&segment).arg(name).output().expect("runs")
    };
    small.fill(1 << 19);
    let refused = put();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains(name.as_str()) && said.contains("No space left"), "{said}");
    let kept: Vec<_> = walk(&store);
    assert!(kept.is_empty(), "{kept:?}");
    small.make_room();
    assert!(put().status.success() && put().status.success(), "and again, as Postgres may ask");
    assert_eq!(walk(&store).len(), 1);
}

pub(super) fn walk(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).expect("lists").flatten().map(|entry| entry.path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}
