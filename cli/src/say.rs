//! Printing that survives a terminal or a pipe that is gone: a recovery must not end because nobody can see it.

use std::sync::OnceLock;

/// Prints a line on standard error; if that is gone, nobody is there to read it.
macro_rules! say {
    ($($arg:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(anstream::stderr(), $($arg)*);
    }};
}

/// Prints on standard error without a line break.
macro_rules! prompt {
    ($($arg:tt)*) => {{
        use std::io::Write as _;
        let mut stream = anstream::stderr();
        let _ = write!(stream, $($arg)*).and_then(|()| stream.flush());
    }};
}

/// Prints on standard output. Whoever closes it has seen enough.
macro_rules! put {
    ($($arg:tt)*) => {{
        use std::io::Write as _;
        let mut stream = anstream::stdout();
        crate::say::noted(write!(stream, $($arg)*).and_then(|()| stream.flush()));
    }};
}

/// Prints a line on standard output.
macro_rules! putln {
    ($($arg:tt)*) => {{
        use std::io::Write as _;
        crate::say::noted(writeln!(anstream::stdout(), $($arg)*));
    }};
}

/// Why standard output took less than it was given, if it did.
static LOST: OnceLock<String> = OnceLock::new();

/// Remembers that standard output could not be written: a report on a full disk is not there, and must not look like one.
pub(crate) fn noted(written: std::io::Result<()>) {
    if let Err(error) = written
        && error.kind() != std::io::ErrorKind::BrokenPipe
    {
        LOST.get_or_init(|| error.to_string());
    }
}

/// Returns why data on standard output are not complete; nothing if they are, or if whoever reads closed it.
pub(crate) fn lost() -> Option<&'static str> {
    LOST.get().map(String::as_str)
}

pub(crate) use {prompt, put, putln, say};

/// Makes characters that would move the cursor, change colours or reorder text visible: what a program or a person wrote
/// must not act on the terminal of whoever reads it. Line breaks and tabs stay.
pub(crate) fn visible(text: &str) -> std::borrow::Cow<'_, str> {
    let acts = |c: char| (c.is_control() && c != '\n' && c != '\t') || reorders(c);
    if !text.contains(acts) {
        return text.into();
    }
    let shown =
        text.chars().map(|c| if acts(c) { format!("\\u{{{:x}}}", u32::from(c)) } else { c.to_string() });
    shown.collect::<String>().into()
}

/// Characters that hide text or turn its direction around.
fn reorders(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::visible;

    #[test]
    fn what_acts_on_a_terminal_is_made_visible_and_text_stays() {
        assert_eq!(visible("plain\ttext\nof Åsa"), "plain\ttext\nof Åsa");
        assert_eq!(visible("\x1b[2J\x07\r"), "\\u{1b}[2J\\u{7}\\u{d}");
        assert_eq!(visible("a\u{202e}b\u{9b}c"), "a\\u{202e}b\\u{9b}c");
    }
}
