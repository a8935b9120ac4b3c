//! Which steps can start, and how many run at once. Every operation costs the depth of groups, not their width.

use std::collections::{BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::Arc;

use crate::model::ids::StepId;
use crate::plan::{Plan, PlannedGroup};
use crate::run::unit::Unit;

/// How many attempts run at once outside of groups with a limit of their own, those that wait for people not counted.
/// Enough for every restore that one machine can feed.
pub(crate) const USUAL: usize = 16;

/// How many run at once altogether, whatever groups say: a bound on processes.
const MOST: usize = 256;

/// The positions of these two limits; those of groups follow.
const ALL: usize = 0;
const REST: usize = 1;

/// Steps that can start now, and the limits that keep some of them waiting.
#[derive(Debug, Default)]
pub(super) struct Slots {
    /// Not known to be kept waiting by a limit.
    ready: BTreeSet<Unit>,
    /// The same for steps that wait for people, which count towards the limits of groups only.
    ready_people: BTreeSet<Unit>,
    people: Vec<bool>,
    limits: Vec<Limit>,
    /// The limits that each step counts towards, the innermost first.
    of: Vec<Arc<[usize]>>,
}

#[derive(Debug)]
struct Limit {
    most: usize,
    running: usize,
    /// Steps that were found ready while it was reached.
    parked: BTreeSet<Unit>,
}

impl Slots {
    /// `people` says of every step whether it waits for people.
    pub(super) fn new(plan: &Plan, people: Vec<bool>) -> Self {
        let limit = |most| Limit { most, running: 0, parked: BTreeSet::new() };
        let mut limits = vec![limit(MOST), limit(USUAL)];
        let mut at_limit = HashMap::new();
        for group in &plan.groups {
            if let Some(most) = group.max_parallel {
                at_limit.insert(&group.id, limits.len());
                limits.push(limit(most));
            }
        }
        let groups: HashMap<_, _> = plan.groups.iter().map(|group| (&group.id, group)).collect();
        let mut known: HashMap<(Option<&StepId>, bool), Arc<[usize]>> = HashMap::new();
        let of = people.iter().enumerate().map(|(at, people)| {
            let group = plan.steps.get(at).and_then(|step| step.group.as_ref());
            let chain = || chain(group, *people, &groups, &at_limit);
            Arc::clone(known.entry((group, *people)).or_insert_with(chain))
        });
        let of = of.collect();
        Self { ready: BTreeSet::new(), ready_people: BTreeSet::new(), people, limits, of }
    }

    /// Takes note that a step can start.
    pub(super) fn make_ready(&mut self, unit: Unit) {
        self.set(unit).insert(unit);
    }

    /// Returns the first step that can start and that `may_start` lets through, people first: they cost nothing.
    pub(super) fn next(&mut self, may_start: impl Fn(&Unit) -> bool) -> Option<Unit> {
        let people = self.next_of(true, &may_start).or_else(|| self.next_of(false, &may_start));
        // Looking for the others may have brought one of these back.
        people.or_else(|| self.next_of(true, &may_start))
    }

    fn next_of(&mut self, people: bool, may_start: &impl Fn(&Unit) -> bool) -> Option<Unit> {
        let mut from = Bound::Unbounded;
        loop {
            let set = if people { &self.ready_people } else { &self.ready };
            let unit = set.range((from, Bound::Unbounded)).next().copied()?;
            if may_start(&unit) {
                let mut limits = self.of[unit.position].iter().copied();
                let Some(full) = limits.find(|limit| !self.limits[*limit].has_room()) else {
                    return Some(unit);
                };
                self.set(unit).remove(&unit);
                self.limits[full].parked.insert(unit);
            }
            // Its place as the candidate of its limits is free, or it does not use it: the next one has a chance.
            from = match self.offer(unit.position) {
                Some(other) if other < unit => Bound::Included(other),
                _ => Bound::Excluded(unit),
            };
        }
    }

    /// Takes a step out that is about to start. [`Slots::settled`] must follow.
    pub(super) fn take(&mut self, unit: Unit) {
        self.set(unit).remove(&unit);
    }

    /// Takes note of what became of a step that was taken: it has started, or it has ended without starting.
    pub(super) fn settled(&mut self, unit: Unit) {
        self.offer(unit.position);
    }

    /// Forgets a step that will not start any more.
    pub(super) fn forget(&mut self, unit: Unit) {
        let mut waited = self.set(unit).remove(&unit);
        for limit in self.of[unit.position].iter() {
            waited |= self.limits[*limit].parked.remove(&unit);
        }
        if waited {
            self.offer(unit.position);
        }
    }

    /// Takes note that an attempt of a step begins.
    pub(super) fn started(&mut self, at: usize) {
        for limit in self.of[at].iter() {
            self.limits[*limit].running += 1;
        }
    }

    /// Takes note that an attempt of a step has ended.
    pub(super) fn ended(&mut self, at: usize) {
        for limit in self.of[at].iter() {
            self.limits[*limit].running -= 1;
        }
        self.offer(at);
    }

    /// Makes one parked step of every limit with room ready again; returns the first of them. So each limit with room
    /// has a candidate, and those behind it are not looked at in vain.
    fn offer(&mut self, at: usize) -> Option<Unit> {
        let mut first: Option<Unit> = None;
        for limit in Arc::clone(&self.of[at]).iter() {
            let limit = &mut self.limits[*limit];
            if limit.has_room()
                && let Some(next) = limit.parked.pop_first()
            {
                self.make_ready(next);
                first = Some(first.map_or(next, |first| first.min(next)));
            }
        }
        first
    }

    fn set(&mut self, unit: Unit) -> &mut BTreeSet<Unit> {
        if self.people[unit.position] { &mut self.ready_people } else { &mut self.ready }
    }
}

impl Limit {
    fn has_room(&self) -> bool {
        self.running < self.most
    }
}

/// Returns the limits that a step of a group counts towards. Who waits for a person holds no slot but that of a group.
fn chain(
    group: Option<&StepId>,
    people: bool,
    groups: &HashMap<&StepId, &PlannedGroup>,
    at_limit: &HashMap<&StepId, usize>,
) -> Arc<[usize]> {
    let innermost = group.and_then(|id| groups.get(id));
    let around = std::iter::successors(innermost, |group| groups.get(group.parent.as_ref()?));
    let mut limits: Vec<_> = around.filter_map(|group| at_limit.get(&group.id).copied()).collect();
    if !people {
        limits.extend(limits.is_empty().then_some(REST));
        limits.push(ALL);
    }
    limits.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Slots of steps of which the first `grouped` are in a group with a limit.
    fn slots(steps: usize, grouped: usize, most: usize) -> Slots {
        let limit = |most| Limit { most, running: 0, parked: BTreeSet::new() };
        let of = |at| if at < grouped { Arc::from([2, ALL]) } else { Arc::from([REST, ALL]) };
        Slots {
            people: vec![false; steps],
            limits: vec![limit(MOST), limit(USUAL), limit(most)],
            of: (0..steps).map(of).collect(),
            ..Slots::default()
        }
    }

    /// Starts everything that can start; returns their positions.
    fn start(slots: &mut Slots) -> Vec<usize> {
        let mut started = Vec::new();
        while let Some(unit) = slots.next(|_| true) {
            slots.take(unit);
            slots.started(unit.position);
            slots.settled(unit);
            started.push(unit.position);
        }
        started
    }

    #[test]
    fn a_group_with_a_limit_counts_for_itself() {
        let mut slots = slots(400, 200, 100);
        (0..400).for_each(|at| slots.make_ready(Unit::whole(at)));
        let expected: Vec<_> = (0..100).chain(200..216).collect();
        assert_eq!(start(&mut slots), expected);
        slots.ended(5);
        slots.ended(200);
        assert_eq!(start(&mut slots), [100, 216]);
    }

    #[test]
    fn never_more_than_so_many_run_at_once() {
        let mut slots = slots(1000, 1000, 1000);
        (0..1000).for_each(|at| slots.make_ready(Unit::whole(at)));
        assert_eq!(start(&mut slots).len(), MOST);
    }

    #[test]
    fn a_step_that_ends_without_starting_leaves_its_place() {
        let mut slots = slots(10, 10, 1);
        (0..10).for_each(|at| slots.make_ready(Unit::whole(at)));
        assert_eq!(start(&mut slots), [0]);
        slots.ended(0);
        // The next one is skipped, the one after it is closed.
        let skipped = slots.next(|_| true).unwrap();
        slots.take(skipped);
        slots.settled(skipped);
        slots.forget(Unit::whole(2));
        assert_eq!((skipped, start(&mut slots)), (Unit::whole(1), vec![3]));
    }

    #[test]
    fn a_candidate_that_may_not_start_keeps_no_place_from_the_others() {
        let mut slots = slots(10, 10, 2);
        (0..4).for_each(|at| slots.make_ready(Unit::whole(at)));
        assert_eq!(start(&mut slots), [0, 1]);
        // The next one was waiting for the limit; when there is room, something else keeps it from starting.
        slots.ended(0);
        let next = slots.next(|unit| unit.position != 2);
        assert_eq!(next, Some(Unit::whole(3)));
    }

    #[test]
    fn each_step_is_looked_at_a_few_times_however_many_wait() {
        let count = 20_000;
        let mut slots = slots(count, count, 4);
        (0..count).for_each(|at| slots.make_ready(Unit::whole(at)));
        let looks = std::cell::Cell::new(0);
        let mut running = std::collections::VecDeque::new();
        let mut begun = 0;
        while begun < count {
            while let Some(unit) = slots.next(|_| {
                looks.set(looks.get() + 1);
                true
            }) {
                slots.take(unit);
                slots.started(unit.position);
                slots.settled(unit);
                running.push_back(unit.position);
                begun += 1;
            }
            slots.ended(running.pop_front().unwrap());
        }
        assert!(looks.get() < 8 * count, "{} looks", looks.get());
    }
}
