use std::io;

use minijinja::machinery::{self, ast};
use serde_json::{Map, Value};

use super::environment::environment;
use super::evaluate::{ExprError, evaluate, from_minijinja};
use super::references::with_parents;

/// The longest text that a template may make, in bytes.
const MAX_OUTPUT: usize = 1024 * 1024;

/// How many operators one expression may have: the parser's tree is as deep as there are, and so is the stack.
const MAX_OPERATORS: usize = 400;
/// How many statements a template may have, and how many of them may be `set`: each can double a text.
const MAX_STATEMENTS: usize = 200;
const MAX_SETS: usize = 10;
/// The longest template with a `set` in it, in bytes.
const MAX_WITH_SET: usize = 64 * 1024;

/// Refuses texts that were built to fill the memory or the stack, before anything reads them.
pub(super) fn guard(text: &str, shape: Shape) -> Result<(), ExprError> {
    let too_much = |message: &str| {
        let help = Some("let a step compute it, and read the step's output".to_owned());
        Err(ExprError { help, ..ExprError::new(message) })
    };
    // What is refused below is long, or has one of these signs in it; most texts are short and have none.
    if text.len() <= MAX_OPERATORS && !text.contains(['*', '%']) {
        return Ok(());
    }
    let statements = text.matches("{%").count();
    if shape == Shape::Template && statements > 0 {
        let sets = text
            .match_indices("{%")
            .filter(|(at, _)| text[at + 2..].trim_start_matches(['-', '+', ' ']).starts_with("set"));
        let sets = sets.count();
        if statements > MAX_STATEMENTS || sets > MAX_SETS || (sets > 0 && text.len() > MAX_WITH_SET) {
            return too_much("the template has too many statements");
        }
    }
    let parts: Vec<&str> = match shape {
        Shape::Expression => vec![text],
        Shape::Template => text.split("{{").flat_map(|part| part.split("{%")).skip(1).collect(),
    };
    for part in parts {
        if part.len() > MAX_OPERATORS && operators(part) > MAX_OPERATORS {
            return too_much(&format!(
                "the expression has more than {MAX_OPERATORS} operators, dots and brackets"
            ));
        }
        if part.contains('*') && repeats_text(part) {
            return too_much("text and lists are not repeated by `*`");
        }
        let digits = |format: &str| {
            format
                .bytes()
                .scan(0, |run, byte| {
                    *run = if byte.is_ascii_digit() { *run + 1 } else { 0 };
                    Some(*run)
                })
                .max()
        };
        if part.contains("format") && part.contains('%') && digits(part).is_some_and(|longest| longest > 4) {
            return too_much("the format makes texts that are too wide");
        }
    }
    Ok(())
}

fn operators(text: &str) -> usize {
    let signs = text.bytes().filter(|byte| b"|.[({~+-*/%<>=".contains(byte)).count();
    let words =
        [" and ", " or ", " not ", " is ", " if ", " in "].iter().map(|word| text.matches(word).count());
    signs + words.sum::<usize>()
}

/// Says whether a text or a list that is written out stands beside a `*`.
fn repeats_text(text: &str) -> bool {
    text.match_indices('*').any(|(at, _)| {
        let (before, after) = (text[..at].trim_end(), text[at + 1..].trim_start());
        let quoted = |text: &str| text.trim_end_matches([')', ' ']).ends_with(['\'', '"']);
        quoted(before)
            || ends_with_list(before)
            || after.trim_start_matches(['(', ' ']).starts_with(['\'', '"', '['])
    })
}

/// Tells `[1, 2]`, a list, from `rows[1]`, an element of one.
fn ends_with_list(text: &str) -> bool {
    let Some(inner) = text.trim_end_matches([')', ' ']).strip_suffix(']') else { return false };
    let mut depth = 1;
    for (at, c) in inner.char_indices().rev() {
        depth += match c {
            ']' => 1,
            '[' => -1,
            _ => 0,
        };
        if depth == 0 {
            let before = inner[..at].trim_end();
            return !before
                .ends_with(|c: char| c.is_alphanumeric() || matches!(c, '_' | ']' | ')' | '"' | '\''));
        }
    }
    true
}

/// How a text is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A bare expression.
    Expression,
    /// Text with `{{ … }}` and `{% … %}` in it.
    Template,
}

/// Says whether a text holds anything to evaluate.
pub fn has_template(text: &str) -> bool {
    text.as_bytes().windows(2).any(|pair| pair[0] == b'{' && matches!(pair[1], b'{' | b'%'))
}

/// Checks the syntax of an expression or template, and the names of filters and tests.
pub fn parse(text: &str, shape: Shape) -> Result<(), ExprError> {
    super::references::references(text, shape).map(|_| ())
}

/// Returns the expression of a text that is exactly one `{{ expression }}`, with its byte offset.
pub(super) fn single_expression(text: &str) -> Option<(usize, &str)> {
    // Most texts are none, and parsing is dear.
    if !text.starts_with("{{") || !text.ends_with("}}") {
        return None;
    }
    guard(text, Shape::Template).ok()?;
    let ast::Stmt::Template(template) =
        machinery::parse(text, "template", environment().syntax().clone()).ok()?
    else {
        return None;
    };
    if !matches!(template.children.as_slice(), [ast::Stmt::EmitExpr(_)]) {
        return None;
    }
    let inner = text.strip_prefix("{{")?.strip_suffix("}}")?;
    let from = inner.strip_prefix(['-', '+']).unwrap_or(inner);
    let expression = from.strip_suffix(['-', '+']).unwrap_or(from);
    Some((text.len() - 2 - from.len(), expression))
}

/// Returns the name of the input if a text is exactly `{{ inputs.NAME }}`.
pub fn input_name(text: &str) -> Option<&str> {
    // Names of resources are asked too, and hardly any is an input.
    if !text.contains("inputs.") {
        return None;
    }
    let name = single_expression(text)?.1.trim().strip_prefix("inputs.")?;
    crate::model::ids::is_plain_id(name).then_some(name)
}

/// Evaluates a text: one single expression keeps the type of its value, anything else becomes text.
pub(super) fn evaluate_text(text: &str, names: &Map<String, Value>) -> Result<Value, ExprError> {
    match single_expression(text) {
        Some((_, expression)) => evaluate(expression.trim(), names),
        None => render_text(text, names).map(Value::String),
    }
}

/// Renders a template to text.
pub fn render_text(text: &str, names: &Map<String, Value>) -> Result<String, ExprError> {
    guard(text, Shape::Template)?;
    let template = environment().template_from_str(text).map_err(|error| from_minijinja(&error))?;
    let names = with_parents(text, Shape::Template, names);
    let mut out = Limited(Vec::new());
    let rendered = template.render_captured_to(minijinja::value::Serde(&*names), &mut out);
    rendered.map_err(|error| match error.kind() {
        minijinja::ErrorKind::WriteFailure => ExprError::new("the text is longer than 1 MiB"),
        _ => from_minijinja(&error),
    })?;
    String::from_utf8(out.0).map_err(|_| ExprError::new("the result is not text"))
}

struct Limited(Vec<u8>);

impl io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_OUTPUT {
            return Err(io::Error::other("too long"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn value(text: &str) -> Result<Value, ExprError> {
        let names = json!({"n": 3, "ok": true, "none": null, "list": [1], "s": "x", "big": "y".repeat(2000)});
        evaluate_text(text, names.as_object().unwrap())
    }

    #[test]
    fn one_expression_keeps_its_type() {
        assert_eq!(value("{{ n + 1 }}"), Ok(json!(4)));
        assert_eq!(value("{{ list }}"), Ok(json!([1])));
        assert_eq!(value("{{ s | default('}}') }}"), Ok(json!("x")));
        assert_eq!(value("{{- ok -}}"), Ok(json!(true)));
        assert_eq!(value(" {{ n }}"), Ok(json!(" 3")));
        assert_eq!(value("{{ n }}{{ s }}"), Ok(json!("3x")));
        assert_eq!(value("{{ n }}\n"), Ok(json!("3\n")));
    }

    #[test]
    fn text_prints_only_what_has_one_text() {
        assert_eq!(value("it is {{ ok }}"), Ok(json!("it is true")));
        assert!(value("a {{ list }}").unwrap_err().message.contains("tojson"));
        assert_eq!(value("a {{ list | tojson }}"), Ok(json!("a [1]")));
        assert!(value("a {{ none }}").unwrap_err().message.contains("null"));
        assert!(value("a {{ missing }}").unwrap_err().message.contains("missing"));
    }

    #[test]
    fn work_and_output_are_limited() {
        let error = value("{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}");
        assert!(error.unwrap_err().message.contains("too long"));
        let error = value("{% for i in range(1000) %}{{ big }}{% endfor %}").unwrap_err();
        assert!(error.message.contains("1 MiB"), "{error:?}");
        let sum = |terms: usize| format!("{{{{ {} }}}}", vec!["n"; terms].join(" + "));
        assert_eq!(value(&sum(200)), Ok(json!(600)));
        assert!(value(&sum(402)).unwrap_err().message.contains("more than 400 operators"));
    }
}
