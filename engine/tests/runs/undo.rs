//! Taking back what a run has done, decided without a runtime.

use crate::plans::{always, failed, id, person, plan, step, succeeded, with_undo};
use crate::world::World;
use lifeboat_engine::model::event::{Answer, AttemptResult, Decision, EventKind};
use lifeboat_engine::model::{FailureKind, Mode, Request, RunOutcome, StepId};
use lifeboat_engine::plan::{ForEach, Need, NeedOn, OnError, Plan, PlannedStep, Retry};
use lifeboat_engine::run::{Input, Situation};
use lifeboat_engine::step::Effect;
use proptest::prelude::*;
use serde_json::json;

fn fine(_: &StepId, _: u32) -> AttemptResult {
    succeeded(json!({}))
}

fn fails(names: &'static [&'static str]) -> impl Fn(&StepId, u32) -> AttemptResult {
    move |step, _| {
        if names.contains(&step.as_str()) { failed(FailureKind::Permanent) } else { succeeded(json!({})) }
    }
}

fn decide(world: &mut World, decision: Decision) {
    world.input(Input::Request(Request::Decide { by: person(), decision }));
}

fn abort(world: &mut World) {
    decide(world, Decision::Abort { reason: "enough".into() });
}

fn chain() -> Plan {
    let steps =
        vec![step("a", &[]), step("b", &["a"]), step("c", &["b"]), step("d", &["c"]), always("z", &[])];
    with_undo(plan(steps), &["a", "b", "c", "d"])
}

#[test]
fn an_abort_undoes_what_has_begun_newest_first_and_then_always() {
    let mut world = World::new(chain(), fine);
    world.turn();
    world.turn();
    abort(&mut world);
    assert_eq!(world.ended, [id("c")], "the attempt that runs is ended first");
    assert_eq!(world.order(), ["a", "b", "c"], "and nothing is undone before it has ended");
    assert_eq!(world.run(), Situation::Finished(RunOutcome::Aborted));
    assert_eq!(world.order(), ["a", "b", "c", "c/undo", "b/undo", "a/undo", "z"]);
    assert_eq!(world.outcome_of("d/undo"), "open", "what never began has nothing to undo");
}

#[test]
fn a_cancel_undoes_nothing() {
    let mut world = World::new(chain(), fine);
    world.turn();
    decide(&mut world, Decision::Cancel { reason: "enough".into() });
    assert_eq!(world.run(), Situation::Finished(RunOutcome::Aborted));
    assert_eq!(world.order(), ["a", "b", "z"]);
}

#[test]
fn a_run_that_its_policy_ends_is_undone_in_a_recovery_and_in_a_drill() {
    for mode in [Mode::Recovery, Mode::Drill] {
        let mut world = World::new(Plan { mode, ..chain() }, fails(&["b"]));
        assert_eq!(world.run(), Situation::Finished(RunOutcome::Failed));
        assert_eq!(world.order(), ["a", "b", "b/undo", "a/undo", "z"]);
    }
}

#[test]
fn holding_pausing_and_succeeding_undo_nothing() {
    let held = || {
        let b = PlannedStep { on_error: OnError::Hold, ..step("b", &["a"]) };
        with_undo(plan(vec![step("a", &[]), b]), &["a", "b"])
    };
    let mut world = World::new(held(), fails(&["b"]));
    assert_eq!(world.run(), Situation::Held);
    assert_eq!(world.order(), ["a", "b"]);
    abort(&mut world);
    world.run();
    assert_eq!(world.order(), ["a", "b", "b/undo", "a/undo"], "a person ends it");

    let mut world = World::new(held(), fine);
    decide(&mut world, Decision::Pause);
    assert_eq!(world.run(), Situation::Paused);
    assert_eq!(world.order(), ["a"]);
    abort(&mut world);
    assert_eq!(world.run(), Situation::Finished(RunOutcome::Aborted), "a pause does not outlive the end");
    assert_eq!(world.order(), ["a", "a/undo"]);
    let mut world = World::new(held(), fine);
    assert_eq!(world.run(), Situation::Finished(RunOutcome::Succeeded));
    assert_eq!(world.order(), ["a", "b"]);
}

#[test]
fn a_failing_undo_is_recorded_and_the_rest_goes_on() {
    let mut world = World::new(chain(), fails(&["c", "b/undo"]));
    assert_eq!(world.run(), Situation::Finished(RunOutcome::Failed));
    assert_eq!(world.order(), ["a", "b", "c", "c/undo", "b/undo", "a/undo", "z"]);
    assert_eq!(
        (world.outcome_of("b/undo"), world.outcome_of("a/undo")),
        ("failed".into(), "succeeded".into())
    );
}

#[test]
fn an_undo_is_repeated_as_its_own_retry_says_while_the_others_wait() {
    let mut plan = chain();
    plan.undos[1].step.retry = Retry { attempts: 3, ..Retry::default() };
    let script = |step: &StepId, attempt: u32| match step.as_str() {
        "c" => failed(FailureKind::Permanent),
        "b/undo" if attempt < 3 => failed(FailureKind::Transient),
        _ => succeeded(json!({})),
    };
    let mut world = World::new(plan, script);
    world.run();
    assert_eq!(world.order(), ["a", "b", "c", "c/undo", "b/undo", "b/undo", "b/undo", "a/undo", "z"]);
}

#[test]
fn an_undo_never_waits_for_a_decision() {
    let mut plan = chain();
    plan.undos[0].step.effect = Effect::Once;
    plan.undos[0].step.on_error = OnError::Hold;
    let script = |step: &StepId, _: u32| match step.as_str() {
        "b" => failed(FailureKind::Permanent),
        "a/undo" => failed(FailureKind::Uncertain),
        _ => succeeded(json!({})),
    };
    let mut world = World::new(plan, script);
    assert_eq!(world.run(), Situation::Finished(RunOutcome::Failed));
    assert_eq!(world.outcome_of("a/undo"), "failed");
}

#[test]
fn an_undo_whose_texts_cannot_be_evaluated_fails_and_the_rest_goes_on() {
    let mut plan = chain();
    for undo in &mut plan.undos {
        undo.step.with = json!({ "text": "{{ steps.nobody.output }}" });
    }
    let mut world = World::new(plan, fails(&["c"]));
    assert_eq!(world.run(), Situation::Finished(RunOutcome::Failed));
    assert_eq!(world.order(), ["a", "b", "c", "z"]);
    assert_eq!(world.outcome_of("a/undo"), "failed");
}

#[test]
fn a_step_whose_texts_could_not_be_evaluated_has_not_begun() {
    let mut plan = chain();
    plan.steps[1].with = json!({ "text": "{{ steps.nobody.output }}" });
    let mut world = World::new(plan, fine);
    assert_eq!(world.run(), Situation::Finished(RunOutcome::Failed));
    assert_eq!(world.order(), ["a", "a/undo", "z"]);
}

#[test]
fn once_undo_has_begun_nothing_else_can_be_decided() {
    let mut world = World::new(chain(), fails(&["c"]));
    for _ in 0..3 {
        world.turn();
    }
    assert_eq!(world.order().last(), Some(&"c/undo"));
    for decision in [
        Decision::RetryStep { step: id("c") },
        Decision::SkipStep { step: id("c"), reason: "x".into() },
        Decision::MarkDone { step: id("c/undo"), reason: "x".into() },
        Decision::Abort { reason: "x".into() },
        Decision::Cancel { reason: "x".into() },
    ] {
        decide(&mut world, decision);
        let reason = world.refused.pop().expect("a refusal");
        assert!(reason.ends_with("the run is being undone, which goes on to its end"), "{reason}");
    }
    let answer = Answer::new("approve", person());
    world.input(Input::Request(Request::Answer { step: id("c"), question: "q".into(), answer }));
    assert!(world.refused.pop().is_some_and(|reason| reason.contains("it has ended: failed")));
    world.run();
    assert_eq!(world.order(), ["a", "b", "c", "c/undo", "b/undo", "a/undo", "z"]);
}

#[test]
fn a_signal_stops_undo_and_resume_goes_on_with_it() {
    let mut world = World::new(chain(), fails(&["c"]));
    for _ in 0..4 {
        world.turn();
    }
    world.input(Input::Stop);
    let result = AttemptResult::Interrupted;
    world.input(Input::AttemptEnded { step: id("b/undo"), attempt: 1, result });
    assert_eq!(world.dispatcher.situation(), Situation::Stopped);
    let mut resumed = World::resume(chain(), world.journal.clone(), fine);
    assert_eq!(resumed.run(), Situation::Finished(RunOutcome::Failed));
    assert_eq!(resumed.order(), ["b/undo", "a/undo", "z"]);
}

/// `a` and then, together, `b` and `c` in a group; `mend` waits for a failure within it.
fn group_with_handler(on: NeedOn) -> Plan {
    let need = |name: &str| Need { step: id(name), on };
    let mend = PlannedStep { needs: vec![need("b"), need("c")], ..step("mend", &[]) };
    plan(vec![step("a", &[]), step("b", &["a"]), step("c", &["b"]), mend])
}

#[test]
fn a_failure_within_a_group_is_handled_whichever_step_it_was() {
    for broken in [&["b"], &["c"]] {
        let mut world = World::new(group_with_handler(NeedOn::FailureWithin), fails(broken));
        assert_eq!(world.run(), Situation::Finished(RunOutcome::Succeeded), "{broken:?}");
        assert_eq!(world.order().last(), Some(&"mend"));
    }
    let mut world = World::new(group_with_handler(NeedOn::FailureWithin), fine);
    world.run();
    assert_eq!(world.outcome_of("mend"), "skipped");
}

#[test]
fn a_failure_that_lets_the_run_go_on_is_none_of_the_group() {
    let mut plan = group_with_handler(NeedOn::FailureWithin);
    plan.steps[1].on_error = OnError::Continue;
    let mut world = World::new(plan, fails(&["b"]));
    world.run();
    assert_eq!((world.outcome_of("c"), world.outcome_of("mend")), ("succeeded".into(), "skipped".into()));
}

/// What the journal says has begun before the end of the run began, newest first: written as plainly as can be.
fn oracle(plan: &Plan, journal: &[EventKind]) -> Vec<String> {
    let mut begun: Vec<String> = Vec::new();
    for event in journal {
        match event {
            EventKind::EndingBegan { undo, .. } => {
                if !undo {
                    return Vec::new();
                }
                break;
            }
            EventKind::AttemptStarted { step, attempt: 1, .. } => begun.insert(0, step.to_string()),
            _ => {}
        }
    }
    begun.retain(|name| plan.undos.iter().any(|undo| undo.of.as_str() == name));
    begun.into_iter().map(|name| format!("{name}/undo")).collect()
}

#[derive(Clone, Debug)]
struct Case {
    /// For every step, which of the earlier ones it needs, and whether it can be undone.
    steps: Vec<(Vec<bool>, bool)>,
    broken: Vec<u8>,
    abort_after: usize,
    crash_after: Vec<usize>,
}

fn case() -> impl Strategy<Value = Case> {
    let steps = prop::collection::vec((prop::collection::vec(any::<bool>(), 8), any::<bool>()), 1..9);
    (steps, prop::collection::vec(any::<u8>(), 0..4), 0_usize..12, prop::collection::vec(0_usize..20, 0..4))
        .prop_map(|(steps, broken, abort_after, crash_after)| Case {
            steps,
            broken,
            abort_after,
            crash_after,
        })
}

impl Case {
    fn plan(&self) -> Plan {
        let name = |at: usize| format!("s{at}");
        let mut steps: Vec<_> = self
            .steps
            .iter()
            .enumerate()
            .map(|(at, (needs, _))| {
                let needs: Vec<_> = (0..at).filter(|earlier| needs[*earlier]).map(name).collect();
                step(&name(at), &needs.iter().map(String::as_str).collect::<Vec<_>>())
            })
            .collect();
        steps.push(always("z", &[]));
        let undone: Vec<_> = (0..self.steps.len()).filter(|at| self.steps[*at].1).map(name).collect();
        with_undo(plan(steps), &undone.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn script(&self) -> impl Fn(&StepId, u32) -> AttemptResult + Clone + 'static {
        let broken: Vec<_> = self.broken.iter().map(|at| format!("s{}/undo", at % 8)).collect();
        move |step, _| {
            let fails = broken.iter().any(|name| name == step.as_str());
            if fails { failed(FailureKind::Permanent) } else { succeeded(json!({})) }
        }
    }
}

fn finished(journal: &[EventKind]) -> Vec<String> {
    let ended = journal.iter().filter_map(|event| match event {
        EventKind::StepFinished { step, .. } => Some(step.to_string()),
        _ => None,
    });
    ended.collect()
}

proptest! {
    /// However steps depend on each other, whenever a person aborts and however often Lifeboat is killed, what has
    /// begun is undone newest first, after the last main attempt and before `always`, and what was undone is not undone
    /// again.
    #[test]
    fn undo_follows_the_reverse_order_of_beginning(case in case()) {
        let mut world = World::new(case.plan(), case.script());
        let mut launched: Vec<String> = Vec::new();
        let (mut crashes, mut turns) = (case.crash_after.clone(), 0);
        loop {
            if turns == case.abort_after {
                abort(&mut world);
            }
            turns += 1;
            if let Some(at) = crashes.iter().position(|at| *at == turns) {
                crashes.remove(at);
                launched.extend(world.order().into_iter().map(str::to_owned));
                let done = finished(&world.journal);
                world = World::resume(case.plan(), world.journal.clone(), case.script());
                prop_assert!(world.order().iter().all(|name| !done.contains(&(*name).to_owned())));
                continue;
            }
            if !world.turn() {
                break;
            }
        }
        launched.extend(world.order().into_iter().map(str::to_owned));
        prop_assert!(matches!(world.dispatcher.situation(), Situation::Finished(_)));
        // A step that was cut off by a crash runs twice; its place is the first one.
        let mut order = launched.clone();
        let mut seen = std::collections::HashSet::new();
        order.retain(|name| seen.insert(name.clone()));
        let undone: Vec<_> = order.iter().filter(|name| name.ends_with("/undo")).cloned().collect();
        prop_assert_eq!(&undone, &oracle(&case.plan(), &world.journal));
        let first_undo = launched.iter().position(|name| name.ends_with("/undo"));
        let last_undo = launched.iter().rposition(|name| name.ends_with("/undo"));
        let always = launched.iter().position(|name| name == "z");
        if let (Some(first), Some(last)) = (first_undo, last_undo) {
            prop_assert!(launched[first..=last].iter().all(|name| name.ends_with("/undo")));
            prop_assert!(always.is_some_and(|always| always > last));
        }
    }
}

/// Recovery from every prefix of an aborted run's journal ends in the same state, and nothing is undone twice.
#[test]
fn every_prefix_of_an_aborted_run_recovers_to_the_same_end() {
    let mut whole = World::new(chain(), fails(&["c", "b/undo"]));
    assert_eq!(whole.run(), Situation::Finished(RunOutcome::Failed));
    let outcomes = |world: &World| -> Vec<String> {
        world.plan.everything().map(|step| world.outcome_of(step.id.as_str())).collect()
    };
    for cut in 1..whole.journal.len() {
        let prefix = whole.journal[..cut].to_vec();
        let completed = finished(&prefix);
        let mut resumed = World::resume(chain(), prefix, fails(&["c", "b/undo"]));
        assert_eq!(resumed.run(), Situation::Finished(RunOutcome::Failed), "cut at {cut}");
        assert_eq!(outcomes(&resumed), outcomes(&whole), "cut at {cut}");
        let again: Vec<_> =
            resumed.launched.iter().filter(|(step, _)| completed.contains(&step.to_string())).collect();
        assert!(again.is_empty(), "cut at {cut}: ran again: {again:?}");
    }
}

/// A step that runs for three elements, one after the other, and one after it.
fn repeated() -> Plan {
    let each = ForEach { list: json!(["x", "y", "z"]), max_parallel: 1 };
    let each = PlannedStep { for_each: Some(each), ..step("each", &["a"]) };
    let mut plan = with_undo(plan(vec![step("a", &[]), each, step("b", &["each"])]), &["a", "each", "b"]);
    plan.undos[1].step.with = json!({ "text": "{{ item }} {{ index }}" });
    plan
}

#[test]
fn each_element_that_has_begun_is_undone_by_itself() {
    let mut world = World::new(repeated(), fails(&["each[1]"]));
    assert_eq!(world.run(), Situation::Finished(RunOutcome::Failed));
    assert_eq!(world.order(), ["a", "each[0]", "each[1]", "each/undo[1]", "each/undo[0]", "a/undo"]);
    let texts: Vec<_> = world
        .journal
        .iter()
        .filter_map(|event| match event {
            EventKind::AttemptStarted { step, with, .. } if step.as_str().starts_with("each/undo") => {
                Some(with["text"].as_str().unwrap_or_default().to_owned())
            }
            _ => None,
        })
        .collect();
    assert_eq!(texts, ["y 1", "x 0"]);
    let whole = finished(&world.journal);
    for cut in 1..world.journal.len() {
        let prefix = world.journal[..cut].to_vec();
        let mut resumed = World::resume(repeated(), prefix, fails(&["each[1]"]));
        assert_eq!(resumed.run(), Situation::Finished(RunOutcome::Failed), "cut at {cut}");
        let mut again = finished(&resumed.journal);
        let mut expected = whole.clone();
        again.sort();
        expected.sort();
        assert_eq!(again, expected, "cut at {cut}");
    }
}
