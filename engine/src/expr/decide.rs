use serde_json::{Map, Value};

use super::evaluate::{describe, holds};
use super::references::references;
use super::template::Shape;

/// Says why a condition is false for certain, from the names that are known; `None` if it may be true.
///
/// Of a condition that is joined with `and`, one false part decides. A part that reads a name which is not given, such as
/// the output of a step before the run, decides nothing.
pub fn known_false(condition: &str, names: &Map<String, Value>) -> Option<String> {
    conjuncts(condition).into_iter().find(|part| is_false(part, names)).map(|part| reason(part, names))
}

/// Says whether everything that a condition reads is known and makes it true.
pub fn known_true(condition: &str, names: &Map<String, Value>) -> bool {
    is_known(condition, names) && holds(condition, names) == Ok(true)
}

/// Splits a condition where `and` joins parts that must all hold. One with `or` or `if` outside of brackets is one part.
fn conjuncts(text: &str) -> Vec<&str> {
    let (mut parts, mut from, mut depth, mut quote) = (Vec::new(), 0, 0_usize, None);
    let bytes = text.as_bytes();
    let is_word = |at: usize| bytes.get(at).is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'_');
    let word_at = |at: usize, word: &str| {
        text[at..].starts_with(word) && !is_word(at + word.len()) && (at == 0 || !is_word(at - 1))
    };
    let mut escaped = false;
    for (at, char) in text.char_indices() {
        match (quote, char) {
            (Some(_), _) if escaped => escaped = false,
            (Some(_), '\\') => escaped = true,
            (Some(open), _) if open == char => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(char),
            (None, '(' | '[' | '{') => depth += 1,
            (None, ')' | ']' | '}') => depth = depth.saturating_sub(1),
            (None, _) if depth == 0 && (word_at(at, "or") || word_at(at, "if")) => return vec![text.trim()],
            (None, _) if depth == 0 && word_at(at, "and") => {
                parts.push(text[from..at].trim());
                from = at + "and".len();
            }
            (None, _) => {}
        }
    }
    parts.push(text[from..].trim());
    parts
}

fn is_known(part: &str, names: &Map<String, Value>) -> bool {
    let read = references(part, Shape::Expression).unwrap_or_default();
    !read.is_empty() && read.iter().all(|it| it.path.first().is_some_and(|root| names.contains_key(root)))
}

fn is_false(part: &str, names: &Map<String, Value>) -> bool {
    is_known(part, names) && holds(part, names) == Ok(false)
}

fn reason(part: &str, names: &Map<String, Value>) -> String {
    if let Some(name) = part.strip_suffix(" is defined") {
        return format!("{} is not defined here", name.trim());
    }
    match describe(part, names) {
        values if values.is_empty() => format!("`{part}` is false"),
        values => format!("`{part}` is false: {values}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn why(condition: &str) -> Option<String> {
        let names = json!({
            "inputs": { "careful": false, "depth": "quick" },
            "resources": { "db": { "kind": "postgres" } },
        });
        known_false(condition, names.as_object().unwrap())
    }

    #[test]
    fn what_is_certain_before_the_run_is_said_with_its_reason() {
        assert_eq!(why("resources.cache is defined").unwrap(), "resources.cache is not defined here");
        assert_eq!(why("inputs.careful").unwrap(), "`inputs.careful` is false: inputs.careful = false");
        assert_eq!(why("resources.db is defined"), None);
        assert_eq!(why("inputs.depth == 'quick' and not inputs.careful"), None);
    }

    #[test]
    fn one_false_part_decides_and_an_unknown_one_does_not() {
        let both = "steps.a.n > 0 and resources.cache is defined";
        assert_eq!(why(both).unwrap(), "resources.cache is not defined here");
        assert_eq!(why("steps.a.n | default(0) > 0"), None);
        assert_eq!(why("steps.a is defined"), None);
        assert_eq!(why("inputs.careful or steps.a.n > 0"), None);
        assert!(why("(inputs.careful or inputs.careful) and steps.a.n > 0").is_some());
        assert!(why("steps.a.n == ' and ' and inputs.careful").is_some());
        assert_eq!(why("not (inputs.careful and steps.a.n > 0)"), None);
        assert_eq!(why("1 if inputs.careful and steps.a else 2"), None);
    }
}
