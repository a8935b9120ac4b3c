//! Reads the part of YAML that nearly all files are written in, in a fraction of the time of the parser proper.
//!
//! It is here for one reason: `check` of a hundred runbooks is to take less than 50 ms, and the parser alone takes 30 of them
//! (`docs/benchmarks.md`: 80 ms without this reader, 46 ms with it). It could be removed without any other change.
//!
//! Whatever is not certain is left to the parser: anchors, tags, several documents, text over several lines, tabs, every
//! mistake. So this reader never judges a file. It must never read one otherwise than the parser does: the tests of this
//! module compare the two on random, changed and real files, and builds with debug assertions, so all tests and the
//! fuzzer, compare the trees of every file that they read.

use std::ops::Range;

use super::node::{Content, Entry, Key, Node, Quotes, Scalar, has_equal_keys};

/// The longest file that is read here, in bytes: limits on what a file may hold are the parser's.
const MAX_BYTES: usize = 1024 * 1024;
/// How deep lists and maps may nest here.
const MAX_DEPTH: usize = 64;
/// The longest key, in bytes.
const MAX_KEY: usize = 256;

/// Reads a file; `None` leaves it to the parser.
pub(super) fn read(text: &str) -> Option<Node> {
    if text.len() > MAX_BYTES || !is_plain(text) {
        return None;
    }
    let mut reader = Reader { text, bytes: text.as_bytes(), at: 0, column: 0, depth: 0 };
    reader.next_line()?;
    if reader.column != 0 || reader.is_at_end() {
        return None;
    }
    let root = reader.block(None)?;
    (reader.is_at_end() && root.mapping().is_some()).then_some(root)
}

/// Says whether a text has only characters that are printable, and line feeds.
fn is_plain(text: &str) -> bool {
    let is_fine = |c: char| match c {
        '\n' | ' '..='~' => true,
        '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}' => false,
        _ => c >= '\u{a0}',
    };
    // Without an end before the last byte, many bytes are compared at once.
    let is_odd = |byte: u8| !(b' '..=b'~').contains(&byte) & (byte != b'\n');
    !text.bytes().fold(false, |odd, byte| odd | is_odd(byte)) || text.chars().all(is_fine)
}

/// What ends an unquoted text.
enum End {
    /// A colon with a blank behind it: the text is a key.
    Key,
    Value,
}

struct Reader<'t> {
    text: &'t str,
    bytes: &'t [u8],
    at: usize,
    /// Of the line that was moved to last, how far it is indented; 0 at the end.
    column: usize,
    depth: usize,
}

impl<'t> Reader<'t> {
    fn is_at_end(&self) -> bool {
        self.at >= self.bytes.len()
    }

    fn byte(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn byte_after(&self, count: usize) -> Option<u8> {
        self.bytes.get(self.at + count).copied()
    }

    fn blanks(&mut self) -> usize {
        let from = self.at;
        while self.byte() == Some(b' ') {
            self.at += 1;
        }
        self.at - from
    }

    /// Says whether the colon here ends a key.
    fn is_key_end(&self, at: usize) -> bool {
        self.bytes[at] == b':' && matches!(self.bytes.get(at + 1), None | Some(b' ' | b'\n'))
    }

    fn is_entry(&self) -> bool {
        self.byte() == Some(b'-') && matches!(self.byte_after(1), None | Some(b' ' | b'\n'))
    }

    /// Moves from the beginning of a line to the next text that is no comment.
    fn next_line(&mut self) -> Option<()> {
        loop {
            self.column = self.blanks();
            match self.byte() {
                Some(b'\n') => self.at += 1,
                Some(b'#') => self.skip_line(),
                None => {
                    self.column = 0;
                    return Some(());
                }
                // The boundary of a document, perhaps, or a directive.
                Some(b'-' | b'.' | b'%') if self.column == 0 && !self.is_entry() => return None,
                Some(_) => return Some(()),
            }
        }
    }

    fn skip_line(&mut self) {
        let rest = &self.bytes[self.at..];
        self.at += rest.iter().position(|byte| *byte == b'\n').map_or(rest.len(), |at| at + 1);
    }

    /// Moves behind what may follow a value on its line, and on to the next line.
    fn end_line(&mut self) -> Option<()> {
        let blanks = self.blanks();
        match self.byte() {
            None => {}
            Some(b'\n') => self.at += 1,
            Some(b'#') if blanks > 0 => self.skip_line(),
            Some(_) => return None,
        }
        self.next_line()
    }

    /// Reads what begins here, which may be a list or a map. `parent` is the column of the list or map around it.
    fn block(&mut self, parent: Option<usize>) -> Option<Node> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return None;
        }
        let column = self.column;
        let node = match self.byte()? {
            _ if self.is_entry() => self.sequence(column, self.at),
            b'[' | b'{' | b'|' | b'>' => self.value(parent?),
            _ => {
                let start = self.at;
                let (scalar, end) = self.line_scalar()?;
                match end {
                    End::Key => self.mapping(column, key_of(scalar, start..self.at)?),
                    End::Value => {
                        let node = Node { span: start..self.at, content: Content::Scalar(scalar) };
                        self.end_value(parent?)?;
                        Some(node)
                    }
                }
            }
        };
        self.depth -= 1;
        node
    }

    /// Ends the line of a value. What is indented below it would belong to it.
    fn end_value(&mut self, parent: usize) -> Option<()> {
        self.end_line()?;
        (self.column <= parent).then_some(())
    }

    /// Reads a list. Its place begins at `start`.
    fn sequence(&mut self, column: usize, start: usize) -> Option<Node> {
        let mut nodes = Vec::new();
        loop {
            self.at += 1;
            let blanks = self.blanks();
            if blanks == 0 || matches!(self.byte()?, b'#' | b'\n') {
                return None;
            }
            self.column = column + 1 + blanks;
            nodes.push(self.block(Some(column))?);
            if self.column != column || !self.is_entry() {
                break;
            }
        }
        let end = nodes.last().map_or(start, |node| node.span.end);
        Some(Node { span: start..end, content: Content::Sequence(nodes) })
    }

    /// Reads a map, of which the first key has been read up to its colon.
    fn mapping(&mut self, column: usize, first: Key) -> Option<Node> {
        let (start, mut entries, mut key) = (first.span.start, Vec::new(), first);
        loop {
            self.at += 1;
            let value = self.entry_value(column)?;
            entries.push(Entry { key, value });
            if self.is_at_end() || self.column < column {
                break;
            }
            if self.column > column || self.is_entry() {
                return None;
            }
            let from = self.at;
            let (scalar, End::Key) = self.line_scalar()? else { return None };
            key = key_of(scalar, from..self.at)?;
        }
        let end = entries.last().map_or(start, |entry| entry.value.span.end);
        Some(Node { span: start..end, content: Content::Mapping(distinct(entries)?) })
    }

    /// Reads what stands behind the colon of a map with this column.
    fn entry_value(&mut self, column: usize) -> Option<Node> {
        let blanks = self.blanks();
        match self.byte()? {
            b'\n' => {}
            b'#' if blanks > 0 => {}
            _ => return self.value(column),
        }
        self.end_line()?;
        if self.is_at_end() || self.column < column {
            return None;
        }
        if self.column > column {
            return self.block(Some(column));
        }
        if !self.is_entry() || self.depth >= MAX_DEPTH {
            return None;
        }
        // The parser lets a list that is not indented begin behind its first dash.
        let behind = &self.bytes[self.at + 1..];
        let start = self.at + 1 + behind.iter().take_while(|byte| **byte == b' ').count();
        self.depth += 1;
        let node = self.sequence(column, start)?;
        self.depth -= 1;
        Some(node)
    }

    /// Reads a value that begins on this line and is no block of lines with keys or dashes.
    fn value(&mut self, parent: usize) -> Option<Node> {
        let start = self.at;
        let node = match self.byte()? {
            b'|' => return self.literal(parent),
            b'>' => return self.folded(parent),
            b'[' | b'{' => self.flow(parent)?,
            _ => {
                let (scalar, End::Value) = self.line_scalar()? else { return None };
                Node { span: start..self.at, content: Content::Scalar(scalar) }
            }
        };
        self.end_value(parent)?;
        Some(node)
    }

    /// Reads text on one line outside of brackets, and stays behind it.
    fn line_scalar(&mut self) -> Option<(Scalar, End)> {
        if let Some(quote @ (b'"' | b'\'')) = self.byte() {
            let scalar = self.quoted(quote)?;
            let is_key = !self.is_at_end() && self.is_key_end(self.at);
            return Some((scalar, if is_key { End::Key } else { End::Value }));
        }
        self.begins_plain()?;
        let (start, mut end) = (self.at, End::Value);
        while let Some(byte) = self.byte() {
            match byte {
                b'\n' => break,
                b':' if self.is_key_end(self.at) => {
                    end = End::Key;
                    break;
                }
                b'#' if self.bytes[self.at - 1] == b' ' => break,
                _ => self.at += 1,
            }
        }
        self.plain(start, end)
    }

    /// Checks that unquoted text can begin here.
    fn begins_plain(&self) -> Option<()> {
        let can = match self.byte()? {
            b'-' => self.byte_after(1).is_some_and(|byte| byte.is_ascii_alphanumeric()),
            byte => !b" ,[]{}#&*!|>'\"%@`?:\n".contains(&byte),
        };
        can.then_some(())
    }

    /// Returns the unquoted text that ends here, without the blanks at its end, and goes back to these.
    fn plain(&mut self, start: usize, end: End) -> Option<(Scalar, End)> {
        let text = self.text[start..self.at].trim_end_matches(' ');
        if matches!(end, End::Key) && start + text.len() != self.at {
            return None;
        }
        self.at = start + text.len();
        Some((Scalar { text: text.to_owned(), plain: true, quotes: Quotes::None }, end))
    }

    /// Reads text in quotes on one line, and stays behind it.
    fn quoted(&mut self, quote: u8) -> Option<Scalar> {
        let mut text = String::new();
        self.at += 1;
        let mut from = self.at;
        loop {
            match self.byte()? {
                b'\n' => return None,
                b'\\' if quote == b'"' => {
                    text.push_str(&self.text[from..self.at]);
                    text.push(match self.byte_after(1)? {
                        b'n' => '\n',
                        b't' => '\t',
                        escaped @ (b'"' | b'\\') => char::from(escaped),
                        _ => return None,
                    });
                    self.at += 2;
                    from = self.at;
                }
                byte if byte == quote => {
                    text.push_str(&self.text[from..self.at]);
                    self.at += 1;
                    if quote == b'"' || self.byte() != Some(quote) {
                        break;
                    }
                    text.push('\'');
                    self.at += 1;
                    from = self.at;
                }
                _ => self.at += 1,
            }
        }
        let quotes = if quote == b'"' { Quotes::Double } else { Quotes::Single };
        Some(Scalar { text, plain: false, quotes })
    }

    /// Reads a list or a map in brackets, and stays behind it.
    fn flow(&mut self, parent: usize) -> Option<Node> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return None;
        }
        let (start, is_map) = (self.at, self.byte() == Some(b'{'));
        let close = if is_map { b'}' } else { b']' };
        let (mut nodes, mut entries) = (Vec::new(), Vec::new());
        self.at += 1;
        self.flow_blanks(parent)?;
        while self.byte()? != close {
            match is_map {
                true => entries.push(self.flow_entry(parent)?),
                false => nodes.push(self.flow_node(parent)?),
            }
            self.flow_blanks(parent)?;
            match self.byte()? {
                b',' => {
                    self.at += 1;
                    self.flow_blanks(parent)?;
                    if self.byte() == Some(close) {
                        return None;
                    }
                }
                byte if byte == close => {}
                _ => return None,
            }
        }
        self.at += 1;
        self.depth -= 1;
        let content = if is_map { Content::Mapping(distinct(entries)?) } else { Content::Sequence(nodes) };
        Some(Node { span: start..self.at, content })
    }

    /// Skips blanks and line breaks within brackets. Every line is indented, as the block around it is.
    fn flow_blanks(&mut self, parent: usize) -> Option<()> {
        self.blanks();
        while self.byte() == Some(b'\n') {
            self.at += 1;
            let column = self.blanks();
            if column <= parent && self.byte() != Some(b'\n') {
                return None;
            }
        }
        (self.byte() != Some(b'#')).then_some(())
    }

    fn flow_entry(&mut self, parent: usize) -> Option<Entry> {
        let start = self.at;
        let (scalar, End::Key) = self.flow_scalar()? else { return None };
        let key = key_of(scalar, start..self.at)?;
        self.at += 1;
        self.blanks();
        let value = self.flow_node(parent)?;
        Some(Entry { key, value })
    }

    fn flow_node(&mut self, parent: usize) -> Option<Node> {
        if matches!(self.byte()?, b'[' | b'{') {
            return self.flow(parent);
        }
        let start = self.at;
        let (scalar, End::Value) = self.flow_scalar()? else { return None };
        Some(Node { span: start..self.at, content: Content::Scalar(scalar) })
    }

    /// Reads text on one line within brackets, and stays behind it.
    fn flow_scalar(&mut self) -> Option<(Scalar, End)> {
        if let Some(quote @ (b'"' | b'\'')) = self.byte() {
            let scalar = self.quoted(quote)?;
            return match self.byte()? {
                b':' if self.byte_after(1) == Some(b' ') => Some((scalar, End::Key)),
                b' ' | b',' | b']' | b'}' | b'\n' => Some((scalar, End::Value)),
                _ => None,
            };
        }
        self.begins_plain()?;
        let (start, mut end) = (self.at, End::Value);
        loop {
            match self.byte()? {
                b'\n' | b',' | b']' | b'}' => break,
                b'[' | b'{' => return None,
                b':' => match self.byte_after(1)? {
                    b' ' => {
                        end = End::Key;
                        break;
                    }
                    b'\n' | b',' | b'[' | b']' | b'{' | b'}' => return None,
                    _ => self.at += 1,
                },
                b'#' if self.bytes[self.at - 1] == b' ' => return None,
                _ => self.at += 1,
            }
        }
        self.plain(start, end)
    }

    /// Reads text with `|` in front of it.
    fn literal(&mut self, parent: usize) -> Option<Node> {
        let mut text = String::new();
        self.lines(parent, |line, breaks| {
            text.extend(std::iter::repeat_n('\n', breaks));
            text.push_str(line);
            Some(())
        })
        .map(|(span, keeps_break)| block_scalar(text, span, keeps_break))
    }

    /// Reads text with `>` in front of it.
    fn folded(&mut self, parent: usize) -> Option<Node> {
        let mut text = String::new();
        self.lines(parent, |line, breaks| {
            // Lines that are indented further, or end with blanks, are not simply joined.
            if line.starts_with(' ') || line.ends_with(' ') {
                return None;
            }
            match breaks {
                0 => {}
                1 => text.push(' '),
                _ => text.extend(std::iter::repeat_n('\n', breaks - 1)),
            }
            text.push_str(line);
            Some(())
        })
        .map(|(span, keeps_break)| block_scalar(text, span, keeps_break))
    }

    /// Hands over the lines of a block of text, each with the number of line breaks before it. Returns where the block
    /// stands, and whether its last line break belongs to it.
    fn lines(
        &mut self,
        parent: usize,
        mut each: impl FnMut(&'t str, usize) -> Option<()>,
    ) -> Option<(Range<usize>, bool)> {
        self.at += 1;
        let keeps_break = self.byte()? != b'-';
        self.at += usize::from(!keeps_break);
        if self.byte()? != b'\n' {
            return None;
        }
        self.at += 1;
        let indent = self.blanks();
        let (start, mut breaks) = (self.at, 0);
        if indent <= parent || self.byte()? == b'\n' {
            return None;
        }
        loop {
            let line = self.at;
            self.skip_line();
            each(self.text[line..self.at].strip_suffix('\n')?, breaks)?;
            let found;
            (found, breaks) = self.next_of_block(indent)?;
            if found < indent || self.is_at_end() {
                let span = start..self.at;
                self.at -= found;
                self.next_line()?;
                return (self.column <= parent).then_some((span, keeps_break));
            }
            self.at -= found - indent;
        }
    }

    /// Moves to the next line of a block of text that is not empty. Returns how far it is indented, and the number of
    /// line breaks before it.
    fn next_of_block(&mut self, indent: usize) -> Option<(usize, usize)> {
        let mut breaks = 1;
        loop {
            let found = self.blanks();
            match self.byte() {
                // Blanks without text behind them may belong to the text.
                None => return (found == 0).then_some((0, breaks)),
                Some(b'\n') if found > indent => return None,
                Some(b'\n') => self.at += 1,
                Some(_) => return Some((found, breaks)),
            }
            breaks += 1;
        }
    }
}

fn block_scalar(mut text: String, span: Range<usize>, keeps_break: bool) -> Node {
    if keeps_break {
        text.push('\n');
    }
    Node { span, content: Content::Scalar(Scalar { text, plain: false, quotes: Quotes::None }) }
}

/// Makes a key of a text; merges are the parser's.
fn key_of(scalar: Scalar, span: Range<usize>) -> Option<Key> {
    (span.len() <= MAX_KEY && scalar.text != "<<").then_some(Key { text: scalar.text, span })
}

/// Returns the entries unless a key stands there twice.
fn distinct(entries: Vec<Entry>) -> Option<Vec<Entry>> {
    (!has_equal_keys(&entries)).then_some(entries)
}

#[cfg(test)]
mod tests;
