use std::collections::HashSet;
use std::ops::Range;

use super::analysis::Analysis;
use super::elements;
use super::made::{self, Unfit};
use super::order::Place;
use super::precedence::Precedence;
use crate::code::Code;
use crate::diagnostic::{Diagnostic, Diagnostics, codes};
use crate::expr::{self, Guard, INCIDENT_FIELDS, NAMESPACES, Part, RUN_FIELDS, Reference, Shape};
use crate::model::ids::is_plain_id;
use crate::plan::{NeedOn, OnError};
use crate::resource::ResourceKind;
use crate::spec::{Site, SiteKind};
use crate::value::{Field, Type};
use crate::yaml::Node;

/// From here on the nearest of many names is looked for only while problems are few: the cost multiplies.
const MANY_NAMES: usize = 200;
const MANY_PROBLEMS: usize = 20;

/// Where an expression stands.
#[derive(Clone, Copy)]
pub(super) enum Reader<'a> {
    /// In the default of an input: only inputs before this one can be read.
    Input(usize),
    /// In a step, with names that only this place has.
    Step { at: usize, extra: &'a [&'a str] },
    /// In the name of a lock, which is taken before any step.
    Lock,
    /// In what takes the work of a step back, with names that only this place has.
    Undo { at: usize, extra: &'a [&'a str] },
    /// In an output of the runbook, which is read when all its steps have ended.
    Output,
}

/// Checks all expressions of a runbook.
pub(super) fn check_expressions(analysis: &Analysis<'_>, out: &mut Diagnostics) {
    let steps = Precedence::new(analysis);
    let mut checker = Checker { analysis, steps, out };
    for (at, input) in analysis.spec.inputs.iter().enumerate() {
        for site in &input.sites {
            checker.site(site, Reader::Input(at));
        }
    }
    for at in 0..analysis.order.steps.len() {
        checker.step(at);
    }
    for site in analysis.spec.locks.iter().flat_map(|lock| &lock.sites) {
        checker.site(site, Reader::Lock);
    }
    for site in analysis.spec.outputs.iter().flat_map(|output| &output.sites) {
        checker.site(site, Reader::Output);
    }
}

pub(super) struct Checker<'a, 's> {
    pub(super) analysis: &'a Analysis<'s>,
    steps: Precedence<'a>,
    out: &'a mut Diagnostics,
}

impl Checker<'_, '_> {
    fn step(&mut self, at: usize) {
        let step = &self.analysis.order.steps[at];
        for (node, _) in step.conditions.clone() {
            self.expression(node, Reader::Step { at, extra: &[] });
        }
        let [plain, output, failure] = elements::names_of(step.spec);
        let until = step.spec.repeat.until.as_ref().map(|until| &until.condition);
        for node in step.spec.expect.iter().chain(until) {
            self.expression(node, Reader::Step { at, extra: output });
        }
        if let Some(node) = &step.spec.retry_when {
            self.expression(node, Reader::Step { at, extra: failure });
        }
        for site in self.analysis.sites(at) {
            self.site(site, Reader::Step { at, extra: plain });
        }
        if let Some(each) = self.analysis.bodies[at].as_ref().and_then(|body| body.each.as_ref()) {
            for site in &each.sites {
                self.site(site, Reader::Step { at, extra: &[] });
            }
            self.check_list(at);
        }
        self.check_title(at);
        if let Some(node) = step.spec.undo.as_ref().and_then(|undo| undo.step.retry_when.as_ref()) {
            self.expression(node, Reader::Undo { at, extra: failure });
        }
        for site in self.analysis.undo_sites(at) {
            self.site(site, Reader::Undo { at, extra: plain });
        }
    }

    fn site(&mut self, site: &Site, reader: Reader<'_>) {
        match &site.kind {
            SiteKind::Template => self.text(&site.node, None, Shape::Template, reader),
            SiteKind::Script => self.script(&site.node, reader),
            SiteKind::Condition(names) => self.condition(&site.node, names),
            SiteKind::Made { kinds, .. } => {
                if let Reader::Step { at, .. } | Reader::Undo { at, .. } = reader {
                    self.made(&site.node, kinds, at);
                }
            }
            SiteKind::Resource { .. } | SiteKind::Secret => {}
        }
    }

    fn expression(&mut self, node: &Node, reader: Reader<'_>) {
        self.text(node, None, Shape::Expression, reader);
    }

    fn script(&mut self, node: &Node, reader: Reader<'_>) {
        let Some(text) = node.text() else { return };
        let (holes, refused) = expr::holes(text);
        for refused in refused {
            let span = node.locate(&self.analysis.spec.source.text, refused.range.clone());
            let name = text.get(refused.range.clone()).unwrap_or_default();
            // Other programs have templates of their own, which are not ours to evaluate.
            let theirs = name.trim_start_matches(['{', ' ']).starts_with('.');
            let value = if theirs { format!("{{% raw %}}{name}{{% endraw %}}") } else { name.to_owned() };
            let help = format!(
                "pass it through the environment: `env: {{ VALUE: \"{value}\" }}`, and write `\"$VALUE\"` here"
            );
            let message = format!("a template {} cannot be made safe", refused.place);
            self.report(codes::LB0127, message, span, Some(help));
        }
        for hole in holes {
            self.text(node, Some(hole.expression), Shape::Expression, reader);
        }
    }

    /// Checks an expression that a step evaluates itself, over its own names only.
    fn condition(&mut self, node: &Node, names: &[String]) {
        let Some(text) = node.text() else { return };
        match expr::references(text.trim(), Shape::Expression) {
            Err(error) => self.syntax(node, 0, &error),
            Ok(references) => {
                for reference in references.iter().filter(|reference| !names.contains(&reference.path[0])) {
                    let help = format!(
                        "here stand only {}; give other values as parameters of the step",
                        names.join(", ")
                    );
                    let message = format!("`{}` does not exist in this expression", reference.path[0]);
                    let span = node.locate(&self.analysis.spec.source.text, reference.range.clone());
                    self.report(codes::LB0119, message, span, Some(help));
                }
            }
        }
    }

    /// Checks a text, or a part of it.
    fn text(&mut self, node: &Node, part: Option<Range<usize>>, shape: Shape, reader: Reader<'_>) {
        let offset = part.as_ref().map_or(0, |part| part.start);
        let Some(text) = node.text() else { return };
        let text = part.and_then(|part| text.get(part)).unwrap_or(text);
        match expr::references(text, shape) {
            Err(error) => self.syntax(node, offset, &error),
            Ok(references) => {
                for reference in references {
                    let range = reference.range.start + offset..reference.range.end + offset;
                    let span = node.locate(&self.analysis.spec.source.text, range);
                    self.reference(&reference, span, reader);
                }
            }
        }
    }

    fn syntax(&mut self, node: &Node, offset: usize, error: &expr::ExprError) {
        let span = match &error.range {
            Some(range) => {
                node.locate(&self.analysis.spec.source.text, range.start + offset..range.end + offset)
            }
            None => node.span.clone(),
        };
        let help =
            error.help.clone().or_else(|| Some("compare it with the examples in the guide".to_owned()));
        self.report(codes::LB0117, format!("not a valid expression: {}", error.message), span, help);
    }

    pub(super) fn report(&mut self, code: Code, message: String, span: Range<usize>, help: Option<String>) {
        let diagnostic = self.error(code, message, span).maybe_help(help);
        self.out.push(diagnostic);
    }

    pub(super) fn error(&self, code: Code, message: String, span: Range<usize>) -> Diagnostic {
        Diagnostic::error(code, message).at(&self.analysis.spec.source, span)
    }

    /// Reports a name that does not exist, with the one that was most likely meant.
    pub(super) fn unknown(&mut self, diagnostic: Diagnostic, name: &str, what: &str, known: Vec<&str>) {
        let known = if self.is_crowded(known.len()) { Vec::new() } else { known };
        self.out.push(diagnostic.narrowed_to(name).suggest(name, what, known));
    }

    /// Says whether to look for the nearest of so many names is too dear: of so many mistakes only the first are seen.
    fn is_crowded(&self, names: usize) -> bool {
        names > MANY_NAMES && self.out.len() > MANY_PROBLEMS
    }

    fn reference(&mut self, reference: &Reference, span: Range<usize>, reader: Reader<'_>) {
        let extra = match reader {
            Reader::Step { extra, .. } | Reader::Undo { extra, .. } => extra,
            Reader::Input(_) | Reader::Lock | Reader::Output => &[],
        };
        if extra.contains(&reference.path[0].as_str()) {
            return self.own_output(reference, span, reader);
        }
        match reference.path[0].as_str() {
            "inputs" => self.input(reference, span, reader),
            "vars" => self.var(reference, span),
            "run" => self.field_of("run", RUN_FIELDS, reference, span),
            "incident" => self.field_of("incident", INCIDENT_FIELDS, reference, span),
            "resources" => {
                let at = match reader {
                    Reader::Step { at, .. } | Reader::Undo { at, .. } => Some(at),
                    _ => None,
                };
                super::resources::check_reference(self.analysis, reference, (at, &span), self.out);
            }
            "steps" => self.step_output(reference, span, reader),
            name if elements::NAMES.contains(&name) => self.no_element(name, span, reader),
            name => self.unknown_name(name, span, extra),
        }
    }

    fn unknown_name(&mut self, name: &str, span: Range<usize>, extra: &[&str]) {
        let spec = self.analysis.spec;
        let diagnostic =
            self.error(codes::LB0119, format!("there is nothing named `{name}`"), span).narrowed_to(name);
        let meant = if spec.inputs.iter().any(|input| input.decl.name == name) {
            Some(format!("inputs.{name}"))
        } else if self.analysis.order.names.contains_key(name) {
            Some(format!("steps.{name}"))
        } else {
            None
        };
        let diagnostic = match (meant, &diagnostic.place) {
            (Some(meant), Some(place)) if place.source.text.get(place.span.clone()) == Some(name) => {
                let span = place.span.clone();
                diagnostic.help(format!("did you mean `{meant}`?")).fix(span, meant)
            }
            (Some(meant), _) => diagnostic.help(format!("did you mean `{meant}`?")),
            (None, _) => {
                let names = NAMESPACES.iter().copied().chain(extra.iter().copied());
                diagnostic.suggest(name, "names begin with", names)
            }
        };
        self.out.push(diagnostic);
    }

    fn input(&mut self, reference: &Reference, span: Range<usize>, reader: Reader<'_>) {
        let Some(name) = reference.path.get(1) else { return };
        let inputs = &self.analysis.spec.inputs;
        let found = inputs.iter().position(|input| &input.decl.name == name);
        match (found, reader) {
            (None, _) => {
                let known = inputs.iter().map(|input| input.decl.name.as_str()).collect();
                let problem = self
                    .error(codes::LB0119, format!("the runbook has no input `{name}`"), span)
                    .help(format!("declare it: `inputs: {{ {name}: {{ type: string, description: … }} }}`"));
                self.unknown(problem, name, "its inputs", known);
            }
            (Some(found), Reader::Input(at)) if found >= at => {
                let help = "declare it above the one that reads it".to_owned();
                self.report(codes::LB0119, format!("the input `{name}` has no value yet"), span, Some(help));
            }
            _ => {}
        }
    }

    fn var(&mut self, reference: &Reference, span: Range<usize>) {
        let Some(name) = reference.path.get(1).filter(|_| reference.guard == Guard::None) else { return };
        let without: Vec<_> = self
            .analysis
            .environments
            .iter()
            .filter(|environment| !environment.vars.contains_key(name))
            .collect();
        let Some(first) = without.first() else { return };
        let known = first.vars.keys().map(String::as_str).collect();
        let message = format!("{} no variable `{name}`", super::resources::have(&without));
        let problem = self.error(codes::LB0119, message, span);
        self.unknown(problem, name, "its variables", known);
    }

    fn field_of(&mut self, of: &str, fields: &[&str], reference: &Reference, span: Range<usize>) {
        let Some(name) = reference.path.get(1).filter(|name| !fields.contains(&name.as_str())) else {
            return;
        };
        let problem = self.error(codes::LB0119, format!("`{of}` has no `{name}`"), span);
        self.unknown(problem, name, "it has", fields.to_vec());
    }

    /// Checks `output.x` in the step's own `expect`.
    fn own_output(&mut self, reference: &Reference, span: Range<usize>, reader: Reader<'_>) {
        let Reader::Step { at, .. } = reader else { return };
        match reference.path[0].as_str() {
            "output" => {}
            "item" => return self.item(at, reference, span),
            _ => return,
        }
        if let Some(body) = &self.analysis.bodies[at] {
            self.output_path(
                &format!("`{}`", body.kind.name),
                &body.kind.outputs,
                &reference.path[1..],
                span,
            );
        }
    }

    pub(super) fn output_path(&mut self, of: &str, outputs: &[Field], path: &[String], span: Range<usize>) {
        let Some(name) = path.first() else { return };
        match outputs.iter().find(|field| &field.name == name) {
            None => {
                let mut problem = self.error(codes::LB0121, format!("{of} has no output `{name}`"), span);
                if outputs.is_empty() {
                    problem = problem.help("it has no outputs");
                }
                let known = outputs.iter().map(|field| field.name.as_str()).collect();
                self.unknown(problem, name, "its outputs", known);
            }
            Some(Field { ty: Type::Object(fields), .. }) => {
                self.output_path(&format!("`{name}` of {of}"), fields, &path[1..], span);
            }
            Some(_) => {}
        }
    }

    fn step_output(&mut self, reference: &Reference, span: Range<usize>, reader: Reader<'_>) {
        let Some(name) = reference.path.get(1) else { return };
        let early = match reader {
            Reader::Input(_) => Some("a default is needed before any step has run"),
            Reader::Lock => Some("locks are taken before any step has run"),
            _ => None,
        };
        if let Some(message) = early {
            let readable = match reader {
                Reader::Input(_) => "an input declared above it",
                _ => "an input",
            };
            let help = format!("read `incident`, `vars`, `resources` or {readable}");
            return self.report(codes::LB0122, message.to_owned(), span, Some(help));
        }
        let target = match self.analysis.order.names.get(name.as_str()) {
            Some(Place::Step(target)) => *target,
            Some(Place::Group(_)) => {
                let message = format!("`{name}` is a group; only steps have outputs");
                let help = "name the step in it whose output is meant".to_owned();
                return self.report(codes::LB0120, message, span, Some(help));
            }
            None => return self.unknown_step(name, span),
        };
        if let Some(body) = &self.analysis.bodies[target] {
            let of = format!("`{name}` (`{}`)", body.kind.name);
            let repeated = self.analysis.order.steps[target].spec.repeat.for_each.is_some();
            if repeated && reference.path.len() > 2 {
                return self.named_output_of_list(reference, span);
            }
            let names =
                if repeated { elements::names(&reference.then) } else { reference.path[2..].to_vec() };
            if !repeated && reference.path.len() == 2 && reference.then.first() == Some(&Part::Index) {
                return self.indexed_outputs(name, span);
            }
            self.output_path(&of, &body.kind.outputs, &names, span.clone());
        } else if let Some(call) = self.analysis.calls.get(&target) {
            let callee = call.analysis.spec;
            let outputs = callee.outputs.iter().map(|output| Field::optional(&output.name, Type::Any, ""));
            let outputs: Vec<_> = outputs.collect();
            let of = format!("`{name}` (`{}`)", callee.name.value);
            self.output_path(&of, &outputs, &reference.path[2..], span.clone());
        }
        match reader {
            Reader::Undo { at, .. } if target == at => self.undone_output(reference, span),
            Reader::Step { at, .. } | Reader::Undo { at, .. } => {
                self.order_of(target, at, reference, span);
            }
            _ => self.presence_of(target, None, reference, span),
        }
    }

    /// Checks that an undo provides for a step that has no outputs because it did not succeed.
    fn undone_output(&mut self, reference: &Reference, span: Range<usize>) {
        if reference.guard != Guard::None || reference.path.len() < 3 {
            return;
        }
        let text = reference.path.join(".");
        let message = format!("`{text}` may not exist: `{}` is also undone if it failed", reference.path[1]);
        let help = format!("provide for its absence: `{text} | default(…)`");
        self.report(codes::LB0123, message, span, Some(help));
    }

    fn unknown_step(&mut self, name: &str, span: Range<usize>) {
        let problem = Diagnostic::error(codes::LB0120, format!("there is no step `{name}`"))
            .at(&self.analysis.spec.source, span);
        let names = &self.analysis.order.names;
        // Even to gather so many names for each of so many mistakes would take minutes.
        if self.is_crowded(names.len()) {
            return self.out.push(problem.narrowed_to(name));
        }
        let mut known: Vec<_> = names.keys().copied().filter(|id| is_plain_id(id)).collect();
        known.sort_unstable();
        self.unknown(problem, name, "steps", known);
    }

    /// Checks that the step that is read has ended, and that what is read exists then.
    fn order_of(&mut self, target: usize, at: usize, reference: &Reference, span: Range<usize>) {
        if self.has_ended(target, at, span.clone()) {
            self.presence_of(target, Some(at), reference, span);
        }
    }

    /// Says whether a step has ended when another one starts, and reports it if not.
    fn has_ended(&mut self, target: usize, at: usize, span: Range<usize>) -> bool {
        let order = &self.analysis.order;
        let name = &order.steps[target].spec.common.id.value;
        let (reader_always, target_always) = (order.steps[at].always, order.steps[target].always);
        let ended = (reader_always && !target_always) || self.steps.ended(target, at);
        let unclear = self.analysis.cyclic || order.unclear.contains(&at);
        if ended || (unclear && target != at) {
            return true;
        }
        let message = if target == at {
            "a step cannot read its own outputs here".to_owned()
        } else {
            format!("`{name}` is not sure to have run by then")
        };
        let help = match target == at {
            true => {
                "its `expect` reads them as `output.NAME`; any other place must be in a later step".to_owned()
            }
            false => format!("add `{name}` to `needs` of this step, or move it below `{name}`"),
        };
        self.report(codes::LB0122, message, span, Some(help));
        false
    }

    /// Checks `{ from: STEP }`: the step makes such a system, and has made it by then.
    fn made(&mut self, node: &Node, kinds: &[ResourceKind], at: usize) {
        let Some(name) = node.text() else { return };
        let span = node.span.clone();
        match made::find(self.analysis, name, kinds) {
            Err(Unfit { code, message, help }) => self.report(code, message, span, help),
            Ok(Some(target)) => self.made_before(target, at, span),
            Ok(None) if !self.analysis.order.names.contains_key(name) => self.unknown_step(name, span),
            Ok(None) => {}
        }
    }

    fn made_before(&mut self, target: usize, at: usize, span: Range<usize>) {
        let name = self.analysis.order.steps[target].spec.common.id.value.clone();
        if !self.has_ended(target, at, span.clone()) || made::shown(self.analysis, at, &name) {
            return;
        }
        let Some(reason) = self.may_be_absent(target, Some(at)) else { return };
        let kind = self.analysis.bodies[target].as_ref().map(|body| body.kind);
        let output = kind.and_then(|kind| kind.outputs.first()).map_or("OUTPUT", |field| field.name.as_str());
        let help = format!("let this step run only if it exists: `if: steps.{name}.{output} is defined`");
        let message = format!("what `{name}` makes may not exist: {reason}");
        self.report(codes::LB0161, message, span, Some(help));
    }

    /// Checks that what is read of a step that has ended exists; without a reader at the end of the runbook.
    fn presence_of(&mut self, target: usize, at: Option<usize>, reference: &Reference, span: Range<usize>) {
        let repeated = self.analysis.order.steps[target].spec.repeat.for_each.is_some();
        // `steps.x[0].y | default(…)` provides for the absence of the output and not of the list.
        let guarded = match reference.guard {
            Guard::None => false,
            Guard::Here => !repeated || !elements::reads_through_index(reference),
            Guard::Around => true,
        };
        if guarded || (reference.path.len() < 3 && !repeated) {
            return;
        }
        if let Some(reason) = self.may_be_absent(target, at) {
            let text = reference.path.join(".");
            let default = if repeated { "[]" } else { "…" };
            let help = format!("provide for its absence: `{text} | default({default})`");
            self.report(codes::LB0123, format!("`{text}` may not exist: {reason}"), span, Some(help));
        }
    }

    fn may_be_absent(&self, target: usize, at: Option<usize>) -> Option<String> {
        let order = &self.analysis.order;
        let (step, reader) = (&order.steps[target], at.map(|at| &order.steps[at]));
        let name = &step.spec.common.id.value;
        if reader.is_some_and(|reader| reader.always) && !step.always {
            return Some(format!("`always` also runs when `{name}` has not"));
        }
        let conditions = reader.iter().flat_map(|reader| &reader.conditions);
        let own: HashSet<_> = conditions.filter_map(|(node, _)| node.text().map(str::trim)).collect();
        let open = step
            .conditions
            .iter()
            .find(|(node, _)| node.text().is_some_and(|text| !own.contains(text.trim())));
        if let Some((_, of)) = open {
            return Some(format!("`{of}` has an `if`"));
        }
        if step.needs.iter().any(|(_, on)| matches!(on, NeedOn::Failure | NeedOn::FailureWithin)) {
            return Some(format!("`{name}` is skipped if nothing failed"));
        }
        let continues = match (&self.analysis.bodies[target], step.spec.on_error) {
            (_, Some(on_error)) => on_error == OnError::Continue,
            (Some(body), None) => super::bodies::continues(step.spec, body.kind, step.always),
            (None, None) => false,
        };
        if continues {
            return Some(format!("`{name}` may fail while the run goes on"));
        }
        let sure = at.is_some_and(|at| self.steps.succeeded(target, at));
        let handled = self.steps.handled.contains(&target) && !sure;
        handled.then(|| format!("the failure of `{name}` is handled"))
    }
}
