use std::ops::Range;

use serde_json::{Map, Value};

use super::command::{Word, unsafe_place};
use super::evaluate::{ExprError, brief, evaluate};

/// A `{{ … }}` in a script, at a place where a quoted value is one word or part of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hole {
    /// With its braces.
    pub range: Range<usize>,
    /// The expression within.
    pub expression: Range<usize>,
}

/// A `{{ … }}` at a place where no quoting makes a value safe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub range: Range<usize>,
    /// Where it stands, in words: `inside double quotes`.
    pub place: &'static str,
}

/// Finds all templates of a bash script, and those that stand where they must not.
///
/// Wherever this reading of bash could differ from bash's own, the rest of the script takes no templates.
pub fn holes(script: &str) -> (Vec<Hole>, Vec<Refused>) {
    let mut lexer = Lexer::new(script);
    lexer.run();
    let Lexer { holes, mut refused, forbidden, .. } = lexer;
    for (hole, place) in &forbidden {
        refused.push(Refused { range: holes[*hole].range.clone(), place });
    }
    refused.sort_by_key(|refused| refused.range.start);
    let is_word = |at: &usize| forbidden.iter().all(|(hole, _)| hole != at);
    let holes = holes.into_iter().enumerate().filter(|(at, _)| is_word(at)).map(|(_, hole)| hole).collect();
    (holes, refused)
}

/// Puts values into a script, each in single quotes.
pub fn render_script(script: &str, names: &Map<String, Value>) -> Result<String, ExprError> {
    let (holes, refused) = holes(script);
    if let Some(refused) = refused.first() {
        return Err(ExprError {
            message: format!("a template {} cannot be quoted: pass it through `env:`", refused.place),
            range: Some(refused.range.clone()),
            help: None,
        });
    }
    let (mut result, mut from) = (String::with_capacity(script.len()), 0);
    for hole in holes {
        let value = evaluate(script[hole.expression.clone()].trim(), names)
            .map_err(|error| ExprError { range: Some(hole.range.clone()), ..error })?;
        let word = word(&value)
            .map_err(|message| ExprError { range: Some(hole.range.clone()), ..ExprError::new(message) })?;
        result.push_str(&script[from..hole.range.start]);
        result.push_str(&quote(&word));
        from = hole.range.end;
    }
    result.push_str(&script[from..]);
    Ok(result)
}

/// Puts a text into single quotes, so that bash reads it as itself.
pub fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

fn word(value: &Value) -> Result<String, String> {
    match value {
        Value::String(text) if text.contains('\0') => Err("a NUL byte cannot stand in a script".to_owned()),
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        Value::Bool(truth) => Ok(truth.to_string()),
        other => {
            Err(format!("{} is no single word: add `| tojson`, or name one of its values", brief(other)))
        }
    }
}

/// What the lexer is inside of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Context {
    /// Commands: at the top, in `( … )` and in `$( … )`.
    Command,
    DoubleQuotes,
    Backticks,
    /// `${ … }`
    Parameter,
    /// `(( … ))`, `$(( … ))` and the parentheses within.
    Arithmetic,
    ArithmeticParenthesis,
}

struct HereDocument {
    end: String,
    strip_tabs: bool,
}

/// The simple command that is being read in one context.
#[derive(Default)]
struct Frame {
    /// Where the word that is being read begins.
    word: Option<usize>,
    /// The words so far, without the targets of redirections.
    words: Vec<Range<usize>>,
    /// The templates accepted so far, by their position among all.
    holes: Vec<usize>,
    /// The next word is the target of a redirection.
    redirects: bool,
    /// In `NAME=( … )`: words are values, not commands.
    is_array: bool,
}

struct Lexer<'s> {
    text: &'s str,
    at: usize,
    stack: Vec<Context>,
    /// One for each context.
    frames: Vec<Frame>,
    /// Here-documents whose bodies begin after this line.
    pending: Vec<HereDocument>,
    /// True once bash may read what follows in another way than we do.
    unsure: bool,
    holes: Vec<Hole>,
    refused: Vec<Refused>,
    /// Templates that were accepted as words and stand in a command that takes none.
    forbidden: Vec<(usize, &'static str)>,
}

impl<'s> Lexer<'s> {
    fn new(text: &'s str) -> Self {
        Self {
            text,
            at: 0,
            stack: vec![Context::Command],
            frames: vec![Frame::default()],
            pending: Vec::new(),
            unsure: false,
            holes: Vec::new(),
            refused: Vec::new(),
            forbidden: Vec::new(),
        }
    }

    fn run(&mut self) {
        while self.at < self.text.len() {
            if self.starts("{{") {
                self.template();
                continue;
            }
            match self.context() {
                Context::Command => self.command(),
                Context::DoubleQuotes => self.double_quotes(),
                Context::Backticks => self.backticks(),
                Context::Parameter => self.parameter(),
                Context::Arithmetic | Context::ArithmeticParenthesis => self.arithmetic(),
            }
        }
        while !self.frames.is_empty() {
            self.end_command();
            self.frames.pop();
        }
    }

    /// Notes that a word goes on, or begins, at `at`.
    fn in_word(&mut self, at: usize) {
        if let Some(frame) = self.frames.last_mut() {
            frame.word.get_or_insert(at);
        }
    }

    fn end_word(&mut self) {
        let end = self.at;
        let Some(frame) = self.frames.last_mut() else { return };
        let Some(start) = frame.word.take() else { return };
        if !std::mem::take(&mut frame.redirects) {
            frame.words.push(start..end);
        }
    }

    fn word(&self, range: &Range<usize>, holes: &[usize]) -> Word<'s> {
        let holes =
            holes.iter().map(|hole| &self.holes[*hole]).filter(|hole| range.contains(&hole.range.start));
        let of_author = |hole: &Hole| {
            let expression = self.text[hole.expression.clone()].trim();
            let known = expression.starts_with("vars.") || expression.starts_with("resources.");
            known && expression.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.'))
        };
        Word {
            text: &self.text[range.clone()],
            hole: holes.clone().map(|hole| hole.range.start - range.start).min(),
            of_author: holes.into_iter().all(of_author),
        }
    }

    /// Judges the command that ends here: what a program reads as code takes no values, however well quoted.
    fn end_command(&mut self) {
        self.end_word();
        let Some(frame) = self.frames.last_mut() else { return };
        let (words, holes) = (std::mem::take(&mut frame.words), std::mem::take(&mut frame.holes));
        frame.redirects = false;
        let is_array = frame.is_array;
        if holes.is_empty() {
            return;
        }
        let words: Vec<_> = words.iter().map(|word| self.word(word, &holes)).collect();
        let place = if is_array {
            words
                .iter()
                .any(|word| word.hole.is_some() && word.text.starts_with('['))
                .then_some("as a subscript")
        } else {
            unsafe_place(&words)
        };
        if let Some(place) = place {
            self.forbidden.extend(holes.iter().map(|hole| (*hole, place)));
        }
    }

    fn context(&self) -> Context {
        self.stack.last().copied().unwrap_or(Context::Command)
    }

    fn rest(&self) -> &'s str {
        &self.text[self.at..]
    }

    fn starts(&self, prefix: &str) -> bool {
        self.rest().starts_with(prefix)
    }

    fn skip(&mut self, bytes: usize) {
        self.at = (self.at + bytes).min(self.text.len());
        while !self.text.is_char_boundary(self.at) {
            self.at += 1;
        }
    }

    fn push(&mut self, context: Context, bytes: usize) {
        self.in_word(self.at);
        let is_array =
            self.text[..self.at].ends_with('=') && self.context() == Context::Command && bytes == 1;
        self.stack.push(context);
        self.frames.push(Frame { is_array, ..Frame::default() });
        self.skip(bytes);
    }

    fn pop(&mut self, bytes: usize) {
        self.end_command();
        if self.stack.len() > 1 {
            self.stack.pop();
            self.frames.pop();
        }
        self.skip(bytes);
    }

    fn template(&mut self) {
        let (range, expression) = template_at(self.text, self.at);
        self.at = range.end;
        let before = &self.text[..range.start];
        let place = if self.unsure {
            Some("after code that only bash itself can read")
        } else if let Some(place) = self.stack.iter().find_map(|context| forbidden(*context)) {
            Some(place)
        } else if before.ends_with('$') {
            Some("after `$`")
        } else {
            None
        };
        match (place, expression) {
            (Some(place), _) => self.refused.push(Refused { range, place }),
            (None, Some(expression)) => {
                self.in_word(range.start);
                let hole = self.holes.len();
                self.frames.iter_mut().rev().take(1).for_each(|frame| frame.holes.push(hole));
                self.holes.push(Hole { range, expression });
            }
            (None, None) => self.refused.push(Refused { range, place: "without its end `}}`" }),
        }
    }

    /// Refuses every template between here and `end`, and goes there.
    fn refuse_until(&mut self, end: usize, place: &'static str) {
        while let Some(found) = self.text[self.at..end].find("{{") {
            let (range, _) = template_at(self.text, self.at + found);
            self.at = range.end.min(end);
            self.refused.push(Refused { range: range.start..self.at, place });
        }
        self.at = end;
    }

    fn command(&mut self) {
        if self.common() {
            return;
        }
        let rest = self.rest();
        if rest.starts_with('#') && self.at_word_start() {
            let end = self.at + rest.find('\n').unwrap_or(rest.len());
            self.refuse_until(end, "inside a comment");
        } else if rest.starts_with("<<<") {
            self.redirect(3);
        } else if rest.starts_with("<<") {
            self.end_word();
            self.here_document();
        } else if rest.starts_with("&>") || rest.starts_with(">&") || rest.starts_with("<&") {
            self.redirect(2);
        } else if rest.starts_with(['<', '>']) && !rest[1..].starts_with('(') {
            self.redirect(1);
        } else if rest.starts_with([' ', '\t']) {
            self.end_word();
            self.skip(1);
        } else if rest.starts_with([';', '&', '|']) {
            self.end_command();
            self.skip(1);
        } else if rest.starts_with('\n') {
            if self.frames.last().is_some_and(|frame| frame.is_array) {
                self.end_word();
            } else {
                self.end_command();
            }
            self.skip(1);
            self.here_bodies();
        } else if rest.starts_with("((") && self.at_word_start() {
            // Two nested subshells look the same; nothing after it can be relied on if it is not closed at once.
            let line = rest.lines().next().unwrap_or("");
            self.unsure |= !line.contains("))") || line.contains("<<");
            self.push(Context::Arithmetic, 2);
        } else if rest.starts_with('(') {
            self.push(Context::Command, 1);
        } else if rest.starts_with(')') {
            self.pop(1);
        } else {
            if self.stack.iter().any(|context| *context != Context::Command) && self.keyword("case") {
                self.unsure = true;
            }
            // Variables that are numbers or references are computed wherever they are set.
            self.unsure |= self.makes_numbers();
            self.in_word(self.at);
            self.skip(1);
        }
    }

    fn redirect(&mut self, bytes: usize) {
        self.end_word();
        self.skip(bytes);
        if let Some(frame) = self.frames.last_mut() {
            frame.redirects = true;
        }
    }

    /// Says whether a declaration begins here that gives variables a meaning of their own.
    fn makes_numbers(&self) -> bool {
        ["declare", "typeset", "local"].iter().any(|word| self.keyword(word)) && {
            let line = self.rest().lines().next().unwrap_or_default();
            line.split_whitespace().any(|word| word.starts_with('-') && word.contains(['i', 'n']))
        }
    }

    /// What means the same in commands, backticks, parameters and arithmetic. True if something was read.
    fn common(&mut self) -> bool {
        let rest = self.rest();
        if rest.starts_with(['\\', '\'', '"', '$', '`']) {
            self.in_word(self.at);
        }
        if rest.starts_with('\\') {
            self.escape();
        } else if rest.starts_with("$'") {
            self.ansi_quotes();
        } else if rest.starts_with('\'') {
            self.single_quotes();
        } else if rest.starts_with("$\"") {
            self.push(Context::DoubleQuotes, 2);
        } else if rest.starts_with('"') {
            self.push(Context::DoubleQuotes, 1);
        } else {
            return self.expansion();
        }
        true
    }

    /// Reads the beginning, or end, of an expansion.
    fn expansion(&mut self) -> bool {
        let rest = self.rest();
        // Arithmetic of old, whose end depends on what is in it.
        self.unsure |= rest.starts_with("$[");
        if rest.starts_with("$((") {
            self.push(Context::Arithmetic, 3);
        } else if rest.starts_with("$(") {
            self.push(Context::Command, 2);
        } else if rest.starts_with("${") && !rest.starts_with("${{") {
            self.push(Context::Parameter, 2);
        } else if rest.starts_with('`') {
            if self.stack.contains(&Context::Backticks) {
                while self.context() != Context::Backticks {
                    self.unsure = true;
                    self.stack.pop();
                    self.frames.pop();
                }
                self.pop(1);
            } else {
                self.push(Context::Backticks, 1);
            }
        } else {
            return false;
        }
        true
    }

    fn escape(&mut self) {
        self.skip(1);
        if self.starts("{{") {
            let (range, _) = template_at(self.text, self.at);
            self.at = range.end;
            self.refused.push(Refused { range, place: "after a backslash" });
        } else {
            self.skip(1);
        }
    }

    fn single_quotes(&mut self) {
        self.skip(1);
        let end = self.rest().find('\'').map_or(self.text.len(), |end| self.at + end);
        self.refuse_until(end, "inside single quotes");
        self.skip(1);
    }

    fn ansi_quotes(&mut self) {
        self.skip(2);
        let mut end = self.at;
        let bytes = self.text.as_bytes();
        while end < bytes.len() && bytes[end] != b'\'' {
            end += if bytes[end] == b'\\' { 2 } else { 1 };
        }
        let end = self.floor(end);
        self.refuse_until(end, "inside single quotes");
        self.skip(1);
    }

    fn floor(&self, at: usize) -> usize {
        let mut at = at.min(self.text.len());
        while !self.text.is_char_boundary(at) {
            at -= 1;
        }
        at
    }

    fn double_quotes(&mut self) {
        if self.starts("\"") {
            self.pop(1);
        } else if self.starts("\\") {
            self.escape();
        } else if !self.expansion() {
            self.skip(1);
        }
    }

    fn backticks(&mut self) {
        if !self.common() {
            self.unsure |= self.starts("<<") || self.keyword("case");
            self.skip(1);
        }
    }

    fn parameter(&mut self) {
        let quoted = self.stack.iter().rev().nth(1) == Some(&Context::DoubleQuotes);
        if self.starts("}") {
            self.pop(1);
        } else if quoted && self.starts("'") {
            // In `"${x:-it's}"` the quote is a letter, in `"${x#'a'}"` it is a quote.
            self.unsure = true;
            self.skip(1);
        } else if !self.common() {
            self.skip(1);
        }
    }

    fn arithmetic(&mut self) {
        let inner = self.context() == Context::ArithmeticParenthesis;
        if self.starts("(") {
            self.push(Context::ArithmeticParenthesis, 1);
        } else if inner && self.starts(")") {
            self.pop(1);
        } else if self.starts("))") {
            self.pop(2);
        } else if !self.common() {
            // A `)` or a line break here means that this was no arithmetic.
            self.unsure |= self.starts(")") || self.starts("\n");
            self.skip(1);
        }
    }

    fn here_document(&mut self) {
        self.skip(2);
        let strip_tabs = self.starts("-");
        self.skip(usize::from(strip_tabs));
        let blanks = self.rest().len() - self.rest().trim_start_matches([' ', '\t']).len();
        self.skip(blanks);
        let rest = self.rest();
        let length = rest.find([' ', '\t', '\n', ';', '&', '|', '<', '>', '(', ')']).unwrap_or(rest.len());
        let word = &rest[..length];
        if word.is_empty() || word.contains(['$', '`', '{']) {
            self.unsure = true;
            return;
        }
        let end = word.replace(['\'', '"', '\\'], "");
        self.pending.push(HereDocument { end, strip_tabs });
        self.skip(length);
    }

    /// Skips the bodies of the here-documents that were announced on the line before.
    fn here_bodies(&mut self) {
        for document in std::mem::take(&mut self.pending) {
            let mut end = self.at;
            for line in self.rest().split_inclusive('\n') {
                let written = line.trim_end_matches('\n');
                let bare = if document.strip_tabs { written.trim_start_matches('\t') } else { written };
                end += line.len();
                if bare == document.end {
                    break;
                }
            }
            self.refuse_until(end, "inside a here-document");
        }
    }

    fn at_word_start(&self) -> bool {
        self.text[..self.at].chars().next_back().is_none_or(|c| c.is_whitespace() || ";&|()".contains(c))
    }

    fn keyword(&self, word: &str) -> bool {
        self.at_word_start()
            && self.rest().strip_prefix(word).is_some_and(|rest| rest.starts_with(char::is_whitespace))
    }
}

fn forbidden(context: Context) -> Option<&'static str> {
    match context {
        Context::Command => None,
        Context::DoubleQuotes => Some("inside double quotes"),
        Context::Backticks => Some("inside backticks"),
        Context::Parameter => Some("inside `${ }`"),
        Context::Arithmetic | Context::ArithmeticParenthesis => Some("inside arithmetic"),
    }
}

/// Returns the bytes of the template that begins here, and of its expression unless it never ends. Quotes inside
/// the expression may hold braces.
fn template_at(text: &str, start: usize) -> (Range<usize>, Option<Range<usize>>) {
    let mut quote = None;
    let inner = start + 2;
    for (offset, c) in text[inner..].char_indices() {
        let at = inner + offset;
        match (quote, c) {
            (None, '"' | '\'') => quote = Some(c),
            (Some(open), _) if c == open => quote = None,
            (None, '}') if text[at..].starts_with("}}") => return (start..at + 2, Some(inner..at)),
            _ => {}
        }
    }
    // Without an end that respects quotes, the plain one is good enough for a message.
    match text[inner..].find("}}") {
        Some(end) => (start..inner + end + 2, None),
        None => (start..text.len(), None),
    }
}

#[cfg(test)]
mod tests;
