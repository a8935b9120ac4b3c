//! The order of steps, by position in the plan.

use std::collections::HashMap;

use crate::model::ids::StepId;
use crate::model::outcome::Outcome;
use crate::plan::{NeedOn, Needed, OnError, Plan};
use crate::run::state::RunState;

/// Who waits for whom, by position in the plan. Costs what the plan says, however wide groups are that are needed as a
/// whole.
#[derive(Debug)]
pub(super) struct Graph {
    /// How many needs of a step have not ended.
    pub(super) blockers: Vec<usize>,
    dependants: Vec<Vec<usize>>,
    /// The groups that each step is an end of and that are needed as a whole.
    ends: Vec<Vec<usize>>,
    /// Groups that are needed as a whole, by position.
    groups: Vec<Group>,
    names: HashMap<StepId, usize>,
    /// Some dependant handles this step's failure.
    pub(super) handled: Vec<bool>,
    /// Steps that have not ended: those of the main part and those of `always`.
    pub(super) open: [usize; 2],
}

/// A group that is needed as a whole.
#[derive(Clone, Debug, Default)]
pub(super) struct Group {
    /// How many of its ends have not ended.
    pub(super) open: usize,
    /// The first of its ends, in the order of the plan, that has ended and does not let the others go on.
    pub(super) stopped_by: Option<usize>,
    dependants: Vec<usize>,
}

impl Graph {
    pub(super) fn new(plan: &Plan, state: &RunState) -> Self {
        let count = plan.steps.len();
        let wiring = plan.wiring();
        let mut graph = Self {
            blockers: vec![0; count],
            dependants: vec![Vec::new(); count],
            ends: vec![Vec::new(); count],
            groups: vec![Group::default(); plan.groups.len()],
            names: wiring.whole_groups().map(|at| (plan.groups[at].id.clone(), at)).collect(),
            handled: vec![false; count],
            open: [0, 0],
        };
        let is_open = |at: usize| usize::from(state.steps[at].outcome().is_none());
        for group in wiring.whole_groups() {
            for end in wiring.ends(group) {
                graph.ends[*end].push(group);
                graph.groups[group].open += is_open(*end);
                if let Some(outcome) = state.steps[*end].outcome() {
                    graph.groups[group].end(*end, lets_go_on(plan, *end, outcome));
                }
            }
        }
        for (at, step) in plan.steps.iter().enumerate() {
            graph.open[part(plan, at)] += is_open(at);
            for (needed, on) in wiring.direct(at) {
                match needed {
                    Needed::Step(needed) => {
                        graph.dependants[needed].push(at);
                        graph.handled[needed] |= on != NeedOn::Success && !step.always;
                        graph.blockers[at] += is_open(needed);
                    }
                    Needed::Group(group) => {
                        graph.groups[group].dependants.push(at);
                        graph.blockers[at] += usize::from(graph.groups[group].open > 0);
                    }
                }
            }
        }
        graph
    }

    /// Returns a group that is needed as a whole.
    pub(super) fn group(&self, id: &StepId) -> Option<&Group> {
        self.names.get(id).map(|at| &self.groups[*at])
    }

    /// Takes note that a step has ended, and whether the others may go on; returns the steps that waited for nothing else.
    pub(super) fn ended(&mut self, at: usize, goes_on: bool) -> Vec<usize> {
        let Self { blockers, dependants, ends, groups, .. } = self;
        let mut free = Vec::new();
        let mut release = |dependants: &[usize]| {
            for dependant in dependants {
                blockers[*dependant] -= 1;
                free.extend((blockers[*dependant] == 0).then_some(*dependant));
            }
        };
        release(&dependants[at]);
        for group in &ends[at] {
            let group = &mut groups[*group];
            group.open -= 1;
            group.end(at, goes_on);
            if group.open == 0 {
                release(&group.dependants);
            }
        }
        free
    }
}

impl Group {
    fn end(&mut self, at: usize, goes_on: bool) {
        if !goes_on {
            self.stopped_by = Some(self.stopped_by.map_or(at, |first| first.min(at)));
        }
    }
}

/// Says whether what needs the success of a step may start after this outcome: also after a failure, if the step was told
/// to let the others go on.
pub(super) fn lets_go_on(plan: &Plan, at: usize, outcome: &Outcome) -> bool {
    let passed_over =
        || matches!(outcome, Outcome::Failed { .. }) && plan.at(at).on_error == OnError::Continue;
    outcome.is_success() || passed_over()
}

/// Returns 0 for a step of the main part and 1 for one of the run's `always`. What concludes a runbook that is called
/// belongs to the part that its caller stands in.
pub(super) fn part(plan: &Plan, at: usize) -> usize {
    let step = &plan.steps[at];
    let called_in_main = step.concludes.and_then(|scope| plan.scopes.get(scope)).is_some_and(|it| !it.always);
    usize::from(step.always && !called_in_main)
}
