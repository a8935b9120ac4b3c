//! How durations, sizes and moments are written for people: one helper each.

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A moment of wall-clock time in milliseconds since 1970 UTC; RFC 3339 in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(pub i64);

impl Moment {
    /// Returns the moment as a timestamp; one beyond what the calendar holds becomes the nearest it can express.
    pub fn timestamp(self) -> Timestamp {
        let nearest = if self.0 < 0 { Timestamp::MIN } else { Timestamp::MAX };
        Timestamp::from_millisecond(self.0).unwrap_or(nearest)
    }

    /// Returns the nearest moment that the calendar can express, so that differences do not overflow.
    pub(super) fn bounded(self) -> i64 {
        self.timestamp().as_millisecond()
    }

    /// Writes the date, `2026-11-21`.
    pub fn date(self) -> String {
        self.timestamp().strftime("%Y-%m-%d").to_string()
    }

    /// Writes date and time of day in UTC, `2026-11-21 03:12:07 UTC`.
    pub fn full(self) -> String {
        self.timestamp().strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
    }
}

impl Serialize for Moment {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.timestamp())
    }
}

impl<'de> Deserialize<'de> for Moment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let parsed: Timestamp = text.parse().map_err(serde::de::Error::custom)?;
        Ok(Self(parsed.as_millisecond()))
    }
}

/// Writes times of day in UTC, with the date only where it differs from the day that the page names once.
#[derive(Clone, Debug)]
pub struct DayClock {
    date: String,
}

impl DayClock {
    /// Makes a clock for a page that says this day at its head.
    pub fn new(day: Moment) -> Self {
        Self { date: day.date() }
    }

    /// Returns the day that the page must name.
    pub fn date(&self) -> &str {
        &self.date
    }

    /// Writes `03:12:07`, or `11-22 00:04:10` on another day.
    pub fn time(&self, moment: Moment) -> String {
        let stamp = moment.timestamp();
        let format = if moment.date() == self.date { "%H:%M:%S" } else { "%m-%d %H:%M:%S" };
        stamp.strftime(format).to_string()
    }
}

/// Writes a duration of milliseconds: `49 ms`, `0.8 s`, `12 s`, `3m 12s`, `4h 2s`, `2d 3h 5m`.
///
/// At most three units, so that a missed limit never reads like a met one; a negative one gets a minus sign.
pub fn duration(ms: i64) -> String {
    let sign = if ms < 0 { "-" } else { "" };
    format!("{sign}{}", positive_duration(ms.unsigned_abs()))
}

fn positive_duration(ms: u64) -> String {
    match ms {
        0 => "0 s".to_owned(),
        1..100 => format!("{ms} ms"),
        100..9_950 => {
            let tenths = (ms + 50) / 100;
            match tenths % 10 {
                0 => format!("{} s", tenths / 10),
                part => format!("{}.{part} s", tenths / 10),
            }
        }
        _ => match (ms + 500) / 1000 {
            seconds @ 0..60 => format!("{seconds} s"),
            seconds => units(seconds),
        },
    }
}

fn units(seconds: u64) -> String {
    let parts =
        [(seconds / 86_400, 'd'), (seconds / 3600 % 24, 'h'), (seconds / 60 % 60, 'm'), (seconds % 60, 's')];
    let first = parts.iter().position(|(count, _)| *count > 0).unwrap_or(3);
    let written: Vec<String> = parts[first..]
        .iter()
        .take(3)
        .filter(|(count, _)| *count > 0)
        .map(|(count, unit)| format!("{count}{unit}"))
        .collect();
    written.join(" ")
}

/// Writes a size in binary units: `512 B`, `1.4 GiB`.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// Writes a share in whole percent, with one decimal below ten.
pub fn percent(part: i64, whole: i64) -> String {
    if whole <= 0 {
        return "–".to_owned();
    }
    let share = part as f64 * 100.0 / whole as f64;
    if share < 10.0 { format!("{share:.1} %") } else { format!("{share:.0} %") }
}

/// Writes a count with its noun: `1 step`, `3 steps`.
pub fn count(number: usize, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_short_and_never_hide_an_excess() {
        for (ms, text) in [
            (0, "0 s"),
            (49, "49 ms"),
            (100, "0.1 s"),
            (812, "0.8 s"),
            (9_949, "9.9 s"),
            (9_960, "10 s"),
            (12_400, "12 s"),
            (59_600, "1m"),
            (192_000, "3m 12s"),
            (14_400_000, "4h"),
            (14_402_000, "4h 2s"),
            (183_900_000, "2d 3h 5m"),
            (-1_000, "-1 s"),
        ] {
            assert_eq!(duration(ms), text, "{ms}");
        }
        assert!(!duration(i64::MIN).is_empty());
    }

    #[test]
    fn sizes_use_the_largest_unit_that_leaves_a_whole_part() {
        for (count, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1_048_550, "1.0 MiB"),
            (1_503_238_553, "1.4 GiB"),
        ] {
            assert_eq!(bytes(count), text);
        }
        assert_eq!(bytes(u64::MAX), "16.0 EiB");
    }

    #[test]
    fn times_of_another_day_say_so() {
        let day = Moment(1_795_230_720_000);
        let clock = DayClock::new(day);
        assert_eq!(clock.time(day), "03:12:00");
        assert_eq!(clock.date(), "2026-11-21");
        assert_eq!(clock.time(Moment(day.0 + 86_400_000)), "11-22 03:12:00");
        assert!(!Moment(i64::MAX).full().is_empty());
    }
}
