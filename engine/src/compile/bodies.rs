use std::borrow::Cow;
use std::path::Path;

use serde_json::{Map, Value};

use super::repeat::{Each, check_until, read_each};
use crate::diagnostic::{Diagnostic, Diagnostics, Source, codes};
use crate::plan::OnError;
use crate::resource::{Access, ResourceKind};
use crate::spec::{Body, Reader, Site, SiteKind, StepSpec, is_misspelt};
use crate::step::{Effect, KindSpec, Registry};
use crate::value::Type;
use crate::yaml::Entry;
use std::sync::Arc;

/// What a step does, checked against its kind.
#[derive(Debug)]
pub(super) struct StepBody<'r> {
    pub(super) kind: &'r KindSpec,
    pub(super) with: Map<String, Value>,
    pub(super) sites: Vec<Site>,
    pub(super) effect: Effect,
    pub(super) each: Option<Each>,
}

/// What reading the body of a step needs.
pub(super) struct Around<'a> {
    pub(super) source: &'a Arc<Source>,
    pub(super) project_dir: &'a Path,
    pub(super) registry: &'a Registry,
}

/// Reads the body of a step. `None` if it calls a runbook, or if its kind is not known, which has been reported.
pub(super) fn read_body<'a>(
    around: &Around<'a>,
    step: &StepSpec,
    out: &mut Diagnostics,
) -> Option<StepBody<'a>> {
    let kind = find_kind(around, step, out)?;
    let mut reader = Reader::for_params(around.source, out, around.project_dir);
    let mut with = read_params(&mut reader, step, kind);
    for (key, entry) in [("env", &step.env), ("dir", &step.dir), ("probe", &step.probe)] {
        if let Some(entry) = entry {
            read_side(&mut reader, kind, key, entry, &mut with);
        }
    }
    if let Some(host) = &step.host {
        reader.read(&host.value, &Type::Resource { kinds: vec![ResourceKind::Host], access: Access::Read });
    }
    require_params(&mut reader, step, kind, &with);
    let sites = std::mem::take(&mut reader.sites);
    let effect = settle_effect(around, step, kind, out);
    let each = step.repeat.for_each.as_ref().and_then(|entry| read_each(around, entry, out));
    check_until(around, step, kind, effect, out);
    let body = StepBody { kind, with, sites, effect, each };
    ask_kind(around, step, &body, out);
    Some(body)
}

fn find_kind<'a>(around: &Around<'a>, step: &StepSpec, out: &mut Diagnostics) -> Option<&'a KindSpec> {
    match &step.body {
        Body::Uses { kind, .. } => {
            let found = around.registry.spec(&kind.value);
            if found.is_none() {
                let known = around.registry.specs().map(|spec| spec.name.as_str());
                let mut diagnostic =
                    Diagnostic::error(codes::LB0112, format!("there is no step kind `{}`", kind.value))
                        .at(around.source, kind.span.clone())
                        .help("`lifeboat steps` lists all kinds");
                if let Some(near) = crate::diagnostic::nearest(&kind.value, known) {
                    diagnostic =
                        diagnostic.help(format!("did you mean `{near}`?")).fix(kind.span.clone(), near);
                }
                out.push(diagnostic);
            }
            found
        }
        Body::Key { key, .. } => {
            let found = around.registry.by_body_key(&key.value).map(|(spec, _)| spec);
            if found.is_none() {
                let message = format!("`{}` is not supported by this version", key.value);
                out.push(
                    Diagnostic::error(codes::LB0116, message)
                        .at(around.source, key.span.clone())
                        .help("`lifeboat steps` lists what a step can do"),
                );
            }
            found
        }
        Body::Call(_) | Body::Unclear => None,
    }
}

fn read_params(reader: &mut Reader<'_>, step: &StepSpec, kind: &KindSpec) -> Map<String, Value> {
    let what = format!("`{}`", kind.name);
    match &step.body {
        Body::Uses { with: Some(with), .. } if !with.is_null() => {
            reader.parts(with, &kind.params, &what).unwrap_or_default()
        }
        Body::Key { value, .. } => {
            let Some((_, param)) = &kind.body_key else { return Map::new() };
            let ty =
                kind.params.iter().find(|field| &field.name == param).map_or(&Type::Any, |field| &field.ty);
            let whole =
                value.mapping().is_some() && !matches!(ty, Type::Any | Type::Map(_) | Type::Object(_));
            if whole {
                return reader.object(value, &kind.params, &what).unwrap_or_default();
            }
            reader.read(value, ty).map(|value| Map::from_iter([(param.clone(), value)])).unwrap_or_default()
        }
        _ => Map::new(),
    }
}

/// Reads `env`, `dir` or `probe` of a step into the parameter of the same name.
fn read_side(
    reader: &mut Reader<'_>,
    kind: &KindSpec,
    key: &str,
    entry: &Entry,
    with: &mut Map<String, Value>,
) {
    let Some(field) = kind.params.iter().find(|field| field.name == key) else {
        let message = format!("`{}` takes no `{key}`", kind.name);
        reader.push(
            Diagnostic::error(codes::LB0104, message)
                .at(reader.source, entry.key.span.clone())
                .help(format!("remove it, or give the value under `with` if the kind has a parameter for it: `lifeboat steps {}`", kind.name)),
        );
        return;
    };
    if with.contains_key(key) {
        reader.push(
            Diagnostic::error(codes::LB0103, format!("`{key}` stands both here and under `with`"))
                .at(reader.source, entry.key.span.clone())
                .help("remove one of the two"),
        );
        return;
    }
    if let Some(value) = reader.read(&entry.value, &field.ty) {
        with.insert(key.to_owned(), value);
    }
}

fn require_params(reader: &mut Reader<'_>, step: &StepSpec, kind: &KindSpec, with: &Map<String, Value>) {
    let written = |name: &str| match &step.body {
        Body::Uses { with: Some(node), .. } | Body::Key { value: node, .. } => {
            node.get(name).is_some_and(|node| !node.is_null())
        }
        _ => false,
    };
    let known: Vec<_> = kind.params.iter().map(|field| field.name.as_str()).collect();
    let misspelt = |name: &str| match &step.body {
        Body::Uses { with: Some(node), .. } => {
            node.mapping().is_none_or(|entries| is_misspelt(entries, name, &known)) && !node.is_null()
        }
        _ => false,
    };
    let body_param = kind.body_key.as_ref().map(|(_, param)| param.as_str());
    let is_body = matches!(step.body, Body::Key { .. });
    for field in kind.params.iter().filter(|field| field.required) {
        if with.contains_key(&field.name)
            || written(&field.name)
            || misspelt(&field.name)
            || (is_body && body_param == Some(&field.name))
        {
            continue;
        }
        let span = match &step.body {
            Body::Uses { kind, .. } => kind.span.clone(),
            _ => step.common.id.span.clone(),
        };
        reader.push(
            Diagnostic::error(codes::LB0114, format!("`{}` needs the parameter `{}`", kind.name, field.name))
                .at(reader.source, span)
                .help(format!("`{}` is {}: {}", field.name, field.ty.in_words(), field.summary)),
        );
    }
}

/// Lets the kind check the parameters that hold no template.
fn ask_kind(around: &Around<'_>, step: &StepSpec, body: &StepBody<'_>, out: &mut Diagnostics) {
    let StepBody { kind, with, sites, .. } = body;
    let node = |param: &str| match &step.body {
        Body::Uses { with: Some(node), .. } => node.get(param),
        Body::Key { value, .. } if value.mapping().is_some() => value.get(param),
        Body::Key { value, .. } => kind.body_key.as_ref().filter(|(_, name)| name == param).map(|_| value),
        _ => None,
    };
    let sides = [("env", &step.env), ("dir", &step.dir), ("probe", &step.probe)];
    let place = |param: &str| {
        let side = sides.iter().find(|(name, _)| *name == param).and_then(|(_, entry)| entry.as_ref());
        node(param).or(side.map(|entry| &entry.value)).map(|node| node.span.clone())
    };
    let computed = |param: &str| {
        place(param).is_some_and(|span| {
            sites.iter().any(|site| {
                matches!(site.kind, SiteKind::Template | SiteKind::Script)
                    && span.start <= site.node.span.start
                    && site.node.span.end <= span.end
            })
        })
    };
    let Some(found) = around.registry.kind(&kind.name) else { return };
    let mut literal = Cow::Borrowed(with);
    if with.keys().any(|param| computed(param)) {
        literal.to_mut().retain(|param, _| !computed(param));
    }
    let given: Vec<_> = with.keys().map(String::as_str).collect();
    for problem in found.check_given(&given).into_iter().chain(found.check(&literal)) {
        let top = problem.param.split(['.', '[']).next().unwrap_or_default();
        let span = place(top).unwrap_or_else(|| step.common.id.span.clone());
        out.push(
            Diagnostic::error(codes::LB0138, format!("`{}`: {}", problem.param, problem.message))
                .at(around.source, span)
                .maybe_help(problem.help),
        );
    }
}

fn settle_effect(around: &Around<'_>, step: &StepSpec, kind: &KindSpec, out: &mut Diagnostics) -> Effect {
    let mut report = |message: String, span: std::ops::Range<usize>, help: &str| {
        out.push(Diagnostic::error(codes::LB0134, message).at(around.source, span).help(help));
    };
    let id = step.common.id.span.clone();
    let effect = match (kind.effect, &step.effect) {
        (None, Some(said)) => said.value,
        (Some(own), None) => own,
        (Some(own), Some(said)) => {
            let message = format!("the effect of `{}` is known: {own}", kind.name);
            report(message, said.span.clone(), "remove `effect`; only shell steps say it");
            own
        }
        (None, None) => {
            out.push(without_effect(around, step, kind));
            return Effect::Once;
        }
    };
    if kind.effect.is_none() {
        match (&step.probe, effect) {
            (None, Effect::Guarded) => {
                let help =
                    "add `probe:`, a script that exits with 0 if the work is done and with 1 if it is not";
                report("`effect: guarded` needs a `probe`".to_owned(), id, help);
            }
            (Some(probe), effect) if effect != Effect::Guarded => {
                let message = format!("a `probe` is only asked with `effect: guarded`, not `{effect}`");
                report(message, probe.key.span.clone(), "say `effect: guarded`, or remove the probe");
            }
            _ => {}
        }
    }
    check_retry(around, step, effect, out);
    effect
}

/// Says what an effect is. What a script does is not known, so the change offered is the one that never repeats
/// anything unasked.
fn without_effect(around: &Around<'_>, step: &StepSpec, kind: &KindSpec) -> Diagnostic {
    let help = "say what running it twice means: `read` and `idempotent` are repeated, `guarded` asks its `probe`, \
                and `once`, the careful choice, asks a person";
    let id = &step.common.id.span;
    let diagnostic = Diagnostic::error(codes::LB0134, format!("`{}` must say its effect", kind.name))
        .at(around.source, id.clone())
        .help(help);
    let Body::Key { key, .. } = &step.body else { return diagnostic };
    match insertion(around.source, key.span.start, "effect: once") {
        Some(text) => diagnostic.fix(key.span.start..key.span.start, text),
        None => diagnostic,
    }
}

/// Returns what to write in front of a key for another entry of the same map; `None` if the key is not written there.
fn insertion(source: &Source, at: usize, entry: &str) -> Option<String> {
    let line = source.text.get(..at)?.rsplit('\n').next()?;
    let in_block = line.chars().all(|c| matches!(c, ' ' | '-'));
    Some(if in_block { format!("{entry}\n{}", " ".repeat(line.len())) } else { format!("{entry}, ") })
}

fn check_retry(around: &Around<'_>, step: &StepSpec, effect: Effect, out: &mut Diagnostics) {
    let Some(retry) = step.retry.as_ref().filter(|retry| retry.value.attempts > 1) else { return };
    if effect == Effect::Once {
        out.push(
            Diagnostic::error(codes::LB0133, "this step must not be repeated, and asks for it")
                .at(around.source, retry.span.clone())
                .help("remove `retry`, or say `effect: idempotent` if running it twice does no harm"),
        );
    }
}

/// Says whether the step may fail while the run goes on as if nothing were wrong.
pub(super) fn continues(step: &StepSpec, kind: &KindSpec, always: bool) -> bool {
    match step.on_error {
        Some(on_error) => on_error == OnError::Continue,
        None => kind.continues_on_error || always,
    }
}
