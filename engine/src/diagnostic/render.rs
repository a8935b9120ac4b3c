use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;

use annotate_snippets::{Group, Level, Origin, Renderer};
use serde_json::{Value, json};

use super::codes;
use super::collect::{Diagnostic, Diagnostics, Severity};
use super::excerpt::Excerpt;
use super::mask::mask_secrets;
use super::source::Source;

/// Whether text may hold colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    Plain,
    Coloured,
}

/// How many problems are shown at most; nobody reads more before mending the first.
const MAX_SHOWN: usize = 200;
/// Writes the problems for people: place, source line, caret, help and change. Of very many only the first.
pub fn render(diagnostics: &Diagnostics, style: Style) -> String {
    let renderer = match style {
        Style::Plain => Renderer::plain(),
        Style::Coloured => Renderer::styled(),
    };
    // Masked as a whole, so that a line shown beside the error cannot show a secret; once for each file.
    let mut masked: HashMap<*const Source, String> = HashMap::new();
    let mut texts = Vec::new();
    for diagnostic in diagnostics.iter().take(MAX_SHOWN) {
        let text = diagnostic.place.as_ref().map(|place| {
            masked
                .entry(Arc::as_ptr(&place.source))
                .or_insert_with(|| masked_text(diagnostics, &place.source))
                .as_str()
        });
        texts.push(render_one(&renderer, diagnostic, text));
    }
    if let Some(more @ 1..) = diagnostics.len().checked_sub(MAX_SHOWN) {
        texts.push(format!("… and {more} more problems; mend these first, then check again"));
    }
    // What is printed next begins on a line of its own.
    if texts.is_empty() { String::new() } else { texts.join("\n\n") + "\n" }
}

/// Returns the text of a file without its secrets: those that look like one, and those that were found to be one.
fn masked_text(diagnostics: &Diagnostics, source: &Arc<Source>) -> String {
    let mut text = mask_secrets(&source.text);
    for diagnostic in
        diagnostics.iter().filter(|it| it.code == codes::LB0208 && it.severity == Severity::Error)
    {
        if let Some(place) = diagnostic.place.as_ref().filter(|place| Arc::ptr_eq(&place.source, source)) {
            let stars = |c: char| if c == '\n' { "\n".to_owned() } else { "*".repeat(c.len_utf8()) };
            let hidden: String = text[place.span.clone()].chars().map(stars).collect();
            text.replace_range(place.span.clone(), &hidden);
        }
    }
    text
}

fn render_one(renderer: &Renderer, diagnostic: &Diagnostic, text: Option<&str>) -> String {
    let level = match diagnostic.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
    };
    let title = level.primary_title(diagnostic.message.as_str()).id(diagnostic.code.id);
    let excerpt = match (&diagnostic.place, text) {
        (Some(place), Some(text)) => Some((Excerpt::of(diagnostic, place, text), place)),
        _ => None,
    };
    let mut group = Group::with_title(title);
    let mut patch = None;
    if let Some((excerpt, place)) = &excerpt {
        if let Some(column) = excerpt.column {
            let origin = Origin::path(place.source.name.as_str()).line(excerpt.line).char_column(column);
            group = group.element(origin);
        }
        group = group.element(excerpt.snippet(diagnostic, place));
        patch = excerpt.patch(diagnostic, place);
    }
    let help = diagnostic.help.as_deref();
    match (patch, help) {
        (Some(patch), help) => {
            let change = Level::HELP.secondary_title(help.unwrap_or("write instead")).element(patch);
            renderer.render(&[group, change])
        }
        (None, Some(help)) => renderer.render(&[group.element(Level::HELP.message(help))]),
        (None, None) => renderer.render(&[group]),
    }
}

/// How many problems machines are told at most.
const MAX_LISTED: usize = 10_000;
/// The version of [`to_json`]'s document; it changes when a reader of it must change.
pub const JSON_FORMAT: u32 = 1;

/// Writes the problems as the document that `schemas/check.schema.json` describes.
pub fn to_json(diagnostics: &Diagnostics) -> Value {
    let (errors, warnings) = diagnostics.counts();
    let problems: Vec<_> = diagnostics.iter().take(MAX_LISTED).map(one_to_json).collect();
    json!({
        "format": JSON_FORMAT,
        "errors": errors,
        "warnings": warnings,
        "not_listed": diagnostics.len() - problems.len(),
        "problems": problems,
    })
}

fn one_to_json(diagnostic: &Diagnostic) -> Value {
    let mut object = json!({
        "code": diagnostic.code.id,
        "severity": severity_word(diagnostic.severity),
        "message": diagnostic.message,
    });
    if let Some(place) = &diagnostic.place {
        let (start, end) = (place.source.position(place.span.start), place.source.position(place.span.end));
        object["file"] = json!(place.source.name);
        object["line"] = json!(start.line);
        object["column"] = json!(start.column);
        object["end_line"] = json!(end.line);
        object["end_column"] = json!(end.column);
        if let Some(fix) = &diagnostic.fix {
            let (start, end) = (place.source.position(fix.span.start), place.source.position(fix.span.end));
            object["fix"] = json!({
                "line": start.line, "column": start.column,
                "end_line": end.line, "end_column": end.column,
                "replacement": fix.replacement,
            });
        }
    }
    if let Some(help) = &diagnostic.help {
        object["help"] = json!(help);
    }
    object
}

/// Writes the problems as workflow commands that GitHub shows beside the changed lines. Of very many only the first.
pub fn to_github(diagnostics: &Diagnostics) -> String {
    let mut text: String = diagnostics.iter().take(MAX_SHOWN).map(one_to_github).collect();
    if let Some(more @ 1..) = diagnostics.len().checked_sub(MAX_SHOWN) {
        let _ = writeln!(text, "::notice ::… and {more} more problems; mend these first, then check again");
    }
    text
}

fn one_to_github(diagnostic: &Diagnostic) -> String {
    let mut properties = Vec::new();
    if let Some(place) = &diagnostic.place {
        let (start, end) = (place.source.position(place.span.start), place.source.position(place.span.end));
        properties.push(format!("file={}", escape_property(&place.source.name)));
        properties.push(format!("line={},endLine={}", start.line, end.line));
        if start.line == end.line {
            properties.push(format!("col={},endColumn={}", start.column, end.column));
        }
    }
    properties.push(format!("title={}", diagnostic.code.id));
    let mut text = diagnostic.message.clone();
    if let Some(help) = &diagnostic.help {
        text = format!("{text}\nhelp: {help}");
    }
    format!("::{} {}::{}\n", severity_word(diagnostic.severity), properties.join(","), escape_data(&text))
}

fn severity_word(severity: Severity) -> &'static str {
    match severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
    }
}

fn escape_data(text: &str) -> String {
    text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

fn escape_property(text: &str) -> String {
    escape_data(text).replace(':', "%3A").replace(',', "%2C")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnostic::Source;

    fn sample() -> Diagnostics {
        let source = Source::new("a.yaml", "title: x\ntimeuot: 5m\npassword: hunter2\n");
        let mut all = Diagnostics::new();
        all.push(
            Diagnostic::error(codes::LB0104, "unknown key `timeuot`")
                .at(&source, 9..16)
                .help("did you mean `timeout`?")
                .fix(9..16, "timeout"),
        );
        all.push(Diagnostic::warning(codes::LB0103, "twice").at(&source, 21..29).help("a, 100%\nb"));
        all.push(Diagnostic::error(codes::LB0201, "no project"));
        all
    }

    #[test]
    fn people_see_place_caret_change_and_no_secret() {
        let text = render(&sample(), Style::Plain);
        assert!(text.contains("a.yaml:2:1"), "{text}");
        assert!(text.contains("^^^^^^^"), "{text}");
        assert!(text.contains("+ timeout: 5m"), "{text}");
        assert!(text.contains("error[LB0201]"), "{text}");
        assert!(!text.contains("hunter2"), "{text}");
    }

    #[test]
    fn of_very_many_problems_and_long_lines_only_a_part_is_shown() {
        let mut text = "x: ".to_owned();
        text.push_str(&"y".repeat(100_000));
        let source = Source::new("long.yaml", format!("a: 1\n{text}\n"));
        let mut all = Diagnostics::new();
        for _ in 0..5000 {
            all.push(
                Diagnostic::error(codes::LB0104, "z").at(&source, 50_000..60_000).fix(50_000..60_000, "z"),
            );
        }
        let shown = render(&all, Style::Plain);
        assert!(shown.contains("long.yaml:2:49996"), "{}", &shown[..500]);
        assert!(shown.ends_with("… and 4800 more problems; mend these first, then check again\n"));
        assert!(shown.len() < 200 * 1000, "{}", shown.len());
        assert_eq!(to_json(&all)["not_listed"], 0);
    }

    #[test]
    fn github_and_json_carry_positions() {
        let text = to_github(&sample());
        let expected = "::error file=a.yaml,line=2,endLine=2,col=1,endColumn=8,title=LB0104::";
        assert!(text.starts_with(expected), "{text}");
        assert!(text.contains("a, 100%25%0Ab"), "{text}");
        assert_eq!(to_json(&sample())["problems"][0]["fix"]["replacement"], "timeout");
        assert_eq!(to_json(&sample())["problems"][0]["end_column"], 8);
    }
}
