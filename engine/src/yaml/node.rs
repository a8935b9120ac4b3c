use std::ops::Range;

use super::scalar::{self, Doubt, Resolved};

/// One value with the bytes it stands on.
#[derive(Clone, Debug)]
pub struct Node {
    pub span: Range<usize>,
    pub content: Content,
}

/// What a node is.
#[derive(Clone, Debug)]
pub enum Content {
    Scalar(Scalar),
    Sequence(Vec<Node>),
    /// In the order of the file, without duplicates, merges expanded.
    Mapping(Vec<Entry>),
}

/// A key and its value.
#[derive(Clone, Debug)]
pub struct Entry {
    pub key: Key,
    pub value: Node,
}

/// The key of an entry.
#[derive(Clone, Debug)]
pub struct Key {
    pub text: String,
    pub span: Range<usize>,
}

/// A scalar as written.
#[derive(Clone, Debug)]
pub struct Scalar {
    /// With escapes and folding resolved.
    pub text: String,
    /// Neither quoted nor a block: its meaning depends on its letters.
    pub plain: bool,
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
        if let Some(at) = written.find(text) {
            let start = self.span.start + at;
            return start + range.start..start + range.end.min(text.len());
        }
        locate_in_block(text, written, &range).map_or_else(
            || self.span.clone(),
            |found| self.span.start + found.start..self.span.start + found.end,
        )
    }
}

/// Maps a range of a literal block to the indented lines as written.
fn locate_in_block(text: &str, written: &str, range: &Range<usize>) -> Option<Range<usize>> {
    let before = &text[..range.start.min(text.len())];
    let line = before.matches('\n').count();
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    let content = text[line_start..].lines().next().unwrap_or("");
    // The header `|` is a line of its own when the span begins with it.
    let skip = usize::from(written.trim_start().starts_with(['|', '>']));
    let mut at = 0;
    for (number, raw) in written.split_inclusive('\n').enumerate() {
        if number == line + skip {
            let inner = raw.find(content)?;
            let start = at + inner + (range.start - line_start);
            return Some(start..(start + range.len()).min(at + raw.trim_end().len()).max(start));
        }
        at += raw.len();
    }
    None
}
