//! The time of a line, in the forms that programs write it.

use std::sync::LazyLock;

use jiff::civil::DateTime;
use jiff::fmt::strtime::BrokenDownTime;
use jiff::tz::{Offset, TimeZone};
use jiff::{SignedDuration, Timestamp};
use regex::bytes::{Captures, Regex};

/// How far into a line its time may begin; further on, a date is what the line is about.
const REACH: usize = 64;
/// How far into a line of JSON.
const JSON_REACH: usize = 16 * 1024;

const ISO: &str = r"(\d{4})[-/](\d{2})[-/](\d{2})[T ](\d{2}):(\d{2}):(\d{2})(?:[.,](\d{1,9}))?(?: ?(Z|UTC|GMT|[+-]\d{2}:?\d{2}))?";

static ISO_TIME: LazyLock<Regex> = LazyLock::new(|| regex(ISO));
static WEB_SERVER: LazyLock<Regex> =
    LazyLock::new(|| regex(r"\[(\d{2})/([A-Z][a-z]{2})/(\d{4}):(\d{2}):(\d{2}):(\d{2}) ([+-]\d{4})\]"));
static SYSLOG: LazyLock<Regex> =
    LazyLock::new(|| regex(r"^(?:<\d+>)?([A-Z][a-z]{2}) {1,2}(\d{1,2}) (\d{2}):(\d{2}):(\d{2})\b"));
static EPOCH: LazyLock<Regex> = LazyLock::new(|| regex(r"^\[?(\d{10})(\d{3})?(?:\.(\d{1,9}))?\b"));
static JSON: LazyLock<Regex> = LazyLock::new(|| {
    regex(
        r#""(?:@timestamp|timestamp|time|ts|date|datetime|t)"\s*:\s*(?:"([^"]{10,40})"|(\d{10})(\d{3})?(?:\.(\d{1,9}))?)"#,
    )
});

fn regex(text: &str) -> Regex {
    Regex::new(text).expect("written here, and tested")
}

/// Reads the times of the lines of one log.
#[derive(Clone, Debug)]
pub(super) struct Clock {
    zone: TimeZone,
    /// How a time is written at the beginning of a line, if the runbook says it.
    format: Option<String>,
    /// What times without a year are near to.
    now: Timestamp,
}

impl Clock {
    /// Reads times without a zone as of `zone`.
    pub(super) fn new(zone: TimeZone, format: Option<String>, now: Timestamp) -> Self {
        Self { zone, format, now }
    }

    /// Returns the time of a line; `None` if it has none of its own, as the further lines of a long message.
    pub(super) fn read(&self, line: &[u8]) -> Option<Timestamp> {
        if let Some(format) = &self.format {
            return self.formatted(format, line);
        }
        if line.first().is_some_and(u8::is_ascii_whitespace) {
            return None;
        }
        if line.first() == Some(&b'{') {
            return self.json(&line[..line.len().min(JSON_REACH)]);
        }
        let head = &line[..line.len().min(REACH + 40)];
        let near = |found: &Captures<'_>| found.get(0).is_some_and(|all| all.start() <= REACH);
        let iso = ISO_TIME.captures(head).filter(near).and_then(|found| self.iso(&found));
        iso.or_else(|| self.web_server(line)).or_else(|| self.syslog(head)).or_else(|| epoch(head))
    }

    fn formatted(&self, format: &str, line: &[u8]) -> Option<Timestamp> {
        let line = line.strip_prefix(b"[").unwrap_or(line);
        let (read, _) = BrokenDownTime::parse_prefix(format, line).ok()?;
        if let Ok(at) = read.to_timestamp() {
            return Some(at);
        }
        self.local(read.to_datetime().ok()?)
    }

    fn json(&self, line: &[u8]) -> Option<Timestamp> {
        let found = JSON.captures(line)?;
        match found.get(1) {
            Some(text) => self.iso(&ISO_TIME.captures(text.as_bytes())?),
            None => seconds(&found, 2),
        }
    }

    fn iso(&self, found: &Captures<'_>) -> Option<Timestamp> {
        let part = |at: usize| number(found, at);
        let fraction = found.get(7).map_or(0, |text| nanos(text.as_bytes()));
        let time = civil((part(1)?, part(2)?, part(3)?), (part(4)?, part(5)?, part(6)?), fraction)?;
        match found.get(8).map(|zone| zone.as_bytes()) {
            None => self.local(time),
            Some(b"Z" | b"UTC" | b"GMT") => at_offset(time, 0),
            Some(zone) => at_offset(time, offset(zone)?),
        }
    }

    fn web_server(&self, line: &[u8]) -> Option<Timestamp> {
        const FAR: usize = 512;
        let found = WEB_SERVER.captures(&line[..line.len().min(FAR)])?;
        let part = |at: usize| number(&found, at);
        let month = month(found.get(2)?.as_bytes())?;
        let time = civil((part(3)?, month, part(1)?), (part(4)?, part(5)?, part(6)?), 0)?;
        at_offset(time, offset(found.get(7)?.as_bytes())?)
    }

    /// The time of a line of syslog has no year: that which brings it nearest to now, and not far behind it, is meant.
    fn syslog(&self, head: &[u8]) -> Option<Timestamp> {
        let found = SYSLOG.captures(head)?;
        let part = |at: usize| number(&found, at);
        let month = month(found.get(1)?.as_bytes())?;
        let year = i64::from(self.now.to_zoned(self.zone.clone()).year());
        let latest = self.now.checked_add(SignedDuration::from_hours(24)).ok()?;
        [year + 1, year, year - 1].into_iter().find_map(|year| {
            let time = civil((year, month, part(2)?), (part(3)?, part(4)?, part(5)?), 0)?;
            self.local(time).filter(|at| *at <= latest)
        })
    }

    fn local(&self, time: DateTime) -> Option<Timestamp> {
        self.zone.to_ambiguous_zoned(time).compatible().ok().map(|zoned| zoned.timestamp())
    }
}

fn epoch(head: &[u8]) -> Option<Timestamp> {
    seconds(&EPOCH.captures(head)?, 1)
}

/// Reads seconds, perhaps with milliseconds or a fraction, from three groups.
fn seconds(found: &Captures<'_>, first: usize) -> Option<Timestamp> {
    let whole = number(found, first)?;
    let millis = number(found, first + 1).unwrap_or(0);
    let fraction = found.get(first + 2).map_or(0, |text| nanos(text.as_bytes()));
    Timestamp::new(whole, i32::try_from(millis * 1_000_000).ok()?.max(fraction)).ok()
}

fn number(found: &Captures<'_>, group: usize) -> Option<i64> {
    std::str::from_utf8(found.get(group)?.as_bytes()).ok()?.parse().ok()
}

fn nanos(digits: &[u8]) -> i32 {
    let padded = digits.iter().copied().chain(std::iter::repeat(b'0')).take(9);
    padded.fold(0, |sum, digit| sum * 10 + i32::from(digit - b'0'))
}

fn civil(date: (i64, i64, i64), time: (i64, i64, i64), nanos: i32) -> Option<DateTime> {
    let small = |part: i64| i8::try_from(part).ok();
    let year = i16::try_from(date.0).ok()?;
    // A leap second is written as 60.
    let second = small(time.2.min(59))?;
    DateTime::new(year, small(date.1)?, small(date.2)?, small(time.0)?, small(time.1)?, second, nanos).ok()
}

fn month(name: &[u8]) -> Option<i64> {
    const NAMES: [&[u8]; 12] =
        [b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec"];
    NAMES.iter().position(|known| *known == name).and_then(|at| i64::try_from(at + 1).ok())
}

/// Reads `+0100` or `+01:00` as seconds.
fn offset(text: &[u8]) -> Option<i32> {
    let digits: Vec<i32> = text.iter().filter(|b| b.is_ascii_digit()).map(|b| i32::from(b - b'0')).collect();
    let [a, b, c, d] = digits.as_slice() else { return None };
    let seconds = (a * 10 + b) * 3600 + (c * 10 + d) * 60;
    Some(if text.first() == Some(&b'-') { -seconds } else { seconds })
}

fn at_offset(time: DateTime, seconds: i32) -> Option<Timestamp> {
    Offset::from_seconds(seconds).ok()?.to_timestamp(time).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock(format: Option<&str>) -> Clock {
        let zone = TimeZone::fixed(Offset::from_seconds(3600).unwrap());
        let now = "2026-01-02T00:00:00Z".parse().unwrap();
        Clock::new(zone, format.map(ToOwned::to_owned), now)
    }

    fn read(line: &str) -> Option<String> {
        clock(None).read(line.as_bytes()).map(|at| at.to_string())
    }

    #[test]
    fn times_are_read_as_programs_write_them() {
        for (line, expected) in [
            ("2026-11-22T00:22:41.5Z started", "2026-11-22T00:22:41.5Z"),
            ("2026-11-22T00:22:41+02:00 x", "2026-11-21T22:22:41Z"),
            ("2026-11-22 00:22:41,123 ERROR x", "2026-11-21T23:22:41.123Z"),
            ("2026-11-22 00:22:41.123 UTC [17] LOG:  x", "2026-11-22T00:22:41.123Z"),
            ("2026/11/22 00:22:41 [error] 7#7: x", "2026-11-21T23:22:41Z"),
            ("[2026-11-22 00:22:41 +0000] [9] [INFO] x", "2026-11-22T00:22:41Z"),
            ("app-1  | 2026-11-22T00:22:41Z x", "2026-11-22T00:22:41Z"),
            (r#"10.0.0.1 - - [22/Nov/2026:00:22:41 +0100] "GET / HTTP/1.1" 200"#, "2026-11-21T23:22:41Z"),
            ("Jan  1 12:00:00 host app[1]: x", "2026-01-01T11:00:00Z"),
            ("Dec 31 23:30:00 host app[1]: x", "2025-12-31T22:30:00Z"),
            ("1763770961.25 x", "2025-11-22T00:22:41.25Z"),
            ("1763770961250 x", "2025-11-22T00:22:41.25Z"),
            (r#"{"level":"error","msg":"x","time":"2026-11-22T00:22:41Z"}"#, "2026-11-22T00:22:41Z"),
            (r#"{"ts": 1763770961.25, "msg": "x"}"#, "2025-11-22T00:22:41.25Z"),
            ("2026-12-31 23:59:60 x", "2026-12-31T22:59:59Z"),
        ] {
            assert_eq!(read(line).as_deref(), Some(expected), "{line}");
        }
    }

    #[test]
    fn a_date_within_a_message_is_not_the_time_of_its_line() {
        for line in [
            "",
            "    at 2026-11-22T00:22:41Z",
            "no time here",
            "2026-13-45 99:99:99 x",
            &format!("{} 2026-11-22T00:22:41Z", "word ".repeat(20)),
            "12345 is a number",
        ] {
            assert_eq!(read(line), None, "{line}");
        }
    }

    #[test]
    fn a_format_that_is_given_is_the_only_one() {
        let clock = clock(Some("%d.%m.%Y %H:%M:%S"));
        let of = |line: &str| clock.read(line.as_bytes()).map(|at| at.to_string());
        assert_eq!(of("[22.11.2026 00:22:41] x").as_deref(), Some("2026-11-21T23:22:41Z"));
        assert_eq!(of("2026-11-22T00:22:41Z x"), None);
    }

    proptest::proptest! {
        #[test]
        fn no_line_is_too_odd(line in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let _ = clock(None).read(&line);
            let _ = clock(Some("%Y-%m-%d")).read(&line);
        }
    }
}
