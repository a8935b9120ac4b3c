use std::ops::Range;

use super::analysis::Analysis;
use super::bodies::known;
use crate::diagnostic::{Diagnostic, Diagnostics, codes};
use crate::expr::{self, Guard, Reference, Shape, public_attributes};
use crate::resource::{Access, Resource, ResourceKind};
use crate::spec::{EnvironmentSpec, Site, SiteKind};
use crate::value::Type;
use crate::yaml::Node;

/// Checks every resource and secret that a step names against every environment.
pub(super) fn check_resources(analysis: &Analysis<'_>, out: &mut Diagnostics) {
    for at in 0..analysis.order.steps.len() {
        for site in analysis.all_sites(at) {
            match &site.kind {
                SiteKind::Resource { kinds, access } => {
                    let named = Named { node: &site.node, kinds, access: *access };
                    check_one(analysis, at, &named, out);
                }
                SiteKind::Secret => check_secret(analysis, &site.node, out),
                _ => {}
            }
        }
    }
}

/// A resource as a parameter names it.
struct Named<'a> {
    node: &'a Node,
    kinds: &'a [ResourceKind],
    access: Access,
}

fn check_one(analysis: &Analysis<'_>, at: usize, named: &Named<'_>, out: &mut Diagnostics) {
    let Named { node, kinds, .. } = *named;
    let Some(text) = node.text() else { return };
    if let Some(input) = expr::input_name(text) {
        return check_input(analysis, input, node, kinds, out);
    }
    for environment in &analysis.environments {
        match environment.resources.get(text) {
            Some(found) => check_found(analysis, environment, named, &found.resource, out),
            None if guarded(analysis, at, text) => {}
            None => {
                let names = environment.resources.keys().map(String::as_str).collect();
                let message =
                    format!("the environment `{}` has no resource `{text}`", environment.name.value);
                out.push(
                    Diagnostic::error(codes::LB0124, message)
                        .at(&analysis.spec.source, node.span.clone())
                        .maybe_help(known(text, "its resources", names)),
                );
            }
        }
    }
}

fn check_found(
    analysis: &Analysis<'_>,
    environment: &EnvironmentSpec,
    named: &Named<'_>,
    resource: &Resource,
    out: &mut Diagnostics,
) {
    let Named { node, kinds, access } = *named;
    let (name, found, allowed) = (node.text().unwrap_or_default(), resource.kind(), resource.access);
    let environment = &environment.name.value;
    if !kinds.is_empty() && !kinds.contains(&found) {
        let wanted: Vec<_> = kinds.iter().map(ToString::to_string).collect();
        let message =
            format!("`{name}` is a {found} in `{environment}`; here stands a {}", wanted.join(" or "));
        out.push(Diagnostic::error(codes::LB0125, message).at(&analysis.spec.source, node.span.clone()));
    } else if access == Access::Write && allowed == Access::Read {
        let message = format!("this step writes `{name}`, which `{environment}` declares `access: read`");
        out.push(
            Diagnostic::error(codes::LB0126, message)
                .at(&analysis.spec.source, node.span.clone())
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
    let shows = |text: &str| {
        let references = expr::references(text.trim(), Shape::Expression).unwrap_or_default();
        references.iter().any(|reference| {
            reference.guard == Guard::Here
                && reference.path.first().is_some_and(|first| first == "resources")
                && reference.path.get(1).is_some_and(|second| second == name)
        })
    };
    analysis.order.steps[at].conditions.iter().any(|(node, _)| node.text().is_some_and(shows))
}

fn check_secret(analysis: &Analysis<'_>, node: &Node, out: &mut Diagnostics) {
    let Some(name) = node.text() else { return };
    for environment in &analysis.environments {
        let secrets = environment.secret_refs();
        if !secrets.contains_key(name) {
            let message = format!("the environment `{}` has no secret `{name}`", environment.name.value);
            out.push(
                Diagnostic::error(codes::LB0145, message)
                    .at(&analysis.spec.source, node.span.clone())
                    .maybe_help(known(name, "its secrets", secrets.keys().map(String::as_str).collect())),
            );
        }
    }
}

/// Checks `resources.NAME.ATTRIBUTE` in an expression.
pub(super) fn check_reference(
    analysis: &Analysis<'_>,
    reference: &Reference,
    span: &Range<usize>,
    out: &mut Diagnostics,
) {
    let Some(name) = reference.path.get(1).filter(|_| reference.guard == Guard::None) else { return };
    for environment in &analysis.environments {
        let (message, help) = match environment.resources.get(name) {
            None => {
                let names = environment.resources.keys().map(String::as_str).collect();
                let message =
                    format!("the environment `{}` has no resource `{name}`", environment.name.value);
                (message, known(name, "its resources", names))
            }
            Some(found) => {
                let attributes = public_attributes(&found.resource);
                let Some(attribute) = reference.path.get(2).filter(|name| !attributes.contains_key(*name))
                else {
                    continue;
                };
                let names = attributes.keys().map(String::as_str).collect();
                let message =
                    format!("`{name}` has no attribute `{attribute}` in `{}`", environment.name.value);
                (message, known(attribute, "it has", names))
            }
        };
        out.push(
            Diagnostic::error(codes::LB0124, message)
                .at(&analysis.spec.source, span.clone())
                .maybe_help(help),
        );
    }
}

/// Returns the resources that a step reads and those that it writes, by name, each once.
pub(super) fn named<'a>(sites: impl IntoIterator<Item = &'a Site>) -> (Vec<String>, Vec<String>) {
    let (mut reads, mut writes): (Vec<String>, Vec<String>) = (Vec::new(), Vec::new());
    for site in sites {
        let (SiteKind::Resource { access, kinds }, Some(name)) = (&site.kind, site.node.text()) else {
            continue;
        };
        if kinds.as_slice() == [ResourceKind::Host] {
            continue;
        }
        let list = if *access == Access::Write { &mut writes } else { &mut reads };
        if !list.iter().any(|known| known == name) {
            list.push(name.to_owned());
        }
    }
    (reads, writes)
}
