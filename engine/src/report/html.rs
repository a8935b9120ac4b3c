//! The report as one HTML file: no script, nothing loaded from anywhere, light and dark, on paper and phone.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value};
use minijinja::{AutoEscape, Environment, UndefinedBehavior};
use serde::Serialize;

use super::gantt::{Chart, chart};
use super::human::{DayClock, duration};
use super::loss::RESTORES_NOTHING;
use super::model::{RunReport, Verdict};
use super::objectives::UNMARKED;
use super::page::{Page, Piece, Tone};
use super::sections;

const TEMPLATE: &str = include_str!("templates/report.html");
const STYLE: &str = include_str!("templates/report.css");

#[derive(Serialize)]
struct View {
    style: &'static str,
    title: String,
    page: Page,
    cards: Vec<Card>,
    spent: Vec<Share>,
    total: String,
    span: &'static str,
    chart: Option<Chart>,
    engine: String,
}

/// One objective with how much of it was used up.
#[derive(Serialize)]
struct Card {
    name: &'static str,
    verdict: Piece,
    figure: String,
    of: String,
    note: String,
    /// In percent of the bar.
    used: Option<String>,
    limit: Option<String>,
}

/// One part of the time.
#[derive(Serialize)]
struct Share {
    class: String,
    name: &'static str,
    text: String,
    percent: String,
}

/// Writes the report as one self-contained HTML document.
pub fn html(report: &RunReport) -> String {
    let mut page = sections::page(report);
    // The cards at the head say the same.
    page.sections.retain(|section| section.title != sections::OBJECTIVES);
    let view = View {
        style: STYLE,
        title: format!("{} · run {}", report.identity.runbook, report.identity.short),
        cards: cards(report),
        spent: shares(report),
        total: duration(report.time.total_ms),
        span: sections::from_to(report),
        chart: chart(report),
        engine: report.identity.engine_version.clone().unwrap_or_default(),
        page,
    };
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.expect("the default delimiters differ from each other"));
    environment.add_filter("prose", |text: &str| Value::from_safe_string(prose(text)));
    environment
        .render_named_str("report.html", TEMPLATE, Serde(&view))
        .expect("the template is part of the program and is given everything it names")
}

/// A runbook that is no recovery is not called one that failed: it took some time, and nothing was to be brought back.
fn cards(report: &RunReport) -> Vec<Card> {
    let (rto, rpo) = (&report.rto, &report.rpo);
    let time = match rto.objective_ms.is_none() && rto.reason == UNMARKED {
        true => Card { name: "Time taken", figure: duration(rto.used_ms), ..rto_card(report) },
        false => rto_card(report),
    };
    let restores = rpo.objective_ms.is_some() || rpo.reason != RESTORES_NOTHING;
    std::iter::once(time).chain(restores.then(|| rpo_card(report))).collect()
}

fn rto_card(report: &RunReport) -> Card {
    let rto = &report.rto;
    let (used, limit) = bar(rto.used_ms, rto.objective_ms);
    let words = sections::rto_words(report, &DayClock::new(report.identity.incident_at));
    Card {
        name: "Recovery time",
        verdict: verdict("RTO", rto.verdict),
        figure: if rto.recovered_at.is_some() { duration(rto.used_ms) } else { "not recovered".to_owned() },
        of: rto.objective_ms.map(|limit| format!("of {}", duration(limit))).unwrap_or_default(),
        note: words,
        used,
        limit,
    }
}

fn rpo_card(report: &RunReport) -> Card {
    let rpo = &report.rpo;
    let (used, limit) = rpo.worst_ms.map_or((None, None), |worst| bar(worst, rpo.objective_ms));
    Card {
        name: "Data loss",
        verdict: verdict("RPO", rpo.verdict),
        figure: rpo.worst_ms.map_or_else(|| "unknown".to_owned(), duration),
        of: rpo.objective_ms.map(|limit| format!("of {}", duration(limit))).unwrap_or_default(),
        note: rpo.reason.clone(),
        used,
        limit,
    }
}

fn verdict(objective: &str, verdict: Option<Verdict>) -> Piece {
    match verdict {
        Some(verdict) => {
            let piece = sections::verdict_piece(verdict);
            Piece { text: format!("{objective} {}", piece.text), tone: piece.tone }
        }
        None => Piece::new(format!("no {objective}"), Tone::Dim),
    }
}

/// Returns how far a bar is filled and where its limit stands, in percent.
fn bar(used: i64, limit: Option<i64>) -> (Option<String>, Option<String>) {
    let Some(limit) = limit.filter(|limit| *limit > 0) else { return (None, None) };
    let whole = used.max(limit) as f64;
    let share = |part: i64| format!("{:.1}", part as f64 * 100.0 / whole);
    (Some(share(used)), (used > limit).then(|| share(limit)))
}

fn shares(report: &RunReport) -> Vec<Share> {
    let total = report.time.total_ms.max(1) as f64;
    let share = |(name, ms): (&'static str, i64)| Share {
        class: name.replace(' ', "-"),
        name,
        text: duration(ms),
        percent: format!("{:.2}", ms as f64 * 100.0 / total),
    };
    sections::parts(&report.time).into_iter().map(share).collect()
}

/// Escapes a text, and sets what stands between back quotes as code.
fn prose(text: &str) -> String {
    let parts: Vec<&str> = text.split('`').collect();
    let mut out = String::with_capacity(text.len());
    for (number, part) in parts.iter().enumerate() {
        let closed = number + 1 < parts.len();
        match (number % 2 == 1, closed) {
            (true, true) => out.push_str(&format!("<code>{}</code>", escape(part))),
            (true, false) => out.push_str(&format!("`{}", escape(part))),
            _ => out.push_str(&escape(part)),
        }
    }
    out
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prose_is_escaped_and_its_code_set_apart() {
        assert_eq!(prose("`a<b` & `c"), "<code>a&lt;b</code> &amp; `c");
    }
}
