//! Base backups that other tools have made: a directory of archives without a marker, and a flat directory of WAL.
//!
//! ```text
//! <prefix>/<name>/    base.tar.gz, pg_wal.tar.gz, <oid>.tar.gz, backup_manifest: as pg_basebackup -F tar writes them
//! wal/                000000010000000000000003, 000000010000000000000003.00000028.backup, 00000002.history
//! ```
//!
//! What a marker would say is gathered from what is there: the label and the list of tablespaces at the beginning of the
//! base archive, the manifest, the header of the first WAL segment, the history file that the server archived when the
//! backup ended. What is in none of them is not guessed; a warning names what cannot be proven.

use std::io::Read;

use jiff::Timestamp;
use jiff::civil::DateTime;
use lifeboat_engine::model::ids::{RunId, StepId};
use lifeboat_engine::step::StepError;

use super::base::{BackupDetails, Tablespace};
use crate::postgres::backup_manifest::{MANIFEST, Manifest, WalRange};
use crate::postgres::codes;
use crate::postgres::details::BaseDetails;
use crate::postgres::stream::{EntryType, Form, Tar, stream};
use crate::postgres::wal::{LongHeader, Lsn, Segment, SegmentSize, WAL_PREFIX};
use crate::store::{BackupKind, Key, Listed, Marker, ObjectEntry, Store, of_store};

/// A backup without a marker.
#[derive(Clone, Debug)]
pub(crate) struct Unmarked {
    /// What a marker would say.
    pub(crate) marker: Marker,
    /// What cannot be proven of it.
    pub(crate) warnings: Vec<String>,
}

/// How `backup_label` says, since version 17, that most files are only what has changed since another backup.
const INCREMENTAL: &str = "INCREMENTAL FROM LSN: ";

/// Labels and lists of tablespaces are small.
const SMALL: usize = 1 << 20;

/// Says whether a label names a backup without a marker: by its whole path in the store.
pub(crate) fn is_unmarked(label: &str) -> bool {
    label.contains('/')
}

/// Returns the labels of what could be such backups below a prefix.
pub(super) fn labels(store: &Store, prefix: &str) -> Result<Vec<String>, StepError> {
    let prefix = Key::new(prefix.trim_matches('/'))?;
    Ok(store.list_groups(&prefix)?.iter().map(|name| format!("{prefix}/{name}")).collect())
}

/// Gathers what is known of a backup.
pub(crate) fn inspect(store: &Store, label: &str) -> Result<Unmarked, StepError> {
    let objects = store.list(&Key::new(label)?)?;
    let base =
        find(&objects, "base").ok_or_else(|| unusable(label, "there is no base.tar, .gz or .zst in it"))?;
    let head = Head::read(store, base).map_err(|problem| problem.of(label, base.key.name()))?;
    if head.label.lines().any(|line| line.starts_with(INCREMENTAL)) {
        return Err(unusable(
            label,
            "it is incremental: only together with the backups before it does `pg_combinebackup` make a whole one of it",
        ));
    }
    let notes =
        Label::parse(&head.label).ok_or_else(|| unusable(label, "its backup_label cannot be understood"))?;
    let manifest = manifest(store, (label, &objects))?;
    let first = first_header(store, (label, &objects), &notes)?;
    let size =
        SegmentSize::try_from(u64::from(first.segment_size)).map_err(|problem| unusable(label, &problem))?;
    let major = major_of(first.magic).ok_or_else(|| {
        unusable(
            label,
            &format!("its WAL (magic number {:04X}) is of an unknown version of Postgres", first.magic),
        )
    })?;
    let history = history(store, (&notes, size))?;
    let found = Found { store, label, objects: &objects, head: &head, notes: &notes, manifest, history };
    found.describe(&first, (major, size))
}

/// Everything that was found of one backup.
struct Found<'a> {
    store: &'a Store,
    label: &'a str,
    objects: &'a [Listed],
    head: &'a Head,
    notes: &'a Label,
    manifest: Option<Manifest>,
    history: Option<Label>,
}

impl Found<'_> {
    fn describe(&self, first: &LongHeader, (major, size): (u32, SegmentSize)) -> Result<Unmarked, StepError> {
        let mut warnings = vec![self.unproven()];
        let timeline = self.notes.timeline.unwrap_or(first.timeline);
        let range = self.manifest.as_ref().and_then(|manifest| manifest.only_range().ok());
        let (start, stop) = self.stretch(range, &mut warnings);
        let stop_time = self.stop_time(&mut warnings)?;
        // A start that is not known proves nothing about later backups.
        let start_time = self.notes.start_time.unwrap_or(Timestamp::UNIX_EPOCH).min(stop_time);
        let details = BackupDetails {
            base: BaseDetails {
                system_id: first.system_id.to_string(),
                major,
                version: major.to_string(),
                timeline,
                start_lsn: start.to_string(),
                stop_lsn: stop.to_string(),
                start_time,
                stop_time,
                wal_segment_size: size.bytes(),
            },
            files: self.manifest.as_ref().map_or(0, |manifest| manifest.files.len() as u64),
            data_bytes: self.manifest.as_ref().map_or_else(|| self.bytes(), Manifest::bytes),
            wal_start_segment: Segment::at(timeline, start, size).name(size),
            wal_stop_segment: Segment::before(timeline, stop, size).name(size),
            archived: true,
            tablespaces: self.head.tablespaces.clone(),
            seconds: 0,
        };
        let entry = |listed: &Listed| ObjectEntry {
            name: listed.key.name().to_owned(),
            size: listed.size,
            sha256: String::new(),
        };
        let marker = Marker {
            format: 1,
            kind: BackupKind::PostgresBase,
            label: self.label.to_owned(),
            run: NOBODY.parse::<RunId>().expect("a UUID"),
            step: StepId::new("unmarked").expect("an id"),
            started_at: start_time,
            finished_at: stop_time,
            objects: self.objects.iter().filter(|listed| is_part(listed)).map(entry).collect(),
            details: serde_json::to_value(&details).expect("details are plain data"),
        };
        Ok(Unmarked { marker, warnings })
    }

    fn bytes(&self) -> u64 {
        self.objects.iter().map(|listed| listed.size).sum()
    }

    fn unproven(&self) -> String {
        let how = match &self.manifest {
            Some(manifest) if manifest.has_checksums() => {
                "its files are compared with the SHA-256 of its manifest when it is restored"
            }
            Some(_) => "its files are compared with its manifest by size only when it is restored",
            None => "it has no backup_manifest, so that a file that is missing or changed is not noticed",
        };
        format!(
            "`{}` was made by another tool and has no marker: nothing proves that it is whole and unchanged; {how}",
            self.label
        )
    }

    /// Returns where its WAL begins and where the data is consistent.
    fn stretch(&self, range: Option<WalRange>, warnings: &mut Vec<String>) -> (Lsn, Lsn) {
        let start = self.notes.start;
        let stop = range.map(|range| range.end).or(self.history.as_ref().and_then(|history| history.stop));
        if let Some(stop) = stop.filter(|stop| *stop > start) {
            return (start, stop);
        }
        warnings.push(format!(
            "where `{}` is consistent is not known: Postgres itself refuses to stop before",
            self.label
        ));
        (start, Lsn(start.0 + 1))
    }

    /// Returns a moment at which the backup had certainly ended.
    fn stop_time(&self, warnings: &mut Vec<String>) -> Result<Timestamp, StepError> {
        if let Some(time) = self.history.as_ref().and_then(|history| history.stop_time) {
            return Ok(time);
        }
        let mut newest = None;
        for object in self.objects.iter().filter(|listed| is_part(listed)) {
            let modified = self.store.metadata(&object.key)?.and_then(|found| found.modified);
            newest = newest.max(modified);
        }
        let newest = newest.ok_or_else(|| unusable(self.label, "when it ended is not known"))?;
        warnings.push(format!(
            "when `{}` ended is not in the archive: taken to be {newest}, when its objects were written",
            self.label
        ));
        Ok(newest)
    }
}

/// No run of Lifeboat has made it.
const NOBODY: &str = "00000000-0000-0000-0000-000000000000";

fn find<'a>(objects: &'a [Listed], stem: &str) -> Option<&'a Listed> {
    objects.iter().find(|listed| Form::of(listed.key.name()).is_some_and(|(name, _)| name == stem))
}

/// Says whether an object belongs to a base backup; scripts leave other things beside it.
fn is_part(listed: &Listed) -> bool {
    let name = listed.key.name();
    let archive =
        |stem: &str| stem == "base" || stem == "pg_wal" || stem.bytes().all(|byte| byte.is_ascii_digit());
    name == MANIFEST || Form::of(name).is_some_and(|(stem, _)| archive(stem))
}

fn manifest(store: &Store, (label, objects): (&str, &[Listed])) -> Result<Option<Manifest>, StepError> {
    let Some(listed) = objects.iter().find(|listed| listed.key.name() == MANIFEST) else { return Ok(None) };
    let mut text = Vec::new();
    let read = store.read(&listed.key)?.read_to_end(&mut text).map_err(|error| error.to_string());
    let parsed = read.and_then(|_| Manifest::parse(&text));
    parsed.map(Some).map_err(|problem| unusable(label, &format!("its {MANIFEST} is damaged: {problem}")))
}

/// What stands at the beginning of the base archive.
struct Head {
    label: String,
    tablespaces: Vec<Tablespace>,
}

/// Why the beginning of an archive was not read.
enum Unread {
    Store(StepError),
    Odd(String),
}

impl Unread {
    fn of(self, label: &str, object: &str) -> StepError {
        match self {
            Self::Store(error) => error,
            Self::Odd(problem) => unusable(label, &format!("{object}: {problem}")),
        }
    }
}

impl From<std::io::Error> for Unread {
    fn from(error: std::io::Error) -> Self {
        of_store(&error).map_or_else(|| Self::Odd(error.to_string()), |error| Self::Store(error.clone()))
    }
}

impl Head {
    fn read(store: &Store, base: &Listed) -> Result<Self, Unread> {
        let mut head = Self { label: String::new(), tablespaces: Vec::new() };
        begin(store, base, |name, tar| match name {
            "backup_label" => {
                head.label = small(tar)?;
                Ok(More::Yes)
            }
            "tablespace_map" => {
                head.tablespaces = tablespaces(&small(tar)?);
                Ok(More::Yes)
            }
            _ => Ok(More::No),
        })?;
        match head.label.is_empty() {
            false => Ok(head),
            true => Err(Unread::Odd("it does not begin with backup_label, as a base backup does".to_owned())),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum More {
    Yes,
    No,
}

/// Reads the first entries of an archive, as long as they are wanted.
fn begin(
    store: &Store,
    object: &Listed,
    mut each: impl FnMut(&str, &mut Tar) -> Result<More, Unread>,
) -> Result<(), Unread> {
    let (_, form) =
        Form::of(object.key.name()).ok_or_else(|| Unread::Odd("its form is not known".to_owned()))?;
    let reader = store.read(&object.key).map_err(Unread::Store)?;
    let (read, used) = stream(reader, (form, false), |chunks| {
        let mut tar = Tar::new(chunks);
        while let Some(entry) = tar.next()? {
            let name = String::from_utf8_lossy(&entry.name).into_owned();
            let name = name.trim_start_matches("./");
            if entry.kind == EntryType::Regular && each(name, &mut tar)? == More::No {
                break;
            }
        }
        Ok::<_, Unread>(())
    });
    // What the store says is the cause, what the archive looks like its consequence.
    read.map_err(Unread::from)?;
    used
}

/// Reads a small text.
fn small(tar: &mut Tar) -> Result<String, Unread> {
    let mut text = Vec::new();
    tar.each_chunk::<Unread>(|bytes| match text.len() + bytes.len() <= SMALL {
        true => {
            text.extend_from_slice(bytes);
            Ok(())
        }
        false => Err(Unread::Odd("a text in it is far too long".to_owned())),
    })?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// Reads lines `16385 /srv/fast`; those within the data directory need no place of their own.
fn tablespaces(map: &str) -> Vec<Tablespace> {
    let lines = map.lines().filter_map(|line| line.split_once(' '));
    let outside = lines.filter(|(_, location)| location.starts_with('/'));
    outside.map(|(oid, location)| Tablespace { oid: oid.to_owned(), location: location.to_owned() }).collect()
}

/// What `backup_label` says, and the history file that the server archives when the backup has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Label {
    start: Lsn,
    /// The segment in which it starts.
    segment: String,
    stop: Option<Lsn>,
    timeline: Option<u32>,
    start_time: Option<Timestamp>,
    stop_time: Option<Timestamp>,
}

impl Label {
    fn parse(text: &str) -> Option<Self> {
        let field = |name: &str| {
            text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).map(str::trim)
        };
        let lsn = |text: &str| text.split(' ').next()?.parse().ok();
        let start = field("START WAL LOCATION")?;
        let segment = start.split_once("(file ")?.1.trim_end_matches(')').to_owned();
        Some(Self {
            start: lsn(start)?,
            segment,
            stop: field("STOP WAL LOCATION").and_then(lsn),
            timeline: field("START TIMELINE").and_then(|text| text.parse().ok()),
            start_time: field("START TIME").and_then(|text| moment(text, 0)),
            // Written without fractions of a second, so that it may have ended up to a second later.
            stop_time: field("STOP TIME").and_then(|text| moment(text, 1)),
        })
    }
}

/// Reads `2026-11-21 06:11:51 UTC`. Other abbreviations of zones may mean several, and are not read.
fn moment(text: &str, plus_seconds: i64) -> Option<Timestamp> {
    let local = text.strip_suffix(" UTC").or_else(|| text.strip_suffix(" GMT"))?;
    let time: DateTime = local.replacen(' ', "T", 1).parse().ok()?;
    let time = time.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp();
    time.checked_add(jiff::SignedDuration::from_secs(plus_seconds)).ok()
}

/// Finds the history file of a backup in the flat archive, by where the backup began.
fn history(store: &Store, (notes, size): (&Label, SegmentSize)) -> Result<Option<Label>, StepError> {
    let offset = notes.start.0 % size.bytes();
    let key = Key::new(format!("{WAL_PREFIX}/{}.{offset:08X}.backup", notes.segment))?;
    let Some(reader) = store.find(&key)? else { return Ok(None) };
    let mut text = String::new();
    let read = reader.take(SMALL as u64).read_to_string(&mut text);
    Ok(read.ok().and_then(|_| Label::parse(&text)))
}

/// Reads how the first WAL segment of a backup begins: from the flat archive, else from the backup itself.
fn first_header(
    store: &Store,
    (label, objects): (&str, &[Listed]),
    notes: &Label,
) -> Result<LongHeader, StepError> {
    let name = &notes.segment;
    let mut begin_of = Vec::new();
    let plain = Key::new(format!("{WAL_PREFIX}/{name}"))?;
    if let Some(reader) = store.find(&plain)? {
        let read = reader.take(LongHeader::LENGTH as u64).read_to_end(&mut begin_of);
        read.map_err(|error| {
            of_store(&error).cloned().unwrap_or_else(|| unusable(label, &error.to_string()))
        })?;
    } else if let Some(archive) = find(objects, "pg_wal") {
        let taken = begin(store, archive, |entry, tar| {
            if entry != name {
                return Ok(More::Yes);
            }
            tar.each_chunk::<Unread>(|bytes| {
                let room = LongHeader::LENGTH - begin_of.len();
                begin_of.extend_from_slice(&bytes[..room.min(bytes.len())]);
                Ok(())
            })?;
            Ok(More::No)
        });
        taken.map_err(|problem| problem.of(label, archive.key.name()))?;
    }
    LongHeader::read(&begin_of).map_err(|problem| {
        let where_from = format!("`{WAL_PREFIX}/{name}` of the store, or pg_wal.tar of the backup");
        unusable(
            label,
            &format!("its first WAL segment {name} is not usable ({problem}); looked for in {where_from}"),
        )
    })
}

/// The version of Postgres by the magic number of its WAL pages.
fn major_of(magic: u16) -> Option<u32> {
    Some(match magic {
        0xD106 => 13,
        0xD10D => 14,
        0xD110 => 15,
        0xD113 => 16,
        0xD116 => 17,
        0xD118 => 18,
        _ => return None,
    })
}

fn unusable(label: &str, problem: &str) -> StepError {
    StepError::permanent(codes::LB1225, format!("`{label}` cannot be used as a base backup: {problem}")).help(
        "a directory as `pg_basebackup -F tar` writes it is needed, and its WAL under the archived names in `wal/`",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const HISTORY: &str = "\
START WAL LOCATION: 0/2000028 (file 000000010000000000000002)
STOP WAL LOCATION: 0/2000138 (file 000000010000000000000002)
CHECKPOINT LOCATION: 0/2000060
BACKUP METHOD: streamed
BACKUP FROM: primary
START TIME: 2026-11-21 06:11:51 UTC
LABEL: pg_basebackup base backup
START TIMELINE: 1
STOP TIME: 2026-11-21 06:11:53 UTC
STOP TIMELINE: 1
";

    #[test]
    fn a_history_file_is_read() {
        let label = Label::parse(HISTORY).expect("whole");
        assert_eq!((label.start, label.stop), (Lsn(0x0200_0028), Some(Lsn(0x0200_0138))));
        assert_eq!((label.segment.as_str(), label.timeline), ("000000010000000000000002", Some(1)));
        let time = |text: &str| text.parse::<Timestamp>().expect("a time");
        assert_eq!(label.start_time, Some(time("2026-11-21T06:11:51Z")));
        assert_eq!(
            label.stop_time,
            Some(time("2026-11-21T06:11:54Z")),
            "it may have ended within the second"
        );
        assert_eq!(Label::parse("LABEL: x\n"), None);
    }

    #[test]
    fn a_zone_that_could_be_several_is_not_read() {
        let label = Label::parse(&HISTORY.replace("UTC", "CST")).expect("whole");
        assert_eq!((label.start_time, label.stop_time), (None, None));
    }

    #[test]
    fn only_tablespaces_outside_the_data_directory_need_a_place() {
        let found = tablespaces("16385 /srv/a b\n16386 pg_tblspc/16386\n");
        assert_eq!(found, [Tablespace { oid: "16385".into(), location: "/srv/a b".into() }]);
    }
}
