//! A text as a reader of escapes sees it, with the way back to the original.

use std::ops::Range;

/// How many layers of escapes are read.
const LAYERS: u32 = 2;

/// How many bytes of the original can stand for one byte of a view: `\u0000` in each layer.
pub(super) const STRETCH: usize = 6usize.pow(LAYERS);

/// Bytes after reading escapes.
struct View {
    bytes: Vec<u8>,
    /// Where in the original each byte comes from.
    origin: Vec<Range<usize>>,
}

/// Searches a text and each way to read its escapes; returns what was found as ranges of the text itself.
pub(super) fn search(text: &[u8], find: impl Fn(&[u8]) -> Vec<Range<usize>>) -> Vec<Range<usize>> {
    let mut found = find(text);
    let mut layer: Vec<View> = decoders(text).map(|decode| View::of(text, |range| range, decode)).collect();
    for _ in 1..LAYERS {
        found.extend(layer.iter().flat_map(|view| view.search(&find)));
        layer = layer.iter().flat_map(View::decoded).collect();
    }
    found.extend(layer.iter().flat_map(|view| view.search(&find)));
    found
}

/// Returns the ways to read a text in which it is more than it seems.
fn decoders(text: &[u8]) -> impl Iterator<Item = Decoder> {
    let known: [(u8, Decoder); 2] = [(b'%', percent), (b'\\', backslash)];
    known.into_iter().filter(|(escape, _)| text.contains(escape)).map(|(_, decode)| decode)
}

/// Reads one escape at the beginning of some bytes: returns what it stands for and how long it is.
type Decoder = fn(&[u8]) -> Option<(Vec<u8>, usize)>;

impl View {
    fn of(text: &[u8], origin: impl Fn(Range<usize>) -> Range<usize>, decode: Decoder) -> Self {
        let mut view = Self { bytes: Vec::with_capacity(text.len()), origin: Vec::with_capacity(text.len()) };
        let mut at = 0;
        while at < text.len() {
            let (bytes, length) = decode(&text[at..]).unwrap_or_else(|| (vec![text[at]], 1));
            let range = origin(at..at + length);
            view.origin.extend(std::iter::repeat_n(range, bytes.len()));
            view.bytes.extend(bytes);
            at += length;
        }
        view
    }

    fn decoded(&self) -> Vec<Self> {
        decoders(&self.bytes)
            .map(|decode| Self::of(&self.bytes, |range| self.original(&range), decode))
            .collect()
    }

    fn search(&self, find: &impl Fn(&[u8]) -> Vec<Range<usize>>) -> Vec<Range<usize>> {
        find(&self.bytes).iter().map(|range| self.original(range)).collect()
    }

    /// Where in the original a part of the view, which is not empty, comes from.
    fn original(&self, range: &Range<usize>) -> Range<usize> {
        self.origin[range.start].start..self.origin[range.end - 1].end
    }
}

fn percent(text: &[u8]) -> Option<(Vec<u8>, usize)> {
    let digits = text.strip_prefix(b"%")?.get(..2)?;
    Some((vec![u8::try_from(hexadecimal(digits)?).ok()?], 3))
}

fn backslash(text: &[u8]) -> Option<(Vec<u8>, usize)> {
    let escaped = *text.strip_prefix(b"\\")?.first()?;
    let byte = match escaped {
        b'n' => b'\n',
        b't' => b'\t',
        b'r' => b'\r',
        b'b' => 8,
        b'f' => 12,
        b'u' => return unicode(text),
        b'"' | b'\\' | b'/' | b'\'' => escaped,
        _ => return None,
    };
    Some((vec![byte], 2))
}

fn unicode(text: &[u8]) -> Option<(Vec<u8>, usize)> {
    let unit = |text: &[u8]| hexadecimal(text.strip_prefix(b"\\u")?.get(..4)?);
    let high = unit(text)?;
    let (code, length) = match high {
        0xD800..=0xDBFF => {
            let low = unit(&text[6..]).filter(|low| (0xDC00..=0xDFFF).contains(low))?;
            (0x1_0000 + ((high - 0xD800) << 10) + (low - 0xDC00), 12)
        }
        _ => (high, 6),
    };
    Some((char::from_u32(code)?.to_string().into_bytes(), length))
}

fn hexadecimal(digits: &[u8]) -> Option<u32> {
    let all = digits.iter().all(u8::is_ascii_hexdigit);
    if all { u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok() } else { None }
}
