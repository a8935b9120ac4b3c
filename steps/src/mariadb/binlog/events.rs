//! Reads the events of a binary log file: where transactions begin, when they were written, whether the file is whole.
//!
//! Only headers and a few fields are looked at. The replay itself is MariaDB's own program; what it is told to replay
//! comes from here.

use std::io::{self, Read};

use serde::{Deserialize, Serialize};

use super::gtid::{Gtid, State};

const MAGIC: [u8; 4] = [0xfe, b'b', b'i', b'n'];
const HEADER: usize = 19;
/// As much of an event as is looked at; the rest is only hashed.
const LOOKED_AT: usize = 16 * 1024;

const QUERY: u8 = 2;
const STOP: u8 = 3;
const ROTATE: u8 = 4;
const FORMAT: u8 = 15;
const GTID: u8 = 162;
const GTID_LIST: u8 = 163;
const ENCRYPTION: u8 = 164;

/// One transaction of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Transaction {
    pub(super) gtid: Gtid,
    /// Where it begins.
    pub(super) offset: u64,
    /// When it was committed, in seconds since 1970: the newest time of its events, which is when its last statement began.
    ///
    /// What a statement took is no part of it: a replica counts its delay as such, and `set timestamp` makes it nonsense.
    pub(super) time: i64,
    /// How many temporary tables it makes, less those that it drops: only the connection has them that made them.
    pub(super) temporary: i64,
}

/// How a file ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum End {
    /// The server went on with this file.
    Rotated(String),
    /// The server ended in order.
    Stopped,
    /// The server still writes it, or did not end in order.
    Open,
}

/// What a file holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LogFile {
    pub(super) size: u64,
    /// The server that wrote it.
    pub(super) server_id: u32,
    pub(super) server_version: String,
    pub(super) has_checksums: bool,
    /// What earlier files hold; `None` if the file does not say.
    pub(super) before: Option<State>,
    pub(super) transactions: Vec<Transaction>,
    pub(super) end: End,
    /// When it was ended, in seconds since 1970.
    pub(super) ended: Option<i64>,
}

impl LogFile {
    /// Returns what this file and all earlier ones hold.
    pub(super) fn after(&self) -> State {
        let mut state = self.before.clone().unwrap_or_default();
        self.transactions.iter().for_each(|transaction| state.add(transaction.gtid));
        state
    }
}

/// Why a file is none, or not whole.
#[derive(Debug, thiserror::Error)]
pub(super) enum BadLog {
    #[error("it is no binary log")]
    NoLog,
    #[error("it is encrypted")]
    Encrypted,
    #[error("it ends in the middle of an event at {0}")]
    CutOff(u64),
    #[error("the event at {0} has a wrong checksum")]
    Checksum(u64),
    #[error("the event at {0} cannot be understood")]
    Event(u64),
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
}

struct Header {
    time: u32,
    kind: u8,
    server_id: u32,
    size: u32,
}

/// An event, as far as it is looked at, without its checksum.
struct Event {
    header: Header,
    offset: u64,
    body: Vec<u8>,
}

/// Reads a file to its end.
pub(super) fn read(mut from: impl Read) -> Result<LogFile, BadLog> {
    let mut magic = [0; 4];
    from.read_exact(&mut magic).map_err(|_| BadLog::NoLog)?;
    if magic != MAGIC {
        return Err(BadLog::NoLog);
    }
    let mut log = LogFile {
        size: 4,
        server_id: 0,
        server_version: String::new(),
        has_checksums: false,
        before: None,
        transactions: Vec::new(),
        end: End::Open,
        ended: None,
    };
    while let Some(event) = next(&mut from, &mut log)? {
        note(&mut log, &event)?;
    }
    if log.server_version.is_empty() { Err(BadLog::NoLog) } else { Ok(log) }
}

/// Reads the next event and compares its checksum.
fn next(from: &mut impl Read, log: &mut LogFile) -> Result<Option<Event>, BadLog> {
    let offset = log.size;
    let mut bytes = [0; HEADER];
    match fill(from, &mut bytes)? {
        0 => return Ok(None),
        HEADER => {}
        _ => return Err(BadLog::CutOff(offset)),
    }
    let header = Header {
        time: u32_at(&bytes, 0),
        kind: bytes[4],
        server_id: u32_at(&bytes, 5),
        size: u32_at(&bytes, 9),
    };
    let length = (header.size as usize).checked_sub(HEADER).ok_or(BadLog::Event(offset))?;
    let mut hasher = crc32fast::Hasher::new();
    // The server writes into the flags of the first event while the file is open.
    let mut hashed = bytes;
    if header.kind == FORMAT {
        hashed[17] &= !1;
    }
    hasher.update(&hashed);
    let mut body = vec![0; length.min(LOOKED_AT)];
    if fill(from, &mut body)? < body.len() {
        return Err(BadLog::CutOff(offset));
    }
    let tail = pass(from, (length - body.len()) as u64, (&mut hasher, &mut body, offset))?;
    log.size += u64::from(header.size);
    let is_format = header.kind == FORMAT;
    if is_format {
        // The algorithm and a checksum end this event, whether others have one or not.
        let algorithm = body.len().checked_sub(5).map(|at| body[at]).ok_or(BadLog::Event(offset))?;
        log.has_checksums = algorithm == 1;
    }
    if log.has_checksums && tail != Some(hasher.finalize()) {
        return Err(BadLog::Checksum(offset));
    }
    if log.has_checksums || is_format {
        body.truncate(body.len().saturating_sub(if length <= LOOKED_AT { 4 } else { 0 }));
    }
    Ok(Some(Event { header, offset, body }))
}

/// Hashes an event without its last four bytes, and returns these.
fn pass(
    from: &mut impl Read,
    mut left: u64,
    (hasher, body, offset): (&mut crc32fast::Hasher, &mut [u8], u64),
) -> Result<Option<u32>, BadLog> {
    let mut held: Vec<u8> = body.to_vec();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        if left == 0 {
            let Some(at) = held.len().checked_sub(4) else { return Ok(None) };
            hasher.update(&held[..at]);
            return Ok(Some(u32_at(&held, at)));
        }
        let keep = held.len().saturating_sub(4);
        hasher.update(&held[..keep]);
        held.drain(..keep);
        let want = left.min(buffer.len() as u64) as usize;
        if fill(from, &mut buffer[..want])? < want {
            return Err(BadLog::CutOff(offset));
        }
        held.extend_from_slice(&buffer[..want]);
        left -= want as u64;
    }
}

fn note(log: &mut LogFile, event: &Event) -> Result<(), BadLog> {
    let (body, offset) = (&event.body, event.offset);
    let bad = || BadLog::Event(offset);
    match event.header.kind {
        FORMAT => {
            log.server_id = event.header.server_id;
            let version = body.get(2..52).ok_or_else(bad)?;
            log.server_version = String::from_utf8_lossy(version).trim_end_matches('\0').to_owned();
        }
        ENCRYPTION => return Err(BadLog::Encrypted),
        GTID_LIST => log.before = Some(gtid_list(body).ok_or_else(bad)?),
        GTID => {
            let gtid = Gtid {
                domain: u32_of(body, 8).ok_or_else(bad)?,
                server: event.header.server_id,
                sequence: u64_of(body, 0).ok_or_else(bad)?,
            };
            let time = i64::from(event.header.time);
            log.transactions.push(Transaction { gtid, offset, time, temporary: 0 });
        }
        ROTATE => {
            let name = body.get(8..).ok_or_else(bad)?;
            log.end = End::Rotated(String::from_utf8_lossy(name).into_owned());
            log.ended = Some(i64::from(event.header.time));
        }
        STOP => {
            log.end = End::Stopped;
            log.ended = Some(i64::from(event.header.time));
        }
        _ => {
            if let Some(transaction) = log.transactions.last_mut() {
                transaction.time = transaction.time.max(i64::from(event.header.time));
                transaction.temporary += if event.header.kind == QUERY { temporary_tables(body) } else { 0 };
            }
        }
    }
    Ok(())
}

/// Reads how many entries there are, and these: domain, server, sequence.
fn gtid_list(body: &[u8]) -> Option<State> {
    let count = (u32_of(body, 0)? & 0x0fff_ffff) as usize;
    let mut state = State::default();
    for index in 0..count {
        let at = 4 + index * 16;
        state.add(Gtid {
            domain: u32_of(body, at)?,
            server: u32_of(body, at + 4)?,
            sequence: u64_of(body, at + 8)?,
        });
    }
    Some(state)
}

/// Counts temporary tables that a statement makes or drops. It stands behind variables and the name of its database.
fn temporary_tables(body: &[u8]) -> i64 {
    let statement = || {
        let database = usize::from(*body.get(8)?);
        let variables = usize::from(u16::from_le_bytes([*body.get(11)?, *body.get(12)?]));
        body.get(13 + variables + database + 1..)
    };
    let Some(text) = statement() else { return 0 };
    let text = String::from_utf8_lossy(text).to_lowercase();
    let words: Vec<&str> = text.split_whitespace().take(8).collect();
    match (words.first(), words.contains(&"temporary")) {
        (Some(&"create"), true) => 1,
        (Some(&"drop"), true) => -(1 + text.matches(',').count() as i64),
        _ => 0,
    }
}

/// Reads until the buffer is full or the source has ended.
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

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32_of(bytes, at).unwrap_or(0)
}

fn u32_of(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_of(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Writes files as a server does.
    pub(in super::super) struct Writer {
        bytes: Vec<u8>,
        server: u32,
    }

    impl Writer {
        pub(in super::super) fn new(server: u32, before: &str) -> Self {
            let mut writer = Self { bytes: MAGIC.to_vec(), server };
            let mut format = vec![4, 0];
            format.extend_from_slice(b"10.11.19-MariaDB-log");
            format.resize(52, 0);
            format.extend_from_slice(&[0, 0, 0, 0, 19]);
            format.resize(200, 0);
            format.push(1);
            writer.event(FORMAT, 100, &format);
            let entries: Vec<_> = State::parse(before).unwrap().all().collect();
            let mut list = (entries.len() as u32).to_le_bytes().to_vec();
            for gtid in entries {
                list.extend_from_slice(&gtid.domain.to_le_bytes());
                list.extend_from_slice(&gtid.server.to_le_bytes());
                list.extend_from_slice(&gtid.sequence.to_le_bytes());
            }
            writer.event(GTID_LIST, 100, &list);
            writer
        }

        fn event(&mut self, kind: u8, time: u32, body: &[u8]) {
            let size = (HEADER + body.len() + 4) as u32;
            let mut event = time.to_le_bytes().to_vec();
            event.push(kind);
            event.extend_from_slice(&self.server.to_le_bytes());
            event.extend_from_slice(&size.to_le_bytes());
            event.extend_from_slice(&(self.bytes.len() as u32 + size).to_le_bytes());
            event.extend_from_slice(&[0, 0]);
            event.extend_from_slice(body);
            let sum = crc32fast::hash(&event);
            self.bytes.extend_from_slice(&event);
            self.bytes.extend_from_slice(&sum.to_le_bytes());
        }

        pub(in super::super) fn transaction(mut self, sequence: u64, time: u32, sql: &str) -> Self {
            let mut gtid = sequence.to_le_bytes().to_vec();
            gtid.extend_from_slice(&[0; 11]);
            self.event(GTID, time, &gtid);
            let mut query = vec![0; 13];
            query.push(0);
            query.extend_from_slice(sql.as_bytes());
            self.event(QUERY, time, &query);
            self.event(16, time, &[0; 8]);
            self
        }

        pub(in super::super) fn rotate(mut self, next: &str) -> Vec<u8> {
            let mut body = 4u64.to_le_bytes().to_vec();
            body.extend_from_slice(next.as_bytes());
            self.event(ROTATE, 200, &body);
            self.bytes
        }

        pub(in super::super) fn open(self) -> Vec<u8> {
            self.bytes
        }
    }

    #[test]
    fn transactions_are_found_with_their_place_and_time() {
        let sql = "create /* x */ temporary table t (a int)";
        let bytes = Writer::new(7, "0-7-3")
            .transaction(4, 150, "update t")
            .transaction(5, 149, sql)
            .transaction(6, 150, "DROP /*!40005 TEMPORARY */ TABLE IF EXISTS `t`,`u`")
            .rotate("bin.000002");
        let log = read(&bytes[..]).unwrap();
        assert_eq!((log.size, log.server_id, log.has_checksums), (bytes.len() as u64, 7, true));
        assert_eq!(log.before.as_ref().unwrap().to_string(), "0-7-3");
        let times: Vec<_> = log.transactions.iter().map(|it| (it.gtid.sequence, it.time)).collect();
        assert_eq!(times, [(4, 150), (5, 149), (6, 150)]);
        let temporary: Vec<_> = log.transactions.iter().map(|it| it.temporary).collect();
        assert_eq!(temporary, [0, 1, -2]);
        assert_eq!(log.after().to_string(), "0-7-6");
        assert_eq!(log.end, End::Rotated("bin.000002".into()));
        let open = Writer::new(7, "").transaction(1, 1, "x").open();
        assert_eq!(read(&open[..]).unwrap().end, End::Open);
    }

    #[test]
    fn every_cut_and_every_flipped_bit_is_found() {
        let long = "x".repeat(LOOKED_AT * 5);
        let bytes = Writer::new(7, "0-7-3").transaction(4, 150, &long).transaction(5, 151, "y").rotate("b.2");
        let whole = read(&bytes[..]).unwrap();
        for cut in 0..bytes.len() {
            // Cut between two events the file only looks open.
            match read(&bytes[..cut]) {
                Ok(log) => assert!(log != whole && log.end == End::Open),
                Err(BadLog::CutOff(_) | BadLog::NoLog | BadLog::Event(_)) => {}
                Err(other) => panic!("{cut}: {other}"),
            }
        }
        for at in (0..bytes.len()).step_by(97) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            assert!(read(&damaged[..]).is_err(), "{at}");
        }
    }
}
