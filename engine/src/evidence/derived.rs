//! What is made of plan and events alone: made once for the archive, and again to check it.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::FORMAT;
use crate::journal::{Head, Header};
use crate::model::outcome::{Mode, RunOutcome};
use crate::model::{Event, EventClass, EventKind, RunId};
use crate::report::human::Moment;
use crate::report::{self, Owner, RunReport, Source};

/// `evidence.json`: what the archive is, and what was known only when it was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Summary {
    pub(super) format: u32,
    /// The version of Lifeboat whose reports these are.
    pub(super) made_by: String,
    pub(super) run: RunId,
    pub(super) runbook: String,
    pub(super) environment: String,
    pub(super) mode: Mode,
    /// Absent for a run that was still open.
    pub(super) outcome: Option<RunOutcome>,
    /// What an open run is reported as of, milliseconds since 1970 UTC; the end of an ended one.
    pub(super) as_of_ms: i64,
    /// Whether a process drove the run.
    pub(super) owner: Owner,
    pub(super) events: u64,
    pub(super) essential_events: u64,
    pub(super) head: String,
    /// Files that nothing in the chain speaks of.
    pub(super) not_in_chain: BTreeSet<String>,
    /// Files that the chain speaks of and that were not there any more.
    pub(super) missing: BTreeSet<String>,
}

/// The journal of a run with what was found beside it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Told<'a> {
    pub(super) header: &'a Header,
    pub(super) events: &'a [Event],
    pub(super) head: &'a Head,
    /// The present, of no influence once the run has ended.
    pub(super) now: Moment,
    pub(super) owner: Owner,
    pub(super) not_in_chain: &'a BTreeSet<String>,
    pub(super) missing: &'a BTreeSet<String>,
}

impl Told<'_> {
    pub(super) fn summary(&self) -> Summary {
        let plan = &self.header.plan;
        let end = self.events.iter().find_map(|event| match event.kind {
            EventKind::RunFinished { outcome } => Some((outcome, event.at_ms)),
            _ => None,
        });
        let essential = self.events.iter().filter(|event| event.kind.class() == EventClass::Essential);
        Summary {
            format: FORMAT,
            made_by: env!("CARGO_PKG_VERSION").to_owned(),
            run: self.header.run,
            runbook: plan.runbook.clone(),
            environment: plan.environment.clone(),
            mode: plan.mode,
            outcome: end.map(|(outcome, _)| outcome),
            as_of_ms: end.map_or(self.now.0, |(_, at)| at),
            owner: if end.is_some() { Owner::Gone } else { self.owner },
            events: self.head.seq,
            essential_events: essential.count() as u64,
            head: self.head.hash(),
            not_in_chain: self.not_in_chain.clone(),
            missing: self.missing.clone(),
        }
    }

    /// Makes every derived member, by name.
    pub(super) fn members(&self) -> BTreeMap<&'static str, Vec<u8>> {
        let summary = self.summary();
        let source = Source {
            run: self.header.run,
            plan: &self.header.plan,
            events: self.events,
            now: Moment(summary.as_of_ms),
            owner: summary.owner,
        };
        let report = RunReport::of(&source).with_head(summary.events, &summary.head);
        let environment = self.environment();
        BTreeMap::from([
            ("README.md", readme(&summary).into_bytes()),
            ("verify.sh", SCRIPT.as_bytes().to_vec()),
            ("evidence.json", pretty(&summary)),
            ("environment.json", pretty(&environment)),
            ("report.md", report::markdown(&report).into_bytes()),
            ("report.html", report::html(&report).into_bytes()),
            ("report.json", (report.json() + "\n").into_bytes()),
        ])
    }

    /// The environment as it was resolved: systems, and references to secrets.
    fn environment(&self) -> serde_json::Value {
        let plan = &self.header.plan;
        json!({
            "environment": plan.environment,
            "protected": plan.protected,
            "commit": plan.commit,
            "inputs": plan.inputs,
            "vars": plan.vars,
            "resources": plan.resources,
            "secrets": plan.secrets,
            "sources": plan.sources,
        })
    }
}

/// `journal/header.json`: what the chain begins with, besides the plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct HeaderFile {
    pub(super) format: u32,
    pub(super) run: RunId,
    pub(super) engine: String,
    pub(super) created_ms: i64,
}

impl HeaderFile {
    /// `format` is the one that the run was declared in.
    pub(super) fn of(header: &Header, format: u32) -> Self {
        let Header { run, engine, created_ms, .. } = header;
        Self { format, run: *run, engine: engine.clone(), created_ms: *created_ms }
    }
}

pub(super) fn pretty<T: Serialize>(thing: &T) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(thing).expect("plain data can be written as JSON");
    bytes.push(b'\n');
    bytes
}

const SCRIPT: &str = include_str!("verify.sh");

fn readme(summary: &Summary) -> String {
    let Summary { run, runbook, environment, head, events, essential_events, .. } = summary;
    let standing = match summary.outcome {
        Some(RunOutcome::Succeeded) => "It succeeded.",
        Some(RunOutcome::Failed) => "It failed.",
        Some(RunOutcome::Aborted) => "A person aborted it.",
        None => "**It had not ended when this archive was made**: what came later is not in here.",
    };
    let advisory = events - essential_events;
    include_str!("readme.md")
        .replace("{run}", &run.to_string())
        .replace("{runbook}", runbook)
        .replace("{environment}", environment)
        .replace("{standing}", standing)
        .replace("{head}", head)
        .replace("{essential}", &essential_events.to_string())
        .replace("{advisory}", &advisory.to_string())
}
