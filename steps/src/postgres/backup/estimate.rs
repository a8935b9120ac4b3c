//! How long a restore takes: at the rates that earlier runs have measured, or at assumed ones, which are named.

use lifeboat_engine::runs::Past;
use serde_json::{Map, Value};

/// What is assumed where nothing was measured, in bytes a second: less than a single disk or a line of 1 Gbit/s manages.
const ASSUMED: Rates = Rates { base: Rate { speed: 50e6, runs: 0 }, log: Rate { speed: 25e6, runs: 0 } };
/// So many of the last steps of a kind are looked at.
const STEPS: usize = 10;
/// What was done to less than this share of the bytes measures other things than the rate.
const COMPARABLE: f64 = 0.1;

/// What has to be written and replayed, uncompressed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Work {
    pub(super) base: u64,
    pub(super) log: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Rate {
    /// Bytes a second.
    speed: f64,
    /// How many steps it was measured by; none if it is assumed.
    runs: usize,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Rates {
    base: Rate,
    log: Rate,
}

/// How long a restore takes, and how that is known.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Estimate {
    pub(super) seconds: u64,
    pub(super) method: String,
}

/// What earlier runs say of restores and recoveries.
#[derive(Clone, Debug, Default)]
pub(super) struct Measured {
    base: Vec<(f64, f64)>,
    log: Vec<(f64, f64)>,
}

impl Measured {
    /// Reads the journals of earlier runs. Blocks.
    pub(super) fn by(past: &Past) -> Self {
        let of = |kind: &str, keys: (&str, &str)| samples(&past.outputs_of(kind, STEPS), keys);
        let mut measured = Self {
            base: of("postgres.restore_base", ("bytes", "seconds")),
            log: of("postgres.recover", ("wal_bytes", "seconds")),
        };
        let clones = past.outputs_of("postgres.clone", STEPS);
        measured.base.extend(samples(&clones, ("bytes", "base_seconds")));
        measured.log.extend(samples(&clones, ("wal_bytes", "replay_seconds")));
        measured
    }

    /// Estimates how long work takes: the base first, then the log.
    pub(super) fn estimate(&self, work: Work) -> Estimate {
        let rates = Rates {
            base: rate(&self.base, work.base).unwrap_or(ASSUMED.base),
            log: rate(&self.log, work.log).unwrap_or(ASSUMED.log),
        };
        let seconds = work.base as f64 / rates.base.speed + work.log as f64 / rates.log.speed;
        let method = format!("base at {}, log at {}", rates.base.told(), rates.log.told());
        Estimate { seconds: seconds.ceil() as u64, method }
    }
}

impl Rate {
    fn told(self) -> String {
        let speed = format!("{:.1} MB/s", self.speed / 1e6);
        match self.runs {
            0 => format!("{speed} (assumed: no earlier run has measured as much)"),
            1 => format!("{speed} (measured by the last one of this project)"),
            runs => format!("{speed} (median of the last {runs} of this project)"),
        }
    }
}

/// Bytes and seconds of steps.
fn samples(outputs: &[Map<String, Value>], (bytes, seconds): (&str, &str)) -> Vec<(f64, f64)> {
    let sample = |outputs: &Map<String, Value>| {
        let bytes =
            outputs.get(bytes)?.as_f64()? - outputs.get("kept_bytes").and_then(Value::as_f64).unwrap_or(0.0);
        let seconds = outputs.get(seconds)?.as_f64()?;
        (bytes > 0.0 && seconds > 0.0).then_some((bytes, seconds))
    };
    outputs.iter().filter_map(sample).collect()
}

/// The median rate of steps that had comparably much to do.
fn rate(samples: &[(f64, f64)], work: u64) -> Option<Rate> {
    let comparable = samples.iter().filter(|(bytes, _)| *bytes >= work as f64 * COMPARABLE);
    let mut speeds: Vec<_> = comparable.map(|(bytes, seconds)| bytes / seconds).collect();
    speeds.sort_by(f64::total_cmp);
    let (low, high) = (speeds.get(speeds.len().checked_sub(1)? / 2)?, speeds.get(speeds.len() / 2)?);
    Some(Rate { speed: f64::midpoint(*low, *high), runs: speeds.len() })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const GIB: u64 = 1 << 30;

    fn outputs(name: &str, bytes: u64, kept: u64, seconds: f64) -> Map<String, Value> {
        let outputs = json!({ name: bytes, "kept_bytes": kept, "seconds": seconds });
        outputs.as_object().cloned().unwrap()
    }

    #[test]
    fn nothing_measured_is_said_to_be_assumed() {
        let estimate = Measured::default().estimate(Work { base: 5_000_000_000, log: 500_000_000 });
        assert_eq!(estimate.seconds, 120);
        assert_eq!(
            estimate.method,
            "base at 50.0 MB/s (assumed: no earlier run has measured as much), \
             log at 25.0 MB/s (assumed: no earlier run has measured as much)"
        );
    }

    #[test]
    fn the_median_of_comparable_steps_counts_and_what_was_kept_was_not_written() {
        let base = [
            outputs("bytes", GIB, 0, 2.0),
            outputs("bytes", GIB, GIB / 2, 2.0),
            outputs("bytes", 2 * GIB, 0, 1.0),
            // A clone of next to nothing, and one that was there already.
            outputs("bytes", 1000, 0, 3.0),
            outputs("bytes", GIB, GIB, 1.0),
        ];
        let log = [outputs("wal_bytes", GIB, 0, 10.0)];
        let measured = Measured {
            base: samples(&base, ("bytes", "seconds")),
            log: samples(&log, ("wal_bytes", "seconds")),
        };
        let estimate = measured.estimate(Work { base: 4 * GIB, log: GIB });
        assert_eq!(estimate.seconds, 8 + 10, "{estimate:?}");
        assert!(estimate.method.contains("base at 536.9 MB/s (median of the last 3 of this project)"));
        assert!(estimate.method.contains("log at 107.4 MB/s (measured by the last one of this project)"));
        let larger = measured.estimate(Work { base: 400 * GIB, log: GIB });
        assert!(larger.method.contains("base at 50.0 MB/s (assumed"), "too little to judge by: {larger:?}");
    }
}
