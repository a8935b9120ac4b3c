//! Restores into a directory: every version into a file, beside the target, then one rename.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use lifeboat_engine::model::evidence::Check;
use lifeboat_engine::step::{StepContext, StepError};

use super::choose::{Chosen, Decision, Wanted};
use super::fetch::{self, Fetcher, Proven, failed};
use super::names::{Case, unusable};
use super::notes::Notes;
use super::restore::{Choice, Counts, Existing, Params, listed, without_archived};
use crate::files::Place;
use crate::process::OsUser;
use crate::store::named::Pin;
use crate::store::versions::Versioned;
use crate::store::{Meter, Store, blocking, codes};

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
        store: store.as_store(),
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
pub(super) fn case_of(dir: &Path) -> Case {
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
    store: Store,
    staging: PathBuf,
    owner: Option<(u32, u32)>,
    kept: PathBuf,
    meter: Meter,
}

impl Job {
    fn fetch(&self, wanted: &[(String, Wanted)]) -> Result<Vec<Check>, StepError> {
        match fs::create_dir(&self.staging) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed("made", &self.staging, &error));
            }
            _ => {}
        }
        let fetcher = Fetcher {
            store: self.store.clone(),
            root: self.staging.clone(),
            owner: self.owner,
            notes: Notes::open(&self.kept).map_err(|error| failed("opened", &self.kept, &error))?,
            meter: self.meter.clone(),
            proven: Proven::default(),
        };
        let object = |(name, wanted): &(String, Wanted)| fetch::Wanted {
            object: name.clone(),
            name: name.clone(),
            size: wanted.stored.size,
            modified: Some(wanted.modified),
            pin: Pin { version: Some(wanted.id.clone()), etag: None },
        };
        fetcher.all(&wanted.iter().map(object).collect::<Vec<_>>())?;
        self.finish(wanted)
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
