use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use granit_parser::{ErrorKind, Event, Parser, ScalarStyle, Span, Tag};

use super::node::{Content, Entry, Key, Node, Quotes, Scalar, has_equal_keys};
use super::quick;
use super::words::explain;
use crate::diagnostic::{Diagnostic, Diagnostics, Source, codes};

/// How deep lists and maps may nest.
const MAX_DEPTH: usize = 128;
/// How many keys and values a file may hold: 16 MiB of brackets would fill the memory many times over.
const MAX_NODES: usize = 2_000_000;
/// How many nodes anchors may copy and aliases may add.
const MAX_ALIAS_NODES: usize = 20_000;

/// Parses a file that holds one document. Problems become diagnostics; a file with a syntax error has no tree.
pub fn parse(source: &Arc<Source>, out: &mut Diagnostics) -> Option<Node> {
    let quick = quick::read(&source.text);
    debug_assert!(
        quick.as_ref().is_none_or(|node| agrees(source, node)),
        "{:?} is read in two ways",
        source.text
    );
    quick.or_else(|| parse_all(source, out))
}

/// Says whether the parser reads a file as the quick reader did.
fn agrees(source: &Arc<Source>, node: &Node) -> bool {
    let mut out = Diagnostics::new();
    parse_all(source, &mut out).as_ref() == Some(node) && out.is_empty()
}

/// Parses a file with all that YAML has.
pub(super) fn parse_all(source: &Arc<Source>, out: &mut Diagnostics) -> Option<Node> {
    let mut options = granit_parser::Options::default();
    options.flow_nesting_limit = MAX_DEPTH;
    options.block_nesting_limit = MAX_DEPTH;
    options.set_emit_comments(false);
    let mut builder = Builder::new(source, out);
    for event in Parser::new_from_str_with_options(&source.text, options) {
        let going_on = match event {
            Ok((event, span)) => builder.event(event, &span),
            Err(error) => {
                let at = error.marker().byte_offset().unwrap_or(source.text.len());
                if matches!(error.kind(), ErrorKind::RecursionLimitExceeded) {
                    builder.too_deep(at..at + 1)
                } else {
                    let (message, help) = explain(error.kind(), error.info());
                    builder.syntax_error(at, message, help);
                    Err(Stop)
                }
            }
        };
        if going_on.is_err() {
            return None;
        }
    }
    let nothing = Scalar { text: String::new(), plain: true, quotes: Quotes::None };
    let empty = Node { span: 0..0, content: Content::Scalar(nothing) };
    Some(builder.root.unwrap_or(empty))
}

/// The tree is not worth going on with; a diagnostic says why.
struct Stop;

enum Frame {
    Sequence { start: usize, anchor: usize, nodes: Vec<Node> },
    Mapping { start: usize, anchor: usize, entries: Vec<Entry>, key: Option<Key> },
}

struct Builder<'a> {
    source: &'a Arc<Source>,
    out: &'a mut Diagnostics,
    stack: Vec<Frame>,
    anchors: HashMap<usize, Node>,
    /// What aliases and anchors may still copy.
    budget: usize,
    root: Option<Node>,
    documents: usize,
    nodes: usize,
}

impl<'a> Builder<'a> {
    fn new(source: &'a Arc<Source>, out: &'a mut Diagnostics) -> Self {
        Self {
            source,
            out,
            stack: Vec::new(),
            anchors: HashMap::new(),
            budget: MAX_ALIAS_NODES,
            root: None,
            documents: 0,
            nodes: 0,
        }
    }

    fn event(&mut self, event: Event<'_>, span: &Span) -> Result<(), Stop> {
        let range = span.byte_range().unwrap_or(0..0);
        match event {
            Event::DocumentStart(..) => self.document_start(range),
            Event::Scalar(text, style, anchor, tag) => {
                let tagged = self.check_tag(tag.as_deref(), &range);
                let plain = matches!(style, ScalarStyle::Plain) && !tagged;
                let quotes = match style {
                    ScalarStyle::SingleQuoted => Quotes::Single,
                    ScalarStyle::DoubleQuoted => Quotes::Double,
                    _ => Quotes::None,
                };
                let content = Content::Scalar(Scalar { text: text.into_owned(), plain, quotes });
                self.finish(Node { span: range, content }, anchor)
            }
            Event::SequenceStart(_, anchor, tag) => {
                self.check_tag(tag.as_deref(), &range);
                self.open(Frame::Sequence { start: range.start, anchor, nodes: Vec::new() }, &range)
            }
            Event::MappingStart(_, anchor, tag) => {
                self.check_tag(tag.as_deref(), &range);
                let frame = Frame::Mapping { start: range.start, anchor, entries: Vec::new(), key: None };
                self.open(frame, &range)
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(range),
            Event::Alias(id) => self.alias(id, range),
            _ => Ok(()),
        }
    }

    fn document_start(&mut self, range: Range<usize>) -> Result<(), Stop> {
        self.documents += 1;
        if self.documents < 2 {
            return Ok(());
        }
        self.out.push(
            Diagnostic::error(codes::LB0101, "a second document begins here")
                .at(self.source, range)
                .help("keep one document in a file; remove this `---` and what follows"),
        );
        Err(Stop)
    }

    fn open(&mut self, frame: Frame, range: &Range<usize>) -> Result<(), Stop> {
        self.stack.push(frame);
        if self.stack.len() > MAX_DEPTH { self.too_deep(range.clone()) } else { Ok(()) }
    }

    fn close(&mut self, range: Range<usize>) -> Result<(), Stop> {
        match self.stack.pop() {
            Some(Frame::Sequence { start, anchor, nodes }) => {
                let last = nodes.last().map(|node| node.span.end);
                let span = start..end_of(start, last, &range);
                self.finish(Node { span, content: Content::Sequence(nodes) }, anchor)
            }
            Some(Frame::Mapping { start, anchor, entries, .. }) => {
                let last = entries.last().map(|entry| entry.value.span.end.max(entry.key.span.end));
                let span = start..end_of(start, last, &range);
                let entries = self.settle(entries);
                self.finish(Node { span, content: Content::Mapping(entries) }, anchor)
            }
            None => Ok(()),
        }
    }

    /// Puts a finished node where it belongs.
    fn finish(&mut self, node: Node, anchor: usize) -> Result<(), Stop> {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            let text = format!("the file holds more than {MAX_NODES} keys and values");
            let help = "no runbook needs that many; is it the right file?";
            self.out.push(Diagnostic::error(codes::LB0102, text).at(self.source, node.span).help(help));
            return Err(Stop);
        }
        if anchor != 0 {
            self.spend(node.count(), &node.span)?;
            self.anchors.insert(anchor, node.clone());
        }
        match self.stack.last_mut() {
            None => self.root = Some(node),
            Some(Frame::Sequence { nodes, .. }) => nodes.push(node),
            Some(Frame::Mapping { key: slot @ None, .. }) => {
                let (span, text) = (node.span.clone(), node.text().map(ToOwned::to_owned));
                *slot = Some(Key { text: text.clone().unwrap_or_default(), span: span.clone() });
                if text.is_none() {
                    let help =
                        "remove the `?` or the brackets; put text that begins with a bracket into quotes";
                    self.syntax_error(
                        span.start,
                        "a key must be a word, not a list or a map".to_owned(),
                        Some(help),
                    );
                    return Err(Stop);
                }
            }
            Some(Frame::Mapping { key, entries, .. }) => {
                if let Some(key) = key.take() {
                    entries.push(Entry { key, value: node });
                }
            }
        }
        Ok(())
    }

    fn alias(&mut self, id: usize, range: Range<usize>) -> Result<(), Stop> {
        let Some(node) = self.anchors.get(&id) else {
            let message = "this alias stands inside the value it refers to".to_owned();
            self.syntax_error(range.start, message, Some("write the value out; nothing can hold itself"));
            return Err(Stop);
        };
        let (count, depth) = (node.count(), node.depth());
        let node = node.clone();
        self.spend(count, &range)?;
        if self.stack.len() + depth > MAX_DEPTH {
            return self.too_deep(range);
        }
        self.finish(node, 0)
    }

    fn spend(&mut self, nodes: usize, range: &Range<usize>) -> Result<(), Stop> {
        if let Some(left) = self.budget.checked_sub(nodes) {
            self.budget = left;
            return Ok(());
        }
        let text = format!("anchors and aliases of this file stand for more than {MAX_ALIAS_NODES} values");
        self.out.push(
            Diagnostic::error(codes::LB0102, text).at(self.source, range.clone()).help("write fewer aliases"),
        );
        Err(Stop)
    }

    fn too_deep(&mut self, range: Range<usize>) -> Result<(), Stop> {
        let text = format!("lists and maps nest deeper than {MAX_DEPTH} levels here");
        let help = "write the deeper part flat; no runbook needs that many levels";
        self.out.push(Diagnostic::error(codes::LB0102, text).at(self.source, range).help(help));
        Err(Stop)
    }

    /// Reports duplicate keys and expands merge keys. Keys of the map itself win over merged ones.
    fn settle(&mut self, entries: Vec<Entry>) -> Vec<Entry> {
        if !has_equal_keys(&entries) && entries.iter().all(|entry| entry.key.text != "<<") {
            return entries;
        }
        let mut seen: HashMap<String, Range<usize>> = HashMap::new();
        let (mut kept, mut merged) = (Vec::with_capacity(entries.len()), Vec::new());
        for entry in entries {
            if entry.key.text == "<<" {
                merged.push(entry.value);
                continue;
            }
            if let Some(first) = seen.get(&entry.key.text) {
                self.out.push(
                    Diagnostic::error(
                        codes::LB0103,
                        format!("the key `{}` stands here twice", entry.key.text),
                    )
                    .at(self.source, entry.key.span.clone())
                    .label("second")
                    .also(first.clone(), "first")
                    .help("remove one of the two"),
                );
                continue;
            }
            seen.insert(entry.key.text.clone(), entry.key.span.clone());
            kept.push(entry);
        }
        for node in merged {
            self.merge(node, &mut kept, &mut seen);
        }
        kept
    }

    fn merge(&mut self, node: Node, kept: &mut Vec<Entry>, seen: &mut HashMap<String, Range<usize>>) {
        match node.content {
            Content::Mapping(entries) => {
                for entry in entries {
                    if !seen.contains_key(&entry.key.text) {
                        seen.insert(entry.key.text.clone(), entry.key.span.clone());
                        kept.push(entry);
                    }
                }
            }
            Content::Sequence(nodes) => nodes.into_iter().for_each(|node| self.merge(node, kept, seen)),
            Content::Scalar(_) => self.out.push(
                Diagnostic::error(codes::LB0101, "`<<` takes a map, or a list of maps")
                    .at(self.source, node.span)
                    .help("name the anchor of a map: `<<: *defaults`"),
            ),
        }
    }

    /// Says whether a tag makes a scalar text. Other tags change nothing that we read, and so are refused.
    fn check_tag(&mut self, tag: Option<&Tag>, range: &Range<usize>) -> bool {
        let Some(tag) = tag else { return false };
        match tag.core_suffix() {
            Some("str") => true,
            Some("map" | "seq") => false,
            _ => {
                self.out.push(
                    Diagnostic::error(codes::LB0101, format!("the tag `{tag}` means nothing here"))
                        .at(self.source, range.clone())
                        .help("remove the tag; types are known from the key"),
                );
                false
            }
        }
    }

    fn syntax_error(&mut self, at: usize, message: String, help: Option<&str>) {
        let text = &self.source.text;
        let at = self.source.clamp(at..at).start;
        let line = text[..at].rsplit('\n').next().unwrap_or("");
        let rest = text[at..].lines().next().unwrap_or("");
        let end = at + rest.chars().next().map_or(0, char::len_utf8);
        let diagnostic = Diagnostic::error(codes::LB0101, message).at(self.source, at..end);
        let is_list = line.contains('[') && rest.starts_with('[');
        let diagnostic = if line.contains('\t') || rest.starts_with('\t') {
            diagnostic.help("indent with blanks; tabs are not allowed in YAML")
        } else if is_list && help.is_some_and(|help| help.starts_with("put text with `,`")) {
            diagnostic.help("put an expression with `[ ]` into quotes: `[\"rows[0].n > 0\"]`")
        } else if let Some((span, quoted)) = bare_template(text, at) {
            diagnostic.help("put text with `{{ … }}` into quotes").fix(span, quoted)
        } else if format!("{line}{rest}").contains("{{") {
            diagnostic.help("put text with `{{ … }}` into double quotes")
        } else {
            diagnostic.maybe_help(help.map(ToOwned::to_owned))
        };
        self.out.push(diagnostic);
    }
}

/// Finds the value `{{ … }}` without quotes that stands on the line of `at`, and the same in quotes. `None` where it is
/// not certain how far the value reaches.
fn bare_template(text: &str, at: usize) -> Option<(Range<usize>, String)> {
    let start = text[..at].rfind('\n').map_or(0, |at| at + 1);
    let line = text[start..].lines().next()?;
    let open = line.find("{{")?;
    let before = line[..open].trim_end();
    let close = open + line[open..].rfind("}}")? + 2;
    let (value, after) = (&line[open..close], line[close..].trim());
    let is_value = before.ends_with([':', '-']) && !before.contains(['"', '\'', '{', '[', '#']);
    let is_last_of_map = before.ends_with(':')
        && before.matches('{').count() == 1
        && after == "}"
        && !line[..open].contains(['"', '\'', '[', '#']);
    if !(is_value && after.is_empty() || is_last_of_map)
        || value.matches("{{").count() != value.matches("}}").count()
    {
        return None;
    }
    let quote = if value.contains('"') { '\'' } else { '"' };
    let fits = !value.contains(quote) && !value.contains('\\');
    fits.then(|| (start + open..start + close, format!("{quote}{value}{quote}")))
}

/// Block collections end where their last child ends; flow collections with their bracket.
fn end_of(start: usize, last: Option<usize>, closing: &Range<usize>) -> usize {
    if closing.end > closing.start { closing.end } else { last.unwrap_or(start).max(start) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (Option<Node>, Vec<String>) {
        let source = Source::new("t.yaml", text);
        let mut out = Diagnostics::new();
        let node = parse(&source, &mut out);
        let found = out.iter().map(|d| format!("{} {}", d.code, d.message)).collect();
        (node, found)
    }

    fn good(text: &str) -> Node {
        let (node, found) = read(text);
        assert!(found.is_empty(), "{found:?}");
        node.unwrap()
    }

    #[test]
    fn nodes_know_their_bytes() {
        let text = "a: 1\nlist:\n  - x: 'y'\n    z: |\n      one\n      two {{ v }}\nlast: { f: [1, 2] }\n";
        let node = good(text);
        let list = node.get("list").unwrap();
        let first = &list.sequence().unwrap()[0];
        assert_eq!(&text[first.get("x").unwrap().span.clone()], "'y'");
        assert_eq!(&text[first.entry("z").unwrap().key.span.clone()], "z");
        assert_eq!(&text[node.get("last").unwrap().span.clone()], "{ f: [1, 2] }");
        let block = first.get("z").unwrap();
        let at = block.text().unwrap().find("{{").unwrap();
        assert_eq!(&text[block.locate(text, at..at + 7)], "{{ v }}");
        assert!(!block.scalar().unwrap().plain);
    }

    #[test]
    fn merges_and_aliases_are_expanded() {
        let node = good("base: &b { x: 1, y: 2 }\nuse:\n  <<: *b\n  y: 3\n");
        let used = node.get("use").unwrap();
        assert_eq!(used.get("x").unwrap().text(), Some("1"));
        assert_eq!(used.get("y").unwrap().text(), Some("3"));
    }

    #[test]
    fn duplicates_are_reported_and_the_rest_is_read() {
        let (node, found) = read("a: 1\nb: 2\na: 3\nb: 4\n");
        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!(node.unwrap().get("a").unwrap().text(), Some("1"));
    }

    #[test]
    fn hostile_files_end_at_a_limit() {
        let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n".to_owned();
        for level in 1..10 {
            let before = vec![format!("*a{}", level - 1); 9].join(",");
            bomb += &format!("a{level}: &a{level} [{before}]\n");
        }
        let flow = "[".repeat(200_000);
        let mut block = String::new();
        for level in 0..200 {
            block += &format!("{}a:\n", " ".repeat(level));
        }
        for text in [
            bomb.as_str(),
            &flow,
            &block,
            "a: &a [*a]",
            "a: 1\n---\nb: 2\n",
            "? [a]\n: b\n",
            "x: !ruby/object 1",
        ] {
            let (_, found) = read(text);
            assert_eq!(found.len(), 1, "{found:?}");
        }
        let mut out = Diagnostics::new();
        assert!(Source::from_bytes("big", vec![b'a'; 16 * 1024 * 1024 + 1], &mut out).is_none());
        assert!(Source::from_bytes("latin", vec![b'a', 0xe4], &mut out).is_none());
        assert_eq!(out.counts(), (2, 0));
    }

    #[test]
    fn syntax_errors_have_a_place() {
        let source = Source::new("t.yaml", "a: 1\nb:\n\t- x\n");
        let mut out = Diagnostics::new();
        assert!(parse(&source, &mut out).is_none());
        let found = out.iter().next().unwrap();
        assert_eq!(found.code, codes::LB0101);
        assert!(found.help.as_deref().unwrap().contains("tabs"), "{found:?}");
    }
}
