//! The report as a page: what a terminal shows, and what Markdown and HTML are made of.

mod people;
mod record;

pub(super) use people::person;

use std::collections::BTreeMap;

use super::human::{self, DayClock, Moment, duration, percent};
use super::model::{
    AttemptEnd, BudgetReport, CheckReport, Doing, ElementsReport, Owner, RunReport, RunStanding, State,
    StepReport, StoreLoss, TimeSpent, UndoReport, Verdict,
};
use super::page::{Block, Cell, Page, Piece, Section, Table, Tone, clean};
use super::standing::{self, verdict_words};
use crate::model::evidence::Confidence;
use crate::model::ids::StepId;
use crate::model::outcome::{Mode, Outcome};

/// How many passed checks or facts of the elements of one step are shown; the data have all.
const MAX_PASSED: usize = 20;

/// The title of the section that HTML shows as cards.
pub(super) const OBJECTIVES: &str = "Objectives";

/// Lays a report out as a page.
pub fn page(report: &RunReport) -> Page {
    let clock = DayClock::new(report.identity.incident_at);
    let parts = [
        failure(report),
        undo(report, &clock),
        warnings(report),
        objectives(report, &clock),
        milestones(report, &clock),
        data_loss(report, &clock),
        time_line(report, &clock),
        critical_path(report),
        checks(report),
        not_checked(report),
        people::people(report, &clock),
        record::troubles(report, &clock),
        record::created(report),
        record::facts(report),
        record::run(report, &clock),
    ];
    laid_out(report, &clock, parts.into_iter().flatten().collect())
}

/// Lays out the part of a report that a person needs the moment a run ends.
pub fn summary(report: &RunReport) -> Page {
    let clock = DayClock::new(report.identity.incident_at);
    let parts = [
        failure(report),
        undo(report, &clock),
        warnings(report),
        objectives(report, &clock),
        data_loss(report, &clock),
        time_line(report, &clock),
    ];
    laid_out(report, &clock, parts.into_iter().flatten().collect())
}

fn laid_out(report: &RunReport, clock: &DayClock, sections: Vec<Section>) -> Page {
    Page {
        headline: Piece::new(&report.outcome.headline, state_tone(report)),
        subtitle: subtitle(report, clock),
        why: why(&report.outcome),
        next: report.outcome.next.clone(),
        sections,
        next_last: false,
    }
}

pub(super) fn subtitle(report: &RunReport, clock: &DayClock) -> String {
    let identity = &report.identity;
    let mode = match identity.mode {
        Mode::Drill => "drill",
        Mode::Recovery => "recovery",
    };
    clean(&format!(
        "{} · {mode} of {} in {} · run {} · {} UTC",
        identity.title,
        identity.runbook,
        identity.environment,
        identity.short,
        clock.date()
    ))
}

pub(super) fn state_tone(report: &RunReport) -> Tone {
    let objectives = [report.rto.verdict, report.rpo.verdict];
    match report.outcome.state {
        State::Failed | State::Aborted => Tone::Bad,
        State::Succeeded if objectives.contains(&Some(Verdict::Missed)) => Tone::Bad,
        State::Succeeded if objectives.contains(&Some(Verdict::NotMeasured)) => Tone::Caution,
        State::Succeeded => Tone::Good,
        State::Running if report.outcome.owner != Owner::Gone => Tone::Strong,
        _ => Tone::Caution,
    }
}

pub(super) fn verdict_piece(verdict: Verdict) -> Piece {
    let tone = match verdict {
        Verdict::Met => Tone::Good,
        Verdict::Missed => Tone::Bad,
        Verdict::NotMeasured | Verdict::AtRisk => Tone::Caution,
    };
    Piece::new(verdict_words(verdict), tone)
}

/// Writes the failure that stands in the way, with its code.
pub(super) fn why(standing: &RunStanding) -> Option<Piece> {
    let failure = &standing.failure.as_ref()?.failure;
    Some(Piece::new(format!("{} {}", failure.code, failure.message), Tone::Bad))
}

fn section(title: impl Into<String>, blocks: Vec<Block>) -> Option<Section> {
    (!blocks.is_empty()).then(|| Section { title: title.into(), blocks })
}

fn table(table: Table) -> Vec<Block> {
    if table.rows.is_empty() { Vec::new() } else { vec![Block::Table(table)] }
}

fn plain(text: impl AsRef<str>) -> Cell {
    vec![Piece::plain(text)]
}

fn dim(text: impl AsRef<str>) -> Cell {
    vec![Piece::dim(text)]
}

fn code(text: impl AsRef<str>) -> Cell {
    vec![Piece::code(text)]
}

fn failure(report: &RunReport) -> Option<Section> {
    let mut blocks = Vec::new();
    if let Some(failed) = &report.outcome.failure {
        let failure = &failed.failure;
        blocks.push(Block::Line(vec![
            Piece::code(failed.step.as_str()),
            Piece::plain(format!(
                " {} ({}), {}",
                failed.title,
                failed.place,
                human::count(failed.attempts as usize, "attempt")
            )),
        ]));
        // What the program itself said is mostly the reason.
        let because = |cause: &String| Block::Line(vec![Piece::dim("because "), Piece::plain(cause)]);
        blocks.extend(failure.causes.iter().map(because));
        let explain = format!("lifeboat explain {}", failure.code);
        let more = vec![Piece::dim("more about it: "), Piece::code(explain)];
        blocks.extend(failure.help.iter().map(|help| Block::Line(plain(format!("help: {help}")))));
        blocks.push(Block::Line(more));
    }
    if let Some(reason) = &report.outcome.reason {
        blocks.push(Block::Line(plain(format!("The run ended because: {reason}"))));
    }
    let title = if report.outcome.state.is_ended() { "What went wrong" } else { "What holds it" };
    section(title, blocks)
}

/// Which time the parts of the time add up to.
pub(super) fn from_to(report: &RunReport) -> &'static str {
    match report.outcome.state.is_ended() {
        true => "from the incident to the end",
        false => "from the incident to now",
    }
}

fn warnings(report: &RunReport) -> Option<Section> {
    let line = |warning: &super::model::Warning| {
        let mut line = vec![Piece::new("! ", Tone::Caution)];
        if let Some(step) = &warning.step {
            line.extend([Piece::code(step.as_str()), Piece::plain(": ")]);
        }
        line.push(Piece::plain(&warning.text));
        Block::Line(line)
    };
    section("Warnings", report.warnings.iter().map(line).collect())
}

fn objectives(report: &RunReport, clock: &DayClock) -> Option<Section> {
    let mut verdicts = Table::new(&["", "", ""]);
    let (rto, rpo) = (&report.rto, &report.rpo);
    let verdict = |verdict: Option<Verdict>| match verdict {
        Some(verdict) => vec![verdict_piece(verdict)],
        None => dim("no objective"),
    };
    verdicts.row(vec![plain("RTO"), verdict(rto.verdict), plain(rto_words(report, clock))]);
    let lost = rpo.worst_ms.map_or_else(|| "not known".to_owned(), duration);
    let of = rpo.objective_ms.map(|limit| format!(" of {} allowed", duration(limit))).unwrap_or_default();
    verdicts.row(vec![
        plain("RPO"),
        verdict(rpo.verdict),
        plain(format!("data loss {lost}{of}; {}", rpo.reason)),
    ]);
    section(OBJECTIVES, vec![Block::Table(verdicts), Block::Table(spent(report))])
}

pub(super) fn rto_words(report: &RunReport, clock: &DayClock) -> String {
    let rto = &report.rto;
    let used = duration(rto.used_ms);
    let of = rto.objective_ms.map(|limit| format!(" of {}", duration(limit))).unwrap_or_default();
    let margin = match (rto.left_ms, rto.margin_ms) {
        (_, Some(margin)) if margin < 0 => format!(", {} over", duration(-margin)),
        (Some(left), _) => format!(", {} left", duration(left)),
        (None, Some(margin)) if rto.recovered_at.is_some() => format!(", {} to spare", duration(margin)),
        _ => String::new(),
    };
    let forecast = rto.forecast.as_ref().map(|forecast| {
        let about = if forecast.without_budget.is_empty() { "" } else { "at the earliest " };
        let breaks =
            forecast.breaks_at.as_ref().map(|step| format!(", over during `{step}`")).unwrap_or_default();
        format!("; forecast {about}{} ({} used{breaks})", clock.time(forecast.at), duration(forecast.used_ms))
    });
    format!("{used}{of}{margin}{}; {}", forecast.unwrap_or_default(), rto.reason)
}

/// Names the parts of the time, those that are zero left out.
pub(super) fn parts(time: &TimeSpent) -> Vec<(&'static str, i64)> {
    let all = [
        ("before the run began", time.before_run_ms),
        ("working", time.working_ms),
        ("waiting for a person", time.waiting_for_person_ms),
        ("waiting for a retry", time.waiting_for_retry_ms),
        ("paused", time.paused_ms),
        ("engine down", time.engine_down_ms),
        ("between steps", time.between_steps_ms),
        ("cleaning up", time.cleaning_up_ms),
    ];
    all.into_iter().filter(|(_, spent)| *spent > 0).collect()
}

fn spent(report: &RunReport) -> Table {
    let time = &report.time;
    let mut table = Table::new(&["Where the time went", ">", ">"]);
    for (name, ms) in parts(time) {
        table.row(vec![plain(name), plain(duration(ms)), dim(percent(ms, time.total_ms))]);
    }
    table.row(vec![plain(from_to(report)), plain(duration(time.total_ms)), dim("")]);
    table
}

fn milestones(report: &RunReport, clock: &DayClock) -> Option<Section> {
    let mut rows = Table::new(&["", "reached", ">after", ">deadline", ""]);
    for mark in &report.milestones {
        rows.row(vec![
            plain(&mark.name),
            mark.reached_at.map_or_else(|| dim("not reached"), |at| plain(clock.time(at))),
            plain(mark.reached_after_ms.map(duration).unwrap_or_default()),
            plain(mark.deadline_ms.map(duration).unwrap_or_default()),
            mark.verdict.map_or_else(Cell::new, |verdict| vec![verdict_piece(verdict)]),
        ]);
    }
    section("Milestones, from the incident", table(rows))
}

fn data_loss(report: &RunReport, clock: &DayClock) -> Option<Section> {
    let rpo = &report.rpo;
    let mut rows =
        Table::new(&["store", "recovered to", ">before target", ">before incident", "how it is known"]);
    for store in &rpo.stores {
        rows.row(vec![
            code(&store.resource),
            plain(store_time(store, clock)),
            plain(store.against_target_ms.map_or_else(|| "–".to_owned(), duration)),
            plain(store.against_incident_ms.map_or_else(|| "–".to_owned(), duration)),
            how_known(store),
        ]);
    }
    let mut blocks = table(rows);
    for gap in &rpo.unmeasured {
        blocks.push(Block::Line(vec![
            Piece::new("not measured: ", Tone::Caution),
            Piece::code(gap.step.as_str()),
            Piece::plain(format!(", {}", gap.why)),
        ]));
    }
    let title = match rpo.target {
        Some(target) => format!("Data loss, asked for everything up to {}", clock.time(target)),
        None => "Data loss".to_owned(),
    };
    section(title, blocks)
}

fn store_time(store: &StoreLoss, clock: &DayClock) -> String {
    match crate::value::parse_timestamp(&store.time) {
        Ok(stamp) => {
            let moment = Moment(stamp.as_millisecond());
            format!("{}.{:03}", clock.time(moment), moment.0.rem_euclid(1000))
        }
        Err(_) => store.time.clone(),
    }
}

fn how_known(store: &StoreLoss) -> Cell {
    let confidence = match store.confidence {
        Confidence::Measured => Piece::new("measured", Tone::Good),
        Confidence::Bound => Piece::new("at most this much", Tone::Caution),
        Confidence::Stated => Piece::new("stated by the backup", Tone::Caution),
    };
    let position = store.position.as_ref().map(|at| format!(", at {at}")).unwrap_or_default();
    let mut cell = vec![Piece::plain(format!("{}{position}; ", store.method)), confidence];
    if store.beyond_target {
        cell.push(Piece::new("; AFTER the target", Tone::Bad));
    }
    cell
}

fn time_line(report: &RunReport, clock: &DayClock) -> Option<Section> {
    let mut rows = Table::new(&["start", ">took", "", "step", ""]);
    let mut steps: Vec<&StepReport> = report.steps.iter().collect();
    steps.sort_by_key(|step| step.started_at.map_or(i64::MAX, |at| at.0));
    for step in steps {
        rows.row(vec![
            step.started_at.map_or_else(|| dim("–"), |at| plain(clock.time(at))),
            plain(step.took_ms.map(duration).unwrap_or_default()),
            plain(if step.critical { "*" } else { "" }),
            code(step.id.as_str()),
            step_words(step),
        ]);
        for element in step.elements.iter().flat_map(|elements| &elements.listed) {
            rows.row(vec![
                element.started_at.map_or_else(|| dim("–"), |at| plain(clock.time(at))),
                plain(element.took_ms.map(duration).unwrap_or_default()),
                plain(""),
                code(element.id.as_str()),
                step_words(element),
            ]);
        }
    }
    let mut blocks = table(rows);
    blocks.extend(groups(report));
    if report.steps.iter().any(|step| step.critical) {
        blocks.push(Block::Line(dim("* on the critical path: what decided how long it took")));
    }
    section("Time line", blocks)
}

/// What was taken back, newest first, with what a person must do where that failed.
fn undo(report: &RunReport, clock: &DayClock) -> Option<Section> {
    undo_section(report.undo.as_ref()?, clock)
}

pub(super) fn undo_section(undo: &UndoReport, clock: &DayClock) -> Option<Section> {
    let mut rows = Table::new(&["start", ">took", "step", ""]);
    let mut lines = Vec::new();
    for undone in &undo.steps {
        let step = &undone.step;
        let mut words = match (&step.outcome, step.started_at) {
            (None, None) => dim("still to be undone"),
            _ => step_words(step),
        };
        let what = undone.what.as_ref().unwrap_or(&step.title);
        words.push(Piece::dim(format!(": {what}")));
        rows.row(vec![
            step.started_at.map_or_else(|| dim("–"), |at| plain(clock.time(at))),
            plain(step.took_ms.map(duration).unwrap_or_default()),
            code(undone.of.as_str()),
            words,
        ]);
        if let Some(Outcome::Failed { failure }) = &step.outcome {
            let text = format!(" is not undone: {} {}", failure.code, failure.message);
            lines.push(Block::Line(vec![Piece::code(undone.of.as_str()), Piece::new(text, Tone::Bad)]));
            let help = failure.help.as_ref();
            lines.extend(help.map(|help| Block::Line(plain(format!("help: {help}")))));
        }
    }
    let mut blocks = table(rows);
    blocks.extend(lines);
    section("Undo", blocks)
}

fn groups(report: &RunReport) -> Vec<Block> {
    let budgeted = report.groups.iter().filter_map(|group| {
        let (budget, took) = (group.budget?, group.took_ms?);
        let mut line = vec![
            Piece::plain("group "),
            Piece::code(group.id.as_str()),
            Piece::plain(format!(": {}", duration(took))),
        ];
        line.extend(budget_pieces(Some(budget)));
        Some(Block::Line(line))
    });
    budgeted.collect()
}

/// Says how a step ended, or what it does, and what cost it time.
fn step_words(step: &StepReport) -> Cell {
    let mut cell = vec![step_piece(step)];
    cell.extend(step.elements.iter().map(elements_piece));
    let mut add = |name: &str, ms: i64| {
        if ms > 0 {
            cell.push(Piece::dim(format!(", {name} {}", duration(ms))));
        }
    };
    add("waited for a person", step.waiting_for_person_ms);
    add("waited to retry", step.waiting_for_retry_ms);
    add("held", step.held_ms);
    add("engine down", step.engine_down_ms);
    if step.attempts.len() > 1 {
        cell.push(Piece::new(format!(", {} attempts", step.attempts.len()), Tone::Caution));
    }
    if step.checks_failed > 0 {
        cell.push(Piece::new(format!(", {} failed", human::count(step.checks_failed, "check")), Tone::Bad));
    } else if step.checks_passed > 0 {
        cell.push(Piece::dim(format!(", {}", human::count(step.checks_passed, "check"))));
    }
    cell.extend(budget_pieces(step.budget.filter(|_| step.started_at.is_some())));
    cell
}

/// Counts the elements of a repeated step: `, 12 elements, 1 failed, 3 not begun`.
fn elements_piece(elements: &ElementsReport) -> Piece {
    let mut text = format!(", {}", human::count(elements.total, "element"));
    for (count, what) in [
        (elements.failed, "failed"),
        (elements.open, "open"),
        (elements.decided, "decided by a person"),
        (elements.not_begun, "not begun"),
    ] {
        if count > 0 {
            text.push_str(&format!(", {count} {what}"));
        }
    }
    let tone = if elements.failed > 0 { Tone::Bad } else { Tone::Dim };
    Piece::new(text, tone)
}

fn step_piece(step: &StepReport) -> Piece {
    match &step.outcome {
        Some(Outcome::Succeeded) => Piece::new("ok", Tone::Good),
        Some(Outcome::Skipped { reason }) => Piece::dim(standing::skipped(reason)),
        Some(Outcome::Failed { .. }) if was_interrupted(step) => {
            Piece::new("interrupted, because the run ended", Tone::Caution)
        }
        Some(Outcome::Failed { failure }) => Piece::new(format!("failed: {}", failure.code), Tone::Bad),
        Some(Outcome::MarkedDone { by, reason }) => {
            Piece::new(format!("marked as done by {by}: {reason}"), Tone::Caution)
        }
        Some(Outcome::NotRun { reason }) => Piece::new(format!("not run: {reason}"), Tone::Caution),
        None => match step.doing {
            Some(Doing::Working) => Piece::new("running", Tone::Strong),
            Some(Doing::WaitingForPerson) => Piece::new("waiting for a person", Tone::Caution),
            Some(Doing::WaitingForRetry) => Piece::new("waiting to retry", Tone::Caution),
            Some(Doing::Held) => Piece::new("HELD", Tone::Bad),
            Some(Doing::EngineDown) => Piece::new("its process is gone", Tone::Bad),
            None if step.started_at.is_some() => Piece::new("interrupted", Tone::Caution),
            None => Piece::dim("not started"),
        },
    }
}

fn was_interrupted(step: &StepReport) -> bool {
    step.attempts.last().is_some_and(|attempt| attempt.result == Some(AttemptEnd::Interrupted))
}

fn budget_pieces(budget: Option<BudgetReport>) -> Vec<Piece> {
    let Some(budget) = budget else { return Vec::new() };
    let of = duration(budget.budget_ms);
    match budget.verdict {
        Some(Verdict::Missed) => {
            vec![Piece::new(format!(", {} over its budget of {of}", duration(-budget.margin_ms)), Tone::Bad)]
        }
        _ => vec![Piece::dim(format!(", budget {of}"))],
    }
}

fn critical_path(report: &RunReport) -> Option<Section> {
    let path = &report.critical_path;
    let mut blocks = Vec::new();
    if !path.actual.is_empty() {
        let total: i64 = path.actual.iter().map(|part| part.took_ms + part.waited_ms).sum();
        let mut line = vec![Piece::plain(format!("actual, {}: ", duration(total)))];
        for (at, part) in path.actual.iter().enumerate() {
            let arrow = if at > 0 { " → " } else { "" };
            line.push(Piece::plain(arrow));
            line.push(Piece::code(part.step.as_str()));
            line.push(Piece::plain(format!(" {}", duration(part.took_ms))));
        }
        blocks.push(Block::Line(line));
    }
    if let Some(planned) = &path.planned {
        let mut line = vec![Piece::plain(format!("by budgets, {}: ", duration(planned.total_ms)))];
        for (at, item) in planned.items.iter().enumerate() {
            let arrow = if at > 0 { " → " } else { "" };
            line.push(Piece::plain(arrow));
            line.push(Piece::code(item.id.as_str()));
            line.push(Piece::plain(format!(" {}", duration(item.budget_ms))));
        }
        if planned.partial {
            line.push(Piece::dim(" (steps without a budget count as nothing)"));
        }
        blocks.push(Block::Line(line));
    }
    section("Critical path", blocks)
}

fn checks(report: &RunReport) -> Option<Section> {
    let current: Vec<&CheckReport> = report.checks.iter().filter(|check| !check.superseded).collect();
    let passed = current.iter().filter(|check| check.passed).count();
    let failed = current.len() - passed;
    let mut rows = Table::new(&["", "step", "check", "expected and found"]);
    let mut folded: BTreeMap<StepId, usize> = BTreeMap::new();
    for check in &report.checks {
        if check.passed && check.step.element().is_some() {
            let shown = folded.entry(check.step.whole()).or_default();
            *shown += 1;
            if *shown > MAX_PASSED {
                continue;
            }
        }
        let result = match (check.passed, check.superseded) {
            (true, false) => Piece::new("ok", Tone::Good),
            (false, false) => Piece::new("FAILED", Tone::Bad),
            (true, true) => Piece::dim(format!("ok, attempt {}", check.attempt)),
            (false, true) => Piece::dim(format!("failed, attempt {}", check.attempt)),
        };
        rows.row(vec![vec![result], code(check.step.as_str()), plain(&check.name), found(check)]);
    }
    for (step, count) in folded.iter().filter(|(_, count)| **count > MAX_PASSED) {
        let more = format!("{} more of its elements passed", count - MAX_PASSED);
        rows.row(vec![vec![Piece::new("ok", Tone::Good)], code(step.as_str()), dim(more), plain("")]);
    }
    let title = match failed {
        0 => format!("Checks: {passed} passed"),
        _ => format!("Checks: {failed} FAILED, {passed} passed"),
    };
    section(title, table(rows))
}

fn found(check: &CheckReport) -> Cell {
    let tone = if check.passed || check.superseded { Tone::Plain } else { Tone::Bad };
    vec![
        Piece::dim("expected "),
        Piece::plain(&check.expected),
        Piece::dim(", found "),
        Piece::new(&check.actual, tone),
    ]
}

fn not_checked(report: &RunReport) -> Option<Section> {
    let line = |open: &super::model::NotChecked| {
        let mut line = vec![Piece::new("– ", Tone::Caution), Piece::plain(&open.what)];
        if let Some(step) = &open.step {
            line.extend([Piece::plain(" (step "), Piece::code(step.as_str()), Piece::plain(")")]);
        }
        line.push(Piece::plain(format!(": {}", open.why)));
        Block::Line(line)
    };
    section("Not checked", report.not_checked.iter().map(line).collect())
}
