//! The live view of a run: what runs, what is next, what needs a person, how much of the RTO is left.

use serde::{Deserialize, Serialize};

use super::elements::{self, typed};
use super::fold::{QuestionFold, StepFold};
use super::human::{self, DayClock, Moment, duration};
use super::model::{
    BudgetReport, Doing, ElementsReport, Forecast, Owner, Rpo, Rto, RunStanding, State, UndoReport, Verdict,
};
use super::page::{Block, Page, Piece, Section, Table, Tone, clean};
use super::source::{Source, View};
use super::{loss, objectives, sections, standing, timeline, undo};
use crate::model::evidence::{Progress, Unit};
use crate::model::ids::{Attempt, StepId};
use crate::model::outcome::{Failure, Mode};
use crate::plan::{Needed, PlannedStep};

/// How many of the running elements of a step are named.
const MAX_ELEMENTS: usize = 16;

/// How many of those that wait for a person are shown; the others need the same thing first.
const MAX_NEEDS: usize = 20;

/// How many of the steps that come next are named.
const NEXT_STEPS: usize = 3;

/// Where a run stands now, for `status`, `watch` and the live view.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LiveStatus {
    pub run: String,
    pub runbook: String,
    pub title: String,
    pub environment: String,
    pub mode: Mode,
    pub incident_at: Moment,
    pub as_of: Moment,
    pub standing: RunStanding,
    /// Begun and not ended, in the order of the plan.
    pub current: Vec<Current>,
    /// The next steps in the order of the plan that have not begun.
    pub next: Vec<Next>,
    pub needs_person: Vec<NeedsPerson>,
    /// What is taken back, newest first, if the run ends with undo.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undo: Option<UndoReport>,
    pub rto: Rto,
    /// Known as far as stores are restored already.
    pub rpo: Rpo,
    /// Steps that have ended, in whatever way.
    pub ended: usize,
    pub total: usize,
}

/// A step that has begun and not ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Current {
    pub step: StepId,
    pub title: String,
    /// Absent between two attempts that follow a person's word.
    pub doing: Option<Doing>,
    pub attempt: Attempt,
    pub attempts_allowed: u32,
    pub since: Moment,
    pub elapsed_ms: i64,
    pub budget: Option<BudgetReport>,
    pub progress: Option<Progress>,
    /// The last line of output.
    pub line: Option<String>,
    /// When it is tried again.
    pub retry_at: Option<Moment>,
}

/// A step that has not begun.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Next {
    pub step: StepId,
    pub title: String,
    /// What it needs and what has not ended yet; nothing if it can start at once.
    pub waits_for: Vec<StepId>,
    pub budget_ms: Option<i64>,
}

/// Something that goes on only when a person says so.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NeedsPerson {
    pub step: StepId,
    pub since: Moment,
    pub waited_ms: i64,
    pub role: Option<String>,
    /// How to reach the people of that role.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub contacts: Vec<String>,
    /// The question, or what is wrong.
    pub message: String,
    pub choices: Vec<String>,
    /// Given for a held step.
    pub failure: Option<Failure>,
    /// The command that lets it go on.
    pub command: String,
}

impl LiveStatus {
    /// Computes where a run stands. Linear in events and steps.
    pub fn of(source: &Source<'_>) -> Self {
        let view = View::new(source);
        let (rto, rpo) = (objectives::rto(&view), loss::rpo(&view));
        let has_ended = |step: &&PlannedStep| view.state(step).is_some_and(|state| state.outcome.is_some());
        Self {
            run: source.run.short(),
            runbook: view.plan.runbook.clone(),
            title: view.plan.title.clone(),
            environment: view.plan.environment.clone(),
            mode: view.plan.mode,
            incident_at: Moment(view.fold.incident),
            as_of: Moment(view.fold.end),
            standing: standing::standing(&view, &rto, &rpo, 0),
            current: current(&view),
            next: next(&view),
            needs_person: needs_person(&view),
            undo: undo::report(&view),
            ended: view.plan.steps.iter().filter(has_ended).count(),
            total: view.plan.steps.len(),
            rto,
            rpo,
        }
    }

    /// Lays the status out for a terminal; it ends with the command to type next.
    pub fn page(&self) -> Page {
        let clock = DayClock::new(self.incident_at);
        let undo = self.undo.as_ref().and_then(|undo| sections::undo_section(undo, &clock));
        let parts = [
            self.objectives(&clock),
            self.people(&clock),
            undo,
            self.now(&clock),
            self.upcoming(),
            self.loss(),
        ];
        Page {
            headline: Piece::new(&self.standing.headline, self.tone()),
            subtitle: clean(&format!(
                "{} · {} in {} · run {} · {}, {} UTC",
                self.title,
                self.runbook,
                self.environment,
                self.run,
                clock.date(),
                clock.time(self.as_of)
            )),
            why: sections::why(&self.standing),
            next: self.standing.next.clone(),
            sections: parts.into_iter().flatten().collect(),
            next_last: true,
        }
    }

    fn tone(&self) -> Tone {
        match self.standing.state {
            State::Succeeded => Tone::Good,
            State::Failed | State::Aborted => Tone::Bad,
            State::Running if self.standing.owner != Owner::Gone => Tone::Strong,
            _ => Tone::Caution,
        }
    }

    fn objectives(&self, clock: &DayClock) -> Option<Section> {
        let rto = &self.rto;
        let mut blocks =
            vec![Block::Line(vec![Piece::plain(format!("{} of {} steps ended", self.ended, self.total))])];
        if let Some(limit) = rto.objective_ms {
            let mut line =
                vec![Piece::plain(format!("RTO {}: {} used", duration(limit), duration(rto.used_ms)))];
            match (rto.margin_ms, rto.left_ms) {
                (Some(margin), _) if margin < 0 => {
                    line.push(Piece::new(format!(", {} over", duration(-margin)), Tone::Bad));
                }
                (_, Some(left)) => line.push(Piece::new(format!(", {} left", duration(left)), Tone::Strong)),
                _ => {}
            }
            blocks.push(Block::Line(line));
        }
        blocks.extend(rto.forecast.as_ref().map(|forecast| Block::Line(forecast_line(forecast, rto, clock))));
        Some(Section { title: "Clock".to_owned(), blocks })
    }

    fn people(&self, clock: &DayClock) -> Option<Section> {
        let mut blocks = Vec::new();
        for need in self.needs_person.iter().take(MAX_NEEDS) {
            let whom = match (&need.failure, &need.role) {
                (Some(_), _) => "is held".to_owned(),
                (None, role) => format!("waits for {}", role.as_deref().unwrap_or("anyone")),
            };
            let waited = format!(" {whom} since {} ({}): ", clock.time(need.since), duration(need.waited_ms));
            blocks.push(Block::Line(vec![
                Piece::code(need.step.as_str()),
                Piece::plain(waited),
                Piece::new(&need.message, Tone::Caution),
            ]));
            let help = need.failure.as_ref().and_then(|failure| failure.help.as_ref());
            blocks.extend(help.map(|help| Block::Line(vec![Piece::plain(format!("help: {help}"))])));
            if !need.contacts.is_empty() {
                blocks.push(Block::Line(vec![Piece::plain(format!("ask: {}", need.contacts.join(", ")))]));
            }
            let mut line = vec![Piece::dim("type "), Piece::code(&need.command)];
            if need.choices.len() > 1 {
                line.push(Piece::dim(format!(" (choices: {})", need.choices.join(", "))));
            }
            blocks.push(Block::Line(line));
        }
        if let Some(more) = self.needs_person.len().checked_sub(MAX_NEEDS).filter(|more| *more > 0) {
            blocks.push(Block::Line(vec![Piece::dim(format!("and {more} more"))]));
        }
        (!blocks.is_empty()).then(|| Section { title: "Needs a person".to_owned(), blocks })
    }

    fn now(&self, clock: &DayClock) -> Option<Section> {
        let mut rows = Table::new(&["", ">", ""]);
        for step in self
            .current
            .iter()
            .filter(|step| !matches!(step.doing, Some(Doing::WaitingForPerson | Doing::Held)))
        {
            rows.row(vec![
                vec![Piece::code(step.step.as_str())],
                vec![Piece::plain(duration(step.elapsed_ms))],
                current_words(step, clock),
            ]);
        }
        let title = "Now".to_owned();
        (!rows.rows.is_empty()).then(|| Section { title, blocks: vec![Block::Table(rows)] })
    }

    fn upcoming(&self) -> Option<Section> {
        let mut rows = Table::new(&["", "", ""]);
        for step in &self.next {
            let waits: Vec<&str> = step.waits_for.iter().map(StepId::as_str).collect();
            let after = if waits.is_empty() { String::new() } else { format!("after {}", waits.join(", ")) };
            rows.row(vec![
                vec![Piece::code(step.step.as_str())],
                vec![Piece::plain(&step.title)],
                vec![Piece::dim(after)],
            ]);
        }
        let title = "Next".to_owned();
        (!rows.rows.is_empty()).then(|| Section { title, blocks: vec![Block::Table(rows)] })
    }

    fn loss(&self) -> Option<Section> {
        let mut blocks = Vec::new();
        for store in &self.rpo.stores {
            let lost = store.loss_ms.map_or_else(|| "not known".to_owned(), duration);
            blocks.push(Block::Line(vec![
                Piece::code(&store.resource),
                Piece::plain(format!(" lost {lost} ({})", store.method)),
            ]));
        }
        if !self.rpo.unmeasured.is_empty() {
            let count = human::count(self.rpo.unmeasured.len(), "restoring step");
            blocks.push(Block::Line(vec![Piece::dim(format!("not known yet from {count}"))]));
        }
        (!blocks.is_empty()).then(|| Section { title: "Data loss".to_owned(), blocks })
    }
}

fn forecast_line(forecast: &Forecast, rto: &Rto, clock: &DayClock) -> Vec<Piece> {
    let earliest = if forecast.without_budget.is_empty() { "" } else { "at the earliest " };
    let mut line = vec![Piece::plain(format!(
        "forecast by budgets: recovered {earliest}at {}, {} used",
        clock.time(forecast.at),
        duration(forecast.used_ms)
    ))];
    if let Some(step) = forecast.breaks_at.as_ref().filter(|_| rto.verdict != Some(Verdict::Met)) {
        line.push(Piece::new(format!("; the RTO passes during `{step}`"), Tone::Bad));
    }
    line
}

/// Writes what a step does and how far it is: `unpacking, 1.2 GiB of 2.0 GiB (60 %)`.
fn current_words(step: &Current, clock: &DayClock) -> Vec<Piece> {
    let mut words = vec![match step.doing {
        Some(Doing::EngineDown) => Piece::new("its process is gone", Tone::Bad),
        Some(Doing::WaitingForRetry) => {
            let at = step.retry_at.map(|at| format!(" at {}", clock.time(at))).unwrap_or_default();
            Piece::new(format!("tries again{at}"), Tone::Caution)
        }
        _ => Piece::plain(&step.title),
    }];
    if step.attempt > 1 {
        words.push(Piece::new(
            format!(", attempt {} of {}", step.attempt, step.attempts_allowed),
            Tone::Caution,
        ));
    }
    if let Some(progress) = &step.progress {
        words.push(Piece::plain(format!(", {}", progress_words(progress))));
    } else if let Some(line) = &step.line {
        words.push(Piece::dim(format!(": {line}")));
    }
    match step.budget {
        Some(budget) if budget.margin_ms < 0 => {
            words.push(Piece::new(format!(", {} over budget", duration(-budget.margin_ms)), Tone::Bad));
        }
        Some(budget) => words.push(Piece::dim(format!(", budget {}", duration(budget.budget_ms)))),
        None => {}
    }
    words
}

/// Writes progress with its unit.
pub fn progress_words(progress: &Progress) -> String {
    let amount = |count: u64| match progress.unit {
        Unit::Bytes => human::bytes(count),
        Unit::Items => count.to_string(),
        Unit::Seconds => duration(i64::try_from(count).unwrap_or(i64::MAX).saturating_mul(1000)),
    };
    let note = if progress.note.is_empty() { String::new() } else { format!("{} ", progress.note) };
    match progress.total {
        Some(total) if total > 0 => {
            let share = progress.done.min(total) as f64 * 100.0 / total as f64;
            format!("{note}{} of {} ({share:.0} %)", amount(progress.done), amount(total))
        }
        _ => format!("{note}{}", amount(progress.done)),
    }
}

fn current(view: &View<'_>) -> Vec<Current> {
    if view.is_ended() {
        return Vec::new();
    }
    let undos = undo::steps(view);
    view.plan.steps.iter().chain(&undos).flat_map(|step| current_units(view, step)).collect()
}

/// Returns a step that is under way, and the elements of it that are.
fn current_units(view: &View<'_>, step: &PlannedStep) -> Vec<Current> {
    let Some(state) = view.state(step).filter(|state| state.outcome.is_none()) else { return Vec::new() };
    let whole = match elements::count(view, step) {
        Some(counts) => current_loop(view, step, state, &counts),
        None => current_step(view, step, (&step.id, state)),
    };
    let active = view.elements(step).filter(|(_, state)| elements::is_active(state)).take(MAX_ELEMENTS);
    whole.into_iter().chain(active.filter_map(|unit| current_step(view, step, unit))).collect()
}

/// Says of a repeated step how many of its elements have ended.
fn current_loop(
    view: &View<'_>,
    step: &PlannedStep,
    state: &StepFold<'_>,
    counts: &ElementsReport,
) -> Option<Current> {
    let started = state.started()?;
    let elapsed_ms = view.fold.end - started;
    let ended = counts.succeeded + counts.failed + counts.decided;
    let failed = if counts.failed > 0 { format!("{} failed, ", counts.failed) } else { String::new() };
    Some(Current {
        step: step.id.clone(),
        title: step.whole_title(),
        doing: state.doing.map(|(_, doing)| doing),
        attempt: 1,
        attempts_allowed: 1,
        since: Moment(started),
        elapsed_ms,
        budget: step.budget.map(|budget| timeline::judge(timeline::millis(budget), Some(elapsed_ms), false)),
        progress: Some(Progress {
            done: ended as u64,
            total: Some(counts.total as u64),
            unit: Unit::Items,
            note: format!("{failed}elements"),
        }),
        line: None,
        retry_at: None,
    })
}

fn current_step(
    view: &View<'_>,
    step: &PlannedStep,
    (id, state): (&StepId, &StepFold<'_>),
) -> Option<Current> {
    let started = state.started().filter(|_| state.outcome.is_none())?;
    let attempt = state.attempts.last()?;
    let running = attempt.end.is_none();
    let elapsed_ms = view.fold.end - started;
    Some(Current {
        step: id.clone(),
        title: view.title_of(step, id),
        doing: state.doing.map(|(_, doing)| doing),
        attempt: state.retry_at.map_or(attempt.number, |(_, next)| next),
        attempts_allowed: step.retry.attempts,
        since: Moment(started),
        elapsed_ms,
        budget: step
            .budget
            .filter(|_| id.element().is_none())
            .map(|budget| timeline::judge(timeline::millis(budget), Some(elapsed_ms), false)),
        progress: attempt.progress.filter(|_| running).cloned(),
        line: attempt.line.filter(|_| running).map(str::to_owned),
        retry_at: state.retry_at.map(|(at, _)| Moment(at)),
    })
}

fn next(view: &View<'_>) -> Vec<Next> {
    if view.is_ended() {
        return Vec::new();
    }
    let step_ended = |id: &StepId| view.fold.steps.get(id).is_some_and(|state| state.outcome.is_some());
    let ended = |id: &StepId| match view.wiring.find(id) {
        Some(Needed::Group(group)) => {
            view.wiring.ends(group).iter().all(|end| step_ended(&view.plan.steps[*end].id))
        }
        _ => step_ended(id),
    };
    let begun = |step: &PlannedStep| {
        view.state(step).is_some_and(|state| state.outcome.is_some() || state.started().is_some())
    };
    let open = view.plan.steps.iter().filter(|step| !begun(step));
    let ending = view.fold.ending.is_some();
    open.filter(|step| !ending || step.always)
        .take(NEXT_STEPS)
        .map(|step| Next {
            step: step.id.clone(),
            title: step.whole_title(),
            waits_for: step.needs.iter().map(|need| need.step.clone()).filter(|id| !ended(id)).collect(),
            budget_ms: step.budget.map(timeline::millis),
        })
        .collect()
}

/// Says how many of the approvals that are needed have been given, and by whom, or which points are not confirmed.
fn so_far(asked: &QuestionFold<'_>) -> String {
    if !asked.question.points.is_empty() {
        let before: Vec<_> = asked.before.iter().map(|(_, answer)| *answer).collect();
        let open = asked.question.open_points(&before);
        let numbers: Vec<_> = open.iter().map(ToString::to_string).collect();
        return format!(
            "\n  open: {} of {} ({})",
            open.len(),
            asked.question.points.len(),
            numbers.join(", ")
        );
    }
    let Some(minimum) = asked.question.rule.map(|rule| rule.minimum).filter(|minimum| *minimum > 1) else {
        return String::new();
    };
    let names: Vec<_> = asked.before.iter().map(|(_, answer)| answer.by.name.as_str()).collect();
    match names.len() {
        0 => format!(" ({minimum} people must approve)"),
        given => format!(" ({given} of {minimum} have approved: {})", names.join(", ")),
    }
}

fn needs_person(view: &View<'_>) -> Vec<NeedsPerson> {
    let end = view.fold.end;
    let short = view.source.run.short();
    let mut needs: Vec<NeedsPerson> = standing::open_folds(view)
        .into_iter()
        .map(|asked| (asked, asked.step, asked.question))
        .map(|(asked, step, question)| NeedsPerson {
            step: step.clone(),
            since: Moment(asked.asked),
            waited_ms: end - asked.asked,
            role: question.role.clone(),
            contacts: question
                .role
                .as_ref()
                .and_then(|role| view.plan.contacts.get(role))
                .cloned()
                .unwrap_or_default(),
            message: format!("{}{}", question.message, so_far(asked)),
            choices: question.choices.clone(),
            failure: None,
            command: standing::answer_command(view, asked),
        })
        .collect();
    needs.extend(standing::held_steps(view).into_iter().map(|(since, step, failure)| NeedsPerson {
        step: step.clone(),
        since: Moment(since),
        waited_ms: end - since,
        role: None,
        contacts: Vec::new(),
        message: format!("{} {}", failure.code, failure.message),
        choices: ["retry", "skip", "skip --done", "abort"].map(str::to_owned).to_vec(),
        failure: Some(failure.clone()),
        command: format!("lifeboat retry {short} {}", typed(step)),
    }));
    needs.sort_by_key(|need| need.since);
    needs
}
