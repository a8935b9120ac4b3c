use serde_json::Value;

use super::analysis::analyse;
use super::calls::Calls;
use super::inline::Inlined;
use super::order::Place;
use crate::diagnostic::Diagnostics;
use crate::drawing::{Edge, Mark, Shape, ShapeGroup, ShapeStep};
use crate::drawing::{MarksOf, marks};
use crate::expr;
use crate::project::Project;
use crate::spec::{Common, EnvironmentSpec, RunbookSpec};
use crate::step::Registry;

/// Returns what there is to draw of a runbook, from its files alone: no environment is needed, and no input.
///
/// With an environment, steps that are skipped there whatever the inputs are say so. Fails only if no graph can be made:
/// steps wait for each other in a circle, or a kind or a runbook that is called is not known.
pub fn shape(
    project: &Project,
    runbook: &RunbookSpec,
    environment: Option<&EnvironmentSpec>,
    registry: &Registry,
) -> Result<Shape, Diagnostics> {
    let mut out = Diagnostics::new();
    let mut calls = Calls::new(project, registry);
    let analysis = analyse(&mut calls, runbook, environment.into_iter().collect(), &mut out);
    let inlined = Inlined::of(&analysis);
    let complete = inlined.files.iter().all(|file| {
        file.analysis
            .bodies
            .iter()
            .enumerate()
            .all(|(at, body)| body.is_some() || file.analysis.calls.contains_key(&at))
    });
    if !complete || inlined.files.iter().any(|file| file.analysis.cyclic) {
        out.sort();
        return Err(out);
    }
    let groups = inlined.groups.iter().map(|group| shape_group(&inlined, group)).collect();
    let steps = (0..inlined.steps.len()).filter_map(|position| shape_step(&inlined, position)).collect();
    let mut shape =
        Shape { runbook: runbook.name.value.clone(), title: runbook.title.clone(), steps, groups };
    if let Some(environment) = environment {
        mark_skipped(&mut shape, environment);
    }
    Ok(shape)
}

fn shape_step(inlined: &Inlined<'_, '_>, position: usize) -> Option<ShapeStep> {
    let step = &inlined.steps[position];
    let body = inlined.files[step.file].analysis.bodies[step.at].as_ref()?;
    let common = inlined.step_common(position);
    let mut marks = marks(&MarksOf {
        destroys: body.kind.destroys.is_some(),
        recovered: common.recovered,
        milestone: milestone(step.file, common),
    });
    if body.kind.waits_for_people {
        marks.insert(0, Mark::Asks(role(&Value::Object(body.with.clone()))));
    }
    Some(ShapeStep {
        id: inlined.step_id(position),
        title: super::plan::title(common),
        uses: body.kind.name.clone(),
        group: step.group,
        always: step.always,
        needs: inlined.waits_for(position).map(|(step, on)| Edge { step, on }).collect(),
        conditions: condition(common),
        marks,
    })
}

fn shape_group(inlined: &Inlined<'_, '_>, group: &super::inline::InlinedGroup) -> ShapeGroup {
    let common = inlined.common(group.file, group.place);
    let (parallel, max_parallel) = inlined.limits(group);
    let calls = match group.place {
        Place::Step(at) => inlined.ordered(group.file, at).spec.call().map(|call| call.runbook.value.clone()),
        Place::Group(_) => None,
    };
    ShapeGroup {
        id: inlined.id(group.file, group.place),
        title: super::plan::title(common),
        parent: group.parent,
        parallel,
        max_parallel,
        calls,
        conditions: condition(common),
        marks: marks(&MarksOf {
            destroys: false,
            recovered: common.recovered,
            milestone: milestone(group.file, common),
        }),
    }
}

/// Milestones of runbooks that are called mean nothing.
fn milestone(file: usize, common: &Common) -> Option<&str> {
    common.milestone.as_ref().filter(|_| file == 0).map(|milestone| milestone.value.name.as_str())
}

fn condition(common: &Common) -> Vec<String> {
    common.condition.iter().filter_map(|node| node.text()).map(|text| text.trim().to_owned()).collect()
}

/// Returns whom a step asks, where it says so: `role`, or within the text of `manual`.
pub(crate) fn role(with: &Value) -> Option<String> {
    let nested = || with.as_object()?.values().find_map(|value| value.get("role"));
    let role = with.get("role").or_else(nested)?.as_str()?;
    (!expr::has_template(role)).then(|| role.to_owned())
}

/// Marks steps whose conditions are false in an environment, whatever the inputs are.
fn mark_skipped(shape: &mut Shape, environment: &EnvironmentSpec) {
    let resources = environment.resources.iter().map(|(name, spec)| (name.clone(), spec.resource.clone()));
    let mut names = serde_json::Map::new();
    names.insert("resources".into(), expr::resource_names(&resources.collect()));
    names.insert("vars".into(), Value::Object(environment.vars.clone()));
    for at in 0..shape.steps.len() {
        let own = shape.steps[at].conditions.iter();
        let around = shape.groups_of(at).flat_map(|group| &shape.groups[group].conditions);
        let why = own.chain(around).find_map(|condition| expr::known_false(condition, &names));
        if let Some(why) = why {
            shape.steps[at].marks.push(Mark::Skipped(why));
        }
    }
}
