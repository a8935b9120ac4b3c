//! Types of values: of inputs, of a step's parameters and outputs, of what files may hold.
//!
//! One description serves the checks of `lifeboat check`, the JSON Schemas and the generated reference.

use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use crate::resource::{Access, ResourceKind};

/// What a value may be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Type {
    Any,
    String,
    Integer,
    Number,
    Boolean,
    /// `90s`, `1h 30m`; never a bare number.
    Duration,
    /// RFC 3339 with a zone.
    Timestamp,
    /// A path on this machine.
    Path,
    /// One of these words.
    Choice(Vec<String>),
    List(Box<Type>),
    /// Any keys, one type of value.
    Map(Box<Type>),
    /// These keys and no others.
    Object(Vec<Field>),
    /// A list of bare expressions that the step evaluates with the names given here.
    Conditions(Vec<String>),
    /// SQL text: templates are refused, values go through `params`.
    Sql,
    /// A bash script: a template is legal only as an unquoted word, and is shell-quoted.
    Script,
    /// The name of a resource of the environment.
    Resource {
        kinds: Vec<ResourceKind>,
        access: Access,
    },
    /// Environment variables: text, `{ secret: … }` or `{ connection: … }`.
    EnvMap,
    /// Where a secret is kept: `{ file: … }`, `{ env: … }` or `{ command: […] }`. Only in environment files.
    Secret,
}

impl Type {
    /// Names it within a sentence: `an integer`, `a list of path`, `text`.
    pub fn in_words(&self) -> String {
        match self {
            Self::Any | Self::Choice(_) | Self::Sql => self.to_string(),
            Self::String => "text".to_owned(),
            Self::Integer => "an integer".to_owned(),
            other => format!("a {other}"),
        }
    }

    /// A list of this type.
    pub fn list(of: Type) -> Self {
        Self::List(Box::new(of))
    }

    /// A map to this type.
    pub fn map(of: Type) -> Self {
        Self::Map(Box::new(of))
    }

    /// One of these words.
    pub fn choice(words: &[&str]) -> Self {
        Self::Choice(words.iter().map(|&word| word.to_owned()).collect())
    }

    /// Bare expressions over these names.
    pub fn conditions(names: &[&str]) -> Self {
        Self::Conditions(names.iter().map(|&name| name.to_owned()).collect())
    }

    /// A resource of one kind that the step reads.
    pub fn reads(kind: ResourceKind) -> Self {
        Self::Resource { kinds: vec![kind], access: Access::Read }
    }

    /// A resource of one kind that the step changes.
    pub fn writes(kind: ResourceKind) -> Self {
        Self::Resource { kinds: vec![kind], access: Access::Write }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any value"),
            Self::String => f.write_str("string"),
            Self::Integer => f.write_str("integer"),
            Self::Number => f.write_str("number"),
            Self::Boolean => f.write_str("boolean"),
            Self::Duration => f.write_str("duration"),
            Self::Timestamp => f.write_str("timestamp"),
            Self::Path => f.write_str("path"),
            Self::Choice(words) => write!(f, "one of {}", words.join(", ")),
            Self::List(of) => write!(f, "list of {of}"),
            Self::Map(of) => write!(f, "map to {of}"),
            Self::Object(_) => f.write_str("map"),
            Self::Conditions(_) => f.write_str("list of expressions"),
            Self::Sql => f.write_str("SQL"),
            Self::Script => f.write_str("bash script"),
            Self::Resource { kinds, .. } => {
                let names: Vec<_> = kinds.iter().map(ToString::to_string).collect();
                write!(f, "name of a {} resource", names.join(" or "))
            }
            Self::EnvMap => f.write_str("map of environment variables"),
            Self::Secret => f.write_str("reference to a secret"),
        }
    }
}

/// One named value: a key of a file, a parameter or an output of a step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Field {
    pub name: String,
    #[serde(rename = "type")]
    pub ty: Type,
    pub required: bool,
    /// What holds when it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<Value>,
    /// One sentence, with units.
    pub summary: String,
}

impl Field {
    /// A value that must be given.
    pub fn required(name: &str, ty: Type, summary: &str) -> Self {
        Self { name: name.to_owned(), ty, required: true, default: None, summary: summary.to_owned() }
    }

    /// A value that may be left out, and then is absent.
    pub fn optional(name: &str, ty: Type, summary: &str) -> Self {
        Self { required: false, ..Self::required(name, ty, summary) }
    }

    /// A value that may be left out, and then is `default`. The engine fills it in before the step sees it.
    pub fn defaulted(name: &str, ty: Type, default: impl Into<Value>, summary: &str) -> Self {
        Self { default: Some(default.into()), ..Self::optional(name, ty, summary) }
    }
}

/// A length of time as files write it: `90s`, `1h 30m`, `2d`.
///
/// Months and years are refused because their length varies; a number without a unit is refused because nobody
/// can tell what it means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span(pub Duration);

/// In seconds.
const DAY: u64 = 24 * 60 * 60;

/// Why a text is no duration.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpanError {
    #[error("`{0}` has no unit: write for example `{0}s` or `{0}m`")]
    NoUnit(String),
    #[error("`{0}` uses months or years, whose length varies: write days (`d`) or weeks (`w`)")]
    Calendar(String),
    #[error("`{0}` is not a duration: write for example `90s`, `15m` or `1h 30m`")]
    Invalid(String),
}

impl Span {
    /// Parses a duration with units from nanoseconds to weeks.
    pub fn parse(text: &str) -> Result<Self, SpanError> {
        let trimmed = text.trim();
        if !trimmed.is_empty() && trimmed.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
            return Err(SpanError::NoUnit(trimmed.to_owned()));
        }
        let units = trimmed.split(|c: char| !c.is_ascii_alphabetic());
        if units.into_iter().any(|unit| {
            unit == "M" || matches!(unit, "month" | "months" | "y" | "yr" | "yrs" | "year" | "years")
        }) {
            return Err(SpanError::Calendar(trimmed.to_owned()));
        }
        humantime::parse_duration(trimmed).map(Self).map_err(|_| SpanError::Invalid(trimmed.to_owned()))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Beyond four weeks humantime writes months and years, which nobody can read back.
        let days = self.0.as_secs() / DAY;
        if days < 28 {
            return write!(f, "{}", humantime::format_duration(self.0));
        }
        write!(f, "{days}d")?;
        let rest = self.0 - Duration::from_secs(days * DAY);
        if rest.is_zero() { Ok(()) } else { write!(f, " {}", humantime::format_duration(rest)) }
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

/// Parses a moment: RFC 3339 with an offset or `Z`. A time without a zone is refused, because two machines would
/// read it differently. `at` may have a blank in place of the `T`.
pub fn parse_timestamp(text: &str) -> Result<Timestamp, String> {
    let moment = text.trim().parse::<Timestamp>().ok();
    // The offset decides, and a zone that is named beside it must not contradict it.
    let moment = moment.filter(|_| !text.contains('[') || text.trim().parse::<jiff::Zoned>().is_ok());
    moment.ok_or_else(|| {
        format!("`{text}` is not a moment: write it with its zone, for example `2026-11-21T03:12:00Z`")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(Span::parse("90s"), Ok(Span(Duration::from_secs(90))));
        assert_eq!(Span::parse("1h 30m"), Ok(Span(Duration::from_secs(5400))));
        for text in ["90d", "400d 1h", "27days 3h", "28d"] {
            assert_eq!(Span::parse(&Span::parse(text).unwrap().to_string()), Span::parse(text));
        }
        assert_eq!(Span::parse("90d").unwrap().to_string(), "90d");
        assert_eq!(Span::parse("60"), Err(SpanError::NoUnit("60".into())));
        assert_eq!(Span::parse("1M"), Err(SpanError::Calendar("1M".into())));
        assert_eq!(Span::parse("2 years"), Err(SpanError::Calendar("2 years".into())));
        assert!(matches!(Span::parse("soon"), Err(SpanError::Invalid(_))));
        assert!(matches!(Span::parse(""), Err(SpanError::Invalid(_))));
    }

    #[test]
    fn moments_need_a_zone() {
        assert!(parse_timestamp("2026-11-21T03:12:00Z").is_ok());
        assert!(parse_timestamp("2026-11-21 03:12:00.5+01:00").is_ok());
        assert!(parse_timestamp("2026-11-21T03:12:00").is_err());
        assert!(parse_timestamp("2026-10-25T02:30:00+05:00[Europe/Berlin]").is_err());
    }
}
