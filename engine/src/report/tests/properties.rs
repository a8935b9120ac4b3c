//! What holds for any journal.

use proptest::prelude::*;

use super::fixture::{INCIDENT, Journal};
use super::runs;
use crate::model::Event;
use crate::report::human::Moment;
use crate::report::{LiveStatus, Owner, RunReport, Source, html, markdown, page};

/// Checks what must hold for every report, and that every renderer copes.
fn check(journal: &Journal, events: &[Event], now: i64, owner: Owner) {
    let source = Source { events, now: Moment(now), owner, ..journal.source() };
    let report = RunReport::of(&source);
    let time = report.time;
    let parts = [
        time.before_run_ms,
        time.working_ms,
        time.waiting_for_person_ms,
        time.waiting_for_retry_ms,
        time.paused_ms,
        time.engine_down_ms,
        time.between_steps_ms,
        time.cleaning_up_ms,
    ];
    assert!(parts.iter().all(|part| *part >= 0), "{time:?}");
    assert_eq!(parts.iter().sum::<i64>(), time.total_ms);
    for pair in report.activity.windows(2) {
        assert_eq!(pair[0].to, pair[1].from, "the activities leave no gap");
    }
    for step in &report.steps {
        let spent = step.working_ms
            + step.waiting_for_person_ms
            + step.waiting_for_retry_ms
            + step.held_ms
            + step.engine_down_ms;
        assert!(spent <= step.took_ms.unwrap_or(0), "{step:?}");
        assert!(step.took_ms.is_none_or(|ms| ms >= 0) && step.queued_ms.is_none_or(|ms| ms >= 0));
        assert!(step.spans.iter().all(|span| span.to > span.from));
    }
    assert!(report.critical_path.actual.iter().all(|part| part.took_ms >= 0 && part.waited_ms >= 0));
    assert!(report.rto.used_ms >= 0 && report.rto.left_ms.is_none_or(|left| left >= 0));
    assert!(report.rpo.stores.iter().all(|store| store.loss_ms.is_none_or(|loss| loss >= 0)));
    let ended = report.outcome.state.is_ended();
    assert!(!ended || report.rto.verdict != Some(crate::report::Verdict::AtRisk));
    assert!(!page(&report).plain(60).is_empty() && !markdown(&report).is_empty());
    assert!(html(&report).ends_with("</html>"));
    let status = LiveStatus::of(&source);
    assert!(status.standing.headline == report.outcome.headline || report.outcome.state.is_ended());
    assert!(ended || status.page().plain(60).trim_end().lines().last().unwrap().starts_with("Type next:"));
}

#[test]
fn every_prefix_of_a_run_has_a_report() {
    for (_, journal) in runs::all() {
        for end in 0..=journal.events.len() {
            let events = &journal.events[..end];
            let last = events.last().map_or(INCIDENT, |event| event.at_ms);
            for owner in [Owner::Present, Owner::Gone] {
                check(&journal, events, last + 1_500, owner);
            }
        }
    }
}

#[test]
fn times_at_the_ends_of_the_number_range_do_no_harm() {
    for extreme in [i64::MIN, i64::MAX] {
        let mut journal = super::fixture::good_drill();
        journal.plan.objective.rto = Some(crate::value::Span(std::time::Duration::MAX));
        journal.events[5].at_ms = extreme;
        if let crate::model::EventKind::RunDeclared { incident_at_ms, .. } = &mut journal.events[0].kind {
            *incident_at_ms = extreme;
        }
        let report = journal.report();
        assert!(html(&report).ends_with("</html>") && !report.json().is_empty());
        assert!(!journal.status(Owner::Present).page().plain(80).is_empty());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(96) })]

    /// Even events that no engine would write in that order, at times that no clock would show.
    #[test]
    fn events_in_any_order_and_at_any_time_do_no_harm(
        run in 0..7_usize,
        picks in proptest::collection::vec((0..200_usize, -100_000..4_000_000_i64), 0..60),
        now in 0..5_000_000_i64,
    ) {
        let (_, journal) = runs::all().swap_remove(run);
        let mut events: Vec<Event> = Vec::new();
        for (pick, at) in picks {
            let mut event = journal.events[pick % journal.events.len()].clone();
            event.at_ms = INCIDENT + at;
            events.push(event);
        }
        let source = Source { events: &events, now: Moment(INCIDENT + now), ..journal.source() };
        let report = RunReport::of(&source);
        prop_assert!(report.steps.iter().all(|step| step.took_ms.is_none_or(|ms| ms >= 0)));
        prop_assert!(report.time.total_ms >= 0);
        prop_assert!(html(&report).ends_with("</html>"));
        prop_assert!(!LiveStatus::of(&source).page().plain(80).is_empty());
    }
}
