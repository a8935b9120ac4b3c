use jiff::Timestamp;
use minijinja::{Environment, Error, ErrorKind, Value};

use crate::value::{Span, parse_timestamp};

/// Adds what runbooks need beyond the filters of minijinja itself.
pub(super) fn register(environment: &mut Environment<'static>) {
    environment.add_filter("seconds", seconds);
    environment.add_filter("duration", duration);
    environment.add_filter("timestamp", timestamp);
    environment.add_filter("epoch", epoch);
    environment.add_filter("bytes", bytes);
    environment.add_filter("fromjson", from_json);
    environment.add_filter("basename", basename);
    environment.add_filter("dirname", dirname);
    environment.add_test("matching", matching);
}

/// `"1h 30m" | seconds` is 5400.
fn seconds(text: &str) -> Result<f64, Error> {
    Span::parse(text).map(|span| span.0.as_secs_f64()).map_err(|error| invalid(error.to_string()))
}

/// `5400 | duration` is `1h 30m`.
fn duration(seconds: f64) -> Result<String, Error> {
    let length = std::time::Duration::try_from_secs_f64(seconds)
        .map_err(|_| invalid(format!("{seconds} seconds are no duration")))?;
    Ok(Span(length).to_string())
}

/// Writes a moment in UTC; a number counts seconds since 1970.
fn timestamp(moment: &Value) -> Result<String, Error> {
    Ok(read_moment(moment)?.to_string())
}

/// Seconds since 1970 UTC, so that moments can be compared and subtracted.
fn epoch(moment: &Value) -> Result<f64, Error> {
    let moment = read_moment(moment)?;
    Ok(std::time::Duration::from_nanos(moment.subsec_nanosecond().unsigned_abs().into()).as_secs_f64()
        * f64::from(moment.subsec_nanosecond().signum())
        + moment.as_second() as f64)
}

fn read_moment(moment: &Value) -> Result<Timestamp, Error> {
    if let Some(text) = moment.as_str() {
        return parse_timestamp(text).map_err(invalid);
    }
    let seconds = f64::try_from(moment.clone())?;
    jiff::SignedDuration::try_from_secs_f64(seconds)
        .and_then(Timestamp::from_duration)
        .map_err(|_| invalid(format!("{seconds} is not a number of seconds since 1970")))
}

/// `1536 | bytes` is `1.5 KiB`.
fn bytes(count: f64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut amount, mut unit) = (count, 0);
    while amount.abs() >= 1024.0 && unit + 1 < UNITS.len() {
        amount /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{amount} B") } else { format!("{amount:.1} {}", UNITS[unit]) }
}

fn from_json(text: &str) -> Result<Value, Error> {
    let value: serde_json::Value =
        serde_json::from_str(text).map_err(|error| invalid(format!("not JSON: {error}")))?;
    Ok(Value::from(minijinja::value::Serde(value)))
}

fn basename(path: &str) -> String {
    path.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_owned()
}

fn dirname(path: &str) -> String {
    match path.trim_end_matches('/').rsplit_once('/') {
        Some(("", _)) => "/".to_owned(),
        Some((dir, _)) => dir.to_owned(),
        None => ".".to_owned(),
    }
}

/// `"v1.2" is matching("v\\d+")`: the pattern may match anywhere.
fn matching(text: &str, pattern: &str) -> Result<bool, Error> {
    let pattern = crate::pattern::compiled(pattern).map_err(|error| invalid(error.to_string()))?;
    Ok(pattern.is_match(text))
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

#[cfg(test)]
mod tests {
    use crate::expr::evaluate;
    use serde_json::{Map, json};

    #[test]
    fn filters_convert() {
        for (expression, expected) in [
            ("'1h 30m' | seconds", json!(5400.0)),
            ("5400 | duration", json!("1h 30m")),
            ("'2026-11-21T04:12:00+01:00' | timestamp", json!("2026-11-21T03:12:00Z")),
            ("0 | timestamp", json!("1970-01-01T00:00:00Z")),
            ("('1970-01-01T00:01:00Z' | epoch) - ('1970-01-01T00:00:00.5Z' | epoch)", json!(59.5)),
            ("1536 | bytes", json!("1.5 KiB")),
            ("12 | bytes", json!("12 B")),
            ("('{\"a\": [1]}' | fromjson).a[0]", json!(1)),
            ("'/var/lib/x/' | basename", json!("x")),
            ("'/x' | dirname", json!("/")),
            ("'v1.2' is matching('^v')", json!(true)),
        ] {
            assert_eq!(evaluate(expression, &Map::new()), Ok(expected), "{expression}");
        }
        assert!(evaluate("'60' | seconds", &Map::new()).is_err());
        assert!(evaluate("'yesterday' | timestamp", &Map::new()).is_err());
    }
}
