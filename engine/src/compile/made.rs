//! `{ from: STEP }`: systems that steps make and later steps use.

use serde_json::Value;

use super::analysis::Analysis;
use super::inline::Inlined;
use super::order::Place;
use crate::code::Code;
use crate::diagnostic::codes;
use crate::expr;
use crate::resource::{ResourceKind, made_by, maker};
use crate::step::Registry;
use crate::value::{Field, Type};

/// Says whether a step only runs if another one has an output, by an `if` such as `steps.clone.port is defined`.
pub(super) fn shown(analysis: &Analysis<'_>, at: usize, step: &str) -> bool {
    let conditions = analysis.order.steps[at].conditions.iter();
    conditions.filter_map(|(node, _)| node.text()).any(|text| {
        expr::shown_by_success(text)
            .iter()
            .any(|path| path.len() > 2 && path[0] == "steps" && path[1] == step)
    })
}

/// What is wrong with a step that is to make a system of one of these kinds: what it is, and what to do.
pub(super) struct Unfit {
    pub(super) code: Code,
    pub(super) message: String,
    pub(super) help: Option<String>,
}

/// Finds the step that `{ from: STEP }` names; `Ok(None)` if it has another problem, which is reported elsewhere.
pub(super) fn find(
    analysis: &Analysis<'_>,
    name: &str,
    kinds: &[ResourceKind],
) -> Result<Option<usize>, Unfit> {
    let wanted = || kinds.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ");
    let none =
        |message: String| Unfit { code: codes::LB0160, message, help: makers(analysis.registry, kinds) };
    let target = match analysis.order.names.get(name) {
        Some(Place::Step(target)) => *target,
        Some(Place::Group(_)) => return Err(none(format!("`{name}` is a group, which makes no system"))),
        None => return Ok(None),
    };
    if let Some(call) = analysis.calls.get(&target) {
        let called = &call.analysis.spec.name.value;
        return Err(Unfit {
            code: codes::LB0160,
            message: format!("`{name}` calls `{called}`, and what that makes cannot be used outside of it"),
            help: Some("move the steps that use the system into that runbook, or make it in this one".into()),
        });
    }
    let Some(body) = &analysis.bodies[target] else { return Ok(None) };
    if body.kind.creates.is_some() && analysis.order.steps[target].spec.repeat.for_each.is_some() {
        return Err(Unfit {
            code: codes::LB0160,
            message: format!("`{name}` makes one system for each element, and this names them all"),
            help: Some("let a step without `for_each` make the system that is used here".into()),
        });
    }
    match body.kind.creates {
        None => Err(none(format!("`{name}` (`{}`) makes no system", body.kind.name))),
        Some(made) if !kinds.is_empty() && !kinds.contains(&made) => {
            let message = format!("`{name}` makes a {made}; here stands a {}", wanted());
            Err(Unfit { code: codes::LB0125, ..none(message) })
        }
        Some(_) => Ok(Some(target)),
    }
}

/// Names the step kinds that make systems of these kinds.
fn makers(registry: &Registry, kinds: &[ResourceKind]) -> Option<String> {
    let fitting = registry.specs().filter(|spec| spec.creates.is_some_and(|made| kinds.contains(&made)));
    let names: Vec<_> = fitting.map(|spec| format!("`{}`", spec.name)).collect();
    let wanted: Vec<_> = kinds.iter().map(ToString::to_string).collect();
    match names.is_empty() {
        true => {
            Some(format!("no step kind makes a {}; name a resource of the environment", wanted.join(" or ")))
        }
        false => Some(format!("a {} is made by {}", wanted.join(" or "), names.join(" or "))),
    }
}

/// Gives systems that steps make the names that the run knows them by: with the scope of the step.
pub(super) fn name_made(value: &mut Value, fields: &[Field], inlined: &Inlined<'_, '_>, file: usize) {
    let Value::Object(map) = value else { return };
    for field in fields {
        if let Some(value) = map.get_mut(&field.name) {
            name_in(value, &field.ty, &|step| made_by(&inlined.written_on(file, step)));
        }
    }
}

fn name_in(value: &mut Value, ty: &Type, named: &impl Fn(&str) -> String) {
    match (value, ty) {
        (Value::String(name), Type::Resource { .. }) => {
            if let Some(step) = maker(name) {
                *name = named(step);
            }
        }
        (Value::Array(items), Type::List(of)) => items.iter_mut().for_each(|item| name_in(item, of, named)),
        (Value::Object(map), Type::Map(of)) => map.values_mut().for_each(|item| name_in(item, of, named)),
        (Value::Object(map), Type::Object(fields)) => {
            for field in fields {
                if let Some(value) = map.get_mut(&field.name) {
                    name_in(value, &field.ty, named);
                }
            }
        }
        (Value::Object(variables), Type::EnvMap) => {
            let connections = variables.values_mut().filter_map(|variable| variable.get_mut("connection"));
            let resource = Type::Resource { kinds: Vec::new(), access: crate::resource::Access::Read };
            connections.for_each(|name| name_in(name, &resource, named));
        }
        _ => {}
    }
}
