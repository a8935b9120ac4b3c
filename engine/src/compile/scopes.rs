use serde_json::{Map, Value};

use super::inline::{Caller, Inlined};
use super::made::name_made;
use super::order::Place;
use super::plan::{CompileRequest, check_resource_inputs, fixed_names, name_resources};
use crate::diagnostic::{Diagnostic, Diagnostics, codes};
use crate::expr::{self, InputDecl, bind_inputs};
use crate::model::StepId;
use crate::plan::Scope;
use crate::resource::{Access, maker};
use crate::spec::SiteKind;
use crate::value::Type;

/// The inputs of every runbook of a plan, as far as they are known before the run.
pub(super) struct Scopes {
    /// By file: all inputs of the runbook itself; of those that are called, the ones that name resources.
    pub(super) inputs: Vec<Map<String, Value>>,
    called: Vec<Scope>,
}

impl Scopes {
    /// Gives every called runbook its resources, and takes down what the rest is evaluated from.
    pub(super) fn bind(
        request: &CompileRequest<'_>,
        inlined: &Inlined<'_, '_>,
        inputs: Map<String, Value>,
        out: &mut Diagnostics,
    ) -> Self {
        let mut scopes = Self { inputs: vec![inputs], called: Vec::new() };
        for file in 1..inlined.files.len() {
            let Some(caller) = inlined.files[file].caller else { continue };
            let with = scopes.given(inlined, caller);
            scopes.inputs.push(resource_inputs(request, inlined, file, &with, out));
            let Ok(id) = StepId::new(inlined.id(caller.file, Place::Step(caller.at))) else { continue };
            let spec = inlined.files[file].analysis.spec;
            scopes.called.push(Scope {
                id,
                parent: caller.file.checked_sub(1),
                runbook: spec.name.value.clone(),
                always: caller.always,
                needs: inlined.planned_needs(&inlined.files[file].entry),
                inputs: spec.inputs.iter().map(|input| input.decl.clone()).collect(),
                with,
                outputs: spec.outputs.iter().map(|it| (it.name.clone(), it.value.clone())).collect(),
            });
        }
        scopes
    }

    /// Refuses to write what may only be read where an input gives the name; names written out are checked elsewhere.
    pub(super) fn check_writes(
        &self,
        request: &CompileRequest<'_>,
        inlined: &Inlined<'_, '_>,
        out: &mut Diagnostics,
    ) {
        let environment = request.environment;
        for step in &inlined.steps {
            let analysis = inlined.files[step.file].analysis;
            for site in analysis.all_sites(step.at) {
                let SiteKind::Resource { access: Access::Write, .. } = &site.kind else { continue };
                let input = site.node.text().and_then(expr::input_name);
                let name = input.and_then(|input| self.inputs[step.file].get(input)).and_then(Value::as_str);
                let found = name.and_then(|name| Some((name, environment.resources.get(name)?)));
                if let Some((name, _)) = found.filter(|(_, it)| it.resource.access == Access::Read) {
                    let environment = &environment.name.value;
                    let message =
                        format!("this step writes `{name}`, which `{environment}` declares `access: read`");
                    out.push(
                        Diagnostic::error(codes::LB0126, message)
                            .at(&analysis.spec.source, site.node.span.clone())
                            .help("give the input a resource that may be written"),
                    );
                }
            }
        }
    }

    /// Returns what a call gives, resources by their names.
    fn given(&self, inlined: &Inlined<'_, '_>, caller: Caller) -> Map<String, Value> {
        let analysis = inlined.files[caller.file].analysis;
        let mut with = Value::Object(analysis.calls[&caller.at].with.clone());
        name_resources(&mut with, analysis.spec, &self.inputs[caller.file]);
        let called = analysis.calls[&caller.at].analysis.spec;
        let fields: Vec<_> = called.inputs.iter().map(|input| input.decl.as_field()).collect();
        name_made(&mut with, &fields, inlined, caller.file);
        if let Value::Object(with) = with { with } else { Map::new() }
    }

    pub(super) fn into_plan(mut self) -> (Map<String, Value>, Vec<Scope>) {
        (std::mem::take(&mut self.inputs[0]), self.called)
    }
}

/// Binds the inputs that name resources: what is written, destroyed and locked must be known before the run.
fn resource_inputs(
    request: &CompileRequest<'_>,
    inlined: &Inlined<'_, '_>,
    file: usize,
    with: &Map<String, Value>,
    out: &mut Diagnostics,
) -> Map<String, Value> {
    let spec = inlined.files[file].analysis.spec;
    let declared: Vec<InputDecl> = spec
        .inputs
        .iter()
        .map(|input| &input.decl)
        .filter(|decl| matches!(decl.ty, Type::Resource { .. }))
        // One that is missing has been reported.
        .filter(|decl| decl.default.is_some() || with.contains_key(&decl.name))
        .cloned()
        .collect();
    let names = declared.iter().map(|decl| &decl.name);
    let given = names.filter_map(|name| Some((name.clone(), with.get(name)?.clone()))).collect();
    match bind_inputs(&declared, &given, &fixed_names(request)) {
        Ok(bound) => {
            let mut named = bound.clone();
            // What a step makes is checked where it is given.
            named.retain(|_, name| name.as_str().is_none_or(|name| maker(name).is_none()));
            check_resource_inputs(request, spec, &named, out);
            bound
        }
        Err(problems) => {
            for problem in problems {
                let span = spec.inputs.iter().find(|input| input.decl.name == problem.input);
                let span = span.map(|input| input.span.clone()).unwrap_or_default();
                out.push(Diagnostic::error(codes::LB0138, problem.message).at(&spec.source, span));
            }
            Map::new()
        }
    }
}
