use std::ops::Range;
use std::sync::Arc;

use super::nearest::{nearest, nearest_help};
use super::source::Source;
use crate::code::Code;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Nothing can be run.
    Error,
    /// It can be run, and will surprise somebody.
    Warning,
}

/// A range of bytes of a file.
#[derive(Clone, Debug)]
pub struct Place {
    pub source: Arc<Source>,
    pub span: Range<usize>,
}

impl Place {
    /// Returns `FILE:LINE`, as plans store it.
    pub fn short(&self) -> String {
        format!("{}:{}", self.source.name, self.source.position(self.span.start).line)
    }
}

/// A second place in the same file that explains the first.
#[derive(Clone, Debug)]
pub struct Label {
    pub span: Range<usize>,
    pub text: String,
}

/// A change that mends it: the bytes of `span` become `replacement`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fix {
    pub span: Range<usize>,
    pub replacement: String,
}

/// One problem.
#[derive(Clone, Debug)]
pub struct Diagnostic {
    pub code: Code,
    pub severity: Severity,
    pub message: String,
    /// Absent if no file is at fault.
    pub place: Option<Place>,
    /// A few words under the caret.
    pub label: Option<String>,
    pub labels: Vec<Label>,
    /// What to do next.
    pub help: Option<String>,
    pub fix: Option<Fix>,
}

impl Diagnostic {
    /// Begins an error.
    pub fn error(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            severity: Severity::Error,
            message: message.into(),
            place: None,
            label: None,
            labels: Vec::new(),
            help: None,
            fix: None,
        }
    }

    /// Begins a warning.
    pub fn warning(code: Code, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(code, message) }
    }

    /// Says where it is.
    #[must_use]
    pub fn at(mut self, source: &Arc<Source>, span: Range<usize>) -> Self {
        let span = source.clamp(span);
        self.place = Some(Place { source: Arc::clone(source), span });
        self
    }

    /// Puts a few words under the caret.
    #[must_use]
    pub fn label(mut self, text: impl Into<String>) -> Self {
        self.label = Some(text.into());
        self
    }

    /// Points at a second place of the same file.
    #[must_use]
    pub fn also(mut self, span: Range<usize>, text: impl Into<String>) -> Self {
        self.labels.push(Label { span, text: text.into() });
        self
    }

    /// Says what to do next.
    #[must_use]
    pub fn help(mut self, text: impl Into<String>) -> Self {
        self.help = Some(text.into());
        self
    }

    /// Says what to do next, if anything is known.
    #[must_use]
    pub fn maybe_help(mut self, text: Option<String>) -> Self {
        self.help = text.or(self.help);
        self
    }

    /// Suggests the name that was most likely meant, as a change where the wrong one is written out at the place;
    /// without one lists all names, if they are few.
    #[must_use]
    pub fn suggest<'a>(
        mut self,
        text: &str,
        what: &str,
        candidates: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        let candidates: Vec<_> = candidates.into_iter().collect();
        if let (Some(near), Some(span)) = (nearest(text, candidates.iter().copied()), self.written(text)) {
            self = self.fix(span, near);
        }
        self.maybe_help(nearest_help(text, what, candidates))
    }

    /// Narrows the place to one word of it, where the word stands there exactly once.
    #[must_use]
    pub fn narrowed_to(mut self, word: &str) -> Self {
        if let (Some(span), Some(place)) = (self.written(word), &mut self.place) {
            place.span = span;
        }
        self
    }

    /// Finds the bytes of a word at the place; `None` if it is not written there, or more than once.
    fn written(&self, word: &str) -> Option<Range<usize>> {
        let place = self.place.as_ref()?;
        let text = place.source.text.get(place.span.clone())?;
        let part_of_word = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-');
        let mut found = text.match_indices(word).filter(|(at, _)| {
            !text[..*at].ends_with(part_of_word) && !text[at + word.len()..].starts_with(part_of_word)
        });
        let (at, _) = found.next().filter(|_| !word.is_empty())?;
        let start = place.span.start + at;
        found.next().is_none().then(|| start..start + word.len())
    }

    /// Offers a change.
    #[must_use]
    pub fn fix(mut self, span: Range<usize>, replacement: impl Into<String>) -> Self {
        self.fix = Some(Fix { span, replacement: replacement.into() });
        self
    }
}

/// How long a message is at most, and a help, in bytes: a file may hold a name of a megabyte.
const MAX_MESSAGE: usize = 600;
const MAX_HELP: usize = 2_000;
/// How long a change is at most, in bytes; it may be a whole script.
const MAX_CHANGE: usize = 64 * 1024;

impl Diagnostic {
    fn clipped(mut self) -> Self {
        shorten(&mut self.message, MAX_MESSAGE);
        if let Some(help) = &mut self.help {
            shorten(help, MAX_HELP);
        }
        self.fix = self.fix.filter(|fix| fix.replacement.len() <= MAX_CHANGE);
        self
    }
}

/// Leaves out the middle of a text that is longer; what is wrong is mostly said at its end.
fn shorten(text: &mut String, most: usize) {
    if text.len() > most {
        let head = text.floor_char_boundary(most * 3 / 4);
        let tail = text.ceil_char_boundary(text.len() - most / 4);
        text.replace_range(head..tail, " … ");
    }
}

/// All problems that were found.
#[derive(Clone, Debug, Default)]
pub struct Diagnostics {
    list: Vec<Diagnostic>,
}

impl Diagnostics {
    /// Makes an empty collection.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a problem. What is too long to be read is left out of the middle of its texts.
    pub fn push(&mut self, diagnostic: Diagnostic) {
        self.list.push(diagnostic.clipped());
    }

    /// Adds some problems.
    pub fn extend(&mut self, more: impl IntoIterator<Item = Diagnostic>) {
        self.list.extend(more.into_iter().map(Diagnostic::clipped));
    }

    /// Adds all problems of another collection.
    pub fn append(&mut self, other: Diagnostics) {
        self.list.extend(other.list);
    }

    /// Says whether anything is an error.
    pub fn has_errors(&self) -> bool {
        self.list.iter().any(|diagnostic| diagnostic.severity == Severity::Error)
    }

    /// Counts what was found.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Says whether nothing was found.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Keeps only what concerns files that `wanted` accepts by their name.
    pub fn retain(&mut self, wanted: impl Fn(&str) -> bool) {
        self.list.retain(|it| it.place.as_ref().is_some_and(|place| wanted(&place.source.name)));
    }

    /// Counts errors and warnings.
    pub fn counts(&self) -> (usize, usize) {
        let errors = self.list.iter().filter(|d| d.severity == Severity::Error).count();
        (errors, self.list.len() - errors)
    }

    /// Iterates over what was found, in the order of [`Diagnostics::sort`] once that was called.
    pub fn iter(&self) -> impl Iterator<Item = &Diagnostic> {
        self.list.iter()
    }

    /// Sorts by file and position, and drops what was said twice about one place.
    pub fn sort(&mut self) {
        self.list.sort_by(|a, b| key(a).cmp(&key(b)));
        self.list.dedup_by(|a, b| key(a) == key(b));
    }
}

fn key(diagnostic: &Diagnostic) -> (&str, usize, usize, &str, &str) {
    let (file, start, end) = match &diagnostic.place {
        Some(place) => (place.source.name.as_str(), place.span.start, place.span.end),
        None => ("", 0, 0),
    };
    (file, start, end, diagnostic.code.id, &diagnostic.message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_very_long_texts_the_middle_is_left_out() {
        let mut out = Diagnostics::new();
        let long = "é".repeat(5_000);
        out.push(Diagnostic::error(super::super::codes::LB0108, format!("`{long}` has no unit")).help(long));
        let only = out.iter().next().unwrap();
        assert!(only.message.starts_with("`éé") && only.message.ends_with("éé` has no unit"));
        assert!(only.message.contains(" … ") && only.message.len() < 700, "{}", only.message.len());
        assert!(only.help.as_ref().is_some_and(|help| help.len() < 2_100));
    }
}
