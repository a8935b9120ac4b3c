//! The report as data: what `lifeboat report --format json` writes.
//!
//! Moments are RFC 3339 in UTC, lengths of time are whole milliseconds in fields that end in `_ms`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use super::findings::{CreatedReport, Fate, NotChecked, StepFacts, Trouble, TroubleKind, Warning};
use super::human::Moment;
use crate::model::event::{Decision, GivenFile, Person};
use crate::model::evidence::Confidence;
use crate::model::ids::{Attempt, RunId, StepId};
use crate::model::outcome::{Failure, Mode, Outcome};
use crate::plan::Commit;

/// Everything that is known of a run, computed from its plan and its journal alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunReport {
    /// The version of this form; a reader refuses a newer one.
    pub format: u32,
    pub identity: Identity,
    pub outcome: RunStanding,
    pub rto: Rto,
    pub rpo: Rpo,
    pub time: TimeSpent,
    pub milestones: Vec<MilestoneReport>,
    /// In the order of the plan.
    pub steps: Vec<StepReport>,
    pub groups: Vec<GroupReport>,
    /// What was taken back when the run was ended; absent where nothing was to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undo: Option<UndoReport>,
    pub critical_path: CriticalPath,
    /// Failed ones first.
    pub checks: Vec<CheckReport>,
    pub questions: Vec<QuestionReport>,
    pub decisions: Vec<DecisionReport>,
    pub notes: Vec<NoteReport>,
    /// Attempts that did not succeed, and steps that were held.
    pub troubles: Vec<Trouble>,
    pub created: Vec<CreatedReport>,
    pub facts: Vec<StepFacts>,
    pub not_checked: Vec<NotChecked>,
    pub warnings: Vec<Warning>,
    /// What the run as a whole was doing, without gaps, from the incident to its end.
    pub activity: Vec<Segment>,
}

impl RunReport {
    /// The version of the form that this program writes.
    pub const FORMAT: u32 = 1;
}

/// Which run this is, of what, and with what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    pub run: RunId,
    /// The end of the run's id, as people type it.
    pub short: String,
    pub project: String,
    pub runbook: String,
    pub title: String,
    pub owner: Option<String>,
    pub environment: String,
    pub protected: bool,
    pub mode: Mode,
    pub commit: Option<Commit>,
    pub plan_digest: String,
    pub engine_version: Option<String>,
    /// Each process that worked on the run.
    pub engines: Vec<EngineReport>,
    pub incident_at: Moment,
    /// True if the run was told when the incident began; otherwise it began when the run was declared.
    pub incident_given: bool,
    pub declared_at: Option<Moment>,
    pub ended_at: Option<Moment>,
    /// What the report of an open run was computed at; for an ended one its end.
    pub as_of: Moment,
    pub declared_by: Option<Person>,
    /// Everyone who declared, answered or decided, in the order of appearance.
    pub people: Vec<Person>,
    pub inputs: Map<String, Value>,
    pub sources: BTreeMap<String, String>,
    /// What the record of the run can be checked against.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub journal: Option<JournalHead>,
}

/// The end of the journal when the report was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalHead {
    pub events: u64,
    /// The hash of the last essential event, which covers all before it and the plan.
    pub head: String,
}

/// One process that worked on the run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EngineReport {
    pub started_at: Moment,
    pub pid: u32,
    pub host: String,
    /// How long nothing worked on the run before this process took it over.
    pub down_before_ms: i64,
}

/// Where a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Running,
    /// For a person's answer; nothing else runs.
    Waiting,
    Paused,
    /// A step is held and nothing else can run.
    Held,
    Succeeded,
    Failed,
    Aborted,
}

impl State {
    /// Says whether nothing more will happen.
    pub fn is_ended(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Aborted)
    }
}

/// Whether a process works on the run right now: the journal alone cannot tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Owner {
    /// A process holds the run's lock.
    Present,
    /// None does: the run goes on with `lifeboat resume`.
    Gone,
    #[default]
    Unknown,
}

/// How the run ended or where it stands, and what to do about it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunStanding {
    pub state: State,
    /// For an open run only.
    pub owner: Owner,
    /// The one line that says it all.
    pub headline: String,
    /// What ended it or holds it.
    pub reason: Option<String>,
    /// The failure that ended it or holds it.
    pub failure: Option<StepFailure>,
    /// The one command to type next.
    pub next: Option<String>,
    pub steps_done: usize,
    pub steps_total: usize,
}

/// A failure and where it happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepFailure {
    pub step: StepId,
    pub title: String,
    pub place: String,
    pub attempts: u32,
    pub failure: Failure,
}

/// Whether an objective was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Met,
    Missed,
    /// Nothing proves either.
    NotMeasured,
    /// Only while the run is open: what is forecast breaks it.
    AtRisk,
}

/// The recovery time against its objective.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rto {
    pub objective_ms: Option<i64>,
    /// Absent without an objective.
    pub verdict: Option<Verdict>,
    /// Why, in one sentence.
    pub reason: String,
    /// When the last step that marks recovery succeeded.
    pub recovered_at: Option<Moment>,
    /// From the incident to the recovery; without one, to the end of the run or to now.
    pub used_ms: i64,
    /// Of an open run that has not recovered yet; never below zero.
    pub left_ms: Option<i64>,
    /// Objective less time used; negative when it was overrun.
    pub margin_ms: Option<i64>,
    /// Of an open run that has not recovered yet.
    pub forecast: Option<Forecast>,
}

/// When recovery is expected, by the budgets of what is left.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Forecast {
    pub at: Moment,
    pub used_ms: i64,
    /// Steps on the way that have no budget: the forecast is a lower bound if there are any.
    pub without_budget: Vec<StepId>,
    /// The step during which the objective would be passed.
    pub breaks_at: Option<StepId>,
}

/// The data loss against its objective.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rpo {
    pub objective_ms: Option<i64>,
    /// Absent without an objective.
    pub verdict: Option<Verdict>,
    pub reason: String,
    /// The moment asked for.
    pub target: Option<Moment>,
    pub stores: Vec<StoreLoss>,
    /// Steps that restore and left no recovery point.
    pub unmeasured: Vec<Unmeasured>,
    /// The largest loss of any store that reported.
    pub worst_ms: Option<i64>,
}

/// What one store lost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StoreLoss {
    pub resource: String,
    pub step: StepId,
    /// As the step reported it.
    pub time: String,
    pub position: Option<String>,
    pub method: String,
    pub confidence: Confidence,
    /// Before the target asked for; zero if it was reached.
    pub against_target_ms: Option<i64>,
    /// Before the incident.
    pub against_incident_ms: Option<i64>,
    /// The larger of the two, which the objective is judged by.
    pub loss_ms: Option<i64>,
    /// True if the data hold changes from after the target.
    pub beyond_target: bool,
}

/// A restoring step without a recovery point.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Unmeasured {
    pub step: StepId,
    pub resources: Vec<String>,
    pub why: String,
}

/// What the time from the incident to the end went into; the parts add up to the whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimeSpent {
    pub total_ms: i64,
    /// From the incident until the run was declared.
    pub before_run_ms: i64,
    pub working_ms: i64,
    /// For an answer, or for a decision on a held step, with nothing else working.
    pub waiting_for_person_ms: i64,
    pub waiting_for_retry_ms: i64,
    pub paused_ms: i64,
    /// No process worked on the run.
    pub engine_down_ms: i64,
    /// Between the end of one step and the start of the next.
    pub between_steps_ms: i64,
    /// After the last main step, with no `always` step running.
    pub cleaning_up_ms: i64,
}

/// What the run as a whole was doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activity {
    BeforeRun,
    Working,
    WaitingForPerson,
    WaitingForRetry,
    Paused,
    EngineDown,
    BetweenSteps,
    CleaningUp,
}

/// A stretch of time with one activity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    pub from: Moment,
    pub to: Moment,
    pub activity: Activity,
}

/// A moment that matters, and whether it came in time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MilestoneReport {
    pub name: String,
    /// The step or group that marks it.
    pub marked_by: Option<StepId>,
    /// Counted from the incident.
    pub deadline_ms: Option<i64>,
    pub reached_at: Option<Moment>,
    pub reached_after_ms: Option<i64>,
    /// Absent without a deadline, and while neither is certain.
    pub verdict: Option<Verdict>,
}

/// What a step was doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Doing {
    Working,
    WaitingForPerson,
    WaitingForRetry,
    Held,
    EngineDown,
}

/// A stretch of a step's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepSpan {
    pub from: Moment,
    pub to: Moment,
    pub doing: Doing,
}

/// Whether a step or group kept to its budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BudgetReport {
    pub budget_ms: i64,
    /// Budget less time taken so far; negative when it was overrun.
    pub margin_ms: i64,
    /// Absent while it may still go either way.
    pub verdict: Option<Verdict>,
}

/// One step in the time line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepReport {
    pub id: StepId,
    pub title: String,
    pub uses: String,
    pub place: String,
    pub group: Option<StepId>,
    pub always: bool,
    /// Absent while it is open.
    pub outcome: Option<Outcome>,
    /// What it does now, if it has begun and not ended.
    pub doing: Option<Doing>,
    pub started_at: Option<Moment>,
    pub ended_at: Option<Moment>,
    pub took_ms: Option<i64>,
    /// From the end of the last step it needed to its own start.
    pub queued_ms: Option<i64>,
    pub working_ms: i64,
    pub waiting_for_person_ms: i64,
    pub waiting_for_retry_ms: i64,
    pub held_ms: i64,
    pub engine_down_ms: i64,
    pub budget: Option<BudgetReport>,
    pub attempts: Vec<AttemptReport>,
    pub spans: Vec<StepSpan>,
    /// True if it is on the actual critical path.
    pub critical: bool,
    pub recovered: bool,
    pub destroys: Vec<String>,
    pub checks_passed: usize,
    pub checks_failed: usize,
    /// Of a step that is repeated for each element of a list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub elements: Option<ElementsReport>,
}

/// What became of the elements of a step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ElementsReport {
    pub total: usize,
    pub succeeded: usize,
    pub failed: usize,
    /// Skipped, or marked as done, by a person.
    pub decided: usize,
    /// Begun and not ended.
    pub open: usize,
    pub not_begun: usize,
    /// All of them if they are few, else those that did not succeed at once; at most 100.
    pub listed: Vec<StepReport>,
}

/// What was taken back when the run was ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UndoReport {
    pub began_at: Moment,
    /// Newest first, as they are undone.
    pub steps: Vec<UndoneStep>,
}

/// How the work of one step, or of one element, was taken back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UndoneStep {
    /// Whose work it was.
    pub of: StepId,
    /// What the kind of the step undoes; absent where the runbook says how.
    pub what: Option<String>,
    /// Without an outcome it is still to be undone, or under way.
    pub step: StepReport,
}

/// How one attempt went.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AttemptReport {
    pub attempt: Attempt,
    pub started_at: Moment,
    pub ended_at: Option<Moment>,
    pub took_ms: Option<i64>,
    /// Absent while it runs.
    pub result: Option<AttemptEnd>,
    pub failure: Option<Failure>,
}

/// The word for how an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttemptEnd {
    Succeeded,
    Failed,
    /// Its process was gone when the run was resumed.
    Lost,
    Interrupted,
}

/// One group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupReport {
    pub id: StepId,
    pub title: String,
    pub parent: Option<StepId>,
    pub started_at: Option<Moment>,
    pub ended_at: Option<Moment>,
    pub took_ms: Option<i64>,
    pub budget: Option<BudgetReport>,
}

/// The chain of steps that decided how long it took.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CriticalPath {
    /// From the first step to the one that marked recovery, or that stopped the run, or that ended last.
    pub actual: Vec<PathStep>,
    /// By budgets; absent if there are none.
    pub planned: Option<PlannedPath>,
}

/// One step of the actual critical path.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PathStep {
    pub step: StepId,
    pub started_at: Moment,
    pub ended_at: Moment,
    pub took_ms: i64,
    /// Between the end of the step before it on the path and its start.
    pub waited_ms: i64,
}

/// The longest chain by budgets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlannedPath {
    pub total_ms: i64,
    pub items: Vec<PlannedItem>,
    /// True if main steps outside any budget exist, so that the plan says less than the whole.
    pub partial: bool,
}

/// A step or group with its budget.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlannedItem {
    pub id: StepId,
    pub budget_ms: i64,
}

/// One thing that was checked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CheckReport {
    pub step: StepId,
    pub attempt: Attempt,
    pub name: String,
    pub expected: String,
    pub actual: String,
    pub passed: bool,
    /// True if a later attempt made the checks again.
    pub superseded: bool,
}

/// A question to a person, and what became of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct QuestionReport {
    pub step: StepId,
    pub id: String,
    pub role: Option<String>,
    pub message: String,
    pub choices: Vec<String>,
    /// Points that are confirmed one by one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub points: Vec<String>,
    pub asked_at: Moment,
    /// How many different people must approve.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minimum: Option<u32>,
    /// The answers before the one that settled it: approvals, or points that were confirmed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub before: Vec<AnswerReport>,
    pub answer: Option<AnswerReport>,
    /// Until the answer, the end of the step, or now.
    pub waited_ms: i64,
    /// True if an answer is still awaited.
    pub open: bool,
}

/// What was answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AnswerReport {
    pub at: Moment,
    pub choice: String,
    pub by: Person,
    pub comment: Option<String>,
    /// True if drill settings answered in nobody's name; no evidence of a decision.
    pub automatic: bool,
    /// Which points it is about, counted from 1.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub points: Vec<u32>,
    /// A file that was given as evidence; the archive of the run holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<GivenFile>,
}

/// What a person decided from outside a step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DecisionReport {
    pub at: Moment,
    pub by: Person,
    pub decision: Decision,
    /// How long the step had been held, where the decision ended that.
    pub after_ms: Option<i64>,
}

/// A remark in the journal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NoteReport {
    pub at: Moment,
    pub step: Option<StepId>,
    pub text: String,
}
