//! What a run leaves on record: troubles, created things, facts, and the run itself.

use super::{code, dim, person, plain, section, table};
use crate::model::ids::StepId;
use crate::report::human::{DayClock, duration};
use crate::report::model::{Fate, RunReport, TroubleKind};
use crate::report::page::{Piece, Section, Table, Tone};

/// How many troubles of the elements of one step are shown; the data have all.
const MAX_TROUBLES: usize = 100;

pub(super) fn troubles(report: &RunReport, clock: &DayClock) -> Option<Section> {
    let mut rows = Table::new(&["at", "step", "what", ">cost", ""]);
    let mut hidden = 0;
    let mut shown = std::collections::BTreeMap::<StepId, usize>::new();
    for trouble in &report.troubles {
        let count = shown.entry(trouble.step.whole()).or_default();
        *count += 1;
        if trouble.step.element().is_some() && *count > MAX_TROUBLES {
            hidden += 1;
            continue;
        }
        let attempt = trouble.attempt.map(|number| format!("attempt {number} ")).unwrap_or_default();
        let what = match trouble.kind {
            TroubleKind::AttemptFailed => "failed",
            TroubleKind::AttemptLost => "lost with its process",
            TroubleKind::AttemptInterrupted => "interrupted",
            TroubleKind::StepHeld => "held for a person",
        };
        let why = trouble.failure.as_ref().map(|failure| format!("{} {}", failure.code, failure.message));
        rows.row(vec![
            plain(clock.time(trouble.at)),
            code(trouble.step.as_str()),
            plain(format!("{attempt}{what}")),
            plain(duration(trouble.cost_ms)),
            plain(why.unwrap_or_default()),
        ]);
    }
    if hidden > 0 {
        let more = format!("{hidden} more, of further elements");
        rows.row(vec![plain(""), plain(""), dim(more), plain(""), plain("")]);
    }
    section("Retries and blockers", table(rows))
}

pub(super) fn created(report: &RunReport) -> Option<Section> {
    let mut rows = Table::new(&["", "step", "what became of what was created"]);
    for made in &report.created {
        let fate = match made.fate {
            Fate::Removed => Piece::new("removed", Tone::Good),
            Fate::Kept => Piece::plain("kept"),
            Fate::NotRemoved => Piece::new("NOT removed", Tone::Bad),
        };
        // What is kept has no proof, and somebody may have to find it.
        let proof = made.proof.clone().unwrap_or_else(|| made.thing.kind.place());
        let what = vec![Piece::plain(&made.thing.what), Piece::dim(format!(" ({proof})"))];
        rows.row(vec![vec![fate], code(made.step.as_str()), what]);
    }
    section("Created", table(rows))
}

pub(super) fn facts(report: &RunReport) -> Option<Section> {
    let mut rows = Table::new(&["step", "", ""]);
    let mut shown = std::collections::BTreeMap::<StepId, usize>::new();
    for step in &report.facts {
        if step.step.element().is_some() {
            let count = shown.entry(step.step.whole()).or_default();
            *count += 1;
            if *count > super::MAX_PASSED {
                continue;
            }
        }
        for (name, value) in &step.facts {
            rows.row(vec![code(step.step.as_str()), dim(name), plain(value)]);
        }
    }
    for (step, count) in shown.iter().filter(|(_, count)| **count > super::MAX_PASSED) {
        let more = format!("and those of {} more elements", count - super::MAX_PASSED);
        rows.row(vec![code(step.as_str()), dim(more), plain("")]);
    }
    section("Versions and facts", table(rows))
}

pub(super) fn run(report: &RunReport, clock: &DayClock) -> Option<Section> {
    let identity = &report.identity;
    let mut rows = Table::new(&["", ""]);
    let mut add = |name: &str, value: String| rows.row(vec![dim(name), plain(value)]);
    add("run", identity.run.to_string());
    add("runbook", format!("{} of {}", identity.runbook, identity.project));
    let protected = if identity.protected { " (protected)" } else { "" };
    add("environment", format!("{}{protected}", identity.environment));
    let given = if identity.incident_given { "" } else { ", when the run was declared" };
    add("incident", format!("{}{given}", identity.incident_at.full()));
    if let (Some(at), Some(by)) = (identity.declared_at, &identity.declared_by) {
        add("declared", format!("{} by {}", clock.time(at), person(by)));
    }
    for engine in &identity.engines {
        let down = match engine.down_before_ms {
            0 => String::new(),
            ms => format!(", after {} without any", duration(ms)),
        };
        add(
            "process",
            format!("{} on {} from {}{down}", engine.pid, engine.host, clock.time(engine.started_at)),
        );
    }
    match identity.ended_at {
        Some(at) => add("ended", clock.time(at)),
        None => add("as of", clock.time(identity.as_of)),
    }
    add("people", identity.people.iter().map(person).collect::<Vec<_>>().join(", "));
    if let Some(commit) = &identity.commit {
        let dirty = if commit.dirty { ", with changes that are in no commit" } else { "" };
        add("commit", format!("{}{dirty}", commit.hash));
    }
    add("plan", identity.plan_digest.clone());
    if let Some(journal) = &identity.journal {
        add("journal", format!("{} events, head {}", journal.events, journal.head));
    }
    add("lifeboat", identity.engine_version.clone().unwrap_or_default());
    for (name, value) in &identity.inputs {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        rows.row(vec![dim("input"), vec![Piece::code(name), Piece::plain(format!(" = {value}"))]]);
    }
    section("The run", table(rows))
}
