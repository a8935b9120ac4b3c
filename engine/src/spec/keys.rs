use std::ops::Range;

use super::reader::Reader;
use super::schema::about;
use crate::diagnostic::{Diagnostic, codes, nearest};
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
    known: &'n [&'n str],
}

impl<'n> Keys<'n> {
    /// Wraps a map. Anything else, and every key that is not in the list, is reported.
    pub(super) fn new(
        reader: &mut Reader<'_>,
        node: &'n Node,
        what: &str,
        known: &'n [&'n str],
    ) -> Option<Self> {
        let Some(entries) = node.mapping() else {
            let mut keys = known.iter().take(3).map(|key| format!("`{key}:`")).collect::<Vec<_>>();
            if known.len() > keys.len() {
                keys.push("…".to_owned());
            }
            reader.push(
                Diagnostic::error(codes::LB0106, format!("{what} is a map, not {}", node.describe()))
                    .at(reader.source, node.span.clone())
                    .help(format!("write its keys, each with a value: {}", keys.join(", "))),
            );
            return None;
        };
        for entry in entries {
            let key = entry.key.text.as_str();
            if !known.contains(&key) {
                unknown_key(reader, entry, what, known);
            }
        }
        Some(Self { node, entries, known })
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
        if found.is_none() && !is_misspelt(self.entries, key, self.known) {
            let span = first_line(reader, &self.node.span);
            reader.push(
                Diagnostic::error(codes::LB0105, format!("{what} has no `{key}`"))
                    .at(reader.source, span)
                    .maybe_help(about::example(key).map(|example| format!("add `{example}`"))),
            );
        }
        found
    }

    /// Says whether a key that is missing stands there under a name that is nearly right.
    pub(super) fn misspelt(&self, key: &str) -> bool {
        self.get(key).is_none() && is_misspelt(self.entries, key, self.known)
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

/// Says whether a key that is missing stands there under a name that is nearly right, which is reported by itself.
pub(crate) fn is_misspelt(entries: &[Entry], key: &str, known: &[&str]) -> bool {
    // In a map of thousands of keys the cost would multiply.
    if entries.len() > 1000 {
        return false;
    }
    let unknown = entries.iter().map(|entry| entry.key.text.as_str()).filter(|key| !known.contains(key));
    unknown.into_iter().any(|unknown| nearest(unknown, known.iter().copied()) == Some(key))
}

pub(super) fn unknown_key(reader: &mut Reader<'_>, entry: &Entry, what: &str, known: &[&str]) {
    let key = entry.key.text.as_str();
    let diagnostic = Diagnostic::error(reader.unknown, format!("{what} has no key `{key}`"))
        .at(reader.source, entry.key.span.clone())
        .help(format!("its keys: {}", known.join(", ")));
    // Whoever has so many mistakes sees only the first ones.
    let is_crowded = reader.out.len() > 300;
    reader.push(match is_crowded {
        true => diagnostic,
        false => diagnostic.suggest(key, "its keys", known.iter().copied()),
    });
}

pub(super) fn first_line(reader: &Reader<'_>, span: &Range<usize>) -> Range<usize> {
    let span = reader.source.clamp(span.clone());
    let text = &reader.source.text[span.clone()];
    span.start..span.start + text.find('\n').unwrap_or(text.len())
}
