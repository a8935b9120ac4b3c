//! The graph of a plan: order and critical path, each in time linear in steps and edges.

use std::collections::HashMap;
use std::time::Duration;

use petgraph::algo::toposort;
use petgraph::graph::{DiGraph, NodeIndex};

use crate::plan::Plan;

/// What the graph needs to know of a step.
#[derive(Clone, Debug, Default)]
pub struct Node {
    /// Positions of the steps that must have ended before.
    pub needs: Vec<usize>,
    /// What it is meant to take; nothing if it does not say.
    pub budget: Duration,
    /// The innermost group it is in.
    pub group: Option<usize>,
}

/// What the graph needs to know of a group.
#[derive(Clone, Debug, Default)]
pub struct GroupNode {
    pub parent: Option<usize>,
    pub budget: Option<Duration>,
}

/// Steps and the edges between them.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    pub steps: Vec<Node>,
    pub groups: Vec<GroupNode>,
}

/// The chain of steps that decides how long the whole takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CriticalPath {
    /// Positions of its steps, first one first.
    pub steps: Vec<usize>,
    pub length: Duration,
}

impl Graph {
    /// Reads the graph of a plan; positions are those of `plan.steps` and `plan.groups`.
    pub fn of(plan: &Plan) -> Self {
        let steps: HashMap<_, _> = plan.steps.iter().enumerate().map(|(at, step)| (&step.id, at)).collect();
        let groups: HashMap<_, _> =
            plan.groups.iter().enumerate().map(|(at, group)| (&group.id, at)).collect();
        let group = |id: &Option<crate::model::StepId>| id.as_ref().and_then(|id| groups.get(id).copied());
        Self {
            steps: plan
                .steps
                .iter()
                .map(|step| Node {
                    needs: step.needs.iter().filter_map(|need| steps.get(&need.step).copied()).collect(),
                    budget: step.budget.map_or(Duration::ZERO, |span| span.0),
                    group: group(&step.group),
                })
                .collect(),
            groups: plan
                .groups
                .iter()
                .map(|found| GroupNode {
                    parent: group(&found.parent),
                    budget: found.budget.map(|span| span.0),
                })
                .collect(),
        }
    }

    /// Returns the steps so that each comes after all it needs. `None` if they wait for each other in a circle.
    pub fn topological_order(&self) -> Option<Vec<usize>> {
        let graph = self.petgraph();
        let order = toposort(&graph, None).ok()?;
        Some(order.into_iter().map(NodeIndex::index).collect())
    }

    pub(super) fn petgraph(&self) -> DiGraph<(), (), usize> {
        let edges = self.steps.iter().map(|step| step.needs.len()).sum();
        let mut graph = DiGraph::with_capacity(self.steps.len(), edges);
        for _ in &self.steps {
            graph.add_node(());
        }
        for (at, step) in self.steps.iter().enumerate() {
            for need in &step.needs {
                graph.add_edge(NodeIndex::new(*need), NodeIndex::new(at), ());
            }
        }
        graph
    }

    /// Returns the chain with the largest sum of budgets that ends in one of these steps. A group's budget counts
    /// where its steps stay below it.
    pub fn critical_path(&self, ends: &[usize]) -> Option<CriticalPath> {
        let order = self.topological_order()?;
        let ends_of = self.ends_of_groups();
        let mut started: Vec<Option<Duration>> = vec![None; self.groups.len()];
        let mut finish = vec![Duration::ZERO; self.steps.len()];
        let mut before: Vec<Option<usize>> = vec![None; self.steps.len()];
        for at in order {
            let step = &self.steps[at];
            before[at] = step.needs.iter().copied().max_by_key(|need| finish[*need]);
            let start = before[at].map_or(Duration::ZERO, |need| finish[need]);
            finish[at] = start + step.budget;
            let mut next = step.group;
            while let Some(group) = next {
                let first = started[group].map_or(start, |first| first.min(start));
                started[group] = Some(first);
                if let Some(budget) = self.groups[group].budget.filter(|_| ends_of[at].contains(&group)) {
                    finish[at] = finish[at].max(first + budget);
                }
                next = self.groups[group].parent;
            }
        }
        let last = ends.iter().copied().max_by_key(|end| finish[*end])?;
        let mut steps: Vec<_> = std::iter::successors(Some(last), |at| before[*at]).collect();
        steps.reverse();
        Some(CriticalPath { steps, length: finish[last] })
    }

    /// Returns for every step the groups that end with it: no step of the group waits for it.
    fn ends_of_groups(&self) -> Vec<Vec<usize>> {
        let chain = |at: usize| {
            std::iter::successors(self.steps[at].group, |group| self.groups[*group].parent)
                .collect::<Vec<_>>()
        };
        let mut ends: Vec<_> = (0..self.steps.len()).map(chain).collect();
        for (at, step) in self.steps.iter().enumerate() {
            let own = chain(at);
            for need in &step.needs {
                ends[*need].retain(|group| !own.contains(group));
            }
        }
        ends
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(needs: &[usize], minutes: u64, group: Option<usize>) -> Node {
        Node { needs: needs.to_vec(), budget: Duration::from_secs(minutes * 60), group }
    }

    #[test]
    fn the_longest_chain_is_critical() {
        let graph = Graph {
            steps: vec![
                node(&[], 1, None),
                node(&[0], 5, None),
                node(&[0], 9, None),
                node(&[1, 2], 1, None),
                node(&[3], 99, None),
            ],
            groups: vec![],
        };
        let path = graph.critical_path(&[3]).unwrap();
        assert_eq!(path, CriticalPath { steps: vec![0, 2, 3], length: Duration::from_secs(11 * 60) });
    }

    #[test]
    fn the_budget_of_a_group_counts_as_a_whole() {
        let groups = vec![GroupNode { parent: None, budget: Some(Duration::from_secs(600)) }];
        let steps = vec![node(&[], 1, Some(0)), node(&[0], 2, Some(0)), node(&[1], 1, None)];
        let graph = Graph { steps, groups };
        assert_eq!(graph.critical_path(&[2]).unwrap().length, Duration::from_secs(11 * 60));
    }

    #[test]
    fn circles_have_no_order() {
        let graph = Graph { steps: vec![node(&[1], 0, None), node(&[0], 0, None)], groups: vec![] };
        assert_eq!(graph.topological_order(), None);
    }

    #[test]
    fn long_chains_are_quick() {
        let steps =
            (0..50_000).map(|at: usize| node(&at.checked_sub(1).into_iter().collect::<Vec<_>>(), 1, None));
        let graph = Graph { steps: steps.collect(), groups: vec![] };
        assert_eq!(graph.critical_path(&[49_999]).unwrap().steps.len(), 50_000);
    }
}
