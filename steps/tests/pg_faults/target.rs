//! Moments that cannot be reached, and moments that are easily missed by one commit.

use jiff::tz::{Offset, TimeZone};
use lifeboat_engine::code::LB0304;
use lifeboat_engine::model::outcome::FailureKind::Permanent;
use lifeboat_steps::postgres::codes;
use lifeboat_steps::postgres::pidfile::PidFile;
use serde_json::json;

use super::scene::{BURST, Case, LAST, assert_says};
use crate::support::proxy::eventually;

#[tokio::test(flavor = "multi_thread")]
async fn each_moment_ends_with_its_own_last_commit() {
    let case = Case::new();
    case.restore().await.expect("restores");
    let commits = &case.original.commits;
    // The last row that was committed before a moment.
    let before = |moment: jiff::Timestamp| {
        let rows = commits.iter().filter(|(_, committed)| **committed < moment);
        *rows.map(|(row, _)| row).max().expect("a row")
    };
    // Exactly at a commit, which is excluded, in a second with several; just behind it; at the beginning of the second.
    let third = *BURST.start() + 2;
    let whole = jiff::Timestamp::from_second(commits[&third].as_second()).expect("a time");
    let targets = [
        (case.original.moments[&2], 2),
        (case.original.moments[&4], 4),
        (whole, before(whole)),
        (commits[&third], third - 1),
        (commits[&third] + jiff::SignedDuration::from_micros(1), third),
        (case.original.moments[BURST.end()], *BURST.end()),
        (commits[&LAST], *BURST.end()),
    ];
    // Always forwards, so that one cluster is enough.
    for (target, last) in targets {
        let done = case.recover(Some(target)).await.expect("recovers");
        case.assert_rows(last);
        assert_eq!(done.outputs["end_of_wal"], false, "{target}");
    }
    let late = case.original.moments[&LAST] + jiff::SignedDuration::from_hours(1);
    let done = case.recover(Some(late)).await.expect("goes to the end");
    case.assert_rows(LAST);
    assert_eq!(done.outputs["end_of_wal"], true);
    let said = done.warnings.join(" ");
    assert!(said.contains(&format!("at or after the target {late}")), "{said}");

    // Backwards there is no way: what was replayed is in the files.
    let error = case.recover(Some(case.original.moments[&3])).await.expect_err("row 4 is there");
    assert_says(&error, (codes::LB1269, Permanent), &["target"]);
    case.assert_no_server();
}

/// A kill in the middle of a promotion leaves a cluster that no longer asks for archive recovery. Started like that, it would
/// replay whatever follows the target in the last segment.
#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_that_was_cut_off_does_not_go_beyond_the_target() {
    let case = Case::new();
    case.restore().await.expect("restores");
    let third = *BURST.start() + 2;
    case.recover(Some(case.original.commits[&third])).await.expect("recovers");
    case.assert_rows(third - 1);
    let (_, server) = PidFile::live(&case.data_dir()).expect("runs");
    lifeboat_steps::process::identity::signal(&server, 3).expect("quit");
    eventually("the server is gone", || !server.is_alive());
    std::fs::remove_file(case.data_dir().join("recovery.signal")).expect("it was still to recover");
    case.rig.run("postgres.promote", json!({"cluster": "db"})).await.expect("promotes");
    case.assert_rows(third - 1);
}

/// A server that was killed while people looked at it waits where it did.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_ended_is_brought_back_to_be_looked_at() {
    let case = Case::new();
    case.restore().await.expect("restores");
    case.recover(Some(case.original.moments[&3])).await.expect("recovers");
    let count = json!({"name": "rows", "sql": "select count(*) as n, pg_is_in_recovery() as r from ledger",
        "expect": ["rows[0].n == 3", "rows[0].r"]});
    for kind in ["postgres.verify", "postgres.query"] {
        let (_, server) = PidFile::live(&case.data_dir()).expect("runs");
        lifeboat_steps::process::identity::signal(&server, 3).expect("quit");
        eventually("the server is gone", || !server.is_alive());
        let with = match kind {
            "postgres.verify" => json!({"cluster": "db", "queries": [count.clone()]}),
            _ => json!({"cluster": "db", "sql": count["sql"], "expect": count["expect"]}),
        };
        case.rig.run(kind, with).await.expect("is brought back");
    }
    case.assert_rows(3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_moment_before_the_end_of_the_backup_is_refused() {
    let case = Case::new();
    let early = case.original.moments[&1];
    let error = case.choose(Some(early)).await.expect_err("no backup is that old");
    assert_says(&error, (codes::LB1221, Permanent), &[&case.original.first, &early.to_string()]);
    case.restore().await.expect("restores");
    let marker = case.marker();
    for moment in ["start_time", "stop_time"] {
        let target = marker["details"][moment].as_str().expect("text").parse().expect("a time");
        let error =
            case.recover(Some(target)).await.expect_err("the backup is not consistent before its end");
        assert_says(&error, (codes::LB1269, Permanent), &[&case.original.first, "select_backup"]);
        case.assert_no_server();
    }
}

/// A later backup proves that the gap lies behind the target.
#[tokio::test(flavor = "multi_thread")]
async fn a_gap_in_the_log_matters_only_to_targets_behind_it() {
    let case = Case::new();
    let segments = case.original.segments();
    let missing = &segments[segments.len() - 3];
    std::fs::remove_file(case.segment(missing)).expect("removes");
    let done = case.choose(Some(case.original.moments[&3])).await.expect("lies before it");
    assert!(done.warnings.join(" ").contains(missing.as_str()), "{:?}", done.warnings);
    for target in [Some(case.original.moments[&5]), Some(case.original.moments[BURST.end()]), None] {
        let error = case.choose(target).await.expect_err("may be in the gap, or behind it");
        assert_says(&error, (codes::LB1222, Permanent), &[missing]);
    }
    case.restore().await.expect("restores");
    case.recover(Some(case.original.moments[&3])).await.expect("recovers");
    case.assert_rows(3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_moment_is_taken_with_its_zone_or_not_at_all() {
    let case = Case::new();
    let target = case.original.moments[&3];
    let choose = async |moment: &str| {
        let with = json!({"store": "backups", "target_time": moment});
        case.rig.run("postgres.select_backup", with).await
    };
    let local = |hours: i8| {
        let zone = TimeZone::fixed(Offset::from_hours(hours).expect("an offset"));
        target.to_zoned(zone).strftime("%Y-%m-%dT%H:%M:%S%.f%:z").to_string()
    };
    for hours in [-11, 0, 2, 14] {
        let done = choose(&local(hours)).await.expect("is the same moment");
        assert_eq!(done.outputs["backup"], case.original.first.as_str(), "{}", local(hours));
    }
    // An hour that comes twice: which one, the offset says. A zone that contradicts it, or stands alone, is refused.
    let without = target.to_string().trim_end_matches('Z').to_owned();
    let refused = [
        &*without,
        "2026-10-25T02:30:00[Europe/Berlin]",
        "2026-10-25T02:30:00+05:00[Europe/Berlin]",
        "now",
        "",
    ];
    for moment in refused {
        let error = choose(moment).await.expect_err(moment);
        assert_eq!((error.code, error.kind), (LB0304, Permanent), "{moment}: {error}");
        assert!(error.message.contains("with its zone") && error.message.contains(moment), "{error}");
    }
    let twice = ["2026-10-25T02:30:00+02:00", "2026-10-25T02:30:00+01:00"];
    let [first, second] = twice.map(|text| lifeboat_engine::value::parse_timestamp(text).expect("is clear"));
    assert_eq!(second.duration_since(first), jiff::SignedDuration::from_hours(1));
}
