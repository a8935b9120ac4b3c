//! When the next attempt is due.

use std::time::Duration;

use crate::plan::{Backoff, Retry};

/// Returns the delay before the attempt that follows `used` used ones. `random` is in `0.0..1.0`.
pub(super) fn delay(retry: &Retry, used: u32, random: f64) -> Duration {
    let base = retry.delay.0;
    let grown = match retry.backoff {
        Backoff::Fixed => base,
        Backoff::Exponential => {
            let factor = 2u32.checked_pow(used.saturating_sub(1)).unwrap_or(u32::MAX);
            base.checked_mul(factor).unwrap_or(Duration::MAX)
        }
    };
    let capped = retry.max_delay.map_or(grown, |max| grown.min(max.0)).min(LONGEST);
    if retry.jitter { capped.mul_f64(1.0 - random / 2.0) } else { capped }
}

/// Returns the longest that the delay can be.
pub(crate) fn longest_delay(retry: &Retry, used: u32) -> Duration {
    delay(&Retry { jitter: false, ..retry.clone() }, used, 0.0)
}

/// Nobody waits longer for a retry; it also keeps arithmetic on moments in range.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::Span;

    fn retry(backoff: Backoff, max: Option<u64>) -> Retry {
        Retry {
            attempts: 9,
            backoff,
            delay: Span(Duration::from_secs(5)),
            max_delay: max.map(|secs| Span(Duration::from_secs(secs))),
            ..Retry::default()
        }
    }

    #[test]
    fn exponential_delays_double_up_to_their_limit() {
        let retry = retry(Backoff::Exponential, Some(30));
        let seconds: Vec<_> = (1..=5).map(|used| delay(&retry, used, 0.0).as_secs()).collect();
        assert_eq!(seconds, [5, 10, 20, 30, 30]);
    }

    #[test]
    fn a_long_series_does_not_overflow() {
        assert_eq!(delay(&retry(Backoff::Exponential, None), 4000, 0.0), LONGEST);
    }

    #[test]
    fn jitter_takes_up_to_half_off() {
        let retry = Retry { jitter: true, ..retry(Backoff::Fixed, None) };
        assert_eq!(delay(&retry, 1, 0.0), Duration::from_secs(5));
        assert_eq!(delay(&retry, 1, 1.0), Duration::from_millis(2500));
    }
}
