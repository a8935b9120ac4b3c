//! Keeps a slow or stuck terminal from holding up the run: what is shown is shown by a thread of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use lifeboat_engine::model::event::{EventClass, EventKind};
use lifeboat_engine::run::driver::Reporter;

/// How many events may wait to be shown before progress and output are left out. The rest is as long as the run.
const WAITING: usize = 10_000;

/// How long the end of a run waits for what is still to be shown, for a terminal that takes text slowly or a machine that is busy.
const FAREWELL: Duration = Duration::from_secs(30);

/// How often it looks whether anything is shown meanwhile, and after how many looks in vain the terminal is taken for stuck.
const LOOK: Duration = Duration::from_millis(100);
const STUCK: u32 = 20;

/// Passes events on to a reporter that may block: a connection that hangs takes no more text, and a recovery must go on.
#[derive(Debug)]
pub(crate) struct Aside {
    events: Option<Sender<(i64, EventKind)>>,
    waiting: Arc<AtomicUsize>,
    /// Closes when everything has been shown.
    done: Receiver<()>,
}

impl Aside {
    /// Moves a reporter into its thread, which ends when all is shown and is left behind if it never is.
    pub(crate) fn new(mut reporter: impl Reporter + 'static) -> std::io::Result<Self> {
        let (events, inbox) = channel::<(i64, EventKind)>();
        let (end, done) = channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let left = Arc::clone(&waiting);
        std::thread::Builder::new().name("view".to_owned()).spawn(move || {
            for (at_ms, event) in inbox {
                reporter.on_event(at_ms, &event);
                left.fetch_sub(1, Ordering::Relaxed);
            }
            drop(reporter);
            drop(end);
        })?;
        Ok(Self { events: Some(events), waiting, done })
    }
}

impl Reporter for Aside {
    fn on_event(&mut self, at_ms: i64, event: &EventKind) {
        let Some(events) = &self.events else { return };
        if event.class() == EventClass::Advisory && self.waiting.load(Ordering::Relaxed) >= WAITING {
            return;
        }
        self.waiting.fetch_add(1, Ordering::Relaxed);
        // A reporter that has panicked, because its pipe is closed, shows nothing more; the run goes on.
        drop(events.send((at_ms, event.clone())));
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        self.events = None;
        let deadline = Instant::now() + FAREWELL;
        let (mut left, mut in_vain) = (self.waiting.load(Ordering::Relaxed), 0);
        // It ends by closing, or nothing moves any more.
        while self.done.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout)
            && in_vain < STUCK
            && Instant::now() < deadline
        {
            let now = self.waiting.load(Ordering::Relaxed);
            in_vain = if now == left { in_vain + 1 } else { 0 };
            left = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Shows nothing before it is let go.
    struct Stuck {
        gate: Receiver<()>,
        shown: Arc<Mutex<Vec<i64>>>,
    }

    impl Reporter for Stuck {
        fn on_event(&mut self, at_ms: i64, _: &EventKind) {
            if at_ms == 0 {
                self.gate.recv().unwrap();
            }
            self.shown.lock().unwrap().push(at_ms);
        }
    }

    fn note() -> EventKind {
        EventKind::Noted { step: None, text: "a note".into() }
    }

    #[test]
    fn a_reporter_that_is_stuck_holds_nobody_up_and_shows_the_rest_later() {
        let (open, gate) = channel();
        let shown = Arc::new(Mutex::new(Vec::new()));
        let mut aside = Aside::new(Stuck { gate, shown: Arc::clone(&shown) }).unwrap();
        let essential = EventKind::StepFinished {
            step: lifeboat_engine::model::StepId::new("a").unwrap(),
            outcome: lifeboat_engine::model::Outcome::Succeeded,
        };
        // More advice than may wait; nothing that tells of the run itself is left out.
        for at in 0..20_000 {
            aside.on_event(at, &note());
        }
        aside.on_event(99_999, &essential);
        open.send(()).unwrap();
        drop(aside);
        let shown = shown.lock().unwrap();
        assert_eq!(shown.last(), Some(&99_999));
        assert!((10_000..=10_002).contains(&shown.len()), "{}", shown.len());
        assert!(shown.is_sorted());
    }

    /// Takes its time with everything.
    struct Slow(Arc<Mutex<Vec<i64>>>);

    impl Reporter for Slow {
        fn on_event(&mut self, at_ms: i64, _: &EventKind) {
            std::thread::sleep(Duration::from_millis(60));
            self.0.lock().unwrap().push(at_ms);
        }
    }

    #[test]
    fn what_is_shown_slowly_is_shown_to_the_end() {
        let shown = Arc::new(Mutex::new(Vec::new()));
        let mut aside = Aside::new(Slow(Arc::clone(&shown))).unwrap();
        // Longer than is waited for a terminal that takes nothing.
        (0..50).for_each(|at| aside.on_event(at, &note()));
        drop(aside);
        assert_eq!(shown.lock().unwrap().last(), Some(&49));
    }
}
