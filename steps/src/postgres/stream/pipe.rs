use std::io::{self, BufRead, Read};
use std::ops::{Deref, Range};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

/// Small enough to stay in a processor's cache from one thread to the next.
const CHUNK: usize = 256 * 1024;
/// Chunks between two threads: enough to smooth, little memory.
const QUEUE: usize = 16;

/// Bytes on their way. The buffer is always of one size, so that it is never cleared again, and goes back to the end that
/// fills it as soon as nobody uses it any more.
#[derive(Debug)]
struct Chunk {
    bytes: Box<[u8]>,
    length: usize,
    home: Sender<Box<[u8]>>,
}

impl Drop for Chunk {
    fn drop(&mut self) {
        // It fails if the other end is done.
        self.home.send(std::mem::take(&mut self.bytes)).ok();
    }
}

/// A part of a chunk, which can outlive its turn in the stream and be used by several threads.
#[derive(Clone, Debug)]
pub(in super::super) struct Piece {
    chunk: Arc<Chunk>,
    range: Range<usize>,
}

impl Deref for Piece {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.chunk.bytes[self.range.clone()]
    }
}

/// The end that fills chunks.
pub(super) struct Feed {
    full: SyncSender<io::Result<Chunk>>,
    empty: Receiver<Box<[u8]>>,
    home: Sender<Box<[u8]>>,
}

/// The chunks of another thread as a stream. An empty chunk is the proper end; without it, the stream was cut off.
pub(in super::super) struct Chunks {
    full: Receiver<io::Result<Chunk>>,
    current: Option<Arc<Chunk>>,
    at: usize,
    ended: bool,
}

/// Connects two threads.
pub(super) fn pipe() -> (Feed, Chunks) {
    let (sender, full) = sync_channel(QUEUE);
    let (home, empty) = channel();
    (Feed { full: sender, empty, home }, Chunks { full, current: None, at: 0, ended: false })
}

impl Feed {
    /// Sends a stream to its end, or its error. False if nobody listens any more.
    pub(super) fn send_all(&self, from: &mut impl Read, mut seen: impl FnMut(&[u8])) -> io::Result<bool> {
        loop {
            let bytes = self.empty.try_recv().unwrap_or_else(|_| vec![0; CHUNK].into_boxed_slice());
            let mut chunk = Chunk { bytes, length: 0, home: self.home.clone() };
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
        self.current = None;
        let chunk = match self.full.recv() {
            Ok(chunk) => chunk?,
            Err(_) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the stream was cut off")),
        };
        self.ended = chunk.length == 0;
        self.at = 0;
        self.current = Some(Arc::new(chunk));
        Ok(())
    }

    /// Takes what is there, at most `limit` bytes, without copying it. Nothing only at the end.
    pub(super) fn lend(&mut self, limit: usize) -> io::Result<Option<Piece>> {
        let count = self.fill_buf()?.len().min(limit);
        let range = self.at..self.at + count;
        self.consume(count);
        Ok(self.current.as_ref().filter(|_| count > 0).map(|chunk| Piece { chunk: Arc::clone(chunk), range }))
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
    fn pieces_outlive_their_chunks_turn() {
        let content: Vec<u8> = (0..5 * CHUNK).map(|n| (n / 1000 % 251) as u8).collect();
        let (feed, mut chunks) = pipe();
        std::thread::scope(|scope| {
            scope.spawn(move || feed.send_all(&mut &content[..], |_| {}).expect("reads"));
            let mut pieces = Vec::new();
            while let Some(piece) = chunks.lend(100_000).expect("comes to its end") {
                pieces.push(piece);
            }
            assert!(pieces.iter().all(|piece| piece.len() <= 100_000) && pieces.len() == 5 * 3);
            let found = pieces.iter().flat_map(|piece| piece.iter().copied());
            assert!(found.enumerate().all(|(n, byte)| byte == (n / 1000 % 251) as u8));
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
