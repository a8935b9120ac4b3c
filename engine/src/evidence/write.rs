//! Makes the archive from a run's directory.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::derived::{HeaderFile, Told, pretty};
use super::error::Error;
use super::line;
use super::member::{DERIVED, Member, is_plain};
use super::root;
use super::tape::Tape;
use crate::journal::{Head, Reader};
use crate::model::{Event, EventKind, OutputFile};
use crate::plan::{Plan, hex};
use crate::report::Owner;
use crate::report::human::Moment;
use crate::runs::{OUTPUT_NAMES, RunDir};

/// What was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The hash that the evidence is checked against.
    pub head: String,
    pub events: u64,
    /// False for a run that is still open: what comes later is not in the archive.
    pub ended: bool,
    pub bytes: u64,
    /// Of the archive as a file.
    pub sha256: String,
    /// Files that nothing in the chain speaks of, and files that are not there any more.
    pub not_in_chain: BTreeSet<String>,
    pub missing: BTreeSet<String>,
}

/// Writes the evidence of a run into a file, whole or not at all; also while a process drives the run, as of one moment.
///
/// The same ended run gives the same bytes. Memory is that of the report, whatever the steps have printed. Refuses a journal
/// or files that do not fit the chain. Blocks on the disk.
pub fn write(run: &RunDir, owner: Owner, now: Moment, path: &Path) -> Result<Written, Error> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let failed = || Error::io(path, "written");
    let reader = Reader::open_snapshot(run.path())?;
    let spool = Spool::fill(&reader, dir)?;
    let file = tempfile::Builder::new().prefix(".evidence-").tempfile_in(dir).map_err(failed())?;
    let tape = Tape::begin(BufWriter::new(file), root(run.id()), reader.header().created_ms);
    let written = Archive { run, reader: &reader, spool, tape, path }.fill(owner, now)?;
    let (file, written) = written;
    let file = file.into_inner().map_err(|error| failed()(error.into_error()))?;
    file.as_file().sync_all().map_err(failed())?;
    file.persist(path).map_err(|error| failed()(error.error))?;
    Ok(written)
}

/// The events, as lines in a file without a name and as values.
struct Spool {
    file: File,
    length: u64,
    events: Vec<Event>,
    head: Head,
}

impl Spool {
    fn fill(reader: &Reader, dir: &Path) -> Result<Self, Error> {
        let failed = || Error::io(dir, "written");
        let mut file = BufWriter::new(tempfile::tempfile_in(dir).map_err(failed())?);
        let (mut events, mut length) = (Vec::new(), 0);
        let head = reader.records(|record, kind| {
            let line = line::of(record) + "\n";
            length += line.len() as u64;
            events.extend(kind.map(|kind| Event { seq: record.seq, at_ms: record.at_ms, kind }));
            file.write_all(line.as_bytes()).map_err(failed())
        })?;
        let mut file = file.into_inner().map_err(|error| failed()(error.into_error()))?;
        file.seek(SeekFrom::Start(0)).map_err(failed())?;
        Ok(Self { file, length, events, head })
    }
}

/// What the chain says that attempts have printed, by the path below `output/`.
pub(super) fn printed(events: &[Event]) -> BTreeMap<String, OutputFile> {
    let mut printed = BTreeMap::new();
    for event in events {
        let EventKind::OutputKept { step, attempt, files } = &event.kind else { continue };
        let named =
            files.iter().map(|file| (format!("{}/{attempt}/{}", step.path(), file.name), file.clone()));
        printed.extend(named);
    }
    printed
}

/// The files that people gave with answers that count, by the path below `given/`, with their hashes.
pub(super) fn given(events: &[Event]) -> BTreeMap<String, String> {
    let file = |event: &Event| match &event.kind {
        EventKind::QuestionAnswered { answer, .. } => answer.file.clone(),
        _ => None,
    };
    let files = events.iter().filter_map(file).map(|file| (file.place(), file.sha256));
    // A request that somebody has made by hand may name any place.
    files.filter(|(place, _)| is_plain(place)).collect()
}

struct Archive<'a, W: Write> {
    run: &'a RunDir,
    reader: &'a Reader,
    spool: Spool,
    tape: Tape<W>,
    path: &'a Path,
}

impl<W: Write> Archive<'_, W> {
    fn fill(mut self, owner: Owner, now: Moment) -> Result<(W, Written), Error> {
        let output = self.output();
        let sources = self.sources(&self.reader.header().plan)?;
        let expected = printed(&self.spool.events);
        let mut not_in_chain = BTreeSet::new();
        let mut missing: BTreeSet<String> = sources.missing;
        for name in expected.keys().filter(|name| !output.contains_key(*name)) {
            missing.insert(Member::Output(name.clone()).name());
        }
        let given = given(&self.spool.events);
        for name in given.keys().filter(|name| !self.run.given(name).is_file()) {
            missing.insert(Member::Given(name.clone()).name());
        }
        for name in output.keys().filter(|name| !expected.contains_key(*name)) {
            not_in_chain.insert(Member::Output(name.clone()).name());
        }
        let told = Told {
            header: self.reader.header(),
            events: &self.spool.events,
            head: &self.spool.head,
            now,
            owner,
            not_in_chain: &not_in_chain,
            missing: &missing,
        };
        let (summary, mut derived) = (told.summary(), told.members());
        self.journal()?;
        for name in DERIVED {
            let content = derived.remove(name).unwrap_or_default();
            self.add(&Member::Derived(name.to_owned()), &content)?;
        }
        for (name, content) in sources.found {
            self.add(&Member::Source(name), &content)?;
        }
        for (name, path) in output {
            self.add_output(name, &path, &expected)?;
        }
        for (name, sha256) in given {
            self.add_given(name, &sha256)?;
        }
        let finished = self.tape.finish().map_err(Error::io(self.path, "written"))?;
        let written = Written {
            head: summary.head,
            events: summary.events,
            ended: summary.outcome.is_some(),
            bytes: finished.bytes,
            sha256: finished.sha256,
            not_in_chain,
            missing,
        };
        Ok((finished.file, written))
    }

    fn add(&mut self, member: &Member, content: &[u8]) -> Result<String, Error> {
        self.tape.add(member, content).map_err(Error::io(self.path, "written"))
    }

    /// Adds what the chain covers, in the order in which it is read.
    fn journal(&mut self) -> Result<(), Error> {
        let header = pretty(&HeaderFile::of(self.reader.header(), self.reader.declared_format()));
        self.add(&Member::Header, &header)?;
        self.add(&Member::Plan, self.reader.plan_text().as_bytes())?;
        let Spool { file, length, .. } = &self.spool;
        let added = self.tape.add_from(&Member::Events, *length, file);
        added.map(drop).map_err(Error::io(self.path, "written"))
    }

    /// Finds the files of all attempts, by the path below `output/`.
    fn output(&self) -> BTreeMap<String, PathBuf> {
        let files = self.run.output();
        let mut found = BTreeMap::new();
        for event in &self.spool.events {
            let EventKind::AttemptStarted { step, attempt, .. } = &event.kind else { continue };
            let dir = files.attempt_dir(step, *attempt);
            if !dir.is_dir() {
                continue;
            }
            for name in OUTPUT_NAMES {
                let path = dir.join(name);
                if fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_file()) {
                    found.insert(format!("{}/{attempt}/{name}", step.path()), path);
                }
            }
        }
        found
    }

    /// Adds a file of output; one that is not what the chain says is no evidence.
    fn add_output(
        &mut self,
        name: String,
        path: &Path,
        expected: &BTreeMap<String, OutputFile>,
    ) -> Result<(), Error> {
        // Bounded: the parts of one stream are a few MiB.
        let content = fs::read(path).map_err(Error::io(path, "read"))?;
        let sha256 = self.add(&Member::Output(name.clone()), &content)?;
        match expected.get(&name) {
            Some(file) if file.sha256 != sha256 => Err(Error::NotKept {
                place: format!("`{}`", path.display()),
                what: "is not what the step printed: it was changed afterwards".to_owned(),
            }),
            _ => Ok(()),
        }
    }

    /// Adds a file that a person gave, if it is there; one that is not what the chain says is no evidence.
    fn add_given(&mut self, name: String, expected: &str) -> Result<(), Error> {
        let path = self.run.given(&name);
        if !path.is_file() {
            return Ok(());
        }
        // Bounded: no larger file is taken.
        let content = fs::read(&path).map_err(Error::io(&path, "read"))?;
        if self.add(&Member::Given(name), &content)? == expected {
            return Ok(());
        }
        Err(Error::NotKept {
            place: format!("`{}`", path.display()),
            what: "is not what was given: it was changed afterwards".to_owned(),
        })
    }

    /// Finds the files that the plan was made from: as they were kept with the run, or in the project if they are still the
    /// same.
    fn sources(&self, plan: &Plan) -> Result<Sources, Error> {
        let mut sources = Sources::default();
        for (name, sha256) in plan.sources.iter().filter(|(name, _)| is_plain(name)) {
            let places = [self.run.source(name), plan.project_dir.join(name)];
            let found = places.iter().filter_map(|path| fs::read(path).ok());
            match found.into_iter().find(|content| hex(&Sha256::digest(content)) == *sha256) {
                Some(content) => drop(sources.found.insert(name.clone(), content)),
                None => drop(sources.missing.insert(Member::Source(name.clone()).name())),
            }
        }
        Ok(sources)
    }
}

/// What was found of the files that a plan was made from.
#[derive(Default)]
struct Sources {
    found: BTreeMap<String, Vec<u8>>,
    missing: BTreeSet<String>,
}
