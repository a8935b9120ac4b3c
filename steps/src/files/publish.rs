//! Puts a finished directory in the place of another in one rename, and keeps the other one.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use lifeboat_engine::model::evidence::{Created, CreatedKind};
use lifeboat_engine::step::{StepContext, StepError};
use rustix::fs::{CWD, RenameFlags};
use rustix::io::Errno;
use serde_json::{Value, json};

use super::codes;

/// What an attempt records before it renames: the inode of the new directory and where the old one goes.
const PUBLISHING: &str = "publishing";

/// The place that is restored, and the directory beside it in which that happens.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) target: PathBuf,
    pub(crate) staging: PathBuf,
    parent: PathBuf,
}

impl Place {
    /// Finds the real directory, and refuses one that cannot be renamed.
    pub(crate) fn of(path: &Path, run: &str) -> Result<Self, StepError> {
        let target = real(path).map_err(|error| failed("found", path, &error))?;
        let (Some(parent), Some(name)) = (target.parent(), target.file_name()) else {
            return Err(refused(&target, "is the root of the file system"));
        };
        let parent = parent.to_owned();
        let of_parent = fs::metadata(&parent).map_err(|error| failed("found", &parent, &error))?;
        match fs::metadata(&target) {
            Ok(found) if !found.is_dir() => return Err(refused(&target, "is no directory")),
            Ok(found) if found.dev() != of_parent.dev() => {
                return Err(refused(&target, "is a mount point, which cannot be renamed")
                    .help(format!(
                        "nothing was touched; restore into a directory inside of it and let the service use that one: `path: \
                         {target}/current` of the resource, with the room for both on that file system; or unmount it (`umount \
                         {target}`), restore, and mount it elsewhere",
                        target = target.display()
                    )));
            }
            _ => {}
        }
        let staging = parent.join(format!(".{}.restore-{run}", name.to_string_lossy()));
        Ok(Self { target, staging, parent })
    }

    /// Refuses to begin without the space for all of it beside what is there.
    pub(crate) fn check_space(&self, bytes: u64, entries: u64) -> Result<(), StepError> {
        let space = rustix::fs::statvfs(&self.parent)
            .map_err(|error| failed("measured", &self.parent, &error.into()))?;
        let free = space.f_bavail.saturating_mul(space.f_frsize);
        // An attempt that goes on has been checked when it began, and has used some of the space itself.
        if self.staging.exists() {
            return Ok(());
        }
        let short = |what: &str, needed: u64, free: u64| {
            let message =
                format!("{} has {free} {what} free, and the restore needs {needed}", self.parent.display());
            Err(StepError::permanent(codes::LB1407, message)
                .help("make room there; the old files are kept beside the new ones until you remove them"))
        };
        if free < bytes {
            return short("bytes", bytes, free);
        }
        // Some file systems have no fixed number of inodes and say 0.
        if space.f_files > 0 && space.f_favail < entries {
            return short("inodes", entries, space.f_favail);
        }
        Ok(())
    }

    /// Records the directory beside the target before it is made. It never holds anything but restored files.
    pub(crate) async fn announce_staging(&self, ctx: &StepContext, name: &str) -> Result<(), StepError> {
        let kind = CreatedKind::Directory { path: self.staging.clone() };
        self.announce(ctx, (name, "staging"), kind, format!("unpacked files of {name}")).await
    }

    /// Says whether an earlier attempt has put its directory in place, or does so now if only that was left.
    pub(crate) async fn is_published(
        &self,
        ctx: &StepContext,
        name: &str,
    ) -> Result<Option<Option<PathBuf>>, StepError> {
        let Some(recorded) = ctx.recorded(PUBLISHING) else { return Ok(None) };
        let Some(inode) = recorded.get("inode").and_then(Value::as_u64) else { return Ok(None) };
        let aside = recorded.get("aside").and_then(Value::as_str).map(PathBuf::from);
        let is = |path: &Path| fs::metadata(path).is_ok_and(|found| found.ino() == inode);
        if let Some(aside) = aside.as_deref().filter(|aside| is(aside)) {
            self.exchange(aside)?;
        }
        if !is(&self.target) {
            return Ok(None);
        }
        self.announce_restored(ctx, name).await?;
        self.sync()?;
        Ok(Some(aside))
    }

    /// Puts the finished directory in place with one rename, and keeps what was there. Returns where.
    ///
    /// Whatever moment a crash picks, the target is the old or the new directory, and what the journal says was made
    /// never names a directory with old files in it.
    pub(crate) async fn publish(&self, ctx: &StepContext, name: &str) -> Result<Option<PathBuf>, StepError> {
        let inode =
            fs::metadata(&self.staging).map_err(|error| failed("found", &self.staging, &error))?.ino();
        let aside = self.target.exists().then(|| self.free_name("pre", &ctx.info.run.short()));
        ctx.record(PUBLISHING, json!({ "inode": inode, "aside": aside })).await?;
        match &aside {
            None => {
                self.announce_restored(ctx, name).await?;
                self.put_where_nothing_is()?;
            }
            Some(aside) => {
                let kind = CreatedKind::MovedAside { from: self.target.clone(), to: aside.clone() };
                let what = format!("earlier files of {name}");
                self.announce(ctx, (name, "aside"), kind, what).await?;
                fs::rename(&self.staging, aside).map_err(|error| failed("renamed", &self.staging, &error))?;
                self.exchange(aside)?;
                // Only now: until the exchange the target was what must be kept.
                self.announce_restored(ctx, name).await?;
            }
        }
        self.sync()?;
        Ok(aside)
    }

    /// Puts back what stood there before [`Place::publish`]; what was restored is kept beside it. Returns where.
    ///
    /// Which directory is which is told by the inode that was recorded, so that it can be done again after a crash.
    pub(super) async fn unpublish(
        &self,
        ctx: &StepContext,
        name: &str,
    ) -> Result<Option<PathBuf>, StepError> {
        let Some(recorded) = ctx.recorded(PUBLISHING) else { return self.remove_staging(ctx, name).await };
        let inode = recorded.get("inode").and_then(Value::as_u64).unwrap_or_default();
        let aside = recorded.get("aside").and_then(Value::as_str).map(PathBuf::from);
        let is_ours = |path: &Path| fs::symlink_metadata(path).is_ok_and(|found| found.ino() == inode);
        let is_earlier = |path: &Path| path.symlink_metadata().is_ok() && !is_ours(path);
        let kept = self.free_name("undone", &ctx.info.run.short());
        let beside: Vec<&Path> = aside.as_deref().into_iter().chain([self.staging.as_path()]).collect();
        let earlier_aside = aside.as_deref().filter(|aside| is_earlier(aside));
        if let Some(aside) = earlier_aside.filter(|_| is_earlier(&self.target)) {
            return Err(self.not_ours(aside));
        }
        let found = is_ours(&self.target) || beside.iter().any(|path| is_ours(path));
        if found {
            // From here on the end of a drill removes it there, and never what stands at the target.
            self.announce_at(ctx, name, &kept).await?;
        }
        match earlier_aside.filter(|_| is_ours(&self.target)) {
            Some(aside) => self.exchange(aside)?,
            None if is_ours(&self.target) => self.rename(&self.target, &kept)?,
            None => {}
        }
        if let Some(ours) = beside.iter().find(|path| is_ours(path)) {
            self.rename(ours, &kept)?;
        }
        if let Some(earlier) = beside.iter().find(|path| is_earlier(path))
            && self.target.symlink_metadata().is_err()
        {
            self.rename(earlier, &self.target)?;
        }
        self.sync()?;
        let back = format!("`{}` is as it was", self.target.display());
        ctx.removed(&thing_id(ctx, name, "aside"), &back).await?;
        ctx.removed(&thing_id(ctx, name, "staging"), "it was put in place and taken back").await?;
        Ok(found.then_some(kept))
    }

    /// Removes what was unpacked and never put in place.
    async fn remove_staging(&self, ctx: &StepContext, name: &str) -> Result<Option<PathBuf>, StepError> {
        match fs::remove_dir_all(&self.staging) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("removed", &self.staging, &error));
            }
            _ => {}
        }
        let gone = format!("`{}` does not exist", self.staging.display());
        ctx.removed(&thing_id(ctx, name, "staging"), &gone).await?;
        Ok(None)
    }

    fn not_ours(&self, aside: &Path) -> StepError {
        let message = format!(
            "{} is not what this run has put there, so {} stays aside",
            self.target.display(),
            aside.display()
        );
        StepError::permanent(codes::LB1406, message).help("compare the two, then put the right one in place")
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), StepError> {
        fs::rename(from, to).map_err(|error| failed("renamed", from, &error))
    }

    async fn announce_restored(&self, ctx: &StepContext, name: &str) -> Result<(), StepError> {
        self.announce_at(ctx, name, &self.target).await
    }

    async fn announce_at(&self, ctx: &StepContext, name: &str, path: &Path) -> Result<(), StepError> {
        let kind = CreatedKind::Directory { path: path.to_owned() };
        self.announce(ctx, (name, "restored"), kind, format!("restored files of {name}")).await
    }

    async fn announce(
        &self,
        ctx: &StepContext,
        (name, part): (&str, &str),
        kind: CreatedKind,
        what: String,
    ) -> Result<(), StepError> {
        ctx.created(Created { id: thing_id(ctx, name, part), what, kind }).await
    }

    fn put_where_nothing_is(&self) -> Result<(), StepError> {
        let renamed =
            rustix::fs::renameat_with(CWD, &self.staging, CWD, &self.target, RenameFlags::NOREPLACE);
        let renamed = match renamed {
            Err(Errno::INVAL | Errno::NOSYS) => rustix::fs::rename(&self.staging, &self.target),
            other => other,
        };
        renamed.map_err(|error| failed("put in place", &self.target, &error.into()))
    }

    /// Exchanges the new directory, which stands at `aside`, with the target.
    fn exchange(&self, aside: &Path) -> Result<(), StepError> {
        let exchanged = rustix::fs::renameat_with(CWD, aside, CWD, &self.target, RenameFlags::EXCHANGE);
        let exchanged = match exchanged {
            // A file system without exchange: the target is absent for an instant.
            Err(Errno::INVAL | Errno::NOSYS) => rustix::fs::rename(aside, &self.staging)
                .and_then(|()| rustix::fs::rename(&self.target, aside))
                .and_then(|()| rustix::fs::rename(&self.staging, &self.target)),
            other => other,
        };
        exchanged.map_err(|error| failed("put in place", &self.target, &error.into()))
    }

    fn sync(&self) -> Result<(), StepError> {
        let synced = File::open(&self.parent).and_then(|dir| dir.sync_all());
        synced.map_err(|error| failed("synced", &self.parent, &error))
    }

    fn free_name(&self, word: &str, run: &str) -> PathBuf {
        let name = |suffix: &str| {
            let mut path = self.target.clone().into_os_string();
            path.push(format!(".{word}-{run}{suffix}"));
            PathBuf::from(path)
        };
        let later = (2..).map(|number: u32| name(&format!("-{number}")));
        std::iter::once(name("")).chain(later).find(|path| !path.exists()).expect("some name is free")
    }
}

fn thing_id(ctx: &StepContext, name: &str, part: &str) -> String {
    format!("files:{name}:{}:{part}", ctx.info.step)
}

/// Follows links as far as there is something.
fn real(path: &Path) -> io::Result<PathBuf> {
    match path.canonicalize() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let parent = path.parent().ok_or(io::ErrorKind::InvalidInput)?.canonicalize()?;
            Ok(parent.join(path.file_name().ok_or(io::ErrorKind::InvalidInput)?))
        }
        other => other,
    }
}

fn refused(path: &Path, why: &str) -> StepError {
    StepError::permanent(codes::LB1406, format!("{} cannot be restored in place: it {why}", path.display()))
        .help("correct `path` of the resource")
}

fn failed(what: &str, path: &Path, error: &io::Error) -> StepError {
    StepError::transient(codes::LB1406, format!("{} cannot be {what}", path.display()))
        .help("check that its parent directory exists and that the user of Lifeboat may write there")
        .caused_by(error)
}
