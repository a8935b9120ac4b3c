//! What a log must and must not have, and what was found of it.

use lifeboat_engine::model::evidence::Check;
use lifeboat_engine::redact::Redactor;
use lifeboat_engine::step::StepError;
use regex::bytes::{Regex, RegexBuilder};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::codes;

/// The most that a pattern may take when it is compiled, in bytes.
const MOST_COMPILED: usize = 4 * 1024 * 1024;
/// How many lines are shown for each pattern.
const SHOWN: usize = 5;
/// How much of a line is shown, in bytes.
const EXCERPT: usize = 300;

/// A pattern of a runbook.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Rule {
    pub(super) pattern: String,
    pub(super) name: Option<String>,
    #[serde(default)]
    pub(super) min: Option<u64>,
    #[serde(default)]
    pub(super) max: Option<u64>,
}

/// A line that a pattern found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Excerpt {
    pub(super) pattern: String,
    /// File and number of the line, or the time of the entry.
    pub(super) place: String,
    /// Its beginning, without secrets.
    pub(super) text: String,
}

/// How many lines a pattern may find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bound {
    /// At most so many: it is denied.
    Most(u64),
    /// From the one to the other: it is required.
    Between(u64, Option<u64>),
}

/// When a log is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum When {
    /// What is lacking may still come.
    SoFar,
    AtTheEnd,
}

#[derive(Debug)]
struct Counted {
    name: String,
    regex: Regex,
    bound: Bound,
    count: u64,
    shown: Vec<Excerpt>,
}

/// Counts what patterns find, line by line.
#[derive(Debug)]
pub(super) struct Judge {
    rules: Vec<Counted>,
    ignore: Vec<Regex>,
    redactor: Redactor,
    pub(super) lines: u64,
}

impl Judge {
    /// Fails if a pattern cannot be used.
    pub(super) fn new(
        (require, deny): (&[Rule], &[Rule]),
        ignore: &[String],
        redactor: Redactor,
    ) -> Result<Self, StepError> {
        let counted = |rule: &Rule, bound: Bound| {
            Ok(Counted {
                name: rule.name.clone().unwrap_or_else(|| rule.pattern.clone()),
                regex: compiled(&rule.pattern)?,
                bound,
                count: 0,
                shown: Vec::new(),
            })
        };
        let denied = deny.iter().map(|rule| counted(rule, Bound::Most(rule.max.unwrap_or(0))));
        let required =
            require.iter().map(|rule| counted(rule, Bound::Between(rule.min.unwrap_or(1), rule.max)));
        let rules = denied.chain(required).collect::<Result<Vec<_>, String>>();
        let ignore = ignore.iter().map(|pattern| compiled(pattern)).collect::<Result<Vec<_>, String>>();
        let unusable = |message: String| StepError::permanent(codes::LB1354, message);
        Ok(Self { rules: rules.map_err(unusable)?, ignore: ignore.map_err(unusable)?, redactor, lines: 0 })
    }

    /// Looks at one line; `place` is only asked for if the line is shown.
    pub(super) fn take(&mut self, line: &[u8], mut place: impl FnMut() -> String) {
        self.lines += 1;
        if self.ignore.iter().any(|regex| regex.is_match(line)) {
            return;
        }
        for rule in &mut self.rules {
            if !rule.regex.is_match(line) {
                continue;
            }
            rule.count += 1;
            if rule.shown.len() < SHOWN {
                let text = excerpt(&self.redactor, line);
                rule.shown.push(Excerpt { pattern: rule.name.clone(), place: place(), text });
            }
        }
    }

    /// Returns how many lines each pattern has found, by its name.
    pub(super) fn counts(&self) -> Map<String, Value> {
        self.rules.iter().map(|rule| (rule.name.clone(), rule.count.into())).collect()
    }

    /// Returns the lines that are shown.
    pub(super) fn excerpts(&self) -> Vec<&Excerpt> {
        self.rules.iter().flat_map(|rule| &rule.shown).collect()
    }

    /// Returns a check for each pattern.
    pub(super) fn checks(&self) -> Vec<Check> {
        self.rules.iter().map(Counted::check).collect()
    }

    /// Fails if the log is not as it should be, with the lines that were found.
    pub(super) fn verdict(&self, log: &str, when: When) -> Result<Vec<Check>, StepError> {
        let checks = self.checks();
        let counts = |rule: &&Counted| when == When::AtTheEnd || !rule.is_lacking();
        let wrong: Vec<&Counted> = self.rules.iter().filter(|rule| !rule.holds()).filter(counts).collect();
        let Some(first) = wrong.first() else { return Ok(checks) };
        let message = match wrong.len() {
            1 => format!("{log}: {}", first.says()),
            many => format!("{log}: {many} patterns are not as they should be, the first: {}", first.says()),
        };
        // What is lacking may still come; what is there does not go away.
        let mut error = match wrong.iter().all(|rule| rule.is_lacking()) {
            true => StepError::transient(codes::LB1350, message).help(
                "read the log around that time; `until` and `every` wait for a line that is still to come",
            ),
            false => StepError::permanent(codes::LB1350, message)
                .help("read the log there; lines that are known and harmless go under `ignore`"),
        };
        let shown = wrong.iter().flat_map(|rule| &rule.shown);
        error.causes = shown.map(|it| format!("{}: {}", it.place, it.text)).collect();
        Err(error.checks(checks))
    }
}

impl Counted {
    fn holds(&self) -> bool {
        match self.bound {
            Bound::Most(most) => self.count <= most,
            Bound::Between(least, most) => self.count >= least && most.is_none_or(|most| self.count <= most),
        }
    }

    fn is_lacking(&self) -> bool {
        matches!(self.bound, Bound::Between(least, _) if self.count < least)
    }

    fn expected(&self) -> String {
        match self.bound {
            Bound::Most(0) => "no line".to_owned(),
            Bound::Most(most) => format!("at most {}", lines(most)),
            Bound::Between(least, None) => format!("at least {}", lines(least)),
            Bound::Between(least, Some(most)) => format!("{least} to {}", lines(most)),
        }
    }

    fn says(&self) -> String {
        let found =
            if self.count == 0 { "no line has".to_owned() } else { format!("{} with", lines(self.count)) };
        format!("{found} `{}`; {} may be there", self.name, self.expected())
    }

    fn check(&self) -> Check {
        let first = self.shown.first().map(|it| format!(", the first at {}", it.place)).unwrap_or_default();
        let what = if matches!(self.bound, Bound::Most(_)) { "denied" } else { "required" };
        Check {
            name: format!("{what} in the log: {}", self.name),
            expected: self.expected(),
            actual: format!("{}{first}", lines(self.count)),
            passed: self.holds(),
        }
    }
}

fn lines(count: u64) -> String {
    if count == 1 { "1 line".to_owned() } else { format!("{count} lines") }
}

/// Compiles a pattern. Matching takes time in proportion to the line, whatever the pattern.
pub(super) fn compiled(pattern: &str) -> Result<Regex, String> {
    let built = RegexBuilder::new(pattern).size_limit(MOST_COMPILED).build();
    built.map_err(|error| {
        let text = error.to_string();
        let why = text.lines().last().unwrap_or_default().trim_start_matches("error: ");
        format!("`{pattern}` is not a regular expression: {why}")
    })
}

/// Returns the beginning of a line as people may see it.
fn excerpt(redactor: &Redactor, line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    let clean = redactor.text(&text);
    let clean: String =
        clean.chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect();
    if clean.len() <= EXCERPT {
        return clean;
    }
    format!("{}…", &clean[..clean.floor_char_boundary(EXCERPT)])
}

#[cfg(test)]
mod tests {
    use lifeboat_engine::secret::{SecretRef, Secrets};

    use super::*;

    fn rule(pattern: &str, min: Option<u64>, max: Option<u64>) -> Rule {
        Rule { pattern: pattern.into(), name: None, min, max }
    }

    fn judged(require: &[Rule], deny: &[Rule], log: &[&str]) -> Result<Vec<Check>, StepError> {
        let mut judge = Judge::new((require, deny), &["harmless".into()], Redactor::default()).unwrap();
        for (at, line) in log.iter().enumerate() {
            judge.take(line.as_bytes(), || format!("app.log:{}", at + 1));
        }
        judge.verdict("app.log", When::AtTheEnd)
    }

    #[test]
    fn what_is_denied_may_be_there_so_often_and_no_more() {
        let log = ["ok", "ERROR a", "ERROR harmless", "ERROR b"];
        assert!(judged(&[], &[rule("ERROR", None, Some(2))], &log).is_ok());
        let error = judged(&[], &[rule("ERROR", None, Some(1))], &log).unwrap_err();
        assert_eq!(error.message, "app.log: 2 lines with `ERROR`; at most 1 line may be there");
        assert_eq!(error.causes, ["app.log:2: ERROR a", "app.log:4: ERROR b"]);
        assert_eq!(error.kind, lifeboat_engine::model::FailureKind::Permanent);
    }

    #[test]
    fn what_is_required_must_be_there_and_may_still_come() {
        let log = ["listening", "listening"];
        assert!(judged(&[rule("listening", Some(2), None)], &[], &log).is_ok());
        assert!(judged(&[rule("listening", None, Some(1))], &[], &log).is_err());
        let error = judged(&[rule("ready", None, None)], &[], &log).unwrap_err();
        assert_eq!(error.kind, lifeboat_engine::model::FailureKind::Transient);
        assert!(error.message.contains("no line has `ready`"), "{}", error.message);
    }

    #[test]
    fn an_excerpt_has_no_secret_no_control_characters_and_an_end() {
        let mut secrets = Secrets::default();
        secrets.insert(SecretRef::Env("S".into()), "hunter2hunter2".into());
        let redactor = secrets.redactor().clone();
        let long = format!("\u{1b}[31m{}hunter2hunter2 tail", "é".repeat(140));
        let shown = excerpt(&redactor, long.as_bytes());
        assert!(
            !shown.contains("hunter2") && !shown.contains('\u{1b}') && shown.len() <= EXCERPT + 4,
            "{shown}"
        );
        assert_eq!(excerpt(&redactor, b"a \xff b"), "a \u{fffd} b");
    }

    #[test]
    fn patterns_that_stand_for_too_much_are_refused() {
        assert!(compiled("(").is_err());
        assert!(compiled("(a{1000}){1000}").is_err());
    }
}
