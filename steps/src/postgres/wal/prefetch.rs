//! Reads the segments that will be asked for next, before they are.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use lifeboat_engine::step::StepError;

use super::archive::Continuity;
use super::fetch::{Fetcher, Found};
use super::names::Segment;
use super::queue::Kept;
use super::server::end_soon;

/// Room on the disk that segments read ahead may take.
pub(in super::super) const READ_AHEAD: u64 = 256 << 20;
/// However small segments are.
pub(in super::super) const MOST_AHEAD: u64 = 32;
/// One thread decompresses while another waits for the store.
const THREADS: usize = 2;

/// A window of verified segments after the last one that was asked for, as files.
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
    /// What is known to be in the archive; beyond it nothing is looked for in advance.
    proven: Option<Continuity>,
    window: u64,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    slots: BTreeMap<Segment, Slot>,
    /// Why the last segment that was being read is not there, for whoever waits for it: the store was just asked.
    failed: Option<(Segment, StepError)>,
    stopped: bool,
}

#[derive(Debug)]
enum Slot {
    Wanted,
    Loading,
    Ready(Kept),
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
    /// Begins with the segment that will be asked for first, if it is known.
    pub(super) fn start(
        fetcher: Fetcher,
        proven: Option<Continuity>,
        first: Option<Segment>,
    ) -> std::io::Result<Self> {
        let window = (READ_AHEAD / fetcher.size.bytes()).min(MOST_AHEAD);
        let (state, changed) = (Mutex::default(), Condvar::new());
        let shared = Arc::new(Shared { fetcher, proven, window, state, changed });
        if let Some(first) = first {
            shared.want(first);
        }
        let mut prefetch = Self { shared, threads: Vec::new() };
        for _ in 0..if window == 0 { 0 } else { THREADS } {
            let shared = Arc::clone(&prefetch.shared);
            let thread = std::thread::Builder::new().name("wal-prefetch".to_owned());
            prefetch.threads.push(thread.spawn(move || shared.work())?);
        }
        Ok(prefetch)
    }

    /// Returns a segment, and begins to read those after it. `None` means proven absent.
    pub(super) fn take(&self, segment: Segment) -> Result<(Option<Found>, Origin), StepError> {
        let after = Segment { number: segment.number + 1, ..segment };
        if let Some(kept) = self.shared.claim(segment)? {
            self.shared.want(after);
            if kept.is_intact() {
                return Ok((Some(Found::Segment(kept)), Origin::Queue));
            }
            let name = segment.name(self.shared.fetcher.size);
            tracing::warn!("{name} was changed after it was read ahead; it is read again");
        }
        let found = self.shared.fetcher.fetch(&segment.name(self.shared.fetcher.size))?;
        if found.is_some() {
            self.shared.want(after);
        }
        Ok((found, Origin::Direct))
    }
}

#[cfg(test)]
impl Prefetch {
    /// Returns how many segments wait, verified.
    pub(super) fn ready(&self) -> usize {
        self.shared.lock().slots.values().filter(|slot| matches!(slot, Slot::Ready(_))).count()
    }
}

impl Drop for Prefetch {
    fn drop(&mut self) {
        self.shared.lock().stopped = true;
        self.shared.changed.notify_all();
        self.threads.drain(..).for_each(end_soon);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a segment out of the window, waiting for one that is being read.
    fn claim(&self, segment: Segment) -> Result<Option<Kept>, StepError> {
        let mut state = self.lock();
        // What failed before anybody asked is no answer.
        state.failed = None;
        while matches!(state.slots.get(&segment), Some(Slot::Loading)) {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if let Some((_, error)) = state.failed.take_if(|(of, _)| *of == segment) {
            return Err(error);
        }
        Ok(match state.slots.remove(&segment) {
            Some(Slot::Ready(kept)) => Some(kept),
            Some(Slot::Wanted | Slot::Loading) => None,
            None => {
                state.slots.clear();
                None
            }
        })
    }

    /// Moves the window to where this segment is its first one.
    fn want(&self, first: Segment) {
        let mut state = self.lock();
        let wanted = first.number..first.number + self.window;
        state.slots.retain(|slot, _| slot.timeline == first.timeline && wanted.contains(&slot.number));
        for number in wanted {
            let segment = Segment { number, ..first };
            if self.proven.as_ref().is_none_or(|proven| proven.contains(segment)) {
                state.slots.entry(segment).or_insert(Slot::Wanted);
            }
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
                    Ok(Some(Found::Segment(kept))) => drop(state.slots.insert(segment, Slot::Ready(kept))),
                    Ok(Some(Found::Small(_)) | None) => drop(state.slots.remove(&segment)),
                    Err(error) => {
                        state.slots.remove(&segment);
                        state.failed = Some((segment, error));
                    }
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
