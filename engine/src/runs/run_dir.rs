use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::durable;
use super::error::{Candidate, Error};
use super::inbox::Inbox;
use super::output::OutputFiles;
use super::owner::{Holder, Ousted, RunLock};
use crate::clock::Clock;
use crate::crash::{self, Point};
use crate::journal;
use crate::model::RunId;
use crate::model::event::GivenFile;
use crate::plan::hex;
use crate::redact::Redactor;

/// More than a picture of a screen or a page of a log is no evidence that anybody reads.
const GIVEN_LIMIT: u64 = 16 << 20;

/// The directory of one run.
#[derive(Clone, Debug)]
pub struct RunDir {
    id: RunId,
    path: PathBuf,
}

impl RunDir {
    pub(super) fn at(runs: &Path, id: RunId) -> Self {
        Self { id, path: runs.join(id.to_string()) }
    }

    pub(super) fn create(runs: &Path, id: RunId) -> Result<Self, Error> {
        let dir = Self::at(runs, id);
        dir.fill().inspect_err(|_| dir.discard())?;
        Ok(dir)
    }

    /// Removes the directory of a run that was never declared, as far as that is possible.
    pub fn discard(&self) {
        if let Err(error) = std::fs::remove_dir_all(&self.path) {
            tracing::debug!(dir = %self.path.display(), %error, "what is left of a run that never was stays");
        }
    }

    fn fill(&self) -> Result<(), Error> {
        let dir = self;
        durable::private_dir(&dir.path)?;
        crash::point(Point::RunDirMade);
        for name in ["inbox", "output", "work"] {
            durable::private_dir(&dir.path.join(name))?;
        }
        for name in ["lock", "children.lock"] {
            durable::lock_file(&dir.path.join(name))?;
        }
        durable::sync_dir(&dir.path)?;
        crash::point(Point::RunDirComplete);
        Ok(())
    }

    /// Returns the run's id.
    pub fn id(&self) -> RunId {
        self.id
    }

    /// Returns the directory, in which the journal lies too.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the file on which every child of the run holds a shared lock.
    pub fn children_lock(&self) -> PathBuf {
        self.path.join("children.lock")
    }

    /// Takes the run for this process.
    pub fn lock(&self, clock: &dyn Clock) -> Result<RunLock, Error> {
        RunLock::acquire(self, clock)
    }

    /// Ends the process that owns the run, if one does, so that this one can take it: SIGTERM, and SIGKILL after
    /// `patience`. Never breaks the lock of a process that goes on. Blocks.
    pub fn take_over(&self, patience: std::time::Duration) -> Result<Option<Ousted>, Error> {
        RunLock::take_from(self, patience)
    }

    /// Returns the process that owns the run now, if any does.
    pub fn owner(&self) -> Result<Option<Holder>, Error> {
        RunLock::holder(self)
    }

    /// Returns the place where other processes leave requests.
    pub fn inbox(&self) -> Inbox {
        Inbox::at(self.path.join("inbox"))
    }

    /// Returns the place where output of steps is kept.
    pub fn output(&self) -> OutputFiles {
        OutputFiles::at(self.path.join("output"))
    }

    /// Returns where a file is kept that the plan was made from.
    pub fn source(&self, name: &str) -> PathBuf {
        self.path.join("sources").join(name)
    }

    /// Keeps a file that the plan was made from, as it was then. The plan has its hash.
    pub fn keep_source(&self, name: &str, text: &str) -> Result<(), Error> {
        let path = self.source(name);
        let keep = || -> std::io::Result<()> {
            let dir = path.parent().unwrap_or(&self.path);
            std::fs::create_dir_all(dir)?;
            let mut options = std::fs::OpenOptions::new();
            let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&path)?;
            durable::share(&path)?;
            file.write_all(text.as_bytes())
        };
        keep().map_err(Error::io("write", &path))
    }

    /// Returns where a file is kept that a person gave, by [`GivenFile::place`].
    pub fn given(&self, place: &str) -> PathBuf {
        self.path.join("given").join(place)
    }

    /// Keeps a file that a person gives as evidence; it survives a power cut when this returns. The same one may be given again.
    /// A file with a secret is refused: its hash is in the journal, so that nothing could be removed from it.
    pub fn give(&self, file: &Path, redactor: &Redactor) -> Result<GivenFile, Error> {
        let refused = |reason: &str| Error::BadGiven { path: file.to_owned(), reason: reason.to_owned() };
        let content = read_given(file).map_err(|reason| refused(&reason))?;
        if *redactor.bytes(&content) != *content {
            return Err(refused("it holds a secret of the environment"));
        }
        let name = file.file_name().and_then(|name| name.to_str()).filter(|name| is_plain_name(name));
        let name = name.filter(|name| redactor.text(name) == **name);
        let name = name.ok_or_else(|| refused("its name cannot be kept"))?;
        let (name, bytes) = (name.to_owned(), content.len() as u64);
        let given = GivenFile { name, bytes, sha256: hex(&Sha256::digest(&content)) };
        let path = self.given(&given.place());
        if let Some(dir) = path.parent() {
            durable::dirs_within(&self.path, dir).map_err(Error::io("create", dir))?;
            durable::replace(&path, &content)?;
            dir.parent().map_or(Ok(()), durable::sync_dir)?;
            durable::sync_dir(&self.path)?;
        }
        Ok(given)
    }

    /// Returns whether the run has not ended. A run that was never declared, or whose journal does not exist, is not
    /// open: nothing was started in it.
    pub fn is_open(&self) -> Result<bool, Error> {
        let open = |reader: journal::Reader| Ok(reader.is_declared()? && !reader.is_finished()?);
        match journal::Reader::open(&self.path).and_then(open) {
            Ok(open) => Ok(open),
            Err(journal::Error::Missing { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Describes the run for people who must choose; a journal that cannot be read makes it open.
    pub(super) fn candidate(&self) -> Candidate {
        let what = journal::Reader::open(&self.path)
            .map(|reader| {
                let plan = &reader.header().plan;
                format!("{}@{}", plan.runbook, plan.environment)
            })
            .unwrap_or_default();
        Candidate { run: self.id, what, open: self.is_open().unwrap_or(true) }
    }
}

/// Reads a file no further than one byte beyond what is kept.
fn read_given(path: &Path) -> Result<Vec<u8>, String> {
    let mut content = Vec::new();
    let file = File::open(path).map_err(|error| error.to_string())?;
    if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
        return Err("it is no file".to_owned());
    }
    file.take(GIVEN_LIMIT + 1).read_to_end(&mut content).map_err(|error| error.to_string())?;
    match content.len() as u64 {
        0 => Err("it is empty".to_owned()),
        size if size > GIVEN_LIMIT => Err(format!("it has more than {} MiB", GIVEN_LIMIT >> 20)),
        _ => Ok(content),
    }
}

/// Says whether a name can stand in an archive, in a list of hashes and on a terminal.
fn is_plain_name(name: &str) -> bool {
    name.len() <= 80 && !name.starts_with('.') && !name.chars().any(|char| char.is_control() || char == '\\')
}
