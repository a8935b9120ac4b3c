use std::borrow::Cow;
use std::ops::Range;

use super::analysis::Analysis;
use crate::diagnostic::{Diagnostic, Diagnostics, codes};
use crate::expr::{self, Guard, Reference, public_attributes};
use crate::resource::{Access, Resource, ResourceKind, made_by, maker};
use crate::spec::{EnvironmentSpec, Site, SiteKind};
use crate::value::Type;
use crate::yaml::Node;

/// Checks every resource and secret that a step names against every environment.
pub(super) fn check_resources(analysis: &Analysis<'_>, out: &mut Diagnostics) {
    for at in 0..analysis.order.steps.len() {
        for site in analysis.all_sites(at) {
            match &site.kind {
                SiteKind::Resource { kinds, access } => {
                    check_one(analysis, at, (&site.node, kinds, *access), out);
                }
                SiteKind::Secret => check_secret(analysis, &site.node, out),
                _ => {}
            }
        }
    }
    check_defaults(analysis, out);
}

/// A resource as a parameter names it.
struct Named<'a> {
    name: &'a str,
    span: &'a Range<usize>,
    kinds: &'a [ResourceKind],
    access: Access,
}

fn check_one(
    analysis: &Analysis<'_>,
    at: usize,
    (node, kinds, access): (&Node, &[ResourceKind], Access),
    out: &mut Diagnostics,
) {
    let Some(text) = node.text() else { return };
    if let Some(input) = expr::input_name(text) {
        return check_input(analysis, input, node, kinds, out);
    }
    let mut without = Vec::new();
    for environment in &analysis.environments {
        match environment.resources.get(text) {
            Some(found) => {
                let named = Named { name: text, span: &node.span, kinds, access };
                check_found(analysis, environment, &named, &found.resource, out);
            }
            None if environment.broken.contains(text) => {}
            None => without.push(environment),
        }
    }
    if !without.is_empty() && !guarded(analysis, at, text) {
        out.push(absent(analysis, &without, (text, kinds), &node.span));
    }
}

/// The diagnostic for a resource that environments do not have. Without kinds any will do.
fn absent(
    analysis: &Analysis<'_>,
    without: &[&&EnvironmentSpec],
    (name, kinds): (&str, &[ResourceKind]),
    span: &Range<usize>,
) -> Diagnostic {
    let diagnostic = Diagnostic::error(codes::LB0124, format!("{} no resource `{name}`", have(without)))
        .at(&analysis.spec.source, span.clone());
    if let Some(step) = maker(name) {
        let help = format!("what a step makes is written as a map: `{{ from: {step} }}`");
        return diagnostic.help(help);
    }
    let optional =
        |other: &&EnvironmentSpec| other.resources.get(name).is_some_and(|found| found.resource.optional);
    if let Some(other) = analysis.project.environments.values().find(optional) {
        return diagnostic.help(format!(
            "it is optional in `{}`: let the step run only where it exists, with `if: resources.{name} is defined`",
            other.name.value
        ));
    }
    let Some(first) = without.first() else { return diagnostic };
    // Those of the right kind are the likely ones.
    let fits = |found: ResourceKind| kinds.is_empty() || kinds.contains(&found);
    let fitting: Vec<_> = first
        .resources
        .iter()
        .filter(|(_, it)| fits(it.resource.kind()))
        .map(|(name, _)| name.as_str())
        .collect();
    if let ([kind], true) = (kinds, fitting.is_empty()) {
        return diagnostic
            .help(format!("declare it in {}: `{name}: {{ kind: {kind}, … }}`", first.source.name));
    }
    let what = if kinds.is_empty() { "its resources" } else { "of the kind that is wanted here there are" };
    diagnostic.narrowed_to(name).suggest(name, what, fitting)
}

/// Checks the defaults of inputs that name resources, as if the steps that use them named those.
///
/// Those of a shipped runbook are only guesses at names in a project that its author has not seen: one that does not fit is
/// an error where it is used, once a run has its inputs.
fn check_defaults(analysis: &Analysis<'_>, out: &mut Diagnostics) {
    let shipped = analysis.project.shipped.contains_key(&analysis.spec.name.value);
    for input in &analysis.spec.inputs {
        let Type::Resource { kinds, .. } = &input.decl.ty else { continue };
        let name = input.decl.default.as_ref().and_then(|default| default.as_str());
        let Some(name) = name.filter(|name| !expr::has_template(name)) else { continue };
        let access = if analysis.writes_input(&input.decl.name) { Access::Write } else { Access::Read };
        let mut without = Vec::new();
        for environment in &analysis.environments {
            match environment.resources.get(name) {
                None if shipped || environment.broken.contains(name) => {}
                Some(found) if shipped && !kinds.contains(&found.resource.kind()) => {}
                None => without.push(environment),
                Some(found) => {
                    let named = Named { name, span: &input.span, kinds, access };
                    check_found(analysis, environment, &named, &found.resource, out);
                }
            }
        }
        if !without.is_empty() {
            out.push(absent(analysis, &without, (name, kinds), &input.span));
        }
    }
}

/// Begins a sentence about what environments have: `the environments `a` and `b` have`.
pub(super) fn have(environments: &[&&EnvironmentSpec]) -> String {
    let names: Vec<_> =
        environments.iter().map(|environment| format!("`{}`", environment.name.value)).collect();
    match names.as_slice() {
        [name] => format!("the environment {name} has"),
        names => format!("the environments {} have", names.join(" and ")),
    }
}

fn check_found(
    analysis: &Analysis<'_>,
    environment: &EnvironmentSpec,
    named: &Named<'_>,
    resource: &Resource,
    out: &mut Diagnostics,
) {
    let Named { name, span, kinds, access } = *named;
    let (found, allowed) = (resource.kind(), resource.access);
    let (resources, environment) = (&environment.resources, &environment.name.value);
    if !kinds.is_empty() && !kinds.contains(&found) {
        let wanted: Vec<_> = kinds.iter().map(ToString::to_string).collect();
        let message =
            format!("`{name}` is a {found} in `{environment}`; here stands a {}", wanted.join(" or "));
        let fitting = resources.iter().filter(|(_, it)| kinds.contains(&it.resource.kind()));
        let fitting: Vec<_> = fitting.map(|(name, _)| format!("`{name}`")).collect();
        let help = match fitting.as_slice() {
            [] => format!("`{environment}` has none; declare one"),
            names => format!("of that kind there are {}", names.join(", ")),
        };
        out.push(
            Diagnostic::error(codes::LB0125, message).at(&analysis.spec.source, span.clone()).help(help),
        );
    } else if access == Access::Write && allowed == Access::Read {
        let message = format!("this step writes `{name}`, which `{environment}` declares `access: read`");
        out.push(
            Diagnostic::error(codes::LB0126, message)
                .at(&analysis.spec.source, span.clone())
                .help("name a resource that may be written; the declaration protects the system"),
        );
    }
}

fn check_input(
    analysis: &Analysis<'_>,
    name: &str,
    node: &Node,
    kinds: &[ResourceKind],
    out: &mut Diagnostics,
) {
    let found = analysis.spec.inputs.iter().find(|input| input.decl.name == name);
    let message = match found.map(|input| &input.decl.ty) {
        None => format!("the runbook has no input `{name}`"),
        Some(Type::Resource { kinds: given, .. }) if given.iter().all(|kind| kinds.contains(kind)) => return,
        Some(Type::Resource { .. }) => format!("the input `{name}` names a resource of another kind"),
        Some(_) => format!("the input `{name}` is not of type `resource`"),
    };
    let help = "declare it with `type: resource` and the `kind` that is wanted here";
    out.push(
        Diagnostic::error(codes::LB0125, message).at(&analysis.spec.source, node.span.clone()).help(help),
    );
}

/// Says whether the step runs only if the resource exists.
fn guarded(analysis: &Analysis<'_>, at: usize, name: &str) -> bool {
    let conditions = analysis.order.steps[at].conditions.iter();
    conditions.filter_map(|(node, _)| node.text()).any(|text| {
        let shown = expr::shown_by_success(text);
        shown.iter().any(|path| path.len() > 1 && path[0] == "resources" && path[1] == name)
    })
}

fn check_secret(analysis: &Analysis<'_>, node: &Node, out: &mut Diagnostics) {
    let Some(name) = node.text() else { return };
    let has = |environment: &&&EnvironmentSpec| {
        environment.broken.contains(name) || environment.secret_refs().contains_key(name)
    };
    let without: Vec<_> = analysis.environments.iter().filter(|it| !has(it)).collect();
    let Some(first) = without.first() else { return };
    let secrets = first.secret_refs();
    let message = format!("{} no secret `{name}`", have(&without));
    out.push(Diagnostic::error(codes::LB0145, message).at(&analysis.spec.source, node.span.clone()).suggest(
        name,
        "its secrets",
        secrets.keys().map(String::as_str),
    ));
}

/// Checks `resources.NAME.ATTRIBUTE` in an expression; `at` is the step that it stands in.
pub(super) fn check_reference(
    analysis: &Analysis<'_>,
    reference: &Reference,
    (at, span): (Option<usize>, &Range<usize>),
    out: &mut Diagnostics,
) {
    let Some(name) = reference.path.get(1) else { return };
    if reference.guard != Guard::None {
        if let Some(problem) = unknown_everywhere(analysis, name, span) {
            out.push(problem);
        }
        return;
    }
    let has = |environment: &&&EnvironmentSpec| {
        environment.broken.contains(name) || environment.resources.contains_key(name)
    };
    let without: Vec<_> = analysis.environments.iter().filter(|it| !has(it)).collect();
    if !without.is_empty() && !at.is_some_and(|at| guarded(analysis, at, name)) {
        out.push(absent(analysis, &without, (name, &[]), span));
    }
    let Some(attribute) = reference.path.get(2) else { return };
    for environment in &analysis.environments {
        let Some(found) = environment.resources.get(name) else { continue };
        let attributes = public_attributes(&found.resource);
        if !attributes.contains_key(attribute) {
            let message = format!("`{name}` has no attribute `{attribute}` in `{}`", environment.name.value);
            out.push(
                Diagnostic::error(codes::LB0124, message)
                    .at(&analysis.spec.source, span.clone())
                    .narrowed_to(attribute)
                    .suggest(attribute, "it has", attributes.keys().map(String::as_str)),
            );
        }
    }
}

/// A test for a resource that no environment has is a slip of the pen: what it guards would never run.
fn unknown_everywhere(analysis: &Analysis<'_>, name: &str, span: &Range<usize>) -> Option<Diagnostic> {
    let project = analysis.project;
    let environments = || project.environments.values();
    let known_somewhere = environments().any(|environment| environment.resources.contains_key(name));
    if known_somewhere || !project.broken.is_empty() {
        return None;
    }
    let mut names: Vec<_> =
        environments().flat_map(|environment| environment.resources.keys()).map(String::as_str).collect();
    names.sort_unstable();
    names.dedup();
    let message = format!("no environment has a resource `{name}`");
    let problem = Diagnostic::error(codes::LB0124, message).at(&analysis.spec.source, span.clone());
    Some(problem.narrowed_to(name).suggest(name, "resources", names))
}

/// Returns the resources that a step reads and those that it writes, by name, each once.
pub(super) fn named<'a>(sites: impl IntoIterator<Item = &'a Site>) -> (Vec<String>, Vec<String>) {
    let (mut reads, mut writes): (Vec<String>, Vec<String>) = (Vec::new(), Vec::new());
    for (name, access) in sites.into_iter().filter_map(resource_of) {
        let list = if access == Access::Write { &mut writes } else { &mut reads };
        if list.iter().all(|known| *known != name) {
            list.push(name.into_owned());
        }
    }
    (reads, writes)
}

/// Returns the resource that a place names, as it stands there, and what is done with it.
pub(super) fn resource_of(site: &Site) -> Option<(Cow<'_, str>, Access)> {
    match (&site.kind, site.node.text()?) {
        (SiteKind::Resource { kinds, .. }, _) if kinds.as_slice() == [ResourceKind::Host] => None,
        (SiteKind::Resource { access, .. }, name) => Some((name.into(), *access)),
        (SiteKind::Made { access, .. }, step) => Some((made_by(step).into(), *access)),
        _ => None,
    }
}
