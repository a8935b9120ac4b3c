//! Signals stop a process, never a run.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lifeboat_engine::run::driver::Control;
use lifeboat_engine::runs::end_survivors;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use crate::exit::{Exit, Failure};

/// How long the process may take to leave after the second signal, whatever it is doing.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// How long a process whose run is not driven any more has to leave by itself: then it tells how the run stands.
const LEAVING: Duration = Duration::from_secs(10);

/// How long the end of the process waits for what is still to be said about a signal.
const SAYING: Duration = Duration::from_secs(1);

/// Which signal has stopped the process, if any.
#[derive(Clone, Debug, Default)]
pub(super) struct Stopped {
    number: Arc<AtomicI32>,
    /// The run is not driven any more, so that nothing is left to end in an orderly way.
    done: Arc<AtomicBool>,
    /// Closes when people have been told.
    told: Arc<Mutex<Option<Receiver<()>>>>,
}

impl Stopped {
    /// Says something in a thread of its own: a terminal that takes no more text must not delay a signal.
    fn say(&self, text: &'static str) {
        let (end, told) = channel::<()>();
        *self.told.lock().unwrap_or_else(PoisonError::into_inner) = Some(told);
        let words = std::thread::Builder::new().name("words".to_owned()).spawn(move || {
            crate::say::say!("{text}");
            drop(end);
        });
        // Without a thread nothing is said, and the signal is followed all the same.
        drop(words);
    }

    /// Waits a moment until people have been told of the signal.
    fn wait_for_words(&self) {
        if let Some(told) = self.told.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // It ends by closing, or the time is up.
            let _ = told.recv_timeout(SAYING);
        }
    }

    /// Returns the exit code that tells of the signal.
    pub(super) fn exit(&self) -> Option<Exit> {
        match self.number.load(Ordering::Relaxed) {
            2 => Some(Exit::Interrupted),
            15 => Some(Exit::Terminated),
            _ => None,
        }
    }

    /// Takes note that the run is not driven any more: from now on a signal ends the process if it does not leave by itself.
    pub(super) fn done(&self) {
        self.wait_for_words();
        self.done.store(true, Ordering::Relaxed);
    }
}

/// Listens for signals until the process ends: the first SIGINT or SIGTERM ends attempts and leaves the run open, the
/// second leaves at once and takes along what `children` (the lock that they inherit) shows to be left. SIGHUP is
/// ignored, for a lost connection must not stop a recovery.
///
/// The thread is its own, for the runtime of the run may be busy, and is gone before the process is.
pub(super) fn listen(controls: mpsc::Sender<Control>, children: PathBuf) -> Result<Stopped, Failure> {
    let stopped = Stopped::default();
    let seen = stopped.clone();
    let (ready, installed) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return drop(ready.send(Err(error))),
        };
        runtime.block_on(async {
            let signals = Signals::install();
            match signals {
                Ok(mut signals) => {
                    drop(ready.send(Ok(())));
                    signals.serve(&seen, &controls, children).await;
                }
                Err(error) => drop(ready.send(Err(error))),
            }
        });
    });
    let answer = installed.recv().unwrap_or_else(|_| Err(std::io::Error::other("the thread has ended")));
    answer.map_err(|error| Failure::internal("signals cannot be handled").caused_by(&error))?;
    Ok(stopped)
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    fn install() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for the next signal that is to stop the process.
    async fn next(&mut self) -> i32 {
        loop {
            tokio::select! {
                _ = self.interrupt.recv() => return 2,
                _ = self.terminate.recv() => return 15,
                _ = self.hangup.recv() => {}
            }
        }
    }

    async fn serve(&mut self, seen: &Stopped, controls: &mpsc::Sender<Control>, children: PathBuf) {
        self.following(seen).await;
        tell(controls, Control::Stop);
        seen.say("stopping: attempts are being ended, the run stays open (once more to leave at once)");
        let number = self.following(seen).await;
        tell(controls, Control::Kill);
        seen.say("leaving at once");
        // A disk or a name server that does not answer must not keep the process: what it has begun is in the journal.
        tokio::select! {
            () = tokio::time::sleep(LAST_WORDS) => {}
            _ = self.next() => {}
        }
        end_children(children);
        std::process::exit(128 + number);
    }

    /// Waits for the next signal and takes note of it. Does not return if nothing is driven any more: the process is about to
    /// leave, with an exit code that tells how the run stands, unless something keeps it or somebody says it twice.
    async fn following(&mut self, seen: &Stopped) -> i32 {
        let number = self.next().await;
        let before = seen.number.swap(number, Ordering::Relaxed);
        if seen.done.load(Ordering::Relaxed) {
            if before == 0 {
                tokio::select! {
                    () = tokio::time::sleep(LEAVING) => {}
                    _ = self.next() => {}
                }
            }
            std::process::exit(128 + number);
        }
        number
    }
}

/// Kills what the run has started. Whoever cannot be ended now is found by resume; a disk that does not even let a file
/// be opened is not waited for.
fn end_children(children: PathBuf) {
    let (end, ended) = channel::<()>();
    let hunt = std::thread::Builder::new().name("children".to_owned()).spawn(move || {
        drop(end_survivors(&children, Duration::ZERO));
        drop(end);
    });
    // Without a thread nobody is ended, and the process leaves all the same.
    drop(hunt);
    let _ = ended.recv_timeout(LAST_WORDS);
}

/// Passes a word on without waiting: the run may be waiting for its disk.
fn tell(controls: &mpsc::Sender<Control>, control: Control) {
    if let Err(TrySendError::Full(control)) = controls.try_send(control) {
        let controls = controls.clone();
        tokio::spawn(async move { drop(controls.send(control).await) });
    }
}
