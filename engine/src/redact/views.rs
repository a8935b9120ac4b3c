//! A text as a reader of escapes sees it, with the way back to the original.

use std::ops::Range;

/// How many layers of escapes are read.
const LAYERS: usize = 2;

/// Searches a text and each way to read its escapes; returns what was found as ranges of the text itself.
pub(super) fn search(text: &[u8], find: &impl Fn(&[u8]) -> Vec<Range<usize>>) -> Vec<Range<usize>> {
    layer(text, LAYERS, find)
}

fn layer(text: &[u8], below: usize, find: &impl Fn(&[u8]) -> Vec<Range<usize>>) -> Vec<Range<usize>> {
    let mut found = find(text);
    if below > 0 {
        for decoder in &DECODERS {
            let Some(view) = View::of(text, decoder) else { continue };
            let inner = layer(&view.bytes, below - 1, find);
            found.extend(inner.into_iter().map(|range| view.original(&range)));
        }
    }
    found
}

/// One way to read escapes.
struct Decoder {
    /// The bytes at which an escape can begin.
    begins: &'static [u8],
    /// Reads one escape at the beginning of some bytes.
    read: fn(&[u8]) -> Option<Escape>,
}

const DECODERS: [Decoder; 4] = [
    Decoder { begins: b"%", read: percent },
    Decoder { begins: b"\\", read: backslash },
    Decoder { begins: b"'\"", read: quotes },
    Decoder { begins: b"&", read: entity },
];

/// What an escape stands for, and how long it is.
struct Escape {
    bytes: [u8; 4],
    count: usize,
    length: usize,
}

impl Escape {
    fn byte(byte: u8, length: usize) -> Self {
        Self { bytes: [byte, 0, 0, 0], count: 1, length }
    }

    fn char(code: u32, length: usize) -> Option<Self> {
        let mut bytes = [0; 4];
        let count = char::from_u32(code)?.encode_utf8(&mut bytes).len();
        Some(Self { bytes, count, length })
    }
}

/// A text after its escapes were read.
struct View {
    bytes: Vec<u8>,
    parts: Vec<Part>,
}

/// A part of a view: one escape, or what stands between two of them.
struct Part {
    /// Where it begins in the view.
    at: usize,
    /// Where in the original it comes from.
    origin: Range<usize>,
    is_escape: bool,
}

impl View {
    /// Returns how a text reads; `None` if it has no escapes of that sort.
    fn of(text: &[u8], decoder: &Decoder) -> Option<Self> {
        let mut view = Self { bytes: Vec::new(), parts: Vec::new() };
        let (mut plain, mut at) = (0, 0);
        while let Some(next) = text[at..].iter().position(|byte| decoder.begins.contains(byte)) {
            at += next;
            match (decoder.read)(&text[at..]) {
                None => at += 1,
                Some(escape) => {
                    view.push_plain(text, plain..at);
                    view.push_escape(&escape, at);
                    at += escape.length;
                    plain = at;
                }
            }
        }
        if view.parts.is_empty() {
            return None;
        }
        view.push_plain(text, plain..text.len());
        Some(view)
    }

    fn push_plain(&mut self, text: &[u8], origin: Range<usize>) {
        if !origin.is_empty() {
            self.parts.push(Part { at: self.bytes.len(), origin: origin.clone(), is_escape: false });
            self.bytes.extend_from_slice(&text[origin]);
        }
    }

    fn push_escape(&mut self, escape: &Escape, at: usize) {
        if self.bytes.is_empty() {
            self.bytes.reserve(64);
        }
        self.parts.push(Part { at: self.bytes.len(), origin: at..at + escape.length, is_escape: true });
        self.bytes.extend_from_slice(&escape.bytes[..escape.count]);
    }

    /// Where in the original a part of the view, which is not empty, comes from.
    fn original(&self, range: &Range<usize>) -> Range<usize> {
        let (first, last) = (self.part(range.start), self.part(range.end - 1));
        let start = if first.is_escape { 0 } else { range.start - first.at };
        let end = if last.is_escape { last.origin.end } else { last.origin.start + range.end - last.at };
        first.origin.start + start..end
    }

    fn part(&self, position: usize) -> &Part {
        let after = self.parts.partition_point(|part| part.at <= position);
        &self.parts[after - 1]
    }
}

/// `%2F`, of either case.
fn percent(text: &[u8]) -> Option<Escape> {
    Some(Escape::byte(u8::try_from(number(text.get(1..3)?, 16)?).ok()?, 3))
}

/// Escapes of JSON, YAML, Rust, Python, SQL, C and shells: `\n`, `\"`, `\ `, `\x2f`, `\057`, `\u002f`, `\u{2f}`.
fn backslash(text: &[u8]) -> Option<Escape> {
    let escaped = *text.get(1)?;
    let byte = match escaped {
        b'n' => b'\n',
        b't' => b'\t',
        b'r' => b'\r',
        b'b' => 8,
        b'f' => 12,
        b'a' => 7,
        b'v' => 11,
        b'e' | b'E' => 27,
        b'x' => return Some(Escape::byte(u8::try_from(number(text.get(2..4)?, 16)?).ok()?, 4)),
        b'u' if text.get(2) == Some(&b'{') => return braced(text),
        b'u' => return unicode(text),
        b'U' => return Escape::char(number(text.get(2..10)?, 16)?, 10),
        b'0'..=b'7' => return octal(text),
        _ if escaped.is_ascii_punctuation() || escaped == b' ' => escaped,
        _ => return None,
    };
    Some(Escape::byte(byte, 2))
}

fn unicode(text: &[u8]) -> Option<Escape> {
    let unit = |text: &[u8]| number(text.strip_prefix(b"\\u")?.get(..4)?, 16);
    let high = unit(text)?;
    if !(0xD800..=0xDBFF).contains(&high) {
        return Escape::char(high, 6);
    }
    let low = unit(text.get(6..)?).filter(|low| (0xDC00..=0xDFFF).contains(low))?;
    Escape::char(0x1_0000 + ((high - 0xD800) << 10) + (low - 0xDC00), 12)
}

fn braced(text: &[u8]) -> Option<Escape> {
    let digits = text.get(3..)?.iter().take(7).position(|byte| *byte == b'}')?;
    Escape::char(number(&text[3..3 + digits], 16)?, 4 + digits)
}

fn octal(text: &[u8]) -> Option<Escape> {
    let digits = text[1..].iter().take(3).take_while(|byte| (b'0'..=b'7').contains(byte)).count();
    let byte = u8::try_from(number(&text[1..=digits], 8)?).ok()?;
    Some(Escape::byte(byte, 1 + digits))
}

/// A quotation mark within quotation marks: `'\''` and `'"'"'` of shells, `''` and `""` of SQL and CSV.
fn quotes(text: &[u8]) -> Option<Escape> {
    const WAYS: [(&[u8], u8); 4] = [(br"'\''", b'\''), (br#"'"'"'"#, b'\''), (b"''", b'\''), (b"\"\"", b'"')];
    let (way, mark) = WAYS.iter().find(|(way, _)| text.starts_with(way))?;
    Some(Escape::byte(*mark, way.len()))
}

/// `&lt;`, `&#60;`, `&#x3c;`.
fn entity(text: &[u8]) -> Option<Escape> {
    const LONGEST: usize = 10;
    const NAMED: [(&[u8], u8); 5] =
        [(b"lt", b'<'), (b"gt", b'>'), (b"amp", b'&'), (b"quot", b'"'), (b"apos", b'\'')];
    let end = text.iter().take(LONGEST).position(|byte| *byte == b';')?;
    let name = &text[1..end];
    if let Some((_, byte)) = NAMED.iter().find(|(known, _)| *known == name) {
        return Some(Escape::byte(*byte, end + 1));
    }
    let digits = name.strip_prefix(b"#")?;
    let code = match digits.strip_prefix(b"x").or(digits.strip_prefix(b"X")) {
        Some(digits) => number(digits, 16)?,
        None => number(digits, 10)?,
    };
    Escape::char(code, end + 1)
}

/// Reads a number of nothing but digits; `None` for none at all.
fn number(digits: &[u8], base: u32) -> Option<u32> {
    let all = !digits.is_empty() && digits.iter().all(|digit| char::from(*digit).is_digit(base));
    if all { u32::from_str_radix(std::str::from_utf8(digits).ok()?, base).ok() } else { None }
}
