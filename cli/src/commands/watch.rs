//! `watch`: the live view of a run that another process drives. It only reads; leaving it never touches the run.

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lifeboat_engine::journal::Reader;
use lifeboat_engine::model::event::EventKind;
use lifeboat_engine::plan::Plan;
use lifeboat_engine::run::driver::Reporter;
use lifeboat_engine::runs::{RunDir, StateDir};

use crate::args::{Format, ReportArgs};
use crate::exit::{Exit, Outcome};
use crate::render;
use crate::say::say;
use crate::session::ended_with;
use crate::view::{Place, View};

use super::logs::ABSENCE;
use super::look;

const INTERVAL: Duration = Duration::from_millis(200);

/// Follows a run until it ends, over every process that drives it; ends with the exit code that tells how it ended.
///
/// While no process drives it, what to do next is shown; without a terminal, nobody is there to do it.
pub(crate) fn watch(state: &StateDir, run: Option<&str>) -> Outcome {
    let run = state.find(run.unwrap_or("latest")).map_err(|error| render::runs(&error))?;
    let reader = Reader::open(run.path()).map_err(|error| render::journal(&error))?;
    let mut watch = Watch::new(&run, &reader);
    let mut absent: Option<Instant> = None;
    loop {
        if watch.read(&reader)? {
            drop(watch);
            let args = ReportArgs { run: run.id().to_string(), output: None };
            look::report(state, &args, Format::Text)?;
            return ended_with(&run);
        }
        if run.owner().map_err(|error| render::runs(&error))?.is_some() {
            absent = None;
        } else if let Some(since) = absent {
            if !std::io::stderr().is_terminal() && since.elapsed() > ABSENCE {
                look::status(state, Some(&run.id().to_string()), Format::Text)?;
                return Ok(Exit::Waiting);
            }
        } else {
            absent = Some(Instant::now());
            watch.tell_of_absence(state)?;
        }
        std::thread::sleep(INTERVAL);
    }
}

struct Watch<'a> {
    run: &'a RunDir,
    plan: Arc<Plan>,
    /// Absent while there is nothing that moves.
    view: Option<View>,
    seen: u64,
}

impl<'a> Watch<'a> {
    fn new(run: &'a RunDir, reader: &Reader) -> Self {
        let plan = Arc::new(reader.header().plan.clone());
        let view = Some(View::new(run.id(), Arc::clone(&plan), place()));
        Self { run, plan, view, seen: 0 }
    }

    /// Shows what has happened since the last time; true once the run has ended.
    fn read(&mut self, reader: &Reader) -> Result<bool, crate::exit::Failure> {
        let events = reader.since(self.seen, usize::MAX).map_err(|error| render::journal(&error))?;
        if events.is_empty() {
            return Ok(false);
        }
        if self.view.is_none() {
            let mut view = View::new(self.run.id(), Arc::clone(&self.plan), place());
            let before = reader.since(0, usize::MAX).map_err(|error| render::journal(&error))?;
            let known = before.iter().take_while(|event| event.seq <= self.seen).count();
            view.catch_up(&before[..known]);
            self.view = Some(view);
        }
        let view = self.view.as_mut().expect("it was just made");
        for event in &events {
            self.seen = event.seq;
            view.on_event(event.at_ms, &event.kind);
        }
        Ok(events.iter().any(|event| matches!(event.kind, EventKind::RunFinished { .. })))
    }

    /// Shows how the run stands and what to type, with nothing moving below it.
    fn tell_of_absence(&mut self, state: &StateDir) -> Result<(), crate::exit::Failure> {
        if !std::io::stderr().is_terminal() {
            return Ok(());
        }
        self.view = None;
        look::status(state, Some(&self.run.id().to_string()), Format::Text)?;
        say!(
            "\nwatching on: as soon as somebody resumes the run it is shown here (Ctrl-C leaves and changes nothing)"
        );
        Ok(())
    }
}

fn place() -> Place {
    if std::io::stderr().is_terminal() { Place::Onlooker } else { Place::Pipe }
}
