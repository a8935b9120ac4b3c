use std::collections::HashMap;

use serde::Serialize;

use crate::model::StepId;
use crate::plan::{Condition, NeedOn, Plan, PlannedStep};
use crate::report::human::count;

/// What there is to draw of a runbook.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Shape {
    pub runbook: String,
    pub title: String,
    /// In the order of the file, those of `always` last.
    pub steps: Vec<ShapeStep>,
    pub groups: Vec<ShapeGroup>,
}

/// One step.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ShapeStep {
    pub id: String,
    pub title: String,
    /// The step kind.
    pub uses: String,
    /// The innermost group it is in, by position.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<usize>,
    /// True if it runs after the end of the others, whatever that was.
    pub always: bool,
    pub needs: Vec<Edge>,
    /// Its own; those of its groups stand there.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub marks: Vec<Mark>,
}

/// What a step waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Edge {
    /// The position of the step that must have ended.
    pub step: usize,
    pub on: NeedOn,
}

/// What people must know of a step at a glance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mark {
    /// It destroys something or moves it aside.
    Destroys,
    /// It waits for a person, of this role if it says one.
    Asks(Option<String>),
    /// The recovery clock stops with it.
    Recovered,
    Milestone(String),
    /// It will be skipped, for this reason.
    Skipped(String),
    /// Anything else worth a few words, such as how often it is repeated.
    Note(String),
}

/// A group, or a step that calls another runbook.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ShapeGroup {
    pub id: String,
    pub title: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<usize>,
    pub parallel: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_parallel: Option<usize>,
    /// The runbook that it calls.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calls: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub marks: Vec<Mark>,
}

impl Mark {
    /// Writes the mark in a few words.
    pub fn words(&self) -> String {
        match self {
            Self::Destroys => "destroys".to_owned(),
            Self::Asks(Some(role)) => format!("asks {role}"),
            Self::Asks(None) => "asks a person".to_owned(),
            Self::Recovered => "recovered".to_owned(),
            Self::Milestone(name) => format!("milestone {name}"),
            Self::Skipped(why) => format!("skipped: {why}"),
            Self::Note(text) => text.clone(),
        }
    }
}

impl ShapeGroup {
    /// Writes what its frame says beside its name.
    pub fn manner(&self) -> Option<String> {
        let parallel = match (self.parallel, self.max_parallel) {
            (true, Some(limit)) => Some(format!("in parallel, {limit} at a time")),
            (true, None) => Some("in parallel".to_owned()),
            (false, Some(limit)) => Some(format!("{limit} at a time")),
            (false, None) => None,
        };
        match (&self.calls, parallel) {
            (Some(runbook), Some(parallel)) => Some(format!("runbook {runbook}, {parallel}")),
            (Some(runbook), None) => Some(format!("runbook {runbook}")),
            (None, parallel) => parallel,
        }
    }
}

impl Shape {
    /// Reads the shape of a plan; positions are those of `plan.steps` and `plan.groups`.
    pub fn of(plan: &Plan) -> Self {
        let groups: HashMap<_, _> =
            plan.groups.iter().enumerate().map(|(at, group)| (&group.id, at)).collect();
        let calls: HashMap<_, _> = plan.scopes.iter().map(|scope| (&scope.id, &scope.runbook)).collect();
        let at_group = |id: &Option<StepId>| id.as_ref().and_then(|id| groups.get(id).copied());
        let mut of_groups: Vec<Vec<String>> = vec![Vec::new(); plan.groups.len()];
        let mut shape = Self { runbook: plan.runbook.clone(), title: plan.title.clone(), ..Self::default() };
        let wiring = plan.wiring();
        for (position, step) in plan.steps.iter().enumerate() {
            let (own, around): (Vec<&Condition>, Vec<_>) =
                step.conditions.iter().partition(|condition| condition.of == step.id);
            for condition in around {
                if let Some(&group) = groups.get(&condition.of)
                    && !of_groups[group].contains(&condition.expression)
                {
                    of_groups[group].push(condition.expression.clone());
                }
            }
            let needs = wiring.needs(position).map(|(step, on)| Edge { step, on });
            shape.steps.push(ShapeStep {
                id: step.id.to_string(),
                title: step.title.clone(),
                uses: step.uses.clone(),
                group: at_group(&step.group),
                always: step.always,
                needs: needs.collect(),
                conditions: own.iter().map(|condition| condition.expression.clone()).collect(),
                marks: marks(&MarksOf {
                    destroys: !step.destroys.is_empty(),
                    recovered: step.recovered,
                    milestone: step.milestone.as_ref().map(|milestone| milestone.name.as_str()),
                })
                .into_iter()
                .chain(repetition(step))
                .collect(),
            });
        }
        shape.groups = plan
            .groups
            .iter()
            .zip(of_groups)
            .map(|(group, conditions)| ShapeGroup {
                id: group.id.to_string(),
                title: group.title.clone(),
                parent: at_group(&group.parent),
                parallel: group.parallel,
                max_parallel: group.max_parallel,
                calls: calls.get(&group.id).map(|runbook| (*runbook).clone()),
                conditions,
                marks: marks(&MarksOf {
                    destroys: false,
                    recovered: group.recovered,
                    milestone: group.milestone.as_ref().map(|milestone| milestone.name.as_str()),
                }),
            })
            .collect();
        shape
    }

    /// Returns the groups around a step, innermost first.
    pub fn groups_of(&self, step: usize) -> impl Iterator<Item = usize> {
        std::iter::successors(self.steps[step].group, |group| self.groups[*group].parent)
    }
}

/// Says how often a step is done.
fn repetition(step: &PlannedStep) -> Option<Mark> {
    if let Some(each) = &step.for_each {
        let of = match each.list.as_array() {
            Some(list) => count(list.len(), "element"),
            None => "each element".to_owned(),
        };
        let at_once =
            if each.max_parallel > 1 { format!(", {} at once", each.max_parallel) } else { String::new() };
        return Some(Mark::Note(format!("for {of}{at_once}")));
    }
    let until = step.until.as_ref()?;
    Some(Mark::Note(format!("every {} until {}", until.every, until.condition)))
}

/// What the marks of a step or group come from.
pub(crate) struct MarksOf<'a> {
    pub(crate) destroys: bool,
    pub(crate) recovered: bool,
    pub(crate) milestone: Option<&'a str>,
}

/// Returns the marks that follow from what a step says of itself.
pub(crate) fn marks(of: &MarksOf<'_>) -> Vec<Mark> {
    let destroys = of.destroys.then_some(Mark::Destroys);
    let recovered = of.recovered.then_some(Mark::Recovered);
    let milestone = of.milestone.map(|name| Mark::Milestone(name.to_owned()));
    [destroys, recovered, milestone].into_iter().flatten().collect()
}
