//! What a web service answered, as conditions see it.

use std::time::Duration;

use lifeboat_engine::expr;
use lifeboat_engine::model::evidence::Check;
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// The names that conditions may use.
pub(super) const NAMES: [&str; 6] = ["status", "json", "body", "headers", "elapsed_ms", "captured"];

/// One answer.
#[derive(Clone, Debug, Default)]
pub(super) struct Answer {
    pub(super) status: u16,
    /// Names in lower case; several values of one name joined with `, `.
    pub(super) headers: Map<String, Value>,
    /// The beginning of it, if it is very long.
    pub(super) body: String,
    pub(super) bytes: u64,
    pub(super) sha256: String,
    pub(super) elapsed: Duration,
    /// Where a redirect led that was not followed, because it is another host.
    pub(super) led_away: Option<String>,
}

/// How a value is taken out of an answer.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
pub(super) enum Capture {
    /// A bare expression over the names of [`NAMES`].
    Expression(String),
    /// The text of the body between two others.
    Between { after: String, before: String },
}

impl Answer {
    /// Returns what conditions may name.
    pub(super) fn names(&self, captured: &Map<String, Value>) -> Map<String, Value> {
        let written = json!({
            "status": self.status,
            "json": serde_json::from_str::<Value>(&self.body).unwrap_or(Value::Null),
            "body": self.body,
            "headers": self.headers,
            "elapsed_ms": u64::try_from(self.elapsed.as_millis()).unwrap_or(u64::MAX),
            "captured": captured,
        });
        let Value::Object(names) = written else { unreachable!("an object was written") };
        names
    }

    /// Evaluates conditions into checks. A redirect to another host is one that did not pass.
    pub(super) fn checks(&self, name: &str, expect: &[String], captured: &Map<String, Value>) -> Vec<Check> {
        let mut checks = Vec::new();
        if let Some(elsewhere) = &self.led_away {
            checks.push(Check {
                name: format!("{name}: stays on its host"),
                expected: "no redirect to another host".into(),
                actual: format!("redirect to {elsewhere}"),
                passed: false,
            });
        }
        checks.extend(expr::check_all(name, expect, &self.names(captured)));
        checks
    }

    /// Says whether something in front of the service answers that it is not up.
    pub(super) fn is_not_up(&self) -> bool {
        matches!(self.status, 502 | 503)
    }

    /// Takes a value out; the error says what is missing.
    pub(super) fn capture(&self, how: &Capture, captured: &Map<String, Value>) -> Result<Value, String> {
        match how {
            Capture::Expression(expression) => {
                expr::evaluate(expression, &self.names(captured)).map_err(|error| error.message)
            }
            Capture::Between { after, before } => {
                let (_, rest) = self
                    .body
                    .split_once(after.as_str())
                    .ok_or_else(|| format!("the body has no `{after}`"))?;
                let (found, _) = rest
                    .split_once(before.as_str())
                    .ok_or_else(|| format!("the body has no `{before}` after `{after}`"))?;
                Ok(found.into())
            }
        }
    }

    /// Describes it for the report, without its content.
    pub(super) fn fact(&self) -> String {
        format!(
            "status {} in {} ms, {} bytes, SHA-256 {}",
            self.status,
            self.elapsed.as_millis(),
            self.bytes,
            self.sha256
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_captured_from_json_headers_and_text() {
        let answer = Answer {
            body: r#"{"token": "abc", "list": [1, 2]}"#.into(),
            headers: json!({"x-id": "7"}).as_object().expect("an object").clone(),
            ..Answer::default()
        };
        let none = Map::new();
        let take = |text: &str| answer.capture(&Capture::Expression(text.into()), &none);
        assert_eq!(take("json.token"), Ok(json!("abc")));
        assert_eq!(take("json.list[1]"), Ok(json!(2)));
        assert_eq!(take("headers['x-id']"), Ok(json!("7")));
        assert!(take("json.absent").is_err());
        let html = Answer { body: r#"<input name="csrf" value="t0k">"#.into(), ..Answer::default() };
        let between = Capture::Between { after: r#"name="csrf" value=""#.into(), before: "\"".into() };
        assert_eq!(html.capture(&between, &none), Ok(json!("t0k")));
        assert!(Answer::default().capture(&between, &none).is_err());
    }
}
