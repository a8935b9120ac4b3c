//! Checks an archive against nothing but itself and, if it is given, the head that was kept elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::bufread::GzDecoder;

use super::derived::{HeaderFile, Summary, Told};
use super::error::Error;
use super::member::Member;
use super::tape::{BEGIN, Digesting};
use super::write::{given, printed};
use super::{FORMAT, line, root};
use crate::journal::{self, Head, Header};
use crate::model::outcome::RunOutcome;
use crate::model::{Event, EventKind, RunId};
use crate::plan::{Plan, hex};
use crate::report::human::Moment;

/// More than this comes out of no archive that was made by [`write`](super::write()): a small file can claim to be a huge one.
const UNPACKED_LIMIT: u64 = 16 << 30;

/// How long a member may be that is held in memory.
const MEMBER_LIMIT: u64 = 256 << 20;

const MEMBERS_LIMIT: usize = 2_000_000;

/// What was found to be true of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    pub run: RunId,
    pub runbook: String,
    pub environment: String,
    /// Absent for a run that had not ended.
    pub outcome: Option<RunOutcome>,
    pub head: String,
    /// Whether the head is the one that was given. If none was, the archive is only consistent in itself.
    pub compared: bool,
    pub essential_events: u64,
    pub advisory_events: u64,
    /// Files that the chain speaks of, directly or through the plan.
    pub files: usize,
    /// Files that nothing in the chain speaks of, and files that it speaks of and that are not there.
    pub not_in_chain: BTreeSet<String>,
    pub missing: BTreeSet<String>,
}

/// Checks an archive: every hash of the chain, every file, and that the reports are what the events say.
///
/// `head` is the hash that was printed or posted when the run ended. Without it nobody can tell whether the end of the
/// journal was cut off, or everything was made up. Never writes anything; memory is that of the report.
pub fn verify(path: &Path, head: Option<&str>) -> Result<Verified, Error> {
    verify_within(path, head, UNPACKED_LIMIT)
}

/// Checks an archive that unpacks to no more than so many bytes.
pub(super) fn verify_within(path: &Path, head: Option<&str>, limit: u64) -> Result<Verified, Error> {
    let mut archive = Archive { path: path.to_owned(), ..Archive::default() };
    archive.read(limit)?;
    archive.judge(head)
}

/// Says whether a member is a file that the chain speaks of by its hash.
fn is_file(member: &Member) -> bool {
    matches!(member, Member::Source(_) | Member::Output(_) | Member::Given(_))
}

/// What was read of an archive so far.
#[derive(Default)]
struct Archive {
    path: PathBuf,
    root: Option<String>,
    header: Option<Header>,
    plan: Option<(Plan, String)>,
    header_file: Option<HeaderFile>,
    head: Option<Head>,
    events: Vec<Event>,
    summary: Option<Summary>,
    sums: Option<String>,
    /// In the order of the archive.
    members: Vec<(Member, String)>,
}

impl Archive {
    fn no_archive(&self, place: impl Into<Option<String>>, what: impl Into<String>) -> Error {
        Error::NoArchive { path: self.path.clone(), place: place.into(), what: what.into() }
    }

    fn changed(&self, place: impl Into<String>, what: impl Into<String>) -> Error {
        Error::Changed { path: self.path.clone(), place: place.into(), what: what.into() }
    }

    fn read(&mut self, limit: u64) -> Result<(), Error> {
        let mut file = BufReader::new(File::open(&self.path).map_err(Error::io(&self.path, "read"))?);
        let mut begin = [0; BEGIN.len()];
        let complete = file.read_exact(&mut begin);
        if complete.is_err() || begin != BEGIN {
            return Err(self.no_archive("byte 0".to_owned(), "it does not begin like one"));
        }
        let unpacked = GzDecoder::new(BEGIN.chain(file)).take(limit);
        let mut tar = tar::Archive::new(unpacked);
        // Extensions of the format can hold anything: names of any length, links. None is needed.
        let entries = tar.entries().map_err(|error| self.no_archive(None, error.to_string()))?.raw(true);
        for entry in entries {
            let after = self.members.last().map(|(member, _)| format!("what follows `{}`", member.name()));
            let entry = entry.map_err(|error| self.no_archive(after, error.to_string()))?;
            self.take(entry)?;
        }
        self.read_end(tar.into_inner())
    }

    /// Reads to the last byte: only there the checksum of the whole stands.
    fn read_end<R: BufRead>(&self, mut rest: io::Take<GzDecoder<R>>) -> Result<(), Error> {
        let end = || "the end".to_owned();
        let mut buffer = [0; 4096];
        loop {
            match rest.read(&mut buffer) {
                Ok(0) if rest.limit() == 0 => {
                    return Err(self.no_archive(end(), "it is larger than any evidence"));
                }
                Ok(0) => break,
                Ok(count) if buffer[..count].iter().all(|byte| *byte == 0) => {}
                Ok(_) => return Err(self.no_archive(end(), "there is something behind the last file")),
                Err(error) => return Err(self.no_archive(end(), error.to_string())),
            }
        }
        match rest.into_inner().into_inner().fill_buf() {
            Ok([]) => Ok(()),
            Ok(_) => Err(self.no_archive(end(), "there are bytes behind the archive")),
            Err(error) => Err(Error::io(&self.path, "read")(error)),
        }
    }

    fn take<R: Read>(&mut self, entry: tar::Entry<'_, R>) -> Result<(), Error> {
        let member = self.member(&entry)?;
        let name = member.name();
        let size = entry.size();
        let mut content = Digesting::reading(entry);
        match member {
            Member::Events => self.read_events(&mut content)?,
            Member::Header | Member::Plan | Member::Sums => {
                let text = self.text(&name, size, &mut content)?;
                self.take_text(&member, text)?;
            }
            Member::Derived(ref derived) if derived == "evidence.json" => {
                let text = self.text(&name, size, &mut content)?;
                self.take_summary(&text)?;
            }
            Member::Derived(_) | Member::Source(_) | Member::Output(_) | Member::Given(_) => {
                io::copy(&mut content, &mut io::sink())
                    .map_err(|error| self.no_archive(format!("`{name}`"), error.to_string()))?;
            }
        }
        self.members.push((member, content.sha256()));
        Ok(())
    }

    /// Refuses whatever is not a plain file of evidence, in the one directory, once.
    fn member<R: Read>(&mut self, entry: &tar::Entry<'_, R>) -> Result<Member, Error> {
        let bytes = entry.path_bytes();
        let path = String::from_utf8_lossy(&bytes).into_owned();
        let place = || format!("`{}`", path.escape_debug());
        if entry.header().entry_type() != tar::EntryType::Regular {
            return Err(
                self.no_archive(place(), "it is not a plain file: a link, a directory or an extension")
            );
        }
        let (dir, name) = path.split_once('/').unwrap_or(("", &path));
        let member = Member::of(name).filter(|_| self.root.as_deref().is_none_or(|root| root == dir));
        let Some(member) = member else {
            return Err(self.no_archive(place(), "no evidence has a file of that name"));
        };
        self.root.get_or_insert_with(|| dir.to_owned());
        if self.members.len() >= MEMBERS_LIMIT {
            return Err(self.no_archive(place(), "there are more files than any evidence has"));
        }
        if self.has(&member) {
            return Err(self.no_archive(place(), "the file is there twice"));
        }
        Ok(member)
    }

    /// Says whether a file was read already, of those that are understood as they come: a second one would be believed in
    /// place of the first, or together with it. The others are compared in the end, when each is missed once.
    fn has(&self, member: &Member) -> bool {
        match member {
            Member::Header => self.header_file.is_some(),
            Member::Plan => self.plan.is_some(),
            Member::Events => self.head.is_some(),
            Member::Sums => self.sums.is_some(),
            Member::Derived(name) => name == "evidence.json" && self.summary.is_some(),
            Member::Source(_) | Member::Output(_) | Member::Given(_) => false,
        }
    }

    fn text(&self, name: &str, size: u64, content: &mut impl Read) -> Result<String, Error> {
        let place = || format!("`{name}`");
        if size > MEMBER_LIMIT {
            return Err(self.no_archive(place(), "it is larger than any such file"));
        }
        let mut text = String::new();
        content.read_to_string(&mut text).map_err(|error| self.no_archive(place(), error.to_string()))?;
        Ok(text)
    }

    fn take_text(&mut self, member: &Member, text: String) -> Result<(), Error> {
        let place = member.name();
        match member {
            Member::Header => {
                let file: HeaderFile = serde_json::from_str(&text)
                    .map_err(|error| self.changed(&place, format!("it cannot be read: {error}")))?;
                if file.format > journal::FORMAT {
                    let what = format!("format {}, and this program knows {}", file.format, journal::FORMAT);
                    return Err(self.no_archive(place, what));
                }
                if super::derived::pretty(&file) != text.as_bytes() {
                    return Err(self.changed(place, "it is not written as it was"));
                }
                self.header_file = Some(file);
            }
            Member::Plan => {
                let plan = serde_json::from_str(&text)
                    .map_err(|error| self.changed(&place, format!("it cannot be read: {error}")))?;
                self.plan = Some((plan, text));
            }
            _ => self.sums = Some(text),
        }
        Ok(())
    }

    fn take_summary(&mut self, text: &str) -> Result<(), Error> {
        let summary: Summary = serde_json::from_str(text)
            .map_err(|error| self.changed("evidence.json", format!("it cannot be read: {error}")))?;
        if summary.format != FORMAT {
            let what = format!("format {}, and this program knows {FORMAT}", summary.format);
            return Err(self.no_archive("`evidence.json`".to_owned(), what));
        }
        self.summary = Some(summary);
        Ok(())
    }

    /// Reads the events and follows the chain.
    fn read_events(&mut self, content: impl Read) -> Result<(), Error> {
        let (Some(file), Some((plan, text))) = (self.header_file.clone(), &self.plan) else {
            let what = "the events come before what they are about";
            return Err(self.no_archive("`journal/events.jsonl`".to_owned(), what));
        };
        let HeaderFile { run, engine, created_ms, format } = file;
        let header = Header { run, engine, created_ms, plan: plan.clone() };
        let mut head = Head::genesis(&header, text, format);
        let mut content = BufReader::new(content);
        let mut line = Vec::new();
        loop {
            line.clear();
            let place = || format!("`journal/events.jsonl`, event {}", head.seq + 1);
            let count = (&mut content)
                .take(MEMBER_LIMIT)
                .read_until(b'\n', &mut line)
                .map_err(|error| self.no_archive(place(), error.to_string()))?;
            if count == 0 {
                break;
            }
            let Some(record) = line.strip_suffix(b"\n").and_then(|line| std::str::from_utf8(line).ok())
            else {
                return Err(self.changed(place(), "the line is not complete, or no text"));
            };
            let Some(record) = line::read(record) else {
                return Err(self.changed(place(), "it is not written as events are"));
            };
            let kind = record.check(&mut head).map_err(|wrong| {
                self.changed(format!("`journal/events.jsonl`, event {}", wrong.seq), wrong.what)
            })?;
            self.events.extend(kind.map(|kind| Event { seq: record.seq, at_ms: record.at_ms, kind }));
        }
        self.header = Some(header);
        self.head = Some(head);
        Ok(())
    }

    /// Compares everything that was read.
    fn judge(&self, wanted: Option<&str>) -> Result<Verified, Error> {
        let missing = |name: &str| self.no_archive(None, format!("`{name}` is missing"));
        let header = self.header.as_ref().ok_or_else(|| missing("journal/events.jsonl"))?;
        let head = self.head.as_ref().ok_or_else(|| missing("journal/events.jsonl"))?;
        let summary = self.summary.as_ref().ok_or_else(|| missing("evidence.json"))?;
        if let Some(wanted) = wanted
            && !wanted.eq_ignore_ascii_case(&head.hash())
        {
            let (path, found) = (self.path.clone(), head.hash());
            return Err(Error::OtherHead { path, found, wanted: wanted.to_owned() });
        }
        if self.root.as_deref() != Some(&root(header.run)) {
            return Err(self.changed("the name of its directory", "it is that of another run"));
        }
        self.compare_sums()?;
        let (not_in_chain, gone) = self.compare_files(header)?;
        let told = Told {
            header,
            events: &self.events,
            head,
            now: Moment(summary.as_of_ms),
            owner: summary.owner,
            not_in_chain: &not_in_chain,
            missing: &gone,
        };
        self.compare_derived(&told, summary)?;
        self.compare_declaration(header)?;
        let files = self.members.iter().filter(|(member, _)| is_file(member));
        Ok(Verified {
            run: header.run,
            runbook: header.plan.runbook.clone(),
            environment: header.plan.environment.clone(),
            outcome: summary.outcome,
            head: head.hash(),
            compared: wanted.is_some(),
            essential_events: summary.essential_events,
            advisory_events: summary.events - summary.essential_events,
            files: files.count() - not_in_chain.len(),
            not_in_chain,
            missing: gone,
        })
    }

    fn compare_sums(&self) -> Result<(), Error> {
        let sums = self.sums.as_deref().ok_or_else(|| self.no_archive(None, "`SHA256SUMS` is missing"))?;
        let mut listed = sums.lines();
        for (member, sha256) in self.members.iter().filter(|(member, _)| *member != Member::Sums) {
            let name = member.name();
            match listed.next() {
                Some(line) if line == format!("{sha256}  {name}") => {}
                Some(line) if line.ends_with(&format!("  {name}")) => {
                    return Err(
                        self.changed(format!("`{name}`"), "it does not have the hash in `SHA256SUMS`")
                    );
                }
                Some(line) => {
                    let named =
                        line.split_once("  ").map_or(line, |(_, named)| named).escape_debug().to_string();
                    return Err(self.changed(
                        format!("`{name}`"),
                        format!(
                            "it stands where `SHA256SUMS` has `{named}`: a file was added, removed or moved"
                        ),
                    ));
                }
                None => return Err(self.changed(format!("`{name}`"), "`SHA256SUMS` does not have it")),
            }
        }
        match listed.next() {
            Some(line) => Err(self.changed(
                "`SHA256SUMS`",
                format!("it has a file that is not there: {}", line.escape_debug()),
            )),
            None => Ok(()),
        }
    }

    /// Compares sources with the plan, output and what people gave with the events; returns files without and events without a counterpart.
    fn compare_files(&self, header: &Header) -> Result<(BTreeSet<String>, BTreeSet<String>), Error> {
        let (printed, given) = (printed(&self.events), given(&self.events));
        let known: BTreeMap<String, &str> = printed
            .iter()
            .map(|(name, file)| (Member::Output(name.clone()).name(), file.sha256.as_str()))
            .chain(given.iter().map(|(name, hash)| (Member::Given(name.clone()).name(), hash.as_str())))
            .chain(
                header
                    .plan
                    .sources
                    .iter()
                    .map(|(name, hash)| (Member::Source(name.clone()).name(), hash.as_str())),
            )
            .collect();
        let (mut not_in_chain, mut found) = (BTreeSet::new(), BTreeSet::new());
        for (member, sha256) in &self.members {
            if !is_file(member) {
                continue;
            }
            let name = member.name();
            match known.get(&name) {
                Some(expected) if expected == sha256 => {}
                Some(_) => {
                    return Err(self.changed(format!("`{name}`"), "it is not what the run's journal says"));
                }
                None => drop(not_in_chain.insert(name.clone())),
            }
            if !found.insert(name.clone()) {
                return Err(self.no_archive(format!("`{name}`"), "the file is there twice"));
            }
        }
        let gone = known.into_keys().filter(|name| !found.contains(name)).collect();
        Ok((not_in_chain, gone))
    }

    /// Makes everything again that is made of plan and events, and compares.
    fn compare_derived(&self, told: &Told<'_>, summary: &Summary) -> Result<(), Error> {
        let mut expected = told.members();
        for (member, sha256) in &self.members {
            let Member::Derived(name) = member else { continue };
            let Some(content) = expected.remove(name.as_str()) else {
                return Err(self.no_archive(format!("`{name}`"), "the file is there twice"));
            };
            if hex(&<sha2::Sha256 as sha2::Digest>::digest(&content)) != *sha256 {
                let own = env!("CARGO_PKG_VERSION");
                let what = match summary.made_by.as_str() {
                    by if by == own => "it is not what the events say".to_owned(),
                    by => format!(
                        "it is not what this version, {own}, makes of the events; it says that {} made it: verify it with that",
                        by.escape_debug()
                    ),
                };
                return Err(self.changed(format!("`{name}`"), what));
            }
        }
        match expected.keys().next() {
            Some(name) => Err(self.no_archive(None, format!("`{name}` is missing"))),
            None => Ok(()),
        }
    }

    /// The chain covers the plan; its first event must speak of the same one.
    fn compare_declaration(&self, header: &Header) -> Result<(), Error> {
        match self.events.first().map(|event| &event.kind) {
            Some(EventKind::RunDeclared { plan_digest, .. }) if *plan_digest == header.plan.digest() => {
                Ok(())
            }
            Some(EventKind::RunDeclared { .. }) => {
                Err(self.changed("`journal/events.jsonl`, event 1", "it declares another plan"))
            }
            _ => Err(self.changed("`journal/events.jsonl`, event 1", "it does not declare a run")),
        }
    }
}
