//! Sends large files to the disk while the rest is still unpacked, so that little is left to wait for at the end.

use std::fs::File;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

/// Files that may wait. More of them would only keep the disk from being asked for what comes next.
const QUEUE: usize = 8;

/// A thread that waits for the disk so that nobody else has to. What it does is no promise: whoever needs the files to be
/// durable syncs them, and learns of every error then.
#[derive(Debug)]
pub(super) struct Flusher {
    files: Option<SyncSender<File>>,
    thread: Option<JoinHandle<()>>,
}

impl Flusher {
    /// Starts the thread. Without one, nothing is sent early.
    pub(super) fn start() -> Self {
        let (files, waiting) = sync_channel::<File>(QUEUE);
        let thread = std::thread::Builder::new().name("flusher".to_owned());
        let thread = thread.spawn(move || {
            for file in waiting {
                // The sync of the file system at the end reports what went wrong.
                drop(file.sync_data());
            }
        });
        Self { files: Some(files), thread: thread.ok() }
    }

    /// Sends what was written to a file to the disk, if the disk keeps up.
    pub(super) fn flush(&self, file: &File) {
        if let (Some(files), Ok(file)) = (&self.files, file.try_clone()) {
            // A full queue means that the disk has enough to do.
            files.try_send(file).ok();
        }
    }
}

impl Drop for Flusher {
    fn drop(&mut self) {
        drop(self.files.take());
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}
