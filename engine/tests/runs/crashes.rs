//! Crashes at moments that are hard to hit: between events of one turn, with several attempts in flight.

use crate::plans::{always, failed, id, person, plan, step, succeeded};
use crate::world::World;
use lifeboat_engine::model::event::{AttemptResult, Decision, EventKind};
use lifeboat_engine::model::{FailureKind, Mode, Request, RunOutcome, StepId};
use lifeboat_engine::plan::{ForEach, OnError, Plan, PlannedGroup, PlannedStep, Retry};
use lifeboat_engine::run::{Input, Situation};
use lifeboat_engine::step::Effect;
use serde_json::json;

fn fine(_: &StepId, _: u32) -> AttemptResult {
    succeeded(json!({}))
}

fn decide(world: &mut World, decision: Decision) {
    world.input(Input::Request(Request::Decide { by: person(), decision }));
}

/// The journal up to and with the first event that fits.
fn through(world: &World, fits: impl Fn(&EventKind) -> bool) -> Vec<EventKind> {
    let at = world.journal.iter().position(fits).expect("such an event");
    world.journal[..=at].to_vec()
}

fn group(name: &str, max_parallel: usize) -> PlannedGroup {
    PlannedGroup {
        id: id(name),
        title: name.to_owned(),
        parent: None,
        parallel: true,
        max_parallel: Some(max_parallel),
        budget: None,
        milestone: None,
        recovered: false,
        ends: Vec::new(),
    }
}

fn lost(world: &World, name: &str) -> bool {
    world.journal.iter().any(|event| {
        matches!(event, EventKind::AttemptFinished { step, result: AttemptResult::Lost, .. } if step.as_str() == name)
    })
}

/// Two attempts are in flight, and the loss of the first one ends the run. The second one was lost as well: it must not
/// look as if it had never run.
#[test]
fn whoever_was_running_at_a_crash_is_lost_even_if_another_loss_ends_the_run() {
    let steps = || {
        let once = PlannedStep { effect: Effect::Once, ..step("a", &[]) };
        Plan { mode: Mode::Drill, ..plan(vec![once, step("b", &[]), step("c", &["b"])]) }
    };
    let world = World::new(steps(), fine);
    assert_eq!(world.order(), ["a", "b"]);
    let mut resumed = World::resume(steps(), world.journal, fine);
    assert_eq!(resumed.run(), Situation::Finished(RunOutcome::Failed));
    assert!(lost(&resumed, "a") && lost(&resumed, "b"), "{:#?}", resumed.journal);
    assert_eq!((resumed.outcome_of("b"), resumed.outcome_of("c")), ("failed".into(), "not_run".into()));
    assert!(resumed.order().is_empty(), "nothing runs again");
}

/// The same for elements of a step that is repeated.
#[test]
fn elements_in_flight_are_lost_even_if_another_loss_ends_the_run() {
    let steps = || {
        let once = PlannedStep { effect: Effect::Once, ..step("a", &[]) };
        let each = ForEach { list: json!([1, 2, 3]), max_parallel: 2 };
        let each = PlannedStep { for_each: Some(each), ..step("each", &[]) };
        Plan { mode: Mode::Drill, ..plan(vec![once, each]) }
    };
    let world = World::new(steps(), fine);
    assert_eq!(world.order(), ["a", "each[0]", "each[1]"]);
    let mut resumed = World::resume(steps(), world.journal, fine);
    assert_eq!(resumed.run(), Situation::Finished(RunOutcome::Failed));
    assert!(lost(&resumed, "each[0]") && lost(&resumed, "each[1]"), "{:#?}", resumed.journal);
    for (name, outcome) in [("each[0]", "failed"), ("each[1]", "failed"), ("each", "failed")] {
        assert_eq!(resumed.outcome_of(name), outcome, "{name}");
    }
}

/// What a person decided is in the journal, and the kill came before its consequence.
#[test]
fn a_run_that_was_cancelled_stays_cancelled_whenever_it_was_killed() {
    for decision in [Decision::Cancel { reason: "x".into() }, Decision::Abort { reason: "x".into() }] {
        let steps = || plan(vec![step("a", &[]), step("b", &["a"]), always("z", &[])]);
        let mut world = World::new(steps(), fine);
        decide(&mut world, decision);
        let decided = world.journal.iter().position(|event| matches!(event, EventKind::Decided { .. }));
        let decided = decided.expect("the decision");
        for cut in decided + 1..=world.journal.len() {
            let mut resumed = World::resume(steps(), world.journal[..cut].to_vec(), fine);
            assert_eq!(resumed.run(), Situation::Finished(RunOutcome::Aborted), "cut at {cut}");
            assert_eq!(resumed.order(), ["z"], "cut at {cut}");
        }
    }
}

/// The same for a decision about a held step.
#[test]
fn a_decision_about_a_held_step_outlives_a_kill_before_its_consequence() {
    let steps = || {
        let a = PlannedStep { on_error: OnError::Hold, ..step("a", &[]) };
        plan(vec![a, step("b", &["a"])])
    };
    let script = |step: &StepId, _: u32| match step.as_str() {
        "a" => failed(FailureKind::Permanent),
        _ => succeeded(json!({})),
    };
    for (decision, outcome) in [
        (Decision::SkipStep { step: id("a"), reason: "gone".into() }, "skipped"),
        (Decision::MarkDone { step: id("a"), reason: "by hand".into() }, "marked_done"),
    ] {
        let mut world = World::new(steps(), script);
        assert_eq!(world.run(), Situation::Held);
        decide(&mut world, decision);
        let prefix = through(&world, |event| matches!(event, EventKind::Decided { .. }));
        let mut resumed = World::resume(steps(), prefix, script);
        assert_eq!(resumed.run(), Situation::Finished(RunOutcome::Succeeded));
        assert_eq!((resumed.outcome_of("a").as_str(), resumed.order()), (outcome, vec!["b"]));
    }
}

/// A person's retry waits for its place like everything else.
#[test]
fn a_retry_that_a_person_grants_keeps_the_limit_of_its_group() {
    let in_group = |name: &str| PlannedStep { group: Some(id("g")), ..step(name, &[]) };
    let a = PlannedStep { on_error: OnError::Hold, ..in_group("a") };
    let plan = Plan { groups: vec![group("g", 1)], ..plan(vec![a, in_group("b"), in_group("c")]) };
    let mut world = World::new(plan, |step, attempt| match (step.as_str(), attempt) {
        ("a", 1) => failed(FailureKind::Permanent),
        _ => succeeded(json!({})),
    });
    world.turn();
    assert_eq!(world.order(), ["a", "b"]);
    decide(&mut world, Decision::RetryStep { step: id("a") });
    assert_eq!(world.running(), 1, "{:?}", world.order());
    assert_eq!(world.run(), Situation::Finished(RunOutcome::Succeeded));
    assert_eq!(world.order(), ["a", "b", "a", "c"]);
}

/// The same for the places of a step that is repeated.
#[test]
fn a_retry_that_a_person_grants_keeps_the_limit_of_for_each() {
    let each = PlannedStep {
        for_each: Some(ForEach { list: json!([0, 1, 2, 3]), max_parallel: 2 }),
        retry: Retry { attempts: 2, ..Retry::default() },
        on_error: OnError::Hold,
        ..step("each", &[])
    };
    let mut world = World::new(plan(vec![each]), |step, attempt| match (step.as_str(), attempt) {
        ("each[0]", 1) => failed(FailureKind::Transient),
        ("each[1]", 1) => failed(FailureKind::Permanent),
        _ => succeeded(json!({})),
    });
    // The first one waits for its retry and leaves its place to the third; the second one is held.
    world.end_one(0);
    assert_eq!(world.order(), ["each[0]", "each[1]", "each[2]"]);
    world.end_one(0);
    world.now_ms = 60_000;
    world.input(Input::Tick);
    assert_eq!(world.order(), ["each[0]", "each[1]", "each[2]", "each[0]"]);
    decide(&mut world, Decision::RetryStep { step: id("each[1]") });
    assert_eq!(world.running(), 2, "{:?}", world.order());
    assert_eq!(world.run(), Situation::Finished(RunOutcome::Succeeded));
}

#[test]
fn a_retry_that_a_person_grants_does_not_start_in_a_paused_run() {
    let a = PlannedStep { on_error: OnError::Hold, ..step("a", &[]) };
    let mut world = World::new(plan(vec![a]), |_, attempt| match attempt {
        1 => failed(FailureKind::Permanent),
        _ => succeeded(json!({})),
    });
    assert_eq!(world.run(), Situation::Held);
    decide(&mut world, Decision::Pause);
    decide(&mut world, Decision::RetryStep { step: id("a") });
    assert_eq!((world.running(), world.dispatcher.situation()), (0, Situation::Paused));
    decide(&mut world, Decision::Unpause);
    assert_eq!(world.run(), Situation::Finished(RunOutcome::Succeeded));
}

/// "Task with retry stays in running state…, blocking other task" (dagucloud/dagu#1792): a step that waits for its retry
/// holds no place of its group.
#[test]
fn a_waiting_retry_leaves_its_place_to_others_and_takes_the_next_free_one() {
    let in_group = |name: &str| PlannedStep { group: Some(id("g")), ..step(name, &[]) };
    let a = PlannedStep { retry: Retry { attempts: 2, ..Retry::default() }, ..in_group("a") };
    let plan = Plan { groups: vec![group("g", 1)], ..plan(vec![a, in_group("b"), in_group("c")]) };
    let mut world = World::new(plan, |step, attempt| match (step.as_str(), attempt) {
        ("a", 1) => failed(FailureKind::Transient),
        _ => succeeded(json!({})),
    });
    world.end_one(0);
    assert_eq!(world.order(), ["a", "b"], "the place is free as soon as the attempt has failed");
    world.now_ms = 60_000;
    world.input(Input::Tick);
    assert_eq!(world.running(), 1, "and not taken back before it is free again");
    assert_eq!(world.run(), Situation::Finished(RunOutcome::Succeeded));
    assert_eq!(world.order(), ["a", "b", "a", "c"]);
}

/// Deadlines of suspended runs (argoproj/argo-workflows#13722): what falls due in a pause waits for its end.
#[test]
fn a_retry_that_falls_due_in_a_pause_starts_when_the_pause_ends() {
    let a = PlannedStep { retry: Retry { attempts: 2, ..Retry::default() }, ..step("a", &[]) };
    let plan = plan(vec![a]);
    let script = |_: &StepId, attempt: u32| match attempt {
        1 => failed(FailureKind::Uncertain),
        _ => succeeded(json!({})),
    };
    let mut world = World::new(plan.clone(), script);
    decide(&mut world, Decision::Pause);
    assert_eq!(world.run(), Situation::Paused);
    assert_eq!(world.launched.len(), 1, "the delay is over, the pause is not");
    let mut resumed = World::resume(plan, world.journal, script);
    assert_eq!(resumed.run(), Situation::Paused, "a pause outlives the process");
    decide(&mut resumed, Decision::Unpause);
    assert_eq!(resumed.run(), Situation::Finished(RunOutcome::Succeeded));
}

/// Found by the oracle: an element that waited for its retry when the run was ended left its timer behind, so that the run
/// seemed busy when only a person could help.
#[test]
fn a_retry_of_a_run_that_is_ending_sets_no_timer_after_a_crash() {
    let each = PlannedStep {
        for_each: Some(ForEach { list: json!([0, 1]), max_parallel: 2 }),
        retry: Retry { attempts: 2, ..Retry::default() },
        ..step("each", &[])
    };
    let last = PlannedStep { on_error: OnError::Hold, ..always("z", &[]) };
    let plan = plan(vec![each, last]);
    let mut world = World::new(plan.clone(), |_, _| failed(FailureKind::Transient));
    world.end_one(0);
    decide(&mut world, Decision::Abort { reason: "x".into() });
    let mut resumed = World::resume(plan, world.journal, |_, _| failed(FailureKind::Permanent));
    assert_eq!(resumed.order(), ["z"]);
    resumed.end_one(0);
    assert_eq!((resumed.dispatcher.next_wake_ms(), resumed.dispatcher.situation()), (None, Situation::Held));
}

/// Found by the oracle: a pause was lifted when the last step ended or a step ended the run. Only a person's end lifts it.
#[test]
fn a_pause_holds_undo_and_always_until_it_ends() {
    for (kind, order, end) in [
        (None, vec!["a", "z"], RunOutcome::Succeeded),
        (Some(FailureKind::Permanent), vec!["a", "a/undo", "z"], RunOutcome::Failed),
    ] {
        let plan = crate::plans::with_undo(plan(vec![step("a", &[]), always("z", &[])]), &["a"]);
        let mut world = World::new(plan, move |step, _| match kind {
            Some(kind) if step.as_str() == "a" => failed(kind),
            _ => succeeded(json!({})),
        });
        decide(&mut world, Decision::Pause);
        assert_eq!(world.run(), Situation::Paused);
        assert_eq!(world.order(), ["a"]);
        decide(&mut world, Decision::Unpause);
        assert_eq!(world.run(), Situation::Finished(end));
        assert_eq!(world.order(), order);
    }
}
