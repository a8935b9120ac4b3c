use async_trait::async_trait;
use jiff::Timestamp;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use proptest::prelude::*;
use serde_json::json;

use super::forecast::{Known, forecast};
use super::model::Basis;
use super::*;
use crate::drawing::{Glyphs, Paper};
use crate::model::event::{Done, Event, EventKind};
use crate::model::{Mode, Outcome, StepId};
use crate::plan::{MilestoneAt, Plan};
use crate::report::tests::fixture::{INCIDENT, add, group, id, milestone, needs, plan, span};
use crate::run::{Fate, StepPreview};
use crate::step::{
    Effect, Finding, FindingState, KindSpec, Preview, Registry, StepContext, StepError, StepKind,
};

struct Approval;

#[async_trait]
impl StepKind for Approval {
    fn spec(&self) -> KindSpec {
        KindSpec { waits_for_people: true, ..KindSpec::new("approval", "Asks.", Effect::Read) }
    }

    async fn run(&self, _: &StepContext) -> Result<Done, StepError> {
        Ok(Done::default())
    }
}

fn registry() -> Registry {
    let mut registry = Registry::new();
    registry.register(Approval);
    registry
}

/// A run in which each step took so many seconds, one after the other.
fn ran(seconds: &[(&str, i64)]) -> Vec<Event> {
    let mut at_ms = INCIDENT;
    let mut events = Vec::new();
    for (step, took) in seconds {
        let started = EventKind::AttemptStarted { step: id(step), attempt: 1, with: json!({}) };
        events.push(Event { seq: 1, at_ms, kind: started });
        at_ms += took * 1000;
        let finished = EventKind::StepFinished { step: id(step), outcome: Outcome::Succeeded };
        events.push(Event { seq: 2, at_ms, kind: finished });
    }
    events
}

fn history(runs: &[&[(&str, i64)]]) -> History {
    let mut history = History::default();
    runs.iter().for_each(|run| history.add(&ran(run)));
    history
}

fn made(plan: &Plan, history: &History, fates: &[Fate], used_ms: i64) -> Forecast {
    forecast(&Known { plan, registry: &registry(), history, fates, used_ms }).forecast
}

fn runs(plan: &Plan) -> Vec<Fate> {
    plan.steps.iter().map(|_| Fate::Runs).collect()
}

/// Choose, then base and recover beside uploads, then a person, then open.
fn restore() -> Plan {
    let mut plan = plan(Mode::Drill);
    plan.objective.rto = Some(span("10m"));
    plan.milestones.insert("open_again".into(), span("8m"));
    add(&mut plan, "choose", "postgres.select_backup", "Choose the backup");
    let mut database = group("database", "5m");
    database.parallel = false;
    plan.groups.push(database);
    for name in ["base", "recover"] {
        let step = add(&mut plan, name, "postgres.restore", "Restore");
        step.group = Some(id("database"));
        step.destroys = vec![format!("`db`: what {name} replaces")];
    }
    needs(add(&mut plan, "uploads", "files.restore", "Restore the uploads"), &["choose"]);
    let go = add(&mut plan, "go", "approval", "A person says go");
    needs(go, &["recover", "uploads"]);
    go.with = json!({ "role": "lead", "message": "Go?" });
    let open = add(&mut plan, "open", "service.start", "Open");
    open.recovered = true;
    open.milestone = milestone("open_again", MilestoneAt::Succeeded);
    add(&mut plan, "tell", "notify", "Tell everybody").always = true;
    plan.steps.last_mut().unwrap().needs.clear();
    plan
}

const LAST: &[(&str, i64)] =
    &[("choose", 2), ("base", 100), ("recover", 60), ("uploads", 30), ("go", 20), ("open", 8)];

#[test]
fn the_median_of_earlier_runs_is_expected_and_the_critical_path_adds_up() {
    let slow: &[(&str, i64)] = &[("choose", 4), ("base", 300), ("open", 8)];
    let history = history(&[LAST, LAST, slow]);
    assert_eq!(history.of(&id("base")), Some(Took { median_ms: 100_000, runs: 3 }));
    assert_eq!(history.of(&id("recover")), Some(Took { median_ms: 60_000, runs: 2 }));
    assert_eq!(history.of(&id("tell")), None);
    let plan = restore();
    let forecast = made(&plan, &history, &runs(&plan), 0);
    assert_eq!(forecast.expected_ms, 190_000);
    assert_eq!(forecast.can_meet, CanMeet::Yes, "{}", forecast.why);
    let path: Vec<_> = forecast.critical_path.iter().map(|part| part.step.as_str()).collect();
    assert_eq!(path, ["choose", "base", "recover", "go", "open"]);
    assert_eq!(forecast.milestones[0].at_ms, Some(190_000));
    assert_eq!(forecast.milestones[0].can_meet, CanMeet::Yes);
}

#[test]
fn the_time_since_the_incident_counts() {
    let plan = restore();
    let late = made(&plan, &history(&[LAST]), &runs(&plan), 420_000);
    assert_eq!(late.can_meet, CanMeet::No);
    assert_eq!(
        late.why,
        "10m 10s (7m since the incident already) are expected, 10 s more than the RTO of 10m"
    );
    assert_eq!(late.milestones[0].can_meet, CanMeet::No);
}

#[test]
fn without_history_budgets_count_and_the_rest_is_unknown() {
    let mut plan = restore();
    plan.steps[0].budget = Some(span("1m"));
    let forecast = made(&plan, &History::default(), &runs(&plan), 0);
    assert_eq!(forecast.can_meet, CanMeet::Unknown);
    assert_eq!(forecast.unknown, ["uploads", "open"].map(id));
    // The budget of the group stands for its two steps.
    assert_eq!(forecast.expected_ms, 360_000);
    assert!(forecast.why.contains("`uploads`, `open`"), "{}", forecast.why);
    plan.objective.rto = Some(span("5m"));
    let forecast = made(&plan, &History::default(), &runs(&plan), 0);
    assert_eq!(forecast.can_meet, CanMeet::No, "what is known is too long already: {}", forecast.why);
}

#[test]
fn people_without_history_are_named_and_their_time_is_what_is_left() {
    let plan = restore();
    let quick = history(&[&LAST[..4], &[("open", 8)]]);
    let forecast = made(&plan, &quick, &runs(&plan), 0);
    assert_eq!(forecast.can_meet, CanMeet::Yes);
    assert!(
        forecast.why.ends_with("7m 10s to spare, if people answer within 7m 10s in all"),
        "{}",
        forecast.why
    );
    assert_eq!(forecast.waits.len(), 1);
    assert_eq!(forecast.waits[0].role.as_deref(), Some("lead"));
    assert!(forecast.waits[0].critical && !forecast.waits[0].automatic);
}

#[test]
fn a_skipped_step_takes_no_time_and_a_skipped_mark_is_no_recovery() {
    let plan = restore();
    let mut fates = runs(&plan);
    fates[1] = Fate::Skipped { why: "no".into() };
    assert_eq!(made(&plan, &history(&[LAST]), &fates, 0).expected_ms, 90_000);
    fates[5] = Fate::Skipped { why: "no".into() };
    assert_eq!(made(&plan, &history(&[LAST]), &fates, 0).can_meet, CanMeet::No);
}

#[test]
fn the_worst_case_is_every_attempt_with_all_its_time_and_the_delays_between() {
    let mut plan = restore();
    for step in &mut plan.steps {
        step.timeout = Some(span("1m"));
    }
    plan.steps[1].retry = serde_json::from_value(json!({
        "attempts": 3, "backoff": "exponential", "delay": "10s", "max_delay": null, "jitter": true, "when": null,
    }))
    .unwrap();
    plan.steps[5].timeout = None;
    let worst = made(&plan, &history(&[LAST]), &runs(&plan), 0).worst;
    // choose, base three times with 10 and 20 s between, recover, go; open as expected.
    assert_eq!(worst.ms, 60_000 + 3 * 60_000 + 30_000 + 60_000 + 60_000 + 8_000);
    assert_eq!(worst.without_limit, [id("open")]);
}

#[test]
fn limits_of_groups_make_parallel_steps_wait() {
    let mut plan = plan(Mode::Drill);
    let mut both = group("both", "1m");
    (both.budget, both.max_parallel) = (None, Some(2));
    plan.groups.push(both);
    for name in ["a", "b", "c", "d"] {
        let step = add(&mut plan, name, "run", name);
        step.group = Some(id("both"));
        step.budget = Some(span("1m"));
        step.needs.clear();
    }
    let fates = runs(&plan);
    assert_eq!(made(&plan, &History::default(), &fates, 0).expected_ms, 120_000);
    plan.groups[0].max_parallel = None;
    assert_eq!(made(&plan, &History::default(), &fates, 0).expected_ms, 60_000);
}

/// Returns what this thread has had of the processor, in microseconds: other programs do not count.
fn processor_time() -> i64 {
    let usage = getrusage(UsageWho::RUSAGE_THREAD).unwrap();
    usage.user_time().num_microseconds() + usage.system_time().num_microseconds()
}

#[test]
fn ten_thousand_steps_are_forecast_in_time_linear_in_steps() {
    for wide in [false, true] {
        let mut plan = plan(Mode::Drill);
        let mut all = group("all", "1m");
        (all.budget, all.max_parallel) = (None, Some(3));
        plan.groups.push(all);
        for at in 0..10_000 {
            let before = plan.steps.last().map(|step: &crate::plan::PlannedStep| step.id.clone());
            let step = add(&mut plan, "x", "run", "x");
            step.id = StepId::new(format!("s{at}")).unwrap();
            step.needs.clear();
            step.group = Some(id("all"));
            step.budget = Some(span("1s"));
            if let Some(before) = before.filter(|_| !wide) {
                step.needs.push(crate::plan::Need { step: before, on: crate::plan::NeedOn::Success });
            }
        }
        let begun = processor_time();
        let forecast = made(&plan, &History::default(), &runs(&plan), 0);
        assert_eq!(forecast.expected_ms, if wide { 3_334_000 } else { 10_000_000 });
        let took = processor_time() - begun;
        assert!(took < 5_000_000, "{took} µs");
    }
}

fn outlook(plan: &Plan, findings: bool) -> Outlook {
    let previews: Vec<_> = plan
        .steps
        .iter()
        .map(|step| StepPreview {
            step: step.id.clone(),
            with: step.with.clone(),
            preview: Preview {
                actions: vec![format!(
                    "does {} with a command that is long enough to be broken at the end of a line",
                    step.id
                )],
                destroys: Vec::new(),
            },
            fate: match step.id.as_str() {
                "uploads" => Fate::Skipped { why: "resources.uploads is not defined here".into() },
                "open" => Fate::Depends { conditions: vec!["steps.base.bytes > 0".into()] },
                _ => Fate::Runs,
            },
            problem: None,
        })
        .collect();
    let mut outlook = Outlook::of(Basis {
        plan,
        registry: &registry(),
        previews: &previews,
        history: &history(&[LAST, LAST]),
        incident_at: None,
        now: Timestamp::from_millisecond(INCIDENT).unwrap(),
    });
    if findings {
        outlook.findings = Some(vec![
            Finding::ok("backups", "list", "the store answers and holds 3 backups"),
            Finding::ok("db", "login", "Postgres at 127.0.0.1:5432 refused the login of `postgres`")
                .state(FindingState::Failed)
                .help("correct `password` of the resource"),
        ]);
    }
    outlook.digest = "0123456789abcdef".repeat(4);
    outlook
}

fn text(outlook: &Outlook, plan: &Plan, width: usize) -> String {
    let paper = Paper { width, glyphs: Glyphs::Unicode };
    let lines = lines(outlook, Manner { paper, plan });
    lines.iter().map(|line| line.iter().map(|piece| piece.text.as_str()).collect::<String>() + "\n").collect()
}

#[test]
fn a_plan_as_people_read_it() {
    let plan = restore();
    insta::assert_snapshot!(text(&outlook(&plan, true), &plan, 80));
}

#[test]
fn a_recovery_in_a_protected_environment_is_confirmed() {
    let mut plan = restore();
    (plan.mode, plan.protected, plan.environment) = (Mode::Recovery, true, "production".into());
    let mut outlook = outlook(&plan, false);
    outlook.confirm = Some("production@0123456789ab.1c8d2f3".into());
    insta::assert_snapshot!(text(&outlook, &plan, 100));
}

#[test]
fn the_schema_takes_what_is_printed_and_nothing_else() {
    let plan = restore();
    let validator = jsonschema::validator_for(&schema::plan()).unwrap();
    for findings in [false, true] {
        let mut printed = serde_json::to_value(outlook(&plan, findings)).unwrap();
        let problems: Vec<_> = validator.iter_errors(&printed).map(|error| error.to_string()).collect();
        assert!(problems.is_empty(), "{problems:#?}");
        printed["forecast"]["can_meet"] = json!("maybe");
        assert!(!validator.is_valid(&printed));
    }
}

proptest! {
    #[test]
    fn lines_fit_the_paper_wherever_they_can_be_broken(width in 60..140usize) {
        let plan = restore();
        for line in text(&outlook(&plan, true), &plan, width).lines() {
            prop_assert!(line.chars().count() <= width, "{line}");
        }
    }
}
