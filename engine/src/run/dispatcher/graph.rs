//! The order of steps, by position in the plan.

use crate::plan::{NeedOn, Plan};
use crate::run::state::RunState;

/// Who waits for whom, by position in the plan.
#[derive(Debug)]
pub(super) struct Graph {
    /// How many needs of a step have not ended.
    pub(super) blockers: Vec<usize>,
    pub(super) dependants: Vec<Vec<usize>>,
    /// Some dependant handles this step's failure.
    pub(super) handled: Vec<bool>,
    /// Steps that have not ended: those of the main part and those of `always`.
    pub(super) open: [usize; 2],
}

impl Graph {
    pub(super) fn new(plan: &Plan, state: &RunState) -> Self {
        let count = plan.steps.len();
        let mut graph = Self {
            blockers: vec![0; count],
            dependants: vec![Vec::new(); count],
            handled: vec![false; count],
            open: [0, 0],
        };
        for (at, step) in plan.steps.iter().enumerate() {
            if state.steps[at].outcome().is_none() {
                graph.open[part(plan, at)] += 1;
            }
            for need in &step.needs {
                let Some(needed) = state.position(&need.step) else { continue };
                graph.dependants[needed].push(at);
                graph.handled[needed] |= need.on != NeedOn::Success && !step.always;
                graph.blockers[at] += usize::from(state.steps[needed].outcome().is_none());
            }
        }
        graph
    }
}

/// Returns 0 for a step of the main part and 1 for one of the run's `always`. What concludes a runbook that is called
/// belongs to the part that its caller stands in.
pub(super) fn part(plan: &Plan, at: usize) -> usize {
    let step = &plan.steps[at];
    let called_in_main = step.concludes.and_then(|scope| plan.scopes.get(scope)).is_some_and(|it| !it.always);
    usize::from(step.always && !called_in_main)
}
