//! What people were asked and what they decided.

use super::{code, plain, section, table};
use crate::model::event::{Decision, GivenFile, Person};
use crate::report::human::{DayClock, Moment, bytes, duration};
use crate::report::model::{AnswerReport, DecisionReport, QuestionReport, RunReport};
use crate::report::page::{Cell, Piece, Section, Table, Tone};

pub(in crate::report) fn person(person: &Person) -> String {
    format!("{} (uid {})", person.name, person.uid)
}

pub(super) fn people(report: &RunReport, clock: &DayClock) -> Option<Section> {
    let mut rows: Vec<(Moment, Cell, Cell)> = Vec::new();
    rows.extend(
        report.questions.iter().map(|asked| (asked.asked_at, code(asked.step.as_str()), asked_words(asked))),
    );
    rows.extend(report.decisions.iter().map(|made| {
        let (step, words) = decided_words(made);
        (made.at, code(step), words)
    }));
    rows.extend(report.notes.iter().map(|note| {
        let step = note.step.as_ref().map_or("", |step| step.as_str());
        (note.at, code(step), vec![Piece::dim("note: "), Piece::plain(&note.text)])
    }));
    rows.sort_by_key(|(at, ..)| *at);
    let mut people = Table::new(&["at", "step", ""]);
    for (at, step, words) in rows {
        people.row(vec![plain(clock.time(at)), step, words]);
    }
    section("People", table(people))
}

fn asked_words(asked: &QuestionReport) -> Cell {
    let role = asked.role.as_deref().unwrap_or("anyone");
    let mut cell =
        vec![Piece::dim(format!("asked {role}: ")), Piece::plain(&asked.message), Piece::plain(" ")];
    let after = duration(asked.waited_ms);
    for (number, answer) in asked.before.iter().enumerate() {
        let of = if answer.points.is_empty() {
            format!(" ({} of {})", number + 1, asked.minimum.unwrap_or(1))
        } else {
            String::new()
        };
        let comment = answer.comment.as_ref().map(|text| format!(": “{text}”")).unwrap_or_default();
        cell.push(Piece::new(format!("→ {}{of} ", answer.choice), Tone::Strong));
        let (points, file) = (about(answer), shown_by(answer));
        cell.push(Piece::plain(format!("{points}by {}{comment}{file} ", person(&answer.by))));
    }
    match &asked.answer {
        Some(answer) if answer.automatic => cell.push(Piece::new(
            format!("→ {} after {after}, automatic: no evidence of a decision", answer.choice),
            Tone::Caution,
        )),
        Some(answer) => {
            cell.push(Piece::new(format!("→ {}", answer.choice), Tone::Strong));
            cell.push(Piece::plain(format!(" {}by {} after {after}", about(answer), person(&answer.by))));
        }
        None if asked.open => cell.push(Piece::new(format!("→ no answer yet, {after}"), Tone::Caution)),
        None => cell.push(Piece::new(format!("→ never answered, {after}"), Tone::Caution)),
    }
    if let Some(comment) = asked.answer.as_ref().and_then(|answer| answer.comment.as_ref()) {
        cell.push(Piece::plain(format!(": “{comment}”")));
    }
    cell.extend(asked.answer.as_ref().map(|answer| Piece::plain(shown_by(answer))));
    cell
}

/// Names the points that an answer is about.
fn about(answer: &AnswerReport) -> String {
    let numbers: Vec<_> = answer.points.iter().map(ToString::to_string).collect();
    if numbers.is_empty() { String::new() } else { format!("for point {} ", numbers.join(", ")) }
}

/// Names the file that was given as evidence.
fn shown_by(answer: &AnswerReport) -> String {
    let short = |file: &GivenFile| {
        // Of a journal that somebody made up it may be anything.
        let sha256 = file.sha256.get(..12).unwrap_or(&file.sha256);
        format!(" (file {}, {}, SHA-256 {sha256}…)", file.name, bytes(file.bytes))
    };
    answer.file.as_ref().map(short).unwrap_or_default()
}

fn decided_words(made: &DecisionReport) -> (&str, Cell) {
    let (step, words) = match &made.decision {
        Decision::RetryStep { step } => (step.as_str(), "had it tried again".to_owned()),
        Decision::SkipStep { step, reason } => (step.as_str(), format!("skipped it: {reason}")),
        Decision::MarkDone { step, reason } => (step.as_str(), format!("marked it as done: {reason}")),
        Decision::Abort { reason } => ("", format!("aborted the run: {reason}")),
        Decision::Cancel { reason } => ("", format!("cancelled the run: {reason}")),
        Decision::Pause => ("", "paused the run".to_owned()),
        Decision::Unpause => ("", "let the run go on".to_owned()),
        Decision::Note { text } => ("", format!("noted: {text}")),
    };
    let after = made.after_ms.map(|ms| format!(" (held for {})", duration(ms))).unwrap_or_default();
    (step, vec![Piece::new(person(&made.by), Tone::Strong), Piece::plain(format!(" {words}{after}"))])
}
