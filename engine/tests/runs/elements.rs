//! Steps that are repeated for each element of a list.

use std::collections::{BTreeMap, BTreeSet};

use crate::cpu_time::cpu_time;
use crate::plans::{always, failed, id, person, plan, step, succeeded};
use crate::world::World;
use lifeboat_engine::model::event::{AttemptResult, Decision, EventKind};
use lifeboat_engine::model::{FailureKind, Request, RunOutcome, StepId};
use lifeboat_engine::plan::{Condition, ForEach, Need, NeedOn, OnError, Plan, PlannedStep, Retry};
use lifeboat_engine::run::{Input, Situation};
use lifeboat_engine::step::Effect;
use proptest::prelude::*;
use serde_json::{Value, json};

fn each(name: &str, list: Value, max_parallel: usize) -> PlannedStep {
    PlannedStep {
        for_each: Some(ForEach { list, max_parallel }),
        with: json!({ "text": "{{ index }} {{ item }}" }),
        ..step(name, &[])
    }
}

fn after(name: &str, needed: &str, with: &str) -> PlannedStep {
    PlannedStep { with: json!({ "text": with }), ..step(name, &[needed]) }
}

fn items(count: usize) -> Value {
    json!((0..count).map(|at| format!("item {at}")).collect::<Vec<_>>())
}

fn fine(step: &StepId, _: u32) -> AttemptResult {
    succeeded(json!({ "n": step.element() }))
}

fn fails(name: &'static str, kind: FailureKind) -> impl Fn(&StepId, u32) -> AttemptResult {
    move |step, attempt| if step.as_str() == name { failed(kind) } else { fine(step, attempt) }
}

/// The parameters of the last attempt of a step.
fn with_of(world: &World, name: &str) -> Value {
    let started = world.journal.iter().rev().find_map(|event| match event {
        EventKind::AttemptStarted { step, with, .. } if step.as_str() == name => Some(with.clone()),
        _ => None,
    });
    started.expect("an attempt of the step")["text"].clone()
}

fn decide(world: &mut World, decision: Decision) {
    world.input(Input::Request(Request::Decide { by: person(), decision }));
}

fn starts(world: &World, name: &str) -> usize {
    world.launched.iter().filter(|(step, _)| step.as_str() == name).count()
}

#[test]
fn elements_run_in_order_and_what_follows_reads_the_list_of_their_outputs() {
    let last = after("last", "each", "{{ steps.each | map(attribute='n') | list + [steps.each[1].n] }}");
    let mut world = World::new(plan(vec![each("each", items(3), 1), last]), fine);
    assert_eq!(world.order(), ["each[0]"], "one at a time");
    assert_eq!(world.run(), Situation::Finished(RunOutcome::Succeeded));
    assert_eq!(world.order(), ["each[0]", "each[1]", "each[2]", "last"]);
    assert_eq!(with_of(&world, "each[2]"), "2 item 2");
    assert_eq!(with_of(&world, "last"), json!([0, 1, 2, 1]));
}

#[test]
fn an_empty_list_succeeds_with_an_empty_list() {
    let last = after("last", "each", "{{ steps.each | length }}");
    let mut world = World::new(plan(vec![each("each", json!([]), 1), last]), fine);
    assert_eq!(world.run(), Situation::Finished(RunOutcome::Succeeded));
    assert_eq!((world.order(), with_of(&world, "last")), (vec!["last"], json!(0)));
}

#[test]
fn the_list_comes_from_an_earlier_step_and_is_evaluated_once() {
    let list = step("list", &[]);
    let each = PlannedStep {
        needs: after("x", "list", "").needs,
        with: json!({ "text": "{{ item.t }}" }),
        ..each("each", json!("{{ steps.list.rows }}"), 1)
    };
    let mut world = World::new(plan(vec![list, each]), |step, attempt| match step.as_str() {
        "list" => succeeded(json!({ "rows": [{"t": "a"}, {"t": "b"}] })),
        _ => fine(step, attempt),
    });
    assert_eq!(world.run(), Situation::Finished(RunOutcome::Succeeded));
    let chosen = world.journal.iter().filter(|event| matches!(event, EventKind::ElementsChosen { .. }));
    assert_eq!(chosen.count(), 1);
    assert_eq!(with_of(&world, "each[1]"), "b");
}

#[test]
fn what_is_no_list_or_too_long_fails_before_anything_runs() {
    for (list, code) in [(json!("{{ 3 }}"), "LB0332"), (json!("{{ range(10001) | list }}"), "LB0333")] {
        let mut world = World::new(plan(vec![each("each", list, 1)]), fine);
        assert_eq!(world.run(), Situation::Finished(RunOutcome::Failed));
        assert!(world.launched.is_empty());
        let told = world
            .journal
            .iter()
            .any(|event| serde_json::to_string(event).is_ok_and(|text| text.contains(code)));
        assert!(told, "{code}");
    }
    let held = PlannedStep { on_error: OnError::Hold, ..each("each", json!("{{ 3 }}"), 1) };
    let mut world = World::new(plan(vec![held]), fine);
    assert_eq!(world.run(), Situation::Held);
    decide(&mut world, Decision::RetryStep { step: id("each") });
    assert_eq!(world.run(), Situation::Held, "it is evaluated again, and is still no list");
}

#[test]
fn at_most_so_many_run_at_once() {
    let mut world = World::new(plan(vec![each("each", items(7), 3)]), fine);
    assert_eq!(world.order(), ["each[0]", "each[1]", "each[2]"]);
    world.end_one(1);
    assert_eq!(world.order().last(), Some(&"each[3]"));
    assert_eq!(world.running(), 3);
    assert_eq!(world.run(), Situation::Finished(RunOutcome::Succeeded));
    assert_eq!(world.launched.len(), 7);
}

#[test]
fn a_waiting_retry_holds_no_place_among_several_and_keeps_the_order_of_one() {
    let script = |step: &StepId, attempt: u32| match (step.as_str(), attempt) {
        ("each[0]", 1) => failed(FailureKind::Transient),
        _ => fine(step, attempt),
    };
    let retry = Retry { attempts: 2, ..Retry::default() };
    let of = |parallel| PlannedStep { retry: retry.clone(), ..each("each", items(3), parallel) };
    let mut world = World::new(plan(vec![of(2)]), script);
    assert_eq!(world.run(), Situation::Finished(RunOutcome::Succeeded));
    assert_eq!(world.order(), ["each[0]", "each[1]", "each[2]", "each[0]"]);
    let mut world = World::new(plan(vec![of(1)]), script);
    assert_eq!(world.run(), Situation::Finished(RunOutcome::Succeeded));
    assert_eq!(world.order(), ["each[0]", "each[0]", "each[1]", "each[2]"]);
}

#[test]
fn after_a_failure_nothing_new_starts_and_what_runs_finishes() {
    let script = fails("each[1]", FailureKind::Permanent);
    let mut world = World::new(plan(vec![each("each", items(6), 3), always("tell", &[])]), script);
    world.end_one(1);
    assert_eq!(world.order(), ["each[0]", "each[1]", "each[2]"]);
    assert_eq!(world.ended, [], "nothing is told to end");
    assert_eq!(world.run(), Situation::Finished(RunOutcome::Failed));
    assert_eq!(world.order(), ["each[0]", "each[1]", "each[2]", "tell"]);
    assert_eq!(
        (world.outcome_of("each[2]"), world.outcome_of("each")),
        ("succeeded".into(), "failed".into())
    );
    assert_eq!(world.outcome_of("each[3]"), "open");
}

#[test]
fn a_failure_may_be_tolerated_or_handled() {
    let tolerated = PlannedStep { on_error: OnError::Continue, ..each("each", items(3), 1) };
    let mut world =
        World::new(plan(vec![tolerated, step("b", &["each"])]), fails("each[1]", FailureKind::Permanent));
    assert_eq!(world.run(), Situation::Finished(RunOutcome::Succeeded));
    assert_eq!(world.order(), ["each[0]", "each[1]", "b"]);

    let mend =
        PlannedStep { needs: vec![Need { step: id("each"), on: NeedOn::Failure }], ..step("mend", &[]) };
    let mut world =
        World::new(plan(vec![each("each", items(3), 1), mend]), fails("each[1]", FailureKind::Permanent));
    assert_eq!(world.run(), Situation::Finished(RunOutcome::Succeeded));
    assert_eq!(world.order(), ["each[0]", "each[1]", "mend"]);
}

fn holding(count: usize, parallel: usize) -> Plan {
    plan(vec![
        PlannedStep { on_error: OnError::Hold, ..each("each", items(count), parallel) },
        step("b", &["each"]),
    ])
}

#[test]
fn a_held_element_is_decided_about_by_its_own_name() {
    let script = |step: &StepId, attempt: u32| match (step.as_str(), attempt) {
        ("each[1]", 1) => failed(FailureKind::Permanent),
        _ => fine(step, attempt),
    };
    let mut world = World::new(holding(4, 1), script);
    assert_eq!(world.run(), Situation::Held);
    assert_eq!(world.order(), ["each[0]", "each[1]"]);
    decide(&mut world, Decision::RetryStep { step: id("each") });
    assert_eq!(world.refused, ["`each` is not held, but its element `each[1]` is: name 'each[1]'"]);
    decide(&mut world, Decision::RetryStep { step: id("each[3]") });
    assert_eq!(
        world.refused.last().unwrap(),
        "`each[3]` is not held and cannot be retried: it has not started"
    );
    decide(&mut world, Decision::RetryStep { step: id("each[9]") });
    assert_eq!(world.refused.last().unwrap(), "`each` has 4 elements, and no `each[9]`");
    decide(&mut world, Decision::RetryStep { step: id("each[1]") });
    assert_eq!(world.run(), Situation::Finished(RunOutcome::Succeeded));
    assert_eq!(world.order(), ["each[0]", "each[1]", "each[1]", "each[2]", "each[3]", "b"]);
}

#[test]
fn an_element_that_is_skipped_or_marked_done_has_no_outputs() {
    let mut world = World::new(holding(3, 1), fails("each[1]", FailureKind::Permanent));
    world.run();
    decide(&mut world, Decision::SkipStep { step: id("each[1]"), reason: "gone".into() });
    assert_eq!(world.run(), Situation::Finished(RunOutcome::Succeeded));
    assert_eq!(
        (world.outcome_of("each[1]"), world.outcome_of("each")),
        ("skipped".into(), "succeeded".into())
    );

    let reads = after("last", "each", "{{ steps.each }}");
    let held = PlannedStep { on_error: OnError::Hold, ..each("each", items(2), 1) };
    let mut world = World::new(plan(vec![held, reads]), fails("each[0]", FailureKind::Permanent));
    world.run();
    decide(&mut world, Decision::MarkDone { step: id("each[0]"), reason: "by hand".into() });
    assert_eq!(world.run(), Situation::Finished(RunOutcome::Succeeded));
    assert_eq!(with_of(&world, "last"), json!([null, { "n": 1 }]));
}

#[test]
fn the_condition_is_of_the_whole_step() {
    let skipped = PlannedStep {
        conditions: vec![Condition { expression: "1 > 2".into(), of: id("each"), scope: None }],
        ..each("each", items(3), 1)
    };
    let mut world = World::new(plan(vec![skipped, step("b", &["each"])]), fine);
    assert_eq!(world.run(), Situation::Finished(RunOutcome::Succeeded));
    assert_eq!((world.order(), world.outcome_of("each")), (vec!["b"], "skipped".into()));
}

#[test]
fn what_an_element_expects_reads_its_item() {
    let picky = PlannedStep {
        expect: vec!["output.n == index and item != 'item 1'".into()],
        ..each("each", items(3), 1)
    };
    let mut world = World::new(plan(vec![picky]), fine);
    assert_eq!(world.run(), Situation::Finished(RunOutcome::Failed));
    assert_eq!(world.order(), ["each[0]", "each[1]"]);
}

#[test]
fn abort_ends_the_running_elements_and_closes_the_others() {
    let mut world =
        World::new(plan(vec![each("each", items(5), 2), always("tell", &[])]), |step, attempt| {
            if step.element() == Some(0) { AttemptResult::Interrupted } else { fine(step, attempt) }
        });
    decide(&mut world, Decision::Abort { reason: "wrong list".into() });
    assert_eq!(world.ended, [id("each[0]"), id("each[1]")]);
    assert_eq!(world.run(), Situation::Finished(RunOutcome::Aborted));
    assert_eq!(world.order(), ["each[0]", "each[1]", "tell"]);
    assert_eq!(world.outcome_of("each"), "failed");

    let mut world = World::new(holding(4, 3), fails("each[1]", FailureKind::Permanent));
    world.run();
    decide(&mut world, Decision::Abort { reason: "enough".into() });
    assert_eq!(world.run(), Situation::Finished(RunOutcome::Aborted));
    assert_eq!((world.outcome_of("each[1]"), world.outcome_of("each")), ("failed".into(), "failed".into()));
}

#[test]
fn an_element_that_must_not_repeat_waits_for_a_person_after_a_crash() {
    let once = || plan(vec![PlannedStep { effect: Effect::Once, ..each("each", items(3), 1) }]);
    let mut world = World::new(once(), fine);
    world.end_one(0);
    assert_eq!(world.order(), ["each[0]", "each[1]"]);
    let mut resumed = World::resume(once(), world.journal, fine);
    assert_eq!(resumed.run(), Situation::Held);
    assert!(resumed.launched.is_empty());
    decide(&mut resumed, Decision::RetryStep { step: id("each[1]") });
    assert_eq!(resumed.run(), Situation::Finished(RunOutcome::Succeeded));
    assert_eq!(resumed.launched, [(id("each[1]"), 2), (id("each[2]"), 1)]);
}

#[test]
fn a_signal_leaves_the_elements_open_and_resume_goes_on_with_them() {
    let steps = || plan(vec![each("each", items(4), 2)]);
    let mut world = World::new(steps(), |_, _| AttemptResult::Interrupted);
    world.input(Input::Stop);
    assert_eq!(world.run(), Situation::Stopped);
    let mut resumed = World::resume(steps(), world.journal, fine);
    assert_eq!(resumed.run(), Situation::Finished(RunOutcome::Succeeded));
    assert_eq!(resumed.launched.len(), 4);
}

#[test]
fn ten_thousand_elements_are_no_burden() {
    let begun = cpu_time();
    let plan = Plan {
        inputs: json!({ "list": (0..10_000).map(|at| json!({ "n": at })).collect::<Vec<_>>(), "other": "x" })
            .as_object()
            .unwrap()
            .clone(),
        ..plan(vec![
            PlannedStep {
                with: json!({ "text": "{{ item.n }} {{ inputs.other }}" }),
                ..each("each", json!("{{ inputs.list }}"), 8)
            },
            after("last", "each", "{{ steps.each | length }}"),
        ])
    };
    let mut world = World::new(plan.clone(), fine);
    assert_eq!(world.run(), Situation::Finished(RunOutcome::Succeeded));
    assert_eq!(with_of(&world, "last"), 10_000);
    let middle = world.journal.len() / 2;
    let mut resumed = World::resume(plan, world.journal[..middle].to_vec(), fine);
    assert_eq!(resumed.run(), Situation::Finished(RunOutcome::Succeeded));
    let took = cpu_time() - begun;
    assert!(took.as_secs() < 60, "{took:?}");
}

/// What every element of a step does, attempt by attempt; after the last one it succeeds.
#[derive(Clone, Debug)]
struct Script(Vec<Vec<bool>>);

impl Script {
    fn result(&self, step: &StepId, attempt: u32) -> AttemptResult {
        let own = step.element().and_then(|element| self.0.get(element));
        match own.and_then(|own| own.get(attempt as usize - 1)) {
            Some(false) => failed(FailureKind::Transient),
            _ => fine(step, attempt),
        }
    }

    /// How many attempts an element needs.
    fn needs(&self, element: usize) -> usize {
        self.0[element].iter().position(|fine| *fine).unwrap_or(self.0[element].len()) + 1
    }
}

const ATTEMPTS: u32 = 2;

fn scripts() -> impl Strategy<Value = Script> {
    let attempts = prop::collection::vec(prop::bool::weighted(0.8), 0..3);
    prop::collection::vec(attempts, 0..9).prop_map(Script)
}

fn scripted(script: &Script, parallel: usize, on_error: OnError) -> Plan {
    let retry = Retry { attempts: ATTEMPTS, ..Retry::default() };
    let each = PlannedStep { retry, on_error, ..each("each", items(script.0.len()), parallel) };
    plan(vec![each, step("b", &["each"])])
}

fn run_in_order_of(world: &mut World, picks: &[usize]) -> Situation {
    let mut picks = picks.iter().cycle();
    loop {
        let pick = picks.next().copied().unwrap_or(0);
        if !world.end_one(pick) && !world.turn() {
            return world.dispatcher.situation();
        }
    }
}

proptest! {
    /// The engine does what the simplest model says: elements begin in order, never more than allowed at once, none
    /// begins after one has failed for good, and each has exactly the attempts that it needs or may have.
    #[test]
    fn elements_follow_the_model(
        script in scripts(),
        parallel in 1_usize..4,
        picks in prop::collection::vec(0_usize..4, 1..20),
    ) {
        let shared = script.clone();
        let mut world = World::new(scripted(&script, parallel, OnError::Abort), move |step, attempt| shared.result(step, attempt));
        let mut next_picks = picks.iter().cycle();
        let mut failed_for_good = false;
        let mut begun = 0;
        loop {
            let of_loop = world.running();
            prop_assert!(of_loop <= parallel.max(1), "{of_loop} run at once");
            let firsts: Vec<_> = world.launched.iter().filter(|(step, attempt)| step.element().is_some() && *attempt == 1).collect();
            prop_assert!(firsts.iter().enumerate().all(|(at, (step, _))| step.element() == Some(at)), "out of order");
            prop_assert!(!failed_for_good || firsts.len() == begun, "a new element after a failure");
            begun = firsts.len();
            failed_for_good = (0..script.0.len()).any(|at| world.dispatcher.state().unit(&id(&format!("each[{at}]")))
                .is_some_and(|unit| matches!(world.dispatcher.state().of(unit).outcome(), Some(outcome) if !outcome.is_success())));
            let pick = next_picks.next().copied().unwrap_or(0);
            if !world.end_one(pick) && !world.turn() {
                break;
            }
        }
        let good = (0..script.0.len()).all(|at| script.needs(at) <= ATTEMPTS as usize);
        let expected = if good { RunOutcome::Succeeded } else { RunOutcome::Failed };
        prop_assert_eq!(world.dispatcher.situation(), Situation::Finished(expected));
        for at in 0..script.0.len() {
            let starts = starts(&world, &format!("each[{at}]"));
            let full = script.needs(at).min(ATTEMPTS as usize);
            prop_assert!(starts == full || (!good && starts == 0), "each[{at}] had {starts} attempts, not {full}");
        }
    }

    /// A run that a crash cuts off anywhere comes to the same end, and no element that had succeeded runs again. A
    /// person who retries every held element repeats only those that did not succeed.
    #[test]
    fn every_prefix_recovers_and_a_retry_repeats_only_what_failed(
        script in scripts(),
        parallel in 1_usize..4,
        picks in prop::collection::vec(0_usize..4, 1..20),
    ) {
        let world_of = |journal: Option<Vec<EventKind>>| {
            let (shared, plan) = (script.clone(), scripted(&script, parallel, OnError::Hold));
            let script = move |step: &StepId, attempt: u32| shared.result(step, attempt);
            match journal {
                Some(journal) => World::resume(plan, journal, script),
                None => World::new(plan, script),
            }
        };
        let finish = |world: &mut World| -> Result<(), TestCaseError> {
            for _ in 0..100 {
                if run_in_order_of(world, &picks) != Situation::Held {
                    break;
                }
                let held: Vec<_> = (0..script.0.len()).map(|at| id(&format!("each[{at}]"))).collect();
                for step in held {
                    let unit = world.dispatcher.state().unit(&step);
                    let is_held = unit.is_some_and(|unit| world.dispatcher.state().of(unit).phase == lifeboat_engine::run::StepPhase::Held);
                    if is_held {
                        decide(world, Decision::RetryStep { step });
                    }
                }
            }
            prop_assert_eq!(world.dispatcher.situation(), Situation::Finished(RunOutcome::Succeeded));
            Ok(())
        };
        let mut whole = world_of(None);
        finish(&mut whole)?;
        for cut in 1..whole.journal.len() {
            let prefix = whole.journal[..cut].to_vec();
            let done: BTreeSet<StepId> = prefix.iter().filter_map(|event| match event {
                EventKind::AttemptFinished { step, result: AttemptResult::Succeeded { .. }, .. } => Some(step.clone()),
                _ => None,
            }).collect();
            let mut resumed = world_of(Some(prefix));
            finish(&mut resumed)?;
            let again: Vec<_> = resumed.launched.iter().filter(|(step, _)| done.contains(step)).collect();
            prop_assert!(again.is_empty(), "cut at {}: ran again: {:?}", cut, again);
            let ends = |world: &World| -> BTreeMap<String, usize> {
                let mut ends = BTreeMap::new();
                for event in &world.journal {
                    if let EventKind::StepFinished { step, .. } = event {
                        *ends.entry(step.to_string()).or_default() += 1;
                    }
                }
                ends
            };
            prop_assert_eq!(ends(&resumed), ends(&whole), "cut at {}", cut);
        }
    }
}
