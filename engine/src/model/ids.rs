//! Identifiers, valid once they exist.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The position of an event in its journal; the first is 1 and there are no gaps.
pub type Seq = u64;

/// The number of one try of one step, from 1.
pub type Attempt = u32;

/// Names a step or a group: `[a-z][a-z0-9_]*`, with `/` between a calling step and the steps it calls, and `[3]` behind
/// it for one element of a step that is repeated.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct StepId(String);

/// Why a text is no step id.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not an id: a lower-case letter, then lower-case letters, digits and `_`")]
pub struct InvalidId(pub String);

impl StepId {
    /// Checks and wraps an id.
    pub fn new(text: impl Into<String>) -> Result<Self, InvalidId> {
        let text = text.into();
        let (whole, element) = parts(&text);
        let valid = whole.split('/').all(is_plain_id) && element.is_none_or(is_index);
        if valid { Ok(Self(text)) } else { Err(InvalidId(text)) }
    }

    /// Returns the id of one element of this step.
    #[must_use]
    pub fn of_element(&self, index: usize) -> Self {
        Self(format!("{}[{index}]", self.0))
    }

    /// Returns which element it names, if it names one.
    pub fn element(&self) -> Option<usize> {
        parts(&self.0).1.and_then(|index| index.parse().ok())
    }

    /// Returns the id of the step that an element belongs to, and any other id as it is.
    #[must_use]
    pub fn whole(&self) -> Self {
        Self(parts(&self.0).0.to_owned())
    }

    /// Returns the id as part of a path. Brackets would be patterns to a shell, so an element has a dot: `step.3`.
    pub fn path(&self) -> String {
        match parts(&self.0) {
            (whole, Some(index)) => format!("{whole}.{index}"),
            (whole, None) => whole.to_owned(),
        }
    }

    /// Returns the id as written in the journal.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Separates an id from the element that it names.
fn parts(text: &str) -> (&str, Option<&str>) {
    match text.strip_suffix(']').and_then(|rest| rest.rsplit_once('[')) {
        Some((whole, index)) => (whole, Some(index)),
        None => (text, None),
    }
}

/// Says whether a text is the number of an element as it is written.
fn is_index(text: &str) -> bool {
    let digits = !text.is_empty() && text.len() <= 9 && text.bytes().all(|b| b.is_ascii_digit());
    digits && (text == "0" || !text.starts_with('0'))
}

/// Says whether a text is an id without a path: `[a-z][a-z0-9_]*`.
pub fn is_plain_id(text: &str) -> bool {
    let mut chars = text.chars();
    chars.next().is_some_and(|c| c.is_ascii_lowercase())
        && chars.all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

impl fmt::Display for StepId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for StepId {
    type Error = InvalidId;
    fn try_from(text: String) -> Result<Self, InvalidId> {
        Self::new(text)
    }
}

impl From<StepId> for String {
    fn from(id: StepId) -> Self {
        id.0
    }
}

/// Names one run: a UUID of version 7, so that runs sort by the time they were declared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RunId(uuid::Uuid);

impl RunId {
    /// Makes a new id from the current time and randomness.
    pub fn generate() -> Self {
        Self(uuid::Uuid::now_v7())
    }

    /// Returns when the run was declared, to the millisecond: its id says it.
    pub fn declared_at(&self) -> jiff::Timestamp {
        let (seconds, nanos) = self.0.get_timestamp().map_or((0, 0), |at| at.to_unix());
        let of = |seconds, nanos| {
            jiff::Timestamp::new(i64::try_from(seconds).ok()?, i32::try_from(nanos).ok()?).ok()
        };
        of(seconds, nanos).unwrap_or(jiff::Timestamp::UNIX_EPOCH)
    }

    /// Returns the last eight characters: short enough to type, random enough to be unique in one place.
    pub fn short(&self) -> String {
        let text = self.0.simple().to_string();
        text[text.len() - 8..].to_owned()
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for RunId {
    type Err = uuid::Error;
    fn from_str(text: &str) -> Result<Self, uuid::Error> {
        text.parse().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_follow_the_pattern() {
        for good in ["a", "restore_base", "call/child_2", "each[0]", "call/each[120]"] {
            assert!(StepId::new(good).is_ok(), "{good}");
        }
        for bad in [
            "", "A", "1a", "a-b", "a/", "/a", "a b", "ä", "a[]", "a[01]", "a[-1]", "a[1]b", "a[1][2]", "[1]",
            "a[1]/b",
        ] {
            assert!(StepId::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn elements_are_told_from_their_steps() {
        let step = StepId::new("call/each").unwrap();
        let third = step.of_element(3);
        assert_eq!((third.as_str(), third.element(), third.whole()), ("call/each[3]", Some(3), step.clone()));
        assert_eq!((step.element(), step.whole()), (None, step.clone()));
        assert_eq!((step.path(), third.path()), ("call/each".into(), "call/each.3".into()));
    }

    #[test]
    fn a_run_id_knows_when_it_was_made() {
        let before = jiff::Timestamp::now().as_millisecond();
        let made = RunId::generate().declared_at().as_millisecond();
        assert!((before..=jiff::Timestamp::now().as_millisecond()).contains(&made), "{made}");
    }

    #[test]
    fn short_run_ids_are_the_end_of_the_long_one() {
        let id = RunId::generate();
        assert!(id.to_string().ends_with(&id.short()));
    }
}
