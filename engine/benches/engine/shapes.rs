//! From YAML to a plan and its critical path, for runbooks of several shapes and sizes.

use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use lifeboat_engine::compile::graph::Graph;
use lifeboat_engine::model::Mode;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::project::{Project, RunRequest};
use lifeboat_engine::step::{Effect, KindSpec, Registry, StepContext, StepError, StepKind};
use lifeboat_engine::value::{Field, Type};
use serde_json::Map;

use crate::{cpu, ms, scratch};

/// A kind with a parameter and an output, so that steps can read each other.
struct Count;

#[async_trait]
impl StepKind for Count {
    fn spec(&self) -> KindSpec {
        KindSpec::new("count", "Counts.", Effect::Read)
            .param(Field::optional("of", Type::Any, "What."))
            .output("n", Type::Integer, "How many.")
    }

    async fn run(&self, _: &StepContext) -> Result<Done, StepError> {
        Ok(Done::default())
    }
}

/// A runbook, and those that it calls.
struct Shape {
    name: &'static str,
    main: String,
    called: Option<String>,
}

/// Processor time from reading the files to plan and critical path.
pub(crate) fn compile() {
    println!("\n| shape | steps | edges | CPU to the plan | a step |");
    println!("|---|---|---|---|---|");
    for steps in [1_000, 10_000, 100_000] {
        let mut shapes = vec![sequence(steps), reading(steps), wide(steps), nested(steps)];
        // No runbook calls others more than a thousand times.
        shapes.extend((steps <= 10_000).then(|| calls(steps)));
        shapes.iter().for_each(tell);
    }
    tell(&ladder(40));
    tell(&two_wide(700));
    tell(&two_wide(3_000));
}

fn tell(shape: &Shape) {
    let times = if shape.main.len() < 1_000_000 { 9 } else { 3 };
    let all = (0..times).map(|_| measure(shape));
    let (spent, steps, edges) = all.min_by_key(|(spent, ..)| *spent).expect("at least one");
    let each = spent / u32::try_from(steps).unwrap_or(u32::MAX).max(1);
    println!("| {} | {steps} | {edges} | {} | {:.1} µs |", shape.name, ms(spent), each.as_secs_f64() * 1e6);
}

fn measure(shape: &Shape) -> (Duration, usize, usize) {
    let dir = scratch();
    write(dir.path(), shape).expect("the project can be written");
    let mut registry = Registry::new();
    registry.register(Count);
    let before = cpu();
    let project = Project::load(dir.path()).expect("a project");
    let request = RunRequest {
        runbook: "bench",
        environment: "staging",
        mode: Mode::Recovery,
        inputs: &Map::new(),
        incident_at: None,
    };
    let plan = project.compile(&request, &registry).expect("a runbook without mistakes").plan;
    let path = Graph::of(&plan).critical_path(&[plan.steps.len() - 1]).expect("no circle");
    let spent = cpu() - before;
    assert!(!path.steps.is_empty());
    (spent, plan.steps.len(), plan.steps.iter().map(|step| step.needs.len()).sum())
}

fn write(dir: &Path, shape: &Shape) -> std::io::Result<()> {
    std::fs::write(dir.join("lifeboat.yaml"), "project: bench\n")?;
    for folder in ["environments", "runbooks"] {
        std::fs::create_dir(dir.join(folder))?;
    }
    std::fs::write(dir.join("environments/staging.yaml"), "environment: staging\nresources: {}\n")?;
    std::fs::write(dir.join("runbooks/bench.yaml"), runbook("bench", &shape.main))?;
    match &shape.called {
        Some(steps) => std::fs::write(dir.join("runbooks/called.yaml"), runbook("called", steps)),
        None => Ok(()),
    }
}

fn runbook(name: &str, steps: &str) -> String {
    format!("runbook: {name}\ntitle: Made for measuring\nenvironments: [staging]\nsteps:\n{steps}")
}

fn shape(name: &'static str, main: String) -> Shape {
    Shape { name, main, called: None }
}

fn line(text: &mut String, indent: usize, line: &str) {
    writeln!(text, "{:indent$}{line}", "").expect("writing to a string cannot fail");
}

fn sequence(steps: usize) -> Shape {
    let mut text = String::new();
    (0..steps).for_each(|at| line(&mut text, 2, &format!("- {{ id: s{at}, uses: count, budget: 1s }}")));
    shape("sequence", text)
}

/// Each step reads what the one before it has found.
fn reading(steps: usize) -> Shape {
    let mut text = "  - { id: s0, uses: count }\n".to_owned();
    for at in 1..steps {
        let before = at - 1;
        line(
            &mut text,
            2,
            &format!("- {{ id: s{at}, uses: count, with: {{ of: \"{{{{ steps.s{before}.n + 1 }}}}\" }} }}"),
        );
    }
    shape("sequence, each reads the one before", text)
}

fn wide(steps: usize) -> Shape {
    let mut text = "  - group: all\n    parallel: true\n    steps:\n".to_owned();
    (0..steps - 1).for_each(|at| line(&mut text, 6, &format!("- {{ id: s{at}, uses: count }}")));
    line(&mut text, 2, "- { id: last, uses: count }");
    shape("one parallel group", text)
}

/// Groups of ten within groups of ten, five levels deep.
fn nested(steps: usize) -> Shape {
    fn fill(text: &mut String, name: &str, level: usize, steps: usize) {
        let indent = 2 + 4 * level;
        if steps <= 10 || level == 5 {
            (0..steps).for_each(|at| line(text, indent, &format!("- {{ id: {name}_{at}, uses: count }}")));
            return;
        }
        for at in 0..10 {
            line(text, indent, &format!("- group: {name}_{at}"));
            line(
                text,
                indent + 2,
                if level.is_multiple_of(2) { "parallel: false" } else { "parallel: true" },
            );
            line(text, indent + 2, "steps:");
            fill(text, &format!("{name}_{at}"), level + 1, steps / 10);
        }
    }
    let mut text = String::new();
    fill(&mut text, "g", 0, steps);
    shape("groups in groups", text)
}

/// A runbook of ten steps, called again and again.
fn calls(steps: usize) -> Shape {
    let mut main = String::new();
    (0..steps / 10).for_each(|at| line(&mut main, 2, &format!("- {{ id: s{at}, runbook: called }}")));
    Shape { name: "calls of a runbook of ten steps", main, called: Some(sequence(10).main) }
}

/// Layers of two steps, each of which needs both of the layer before and reads every step above.
fn ladder(layers: usize) -> Shape {
    let mut text = String::new();
    for layer in 0..layers {
        for side in ["a", "b"] {
            let needs = layer.checked_sub(1).map_or(String::new(), |above| format!("a{above}, b{above}"));
            let all = (layer.saturating_sub(8)..layer)
                .flat_map(|above| ["a", "b"].map(|side| format!("steps.{side}{above}.n > 0")));
            let condition = all.collect::<Vec<_>>().join(" and ");
            line(&mut text, 2, &format!("- id: {side}{layer}"));
            line(&mut text, 4, "uses: count");
            line(&mut text, 4, &format!("needs: [{needs}]"));
            if !condition.is_empty() {
                let same: Vec<_> = (layer.saturating_sub(8)..layer)
                    .map(|above| format!("steps.a{above}.n | default(1) > 0"))
                    .collect();
                line(&mut text, 4, &format!("with: {{ of: \"{{{{ {} }}}}\" }}", same.join(" and ")));
                line(&mut text, 4, &format!("if: {}", condition.replace(".n >", ".n | default(1) >")));
            }
        }
    }
    shape("ladder of layers of two, eight layers read by each", text)
}

/// Two parallel groups after one another: every step of the second waits for all of the first.
fn two_wide(each: usize) -> Shape {
    let mut text = String::new();
    for group in ["first", "second"] {
        line(&mut text, 2, &format!("- group: {group}"));
        line(&mut text, 4, "parallel: true");
        line(&mut text, 4, "steps:");
        (0..each).for_each(|at| line(&mut text, 6, &format!("- {{ id: {group}_{at}, uses: count }}")));
    }
    shape("two parallel groups, one after the other", text)
}
