//! Binary log files in a store: each compressed, with a description that is written after it.
//!
//! `binlog/STREAM/SERVER/NAME.zst` and `.json`. The number of the server is part of the key, because another server of
//! the same stream, after a failover, begins again with the names of the first.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use jiff::Timestamp;
use lifeboat_engine::step::StepError;
use serde::{Deserialize, Serialize};

use super::super::codes;
use super::events::{End, LogFile};
use super::gtid::State;
use crate::store::{self, HashingReader, HashingWriter, Key, Meter, NewObject, Store, copy};

const FORMAT: u32 = 1;
const LEVEL: i32 = 3;
/// Descriptions are small; anything larger is none.
const LIMIT: u64 = 1024 * 1024;

/// The files of one server.
#[derive(Clone, Debug)]
pub(super) struct Archive {
    pub(super) store: Store,
    stream: String,
    pub(super) server_id: u32,
}

/// What a store says of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Shipped {
    pub(super) format: u32,
    pub(super) name: String,
    pub(super) size: u64,
    /// Of the file as the server has it.
    pub(super) sha256: String,
    pub(super) server_id: u32,
    pub(super) server_version: String,
    /// What earlier files hold, and what these and this one do.
    pub(super) before: State,
    pub(super) after: State,
    pub(super) transactions: u64,
    pub(super) first_time: Option<Timestamp>,
    pub(super) last_time: Option<Timestamp>,
    pub(super) end: End,
    /// Everything that was committed before this moment is in it or in earlier files.
    pub(super) covered_until: Timestamp,
}

impl Shipped {
    /// Describes a file.
    pub(super) fn new(name: &str, log: &LogFile, sha256: String) -> Self {
        let times = || log.transactions.iter().filter_map(|it| Timestamp::from_second(it.time).ok());
        let ended = log.ended.and_then(|time| Timestamp::from_second(time).ok());
        Self {
            format: FORMAT,
            name: name.to_owned(),
            size: log.size,
            sha256,
            server_id: log.server_id,
            server_version: log.server_version.clone(),
            before: log.before.clone().unwrap_or_default(),
            after: log.after(),
            transactions: log.transactions.len() as u64,
            first_time: times().min(),
            last_time: times().max(),
            end: log.end.clone(),
            covered_until: ended.or_else(|| times().max()).unwrap_or(Timestamp::UNIX_EPOCH),
        }
    }

    /// Returns the number in its name.
    pub(super) fn number(&self) -> u64 {
        number(&self.name).unwrap_or(0)
    }

    /// Says why another file does not follow this one; `None` if it does.
    pub(super) fn gap_before(&self, next: &Self) -> Option<String> {
        if next.number() != self.number() + 1 {
            return Some(format!("{} is followed by {}", self.name, next.name));
        }
        if next.before != self.after {
            return Some(format!(
                "{} ends at [{}], and {} begins after [{}]: they are of different histories",
                self.name, self.after, next.name, next.before
            ));
        }
        None
    }
}

/// Returns the number in the name of a file: `binlog.000042`.
pub(super) fn number(name: &str) -> Option<u64> {
    let (base, digits) = name.rsplit_once('.')?;
    let plain = !base.is_empty() && digits.len() >= 6 && digits.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| digits.parse().ok())?
}

impl Archive {
    /// Returns the files of a server in a stream.
    pub(super) fn new(store: &Store, stream: &str, server_id: u32) -> Result<Self, StepError> {
        let archive = Self { store: store.clone(), stream: stream.to_owned(), server_id };
        archive.dir().map(|_| archive)
    }

    fn dir(&self) -> Result<Key, StepError> {
        Key::new(format!("binlog/{}/{}", self.stream, self.server_id))
    }

    fn key(&self, name: &str, suffix: &str) -> Result<Key, StepError> {
        self.dir()?.join(&format!("{name}.{suffix}"))
    }

    /// Returns what a store says of all its files, in the order of their numbers.
    pub(super) fn list(&self) -> Result<Vec<Shipped>, StepError> {
        self.store.check_reachable()?;
        let mut all = Vec::new();
        for listed in self.store.list(&self.dir()?)? {
            if listed.key.name().ends_with(".json") {
                all.push(self.describe(&listed.key)?);
            }
        }
        all.sort_by_key(Shipped::number);
        Ok(all)
    }

    fn describe(&self, key: &Key) -> Result<Shipped, StepError> {
        let mut text = Vec::new();
        io::Read::read_to_end(&mut io::Read::take(self.store.read(key)?, LIMIT), &mut text).map_err(
            |error| StepError::transient(codes::LB2041, format!("`{key}` cannot be read")).caused_by(&error),
        )?;
        let bad = |problem: String| {
            StepError::permanent(
                codes::LB2041,
                format!("`{key}` does not describe a binary log file: {problem}"),
            )
            .help("compare it with a copy of the store; the file beside it is not used without it")
        };
        let shipped: Shipped = serde_json::from_slice(&text).map_err(|error| bad(error.to_string()))?;
        if shipped.format != FORMAT {
            return Err(bad(format!("it has format {}, and this Lifeboat knows {FORMAT}", shipped.format)));
        }
        match key.name() == format!("{}.json", shipped.name) && shipped.server_id == self.server_id {
            true => Ok(shipped),
            false => Err(bad(format!("it is of {} of server {}", shipped.name, shipped.server_id))),
        }
    }

    /// Stores a file of this machine, then its description. The same file may be there already; another one is refused.
    pub(super) fn put(&self, path: &Path, shipped: &Shipped, meter: &Meter) -> Result<(), StepError> {
        let taken = |error: StepError| {
            match error.code == store::codes::LB1105 {
            true => StepError::permanent(
                codes::LB2043,
                format!("the store has another file {} of server {} already; it was left as it is", shipped.name, self.server_id),
            )
            .help("the numbering was begun again, or two servers have one server_id: ship into another `stream`"),
            false => error,
        }
        };
        let object = self.store.create(&self.key(&shipped.name, "zst")?)?;
        pack(path, object, meter)?.commit().map_err(taken)?;
        let text = serde_json::to_vec_pretty(shipped).expect("plain data is JSON");
        self.store.put(&self.key(&shipped.name, "json")?, &text).map_err(taken)?;
        Ok(())
    }

    /// Brings a file to this machine, and compares it with its description.
    pub(super) fn get(&self, shipped: &Shipped, to: &Path, meter: &Meter) -> Result<(), StepError> {
        let key = self.key(&shipped.name, "zst")?;
        let failed = |error: &io::Error| {
            StepError::transient(codes::LB2041, format!("`{key}` cannot be brought to {}", to.display()))
                .help("give the step a `dir` with room, or choose another copy of the store")
                .caused_by(error)
        };
        let mut file = HashingWriter::new(File::create(to).map_err(|error| failed(&error))?);
        let mut from =
            zstd::stream::read::Decoder::new(self.store.read(&key)?).map_err(|error| failed(&error))?;
        copy(&mut from, &mut file, meter).map_err(|error| match error.code == store::codes::LB1111 {
            // It is this machine's disk, not the store.
            true => StepError { kind: error.kind, ..failed(&io::Error::other(error.message)) },
            false => error,
        })?;
        file.flush().map_err(|error| failed(&error))?;
        let (_, digest) = file.finish();
        match digest.sha256 == shipped.sha256 {
            true => Ok(()),
            false => Err(StepError::permanent(
                store::codes::LB1108,
                format!("`{key}` is damaged: its SHA-256 is {}, not {}", digest.sha256, shipped.sha256),
            )
            .help("nothing was replayed; bring this object back from a copy of the store")),
        }
    }
}

fn pack(path: &Path, object: NewObject, meter: &Meter) -> Result<NewObject, StepError> {
    let failed = |error: &io::Error| {
        StepError::transient(codes::LB2041, format!("{} cannot be stored", path.display())).caused_by(error)
    };
    let mut file = HashingReader::new(File::open(path).map_err(|error| failed(&error))?);
    let mut encoder = zstd::stream::write::Encoder::new(object, LEVEL).map_err(|error| failed(&error))?;
    encoder.include_checksum(true).map_err(|error| failed(&error))?;
    copy(&mut file, &mut encoder, meter)?;
    encoder.finish().map_err(|error| failed(&error))
}

#[cfg(test)]
mod tests {
    use super::super::events;
    use super::super::events::tests::Writer;
    use super::*;

    fn shipped(name: &str, before: &str, first: u64) -> Shipped {
        let bytes = Writer::new(7, before).transaction(first, 150, "x").rotate("b.000009");
        Shipped::new(name, &events::read(&bytes[..]).unwrap(), "00".into())
    }

    #[test]
    fn files_follow_each_other_by_number_and_by_transactions() {
        let one = shipped("b.000001", "", 1);
        assert_eq!(one.gap_before(&shipped("b.000002", "0-7-1", 2)), None);
        assert!(one.gap_before(&shipped("b.000003", "0-7-1", 2)).is_some());
        // The same name of another server, or of this one after its numbering was begun again.
        assert!(one.gap_before(&shipped("b.000002", "0-9-1", 2)).is_some());
        assert!(one.gap_before(&shipped("b.000002", "0-7-5", 6)).is_some());
    }

    #[test]
    fn names_have_numbers() {
        assert_eq!(number("mysql-bin.1000001"), Some(1_000_001));
        for bad in ["binlog", "binlog.index", "binlog.12", ".000001"] {
            assert_eq!(number(bad), None, "{bad}");
        }
    }
}
