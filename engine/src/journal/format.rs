//! The form of the file: schema, versions, and the settings that durability rests on.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags, OptionalExtension};

use super::error::Error;
use crate::model::RunId;
use crate::plan::Plan;

/// The version of the form that this program writes, kept in `user_version`.
pub const FORMAT: u32 = 3;

/// `LBJN`: tells a journal from any other SQLite file.
const APPLICATION_ID: i32 = 0x4C42_4A4E;

/// How long another program may keep the file locked before a write or a read of it fails.
pub(super) const BUSY: Duration = Duration::from_secs(10);

/// The first SQLite without the bug that corrupts a write-ahead log with two connections.
const SQLITE_FLOOR: i32 = 3_051_003;

const SCHEMA: &str = "
CREATE TABLE meta (
    one        INTEGER PRIMARY KEY CHECK (one = 1),
    run        TEXT NOT NULL,
    engine     TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    plan       TEXT NOT NULL,
    format     INTEGER NOT NULL
) STRICT;
CREATE TABLE events (
    seq   INTEGER PRIMARY KEY,
    at_ms INTEGER NOT NULL,
    class TEXT NOT NULL CHECK (class IN ('essential', 'advisory')),
    kind  TEXT NOT NULL,
    body  TEXT NOT NULL,
    hash  BLOB CHECK ((hash IS NOT NULL) = (class = 'essential'))
) STRICT;
CREATE INDEX events_finished ON events (seq) WHERE kind = 'run_finished';
CREATE TABLE requests (
    id  TEXT PRIMARY KEY,
    seq INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
";

/// Statements that lead from version n to n + 1, the first from version 1.
///
/// 2: the chain begins with the format that the run was declared in, which a migration must not change.
///
/// 3: the tables stay; created things may be `within` a system, which an older program would take for damage.
const MIGRATIONS: &[&str] = &["ALTER TABLE meta ADD COLUMN format INTEGER NOT NULL DEFAULT 1", ""];

/// What is stored once, when a run is declared.
#[derive(Clone, Debug, PartialEq)]
pub struct Header {
    pub run: RunId,
    /// The version of the engine that declared the run.
    pub engine: String,
    /// Milliseconds since 1970 UTC.
    pub created_ms: i64,
    pub plan: Plan,
}

/// How long files beside the journal may be unusable: another user who looks at it as root makes them, and hands them over a
/// moment later.
const PASSING: Duration = Duration::from_secs(3);

/// Opens an existing file for writing, with every setting checked.
pub(super) fn connect_writer(path: &Path) -> Result<Connection, Error> {
    let deadline = Instant::now() + PASSING;
    loop {
        match try_connect_writer(path) {
            Err(error) if error.is_of_opening() && path.exists() && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(20));
            }
            connected => return connected,
        }
    }
}

fn try_connect_writer(path: &Path) -> Result<Connection, Error> {
    let conn = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE)
        .map_err(|error| Error::sqlite(path, "opened", error))?;
    let version = rusqlite::version_number();
    require(path, version >= SQLITE_FLOOR, || format!("version 3.51.3 or newer (found {version})"))?;
    let set = || -> rusqlite::Result<(String, i64, i64)> {
        conn.busy_timeout(BUSY)?;
        conn.execute_batch(
            "PRAGMA trusted_schema = OFF; PRAGMA foreign_keys = ON; PRAGMA cell_size_check = ON;",
        )?;
        let mode = conn.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
        conn.execute_batch("PRAGMA synchronous = FULL")?;
        let synchronous = conn.query_row("PRAGMA synchronous", [], |row| row.get(0))?;
        let keys = conn.query_row("PRAGMA foreign_keys", [], |row| row.get(0))?;
        Ok((mode, synchronous, keys))
    };
    let (mode, synchronous, keys) = set().map_err(|error| Error::sqlite(path, "opened", error))?;
    require(path, mode == "wal", || format!("a write-ahead log (found `{mode}`)"))?;
    require(path, synchronous == 2, || format!("synchronous = FULL (found {synchronous})"))?;
    require(path, keys == 1, || "foreign keys".to_owned())?;
    Ok(conn)
}

/// Opens an existing file for reading only.
pub(super) fn connect_reader(path: &Path) -> Result<Connection, Error> {
    if !path.exists() {
        return Err(Error::Missing { path: path.to_owned() });
    }
    let open = || -> rusqlite::Result<Connection> {
        let conn = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        conn.busy_timeout(BUSY)?;
        conn.execute_batch(
            "PRAGMA trusted_schema = OFF; PRAGMA query_only = ON; PRAGMA cell_size_check = ON;",
        )?;
        Ok(conn)
    };
    open().map_err(|error| Error::sqlite(path, "opened", error))
}

/// Opens a file that nobody writes, so that not even SQLite's own files beside it are touched. `None` if what it holds
/// is not complete without them: somebody writes it, or did until it was killed.
pub(super) fn connect_at_rest(path: &Path) -> Result<Option<Connection>, Error> {
    use std::os::unix::ffi::OsStrExt;
    if !path.exists() {
        return Err(Error::Missing { path: path.to_owned() });
    }
    if std::fs::metadata(log_of(path)).is_ok_and(|log| log.len() > 0) {
        return Ok(None);
    }
    let absolute = std::path::absolute(path).map_err(|error| Error::io(path, "opened", error))?;
    let mut uri = String::from("file:");
    for byte in absolute.as_os_str().as_bytes() {
        match byte {
            b'/' | b'.' | b'-' | b'_' => uri.push(char::from(*byte)),
            byte if byte.is_ascii_alphanumeric() => uri.push(char::from(*byte)),
            byte => uri.push_str(&format!("%{byte:02X}")),
        }
    }
    uri.push_str("?mode=ro&immutable=1");
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
    Connection::open_with_flags(uri, flags).map(Some).map_err(|error| Error::sqlite(path, "opened", error))
}

fn require(path: &Path, holds: bool, what: impl FnOnce() -> String) -> Result<(), Error> {
    if holds { Ok(()) } else { Err(Error::Unsafe { path: path.to_owned(), what: what() }) }
}

/// Writes tables and header in one transaction, so that a crash leaves either nothing or a whole journal.
pub(super) fn lay_out(path: &Path, conn: &mut Connection, header: &Header, plan: &str) -> Result<(), Error> {
    let write = || -> rusqlite::Result<()> {
        let tx = conn.transaction()?;
        tx.execute_batch(SCHEMA)?;
        tx.execute(
            "INSERT INTO meta (one, run, engine, created_ms, plan, format) VALUES (1, ?1, ?2, ?3, ?4, ?5)",
            (header.run.to_string(), &header.engine, header.created_ms, plan, FORMAT),
        )?;
        tx.pragma_update(None, "application_id", APPLICATION_ID)?;
        tx.pragma_update(None, "user_version", FORMAT)?;
        tx.commit()
    };
    let mut write = write;
    write().map_err(|error| Error::sqlite(path, "created", error))
}

/// Refuses what is no journal and what is newer than this program; returns the version found.
pub(super) fn check_version(path: &Path, conn: &Connection) -> Result<u32, Error> {
    let pragma = |name: &str| -> Result<i64, Error> {
        conn.query_row(&format!("PRAGMA {name}"), [], |row| row.get(0))
            .map_err(|error| Error::sqlite(path, "read", error))
    };
    let (application, version) = (pragma("application_id")?, pragma("user_version")?);
    if application != i64::from(APPLICATION_ID) || version < 1 {
        // A journal gets its name only when it is complete, so what is empty has lost what it said.
        let is_empty = application == 0 && version == 0;
        let what = if is_empty { "it is empty" } else { "the file is a SQLite database but no journal" };
        return Err(Error::Damaged { path: path.to_owned(), seq: None, what: what.to_owned() });
    }
    match u32::try_from(version) {
        Ok(version) if version <= FORMAT => Ok(version),
        _ => Err(Error::Newer {
            path: path.to_owned(),
            what: "journal format",
            found: version.to_string(),
            known: FORMAT,
            engine: engine_of(conn),
        }),
    }
}

/// Returns the version of the engine that declared the run, if that can be read.
fn engine_of(conn: &Connection) -> Option<String> {
    conn.query_row("SELECT engine FROM meta", [], |row| row.get(0)).ok()
}

/// Brings an older journal to the version of this program.
pub(super) fn migrate(path: &Path, conn: &mut Connection, from: u32) -> Result<(), Error> {
    migrate_with(conn, from, MIGRATIONS).map_err(|error| Error::sqlite(path, "migrated", error))
}

fn migrate_with(conn: &mut Connection, from: u32, migrations: &[&str]) -> rusqlite::Result<()> {
    for (step, version) in migrations.iter().zip(2u32..).filter(|&(_, version)| version > from) {
        let tx = conn.transaction()?;
        tx.execute_batch(step)?;
        tx.pragma_update(None, "user_version", version)?;
        tx.commit()?;
    }
    Ok(())
}

/// What `meta` holds: the header, the plan as it is stored, and the format that the run was declared in.
pub(super) struct Stored {
    pub(super) header: Header,
    pub(super) plan: String,
    pub(super) format: u32,
}

/// Reads the header of a journal of any version up to this one.
pub(super) fn read_header(path: &Path, conn: &Connection, version: u32) -> Result<Stored, Error> {
    let damaged = |what: String| Error::Damaged { path: path.to_owned(), seq: None, what };
    let format = if version < 2 { "1" } else { "format" };
    let row = conn
        .query_row(&format!("SELECT run, engine, created_ms, plan, {format} FROM meta"), [], |row| {
            let (run, engine, plan): (String, String, String) = (row.get(0)?, row.get(1)?, row.get(3)?);
            Ok((run, engine, row.get(2)?, plan, row.get(4)?))
        })
        .optional()
        .map_err(|error| Error::sqlite(path, "read", error))?;
    let (run, engine, created_ms, text, format) =
        row.ok_or_else(|| damaged("it has no header".to_owned()))?;
    let run = run.parse().map_err(|_| damaged(format!("`{run}` is no run id")))?;
    let plan = parse_plan(path, &text, &engine)?;
    Ok(Stored { header: Header { run, engine, created_ms, plan }, plan: text, format })
}

fn parse_plan(path: &Path, text: &str, engine: &str) -> Result<Plan, Error> {
    #[derive(serde::Deserialize)]
    struct Version {
        format: u32,
    }
    let damaged = |error: serde_json::Error| Error::Damaged {
        path: path.to_owned(),
        seq: None,
        what: format!("its plan cannot be read: {error}"),
    };
    let version: Version = serde_json::from_str(text).map_err(damaged)?;
    if version.format > Plan::FORMAT {
        let found = version.format.to_string();
        let (path, engine) = (path.to_owned(), Some(engine.to_owned()));
        return Err(Error::Newer { path, what: "plan format", found, known: Plan::FORMAT, engine });
    }
    serde_json::from_str(text).map_err(damaged)
}

/// How much of the write-ahead log is made beforehand, and how many pages it holds before they go into the file itself.
/// A write to a file that need not grow is several times as fast to sync as one that makes it grow.
const LOG_BYTES: u64 = 2 * 1024 * 1024;
const LOG_PAGES: u32 = 400;

/// Returns the name of the write-ahead log.
pub(super) fn log_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push("-wal");
    name.into()
}

/// Fills the write-ahead log with zeros up to its usual size. SQLite takes them for what they are: no frames.
///
/// The log works without; what fails here will fail again, and be reported, when something is written.
pub(super) fn fill_log(path: &Path, conn: &Connection) {
    let fill = || -> std::io::Result<()> {
        let mut log = OpenOptions::new().append(true).open(log_of(path))?;
        let missing = LOG_BYTES.saturating_sub(log.metadata()?.len());
        std::io::copy(&mut std::io::repeat(0).take(missing), &mut log)?;
        log.sync_data()
    };
    if let Err(error) = fill() {
        tracing::debug!(path = %path.display(), %error, "the log of the journal was not made longer");
    }
    if let Err(error) = conn.pragma_update(None, "wal_autocheckpoint", LOG_PAGES) {
        tracing::debug!(path = %path.display(), %error, "the journal keeps the usual length of its log");
    }
}

/// Moves everything from the write-ahead log into the file itself. Closing does that, too, and tells nobody if it fails.
pub(super) fn empty_log(path: &Path, conn: &Connection) -> Result<(), Error> {
    let left = |row: &rusqlite::Row<'_>| row.get::<_, bool>(0);
    match conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], left) {
        Ok(false) => Ok(()),
        Ok(true) => Err(Error::io(path, "created", std::io::ErrorKind::ResourceBusy.into())),
        Err(error) => Err(Error::sqlite(path, "created", error)),
    }
}

/// Makes the names in a directory survive a power cut.
pub(super) fn sync_dir(dir: &Path) -> Result<(), Error> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|error| Error::io(dir, "made durable", error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn migrations_run_from_the_version_found_and_only_once() {
        let mut conn = Connection::open_in_memory().unwrap();
        conn.execute_batch("CREATE TABLE t (a) ; PRAGMA user_version = 1").unwrap();
        let steps = ["ALTER TABLE t ADD COLUMN b", "ALTER TABLE t ADD COLUMN c"];
        migrate_with(&mut conn, 1, &steps[..1]).unwrap();
        migrate_with(&mut conn, 2, &steps).unwrap();
        migrate_with(&mut conn, 3, &steps).unwrap();
        let version: u32 = conn.query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap();
        assert_eq!(version, 3);
        conn.execute("INSERT INTO t (a, b, c) VALUES (1, 2, 3)", []).unwrap();
    }

    #[test]
    fn files_of_another_user_beside_a_journal_are_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.db");
        Connection::open(&path)
            .unwrap()
            .execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE t (a)")
            .unwrap();
        // As unusable as one that belongs to root, for root as well.
        let shared = dir.path().join("journal.db-shm");
        std::os::unix::fs::symlink(dir.path().join("nowhere/at-all"), &shared).unwrap();
        let away = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(200));
            std::fs::remove_file(shared).unwrap();
        });
        connect_writer(&path).unwrap();
        away.join().unwrap();
    }

    #[test]
    fn every_older_version_has_a_migration() {
        assert_eq!(MIGRATIONS.len() as u32 + 1, FORMAT);
    }
}
