//! What `lifeboat.yaml` promises, held against runbooks and environments: who hears of what, what is drilled and what
//! timers start.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Map, Value};

use super::fence::fence;
use super::plan::{CompileRequest, Compiled, compile};
use crate::code::Code;
use crate::diagnostic::{Diagnostic, Diagnostics, Severity, codes};
use crate::expr::InputDecl;
use crate::model::outcome::Mode;
use crate::notice::Occasion;
use crate::plan::Plan;
use crate::project::Project;
use crate::resource::ResourceKind;
use crate::spec::{EnvironmentSpec, NoticeSpec, Reader, RunbookSpec, Spanned};
use crate::step::Registry;
use crate::yaml::Entry;

/// Finds every promise of `lifeboat.yaml` that cannot be kept.
pub fn check_promises(project: &Project, registry: &Registry, out: &mut Diagnostics) {
    let used = |environment: &&EnvironmentSpec| {
        let name = &environment.name.value;
        let mut listed = project.runbooks.values().flat_map(|runbook| &runbook.environments);
        listed.any(|listed| &listed.value == name)
    };
    for environment in project.environments.values().filter(used) {
        for notice in &project.spec.notices {
            if let Some(diagnostic) = channel_problem(project, environment, notice) {
                out.push(diagnostic);
            }
        }
    }
    for drill in &project.spec.drills {
        let entry = Promise {
            runbook: &drill.runbook,
            environment: &drill.environment,
            mode: Mode::Drill,
            inputs: drill.inputs.as_ref(),
        };
        entry.check(project, registry, out);
    }
    for schedule in &project.spec.schedules {
        let mode = if schedule.drill { Mode::Drill } else { Mode::Recovery };
        let entry = Promise {
            runbook: &schedule.runbook,
            environment: &schedule.environment,
            mode,
            inputs: schedule.inputs.as_ref(),
        };
        if let Some(plan) = entry.check(project, registry, out).filter(|_| !schedule.drill) {
            out.extend(destructive(project, &schedule.runbook, &plan));
        }
    }
}

/// Says why an environment cannot send a notice, if it cannot.
fn channel_problem(
    project: &Project,
    environment: &EnvironmentSpec,
    notice: &NoticeSpec,
) -> Option<Diagnostic> {
    let (name, channel) = (&environment.name.value, &notice.channel);
    let problem = match environment.resources.get(&channel.value) {
        Some(found) if is_channel(found.resource.kind()) => return None,
        Some(found) => {
            let kind = found.resource.kind();
            let message = format!("`{}` is a {kind} in `{name}` and takes no messages", channel.value);
            Diagnostic::error(codes::LB0168, message).help("name a resource of kind `slack` or `webhook`")
        }
        None if is_optional(project, &channel.value) => return None,
        None => {
            let channels = environment.resources.iter().filter(|(_, it)| is_channel(it.resource.kind()));
            let message = format!(
                "`{}` notices go to `{}`, which `{name}` does not have",
                notice.occasion, channel.value
            );
            let add = format!(
                "add a `slack` or `webhook` resource `{}` to {}",
                channel.value, environment.source.name
            );
            Diagnostic::error(codes::LB0168, message)
                .at(&project.source, channel.span.clone())
                .help(add)
                .suggest(&channel.value, "its channels", channels.map(|(name, _)| name.as_str()))
        }
    };
    Some(problem.at(&project.source, channel.span.clone()))
}

fn is_channel(kind: ResourceKind) -> bool {
    matches!(kind, ResourceKind::Slack | ResourceKind::Webhook)
}

/// Says whether an environment that has the resource allows that others do not.
fn is_optional(project: &Project, name: &str) -> bool {
    let mut found = project.environments.values().filter_map(|environment| environment.resources.get(name));
    found.any(|spec| spec.resource.optional)
}

/// Returns the channels of each notice in an environment, and what stands in the way of others: a notice that nobody
/// gets must not stop a recovery, so these are warnings.
pub(super) fn notices(
    project: &Project,
    environment: &EnvironmentSpec,
    out: &mut Diagnostics,
) -> BTreeMap<Occasion, Vec<String>> {
    let mut found: BTreeMap<Occasion, Vec<String>> = BTreeMap::new();
    for notice in &project.spec.notices {
        let resource = environment.resources.get(&notice.channel.value);
        if resource.is_some_and(|spec| is_channel(spec.resource.kind())) {
            found.entry(notice.occasion).or_default().push(notice.channel.value.clone());
        } else if let Some(problem) = channel_problem(project, environment, notice) {
            out.push(Diagnostic { severity: Severity::Warning, ..problem });
        }
    }
    found
}

fn destructive(project: &Project, runbook: &Spanned<String>, plan: &Plan) -> Option<Diagnostic> {
    let step = plan.steps.iter().find(|step| !step.destroys.is_empty())?;
    let message = format!("`{}` destroys something and is started by a timer", runbook.value);
    Some(Diagnostic::error(codes::LB0167, message).at(&project.source, runbook.span.clone()).help(format!(
        "`{}` ({}) destroys {}; schedule a drill of it: `drill: {}`",
        step.id,
        step.place,
        step.destroys.join(", "),
        runbook.value
    )))
}

/// Something that is to be started without anybody beside it.
struct Promise<'a> {
    runbook: &'a Spanned<String>,
    environment: &'a Spanned<String>,
    mode: Mode,
    inputs: Option<&'a Entry>,
}

impl Promise<'_> {
    /// Returns the plan of the run, if there can be one. Mistakes of the runbook itself are told with the runbook.
    fn check(&self, project: &Project, registry: &Registry, out: &mut Diagnostics) -> Option<Plan> {
        let runbook = self.find_runbook(project, out);
        let Some(environment) = project.environments.get(&self.environment.value) else {
            let known = project.environments.keys().map(String::as_str);
            if !project.broken.contains(&self.environment.value) {
                let name = &self.environment.value;
                let problem =
                    unstartable(project, self.environment, format!("there is no environment `{name}`"));
                out.push(problem.suggest(name, "environments", known));
            }
            return None;
        };
        let runbook = runbook?;
        let (errors, _) = out.counts();
        let inputs = self.read_inputs(project, runbook, out);
        if out.counts().0 > errors {
            return None;
        }
        let compiled = compile(&CompileRequest {
            project,
            runbook,
            environment,
            registry,
            mode: self.mode,
            inputs: &inputs,
            // What a timer starts takes that moment for the incident; any will do here.
            incident_at: Some(Timestamp::UNIX_EPOCH),
        });
        match compiled {
            Ok(Compiled { plan, .. }) => {
                let mut refused = Diagnostics::new();
                refused.extend(fence(&plan, registry, project.environments.values()));
                self.retell(project, &refused, out);
                Some(plan)
            }
            Err(problems) => {
                self.retell(project, &problems, out);
                None
            }
        }
    }

    fn find_runbook<'p>(&self, project: &'p Project, out: &mut Diagnostics) -> Option<&'p RunbookSpec> {
        let name = &self.runbook.value;
        let found = project.find_runbook(name);
        if found.is_none() && !project.is_broken(name) {
            let known = project.runbooks.keys().map(String::as_str);
            let problem = unstartable(project, self.runbook, format!("there is no runbook `{name}`"));
            out.push(problem.suggest(name, "runbooks", known));
        }
        found
    }

    fn read_inputs(
        &self,
        project: &Project,
        runbook: &RunbookSpec,
        out: &mut Diagnostics,
    ) -> Map<String, Value> {
        let Some(entry) = self.inputs.filter(|entry| !entry.value.is_null()) else { return Map::new() };
        let mut reader = Reader::new(&project.source, out, &project.spec.dir);
        let declared: Vec<_> = runbook.inputs.iter().map(|input| input.decl.clone()).collect();
        let fields: Vec<_> = declared.iter().map(InputDecl::as_field).collect();
        let what = format!("`inputs` of `{}`", runbook.name.value);
        reader.object(&entry.value, &fields, &what).unwrap_or_default()
    }

    /// Tells at the entry what only the entry can mend.
    fn retell(&self, project: &Project, problems: &Diagnostics, out: &mut Diagnostics) {
        for problem in problems.iter() {
            let place = match problem.code {
                code if code == codes::LB0142 || code == codes::LB0143 => self.runbook,
                code if code == codes::LB0144 || code == codes::LB0140 || code == codes::LB0209 => {
                    self.environment
                }
                _ => continue,
            };
            let kept: Code = if problem.code == codes::LB0140 { codes::LB0140 } else { codes::LB0169 };
            let help = match problem.code {
                code if code == codes::LB0142 => {
                    Some("give it under `inputs`, for nobody can be asked".to_owned())
                }
                _ => problem.help.clone(),
            };
            out.push(
                Diagnostic::error(kept, problem.message.clone())
                    .at(&project.source, place.span.clone())
                    .maybe_help(help),
            );
        }
    }
}

fn unstartable(project: &Project, place: &Spanned<String>, message: String) -> Diagnostic {
    Diagnostic::error(codes::LB0169, message).at(&project.source, place.span.clone())
}
