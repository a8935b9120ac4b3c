//! Copying, hashing, counting and interrupting.

use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use lifeboat_engine::model::evidence::{Progress, Unit};
use lifeboat_engine::plan::hex;
use lifeboat_engine::step::{StepContext, StepError, StepLink};
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

use super::{codes, failure};

const BUFFER: usize = 256 * 1024;

/// Size and checksum of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digest {
    pub size: u64,
    /// In lower-case hexadecimal.
    pub sha256: String,
}

/// Hashes what is read through it.
#[expect(missing_debug_implementations, reason = "the hash state and the reader have none")]
pub struct HashingReader<R> {
    inner: R,
    state: Sha256,
    size: u64,
}

impl<R: Read> HashingReader<R> {
    /// Begins to hash.
    pub fn new(inner: R) -> Self {
        Self { inner, state: Sha256::new(), size: 0 }
    }

    /// Returns the reader and the digest of everything read so far.
    pub fn finish(self) -> (R, Digest) {
        (self.inner, Digest { size: self.size, sha256: hex(&self.state.finalize()) })
    }
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.state.update(&buffer[..count]);
        self.size += count as u64;
        Ok(count)
    }
}

/// Hashes what is written through it.
#[expect(missing_debug_implementations, reason = "the hash state and the writer have none")]
pub struct HashingWriter<W> {
    inner: W,
    state: Sha256,
    size: u64,
}

impl<W: Write> HashingWriter<W> {
    /// Begins to hash.
    pub fn new(inner: W) -> Self {
        Self { inner, state: Sha256::new(), size: 0 }
    }

    /// Returns the writer and the digest of everything written so far.
    pub fn finish(self) -> (W, Digest) {
        (self.inner, Digest { size: self.size, sha256: hex(&self.state.finalize()) })
    }
}

impl<W: Write> Write for HashingWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.state.update(&bytes[..count]);
        self.size += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Carries progress out of blocking work and cancellation into it. Clones count together.
#[derive(Clone)]
pub struct Meter {
    shared: Arc<Shared>,
}

struct Shared {
    link: Option<Arc<dyn StepLink>>,
    cancel: CancellationToken,
    unit: Unit,
    note: String,
    total: Option<u64>,
    done: AtomicU64,
    last: Mutex<Option<Instant>>,
}

/// How often progress goes out: often enough for a person, seldom enough for a journal.
const EVERY: Duration = Duration::from_millis(250);

impl Meter {
    /// Counts bytes of a step's work towards `total`.
    pub fn bytes(ctx: &StepContext, total: Option<u64>, note: &str) -> Self {
        Self::of(ctx, Unit::Bytes, total, note)
    }

    /// Counts items of a step's work towards `total`.
    pub fn items(ctx: &StepContext, total: Option<u64>, note: &str) -> Self {
        Self::of(ctx, Unit::Items, total, note)
    }

    /// Counts for nobody and is never interrupted.
    pub fn silent() -> Self {
        Self::new(None, CancellationToken::new(), Unit::Bytes, (None, ""))
    }

    /// Counts for nobody, and is interrupted when this one is.
    pub fn uncounted(&self) -> Self {
        Self::new(None, self.shared.cancel.clone(), self.shared.unit, (None, ""))
    }

    fn of(ctx: &StepContext, unit: Unit, total: Option<u64>, note: &str) -> Self {
        Self::new(Some(ctx.link()), ctx.cancel.clone(), unit, (total, note))
    }

    fn new(
        link: Option<Arc<dyn StepLink>>,
        cancel: CancellationToken,
        unit: Unit,
        (total, note): (Option<u64>, &str),
    ) -> Self {
        let (done, last) = (AtomicU64::new(0), Mutex::new(None));
        Self { shared: Arc::new(Shared { link, cancel, unit, note: note.to_owned(), total, done, last }) }
    }

    /// Counts `count` more, and fails if the attempt must end.
    pub fn advance(&self, count: u64) -> Result<(), StepError> {
        let done = self.shared.done.fetch_add(count, Ordering::Relaxed) + count;
        self.report(done);
        if self.shared.cancel.is_cancelled() { Err(interrupted()) } else { Ok(()) }
    }

    /// Returns what was counted so far.
    pub fn done(&self) -> u64 {
        self.shared.done.load(Ordering::Relaxed)
    }

    fn report(&self, done: u64) {
        let shared = &self.shared;
        let Some(link) = &shared.link else { return };
        let mut last = shared.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let complete = shared.total == Some(done);
        if !complete && last.is_some_and(|at| at.elapsed() < EVERY) {
            return;
        }
        *last = Some(Instant::now());
        drop(last);
        link.progress(Progress { done, total: shared.total, unit: shared.unit, note: shared.note.clone() });
    }
}

impl std::fmt::Debug for Meter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Meter").field("done", &self.done()).field("total", &self.shared.total).finish()
    }
}

/// The error of work that the engine asked to end.
pub(super) fn interrupted() -> StepError {
    StepError::transient(codes::LB1109, "interrupted before the transfer was complete")
        .help("nothing unfinished was left under its final name; run the step again")
}

/// Copies a stream to its end and returns how many bytes there were.
pub fn copy(from: &mut impl Read, to: &mut impl Write, meter: &Meter) -> Result<u64, StepError> {
    let mut buffer = vec![0; BUFFER];
    let mut total = 0;
    loop {
        let count = match from.read(&mut buffer) {
            Ok(0) => return Ok(total),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(failure::read("the source of the copy", &error)),
        };
        to.write_all(&buffer[..count]).map_err(|error| failure::write("the copy", &error))?;
        total += count as u64;
        meter.advance(count as u64)?;
    }
}

/// Reads a stream to its end and returns its size and checksum.
pub fn digest_of(from: impl Read, meter: &Meter) -> Result<Digest, StepError> {
    let mut from = HashingReader::new(from);
    copy(&mut from, &mut io::sink(), meter)?;
    Ok(from.finish().1)
}

/// Runs blocking work on a thread for it.
///
/// Dropping the future does not stop the work: give it a [`Meter`], which does.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StepError> + Send + 'static,
) -> Result<T, StepError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(interrupted()),
        },
    }
}
