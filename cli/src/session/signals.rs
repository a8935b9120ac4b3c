//! Signals stop a process, never a run.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use lifeboat_engine::run::driver::Control;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::exit::{Exit, Failure};

/// Which signal has stopped the process, if any.
#[derive(Clone, Debug, Default)]
pub(super) struct Stopped(Arc<AtomicI32>);

impl Stopped {
    /// Returns the exit code that tells of the signal.
    pub(super) fn exit(&self) -> Option<Exit> {
        match self.0.load(Ordering::Relaxed) {
            2 => Some(Exit::Interrupted),
            15 => Some(Exit::Terminated),
            _ => None,
        }
    }
}

/// Listens for signals: the first SIGINT or SIGTERM ends attempts and leaves the run open, the second leaves at once.
/// SIGHUP is ignored, for a lost connection must not stop a recovery.
pub(super) fn listen(controls: mpsc::Sender<Control>) -> Result<Stopped, Failure> {
    let install =
        |kind| signal(kind).map_err(|error| Failure::internal("signals cannot be handled").caused_by(&error));
    let mut interrupt = install(SignalKind::interrupt())?;
    let mut terminate = install(SignalKind::terminate())?;
    let mut hangup = install(SignalKind::hangup())?;
    let stopped = Stopped::default();
    let seen = stopped.clone();
    tokio::spawn(async move {
        loop {
            let number = tokio::select! {
                _ = interrupt.recv() => 2,
                _ = terminate.recv() => 15,
                _ = hangup.recv() => continue,
            };
            let first = seen.0.swap(number, Ordering::Relaxed) == 0;
            let text = if first {
                "stopping: attempts are being ended, the run stays open (once more to leave at once)"
            } else {
                "leaving at once"
            };
            anstream::eprintln!("{text}");
            let control = if first { Control::Stop } else { Control::Kill };
            if controls.send(control).await.is_err() {
                return;
            }
        }
    });
    Ok(stopped)
}
