use std::collections::HashMap;
use std::sync::Arc;

use annotate_snippets::{AnnotationKind, Group, Level, Patch, Renderer, Snippet};
use serde_json::{Value, json};

use super::collect::{Diagnostic, Diagnostics, Place, Severity};
use super::mask::mask_secrets;
use super::source::Source;

/// Whether text may hold colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    Plain,
    Coloured,
}

/// Writes all problems for people: place, source line, caret, help and change.
pub fn render(diagnostics: &Diagnostics, style: Style) -> String {
    let renderer = match style {
        Style::Plain => Renderer::plain(),
        Style::Coloured => Renderer::styled(),
    };
    // Masked as a whole, so that a line shown beside the error cannot show a secret; once for each file.
    let mut masked: HashMap<*const Source, String> = HashMap::new();
    let mut texts = Vec::new();
    for diagnostic in diagnostics.iter() {
        let text = diagnostic.place.as_ref().map(|place| {
            masked
                .entry(Arc::as_ptr(&place.source))
                .or_insert_with(|| mask_secrets(&place.source.text))
                .as_str()
        });
        texts.push(render_one(&renderer, diagnostic, text));
    }
    texts.join("\n\n")
}

fn render_one(renderer: &Renderer, diagnostic: &Diagnostic, text: Option<&str>) -> String {
    let level = match diagnostic.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
    };
    let title = level.primary_title(diagnostic.message.as_str()).id(diagnostic.code.id);
    let mut groups = Vec::new();
    match (&diagnostic.place, text) {
        (Some(place), Some(text)) => {
            let group = title.element(snippet(diagnostic, place, text));
            let (group, help) = with_help(group, diagnostic, place, text);
            groups.push(group);
            groups.extend(help);
        }
        _ => {
            let mut group = Group::with_title(title);
            if let Some(help) = &diagnostic.help {
                group = group.element(Level::HELP.message(help.as_str()));
            }
            groups.push(group);
        }
    }
    renderer.render(&groups)
}

fn snippet<'a>(
    diagnostic: &'a Diagnostic,
    place: &'a Place,
    text: &'a str,
) -> Snippet<'a, annotate_snippets::Annotation<'a>> {
    let mut primary = AnnotationKind::Primary.span(visible(text, place));
    if let Some(label) = &diagnostic.label {
        primary = primary.label(label.as_str());
    }
    let others = diagnostic.labels.iter().map(|label| {
        AnnotationKind::Context.span(place.source.clamp(label.span.clone())).label(label.text.as_str())
    });
    Snippet::source(text).path(place.source.name.as_str()).annotation(primary).annotations(others)
}

/// Cuts a range to its first line, so that a whole step is not underlined.
fn visible(text: &str, place: &Place) -> std::ops::Range<usize> {
    let span = place.span.clone();
    let end = text[span.clone()].find('\n').map_or(span.end, |at| span.start + at);
    span.start..end
}

fn with_help<'a>(
    group: Group<'a>,
    diagnostic: &'a Diagnostic,
    place: &'a Place,
    text: &'a str,
) -> (Group<'a>, Option<Group<'a>>) {
    match (&diagnostic.fix, &diagnostic.help) {
        (Some(fix), help) => {
            let title = help.as_deref().unwrap_or("write instead");
            let span = place.source.clamp(fix.span.clone());
            let patch = Patch::new(span, fix.replacement.as_str());
            let snippet = Snippet::source(text).path(place.source.name.as_str()).patch(patch);
            (group, Some(Level::HELP.secondary_title(title).element(snippet)))
        }
        (None, Some(help)) => (group.element(Level::HELP.message(help.as_str())), None),
        (None, None) => (group, None),
    }
}

/// Writes all problems as a JSON list.
pub fn to_json(diagnostics: &Diagnostics) -> Value {
    Value::Array(diagnostics.iter().map(one_to_json).collect())
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

/// Writes all problems as workflow commands that GitHub shows beside the changed lines.
pub fn to_github(diagnostics: &Diagnostics) -> String {
    diagnostics.iter().map(one_to_github).collect()
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
    use crate::diagnostic::{Source, codes};

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
    fn github_and_json_carry_positions() {
        let text = to_github(&sample());
        let expected = "::error file=a.yaml,line=2,endLine=2,col=1,endColumn=8,title=LB0104::";
        assert!(text.starts_with(expected), "{text}");
        assert!(text.contains("a, 100%25%0Ab"), "{text}");
        assert_eq!(to_json(&sample())[0]["fix"]["replacement"], "timeout");
        assert_eq!(to_json(&sample())[0]["end_column"], 8);
    }
}
