//! What people see.

use super::fixture::good_drill;
use super::runs;
use crate::report::{LiveStatus, Owner, RunReport, html, markdown, page};

/// Compares with what was seen last; a plan's digest changes with every field that plans get.
macro_rules! looks_the_same {
    ($text:expr) => {
        insta::with_settings!({ filters => vec![(r"\b[0-9a-f]{64}\b", "[digest]")] }, {
            insta::assert_snapshot!($text);
        });
    };
}

#[test]
fn a_drill_with_parallel_stores() {
    looks_the_same!(page(&good_drill().report()).plain(100));
}

#[test]
fn a_failed_drill() {
    looks_the_same!(page(&runs::failed().report()).plain(100));
}

#[test]
fn a_held_recovery() {
    looks_the_same!(page(&runs::held().report()).plain(100));
}

#[test]
fn a_run_resumed_after_a_crash() {
    looks_the_same!(page(&runs::resumed().report()).plain(100));
}

#[test]
fn a_recovery_with_waits_for_people() {
    looks_the_same!(page(&runs::people().report()).plain(100));
}

#[test]
fn a_run_with_unmeasured_loss_in_markdown() {
    looks_the_same!(markdown(&runs::unmeasured().report()));
}

#[test]
fn the_page_of_a_drill_in_html() {
    looks_the_same!(html(&runs::resumed().report()));
}

/// Leaves every page in the directory that `LIFEBOAT_REPORT_PAGES` names, for a person to look at.
#[test]
fn pages_to_look_at() {
    let Some(directory) = std::env::var_os("LIFEBOAT_REPORT_PAGES") else { return };
    for (name, journal) in runs::all() {
        let path = std::path::Path::new(&directory).join(format!("{name}.html"));
        std::fs::write(path, html(&journal.report())).unwrap();
    }
}

#[test]
fn the_report_as_data() {
    let report = runs::automatic().report();
    let text = report.json();
    assert_eq!(serde_json::from_str::<RunReport>(&text).unwrap(), report);
    looks_the_same!(text);
}

fn status(owner: Owner, cut: usize) -> String {
    let mut journal = runs::held();
    if cut > 0 {
        journal.events.truncate(cut);
        let last = journal.events.last().unwrap().at_ms - super::fixture::INCIDENT;
        journal.at(last + 2_000);
    }
    journal.status(owner).page().plain(80)
}

#[test]
fn the_status_of_a_held_run_ends_with_what_to_type() {
    looks_the_same!(status(Owner::Present, 0));
}

#[test]
fn the_status_of_a_running_run() {
    looks_the_same!(status(Owner::Present, 9));
}

#[test]
fn the_status_of_a_run_without_a_process() {
    looks_the_same!(status(Owner::Gone, 9));
}

#[test]
fn the_status_as_data_survives_the_way_through_json() {
    let status = runs::held().status(Owner::Present);
    let text = serde_json::to_string(&status).unwrap();
    assert_eq!(serde_json::from_str::<LiveStatus>(&text).unwrap(), status);
}
