use std::collections::BTreeSet;

use serde::Serialize;

use super::history::History;
use super::schedule::{Graph, Schedule, Takes, schedule};
use crate::model::{Mode, StepId};
use crate::plan::{MilestoneAt, Plan, PlannedStep};
use crate::report::human::{count, duration};
use crate::run::{Fate, longest_delay};
use crate::step::Registry;
use crate::value::Span;

/// How long a step is expected to take.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Expected {
    /// Milliseconds; absent if nothing is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ms: Option<i64>,
    #[serde(flatten)]
    pub source: Source,
}

/// Where an expectation comes from.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "source", rename_all = "snake_case")]
pub enum Source {
    /// The median of the last runs of the same runbook in the same environment and mode.
    History {
        runs: usize,
    },
    /// What the runbook says that it is meant to take.
    Budget,
    /// It has none of its own, but a group around it has.
    GroupBudget {
        group: StepId,
    },
    /// It will not run.
    Skipped,
    /// A person, who may answer at once or not.
    Person,
    Unknown,
}

/// One step that decides how long the whole takes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PathPart {
    pub step: StepId,
    /// Milliseconds from the start of the run.
    pub start_ms: i64,
    pub finish_ms: i64,
    pub expected: Expected,
}

/// A step that waits for a person.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Wait {
    pub step: StepId,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// True if settings of the drill answer in nobody's name.
    pub automatic: bool,
    /// How long people took before, if they did.
    pub expected: Expected,
    /// True if the run cannot be over before somebody has answered.
    pub critical: bool,
}

/// Whether an objective or deadline can be met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CanMeet {
    Yes,
    No,
    Unknown,
    /// There is no objective.
    NoObjective,
}

/// A milestone and its deadline, both counted from the incident.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MilestoneForecast {
    pub name: String,
    pub deadline_ms: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at_ms: Option<i64>,
    pub can_meet: CanMeet,
}

/// How long it takes if every step uses all its attempts and each attempt all its time.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Worst {
    pub ms: i64,
    /// Steps on the way that nothing limits; what is expected of them is counted.
    pub without_limit: Vec<StepId>,
}

/// How long a run is expected to take, and what that means for the objective. Times are in milliseconds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Forecast {
    /// From the start of the run to recovery, or to the end of the run if nothing marks recovery.
    pub expected_ms: i64,
    /// Since the incident when the forecast was made.
    pub used_ms: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rto_ms: Option<i64>,
    pub can_meet: CanMeet,
    /// Why, in one sentence.
    pub why: String,
    pub critical_path: Vec<PathPart>,
    /// Steps before recovery of which nobody knows how long they take; nothing is counted for them.
    pub unknown: Vec<StepId>,
    pub waits: Vec<Wait>,
    pub milestones: Vec<MilestoneForecast>,
    pub worst: Worst,
    /// How many earlier runs were looked at.
    pub history_runs: usize,
}

/// What a forecast is made from.
pub(super) struct Known<'a> {
    pub(super) plan: &'a Plan,
    pub(super) registry: &'a Registry,
    pub(super) history: &'a History,
    /// What becomes of each step, as far as that is certain.
    pub(super) fates: &'a [Fate],
    pub(super) used_ms: i64,
}

/// The forecast, and what is expected of every step.
pub(super) struct Made {
    pub(super) forecast: Forecast,
    pub(super) expected: Vec<Expected>,
    pub(super) schedule: Schedule,
}

pub(super) fn forecast(known: &Known<'_>) -> Made {
    let plan = known.plan;
    let graph = Graph::of(plan);
    let people: Vec<bool> = plan.steps.iter().map(|step| known.asks(step)).collect();
    let expected = known.expected(&graph);
    let groups = group_budgets(plan, &graph, &expected);
    let ms: Vec<i64> = expected.iter().map(|it| it.ms.unwrap_or(0)).collect();
    let planned = schedule(&graph, &Takes { ms: &ms, people: &people, groups: &groups });
    let ends = ends(plan, &graph, known.fates);
    let way = ancestors(&graph, ends.as_deref().unwrap_or_default());
    let path = path(plan, &planned, &expected, ends.as_deref().unwrap_or_default());
    let is_unknown = |at: &usize| way.contains(at) && expected[*at].source == Source::Unknown;
    let unknown = (0..plan.steps.len()).filter(is_unknown).map(|at| plan.steps[at].id.clone()).collect();
    let length = path.last().map_or(0, |part| part.finish_ms);
    let waits = known.waits(&expected, &way);
    let worst = worst(known, (&graph, &groups), &expected, ends.as_deref().unwrap_or_default());
    let mut forecast = Forecast {
        expected_ms: length,
        used_ms: known.used_ms,
        rto_ms: plan.objective.rto.map(millis),
        can_meet: CanMeet::NoObjective,
        why: String::new(),
        critical_path: path,
        unknown,
        waits,
        milestones: Vec::new(),
        worst,
        history_runs: known.history.runs,
    };
    (forecast.can_meet, forecast.why) = judge(&forecast, ends.is_none());
    forecast.milestones = milestones(known, (&graph, &planned), &expected);
    Made { forecast, expected, schedule: planned }
}

impl Known<'_> {
    fn asks(&self, step: &PlannedStep) -> bool {
        self.registry.spec(&step.uses).is_some_and(|spec| spec.waits_for_people)
    }

    fn expected(&self, graph: &Graph) -> Vec<Expected> {
        let steps = self.plan.steps.iter().zip(self.fates).enumerate();
        steps.map(|(at, (step, fate))| self.expected_of(step, fate, &graph.around[at])).collect()
    }

    fn expected_of(&self, step: &PlannedStep, fate: &Fate, around: &[usize]) -> Expected {
        let of = |ms, source| Expected { ms, source };
        let asks = self.asks(step);
        if matches!(fate, Fate::Skipped { .. } | Fate::AfterFailure { .. }) {
            return of(Some(0), Source::Skipped);
        }
        if asks && self.plan.auto_approvals {
            return of(Some(0), Source::Person);
        }
        if let Some(took) = self.history.of(&step.id) {
            return of(Some(took.median_ms), Source::History { runs: took.runs });
        }
        if let Some(budget) = step.budget {
            return of(Some(millis(budget)), Source::Budget);
        }
        if asks {
            return of(None, Source::Person);
        }
        match around.iter().find(|group| self.plan.groups[**group].budget.is_some()) {
            Some(group) => of(None, Source::GroupBudget { group: self.plan.groups[*group].id.clone() }),
            None => of(None, Source::Unknown),
        }
    }

    fn waits(&self, expected: &[Expected], way: &BTreeSet<usize>) -> Vec<Wait> {
        let steps = self.plan.steps.iter().enumerate();
        let waiting = steps.filter(|(at, step)| {
            self.asks(step) && !matches!(self.fates[*at], Fate::Skipped { .. } | Fate::AfterFailure { .. })
        });
        let waits = waiting.map(|(at, step)| Wait {
            step: step.id.clone(),
            role: role(&step.with),
            automatic: self.plan.auto_approvals,
            expected: expected[at].clone(),
            critical: way.contains(&at),
        });
        waits.collect()
    }
}

use crate::compile::role;

fn millis(span: Span) -> i64 {
    i64::try_from(span.0.as_millis()).unwrap_or(i64::MAX)
}

/// The budgets of groups count where steps in them say nothing of their own.
fn group_budgets(plan: &Plan, graph: &Graph, expected: &[Expected]) -> Vec<Option<i64>> {
    let mut needed = vec![false; plan.groups.len()];
    for (at, expected) in expected.iter().enumerate() {
        if let Source::GroupBudget { .. } = expected.source {
            let group = graph.around[at].iter().find(|group| plan.groups[**group].budget.is_some());
            group.into_iter().for_each(|group| needed[*group] = true);
        }
    }
    let groups = plan.groups.iter().zip(needed);
    groups.map(|(group, needed)| group.budget.filter(|_| needed).map(millis)).collect()
}

/// Returns the steps whose end is recovery; of a runbook that marks none, all. `None` if every mark is skipped.
fn ends(plan: &Plan, graph: &Graph, fates: &[Fate]) -> Option<Vec<usize>> {
    let main = || (0..plan.steps.len()).filter(|at| !plan.steps[*at].always);
    let is_marked = |at: &usize| {
        plan.steps[*at].recovered || graph.around[*at].iter().any(|group| plan.groups[*group].recovered)
    };
    let marked: Vec<_> = main().filter(is_marked).collect();
    if marked.is_empty() {
        return Some(main().collect());
    }
    let run: Vec<_> = marked
        .into_iter()
        .filter(|at| !matches!(fates[*at], Fate::Skipped { .. } | Fate::AfterFailure { .. }))
        .collect();
    (!run.is_empty()).then_some(run)
}

/// Returns some steps and everything that must have ended before them.
fn ancestors(graph: &Graph, of: &[usize]) -> BTreeSet<usize> {
    let mut found: BTreeSet<usize> = of.iter().copied().collect();
    let mut next: Vec<usize> = of.to_vec();
    while let Some(at) = next.pop() {
        for need in &graph.needs[at] {
            if found.insert(*need) {
                next.push(*need);
            }
        }
    }
    found
}

fn path(plan: &Plan, planned: &Schedule, expected: &[Expected], ends: &[usize]) -> Vec<PathPart> {
    let last = ends.iter().copied().max_by_key(|at| (planned.finish[*at], *at));
    let mut parts: Vec<_> = std::iter::successors(last, |at| planned.before[*at])
        .map(|at| PathPart {
            step: plan.steps[at].id.clone(),
            start_ms: planned.start[at],
            finish_ms: planned.finish[at],
            expected: expected[at].clone(),
        })
        .collect();
    parts.reverse();
    parts
}

fn worst(
    known: &Known<'_>,
    (graph, groups): (&Graph, &[Option<i64>]),
    expected: &[Expected],
    ends: &[usize],
) -> Worst {
    let plan = known.plan;
    let skipped = |at: usize| expected[at].source == Source::Skipped;
    let limit = |at: usize| {
        let step = &plan.steps[at];
        let attempt = step.timeout.map(millis)?;
        let delays = (1..step.retry.attempts).map(|used| longest_delay(&step.retry, used).as_millis());
        let delays = i64::try_from(delays.take(10_000).sum::<u128>()).unwrap_or(i64::MAX);
        Some(attempt.saturating_mul(i64::from(step.retry.attempts)).saturating_add(delays))
    };
    let ms: Vec<i64> = (0..plan.steps.len())
        .map(|at| match limit(at) {
            _ if skipped(at) => 0,
            Some(limit) => limit,
            None => expected[at].ms.unwrap_or(0),
        })
        .collect();
    let people: Vec<bool> = plan.steps.iter().map(|step| known.asks(step)).collect();
    let planned = schedule(graph, &Takes { ms: &ms, people: &people, groups });
    let path = path(plan, &planned, expected, ends);
    let unlimited = |part: &&PathPart| {
        let step = plan.step(&part.step);
        let limitless = step.is_some_and(|step| step.timeout.is_none() && !known.asks(step));
        limitless && part.expected.source != Source::Skipped
    };
    Worst {
        ms: path.last().map_or(0, |part| part.finish_ms),
        without_limit: path.iter().filter(unlimited).map(|part| part.step.clone()).collect(),
    }
}

fn judge(forecast: &Forecast, all_skipped: bool) -> (CanMeet, String) {
    let Some(rto) = forecast.rto_ms else { return (CanMeet::NoObjective, "there is no RTO".to_owned()) };
    if all_skipped {
        return (CanMeet::No, "every step that marks recovery is skipped here".to_owned());
    }
    let finish = forecast.used_ms.saturating_add(forecast.expected_ms);
    let limit = duration(rto);
    let counted = match forecast.used_ms {
        0 => duration(finish),
        used => format!("{} ({} since the incident already)", duration(finish), duration(used)),
    };
    if finish > rto {
        let over = duration(finish - rto);
        return (CanMeet::No, format!("{counted} are expected, {over} more than the RTO of {limit}"));
    }
    let margin = duration(rto - finish);
    if !forecast.unknown.is_empty() {
        let steps = names(&forecast.unknown);
        let why = format!(
            "no earlier run and no `budget` tells how long this takes: {steps}; \
             the rest is expected to take {counted} of {limit}"
        );
        return (CanMeet::Unknown, why);
    }
    let asked = forecast.waits.iter().any(|it| it.critical && !it.automatic && it.expected.ms.is_none());
    let people = if asked { format!(", if people answer within {margin} in all") } else { String::new() };
    (CanMeet::Yes, format!("{counted} of {limit} are expected, {margin} to spare{people}"))
}

/// Writes some names and how many more there are.
fn names(steps: &[StepId]) -> String {
    const SHOWN: usize = 4;
    let mut shown: Vec<_> = steps.iter().take(SHOWN).map(|id| format!("`{id}`")).collect();
    if steps.len() > SHOWN {
        shown.push(format!("and {}", count(steps.len() - SHOWN, "other step")));
    }
    shown.join(", ")
}

fn milestones(
    known: &Known<'_>,
    (graph, planned): (&Graph, &Schedule),
    expected: &[Expected],
) -> Vec<MilestoneForecast> {
    let plan = known.plan;
    let made = plan.milestones.iter().map(|(name, deadline)| {
        let (at, steps) = marked(plan, graph, planned, name);
        let skipped = steps.iter().all(|at| expected[*at].source == Source::Skipped);
        let way = ancestors(graph, &steps);
        let unknown = way.iter().any(|at| expected[*at].source == Source::Unknown);
        let (deadline_ms, at_ms) = (millis(*deadline), at.map(|at| at.saturating_add(known.used_ms)));
        let can_meet = match at_ms {
            None => CanMeet::Unknown,
            _ if skipped => CanMeet::No,
            Some(at) if at > deadline_ms => CanMeet::No,
            Some(_) if unknown => CanMeet::Unknown,
            Some(_) => CanMeet::Yes,
        };
        MilestoneForecast { name: name.clone(), deadline_ms, at_ms: at_ms.filter(|_| !skipped), can_meet }
    });
    made.collect()
}

/// Returns when a milestone is reached, from the start of the run, and the steps that mark it.
fn marked(plan: &Plan, graph: &Graph, planned: &Schedule, name: &str) -> (Option<i64>, Vec<usize>) {
    let of = |milestone: &Option<crate::plan::Milestone>| {
        milestone.as_ref().filter(|it| it.name == name).map(|it| it.at)
    };
    let own = (0..plan.steps.len()).find_map(|at| Some((of(&plan.steps[at].milestone)?, vec![at])));
    let around = || {
        let (group, at) =
            (0..plan.groups.len()).find_map(|at| Some((at, of(&plan.groups[at].milestone)?)))?;
        let steps = (0..plan.steps.len()).filter(|step| graph.around[*step].contains(&group));
        Some((at, steps.collect::<Vec<_>>()))
    };
    let Some((at, steps)) = own.or_else(around) else { return (None, Vec::new()) };
    let moment = match at {
        MilestoneAt::Started => steps.iter().map(|at| planned.start[*at]).min(),
        MilestoneAt::Succeeded => steps.iter().map(|at| planned.finish[*at]).max(),
    };
    (moment, steps)
}

/// Says in words where an expectation comes from: `median of 6 drills`.
pub(super) fn words(expected: &Expected, mode: Mode) -> String {
    let took = expected.ms.map(duration);
    match (&expected.source, took) {
        (Source::History { runs }, Some(took)) => {
            let of = if mode == Mode::Drill { "drill" } else { "recovery" };
            let of = match (*runs, of) {
                (1, of) => format!("in the last {of}"),
                (runs, "drill") => format!("median of {runs} drills"),
                (runs, _) => format!("median of {runs} recoveries"),
            };
            format!("{took} ({of})")
        }
        (Source::Budget, Some(took)) => format!("{took} (budget; not run here before)"),
        (Source::GroupBudget { group }, _) => format!("within the budget of `{group}`"),
        (Source::Skipped, _) => "no time in this forecast".to_owned(),
        (Source::Person, Some(_)) => "answered automatically".to_owned(),
        (Source::Person, None) => "as long as a person needs".to_owned(),
        _ => "not known: no earlier run and no `budget`".to_owned(),
    }
}
