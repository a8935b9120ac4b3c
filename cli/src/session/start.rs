//! The beginning of a run: locks, secrets, and the declaration in the journal.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use lifeboat_engine::clock::{Clock, RunClock, ThisMachine};
use lifeboat_engine::code::LB0371;
use lifeboat_engine::crash::{self, Point};
use lifeboat_engine::fence::Machine;
use lifeboat_engine::journal::{Header, Journal};
use lifeboat_engine::model::RunId;
use lifeboat_engine::model::event::EventKind;
use lifeboat_engine::plan::Plan;
use lifeboat_engine::resource::System;
use lifeboat_engine::run::{lock_identities, unapprovable};
use lifeboat_engine::runs::{ResourceLocks, RunDir, RunLock, Wanted};
use lifeboat_engine::secret::{SecretRef, Secrets};

use crate::exit::{Exit, Failure, Outcome};
use crate::render;

use super::{Begun, Held, Manner, Site, fold, serve};

/// A run that is about to be.
pub(crate) struct Declaration {
    pub(crate) plan: Plan,
    pub(crate) incident_at: Timestamp,
    /// What was confirmed to be destroyed: the systems as they were found.
    pub(crate) targets: Vec<String>,
    /// The files that the plan was made from, by name, and what they say.
    pub(crate) sources: Vec<(String, String)>,
}

/// Declares a run and drives it.
///
/// Locks and secrets come first: if one is refused, no run exists and nothing has happened.
pub(crate) fn start(site: &Site, declaration: Declaration, manner: &Manner) -> Outcome {
    let Declaration { plan, incident_at, targets, sources } = declaration;
    refuse_unapprovable(site, &plan, incident_at)?;
    warn_of_work_tree(site.state.path(), plan.protected);
    let clock: Arc<dyn Clock> = Arc::new(RunClock::begin(Arc::new(ThisMachine)));
    let secrets = resolve_secrets(&plan)?;
    let id = RunId::generate();
    let locks = lock_resources(site, id, &plan, &*clock)?;
    let declared = EventKind::RunDeclared {
        plan_digest: plan.digest(),
        incident_at_ms: incident_at.as_millisecond(),
        by: site.by.clone(),
        inputs: plan.inputs.clone(),
        engine: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let confirmed = EventKind::TargetsConfirmed { by: site.by.clone(), targets };
    let said = if confirms(&confirmed) { vec![declared, confirmed] } else { vec![declared] };
    let (run, lock, (journal, events)) = match make(site, id, &plan, said, Arc::clone(&clock)) {
        Ok(made) => made,
        Err(failure) => {
            // Nothing was declared, so that nobody could give the locks back later.
            drop(locks.release());
            return Err(failure);
        }
    };
    for (name, text) in &sources {
        // They are evidence, and no run may fail for want of it: without them the archive says that they are missing.
        if let Err(error) = run.keep_source(name, text) {
            tracing::warn!(%error, "a file that the plan was made from is not kept with the run");
        }
    }
    crash::point(Point::RunDeclared);
    let state = fold(&plan, &events)?;
    let begun = Begun { plan: Arc::new(plan), journal, clock, state, events, secrets };
    serve(site, Held { run, _lock: lock, locks }, begun, manner)
}

/// The directory of a run, the right to write to it, its journal, and what that says.
type Made = (RunDir, RunLock, (Journal, Vec<lifeboat_engine::model::Event>));

/// Makes the directory and the journal of a run; leaves nothing if that fails.
fn make(
    site: &Site,
    id: RunId,
    plan: &Plan,
    said: Vec<EventKind>,
    clock: Arc<dyn Clock>,
) -> Result<Made, Failure> {
    let run = site.state.create_run(id).map_err(|error| render::runs(&error))?;
    let declared = || {
        let lock = run.lock(&*clock).map_err(|error| render::runs(&error))?;
        Ok((lock, declare(&run, plan, said, Arc::clone(&clock))?))
    };
    match declared() {
        Ok((lock, declared)) => Ok((run, lock, declared)),
        Err(failure) => {
            run.discard();
            Err(failure)
        }
    }
}

/// Refuses a run that would come to an approval which nobody may give: its plan cannot be changed then.
fn refuse_unapprovable(site: &Site, plan: &Plan, incident_at: Timestamp) -> Result<(), Failure> {
    let starter = &site.by.name;
    let found = unapprovable(plan, &site.registry, (starter, incident_at));
    let Some(first) = found.first() else { return Ok(()) };
    let people = if first.minimum == 1 { "somebody".to_owned() } else { format!("{} people", first.minimum) };
    let when = match first.conditions.as_slice() {
        [] => String::new(),
        conditions => format!(" where it comes to it (`if: {}`)", conditions.join(" and ")),
    };
    let message = format!(
        "`{}`{when} takes the approval of {people} of `{}` who did not start the run, and {starter} starts it; the role has: {}",
        first.step,
        first.role,
        first.holders.join(", ")
    );
    let help = "nothing has begun; let somebody else start it (`--as NAME`), give the role more people in lifeboat.yaml, or \
                set `allow_starter: true` at the step";
    Err(Failure::new(Exit::Refused, message).code(LB0371).help(help))
}

/// Warns of state that a clean-up of sources would take away, ignored by Git or not: before the first run, and before every
/// one that may matter.
fn warn_of_work_tree(state: &Path, protected: bool) {
    let Some(tree) = state.ancestors().skip(1).find(|dir| dir.join(".git").exists()) else { return };
    let is_first = || std::fs::read_dir(state.join("runs")).is_ok_and(|mut runs| runs.next().is_none());
    if protected || is_first() {
        crate::say::say!(
            "warning: runs are recorded in {}, within the Git work tree {}: `git clean -fdx` there would delete them, and \
             an open run could not go on; name another directory with `state:` in lifeboat.yaml, such as /var/lib/lifeboat",
            state.display(),
            tree.display()
        );
    }
}

fn declare(
    run: &RunDir,
    plan: &Plan,
    said: Vec<EventKind>,
    clock: Arc<dyn Clock>,
) -> Result<(Journal, Vec<lifeboat_engine::model::Event>), Failure> {
    let header = Header {
        run: run.id(),
        engine: env!("CARGO_PKG_VERSION").to_owned(),
        created_ms: clock.now_ms(),
        plan: plan.clone(),
    };
    let journal = Journal::create(run.path(), header, clock).map_err(|error| render::journal(&error))?;
    let events = append(&journal, said)?;
    Ok((journal, events))
}

fn confirms(event: &EventKind) -> bool {
    matches!(event, EventKind::TargetsConfirmed { targets, .. } if !targets.is_empty())
}

/// Makes events durable that precede everything a process does.
pub(super) fn append(
    journal: &Journal,
    said: Vec<EventKind>,
) -> Result<Vec<lifeboat_engine::model::Event>, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .map_err(|error| Failure::internal("the runtime cannot start").caused_by(&error))?;
    runtime.block_on(journal.append(said)).map_err(|error| render::journal(&error))
}

/// Takes what the run writes to, so that no other run touches it meanwhile.
pub(super) fn lock_resources(
    site: &Site,
    run: RunId,
    plan: &Plan,
    clock: &dyn Clock,
) -> Result<ResourceLocks, Failure> {
    let identities = lock_identities(plan, &site.registry, &Machine::new());
    let by = format!("{}@{}", plan.runbook, plan.environment);
    ResourceLocks::acquire(&site.state, &Wanted { run, by, identities }, clock)
        .map_err(|error| render::runs(&error))
}

/// Reads every secret of the environment afresh.
pub(super) fn resolve_secrets(plan: &Plan) -> Result<Secrets, Failure> {
    let resolved = Secrets::resolve(references(plan), &base(plan)).map_err(|problems| {
        let mut problems = problems.iter();
        let Some(first) = problems.next() else { return Failure::internal("a secret cannot be read") };
        let failure = Failure::new(Exit::Refused, first.to_string()).code(first.code()).help(first.help());
        problems.fold(failure, |failure, problem| failure.caused_by(problem))
    })?;
    warn_of_words(resolved, plan)
}

/// Reads those secrets of the environment that can be read here, and says which cannot: they are removed from nothing.
pub(crate) fn resolve_readable(plan: &Plan) -> Result<Secrets, Failure> {
    let (resolved, problems) = Secrets::resolve_readable(references(plan), &base(plan));
    for problem in problems {
        crate::say::say!(
            "warning[{}]: {problem}; where it stands in what was written, it stays",
            problem.code()
        );
    }
    warn_of_words(resolved, plan)
}

fn references(plan: &Plan) -> impl Iterator<Item = &SecretRef> {
    let webhooks = plan.resources.values().filter_map(|resource| match &resource.system {
        System::Slack(hook) | System::Webhook(hook) => Some(&hook.webhook),
        _ => None,
    });
    plan.secrets.values().chain(webhooks)
}

/// The directory of the environments, which relative references are taken from.
fn base(plan: &Plan) -> PathBuf {
    plan.project_dir.join("environments")
}

/// Warns of secrets that are no secrets, for the plan says them.
fn warn_of_words(mut secrets: Secrets, plan: &Plan) -> Result<Secrets, Failure> {
    if secrets.iter().next().is_none() {
        return Ok(secrets);
    }
    let text = render::json(plan)?;
    for found in secrets.found_in(&text) {
        let what = match found.removed {
            true => "which is stored and shown",
            false => "and is so short that it may be an ordinary word: it is not removed from output",
        };
        crate::say::say!(
            "warning[LB0389]: the secret from {} stands in the plan too, {what}",
            found.reference
        );
    }
    Ok(secrets)
}
