//! When each step would start and end, given how long each takes and how many may run at once.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap};

use crate::model::StepId;
use crate::plan::Plan;

/// How many attempts a run works on at once outside of groups with a limit of their own, people not counted.
pub(super) const USUAL: usize = crate::run::USUAL;

/// The steps and groups of a plan by position.
pub(super) struct Graph {
    pub(super) needs: Vec<Vec<usize>>,
    dependants: Vec<Vec<usize>>,
    /// The groups around each step, innermost first.
    pub(super) around: Vec<Vec<usize>>,
    /// How many steps of each group may run at once.
    limits: Vec<Option<usize>>,
    /// How many of the groups around each step, from the innermost, it is a last step of.
    last_of: Vec<usize>,
}

impl Graph {
    pub(super) fn of(plan: &Plan) -> Self {
        let groups: HashMap<_, _> =
            plan.groups.iter().enumerate().map(|(at, group)| (&group.id, at)).collect();
        let of = |id: &Option<StepId>| id.as_ref().and_then(|id| groups.get(id).copied());
        let parents: Vec<_> = plan.groups.iter().map(|group| of(&group.parent)).collect();
        let around = |group| std::iter::successors(group, |group: &usize| parents[*group]).collect();
        let wiring = plan.wiring();
        let needs = (0..plan.steps.len()).map(|at| wiring.needs(at).map(|(need, _)| need).collect());
        let mut needs: Vec<Vec<usize>> = needs.collect();
        after_the_others(plan, &mut needs);
        let mut dependants = vec![Vec::new(); needs.len()];
        for (at, needs) in needs.iter().enumerate() {
            needs.iter().for_each(|need| dependants[*need].push(at));
        }
        let around: Vec<Vec<usize>> = plan.steps.iter().map(|step| around(of(&step.group))).collect();
        let mut last_of: Vec<usize> = around.iter().map(Vec::len).collect();
        for (at, needs) in needs.iter().enumerate() {
            for need in needs {
                let own = around[*need].len();
                let shared = around[*need].iter().rev().zip(around[at].iter().rev());
                let shared = shared.take_while(|(one, other)| one == other).count();
                last_of[*need] = last_of[*need].min(own - shared);
            }
        }
        Self {
            needs,
            dependants,
            around,
            limits: plan.groups.iter().map(|it| it.max_parallel).collect(),
            last_of,
        }
    }
}

/// The first steps of `always` wait for the last of the others.
fn after_the_others(plan: &Plan, needs: &mut [Vec<usize>]) {
    let mut awaited = vec![false; needs.len()];
    for need in needs.iter().flatten() {
        awaited[*need] = true;
    }
    let is_late = |at: &usize| plan.steps[*at].always && plan.steps[*at].concludes.is_none();
    let lasts: Vec<_> = (0..needs.len()).filter(|at| !awaited[*at] && !is_late(at)).collect();
    for (at, needs) in needs.iter_mut().enumerate() {
        if is_late(&at) && needs.is_empty() {
            needs.clone_from(&lasts);
        }
    }
}

/// When steps start and end, in milliseconds from the start of the run.
pub(super) struct Schedule {
    pub(super) start: Vec<i64>,
    pub(super) finish: Vec<i64>,
    /// The step whose end let this one start.
    pub(super) before: Vec<Option<usize>>,
}

/// How long each step takes, and what else decides when it ends.
pub(super) struct Takes<'a> {
    pub(super) ms: &'a [i64],
    /// Steps that wait for people hold no slot.
    pub(super) people: &'a [bool],
    /// Groups that take at least so long, by position: their last steps end no earlier.
    pub(super) groups: &'a [Option<i64>],
}

/// Lays a run out, as the dispatcher would: ready steps in the order of the plan, as many as the limits allow. Costs time
/// linear in steps and edges, but for the heap.
pub(super) fn schedule(graph: &Graph, takes: &Takes<'_>) -> Schedule {
    let count = takes.ms.len();
    let mut schedule = Schedule { start: vec![0; count], finish: vec![0; count], before: vec![None; count] };
    let mut open: Vec<usize> = graph.needs.iter().map(Vec::len).collect();
    let mut clock = Clock::new(graph);
    let mut begun: Vec<Option<i64>> = vec![None; graph.limits.len()];
    (0..count).filter(|at| open[*at] == 0).for_each(|at| clock.ready(at, takes.people[at]));
    let (mut now, mut by) = (0_i64, None);
    loop {
        for at in clock.launch() {
            let mut finish = now.saturating_add(takes.ms[at]);
            for (depth, group) in graph.around[at].iter().enumerate() {
                let begun = *begun[*group].get_or_insert(now);
                if let Some(least) = takes.groups[*group].filter(|_| depth < graph.last_of[at]) {
                    finish = finish.max(begun.saturating_add(least));
                }
            }
            (schedule.start[at], schedule.finish[at]) = (now, finish);
            schedule.before[at] = latest(&graph.needs[at], &schedule, now).or(by);
            clock.ends.push(Reverse((finish, at)));
        }
        let Some(Reverse((end, at))) = clock.ends.pop() else { return schedule };
        (now, by) = (end, Some(at));
        clock.release(at, takes.people);
        for dependant in &graph.dependants[at] {
            open[*dependant] -= 1;
            if open[*dependant] == 0 {
                clock.ready(*dependant, takes.people[*dependant]);
            }
        }
    }
}

/// Returns the need that ended just now, if it was a need that was waited for.
fn latest(needs: &[usize], schedule: &Schedule, now: i64) -> Option<usize> {
    let last = needs.iter().copied().max_by_key(|need| (schedule.finish[*need], *need))?;
    (schedule.finish[last] == now).then_some(last)
}

struct Clock<'a> {
    graph: &'a Graph,
    running: usize,
    in_group: Vec<usize>,
    /// Those that share the usual places, and those whose groups have places of their own.
    workers: BTreeSet<usize>,
    grouped: BTreeSet<usize>,
    people: BTreeSet<usize>,
    /// Ready steps that wait for a place in a group.
    blocked: Vec<BTreeSet<usize>>,
    ends: BinaryHeap<Reverse<(i64, usize)>>,
}

impl<'a> Clock<'a> {
    fn new(graph: &'a Graph) -> Self {
        let groups = graph.limits.len();
        Self {
            graph,
            running: 0,
            in_group: vec![0; groups],
            workers: BTreeSet::new(),
            grouped: BTreeSet::new(),
            people: BTreeSet::new(),
            blocked: vec![BTreeSet::new(); groups],
            ends: BinaryHeap::new(),
        }
    }

    fn ready(&mut self, at: usize, asks_people: bool) {
        if asks_people {
            self.people.insert(at)
        } else if self.has_own_places(at) {
            self.grouped.insert(at)
        } else {
            self.workers.insert(at)
        };
    }

    fn has_own_places(&self, at: usize) -> bool {
        self.graph.around[at].iter().any(|group| self.graph.limits[*group].is_some())
    }

    fn launch(&mut self) -> Vec<usize> {
        let mut launched = Vec::new();
        while let Some(at) = self.people.pop_first() {
            launched.extend(self.admit(at));
        }
        while let Some(at) = self.grouped.pop_first() {
            launched.extend(self.admit(at));
        }
        while self.running < USUAL {
            let Some(at) = self.workers.pop_first() else { break };
            if let Some(at) = self.admit(at) {
                self.running += 1;
                launched.push(at);
            }
        }
        launched
    }

    /// Gives a step its place in its groups, or lets it wait for one.
    fn admit(&mut self, at: usize) -> Option<usize> {
        let full = self.graph.around[at]
            .iter()
            .find(|group| self.graph.limits[**group].is_some_and(|limit| self.in_group[**group] >= limit));
        if let Some(group) = full {
            self.blocked[*group].insert(at);
            return None;
        }
        self.graph.around[at].iter().for_each(|group| self.in_group[*group] += 1);
        Some(at)
    }

    fn release(&mut self, at: usize, people: &[bool]) {
        self.running -= usize::from(!people[at] && !self.has_own_places(at));
        for group in &self.graph.around[at] {
            self.in_group[*group] -= 1;
            if let Some(next) = self.blocked[*group].pop_first() {
                self.ready(next, people[next]);
            }
        }
    }
}
