//! What unit tests of the journal and of runs share.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::Header;
use crate::clock::Clock;
use crate::model::event::{Answer, AttemptResult, Decision, Done, Person, Question};
use crate::model::{
    Check, Confidence, Created, CreatedKind, EventKind, Failure, FailureKind, Outcome, OutputFile, Progress,
    RecoveryPoint, RunId, RunOutcome, StepId, Stream, Unit,
};
use crate::plan::Plan;

/// Counts one millisecond further with each look at it.
#[derive(Debug, Default)]
pub(crate) struct TickClock(AtomicI64);

impl TickClock {
    pub(crate) fn starting_at(ms: i64) -> Arc<Self> {
        Arc::new(Self(AtomicI64::new(ms)))
    }
}

impl Clock for TickClock {
    fn now_ms(&self) -> i64 {
        self.0.fetch_add(1, Ordering::SeqCst)
    }
}

pub(crate) fn plan() -> Plan {
    serde_json::from_value(json!({
        "format": 1, "project": "members", "project_dir": "/srv/members", "runbook": "restore",
        "title": "Restore", "owner": "platform", "environment": "staging", "protected": false, "mode": "drill",
        "commit": null, "objective": { "rto": "4h", "rpo": "1h" }, "milestones": {}, "roles": {},
        "inputs": { "target": 0.5 }, "vars": {}, "resources": {}, "secrets": {}, "auto_approvals": true,
        "steps": [], "groups": [], "sources": {}
    }))
    .unwrap()
}

pub(crate) fn header() -> Header {
    Header { run: RunId::generate(), engine: "0.1.0".into(), created_ms: 1_000, plan: plan() }
}

pub(crate) fn person() -> Person {
    Person { name: "ada".into(), uid: 1000 }
}

pub(crate) fn declared() -> EventKind {
    EventKind::RunDeclared {
        plan_digest: plan().digest(),
        incident_at_ms: 900,
        by: person(),
        inputs: Map::new(),
        engine: "0.1.0".into(),
    }
}

pub(crate) fn started(attempt: u32) -> EventKind {
    EventKind::AttemptStarted { step: StepId::new("base").unwrap(), attempt, with: json!({ "n": attempt }) }
}

pub(crate) fn line(text: &str) -> EventKind {
    let step = StepId::new("base").unwrap();
    EventKind::OutputLine { step, attempt: 1, stream: Stream::Stdout, line: text.to_owned() }
}

pub(crate) fn finished(outcome: RunOutcome) -> EventKind {
    EventKind::RunFinished { outcome }
}

fn step() -> impl Strategy<Value = StepId> {
    "[a-z][a-z0-9_]{0,8}(/[a-z][a-z0-9_]{0,4})?".prop_map(|text| StepId::new(text).unwrap())
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        // Eighths are exact in decimal.
        any::<i32>().prop_map(|n| Value::from(f64::from(n) / 8.0)),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::from),
            vec((any::<String>(), inner), 0..4).prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

fn object() -> impl Strategy<Value = Map<String, Value>> {
    vec((any::<String>(), value()), 0..4).prop_map(|pairs| pairs.into_iter().collect())
}

fn someone() -> impl Strategy<Value = Person> {
    (any::<String>(), any::<u32>()).prop_map(|(name, uid)| Person { name, uid })
}

fn failure() -> impl Strategy<Value = Failure> {
    let kind =
        prop_oneof![Just(FailureKind::Transient), Just(FailureKind::Permanent), Just(FailureKind::Uncertain)];
    (kind, any::<String>(), any::<String>(), option::of(any::<String>()), vec(any::<String>(), 0..3))
        .prop_map(|(kind, code, message, help, causes)| Failure { kind, code, message, help, causes })
}

fn check() -> impl Strategy<Value = Check> {
    (any::<String>(), any::<String>(), any::<String>(), any::<bool>())
        .prop_map(|(name, expected, actual, passed)| Check { name, expected, actual, passed })
}

fn recovery_point() -> impl Strategy<Value = RecoveryPoint> {
    let confidence =
        prop_oneof![Just(Confidence::Measured), Just(Confidence::Bound), Just(Confidence::Stated)];
    (any::<String>(), any::<String>(), option::of(any::<String>()), any::<String>(), confidence).prop_map(
        |(resource, time, position, method, confidence)| RecoveryPoint {
            resource,
            time,
            position,
            method,
            confidence,
        },
    )
}

fn done() -> impl Strategy<Value = Done> {
    let facts = proptest::collection::btree_map(any::<String>(), any::<String>(), 0..3);
    let resource = proptest::option::of(object().prop_map(Value::Object));
    let warnings = vec(any::<String>(), 0..2);
    (object(), vec(check(), 0..3), vec(recovery_point(), 0..2), facts, warnings, resource).prop_map(
        |(outputs, checks, recovery_points, facts, warnings, resource)| Done {
            outputs,
            checks,
            recovery_points,
            facts,
            warnings,
            resource,
        },
    )
}

fn attempt_result() -> impl Strategy<Value = AttemptResult> {
    prop_oneof![
        done().prop_map(|done| AttemptResult::Succeeded { done }),
        (failure(), vec(check(), 0..2))
            .prop_map(|(failure, checks)| AttemptResult::Failed { failure, checks }),
        Just(AttemptResult::Lost),
        Just(AttemptResult::Interrupted),
    ]
}

fn outcome() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        Just(Outcome::Succeeded),
        any::<String>().prop_map(|reason| Outcome::Skipped { reason }),
        failure().prop_map(|failure| Outcome::Failed { failure }),
        (any::<String>(), any::<String>()).prop_map(|(by, reason)| Outcome::MarkedDone { by, reason }),
        any::<String>().prop_map(|reason| Outcome::NotRun { reason }),
    ]
}

fn run_outcome() -> impl Strategy<Value = RunOutcome> {
    prop_oneof![Just(RunOutcome::Succeeded), Just(RunOutcome::Failed), Just(RunOutcome::Aborted)]
}

fn created() -> impl Strategy<Value = Created> {
    let path = || "/[a-z ]{1,8}".prop_map(std::path::PathBuf::from);
    let kind = prop_oneof![
        (any::<u32>(), any::<u64>(), any::<String>(), any::<i32>()).prop_map(
            |(pid, start_ticks, boot_id, stop_signal)| CreatedKind::Process {
                pid,
                start_ticks,
                boot_id,
                stop_signal
            }
        ),
        path().prop_map(|path| CreatedKind::Directory { path }),
        (path(), path()).prop_map(|(from, to)| CreatedKind::MovedAside { from, to }),
        path().prop_map(|path| CreatedKind::File { path }),
        ("[a-z]{1,8}", value()).prop_map(|(resource, handle)| CreatedKind::Within { resource, handle }),
    ];
    (any::<String>(), any::<String>(), kind).prop_map(|(id, what, kind)| Created { id, what, kind })
}

fn decision() -> impl Strategy<Value = Decision> {
    prop_oneof![
        step().prop_map(|step| Decision::RetryStep { step }),
        (step(), any::<String>()).prop_map(|(step, reason)| Decision::SkipStep { step, reason }),
        (step(), any::<String>()).prop_map(|(step, reason)| Decision::MarkDone { step, reason }),
        any::<String>().prop_map(|reason| Decision::Abort { reason }),
        any::<String>().prop_map(|reason| Decision::Cancel { reason }),
        Just(Decision::Pause),
        Just(Decision::Unpause),
        any::<String>().prop_map(|text| Decision::Note { text }),
    ]
}

fn question() -> impl Strategy<Value = Question> {
    (any::<String>(), option::of(any::<String>()), any::<String>(), vec(any::<String>(), 0..3)).prop_map(
        |(id, role, message, choices)| Question {
            id,
            role,
            message,
            choices,
            typed: None,
            rule: None,
            points: Vec::new(),
        },
    )
}

fn answer() -> impl Strategy<Value = Answer> {
    (any::<String>(), someone(), option::of(any::<String>()), any::<bool>())
        .prop_map(|(choice, by, comment, automatic)| Answer { comment, automatic, ..Answer::new(choice, by) })
}

fn progress() -> impl Strategy<Value = Progress> {
    let unit = prop_oneof![Just(Unit::Bytes), Just(Unit::Items), Just(Unit::Seconds)];
    (any::<u64>(), option::of(any::<u64>()), unit, any::<String>())
        .prop_map(|(done, total, unit, note)| Progress { done, total, unit, note })
}

/// Any event of any kind. A kind that is added to the model must be added to [`number_of`], and then here.
pub(crate) fn event_kind() -> impl Strategy<Value = EventKind> {
    let run = prop_oneof![
        (any::<String>(), any::<i64>(), someone(), object(), any::<String>()).prop_map(
            |(plan_digest, incident_at_ms, by, inputs, engine)| EventKind::RunDeclared {
                plan_digest,
                incident_at_ms,
                by,
                inputs,
                engine
            }
        ),
        (any::<u32>(), any::<String>(), any::<String>())
            .prop_map(|(pid, host, boot_id)| EventKind::EngineStarted { pid, host, boot_id }),
        (someone(), decision()).prop_map(|(by, decision)| EventKind::Decided { by, decision }),
        (any::<u128>(), someone(), any::<String>()).prop_map(|(id, by, reason)| EventKind::Refused {
            request: uuid::Uuid::from_u128(id),
            by,
            reason
        }),
        (run_outcome(), any::<String>(), any::<bool>())
            .prop_map(|(outcome, reason, undo)| EventKind::EndingBegan { outcome, reason, undo }),
        (someone(), proptest::collection::vec(any::<String>(), 0..3))
            .prop_map(|(by, targets)| EventKind::TargetsConfirmed { by, targets }),
        run_outcome().prop_map(|outcome| EventKind::RunFinished { outcome }),
    ];
    prop_oneof![run, attempt_kind(), thing_kind(), advisory_kind()]
}

fn attempt_kind() -> impl Strategy<Value = EventKind> {
    prop_oneof![
        (step(), any::<u32>(), value()).prop_map(|(step, attempt, with)| EventKind::AttemptStarted {
            step,
            attempt,
            with
        }),
        (step(), vec(value(), 0..3))
            .prop_map(|(step, elements)| EventKind::ElementsChosen { step, elements }),
        (step(), any::<u32>(), attempt_result())
            .prop_map(|(step, attempt, result)| EventKind::AttemptFinished { step, attempt, result }),
        (step(), any::<u32>(), vec(output_file(), 0..3))
            .prop_map(|(step, attempt, files)| EventKind::OutputKept { step, attempt, files }),
        (step(), any::<u32>(), any::<i64>())
            .prop_map(|(step, next_attempt, at_ms)| EventKind::RetryScheduled { step, next_attempt, at_ms }),
        (step(), outcome()).prop_map(|(step, outcome)| EventKind::StepFinished { step, outcome }),
        (step(), failure()).prop_map(|(step, failure)| EventKind::StepHeld { step, failure }),
        (step(), any::<String>(), value()).prop_map(|(step, key, value)| EventKind::Recorded {
            step,
            key,
            value
        }),
    ]
}

fn output_file() -> impl Strategy<Value = OutputFile> {
    (any::<String>(), any::<u64>(), any::<String>()).prop_map(|(name, bytes, sha256)| OutputFile {
        name,
        bytes,
        sha256,
    })
}

fn thing_kind() -> impl Strategy<Value = EventKind> {
    prop_oneof![
        (step(), created()).prop_map(|(step, thing)| EventKind::ThingCreated { step, thing }),
        (any::<String>(), any::<String>(), any::<bool>())
            .prop_map(|(id, proof, removed)| EventKind::ThingRemoved { id, proof, removed }),
        (step(), question()).prop_map(|(step, question)| EventKind::QuestionAsked { step, question }),
        (step(), any::<String>(), answer())
            .prop_map(|(step, question, answer)| EventKind::QuestionAnswered { step, question, answer }),
    ]
}

fn advisory_kind() -> impl Strategy<Value = EventKind> {
    let stream = prop_oneof![Just(Stream::Stdout), Just(Stream::Stderr)];
    prop_oneof![
        (step(), any::<u32>(), progress()).prop_map(|(step, attempt, progress)| EventKind::Progressed {
            step,
            attempt,
            progress
        }),
        (step(), any::<u32>(), stream, any::<String>())
            .prop_map(|(step, attempt, stream, line)| EventKind::OutputLine { step, attempt, stream, line }),
        (option::of(step()), any::<String>()).prop_map(|(step, text)| EventKind::Noted { step, text }),
        (any::<i64>(), any::<i64>(), any::<i64>(), any::<String>()).prop_map(
            |(run_ms, wall_ms, boot_ms, boot_id)| EventKind::ClockRead { run_ms, wall_ms, boot_ms, boot_id }
        ),
        (any::<String>(), option::of(any::<String>())).prop_map(|(channel, problem)| EventKind::Notified {
            occasion: crate::model::Occasion::Held,
            channel,
            problem
        }),
    ]
}

/// How many kinds there are.
pub(crate) const KINDS: usize = 24;

/// Numbers the kinds; does not compile when one is missing.
pub(crate) fn number_of(kind: &EventKind) -> usize {
    match kind {
        EventKind::RunDeclared { .. } => 0,
        EventKind::EngineStarted { .. } => 1,
        EventKind::AttemptStarted { .. } => 2,
        EventKind::AttemptFinished { .. } => 3,
        EventKind::RetryScheduled { .. } => 4,
        EventKind::StepFinished { .. } => 5,
        EventKind::StepHeld { .. } => 6,
        EventKind::Recorded { .. } => 7,
        EventKind::ThingCreated { .. } => 8,
        EventKind::ThingRemoved { .. } => 9,
        EventKind::QuestionAsked { .. } => 10,
        EventKind::QuestionAnswered { .. } => 11,
        EventKind::Decided { .. } => 12,
        EventKind::EndingBegan { .. } => 13,
        EventKind::RunFinished { .. } => 14,
        EventKind::Progressed { .. } => 15,
        EventKind::OutputLine { .. } => 16,
        EventKind::Noted { .. } => 17,
        EventKind::ElementsChosen { .. } => 18,
        EventKind::Notified { .. } => 19,
        EventKind::TargetsConfirmed { .. } => 20,
        EventKind::ClockRead { .. } => 21,
        EventKind::Refused { .. } => 22,
        EventKind::OutputKept { .. } => 23,
    }
}
