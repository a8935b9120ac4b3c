use std::ops::Range;

use super::reader::Reader;
use crate::diagnostic::{Diagnostic, codes, nearest_help};
use crate::value::{Span, Type};
use crate::yaml::{Entry, Node};

/// A value and the bytes it stands on.
#[derive(Clone, Debug, PartialEq)]
pub struct Spanned<T> {
    pub value: T,
    pub span: Range<usize>,
}

impl<T> Spanned<T> {
    pub(crate) fn new(value: T, span: Range<usize>) -> Self {
        Self { value, span }
    }
}

/// A map whose keys have been checked against a list.
#[derive(Clone, Copy)]
pub(super) struct Keys<'n> {
    pub(super) node: &'n Node,
    entries: &'n [Entry],
}

impl<'n> Keys<'n> {
    /// Wraps a map. Anything else, and every key that is not in the list, is reported.
    pub(super) fn new(reader: &mut Reader<'_>, node: &'n Node, what: &str, known: &[&str]) -> Option<Self> {
        let Some(entries) = node.mapping() else {
            reader.error(codes::LB0106, format!("{what} is a map, not {}", node.describe()), &node.span);
            return None;
        };
        for entry in entries {
            let key = entry.key.text.as_str();
            if !known.contains(&key) {
                unknown_key(reader, entry, what, known);
            }
        }
        Some(Self { node, entries })
    }

    pub(super) fn entry(&self, key: &str) -> Option<&'n Entry> {
        self.entries.iter().find(|entry| entry.key.text == key)
    }

    pub(super) fn get(&self, key: &str) -> Option<&'n Node> {
        self.entry(key).map(|entry| &entry.value)
    }

    /// Returns the value under a key that must be there.
    pub(super) fn need(&self, reader: &mut Reader<'_>, key: &str, what: &str) -> Option<&'n Node> {
        let found = self.get(key);
        if found.is_none() {
            let span = first_line(reader, &self.node.span);
            reader.error(codes::LB0105, format!("{what} has no `{key}`"), &span);
        }
        found
    }

    pub(super) fn text(&self, reader: &mut Reader<'_>, key: &str) -> Option<String> {
        self.get(key).and_then(|node| reader.text(node))
    }

    pub(super) fn flag(&self, reader: &mut Reader<'_>, key: &str) -> Option<bool> {
        self.get(key).and_then(|node| reader.read(node, &Type::Boolean)).and_then(|value| value.as_bool())
    }

    pub(super) fn span(&self, reader: &mut Reader<'_>, key: &str) -> Option<Span> {
        self.get(key).and_then(|node| reader.duration(node))
    }
}

pub(super) fn unknown_key(reader: &mut Reader<'_>, entry: &Entry, what: &str, known: &[&str]) {
    let key = entry.key.text.as_str();
    let near = crate::diagnostic::nearest(key, known.iter().copied());
    let mut diagnostic = Diagnostic::error(reader.unknown, format!("{what} has no key `{key}`"))
        .at(reader.source, entry.key.span.clone())
        .maybe_help(
            nearest_help(key, "its keys", known.iter().copied())
                .or_else(|| Some(format!("its keys: {}", known.join(", ")))),
        );
    if let Some(near) = near.filter(|near| entry_is_free(reader, entry, near)) {
        diagnostic = diagnostic.fix(entry.key.span.clone(), near);
    }
    reader.push(diagnostic);
}

/// A correction is only offered where the key is written as it is read.
fn entry_is_free(reader: &Reader<'_>, entry: &Entry, _near: &str) -> bool {
    reader.source.text.get(entry.key.span.clone()) == Some(entry.key.text.as_str())
}

pub(super) fn first_line(reader: &Reader<'_>, span: &Range<usize>) -> Range<usize> {
    let span = reader.source.clamp(span.clone());
    let text = &reader.source.text[span.clone()];
    span.start..span.start + text.find('\n').unwrap_or(text.len())
}
