//! Events as lines.

use std::collections::HashMap;
use std::sync::Arc;

use anstyle::{AnsiColor, Style};
use jiff::Timestamp;
use lifeboat_engine::clock::NOTABLE_MS;
use lifeboat_engine::model::event::{Answer, AttemptResult, Decision, EventKind, Question};
use lifeboat_engine::model::{Failure, Mode, Outcome, Progress, RunId, RunOutcome, StepId, Unit};
use lifeboat_engine::plan::Plan;
use lifeboat_engine::report::{human, typed};
use lifeboat_engine::run::wanted;
use lifeboat_engine::step::NOTE;
use serde_json::Value;

use super::Place;
use crate::say::visible;

const GREEN: Style = AnsiColor::Green.on_default();
const RED: Style = AnsiColor::Red.on_default().bold();
const YELLOW: Style = AnsiColor::Yellow.on_default();
const DIM: Style = Style::new().dimmed();
const BOLD: Style = Style::new().bold();

/// In a pipe, progress of a step is told at most this often.
const PROGRESS_EVERY_MS: i64 = 10_000;

/// How many of the last lines of output are shown when an attempt fails.
const TAIL: usize = 8;

/// A step with more elements than this is told in counts; of its elements only what goes wrong.
const FEW_ELEMENTS: usize = 20;

/// A step that is repeated for each element of a list.
#[derive(Debug, Default)]
struct Loop {
    elements: Vec<Value>,
    ended: usize,
    failed: usize,
}

/// Turns events into lines and remembers what it needs for the next ones.
pub(super) struct Story {
    run: RunId,
    plan: Arc<Plan>,
    /// The position of each step in the plan.
    index: HashMap<StepId, usize>,
    /// The position of each undo.
    undos: HashMap<StepId, usize>,
    incident_ms: i64,
    width: usize,
    started: HashMap<StepId, i64>,
    told: HashMap<StepId, i64>,
    output: HashMap<StepId, Vec<String>>,
    loops: HashMap<StepId, Loop>,
    /// What was made, by its id.
    made: HashMap<String, String>,
    engines: usize,
    /// How far the machine's clock was ahead of the run's time.
    clock_ahead: i64,
    starter: Option<String>,
    votes: HashMap<StepId, Votes>,
}

/// How many answers a question needs and has.
#[derive(Debug, Default)]
struct Votes {
    needed: u32,
    given: u32,
}

impl Story {
    pub(super) fn new(run: RunId, plan: Arc<Plan>) -> Self {
        let width = plan.steps.iter().map(|step| step.id.as_str().len()).max().unwrap_or(0).clamp(8, 28);
        let index = plan.steps.iter().enumerate().map(|(at, step)| (step.id.clone(), at)).collect();
        let undos = plan.undos.iter().enumerate().map(|(at, undo)| (undo.step.id.clone(), at)).collect();
        Self {
            run,
            plan,
            index,
            undos,
            incident_ms: 0,
            width,
            started: HashMap::new(),
            told: HashMap::new(),
            output: HashMap::new(),
            loops: HashMap::new(),
            made: HashMap::new(),
            engines: 0,
            clock_ahead: 0,
            starter: None,
            votes: HashMap::new(),
        }
    }

    /// Returns the lines that an event is worth. In a terminal, bars show progress instead.
    pub(super) fn tell(&mut self, at_ms: i64, event: &EventKind, place: Place) -> Vec<String> {
        match event {
            EventKind::RunDeclared { incident_at_ms, by, .. } => {
                self.incident_ms = *incident_at_ms;
                self.starter = Some(by.name.clone());
                self.headline()
            }
            EventKind::EngineStarted { .. } => self.engine_started(at_ms),
            EventKind::ElementsChosen { step, elements } => self.elements_chosen(at_ms, step, elements),
            EventKind::AttemptStarted { step, attempt, .. } => self.attempt_started(at_ms, step, *attempt),
            EventKind::AttemptFinished { step, attempt, result } => {
                self.attempt_finished(at_ms, step, *attempt, result)
            }
            EventKind::RetryScheduled { step, at_ms: due, .. } => {
                let wait = human::duration(due - at_ms);
                self.line(at_ms, (YELLOW, "↻"), step.as_str(), &format!("next attempt in {wait}"))
            }
            EventKind::StepFinished { step, outcome } => self.step_finished(at_ms, step, outcome),
            EventKind::StepHeld { step, failure } => self.held(at_ms, step, failure, place),
            EventKind::QuestionAsked { step, question } => self.asked(at_ms, step, question, place),
            EventKind::QuestionAnswered { step, answer, .. } => self.answered(at_ms, step, answer),
            EventKind::Decided { by, decision } => {
                if let Decision::RetryStep { step } = decision {
                    self.votes.remove(step);
                }
                self.line(at_ms, (BOLD, "●"), &by.name, &describe(decision))
            }
            EventKind::Refused { by, reason, .. } => {
                self.line(at_ms, (YELLOW, "!"), &by.name, &format!("not granted: {reason}"))
            }
            EventKind::EndingBegan { outcome, reason, undo } if *outcome != RunOutcome::Succeeded => {
                let mut lines = self.line(at_ms, (RED, "■"), "run", &format!("ends: {reason}"));
                if *undo {
                    let text = "what has begun is undone, newest first";
                    lines.extend(self.line(at_ms, (BOLD, "↶"), "undo", text));
                }
                lines
            }
            EventKind::ThingCreated { thing, .. } => {
                self.made.insert(thing.id.clone(), thing.what.clone());
                Vec::new()
            }
            EventKind::ThingRemoved { id, proof, removed } => self.removed(at_ms, id, proof, *removed),
            EventKind::Notified { occasion, channel, problem: Some(problem) } => {
                let text = format!("{occasion} did not reach `{channel}`: {problem}");
                self.line(at_ms, (YELLOW, "!"), "notice", &text)
            }
            EventKind::Recorded { step, key, value } if key == NOTE => {
                let text = value.as_str().unwrap_or_default();
                self.line(at_ms, (BOLD, "●"), step.as_str(), &format!("note: {text}"))
            }
            EventKind::ClockRead { run_ms, wall_ms, .. } => self.clock_read(at_ms, wall_ms - run_ms),
            EventKind::Noted { text, .. } => self.line(at_ms, (BOLD, "●"), "note", text),
            EventKind::Progressed { step, progress, .. } if place == Place::Pipe => {
                self.progressed(at_ms, step, progress)
            }
            EventKind::OutputLine { step, line, .. } => {
                self.keep_output(step, line);
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    fn headline(&self) -> Vec<String> {
        let plan = &self.plan;
        let mode = if plan.mode == Mode::Drill { "drill" } else { "recovery" };
        let mut lines = vec![format!(
            "{BOLD}{}{BOLD:#} ({}) in {BOLD}{}{BOLD:#}, {mode}, run {BOLD}{}{BOLD:#}",
            plan.title,
            plan.runbook,
            plan.environment,
            self.run.short()
        )];
        let incident = Timestamp::from_millisecond(self.incident_ms).unwrap_or_default();
        let rto = plan.objective.rto.map_or_else(|| "no RTO".to_owned(), |rto| format!("RTO {rto}"));
        let rpo = plan.objective.rpo.map_or_else(|| "no RPO".to_owned(), |rpo| format!("RPO {rpo}"));
        lines.push(format!("incident {incident:.0}; {rto}, {rpo}; {} steps", plan.steps.len()));
        lines
    }

    fn clock_read(&mut self, at_ms: i64, ahead: i64) -> Vec<String> {
        let known = std::mem::replace(&mut self.clock_ahead, ahead);
        if ahead.abs_diff(known) < NOTABLE_MS.unsigned_abs() {
            return Vec::new();
        }
        let by = human::duration((ahead - known).abs());
        let way = if ahead > known { "forward" } else { "back" };
        let text =
            format!("the clock of the machine was set {way} by {by}; the time of the run does not follow it");
        self.line(at_ms, (YELLOW, "!"), "clock", &text)
    }

    fn engine_started(&mut self, at_ms: i64) -> Vec<String> {
        self.engines += 1;
        if self.engines == 1 {
            return Vec::new();
        }
        self.line(at_ms, (BOLD, "●"), "run", &format!("{} goes on", self.run.short()))
    }

    fn attempt_started(&mut self, at_ms: i64, step: &StepId, attempt: u32) -> Vec<String> {
        self.started.entry(step.clone()).or_insert(at_ms);
        self.output.remove(step);
        if let Some(undo) = self.undos.get(&step.whole()).map(|at| &self.plan.undos[*at]) {
            let what = undo.built_in.as_ref().unwrap_or(&undo.step.title);
            let again = if attempt > 1 { format!(" (attempt {attempt})") } else { String::new() };
            return self.line(at_ms, (BOLD, "↶"), step.as_str(), &format!("{what}{again}"));
        }
        if attempt == 1 && self.is_folded(step) {
            return Vec::new();
        }
        let title = self.title(step);
        let again = if attempt > 1 { format!(" (attempt {attempt})") } else { String::new() };
        self.line(at_ms, (DIM, "▸"), step.as_str(), &format!("{title}{again}"))
    }

    fn attempt_finished(
        &mut self,
        at_ms: i64,
        step: &StepId,
        attempt: u32,
        result: &AttemptResult,
    ) -> Vec<String> {
        match result {
            AttemptResult::Failed { failure, checks } => {
                let text = format!("attempt {attempt} failed: [{}] {}", failure.code, failure.message);
                let mut lines = self.line(at_ms, (RED, "✗"), step.as_str(), &text);
                lines.extend(self.details(failure));
                for check in checks.iter().filter(|check| !check.passed) {
                    let text = format!(
                        "check `{}`: expected {}, found {}",
                        check.name, check.expected, check.actual
                    );
                    lines.push(self.indent(&visible(&text)));
                }
                lines.extend(self.output_tail(step));
                lines
            }
            AttemptResult::Lost => {
                let text = "was under way when Lifeboat stopped";
                self.line(at_ms, (YELLOW, "!"), step.as_str(), text)
            }
            AttemptResult::Interrupted => self.line(at_ms, (YELLOW, "!"), step.as_str(), "interrupted"),
            AttemptResult::Succeeded { done } => done
                .warnings
                .iter()
                .flat_map(|text| self.line(at_ms, (YELLOW, "!"), step.as_str(), text))
                .collect(),
        }
    }

    /// A title that only repeats the id says less than the kind, and of an element less than what it is.
    fn title(&self, step: &StepId) -> String {
        let whole = step.whole();
        let Some(planned) = self.index.get(&whole).map(|at| &self.plan.steps[*at]) else {
            return String::new();
        };
        let untitled = planned.title.replace(' ', "_") == planned.id.as_str();
        let element = step.element().and_then(|at| Some((at, self.loops.get(&whole)?.elements.get(at)?)));
        match element {
            Some((_, Value::String(item))) if untitled => item.clone(),
            Some((_, item)) if untitled => item.to_string(),
            Some((at, item)) => planned.element_title(at, item),
            None if untitled => planned.uses.clone(),
            None => planned.whole_title(),
        }
    }

    fn elements_chosen(&mut self, at_ms: i64, step: &StepId, elements: &[Value]) -> Vec<String> {
        self.started.insert(step.clone(), at_ms);
        self.loops.insert(step.clone(), Loop { elements: elements.to_vec(), ..Loop::default() });
        let planned = self.index.get(step).map(|at| &self.plan.steps[*at]);
        let parallel = planned.and_then(|planned| planned.for_each.as_ref());
        let how = match parallel.map_or(1, |each| each.max_parallel) {
            1 => "one after the other".to_owned(),
            many => format!("{many} at a time"),
        };
        let count = human::count(elements.len(), "element");
        self.line(at_ms, (DIM, "▸"), step.as_str(), &format!("{}: {count}, {how}", self.title(step)))
    }

    /// Says whether this is one of so many elements that only what goes wrong is told of it.
    fn is_folded(&self, step: &StepId) -> bool {
        step.element().is_some()
            && self.loops.get(&step.whole()).is_some_and(|each| each.elements.len() > FEW_ELEMENTS)
    }

    /// Counts an element that has ended, and tells of all of them from time to time.
    fn element_ended(&mut self, at_ms: i64, step: &StepId, failed: bool) -> Vec<String> {
        let whole = step.whole();
        let Some(each) = self.loops.get_mut(&whole) else { return Vec::new() };
        each.ended += 1;
        each.failed += usize::from(failed);
        let (ended, failed, total) = (each.ended, each.failed, each.elements.len());
        let last = self.told.get(&whole).or(self.started.get(&whole)).copied().unwrap_or(0);
        if total <= FEW_ELEMENTS || ended == total || at_ms - last < PROGRESS_EVERY_MS {
            return Vec::new();
        }
        self.told.insert(whole.clone(), at_ms);
        let failed = if failed > 0 { format!(", {failed} failed") } else { String::new() };
        self.line(at_ms, (DIM, "…"), whole.as_str(), &format!("{ended} of {total} elements{failed}"))
    }

    fn details(&self, failure: &Failure) -> Vec<String> {
        let mut lines: Vec<_> =
            failure.causes.iter().map(|cause| self.indent(&format!("because: {}", visible(cause)))).collect();
        if let Some(help) = &failure.help {
            lines.push(self.indent(&format!("help: {}", visible(help))));
        }
        lines
    }

    fn output_tail(&self, step: &StepId) -> Vec<String> {
        let Some(lines) = self.output.get(step) else { return Vec::new() };
        lines.iter().map(|line| self.indent(&format!("{DIM}| {}{DIM:#}", visible(line)))).collect()
    }

    fn keep_output(&mut self, step: &StepId, line: &str) {
        let lines = self.output.entry(step.clone()).or_default();
        if lines.len() == TAIL {
            lines.remove(0);
        }
        lines.push(line.to_owned());
    }

    fn step_finished(&mut self, at_ms: i64, step: &StepId, outcome: &Outcome) -> Vec<String> {
        let took = self.started.remove(step).map_or(0, |from| at_ms - from);
        self.output.remove(step);
        let name = step.as_str();
        let counted = self.element_ended(at_ms, step, matches!(outcome, Outcome::Failed { .. }));
        if *outcome == Outcome::Succeeded && self.is_folded(step) {
            return counted;
        }
        match outcome {
            Outcome::Succeeded => {
                let elements =
                    self.loops.remove(step).map(|each| human::count(each.elements.len(), "element"));
                let elements = elements.map(|count| format!(", {count}")).unwrap_or_default();
                let text = format!("done in {}{elements}", human::duration(took));
                self.line(at_ms, (GREEN, "✓"), name, &text)
            }
            Outcome::Skipped { reason } => self.line(at_ms, (DIM, "–"), name, &format!("skipped: {reason}")),
            Outcome::Failed { .. } => {
                self.line(at_ms, (RED, "✗"), name, &format!("failed after {}", human::duration(took)))
            }
            Outcome::MarkedDone { by, reason } => {
                self.line(at_ms, (GREEN, "✓"), name, &format!("marked done by {by}: {reason}"))
            }
            Outcome::NotRun { .. } => Vec::new(),
        }
    }

    fn held(&self, at_ms: i64, id: &StepId, failure: &Failure, place: Place) -> Vec<String> {
        let (run, step) = (self.run.short(), typed(id));
        let text = format!("held: [{}] {}", failure.code, failure.message);
        let mut lines = self.line(at_ms, (YELLOW, "‖"), id.as_str(), &text);
        lines.push(self.indent(&format!("try again:   {BOLD}lifeboat retry {run} {step}{BOLD:#}")));
        lines.push(self.indent(&format!("leave out:   lifeboat skip {run} {step} --reason …")));
        lines.push(self.indent(&format!("done by hand: lifeboat skip {run} {step} --done --reason …")));
        lines.push(self.indent(&format!("give up:     lifeboat abort {run}")));
        if place == Place::Terminal {
            lines.push(self.indent("or type here: retry, skip REASON, done REASON, abort REASON"));
        }
        lines
    }

    fn asked(&mut self, at_ms: i64, step: &StepId, question: &Question, place: Place) -> Vec<String> {
        let run = self.run.short();
        let role = question.role.as_deref().map_or(String::new(), |role| format!(" ({role})"));
        let mut lines =
            self.line(at_ms, (YELLOW, "?"), step.as_str(), &format!("{}{role}", question.message));
        let contacts = question.role.as_ref().and_then(|role| self.plan.contacts.get(role));
        lines.extend(contacts.map(|people| self.indent(&format!("ask: {}", people.join(", ")))));
        lines.extend(self.rule(question).map(|rule| self.indent(&rule)));
        self.votes.entry(step.clone()).or_default().needed = question.rule.map_or(1, |rule| rule.minimum);
        let step = typed(step);
        let (command, here) = match wanted(question) {
            Some(wanted) => (
                format!("{BOLD}lifeboat answer {run} {step} VALUE{BOLD:#}   ({})", wanted.ty.in_words()),
                "answer VALUE".to_owned(),
            ),
            None if !question.points.is_empty() => (
                choices(&run, &step, &question.choices, " --point NUMBER"),
                format!("{} NUMBER (and a comment, if you like)", question.choices.join(" or ")),
            ),
            None => (
                choices(&run, &step, &question.choices, ""),
                format!("{} (and a comment, if you like)", question.choices.join(" or ")),
            ),
        };
        lines.push(self.indent(&format!("to go on: {command}")));
        if place == Place::Terminal {
            lines.push(self.indent(&format!("or type here: {here}")));
        }
        lines
    }

    /// Says who must answer, where not everybody may.
    fn rule(&self, question: &Question) -> Option<String> {
        let rule = question.rule?;
        let many = (rule.minimum > 1).then(|| format!("{} people must approve", rule.minimum));
        let starter = self.starter.as_ref().filter(|_| !rule.allow_starter && self.plan.approvers.is_some());
        let starter = starter.map(|name| format!("not {name}, who started the run"));
        let words: Vec<_> = many.into_iter().chain(starter).collect();
        (!words.is_empty()).then(|| words.join(", "))
    }

    fn answered(&mut self, at_ms: i64, step: &StepId, answer: &Answer) -> Vec<String> {
        let votes = self.votes.entry(step.clone()).or_default();
        votes.given += 1;
        let points: Vec<_> = answer.points.iter().map(ToString::to_string).collect();
        let of = match &points[..] {
            [] if votes.needed > 1 => format!(" ({} of {})", votes.given, votes.needed),
            [] => String::new(),
            points => format!(" (point {})", points.join(", ")),
        };
        let mut comment = answer.comment.as_deref().map_or(String::new(), |text| format!(": {text}"));
        if let Some(file) = &answer.file {
            comment.push_str(&format!(" [file {}]", file.name));
        }
        let text = if answer.automatic {
            format!("{} (automatic, by the settings of drills; no evidence)", answer.choice)
        } else {
            format!("{}{of} by {}{comment}", answer.choice, answer.by.name)
        };
        self.line(at_ms, (BOLD, "●"), step.as_str(), &text)
    }

    /// The proof of a removal stands in the report; here it matters whether anything is left.
    fn removed(&self, at_ms: i64, id: &str, proof: &str, removed: bool) -> Vec<String> {
        let what = self.made.get(id).map_or(id, String::as_str);
        if removed {
            self.line(at_ms, (DIM, "⌫"), "clean-up", &format!("removed: {what}"))
        } else {
            self.line(at_ms, (YELLOW, "!"), "clean-up", &format!("NOT removed: {what}: {proof}"))
        }
    }

    fn progressed(&mut self, at_ms: i64, step: &StepId, progress: &Progress) -> Vec<String> {
        let last = self.told.get(step).or(self.started.get(step)).copied().unwrap_or(0);
        if at_ms - last < PROGRESS_EVERY_MS {
            return Vec::new();
        }
        self.told.insert(step.clone(), at_ms);
        self.line(at_ms, (DIM, "…"), step.as_str(), &measure(progress))
    }

    /// One line: the RTO clock, a mark, whom it is about, what happened.
    fn line(&self, at_ms: i64, (style, mark): (Style, &str), about: &str, text: &str) -> Vec<String> {
        let clock = clock(at_ms - self.incident_ms);
        let width = self.width;
        // Of what people and programs wrote, nothing acts on this terminal.
        let (about, text) = (visible(about), visible(text));
        vec![format!("{DIM}{clock}{DIM:#} {style}{mark}{style:#} {about:<width$}  {text}")]
    }

    fn indent(&self, text: &str) -> String {
        format!("{:1$}{text}", "", self.width + 14)
    }
}

/// Shows how far the RTO clock has come: hours, minutes and seconds since the incident.
pub(super) fn clock(ms: i64) -> String {
    let sign = if ms < 0 { '-' } else { '+' };
    let seconds = ms.unsigned_abs() / 1000;
    format!("{sign}{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

/// Says how far a step is.
pub(super) fn measure(progress: &Progress) -> String {
    let show = |count: u64| match progress.unit {
        Unit::Bytes => human::bytes(count),
        Unit::Items => count.to_string(),
        Unit::Seconds => human::duration(i64::try_from(count).unwrap_or(0).saturating_mul(1000)),
    };
    let mut text = show(progress.done);
    if let Some(total) = progress.total {
        text.push_str(&format!(" of {}", show(total)));
    }
    if !progress.note.is_empty() {
        text.push_str(&format!(", {}", progress.note));
    }
    text
}

/// Writes the commands that give each of the choices, the one that lets the step go on first.
fn choices(run: &str, step: &str, choices: &[String], point: &str) -> String {
    let command = |choice: &String| match choice.as_str() {
        "approve" | "reject" => format!("lifeboat {choice} {run} {step}"),
        other => format!("lifeboat answer {run} {step} {other}{point}"),
    };
    let mut commands = choices.iter().map(command);
    let first = commands.next().unwrap_or_default();
    let others: String = commands.map(|command| format!("   or: {command}")).collect();
    format!("{BOLD}{first}{BOLD:#}{others}")
}

fn describe(decision: &Decision) -> String {
    match decision {
        Decision::RetryStep { step } => format!("retries {step}"),
        Decision::SkipStep { step, reason } => format!("skips {step}: {reason}"),
        Decision::MarkDone { step, reason } => format!("marks {step} done: {reason}"),
        Decision::Abort { reason } => format!("aborts the run: {reason}"),
        Decision::Cancel { reason } => format!("cancels the run: {reason}"),
        Decision::Pause => "pauses the run".to_owned(),
        Decision::Unpause => "lets the run go on".to_owned(),
        Decision::Note { text } => text.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::clock;

    #[test]
    fn the_clock_counts_from_the_incident_in_both_directions() {
        assert_eq!(clock(3_723_000), "+01:02:03");
        assert_eq!(clock(-5_000), "-00:00:05");
        assert_eq!(clock(100 * 3_600_000), "+100:00:00");
    }
}
