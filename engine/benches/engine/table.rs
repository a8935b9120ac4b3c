//! The table of what the engine costs, and the numbers in it.

use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;

/// How long many things of one sort took.
#[derive(Clone, Debug)]
pub(crate) struct Spread {
    sorted: Vec<Duration>,
}

impl Spread {
    pub(crate) fn of(mut all: Vec<Duration>) -> Self {
        all.sort_unstable();
        Self { sorted: all }
    }

    /// Returns the time that so many of a hundred did not exceed.
    pub(crate) fn percentile(&self, percent: usize) -> Duration {
        self.sorted[(self.sorted.len() * percent / 100).min(self.sorted.len() - 1)]
    }

    pub(crate) fn median(&self) -> Duration {
        self.percentile(50)
    }
}

/// Prints what stands above the rows.
pub(crate) fn head() {
    println!("| what | result | median | 99 of 100 | aim |");
    println!("|---|---|---|---|---|");
}

/// Prints one row.
pub(crate) fn row(what: &str, result: &str, spread: Option<&Spread>, aim: &str) {
    let of = |percent| spread.map_or_else(|| "–".to_owned(), |spread| ms(spread.percentile(percent)));
    println!("| {what} | {result} | {} | {} | {aim} |", of(50), of(99));
}

/// Returns the processor time of this process so far, all threads, user and system together.
pub(crate) fn cpu() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_SELF).expect("the kernel counts");
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Duration::from_micros(micros.unsigned_abs())
}

/// Writes a duration in milliseconds with a sensible number of digits.
pub(crate) fn ms(duration: Duration) -> String {
    match duration.as_secs_f64() * 1e3 {
        ms if ms < 1.0 => format!("{ms:.3} ms"),
        ms if ms < 10.0 => format!("{ms:.2} ms"),
        ms => format!("{ms:.0} ms"),
    }
}

/// Writes a number with a comma before each three digits.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
