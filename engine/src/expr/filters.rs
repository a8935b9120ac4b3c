use jiff::Timestamp;
use minijinja::value::{Kwargs, Rest};
use minijinja::{Environment, Error, ErrorKind, State, Value};

use crate::value::{Span, parse_timestamp};

/// All filters, for suggestions.
pub(super) const FILTERS: &[&str] = &[
    "abs",
    "ago",
    "attr",
    "basename",
    "batch",
    "bool",
    "bytes",
    "chain",
    "count",
    "d",
    "default",
    "dictsort",
    "dirname",
    "duration",
    "e",
    "epoch",
    "escape",
    "filesize",
    "first",
    "float",
    "format",
    "fromjson",
    "groupby",
    "indent",
    "int",
    "items",
    "join",
    "last",
    "length",
    "lines",
    "list",
    "lower",
    "map",
    "max",
    "min",
    "minus",
    "plus",
    "pprint",
    "reject",
    "rejectattr",
    "replace",
    "reverse",
    "round",
    "round_to",
    "safe",
    "seconds",
    "select",
    "selectattr",
    "slice",
    "sort",
    "split",
    "string",
    "strftime",
    "sum",
    "timestamp",
    "title",
    "tojson",
    "trim",
    "unique",
    "upper",
    "zip",
    "capitalize",
];

/// All tests, for suggestions.
pub(super) const TESTS: &[&str] = &[
    "boolean",
    "defined",
    "divisibleby",
    "endingwith",
    "eq",
    "even",
    "false",
    "float",
    "ge",
    "gt",
    "in",
    "integer",
    "iterable",
    "le",
    "lower",
    "lt",
    "mapping",
    "matching",
    "ne",
    "none",
    "number",
    "odd",
    "sameas",
    "sequence",
    "startingwith",
    "string",
    "true",
    "undefined",
    "upper",
];

/// The longest text or list that a filter makes.
const MAX_MADE: usize = 1024 * 1024;

/// Adds what runbooks need beyond the filters of minijinja itself, and replaces those whose results know no limit.
pub(super) fn register(environment: &mut Environment<'static>) {
    environment.add_filter("seconds", seconds);
    environment.add_filter("duration", duration);
    environment.add_filter("timestamp", timestamp);
    environment.add_filter("strftime", strftime);
    environment.add_filter("epoch", epoch);
    environment.add_filter("ago", ago);
    environment.add_filter("plus", plus);
    environment.add_filter("minus", minus);
    environment.add_filter("round_to", round_to);
    environment.add_filter("bytes", bytes);
    environment.add_filter("filesize", file_size);
    environment.add_filter("fromjson", from_json);
    environment.add_filter("basename", basename);
    environment.add_filter("dirname", dirname);
    environment.add_filter("replace", replace);
    environment.add_filter("indent", indent);
    environment.add_filter("batch", batch);
    environment.add_filter("slice", slice);
    environment.add_filter("join", join);
    environment.add_test("matching", matching);
}

/// `"2026-11-21T03:12:00Z" | plus("90m")`; of durations the sum: `"1h" | plus("30m")` is `1h 30m`.
fn plus(value: &Value, length: &str) -> Result<String, Error> {
    shifted(value, length, 1.0)
}

/// `"2026-11-21T03:12:00Z" | minus("90m")`. Minus a moment, a moment gives the duration between the two.
fn minus(value: &Value, length: &str) -> Result<String, Error> {
    if let (Ok(later), Ok(earlier)) = (read_moment(value), parse_timestamp(length)) {
        return duration(later.duration_since(earlier).as_secs_f64());
    }
    shifted(value, length, -1.0)
}

fn shifted(value: &Value, length: &str, sign: f64) -> Result<String, Error> {
    let by = seconds(length)? * sign;
    if let Some(Ok(own)) = value.as_str().map(Span::parse) {
        return duration(own.0.as_secs_f64() + by);
    }
    let moment = read_moment(value)?;
    let by = jiff::SignedDuration::try_from_secs_f64(by)
        .map_err(|_| invalid(format!("`{length}` is too long")))?;
    let shifted =
        moment.checked_add(by).map_err(|_| invalid(format!("{moment} and {length} leave the calendar")))?;
    Ok(shifted.to_string())
}

/// `steps.choose.finished | ago(incident.started_at)`: how long before the second moment the first one was.
fn ago(moment: &Value, now: &Value) -> Result<String, Error> {
    let (then, now) = (read_moment(moment)?, read_moment(now)?);
    if then > now {
        return Err(invalid(format!("{then} is not before {now}")));
    }
    duration(now.duration_since(then).as_secs_f64().round())
}

/// `"2026-11-21T03:12:00Z" | strftime("%Y-%m-%d %H:%M")`, in UTC.
fn strftime(moment: &Value, format: &str) -> Result<String, Error> {
    let moment = read_moment(moment)?.to_zoned(jiff::tz::TimeZone::UTC);
    let text = jiff::fmt::strtime::format(format, &moment);
    text.map_err(|error| invalid(format!("`{format}` is no format of a moment: {error}")))
}

/// `17 | round_to(5)` is 15; `"1h 2m 3s" | round_to("1m")` is `1h 2m`.
fn round_to(value: &Value, step: &Value) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        let step = seconds(step.as_str().ok_or_else(|| invalid("write the step as a duration: `\"1m\"`"))?)?;
        return rounded(seconds(text)?, step).and_then(duration).map(Value::from);
    }
    let (number, by) = (f64::try_from(value.clone())?, f64::try_from(step.clone())?);
    let rounded = rounded(number, by)?;
    let whole = value.is_integer() && step.is_integer();
    Ok(if whole { Value::from(rounded as i64) } else { Value::from(rounded) })
}

fn rounded(value: f64, step: f64) -> Result<f64, Error> {
    if step > 0.0 { Ok((value / step).round() * step) } else { Err(invalid("the step is greater than 0")) }
}

/// `"1.5 GiB" | filesize` is 1610612736: the opposite of `bytes`. `KB` and `MB` count thousands.
fn file_size(text: &str) -> Result<i64, Error> {
    let text = text.trim();
    let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let wrong = || invalid(format!("`{text}` is not a size: write for example `512 MiB`"));
    let number: f64 = text[..end].parse().map_err(|_| wrong())?;
    let unit = text[end..].trim().to_ascii_lowercase();
    let (letter, binary) = match unit.as_bytes() {
        [] | [b'b'] => (b'b', false),
        [letter, b'i', b'b'] => (*letter, true),
        [letter, b'b'] => (*letter, false),
        _ => return Err(wrong()),
    };
    let power = b"bkmgtp".iter().position(|known| *known == letter).ok_or_else(wrong)?;
    let base: f64 = if binary { 1024.0 } else { 1000.0 };
    Ok((number * base.powi(i32::try_from(power).map_err(|_| wrong())?)).round() as i64)
}

/// The filter of minijinja, within a limit.
fn replace(text: &str, from: &str, to: &str) -> Result<String, Error> {
    let found = if from.is_empty() { text.chars().count() + 1 } else { text.matches(from).count() };
    limited(text.len().saturating_add(found.saturating_mul(to.len())))?;
    Ok(text.replace(from, to))
}

/// The filter of minijinja, within a limit.
fn indent(text: &str, width: Option<usize>, rest: Rest<Value>, kwargs: Kwargs) -> Result<String, Error> {
    let flag = |at: usize, name: &str| match rest.get(at) {
        Some(value) => Ok(value.is_true()),
        None => kwargs.get::<Option<bool>>(name).map(Option::unwrap_or_default),
    };
    let (first, blank) = (flag(0, "first")?, flag(1, "blank")?);
    let width = width.or(kwargs.get("width")?).unwrap_or(4);
    kwargs.assert_all_used()?;
    limited(text.len().saturating_add(text.lines().count().saturating_mul(width)))?;
    let pad = " ".repeat(width);
    let lines = text.lines().enumerate().map(|(at, line)| {
        let plain = if at == 0 { !first } else { line.is_empty() && !blank };
        if plain { line.to_owned() } else { format!("{pad}{line}") }
    });
    Ok(lines.collect::<Vec<_>>().join("\n"))
}

/// The filter of minijinja, within a limit.
fn batch(state: &State<'_, '_>, value: Value, count: usize, fill: Option<Value>) -> Result<Value, Error> {
    limited(count)?;
    minijinja::filters::batch(state, value, count, fill)
}

/// The filter of minijinja, within a limit.
fn slice(state: &State<'_, '_>, value: Value, count: usize, fill: Option<Value>) -> Result<Value, Error> {
    limited(count)?;
    minijinja::filters::slice(state, value, count, fill)
}

/// The filter of minijinja, within a limit.
fn join(value: &Value, joiner: Option<&str>) -> Result<String, Error> {
    let joiner = joiner.unwrap_or_default();
    let mut joined = String::new();
    let text = value.as_str().map(|text| text.chars().map(|c| c.to_string()).collect::<Vec<_>>());
    let items: Box<dyn Iterator<Item = String>> = match text {
        Some(letters) => Box::new(letters.into_iter()),
        None => Box::new(value.try_iter()?.map(|item| item.to_string())),
    };
    for (at, item) in items.enumerate() {
        limited(joined.len() + item.len() + joiner.len())?;
        if at > 0 {
            joined.push_str(joiner);
        }
        joined.push_str(&item);
    }
    Ok(joined)
}

fn limited(size: usize) -> Result<(), Error> {
    if size <= MAX_MADE { Ok(()) } else { Err(invalid("the result is longer than 1 MiB")) }
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
    let pattern = crate::pattern::compiled(pattern).map_err(invalid)?;
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
    fn every_name_that_is_suggested_exists() {
        for (names, test) in [(super::FILTERS, "filter"), (super::TESTS, "test")] {
            for name in names {
                let known = evaluate(&format!("'{name}' is {test}"), &Map::new());
                assert_eq!(known, Ok(json!(true)), "{name}");
            }
        }
    }

    #[test]
    fn no_filter_makes_what_fills_the_memory() {
        for bomb in [
            "(range(9999) | join) | replace('1', range(9999) | join)",
            "(range(9999) | join) | replace('', range(9999) | join)",
            "'a\nb' | indent(1000000000)",
            "[1] | batch(1000000000, 0)",
            "[1] | slice(1000000000, 0)",
            "('x' * 90000000) ~ 'y'",
            "[0] * 90000000",
            "90000000 * 'x'",
            "range(9999) | join(range(9999) | join)",
            "'%010000000d' | format(1)",
            "'x' is matching('((\\\\w{100}){100}){100}')",
        ] {
            assert!(evaluate(bomb, &Map::new()).is_err(), "{bomb}");
        }
    }

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
            ("'2026-11-21T03:12:00Z' | plus('90m')", json!("2026-11-21T04:42:00Z")),
            ("'2026-11-21T03:12:00Z' | minus('1h 12m')", json!("2026-11-21T02:00:00Z")),
            ("'2026-11-21T03:12:00Z' | minus('2026-11-21T03:00:00Z')", json!("12m")),
            ("'1h' | plus('30m')", json!("1h 30m")),
            ("'2026-11-21T03:00:00Z' | ago('2026-11-21T03:12:00.4Z')", json!("12m")),
            ("'2026-11-21T03:12:00Z' | strftime('%Y-%m-%d %H:%M')", json!("2026-11-21 03:12")),
            ("17 | round_to(5)", json!(15)),
            ("1.26 | round_to(0.5)", json!(1.5)),
            ("'1h 2m 3s' | round_to('1m')", json!("1h 2m")),
            ("'1.5 GiB' | filesize", json!(1_610_612_736)),
            ("'20 MB' | filesize", json!(20_000_000)),
            ("'17' | filesize", json!(17)),
            ("[3, 1, 3] | unique | sort | join(',')", json!("1,3")),
            ("[1, 2, 3] | sum == 6 and [1, 5] | max == 5 and [1, 5] | min == 1", json!(true)),
            ("{'a': true} | tojson", json!("{\"a\": true}")),
            ("'a\nb' | indent(2, first=true)", json!("  a\n  b")),
            ("'aXbX' | replace('X', '--')", json!("a--b--")),
            ("[1, 2, 3] | batch(2) | list | length", json!(2)),
        ] {
            assert_eq!(evaluate(expression, &Map::new()), Ok(expected), "{expression}");
        }
        for wrong in [
            "'60' | seconds",
            "'3 furlongs' | filesize",
            "'2026-11-21T03:12:00Z' | ago('2026-11-21T03:00:00Z')",
            "'x' | strftime('%Y')",
            "'2026-11-21T03:12:00Z' | strftime('%')",
            "5 | round_to(0)",
            "'9999-12-30T00:00:00Z' | plus('52w')",
            "'30m' | minus('1h')",
        ] {
            assert!(evaluate(wrong, &Map::new()).is_err(), "{wrong}");
        }
        assert!(evaluate("'yesterday' | timestamp", &Map::new()).is_err());
    }
}
