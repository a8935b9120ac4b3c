//! Where time comes from, so that tests decide what time it is.
//!
//! A run has a time of its own ([`RunClock`]): it begins with the wall clock and goes on with the clock that counts since
//! the machine was started, which nobody can set and which counts while the machine sleeps. The wall clock of a machine that
//! is being recovered is often wrong at first and set right in the middle; durations and the clock of the objectives must
//! not notice.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

use crate::model::{Event, EventKind};
use crate::process::boot_id;

/// Tells the time.
pub trait Clock: Send + Sync + 'static {
    /// Returns milliseconds since 1970 UTC.
    fn now_ms(&self) -> i64;

    /// Returns what the clocks beneath it show now, for a later process to go on with the same time; nothing for a clock
    /// that has none beneath it.
    fn reading(&self) -> Option<Reading> {
        None
    }
}

/// What the clocks show at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// The time of the run.
    pub run_ms: i64,
    /// The wall clock.
    pub wall_ms: i64,
    /// Since the machine was started, time asleep included.
    pub boot_ms: i64,
    /// Which start of the machine that was.
    pub boot_id: String,
}

impl Reading {
    /// Returns how far the wall clock is ahead of the run's time; negative if it is behind.
    pub fn ahead_ms(&self) -> i64 {
        self.wall_ms.saturating_sub(self.run_ms)
    }
}

/// Differences below this are no setting of the clock: readings are not taken at the very same moment.
pub const NOTABLE_MS: i64 = 2_000;

/// The wall clock of this machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now_ms(&self) -> i64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
    }
}

/// The clocks of a machine; injected, because tests can neither set them nor send the machine to sleep.
pub trait Machine: Send + Sync + 'static {
    /// Returns the wall clock in milliseconds since 1970 UTC.
    fn wall_ms(&self) -> i64;
    /// Returns milliseconds since the machine was started, time asleep included.
    fn boot_ms(&self) -> i64;
    /// Returns what tells this start of the machine from others; empty if it is not known.
    fn boot_id(&self) -> String;
}

/// This machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct ThisMachine;

impl Machine for ThisMachine {
    fn wall_ms(&self) -> i64 {
        SystemClock.now_ms()
    }

    fn boot_ms(&self) -> i64 {
        let time = clock_gettime(ClockId::Boottime);
        time.tv_sec.saturating_mul(1_000).saturating_add(time.tv_nsec / 1_000_000)
    }

    fn boot_id(&self) -> String {
        boot_id()
    }
}

/// The time of one run. Never goes back, and nobody can set it; see the module.
pub struct RunClock {
    machine: Arc<dyn Machine>,
    boot_id: String,
    /// The run's time when the machine was started.
    base_ms: i64,
}

impl RunClock {
    /// Begins the time of a new run with the wall clock.
    pub fn begin(machine: Arc<dyn Machine>) -> Self {
        Self::resume(machine, &[])
    }

    /// Goes on with the time of a run as its journal tells it.
    ///
    /// Since the machine was started anew, or on another one, only the wall clock can say how long nobody worked on the
    /// run; where it shows less than the last event, that time counts as none.
    pub fn resume(machine: Arc<dyn Machine>, events: &[Event]) -> Self {
        let (boot_id, boot_ms) = (machine.boot_id(), machine.boot_ms());
        let known = events.iter().rev().find_map(|event| match &event.kind {
            EventKind::ClockRead { run_ms, boot_ms, boot_id: of, .. } if *of == boot_id && !of.is_empty() => {
                Some(run_ms.saturating_sub(*boot_ms))
            }
            _ => None,
        });
        let base_ms = known.unwrap_or_else(|| machine.wall_ms().saturating_sub(boot_ms));
        let last = events.iter().map(|event| event.at_ms).max().unwrap_or(i64::MIN);
        let base_ms = base_ms.max(last.saturating_sub(boot_ms));
        Self { machine, boot_id, base_ms }
    }
}

impl Clock for RunClock {
    fn now_ms(&self) -> i64 {
        self.base_ms.saturating_add(self.machine.boot_ms())
    }

    fn reading(&self) -> Option<Reading> {
        let boot_ms = self.machine.boot_ms();
        Some(Reading {
            run_ms: self.base_ms.saturating_add(boot_ms),
            wall_ms: self.machine.wall_ms(),
            boot_ms,
            boot_id: self.boot_id.clone(),
        })
    }
}

impl std::fmt::Debug for RunClock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RunClock").field("base_ms", &self.base_ms).finish_non_exhaustive()
    }
}

/// Returns the time of a run now, as whoever looks at it from this machine must see it.
pub fn now_of(events: &[Event]) -> i64 {
    RunClock::resume(Arc::new(ThisMachine), events).now_ms()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    /// Wall clock, boot-time clock and boot id of a machine that does what a test says.
    #[derive(Clone)]
    struct Fake(Arc<Mutex<(i64, i64, &'static str)>>);

    impl Fake {
        fn at(wall: i64, boot: i64) -> Self {
            Self(Arc::new(Mutex::new((wall, boot, "first"))))
        }

        fn pass(&self, ms: i64) {
            let mut now = self.0.lock().unwrap();
            now.0 += ms;
            now.1 += ms;
        }

        fn set_wall(&self, by: i64) {
            self.0.lock().unwrap().0 += by;
        }

        fn reboot(&self, wall: i64) {
            *self.0.lock().unwrap() = (wall, 5_000, "second");
        }
    }

    impl Machine for Fake {
        fn wall_ms(&self) -> i64 {
            self.0.lock().unwrap().0
        }
        fn boot_ms(&self) -> i64 {
            self.0.lock().unwrap().1
        }
        fn boot_id(&self) -> String {
            self.0.lock().unwrap().2.to_owned()
        }
    }

    fn journal(clock: &RunClock) -> Vec<Event> {
        let Reading { run_ms, wall_ms, boot_ms, boot_id } = clock.reading().unwrap();
        vec![Event {
            seq: 1,
            at_ms: run_ms,
            kind: EventKind::ClockRead { run_ms, wall_ms, boot_ms, boot_id },
        }]
    }

    const HOUR: i64 = 3_600_000;

    #[test]
    fn the_wall_clock_can_be_set_and_the_time_of_the_run_goes_on() {
        for jump in [HOUR, -HOUR, 24 * 365 * HOUR] {
            let machine = Fake::at(1_000_000_000, 70_000);
            let clock = RunClock::begin(Arc::new(machine.clone()));
            assert_eq!(clock.now_ms(), 1_000_000_000, "it begins with the wall clock");
            machine.pass(2_000);
            machine.set_wall(jump);
            machine.pass(3_000);
            assert_eq!(clock.now_ms(), 1_000_005_000);
            assert_eq!(clock.reading().unwrap().ahead_ms(), jump);
        }
    }

    #[test]
    fn a_later_process_goes_on_with_the_same_time_whatever_the_wall_clock_says_meanwhile() {
        let machine = Fake::at(1_000_000_000, 70_000);
        let events = journal(&RunClock::begin(Arc::new(machine.clone())));
        machine.pass(3 * HOUR);
        machine.set_wall(-HOUR);
        let later = RunClock::resume(Arc::new(machine), &events);
        assert_eq!(later.now_ms(), 1_000_000_000 + 3 * HOUR, "three hours without a process are three hours");
    }

    #[test]
    fn after_a_restart_of_the_machine_the_wall_clock_counts_and_time_does_not_go_back() {
        let machine = Fake::at(1_000_000_000, 70_000_000);
        let events = journal(&RunClock::begin(Arc::new(machine.clone())));
        machine.reboot(1_000_000_000 + HOUR);
        let later = RunClock::resume(Arc::new(machine.clone()), &events);
        assert_eq!(later.now_ms(), 1_000_000_000 + HOUR);
        machine.reboot(1_000_000_000 - HOUR);
        let later = RunClock::resume(Arc::new(machine.clone()), &events);
        assert_eq!(later.now_ms(), 1_000_000_000, "how long it was down is not known");
        machine.pass(10);
        assert_eq!(later.now_ms(), 1_000_000_010);
    }

    #[test]
    fn a_journal_without_readings_goes_on_with_the_wall_clock() {
        let machine = Fake::at(1_000_000_000, 70_000);
        let kind = EventKind::Noted { step: None, text: String::new() };
        let events = [Event { seq: 1, at_ms: 900_000_000, kind }];
        assert_eq!(RunClock::resume(Arc::new(machine), &events).now_ms(), 1_000_000_000);
    }

    #[test]
    fn this_machine_counts_since_its_start() {
        let (machine, begin) = (ThisMachine, std::time::Instant::now());
        let first = machine.boot_ms();
        assert!(first > 0 && !machine.boot_id().is_empty());
        while begin.elapsed().as_millis() < 20 {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        assert!((15..10_000).contains(&(machine.boot_ms() - first)));
    }
}
