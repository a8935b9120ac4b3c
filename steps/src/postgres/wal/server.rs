use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use lifeboat_engine::model::outcome::FailureKind;
use lifeboat_engine::step::StepError;

use super::archive::Continuity;
use super::fetch::{Fetcher, Found};
use super::header::SystemId;
use super::names::{Segment, SegmentSize};
pub use super::prefetch::Origin;
use super::prefetch::Prefetch;
use super::protocol::{read_request, read_taken, write_absent, write_delivered, write_failed, write_file};
use super::put::line;
use super::queue::Queue;
use crate::postgres::backup::is_unmarked;
use crate::postgres::codes;
use crate::store::{BackupKind, Key, MARKER, Store};

/// What a recovery is given WAL from.
#[derive(Clone, Debug)]
pub struct WalSource {
    pub store: Store,
    pub system_id: SystemId,
    pub segment_size: SegmentSize,
    /// The label of the base backup that is recovered. Its marker proves, whenever a file is absent, that the store
    /// answers.
    pub backup: String,
    /// What was proven to be in the archive. A file of it that is absent is a fault, not the end of the log.
    pub proven: Option<Continuity>,
    /// The segment that will be asked for first, if that is known.
    pub first: Option<Segment>,
    /// The socket to make, and a directory `wal` beside it: in a directory that the server's user can enter, in a path
    /// of at most 107 bytes.
    pub socket: PathBuf,
    /// User and group id of the server, if this process is another user: it is given the socket.
    pub owner: Option<(u32, u32)>,
}

impl WalSource {
    /// Proves that the store answers and has the backup; otherwise every absence would turn out to be a fault, one by one.
    /// Blocks, and makes nothing.
    pub fn prove(self) -> Result<ProvenSource, StepError> {
        let witness = self.witness()?;
        self.store.read(&witness)?;
        Ok(ProvenSource { source: self, witness })
    }

    /// Returns an object of the backup, known to exist: its marker, or of what another tool made, any.
    fn witness(&self) -> Result<Key, StepError> {
        if !is_unmarked(&self.backup) {
            return BackupKind::PostgresBase.backup(&self.backup)?.join(MARKER);
        }
        let objects = self.store.list(&Key::new(&self.backup)?)?;
        objects.into_iter().next().map(|object| object.key).ok_or_else(|| {
            StepError::permanent(
                codes::LB1206,
                format!("the backup `{}` is not in {} any more", self.backup, self.store),
            )
            .help("bring it back, or restore from another one")
        })
    }
}

/// A source whose store was seen to answer.
#[derive(Clone, Debug)]
pub struct ProvenSource {
    source: WalSource,
    witness: Key,
}

/// One request of the server for a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub name: String,
    pub answer: Answered,
    /// Bytes delivered.
    pub bytes: u64,
    pub took: Duration,
    pub at: Timestamp,
}

/// How a request was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answered {
    Delivered(Origin),
    /// Proven: the store answers and lacks the file.
    Absent,
    /// Why the server was told that something is wrong.
    Failed(String),
}

/// What a helper has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Served {
    pub requests: usize,
    pub delivered: usize,
    /// Delivered bytes, uncompressed.
    pub bytes: u64,
}

/// Serves WAL to a recovery from within the Lifeboat process, which holds the store. Ends with the value.
#[derive(Debug)]
pub struct WalServer {
    inner: Arc<Inner>,
    socket: Arc<Socket>,
    accepting: Option<JoinHandle<()>>,
}

/// What a helper listens on.
#[derive(Debug)]
struct Socket {
    listener: UnixListener,
    /// Device and inode of the name that it was given.
    made: (u64, u64),
}

#[derive(Debug)]
struct Inner {
    fetcher: Fetcher,
    prefetch: Prefetch,
    proven: Option<Continuity>,
    socket: PathBuf,
    requests: Mutex<Vec<Request>>,
    stopping: AtomicBool,
}

/// Pauses between tries, after faults that may pass.
const PAUSES: [Duration; 4] =
    [Duration::from_millis(200), Duration::from_secs(1), Duration::from_secs(3), Duration::from_secs(10)];

/// After so long nothing is tried again: the client waits for five minutes, and people for an answer.
const ENOUGH: Duration = Duration::from_secs(90);
/// How long work that is under way may take when the helper is no longer needed. A store that says nothing is not waited for.
const FAREWELL: Duration = Duration::from_secs(2);

/// A client says what it wants at once, …
const ASK_PATIENCE: Duration = Duration::from_secs(10);
/// … and takes what it gets as fast as its disk does.
const TAKE_PATIENCE: Duration = Duration::from_mins(2);

impl WalServer {
    /// Looks at the store, then starts to listen. Blocks.
    pub fn start(source: WalSource) -> Result<Self, StepError> {
        Self::listen(source.prove()?)
    }

    /// Starts to listen. A socket that an earlier process left at that place is replaced.
    ///
    /// For whoever wants the helper now: one that begins to listen when nobody waits for it any more would stand in the place
    /// of the next one.
    pub fn listen(ProvenSource { source, witness }: ProvenSource) -> Result<Self, StepError> {
        let failed = |error: io::Error| cannot_start(&source.socket, &error);
        let socket = Arc::new(Socket::make(&source).map_err(failed)?);
        let queue = Queue::make(&source.socket.with_file_name("wal"), source.owner).map_err(failed)?;
        let fetcher = Fetcher {
            store: source.store.clone(),
            system: source.system_id,
            size: source.segment_size,
            witness,
            queue: Arc::new(queue),
        };
        let (proven, first) = (source.proven.clone(), source.first);
        let inner = Arc::new(Inner {
            prefetch: Prefetch::start(fetcher.clone(), proven, first).map_err(failed)?,
            fetcher,
            proven: source.proven.clone(),
            socket: source.socket.clone(),
            requests: Mutex::default(),
            stopping: AtomicBool::new(false),
        });
        let (serving, listening) = (Arc::clone(&inner), Arc::clone(&socket));
        let thread = std::thread::Builder::new().name("wal-helper".to_owned());
        let accepting = thread.spawn(move || serving.accept(&listening.listener)).map_err(failed)?;
        Ok(Self { inner, socket, accepting: Some(accepting) })
    }

    /// Returns the path of the socket.
    pub fn socket(&self) -> &Path {
        &self.inner.socket
    }

    /// Returns the value for `restore_command`, with the client at `exe`.
    pub fn restore_command(&self, exe: &Path) -> String {
        format!("{} wal get --socket {} %f %p", quoted(exe), quoted(&self.inner.socket))
    }

    /// Returns how many segments wait, verified.
    #[cfg(test)]
    pub(super) fn read_ahead(&self) -> usize {
        self.inner.prefetch.ready()
    }

    /// Returns how much was asked for and delivered so far.
    pub fn served(&self) -> Served {
        self.inner.journal().iter().fold(Served::default(), |served, request| Served {
            requests: served.requests + 1,
            delivered: served.delivered + usize::from(matches!(request.answer, Answered::Delivered(_))),
            bytes: served.bytes + request.bytes,
        })
    }

    /// Returns every request so far, in the order in which they were answered.
    pub fn requests(&self) -> Vec<Request> {
        self.inner.journal().clone()
    }

    /// Stops listening and removes the socket. A request that is being answered ends first, unless the store is silent.
    pub fn shutdown(mut self) -> Vec<Request> {
        self.stop();
        self.requests()
    }

    fn stop(&mut self) {
        let Some(accepting) = self.accepting.take() else { return };
        self.inner.stopping.store(true, Ordering::Release);
        self.socket.close();
        end_soon(accepting);
        self.socket.remove(&self.inner.socket);
    }
}

impl Drop for WalServer {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Inner {
    fn journal(&self) -> std::sync::MutexGuard<'_, Vec<Request>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers one connection after the other: Postgres asks for one file at a time.
    fn accept(&self, listener: &UnixListener) {
        for stream in listener.incoming() {
            if self.stopping.load(Ordering::Acquire) {
                return;
            }
            match stream.and_then(|stream| self.serve(stream)) {
                Ok(()) => {}
                Err(error) => tracing::debug!("a request for WAL was not answered: {error}"),
            }
        }
    }

    fn serve(&self, mut stream: UnixStream) -> io::Result<()> {
        stream.set_read_timeout(Some(ASK_PATIENCE))?;
        stream.set_write_timeout(Some(TAKE_PATIENCE))?;
        let name = read_request(&mut stream)?;
        let (at, begun) = (Timestamp::now(), Instant::now());
        let found = self.find(&name);
        let record = |answer, bytes| {
            self.journal().push(Request { name: name.clone(), answer, bytes, took: begun.elapsed(), at });
        };
        match found {
            Ok((Some(found), origin)) => match deliver(&mut stream, &found) {
                Ok(bytes) => record(Answered::Delivered(origin), bytes),
                Err(error) => record(Answered::Failed(format!("the client went away: {error}")), 0),
            },
            Ok((None, _)) => {
                record(Answered::Absent, 0);
                write_absent(&mut stream)?;
            }
            Err(error) => {
                record(Answered::Failed(error.to_string()), 0);
                write_failed(&mut stream, &line(&error))?;
            }
        }
        Ok(())
    }

    /// Finds a file, trying again after faults that may pass. `None` means proven absent.
    fn find(&self, name: &str) -> Result<(Option<Found>, Origin), StepError> {
        let mut pauses = PAUSES.iter();
        let begun = Instant::now();
        loop {
            let found = match self.fetcher.segment_of(name) {
                Some(segment) => self.prefetch.take(segment),
                None => self.fetcher.fetch(name).map(|found| (found, Origin::Direct)),
            };
            match found {
                Err(error) if error.kind != FailureKind::Permanent => match pauses.next() {
                    Some(pause) if !self.stopping.load(Ordering::Acquire) && begun.elapsed() < ENOUGH => {
                        std::thread::sleep(*pause);
                    }
                    _ => return Err(error),
                },
                Ok((None, _)) if self.must_be_there(name) => return Err(vanished(name)),
                other => return other,
            }
        }
    }

    fn must_be_there(&self, name: &str) -> bool {
        let segment = self.fetcher.segment_of(name);
        segment.is_some_and(|segment| self.proven.as_ref().is_some_and(|proven| proven.contains(segment)))
    }
}

/// Hands a file over and returns its size. A segment counts as delivered when the client has taken it.
fn deliver(stream: &mut UnixStream, found: &Found) -> io::Result<u64> {
    match found {
        Found::Segment(kept) => {
            write_file(stream, &kept.path())?;
            stream.set_read_timeout(Some(TAKE_PATIENCE))?;
            read_taken(stream)?;
            Ok(kept.size())
        }
        Found::Small(bytes) => write_delivered(stream, bytes).map(|()| bytes.len() as u64),
    }
}

/// Waits for a thread to end, and leaves one alone that waits for a store which does not answer: nobody asks it any more,
/// and it keeps what it needs until its request has failed.
pub(super) fn end_soon(thread: JoinHandle<()>) {
    let deadline = Instant::now() + FAREWELL;
    while !thread.is_finished() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(2));
    }
    if thread.is_finished() {
        // It has no result, and a panic of it was printed where it happened.
        drop(thread.join());
    }
}

fn vanished(name: &str) -> StepError {
    StepError::permanent(
        codes::LB1207,
        format!("{name} was in the archive when the backup was chosen, and is gone now"),
    )
    .help("find out what removes files from the store, bring the segment back, then try again")
}

impl Socket {
    fn make(source: &WalSource) -> io::Result<Self> {
        match std::fs::remove_file(&source.socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&source.socket)?;
        std::fs::set_permissions(&source.socket, std::fs::Permissions::from_mode(0o600))?;
        if let Some((user, group)) = source.owner {
            std::os::unix::fs::chown(&source.socket, Some(user), Some(group))?;
        }
        let made = std::fs::symlink_metadata(&source.socket)?;
        Ok(Self { listener, made: (made.dev(), made.ino()) })
    }

    /// Wakes whoever waits for a connection. By its name another helper might be reached.
    fn close(&self) {
        rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both).ok();
    }

    /// Removes the name, unless it is that of another helper by now.
    fn remove(&self, path: &Path) {
        if std::fs::symlink_metadata(path).is_ok_and(|there| (there.dev(), there.ino()) == self.made) {
            std::fs::remove_file(path).ok();
        }
    }
}

fn cannot_start(socket: &Path, error: &io::Error) -> StepError {
    StepError::permanent(codes::LB1206, format!("no helper can listen at {}: {error}", socket.display()))
        .help("the path of a socket may have 107 bytes; use a shorter state directory")
}

/// Quotes a path for the shell that runs the command, and for Postgres, which replaces `%`.
fn quoted(path: &Path) -> String {
    let text = path.to_string_lossy().replace('\'', r"'\''").replace('%', "%%");
    format!("'{text}'")
}
