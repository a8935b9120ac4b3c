//! The order of steps and what follows from their ends, decided without a runtime.

use crate::cpu_time::cpu_time;
use crate::plans::{always, failed, id, person, plan, step, succeeded};
use crate::world::World;
use lifeboat_engine::model::event::{AttemptResult, Decision, EventKind};
use lifeboat_engine::model::{FailureKind, Mode, Request, RunOutcome, StepId};
use lifeboat_engine::plan::{Condition, Need, NeedOn, OnError, Plan, PlannedStep, Retry};
use lifeboat_engine::run::{Input, Situation};
use lifeboat_engine::step::Effect;
use serde_json::json;
use std::time::Duration;

fn fine(_: &StepId, _: u32) -> AttemptResult {
    succeeded(json!({}))
}

fn fails(name: &'static str, kind: FailureKind) -> impl Fn(&StepId, u32) -> AttemptResult {
    move |step, _| if step.as_str() == name { failed(kind) } else { succeeded(json!({})) }
}

#[test]
fn steps_wait_for_what_they_need() {
    let mut world = World::new(
        plan(vec![step("a", &[]), step("b", &["a"]), step("c", &[]), step("d", &["b", "c"])]),
        fine,
    );
    assert_eq!(world.order(), ["a", "c"]);
    assert_eq!(world.run(), Situation::Finished(RunOutcome::Succeeded));
    assert_eq!(world.order(), ["a", "c", "b", "d"]);
}

#[test]
fn a_transient_failure_is_repeated_after_a_delay_and_a_permanent_one_is_not() {
    let retry = Retry { attempts: 3, ..Retry::default() };
    let steps = || vec![PlannedStep { retry: retry.clone(), ..step("a", &[]) }];
    let mut world = World::new(plan(steps()), fails("a", FailureKind::Transient));
    assert_eq!(world.run(), Situation::Finished(RunOutcome::Failed));
    assert_eq!(world.launched.len(), 3);
    assert!(world.now_ms >= 2000, "two delays of a second have passed, not {} ms", world.now_ms);

    let mut world = World::new(plan(steps()), fails("a", FailureKind::Permanent));
    world.run();
    assert_eq!(world.launched.len(), 1);
}

#[test]
fn an_uncertain_failure_of_a_step_that_must_not_repeat_waits_for_a_person() {
    let once = PlannedStep {
        effect: Effect::Once,
        retry: Retry { attempts: 3, ..Retry::default() },
        ..step("a", &[])
    };
    let mut world = World::new(plan(vec![once.clone()]), fails("a", FailureKind::Uncertain));
    assert_eq!(world.run(), Situation::Held);
    assert_eq!(world.launched.len(), 1);

    let drill = Plan { mode: Mode::Drill, ..plan(vec![once]) };
    let mut world = World::new(drill, fails("a", FailureKind::Uncertain));
    assert_eq!(world.run(), Situation::Finished(RunOutcome::Failed), "nobody is there to ask in a drill");
}

#[test]
fn a_failure_ends_the_run_and_always_steps_still_run() {
    let steps = vec![step("a", &[]), step("b", &["a"]), always("z", &[])];
    let mut world = World::new(plan(steps), fails("a", FailureKind::Permanent));
    assert_eq!(world.run(), Situation::Finished(RunOutcome::Failed));
    assert_eq!(world.order(), ["a", "z"]);
    assert_eq!(world.outcome_of("b"), "not_run");
}

#[test]
fn a_failure_that_may_continue_lets_the_rest_go_on() {
    let a = PlannedStep { on_error: OnError::Continue, ..step("a", &[]) };
    let mut world = World::new(plan(vec![a, step("b", &["a"])]), fails("a", FailureKind::Permanent));
    assert_eq!(world.run(), Situation::Finished(RunOutcome::Succeeded));
    assert_eq!((world.outcome_of("a"), world.outcome_of("b")), ("failed".into(), "succeeded".into()));
}

fn on_failure(name: &str, needed: &str) -> PlannedStep {
    PlannedStep { needs: vec![Need { step: id(needed), on: NeedOn::Failure }], ..step(name, &[]) }
}

#[test]
fn a_handled_failure_does_not_end_the_run_and_its_other_dependants_do_not_run() {
    let steps = || vec![step("a", &[]), on_failure("mend", "a"), step("b", &["a"]), step("c", &["b"])];
    let mut world = World::new(plan(steps()), fails("a", FailureKind::Permanent));
    assert_eq!(world.run(), Situation::Finished(RunOutcome::Succeeded));
    assert_eq!(world.order(), ["a", "mend"]);
    assert_eq!((world.outcome_of("b"), world.outcome_of("c")), ("not_run".into(), "not_run".into()));

    let mut world = World::new(plan(steps()), fine);
    world.run();
    assert_eq!(world.outcome_of("mend"), "skipped");
    assert_eq!(world.order(), ["a", "b", "c"]);
}

#[test]
fn a_handler_also_needs_the_success_that_it_names() {
    let mend = |order: [(&str, NeedOn); 2]| PlannedStep {
        needs: order.map(|(name, on)| Need { step: id(name), on }).into(),
        ..step("mend", &[])
    };
    let needs = [("a", NeedOn::Failure), ("b", NeedOn::Success)];
    for order in [needs, [needs[1], needs[0]]] {
        // `b` depends on the step that fails, so it does not run, and neither does what needs its success.
        let steps = || vec![step("a", &[]), step("b", &["a"]), mend(order)];
        let mut world = World::new(plan(steps()), fails("a", FailureKind::Permanent));
        world.run();
        assert_eq!(world.outcome_of("mend"), "not_run", "{order:?}");
        let mut steps = steps();
        steps[1].needs.clear();
        let mut world = World::new(plan(steps), fails("a", FailureKind::Permanent));
        world.run();
        assert_eq!(world.outcome_of("mend"), "succeeded", "{order:?}");
    }
}

#[test]
fn a_false_condition_skips_and_counts_as_success() {
    let condition = Condition { expression: "steps.a.n > 5".into(), of: id("b"), scope: None };
    let b = PlannedStep { conditions: vec![condition], ..step("b", &["a"]) };
    let mut world = World::new(plan(vec![step("a", &[]), b, step("c", &["b"])]), |step, _| {
        succeeded(if step.as_str() == "a" { json!({"n": 3}) } else { json!({}) })
    });
    assert_eq!(world.run(), Situation::Finished(RunOutcome::Succeeded));
    assert_eq!((world.outcome_of("b"), world.outcome_of("c")), ("skipped".into(), "succeeded".into()));
}

#[test]
fn an_expectation_that_does_not_hold_fails_the_step() {
    let a = PlannedStep { expect: vec!["output.n == 4".into()], ..step("a", &[]) };
    let mut world = World::new(plan(vec![a]), |_, _| succeeded(json!({"n": 3})));
    assert_eq!(world.run(), Situation::Finished(RunOutcome::Failed));
    assert_eq!(world.outcome_of("a"), "failed");
}

fn held_plan() -> Plan {
    let a = PlannedStep { on_error: OnError::Hold, ..step("a", &[]) };
    plan(vec![a, step("b", &["a"]), step("free", &[])])
}

fn decide(world: &mut World, decision: Decision) {
    world.input(Input::Request(Request::Decide { by: person(), decision }));
}

#[test]
fn a_held_step_blocks_only_its_descendants_and_a_person_decides() {
    let mut world = World::new(held_plan(), fails("a", FailureKind::Permanent));
    assert_eq!(world.run(), Situation::Held);
    assert_eq!(world.outcome_of("free"), "succeeded");
    decide(&mut world, Decision::MarkDone { step: id("a"), reason: "done by hand".into() });
    assert_eq!(world.run(), Situation::Finished(RunOutcome::Succeeded));
    assert_eq!(world.order(), ["a", "free", "b"]);
}

#[test]
fn a_person_can_retry_a_held_step_and_wrong_decisions_are_refused() {
    let mut world = World::new(held_plan(), |step, attempt| match (step.as_str(), attempt) {
        ("a", 1) => failed(FailureKind::Permanent),
        _ => succeeded(json!({})),
    });
    world.run();
    decide(&mut world, Decision::RetryStep { step: id("b") });
    assert_eq!(world.refused, ["`b` is not held and cannot be retried: it has not started"]);
    decide(&mut world, Decision::RetryStep { step: id("a") });
    assert_eq!(world.run(), Situation::Finished(RunOutcome::Succeeded));
}

#[test]
fn abort_ends_what_runs_and_starts_nothing_but_always_steps() {
    let mut world = World::new(plan(vec![step("a", &[]), step("b", &["a"]), always("z", &[])]), |step, _| {
        if step.as_str() == "a" { AttemptResult::Interrupted } else { succeeded(json!({})) }
    });
    decide(&mut world, Decision::Abort { reason: "wrong target".into() });
    assert_eq!(world.run(), Situation::Finished(RunOutcome::Aborted));
    assert_eq!(world.order(), ["a", "z"]);
}

#[test]
fn pause_starts_nothing_until_it_is_lifted() {
    let mut world = World::new(plan(vec![step("a", &[]), step("b", &["a"])]), fine);
    decide(&mut world, Decision::Pause);
    assert_eq!(world.run(), Situation::Paused);
    assert_eq!(world.order(), ["a"]);
    decide(&mut world, Decision::Unpause);
    assert_eq!(world.run(), Situation::Finished(RunOutcome::Succeeded));
}

#[test]
fn a_signal_leaves_the_run_open_and_resume_repeats_what_it_interrupted() {
    let steps = || plan(vec![step("a", &[]), step("b", &["a"])]);
    let mut world = World::new(steps(), |_, _| AttemptResult::Interrupted);
    world.input(Input::Stop);
    assert_eq!(world.run(), Situation::Stopped);
    let mut resumed = World::resume(steps(), world.journal, fine);
    assert_eq!(resumed.run(), Situation::Finished(RunOutcome::Succeeded));
    assert_eq!(resumed.launched, [(id("a"), 2), (id("b"), 1)]);
}

/// A plan with every sort of end in it.
fn everything() -> Plan {
    let retried = PlannedStep { retry: Retry { attempts: 3, ..Retry::default() }, ..step("retried", &["a"]) };
    let skipped = PlannedStep {
        conditions: vec![Condition { expression: "steps.a.n > 5".into(), of: id("skipped"), scope: None }],
        ..step("skipped", &["a"])
    };
    let tolerated = PlannedStep { on_error: OnError::Continue, ..step("tolerated", &[]) };
    plan(vec![
        step("a", &[]),
        retried,
        skipped,
        tolerated,
        step("broken", &["tolerated"]),
        on_failure("mend", "broken"),
        step("last", &["retried", "skipped", "mend"]),
        always("tell", &[]),
        always("tidy", &["tell"]),
    ])
}

fn everything_happens(step: &StepId, attempt: u32) -> AttemptResult {
    match (step.as_str(), attempt) {
        ("a", _) => succeeded(json!({"n": 1})),
        ("retried", 1) => failed(FailureKind::Transient),
        ("tolerated" | "broken", _) => failed(FailureKind::Permanent),
        _ => succeeded(json!({})),
    }
}

/// Recovery from every prefix of a journal ends in the same state, and no step that had completed runs again.
#[test]
fn every_prefix_of_a_journal_recovers_to_the_same_end() {
    let mut whole = World::new(everything(), everything_happens);
    assert_eq!(whole.run(), Situation::Finished(RunOutcome::Succeeded));
    let outcomes = |world: &World| -> Vec<String> {
        world.plan.steps.iter().map(|step| world.outcome_of(step.id.as_str())).collect()
    };
    for cut in 1..whole.journal.len() {
        let prefix = whole.journal[..cut].to_vec();
        let completed: Vec<StepId> = prefix
            .iter()
            .filter_map(|event| match event {
                EventKind::StepFinished { step, .. } => Some(step.clone()),
                _ => None,
            })
            .collect();
        let mut resumed = World::resume(everything(), prefix, |step, attempt| {
            // A transient failure that was lost in the crash may also have been the first attempt.
            everything_happens(step, attempt)
        });
        assert_eq!(resumed.run(), Situation::Finished(RunOutcome::Succeeded), "cut at {cut}");
        assert_eq!(outcomes(&resumed), outcomes(&whole), "cut at {cut}");
        let again: Vec<_> = resumed.launched.iter().filter(|(step, _)| completed.contains(step)).collect();
        assert!(again.is_empty(), "cut at {cut}: ran again: {again:?}");
    }
}

#[test]
fn a_superseded_attempt_has_no_say() {
    let mut world = World::new(plan(vec![step("a", &[])]), fine);
    let stale = Input::AttemptEnded { step: id("a"), attempt: 7, result: failed(FailureKind::Permanent) };
    world.input(stale);
    assert_eq!(world.run(), Situation::Finished(RunOutcome::Succeeded));
}

#[test]
fn what_runs_at_the_end_costs_nothing_before_it() {
    /// The processor time that a chain of steps takes, and the whole run, with so many steps in `always`.
    fn cost(wide: usize) -> (Duration, World) {
        let chain = (0..1500).map(|at| match at {
            0 => step("s0", &[]),
            _ => step(&format!("s{at}"), &[&format!("s{}", at - 1)]),
        });
        let steps = chain.chain((0..wide).map(|at| always(&format!("last{at}"), &[])));
        let mut world = World::new(plan(steps.collect()), |_, _| succeeded(json!({})));
        let begun = cpu_time();
        while world.launched.last().is_none_or(|(step, _)| step.as_str() != "s1499") {
            assert!(world.turn());
        }
        (cpu_time() - begun, world)
    }
    let (narrow, _) = cost(1);
    let (wide, mut world) = cost(10_000);
    assert!(wide < narrow * 4 + Duration::from_millis(200), "{wide:?} instead of {narrow:?}");
    assert_eq!(world.run(), Situation::Finished(RunOutcome::Succeeded));
    assert_eq!(world.launched.len(), 11_500);
}
