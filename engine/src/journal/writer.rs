use std::collections::{HashSet, VecDeque};
use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rusqlite::{Connection, Transaction};
use tokio::sync::oneshot;
use uuid::Uuid;

use super::FILE;
use super::chain::Head;
use super::error::{Error, Fault};
use super::format::{self, Header};
use super::reader::Reader;
use super::record::{class_word, tag};
use crate::clock::Clock;
use crate::crash::{self, Point};
use crate::model::{Event, EventClass, EventKind};
use crate::runs::durable::share;

/// The name of a journal that is still being made.
const UNFINISHED: &str = "journal.db.new";

/// How long advisory events may wait for a commit.
const ADVISORY_DELAY: Duration = Duration::from_millis(200);

/// How often a writer that has nothing to write looks whether the journal is still its own.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// How many advisory events may wait for the disk; beyond that they are dropped and counted.
const ADVISORY_LIMIT: usize = 10_000;

/// How many commands share a commit at most, so that nobody waits long behind others.
const BATCH_LIMIT: usize = 4_096;

/// Writes the journal of one run.
///
/// One thread owns the file and commits everything that is queued at once. A failed write closes the journal for
/// good: whoever gets [`Error::Closed`] must start nothing further. Dropping it waits for the last commit.
///
/// Only the holder of the run's lock may open it; two writers would not damage the file, but the second one's events
/// are refused.
#[derive(Debug)]
pub struct Journal {
    header: Header,
    clock: ClockBox,
    shared: Arc<Shared>,
    /// `None` only while dropping.
    commands: Option<Sender<Command>>,
    thread: Option<JoinHandle<()>>,
}

/// What the writer thread and its callers share.
#[derive(Debug)]
struct Shared {
    path: PathBuf,
    head: Mutex<Head>,
    /// Requests that the journal holds the consequences of.
    requests: Mutex<HashSet<Uuid>>,
    closed: OnceLock<Fault>,
    advisory_waiting: AtomicUsize,
    advisory_dropped: AtomicU64,
    /// How often the writer has looked whether the journal is still its own.
    #[cfg(test)]
    looks: AtomicU64,
}

struct ClockBox(Arc<dyn Clock>);

impl std::fmt::Debug for ClockBox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Clock")
    }
}

type Reply = Result<Vec<Event>, Error>;

enum Command {
    Append { entries: Vec<Entry>, requests: Vec<Uuid>, reply: oneshot::Sender<Reply> },
    Advise(Box<Entry>),
}

/// An event that has no number yet.
struct Entry {
    at_ms: i64,
    kind: EventKind,
    body: String,
}

impl Journal {
    /// Makes the journal of a new run in its directory, durably, the name in the directory included.
    ///
    /// It gets its name only when it is complete: whoever looks at runs meanwhile must neither see half a journal nor
    /// hold a lock on it that stands in the way of making it.
    pub fn create(dir: &Path, header: Header, clock: Arc<dyn Clock>) -> Result<Self, Error> {
        let path = dir.join(FILE);
        let plan = serde_json::to_string(&header.plan)
            .map_err(|error| Error::Unwritable { reason: error.to_string().into() })?;
        if path.exists() {
            return Err(Error::Exists { path });
        }
        let unfinished = dir.join(UNFINISHED);
        create_file(&unfinished)?;
        let mut conn = format::connect_writer(&unfinished)?;
        format::lay_out(&unfinished, &mut conn, &header, &plan)?;
        format::empty_log(&unfinished, &conn)?;
        conn.close().map_err(|(_, error)| Error::sqlite(&unfinished, "created", error))?;
        crash::point(Point::JournalLaidOut);
        std::fs::rename(&unfinished, &path).map_err(|error| Error::io(&path, "created", error))?;
        format::sync_dir(dir)?;
        crash::point(Point::JournalNamed);
        let conn = format::connect_writer(&path)?;
        let head = Head::genesis(&header, &plan, format::FORMAT);
        Self::start(path, conn, header, (head, clock))
    }

    /// Opens the journal of an existing run to go on with it. Checks the whole file and the hash chain first.
    pub fn open(dir: &Path, clock: Arc<dyn Clock>) -> Result<Self, Error> {
        let path = dir.join(FILE);
        if !path.exists() {
            return Err(Error::Missing { path });
        }
        let mut conn = format::connect_writer(&path)?;
        let version = format::check_version(&path, &conn)?;
        format::migrate(&path, &mut conn, version)?;
        let reader = Reader::over(path.clone(), conn, format::FORMAT)?;
        let head = reader.verify()?;
        let header = reader.header().clone();
        // The write-ahead log may just have been made anew.
        format::sync_dir(dir)?;
        crash::point(Point::JournalOpened);
        Self::start(path, reader.into_connection(), header, (head, clock))
    }

    fn start(
        path: PathBuf,
        conn: Connection,
        header: Header,
        (head, clock): (Head, Arc<dyn Clock>),
    ) -> Result<Self, Error> {
        let requests = known_requests(&conn).map_err(|error| Error::sqlite(&path, "read", error))?;
        let shared = Arc::new(Shared {
            path: path.clone(),
            head: Mutex::new(head.clone()),
            requests: Mutex::new(requests),
            closed: OnceLock::new(),
            advisory_waiting: AtomicUsize::new(0),
            advisory_dropped: AtomicU64::new(0),
            #[cfg(test)]
            looks: AtomicU64::new(0),
        });
        format::fill_log(&path, &conn);
        let (commands, inbox) = channel();
        let names = [path.clone(), format::log_of(&path)].into_iter();
        let files = names.filter_map(|name| Some((name.clone(), inode(&name)?))).collect();
        let (told, time) = (Arc::clone(&shared), Arc::clone(&clock));
        let writer = Writer { conn, head, files, shared: told, clock: time, warned: false };
        let thread = std::thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || writer.serve(&inbox))
            .map_err(|error| Error::io(&path, "opened", error))?;
        Ok(Self { header, clock: ClockBox(clock), shared, commands: Some(commands), thread: Some(thread) })
    }

    /// Returns what was stored when the run was declared.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Returns the end of the chain as of the last commit.
    pub fn head(&self) -> Head {
        self.shared.head.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Appends events in one commit and returns them numbered once they would survive a power cut.
    ///
    /// An error leaves the journal closed, except [`Error::Unwritable`], after which nothing was written. Dropping
    /// the future does not take the events back.
    pub async fn append(&self, kinds: Vec<EventKind>) -> Result<Vec<Event>, Error> {
        self.append_for(Vec::new(), kinds).await
    }

    /// Appends as [`Journal::append`] does what follows from requests, whose ids become durable in the same commit:
    /// [`Journal::knows`] them from then on, so a crash before they are deleted does no harm.
    pub async fn append_for(&self, requests: Vec<Uuid>, kinds: Vec<EventKind>) -> Result<Vec<Event>, Error> {
        let entries = kinds.into_iter().map(|kind| self.entry(kind)).collect::<Result<Vec<_>, _>>()?;
        let (reply, answer) = oneshot::channel();
        self.send(Command::Append { entries, requests, reply })?;
        answer.await.unwrap_or_else(|_| Err(self.shared.closed_error()))
    }

    /// Returns whether what follows from a request is in the journal already.
    pub fn knows(&self, request: Uuid) -> bool {
        self.shared.requests.lock().unwrap_or_else(PoisonError::into_inner).contains(&request)
    }

    /// Returns why the journal takes no further events, if that is so.
    ///
    /// Costs nothing and never waits: the writer looks five times a second whether the file was removed or another process
    /// has gone on with the run, also while nothing is appended.
    pub fn fault(&self) -> Option<Error> {
        self.shared.closed.get().map(|_| self.shared.closed_error())
    }

    /// Passes on an advisory event; it is written with the next commit or within 200 ms.
    ///
    /// Never blocks and never fails: when the disk cannot keep up, advisory events are dropped, and an event says how
    /// many. An essential event must go through [`Journal::append`] and is refused here.
    pub fn advise(&self, kind: EventKind) {
        debug_assert_eq!(kind.class(), EventClass::Advisory, "essential events are appended");
        if kind.class() != EventClass::Advisory {
            return;
        }
        let Ok(entry) = self.entry(kind) else { return };
        if self.shared.advisory_waiting.fetch_add(1, Ordering::Relaxed) >= ADVISORY_LIMIT {
            self.shared.advisory_waiting.fetch_sub(1, Ordering::Relaxed);
            self.shared.advisory_dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        // A journal that is closed has told those who append; advice has nobody to tell.
        drop(self.send(Command::Advise(Box::new(entry))));
    }

    fn entry(&self, kind: EventKind) -> Result<Entry, Error> {
        let body = serde_json::to_string(&kind)
            .map_err(|error| Error::Unwritable { reason: error.to_string().into() })?;
        Ok(Entry { at_ms: self.clock.0.now_ms(), kind, body })
    }

    fn send(&self, command: Command) -> Result<(), Error> {
        let sender = self.commands.as_ref().expect("taken only when dropping");
        sender.send(command).map_err(|_| self.shared.closed_error())
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.commands = None;
        if let Some(thread) = self.thread.take() {
            // A panic there has closed the journal; there is nothing left to save.
            drop(thread.join());
        }
    }
}

impl Shared {
    fn remember(&self, queue: &[Command]) {
        let ids = queue.iter().filter_map(|command| match command {
            Command::Append { requests, .. } => Some(requests),
            Command::Advise(_) => None,
        });
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).extend(ids.flatten());
    }

    fn closed_error(&self) -> Error {
        let ended = || Fault::Other("its writer has ended".into());
        Error::Closed { path: self.path.clone(), fault: self.closed.get().cloned().unwrap_or_else(ended) }
    }
}

fn create_file(path: &Path) -> Result<(), Error> {
    // SQLite gives its side files the same mode.
    let created = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    match created {
        Ok(_) => share(path).map_err(|error| Error::io(path, "created", error)),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            Err(Error::Exists { path: path.to_owned() })
        }
        Err(error) => Err(Error::io(path, "created", error)),
    }
}

#[cfg(test)]
impl Journal {
    /// Returns how often the writer has looked, with nothing to write, and found the journal its own.
    pub(super) fn looks(&self) -> u64 {
        self.shared.looks.load(Ordering::Relaxed)
    }
}

/// Opens a journal on a disk that is full at so many pages.
#[cfg(test)]
pub(super) fn open_limited(dir: &Path, clock: Arc<dyn Clock>, pages: u32) -> Result<Journal, Error> {
    let path = dir.join(FILE);
    let conn = format::connect_writer(&path)?;
    conn.execute_batch(&format!("PRAGMA max_page_count = {pages}")).expect("the limit can be set");
    let reader = Reader::over(path.clone(), conn, format::FORMAT)?;
    let (head, header) = (reader.verify()?, reader.header().clone());
    Journal::start(path, reader.into_connection(), header, (head, clock))
}

/// Owns the file; lives on its own thread.
struct Writer {
    conn: Connection,
    head: Head,
    /// The file and its log as they were opened: SQLite goes on writing to one that was removed, and nobody could ever
    /// read it.
    files: Vec<(PathBuf, (u64, u64))>,
    shared: Arc<Shared>,
    clock: Arc<dyn Clock>,
    /// People know that advice is being lost.
    warned: bool,
}

fn inode(path: &Path) -> Option<(u64, u64)> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

impl Writer {
    fn serve(mut self, inbox: &Receiver<Command>) {
        let mut queue = Vec::new();
        loop {
            let filled = fill(inbox, &mut queue);
            match filled {
                Filled::Nothing => self.look(),
                Filled::Some | Filled::Last => self.commit(std::mem::take(&mut queue)),
            }
            if filled == Filled::Last {
                break;
            }
        }
        // Leaves one file without side files if nobody reads; if it fails, the log stays and is read as well.
        drop(self.conn.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)"));
    }

    /// Closes the journal if it is not this writer's any more: what runs must not go on until it ends, only to find out
    /// then that nobody takes it down.
    fn look(&self) {
        if self.shared.closed.get().is_some() {
            return;
        }
        let fault = if self.is_removed() {
            Fault::Removed
        } else if self.newest().is_ok_and(|newest| newest > self.head.seq.cast_signed()) {
            Fault::Superseded
        } else {
            // What cannot be read now is found out by the next write.
            return self.looked();
        };
        tracing::debug!(path = %self.shared.path.display(), %fault, "journal closed to this process");
        self.shared.closed.get_or_init(|| fault);
    }

    /// Takes note of a look that has found nothing, for tests that must not wait for luck.
    fn looked(&self) {
        #[cfg(test)]
        self.shared.looks.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the number of the newest event in the file, whoever has written it.
    fn newest(&self) -> rusqlite::Result<i64> {
        let mut statement = self.conn.prepare_cached("SELECT coalesce(max(seq), 0) FROM events")?;
        statement.query_row([], |row| row.get(0))
    }

    fn is_removed(&self) -> bool {
        self.files.iter().any(|(path, file)| match std::fs::metadata(path) {
            Ok(found) => (found.dev(), found.ino()) != *file,
            // Whoever only cannot look knows nothing.
            Err(error) => matches!(
                error.kind(),
                ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::StaleNetworkFileHandle
            ),
        })
    }

    fn commit(&mut self, queue: Vec<Command>) {
        let advisory = queue.iter().filter(|command| matches!(command, Command::Advise(_))).count();
        self.shared.advisory_waiting.fetch_sub(advisory, Ordering::Relaxed);
        if self.shared.closed.get().is_some() || queue.is_empty() {
            return self.refuse(queue);
        }
        let (queue, told) = self.with_loss_note(queue);
        match self.write(&queue) {
            Ok((head, events)) => {
                self.warned = false;
                self.head = head.clone();
                *self.shared.head.lock().unwrap_or_else(PoisonError::into_inner) = head;
                self.shared.remember(&queue);
                acknowledge(queue, events);
            }
            Err(fault) if fault.may_pass() && !queue.iter().any(is_urgent) => {
                self.lose(advisory, told, &fault)
            }
            Err(fault) => {
                tracing::debug!(path = %self.shared.path.display(), %fault, "journal closed after a failed write");
                self.shared.closed.get_or_init(|| fault);
                self.refuse(queue);
            }
        }
    }

    /// Drops advisory events that could not be written. Nothing follows from them, so that a disk that is full for a
    /// moment must not end what runs; but whoever watches should make room before the next step ends.
    fn lose(&mut self, advisory: usize, told: u64, fault: &Fault) {
        let lost = told + u64::try_from(advisory).unwrap_or(u64::MAX);
        self.shared.advisory_dropped.fetch_add(lost, Ordering::Relaxed);
        if !std::mem::replace(&mut self.warned, true) {
            tracing::warn!(
                journal = %self.shared.path.display(),
                "progress cannot be recorded: {fault}; the run stops when the next step ends, unless that is mended"
            );
        }
    }

    /// Puts a note about dropped advisory events behind the rest; returns how many it tells of.
    fn with_loss_note(&self, mut queue: Vec<Command>) -> (Vec<Command>, u64) {
        let dropped = self.shared.advisory_dropped.swap(0, Ordering::Relaxed);
        if dropped > 0 {
            let text = format!(
                "{dropped} records of progress or output were dropped: the disk was too slow or full"
            );
            let kind = EventKind::Noted { step: None, text };
            let body = serde_json::to_string(&kind).expect("a note is plain text");
            queue.push(Command::Advise(Box::new(Entry { at_ms: self.clock.now_ms(), kind, body })));
        }
        (queue, dropped)
    }

    /// Writes all commands in one transaction; returns the new head and what to tell each append, in order.
    fn write(&mut self, queue: &[Command]) -> Result<(Head, Replies), Fault> {
        if self.is_removed() {
            return Err(Fault::Removed);
        }
        self.transact(queue).map_err(|error| Fault::of(&error))
    }

    fn transact(&mut self, queue: &[Command]) -> rusqlite::Result<(Head, Replies)> {
        let mut head = self.head.clone();
        let mut replies = Replies::new();
        let tx = self.conn.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        for command in queue {
            match command {
                Command::Advise(entry) => {
                    insert(&tx, &mut head, entry)?;
                }
                Command::Append { entries, requests, .. } => {
                    replies.push_back(append(&tx, &mut head, entries, requests)?);
                }
            }
        }
        crash::point(Point::BeforeCommit);
        tx.commit()?;
        crash::point(Point::AfterCommit);
        Ok((head, replies))
    }

    fn refuse(&self, queue: Vec<Command>) {
        for command in queue {
            if let Command::Append { reply, .. } = command {
                // Whoever dropped the future does not want to know.
                drop(reply.send(Err(self.shared.closed_error())));
            }
        }
    }
}

/// The numbers that each append got.
type Replies = VecDeque<Vec<u64>>;

fn append(
    tx: &Transaction<'_>,
    head: &mut Head,
    entries: &[Entry],
    requests: &[Uuid],
) -> rusqlite::Result<Vec<u64>> {
    for request in requests {
        tx.prepare_cached("INSERT OR IGNORE INTO requests (id, seq) VALUES (?1, ?2)")?
            .execute((request.to_string(), (head.seq + 1).cast_signed()))?;
    }
    entries.iter().map(|entry| insert(tx, head, entry)).collect()
}

fn known_requests(conn: &Connection) -> rusqlite::Result<HashSet<Uuid>> {
    let mut statement = conn.prepare("SELECT id FROM requests")?;
    let ids = statement.query_map([], |row| row.get::<_, String>(0))?;
    ids.map(|id| id?.parse().map_err(|_| rusqlite::Error::InvalidQuery)).collect()
}

fn insert(tx: &Transaction<'_>, head: &mut Head, entry: &Entry) -> rusqlite::Result<u64> {
    let seq = head.seq + 1;
    let class = entry.kind.class();
    let hash = match class {
        EventClass::Essential => Some(head.push_essential(seq, entry.at_ms, &entry.body)),
        EventClass::Advisory => {
            head.push_advisory(seq);
            None
        }
    };
    let kind = tag(&entry.body).expect("an internally tagged enum is written with its tag first");
    tx.prepare_cached(
        "INSERT INTO events (seq, at_ms, class, kind, body, hash) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )?
    .execute((seq.cast_signed(), entry.at_ms, class_word(class), kind, &entry.body, hash))?;
    Ok(seq)
}

fn acknowledge(queue: Vec<Command>, mut replies: Replies) {
    for command in queue {
        if let Command::Append { entries, reply, .. } = command {
            let numbers = replies.pop_front().expect("every append has a reply");
            let numbered = numbers.into_iter().zip(entries);
            let events =
                numbered.map(|(seq, entry)| Event { seq, at_ms: entry.at_ms, kind: entry.kind }).collect();
            // Whoever dropped the future does not want to know.
            drop(reply.send(Ok(events)));
        }
    }
}

/// What the wait for something to commit has brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Filled {
    /// Nothing for a while.
    Nothing,
    Some,
    /// Nobody can send any more.
    Last,
}

/// Waits until there is something to commit, but not long.
///
/// Essential events are committed at once, with everything queued meanwhile; advisory ones wait for company.
fn fill(inbox: &Receiver<Command>, queue: &mut Vec<Command>) -> Filled {
    let first = match inbox.recv_timeout(LOOK_INTERVAL) {
        Ok(first) => first,
        Err(RecvTimeoutError::Timeout) => return Filled::Nothing,
        Err(RecvTimeoutError::Disconnected) => return Filled::Last,
    };
    let mut urgent = is_urgent(&first);
    queue.push(first);
    let deadline = Instant::now() + ADVISORY_DELAY;
    while queue.len() < BATCH_LIMIT {
        let wait = if urgent { Duration::ZERO } else { deadline.saturating_duration_since(Instant::now()) };
        match inbox.recv_timeout(wait) {
            Ok(command) => {
                urgent |= is_urgent(&command);
                queue.push(command);
            }
            Err(RecvTimeoutError::Timeout) => break,
            Err(RecvTimeoutError::Disconnected) => return Filled::Last,
        }
    }
    Filled::Some
}

fn is_urgent(command: &Command) -> bool {
    matches!(command, Command::Append { .. })
}
