use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use petgraph::algo::kosaraju_scc;

use super::graph::Graph;
use super::order::Order;
use crate::diagnostic::{Diagnostic, Diagnostics, Source, codes};

/// Reports every circle of steps that wait for each other, each with its whole way round. True if there is one.
pub(super) fn report_cycles(
    order: &Order<'_>,
    graph: &Graph,
    source: &Arc<Source>,
    out: &mut Diagnostics,
) -> bool {
    if graph.topological_order().is_some() {
        return false;
    }
    let mut found = false;
    for component in kosaraju_scc(&graph.petgraph()) {
        let members: Vec<_> = component.into_iter().map(petgraph::graph::NodeIndex::index).collect();
        if members.len() < 2 {
            continue;
        }
        found = true;
        let mut way = shortest_way_round(graph, &members);
        way.retain(|at| *at < order.steps.len());
        let id = |at: &usize| order.steps[*at].spec.common.id.value.as_str();
        let names: Vec<_> = way.iter().chain(way.first()).map(|at| format!("`{}`", id(at))).collect();
        let first = &order.steps[way[0]].spec.common.id;
        let mut diagnostic =
            Diagnostic::error(codes::LB0130, format!("steps wait for each other: {}", names.join(" needs ")))
                .at(source, first.span.clone())
                .help("remove one of the `needs`; without `needs` a step waits for the one above it");
        for at in way.iter().skip(1).take(8) {
            diagnostic = diagnostic.also(order.steps[*at].spec.common.id.span.clone(), "in the circle");
        }
        out.push(diagnostic);
    }
    found
}

/// Returns a shortest circle through the first step of the file among the members.
fn shortest_way_round(graph: &Graph, members: &[usize]) -> Vec<usize> {
    let inside: HashSet<_> = members.iter().copied().collect();
    let start = members.iter().copied().min().unwrap_or_default();
    let (mut queue, mut came_from) = (VecDeque::from([start]), HashMap::new());
    while let Some(last) = queue.pop_front() {
        for need in graph.steps[last].needs.iter().copied().filter(|need| inside.contains(need)) {
            if need == start {
                let mut way: Vec<_> =
                    std::iter::successors(Some(last), |at| came_from.get(at).copied()).collect();
                way.reverse();
                return way;
            }
            if let Entry::Vacant(unseen) = came_from.entry(need) {
                unseen.insert(last);
                queue.push_back(need);
            }
        }
    }
    members.to_vec()
}

#[cfg(test)]
mod tests {
    use super::super::graph::Node;
    use super::*;

    fn graph(needs: &[&[usize]]) -> Graph {
        let node = |needs: &&[usize]| Node { needs: needs.to_vec(), ..Node::default() };
        Graph { steps: needs.iter().map(node).collect(), ..Graph::default() }
    }

    #[test]
    fn the_shortest_way_round_is_told() {
        let graph = graph(&[&[3, 1], &[2], &[0], &[4], &[5], &[0]]);
        assert_eq!(shortest_way_round(&graph, &[5, 4, 3, 2, 1, 0]), [0, 1, 2]);
    }

    #[test]
    fn a_circle_of_very_many_steps_is_found() {
        let needs: Vec<Vec<usize>> = (0..100_000).map(|at| vec![(at + 1) % 100_000]).collect();
        let needs: Vec<_> = needs.iter().map(Vec::as_slice).collect();
        let members: Vec<_> = (0..100_000).collect();
        assert_eq!(shortest_way_round(&graph(&needs), &members).len(), 100_000);
    }
}
