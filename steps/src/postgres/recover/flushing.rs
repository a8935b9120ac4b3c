//! Sends to the disk what a server writes without syncing while it still replays, so that little is left to wait for at
//! the end.

use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::super::unsynced::{self, Disk};

/// The shortest pause between two syncs.
const PAUSE: Duration = Duration::from_millis(500);

/// A thread that syncs the disk again and again until the value is dropped. At most half of the time, as others may use
/// that disk.
///
/// An error of the disk is told to each of those who have it open, so that the sync at the end, which counts, learns of it
/// as well. Whoever opens it later does not: so the directory is lost as soon as an error is met.
#[derive(Debug)]
pub(super) struct Flushing {
    /// Its end tells the thread.
    stop: Sender<()>,
    thread: Option<JoinHandle<()>>,
}

impl Flushing {
    /// Starts the thread. Without one, everything is written at the end.
    pub(super) fn start(data_dir: &Path) -> Self {
        let (stop, stopped) = channel();
        let data_dir = data_dir.to_path_buf();
        let mut thread = None;
        if let Ok(disk) = Disk::of(&data_dir) {
            let work = move || {
                let mut pause = PAUSE;
                while stopped.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                    let begun = Instant::now();
                    if disk.sync().is_err() {
                        return unsynced::lose(&data_dir);
                    }
                    pause = begun.elapsed().max(PAUSE);
                }
            };
            // That there is none costs time only.
            thread = std::thread::Builder::new().name("flushing".to_owned()).spawn(work).ok();
        }
        Self { stop, thread }
    }

    /// Waits for what it is about: whoever opens the disk after that would not be told of an error. Blocks.
    pub(super) fn end(self) {
        drop(self.stop);
        if let Some(thread) = self.thread {
            // One that has panicked has synced nothing; the last sync is still to come.
            thread.join().ok();
        }
    }
}
