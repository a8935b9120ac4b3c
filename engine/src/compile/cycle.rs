use std::collections::{HashSet, VecDeque};
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
        let way = shortest_way_round(graph, &members);
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
    let mut queue = VecDeque::from([vec![start]]);
    let mut seen = HashSet::new();
    while let Some(way) = queue.pop_front() {
        let last = way[way.len() - 1];
        for need in graph.steps[last].needs.iter().copied().filter(|need| inside.contains(need)) {
            if need == start {
                return way;
            }
            if seen.insert(need) {
                let mut longer = way.clone();
                longer.push(need);
                queue.push_back(longer);
            }
        }
    }
    members.to_vec()
}
