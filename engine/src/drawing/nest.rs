//! How steps and groups lie within and beside each other: the drawing before it has a size.

use std::collections::{HashMap, HashSet};

use super::shape::Shape;
use crate::plan::NeedOn;

/// More children than this in one place are listed, not drawn: nobody reads that many boxes.
const MOST_CHILDREN: usize = 200;

/// A child of a group: a step or another group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Child {
    Step(usize),
    Group(usize),
}

/// Returns the children of every group in the order of the file, and at the end those of none.
pub(super) fn children(shape: &Shape) -> Vec<Vec<Child>> {
    let root = shape.groups.len();
    let mut children = vec![Vec::new(); root + 1];
    let mut placed = vec![false; root];
    for at in 0..shape.steps.len() {
        let mut chain: Vec<_> = shape.groups_of(at).collect();
        chain.reverse();
        let mut parent = root;
        for group in chain {
            if !placed[group] {
                placed[group] = true;
                children[parent].push(Child::Group(group));
            }
            parent = group;
        }
        children[parent].push(Child::Step(at));
    }
    children
}

/// Says whether a child stands in `always` of the runbook. The steps of `always` of a call stand with the call.
pub(super) fn is_always(shape: &Shape, child: Child, children: &[Vec<Child>]) -> bool {
    match child {
        Child::Step(at) => shape.steps[at].always,
        Child::Group(group) => children[group].iter().all(|child| is_always(shape, *child, children)),
    }
}

/// Children that follow each other or run beside each other.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Nest {
    Child(Child),
    Series(Vec<Nest>),
    Parallel(Vec<Nest>),
}

/// What a child waits for that its place does not show.
pub(super) type Notes = HashMap<Child, Vec<String>>;

/// The order among the children of every group.
pub(super) struct Nesting {
    /// By group, that of the runbook itself last; `None` where there are too many children to draw.
    pub(super) nests: Vec<Option<Nest>>,
    /// For drawings.
    pub(super) notes: Notes,
    /// For lists, in which only the order of the file is seen.
    pub(super) listed: Notes,
}

/// Edges between children of one group.
#[derive(Default)]
struct Links {
    /// Those that hold for all of both children.
    whole: Vec<(Child, Child)>,
}

/// One child waiting for another, counted over the steps of both.
#[derive(Clone, Copy, Default)]
struct Link {
    /// Edges from a last step of the one to a first step of the other.
    ends: usize,
    failure: bool,
    any: bool,
}

impl Nesting {
    pub(super) fn of(shape: &Shape, children: &[Vec<Child>]) -> Self {
        let surroundings = Surroundings::of(shape);
        let mut links: HashMap<(usize, Child, Child), Link> = HashMap::new();
        for (at, step) in shape.steps.iter().enumerate() {
            for edge in &step.needs {
                let (place, from, to) = surroundings.meet(edge.step, at);
                let link = links.entry((place, from, to)).or_default();
                let ends = surroundings.is_last(edge.step, from) && surroundings.is_first(at, to);
                link.ends += usize::from(ends);
                link.failure |= matches!(edge.on, NeedOn::Failure | NeedOn::FailureWithin);
                link.any |= edge.on == NeedOn::Any;
            }
        }
        let mut found: Vec<_> = links.into_iter().collect();
        found.sort_unstable_by_key(|(key, _)| *key);
        let mut by_place: Vec<Links> = children.iter().map(|_| Links::default()).collect();
        let (mut notes, mut listed) = (Notes::new(), Notes::new());
        let mut told = HashSet::new();
        let mut linked: Vec<Awaited> = vec![HashMap::new(); children.len()];
        for ((place, from, to), link) in found {
            let whole = link.ends == surroundings.lasts(from) * surroundings.firsts(to);
            if whole {
                by_place[place].whole.push((from, to));
                linked[place].entry(to).or_default().push(from);
            }
            if let Some(note) = link.note(name(shape, from)).filter(|_| whole) {
                notes.entry(to).or_default().push(note.clone());
                listed.entry(to).or_default().push(note);
                told.insert((to, from));
            }
        }
        // Needs that hold for some steps of a group only are told on these steps.
        for (at, step) in shape.steps.iter().enumerate() {
            for edge in &step.needs {
                let (place, from, to) = surroundings.meet(edge.step, at);
                let shown = linked[place].get(&to).is_some_and(|froms| froms.contains(&from));
                if !shown {
                    let (failure, any) = (edge.on == NeedOn::Failure, edge.on == NeedOn::Any);
                    let id = &shape.steps[edge.step].id;
                    let told = Link { ends: 0, failure, any }.note(id);
                    let note = told.unwrap_or_else(|| format!("after {id}"));
                    notes.entry(Child::Step(at)).or_default().push(note.clone());
                    listed.entry(Child::Step(at)).or_default().push(note);
                }
            }
        }
        list_notes(shape, (children, &linked), &told, &mut listed);
        let mut nests = Vec::with_capacity(children.len());
        for (children, links) in children.iter().zip(&by_place) {
            nests.push(nest(shape, children, links, &mut notes));
        }
        Self { nests, notes, listed }
    }
}

impl Link {
    /// Says what must have become of the other, unless it is plain success.
    fn note(self, id: &str) -> Option<String> {
        match (self.failure, self.any) {
            (true, _) => Some(format!("only if {id} fails")),
            (false, true) => Some(format!("whatever becomes of {id}")),
            (false, false) => None,
        }
    }
}

pub(super) fn name(shape: &Shape, child: Child) -> &str {
    match child {
        Child::Step(at) => &shape.steps[at].id,
        Child::Group(at) => &shape.groups[at].id,
    }
}

/// What each child of a group waits for.
type Awaited = HashMap<Child, Vec<Child>>;

/// In a list, a child follows the one above it or, in a parallel group, none. Whatever is otherwise is said.
fn list_notes(
    shape: &Shape,
    (children, linked): (&[Vec<Child>], &[Awaited]),
    told: &HashSet<(Child, Child)>,
    notes: &mut Notes,
) {
    for (place, of_place) in children.iter().enumerate() {
        let parallel = shape.groups.get(place).is_some_and(|group| group.parallel);
        let mut before: Option<Child> = None;
        for child in of_place {
            let froms = linked[place].get(child).map_or(&[][..], Vec::as_slice);
            let usual = if parallel { None } else { before };
            let as_usual = match usual {
                Some(usual) => froms == [usual],
                None => froms.is_empty(),
            };
            if !as_usual && !is_told(shape, *child) {
                let untold: Vec<_> = froms.iter().filter(|from| !told.contains(&(*child, **from))).collect();
                let names: Vec<_> = untold.iter().take(4).map(|from| name(shape, **from)).collect();
                let note = match (names.is_empty(), untold.len() > 4) {
                    (true, _) => "at once".to_owned(),
                    (false, false) => format!("after {}", names.join(", ")),
                    (false, true) => format!("after {} and {} more", names.join(", "), untold.len() - 4),
                };
                let own = notes.entry(*child).or_default();
                if note != "at once" || own.is_empty() {
                    own.push(note);
                }
            }
            before = Some(*child);
        }
    }
}

/// The first steps of `always` follow nothing.
fn is_told(shape: &Shape, child: Child) -> bool {
    matches!(child, Child::Step(at) if shape.steps[at].always && shape.steps[at].needs.is_empty())
}

/// Where steps stand, and which of a group are first and last.
struct Surroundings {
    /// The groups around each step, outermost first.
    chains: Vec<Vec<usize>>,
    /// How deep the innermost group lies that holds both ends of an edge into or out of the step.
    into: Vec<usize>,
    out_of: Vec<usize>,
    depths: Vec<usize>,
    firsts: Vec<usize>,
    lasts: Vec<usize>,
}

impl Surroundings {
    fn of(shape: &Shape) -> Self {
        let chain = |at: usize| {
            let mut chain: Vec<_> = shape.groups_of(at).collect();
            chain.reverse();
            chain
        };
        let chains: Vec<Vec<usize>> = (0..shape.steps.len()).map(chain).collect();
        let mut found = Self {
            into: vec![0; chains.len()],
            out_of: vec![0; chains.len()],
            depths: vec![0; shape.groups.len()],
            firsts: vec![0; shape.groups.len()],
            lasts: vec![0; shape.groups.len()],
            chains,
        };
        for (at, step) in shape.steps.iter().enumerate() {
            for edge in &step.needs {
                let depth = found.common(edge.step, at);
                found.into[at] = found.into[at].max(depth);
                found.out_of[edge.step] = found.out_of[edge.step].max(depth);
            }
        }
        for (at, chain) in found.chains.iter().enumerate() {
            let needs = !shape.steps[at].needs.is_empty();
            for (depth, group) in chain.iter().enumerate() {
                found.depths[*group] = depth + 1;
                found.firsts[*group] += usize::from(!needs || depth + 1 > found.into[at]);
                found.lasts[*group] += usize::from(depth + 1 > found.out_of[at]);
            }
        }
        found
    }

    /// Returns how many groups hold both steps.
    fn common(&self, one: usize, other: usize) -> usize {
        self.chains[one].iter().zip(&self.chains[other]).take_while(|(one, other)| one == other).count()
    }

    /// Returns the group in which two steps meet, and the children of it that they are in.
    fn meet(&self, from: usize, to: usize) -> (usize, Child, Child) {
        let depth = self.common(from, to);
        let child = |at: usize| self.chains[at].get(depth).map_or(Child::Step(at), |it| Child::Group(*it));
        let place = match depth.checked_sub(1) {
            Some(above) => self.chains[from][above],
            None => self.depths.len(),
        };
        (place, child(from), child(to))
    }

    fn is_first(&self, at: usize, of: Child) -> bool {
        match of {
            Child::Step(_) => true,
            Child::Group(group) => self.depths[group] > self.into[at],
        }
    }

    fn is_last(&self, at: usize, of: Child) -> bool {
        match of {
            Child::Step(_) => true,
            Child::Group(group) => self.depths[group] > self.out_of[at],
        }
    }

    fn firsts(&self, child: Child) -> usize {
        if let Child::Group(group) = child { self.firsts[group] } else { 1 }
    }

    fn lasts(&self, child: Child) -> usize {
        if let Child::Group(group) = child { self.lasts[group] } else { 1 }
    }
}

/// Arranges the children of one group. `None` if there are too many to draw.
fn nest(shape: &Shape, children: &[Child], links: &Links, notes: &mut Notes) -> Option<Nest> {
    if children.len() > MOST_CHILDREN {
        return None;
    }
    let position: HashMap<_, _> = children.iter().enumerate().map(|(at, child)| (*child, at)).collect();
    let mut before = vec![Vec::new(); children.len()];
    for (from, to) in &links.whole {
        if let (Some(from), Some(to)) = (position.get(from), position.get(to)) {
            before[*to].push(*from);
        }
    }
    let layers = layers(&before)?;
    let siblings = Siblings { children, before, layers };
    let mut tangled = Vec::new();
    let nest = arrange(&siblings, (0..children.len()).collect(), &mut tangled);
    for at in tangled.into_iter().filter(|at| !siblings.before[*at].is_empty()) {
        let names: Vec<_> = siblings.before[at].iter().map(|from| name(shape, children[*from])).collect();
        notes.entry(children[at]).or_default().push(format!("after {}", names.join(", ")));
    }
    Some(nest)
}

struct Siblings<'a> {
    children: &'a [Child],
    before: Vec<Vec<usize>>,
    layers: Vec<usize>,
}

/// Returns for each how many must have ended before it, one after the other. `None` if they wait in a circle.
fn layers(before: &[Vec<usize>]) -> Option<Vec<usize>> {
    let mut layers = vec![None; before.len()];
    for _ in 0..=before.len() {
        let mut left = false;
        for at in 0..before.len() {
            if layers[at].is_some() {
                continue;
            }
            let above: Option<Vec<usize>> = before[at].iter().map(|from| layers[*from]).collect();
            layers[at] = above.map(|above| above.iter().max().map_or(0, |layer| layer + 1));
            left |= layers[at].is_none();
        }
        if !left {
            return layers.into_iter().collect();
        }
    }
    None
}

/// Splits siblings into those that run beside each other, and each of these into those that follow each other.
fn arrange(siblings: &Siblings<'_>, mut some: Vec<usize>, tangled: &mut Vec<usize>) -> Nest {
    if let [only] = some[..] {
        return Nest::Child(siblings.children[only]);
    }
    let lanes = components(siblings, &some);
    if lanes.len() != 1 {
        return Nest::Parallel(lanes.into_iter().map(|lane| arrange(siblings, lane, tangled)).collect());
    }
    some.sort_by_key(|at| (siblings.layers[*at], *at));
    let parts = series(siblings, &some);
    if parts.len() > 1 {
        return Nest::Series(parts.into_iter().map(|part| arrange(siblings, part, tangled)).collect());
    }
    // Neither: they are drawn beside each other, and notes tell the order.
    tangled.extend(&some);
    Nest::Parallel(some.into_iter().map(|at| Nest::Child(siblings.children[at])).collect())
}

/// Returns the sets of siblings between which there is no edge, in the order of the file.
fn components(siblings: &Siblings<'_>, some: &[usize]) -> Vec<Vec<usize>> {
    let mut root: HashMap<usize, usize> = some.iter().map(|at| (*at, *at)).collect();
    fn find(root: &mut HashMap<usize, usize>, mut at: usize) -> usize {
        while root[&at] != at {
            let above = root[&root[&at]];
            root.insert(at, above);
            at = above;
        }
        at
    }
    for at in some {
        for from in siblings.before[*at].iter().filter(|from| some.contains(from)) {
            let (one, other) = (find(&mut root, *at), find(&mut root, *from));
            root.insert(one.max(other), one.min(other));
        }
    }
    let mut found: Vec<(usize, Vec<usize>)> = Vec::new();
    let mut sorted = some.to_vec();
    sorted.sort_unstable();
    for at in sorted {
        let of = find(&mut root, at);
        match found.iter_mut().find(|(root, _)| *root == of) {
            Some((_, lane)) => lane.push(at),
            None => found.push((of, vec![at])),
        }
    }
    found.into_iter().map(|(_, lane)| lane).collect()
}

/// Cuts siblings wherever all that is above has ended before anything below begins.
fn series(siblings: &Siblings<'_>, sorted: &[usize]) -> Vec<Vec<usize>> {
    let mut parts = Vec::new();
    let mut begin = 0;
    for cut in 1..sorted.len() {
        let same = siblings.layers[sorted[cut - 1]] == siblings.layers[sorted[cut]];
        if !same && is_cut(siblings, &sorted[begin..cut], &sorted[cut..]) {
            parts.push(sorted[begin..cut].to_vec());
            begin = cut;
        }
    }
    parts.push(sorted[begin..].to_vec());
    parts
}

fn is_cut(siblings: &Siblings<'_>, above: &[usize], below: &[usize]) -> bool {
    let needed = |at: &usize| above.iter().any(|other| siblings.before[*other].contains(at));
    let mut lasts = above.iter().filter(|at| !needed(at));
    let firsts: Vec<_> =
        below.iter().filter(|at| siblings.before[**at].iter().all(|from| !below.contains(from))).collect();
    lasts.all(|last| firsts.iter().all(|first| siblings.before[**first].contains(last)))
}
