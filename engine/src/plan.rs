//! A compiled runbook with its inputs bound: what will run, resolved, immutable and stored with the run.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::expr::InputDecl;
use crate::fence::Protected;
use crate::model::ids::StepId;
use crate::model::outcome::Mode;
use crate::notice::Occasion;
use crate::resource::Resource;
use crate::secret::SecretRef;
use crate::step::Effect;
use crate::value::Span;

/// Everything a run needs, so that editing files never changes a run that has begun.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The version of this form; a newer one is refused.
    pub format: u32,
    pub project: String,
    /// The directory of `lifeboat.yaml`.
    pub project_dir: PathBuf,
    pub runbook: String,
    pub title: String,
    pub owner: Option<String>,
    pub environment: String,
    pub protected: bool,
    pub mode: Mode,
    pub commit: Option<Commit>,
    pub objective: Objective,
    /// Deadlines counted from the incident.
    pub milestones: BTreeMap<String, Span>,
    /// Role to what it does.
    pub roles: BTreeMap<String, String>,
    /// Inputs with their values.
    pub inputs: Map<String, Value>,
    pub vars: Map<String, Value>,
    pub resources: BTreeMap<String, Resource>,
    /// Names of the environment's secrets, and `RESOURCE.password`, to references.
    pub secrets: BTreeMap<String, SecretRef>,
    /// True if approvals of a drill are answered by nobody.
    pub auto_approvals: bool,
    /// True if a drill leaves what it created.
    #[serde(default)]
    pub keep: bool,
    /// In the order of the file, `always` steps last.
    pub steps: Vec<PlannedStep>,
    pub groups: Vec<PlannedGroup>,
    /// What takes the work of steps back when the run is aborted, in the order of `steps`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub undos: Vec<PlannedUndo>,
    /// The runbooks that this one calls, at any depth; a caller stands before those that it calls.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scopes: Vec<Scope>,
    /// Names that no other run may have meanwhile, besides what it writes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub locks: Vec<String>,
    /// The channels of each notice, by the names of resources.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub notices: BTreeMap<Occasion, Vec<String>>,
    /// Who may answer for each role that is asked, where the project names its people; absent where it names none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approvers: Option<BTreeMap<String, Vec<String>>>,
    /// How to reach the people of each role.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub contacts: BTreeMap<String, Vec<String>>,
    /// What protected environments name, for a run that must keep away from it: compared again before each write.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fence: Vec<Protected>,
    /// The files it was compiled from, with their SHA-256.
    pub sources: BTreeMap<String, String>,
}

/// The state of the project's Git repository when the plan was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commit {
    pub hash: String,
    /// True if files differed from the commit.
    pub dirty: bool,
}

/// What the recovery must achieve.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Objective {
    pub rto: Option<Span>,
    pub rpo: Option<Span>,
}

/// A runbook that a step calls: what names mean in the texts of its steps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scope {
    /// The step that calls it. The ids of its steps begin with this one and `/`.
    pub id: StepId,
    /// The scope of that step; absent in the runbook of the run itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<usize>,
    /// The runbook that is called.
    pub runbook: String,
    /// True if it is called from `always` of the run itself.
    pub always: bool,
    /// What the call needs. Its first steps wait for it; if it turns out that the call must not run, nothing of it runs.
    pub needs: Vec<Need>,
    /// What it asks to be told.
    pub inputs: Vec<InputDecl>,
    /// Its inputs as given, templates not yet evaluated: they are read in the scope of the caller.
    pub with: Map<String, Value>,
    /// What the caller can read of it, templates not yet evaluated.
    pub outputs: Map<String, Value>,
}

/// One step with everything resolved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlannedStep {
    pub id: StepId,
    pub title: String,
    /// `runbooks/restore.yaml:31`.
    pub place: String,
    /// The innermost group it is in.
    pub group: Option<StepId>,
    /// True if it runs after the end of the others, whatever that was.
    pub always: bool,
    /// What names mean in its texts, by position in `scopes`; absent in the runbook of the run itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<usize>,
    /// Set if it stands in `always` of a runbook that is called: it runs when the other steps of that scope have
    /// ended, unless none of them has begun. Such a step is `always` too, for it also runs if the run ends early.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concludes: Option<usize>,
    /// Every step that must have ended, in the way given, before this one can start. [`Plan::wiring`] tells their
    /// positions.
    pub needs: Vec<Need>,
    /// All must hold: those of its groups, outermost first, then its own.
    pub conditions: Vec<Condition>,
    /// The step kind.
    pub uses: String,
    /// Its parameters, templates not yet evaluated.
    pub with: Value,
    pub effect: Effect,
    /// Bare expressions over `output` that must hold after success.
    pub expect: Vec<String>,
    pub retry: Retry,
    /// Ends an attempt.
    pub timeout: Option<Span>,
    /// What it is meant to take: shown and judged.
    pub budget: Option<Span>,
    pub milestone: Option<Milestone>,
    /// The RTO clock stops when the last of these has succeeded.
    pub recovered: bool,
    pub on_error: OnError,
    /// What it destroys, with names resolved; empty if nothing.
    pub destroys: Vec<String>,
    /// Names of resources that it reads and writes.
    pub reads: Vec<String>,
    pub writes: Vec<String>,
    /// Whether its kind reports a recovery point.
    pub restores: bool,
    /// Set if it runs once for each element of a list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub for_each: Option<ForEach>,
    /// Set if an attempt repeats it until a condition holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Until>,
}

/// What a step is repeated for. Each element has attempts, a work directory and output of its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ForEach {
    /// A list, or a template that gives one; evaluated once, when the step is ready.
    pub list: Value,
    /// How many elements run at once. With 1 they run in order: the next one starts when the one before has ended.
    pub max_parallel: usize,
}

impl ForEach {
    /// More elements than this are refused.
    pub const MAX_ELEMENTS: usize = 10_000;
}

/// What an attempt waits for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Until {
    /// A bare expression over `output` and the names that the step's parameters see.
    pub condition: String,
    /// The wait before it is repeated.
    pub every: Span,
}

/// How the work of one step is taken back if the run is aborted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlannedUndo {
    /// The step whose work it takes back.
    pub of: StepId,
    /// Set if the kind of the step does it: what that is, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub built_in: Option<String>,
    /// What runs, as a step named `STEP/undo`. One that is built in has the kind and the parameters of the step.
    pub step: PlannedStep,
}

/// A group, for display, budgets and limits; order is in the steps' `needs`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlannedGroup {
    pub id: StepId,
    pub title: String,
    pub parent: Option<StepId>,
    pub parallel: bool,
    /// How many of its steps may run at once.
    pub max_parallel: Option<usize>,
    pub budget: Option<Span>,
    pub milestone: Option<Milestone>,
    pub recovered: bool,
    /// The steps that end it, if steps need it as a whole.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ends: Vec<StepId>,
}

/// One edge of the graph.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Need {
    /// A step. Or a group: then the success of all its `ends` is needed. A group is needed so where its ends and the
    /// steps that wait for them would make very many edges.
    pub step: StepId,
    pub on: NeedOn,
}

/// What must have become of the step that is needed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NeedOn {
    #[default]
    Success,
    Failure,
    /// A failure after which the run does not simply go on: of a step in the group or the runbook that is needed.
    FailureWithin,
    Any,
}

/// A bare expression, and where it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    pub expression: String,
    /// The group or step it was written on.
    pub of: StepId,
    /// The scope of that group or step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<usize>,
}

/// What to do when attempts are used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnError {
    /// A person decides; only what depends on the step waits.
    Hold,
    Abort,
    Continue,
}

/// How often and when attempts are repeated.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Retry {
    /// Counts the first one.
    pub attempts: u32,
    pub backoff: Backoff,
    pub delay: Span,
    pub max_delay: Option<Span>,
    /// Takes a random part of up to half off each delay.
    pub jitter: bool,
    /// A bare expression over `error` and `attempt`; no repetition unless it holds.
    pub when: Option<String>,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            attempts: 1,
            backoff: Backoff::Fixed,
            delay: Span(std::time::Duration::from_secs(1)),
            max_delay: None,
            jitter: false,
            when: None,
        }
    }
}

/// How delays grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Backoff {
    #[default]
    Fixed,
    Exponential,
}

/// Names the moment at which a step or group started or succeeded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Milestone {
    pub name: String,
    pub at: MilestoneAt,
}

/// Which moment a milestone marks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MilestoneAt {
    Started,
    #[default]
    Succeeded,
}

impl PlannedStep {
    /// Returns the title of the step as a whole: where each element has its own words stands `…`.
    pub fn whole_title(&self) -> String {
        if self.for_each.is_none() {
            return self.title.clone();
        }
        let mut title = String::new();
        let mut rest = self.title.as_str();
        while let Some((before, after)) = rest.split_once("{{") {
            let Some((_, behind)) = after.split_once("}}") else { break };
            title.push_str(before);
            title.push('…');
            rest = behind;
        }
        title + rest
    }

    /// Returns the title of one element, with what it is filled in. A title that cannot be evaluated stays as it is.
    pub fn element_title(&self, index: usize, item: &Value) -> String {
        let names = Map::from_iter([("item".to_owned(), item.clone()), ("index".to_owned(), index.into())]);
        match crate::expr::has_template(&self.title) {
            true => crate::expr::render_text(&self.title, &names).unwrap_or_else(|_| self.title.clone()),
            false => self.title.clone(),
        }
    }
}

impl Plan {
    /// The newest version of the form that this program reads and writes.
    pub const FORMAT: u32 = 2;

    /// The version of a plan in which steps need steps only; earlier programs read it.
    pub const WITHOUT_WHOLE_GROUPS: u32 = 1;

    /// Returns the version of the form that a plan needs.
    pub fn format_for(groups: &[PlannedGroup]) -> u32 {
        let whole = groups.iter().any(|group| !group.ends.is_empty());
        if whole { Self::FORMAT } else { Self::WITHOUT_WHOLE_GROUPS }
    }

    /// Finds out who waits for whom, by position.
    pub fn wiring(&self) -> Wiring<'_> {
        Wiring::of(self)
    }

    /// Returns the SHA-256 of the plan in its stored form, in hexadecimal.
    pub fn digest(&self) -> String {
        let text = serde_json::to_vec(self).expect("a plan holds nothing that JSON cannot express");
        hex(&Sha256::digest(text))
    }

    /// Returns the SHA-256 of the plan and of further words, in hexadecimal.
    pub fn digest_with(&self, words: &[String]) -> String {
        hex(&Sha256::digest(format!("{}\0{}", self.digest(), words.join("\0"))))
    }

    /// Returns a step by its id.
    pub fn step(&self, id: &StepId) -> Option<&PlannedStep> {
        self.steps.iter().find(|step| &step.id == id)
    }

    /// Returns what stands at a position: a step, or beyond the last one an undo.
    ///
    /// # Panics
    /// If there is no such position; positions come from the state of a run of this very plan.
    pub fn at(&self, position: usize) -> &PlannedStep {
        match position.checked_sub(self.steps.len()) {
            Some(undo) => &self.undos[undo].step,
            None => &self.steps[position],
        }
    }

    /// Returns the undo at a position, if one stands there.
    pub fn undo_at(&self, position: usize) -> Option<&PlannedUndo> {
        self.undos.get(position.checked_sub(self.steps.len())?)
    }

    /// Returns everything that may run, by position: all steps, then all undos.
    pub fn everything(&self) -> impl Iterator<Item = &PlannedStep> {
        self.steps.iter().chain(self.undos.iter().map(|undo| &undo.step))
    }

    /// Returns a scope and those it is called from, innermost first.
    pub fn scopes_of(&self, scope: Option<usize>) -> impl Iterator<Item = usize> {
        std::iter::successors(scope, |at| self.scopes.get(*at).and_then(|scope| scope.parent))
    }

    /// Says whether one scope is another one or is called from it, at any depth.
    pub fn is_within(&self, scope: Option<usize>, outer: usize) -> bool {
        self.scopes_of(scope).any(|at| at == outer)
    }
}

/// Who waits for whom in a plan, by position.
#[derive(Debug)]
pub struct Wiring<'p> {
    plan: &'p Plan,
    steps: HashMap<&'p StepId, usize>,
    /// Groups that are needed as a whole.
    groups: HashMap<&'p StepId, usize>,
    /// The steps that end each of these, by the position of the group.
    ends: HashMap<usize, Vec<usize>>,
}

/// What a need names, by position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Needed {
    Step(usize),
    /// All ends of a group.
    Group(usize),
}

impl<'p> Wiring<'p> {
    fn of(plan: &'p Plan) -> Self {
        let steps: HashMap<_, _> = plan.steps.iter().enumerate().map(|(at, step)| (&step.id, at)).collect();
        let whole = || plan.groups.iter().enumerate().filter(|(_, group)| !group.ends.is_empty());
        let groups = whole().map(|(at, group)| (&group.id, at)).collect();
        let position = |id: &StepId| steps.get(id).copied();
        let ends =
            whole().map(|(at, group)| (at, group.ends.iter().filter_map(position).collect())).collect();
        Self { plan, steps, groups, ends }
    }

    /// Returns the position of what a need names.
    pub fn find(&self, id: &StepId) -> Option<Needed> {
        let step = self.steps.get(id).map(|at| Needed::Step(*at));
        step.or_else(|| self.groups.get(id).map(|at| Needed::Group(*at)))
    }

    /// Returns what a step needs, groups as a whole.
    pub fn direct(&self, step: usize) -> impl Iterator<Item = (Needed, NeedOn)> + '_ {
        self.plan.steps[step].needs.iter().filter_map(|need| Some((self.find(&need.step)?, need.on)))
    }

    /// Returns the steps that a step needs, groups replaced by their ends: many times more for wide groups than
    /// [`direct`](Self::direct) tells.
    pub fn needs(&self, step: usize) -> impl Iterator<Item = (usize, NeedOn)> + '_ {
        self.direct(step).flat_map(|(needed, on)| {
            let (one, ends) = match needed {
                Needed::Step(at) => (Some(at), &[][..]),
                Needed::Group(at) => (None, self.ends(at)),
            };
            one.into_iter().chain(ends.iter().copied()).map(move |at| (at, on))
        })
    }

    /// Returns the steps that end a group; none unless it is needed as a whole.
    pub fn ends(&self, group: usize) -> &[usize] {
        self.ends.get(&group).map_or(&[], Vec::as_slice)
    }

    /// Returns all groups that are needed as a whole.
    pub fn whole_groups(&self) -> impl Iterator<Item = usize> + '_ {
        self.ends.keys().copied()
    }
}

/// Writes bytes in lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a string cannot fail");
        text
    })
}
