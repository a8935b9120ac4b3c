use std::collections::HashSet;
use std::ops::Range;

use super::scalar::{self, Doubt, Resolved};

/// One value with the bytes it stands on.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    pub span: Range<usize>,
    pub content: Content,
}

/// What a node is.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    Scalar(Scalar),
    Sequence(Vec<Node>),
    /// In the order of the file, without duplicates, merges expanded.
    Mapping(Vec<Entry>),
}

/// A key and its value.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub key: Key,
    pub value: Node,
}

/// The key of an entry.
#[derive(Clone, Debug, PartialEq)]
pub struct Key {
    pub text: String,
    pub span: Range<usize>,
}

/// A scalar as written.
#[derive(Clone, Debug, PartialEq)]
pub struct Scalar {
    /// With escapes and folding resolved.
    pub text: String,
    /// Neither quoted nor a block: its meaning depends on its letters.
    pub plain: bool,
    pub(super) quotes: Quotes,
}

/// How a scalar is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Quotes {
    /// Plain, or a block.
    None,
    Single,
    Double,
}

impl Scalar {
    /// Returns what the scalar means where nothing says what is wanted.
    pub fn resolve(&self) -> Resolved {
        if self.plain { scalar::resolve(&self.text) } else { Resolved::String }
    }

    /// Returns why somebody may read it differently.
    pub fn doubt(&self) -> Option<Doubt> {
        if self.plain { scalar::doubt(&self.text) } else { None }
    }
}

impl Node {
    /// Returns the scalar, if it is one.
    pub fn scalar(&self) -> Option<&Scalar> {
        match &self.content {
            Content::Scalar(scalar) => Some(scalar),
            _ => None,
        }
    }

    /// Returns the text of a scalar.
    pub fn text(&self) -> Option<&str> {
        self.scalar().map(|scalar| scalar.text.as_str())
    }

    /// Returns the elements of a sequence.
    pub fn sequence(&self) -> Option<&[Node]> {
        match &self.content {
            Content::Sequence(nodes) => Some(nodes),
            _ => None,
        }
    }

    /// Returns the entries of a mapping.
    pub fn mapping(&self) -> Option<&[Entry]> {
        match &self.content {
            Content::Mapping(entries) => Some(entries),
            _ => None,
        }
    }

    /// Returns the entry of a mapping with this key.
    pub fn entry(&self, key: &str) -> Option<&Entry> {
        self.mapping()?.iter().find(|entry| entry.key.text == key)
    }

    /// Returns the value of a mapping under this key.
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.entry(key).map(|entry| &entry.value)
    }

    /// Says whether nothing was written, or a plain `null` or `~`.
    pub fn is_null(&self) -> bool {
        self.scalar().is_some_and(|scalar| scalar.resolve() == Resolved::Null)
    }

    /// Returns what it is, for messages.
    pub fn describe(&self) -> &'static str {
        match &self.content {
            Content::Sequence(_) => "a list",
            Content::Mapping(_) => "a map",
            Content::Scalar(scalar) => scalar.resolve().describe(),
        }
    }

    /// Counts this node and everything in it.
    pub(super) fn count(&self) -> usize {
        1 + match &self.content {
            Content::Scalar(_) => 0,
            Content::Sequence(nodes) => nodes.iter().map(Node::count).sum(),
            Content::Mapping(entries) => entries.iter().map(|entry| 1 + entry.value.count()).sum(),
        }
    }

    /// Returns how many levels of lists and maps it has.
    pub(super) fn depth(&self) -> usize {
        match &self.content {
            Content::Scalar(_) => 0,
            Content::Sequence(nodes) => 1 + nodes.iter().map(Node::depth).max().unwrap_or(0),
            Content::Mapping(entries) => {
                1 + entries.iter().map(|entry| entry.value.depth()).max().unwrap_or(0)
            }
        }
    }

    /// Finds the bytes of the file for a range of the text of this scalar; the whole scalar where escapes or
    /// folding make that impossible.
    pub fn locate(&self, source: &str, range: Range<usize>) -> Range<usize> {
        let Some(text) = self.text() else { return self.span.clone() };
        let Some(written) = source.get(self.span.clone()) else { return self.span.clone() };
        let quotes = self.scalar().map_or(Quotes::None, |scalar| scalar.quotes);
        let quote = usize::from(quotes != Quotes::None);
        if written.get(quote..).is_some_and(|written| written.starts_with(text)) {
            let start = self.span.start + quote;
            return start + range.start..start + range.end.min(text.len());
        }
        align(text, written, quotes, &range).map_or_else(
            || self.span.clone(),
            |found| self.span.start + found.start..self.span.start + found.end,
        )
    }
}

/// So few keys are compared with one another: most maps are small, and a table of their keys costs more than they do.
const FEW: usize = 16;

/// Says whether a key stands in a map twice.
pub(super) fn has_equal_keys(entries: &[Entry]) -> bool {
    if entries.len() > FEW {
        let mut seen = HashSet::with_capacity(entries.len());
        return !entries.iter().all(|entry| seen.insert(entry.key.text.as_str()));
    }
    let mut rest = entries;
    while let [first, others @ ..] = rest {
        if others.iter().any(|other| other.key.text == first.key.text) {
            return true;
        }
        rest = others;
    }
    false
}

/// Walks along a scalar as written and as read, and returns the bytes as written of a range of the text. `None` where
/// the two cannot be brought together.
///
/// Where they differ, the written form has more blanks (indentation, folded lines) or an escape.
fn align(text: &str, written: &str, quotes: Quotes, range: &Range<usize>) -> Option<Range<usize>> {
    let mut at = usize::from(matches!(quotes, Quotes::Single | Quotes::Double));
    let (mut start, mut end) = (None, at);
    for (read, wanted) in text.char_indices() {
        if read >= range.end {
            break;
        }
        let (from, to) = next_char(written, at, quotes, wanted)?;
        if read >= range.start {
            start = start.or(Some(from));
            end = to;
        }
        at = to;
    }
    start.map(|start| start..end)
}

/// Returns the bytes, from `at` on, that are read as one character.
fn next_char(written: &str, mut at: usize, quotes: Quotes, wanted: char) -> Option<(usize, usize)> {
    loop {
        let rest = written.get(at..)?;
        let found = rest.chars().next()?;
        if quotes == Quotes::Double && found == '\\' {
            match escape_length(rest)? {
                // The line goes on.
                (2, true) => {
                    at += 2;
                    continue;
                }
                (length, _) => return Some((at, at + length)),
            }
        }
        let end = at + found.len_utf8();
        if found == wanted {
            let doubled = quotes == Quotes::Single && rest.starts_with("''");
            return Some((at, end + usize::from(doubled)));
        }
        // A line break that is read as a blank.
        if found == '\n' && wanted == ' ' {
            return Some((at, end));
        }
        if !found.is_whitespace() {
            return None;
        }
        at = end;
    }
}

/// Returns how many bytes an escape has, and whether it stands for nothing because it joins two lines.
fn escape_length(rest: &str) -> Option<(usize, bool)> {
    let escaped = rest[1..].chars().next()?;
    Some(match escaped {
        'x' => (4, false),
        'u' => (6, false),
        'U' => (10, false),
        '\n' => (2, true),
        other => (1 + other.len_utf8(), false),
    })
}

#[cfg(test)]
mod tests {
    use crate::diagnostic::{Diagnostics, Source};
    use crate::yaml::parse;

    #[test]
    fn words_are_found_in_every_form_of_a_scalar() {
        for written in [
            "a.wrong",
            "'it''s {{ a.wrong }}'",
            "\"\\\"x\\\" \\u00e9 \\x41 {{ a.wrong }}\"",
            "\"one\n    two\n\n    {{ a.wrong }} three\"",
            "\"one \\\n    {{ a.wrong }}\"",
            "one\n    two {{ a.wrong }}",
            "'one\n\n    two {{ a.wrong }}'",
            "|\n    one\n      two\n    {{ a.wrong }}\n",
            ">\n    one\n    \"two\" {{ a.wrong }}\n\n    three\n",
            ">-\r\n    one é\r\n    {{ a.wrong }}\r\n",
            "|2\n    {{ a.wrong }}\n",
        ] {
            let source = Source::new("t.yaml", format!("k:\n  v: {written}\n"));
            let mut out = Diagnostics::new();
            let Some(root) = parse(&source, &mut out) else { panic!("{written}: {out:?}") };
            let node = root.get("k").unwrap().get("v").unwrap();
            let at = node.text().unwrap().find("a.wrong").unwrap();
            let found = node.locate(&source.text, at..at + 7);
            assert_eq!(source.text.get(found), Some("a.wrong"), "{written}");
        }
    }
}
