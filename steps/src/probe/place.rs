use std::path::{Path, PathBuf};

use async_trait::async_trait;
use jiff::Timestamp;
use lifeboat_engine::resource::{ResourceKind, System};
use lifeboat_engine::step::{Finding, FindingState, PreflightFacts, ResourceProbe, StepContext, StepError};
use rustix::fs::{Access, AtFlags, CWD};

use crate::process::OsUser;
use crate::store::{BackupKind, Catalogue, Marker, Store, blocking, catalogue};

/// Stores answer and can be listed; those that are written can be, and have room.
pub(super) struct Stores;

/// Directories that are restored or copied.
pub(super) struct Files;

/// Writes a number of bytes as people say it.
pub(crate) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} bytes");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// Writes how long before now a moment was.
pub(crate) fn age(at: Timestamp, now: Timestamp) -> String {
    let ms = now.as_millisecond() - at.as_millisecond();
    lifeboat_engine::report::human::duration(ms.max(0))
}

fn existing(path: &Path) -> PathBuf {
    path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/")).to_owned()
}

/// Returns the bytes that are free where a path is or will be.
pub(crate) fn free_space(path: &Path) -> std::io::Result<u64> {
    let stat = rustix::fs::statvfs(existing(path))?;
    let blocks = if rustix::process::geteuid().is_root() { stat.f_bfree } else { stat.f_bavail };
    Ok(blocks.saturating_mul(stat.f_frsize))
}

/// Compares the free space at a path with what is needed there.
pub(crate) fn space(subject: &str, path: &Path, needed: u64) -> Finding {
    const WHAT: &str = "free space";
    match free_space(path) {
        Err(error) => {
            let detail = format!("cannot be found for {}: {error}", path.display());
            Finding::ok(subject, WHAT, detail).state(FindingState::Unknown)
        }
        Ok(free) if free < needed => {
            let detail =
                format!("{} free at {}, and {} are needed", bytes(free), path.display(), bytes(needed));
            Finding::ok(subject, WHAT, detail).state(FindingState::Failed).help("make room there (`df -h`)")
        }
        Ok(free) => {
            let detail = format!("{} free at {}, {} are needed", bytes(free), path.display(), bytes(needed));
            Finding::ok(subject, WHAT, detail)
        }
    }
}

/// Finds out whether this process may make and rename entries beside a path.
pub(crate) fn writable(subject: &str, path: &Path) -> Finding {
    const WHAT: &str = "permissions";
    let parent = existing(path.parent().unwrap_or(path));
    match rustix::fs::accessat(CWD, &parent, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS) {
        Ok(()) => Finding::ok(subject, WHAT, format!("{} can be written", parent.display())),
        Err(error) => {
            let detail = format!("{} cannot be written: {error}", parent.display());
            let help = format!(
                "run lifeboat as a user who may write there; look with `ls -ld {}`",
                parent.display()
            );
            Finding::ok(subject, WHAT, detail).state(FindingState::Failed).help(help)
        }
    }
}

/// Judges the newest backup that a restore would use, by its age at the target against the RPO: for stores of which
/// nothing but the backup brings data back.
pub(crate) fn backup_age(
    subject: &str,
    chosen: Result<Marker, StepError>,
    target: Option<Timestamp>,
    facts: &PreflightFacts,
) -> (Finding, Option<Marker>) {
    const WHAT: &str = "newest usable backup";
    let marker = match chosen {
        Ok(marker) => marker,
        Err(error) => return (Finding::failed(subject, WHAT, &error), None),
    };
    let until = target.unwrap_or(facts.now);
    let lost = until.duration_since(marker.started_at);
    let detail = format!(
        "`{}` ({}), taken {} before {}",
        marker.label,
        bytes(marker.bytes()),
        age(marker.started_at, until),
        if target.is_some() { "the target" } else { "now" }
    );
    let finding = Finding::ok(subject, WHAT, detail);
    let too_old = facts.rpo.filter(|rpo| lost.unsigned_abs() > *rpo);
    let finding = match too_old {
        Some(rpo) => {
            let rpo = humantime::format_duration(rpo);
            let finding =
                Finding { detail: format!("{}: older than the RPO of {rpo}", finding.detail), ..finding };
            finding.state(FindingState::Failed).objective().help("take backups more often, or promise less")
        }
        None => finding,
    };
    (finding, Some(marker))
}

#[async_trait]
impl ResourceProbe for Stores {
    fn kinds(&self) -> &[ResourceKind] {
        &[ResourceKind::Store]
    }

    async fn probe(&self, ctx: &StepContext, name: &str, facts: &PreflightFacts) -> Vec<Finding> {
        let resource = ctx.system(name, |system| match system {
            System::Store(store) => Some(store),
            _ => None,
        });
        let Ok(resource) = resource.cloned() else { return Vec::new() };
        let store = match Store::of(ctx, name).await {
            Ok(store) => store,
            Err(error) => return vec![Finding::failed(name, "list", &error)],
        };
        let (name, written) = (name.to_owned(), facts.written.contains(name));
        let dir = resource.url.strip_prefix("dir://").filter(|_| written).map(PathBuf::from);
        let looked = blocking(move || Ok(look(&name, &store, dir.as_deref()))).await;
        looked.unwrap_or_else(|error| vec![Finding::failed("store", "list", &error)])
    }
}

/// Lists a store, and looks at the directory that it is in if it will be written.
fn look(name: &str, store: &Store, dir: Option<&Path>) -> Vec<Finding> {
    let kinds = [BackupKind::PostgresBase, BackupKind::RedisRdb, BackupKind::Files];
    let found: Result<Vec<Catalogue>, StepError> = kinds.iter().map(|kind| catalogue(store, *kind)).collect();
    let mut findings = match found {
        Err(error) => vec![Finding::failed(name, "list", &error)],
        Ok(found) => {
            let complete: usize = found.iter().map(|found| found.complete.len()).sum();
            let mut findings =
                vec![Finding::ok(name, "list", format!("{store} answers and holds {complete} backups"))];
            let damaged: Vec<_> = found
                .iter()
                .flat_map(|found| &found.rejected)
                .filter(|rejected| rejected.why == crate::store::Rejection::InvalidMarker)
                .map(|rejected| format!("`{}`: {}", rejected.label, rejected.reason))
                .collect();
            if !damaged.is_empty() {
                findings.push(Finding::ok(name, "markers", damaged.join("; ")).state(FindingState::Warning));
            }
            findings
        }
    };
    if let Some(path) = dir {
        findings.push(writable(name, &path.join("x")));
        if let Ok(free) = free_space(path) {
            findings.push(Finding::ok(name, "free space", format!("{} free in {store}", bytes(free))));
        }
    }
    findings
}

#[async_trait]
impl ResourceProbe for Files {
    fn kinds(&self) -> &[ResourceKind] {
        &[ResourceKind::Files]
    }

    async fn probe(&self, ctx: &StepContext, name: &str, facts: &PreflightFacts) -> Vec<Finding> {
        let files = ctx.system(name, |system| match system {
            System::Files(files) => Some(files),
            _ => None,
        });
        let Ok(files) = files else { return Vec::new() };
        let mut findings = Vec::new();
        if facts.written.contains(name) {
            findings.push(writable(name, &files.path));
        } else if std::fs::read_dir(&files.path).is_err() {
            let detail = format!("{} cannot be listed", files.path.display());
            findings.push(Finding::ok(name, "permissions", detail).state(FindingState::Failed));
        }
        if let Some(owner) = &files.owner {
            findings.push(match OsUser::lookup(owner) {
                Ok(_) => Finding::ok(name, "owner", format!("the user `{owner}` exists")),
                Err(error) => Finding::failed(name, "owner", &error),
            });
        }
        findings
    }
}
