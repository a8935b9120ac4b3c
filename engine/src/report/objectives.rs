//! Recovery time, milestones, and where the time went.

use super::fold::StepFold;
use super::human::{self, Moment};
use super::model::{Activity, MilestoneReport, Rto, TimeSpent, Verdict};
use super::path;
use super::source::View;
use super::timeline::{group_times, millis};
use crate::model::event::Decision;
use crate::model::outcome::{Outcome, RunOutcome};
use crate::plan::{Milestone, MilestoneAt, OnError, PlannedGroup, PlannedStep};

/// Whether and when what the run restores was back in service.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Recovery {
    /// No step or group marks it.
    Unmarked,
    Pending,
    At(i64),
    /// It will not be known in this run, for this reason.
    Never(String),
}

/// What became of one mark.
enum Mark {
    Pending,
    At(i64),
    /// Its own condition left it out.
    LeftOut,
    Never(String),
}

pub(super) fn recovery(view: &View<'_>) -> Recovery {
    let steps = view.plan.steps.iter().filter(|step| step.recovered).map(|step| step_mark(view, step));
    let groups = view.plan.groups.iter().filter(|group| group.recovered).map(|group| group_mark(view, group));
    let marks: Vec<Mark> = steps.chain(groups).collect();
    if marks.is_empty() {
        return Recovery::Unmarked;
    }
    let mut pending = false;
    let mut latest = None;
    for mark in marks {
        match mark {
            Mark::Never(why) => return Recovery::Never(why),
            Mark::Pending => pending = true,
            Mark::At(at) => latest = latest.max(Some(at)),
            Mark::LeftOut => {}
        }
    }
    match latest {
        _ if pending => Recovery::Pending,
        Some(at) => Recovery::At(at),
        None => Recovery::Never("every step that marks recovery was skipped".to_owned()),
    }
}

fn step_mark(view: &View<'_>, step: &PlannedStep) -> Mark {
    let never = |why: &str| Mark::Never(format!("`{}` {why}", step.id));
    match view.state(step).and_then(|state| state.outcome) {
        Some((at, Outcome::Succeeded | Outcome::MarkedDone { .. })) => Mark::At(at),
        Some((_, Outcome::Skipped { .. })) if skipped_by_person(view, step) => {
            never("was skipped by a person, and a skipped step is no recovery")
        }
        Some((_, Outcome::Skipped { .. })) => Mark::LeftOut,
        Some((_, Outcome::Failed { .. })) => never("failed"),
        Some((_, Outcome::NotRun { .. })) => never("was not run"),
        None if view.is_ended() => never("was not run"),
        None => Mark::Pending,
    }
}

fn group_mark(view: &View<'_>, group: &PlannedGroup) -> Mark {
    let mut result = Mark::LeftOut;
    // The `always` of a runbook that is called cleans up; what was recovered is so before.
    let steps = view.members.steps(&group.id).iter().map(|&at| &view.plan.steps[at]);
    for step in steps.filter(|step| !step.always) {
        match (step_mark(view, step), &result) {
            (Mark::Never(_), _) if tolerated(view, step) => {}
            (Mark::Never(why), _) => return Mark::Never(why),
            (Mark::Pending, _) => result = Mark::Pending,
            (Mark::At(at), Mark::LeftOut) => result = Mark::At(at),
            (Mark::At(at), Mark::At(best)) if at > *best => result = Mark::At(at),
            _ => {}
        }
    }
    result
}

/// Says whether a step failed and the runbook goes on regardless.
fn tolerated(view: &View<'_>, step: &PlannedStep) -> bool {
    let failed = view.state(step).and_then(|state| state.outcome);
    step.on_error == OnError::Continue && matches!(failed, Some((_, Outcome::Failed { .. })))
}

pub(super) fn skipped_by_person(view: &View<'_>, step: &PlannedStep) -> bool {
    let skips =
        |decision: &Decision| matches!(decision, Decision::SkipStep { step: id, .. } if *id == step.id);
    view.fold.decisions.iter().any(|made| skips(made.decision))
}

/// Why there is no recovery of a runbook that is none.
pub(super) const UNMARKED: &str = "no step of this runbook marks recovery";

pub(super) fn rto(view: &View<'_>) -> Rto {
    let objective = view.plan.objective.rto.map(millis);
    let recovery = recovery(view);
    let until = match recovery {
        Recovery::At(at) => at,
        _ => view.fold.end,
    };
    let used_ms = view.since_incident(until);
    let open = !view.is_ended() && !matches!(recovery, Recovery::At(_));
    let forecast = if open { path::forecast(view, objective) } else { None };
    let breaks = match (objective, &forecast) {
        (Some(limit), Some(forecast)) => forecast.used_ms > limit,
        _ => false,
    };
    let (verdict, reason) = judge_rto(view, &recovery, objective.map(|limit| limit - used_ms), breaks);
    Rto {
        objective_ms: objective,
        verdict: objective.and(Some(verdict)),
        reason,
        recovered_at: match recovery {
            Recovery::At(at) => Some(Moment(at)),
            _ => None,
        },
        used_ms,
        left_ms: objective.filter(|_| open).map(|limit| (limit - used_ms).max(0)),
        margin_ms: objective.map(|limit| limit - used_ms),
        forecast,
    }
}

fn judge_rto(view: &View<'_>, recovery: &Recovery, margin: Option<i64>, breaks: bool) -> (Verdict, String) {
    let over = margin.is_some_and(|margin| margin < 0);
    let excess = || human::duration(margin.unwrap_or(0).saturating_abs());
    let verdict = |missed: bool| if missed { Verdict::Missed } else { Verdict::NotMeasured };
    match recovery {
        Recovery::At(_) if margin.is_none() => {
            (Verdict::NotMeasured, "recovered; no limit was set".to_owned())
        }
        Recovery::At(_) if over => (Verdict::Missed, format!("recovered {} too late", excess())),
        Recovery::At(_) => {
            let unclean = matches!(view.fold.finished, Some(RunOutcome::Failed | RunOutcome::Aborted));
            let note =
                if unclean { "recovered in time, before the run ended badly" } else { "recovered in time" };
            (Verdict::Met, note.to_owned())
        }
        Recovery::Unmarked => (verdict(false), UNMARKED.to_owned()),
        Recovery::Never(why) if over => (Verdict::Missed, format!("not recovered by the deadline: {why}")),
        Recovery::Never(why) => (Verdict::NotMeasured, format!("not recovered: {why}")),
        Recovery::Pending if over => (Verdict::Missed, format!("not recovered yet, {} over", excess())),
        Recovery::Pending if breaks => {
            (Verdict::AtRisk, "by the budgets of what is left it will be too late".to_owned())
        }
        Recovery::Pending => (Verdict::NotMeasured, "not recovered yet".to_owned()),
    }
}

pub(super) fn time_spent(view: &View<'_>) -> TimeSpent {
    let mut spent = TimeSpent::default();
    for segment in &view.fold.segments {
        let length = segment.to.0 - segment.from.0;
        spent.total_ms += length;
        *match segment.activity {
            Activity::BeforeRun => &mut spent.before_run_ms,
            Activity::Working => &mut spent.working_ms,
            Activity::WaitingForPerson => &mut spent.waiting_for_person_ms,
            Activity::WaitingForRetry => &mut spent.waiting_for_retry_ms,
            Activity::Paused => &mut spent.paused_ms,
            Activity::EngineDown => &mut spent.engine_down_ms,
            Activity::BetweenSteps => &mut spent.between_steps_ms,
            Activity::CleaningUp => &mut spent.cleaning_up_ms,
        } += length;
    }
    spent
}

/// Lists milestones by deadline; those without one come last.
pub(super) fn milestones(view: &View<'_>) -> Vec<MilestoneReport> {
    let mut found: Vec<MilestoneReport> = Vec::new();
    for step in &view.plan.steps {
        if let Some(mark) = &step.milestone {
            found.push(milestone(view, mark, &step.id, step_moment(view, step, mark.at)));
        }
    }
    for group in &view.plan.groups {
        if let Some(mark) = &group.milestone {
            found.push(milestone(view, mark, &group.id, group_moment(view, group, mark.at)));
        }
    }
    for (name, deadline) in &view.plan.milestones {
        if !found.iter().any(|known| known.name == *name) {
            found.push(MilestoneReport { marked_by: None, ..unreached(view, name, Some(millis(*deadline))) });
        }
    }
    found.sort_by_key(|mark| (mark.deadline_ms.unwrap_or(i64::MAX), mark.reached_at));
    found
}

fn milestone(
    view: &View<'_>,
    mark: &Milestone,
    by: &crate::model::StepId,
    reached: Option<i64>,
) -> MilestoneReport {
    let deadline_ms = view.plan.milestones.get(&mark.name).copied().map(millis);
    let marked_by = Some(by.clone());
    let Some(at) = reached else {
        return MilestoneReport { marked_by, ..unreached(view, &mark.name, deadline_ms) };
    };
    let after = view.since_incident(at);
    let in_time = |deadline| if after <= deadline { Verdict::Met } else { Verdict::Missed };
    MilestoneReport {
        name: mark.name.clone(),
        marked_by,
        deadline_ms,
        reached_at: Some(Moment(at)),
        reached_after_ms: Some(after),
        verdict: deadline_ms.map(in_time),
    }
}

fn unreached(view: &View<'_>, name: &str, deadline_ms: Option<i64>) -> MilestoneReport {
    let passed = deadline_ms.is_some_and(|deadline| view.since_incident(view.fold.end) > deadline);
    let verdict = match (deadline_ms, passed, view.is_ended()) {
        (None, ..) | (_, false, false) => None,
        (_, true, _) => Some(Verdict::Missed),
        (_, false, true) => Some(Verdict::NotMeasured),
    };
    MilestoneReport {
        name: name.to_owned(),
        marked_by: None,
        deadline_ms,
        reached_at: None,
        reached_after_ms: None,
        verdict,
    }
}

fn step_moment(view: &View<'_>, step: &PlannedStep, at: MilestoneAt) -> Option<i64> {
    let state = view.state(step)?;
    match (at, state.outcome) {
        (MilestoneAt::Started, _) => state.started(),
        (MilestoneAt::Succeeded, Some((at, Outcome::Succeeded | Outcome::MarkedDone { .. }))) => Some(at),
        (MilestoneAt::Succeeded, _) => None,
    }
}

fn group_moment(view: &View<'_>, group: &PlannedGroup, at: MilestoneAt) -> Option<i64> {
    let (started, ended) = group_times(view, group);
    if at == MilestoneAt::Started {
        return started;
    }
    let members = view.members.steps(&group.id);
    let good = |&at: &usize| {
        let step = &view.plan.steps[at];
        tolerated(view, step) || view.state(step).and_then(succeeded).unwrap_or(false)
    };
    ended.filter(|_| members.iter().all(good))
}

fn succeeded(state: &StepFold<'_>) -> Option<bool> {
    state.outcome.map(|(_, outcome)| outcome.is_success())
}
