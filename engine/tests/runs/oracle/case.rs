//! Random runs: what is to be done, and what happens meanwhile.

use lifeboat_engine::model::{FailureKind, Mode, StepId};
use lifeboat_engine::plan::{
    Backoff, Condition, ForEach, Need, NeedOn, OnError, Plan, PlannedGroup, PlannedStep, PlannedUndo, Retry,
};
use lifeboat_engine::step::Effect;
use lifeboat_engine::value::Span;
use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::json;

use crate::plans::{always, id, plan, step};

/// How an attempt ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Result {
    Fine,
    Fails(FailureKind),
    /// It succeeds with a result that the step does not expect.
    Unexpected,
    /// It was told to end, and did.
    Interrupted,
}

/// One step of a run.
#[derive(Clone, Debug)]
pub(super) struct Step {
    /// Positions of earlier steps of the same part.
    pub(super) needs: Vec<(usize, NeedOn)>,
    pub(super) condition: bool,
    pub(super) group: Option<usize>,
    pub(super) effect: Effect,
    pub(super) attempts: u32,
    /// `retry.when`: only after attempts with a smaller number.
    pub(super) retry_before: Option<u32>,
    pub(super) on_error: OnError,
    /// How many elements, and how many at once.
    pub(super) each: Option<(usize, usize)>,
    pub(super) undo: bool,
    pub(super) always: bool,
    /// Attempt by attempt; beyond the last one all is fine.
    pub(super) results: Vec<Result>,
    /// The same for its undo.
    pub(super) undo_results: Vec<Result>,
}

/// Something that happens to a run.
#[derive(Clone, Copy, Debug)]
pub(super) enum Move {
    /// An attempt ends. One that was told to end is interrupted, or comes to its own end if `late`.
    End {
        which: usize,
        late: bool,
    },
    /// Time passes, so many milliseconds.
    Wait(u16),
    Retry(usize),
    Skip(usize),
    MarkDone(usize),
    Abort,
    Cancel,
    Pause,
    Unpause,
    Stop,
    /// The process is killed, and another one goes on.
    Crash,
}

#[derive(Clone, Debug)]
pub(super) struct Case {
    pub(super) drill: bool,
    pub(super) steps: Vec<Step>,
    /// The parent and the limit of each group; parents stand before their children.
    pub(super) groups: Vec<(Option<usize>, Option<usize>)>,
    pub(super) moves: Vec<Move>,
    /// Where the journal is cut in the end.
    pub(super) cuts: Vec<Index>,
}

/// How often an undo is tried.
pub(super) const UNDO_ATTEMPTS: u32 = 2;

/// The wait before the first retry; it doubles.
pub(super) const DELAY_MS: i64 = 1000;

pub(super) fn name(at: usize) -> String {
    format!("s{at}")
}

impl Case {
    pub(super) fn plan(&self) -> Plan {
        let steps = self.steps.iter().enumerate().map(|(at, step)| self.planned(at, step)).collect();
        let groups = self.groups.iter().enumerate().map(|(at, (parent, limit))| PlannedGroup {
            id: id(&format!("g{at}")),
            title: String::new(),
            parent: parent.map(|parent| id(&format!("g{parent}"))),
            parallel: true,
            max_parallel: *limit,
            budget: None,
            milestone: None,
            recovered: false,
            ends: Vec::new(),
        });
        let undos = self.steps.iter().enumerate().filter(|(_, step)| step.undo).map(|(at, _)| PlannedUndo {
            of: id(&name(at)),
            built_in: None,
            step: PlannedStep { retry: retry(UNDO_ATTEMPTS), ..always(&format!("{}/undo", name(at)), &[]) },
        });
        let mode = if self.drill { Mode::Drill } else { Mode::Recovery };
        Plan { mode, groups: groups.collect(), undos: undos.collect(), ..plan(steps) }
    }

    fn planned(&self, at: usize, own: &Step) -> PlannedStep {
        let needs = own.needs.iter().map(|(needed, on)| Need { step: id(&name(*needed)), on: *on });
        let condition = Condition { expression: own.condition.to_string(), of: id(&name(at)), scope: None };
        PlannedStep {
            needs: needs.collect(),
            conditions: if own.condition { Vec::new() } else { vec![condition] },
            group: own.group.map(|group| id(&format!("g{group}"))),
            effect: own.effect,
            expect: vec!["output.bad is not defined".to_owned()],
            retry: Retry {
                when: own.retry_before.map(|before| format!("attempt < {before} and error.message == 'no'")),
                ..retry(own.attempts)
            },
            on_error: own.on_error,
            for_each: own
                .each
                .map(|(count, max_parallel)| ForEach { list: json!(vec![0; count]), max_parallel }),
            always: own.always,
            ..step(&name(at), &[])
        }
    }

    /// What the script says about an attempt.
    pub(super) fn result(&self, of: &StepId, attempt: u32) -> Result {
        let whole = of.whole();
        let (step, undo) = match whole.as_str().strip_suffix("/undo") {
            Some(step) => (step, true),
            None => (whole.as_str(), false),
        };
        let at: usize = step[1..].parse().expect("a name of ours");
        let results = if undo { &self.steps[at].undo_results } else { &self.steps[at].results };
        let nth = attempt as usize - 1 + 2 * of.element().unwrap_or(0);
        results.get(nth).copied().unwrap_or(Result::Fine)
    }
}

fn retry(attempts: u32) -> Retry {
    let delay = Span(std::time::Duration::from_millis(DELAY_MS.unsigned_abs()));
    Retry { attempts, backoff: Backoff::Exponential, delay, ..Retry::default() }
}

fn result() -> impl Strategy<Value = Result> {
    prop_oneof![
        6 => Just(Result::Fine),
        3 => Just(Result::Fails(FailureKind::Transient)),
        2 => Just(Result::Fails(FailureKind::Permanent)),
        1 => Just(Result::Unexpected),
        2 => Just(Result::Fails(FailureKind::Uncertain)),
    ]
}

fn need() -> impl Strategy<Value = NeedOn> {
    prop_oneof![
        8 => Just(NeedOn::Success),
        2 => Just(NeedOn::Failure),
        1 => Just(NeedOn::FailureWithin),
        1 => Just(NeedOn::Any),
    ]
}

/// A step before it is known how many stand before it: what it needs, the rest, and its group.
type Raw = (Vec<(Index, NeedOn)>, Step, Option<Index>);

fn raw() -> impl Strategy<Value = Raw> {
    let needs = prop::collection::vec((any::<Index>(), need()), 0..4);
    let on_error = prop_oneof![Just(OnError::Abort), Just(OnError::Hold), Just(OnError::Continue)];
    let effect = prop_oneof![
        4 => Just(Effect::Idempotent),
        1 => Just(Effect::Read),
        1 => Just(Effect::Guarded),
        2 => Just(Effect::Once),
    ];
    let each = prop::option::weighted(0.3, (0_usize..5, 1_usize..4));
    let results = || prop::collection::vec(result(), 0..5);
    let tries = (1_u32..4, prop::option::weighted(0.2, 1_u32..4));
    let own =
        (prop::bool::weighted(0.85), effect, tries, on_error, each, any::<bool>(), results(), results());
    let own = own.prop_map(
        |(condition, effect, (attempts, retry_before), on_error, each, undo, results, undo_results)| Step {
            needs: Vec::new(),
            condition,
            group: None,
            effect,
            // What must not be repeated has no `retry`.
            attempts: if effect == Effect::Once { 1 } else { attempts },
            retry_before,
            on_error,
            each,
            undo,
            always: false,
            results,
            undo_results,
        },
    );
    (needs, own, prop::option::weighted(0.5, any::<Index>()))
}

fn moves() -> impl Strategy<Value = Move> {
    prop_oneof![
        24 => (0_usize..60, any::<bool>()).prop_map(|(which, late)| Move::End { which, late }),
        4 => (0_u16..5000).prop_map(Move::Wait),
        3 => (0_usize..60).prop_map(Move::Retry),
        1 => (0_usize..60).prop_map(Move::Skip),
        1 => (0_usize..60).prop_map(Move::MarkDone),
        1 => Just(Move::Abort),
        1 => Just(Move::Cancel),
        2 => Just(Move::Pause),
        3 => Just(Move::Unpause),
        1 => Just(Move::Stop),
        3 => Just(Move::Crash),
    ]
}

pub(super) fn case() -> impl Strategy<Value = Case> {
    let steps = |count| prop::collection::vec(raw(), count);
    let groups =
        prop::collection::vec((prop::option::of(any::<Index>()), prop::option::of(1_usize..4)), 0..4);
    (
        any::<bool>(),
        steps(1..9),
        steps(0..3),
        groups,
        prop::collection::vec(moves(), 0..60),
        prop::collection::vec(any::<Index>(), 3),
    )
        .prop_map(|(drill, main, last, groups, moves, cuts)| {
            let groups: Vec<_> = groups
                .into_iter()
                .enumerate()
                .map(|(at, (parent, limit))| {
                    (parent.filter(|_| at > 0).map(|parent| parent.index(at)), limit)
                })
                .collect();
            let mut steps = place(main, 0, &groups);
            let count = steps.len();
            steps.extend(place(last, count, &[]).into_iter().map(|step| Step {
                always: true,
                undo: false,
                on_error: if step.on_error == OnError::Hold { OnError::Hold } else { OnError::Continue },
                ..step
            }));
            Case { drill, steps, groups, moves, cuts }
        })
}

/// Gives each step its place: it needs earlier ones of its part only.
fn place(raw: Vec<Raw>, first: usize, groups: &[(Option<usize>, Option<usize>)]) -> Vec<Step> {
    let placed = raw.into_iter().enumerate().map(|(at, (needs, step, group))| {
        let mut needs: Vec<_> =
            needs.into_iter().filter(|_| at > 0).map(|(needed, on)| (first + needed.index(at), on)).collect();
        needs.sort_by_key(|(needed, _)| *needed);
        needs.dedup_by_key(|(needed, _)| *needed);
        let group = group.filter(|_| !groups.is_empty()).map(|group| group.index(groups.len()));
        Step { needs, group, ..step }
    });
    placed.collect()
}
