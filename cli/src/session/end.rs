//! What is left to do when the driver returns: the report, the index, and the exit code.

use std::path::Path;

use lifeboat_engine::clock::now_of;
use lifeboat_engine::crash::{self, Point};
use lifeboat_engine::journal;
use lifeboat_engine::model::RunOutcome;
use lifeboat_engine::model::event::EventKind;
use lifeboat_engine::report::human::Moment;
use lifeboat_engine::report::{Owner, RunReport, Source, Verdict};
use lifeboat_engine::run::Situation;
use lifeboat_engine::runs::{Index, RunDir, RunSummary, StateDir};

use crate::exit::{Exit, Failure};
use crate::render;

/// Reads the journal back and tells how the run ended or stands.
pub(super) struct Ending<'a> {
    pub(super) state: &'a StateDir,
    pub(super) run: &'a RunDir,
    pub(super) situation: Situation,
    /// Where the person asked for a copy of the report.
    pub(super) report: Option<&'a Path>,
}

impl Ending<'_> {
    /// Writes the reports, prints the one for people, and returns the exit code.
    pub(super) fn tell(&self) -> Result<Exit, Failure> {
        let (header, events) = journal::read(self.run.path()).map_err(|error| render::journal(&error))?;
        let source = Source {
            run: self.run.id(),
            plan: &header.plan,
            events: &events,
            now: Moment(now_of(&events)),
            owner: Owner::Gone,
        };
        let report = RunReport::of(&source);
        crash::point(Point::IndexOpened);
        self.index(RunSummary::of(&header, &events));
        crash::point(Point::IndexUpdated);
        let places = self.save(&report);
        render::print_page(&lifeboat_engine::report::summary(&report));
        crate::say::say!("\nall of it: lifeboat report {}", self.run.id().short());
        for place in places {
            crate::say::say!("to open:   {place}");
        }
        Ok(exit(self.situation, &report))
    }

    fn index(&self, summary: Option<RunSummary>) {
        // The index is derived: without it, listing is slower and nothing is lost.
        let updated =
            Index::open(self.state).and_then(|index| summary.map_or(Ok(()), |it| index.update(&it)));
        if let Err(error) = updated {
            tracing::warn!(%error, "the index of runs was not updated");
        }
    }

    fn save(&self, report: &RunReport) -> Vec<String> {
        let ended = matches!(self.situation, Situation::Finished(_));
        let own = ended.then(|| self.run.path().to_owned());
        own.iter()
            .map(|path| path.as_path())
            .chain(self.report)
            .filter_map(|dir| match render::save(report, dir) {
                Ok(path) => Some(path.display().to_string()),
                Err(failure) => {
                    crate::say::say!("warning: the report was not written: {}", failure.message);
                    None
                }
            })
            .collect()
    }
}

/// Returns the exit code that tells how a run has ended.
pub(crate) fn ended_with(run: &RunDir) -> Result<Exit, Failure> {
    let (header, events) = journal::read(run.path()).map_err(|error| render::journal(&error))?;
    let outcome = events.iter().rev().find_map(|event| match event.kind {
        EventKind::RunFinished { outcome } => Some(outcome),
        _ => None,
    });
    let now = Moment(jiff::Timestamp::now().as_millisecond());
    let source = Source { run: run.id(), plan: &header.plan, events: &events, now, owner: Owner::Gone };
    Ok(outcome.map_or(Exit::Waiting, |outcome| exit(Situation::Finished(outcome), &RunReport::of(&source))))
}

fn exit(situation: Situation, report: &RunReport) -> Exit {
    match situation {
        Situation::Finished(RunOutcome::Succeeded) if objectives_met(report) => Exit::Success,
        Situation::Finished(RunOutcome::Succeeded) => Exit::Objective,
        Situation::Finished(_) => Exit::Failed,
        Situation::Held | Situation::WaitingForPerson | Situation::Paused => Exit::Waiting,
        Situation::Stopped => Exit::Interrupted,
        Situation::Busy | Situation::Stuck => Exit::Internal,
    }
}

/// Without an objective there is nothing to miss.
fn objectives_met(report: &RunReport) -> bool {
    let fine = |verdict: Option<Verdict>| verdict.is_none_or(|verdict| verdict == Verdict::Met);
    fine(report.rto.verdict) && fine(report.rpo.verdict)
}
