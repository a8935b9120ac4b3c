//! Commands that look at runs: `status`, `watch`, `runs`, `logs`, `report`.

use std::io::Write;
use std::time::Duration;

use lifeboat_engine::journal::{self, Header};
use lifeboat_engine::model::event::EventKind;
use lifeboat_engine::model::{Event, Mode, RunOutcome, Stream};
use lifeboat_engine::report::human::{self, Moment};
use lifeboat_engine::report::{self, LiveStatus, Owner, RunReport, Source};
use lifeboat_engine::run::driver::Reporter;
use lifeboat_engine::runs::{Filter, Index, RunDir, RunSummary, Standing, StateDir};

use crate::args::{Format, LogsArgs, ReportArgs, RunsArgs};
use crate::exit::{Exit, Failure, Outcome};
use crate::render;
use crate::view::{Place, View};

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
            now: Moment(jiff::Timestamp::now().as_millisecond()),
            owner: self.owner,
        }
    }
}

/// Shows how a run stands, ending with the command to type next.
pub(crate) fn status(state: &StateDir, run: Option<&str>, format: Format) -> Outcome {
    let told = Told::find(state, run.unwrap_or("latest"))?;
    let status = LiveStatus::of(&told.source());
    match format {
        Format::Json => anstream::print!("{}", render::json(&status)?),
        _ => render::print_page(&status.page()),
    }
    let waiting = told.run.inbox().pending().map_err(|error| render::runs(&error))?.len();
    if waiting > 0 && told.owner == Owner::Gone {
        let short = told.run.id().short();
        anstream::eprintln!("\n{waiting} decided already and not yet carried out: lifeboat resume {short}");
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
        None => anstream::print!("{text}"),
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
        anstream::eprintln!("warning: the journal of {} cannot be read: {error}", run.short());
    }
    match format {
        Format::Json => anstream::print!("{}", render::json(&found)?),
        _ if found.is_empty() => anstream::eprintln!("no runs"),
        _ => found.iter().for_each(|run| anstream::println!("{}", line(run))),
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

/// Prints what steps wrote, attempt by attempt.
pub(crate) fn logs(state: &StateDir, args: &LogsArgs) -> Outcome {
    let told = Told::find(state, &args.run)?;
    let files = told.run.output();
    let mut out = std::io::stdout().lock();
    let mut known = false;
    for event in &told.events {
        let EventKind::AttemptStarted { step, attempt, .. } = &event.kind else { continue };
        if args
            .step
            .as_deref()
            .is_some_and(|wanted| wanted != step.as_str() && wanted != step.whole().as_str())
        {
            continue;
        }
        known = true;
        for (stream, name) in [(Stream::Stdout, "stdout"), (Stream::Stderr, "stderr")] {
            let text = files.read(step, *attempt, stream).map_err(|error| render::runs(&error))?;
            if text.is_empty() {
                continue;
            }
            // A closed pipe is no error: whoever reads has seen enough.
            if writeln!(out, "==> {step} attempt {attempt} {name}")
                .and_then(|()| out.write_all(&text))
                .is_err()
            {
                return Ok(Exit::Success);
            }
        }
    }
    match &args.step {
        Some(step) if !known => {
            Err(Failure::usage(format!("no step `{step}` has started in the run {}", told.run.id().short())))
        }
        _ => Ok(Exit::Success),
    }
}

/// Follows a run that another process drives, until it ends.
pub(crate) fn watch(state: &StateDir, run: Option<&str>) -> Outcome {
    const INTERVAL: Duration = Duration::from_millis(200);
    let told = Told::find(state, run.unwrap_or("latest"))?;
    let plan = std::sync::Arc::new(told.header.plan.clone());
    let mut view = View::new(told.run.id(), plan, Place::Pipe);
    let reader = journal::Reader::open(told.run.path()).map_err(|error| render::journal(&error))?;
    let mut seen = 0;
    loop {
        let events = reader.since(seen, 1000).map_err(|error| render::journal(&error))?;
        for event in &events {
            seen = event.seq;
            view.on_event(event.at_ms, &event.kind);
            if let EventKind::RunFinished { .. } = event.kind {
                return report(
                    state,
                    &ReportArgs { run: told.run.id().to_string(), output: None },
                    Format::Text,
                );
            }
        }
        if events.is_empty() {
            if told.run.owner().map_err(|error| render::runs(&error))?.is_none() {
                return status(state, Some(&told.run.id().to_string()), Format::Text);
            }
            std::thread::sleep(INTERVAL);
        }
    }
}
