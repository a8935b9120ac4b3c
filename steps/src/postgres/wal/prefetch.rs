//! Reads the segments that will be asked for next, before they are.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use lifeboat_engine::step::StepError;

use super::fetch::Fetcher;
use super::names::Segment;

/// Memory that segments read ahead may take.
const MEMORY: u64 = 64 << 20;
/// One thread decompresses while another waits for the store.
const THREADS: usize = 2;

/// A window of verified segments after the last one that was asked for.
///
/// Only successes are kept: an absence or a fault is found again when the segment is asked for. A request outside
/// the window empties it, so that nothing is served across a change of timeline.
#[derive(Debug)]
pub(super) struct Prefetch {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    fetcher: Fetcher,
    window: u64,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    slots: BTreeMap<Segment, Slot>,
    stopped: bool,
}

#[derive(Debug)]
enum Slot {
    Wanted,
    Loading,
    Ready(Vec<u8>),
}

/// Where a segment came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Read ahead.
    Queue,
    /// Read when it was asked for.
    Direct,
}

impl Prefetch {
    pub(super) fn start(fetcher: Fetcher) -> std::io::Result<Self> {
        let window = (MEMORY / fetcher.size.bytes()).min(32);
        let shared = Arc::new(Shared { fetcher, window, state: Mutex::default(), changed: Condvar::new() });
        let mut prefetch = Self { shared, threads: Vec::new() };
        for _ in 0..if window == 0 { 0 } else { THREADS } {
            let shared = Arc::clone(&prefetch.shared);
            let thread = std::thread::Builder::new().name("wal-prefetch".to_owned());
            prefetch.threads.push(thread.spawn(move || shared.work())?);
        }
        Ok(prefetch)
    }

    /// Returns a segment, and begins to read those after it. `None` means proven absent.
    pub(super) fn take(&self, segment: Segment) -> Result<(Option<Vec<u8>>, Origin), StepError> {
        if let Some(bytes) = self.shared.claim(segment) {
            self.shared.want_after(segment);
            return Ok((Some(bytes), Origin::Queue));
        }
        let found = self.shared.fetcher.fetch(&segment.name(self.shared.fetcher.size))?;
        if found.is_some() {
            self.shared.want_after(segment);
        }
        Ok((found, Origin::Direct))
    }
}

impl Drop for Prefetch {
    fn drop(&mut self) {
        self.shared.lock().stopped = true;
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            // It has no result, and a panic of it was printed where it happened.
            drop(thread.join());
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a segment out of the window, waiting for one that is being read.
    fn claim(&self, segment: Segment) -> Option<Vec<u8>> {
        let mut state = self.lock();
        while matches!(state.slots.get(&segment), Some(Slot::Loading)) {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        match state.slots.remove(&segment) {
            Some(Slot::Ready(bytes)) => Some(bytes),
            Some(Slot::Wanted | Slot::Loading) => None,
            None => {
                state.slots.clear();
                None
            }
        }
    }

    /// Moves the window to the segments after this one.
    fn want_after(&self, segment: Segment) {
        let mut state = self.lock();
        let wanted = segment.number + 1..=segment.number + self.window;
        state.slots.retain(|slot, _| slot.timeline == segment.timeline && wanted.contains(&slot.number));
        for number in wanted {
            state.slots.entry(Segment { number, ..segment }).or_insert(Slot::Wanted);
        }
        drop(state);
        self.changed.notify_all();
    }

    fn work(&self) {
        while let Some(segment) = self.next_wanted() {
            let found = self.fetcher.fetch(&segment.name(self.fetcher.size));
            let mut state = self.lock();
            // The window may have moved on in the meantime.
            if matches!(state.slots.get(&segment), Some(Slot::Loading)) {
                match found {
                    Ok(Some(bytes)) => drop(state.slots.insert(segment, Slot::Ready(bytes))),
                    Ok(None) | Err(_) => drop(state.slots.remove(&segment)),
                }
            }
            drop(state);
            self.changed.notify_all();
        }
    }

    fn next_wanted(&self) -> Option<Segment> {
        let mut state = self.lock();
        loop {
            if state.stopped {
                return None;
            }
            let wanted = state.slots.iter().find(|(_, slot)| matches!(slot, Slot::Wanted));
            if let Some(segment) = wanted.map(|(segment, _)| *segment) {
                state.slots.insert(segment, Slot::Loading);
                return Some(segment);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}
