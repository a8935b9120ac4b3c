//! What may be read of the elements of a repeated step, inside of it and outside.

use std::ops::Range;

use super::expressions::Checker;
use super::expressions::Reader;
use super::repeat::type_of_items;
use crate::diagnostic::codes;
use crate::expr::{self, Part, Reference, Shape};
use crate::spec::StepSpec;
use crate::value::{Field, Type};

/// The names that an element adds: what it is, and its number.
pub(super) const NAMES: &[&str] = &["item", "index"];

/// Returns the names that only a step has: in its parameters, in what looks at its output, and in what looks at its failure.
pub(super) fn names_of(step: &StepSpec) -> [&'static [&'static str]; 3] {
    match step.repeat.for_each {
        None => [&[], &["output"], &["error", "attempt"]],
        Some(_) => [NAMES, &["output", "item", "index"], &["error", "attempt", "item", "index"]],
    }
}

/// Returns the names behind the first index of a chain, up to the next index.
pub(super) fn names(then: &[Part]) -> Vec<String> {
    let behind = then.iter().skip(1).map_while(|part| match part {
        Part::Name(name) => Some(name.clone()),
        Part::Index | Part::Each => None,
    });
    behind.collect()
}

/// Says whether a chain reads something of one element, rather than the list itself.
pub(super) fn reads_through_index(reference: &Reference) -> bool {
    reference.then.first() == Some(&Part::Index)
}

impl Checker<'_, '_> {
    /// Complains of `item` or `index` where there is no element.
    pub(super) fn no_element(&mut self, name: &str, span: Range<usize>, reader: Reader<'_>) {
        let order = &self.analysis.order;
        let repeated = match reader {
            Reader::Step { at, .. } => order.steps[at].spec.repeat.for_each.is_some(),
            _ => false,
        };
        let (message, help) = if repeated {
            (
                format!(
                    "`{name}` does not exist here: `if` and `for_each` are read once, for the whole step"
                ),
                "to leave elements out, filter the list: `{{ … | reject('equalto', 'x') | list }}`",
            )
        } else {
            (
                format!("`{name}` exists only in a step with `for_each`"),
                "say for what the step is repeated: `for_each: [a, b]`, or `for_each: \"{{ inputs.list }}\"`",
            )
        };
        self.report(codes::LB0151, message, span, Some(help.to_owned()));
    }

    /// Checks what is read of an element, as far as it is known what the elements are.
    pub(super) fn item(&mut self, at: usize, reference: &Reference, span: Range<usize>) {
        let Some(name) = reference.path.get(1) else { return };
        let ty = self.type_of_item(at);
        match &ty {
            Type::Object(fields) => {
                let optional = fields.iter().any(|field| &field.name == name && !field.required);
                if optional && reference.guard == expr::Guard::None {
                    let message = format!("`item.{name}` may not exist: not every element has it");
                    let help = format!("provide for its absence: `item.{name} | default(…)`");
                    return self.report(codes::LB0123, message, span, Some(help));
                }
                if !fields.iter().any(|field| &field.name == name) {
                    let known = fields.iter().map(|field| field.name.as_str());
                    let message = format!("no element of the list has `{name}`");
                    let problem = self.error(codes::LB0151, message, span);
                    return self.unknown(problem, name, "they have", known.collect());
                }
                let known = fields.iter().find(|field| &field.name == name).map(|field| &field.ty);
                if let Some(Type::Object(inner)) = known {
                    self.output_path(&format!("`item.{name}`"), inner, &reference.path[2..], span);
                }
            }
            Type::Any | Type::Map(_) => {}
            other => {
                let message = format!("every element is {} and has no `{name}`", other.in_words());
                self.report(codes::LB0151, message, span, Some("write `item` alone".to_owned()));
            }
        }
    }

    fn type_of_item(&self, at: usize) -> Type {
        let each = self.analysis.bodies[at].as_ref().and_then(|body| body.each.as_ref());
        match each.map(|each| &each.list) {
            Some(serde_json::Value::Array(items)) => type_of_items(items),
            Some(serde_json::Value::String(text)) => match self.type_of_template(text) {
                Some(Type::List(of)) => *of,
                _ => Type::Any,
            },
            _ => Type::Any,
        }
    }

    /// Returns the type of what a template gives that is nothing but the name of an input or an output.
    fn type_of_template(&self, text: &str) -> Option<Type> {
        let inner = text.trim().strip_prefix("{{")?.strip_suffix("}}")?.trim();
        let references = expr::references(inner, Shape::Expression).ok()?;
        let [reference] = references.as_slice() else { return None };
        if inner.get(reference.range.clone()) != Some(inner) || !reference.then.is_empty() {
            return None;
        }
        match reference.path.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
            ["inputs", name] => {
                let found = self.analysis.spec.inputs.iter().find(|input| input.decl.name == *name)?;
                Some(found.decl.ty.clone())
            }
            ["steps", step] => self.repeated(step).then(|| {
                let fields = self.outputs_of(step).unwrap_or_default();
                Type::list(Type::Object(fields.to_vec()))
            }),
            ["steps", step, names @ ..] if !self.repeated(step) => {
                let (first, rest) = names.split_first()?;
                let find = |fields: &[Field], name: &str| {
                    fields.iter().find(|field| field.name == name).map(|field| field.ty.clone())
                };
                rest.iter().try_fold(find(self.outputs_of(step)?, first)?, |ty, name| match ty {
                    Type::Object(fields) => find(&fields, name),
                    _ => None,
                })
            }
            _ => None,
        }
    }

    fn position(&self, step: &str) -> Option<usize> {
        match self.analysis.order.names.get(step) {
            Some(super::order::Place::Step(at)) => Some(*at),
            _ => None,
        }
    }

    fn repeated(&self, step: &str) -> bool {
        self.position(step).is_some_and(|at| self.analysis.order.steps[at].spec.repeat.for_each.is_some())
    }

    fn outputs_of(&self, step: &str) -> Option<&[Field]> {
        let body = self.analysis.bodies[self.position(step)?].as_ref()?;
        Some(&body.kind.outputs)
    }

    /// Checks that what a step is repeated for is a list, where that is known before the run.
    pub(super) fn check_list(&mut self, at: usize) {
        let spec = self.analysis.order.steps[at].spec;
        let Some(text) = spec.repeat.for_each.as_ref().and_then(|entry| entry.value.text()) else { return };
        let Some(ty) = self.type_of_template(text) else { return };
        let help = match ty {
            Type::Any | Type::List(_) => return,
            Type::Map(_) | Type::Object(_) => "for the entries of a map write `{{ … | items }}`",
            Type::String => "turn it into a list: `| lines`, `| split(',')` or `| fromjson`",
            _ => "name a list",
        };
        let span = spec.repeat.for_each.as_ref().map(|entry| entry.value.span.clone()).unwrap_or_default();
        let message = format!("`for_each` takes a list, and this is {}", ty.in_words());
        self.report(codes::LB0153, message, span, Some(help.to_owned()));
    }

    /// Checks the title of elements, which is shown before anything else is evaluated.
    pub(super) fn check_title(&mut self, at: usize) {
        let spec = self.analysis.order.steps[at].spec;
        let repeated = spec.repeat.for_each.is_some();
        let Some(node) = spec.title.clone() else { return };
        let Some(text) = node.text().filter(|text| expr::has_template(text)) else { return };
        let source = &self.analysis.spec.source.text;
        let references = match expr::references(text, Shape::Template) {
            Ok(references) => references,
            // Braces in the title of any other step are text.
            Err(_) if !repeated => return,
            Err(error) => {
                let message = format!("not a valid expression: {}", error.message);
                return self.report(codes::LB0117, message, node.span.clone(), None);
            }
        };
        for reference in references {
            let span = node.locate(source, reference.range.clone());
            match reference.path[0].as_str() {
                name if !repeated && NAMES.contains(&name) => {
                    self.no_element(name, span, Reader::Step { at, extra: &[] });
                }
                _ if !repeated => {}
                "item" => self.item(at, &reference, span),
                "index" => {}
                name => {
                    let message = format!("a title cannot read `{name}`, only `item` and `index`");
                    let help = "titles are shown in plans and lists, where nothing else is known";
                    self.report(codes::LB0119, message, span, Some(help.to_owned()));
                }
            }
        }
    }

    /// Complains of `steps.x.y` where `x` runs for each element.
    pub(super) fn named_output_of_list(&mut self, reference: &Reference, span: Range<usize>) {
        let (step, output) = (&reference.path[1], reference.path[2..].join("."));
        let message = format!("`steps.{step}` is a list: `{step}` runs for each element of `for_each`");
        let help = format!(
            "for one element `steps.{step}[0].{output}`, for all `steps.{step} | map(attribute='{output}') | list`"
        );
        self.report(codes::LB0152, message, span, Some(help));
    }

    /// Complains of `steps.x[0]` where `x` runs once.
    pub(super) fn indexed_outputs(&mut self, step: &str, span: Range<usize>) {
        let message = format!("`steps.{step}` is no list: `{step}` has no `for_each` and runs once");
        let outputs = self.outputs_of(step).unwrap_or_default();
        let help = outputs.first().map(|field| format!("write `steps.{step}.{}`", field.name));
        self.report(codes::LB0152, message, span, help);
    }
}
