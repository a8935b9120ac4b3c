//! Critical paths: what decided how long it took, what the budgets said would, and when it will be over.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::rc::Rc;

use super::fold::StepFold;
use super::human::Moment;
use super::model::{CriticalPath, Forecast, PathStep, PlannedItem, PlannedPath};
use super::source::View;
use super::timeline::{group_times, millis};
use super::{objectives, objectives::Recovery, standing};
use crate::plan::Needed;

pub(super) fn critical(view: &View<'_>) -> CriticalPath {
    CriticalPath { actual: actual(view), planned: planned(view) }
}

/// Walks back through the need that ended last: from the step that marked recovery, or else the one that stopped
/// the run, or else the main step that ended last.
fn actual(view: &View<'_>) -> Vec<PathStep> {
    let mut path = Vec::new();
    let mut next = last_step(view);
    let mut seen = HashSet::new();
    while let Some(at) = next.filter(|at| seen.insert(*at)) {
        let step = &view.plan.steps[at];
        if let Some(state) = view.state(step)
            && let Some(started) = state.started()
        {
            let ended = state.ended().unwrap_or(view.fold.end).max(started);
            path.push(PathStep {
                step: step.id.clone(),
                started_at: Moment(started),
                ended_at: Moment(ended),
                took_ms: ended - started,
                waited_ms: 0,
            });
        }
        next = latest(view, view.wiring.needs(at).map(|(need, _)| need));
    }
    path.reverse();
    let mut before = view.fold.declared.as_ref().map_or(view.fold.incident, |declared| declared.at);
    for part in &mut path {
        part.waited_ms = (part.started_at.0 - before).max(0);
        before = part.ended_at.0;
    }
    path
}

fn last_step(view: &View<'_>) -> Option<usize> {
    let main = || (0..view.plan.steps.len()).filter(|&at| !view.plan.steps[at].always);
    if let Recovery::At(moment) = objectives::recovery(view) {
        let marks = main().filter(|&at| {
            let state = view.state(&view.plan.steps[at]);
            state.is_some_and(|state| state.ended() == Some(moment) && state.started().is_some())
        });
        if let Some(found) = latest(view, marks) {
            return Some(found);
        }
    }
    if let Some(stop) = standing::stopping_step(view) {
        return view.index.get(stop).copied();
    }
    let ran = |&at: &usize| view.state(&view.plan.steps[at]).is_some_and(|state| state.started().is_some());
    latest(view, main().filter(ran))
}

/// Returns the step that ended last; of several, the one that stands last in the plan.
fn latest(view: &View<'_>, steps: impl Iterator<Item = usize>) -> Option<usize> {
    let ended = |at: usize| view.state(&view.plan.steps[at]).and_then(StepFold::ended);
    steps.filter_map(|at| ended(at).map(|end| (end, at))).max().map(|(_, at)| at)
}

/// What is known of a step when a schedule is made.
#[derive(Clone, Copy)]
enum Known {
    Nothing,
    Started(i64),
    Ended(i64),
}

/// A step or a group in a schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Item {
    Step(usize),
    Group(usize),
}

/// Start, finish and what came before, for every step, by budgets.
struct Schedule<'v, 'a> {
    view: &'v View<'a>,
    start: Vec<i64>,
    finish: Vec<i64>,
    via: Vec<Option<Item>>,
    groups: HashMap<usize, i64>,
    joined: HashMap<usize, Rc<Joined>>,
}

/// What the ends of a group that is needed as a whole say to everyone who needs it.
struct Joined {
    /// The end that ends last.
    last: Option<usize>,
    /// The groups that have ended by then.
    complete: Vec<usize>,
}

impl<'v, 'a> Schedule<'v, 'a> {
    /// Lays all steps out from `now` on, in time linear in steps and needs.
    fn new(view: &'v View<'a>, now: i64, known: impl Fn(usize) -> Known) -> Self {
        let count = view.plan.steps.len();
        let mut schedule = Self {
            view,
            start: vec![now; count],
            finish: vec![now; count],
            via: vec![None; count],
            groups: HashMap::new(),
            joined: HashMap::new(),
        };
        for at in topological(view) {
            let (ready, via) = schedule.ready(at, now);
            let budget = view.plan.steps[at].budget.map_or(0, millis);
            let (start, finish) = match known(at) {
                Known::Ended(end) => {
                    (view.state(&view.plan.steps[at]).and_then(StepFold::started).unwrap_or(end), end)
                }
                Known::Started(from) => (from, from.saturating_add(budget).max(now)),
                Known::Nothing => (ready, ready.saturating_add(budget)),
            };
            (schedule.start[at], schedule.finish[at], schedule.via[at]) = (start, finish, via);
        }
        schedule
    }

    /// Returns when everything that a step needs will have ended, and which of it ends last.
    fn ready(&mut self, at: usize, now: i64) -> (i64, Option<Item>) {
        let view = self.view;
        let (mut needs, mut joined) = (Vec::new(), Vec::new());
        for (needed, _) in view.wiring.direct(at) {
            match needed {
                Needed::Step(need) => needs.push(need),
                Needed::Group(group) => joined.push(self.joined(group)),
            }
        }
        let ends = joined.iter().filter_map(|joined| joined.last);
        let mut best: (i64, Option<Item>) = (now, None);
        for need in needs.iter().copied().chain(ends) {
            if self.finish[need] > best.0 || best.1.is_none() {
                best = (self.finish[need].max(now), Some(Item::Step(need)));
            }
        }
        let mut around = self.complete(&needs);
        around.extend(joined.iter().flat_map(|joined| joined.complete.iter().copied()));
        around.retain(|group| !view.members.groups(at).contains(group));
        around.sort_unstable();
        for group in around {
            if let Some(finish) = self.group_finish(group).filter(|finish| *finish > best.0) {
                best = (finish, Some(Item::Group(group)));
            }
        }
        best
    }

    /// Returns what the ends of a group that is needed as a whole say to everyone who needs it; remembered.
    fn joined(&mut self, group: usize) -> Rc<Joined> {
        if let Some(joined) = self.joined.get(&group) {
            return Rc::clone(joined);
        }
        let ends = self.view.wiring.ends(group);
        // Of several that end last the first one counts, as among single needs.
        let last = ends.iter().copied().rev().max_by_key(|end| self.finish[*end]);
        let joined = Rc::new(Joined { last, complete: self.complete(ends) });
        self.joined.insert(group, Rc::clone(&joined));
        joined
    }

    /// Returns the groups that have ended when these steps have.
    fn complete(&self, needs: &[usize]) -> Vec<usize> {
        let needed: HashSet<usize> = needs.iter().copied().collect();
        let around: HashSet<usize> =
            needs.iter().flat_map(|&need| self.view.members.groups(need)).copied().collect();
        around.into_iter().filter(|group| self.sinks(*group).is_subset(&needed)).collect()
    }

    /// Returns the steps of a group that no other step of it needs.
    fn sinks(&self, group: usize) -> HashSet<usize> {
        let members = self.view.members.steps(&self.view.plan.groups[group].id);
        let mut sinks: HashSet<usize> = members.iter().copied().collect();
        let mut groups = HashSet::new();
        for (needed, _) in members.iter().flat_map(|&at| self.view.wiring.direct(at)) {
            match needed {
                Needed::Step(at) => {
                    sinks.remove(&at);
                }
                Needed::Group(group) if groups.insert(group) => {
                    for end in self.view.wiring.ends(group) {
                        sinks.remove(end);
                    }
                }
                Needed::Group(_) => {}
            }
        }
        sinks
    }

    /// Returns when a group with a budget is meant to end, unless it has ended.
    fn group_finish(&mut self, group: usize) -> Option<i64> {
        let planned = &self.view.plan.groups[group];
        let budget = millis(planned.budget?);
        if group_times(self.view, planned).1.is_some() {
            return None;
        }
        if let Some(&finish) = self.groups.get(&group) {
            return Some(finish);
        }
        let members = self.view.members.steps(&planned.id);
        let start = members.iter().map(|&at| self.start[at]).min()?;
        let inside = members.iter().map(|&at| self.finish[at]).max()?;
        let finish = inside.max(start.saturating_add(budget));
        self.groups.insert(group, finish);
        Some(finish)
    }

    /// Returns what ends last of everything that marks recovery, or of all main steps if nothing does.
    fn last(&mut self) -> Option<(i64, Item)> {
        let plan = self.view.plan;
        let marked =
            plan.steps.iter().any(|step| step.recovered) || plan.groups.iter().any(|group| group.recovered);
        let mut last: Option<(i64, Item)> = None;
        let mut offer = |finish: i64, item: Item| {
            if last.is_none_or(|(best, _)| finish > best) {
                last = Some((finish, item));
            }
        };
        for (at, step) in plan.steps.iter().enumerate() {
            let inside = self.view.members.groups(at).iter().any(|&group| plan.groups[group].recovered);
            if !step.always && (!marked || step.recovered || inside) {
                offer(self.finish[at], Item::Step(at));
            }
        }
        for (at, group) in plan.groups.iter().enumerate() {
            if (!marked || group.recovered)
                && let Some(finish) = self.group_finish(at)
            {
                offer(finish, Item::Group(at));
            }
        }
        last
    }

    /// Returns the chain that ends with `item`, first one first.
    fn chain(&self, item: Item) -> Vec<Item> {
        let mut chain = Vec::new();
        let mut next = Some(item);
        let mut seen = HashSet::new();
        while let Some(item) = next.filter(|item| seen.insert(*item)) {
            chain.push(item);
            next = match item {
                Item::Step(at) => self.via[at],
                Item::Group(group) => {
                    let members = self.view.members.steps(&self.view.plan.groups[group].id);
                    let first = members.iter().min_by_key(|&&at| self.start[at]);
                    first.and_then(|&at| self.via[at])
                }
            };
        }
        chain.reverse();
        chain
    }
}

/// Returns the steps so that each comes after what it needs; steps in a cycle, which no plan has, are left out.
fn topological(view: &View<'_>) -> Vec<usize> {
    let steps = &view.plan.steps;
    // Behind the steps stand the groups that are needed as a whole.
    let nodes = steps.len() + view.plan.groups.len();
    let mut open = vec![0_usize; nodes];
    let mut dependants: Vec<Vec<usize>> = vec![Vec::new(); nodes];
    for at in 0..steps.len() {
        for (needed, _) in view.wiring.direct(at) {
            let need = match needed {
                Needed::Step(need) => need,
                Needed::Group(group) => steps.len() + group,
            };
            open[at] += 1;
            dependants[need].push(at);
        }
    }
    for group in view.wiring.whole_groups() {
        open[steps.len() + group] = view.wiring.ends(group).len();
        view.wiring.ends(group).iter().for_each(|end| dependants[*end].push(steps.len() + group));
    }
    let mut ready: BinaryHeap<Reverse<usize>> =
        (0..steps.len()).filter(|&at| open[at] == 0).map(Reverse).collect();
    let mut order = Vec::with_capacity(steps.len());
    while let Some(Reverse(at)) = ready.pop() {
        order.push(at);
        let mut ended = vec![at];
        while let Some(at) = ended.pop() {
            for &dependant in &dependants[at] {
                open[dependant] -= 1;
                match open[dependant] {
                    0 if dependant < steps.len() => ready.push(Reverse(dependant)),
                    0 => ended.push(dependant),
                    _ => {}
                }
            }
        }
    }
    order
}

fn planned(view: &View<'_>) -> Option<PlannedPath> {
    // A plan knows nothing of what happened.
    let blank = super::Source { events: &[], ..view.source };
    let blank = View::new(&blank);
    let mut schedule = Schedule::new(&blank, 0, |_| Known::Nothing);
    let (total_ms, last) = schedule.last()?;
    let item = |item: &Item| {
        let (id, budget) = match *item {
            Item::Step(at) => (&view.plan.steps[at].id, view.plan.steps[at].budget),
            Item::Group(at) => (&view.plan.groups[at].id, view.plan.groups[at].budget),
        };
        budget.map(|budget| PlannedItem { id: id.clone(), budget_ms: millis(budget) })
    };
    let items: Vec<PlannedItem> = schedule.chain(last).iter().filter_map(item).collect();
    let budgeted = |at: usize| {
        view.plan.steps[at].budget.is_some()
            || view.members.groups(at).iter().any(|&group| view.plan.groups[group].budget.is_some())
    };
    let partial = (0..view.plan.steps.len()).any(|at| !view.plan.steps[at].always && !budgeted(at));
    (total_ms > 0).then_some(PlannedPath { total_ms, items, partial })
}

/// Forecasts when an open run will have recovered. Absent where no budget says anything about what is left.
pub(super) fn forecast(view: &View<'_>, objective: Option<i64>) -> Option<Forecast> {
    let now = view.fold.end;
    let known = |at: usize| match view.state(&view.plan.steps[at]) {
        Some(state) => match (state.ended(), state.started()) {
            (Some(end), _) => Known::Ended(end),
            (None, Some(start)) => Known::Started(start),
            (None, None) => Known::Nothing,
        },
        None => Known::Nothing,
    };
    let mut schedule = Schedule::new(view, now, known);
    let (finish, last) = schedule.last()?;
    let chain: Vec<Item> = schedule
        .chain(last)
        .into_iter()
        .filter(|item| !matches!(item, Item::Step(at) if matches!(known(*at), Known::Ended(_))))
        .collect();
    let has_budget = |item: &Item| match *item {
        Item::Step(at) => view.plan.steps[at].budget.is_some(),
        Item::Group(_) => true,
    };
    if !chain.iter().any(has_budget) {
        return None;
    }
    let id = |item: &Item| match *item {
        Item::Step(at) => view.plan.steps[at].id.clone(),
        Item::Group(at) => view.plan.groups[at].id.clone(),
    };
    let ends = |item: &Item| match *item {
        Item::Step(at) => schedule.finish[at],
        Item::Group(at) => schedule.groups.get(&at).copied().unwrap_or(now),
    };
    let deadline = objective.map(|limit| view.fold.incident.saturating_add(limit));
    let breaks = deadline.and_then(|deadline| chain.iter().find(|item| ends(item) > deadline));
    Some(Forecast {
        at: Moment(finish),
        used_ms: view.since_incident(finish),
        without_budget: chain.iter().filter(|item| !has_budget(item)).map(id).collect(),
        breaks_at: breaks.map(id),
    })
}
