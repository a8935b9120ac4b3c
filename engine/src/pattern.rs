//! Regular expressions of runbooks, compiled once: compiling one costs as much as reading a dozen steps.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use regex::{Regex, RegexBuilder};

/// How many are kept; further ones are compiled each time.
const KEPT: usize = 256;
/// The most that a pattern may take when it is compiled, in bytes: enough for any that a person would write.
const MAX_COMPILED: usize = 1024 * 1024;

static COMPILED: Mutex<Option<HashMap<String, Regex>>> = Mutex::new(None);

/// Returns a regular expression that a whole text must match. An error says in a few words what is wrong with it.
pub(crate) fn whole(pattern: &str) -> Result<Regex, String> {
    compiled(&format!("^(?:{pattern})$"))
}

/// Returns a regular expression. An error says in a few words what is wrong with it.
pub(crate) fn compiled(pattern: &str) -> Result<Regex, String> {
    let mut slot = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    let known = slot.get_or_insert_default();
    if let Some(regex) = known.get(pattern) {
        return Ok(regex.clone());
    }
    let regex =
        RegexBuilder::new(pattern).size_limit(MAX_COMPILED).build().map_err(|error| in_words(&error))?;
    if known.len() < KEPT {
        known.insert(pattern.to_owned(), regex.clone());
    }
    Ok(regex)
}

/// Returns the last line of an error: the lines before it draw the pattern.
fn in_words(error: &regex::Error) -> String {
    if matches!(error, regex::Error::CompiledTooBig(_)) {
        return "it stands for too much; repeat less".to_owned();
    }
    error.to_string().lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_text_must_match_also_where_the_pattern_has_alternatives() {
        for _ in 0..2 {
            let regex = whole("a|b").unwrap();
            assert!(regex.is_match("b") && !regex.is_match("ab") && !regex.is_match("bc"));
        }
        assert_eq!(whole("(").unwrap_err(), "unclosed group");
        assert!(whole("(a{1000}){1000}").unwrap_err().contains("repeat less"));
        assert!(compiled("b").unwrap().is_match("abc"));
    }

    #[test]
    fn patterns_beyond_those_kept_work_too() {
        for number in 0..2 * KEPT {
            assert!(whole(&number.to_string()).unwrap().is_match(&number.to_string()));
        }
    }
}
