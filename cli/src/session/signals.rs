//! Signals stop a process, never a run.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::Duration;

use lifeboat_engine::run::driver::Control;
use lifeboat_engine::runs::end_survivors;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use crate::exit::{Exit, Failure};

/// How long the process may take to leave after the second signal, whatever it is doing.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Which signal has stopped the process, if any.
#[derive(Clone, Debug, Default)]
pub(super) struct Stopped {
    number: Arc<AtomicI32>,
    /// The run is not driven any more, so that nothing is left to end in an orderly way.
    done: Arc<AtomicBool>,
}

impl Stopped {
    /// Returns the exit code that tells of the signal.
    pub(super) fn exit(&self) -> Option<Exit> {
        match self.number.load(Ordering::Relaxed) {
            2 => Some(Exit::Interrupted),
            15 => Some(Exit::Terminated),
            _ => None,
        }
    }

    /// Takes note that the run is not driven any more: from now on the first signal ends the process.
    pub(super) fn done(&self) {
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
        let number = self.next().await;
        seen.number.store(number, Ordering::Relaxed);
        if seen.done.load(Ordering::Relaxed) {
            std::process::exit(128 + number);
        }
        crate::say::say!(
            "stopping: attempts are being ended, the run stays open (once more to leave at once)"
        );
        tell(controls, Control::Stop);
        let number = self.next().await;
        seen.number.store(number, Ordering::Relaxed);
        crate::say::say!("leaving at once");
        tell(controls, Control::Kill);
        // A disk or a name server that does not answer must not keep the process: what it has begun is in the journal.
        tokio::select! {
            () = tokio::time::sleep(LAST_WORDS) => {}
            _ = self.next() => {}
        }
        // Whoever cannot be ended now is found by resume.
        drop(end_survivors(&children, Duration::ZERO));
        std::process::exit(128 + number);
    }
}

/// Passes a word on without waiting: the run may be waiting for its disk.
fn tell(controls: &mpsc::Sender<Control>, control: Control) {
    let controls = controls.clone();
    tokio::spawn(async move { drop(controls.send(control).await) });
}
