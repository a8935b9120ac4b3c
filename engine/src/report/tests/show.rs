use super::fixture::good_drill;

#[test]
fn a_good_drill_says_so_in_one_line() {
    let report = good_drill().report();
    assert_eq!(
        report.outcome.headline,
        "RESTORED in 3m 12s of 4h (RTO met) · data loss 2m of 1h (RPO met) · 1 warning"
    );
}

#[test]
fn dump() {
    let report = good_drill().report();
    std::fs::write("/tmp/report.html", crate::report::html(&report)).unwrap();
}
