use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use crate::diagnostic::{Diagnostic, Diagnostics, Source, codes};
use crate::model::ids::is_plain_id;
use crate::plan::NeedOn;
use crate::spec::{Common, GroupSpec, ItemSpec, NeedSpec, RunbookSpec, StepSpec};
use crate::yaml::Node;

/// More edges than this are refused, those that a group needed as a whole stands for counted too: pictures and forecasts
/// go through all of them.
const MAX_EDGES: usize = 10_000_000;

/// If the steps that wait for the success of a group and those that end it multiply to more edges than this, the group is
/// needed as a whole: one edge to it, and one from it, for each of them.
const MAX_PRODUCT: usize = 4096;

/// A step or a group, by its position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Place {
    Step(usize),
    Group(usize),
}

/// A step in its order.
#[derive(Debug)]
pub(super) struct OrderedStep<'s> {
    pub(super) spec: &'s StepSpec,
    pub(super) group: Option<usize>,
    pub(super) always: bool,
    /// What must have ended before it starts.
    pub(super) needs: Vec<(usize, NeedOn)>,
    /// Groups all ends of which must have succeeded before it starts.
    pub(super) whole: Vec<usize>,
    /// Conditions of its groups, outermost first, then its own, with the id each was written on.
    pub(super) conditions: Vec<(&'s Node, &'s str)>,
}

/// A group in its order.
#[derive(Debug)]
pub(super) struct OrderedGroup<'s> {
    pub(super) spec: &'s GroupSpec,
    pub(super) parent: Option<usize>,
    always: bool,
    /// All steps in it, at any depth.
    pub(super) steps: Vec<usize>,
    /// Those of them that no other one waits for.
    pub(super) ends: Vec<usize>,
    /// True if steps need it as a whole.
    pub(super) needed_whole: bool,
}

/// All steps of a runbook with the edges between them.
#[derive(Debug)]
pub(super) struct Order<'s> {
    pub(super) steps: Vec<OrderedStep<'s>>,
    pub(super) groups: Vec<OrderedGroup<'s>>,
    pub(super) names: HashMap<&'s str, Place>,
    source: &'s Arc<Source>,
    /// What steps and groups wait for, groups not yet replaced by their steps.
    waits: Vec<(usize, Vec<(Place, NeedOn)>)>,
    /// Steps of which it is not known what they wait for, which has been reported.
    pub(super) unclear: HashSet<usize>,
    problems: Diagnostics,
}

fn as_step(place: Place) -> Option<usize> {
    if let Place::Step(at) = place { Some(at) } else { None }
}

impl<'s> Order<'s> {
    /// Puts the steps of a runbook into their order.
    pub(super) fn build(spec: &'s RunbookSpec, out: &mut Diagnostics) -> Self {
        let mut order = Self {
            steps: Vec::new(),
            groups: Vec::new(),
            names: HashMap::new(),
            source: &spec.source,
            waits: Vec::new(),
            unclear: HashSet::new(),
            problems: Diagnostics::new(),
        };
        let main = order.place_all(&spec.steps, None, false, &mut Vec::new());
        let always = order.place_all(&spec.always, None, true, &mut Vec::new());
        order.wire(&main, &[], false, None);
        order.wire(&always, &[], false, None);
        order.expand();
        out.append(std::mem::take(&mut order.problems));
        order
    }

    /// Gives every step and group its position and its name.
    fn place_all(
        &mut self,
        items: &'s [ItemSpec],
        group: Option<usize>,
        always: bool,
        conditions: &mut Vec<(&'s Node, &'s str)>,
    ) -> Vec<(Place, &'s ItemSpec)> {
        let mut placed = Vec::with_capacity(items.len());
        for item in items {
            let common = item.common();
            let before = conditions.len();
            conditions.extend(common.condition.as_ref().map(|node| (node, common.id.value.as_str())));
            let place = match item {
                ItemSpec::Step(spec) => {
                    let conditions = conditions.clone();
                    let (needs, whole) = (Vec::new(), Vec::new());
                    self.steps.push(OrderedStep { spec, group, always, needs, whole, conditions });
                    Place::Step(self.steps.len() - 1)
                }
                ItemSpec::Group(spec) => {
                    let at = self.groups.len();
                    self.groups.push(OrderedGroup {
                        spec,
                        parent: group,
                        always,
                        steps: Vec::new(),
                        ends: Vec::new(),
                        needed_whole: false,
                    });
                    let first = self.steps.len();
                    self.place_all(&spec.steps, Some(at), always, conditions);
                    self.groups[at].steps = (first..self.steps.len()).collect();
                    Place::Group(at)
                }
            };
            conditions.truncate(before);
            self.name(common, place);
            placed.push((place, item));
        }
        placed
    }

    fn name(&mut self, common: &'s Common, place: Place) {
        let id = &common.id;
        let Some(first) = self.names.get(id.value.as_str()).map(|first| self.common(*first).id.span.clone())
        else {
            self.names.insert(&id.value, place);
            return;
        };
        // Groups get their name after their steps: tell the second of the two in the order of the file.
        let (first, second) =
            if first.start < id.span.start { (first, id.span.clone()) } else { (id.span.clone(), first) };
        self.problems.push(
            Diagnostic::error(codes::LB0111, format!("the id `{}` is used twice", id.value))
                .at(self.source, second)
                .label("second")
                .also(first, "first")
                .help("steps and groups of a runbook share one set of names; rename one of the two"),
        );
    }

    pub(super) fn common(&self, place: Place) -> &'s Common {
        match place {
            Place::Step(at) => &self.steps[at].spec.common,
            Place::Group(at) => &self.groups[at].spec.common,
        }
    }

    fn always(&self, place: Place) -> bool {
        match place {
            Place::Step(at) => self.steps[at].always,
            Place::Group(at) => self.groups[at].always,
        }
    }

    fn group_of(&self, place: Place) -> Option<usize> {
        match place {
            Place::Step(at) => self.steps[at].group,
            Place::Group(at) => self.groups[at].parent,
        }
    }

    /// Says whether a step or group is somewhere within a group.
    fn within(&self, place: Place, group: usize) -> bool {
        let mut next = self.group_of(place);
        while let Some(at) = next {
            if at == group {
                return true;
            }
            next = self.groups[at].parent;
        }
        false
    }

    /// Writes down what every item of a list waits for: the one above, the entry of its group, or its `needs`.
    fn wire(
        &mut self,
        items: &[(Place, &'s ItemSpec)],
        entry: &[(Place, NeedOn)],
        parallel: bool,
        group: Option<usize>,
    ) {
        let mut previous: Option<Place> = None;
        for (place, item) in items {
            let needs = match (&item.common().needs, previous) {
                (Some(list), _) => self.explicit(*place, list, entry, group),
                (None, Some(previous)) if !parallel => vec![(previous, NeedOn::Success)],
                _ => entry.to_vec(),
            };
            previous = Some(*place);
            match (place, item) {
                (Place::Step(at), _) => self.waits.push((*at, needs)),
                (Place::Group(at), ItemSpec::Group(spec)) => {
                    let children = self.children(*at, spec);
                    self.wire(&children, &needs, spec.parallel, Some(*at));
                }
                (Place::Group(_), ItemSpec::Step(_)) => {}
            }
        }
    }

    /// Finds the positions of the direct children of a group again.
    fn children(&self, group: usize, spec: &'s GroupSpec) -> Vec<(Place, &'s ItemSpec)> {
        let mut steps = self.groups[group].steps.first().copied().unwrap_or(0)..usize::MAX;
        let mut groups = group + 1..self.groups.len();
        let mut children = Vec::with_capacity(spec.steps.len());
        for item in &spec.steps {
            match item {
                ItemSpec::Step(_) => children.extend(steps.next().map(|at| (Place::Step(at), item))),
                ItemSpec::Group(_) => {
                    let Some(at) = groups.find(|at| self.groups[*at].parent == Some(group)) else { continue };
                    children.push((Place::Group(at), item));
                    for _ in 0..self.groups[at].steps.len() {
                        steps.next();
                    }
                }
            }
        }
        children
    }

    fn explicit(
        &mut self,
        place: Place,
        list: &'s [NeedSpec],
        entry: &[(Place, NeedOn)],
        group: Option<usize>,
    ) -> Vec<(Place, NeedOn)> {
        let found: Vec<_> = list.iter().filter_map(|need| self.need(place, need)).collect();
        // Nothing in a group starts before the group does.
        let inside = group.is_some_and(|group| found.iter().any(|(needed, _)| self.within(*needed, group)));
        if inside { found } else { entry.iter().copied().chain(found).collect() }
    }

    fn need(&mut self, place: Place, need: &NeedSpec) -> Option<(Place, NeedOn)> {
        let name = need.step.value.as_str();
        let span = need.step.span.clone();
        let Some(found) = self.names.get(name).copied() else {
            self.problems.push(self.unknown_need(name, span));
            self.unclear.extend(as_step(place));
            return None;
        };
        let wrong = match found {
            _ if found == place => Some("itself"),
            Place::Group(group) if self.within(place, group) => Some("the group it is in"),
            _ if self.always(found) && !self.always(place) => {
                Some("a step of `always`, which runs after all others")
            }
            _ if !self.always(found) && self.always(place) => {
                Some("a step that has ended by then; `always` runs after all others")
            }
            _ => None,
        };
        if let Some(wrong) = wrong {
            let id = &self.common(place).id.value;
            self.problems.push(
                Diagnostic::error(codes::LB0146, format!("`{id}` needs {wrong}"))
                    .at(self.source, span)
                    .help("remove the name; without `needs` a step waits for the one above it"),
            );
            return None;
        }
        let whole = match found {
            Place::Group(_) => true,
            Place::Step(at) => self.steps[at].spec.call().is_some(),
        };
        Some((found, if whole && need.on == NeedOn::Failure { NeedOn::FailureWithin } else { need.on }))
    }

    fn unknown_need(&self, name: &str, span: Range<usize>) -> Diagnostic {
        let diagnostic = Diagnostic::error(codes::LB0120, format!("there is no step or group `{name}`"))
            .at(self.source, span);
        // To look for the nearest of many names is dear; whoever has so many mistakes sees only the first ones.
        if self.problems.len() > 20 && self.names.len() > 200 {
            return diagnostic;
        }
        let mut known: Vec<_> = self.names.keys().copied().filter(|id| is_plain_id(id)).collect();
        known.sort_unstable();
        diagnostic.suggest(name, "steps and groups", known)
    }

    /// Replaces groups by the steps that end them, but for those that are needed as a whole.
    fn expand(&mut self) {
        let ends = self.ends();
        self.mark_whole(&ends);
        let mut edges = 0;
        for (step, needs) in std::mem::take(&mut self.waits) {
            let (mut expanded, mut whole): (Vec<(usize, NeedOn)>, Vec<usize>) = (Vec::new(), Vec::new());
            for (place, on) in needs {
                match place {
                    Place::Step(at) => expanded.push((at, on)),
                    // Whoever waits for failures waits for those of all steps, not only of the last ones.
                    Place::Group(at) if on != NeedOn::Success => {
                        expanded.extend(self.groups[at].steps.iter().map(|step| (*step, on)));
                    }
                    Place::Group(at) if self.groups[at].needed_whole => {
                        whole.push(at);
                        edges += ends[at].len();
                    }
                    Place::Group(at) => expanded.extend(ends[at].iter().map(|end| (*end, on))),
                }
            }
            if expanded.len() > 1 {
                let mut seen = HashSet::new();
                expanded.retain(|edge| seen.insert(*edge));
            }
            whole.sort_unstable();
            whole.dedup();
            edges += expanded.len();
            if edges > MAX_EDGES {
                let span: Range<usize> = self.steps[step].spec.common.id.span.clone();
                self.problems.push(
                    Diagnostic::error(
                        codes::LB0147,
                        "the steps up to here wait for each other more than ten million times",
                    )
                    .at(self.source, span)
                    .help("put one step, such as an `assert`, between very wide groups"),
                );
                return;
            }
            (self.steps[step].needs, self.steps[step].whole) = (expanded, whole);
        }
        self.groups.iter_mut().zip(ends).for_each(|(group, ends)| group.ends = ends);
    }

    /// Finds the groups whose ends and whose dependants would make too many edges.
    fn mark_whole(&mut self, ends: &[Vec<usize>]) {
        let mut waiting = vec![0_usize; self.groups.len()];
        for (place, on) in self.waits.iter().flat_map(|(_, needs)| needs) {
            if let (Place::Group(at), NeedOn::Success) = (place, on) {
                waiting[*at] += 1;
            }
        }
        for (at, group) in self.groups.iter_mut().enumerate() {
            group.needed_whole = ends[at].len() > 1 && waiting[at] * ends[at].len() > MAX_PRODUCT;
        }
    }

    /// Returns for every group the steps that no other step of the group waits for.
    fn ends(&self) -> Vec<Vec<usize>> {
        // For every step, the innermost group that holds both it and a step that waits for it: it ends only groups
        // inside of that one.
        let mut bound: Vec<Option<usize>> = vec![None; self.steps.len()];
        for (waiting, needs) in &self.waits {
            for (place, _) in needs {
                let (common, depth) = self.common_group(Place::Step(*waiting), *place);
                let Some(_) = common else { continue };
                let needed = match place {
                    Place::Step(at) => std::slice::from_ref(at),
                    Place::Group(at) => self.groups[*at].steps.as_slice(),
                };
                for at in needed {
                    bound[*at] = bound[*at].max(Some(depth));
                }
            }
        }
        let ends_group =
            |group: usize, step: &usize| bound[*step].is_none_or(|bound| bound < self.depth(group));
        (0..self.groups.len())
            .map(|group| {
                self.groups[group].steps.iter().copied().filter(|step| ends_group(group, step)).collect()
            })
            .collect()
    }

    fn depth(&self, group: usize) -> usize {
        let mut depth = 1;
        let mut next = self.groups[group].parent;
        while let Some(at) = next {
            depth += 1;
            next = self.groups[at].parent;
        }
        depth
    }

    /// Returns the innermost group that holds both, and its depth.
    fn common_group(&self, a: Place, b: Place) -> (Option<usize>, usize) {
        let mut next = self.group_of(b);
        while let Some(group) = next {
            if self.within(a, group) {
                return (Some(group), self.depth(group));
            }
            next = self.groups[group].parent;
        }
        (None, 0)
    }
}
