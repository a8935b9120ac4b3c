//! The order of steps, by position in the plan.

use std::collections::HashMap;

use crate::model::ids::StepId;
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
    /// Steps that have not ended: main ones and `always` ones.
    pub(super) open: [usize; 2],
    pub(super) groups: HashMap<StepId, (Option<StepId>, Option<usize>)>,
}

impl Graph {
    pub(super) fn new(plan: &Plan, state: &RunState) -> Self {
        let count = plan.steps.len();
        let mut graph = Self {
            blockers: vec![0; count],
            dependants: vec![Vec::new(); count],
            handled: vec![false; count],
            open: [0, 0],
            groups: plan
                .groups
                .iter()
                .map(|group| (group.id.clone(), (group.parent.clone(), group.max_parallel)))
                .collect(),
        };
        for (at, step) in plan.steps.iter().enumerate() {
            if state.steps[at].outcome().is_none() {
                graph.open[usize::from(step.always)] += 1;
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
