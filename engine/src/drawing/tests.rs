use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::cpu_time::cpu_time;
use crate::plan::NeedOn;
use crate::report::page::Piece;

/// Builds a shape from lines such as `a`, `b: a`, `left/c: a failure`, where `left` is a group.
fn shape(lines: &[&str]) -> Shape {
    let mut shape = Shape { runbook: "job".into(), title: "A job".into(), ..Shape::default() };
    for line in lines {
        let (name, needs) = line.split_once(':').unwrap_or((line, ""));
        let mut path: Vec<_> = name.split('/').collect();
        let id = path.pop().unwrap();
        let mut group = None;
        for part in path {
            let (part, parallel) = part.strip_suffix('*').map_or((part, false), |part| (part, true));
            let found = shape.groups.iter().position(|group| group.id == part);
            group = Some(found.unwrap_or_else(|| {
                shape.groups.push(ShapeGroup {
                    id: part.into(),
                    parent: group,
                    parallel,
                    ..ShapeGroup::default()
                });
                shape.groups.len() - 1
            }));
        }
        let needs = needs.split(',').filter_map(|need| {
            let mut words = need.split_whitespace();
            let name = words.next()?;
            let step = shape.steps.iter().position(|step| step.id == name)?;
            let on = match words.next() {
                Some("failure") => NeedOn::Failure,
                Some("any") => NeedOn::Any,
                _ => NeedOn::Success,
            };
            Some(Edge { step, on })
        });
        let needs = needs.collect();
        let (title, uses) = (id.replace('_', " "), "run".to_owned());
        shape.steps.push(ShapeStep { id: id.into(), title, uses, group, needs, ..ShapeStep::default() });
    }
    shape
}

fn text(shape: &Shape, width: usize, glyphs: Glyphs) -> String {
    let lines = terminal(shape, Paper { width, glyphs });
    lines.iter().map(|line| line.iter().map(|piece| piece.text.as_str()).collect::<String>() + "\n").collect()
}

fn conditional() -> Shape {
    let mut shape = shape(&[
        "one",
        "left/two: one",
        "left/three: two",
        "right: one",
        "rescue: right failure",
        "tidy: three any, right any",
    ]);
    shape.steps[1].conditions.push("inputs.deep".into());
    shape.groups[0].conditions.push("resources.cache is defined".into());
    shape.steps[2]
        .marks
        .extend([Mark::Destroys, Mark::Skipped("resources.cache is not defined here".into())]);
    shape.steps[3].marks.extend([
        Mark::Asks(Some("lead".into())),
        Mark::Recovered,
        Mark::Milestone("up".into()),
    ]);
    shape
}

#[test]
fn groups_are_boxes_and_children_of_parallel_ones_lanes() {
    let shape = shape(&[
        "choose",
        "stores*/database/base: choose",
        "stores*/database/recover: base",
        "stores*/cache: choose",
        "stores*/uploads: choose",
        "app: recover, cache, uploads",
    ]);
    insta::assert_snapshot!(text(&shape, 80, Glyphs::Unicode));
    insta::assert_snapshot!("ascii", text(&shape, 80, Glyphs::Ascii));
    insta::assert_snapshot!("too_narrow_for_boxes", text(&shape, 30, Glyphs::Unicode));
}

#[test]
fn needs_without_groups_become_lanes_between_a_fork_and_a_join() {
    let shape = shape(&["a", "b: a", "c: b", "d: a", "e: c, d", "free", "f: e", "g: e", "h: e"]);
    insta::assert_snapshot!(text(&shape, 80, Glyphs::Unicode));
}

#[test]
fn an_order_that_no_lanes_can_show_is_told_in_words() {
    // a before c, and b before both c and d: neither lanes nor a row of steps.
    let shape = shape(&["a", "b", "c: a, b", "d: b", "group/x: d", "group/y: x, a"]);
    insta::assert_snapshot!(text(&shape, 80, Glyphs::Unicode));
}

#[test]
fn conditions_failures_and_marks_are_seen() {
    insta::assert_snapshot!(text(&conditional(), 90, Glyphs::Unicode));
    insta::assert_snapshot!("marks_in_mermaid", mermaid(&conditional()));
}

#[test]
fn no_text_can_leave_its_label_or_its_line() {
    let mut shape = shape(&["a"]);
    shape.steps[0].title = "x\"]; click s0 \"javascript:alert(1)\" %% `b` <script>\nend\u{1b}[31m".into();
    let chart = mermaid(&shape);
    let node = chart.lines().find(|line| line.contains("s0[")).unwrap();
    assert_eq!(node.matches('"').count(), 2, "{node}");
    assert!(!node.contains("%%") && !node.contains("<script") && !node.contains('`'), "{node}");
    assert!(!text(&shape, 80, Glyphs::Unicode).contains('\u{1b}'));
}

#[test]
fn much_is_listed_in_time_linear_in_steps() {
    let lines: Vec<String> = (0..20_000)
        .map(|at: usize| match at.checked_sub(1) {
            Some(before) => format!("s{at}: s{before}"),
            None => "s0".to_owned(),
        })
        .collect();
    let mut shape = shape(&[]);
    for (at, line) in lines.iter().enumerate() {
        let needs = at.checked_sub(1).map(|step| Edge { step, on: NeedOn::Success }).into_iter().collect();
        let id = line.split(':').next().unwrap().to_owned();
        shape.steps.push(ShapeStep {
            title: id.clone(),
            id,
            uses: "run".into(),
            needs,
            ..ShapeStep::default()
        });
    }
    let begun = cpu_time();
    let text = text(&shape, 80, Glyphs::Unicode);
    assert_eq!(text.lines().count(), 40_000);
    assert!(!text.contains("after"), "the order of the lines is the order");
    assert_eq!(mermaid(&shape).matches("-->").count(), 19_999);
    let took = cpu_time() - begun;
    assert!(took < std::time::Duration::from_secs(10), "{took:?}");
}

/// Steps in nested groups that need any earlier steps.
fn any_shape() -> impl Strategy<Value = Shape> {
    let step = (prop::collection::vec((0..40usize, 0..3u8), 0..4), 0..6usize);
    let groups = prop::collection::vec((0..6usize, any::<bool>()), 1..6);
    (prop::collection::vec(step, 1..40), groups).prop_map(|(steps, groups)| {
        let mut shape = Shape { runbook: "any".into(), ..Shape::default() };
        for (at, (parent, parallel)) in groups.iter().enumerate() {
            let parent = (at > 0).then(|| parent % at);
            shape.groups.push(ShapeGroup {
                id: format!("g{at}"),
                parent,
                parallel: *parallel,
                ..ShapeGroup::default()
            });
        }
        for (at, (needs, group)) in steps.into_iter().enumerate() {
            let on = |on| match on {
                0 => NeedOn::Success,
                1 => NeedOn::Failure,
                _ => NeedOn::Any,
            };
            let mut seen = BTreeSet::new();
            let needs = needs.into_iter().filter(|(need, _)| at > 0 && seen.insert(need % at));
            let needs = needs.map(|(need, kind)| Edge { step: need % at, on: on(kind) }).collect();
            let group = (group < shape.groups.len()).then_some(group);
            let id = format!("step_{at}_x");
            shape.steps.push(ShapeStep {
                title: format!("Does {at}"),
                id,
                uses: "run".into(),
                group,
                needs,
                ..ShapeStep::default()
            });
        }
        shape
    })
}

proptest! {
    #[test]
    fn every_edge_is_in_the_chart_and_every_step_in_the_drawing(shape in any_shape(), width in 40..160usize) {
        let chart = mermaid(&shape);
        let mut edges = 0;
        for (at, step) in shape.steps.iter().enumerate() {
            for edge in &step.needs {
                let link = match edge.on {
                    NeedOn::Success => format!("  s{} --> s{at}\n", edge.step),
                    NeedOn::Failure | NeedOn::FailureWithin => format!("  s{} -. \"on failure\" .-> s{at}\n", edge.step),
                    NeedOn::Any => format!("  s{} -- \"in any case\" --> s{at}\n", edge.step),
                };
                prop_assert!(chart.contains(&link), "{link}{chart}");
                edges += 1;
            }
        }
        prop_assert_eq!(chart.matches("->").count(), edges);
        prop_assert_eq!(chart.matches("subgraph").count(), chart.matches("\n  ").count().min(chart.lines().filter(|line| line.trim() == "end").count()));
        for glyphs in [Glyphs::Unicode, Glyphs::Ascii] {
            let lines = terminal(&shape, Paper { width, glyphs });
            let joined: String = lines.iter().flatten().map(|piece: &Piece| piece.text.as_str()).collect();
            for step in &shape.steps {
                prop_assert_eq!(joined.matches(&format!(" {} ", step.id)).count() > 0, true, "{} in {}", step.id, text(&shape, width, glyphs));
            }
            let widest = lines.iter().map(|line| line.iter().map(|piece| piece.text.chars().count()).sum::<usize>()).max();
            prop_assert!(widest.unwrap_or(0) <= width, "{}", text(&shape, width, glyphs));
        }
    }
}
