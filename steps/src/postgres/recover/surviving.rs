//! WAL that the lost server had written and had not archived yet.
//!
//! The archive ends with the last segment that was filled or switched; the commits since stand in `pg_wal` of the server
//! alone. Where that directory can still be read, they need not be lost: Postgres takes a segment from the `pg_wal` of the
//! restored directory when the archive does not have it.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use lifeboat_engine::model::ids::RunId;
use lifeboat_engine::model::outcome::FailureKind;
use lifeboat_engine::step::{ParamProblem, StepError};
use serde_json::{Map, Value};

use super::super::codes;
use super::super::restore_base::aside;
use super::super::wal::{self, History, LongHeader, Lsn, Segment};
use super::source::Wal;
use crate::process::OsUser;

/// Where such WAL is looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In the directory that this run has moved aside.
    MovedAside,
    Nowhere,
    /// In this one: a data directory, or its `pg_wal`.
    At(PathBuf),
}

impl Place {
    pub(super) const DEFAULT: &str = "moved_aside";

    /// Reads the parameter; a path must be absolute.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        match text {
            Self::DEFAULT => Ok(Self::MovedAside),
            "none" => Ok(Self::Nowhere),
            path if path.starts_with('/') => Ok(Self::At(path.into())),
            other => {
                Err(format!("`surviving_wal: {other}` is neither `moved_aside`, `none` nor an absolute path"))
            }
        }
    }
}

/// Finds what is wrong with a place that is written out.
pub(super) fn check(with: &Map<String, Value>) -> Option<ParamProblem> {
    let message = Place::parse(with.get("surviving_wal")?.as_str()?).err()?;
    let help = Some("give the data directory of the lost server, or its `pg_wal`".to_owned());
    Some(ParamProblem { param: "surviving_wal".into(), message, help })
}

/// How far the log goes, and the segments of it that the archive lacks and a directory of the lost server has.
#[derive(Clone, Debug, Default)]
pub(super) struct Surviving {
    dir: PathBuf,
    /// In the order of the log.
    segments: Vec<Segment>,
    /// The last segment of the archive up to which none is missing everywhere.
    pub(super) archived_end: Option<Segment>,
    /// Why what is there is not used.
    pub(super) warning: Option<String>,
}

impl Surviving {
    /// Looks for segments with which the log goes on where the archive does not. Changes nothing.
    pub(super) fn find(
        place: &Place,
        wal: &Wal,
        (data_dir, run): (&Path, &RunId),
    ) -> Result<Self, StepError> {
        let restored = data_dir.join("pg_wal");
        let without = || walk(wal, (None, &restored));
        let dir = match place {
            Place::Nowhere => return without(),
            Place::MovedAside => match aside(data_dir, run).map(|dir| dir.join("pg_wal")) {
                Some(dir) if dir.is_dir() => dir,
                _ => return without(),
            },
            Place::At(dir) => named(dir)?,
        };
        let found = walk(wal, (Some(&dir), &restored))?;
        let named = matches!(place, Place::At(_));
        let (shown, Some(first)) = (dir.display(), found.segments.first()) else {
            let warning =
                format!("{} has no WAL with which the log goes on where the archive does not", dir.display());
            return Ok(Self { warning: named.then_some(warning), ..found });
        };
        match found.stranger(wal, *first)? {
            None => Ok(found),
            Some(why) if named => Err(unusable(&dir, &why)),
            Some(why) => {
                let warning = format!("WAL in {shown} that the archive lacks is not used: {why}");
                Ok(Self { warning: Some(warning), ..without()? })
            }
        }
    }

    /// Says why the log in the directory is not the one that is followed, although cluster and timeline have the same
    /// numbers: copies of a cluster that were promoted on their own may have both.
    fn stranger(&self, wal: &Wal, first: Segment) -> Result<Option<String>, StepError> {
        if first.timeline > 1 {
            let name = format!("{:08X}.history", first.timeline);
            let archived = match wal.archive.history(&wal.store, wal.system_id, first.timeline) {
                // The timeline of the backup is followed without its history, too.
                Err(error) if error.kind == FailureKind::Permanent => None,
                archived => Some(archived?),
            };
            let text = fs::read_to_string(self.dir.join(&name)).ok();
            let own = text.and_then(|text| History::parse(first.timeline, &text).ok());
            if own.is_none() || own != archived {
                return Ok(Some(format!("its {name} is not there, or is another than that of the archive")));
            }
        }
        let before = Segment { number: first.number.saturating_sub(1), ..first };
        let name = before.name(wal.size);
        let path = self.dir.join(&name);
        if !wal.archive.has(before, wal.size) || !path.exists() {
            return Ok(None);
        }
        let own = fs::read(&path).map_err(|error| unreadable(&path, &error))?;
        let same = wal::is_archived_as(&wal.store, wal.system_id, (&name, &own))?;
        Ok((!same).then(|| format!("its {name} has another content than that of the archive")))
    }

    /// Returns the names of the segments.
    pub(super) fn names(&self, wal: &Wal) -> Vec<String> {
        self.segments.iter().map(|segment| segment.name(wal.size)).collect()
    }

    /// Returns how much room they take.
    pub(super) fn bytes(&self, wal: &Wal) -> u64 {
        self.segments.len() as u64 * wal.size.bytes()
    }

    /// Puts the segments where the server looks for what the archive lacks. An earlier attempt may have left others there,
    /// damaged ones or such as wait under these names to be written.
    pub(super) fn place(
        &self,
        wal: &Wal,
        (data_dir, owner): (&Path, Option<&OsUser>),
    ) -> Result<(), StepError> {
        let to = data_dir.join("pg_wal");
        for name in self.names(wal) {
            let from = self.dir.join(&name);
            let bytes = fs::read(&from).map_err(|error| unreadable(&from, &error))?;
            put(&to, (&name, &bytes), owner).map_err(|error| unwritable(&to.join(&name), &error))?;
        }
        Ok(())
    }

    /// Says which of the segments were replayed, and what that means for the next restore.
    pub(super) fn replayed(&self, wal: &Wal, replayed: Option<Lsn>) -> Option<String> {
        let replayed = replayed?;
        let used: Vec<_> =
            self.segments.iter().filter(|segment| segment.start(wal.size) < replayed).collect();
        let (first, last) = (used.first()?.name(wal.size), used.last()?.name(wal.size));
        let names = if first == last { first } else { format!("{first} to {last}") };
        Some(format!(
            "the archive lacks WAL that was taken from {} ({names}): until a base backup of the restored server has been \
             taken, no other restore gets beyond it; keep that directory until then",
            self.dir.display()
        ))
    }
}

/// Returns the directory of WAL that a person has named.
fn named(dir: &Path) -> Result<PathBuf, StepError> {
    let below = dir.join("pg_wal");
    let dir = if below.is_dir() { &below } else { dir };
    match fs::read_dir(dir) {
        Ok(_) => Ok(dir.to_path_buf()),
        Err(error) => Err(unreadable(dir, &error)),
    }
}

/// Walks along the log from the beginning of the backup to where neither the archive, nor the restored directory, nor that
/// of the lost server has it.
fn walk(wal: &Wal, (dir, restored): (Option<&Path>, &Path)) -> Result<Surviving, StepError> {
    let mut found = Surviving { dir: dir.map(Path::to_path_buf).unwrap_or_default(), ..Surviving::default() };
    for number in Segment::at(0, wal.start(), wal.size).number.. {
        let segment = Segment { timeline: wal.history.timeline_of(number, wal.size), number };
        let name = segment.name(wal.size);
        let is_in = |dir: &Path| is_of_log(wal, &dir.join(&name), &name);
        if wal.archive.has(segment, wal.size) {
            found.archived_end = Some(segment);
        } else if dir.map(is_in).transpose()?.unwrap_or(false) {
            found.segments.push(segment);
        } else if !is_in(restored)? {
            break;
        }
    }
    Ok(found)
}

/// Says whether a file is a segment of this log. Postgres gives old segments the names of coming ones before it writes them:
/// those begin with another position.
fn is_of_log(wal: &Wal, path: &Path, name: &str) -> Result<bool, StepError> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(unreadable(path, &error)),
    };
    let mut begin = [0; LongHeader::LENGTH];
    let read = file.metadata().and_then(|metadata| file.read_exact(&mut begin).map(|()| metadata.len()));
    match read {
        Ok(length) => Ok(LongHeader::check_begin(name, &begin, length)
            .is_ok_and(|header| header.system_id == wal.system_id && length == wal.size.bytes())),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(unreadable(path, &error)),
    }
}

fn put(dir: &Path, (name, bytes): (&str, &[u8]), owner: Option<&OsUser>) -> io::Result<()> {
    use std::os::unix::fs::{OpenOptionsExt, fchown};
    let beside = dir.join(format!("{name}.lifeboat-new"));
    let mut file =
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    if let Some(owner) = owner {
        fchown(&file, Some(owner.uid), Some(owner.gid))?;
    }
    io::Write::write_all(&mut file, bytes)?;
    file.sync_all()?;
    fs::rename(&beside, dir.join(name))?;
    File::open(dir)?.sync_all()
}

const WITHOUT: &str =
    "make it readable, or go without what is only there by `surviving_wal: none`; nothing was started";

fn unreadable(path: &Path, error: &io::Error) -> StepError {
    let message = format!("{} of the lost server cannot be read: {error}", path.display());
    StepError::transient(codes::LB1836, message).help(WITHOUT)
}

fn unwritable(path: &Path, error: &io::Error) -> StepError {
    let message = format!("{} cannot be written: {error}", path.display());
    StepError::transient(codes::LB1836, message)
        .help("make room (`df -h`) on the disk of the data directory, then try again; nothing was started")
}

fn unusable(dir: &Path, why: &str) -> StepError {
    StepError::permanent(
        codes::LB1836,
        format!("WAL in {} is not that of the log that is followed: {why}", dir.display()),
    )
    .help("name the directory of the server that has archived here last, or leave `surviving_wal` out")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_word_or_an_absolute_path() {
        assert_eq!(Place::parse("moved_aside"), Ok(Place::MovedAside));
        assert_eq!(Place::parse("none"), Ok(Place::Nowhere));
        assert_eq!(Place::parse("/var/lib/old"), Ok(Place::At("/var/lib/old".into())));
        let refused = Place::parse("old/pg_wal").unwrap_err();
        assert!(refused.contains("`surviving_wal: old/pg_wal`"), "{refused}");
    }
}
