//! Groups that are needed as a whole: what a plan says in one edge must do what it would in many.

use std::fmt::Write;

use lifeboat_engine::compile::graph::Graph;
use lifeboat_engine::model::{FailureKind, Mode};
use lifeboat_engine::plan::{Need, NeedOn, OnError, Plan, PlannedGroup, PlannedStep};
use lifeboat_engine::project::{Project, RunRequest};
use proptest::prelude::*;
use serde_json::{Map, json};

use crate::plans::{always, failed, id, plan, registry, step, succeeded};
use crate::world::World;

/// Three groups, one after the other, the middle one within a group of its own; a step that handles a failure, and one
/// of `always` that needs the last group.
#[derive(Clone, Debug)]
struct Case {
    widths: [usize; 3],
    /// Steps that fail, by their position, and whether they let the others go on.
    broken: Vec<(usize, bool)>,
    crash_after: usize,
}

fn case() -> impl Strategy<Value = Case> {
    let broken = proptest::collection::vec((0..12_usize, any::<bool>()), 0..4);
    ([1..4_usize, 1..4, 1..4], broken, 0..12_usize).prop_map(|(widths, broken, crash_after)| Case {
        widths,
        broken,
        crash_after,
    })
}

fn group(name: &str, parent: Option<&str>, ends: Vec<String>) -> PlannedGroup {
    PlannedGroup {
        id: id(name),
        title: name.to_owned(),
        parent: parent.map(id),
        parallel: true,
        max_parallel: None,
        budget: None,
        milestone: None,
        recovered: false,
        ends: ends.iter().map(|end| id(end)).collect(),
    }
}

impl Case {
    fn members(&self, of: usize) -> Vec<String> {
        (0..self.widths[of]).map(|at| format!("g{of}_{at}")).collect()
    }

    /// The plan in which each step needs the group before it, or with `whole: false` each of its steps.
    fn plan(&self, whole: bool) -> Plan {
        let mut steps = Vec::new();
        for of in 0..self.widths.len() {
            for name in self.members(of) {
                let needs = of.checked_sub(1).map(|before| self.needs(before, whole)).unwrap_or_default();
                steps.push(PlannedStep { group: Some(id(&format!("g{of}"))), needs, ..step(&name, &[]) });
            }
        }
        let handler = vec![Need { step: id("g0_0"), on: NeedOn::Failure }];
        steps.push(PlannedStep { needs: handler, ..step("handler", &[]) });
        steps.push(PlannedStep { needs: self.needs(2, whole), ..always("last", &[]) });
        for (at, goes_on) in &self.broken {
            let at = *at % steps.len();
            steps[at].on_error = if *goes_on { OnError::Continue } else { OnError::Abort };
        }
        let ends = |of: usize| if whole { self.members(of) } else { Vec::new() };
        let groups = vec![
            group("g0", None, ends(0)),
            group("around", None, Vec::new()),
            group("g1", Some("around"), ends(1)),
            group("g2", None, ends(2)),
        ];
        Plan { groups, ..plan(steps) }
    }

    fn needs(&self, group: usize, whole: bool) -> Vec<Need> {
        let names = if whole { vec![format!("g{group}")] } else { self.members(group) };
        names.iter().map(|name| Need { step: id(name), on: NeedOn::Success }).collect()
    }

    /// What the run writes down, with a crash on the way.
    fn journal(&self, whole: bool) -> Vec<serde_json::Value> {
        let count = self.plan(whole).steps.len();
        let fails: Vec<_> =
            self.broken.iter().map(|(at, _)| self.plan(whole).steps[at % count].id.clone()).collect();
        let script = move |step: &lifeboat_engine::model::StepId, _| {
            if fails.contains(step) { failed(FailureKind::Permanent) } else { succeeded(json!({})) }
        };
        let mut world = World::new(self.plan(whole), script.clone());
        for _ in 0..self.crash_after {
            world.turn();
        }
        let mut world = World::resume(self.plan(whole), world.journal.clone(), script);
        world.run();
        world.journal.iter().map(|event| serde_json::to_value(event).expect("plain data")).collect()
    }
}

proptest! {
    #[test]
    fn a_group_needed_as_a_whole_is_all_its_ends(case in case()) {
        prop_assert_eq!(case.journal(true), case.journal(false));
    }
}

/// A project of groups of so many steps, one after the other, then a step.
fn wide(dir: &std::path::Path, width: usize, last: &str) -> Result<Plan, String> {
    let mut text = String::from("runbook: wide\ntitle: Wide\nenvironments: [staging]\nsteps:\n");
    for name in ["first", "second"] {
        writeln!(text, "  - group: {name}\n    parallel: true\n    budget: 10m\n    steps:").expect("text");
        for at in 0..width {
            writeln!(text, "      - {{ id: {name}_{at}, uses: scripted, budget: 1m }}").expect("text");
        }
    }
    writeln!(text, "{last}").expect("text");
    for (name, text) in [
        ("lifeboat.yaml", "project: wide\n"),
        ("environments/staging.yaml", "environment: staging\n"),
        ("runbooks/wide.yaml", text.as_str()),
    ] {
        let path = dir.join(name);
        std::fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
        std::fs::write(path, text).expect("a file");
    }
    let project = Project::load(dir).expect("a project");
    let request = RunRequest {
        runbook: "wide",
        environment: "staging",
        mode: Mode::Recovery,
        inputs: &Map::new(),
        incident_at: None,
    };
    let compiled = project.compile(&request, &registry());
    compiled.map(|compiled| compiled.plan).map_err(|problems| {
        lifeboat_engine::diagnostic::render(&problems, lifeboat_engine::diagnostic::Style::Plain)
    })
}

const LAST: &str =
    "  - { id: last, uses: scripted, needs: [second], with: { text: \"{{ run.id }}\" }, budget: 2m }";

#[test]
fn wide_groups_cost_an_edge_for_each_step_and_not_for_each_pair() {
    let dir = tempfile::tempdir().unwrap();
    let plan = wide(dir.path(), 300, LAST).unwrap();
    let edges: usize = plan.steps.iter().map(|step| step.needs.len()).sum();
    let ends: usize = plan.groups.iter().map(|group| group.ends.len()).sum();
    // The last step alone waits for the second group: that is no product.
    assert_eq!((edges, ends), (300 + 300, 300));
    assert_eq!(plan.format, Plan::FORMAT, "an earlier program must not take it for one that it knows");
    assert_eq!(
        plan.wiring().needs(450).map(|(need, _)| need).collect::<Vec<_>>(),
        (0..300).collect::<Vec<_>>()
    );
    let path = Graph::of(&plan).critical_path(&[600]).unwrap();
    let names: Vec<_> = path.steps.iter().map(|at| plan.steps[*at].id.as_str()).collect();
    assert_eq!(names.len(), 3, "{names:?}");
    // The groups' own budgets are longer than those of their steps.
    assert_eq!(path.length, std::time::Duration::from_secs(22 * 60));

    let mut world = World::new(plan, |_, _| succeeded(json!({})));
    world.run();
    assert_eq!(world.order().len(), 601);
    assert!(world.order()[..300].iter().all(|name| name.starts_with("first")));
    assert_eq!(world.order()[600], "last");
}

#[test]
fn plans_of_usual_size_are_as_they_were() {
    let dir = tempfile::tempdir().unwrap();
    let plan = wide(dir.path(), 60, LAST).unwrap();
    assert!(plan.groups.iter().all(|group| group.ends.is_empty()));
    assert_eq!((plan.format, plan.steps[60].needs.len()), (1, 60));
}

#[test]
fn what_has_run_by_then_is_known_through_wide_groups_too() {
    let dir = tempfile::tempdir().unwrap();
    let reads = |step: &str| {
        format!("  - {{ id: last, uses: scripted, needs: [second_0], if: steps.{step} is defined }}")
    };
    // Through the whole of the first group, of which each end has ended.
    wide(dir.path(), 80, &reads("first_79")).unwrap();
    let problems = wide(dir.path(), 80, &reads("second_1")).unwrap_err();
    assert!(problems.contains("LB0122"), "{problems}");
}

#[test]
fn a_circle_through_a_wide_group_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let mut last = String::from("  - group: third\n    needs: [fourth]\n    parallel: true\n    steps:\n");
    for (name, rest) in
        [("third", ""), ("fourth", "  - group: fourth\n    needs: [third]\n    parallel: true\n    steps:\n")]
    {
        last.push_str(rest);
        for at in 0..80 {
            writeln!(last, "      - {{ id: {name}_{at}, uses: scripted }}").unwrap();
        }
    }
    let problems = wide(dir.path(), 2, &last).unwrap_err();
    assert!(problems.contains("LB0130"), "{problems}");
}
