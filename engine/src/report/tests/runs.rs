//! The runs that the tests look at: each a journal that a real engine could have written.

use super::fixture::{
    Journal, add, check, failure, good_drill, group, id, milestone, needs, person, point, restore_plan,
    restoring, span,
};
use crate::model::event::{AttemptResult, Decision, Done, EventKind};
use crate::model::evidence::Confidence;
use crate::model::outcome::{Failure, FailureKind, Mode, Outcome, RunOutcome};
use crate::plan::{Commit, MilestoneAt, OnError, Plan};

/// A recovery in production whose database step is held while the rest has gone on.
pub(super) fn held() -> Journal {
    let mut journal = Journal::begun(restore_plan(Mode::Recovery));
    journal.at(4_100).start("choose", 1).at(5_300).ok("choose");
    journal.at(5_400).start("base", 1).start("cache", 1).start("uploads", 1);
    let cache = point("cache", "2026-11-21T03:11:30Z", "snapshot time");
    journal.at(11_000).done("cache", 1, Done { recovery_points: vec![cache], ..Done::default() });
    for (attempt, at) in [(1, 20_000), (2, 40_000), (3, 80_000)] {
        if attempt > 1 {
            journal.at(at - 10_000).start("base", attempt);
        }
        let stopped = failure("LB1104", "reading `base/x/base.tar.zst` stopped after 1.2 GiB of 2.0 GiB");
        journal.at(at).fail("base", attempt, stopped.clone());
        if attempt < 3 {
            journal.retry("base", attempt + 1, if attempt == 1 { 30_000 } else { 70_000 });
        } else {
            journal.push(EventKind::StepHeld { step: id("base"), failure: stopped });
        }
    }
    let uploads = point("uploads", "2026-11-21T03:11:58Z", "newest file");
    journal.at(91_000).done("uploads", 1, Done { recovery_points: vec![uploads], ..Done::default() });
    journal.at(391_000);
    journal
}

/// A drill that a failed check ended.
pub(super) fn failed() -> Journal {
    let mut plan = restore_plan(Mode::Drill);
    plan.commit = Some(Commit { hash: "4be1c0ffee".into(), dirty: true });
    let mut journal = Journal::begun(plan);
    journal.at(4_100).start("choose", 1).at(5_300).ok("choose");
    journal.start("base", 1).start("cache", 1).start("uploads", 1);
    journal.at(9_000).server("cache", "Redis server of cache (port 6390)");
    let cache = point("cache", "2026-11-21T03:11:30Z", "newest key");
    journal.at(11_000).done("cache", 1, Done { recovery_points: vec![cache], ..Done::default() });
    journal.at(12_000).ok("base").server("recover", "Postgres server of db (port 5440)").start("recover", 1);
    let wrong = Failure {
        kind: FailureKind::Permanent,
        code: "LB1210".into(),
        message: "the log archive ends at 03:05:00, before the target: segment `000000010000000000000007` is missing"
            .into(),
        help: Some("find the segment, or choose a target up to 03:05:00".into()),
        causes: vec!["`wal get` found no object `wal/7301/000000010000000000000007.zst`".into()],
    };
    let checks =
        vec![check("archive reaches the target", "03:12:00", "03:05:00"), check("timeline", "1", "1")];
    let result = AttemptResult::Failed { failure: wrong.clone(), checks };
    journal.at(31_000).result("recover", 1, result).outcome("recover", Outcome::Failed { failure: wrong });
    let reason = "step `recover` failed".to_owned();
    journal.push(EventKind::EndingBegan { outcome: RunOutcome::Failed, reason, undo: false });
    for step in ["start_app", "smoke", "reopen"] {
        journal.outcome(step, Outcome::NotRun { reason: "the run ended before it".into() });
    }
    let interrupted = failure("LB0303", "`uploads` was ended because the run ended");
    journal.result("uploads", 1, AttemptResult::Interrupted);
    journal.outcome("uploads", Outcome::Failed { failure: interrupted });
    journal.start("announce", 1).at(32_000).ok("announce");
    let removed = |id: &str, proof: &str, removed| EventKind::ThingRemoved {
        id: id.into(),
        proof: proof.into(),
        removed,
    };
    journal.push(removed("server:cache", "the process has ended", true));
    journal.push(removed("server:recover", "process 99 does not react to SIGKILL", false));
    journal.end(RunOutcome::Failed);
    journal
}

/// A drill whose process was killed in the middle of the replay, and that was resumed ten minutes later.
pub(super) fn resumed() -> Journal {
    let good = good_drill();
    let mut journal = Journal::new(good.plan);
    let crash = |event: &crate::model::Event| matches!(&event.kind, EventKind::AttemptStarted { step, .. } if *step == id("recover"));
    let at = good.events.iter().position(crash).unwrap();
    journal.events = good.events[..=at].to_vec();
    journal.at(100_000).progress("recover", 40, 90);
    journal.at(700_000).engine(4999).result("recover", 1, AttemptResult::Lost);
    journal.at(700_100).start("recover", 2);
    let db = point("db", "2026-11-21T03:11:59.188Z", "heartbeat row");
    journal.at(765_000).done("recover", 2, Done { recovery_points: vec![db], ..Done::default() });
    journal.finish_well(765_100);
    journal
}

/// A recovery that went well, but whose database never said up to when.
pub(super) fn unmeasured() -> Journal {
    let mut journal = good_drill();
    for event in &mut journal.events {
        if let EventKind::AttemptFinished { step, result: AttemptResult::Succeeded { done }, .. } =
            &mut event.kind
            && *step == id("recover")
        {
            done.recovery_points.clear();
        }
    }
    journal
}

/// A recovery with a short objective in which people were asked, decided, skipped and paused.
pub(super) fn people() -> Journal {
    let mut plan = restore_plan(Mode::Recovery);
    plan.environment = "production".into();
    plan.protected = true;
    plan.objective.rto = Some(span("20m"));
    let at = plan.steps.iter().position(|step| step.id == id("start_app")).unwrap();
    let always = plan.steps.split_off(at);
    add(&mut plan, "sign_off", "approval", "Sign the database off");
    needs(plan.steps.last_mut().unwrap(), &["recover", "cache", "uploads"]);
    plan.steps.extend(always);
    needs(plan.steps.iter_mut().find(|step| step.id == id("start_app")).unwrap(), &["sign_off"]);
    let mut journal = Journal::begun(plan);
    journal.at(4_100).start("choose", 1).at(5_300).ok("choose");
    journal.start("base", 1).start("cache", 1).start("uploads", 1);
    journal.at(20_000).fail("cache", 1, failure("LB1302", "`dump.rdb` is of a newer version of Redis"));
    let cause = failure("LB1302", "`dump.rdb` is of a newer version of Redis");
    journal.push(EventKind::StepHeld { step: id("cache"), failure: cause });
    for (step, at) in [("uploads", 40_000), ("base", 60_000)] {
        let points = if step == "uploads" {
            vec![point("uploads", "2026-11-21T03:11:58Z", "newest file")]
        } else {
            vec![]
        };
        journal.at(at).done(step, 1, Done { recovery_points: points, ..Done::default() });
    }
    journal.start("recover", 1);
    let db = point("db", "2026-11-21T03:11:59.188Z", "heartbeat row");
    journal.at(120_000).done("recover", 1, Done { recovery_points: vec![db], ..Done::default() });
    let skip = Decision::SkipStep { step: id("cache"), reason: "the cache fills itself".into() };
    journal.at(260_000).decide("ben", skip);
    journal.outcome("cache", Outcome::Skipped { reason: "skipped by ben: the cache fills itself".into() });
    journal.start("sign_off", 1).ask("sign_off", "database_lead", "Database recovered to 03:11:59. Go on?");
    journal.at(300_000).push(EventKind::Noted { step: None, text: "vendor called back".into() });
    journal.at(980_000).answer("sign_off", "cleo", false).ok("sign_off");
    journal.decide("ada", Decision::Pause).at(1_040_000).decide("ada", Decision::Unpause);
    journal.finish_well(1_041_000);
    journal
}

/// A drill of two steps with a group, whose approval nobody gave.
pub(super) fn automatic() -> Journal {
    let mut plan: Plan = super::fixture::plan(Mode::Drill);
    plan.objective.rpo = None;
    plan.groups.push(crate::plan::PlannedGroup { recovered: true, ..group("all", "1m") });
    add(&mut plan, "go", "approval", "Ask for the word").group = Some(id("all"));
    let step = add(&mut plan, "copy", "run", "Copy the files");
    step.group = Some(id("all"));
    step.milestone = milestone("copied", MilestoneAt::Started);
    step.on_error = OnError::Continue;
    let mut journal = Journal::begun(plan);
    journal
        .at(5_000)
        .start("go", 1)
        .ask("go", "lead", "Go on?")
        .answer("go", "drill settings", true)
        .ok("go");
    journal.at(6_000).start("copy", 1).at(7_500).ok("copy").end(RunOutcome::Succeeded);
    journal
}

/// Every run, by name.
pub(super) fn all() -> Vec<(&'static str, Journal)> {
    vec![
        ("good", good_drill()),
        ("held", held()),
        ("failed", failed()),
        ("resumed", resumed()),
        ("unmeasured", unmeasured()),
        ("people", people()),
        ("automatic", automatic()),
    ]
}

/// A store whose loss is only known to be no more than something.
pub(super) fn bounded(time: &str) -> Journal {
    let mut plan = super::fixture::plan(Mode::Recovery);
    plan.inputs.insert("target_time".into(), serde_json::json!("2026-11-21T03:12:00Z"));
    let step = add(&mut plan, "recover", "postgres.recover", "Recover");
    restoring(step, "db");
    step.recovered = true;
    let mut journal = Journal::begun(plan);
    let mut db = point("db", time, "last replayed commit");
    db.confidence = Confidence::Bound;
    journal.at(5_000).start("recover", 1).at(9_000);
    journal.done("recover", 1, Done { recovery_points: vec![db], ..Done::default() });
    journal.push(EventKind::Decided { by: person("ada"), decision: Decision::Note { text: "done".into() } });
    journal.end(RunOutcome::Succeeded);
    journal
}
