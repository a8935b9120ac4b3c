//! An outlook for people who are tired: the answer first, then what is destroyed, then the details.

use super::forecast::{CanMeet, Expected, Source, words};
use super::model::{Outlook, StepOutlook};
use crate::drawing::{self, Line, Mark, Paper, Shape};
use crate::model::Mode;
use crate::plan::{NeedOn, Plan};
use crate::report::human::{count, duration};
use crate::report::page::{Piece, Tone, wrap};
use crate::run::Fate;
use crate::step::{Finding, FindingState};

/// What the reader sees, and how wide.
#[derive(Clone, Copy, Debug)]
pub struct Manner<'a> {
    pub paper: Paper,
    /// The plan that the outlook is of.
    pub plan: &'a Plan,
}

/// More inputs, findings or destroyed things than this are still shown: nobody may overlook one. Needs are cut.
const MOST_NEEDS: usize = 5;

/// Writes an outlook in lines.
pub fn lines(outlook: &Outlook, manner: Manner<'_>) -> Vec<Line> {
    let mut page = Writer { lines: Vec::new(), width: manner.paper.width.max(40), outlook };
    page.head();
    page.forecast();
    page.findings();
    page.destroys();
    page.drawing(manner);
    page.steps();
    page.end();
    page.lines
}

struct Writer<'a> {
    lines: Vec<Line>,
    width: usize,
    outlook: &'a Outlook,
}

impl Writer<'_> {
    fn put(&mut self, indent: usize, line: Line) {
        let room = self.width.saturating_sub(indent).max(20);
        for (number, row) in wrap(&line, room, 2).into_iter().enumerate() {
            let hang = if number == 0 { indent } else { indent + 2 };
            let mut full = vec![Piece { text: " ".repeat(hang), tone: Tone::Plain }];
            full.extend(row);
            end(&mut full);
            self.lines.push(full);
        }
    }

    fn section(&mut self, title: &str) {
        self.lines.push(Line::new());
        self.put(0, vec![Piece::new(title, Tone::Strong)]);
    }

    /// A line with its name at the left.
    fn fact(&mut self, name: &str, mut value: Line) {
        value.insert(0, Piece::dim(format!("{name:<15}")));
        let (indent, hang) = (2, 17);
        let first = wrap(&value, self.width.saturating_sub(indent), hang - indent);
        for (number, row) in first.into_iter().enumerate() {
            let indent = if number == 0 { indent } else { hang };
            let mut full = vec![Piece { text: " ".repeat(indent), tone: Tone::Plain }];
            full.extend(row);
            end(&mut full);
            self.lines.push(full);
        }
    }

    fn head(&mut self) {
        let outlook = self.outlook;
        let mode = mode(outlook.mode);
        let mut head = vec![Piece::new(format!("{mode} of {}", outlook.runbook), Tone::Strong)];
        if outlook.title != outlook.runbook {
            head.push(Piece::plain(format!(": {}", outlook.title)));
        }
        self.put(0, head);
        let protected = if outlook.protected { " (protected)" } else { "" };
        let mut facts = vec![format!("in {}{protected}", outlook.environment)];
        facts.push(count(outlook.steps.len(), "step"));
        if let Some(commit) = &outlook.commit {
            let dirty = if commit.dirty { " with changed files" } else { "" };
            let hash = commit.hash.get(..10).unwrap_or(&commit.hash);
            facts.push(format!("commit {hash}{dirty}"));
        }
        facts.push(format!("plan {}", &outlook.digest[..12]));
        self.put(0, vec![Piece::dim(facts.join(", "))]);
        for (name, value) in &outlook.inputs {
            self.put(2, vec![Piece::dim(format!("input {name} = ")), Piece::plain(value.to_string())]);
        }
    }

    fn forecast(&mut self) {
        let forecast = &self.outlook.forecast;
        self.section("Can the objective be met?");
        let (word, tone) = match forecast.can_meet {
            CanMeet::Yes => ("YES", Tone::Good),
            CanMeet::No => ("NO", Tone::Bad),
            CanMeet::Unknown => ("UNKNOWN", Tone::Caution),
            CanMeet::NoObjective => ("NO OBJECTIVE", Tone::Plain),
        };
        self.fact("RTO", vec![Piece::new(format!("{word}  "), tone), Piece::plain(&forecast.why)]);
        let rpo = match (self.outlook.objective.rpo, &self.outlook.findings) {
            (Some(rpo), None) => Some(format!("{rpo}; `--probe` compares it with the newest backups")),
            (Some(rpo), Some(_)) => Some(format!("{rpo}; see below what was found")),
            (None, _) => None,
        };
        if let Some(rpo) = rpo {
            self.fact("RPO", vec![Piece::plain(rpo)]);
        }
        let mut path = Line::new();
        for part in forecast.critical_path.iter().filter(|part| part.expected.source != Source::Skipped) {
            if !path.is_empty() {
                path.push(Piece::dim(", then "));
            }
            path.push(Piece::code(part.step.as_str()));
            path.push(Piece::dim(format!(" {}", brief(&part.expected))));
        }
        if !path.is_empty() {
            self.fact("critical path", path);
        }
        for milestone in &forecast.milestones {
            let deadline = duration(milestone.deadline_ms);
            let (text, tone) = match (milestone.can_meet, milestone.at_ms) {
                (CanMeet::Yes, Some(at)) => (format!("at {} of {deadline}", duration(at)), Tone::Good),
                (CanMeet::No, Some(at)) => (format!("at {}, LATE: {deadline}", duration(at)), Tone::Bad),
                (CanMeet::No, None) => (format!("never: skipped here; meant at {deadline}"), Tone::Bad),
                _ => (format!("not known; meant at {deadline}"), Tone::Caution),
            };
            let name = Piece::code(format!("{} ", milestone.name));
            self.fact("milestone", vec![name, Piece::new(text, tone)]);
        }
        for wait in &forecast.waits {
            let whom = wait.role.as_deref().unwrap_or("anybody");
            let how = match (wait.automatic, wait.expected.ms) {
                (true, _) => "is answered automatically in this drill".to_owned(),
                (false, Some(_)) => format!("waits for {whom}: {}", words(&wait.expected, self.outlook.mode)),
                (false, None) => format!("waits for {whom}, as long as it takes"),
            };
            self.fact("people", vec![Piece::code(wait.step.as_str()), Piece::plain(format!(" {how}"))]);
        }
        let worst = &forecast.worst;
        let least = if worst.without_limit.is_empty() { "" } else { "at least " };
        let mut text =
            format!("{least}{} if every attempt is used up and takes all its time", duration(worst.ms));
        if !worst.without_limit.is_empty() {
            let shown: Vec<_> = worst.without_limit.iter().take(6).map(|id| id.as_str()).collect();
            let more = worst.without_limit.len().saturating_sub(shown.len());
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            text.push_str(&format!("; no `timeout` limits {}{more}", shown.join(", ")));
        }
        self.fact("worst case", vec![Piece::dim(text)]);
    }

    fn findings(&mut self) {
        let Some(findings) = &self.outlook.findings else { return };
        if findings.is_empty() {
            self.section("What was found: the plan uses nothing that can be looked at");
            return;
        }
        let of = |state: FindingState| findings.iter().filter(|it| it.state == state).count();
        let title = format!(
            "What was found: {} failed, {}, {} unknown, {} fine",
            of(FindingState::Failed),
            count(of(FindingState::Warning), "warning"),
            of(FindingState::Unknown),
            of(FindingState::Ok)
        );
        self.section(&title);
        let width = findings.iter().map(|it| it.subject.chars().count()).max().unwrap_or(0).min(24);
        let mut worst_first: Vec<&Finding> = findings.iter().collect();
        worst_first.sort_by_key(|finding| finding.state);
        for finding in worst_first {
            let (word, tone) = match finding.state {
                FindingState::Failed => ("FAILED ", Tone::Bad),
                FindingState::Warning => ("WARNING", Tone::Caution),
                FindingState::Unknown => ("UNKNOWN", Tone::Caution),
                FindingState::Ok => ("ok     ", Tone::Good),
            };
            let subject = format!("  {:<width$}  ", finding.subject);
            let detail = format!("{}: {}", finding.what, finding.detail);
            self.put(
                2,
                vec![Piece::new(word, tone), Piece { text: subject, tone: Tone::Code }, Piece::plain(detail)],
            );
            if let Some(help) = &finding.help {
                self.put(11, vec![Piece::dim(format!("help: {help}"))]);
            }
        }
    }

    fn destroys(&mut self) {
        let outlook = self.outlook;
        if outlook.destroys.is_empty() {
            return;
        }
        self.section("What is destroyed or moved aside");
        for destruction in &outlook.destroys {
            let step = Piece::code(format!("{}  ", destruction.step));
            self.put(2, vec![step, Piece::new(&destruction.what, Tone::Bad)]);
        }
    }

    fn drawing(&mut self, manner: Manner<'_>) {
        self.section("Order");
        let mut shape = Shape::of(manner.plan);
        for (step, shown) in self.outlook.steps.iter().zip(&mut shape.steps) {
            let destroyed = !step.destroys.is_empty();
            shown.marks.retain(|mark| *mark != Mark::Destroys || destroyed);
            if let Some(wait) = self.outlook.forecast.waits.iter().find(|wait| wait.step == step.id) {
                shown.marks.insert(0, Mark::Asks(wait.role.clone()));
            }
            if let Fate::Skipped { .. } = step.fate {
                shown.marks = vec![Mark::Skipped("see below".to_owned())];
                shown.conditions.clear();
            }
        }
        let paper = Paper { width: self.width.saturating_sub(2), ..manner.paper };
        for mut line in drawing::terminal(&shape, paper) {
            if !line.is_empty() {
                line.insert(0, Piece::plain("  "));
            }
            self.lines.push(line);
        }
    }

    fn steps(&mut self) {
        self.section("Steps");
        let outlook = self.outlook;
        for (number, step) in outlook.steps.iter().enumerate() {
            self.step(number + 1, step);
        }
    }

    fn step(&mut self, number: usize, step: &StepOutlook) {
        let mut head = vec![Piece::dim(format!("{number:>3}  ")), Piece::code(step.id.as_str())];
        if step.title.replace(' ', "_") != step.id.as_str() {
            head.push(Piece::plain(format!("  {}", step.title)));
        }
        if let Fate::Skipped { .. } = step.fate {
            head.push(Piece::new("  SKIPPED", Tone::Caution));
        }
        self.put(0, head);
        if let Fate::Skipped { why } = &step.fate {
            self.put(5, vec![Piece::new(format!("will be skipped: {why}"), Tone::Caution)]);
            return;
        }
        let begins = format!("{} ({}), {}, {}", step.uses, step.effect, after(step), step.place);
        self.put(5, vec![Piece::dim(begins)]);
        match &step.fate {
            Fate::Depends { conditions } => {
                for condition in conditions {
                    let text = format!("only if {condition}: decided during the run");
                    self.put(5, vec![Piece::new(text, Tone::Caution)]);
                }
            }
            Fate::AfterFailure { step } => {
                self.put(5, vec![Piece::new(format!("only if {step} fails"), Tone::Caution)]);
            }
            Fate::Runs | Fate::Skipped { .. } => {}
        }
        for note in &step.notes {
            self.put(5, vec![Piece::plain(note)]);
        }
        if let Some(problem) = &step.problem {
            self.put(5, vec![Piece::new(format!("cannot be foreseen: {problem}"), Tone::Bad)]);
        }
        for action in &step.actions {
            self.put(5, vec![Piece::plain("> "), Piece::plain(action)]);
        }
        if step.actions.is_empty() {
            for (name, value) in step.with.as_object().into_iter().flatten() {
                self.put(5, vec![Piece::dim(format!("{name}: ")), Piece::plain(value.to_string())]);
            }
        }
        for what in &step.destroys {
            self.put(5, vec![Piece::new("destroys: ", Tone::Bad), Piece::plain(what)]);
        }
        for undo in &step.undo {
            self.put(5, vec![Piece::dim("undo: "), Piece::plain(undo)]);
        }
        let mut time = vec![Piece::dim("takes "), Piece::plain(words(&step.expected, self.outlook.mode))];
        if step.critical {
            time.push(Piece::new(", on the critical path", Tone::Caution));
        }
        self.put(5, time);
    }

    fn end(&mut self) {
        let outlook = self.outlook;
        if outlook.mode == Mode::Drill {
            self.section("In a drill");
            self.put(
                2,
                vec![Piece::plain(
                    "restored servers stay isolated; what the drill creates is removed at its end",
                )],
            );
        }
        if let Some(token) = &outlook.confirm {
            self.section("To confirm this plan, within an hour");
            self.lines.push(vec![Piece::plain("  "), Piece::code(format!("--confirm {token}"))]);
        }
    }
}

/// Takes blanks off the end of a line.
fn end(line: &mut Line) {
    if let Some(last) = line.last_mut() {
        let end = last.text.trim_end().len();
        last.text.truncate(end);
    }
}

fn mode(mode: Mode) -> &'static str {
    if mode == Mode::Drill { "drill" } else { "recovery" }
}

fn brief(expected: &Expected) -> String {
    match (&expected.source, expected.ms) {
        (Source::Person, None) => "(a person)".to_owned(),
        (_, Some(ms)) => duration(ms),
        (Source::GroupBudget { group }, None) => format!("(in {group})"),
        (_, None) => "(not known)".to_owned(),
    }
}

/// Says what a step waits for.
fn after(step: &StepOutlook) -> String {
    if step.needs.is_empty() {
        return if step.always { "whatever happens, at the end".to_owned() } else { "at once".to_owned() };
    }
    let mut words: Vec<_> = step
        .needs
        .iter()
        .take(MOST_NEEDS)
        .map(|need| match need.on {
            NeedOn::Success => need.step.to_string(),
            NeedOn::Failure | NeedOn::FailureWithin => format!("the failure of {}", need.step),
            NeedOn::Any => format!("{} whatever becomes of it", need.step),
        })
        .collect();
    if step.needs.len() > MOST_NEEDS {
        words.push(format!("{} more", step.needs.len() - MOST_NEEDS));
    }
    format!("after {}", words.join(", "))
}
