//! Steps that are repeated: for each element of a list, or until a condition holds.

use serde_json::{Map, Value};

use super::bodies::Around;
use crate::diagnostic::{Diagnostic, Diagnostics, codes};
use crate::expr::{self, NAMESPACES, Shape};
use crate::plan::ForEach;
use crate::spec::{Reader, Site, StepSpec};
use crate::step::{Effect, KindSpec};
use crate::value::{Field, Type};
use crate::yaml::Entry;

/// What a step is repeated for.
#[derive(Debug)]
pub(super) struct Each {
    /// A list, or a template that gives one.
    pub(super) list: Value,
    pub(super) sites: Vec<Site>,
}

/// Reads `for_each`. `None` if it is neither a list nor a template, which has been reported.
pub(super) fn read_each(around: &Around<'_>, entry: &Entry, out: &mut Diagnostics) -> Option<Each> {
    let node = &entry.value;
    let text = node.text().filter(|_| !node.is_null());
    let is_template = text.is_some_and(expr::has_template);
    if node.sequence().is_none() && !is_template {
        out.push(no_list(around, entry));
        return None;
    }
    if let Some(nodes) = node.sequence().filter(|nodes| nodes.len() > ForEach::MAX_ELEMENTS) {
        let message = format!(
            "`for_each` has {} elements, more than the {} allowed",
            nodes.len(),
            ForEach::MAX_ELEMENTS
        );
        out.push(
            Diagnostic::error(codes::LB0153, message)
                .at(around.source, entry.key.span.clone())
                .help("let one step work through a batch, and repeat it for each batch"),
        );
        return None;
    }
    let mut reader = Reader::for_params(around.source, out, around.project_dir);
    let list = reader.read(node, &Type::list(Type::Any))?;
    let sites = std::mem::take(&mut reader.sites);
    Some(Each { list, sites })
}

fn no_list(around: &Around<'_>, entry: &Entry) -> Diagnostic {
    let node = &entry.value;
    let message = format!("`for_each` takes a list, and this is {}", node.describe());
    let diagnostic = Diagnostic::error(codes::LB0153, message).at(around.source, node.span.clone());
    match node.text().filter(|text| names_a_value(text)) {
        Some(text) => {
            let template = format!("\"{{{{ {} }}}}\"", text.trim());
            diagnostic
                .help("an expression that gives the list stands in braces")
                .fix(node.span.clone(), template)
        }
        None => diagnostic.help("write `[a, b]`, or one `\"{{ expression }}\"` that gives a list"),
    }
}

/// Says whether a text is an expression over the names of a run.
fn names_a_value(text: &str) -> bool {
    let found = expr::references(text.trim(), Shape::Expression).unwrap_or_default();
    let known = |name: &String| NAMESPACES.contains(&name.as_str());
    !text.contains('"') && !found.is_empty() && found.iter().all(|reference| known(&reference.path[0]))
}

/// Finds out what the elements of a list that is written out are.
pub(super) fn type_of_items(items: &[Value]) -> Type {
    let of = |value: &Value| match value {
        Value::Bool(_) => Type::Boolean,
        Value::Number(number) if number.is_f64() => Type::Number,
        Value::Number(_) => Type::Integer,
        Value::String(text) if expr::has_template(text) => Type::Any,
        Value::String(_) => Type::String,
        Value::Object(map) => Type::Object(fields(map)),
        Value::Array(_) | Value::Null => Type::Any,
    };
    items.iter().map(of).reduce(common).unwrap_or(Type::Any)
}

fn fields(map: &Map<String, Value>) -> Vec<Field> {
    map.keys().map(|key| Field::required(key, Type::Any, "")).collect()
}

/// Returns what two elements have in common. A key that only one of them has is optional.
fn common(one: Type, other: Type) -> Type {
    match (one, other) {
        (Type::Object(ours), Type::Object(theirs)) => {
            let has = |fields: &[Field], name: &str| {
                fields.iter().any(|field| field.name == name && field.required)
            };
            let mut all: Vec<Field> = ours.clone();
            all.extend(theirs.iter().filter(|field| ours.iter().all(|own| own.name != field.name)).cloned());
            for field in &mut all {
                field.required = has(&ours, &field.name) && has(&theirs, &field.name);
            }
            Type::Object(all)
        }
        (one, other) if one == other => one,
        _ => Type::Any,
    }
}

/// Checks that a step which is repeated until something holds can be repeated.
pub(super) fn check_until(
    around: &Around<'_>,
    step: &StepSpec,
    kind: &KindSpec,
    effect: Effect,
    out: &mut Diagnostics,
) {
    let Some(until) = &step.repeat.until else { return };
    let (message, help) = if kind.waits_for_people {
        let message = format!("`{}` waits for a person and is not repeated", kind.name);
        (message, "remove `until` and `every`; it waits for the answer anyway")
    } else if !matches!(effect, Effect::Read | Effect::Idempotent) {
        let message = format!("`until` repeats this step, and its effect is `{effect}`");
        (message, "let it run once, and wait in a step of its own that only reads")
    } else {
        return;
    };
    out.push(Diagnostic::error(codes::LB0154, message).at(around.source, until.key.clone()).help(help));
}
