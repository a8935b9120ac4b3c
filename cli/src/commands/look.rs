//! Commands that look at runs: `status`, `runs`, `report`.

use lifeboat_engine::clock::now_of;
use lifeboat_engine::journal::{self, Header};
use lifeboat_engine::model::{Event, Mode, RunOutcome};
use lifeboat_engine::report::human::{self, Moment};
use lifeboat_engine::report::{self, LiveStatus, Owner, RunReport, Source};
use lifeboat_engine::runs::{Filter, Index, RunDir, RunSummary, Standing, StateDir};

use crate::args::{Format, ReportArgs, RunsArgs};
use crate::exit::{Exit, Failure, Outcome};
use crate::render;

/// One run as its journal tells it.
struct Told {
    run: RunDir,
    header: Header,
    events: Vec<Event>,
    owner: Owner,
}

impl Told {
    fn find(state: &StateDir, text: &str) -> Result<Self, Failure> {
        let run = state.find(text).map_err(|error| render::runs(&error))?;
        let (header, events) = journal::read(run.path()).map_err(|error| render::journal(&error))?;
        let holder = run.owner().map_err(|error| render::runs(&error))?;
        let owner = if holder.is_some() { Owner::Present } else { Owner::Gone };
        Ok(Self { run, header, events, owner })
    }

    /// The report, with the head of the chain as it is now.
    fn report(&self) -> Result<RunReport, Failure> {
        let head = journal::Reader::open(self.run.path()).and_then(|reader| reader.stored_head());
        let head = head.map_err(|error| render::journal(&error))?;
        let report = RunReport::of(&self.source());
        let events = self.events.last().map_or(0, |event| event.seq);
        Ok(match head {
            Some(head) => report.with_head(events, &head),
            None => report,
        })
    }

    fn source(&self) -> Source<'_> {
        Source {
            run: self.run.id(),
            plan: &self.header.plan,
            events: &self.events,
            now: Moment(now_of(&self.events)),
            owner: self.owner,
        }
    }
}

/// Shows how a run stands, ending with the command to type next.
pub(crate) fn status(state: &StateDir, run: Option<&str>, format: Format) -> Outcome {
    let told = Told::find(state, run.unwrap_or("latest"))?;
    let status = LiveStatus::of(&told.source());
    match format {
        Format::Json => crate::say::put!("{}", render::json(&status)?),
        _ => render::print_page(&status.page()),
    }
    let waiting = told.run.inbox().waiting().map_err(|error| render::runs(&error))?.len();
    if waiting > 0 && told.owner == Owner::Gone {
        let short = told.run.id().short();
        crate::say::say!("\n{waiting} decided already and not yet carried out: lifeboat resume {short}");
    }
    Ok(Exit::Success)
}

/// Prints the report of a run.
pub(crate) fn report(state: &StateDir, args: &ReportArgs, format: Format) -> Outcome {
    let told = Told::find(state, &args.run)?;
    let report = told.report()?;
    let text = match format {
        Format::Json => render::json(&report)?,
        Format::Markdown => report::markdown(&report),
        Format::Html => report::html(&report),
        Format::Text => match &args.output {
            None => {
                render::print_page(&report::page(&report));
                return Ok(Exit::Success);
            }
            Some(_) => report::page(&report).plain(100),
        },
        Format::Github | Format::Yaml | Format::Mermaid => {
            return Err(Failure::usage("a report comes as text, markdown, html or json"));
        }
    };
    match &args.output {
        Some(path) => render::write(path, &text)?,
        None => crate::say::put!("{text}"),
    }
    Ok(Exit::Success)
}

/// Lists runs, newest first.
pub(crate) fn runs(state: &StateDir, args: &RunsArgs, format: Format) -> Outcome {
    let index = Index::open(state).map_err(|error| render::runs(&error))?;
    let filter = Filter {
        runbook: args.runbook.clone(),
        standing: args.open.then_some(Standing::Open),
        ..Filter::default()
    };
    let found = index.list(&filter, args.limit).map_err(|error| render::runs(&error))?;
    for (run, error) in index.unreadable() {
        crate::say::say!("warning: the journal of {} cannot be read: {error}", run.short());
    }
    match format {
        Format::Json => crate::say::put!("{}", render::json(&found)?),
        _ if found.is_empty() => crate::say::say!("no runs"),
        _ => found.iter().for_each(|run| crate::say::putln!("{}", line(run))),
    }
    Ok(Exit::Success)
}

fn line(run: &RunSummary) -> String {
    let outcome = match run.outcome {
        None => "open",
        Some(RunOutcome::Succeeded) => "succeeded",
        Some(RunOutcome::Failed) => "failed",
        Some(RunOutcome::Aborted) => "aborted",
    };
    let mode = if run.mode == Mode::Drill { "drill" } else { "recovery" };
    let took = run.ended_ms.map_or(String::new(), |end| human::duration(end - run.declared_ms));
    let rto = match (run.rto_used_ms, run.rto_ms) {
        (Some(used), Some(target)) => {
            let target = human::duration(i64::try_from(target).unwrap_or(i64::MAX));
            format!("RTO {} of {target}", human::duration(used))
        }
        _ => String::new(),
    };
    let text = format!(
        "{}  {}  {:<10} {:<9} {:<18} {:<14} {took:>10}  {rto}",
        run.run.short(),
        Moment(run.declared_ms).full(),
        outcome,
        mode,
        run.runbook,
        run.environment,
    );
    text.trim_end().to_owned()
}
