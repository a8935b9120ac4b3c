use std::fmt;

use lifeboat_engine::step::StepError;

use super::codes;

/// The name of an object: segments with `/` between them.
///
/// A key is not a path. Segments that mean something to a file system (`.`, `..`, empty ones), separators of
/// other systems, control characters and the names of our own temporary files are refused when it is made, so
/// that no key can leave the store's root.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(String);

/// What our own temporary names begin with; such objects are never listed.
pub(super) const TEMPORARY: &str = ".lifeboat-";

/// What file systems allow in one name.
const SEGMENT_LIMIT: usize = 255;

impl Key {
    /// Checks and wraps a name.
    pub fn new(text: impl Into<String>) -> Result<Self, StepError> {
        let text = text.into();
        match text.split('/').find_map(problem) {
            None => Ok(Self(text)),
            Some(problem) => Err(StepError::permanent(
                codes::LB1106,
                format!("`{}` cannot name an object in a store: {problem}", text.escape_debug()),
            )
            .help("use letters, digits, `.`, `-` and `_`, with `/` between the parts")),
        }
    }

    /// Returns the key of something below this one.
    pub fn join(&self, below: &str) -> Result<Self, StepError> {
        Self::new(format!("{}/{below}", self.0))
    }

    /// Returns the key of one of our own objects below this one, which no other key can name.
    #[cfg(feature = "s3")]
    pub(super) fn own(below: &Self, name: &str) -> Self {
        Self(format!("{below}/{name}"))
    }

    /// Returns the whole name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the last segment.
    pub fn name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or(&self.0)
    }

    /// Returns the segments before the last one.
    pub(super) fn parents(&self) -> Vec<&str> {
        let mut segments: Vec<_> = self.0.split('/').collect();
        segments.pop();
        segments
    }

    pub(super) fn segments(&self) -> Vec<&str> {
        self.0.split('/').collect()
    }
}

fn problem(segment: &str) -> Option<&'static str> {
    match segment {
        "" => Some("a part of it is empty"),
        "." | ".." => Some("`.` and `..` are no names"),
        _ if segment.starts_with(TEMPORARY) => Some("names that begin with `.lifeboat-` are Lifeboat's own"),
        _ if segment.len() > SEGMENT_LIMIT => Some("a part of it is longer than 255 bytes"),
        _ if segment.chars().any(|c| c == '\\' || c.is_control()) => {
            Some("backslashes and control characters are refused")
        }
        _ => None,
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
