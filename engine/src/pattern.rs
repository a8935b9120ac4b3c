//! Regular expressions of runbooks, compiled once: compiling one costs as much as reading a dozen steps.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use regex::Regex;

/// How many are kept; further ones are compiled each time.
const KEPT: usize = 256;

static COMPILED: Mutex<Option<HashMap<String, Regex>>> = Mutex::new(None);

/// Returns a regular expression that a whole text must match.
pub(crate) fn whole(pattern: &str) -> Result<Regex, regex::Error> {
    compiled(&format!("^(?:{pattern})$"))
}

/// Returns a regular expression.
pub(crate) fn compiled(pattern: &str) -> Result<Regex, regex::Error> {
    let mut slot = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    let known = slot.get_or_insert_default();
    if let Some(regex) = known.get(pattern) {
        return Ok(regex.clone());
    }
    let regex = Regex::new(pattern)?;
    if known.len() < KEPT {
        known.insert(pattern.to_owned(), regex.clone());
    }
    Ok(regex)
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
        assert!(whole("(").is_err());
        assert!(compiled("b").unwrap().is_match("abc"));
    }

    #[test]
    fn patterns_beyond_those_kept_work_too() {
        for number in 0..2 * KEPT {
            assert!(whole(&number.to_string()).unwrap().is_match(&number.to_string()));
        }
    }
}
