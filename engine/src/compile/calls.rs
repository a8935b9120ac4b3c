use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::analysis::{Analysis, analyse_one};
use super::bodies::Around;
use super::order::Order;
use crate::diagnostic::{Diagnostic, Diagnostics, Source, codes};
use crate::expr::{self, InputDecl};
use crate::project::Project;
use crate::resource::Access;
use crate::spec::{CallSpec, EnvironmentSpec, Reader, RunbookSpec, Site, SiteKind, is_misspelt};
use crate::step::Registry;

/// More calls than this, at all depths together, are refused: calls multiply.
const MAX_CALLS: usize = 1000;

/// A runbook as one step calls it.
pub(super) struct Call<'s> {
    /// Its inputs as given.
    pub(super) with: Map<String, Value>,
    pub(super) sites: Vec<Site>,
    pub(super) analysis: Rc<Analysis<'s>>,
}

/// Follows the calls from one runbook to the others.
pub(super) struct Calls<'s> {
    pub(super) project: &'s Project,
    pub(super) registry: &'s Registry,
    /// The runbooks on the way here, outermost first.
    chain: Vec<&'s str>,
    left: usize,
    /// How many calls were refused for the way that led to them.
    refused: usize,
    /// Runbooks that are the same whoever calls them, by name and environments, with the number of calls in them.
    known: HashMap<Called<'s>, (Rc<Analysis<'s>>, usize)>,
}

/// A runbook that is called, and the environments that it is called in.
type Called<'s> = (&'s str, Vec<&'s str>);

impl<'s> Calls<'s> {
    pub(super) fn new(project: &'s Project, registry: &'s Registry) -> Self {
        Self { project, registry, chain: Vec::new(), left: MAX_CALLS, refused: 0, known: HashMap::new() }
    }

    /// Begins with a runbook that nobody calls.
    pub(super) fn restart(&mut self) {
        self.left = MAX_CALLS;
        self.chain.clear();
    }

    /// Checks a runbook, unless that was done before: what is wrong with it has been reported then.
    pub(super) fn analysed(
        &mut self,
        spec: &'s RunbookSpec,
        environments: Vec<&'s EnvironmentSpec>,
        out: &mut Diagnostics,
    ) -> Rc<Analysis<'s>> {
        let names = environments.iter().map(|environment| environment.name.value.as_str());
        let key = (spec.name.value.as_str(), names.collect::<Vec<_>>());
        if let Some((analysis, calls)) = self.known.get(&key)
            && let Some(left) = self.left.checked_sub(*calls)
        {
            self.left = left;
            return Rc::clone(analysis);
        }
        let (left, refused) = (self.left, self.refused);
        let analysis = Rc::new(analyse_one(self, spec, environments, out));
        if self.refused == refused {
            self.known.insert(key, (Rc::clone(&analysis), left - self.left));
        }
        analysis
    }

    /// Returns what reading the steps of a file needs.
    pub(super) fn around(&self, source: &'s Arc<Source>) -> Around<'s> {
        Around { source, project_dir: &self.project.spec.dir, registry: self.registry }
    }

    /// Checks every runbook that a runbook calls, and with what.
    pub(super) fn follow(
        &mut self,
        spec: &'s RunbookSpec,
        order: &Order<'s>,
        environments: &[&'s EnvironmentSpec],
        out: &mut Diagnostics,
    ) -> BTreeMap<usize, Call<'s>> {
        self.chain.push(&spec.name.value);
        let mut found = BTreeMap::new();
        for (at, step) in order.steps.iter().enumerate() {
            let Some(call) = step.spec.call() else { continue };
            let Some(callee) = self.callee(spec, call, environments, out) else { continue };
            let (with, mut sites) = self.read_with(spec, call, callee, out);
            let analysis = self.analysed(callee, environments.to_vec(), out);
            mark_written(&mut sites, call, &analysis);
            found.insert(at, Call { with, sites, analysis });
        }
        self.chain.pop();
        found
    }

    /// Finds the runbook that is called. `None` if it cannot be, which is reported.
    fn callee(
        &mut self,
        spec: &RunbookSpec,
        call: &CallSpec,
        environments: &[&EnvironmentSpec],
        out: &mut Diagnostics,
    ) -> Option<&'s RunbookSpec> {
        let (name, span) = (call.runbook.value.as_str(), call.runbook.span.clone());
        let mut report = |diagnostic: Diagnostic| out.push(diagnostic.at(&spec.source, span.clone()));
        if let Some(first) = self.chain.iter().position(|caller| *caller == name) {
            self.refused += 1;
            let chain: Vec<_> =
                self.chain[first..].iter().chain([&name]).map(|it| format!("`{it}`")).collect();
            let message = format!("a runbook cannot call itself: {}", chain.join(" calls "));
            report(
                Diagnostic::error(codes::LB0149, message)
                    .help("move the steps that both need into a third runbook and call that one"),
            );
            return None;
        }
        let Some(callee) = self.project.find_runbook(name) else {
            let known = self.project.runbook_names().map(String::as_str);
            report(
                Diagnostic::error(codes::LB0148, format!("there is no runbook `{name}`"))
                    .at(&spec.source, span.clone())
                    .suggest(name, "runbooks", known),
            );
            return None;
        };
        for environment in environments {
            if callee.environments.iter().all(|listed| listed.value != environment.name.value) {
                let message = format!("`{name}` is not meant to run in `{}`", environment.name.value);
                let help = format!("if it may, add the name to `environments` in {}", callee.source.name);
                report(Diagnostic::error(codes::LB0148, message).help(help));
            }
        }
        let Some(left) = self.left.checked_sub(1) else {
            self.refused += 1;
            let message = format!("the runbook calls others more than {MAX_CALLS} times in all");
            report(Diagnostic::error(codes::LB0147, message).help("call fewer, or write fewer levels"));
            return None;
        };
        self.left = left;
        Some(callee)
    }

    /// Reads the inputs that a call gives, with positions in the caller's file.
    fn read_with(
        &self,
        spec: &RunbookSpec,
        call: &CallSpec,
        callee: &RunbookSpec,
        out: &mut Diagnostics,
    ) -> (Map<String, Value>, Vec<Site>) {
        let mut reader = Reader::for_params(&spec.source, out, &self.project.spec.dir);
        let fields: Vec<_> = callee.inputs.iter().map(|input| input.decl.as_field()).collect();
        let what = format!("`{}`", callee.name.value);
        let node = call.with.as_ref().filter(|node| !node.is_null());
        let with = node.and_then(|node| reader.object(node, &fields, &what)).unwrap_or_default();
        let sites = std::mem::take(&mut reader.sites);
        let known: Vec<_> = fields.iter().map(|field| field.name.as_str()).collect();
        let entries = node.and_then(|node| node.mapping()).unwrap_or_default();
        let misspelt = |name: &str| is_misspelt(entries, name, &known);
        for input in callee.inputs.iter().map(|input| &input.decl) {
            let given = node.and_then(|node| node.get(&input.name)).filter(|node| !node.is_null());
            let span = given.map_or(call.runbook.span.clone(), |node| node.span.clone());
            // A value that is written and is not there could not be read, which has been reported.
            let problem = match (with.get(&input.name), given) {
                (Some(value), _) => unusable(input, value),
                (None, None) if input.default.is_none() && !misspelt(&input.name) => {
                    Some(missing(&what, input))
                }
                (None, _) => None,
            };
            if let Some(problem) = problem {
                out.push(problem.at(&spec.source, span));
            }
        }
        (with, sites)
    }
}

/// Marks the resources given that the called runbook writes.
fn mark_written(sites: &mut [Site], call: &CallSpec, analysis: &Analysis<'_>) {
    for site in sites {
        let SiteKind::Resource { access, .. } = &mut site.kind else { continue };
        let entries = call.with.iter().filter_map(|with| with.mapping()).flatten();
        let mut given = entries.filter(|entry| entry.value.span == site.node.span);
        if given.any(|entry| analysis.writes_input(&entry.key.text)) {
            *access = Access::Write;
        }
    }
}

/// Checks a value that is known before the run against the pattern of the input.
fn unusable(input: &InputDecl, value: &Value) -> Option<Diagnostic> {
    let computed = value.as_str().is_some_and(expr::has_template);
    let checked = if computed { Ok(()) } else { input.check_pattern(value) };
    checked.err().map(|message| {
        Diagnostic::error(codes::LB0138, message).help("the pattern must match the whole text")
    })
}

fn missing(what: &str, input: &InputDecl) -> Diagnostic {
    let mut help = format!("`{}` is {}", input.name, input.ty.in_words());
    if !input.description.is_empty() {
        help = format!("{help}: {}", input.description);
    }
    Diagnostic::error(codes::LB0114, format!("{what} needs the input `{}`", input.name)).help(help)
}
