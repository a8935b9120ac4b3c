use std::cell::RefCell;
use std::collections::{HashMap, HashSet};

use super::fold::{Fold, StepFold};
use super::human::Moment;
use super::model::{Owner, RunReport, Verdict};
use super::{evidence, loss, objectives, path, standing, timeline, undo};
use crate::model::event::Event;
use crate::model::ids::{RunId, StepId};
use crate::plan::{Plan, PlannedStep, Wiring};

/// What a report is computed from.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    pub run: RunId,
    pub plan: &'a Plan,
    /// In the order of their sequence numbers.
    pub events: &'a [Event],
    /// The present; of no influence once the run has ended.
    pub now: Moment,
    /// Whether a process holds the run's lock.
    pub owner: Owner,
}

impl RunReport {
    /// Computes the report of a run, ended or open. Linear in events and steps.
    pub fn of(source: &Source<'_>) -> Self {
        let view = View::new(source);
        let critical = path::critical(&view);
        let steps = timeline::steps(&view, &critical.actual);
        let rpo = loss::rpo(&view);
        let rto = objectives::rto(&view);
        let created = evidence::created(&view);
        let warnings = evidence::warnings(&view, &rpo, &created);
        let checks = evidence::checks(&view);
        Self {
            format: Self::FORMAT,
            identity: standing::identity(&view),
            outcome: standing::standing(&view, &rto, &rpo, warnings.len()),
            undo: undo::report(&view),
            time: objectives::time_spent(&view),
            milestones: objectives::milestones(&view),
            groups: timeline::groups(&view),
            critical_path: critical,
            questions: evidence::questions(&view),
            decisions: evidence::decisions(&view),
            notes: evidence::notes(&view),
            troubles: evidence::troubles(&view),
            facts: evidence::facts(&view),
            not_checked: evidence::not_checked(&view, &rpo, &checks),
            activity: view.fold.segments.clone(),
            rto,
            rpo,
            steps,
            checks,
            created,
            warnings,
        }
    }
}

impl RunReport {
    /// Says whether every objective that was set is proven to be met.
    pub fn objectives_met(&self) -> bool {
        let verdicts = [self.rto.verdict, self.rpo.verdict];
        verdicts.iter().flatten().all(|verdict| *verdict == Verdict::Met)
    }

    /// Writes the report as data, in the versioned form that [`RunReport::FORMAT`] names.
    pub fn json(&self) -> String {
        serde_json::to_string_pretty(self).expect("a report holds nothing that JSON cannot express")
    }
}

/// The plan and the folded events side by side.
pub(super) struct View<'a> {
    pub(super) source: Source<'a>,
    pub(super) plan: &'a Plan,
    pub(super) fold: Fold<'a>,
    pub(super) index: HashMap<&'a StepId, usize>,
    pub(super) wiring: Wiring<'a>,
    last_ends: RefCell<HashMap<usize, Option<i64>>>,
    pub(super) members: Members<'a>,
}

impl<'a> View<'a> {
    pub(super) fn new(source: &Source<'a>) -> Self {
        let plan = source.plan;
        let index = plan.steps.iter().enumerate().map(|(at, step)| (&step.id, at)).collect();
        let (wiring, members) = (plan.wiring(), Members::of(plan));
        Self {
            source: *source,
            plan,
            fold: Fold::of(source),
            index,
            wiring,
            last_ends: RefCell::default(),
            members,
        }
    }

    pub(super) fn state(&self, step: &PlannedStep) -> Option<&StepFold<'a>> {
        self.fold.steps.get(&step.id)
    }

    /// Returns when the last end of a group that is needed as a whole has ended; remembered, for many steps ask.
    pub(super) fn last_end(&self, group: usize) -> Option<i64> {
        let find = || {
            let ends = self.wiring.ends(group).iter();
            ends.filter_map(|at| self.state(&self.plan.steps[*at])?.ended()).max()
        };
        *self.last_ends.borrow_mut().entry(group).or_insert_with(find)
    }

    /// Returns milliseconds from the incident, never negative.
    pub(super) fn since_incident(&self, at: i64) -> i64 {
        at.saturating_sub(self.fold.incident).max(0)
    }

    pub(super) fn is_ended(&self) -> bool {
        self.fold.finished.is_some()
    }
}

/// Which steps are in which groups, those of inner groups included.
#[derive(Debug, Default)]
pub(super) struct Members<'a> {
    steps: HashMap<&'a StepId, Vec<usize>>,
    groups: Vec<Vec<usize>>,
}

impl<'a> Members<'a> {
    fn of(plan: &'a Plan) -> Self {
        let by_id: HashMap<&StepId, usize> =
            plan.groups.iter().enumerate().map(|(at, group)| (&group.id, at)).collect();
        let mut members = Self { steps: HashMap::new(), groups: vec![Vec::new(); plan.steps.len()] };
        for (at, step) in plan.steps.iter().enumerate() {
            let mut next = step.group.as_ref();
            let mut seen = HashSet::new();
            while let Some(id) = next.filter(|id| seen.insert(*id)) {
                members.steps.entry(id).or_default().push(at);
                let group = by_id.get(id).copied();
                members.groups[at].extend(group);
                next = group.and_then(|group| plan.groups[group].parent.as_ref());
            }
        }
        members
    }

    /// Returns the steps of a group, in the order of the plan.
    pub(super) fn steps(&self, group: &StepId) -> &[usize] {
        self.steps.get(group).map_or(&[], Vec::as_slice)
    }

    /// Returns the groups of a step, innermost first.
    pub(super) fn groups(&self, step: usize) -> &[usize] {
        &self.groups[step]
    }
}
