//! The graph of a plan: order and critical path, each in time linear in steps and edges.

use std::collections::HashMap;
use std::time::Duration;

use petgraph::algo::toposort;
use petgraph::graph::{DiGraph, NodeIndex};

use crate::plan::{Needed, Plan};

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
    /// How many of the last of `steps` are no steps: each stands for the end of a group that is needed as a whole.
    pub joins: usize,
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
        let mut graph = Self {
            joins: 0,
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
        };
        let wiring = plan.wiring();
        let whole = |at: usize| -> Vec<usize> {
            let groups = wiring.direct(at).filter_map(|(needed, _)| match needed {
                Needed::Group(group) => Some(group),
                Needed::Step(_) => None,
            });
            groups.collect()
        };
        let waiting: Vec<_> = (0..plan.steps.len()).map(whole).collect();
        graph.join(waiting.iter().map(Vec::as_slice), |group| wiring.ends(group).to_vec());
        graph
    }

    /// Adds a node for each group that is needed as a whole: it needs the group's ends, and whoever needs the group needs
    /// it. `waiting` has for every step the groups that it needs so.
    pub(super) fn join<'w>(
        &mut self,
        waiting: impl Iterator<Item = &'w [usize]>,
        ends: impl Fn(usize) -> Vec<usize>,
    ) {
        let real = self.steps.len();
        let mut known: HashMap<usize, usize> = HashMap::new();
        for (at, groups) in waiting.enumerate() {
            for group in groups.iter().copied() {
                let join = *known.entry(group).or_insert_with(|| {
                    self.steps.push(Node { needs: ends(group), ..Node::default() });
                    self.steps.len() - 1
                });
                self.steps[at].needs.push(join);
                // The innermost group that holds both it and a step that waits for it.
                let (own, before) = (self.common(group, at), self.steps[join].group);
                if self.depth(own) > self.depth(before) {
                    self.steps[join].group = own;
                }
            }
        }
        self.joins = self.steps.len() - real;
    }

    fn depth(&self, group: Option<usize>) -> usize {
        self.around(group).count()
    }

    /// Returns a group and those around it, innermost first.
    fn around(&self, group: Option<usize>) -> impl Iterator<Item = usize> + '_ {
        std::iter::successors(group, |group| self.groups[*group].parent)
    }

    /// Returns the innermost group around another one that also holds a step.
    fn common(&self, group: usize, step: usize) -> Option<usize> {
        let own: Vec<_> = self.around(self.steps[step].group).collect();
        self.around(self.groups[group].parent).find(|around| own.contains(around))
    }

    /// Returns the steps so that each comes after all it needs. `None` if they wait for each other in a circle.
    pub fn topological_order(&self) -> Option<Vec<usize>> {
        let real = self.steps.len() - self.joins;
        Some(self.order()?.into_iter().filter(|at| *at < real).collect())
    }

    /// Returns all nodes so that each comes after all it needs.
    fn order(&self) -> Option<Vec<usize>> {
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
        let order = self.order()?;
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
        let real = self.steps.len() - self.joins;
        let chain = std::iter::successors(Some(last), |at| before[*at]);
        let mut steps: Vec<_> = chain.filter(|at| *at < real).collect();
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
            ..Graph::default()
        };
        let path = graph.critical_path(&[3]).unwrap();
        assert_eq!(path, CriticalPath { steps: vec![0, 2, 3], length: Duration::from_secs(11 * 60) });
    }

    #[test]
    fn the_budget_of_a_group_counts_as_a_whole() {
        let groups = vec![GroupNode { parent: None, budget: Some(Duration::from_secs(600)) }];
        let steps = vec![node(&[], 1, Some(0)), node(&[0], 2, Some(0)), node(&[1], 1, None)];
        let graph = Graph { steps, groups, joins: 0 };
        assert_eq!(graph.critical_path(&[2]).unwrap().length, Duration::from_secs(11 * 60));
    }

    #[test]
    fn circles_have_no_order() {
        let graph = Graph { steps: vec![node(&[1], 0, None), node(&[0], 0, None)], ..Graph::default() };
        assert_eq!(graph.topological_order(), None);
    }

    #[test]
    fn long_chains_are_quick() {
        let steps =
            (0..50_000).map(|at: usize| node(&at.checked_sub(1).into_iter().collect::<Vec<_>>(), 1, None));
        let graph = Graph { steps: steps.collect(), ..Graph::default() };
        assert_eq!(graph.critical_path(&[49_999]).unwrap().steps.len(), 50_000);
    }
}
