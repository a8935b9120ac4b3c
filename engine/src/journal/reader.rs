use std::path::{Path, PathBuf};

use rusqlite::{Connection, OptionalExtension};
use uuid::Uuid;

use super::FILE;
use super::chain::Head;
use super::error::Error;
use super::format::{self, Header};
use super::record::Record;
use crate::model::{Event, EventKind, Seq};
use crate::plan::hex;

/// Reads a journal, also while another process writes it. Never changes it.
///
/// All methods block on the disk.
#[derive(Debug)]
pub struct Reader {
    path: PathBuf,
    conn: Connection,
    header: Header,
    /// The plan as it is stored.
    plan: String,
    /// The format that the run was declared in: the chain begins with it.
    format: u32,
    genesis: Head,
}

/// Reads the header and all events of the journal in a run's directory.
pub fn read(dir: &Path) -> Result<(Header, Vec<Event>), Error> {
    let reader = Reader::open(dir)?;
    let events = reader.events()?;
    Ok((reader.header, events))
}

const ALL: &str = "SELECT seq, at_ms, class, kind, body, hash FROM events WHERE seq > ?1 ORDER BY seq";

const ESSENTIAL: &str = "SELECT seq, at_ms, class, kind, body, hash FROM events \
                         WHERE seq > ?1 AND class = 'essential' ORDER BY seq";

impl Reader {
    /// Opens the journal in a run's directory.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let path = dir.join(FILE);
        let open = || {
            let conn = format::connect_reader(&path)?;
            let version = format::check_version(&path, &conn)?;
            Self::over(path.clone(), conn, version)
        };
        match open() {
            // On a full disk there is no room for the files that readers share; one that nobody writes needs none.
            Err(Error::Unusable { .. }) => Self::open_at_rest(dir)?.map_or_else(open, Ok),
            other => other,
        }
    }

    /// Opens a journal that nobody writes, touching nothing on the disk. `None` if a process writes it, or one that did
    /// was killed: only [`open`](Self::open) can read it then.
    pub fn open_at_rest(dir: &Path) -> Result<Option<Self>, Error> {
        let path = dir.join(FILE);
        let Some(conn) = format::connect_at_rest(&path)? else { return Ok(None) };
        let version = format::check_version(&path, &conn)?;
        Self::over(path, conn, version).map(Some)
    }

    /// Opens the journal in a run's directory as it is at this moment: what is written later is not seen.
    pub fn open_snapshot(dir: &Path) -> Result<Self, Error> {
        let path = dir.join(FILE);
        let conn = format::connect_reader(&path)?;
        // The first read begins it; it ends with the connection.
        conn.execute_batch("BEGIN").map_err(|error| Error::sqlite(&path, "read", error))?;
        let version = format::check_version(&path, &conn)?;
        Self::over(path, conn, version)
    }

    /// Reads through an open connection to a journal of a version.
    pub(super) fn over(path: PathBuf, conn: Connection, version: u32) -> Result<Self, Error> {
        let stored = format::read_header(&path, &conn, version)?;
        let genesis = Head::genesis(&stored.header, &stored.plan, stored.format);
        let format::Stored { header, plan, format } = stored;
        Ok(Self { path, conn, header, plan, format, genesis })
    }

    pub(super) fn into_connection(self) -> Connection {
        self.conn
    }

    /// Returns what was stored when the run was declared.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Returns the format that the run was declared in, which the chain covers.
    pub fn declared_format(&self) -> u32 {
        self.format
    }

    /// Returns the plan as the very text that the chain covers.
    pub fn plan_text(&self) -> &str {
        &self.plan
    }

    /// Calls `visit` with each record in order, checked against the chain, and returns the head. Memory does not depend on
    /// their number.
    pub fn records<E: From<Error>>(
        &self,
        mut visit: impl FnMut(&Record, Option<EventKind>) -> Result<(), E>,
    ) -> Result<Head, E> {
        let mut head = self.genesis.clone();
        let mut failed = None;
        self.each(0, |record| {
            let kind = record.check(&mut head).map_err(|wrong| self.damaged(Some(wrong.seq), wrong.what))?;
            failed = visit(&record, kind).err();
            Ok(failed.is_none())
        })?;
        failed.map_or(Ok(head), Err)
    }

    /// Returns the hash of the last essential event as it is stored, without checking what comes before it; `None` if there
    /// is none.
    pub fn stored_head(&self) -> Result<Option<String>, Error> {
        const LAST: &str = "SELECT hash FROM events WHERE class = 'essential' ORDER BY seq DESC LIMIT 1";
        let hash = self.conn.query_row(LAST, [], |row| row.get::<_, Vec<u8>>(0)).optional();
        Ok(hash.map_err(|error| Error::sqlite(&self.path, "read", error))?.map(|hash| hex(&hash)))
    }

    /// Returns all events in order.
    ///
    /// An advisory kind that this program does not know is left out; an essential one is an error.
    pub fn events(&self) -> Result<Vec<Event>, Error> {
        self.since(0, usize::MAX)
    }

    /// Returns at most `limit` events after a sequence number, in order: for following a run.
    pub fn since(&self, seq: Seq, limit: usize) -> Result<Vec<Event>, Error> {
        let mut events = Vec::new();
        self.each(seq, |row| {
            events.extend(self.decode(&row)?.map(|kind| Event { seq: row.seq, at_ms: row.at_ms, kind }));
            Ok(events.len() < limit)
        })?;
        Ok(events)
    }

    /// Returns the essential events in order: all that recovery reads.
    pub fn essential(&self) -> Result<Vec<Event>, Error> {
        let mut events = Vec::new();
        self.select(ESSENTIAL, 0, |row| {
            events.extend(self.decode(&row)?.map(|kind| Event { seq: row.seq, at_ms: row.at_ms, kind }));
            Ok(true)
        })?;
        Ok(events)
    }

    /// Returns whether what follows from a request is in the journal.
    pub fn knows(&self, request: Uuid) -> Result<bool, Error> {
        self.conn
            .query_row("SELECT EXISTS (SELECT 1 FROM requests WHERE id = ?1)", [request.to_string()], |row| {
                row.get(0)
            })
            .map_err(|error| Error::sqlite(&self.path, "read", error))
    }

    /// Returns whether the run was declared: until then nothing was started in it.
    pub fn is_declared(&self) -> Result<bool, Error> {
        self.conn
            .query_row("SELECT EXISTS (SELECT 1 FROM events)", [], |row| row.get(0))
            .map_err(|error| Error::sqlite(&self.path, "read", error))
    }

    /// Returns whether the run has ended.
    pub fn is_finished(&self) -> Result<bool, Error> {
        self.conn
            .query_row("SELECT EXISTS (SELECT 1 FROM events WHERE kind = 'run_finished')", [], |row| {
                row.get(0)
            })
            .map_err(|error| Error::sqlite(&self.path, "read", error))
    }

    /// Walks the whole file and the hash chain and returns its head; an error names the first bad event.
    ///
    /// Proves that nothing before the head was changed. That nothing was cut off after it is proven by comparing
    /// with a head that was kept elsewhere.
    pub fn verify(&self) -> Result<Head, Error> {
        self.quick_check()?;
        let mut head = self.genesis.clone();
        self.each(0, |record| {
            record.check(&mut head).map_err(|wrong| self.damaged(Some(wrong.seq), wrong.what))?;
            Ok(true)
        })?;
        Ok(head)
    }

    fn quick_check(&self) -> Result<(), Error> {
        let verdict: String = self
            .conn
            .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
            .map_err(|error| Error::sqlite(&self.path, "read", error))?;
        if verdict == "ok" { Ok(()) } else { Err(self.damaged(None, verdict)) }
    }

    fn decode(&self, record: &Record) -> Result<Option<EventKind>, Error> {
        record.decode().map_err(|wrong| self.damaged(Some(wrong.seq), wrong.what))
    }

    /// Calls `visit` with each row after `seq` until it returns false.
    fn each(&self, seq: Seq, visit: impl FnMut(Record) -> Result<bool, Error>) -> Result<(), Error> {
        self.select(ALL, seq, visit)
    }

    fn select(
        &self,
        sql: &str,
        seq: Seq,
        mut visit: impl FnMut(Record) -> Result<bool, Error>,
    ) -> Result<(), Error> {
        let failed = |error| Error::sqlite(&self.path, "read", error);
        let mut statement = self.conn.prepare_cached(sql).map_err(failed)?;
        let after = i64::try_from(seq).unwrap_or(i64::MAX);
        let mut rows = statement.query([after]).map_err(failed)?;
        while let Some(row) = rows.next().map_err(failed)? {
            if !visit(Record::from_sql(row).map_err(failed)?)? {
                break;
            }
        }
        Ok(())
    }

    fn damaged(&self, seq: Option<Seq>, what: String) -> Error {
        Error::Damaged { path: self.path.clone(), seq, what }
    }
}
