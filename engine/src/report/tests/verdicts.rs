//! Verdicts must be honest: never met without proof.

use super::fixture::{HOSTILE, INCIDENT, Journal, add, failure, good_drill, id, plan, restore_plan, span};
use super::runs;
use crate::model::event::{Decision, EventKind};
use crate::model::outcome::{Mode, Outcome, RunOutcome};
use crate::plan::Objective;
use crate::report::model::{Activity, Fate};
use crate::report::{Owner, State, Verdict, html, markdown, page};

#[test]
fn a_restoring_step_that_reports_nothing_leaves_the_loss_unmeasured() {
    let report = runs::unmeasured().report();
    assert_eq!(report.rpo.verdict, Some(Verdict::NotMeasured));
    assert!(!report.objectives_met());
    assert_eq!(report.rpo.unmeasured[0].step, id("recover"));
    assert!(report.not_checked.iter().any(|open| open.what == "how much data `db` lost"));
    assert!(report.outcome.headline.contains("RPO not measured"), "{}", report.outcome.headline);
}

#[test]
fn a_loss_beyond_the_objective_is_missed_even_if_other_stores_are_unknown() {
    let mut journal = runs::unmeasured();
    journal.plan.objective.rpo = Some(span("1m"));
    let report = journal.report();
    assert_eq!(report.rpo.verdict, Some(Verdict::Missed));
    assert!(report.rpo.reason.contains("`cache` lost 2m"), "{}", report.rpo.reason);
}

#[test]
fn an_upper_bound_meets_an_objective_but_cannot_miss_it() {
    assert_eq!(runs::bounded("2026-11-21T03:00:00Z").report().rpo.verdict, Some(Verdict::Met));
    assert_eq!(runs::bounded("2026-11-21T01:00:00Z").report().rpo.verdict, Some(Verdict::NotMeasured));
    assert_eq!(runs::bounded("yesterday").report().rpo.verdict, Some(Verdict::NotMeasured));
}

#[test]
fn data_from_after_the_target_is_warned_of() {
    let report = runs::bounded("2026-11-21T03:12:00.001Z").report();
    assert!(report.rpo.stores[0].beyond_target);
    assert_eq!(report.warnings.len(), 1);
    assert!(!runs::bounded("2026-11-21T03:12:00Z").report().rpo.stores[0].beyond_target);
}

#[test]
fn the_loss_is_the_larger_of_target_and_incident() {
    let mut journal = runs::bounded("2026-11-21T02:59:00Z");
    let EventKind::RunDeclared { inputs, .. } = &mut journal.events[0].kind else { panic!("no declaration") };
    inputs.insert("target_time".into(), "2026-11-21T03:00:00Z".into());
    let report = journal.report();
    assert_eq!(report.rpo.stores[0].against_target_ms, Some(60_000));
    assert_eq!(report.rpo.stores[0].against_incident_ms, Some(780_000));
    assert_eq!(report.rpo.worst_ms, Some(780_000));
}

#[test]
fn recovery_counts_from_the_incident_to_the_last_recovered_step() {
    let report = good_drill().report();
    assert_eq!(report.rto.used_ms, 192_000);
    assert_eq!(report.rto.verdict, Some(Verdict::Met));
    let mut journal = good_drill();
    journal.plan.objective.rto = Some(span("3m 11s"));
    let report = journal.report();
    assert_eq!((report.rto.verdict, report.rto.margin_ms), (Some(Verdict::Missed), Some(-1_000)));
    assert!(!report.objectives_met() && good_drill().report().objectives_met());
}

#[test]
fn a_skipped_step_is_no_recovery() {
    let mut journal = Journal::begun(restore_plan(Mode::Recovery));
    journal.at(9_000).outcome("reopen", Outcome::Skipped { reason: "`false`".into() });
    journal.end(RunOutcome::Succeeded);
    let report = journal.report();
    assert_eq!(report.rto.verdict, Some(Verdict::NotMeasured));
    assert_eq!(report.rto.recovered_at, None);
    assert!(report.outcome.headline.contains("recovery not measured"), "{}", report.outcome.headline);
}

#[test]
fn a_run_that_failed_within_the_time_measured_nothing_and_one_after_it_missed() {
    let report = runs::failed().report();
    assert_eq!(report.rto.verdict, Some(Verdict::NotMeasured));
    assert_eq!(report.outcome.state, State::Failed);
    let mut journal = runs::failed();
    journal.plan.objective.rto = Some(span("30s"));
    assert_eq!(journal.report().rto.verdict, Some(Verdict::Missed));
}

#[test]
fn an_ended_run_reads_the_same_at_any_later_time() {
    let mut journal = runs::failed();
    let then = journal.report();
    journal.at(9_000_000_000);
    assert_eq!(journal.report(), then);
}

#[test]
fn budgets_say_beforehand_that_the_time_will_not_do() {
    let mut journal = runs::held();
    journal.events.truncate(6);
    journal.at(6_000).plan.objective.rto = Some(span("3m"));
    let report = journal.report();
    assert_eq!(report.rto.verdict, Some(Verdict::AtRisk));
    let forecast = report.rto.forecast.unwrap();
    // The stores end two minutes after they began, then come the application and the smoke test.
    assert_eq!(forecast.used_ms, 5_400 + 120_000 + 30_000 + 60_000);
    assert_eq!(forecast.breaks_at, Some(id("smoke")));
    assert_eq!(forecast.without_budget, [id("reopen")]);
}

#[test]
fn the_planned_path_takes_the_budget_of_a_group_for_its_steps() {
    let planned = good_drill().report().critical_path.planned.unwrap();
    let names: Vec<&str> = planned.items.iter().map(|item| item.id.as_str()).collect();
    assert_eq!((names, planned.total_ms), (vec!["choose", "stores", "start_app", "smoke"], 220_000));
    assert!(planned.partial);
}

#[test]
fn time_without_a_process_is_shown_apart() {
    let report = runs::resumed().report();
    assert_eq!(report.time.engine_down_ms, 600_000);
    assert_eq!(report.identity.engines[1].down_before_ms, 600_000);
    let recover = report.steps.iter().find(|step| step.id == id("recover")).unwrap();
    assert_eq!((recover.engine_down_ms, recover.working_ms), (600_000, 4_900 + 64_900));
}

#[test]
fn a_persons_word_does_not_shorten_the_time_without_a_process() {
    let mut journal = runs::resumed();
    let at = journal.events.iter().position(|event| event.at_ms == INCIDENT + 700_000).unwrap();
    let mut note = journal.events[at].clone();
    note.at_ms = INCIDENT + 650_000;
    note.kind = EventKind::Decided {
        by: super::fixture::person("ada"),
        decision: Decision::Note { text: "the host was replaced".into() },
    };
    journal.events.insert(at, note);
    assert_eq!(journal.report().time.engine_down_ms, 600_000);
}

#[test]
fn waiting_for_a_person_goes_on_while_nothing_runs() {
    let mut journal = runs::people();
    let asked =
        journal.events.iter().position(|e| matches!(e.kind, EventKind::QuestionAsked { .. })).unwrap();
    journal.events.truncate(asked + 1);
    journal.at(300_000).engine(5000).result("sign_off", 1, crate::model::event::AttemptResult::Lost);
    journal.at(310_000).start("sign_off", 2);
    journal.at(320_000).answer("sign_off", "cleo", false);
    let report = journal.report();
    // The held cache from 120 s to 260 s, then the question from 260 s to 320 s.
    assert_eq!(report.time.waiting_for_person_ms, 200_000);
    assert_eq!(report.time.engine_down_ms, 0);
    assert_eq!(report.questions[0].waited_ms, 60_000);
}

#[test]
fn a_run_that_was_told_to_stop_is_known_to_stand_still() {
    let mut journal = Journal::begun(restore_plan(Mode::Recovery));
    journal.at(5_000).start("choose", 1);
    journal.at(7_000).result("choose", 1, crate::model::event::AttemptResult::Interrupted);
    journal.at(10_000);
    let report = journal.report();
    assert_eq!(report.outcome.next.as_deref(), Some("lifeboat resume 0badcafe"));
    journal.at(67_000).engine(5000).start("choose", 2).at(68_000);
    let report = journal.report();
    assert_eq!((report.time.engine_down_ms, report.steps[0].engine_down_ms), (60_000, 60_000));
    assert_eq!(report.outcome.next.as_deref(), Some("lifeboat watch 0badcafe"));
}

#[test]
fn a_retry_that_waits_through_a_crash_goes_on_waiting_afterwards() {
    let mut journal = Journal::begun(restore_plan(Mode::Recovery));
    journal.at(5_000).start("choose", 1).at(6_000).fail("choose", 1, failure("LB1101", "no route"));
    journal.retry("choose", 2, 66_000).at(36_000).engine(5000).at(46_000);
    let time = journal.report().time;
    assert_eq!((time.engine_down_ms, time.waiting_for_retry_ms), (30_000, 10_000));
}

#[test]
fn waits_retries_and_pauses_are_told_apart() {
    let time = runs::people().report().time;
    assert_eq!((time.waiting_for_person_ms, time.paused_ms), (140_000 + 720_000, 60_000));
    let mut journal = Journal::begun(restore_plan(Mode::Recovery));
    journal.at(5_000).start("choose", 1).at(6_000).fail("choose", 1, failure("LB1101", "no route"));
    journal.retry("choose", 2, 16_000).at(16_000).start("choose", 2).at(17_000);
    let time = journal.report().time;
    assert_eq!((time.working_ms, time.waiting_for_retry_ms, time.between_steps_ms), (2_000, 10_000, 1_000));
}

#[test]
fn the_state_says_what_an_open_run_waits_for() {
    assert_eq!(runs::held().report().outcome.state, State::Held);
    let mut journal = runs::people();
    let answered =
        journal.events.iter().position(|e| matches!(e.kind, EventKind::QuestionAnswered { .. })).unwrap();
    journal.events.truncate(answered);
    let report = journal.report();
    assert_eq!(report.outcome.state, State::Waiting);
    assert_eq!(report.outcome.next.as_deref(), Some("lifeboat approve 0badcafe sign_off"));
    let status = journal.status(Owner::Gone);
    assert_eq!(status.standing.next.as_deref(), Some("lifeboat approve 0badcafe sign_off"));
    assert_eq!(status.needs_person[0].role.as_deref(), Some("database_lead"));
}

#[test]
fn an_automatic_answer_is_no_evidence() {
    let report = runs::automatic().report();
    assert!(report.identity.people.iter().all(|person| person.name != "drill settings"));
    assert!(page(&report).plain(100).contains("automatic: no evidence of a decision"));
}

#[test]
fn what_a_drill_leaves_behind_is_said_loudly() {
    let report = runs::failed().report();
    let fates: Vec<Fate> = report.created.iter().map(|made| made.fate).collect();
    assert_eq!(fates, [Fate::Removed, Fate::NotRemoved]);
    assert!(report.warnings.iter().any(|warning| warning.text.starts_with("NOT removed: Postgres server")));
    let mut journal = good_drill();
    journal.events.retain(|event| !matches!(event.kind, EventKind::ThingRemoved { .. }));
    assert!(journal.report().created.iter().all(|made| made.fate == Fate::NotRemoved));
    journal.plan.keep = true;
    assert!(journal.report().created.iter().all(|made| made.fate == Fate::Kept));
    journal.plan.keep = false;
    journal.plan.mode = Mode::Recovery;
    assert!(journal.report().created.iter().all(|made| made.fate == Fate::Kept));
}

#[test]
fn a_clock_that_goes_back_is_reported_and_never_counts_below_zero() {
    let mut journal = good_drill();
    for event in journal.events.iter_mut().skip(20) {
        event.at_ms -= 60_000;
    }
    let report = journal.report();
    assert!(
        report.warnings.iter().any(|warning| warning.text.contains("went back by 1m")),
        "{:?}",
        report.warnings
    );
    assert!(report.steps.iter().filter_map(|step| step.took_ms).all(|ms| ms >= 0));
}

#[test]
fn an_incident_after_the_declaration_is_warned_of() {
    let mut journal = good_drill();
    let EventKind::RunDeclared { incident_at_ms, .. } = &mut journal.events[0].kind else {
        panic!("no declaration")
    };
    *incident_at_ms += 60_000;
    let report = journal.report();
    assert!(report.warnings.iter().any(|warning| warning.text.contains("later than the start")));
    assert!(report.activity.iter().all(|segment| segment.activity != Activity::BeforeRun));
}

#[test]
fn hostile_text_stays_text_everywhere() {
    let mut journal = good_drill();
    journal.plan.title = HOSTILE.into();
    for step in &mut journal.plan.steps {
        step.title = HOSTILE.into();
    }
    for event in &mut journal.events {
        match &mut event.kind {
            EventKind::AttemptFinished {
                result: crate::model::event::AttemptResult::Succeeded { done },
                ..
            } => {
                done.warnings.push(HOSTILE.into());
                done.facts.insert(HOSTILE.into(), HOSTILE.into());
                for check in &mut done.checks {
                    check.actual = HOSTILE.into();
                }
            }
            EventKind::ThingCreated { thing, .. } => thing.what = HOSTILE.into(),
            _ => {}
        }
    }
    journal.plan.milestones.insert(HOSTILE.into(), span("1m"));
    let report = journal.report();
    let page_html = html(&report);
    assert!(!page_html.contains("<script"), "a script got into the page");
    assert_eq!(page_html.matches("</style>").count(), 1);
    assert!(!page_html.contains('\u{1b}') && !markdown(&report).contains('\u{1b}'));
    assert!(!markdown(&report).contains("<script"));
    assert!(!page(&report).plain(100).contains('\u{1b}'));
}

#[test]
fn the_page_loads_nothing() {
    for (name, journal) in runs::all() {
        let page = html(&journal.report());
        for word in ["http:", "https:", "src=", "href=", "@import", "<script", "<link"] {
            assert!(!page.contains(word), "`{word}` in the page of `{name}`");
        }
    }
}

#[test]
fn a_runbook_that_is_no_recovery_is_not_called_one_that_failed() {
    let mut plan = plan(Mode::Recovery);
    plan.objective = Objective::default();
    add(&mut plan, "correct", "postgres.change", "Correct a payment");
    let mut journal = Journal::begun(plan);
    journal.at(1_000).start("correct", 1);
    journal.at(2_000).ok("correct").end(RunOutcome::Succeeded);
    let shown = html(&journal.report());
    assert!(shown.contains("Time taken") && !shown.contains("not recovered"), "{shown}");
    assert!(!shown.contains("Data loss"), "{shown}");

    // With an objective it is one, and has not come to its end.
    journal.plan.objective.rto = Some(span("4h"));
    assert!(html(&journal.report()).contains("not recovered"));
}
