//! What is found of the real systems before a run.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::task::JoinSet;

use super::preview::{Fate, Looker};
use crate::model::StepId;
use crate::plan::Plan;
use crate::redact::Redactor;
use crate::resource::{ResourceKind, System};
use crate::runs::Past;
use crate::secret::Secrets;
use crate::step::{Finding, FindingState, PreflightFacts, Registry, StepContext, StepError};

/// How long one look may take before it counts as not known.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is to be probed.
#[derive(Clone, Copy, Debug)]
pub struct Preflight<'a> {
    pub plan: &'a Plan,
    pub registry: &'a Registry,
    /// `--incident-at`, if it was given.
    pub incident_at: Option<Timestamp>,
    /// What earlier runs have measured, from which looks estimate how long things take.
    pub past: &'a Past,
}

/// Everything that was found, the worst of each subject first.
#[derive(Clone, Debug, Default)]
pub struct Probed {
    pub findings: Vec<Finding>,
}

impl Probed {
    /// Says whether anything would make the run fail.
    pub fn has_failed(&self) -> bool {
        self.findings.iter().any(|it| it.state == FindingState::Failed && !it.objective)
    }

    /// Says whether an objective would be missed.
    pub fn misses_objective(&self) -> bool {
        self.findings.iter().any(|it| it.state == FindingState::Failed && it.objective)
    }
}

/// Hears of every look: its subject, and at the end how many findings it gave.
pub type Told<'a> = &'a (dyn Fn(&str, Option<usize>) + Sync);

/// Looks at everything that a run would use, all at once, each with a time limit. Reads secrets, and changes nothing on
/// any system.
pub async fn preflight(of: Preflight<'_>, told: Told<'_>) -> Probed {
    let Preflight { plan, registry, incident_at, past } = of;
    let now = Timestamp::now();
    let mut looker = Looker::new(plan, registry, incident_at.unwrap_or(now));
    told("secrets", None);
    let (secrets, mut findings) = resolve(plan).await;
    told("secrets", Some(findings.len()));
    let redactor = secrets.redactor().clone();
    looker.secrets(secrets);
    let fates: Vec<Fate> = plan.steps.iter().map(|step| looker.fate(step)).collect();
    let facts = Arc::new(facts(plan, &fates, now));
    let mut looks = JoinSet::new();
    for (name, resource) in plan.resources.iter().filter(|(name, _)| facts.used.contains(*name)) {
        let Ok(id) = StepId::new(plain(name)) else { continue };
        for probe in registry.probes(resource.kind()) {
            told(name, None);
            let (ctx, facts, name) = (looker.context_of(id.clone()), Arc::clone(&facts), name.clone());
            looks.spawn(async move {
                let look = async { Ok(probe.probe(&ctx, &name, &facts).await) };
                (name.clone(), limited(&name, &ctx, look).await)
            });
        }
    }
    for (step, _) in plan.steps.iter().zip(&fates).filter(|(_, fate)| !matches!(fate, Fate::Skipped { .. })) {
        let Some(kind) = registry.kind(&step.uses) else { continue };
        let ctx = looker.context(step, looker.known_with(step)).after(past.clone());
        let facts = Arc::clone(&facts);
        let id = step.id.to_string();
        told(&id, None);
        looks.spawn(async move {
            let found = limited(&id, &ctx, kind.preflight(&ctx, &facts)).await;
            (id, found)
        });
    }
    while let Some(ended) = looks.join_next().await {
        // A look that panicked is a mistake in the program; the others are still worth something.
        let Ok((subject, found)) = ended else { continue };
        told(&subject, Some(found.len()));
        findings.extend(found);
    }
    findings.iter_mut().for_each(|finding| clean(finding, &redactor));
    findings.sort_by(|a, b| (&a.subject, &a.what, a.state).cmp(&(&b.subject, &b.what, b.state)));
    findings.dedup();
    Probed { findings }
}

/// Servers and programs may say in an error what they were given.
fn clean(finding: &mut Finding, redactor: &Redactor) {
    finding.detail = redactor.text(&finding.detail).into_owned();
    finding.help = finding.help.take().map(|help| redactor.text(&help).into_owned());
}

/// The context of a look belongs to no step, but is named like one.
fn plain(name: &str) -> String {
    name.chars()
        .map(|char| if char.is_ascii_lowercase() || char.is_ascii_digit() { char } else { '_' })
        .collect()
}

/// Ends a look that takes too long. A step's parameters may be incomplete: that is nobody's fault.
async fn limited(
    subject: &str,
    ctx: &StepContext,
    look: impl Future<Output = Result<Vec<Finding>, StepError>>,
) -> Vec<Finding> {
    match tokio::time::timeout(PATIENCE, look).await {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => vec![Finding::failed(subject, "look", &error)],
        Err(_) => {
            ctx.cancel.cancel();
            let detail = format!("no answer within {} s", PATIENCE.as_secs());
            vec![Finding::ok(subject, "look", detail).state(FindingState::Unknown)]
        }
    }
}

fn facts(plan: &Plan, fates: &[Fate], now: Timestamp) -> PreflightFacts {
    let mut facts = PreflightFacts {
        mode: plan.mode,
        rto: plan.objective.rto.map(|span| span.0),
        rpo: plan.objective.rpo.map(|span| span.0),
        now,
        replaced: BTreeMap::new(),
        written: BTreeSet::new(),
        used: BTreeSet::new(),
        starts_services: false,
    };
    for (step, _) in plan.steps.iter().zip(fates).filter(|(_, fate)| !matches!(fate, Fate::Skipped { .. })) {
        facts.used.extend(step.reads.iter().chain(&step.writes).cloned());
        facts.written.extend(step.writes.iter().cloned());
        let is_service = |name: &String| {
            plan.resources.get(name).is_some_and(|resource| resource.kind() == ResourceKind::Service)
        };
        facts.starts_services |= step.writes.iter().any(is_service);
        if !step.destroys.is_empty() {
            for name in &step.writes {
                facts.replaced.entry(name.clone()).or_insert_with(|| step.id.clone());
            }
        }
    }
    facts
}

/// Reads every secret, by name, and says of each whether it could be read; never what it is.
async fn resolve(plan: &Plan) -> (Secrets, Vec<Finding>) {
    let webhooks = plan.resources.iter().filter_map(|(name, resource)| match &resource.system {
        System::Slack(hook) | System::Webhook(hook) => {
            Some((format!("{name}.webhook"), hook.webhook.clone()))
        }
        _ => None,
    });
    let named = plan.secrets.iter().map(|(name, reference)| (name.clone(), reference.clone()));
    let base = plan.project_dir.join("environments");
    let mut reading = JoinSet::new();
    for (name, reference) in named.chain(webhooks) {
        let base = base.clone();
        reading.spawn_blocking(move || {
            let read = Secrets::resolve([&reference], &base);
            (name, reference, read)
        });
    }
    let (mut secrets, mut findings) = (Secrets::default(), Vec::new());
    while let Some(ended) = reading.join_next().await {
        let Ok((name, reference, read)) = ended else { continue };
        let from = format!("from {reference}");
        findings.push(match read {
            Ok(read) => {
                if let Some(value) = read.get(&reference) {
                    secrets.insert(reference, value.clone());
                }
                Finding::ok(name, "secret", format!("can be read, {from}"))
            }
            Err(problems) => {
                let detail: Vec<_> = problems.iter().map(|it| it.reason.clone()).collect();
                let finding = Finding::ok(name, "secret", format!("{from}: {}", detail.join("; ")));
                let help = problems.first().map(crate::secret::Unresolved::help).unwrap_or_default();
                finding.state(FindingState::Failed).help(help)
            }
        });
    }
    (secrets, findings)
}
