//! Restores into a directory: every version into a file, beside the target, then one rename.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use lifeboat_engine::model::evidence::Check;
use lifeboat_engine::plan::hex;
use lifeboat_engine::step::{StepContext, StepError};
use md5::{Digest as _, Md5};
use rustix::fs::{Gid, Mode, OFlags, Uid};
use serde::{Deserialize, Serialize};

use super::choose::{Chosen, Decision, Wanted};
use super::names::{Case, unusable};
use super::restore::{Choice, Counts, Existing, Params, listed, without_archived};
use crate::files::Place;
use crate::process::OsUser;
use crate::store::versions::Versioned;
use crate::store::{HashingWriter, Meter, beneath, blocking, codes, copy, digest_of};

/// Small objects are fetched so many at once, …
const SMALL_AT_ONCE: usize = 12;
/// … large ones one after the other, in parts at once: all together take some 130 MiB of memory.
const LARGE: u64 = 8 << 20;

/// Restores what was chosen into `to`.
pub(super) async fn restore(
    ctx: &StepContext,
    store: &Versioned,
    (params, to): (&Params, &Path),
    chosen: Chosen,
) -> Result<Counts, StepError> {
    let place = Place::of(to, &ctx.info.run.short())?;
    let mut counts = Counts::default();
    let decisions = without_archived(params, chosen.decisions, (|_| true, &mut counts.skipped))?;
    let wanted = usable(params, &place, decisions, &mut counts)?;
    count(&mut counts, &wanted);
    if let Some(previous) = place.is_published(ctx, &params.store).await? {
        counts.previous = previous;
        return Ok(counts);
    }
    if params.existing == Existing::Refuse && place.target.exists() {
        let message = format!("{} is there, and `existing` is `refuse`", place.target.display());
        return Err(StepError::permanent(codes::LB1120, message)
            .help("move it away, or let the step do that with `existing: move_aside`"));
    }
    place.check_space(counts.bytes, counts.objects)?;
    if params.dry_run {
        return Ok(counts);
    }
    place.announce_staging(ctx, &params.store).await?;
    let job = Job {
        store: store.clone(),
        staging: place.staging.clone(),
        owner: owner(params, &place.target)?,
        kept: ctx.work_dir()?.join("files.jsonl"),
        meter: Meter::bytes(ctx, Some(counts.bytes), "fetching objects"),
    };
    counts.checks = blocking(move || job.fetch(&wanted)).await?;
    counts.previous = place.publish(ctx, &params.store).await?;
    Ok(counts)
}

/// Refuses names that no file can have, or leaves them out.
fn usable(
    params: &Params,
    place: &Place,
    decisions: Vec<Decision>,
    counts: &mut Counts,
) -> Result<Vec<(String, Wanted)>, StepError> {
    counts.absent = decisions.iter().filter(|decision| decision.wanted.is_none()).count() as u64;
    let mut wanted: Vec<_> =
        decisions.into_iter().filter_map(|decision| Some((decision.name, decision.wanted?))).collect();
    let case = match params.dry_run {
        // Nothing is written, not even to find that out.
        true => Case::Tells,
        false => case_of(place.target.parent().unwrap_or(Path::new("/"))),
    };
    let mut bad = unusable(wanted.iter().map(|(name, _)| name.as_str()), case);
    // The object that stands for a directory has no content.
    bad.extend(wanted.iter().filter(|(name, it)| name.ends_with('/') && it.stored.size > 0).map(
        |(name, _)| super::names::Unusable {
            name: name.clone(),
            why: "it has content and the name of a directory".to_owned(),
        },
    ));
    let named: Vec<_> = bad.iter().map(|it| format!("`{}`: {}", it.name.escape_debug(), it.why)).collect();
    if !bad.is_empty() && params.unsafe_names == Choice::Refuse {
        let message = format!("{} objects have names that no file can have", named.len());
        return Err(listed(StepError::permanent(codes::LB1119, message), named).help(
            "restore into a bucket with `into`, or leave them out with `unsafe_names: skip`; nothing was written",
        ));
    }
    let bad: BTreeSet<_> = bad.into_iter().map(|it| it.name).collect();
    wanted.retain(|(name, _)| !bad.contains(name));
    counts.skipped.extend(named);
    Ok(wanted)
}

/// Finds out whether a file system takes names that differ in case for one. Where nothing can be written it is taken
/// to tell them apart; the writing fails there anyway.
fn case_of(dir: &Path) -> Case {
    let Ok(probe) = tempfile::Builder::new().prefix(".lifeboat-case-").tempfile_in(dir) else {
        return Case::Tells;
    };
    let upper = probe.path().file_name().map(|name| dir.join(name.to_string_lossy().to_uppercase()));
    if upper.is_some_and(|upper| upper.exists()) { Case::Folds } else { Case::Tells }
}

fn count(counts: &mut Counts, wanted: &[(String, Wanted)]) {
    counts.objects = wanted.len() as u64;
    counts.copied = counts.objects;
    counts.bytes = wanted.iter().map(|(_, wanted)| wanted.stored.size).sum();
}

/// Returns who owns the files: the user given, or the one of the directory that is replaced.
fn owner(params: &Params, target: &Path) -> Result<Option<(u32, u32)>, StepError> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    if let Some(name) = &params.owner {
        let user = OsUser::lookup(name)?;
        return Ok(Some((user.uid, user.gid)));
    }
    Ok(fs::metadata(target).ok().map(|found| (found.uid(), found.gid())))
}

/// The writing of all files.
struct Job {
    store: Versioned,
    staging: PathBuf,
    owner: Option<(u32, u32)>,
    /// What was written whole, one line each, so that a later attempt need not fetch it again.
    kept: PathBuf,
    meter: Meter,
}

/// One file that was written whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    name: String,
    version: String,
    sha256: String,
}

impl Job {
    fn fetch(&self, wanted: &[(String, Wanted)]) -> Result<Vec<Check>, StepError> {
        self.make_staging().map_err(|error| failed("made", &self.staging, &error))?;
        let kept = self.read_kept();
        let opened = File::options().create(true).append(true).open(&self.kept);
        let log = Mutex::new(opened.map_err(|error| failed("opened", &self.kept, &error))?);
        let (large, small): (Vec<_>, Vec<_>) = wanted.iter().partition(|(_, it)| it.stored.size > LARGE);
        let (next, stop) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let one = |object: &(String, Wanted)| {
            let outcome = self.one(object, (&kept, &log));
            if outcome.is_err() {
                stop.store(1, Ordering::Relaxed);
            }
            outcome
        };
        let going = || stop.load(Ordering::Relaxed) == 0;
        std::thread::scope(|scope| {
            let many = || {
                while let Some(object) = small.get(next.fetch_add(1, Ordering::Relaxed)).filter(|_| going()) {
                    one(object)?;
                }
                Ok(())
            };
            let threads: Vec<_> = (0..SMALL_AT_ONCE.min(small.len())).map(|_| scope.spawn(many)).collect();
            let large = large.iter().take_while(|_| going()).try_for_each(|object| one(object));
            let small = threads.into_iter().map(|thread| thread.join().expect("fetching does not panic"));
            small.fold(large, Result::and)
        })?;
        self.finish(wanted)
    }

    /// Makes the directory, and removes from it what an earlier attempt began under another list.
    fn make_staging(&self) -> io::Result<()> {
        match fs::create_dir(&self.staging) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(()),
        }
    }

    fn read_kept(&self) -> BTreeMap<String, Kept> {
        let Ok(file) = File::open(&self.kept) else { return BTreeMap::new() };
        let lines = BufReader::new(file).lines().map_while(Result::ok);
        let kept = lines.filter_map(|line| serde_json::from_str::<Kept>(&line).ok());
        kept.map(|kept| (kept.name.clone(), kept)).collect()
    }

    fn one(
        &self,
        (name, wanted): &(String, Wanted),
        (kept, log): (&BTreeMap<String, Kept>, &Mutex<File>),
    ) -> Result<(), StepError> {
        let root =
            beneath::open_root(&self.staging).map_err(|error| failed("opened", &self.staging, &error))?;
        let made = |error: io::Error| failed("made", &self.staging.join(name), &error);
        if let Some(dir) = name.strip_suffix('/') {
            return beneath::make_dir(root, &dir.split('/').collect::<Vec<_>>()).map(drop).map_err(made);
        }
        let mut parts: Vec<_> = name.split('/').collect();
        let file_name = parts.pop().unwrap_or_default();
        let dir = beneath::make_dir(root, &parts).map_err(made)?;
        if kept.get(name).is_some_and(|kept| kept.version == wanted.id && is_intact(&dir, file_name, kept)) {
            return self.meter.advance(wanted.stored.size);
        }
        let sha256 = self.write(name, wanted, (&dir, file_name))?;
        let line = Kept { name: name.clone(), version: wanted.id.clone(), sha256 };
        let mut line = serde_json::to_string(&line).expect("plain data can be written");
        line.push('\n');
        let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
        log.write_all(line.as_bytes()).map_err(|error| failed("written", &self.kept, &error))
    }

    /// Writes one version into a file and compares it with what the server says of it. Returns its checksum.
    fn write(
        &self,
        name: &str,
        wanted: &Wanted,
        (dir, file_name): (&OwnedFd, &str),
    ) -> Result<String, StepError> {
        let path = self.staging.join(name);
        let unwritten = |error: io::Error| failed("written", &path, &error);
        // What an interrupted attempt left of it is ours and unfinished.
        rustix::fs::unlinkat(dir, file_name, rustix::fs::AtFlags::empty()).ok();
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(dir, file_name, flags, Mode::from_raw_mode(0o644));
        let file = File::from(opened.map_err(|error| unwritten(error.into()))?);
        let mut to = HashingWriter::new(Md5Writer { inner: file, md5: Md5::new() });
        let (mut object, md5) = self.store.read(name, &wanted.id)?;
        copy(&mut object, &mut to, &self.meter)?;
        let (to, digest) = to.finish();
        compare(name, (wanted.stored.size, md5.as_deref()), (digest.size, &hex(&to.md5.finalize())))?;
        if let Some((uid, gid)) = self.owner {
            let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
            rustix::fs::fchown(&to.inner, uid, gid).map_err(|error| unwritten(error.into()))?;
        }
        to.inner.set_modified(SystemTime::from(wanted.modified)).map_err(unwritten)?;
        Ok(digest.sha256)
    }

    /// Compares the files that are there with those that were wanted, and makes them durable.
    fn finish(&self, wanted: &[(String, Wanted)]) -> Result<Vec<Check>, StepError> {
        let failed = |error: io::Error| failed("read", &self.staging, &error);
        let mut found = BTreeMap::new();
        walk(&self.staging, "", self.owner, &mut found).map_err(failed)?;
        let mut expected: BTreeMap<_, _> = wanted
            .iter()
            .filter(|(name, _)| !name.ends_with('/'))
            .map(|(name, it)| (name.clone(), it.stored.size))
            .collect();
        // What an attempt before a change of the list left behind.
        for name in found.keys().filter(|name| !expected.contains_key(*name)) {
            fs::remove_file(self.staging.join(name)).map_err(failed)?;
        }
        found.retain(|name, _| expected.contains_key(name));
        let all = expected.len();
        expected.retain(|name, size| found.get(name) != Some(size));
        let check = Check {
            name: "files with the size and checksum of their version".to_owned(),
            expected: all.to_string(),
            actual: (all - expected.len()).to_string(),
            passed: expected.is_empty(),
        };
        if !expected.is_empty() {
            let message = format!("{} files in {} are not whole", expected.len(), self.staging.display());
            let names = expected.keys().map(|name| format!("`{}`", name.escape_debug())).collect();
            return Err(listed(StepError::transient(codes::LB1122, message), names).checks(vec![check]));
        }
        let root = File::open(&self.staging).map_err(failed)?;
        rustix::fs::syncfs(&root).map_err(|error| failed(error.into()))?;
        Ok(vec![check])
    }
}

/// Compares what arrived with the server's own word.
fn compare(
    name: &str,
    (listed, known): (u64, Option<&str>),
    (size, md5): (u64, &str),
) -> Result<(), StepError> {
    if size == listed && known.is_none_or(|known| known == md5) {
        return Ok(());
    }
    let message = format!(
        "`{}` arrived with {size} bytes and MD5 {md5}, and the server says {listed} bytes with {}",
        name.escape_debug(),
        known.unwrap_or("no MD5")
    );
    Err(StepError::transient(codes::LB1122, message)
        .help("run the step again; if it repeats, the object is damaged: choose another moment"))
}

/// Reads a file that an earlier attempt wrote, and compares its checksum.
fn is_intact(dir: &OwnedFd, file_name: &str, kept: &Kept) -> bool {
    let Ok(file) = beneath::open_file(dir, file_name) else { return false };
    digest_of(file, &Meter::silent()).is_ok_and(|digest| digest.sha256 == kept.sha256)
}

/// Lists all files below a directory with their sizes, and gives its directories their owner and mode.
fn walk(
    dir: &Path,
    prefix: &str,
    owner: Option<(u32, u32)>,
    found: &mut BTreeMap<String, u64>,
) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        let kind = entry.file_type()?;
        if kind.is_dir() {
            walk(&entry.path(), &format!("{name}/"), owner, found)?;
        } else {
            found.insert(name, entry.metadata()?.len());
        }
    }
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?;
    match owner {
        Some((uid, gid)) => std::os::unix::fs::chown(dir, Some(uid), Some(gid)),
        None => Ok(()),
    }
}

struct Md5Writer {
    inner: File,
    md5: Md5,
}

impl Write for Md5Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.md5.update(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn failed(what: &str, path: &Path, error: &io::Error) -> StepError {
    StepError::transient(codes::LB1111, format!("{} cannot be {what}: {error}", path.display()))
        .help("check the permissions and the space of the directory; the target was not touched")
}
