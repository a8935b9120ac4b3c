//! Base archives: cut off, changed, exchanged, missing, with more in them than there should be.

use std::fs;
use std::path::Path;

use lifeboat_engine::code::Code;
use lifeboat_engine::model::outcome::FailureKind::Permanent;
use lifeboat_steps::postgres::codes;
use lifeboat_steps::store::codes as store_codes;

use serde_json::{Value, json};

use super::scene::{Case, assert_says};
use crate::support::archive::Archive;
use crate::support::journey::Journey;

/// The one archive with the data directory.
const BASE: &str = "base.tar";

/// The choice refuses the damaged backup, and so does the restore of one that is named.
async fn is_refused_at_once(damage: impl Fn(&Case), code: Code, words: &[&str]) -> Case {
    let case = Case::new();
    damage(&case);
    let store = case.store_now();
    let error = case.choose(Some(case.original.moments[&3])).await.expect_err("is seen when it is chosen");
    assert_says(&error, (codes::LB1225, Permanent), words);
    refuses(&case, code, words).await;
    assert_eq!(case.store_now(), store, "the store is as it was");
    case
}

/// Only who reads the whole object can tell.
async fn is_refused_when_it_is_read(damage: impl Fn(&Case), code: Code, words: &[&str]) -> Case {
    let case = Case::new();
    damage(&case);
    case.choose(Some(case.original.moments[&3])).await.expect("looks whole from outside");
    let store = case.store_now();
    refuses(&case, code, words).await;
    assert_eq!(case.store_now(), store, "the store is as it was");
    case
}

async fn refuses(case: &Case, code: Code, words: &[&str]) {
    let error = case.restore().await.expect_err("is damaged");
    let words = [words, &[case.original.first.as_str()]].concat();
    assert_says(&error, (code, Permanent), &words[..words.len() - usize::from(code == codes::LB1258)]);
    case.assert_untouched();
}

/// With the object brought back, the same step does its work.
async fn goes_on(case: &Case) {
    case.heal();
    case.restore().await.expect("is whole again");
    assert!(case.data_dir().join("global/pg_control").exists());
}

fn cut(path: &Path, keep: impl Fn(u64) -> u64) {
    let length = fs::metadata(path).expect("it is there").len();
    fs::OpenOptions::new().write(true).open(path).and_then(|file| file.set_len(keep(length))).expect("cuts");
}

fn flip(path: &Path, at: impl Fn(usize) -> usize) {
    let mut bytes = fs::read(path).expect("reads");
    let at = at(bytes.len());
    bytes[at] ^= 0x20;
    fs::write(path, bytes).expect("writes");
}

#[tokio::test]
async fn an_archive_cut_off_at_one_percent() {
    is_refused_at_once(|case| cut(&case.base(BASE), |length| length / 100), store_codes::LB1108, &[BASE])
        .await;
}

#[tokio::test]
async fn an_archive_cut_off_in_the_middle() {
    is_refused_at_once(|case| cut(&case.base(BASE), |length| length / 2), store_codes::LB1108, &[BASE]).await;
}

#[tokio::test]
async fn an_archive_without_its_last_byte() {
    let damage = |case: &Case| cut(&case.base(BASE), |length| length - 1);
    goes_on(&is_refused_at_once(damage, store_codes::LB1108, &[BASE]).await).await;
}

/// Whoever made the backup did not notice either that it was cut off.
#[tokio::test]
async fn an_archive_cut_off_before_it_was_described() {
    for keep in [|length: u64| length / 100, |length| length / 2, |length| length - 1] {
        let damage = |case: &Case| {
            cut(&case.base(BASE), keep);
            case.fit_marker(BASE);
        };
        is_refused_when_it_is_read(damage, codes::LB1255, &[BASE]).await;
    }
}

#[tokio::test]
async fn a_flipped_bit_in_any_object() {
    for object in [BASE, "pg_wal.tar", "backup_manifest"] {
        let damage = |case: &Case| flip(&case.base(object), |length| length / 2);
        let case = is_refused_when_it_is_read(damage, codes::LB1255, &[object]).await;
        if object == BASE {
            goes_on(&case).await;
        }
    }
}

#[tokio::test]
async fn the_archive_of_another_backup() {
    let damage = |case: &Case| {
        let other = case.object(&format!("base/{}", case.original.second));
        let name = case.base(BASE).file_name().expect("a name").to_owned();
        fs::copy(other.join(name), case.base(BASE)).expect("copies");
        // Of the same length, by bad luck.
        case.fit_marker(BASE);
    };
    is_refused_when_it_is_read(damage, codes::LB1258, &[]).await;
}

#[tokio::test]
async fn an_object_that_is_missing() {
    for object in [BASE, "pg_wal.tar", "backup_manifest"] {
        let damage = |case: &Case| fs::remove_file(case.base(object)).expect("removes");
        is_refused_at_once(damage, store_codes::LB1108, &[object, "missing"]).await;
    }
}

/// A marker that describes a backup without it, so that nothing seems to be missing.
#[tokio::test]
async fn an_object_that_was_never_there() {
    for object in [BASE, "backup_manifest"] {
        let damage = |case: &Case| {
            fs::remove_file(case.base(object)).expect("removes");
            let mut marker = case.marker();
            let objects = marker["objects"].as_array_mut().expect("a list");
            objects.retain(|it| !it["name"].as_str().is_some_and(|name| name.starts_with(object)));
            fs::write(case.base("lifeboat.json"), marker.to_string()).expect("writes");
        };
        is_refused_when_it_is_read(damage, codes::LB1255, &[object.trim_end_matches(".tar")]).await;
    }
}

#[tokio::test]
async fn a_marker_without_its_data() {
    let damage = |case: &Case| {
        for object in [BASE, "pg_wal.tar", "backup_manifest"] {
            fs::remove_file(case.base(object)).expect("removes");
        }
    };
    is_refused_at_once(damage, store_codes::LB1108, &["missing"]).await;
}

#[tokio::test]
async fn data_without_a_marker() {
    let case = Case::new();
    fs::remove_file(case.base("lifeboat.json")).expect("removes");
    let error = case.choose(Some(case.original.moments[&3])).await.expect_err("is the only one that early");
    assert_says(&error, (codes::LB1221, Permanent), &[&case.original.second]);
    // Nobody chooses it, but a runbook may name it.
    refuses(&case, store_codes::LB1104, &["lifeboat.json"]).await;
    goes_on(&case).await;
}

#[tokio::test]
async fn a_marker_that_is_damaged() {
    let damages: [fn(&Path); 3] = [
        |marker| cut(marker, |length| length / 2),
        |marker| cut(marker, |_| 0),
        |marker| flip(marker, |_| 0),
    ];
    for damage in damages {
        let case = Case::new();
        damage(&case.base("lifeboat.json"));
        let error = case.choose(Some(case.original.moments[&3])).await.expect_err("the only one that early");
        assert_says(&error, (codes::LB1221, Permanent), &[&case.original.second]);
        refuses(&case, store_codes::LB1110, &["lifeboat.json"]).await;
    }
}

/// A newer backup that is damaged is passed over, by name; the log behind the older one still leads to the target.
#[tokio::test]
async fn a_damaged_backup_is_passed_over_for_an_older_one() {
    let case = Case::new();
    let newest = case.object(&format!("base/{}", case.original.second));
    let base = fs::read_dir(&newest).expect("a backup").flatten().map(|entry| entry.path());
    let base = base.into_iter().find(|path| path.to_string_lossy().contains(BASE)).expect("an archive");
    cut(&base, |length| length / 2);
    let target = case.original.moments[&5];
    let done = case.choose(Some(target)).await.expect("the older one fits");
    assert_eq!(done.outputs["backup"], case.original.first.as_str());
    let said = done.warnings.join(" ");
    assert!(said.contains(&case.original.second) && said.contains(BASE), "{said}");
    case.restore().await.expect("restores");
    case.recover(Some(target)).await.expect("recovers");
    case.assert_rows(5);
}

#[tokio::test]
async fn a_file_that_nobody_wrote_down() {
    // Beside the objects of the backup it is none of them.
    let case = Case::new();
    let beside = case.object(&format!("base/{}/extra.tar", case.original.first));
    fs::write(beside, "not described").expect("writes");
    case.choose(Some(case.original.moments[&3])).await.expect("chooses");
    case.restore().await.expect("what the marker names is whole");
    assert!(!case.data_dir().join("extra.tar").exists());

    // Within the archive it would become a file of the cluster.
    let damage = |case: &Case| {
        add_member(case, "base/1/99999", tar::EntryType::Regular);
    };
    is_refused_when_it_is_read(damage, codes::LB1258, &["base/1/99999", "not in the manifest"]).await;
}

#[tokio::test]
async fn an_object_in_the_marker_that_no_backup_has() {
    let damage = |case: &Case| {
        let mut marker = case.marker();
        let extra = serde_json::json!({"name": "../../other/base.tar.zst", "size": 1, "sha256": "00"});
        marker["objects"].as_array_mut().expect("a list").push(extra);
        fs::write(case.base("lifeboat.json"), marker.to_string()).expect("writes");
    };
    let case = Case::new();
    damage(&case);
    refuses(&case, store_codes::LB1110, &["lifeboat.json", "../../other/base.tar.zst"]).await;
}

#[tokio::test]
async fn members_that_lead_out_of_the_directory() {
    let members = [
        ("../outside", tar::EntryType::Regular),
        ("base/../../outside", tar::EntryType::Regular),
        ("/tmp/lifeboat-outside", tar::EntryType::Regular),
        ("pg_tblspc/1/link", tar::EntryType::Symlink),
        ("base/1/hard", tar::EntryType::Link),
        ("base/1/device", tar::EntryType::Char),
        ("base/1/pipe", tar::EntryType::Fifo),
    ];
    for (name, kind) in members {
        let case = Case::new();
        add_member(&case, name, kind);
        refuses(&case, codes::LB1256, &[name, BASE]).await;
        assert!(!case.place.path().join("outside").exists() && !Path::new("/tmp/lifeboat-outside").exists());
    }
}

/// Puts one more member behind the first one of the archive, and makes the marker fit.
fn add_member(case: &Case, name: &str, kind: tar::EntryType) {
    let path = case.base(BASE);
    let is_packed = path.extension().is_some_and(|it| it == "zst");
    let stored = fs::read(&path).expect("reads");
    let whole = if is_packed { zstd::decode_all(&stored[..]).expect("zstd") } else { stored };
    let mut header = tar::Header::new_ustar();
    // `set_path` would refuse what is to be tested.
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_entry_type(kind);
    header.set_size(0);
    if matches!(kind, tar::EntryType::Symlink | tar::EntryType::Link) {
        header.as_old_mut().linkname[..11].copy_from_slice(b"/etc/passwd");
    }
    header.set_cksum();
    // Before everything else, so that nothing was found wrong before.
    let changed = [header.as_bytes().as_slice(), &whole].concat();
    let stored = if is_packed { zstd::encode_all(&changed[..], 1).expect("zstd") } else { changed };
    fs::write(&path, stored).expect("writes");
    case.fit_marker(BASE);
}

/// A backup that was put together without the archive of a tablespace, so that nothing seems to be missing. Its files would be
/// looked for where the source has them.
#[tokio::test(flavor = "multi_thread")]
async fn a_tablespace_that_was_never_there() {
    let journey = Journey::begin(Archive::make());
    let dir = journey.source.place().subdir("fast");
    journey.source.sql(&format!("create tablespace fast location '{}'", dir.display()));
    journey.source.sql("create table photos tablespace fast as select generate_series(1, 300) as id");
    let oid = journey.source.sql("select oid from pg_tablespace where spcname = 'fast'");
    let label = journey.back_up().await;
    let backup = journey.archive.root.join("base").join(&label);
    let object = format!("{oid}.tar.zst");
    fs::remove_file(backup.join(&object)).expect("removes");
    let elsewhere = json!({"tablespace_dir": journey.source.place().subdir("spaces")});
    let error = journey.restore(&label, elsewhere.clone()).await.expect_err("the marker names it");
    assert_says(&error, (store_codes::LB1108, Permanent), &[&object, "missing"]);

    let mut marker: Value =
        serde_json::from_slice(&fs::read(backup.join("lifeboat.json")).expect("reads")).expect("JSON");
    marker["objects"].as_array_mut().expect("a list").retain(|it| it["name"] != object.as_str());
    fs::write(backup.join("lifeboat.json"), marker.to_string()).expect("writes");
    let error = journey.restore(&label, elsewhere).await.expect_err("the manifest names its files");
    assert_eq!(error.kind, Permanent);
    assert!(error.message.contains(&oid), "{error}");
    assert!(!journey.target.data_dir.clone().expect("a place").exists());
    assert_eq!(journey.source.sql("select count(*) from photos"), "300");
}
