//! `logs`: what steps wrote, once or for as long as the run lasts.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use lifeboat_engine::diagnostic::nearest_help;
use lifeboat_engine::journal::Reader;
use lifeboat_engine::model::event::EventKind;
use lifeboat_engine::model::{Attempt, StepId, Stream};
use lifeboat_engine::plan::Plan;
use lifeboat_engine::runs::{OutputFiles, RunDir, StateDir};

use crate::args::LogsArgs;
use crate::exit::{Exit, Failure, Outcome};
use crate::render;
use crate::say::{say, visible};

/// How often files are looked at.
const INTERVAL: Duration = Duration::from_millis(200);

/// How long nobody may drive the run before whoever follows it without a terminal gives up: a resume takes a moment.
pub(crate) const ABSENCE: Duration = Duration::from_secs(3);

/// Prints what steps wrote, attempt by attempt.
pub(crate) fn logs(state: &StateDir, args: &LogsArgs) -> Outcome {
    let run = state.find(&args.run).map_err(|error| render::runs(&error))?;
    let reader = Reader::open(run.path()).map_err(|error| render::journal(&error))?;
    check(args, &reader.header().plan)?;
    let mut tail = Tail::new(&run, args);
    let mut absent: Option<Instant> = None;
    loop {
        let ended = tail.read_journal(&reader)?;
        let owned = run.owner().map_err(|error| render::runs(&error))?.is_some();
        let Ok(()) = tail.print()? else { return Ok(Exit::Success) };
        if ended || !args.follow {
            return tail.finish(args, &run);
        }
        absent = if owned { None } else { Some(absent.unwrap_or_else(Instant::now)) };
        if let Some(since) = absent {
            if tail.tell_of_absence(&run) {
                // In a terminal somebody reads this and resumes the run, or leaves with Ctrl-C.
            } else if !std::io::stderr().is_terminal() && since.elapsed() > ABSENCE {
                return Ok(Exit::Waiting);
            }
        }
        std::thread::sleep(INTERVAL);
    }
}

/// Refuses a step that the run does not have.
fn check(args: &LogsArgs, plan: &Plan) -> Result<(), Failure> {
    let Some(wanted) = &args.step else { return Ok(()) };
    let whole = StepId::new(wanted.as_str()).map_err(|error| Failure::usage(error.to_string()))?.whole();
    if plan.everything().any(|step| step.id == whole) {
        return Ok(());
    }
    let steps = plan.steps.iter().map(|step| step.id.as_str());
    let help = nearest_help(wanted, "its steps", steps).unwrap_or_default();
    Err(Failure::usage(format!("the run has no step `{wanted}`")).help(help))
}

/// One attempt, and how much of its streams has been printed.
struct Source {
    step: StepId,
    attempt: Attempt,
    positions: BTreeMap<&'static str, u64>,
    /// Its end is in the journal: nothing more comes after the next look.
    ended: bool,
}

struct Tail<'a> {
    files: OutputFiles,
    args: &'a LogsArgs,
    seen: u64,
    sources: Vec<Source>,
    /// The stream whose header was printed last.
    under: Option<(StepId, Attempt, &'static str)>,
    started: bool,
    told_of_absence: bool,
}

impl<'a> Tail<'a> {
    fn new(run: &RunDir, args: &'a LogsArgs) -> Self {
        let (files, sources) = (run.output(), Vec::new());
        Self { files, args, seen: 0, sources, under: None, started: false, told_of_absence: false }
    }

    /// Takes note of attempts that have begun and ended; true once the run has.
    fn read_journal(&mut self, reader: &Reader) -> Result<bool, Failure> {
        let events = reader.since(self.seen, usize::MAX).map_err(|error| render::journal(&error))?;
        let mut over = false;
        for event in events {
            self.seen = event.seq;
            match event.kind {
                EventKind::AttemptStarted { step, attempt, .. } if self.wants(&step, attempt) => {
                    self.started = true;
                    self.sources.push(Source { step, attempt, positions: BTreeMap::new(), ended: false });
                }
                EventKind::AttemptFinished { step, attempt, .. } => {
                    let ended = self.sources.iter_mut().filter(|it| it.step == step && it.attempt == attempt);
                    ended.for_each(|source| source.ended = true);
                }
                EventKind::EngineStarted { .. } => self.told_of_absence = false,
                EventKind::RunFinished { .. } => over = true,
                _ => {}
            }
        }
        Ok(over)
    }

    fn wants(&self, step: &StepId, attempt: Attempt) -> bool {
        let named = |wanted: &String| wanted == step.as_str() || *wanted == step.whole().as_str();
        self.args.step.as_ref().is_none_or(named) && self.args.attempt.is_none_or(|wanted| wanted == attempt)
    }

    /// Prints what is new; the inner error says that nobody reads any more.
    fn print(&mut self) -> Result<std::io::Result<()>, Failure> {
        let mut sources = std::mem::take(&mut self.sources);
        for source in &mut sources {
            for (stream, name) in [(Stream::Stdout, "stdout"), (Stream::Stderr, "stderr")] {
                let position = source.positions.entry(name).or_default();
                let found = self.files.since(&source.step, source.attempt, stream, *position);
                let piece = found.map_err(|error| render::runs(&error))?;
                *position = piece.next;
                if !piece.bytes.is_empty()
                    && let Err(gone) = self.put((&source.step, source.attempt, name), &piece.bytes)
                {
                    return Ok(Err(gone));
                }
            }
        }
        // The last look at an attempt is the one after its end became known.
        sources.retain(|source| !source.ended);
        self.sources = sources;
        Ok(Ok(()))
    }

    fn put(&mut self, of: (&StepId, Attempt, &'static str), bytes: &[u8]) -> std::io::Result<()> {
        let mut out = std::io::stdout().lock();
        let (step, attempt, name) = of;
        if self.under.as_ref().is_none_or(|(at, number, under)| (at, *number, *under) != of) {
            writeln!(out, "==> {step} attempt {attempt} {name}")?;
            self.under = Some((step.clone(), attempt, name));
        }
        if out.is_terminal() {
            out.write_all(visible(&String::from_utf8_lossy(bytes)).as_bytes())?;
        } else {
            out.write_all(bytes)?;
        }
        out.flush()
    }

    /// Says once that nobody drives the run.
    fn tell_of_absence(&mut self, run: &RunDir) -> bool {
        if std::mem::replace(&mut self.told_of_absence, true) {
            return false;
        }
        let short = run.id().short();
        say!("no process drives the run {short} now; to go on: lifeboat resume {short}");
        true
    }

    fn finish(&self, args: &LogsArgs, run: &RunDir) -> Outcome {
        let short = run.id().short();
        match (&args.step, args.attempt) {
            (Some(step), None) if !self.started => {
                Err(Failure::usage(format!("the step `{step}` has not started in the run {short}"))
                    .help(format!("wait for it with `lifeboat logs {short} -s {step} -f`")))
            }
            (_, Some(attempt)) if !self.started => {
                let of = args.step.as_ref().map(|step| format!(" of `{step}`")).unwrap_or_default();
                Err(Failure::usage(format!("the run {short} has no attempt {attempt}{of} yet")))
            }
            _ => Ok(Exit::Success),
        }
    }
}
