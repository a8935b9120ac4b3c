//! Puts the steps of called runbooks in the place of the steps that call them.

use super::analysis::Analysis;
use super::graph::{Graph, GroupNode, Node};
use super::order::{OrderedStep, Place};
use crate::model::StepId;
use crate::plan::{Need, NeedOn};
use crate::spec::Common;

/// All steps of a runbook and of those that it calls, in one list.
pub(super) struct Inlined<'a, 's> {
    /// The runbook itself, then those that are called, callers first.
    pub(super) files: Vec<File<'a, 's>>,
    pub(super) steps: Vec<InlinedStep>,
    pub(super) groups: Vec<InlinedGroup>,
}

/// One runbook in one place.
pub(super) struct File<'a, 's> {
    pub(super) analysis: &'a Analysis<'s>,
    pub(super) caller: Option<Caller>,
    /// What stands before the ids of its steps: empty, or the id of the caller and `/`.
    prefix: String,
    /// What became of each of its steps, by their positions in its own order.
    parts: Vec<Part>,
    /// The positions of its groups in the one list.
    groups: Vec<usize>,
    /// What the call waits for; nothing in the runbook itself.
    pub(super) entry: Waits,
}

/// What a step or a call waits for, by positions in the one list.
#[derive(Clone, Debug, Default)]
pub(super) struct Waits {
    pub(super) steps: Vec<(usize, NeedOn)>,
    /// Groups that must have succeeded as a whole.
    pub(super) groups: Vec<usize>,
}

impl Waits {
    fn is_empty(&self) -> bool {
        self.steps.is_empty() && self.groups.is_empty()
    }
}

/// The step that calls a runbook.
#[derive(Clone, Copy)]
pub(super) struct Caller {
    pub(super) file: usize,
    pub(super) at: usize,
    /// The group that the call became.
    group: usize,
    /// True if it runs in `always` of the runbook itself.
    pub(super) always: bool,
}

#[derive(Clone, Copy)]
enum Part {
    Step(usize),
    Call(usize),
}

/// A step in the one list.
pub(super) struct InlinedStep {
    pub(super) file: usize,
    /// Its position in the order of its file.
    pub(super) at: usize,
    pub(super) group: Option<usize>,
    pub(super) always: bool,
    /// The file whose other steps it comes after, whatever became of them.
    pub(super) concludes: Option<usize>,
    pub(super) needs: Waits,
}

/// A group in the one list, or a call, which is a group too.
pub(super) struct InlinedGroup {
    pub(super) file: usize,
    pub(super) place: Place,
    pub(super) parent: Option<usize>,
    /// The steps that end it, if steps need it as a whole.
    pub(super) ends: Vec<usize>,
}

/// Where the steps of a file come to stand.
#[derive(Clone, Copy)]
struct Spot {
    caller: Option<Caller>,
    always: bool,
    concludes: Option<usize>,
}

impl<'a, 's> Inlined<'a, 's> {
    pub(super) fn of(analysis: &'a Analysis<'s>) -> Self {
        let mut inlined = Self { files: Vec::new(), steps: Vec::new(), groups: Vec::new() };
        inlined.place(analysis, String::new(), Spot { caller: None, always: false, concludes: None });
        inlined.wire();
        inlined
    }

    /// Gives the steps of a file, and of those that it calls, their positions.
    fn place(&mut self, analysis: &'a Analysis<'s>, prefix: String, spot: Spot) -> usize {
        let (file, caller) = (self.files.len(), spot.caller);
        let (order, outer) = (&analysis.order, caller.map(|caller| caller.group));
        let first = self.groups.len();
        let groups: Vec<_> = (first..first + order.groups.len()).collect();
        for (at, group) in order.groups.iter().enumerate() {
            let parent = group.parent.map(|parent| groups[parent]).or(outer);
            self.groups.push(InlinedGroup { file, place: Place::Group(at), parent, ends: Vec::new() });
        }
        self.files.push(File {
            analysis,
            caller,
            prefix,
            parts: Vec::new(),
            groups,
            entry: Waits::default(),
        });
        for (at, step) in order.steps.iter().enumerate() {
            let group = step.group.map(|group| self.files[file].groups[group]).or(outer);
            let concludes = if step.always && file > 0 { Some(file) } else { spot.concludes };
            let always = spot.always || step.always;
            let part = match analysis.calls.get(&at) {
                Some(_) => self.place_call(Spot { always, concludes, ..spot }, file, at, group),
                None => {
                    let needs = Waits::default();
                    self.steps.push(InlinedStep { file, at, group, always, concludes, needs });
                    Part::Step(self.steps.len() - 1)
                }
            };
            self.files[file].parts.push(part);
        }
        file
    }

    fn place_call(&mut self, spot: Spot, file: usize, at: usize, parent: Option<usize>) -> Part {
        let analysis = self.files[file].analysis;
        let called = &analysis.calls[&at].analysis;
        let prefix = format!("{}/", self.id(file, Place::Step(at)));
        let group = self.groups.len();
        self.groups.push(InlinedGroup { file, place: Place::Step(at), parent, ends: Vec::new() });
        let always = spot.caller.map_or(analysis.order.steps[at].always, |caller| caller.always);
        let caller = Caller { file, at, group, always };
        Part::Call(self.place(called, prefix, Spot { caller: Some(caller), ..spot }))
    }

    /// Writes down what every step waits for. Callers come before what they call, so their own needs are known.
    fn wire(&mut self) {
        for file in 0..self.files.len() {
            if let Some(caller) = self.files[file].caller {
                self.files[file].entry = self.waits(caller.file, caller.at);
            }
            for at in 0..self.files[file].parts.len() {
                if let Part::Step(position) = self.files[file].parts[at] {
                    self.steps[position].needs = self.waits(file, at);
                }
            }
            for (at, group) in self.files[file].analysis.order.groups.iter().enumerate() {
                if group.needed_whole {
                    let position = self.files[file].groups[at];
                    let ends = group.ends.iter().flat_map(|end| self.needed(file, *end, NeedOn::Success));
                    self.groups[position].ends = ends.collect();
                }
            }
        }
    }

    /// Returns what a step or a call waits for.
    fn waits(&self, file: usize, at: usize) -> Waits {
        let step = self.ordered(file, at);
        let steps = step.needs.iter().flat_map(|(at, on)| {
            let on = *on;
            self.needed(file, *at, on).map(move |end| (end, on))
        });
        let groups = step.whole.iter().map(|group| self.files[file].groups[*group]);
        let own = Waits { steps: steps.collect(), groups: groups.collect() };
        if own.is_empty() && file > 0 && step.always {
            let ends = self.ends(file, Half::Main).into_iter().map(|end| (end, NeedOn::Any));
            return Waits { steps: ends.collect(), groups: Vec::new() };
        }
        if own.is_empty() { self.files[file].entry.clone() } else { own }
    }

    /// Returns the steps that must have ended for a step or call to have ended; all steps of a call for those who wait
    /// for failures in it.
    fn needed(&self, file: usize, at: usize, on: NeedOn) -> impl Iterator<Item = usize> + use<> {
        let found = match self.files[file].parts[at] {
            Part::Step(position) => vec![position],
            Part::Call(called) if on != NeedOn::Success => {
                (0..self.files[called].parts.len()).flat_map(|at| self.needed(called, at, on)).collect()
            }
            Part::Call(called) => {
                let mut ends = self.ends(called, Half::Main);
                ends.extend(self.ends(called, Half::Always));
                ends
            }
        };
        found.into_iter()
    }

    /// Returns the steps of a file that no other step of the same half waits for.
    fn ends(&self, file: usize, half: Half) -> Vec<usize> {
        let order = &self.files[file].analysis.order;
        let steps = &order.steps;
        let mut awaited = vec![false; steps.len()];
        for (needed, _) in steps.iter().flat_map(|step| &step.needs) {
            awaited[*needed] = true;
        }
        for needed in order.groups.iter().filter(|group| group.needed_whole).flat_map(|group| &group.ends) {
            awaited[*needed] = true;
        }
        let ends = (0..steps.len()).filter(|at| !awaited[*at] && steps[*at].always == (half == Half::Always));
        ends.flat_map(|at| self.needed(file, at, NeedOn::Success)).collect()
    }

    pub(super) fn ordered(&self, file: usize, at: usize) -> &'a OrderedStep<'s> {
        &self.files[file].analysis.order.steps[at]
    }

    /// Returns what a step or group says of itself.
    pub(super) fn common(&self, file: usize, place: Place) -> &'a Common {
        self.files[file].analysis.order.common(place)
    }

    /// Returns the id of a step or group as the plan has it.
    pub(super) fn id(&self, file: usize, place: Place) -> String {
        format!("{}{}", self.files[file].prefix, self.common(file, place).id.value)
    }

    /// Returns the id in the plan of the step or group that a condition was written on.
    pub(super) fn written_on(&self, file: usize, name: &str) -> String {
        format!("{}{name}", self.files[file].prefix)
    }

    /// Says whether the steps of a group start together, and how many of them may run at once.
    pub(super) fn limits(&self, group: &InlinedGroup) -> (bool, Option<usize>) {
        let order = &self.files[group.file].analysis.order;
        match group.place {
            Place::Group(at) => (order.groups[at].spec.parallel, order.groups[at].spec.max_parallel),
            Place::Step(at) => (false, order.steps[at].spec.call().and_then(|call| call.max_parallel)),
        }
    }

    pub(super) fn step_id(&self, position: usize) -> String {
        let step = &self.steps[position];
        self.id(step.file, Place::Step(step.at))
    }

    /// Returns needs as the plan has them.
    pub(super) fn planned_needs(&self, needs: &Waits) -> Vec<Need> {
        let need = |id: String, on: NeedOn| Some(Need { step: StepId::new(id).ok()?, on });
        let steps = needs.steps.iter().filter_map(|(at, on)| need(self.step_id(*at), *on));
        let groups = needs.groups.iter().map(|at| &self.groups[*at]);
        let groups = groups.filter_map(|group| need(self.id(group.file, group.place), NeedOn::Success));
        steps.chain(groups).collect()
    }

    /// Returns everything that a step waits for, groups replaced by their ends.
    pub(super) fn waits_for(&self, position: usize) -> impl Iterator<Item = (usize, NeedOn)> + '_ {
        let needs = &self.steps[position].needs;
        let ends = needs.groups.iter().flat_map(|group| &self.groups[*group].ends);
        needs.steps.iter().copied().chain(ends.map(|end| (*end, NeedOn::Success)))
    }

    pub(super) fn step_common(&self, position: usize) -> &'a Common {
        let step = &self.steps[position];
        self.common(step.file, Place::Step(step.at))
    }

    /// Returns the group of a step and those around it, innermost first.
    pub(super) fn groups_of(&self, position: usize) -> impl Iterator<Item = &InlinedGroup> {
        let innermost = self.steps[position].group.map(|at| &self.groups[at]);
        std::iter::successors(innermost, |group| group.parent.map(|at| &self.groups[at]))
    }

    /// Returns the graph; positions are those of `steps` and `groups`.
    pub(super) fn graph(&self) -> Graph {
        let budget = |common: &Common| common.budget.as_ref().map(|budget| budget.value.0);
        let steps = self.steps.iter().map(|step| Node {
            needs: step.needs.steps.iter().map(|(at, _)| *at).collect(),
            budget: budget(self.common(step.file, Place::Step(step.at))).unwrap_or_default(),
            group: step.group,
        });
        let groups = self.groups.iter().map(|group| GroupNode {
            parent: group.parent,
            budget: budget(self.common(group.file, group.place)),
        });
        let mut graph = Graph { steps: steps.collect(), groups: groups.collect(), joins: 0 };
        let waiting = self.steps.iter().map(|step| step.needs.groups.as_slice());
        graph.join(waiting, |group| self.groups[group].ends.clone());
        graph
    }
}

/// One of the two lists of a runbook.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Half {
    Main,
    Always,
}
