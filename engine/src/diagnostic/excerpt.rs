use std::ops::Range;

use annotate_snippets::{Annotation, AnnotationKind, Patch, Snippet};

use super::collect::{Diagnostic, Place};

/// Longer lines are shown in part, in bytes.
const MAX_LINE: usize = 1000;
/// How much of a longer line is shown on either side of the place, in bytes.
const AROUND: usize = 60;

/// The lines of a file that one problem is about. Rendering costs what is shown, not what the file holds.
pub(super) struct Excerpt<'t> {
    text: &'t str,
    /// Where it begins in the file.
    offset: usize,
    pub(super) line: usize,
    /// The column of the place if only a part of its line is shown.
    pub(super) column: Option<usize>,
}

impl<'t> Excerpt<'t> {
    /// Cuts what is needed out of the text of the file, in which secrets may have been replaced byte for byte.
    pub(super) fn of(diagnostic: &Diagnostic, place: &Place, text: &'t str) -> Self {
        let labels = diagnostic.labels.iter().map(|label| &label.span);
        let fix = diagnostic.fix.iter().map(|fix| &fix.span);
        let spans: Vec<_> =
            labels.chain(fix).chain([&place.span]).map(|it| place.source.clamp(it.clone())).collect();
        let first = spans.iter().map(|span| span.start).min().unwrap_or(0);
        let shown = spans.iter().map(|span| visible(text, span).end);
        // A change is shown whole, also over several lines.
        let changed = diagnostic.fix.iter().map(|fix| place.source.clamp(fix.span.clone()).end);
        let last = shown.chain(changed).max().unwrap_or(first);
        let is_long = |span: &Range<usize>| {
            let line = line_around(text, span.start);
            line.len() > MAX_LINE
        };
        if spans.iter().any(is_long) {
            return Self::part(place, text);
        }
        let (start, end) = (line_around(text, first).start, line_around(text, last).end);
        Self { text: &text[start..end], offset: start, line: place.source.position(start).line, column: None }
    }

    /// Cuts a part of a long line.
    fn part(place: &Place, text: &'t str) -> Self {
        let line = line_around(text, place.span.start);
        let from = place.span.start.saturating_sub(AROUND).max(line.start);
        let to = (place.span.start + 2 * AROUND).min(line.end);
        let range = place.source.clamp(from..to);
        let position = place.source.position(place.span.start);
        Self {
            text: &text[range.clone()],
            offset: range.start,
            line: position.line,
            column: Some(position.column),
        }
    }

    /// Returns the range of the excerpt for a range of the file, as far as it is shown.
    fn range(&self, span: &Range<usize>) -> Range<usize> {
        let within = |at: usize| at.saturating_sub(self.offset).min(self.text.len());
        let range = within(span.start)..within(span.end);
        visible(self.text, &range)
    }

    pub(super) fn snippet<'a>(
        &'a self,
        diagnostic: &'a Diagnostic,
        place: &'a Place,
    ) -> Snippet<'a, Annotation<'a>> {
        let mut primary = AnnotationKind::Primary.span(self.range(&place.span));
        if let Some(label) = &diagnostic.label {
            primary = primary.label(label.as_str());
        }
        let shown = |span: &Range<usize>| self.column.is_none() && span.start >= self.offset;
        let others = diagnostic.labels.iter().filter(|label| shown(&label.span)).map(|label| {
            let span = self.range(&place.source.clamp(label.span.clone()));
            AnnotationKind::Context.span(span).label(label.text.as_str())
        });
        let snippet =
            Snippet::source(self.text).line_start(self.line).annotation(primary).annotations(others);
        match self.column {
            Some(_) => snippet,
            None => snippet.path(place.source.name.as_str()),
        }
    }

    /// Shows the change that mends it.
    pub(super) fn patch<'a>(
        &'a self,
        diagnostic: &'a Diagnostic,
        place: &'a Place,
    ) -> Option<Snippet<'a, Patch<'a>>> {
        let fix = diagnostic.fix.as_ref().filter(|_| self.column.is_none())?;
        let span = place.source.clamp(fix.span.clone());
        let patch = Patch::new(span.start - self.offset..span.end - self.offset, fix.replacement.as_str());
        Some(Snippet::source(self.text).line_start(self.line).path(place.source.name.as_str()).patch(patch))
    }
}

/// Cuts a range to its first line, so that a whole step is not underlined.
fn visible(text: &str, span: &Range<usize>) -> Range<usize> {
    let end = text[span.clone()].find('\n').map_or(span.end, |at| span.start + at);
    span.start..end
}

/// Returns the line that a byte stands on, without its end.
fn line_around(text: &str, at: usize) -> Range<usize> {
    let start = text[..at].rfind('\n').map_or(0, |at| at + 1);
    start..text[at..].find('\n').map_or(text.len(), |end| at + end)
}
