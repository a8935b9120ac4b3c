//! The log in the archive: missing, cut off, changed, of another cluster or timeline.

use std::fs;
use std::path::PathBuf;

use lifeboat_engine::code::Code;
use lifeboat_engine::model::outcome::FailureKind::{Permanent, Transient};
use lifeboat_steps::postgres::codes;
use lifeboat_steps::postgres::isolation::work_dir;

use serde_json::json;

use super::scene::{BURST, Case, LAST, SWITCHED, assert_says};

/// One damage of one segment in the middle of the log.
struct Row {
    what: &'static str,
    damage: fn(&Segment),
    choice: Option<Code>,
    recovery: (Code, lifeboat_engine::model::outcome::FailureKind),
    /// What the recovery says beside the name of the segment.
    words: &'static [&'static str],
}

/// A segment in the archive.
struct Segment {
    path: PathBuf,
    name: String,
}

impl Segment {
    fn content(&self) -> Vec<u8> {
        let stored = fs::read(&self.path).expect("reads");
        zstd::decode_all(&stored[..]).expect("is packed")
    }

    /// Stores it anew with some bytes changed; nothing on the outside tells.
    fn change(&self, at: usize, bytes: &[u8]) {
        let mut content = self.content();
        content[at..at + bytes.len()].copy_from_slice(bytes);
        fs::write(&self.path, zstd::encode_all(&content[..], 1).expect("zstd")).expect("writes");
    }

    fn renamed(&self, name: &str) -> PathBuf {
        self.path.with_file_name(name)
    }
}

/// Fields of the header of a segment's first page.
const TIMELINE: usize = 4;
const SYSTEM: usize = 24;

const ROWS: &[Row] = &[
    Row {
        what: "missing",
        damage: |segment| fs::remove_file(&segment.path).expect("removes"),
        choice: Some(codes::LB1222),
        recovery: (codes::LB1266, Permanent),
        words: &["missing from the archive"],
    },
    Row {
        what: "there only as a .partial",
        damage: |segment| {
            let partial = segment.renamed(&format!("{}.partial.zst", segment.name));
            fs::rename(&segment.path, partial).expect("renames");
        },
        choice: Some(codes::LB1222),
        recovery: (codes::LB1266, Permanent),
        words: &["missing from the archive"],
    },
    Row {
        what: "empty",
        damage: |segment| fs::write(&segment.path, b"").expect("writes"),
        choice: Some(codes::LB1222),
        recovery: (codes::LB1266, Transient),
        words: &["cannot be read to its end"],
    },
    Row {
        what: "cut off",
        damage: |segment| {
            let stored = fs::read(&segment.path).expect("reads");
            fs::write(&segment.path, &stored[..stored.len() / 2]).expect("writes");
        },
        choice: None,
        recovery: (codes::LB1266, Transient),
        words: &["LB1202"],
    },
    Row {
        what: "cut off and not packed",
        damage: |segment| {
            fs::write(segment.renamed(&segment.name), &segment.content()[..700_000]).expect("writes");
            fs::remove_file(&segment.path).expect("removes");
        },
        choice: None,
        recovery: (codes::LB1266, Transient),
        words: &["700000 bytes instead of 1048576"],
    },
    Row {
        what: "one bit flipped as it is stored",
        damage: |segment| {
            let mut stored = fs::read(&segment.path).expect("reads");
            let middle = stored.len() / 2;
            stored[middle] ^= 1;
            fs::write(&segment.path, stored).expect("writes");
        },
        choice: None,
        recovery: (codes::LB1266, Transient),
        words: &["LB1202"],
    },
    Row {
        what: "of another cluster",
        damage: |segment| segment.change(SYSTEM, &7_300_000_000_000_000_001_u64.to_ne_bytes()),
        choice: None,
        recovery: (codes::LB1266, Transient),
        words: &["belongs to the cluster 7300000000000000001"],
    },
    Row {
        what: "of another timeline",
        damage: |segment| segment.change(TIMELINE, &9_u32.to_ne_bytes()),
        choice: None,
        recovery: (codes::LB1266, Transient),
        words: &["written on timeline 9"],
    },
    Row {
        what: "another segment",
        damage: |segment| {
            let number = u64::from_str_radix(&segment.name[16..], 16).expect("hexadecimal") - 1;
            let before = segment.renamed(&format!("{}{number:08X}.zst", &segment.name[..16]));
            fs::copy(before, &segment.path).expect("copies");
        },
        choice: None,
        recovery: (codes::LB1266, Transient),
        words: &["holds the position of"],
    },
    Row {
        what: "one bit flipped before it was stored",
        damage: |segment| {
            // The first records of the segment are in use, or its own row would not be in it.
            let changed = segment.content()[300] ^ 1;
            segment.change(300, &[changed]);
        },
        choice: None,
        recovery: (codes::LB1880, Permanent),
        words: &["damaged"],
    },
];

/// One cluster is recovered again and again: each damage is named, and none keeps it from the end when it is mended.
#[tokio::test(flavor = "multi_thread")]
async fn each_damage_of_a_segment_is_named_and_can_be_mended() {
    let case = Case::new();
    let target = case.original.moments[BURST.end()];
    case.restore().await.expect("restores");
    // Behind both backups; two more follow.
    let segments = case.original.segments();
    let name = segments[segments.len() - 3].clone();
    for row in ROWS {
        eprintln!("{}", row.what);
        let segment = Segment { path: case.segment(&name), name: name.clone() };
        (row.damage)(&segment);
        let store = case.store_now();
        let chosen = case.choose(Some(target)).await;
        match (chosen, row.choice) {
            (Err(error), Some(code)) => assert_says(&error, (code, Permanent), &[&name]),
            (Ok(_), None) => {}
            (other, _) => panic!("{}: {other:?}", row.what),
        }
        // With a target, and without one: then the end of the log must not be taken for where the damage is.
        for target in [Some(target), None] {
            let error = case.recover(target).await.expect_err(row.what);
            assert_says(&error, row.recovery, &[row.words, &[&name]].concat());
            case.assert_no_server();
        }
        assert_eq!(case.store_now(), store, "{}: the store is as it was", row.what);
        case.heal();
    }
    plant_leftovers(&case);
    let done = case.recover(Some(target)).await.expect("recovers");
    case.assert_rows(*BURST.end());
    assert_eq!(done.outputs["end_of_wal"], false);
}

/// What a helper of an earlier run may have left: verified then, and wrong now.
fn plant_leftovers(case: &Case) {
    let queue = work_dir(&case.data_dir()).join("wal");
    fs::create_dir_all(&queue).expect("makes");
    let segments = case.original.segments();
    let stale = fs::read(case.segment(&segments[1])).expect("reads");
    let stale = zstd::decode_all(&stale[..]).expect("is packed");
    for name in &segments {
        for number in 0..4 {
            fs::write(queue.join(format!("{name}.{number}")), &stale).expect("writes");
        }
        fs::write(queue.join(name), &stale).expect("writes");
    }
    case.place.own(&queue);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_first_segment_is_named() {
    let case = Case::new();
    let first = case.original.segments()[0].clone();
    fs::remove_file(case.segment(&first)).expect("removes");
    let error = case.choose(Some(case.original.moments[&3])).await.expect_err("is needed");
    assert_says(&error, (codes::LB1222, Permanent), &[&first, &case.original.first]);
    // Who goes on all the same has it from the backup.
    case.restore().await.expect("restores");
    case.recover(Some(case.original.moments[&3])).await.expect("recovers");
    case.assert_rows(3);
}

/// The last segment is missing: nobody can know that there was one, so the end is said to be the end.
#[tokio::test(flavor = "multi_thread")]
async fn a_missing_last_segment_is_the_end_and_said_to_be() {
    let case = Case::new();
    let segments = case.original.segments();
    let [.., before, last] = &segments[..] else { panic!("{segments:?}") };
    fs::rename(case.segment(last), case.segment(last).with_file_name(format!("{last}.partial.zst")))
        .expect("renames");
    let target = case.original.moments[&LAST];
    let chosen = case.choose(Some(target)).await.expect("chooses");
    assert_eq!(chosen.outputs["end_segment"], before.as_str());
    case.restore().await.expect("restores");
    let done = case.recover(Some(target)).await.expect("recovers");
    assert_eq!(done.outputs["end_of_wal"], true);
    let said = done.warnings.join(" ");
    assert!(said.contains("no commit in the archive is at or after the target"), "{said}");
    case.assert_rows(*BURST.end());
}

/// The end of the last segment cannot be told from a crash of the source.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_ends_within_its_last_segment_is_said_to() {
    let case = Case::new();
    let last = case.original.segments().last().expect("a segment").clone();
    let segment = Segment { path: case.segment(&last), name: last };
    segment.change(200, &[0xFF; 64]);
    case.restore().await.expect("restores");
    // Also by the attempt that finds a server that waits there: who started it was killed before it could say so.
    for attempt in ["recovers", "is adopted"] {
        let done = case.recover(None).await.expect(attempt);
        let said = done.warnings.join(" ");
        assert!(said.contains(&segment.name), "{attempt}: {said}");
        case.assert_rows(*BURST.end());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_switch_of_the_timeline_needs_its_history_and_its_first_segment() {
    let case = Case::switched();
    let target = case.original.moments[&SWITCHED];
    case.restore().await.expect("restores");
    let wal = case.object(&format!("wal/{}", case.original.system));
    let history = wal.join("00000002.history");
    let first = fs::read_dir(&wal)
        .expect("lists")
        .flatten()
        .map(|entry| entry.file_name().into_string().expect("UTF-8"));
    let first =
        first.filter(|name| name.starts_with("00000002") && name.ends_with(".zst")).min().expect("a segment");

    fs::remove_file(&history).expect("removes");
    let error = case.choose(Some(target)).await.expect_err("nobody knows where it began");
    assert_says(&error, (codes::LB1204, Permanent), &["00000002.history"]);
    let error = case.recover_along("2", Some(target)).await.expect_err("nor does the recovery");
    assert_says(&error, (codes::LB1204, Permanent), &["00000002.history"]);
    fs::write(&history, "not a history").expect("writes");
    let error = case.recover_along("2", Some(target)).await.expect_err("is damaged");
    assert_says(&error, (codes::LB1204, Permanent), &["00000002.history"]);
    case.heal();

    fs::remove_file(wal.join(&first)).expect("removes");
    let error = case.recover_along("2", Some(target)).await.expect_err("begins with it");
    assert_says(&error, (codes::LB1266, Permanent), &[&first[..24]]);
    case.assert_no_server();
    case.heal();

    // What was read ahead of timeline 1 is not served for timeline 2.
    let done = case.recover_along("2", Some(target)).await.expect("recovers");
    assert_eq!((&done.outputs["timeline"], &done.outputs["end_of_wal"]), (&json!(2), &json!(false)));
    case.assert_rows(SWITCHED);
}

/// The source was promoted and lost before it had archived anything on its new timeline.
#[tokio::test(flavor = "multi_thread")]
async fn a_timeline_of_which_there_is_only_the_history_is_said_to_be_missing() {
    let case = Case::switched();
    let wal = case.object(&format!("wal/{}", case.original.system));
    for entry in fs::read_dir(&wal).expect("lists").flatten() {
        let name = entry.file_name().into_string().expect("UTF-8");
        if name.starts_with("00000002") && name.ends_with(".zst") {
            fs::remove_file(entry.path()).expect("removes");
        }
    }
    case.restore().await.expect("restores");
    let done = case.recover_along("2", None).await.expect("recovers");
    assert_eq!((&done.outputs["timeline"], &done.outputs["end_of_wal"]), (&json!(1), &json!(true)));
    let said = done.warnings.join(" ");
    assert!(said.contains("no WAL of timeline 2"), "{said}");
    case.assert_rows(LAST);
}

/// The timeline of the backup, unless the runbook says another: what was archived after a promotion is not followed.
#[tokio::test(flavor = "multi_thread")]
async fn a_timeline_that_nobody_asked_for_is_not_followed() {
    let case = Case::switched();
    case.restore().await.expect("restores");
    let done = case.recover(None).await.expect("recovers");
    assert_eq!(done.outputs["timeline"], 1);
    case.assert_rows(LAST);
}
