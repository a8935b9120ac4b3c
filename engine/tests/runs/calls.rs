//! Steps of runbooks that other runbooks call.

use crate::plans::{always, failed, id, person, plan, step, succeeded};
use crate::world::World;
use lifeboat_engine::expr::InputDecl;
use lifeboat_engine::model::event::{AttemptResult, Decision, EventKind};
use lifeboat_engine::model::{FailureKind, Request, RunOutcome, StepId};
use lifeboat_engine::plan::{Condition, Need, NeedOn, OnError, Plan, PlannedStep, Scope};
use lifeboat_engine::run::{Input, Situation};
use lifeboat_engine::value::Type;
use serde_json::{Map, Value, json};

fn fine(_: &StepId, _: u32) -> AttemptResult {
    succeeded(json!({}))
}

fn fails(name: &'static str) -> impl Fn(&StepId, u32) -> AttemptResult {
    move |step, _| {
        if step.as_str() == name { failed(FailureKind::Permanent) } else { succeeded(json!({})) }
    }
}

fn scope(name: &str) -> Scope {
    Scope {
        id: id(name),
        parent: None,
        runbook: "child".to_owned(),
        always: false,
        needs: Vec::new(),
        inputs: Vec::new(),
        with: Map::new(),
        outputs: Map::new(),
    }
}

fn inner(name: &str, needs: &[&str]) -> PlannedStep {
    PlannedStep { scope: Some(0), ..step(name, needs) }
}

/// The only step of `always` in the called runbook.
fn tidy(ends: &[&str]) -> PlannedStep {
    let needs = ends.iter().map(|end| Need { step: id(end), on: NeedOn::Any }).collect();
    PlannedStep { scope: Some(0), concludes: Some(0), needs, ..always("call/tidy", &[]) }
}

/// `first`, a call of two steps with an `always`, `after` and an `always` of the run.
fn calling() -> Plan {
    let steps = vec![
        step("first", &[]),
        inner("call/a", &["first"]),
        inner("call/b", &["call/a"]),
        tidy(&["call/b"]),
        step("after", &["call/b", "call/tidy"]),
        always("last", &[]),
    ];
    Plan { scopes: vec![scope("call")], ..plan(steps) }
}

#[test]
fn always_of_a_called_runbook_runs_before_what_follows_the_call() {
    let mut world = World::new(calling(), fine);
    assert_eq!(world.run(), Situation::Finished(RunOutcome::Succeeded));
    assert_eq!(world.order(), ["first", "call/a", "call/b", "call/tidy", "after", "last"]);
}

#[test]
fn always_of_a_called_runbook_runs_when_a_step_of_it_ends_the_run() {
    let mut world = World::new(calling(), fails("call/a"));
    assert_eq!(world.run(), Situation::Finished(RunOutcome::Failed));
    assert_eq!(world.order(), ["first", "call/a", "call/tidy", "last"]);
    assert_eq!(world.outcome_of("after"), "not_run");
}

#[test]
fn always_of_a_called_runbook_is_skipped_if_nothing_of_it_began() {
    let mut world = World::new(calling(), fails("first"));
    assert_eq!(world.run(), Situation::Finished(RunOutcome::Failed));
    assert_eq!(world.order(), ["first", "last"]);
    assert_eq!(world.outcome_of("call/tidy"), "skipped");
}

#[test]
fn always_of_a_called_runbook_is_not_ended_with_the_run() {
    // `other`, `slow` and `call/tidy` run side by side, and the failure of `other` ends the run.
    let mut plan = calling();
    plan.steps.splice(3..3, [step("other", &["call/b"]), step("slow", &["call/b"])]);
    let mut world = World::new(plan, fails("other"));
    assert_eq!(world.run(), Situation::Finished(RunOutcome::Failed));
    assert_eq!(world.order()[3..], ["other", "slow", "call/tidy", "last"]);
    assert_eq!(world.ended, [id("slow")]);
    assert_eq!(world.outcome_of("call/tidy"), "succeeded");
}

/// Wherever the process dies, the called runbook is concluded once, before the end of the run.
#[test]
fn every_prefix_of_a_journal_concludes_what_was_called() {
    for (broken, outcome) in
        [("nothing", RunOutcome::Succeeded), ("call/a", RunOutcome::Failed), ("after", RunOutcome::Failed)]
    {
        let mut whole = World::new(calling(), fails(broken));
        assert_eq!(whole.run(), Situation::Finished(outcome));
        for cut in 1..whole.journal.len() {
            let prefix = whole.journal[..cut].to_vec();
            let mut resumed = World::resume(calling(), prefix, fails(broken));
            assert_eq!(resumed.run(), Situation::Finished(outcome), "{broken}, cut at {cut}");
            assert_eq!(resumed.outcome_of("call/tidy"), "succeeded", "{broken}, cut at {cut}");
            let finished = |event: &&EventKind| matches!(event, EventKind::StepFinished { step, .. } if step.as_str() == "call/tidy");
            assert_eq!(resumed.journal.iter().filter(finished).count(), 1);
        }
    }
}

#[test]
fn a_run_that_is_aborted_inside_a_called_runbook_concludes_it() {
    let mut plan = calling();
    plan.steps[2].on_error = OnError::Hold;
    let mut world = World::new(plan, fails("call/b"));
    assert_eq!(world.run(), Situation::Held);
    assert_eq!(world.order(), ["first", "call/a", "call/b"]);
    let decision = Decision::Abort { reason: "enough".to_owned() };
    world.input(Input::Request(Request::Decide { by: person(), decision }));
    assert_eq!(world.run(), Situation::Finished(RunOutcome::Aborted));
    assert_eq!(world.order()[3..], ["call/tidy", "last"]);
}

#[test]
fn nothing_of_a_call_runs_that_handles_a_failure_which_did_not_happen() {
    let on_failure = |of: &str| vec![Need { step: id(of), on: NeedOn::Failure }];
    // `call` handles the failure of `a`; inside it, `call/mend` handles the failure of `call/x`.
    let calling = || {
        let first = PlannedStep { needs: on_failure("a"), ..inner("call/x", &[]) };
        let mend = PlannedStep { needs: on_failure("call/x"), ..inner("call/mend", &[]) };
        let steps =
            vec![step("a", &[]), first, mend, inner("call/after", &["call/mend"]), tidy(&["call/after"])];
        Plan { scopes: vec![Scope { needs: on_failure("a"), ..scope("call") }], ..plan(steps) }
    };
    let mut world = World::new(calling(), fine);
    assert_eq!(world.run(), Situation::Finished(RunOutcome::Succeeded));
    assert_eq!(world.order(), ["a"]);
    let mut world = World::new(calling(), fails("a"));
    assert_eq!(world.run(), Situation::Finished(RunOutcome::Succeeded));
    assert_eq!(world.order(), ["a", "call/x", "call/after", "call/tidy"], "nothing was to be mended");
    let mut world = World::new(calling(), |step, _| match step.as_str() {
        "a" | "call/x" => failed(FailureKind::Permanent),
        _ => succeeded(json!({})),
    });
    assert_eq!(world.run(), Situation::Finished(RunOutcome::Succeeded));
    assert_eq!(world.order(), ["a", "call/x", "call/mend", "call/after", "call/tidy"]);
}

fn number(name: &str, default: Option<Value>) -> InputDecl {
    InputDecl { name: name.to_owned(), ty: Type::Integer, pattern: None, default, description: String::new() }
}

#[test]
fn names_mean_what_they_mean_in_the_scope_they_stand_in() {
    let condition = |expression: &str, of: &str, scope| Condition {
        expression: expression.to_owned(),
        of: id(of),
        scope,
    };
    // The step `a` exists inside and outside; inside, `inputs.n` comes from the one outside.
    let conditions = vec![
        condition("steps.a.n == 3 and inputs.x == 'outer'", "call", None),
        condition("inputs.n == 4 and inputs.m == 5 and steps.a.n == 30", "call/b", Some(0)),
    ];
    let b = PlannedStep { conditions, ..inner("call/b", &["call/a"]) };
    let reader = PlannedStep {
        conditions: vec![condition("steps.call.sum == 34 and steps.a.n == 3", "reader", None)],
        ..step("reader", &["call/b"])
    };
    let lost = PlannedStep {
        conditions: vec![condition("steps.call.lost is defined", "lost", None)],
        ..step("lost", &["call/b"])
    };
    let called = Scope {
        inputs: vec![number("n", None), number("m", Some(json!("{{ inputs.n + 1 }}")))],
        with: Map::from_iter([("n".to_owned(), json!("{{ steps.a.n + 1 }}"))]),
        outputs: Map::from_iter([
            ("sum".to_owned(), json!("{{ inputs.n + steps.a.n }}")),
            ("lost".to_owned(), json!("{{ steps.nothing.x }}")),
        ]),
        ..scope("call")
    };
    let steps = vec![step("a", &[]), inner("call/a", &["a"]), b, reader, lost];
    let inputs = Map::from_iter([("x".to_owned(), json!("outer"))]);
    let plan = Plan { scopes: vec![called], inputs, ..plan(steps) };
    let mut world = World::new(plan, |step, _| match step.as_str() {
        "a" => succeeded(json!({ "n": 3 })),
        "call/a" => succeeded(json!({ "n": 30 })),
        _ => succeeded(json!({})),
    });
    assert_eq!(world.run(), Situation::Finished(RunOutcome::Succeeded));
    assert_eq!(world.order(), ["a", "call/a", "call/b", "reader"]);
    assert_eq!(world.outcome_of("lost"), "skipped");
}

#[test]
fn outputs_of_a_call_that_never_began_do_not_exist() {
    let never = |name: &str| PlannedStep {
        conditions: vec![Condition { expression: "false".into(), of: id("call"), scope: None }],
        ..inner(name, &[])
    };
    let called = Scope { outputs: Map::from_iter([("constant".to_owned(), json!(1))]), ..scope("call") };
    let reader = PlannedStep {
        conditions: vec![Condition {
            expression: "steps.call.constant | default(0) == 0".into(),
            of: id("reader"),
            scope: None,
        }],
        ..step("reader", &["call/a"])
    };
    let plan = Plan { scopes: vec![called], ..plan(vec![never("call/a"), reader]) };
    let mut world = World::new(plan, fine);
    world.run();
    assert_eq!(world.order(), ["reader"]);
}
