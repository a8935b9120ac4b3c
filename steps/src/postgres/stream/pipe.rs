use std::io::{self, BufRead, Read};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

/// Small enough to stay in a processor's cache from one thread to the next.
const CHUNK: usize = 256 * 1024;
/// Chunks between two threads: enough to smooth, little memory.
const QUEUE: usize = 16;

/// Bytes on their way. The buffer is always of one size, so that it is never cleared again.
struct Chunk {
    bytes: Box<[u8]>,
    length: usize,
}

/// The end that fills chunks.
pub(super) struct Feed {
    full: SyncSender<io::Result<Chunk>>,
    empty: Receiver<Chunk>,
}

/// The chunks of another thread as a stream. An empty chunk is the proper end; without it, the stream was cut off.
pub(in super::super) struct Chunks {
    full: Receiver<io::Result<Chunk>>,
    empty: Sender<Chunk>,
    current: Option<Chunk>,
    at: usize,
    ended: bool,
}

/// Connects two threads.
pub(super) fn pipe() -> (Feed, Chunks) {
    let (sender, full) = sync_channel(QUEUE);
    let (empty, used) = channel();
    (Feed { full: sender, empty: used }, Chunks { full, empty, current: None, at: 0, ended: false })
}

impl Feed {
    /// Sends a stream to its end, or its error. False if nobody listens any more.
    pub(super) fn send_all(&self, from: &mut impl Read, mut seen: impl FnMut(&[u8])) -> io::Result<bool> {
        loop {
            let mut chunk = self
                .empty
                .try_recv()
                .unwrap_or_else(|_| Chunk { bytes: vec![0; CHUNK].into_boxed_slice(), length: 0 });
            chunk.length = fill(from, &mut chunk.bytes)?;
            seen(&chunk.bytes[..chunk.length]);
            let last = chunk.length == 0;
            let heard = self.full.send(Ok(chunk)).is_ok();
            if last || !heard {
                return Ok(heard);
            }
        }
    }

    /// Tells the other end what is wrong.
    pub(super) fn fail(&self, error: io::Error) {
        // Nobody may listen any more.
        self.full.send(Err(error)).ok();
    }
}

/// Reads until the buffer is full or the stream ends, so that chunks are few.
fn fill(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match from.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

impl Chunks {
    fn next(&mut self) -> io::Result<()> {
        if let Some(used) = self.current.take() {
            // It fails if the other end is done.
            self.empty.send(used).ok();
        }
        let chunk = match self.full.recv() {
            Ok(chunk) => chunk?,
            Err(_) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the stream was cut off")),
        };
        self.ended = chunk.length == 0;
        self.at = 0;
        self.current = Some(chunk);
        Ok(())
    }

    fn rest(&self) -> &[u8] {
        self.current.as_ref().map_or(&[], |chunk| &chunk.bytes[self.at..chunk.length])
    }
}

impl BufRead for Chunks {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.rest().is_empty() && !self.ended {
            self.next()?;
        }
        Ok(self.rest())
    }

    fn consume(&mut self, count: usize) {
        self.at += count;
    }
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let count = available.len().min(buffer.len());
        buffer[..count].copy_from_slice(&available[..count]);
        self.consume(count);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_comes_through_whole() {
        let content: Vec<u8> = (0..3 * CHUNK + 17).map(|n| (n % 251) as u8).collect();
        let (feed, mut chunks) = pipe();
        std::thread::scope(|scope| {
            scope.spawn(move || feed.send_all(&mut &content[..], |_| {}).expect("reads"));
            let mut found = Vec::new();
            chunks.read_to_end(&mut found).expect("comes to its end");
            assert!(found.iter().enumerate().all(|(n, byte)| *byte == (n % 251) as u8));
            assert_eq!(found.len(), 3 * CHUNK + 17);
        });
    }

    #[test]
    fn a_stream_that_is_cut_off_is_no_end() {
        let (feed, mut chunks) = pipe();
        drop(feed);
        let error = chunks.read_to_end(&mut Vec::new()).expect_err("cut off");
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        let (feed, mut chunks) = pipe();
        feed.fail(io::Error::other("the store failed"));
        assert_eq!(chunks.fill_buf().expect_err("fails").to_string(), "the store failed");
    }

    #[test]
    fn whoever_listens_no_more_ends_the_other_end() {
        let (feed, chunks) = pipe();
        drop(chunks);
        assert!(!feed.send_all(&mut &[7; 10][..], |_| {}).expect("reads"));
    }
}
