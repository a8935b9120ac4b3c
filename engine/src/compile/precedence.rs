use std::cell::RefCell;
use std::collections::{HashMap, HashSet};

use super::analysis::Analysis;
use super::order::Order;
use crate::plan::NeedOn;

/// Which steps have ended when another one starts.
///
/// Most steps read what was found a few steps above them in the same chain, which two numbers tell. For the rest, steps are
/// taken 64 at a time: one pass over the graph finds out who comes after each of them. So the cost grows with what is
/// really asked, never with the square of the steps.
pub(super) struct Precedence<'a> {
    order: &'a Order<'a>,
    topological: &'a [usize],
    /// For every step its chain and its place in it: each step of a chain needs the one before it.
    chains: Vec<(usize, usize)>,
    /// For some of the steps, which steps come after them: for each block of 64 one word for every step.
    after: RefCell<HashMap<(usize, Along), Vec<u64>>>,
    /// Steps whose failure another step waits for.
    pub(super) handled: HashSet<usize>,
}

/// Which needs lead from one step to another.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Along {
    Every,
    /// Those without whose success a step does not start.
    Success,
}

/// How many bytes may be kept for questions to come.
const KEPT: usize = 32 * 1024 * 1024;

impl<'a> Precedence<'a> {
    pub(super) fn new(analysis: &'a Analysis<'_>) -> Self {
        let order = &analysis.order;
        let handlers = order.steps.iter().flat_map(|step| &step.needs);
        let handled = handlers.filter(|(_, on)| *on != NeedOn::Success).map(|(at, _)| *at).collect();
        let chains = chains(order, &analysis.topological);
        Self { order, topological: &analysis.topological, chains, after: RefCell::default(), handled }
    }

    pub(super) fn ended(&self, target: usize, at: usize) -> bool {
        let ((chain, place), (own, here)) = (self.chains[target], self.chains[at]);
        if chain == own && !self.topological.is_empty() {
            return place < here;
        }
        self.comes_after(target, at, Along::Every)
    }

    /// Says whether a step can start only if another one has succeeded.
    pub(super) fn succeeded(&self, target: usize, at: usize) -> bool {
        self.comes_after(target, at, Along::Success)
    }

    fn comes_after(&self, target: usize, at: usize, along: Along) -> bool {
        if self.topological.is_empty() {
            return false;
        }
        let (block, bit) = (target / 64, target % 64);
        let mut after = self.after.borrow_mut();
        if !after.contains_key(&(block, along)) {
            if (after.len() + 1) * self.chains.len() * size_of::<u64>() > KEPT {
                after.clear();
            }
            after.insert((block, along), self.pass(block, along));
        }
        after[&(block, along)][at] & (1 << bit) != 0
    }

    /// Returns for every step which of the 64 steps of a block it comes after.
    fn pass(&self, block: usize, along: Along) -> Vec<u64> {
        let mut after = vec![0_u64; self.order.steps.len()];
        let bits = |after: &[u64], need: usize| {
            let itself = if need / 64 == block { 1 << (need % 64) } else { 0 };
            after[need] | itself
        };
        // The same for whoever waits for the group; its ends come before all of them.
        let mut groups: HashMap<usize, u64> = HashMap::new();
        for at in self.topological.iter().copied() {
            let step = &self.order.steps[at];
            // Steps of `always` run whatever became of what they need.
            let counts = |on: NeedOn| along == Along::Every || (on == NeedOn::Success && !step.always);
            let needs = step.needs.iter().filter(|(_, on)| counts(*on));
            let mut all = needs.fold(0, |all, (need, _)| all | bits(&after, *need));
            for group in step.whole.iter().filter(|_| counts(NeedOn::Success)) {
                let ends =
                    || self.order.groups[*group].ends.iter().fold(0, |all, end| all | bits(&after, *end));
                all |= *groups.entry(*group).or_insert_with(ends);
            }
            after[at] = all;
        }
        after
    }
}

/// Divides the steps into chains: a step continues the chain of the first step it needs that nobody else continues.
fn chains(order: &Order<'_>, topological: &[usize]) -> Vec<(usize, usize)> {
    let mut chains = vec![(0, 0); order.steps.len()];
    let mut continued = vec![false; order.steps.len()];
    let mut count = 0;
    // How many ends of each group are known to be continued.
    let mut taken: HashMap<usize, usize> = HashMap::new();
    for at in topological.iter().copied() {
        let step = &order.steps[at];
        let mut before = step.needs.iter().map(|(need, _)| *need).find(|need| !continued[*need]);
        for group in &step.whole {
            let (ends, taken) = (&order.groups[*group].ends, taken.entry(*group).or_default());
            while before.is_none() && *taken < ends.len() {
                before = Some(ends[*taken]).filter(|need| !continued[*need]);
                *taken += usize::from(before.is_none());
            }
        }
        chains[at] = match before {
            Some(need) => {
                continued[need] = true;
                (chains[need].0, chains[need].1 + 1)
            }
            None => {
                count += 1;
                (count, 0)
            }
        };
    }
    chains
}
