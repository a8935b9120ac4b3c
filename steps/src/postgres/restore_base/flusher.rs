//! Sends large files to the disk while the rest is still unpacked, so that little is left to wait for at the end.

use std::fs::File;
use std::io;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

/// Files that may wait. More of them would only keep the disk from being asked for what comes next.
const QUEUE: usize = 8;

/// A thread that waits for the disk so that nobody else has to. What it does is no promise that files are durable; but an
/// error is told once only, so that what it learns must not be lost.
#[derive(Debug)]
pub(super) struct Flusher {
    files: Option<SyncSender<File>>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Flusher {
    /// Starts the thread. Without one, nothing is sent early.
    pub(super) fn start() -> Self {
        let (files, waiting) = sync_channel::<File>(QUEUE);
        let thread = std::thread::Builder::new().name("flusher".to_owned());
        let thread =
            thread.spawn(move || waiting.into_iter().map(|file| file.sync_data()).fold(Ok(()), Result::and));
        Self { files: Some(files), thread: thread.ok() }
    }

    /// Sends what was written to a file to the disk, if the disk keeps up.
    pub(super) fn flush(&self, file: &File) {
        if let (Some(files), Ok(file)) = (&self.files, file.try_clone()) {
            // A full queue means that the disk has enough to do.
            files.try_send(file).ok();
        }
    }

    /// Waits for what was sent, and returns the first error of it.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.join()
    }

    fn join(&mut self) -> io::Result<()> {
        drop(self.files.take());
        let Some(thread) = self.thread.take() else { return Ok(()) };
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread that flushes files has panicked")))
    }
}

impl Drop for Flusher {
    fn drop(&mut self) {
        // Whoever did not ask is giving up for another reason.
        drop(self.join());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_the_disk_is_not_lost() {
        let flusher = Flusher::start();
        flusher.flush(&tempfile::tempfile().expect("a file"));
        flusher.finish().expect("is well");
        // A pipe cannot be synced: as good as a disk that fails.
        let flusher = Flusher::start();
        let (_reader, writer) = std::io::pipe().expect("a pipe");
        flusher.flush(&File::from(std::os::fd::OwnedFd::from(writer)));
        flusher.flush(&tempfile::tempfile().expect("a file"));
        flusher.finish().expect_err("the first one failed");
    }
}
