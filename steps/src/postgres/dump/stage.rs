//! Brings a dump to this machine, for `pg_restore` needs it as a file in which it can seek.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, chown};
use std::path::{Path, PathBuf};

use lifeboat_engine::step::{StepContext, StepError};

use super::super::codes;
use crate::home::Home;
use crate::probe::bytes;
use crate::process::OsUser;
use crate::store::{HashingWriter, Key, Marker, Meter, Store, blocking, copy, digest_of};

/// One object to bring, and what it must be if that is known.
struct Wanted {
    key: Key,
    /// Relative to the directory.
    name: String,
    size: u64,
    sha256: Option<String>,
}

/// A dump on this machine.
pub(super) struct Staged {
    home: Home,
    pub(super) path: PathBuf,
    wanted: Vec<Wanted>,
}

impl Staged {
    /// Plans to bring the dump of a backup, below `object` in it.
    pub(super) fn of_backup(home: Home, marker: &Marker, object: &str) -> Result<Self, StepError> {
        let mut wanted = Vec::new();
        for entry in &marker.objects {
            if entry.name == object || entry.name.starts_with(&format!("{object}/")) {
                let (key, name, sha256) =
                    (marker.key(&entry.name)?, entry.name.clone(), entry.sha256.clone());
                wanted.push(Wanted { key, name, size: entry.size, sha256: Some(sha256) });
            }
        }
        if wanted.is_empty() {
            let message = format!("the backup `{}` has no `{object}`", marker.label);
            return Err(StepError::permanent(codes::LB1279, message).help("choose another dump of the store"));
        }
        Ok(Self { path: home.path.join(object), home, wanted })
    }

    /// Plans to bring an object that no marker speaks for, or all below it.
    pub(super) fn of_object(home: Home, store: &Store, object: &str) -> Result<Self, StepError> {
        let key = Key::new(object)?;
        let one = |key: &Key, name: String, size| Wanted { key: key.clone(), name, size, sha256: None };
        let path = home.path.join("dump");
        if let Some(found) = store.metadata(&key)? {
            return Ok(Self { path, home, wanted: vec![one(&key, "dump".into(), found.size)] });
        }
        let prefix = format!("{key}/");
        let listed = store.list(&key)?;
        let wanted: Vec<_> = listed
            .iter()
            .filter_map(|listed| {
                let name = listed.key.to_string().strip_prefix(&prefix)?.to_owned();
                Some(one(&listed.key, format!("dump/{name}"), listed.size))
            })
            .collect();
        if wanted.is_empty() {
            return Err(StepError::permanent(
                codes::LB1280,
                format!("there is no object `{object}` in {store}"),
            )
            .help("correct `object`; it is the path below the store's `url`"));
        }
        Ok(Self { path, home, wanted })
    }

    /// Returns the bytes of all objects.
    pub(super) fn bytes(&self) -> u64 {
        self.wanted.iter().map(|wanted| wanted.size).sum()
    }

    /// Refuses a place that is too small.
    pub(super) fn check_room(&self) -> Result<(), StepError> {
        let (free, needed) = (self.home.free_space()?, self.bytes());
        if free >= needed {
            return Ok(());
        }
        let place = self.home.path.display();
        let message = format!("{place} has {} free, and the dump has {}", bytes(free), bytes(needed));
        Err(StepError::permanent(codes::LB1283, message)
            .help("give the step a `dir` on a file system with room; nothing was touched"))
    }

    /// Brings every object that is not there whole already, each compared with its checksum on the way.
    pub(super) async fn bring(
        &self,
        ctx: &StepContext,
        store: &Store,
        user: Option<&OsUser>,
    ) -> Result<(), StepError> {
        self.home.make(ctx, user).await?;
        let meter = Meter::bytes(ctx, Some(self.bytes()), "fetching the dump");
        let owner = user.map(|user| (user.uid, user.gid));
        let home = self.home.path.clone();
        let wanted: Vec<_> = self
            .wanted
            .iter()
            .map(|one| (one.key.clone(), home.join(&one.name), one.sha256.clone()))
            .collect();
        let store = store.clone();
        blocking(move || {
            wanted.iter().try_for_each(|(key, path, sha256)| {
                own_parents(&home, path, owner).map_err(|error| unwritable(path, &error))?;
                fetch(&store, key, (path, sha256.as_deref()), &meter)?;
                owner
                    .map_or(Ok(()), |(uid, gid)| chown(path, Some(uid), Some(gid)))
                    .map_err(|error| unwritable(path, &error))
            })
        })
        .await
    }

    /// Removes what was brought.
    pub(super) async fn remove(&self, ctx: &StepContext) -> Result<(), StepError> {
        remove(ctx, &self.home.path).await
    }
}

/// Removes a directory that a dump was brought to.
pub(super) async fn remove(ctx: &StepContext, dir: &Path) -> Result<(), StepError> {
    if let Err(error) = fs::remove_dir_all(dir)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        return Err(unwritable(dir, &error));
    }
    let id = format!("home:{}", lifeboat_engine::resource::made_by(ctx.info.step.as_str()));
    ctx.removed(&id, &format!("`{}` does not exist", dir.display())).await
}

fn own_parents(home: &Path, path: &Path, owner: Option<(u32, u32)>) -> std::io::Result<()> {
    let parent = path.parent().unwrap_or(home);
    fs::create_dir_all(parent)?;
    match owner.filter(|_| parent != home) {
        Some((uid, gid)) => chown(parent, Some(uid), Some(gid)),
        None => Ok(()),
    }
}

fn fetch(
    store: &Store,
    key: &Key,
    (path, sha256): (&Path, Option<&str>),
    meter: &Meter,
) -> Result<(), StepError> {
    if let (Some(sha256), Ok(file)) = (sha256, fs::File::open(path))
        && digest_of(file, &meter.uncounted())?.sha256 == sha256
    {
        return meter.advance(fs::metadata(path).map_or(0, |found| found.len()));
    }
    let file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
    let mut to = HashingWriter::new(file.map_err(|error| unwritable(path, &error))?);
    copy(&mut store.read(key)?, &mut to, meter)?;
    to.flush().map_err(|error| unwritable(path, &error))?;
    let (_, digest) = to.finish();
    match sha256.filter(|sha256| *sha256 != digest.sha256) {
        None => Ok(()),
        Some(expected) => Err(StepError::permanent(
            crate::store::codes::LB1108,
            format!("`{key}` is damaged: its SHA-256 is {}, not {expected}", digest.sha256),
        )
        .help(
            "nothing was restored; choose another dump, or bring this object back from a copy of the store",
        )),
    }
}

fn unwritable(path: &Path, error: &std::io::Error) -> StepError {
    StepError::transient(codes::LB1283, format!("{} cannot be written", path.display()))
        .help("give the step a `dir` with room")
        .caused_by(error)
}
