use std::path::{Path, PathBuf};

use rusqlite::Connection;
use uuid::Uuid;

use super::FILE;
use super::chain::{Hash, Head};
use super::error::Error;
use super::format::{self, Header};
use crate::model::{Event, EventClass, EventKind, Seq};

/// Reads a journal, also while another process writes it. Never changes it.
///
/// All methods block on the disk.
#[derive(Debug)]
pub struct Reader {
    path: PathBuf,
    conn: Connection,
    header: Header,
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

/// One row of `events`.
struct Row {
    seq: Seq,
    at_ms: i64,
    class: String,
    kind: String,
    body: String,
    hash: Option<Vec<u8>>,
}

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

    /// Reads through an open connection to a journal of a version.
    pub(super) fn over(path: PathBuf, conn: Connection, version: u32) -> Result<Self, Error> {
        let stored = format::read_header(&path, &conn, version)?;
        let genesis = Head::genesis(&stored.header, &stored.plan, stored.format);
        Ok(Self { path, conn, header: stored.header, genesis })
    }

    pub(super) fn into_connection(self) -> Connection {
        self.conn
    }

    /// Returns what was stored when the run was declared.
    pub fn header(&self) -> &Header {
        &self.header
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
        self.each(0, |row| {
            self.verify_row(&mut head, &row)?;
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

    fn verify_row(&self, head: &mut Head, row: &Row) -> Result<(), Error> {
        let damaged = |what: &str| Err(self.damaged(Some(row.seq), what.to_owned()));
        if row.seq != head.seq + 1 {
            let what = format!("event {} is missing", head.seq + 1);
            return Err(self.damaged(Some(head.seq + 1), what));
        }
        let kind = self.decode(row)?;
        if kind.as_ref().is_some_and(|kind| class_word(kind.class()) != row.class) {
            return damaged("its class does not fit its kind");
        }
        if tag(&row.body) != Some(row.kind.as_str()) {
            return damaged("its kind does not fit its content");
        }
        if row.class == "advisory" {
            head.push_advisory(row.seq);
            return Ok(());
        }
        let expected: Hash = head.push_essential(row.seq, row.at_ms, &row.body);
        if row.hash.as_deref() == Some(&expected) {
            Ok(())
        } else {
            damaged("its hash does not fit, so it or an event before it was changed")
        }
    }

    fn decode(&self, row: &Row) -> Result<Option<EventKind>, Error> {
        match serde_json::from_str(&row.body) {
            Ok(kind) => Ok(Some(kind)),
            Err(_) if row.class == "advisory" => Ok(None),
            Err(error) => Err(self.damaged(Some(row.seq), format!("`{}` cannot be read: {error}", row.kind))),
        }
    }

    /// Calls `visit` with each row after `seq` until it returns false.
    fn each(&self, seq: Seq, visit: impl FnMut(Row) -> Result<bool, Error>) -> Result<(), Error> {
        self.select(ALL, seq, visit)
    }

    fn select(
        &self,
        sql: &str,
        seq: Seq,
        mut visit: impl FnMut(Row) -> Result<bool, Error>,
    ) -> Result<(), Error> {
        let failed = |error| Error::sqlite(&self.path, "read", error);
        let mut statement = self.conn.prepare_cached(sql).map_err(failed)?;
        let after = i64::try_from(seq).unwrap_or(i64::MAX);
        let mut rows = statement.query([after]).map_err(failed)?;
        while let Some(row) = rows.next().map_err(failed)? {
            if !visit(Row::from_sql(row).map_err(failed)?)? {
                break;
            }
        }
        Ok(())
    }

    fn damaged(&self, seq: Option<Seq>, what: String) -> Error {
        Error::Damaged { path: self.path.clone(), seq, what }
    }
}

impl Row {
    fn from_sql(row: &rusqlite::Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            seq: row.get::<_, i64>(0)?.cast_unsigned(),
            at_ms: row.get(1)?,
            class: row.get(2)?,
            kind: row.get(3)?,
            body: row.get(4)?,
            hash: row.get(5)?,
        })
    }
}

/// The word that a class is stored as.
pub(super) fn class_word(class: EventClass) -> &'static str {
    match class {
        EventClass::Essential => "essential",
        EventClass::Advisory => "advisory",
    }
}

/// The kind that a stored event names: its tag always stands first.
pub(super) fn tag(body: &str) -> Option<&str> {
    body.strip_prefix(r#"{"kind":""#)?.split('"').next()
}
