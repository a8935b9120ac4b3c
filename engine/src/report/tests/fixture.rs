//! Builds plans and journals for tests, in few words.

use std::collections::BTreeMap;

use serde_json::{Map, json};

use crate::model::event::{Answer, AttemptResult, Decision, Done, Event, EventKind, Person, Question};
use crate::model::evidence::{Check, Confidence, Created, CreatedKind, Progress, RecoveryPoint, Unit};
use crate::model::ids::{RunId, StepId};
use crate::model::outcome::{Failure, FailureKind, Mode, Outcome, RunOutcome};
use crate::plan::{
    Milestone, MilestoneAt, Need, NeedOn, Objective, OnError, Plan, PlannedGroup, PlannedStep, Retry,
};
use crate::report::human::Moment;
use crate::report::{LiveStatus, Owner, RunReport, Source};
use crate::resource::{Access, Host, Resource, System};
use crate::step::Effect;
use crate::value::Span;

/// 2026-11-21 03:12:00 UTC: the incident of every fixture.
pub(crate) const INCIDENT: i64 = 1_795_230_720_000;

pub(crate) fn id(text: &str) -> StepId {
    StepId::new(text).unwrap()
}

pub(crate) fn run_id() -> RunId {
    "019aa3f0-1c00-7000-8000-00000badcafe".parse().unwrap()
}

pub(crate) fn span(text: &str) -> Span {
    Span::parse(text).unwrap()
}

pub(crate) fn plan(mode: Mode) -> Plan {
    Plan {
        format: Plan::WITHOUT_WHOLE_GROUPS,
        project: "membership".into(),
        project_dir: "/srv/runbooks".into(),
        runbook: "restore".into(),
        title: "Restore the membership system".into(),
        owner: Some("platform".into()),
        environment: "staging".into(),
        protected: false,
        mode,
        commit: None,
        objective: Objective { rto: Some(span("4h")), rpo: Some(span("1h")) },
        milestones: BTreeMap::new(),
        roles: BTreeMap::new(),
        inputs: Map::new(),
        vars: Map::new(),
        resources: ["db", "cache", "uploads"].map(|name| (name.to_owned(), resource())).into(),
        secrets: BTreeMap::new(),
        auto_approvals: false,
        keep: false,
        steps: Vec::new(),
        groups: Vec::new(),
        undos: Vec::new(),
        scopes: Vec::new(),
        locks: Vec::new(),
        notices: BTreeMap::default(),
        approvers: None,
        contacts: BTreeMap::default(),
        fence: Vec::new(),
        sources: BTreeMap::new(),
    }
}

fn resource() -> Resource {
    Resource {
        access: Access::Write,
        optional: false,
        system: System::Host(Host { local: true, address: None }),
    }
}

/// A step that needs the one before it.
pub(crate) fn add<'a>(plan: &'a mut Plan, name: &str, uses: &str, title: &str) -> &'a mut PlannedStep {
    let needs = plan.steps.iter().rev().find(|step| !step.always).map(|step| step.id.clone());
    let line = 20 + plan.steps.len();
    plan.steps.push(PlannedStep {
        id: id(name),
        title: title.into(),
        place: format!("runbooks/restore.yaml:{line}"),
        group: None,
        always: false,
        scope: None,
        concludes: None,
        needs: needs.into_iter().map(|step| Need { step, on: NeedOn::Success }).collect(),
        conditions: Vec::new(),
        uses: uses.into(),
        with: json!({}),
        effect: Effect::Idempotent,
        expect: Vec::new(),
        retry: Retry::default(),
        timeout: None,
        budget: None,
        milestone: None,
        recovered: false,
        on_error: if plan.mode == Mode::Drill { OnError::Abort } else { OnError::Hold },
        destroys: Vec::new(),
        reads: Vec::new(),
        writes: Vec::new(),
        restores: false,
        for_each: None,
        until: None,
    });
    plan.steps.last_mut().unwrap()
}

pub(crate) fn needs(step: &mut PlannedStep, ids: &[&str]) {
    step.needs = ids.iter().map(|name| Need { step: id(name), on: NeedOn::Success }).collect();
}

pub(crate) fn restoring(step: &mut PlannedStep, resource: &str) {
    step.restores = true;
    step.writes = vec![resource.into()];
}

pub(crate) fn group(name: &str, budget: &str) -> PlannedGroup {
    PlannedGroup {
        id: id(name),
        title: name.into(),
        parent: None,
        parallel: true,
        max_parallel: None,
        budget: Some(span(budget)),
        milestone: None,
        recovered: false,
        ends: Vec::new(),
    }
}

pub(crate) fn milestone(name: &str, at: MilestoneAt) -> Option<Milestone> {
    Some(Milestone { name: name.into(), at })
}

/// The runbook of most tests: choose, then three stores side by side, then application, smoke and reopen.
pub(crate) fn restore_plan(mode: Mode) -> Plan {
    let mut plan = plan(mode);
    plan.milestones = [("database_up".into(), span("45m")), ("service_restored".into(), span("60m"))].into();
    plan.inputs.insert("target_time".into(), json!("2026-11-21T03:12:00Z"));
    plan.groups.push(group("stores", "2m"));
    add(&mut plan, "choose", "postgres.select_backup", "Choose the backup").budget = Some(span("10s"));
    let step = add(&mut plan, "base", "postgres.restore_base", "Restore the base backup");
    step.group = Some(id("stores"));
    step.retry.attempts = 3;
    let step = add(&mut plan, "recover", "postgres.recover", "Replay the log to the target");
    step.group = Some(id("stores"));
    step.milestone = milestone("database_up", MilestoneAt::Succeeded);
    restoring(step, "db");
    for (name, uses, title) in
        [("cache", "redis.restore", "Restore the cache"), ("uploads", "files.restore", "Restore the uploads")]
    {
        let step = add(&mut plan, name, uses, title);
        step.group = Some(id("stores"));
        needs(step, &["choose"]);
        restoring(step, name);
    }
    let step = add(&mut plan, "start_app", "service.start", "Start the application");
    needs(step, &["recover", "cache", "uploads"]);
    step.budget = Some(span("30s"));
    add(&mut plan, "smoke", "http.smoke", "Run the smoke workflows").budget = Some(span("1m"));
    let step = add(&mut plan, "reopen", "access.open", "Let people in again");
    step.recovered = true;
    step.milestone = milestone("service_restored", MilestoneAt::Succeeded);
    let step = add(&mut plan, "announce", "notify", "Tell the channel");
    step.always = true;
    step.needs.clear();
    step.on_error = OnError::Continue;
    plan
}

pub(crate) fn person(name: &str) -> Person {
    Person { name: name.into(), uid: 1000 }
}

pub(crate) fn failure(code: &str, message: &str) -> Failure {
    Failure {
        kind: FailureKind::Transient,
        code: code.into(),
        message: message.into(),
        help: Some("look at the server's log".into()),
        causes: vec!["connection refused".into()],
    }
}

pub(crate) fn check(name: &str, expected: &str, actual: &str) -> Check {
    Check { name: name.into(), expected: expected.into(), actual: actual.into(), passed: expected == actual }
}

pub(crate) fn point(resource: &str, time: &str, method: &str) -> RecoveryPoint {
    RecoveryPoint {
        resource: resource.into(),
        time: time.into(),
        position: None,
        method: method.into(),
        confidence: Confidence::Measured,
    }
}

/// A journal in the making; times are milliseconds after the incident.
pub(crate) struct Journal {
    pub(crate) plan: Plan,
    pub(crate) events: Vec<Event>,
    now: i64,
}

impl Journal {
    pub(crate) fn new(plan: Plan) -> Self {
        Self { plan, events: Vec::new(), now: 0 }
    }

    /// A journal that begins four seconds after the incident.
    pub(crate) fn begun(plan: Plan) -> Self {
        let mut journal = Self::new(plan);
        let declared = EventKind::RunDeclared {
            plan_digest: journal.plan.digest(),
            incident_at_ms: INCIDENT,
            by: person("ada"),
            inputs: journal.plan.inputs.clone(),
            engine: "0.1.0".into(),
        };
        journal.at(4_000).push(declared).engine(4711);
        journal
    }

    pub(crate) fn at(&mut self, ms: i64) -> &mut Self {
        self.now = ms;
        self
    }

    pub(crate) fn push(&mut self, kind: EventKind) -> &mut Self {
        let seq = self.events.len() as u64 + 1;
        self.events.push(Event { seq, at_ms: INCIDENT + self.now, kind });
        self
    }

    pub(crate) fn engine(&mut self, pid: u32) -> &mut Self {
        self.push(EventKind::EngineStarted { pid, host: "ops1".into(), boot_id: "b".into() })
    }

    pub(crate) fn start(&mut self, step: &str, attempt: u32) -> &mut Self {
        self.push(EventKind::AttemptStarted { step: id(step), attempt, with: json!({}) })
    }

    pub(crate) fn result(&mut self, step: &str, attempt: u32, result: AttemptResult) -> &mut Self {
        self.push(EventKind::AttemptFinished { step: id(step), attempt, result })
    }

    pub(crate) fn outcome(&mut self, step: &str, outcome: Outcome) -> &mut Self {
        self.push(EventKind::StepFinished { step: id(step), outcome })
    }

    /// Ends the current attempt and the step well.
    pub(crate) fn done(&mut self, step: &str, attempt: u32, done: Done) -> &mut Self {
        self.result(step, attempt, AttemptResult::Succeeded { done }).outcome(step, Outcome::Succeeded)
    }

    pub(crate) fn ok(&mut self, step: &str) -> &mut Self {
        self.done(step, 1, Done::default())
    }

    pub(crate) fn fail(&mut self, step: &str, attempt: u32, failure: Failure) -> &mut Self {
        self.result(step, attempt, AttemptResult::Failed { failure, checks: Vec::new() })
    }

    pub(crate) fn retry(&mut self, step: &str, next_attempt: u32, at: i64) -> &mut Self {
        self.push(EventKind::RetryScheduled { step: id(step), next_attempt, at_ms: INCIDENT + at })
    }

    pub(crate) fn ask(&mut self, step: &str, role: &str, message: &str) -> &mut Self {
        let choices = vec!["approve".into(), "reject".into()];
        let question = Question {
            id: "go".into(),
            role: Some(role.into()),
            message: message.into(),
            choices,
            typed: None,
            rule: None,
            points: Vec::new(),
        };
        self.push(EventKind::QuestionAsked { step: id(step), question })
    }

    pub(crate) fn answer(&mut self, step: &str, who: &str, automatic: bool) -> &mut Self {
        let answer = Answer { automatic, ..Answer::new("approve", person(who)) };
        self.push(EventKind::QuestionAnswered { step: id(step), question: "go".into(), answer })
    }

    pub(crate) fn decide(&mut self, who: &str, decision: Decision) -> &mut Self {
        self.push(EventKind::Decided { by: person(who), decision })
    }

    pub(crate) fn progress(&mut self, step: &str, done: u64, total: u64) -> &mut Self {
        let progress = Progress { done, total: Some(total), unit: Unit::Bytes, note: "unpacking".into() };
        self.push(EventKind::Progressed { step: id(step), attempt: 1, progress })
    }

    pub(crate) fn server(&mut self, step: &str, what: &str) -> &mut Self {
        let kind = CreatedKind::Process { pid: 99, start_ticks: 1, boot_id: "b".into(), stop_signal: 2 };
        let thing = Created { id: format!("server:{step}"), what: what.into(), kind };
        self.push(EventKind::ThingCreated { step: id(step), thing })
    }

    pub(crate) fn end(&mut self, outcome: RunOutcome) -> &mut Self {
        self.push(EventKind::RunFinished { outcome })
    }

    pub(crate) fn source(&self) -> Source<'_> {
        let now = Moment(INCIDENT + self.now);
        Source { run: run_id(), plan: &self.plan, events: &self.events, now, owner: Owner::Unknown }
    }

    pub(crate) fn report(&self) -> RunReport {
        RunReport::of(&self.source())
    }

    pub(crate) fn status(&self, owner: Owner) -> LiveStatus {
        LiveStatus::of(&Source { owner, ..self.source() })
    }
}

/// A drill that restores three stores side by side, with one failed attempt on the way.
pub(crate) fn good_drill() -> Journal {
    let mut journal = Journal::begun(restore_plan(Mode::Drill));
    journal.at(4_100).start("choose", 1);
    let chosen = BTreeMap::from([("backup".to_owned(), "20261121T020000Z-0badcafe".to_owned())]);
    journal.at(5_300).done("choose", 1, Done { facts: chosen, ..Done::default() });
    journal.at(5_400).start("base", 1).start("cache", 1).start("uploads", 1);
    journal.at(6_000).server("cache", "Redis server of cache (port 6390)");
    journal
        .at(9_000)
        .fail("base", 1, failure("LB1104", "reading `base/x/base.tar.zst` stopped"))
        .retry("base", 2, 14_000);
    let cache = point("cache", "2026-11-21T03:10:00Z", "snapshot time");
    let cache = RecoveryPoint { confidence: Confidence::Stated, ..cache };
    journal.at(11_000).done("cache", 1, Done { recovery_points: vec![cache], ..Done::default() });
    journal.at(14_000).start("base", 2).progress("base", 600 << 20, 2 << 30);
    let uploads = point("uploads", "2026-11-21T03:11:58Z", "newest file");
    let checks = vec![check("checksums", "412 files", "412 files")];
    let warnings = vec!["3 files of the manifest belong to a user that does not exist here".to_owned()];
    journal.at(31_000).done(
        "uploads",
        1,
        Done { recovery_points: vec![uploads], checks, warnings, ..Done::default() },
    );
    journal.at(95_000).ok_second("base");
    journal.at(95_100).server("recover", "Postgres server of db (port 5440)").start("recover", 1);
    let mut db = point("db", "2026-11-21T03:11:59.188Z", "heartbeat row");
    db.position = Some("0/3000060".into());
    let checks = vec![check("rows of members", "20000", "20000")];
    journal.at(161_000).done("recover", 1, Done { recovery_points: vec![db], checks, ..Done::default() });
    journal.finish_well(161_100);
    journal
}

impl Journal {
    fn ok_second(&mut self, step: &str) -> &mut Self {
        self.done(step, 2, Done::default())
    }

    /// Starts the application, tests it, reopens, announces and removes what was created.
    pub(crate) fn finish_well(&mut self, from: i64) {
        self.at(from).start("start_app", 1);
        self.at(from + 2_000).ok("start_app").start("smoke", 1);
        let checks = vec![
            check("login", "status 200", "status 200"),
            check("identity marker", "restored-db", "restored-db"),
        ];
        self.at(from + 30_000).done("smoke", 1, Done { checks, ..Done::default() });
        self.at(from + 30_100).start("reopen", 1).at(from + 30_900).ok("reopen");
        self.push(EventKind::EndingBegan {
            outcome: RunOutcome::Succeeded,
            reason: "all steps ended".into(),
            undo: false,
        });
        self.start("announce", 1).at(from + 31_500).ok("announce");
        for name in ["server:cache", "server:recover"] {
            let proof = "the process has ended".to_owned();
            self.at(from + 32_000).push(EventKind::ThingRemoved { id: name.into(), proof, removed: true });
        }
        self.end(RunOutcome::Succeeded);
    }
}

/// Text that tries to break out of whatever it is put into.
pub(crate) const HOSTILE: &str = "</style><script>alert('x')</script> & \"q\" | `t` \u{1b}[31m";
