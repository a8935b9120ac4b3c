//! The directory of a system that a step makes for its run.
//!
//! It has a name of the run and the step, so that nothing can be in the way, and is recorded before it is made. Who runs
//! the server must be able to enter it: the state of a run is closed to everybody else, and then a directory below
//! `/var/tmp` takes its place.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use lifeboat_engine::code::Code;
use lifeboat_engine::fence::Origin;
use lifeboat_engine::model::evidence::{Created, CreatedKind};
use lifeboat_engine::plan::hex;
use lifeboat_engine::resource::{Resource, made_by};
use lifeboat_engine::step::{StepContext, StepError};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::process::OsUser;
use crate::store::blocking;

/// Under this key a step finds the directory that an earlier attempt has made.
const MADE: &str = "home";
/// For everything that the state of a run is closed to.
const FALLBACK: &str = "/var/tmp";
/// A socket's path may have 107 bytes.
const LONGEST_SOCKET: usize = 100;

/// A directory for one system.
#[derive(Clone, Debug)]
pub(crate) struct Home {
    pub(crate) path: PathBuf,
    /// The code of the errors about it.
    code: Code,
}

impl Home {
    /// Chooses the place: below `wanted`, or in the state of the run. Makes nothing.
    pub(crate) fn choose(
        ctx: &StepContext,
        wanted: Option<&Path>,
        user: Option<&OsUser>,
        code: Code,
    ) -> Result<Self, StepError> {
        if let Some(made) = ctx.recorded(MADE).and_then(Value::as_str) {
            return Ok(Self { path: PathBuf::from(made), code });
        }
        let base = match wanted {
            Some(dir) => {
                check_base(dir, user, code)?;
                dir
            }
            None => match ctx.work_dir()? {
                own if user.is_none_or(|user| can_enter(user, own)) => own,
                _ => Path::new(FALLBACK),
            },
        };
        let step = ctx.info.step.as_str().replace(['/', '[', ']'], ".");
        let path = base.join(format!("lifeboat-{}-{step}", ctx.info.run.short()));
        Ok(Self { path, code })
    }

    /// Returns the bytes that are free there.
    pub(crate) fn free_space(&self) -> Result<u64, StepError> {
        let existing = self.path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
        let stat = rustix::fs::statvfs(existing).map_err(|error| self.failed("looked at", &error.into()))?;
        let blocks = if rustix::process::geteuid().is_root() { stat.f_bfree } else { stat.f_bavail };
        Ok(blocks * stat.f_frsize)
    }

    /// Makes the directory, recorded before it is made; an earlier attempt of the step may have made it.
    pub(crate) async fn make(&self, ctx: &StepContext, user: Option<&OsUser>) -> Result<(), StepError> {
        let known = ctx.recorded(MADE).is_some();
        if !known && fs::symlink_metadata(&self.path).is_ok() {
            let error = io::Error::new(io::ErrorKind::AlreadyExists, "something else stands there");
            return Err(self.failed("made", &error));
        }
        ctx.record(MADE, json!(self.path)).await?;
        ctx.created(Created {
            id: format!("home:{}", made_by(ctx.info.step.as_str())),
            what: format!("directory of {}", ctx.info.step),
            kind: CreatedKind::Directory { path: self.path.clone() },
        })
        .await?;
        make_private(&self.path, user).map_err(|error| self.failed("made", &error))
    }

    /// Removes the directory and all that is in it.
    pub(crate) async fn remove(&self, ctx: &StepContext) -> Result<(), StepError> {
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(self.failed("removed", &error));
            }
            _ => {}
        }
        let id = format!("home:{}", made_by(ctx.info.step.as_str()));
        ctx.removed(&id, &format!("`{}` does not exist", self.path.display())).await
    }

    /// Removes the directory if an earlier attempt has made it.
    pub(crate) async fn remove_leftover(&self, ctx: &StepContext) -> Result<(), StepError> {
        match ctx.recorded(MADE) {
            Some(_) => self.remove(ctx).await,
            None => Ok(()),
        }
    }

    /// Returns a path for a socket: in the directory, or where that is too long, in one below the temporary directory.
    pub(crate) fn socket(&self, name: &str) -> PathBuf {
        let socket = self.path.join(name);
        if socket.as_os_str().len() <= LONGEST_SOCKET {
            return socket;
        }
        let digest = hex(&Sha256::digest(self.path.as_os_str().as_encoded_bytes()));
        std::env::temp_dir().join(format!("lifeboat-{}", &digest[..12])).join(name)
    }

    /// Makes the directory of a socket that lies elsewhere.
    pub(crate) async fn make_socket_dir(
        &self,
        ctx: &StepContext,
        socket: &Path,
        user: Option<&OsUser>,
    ) -> Result<(), StepError> {
        let Some(dir) = socket.parent().filter(|dir| *dir != self.path) else { return Ok(()) };
        ctx.created(Created {
            id: format!("socket:{}", made_by(ctx.info.step.as_str())),
            what: format!("directory of the socket of {}", ctx.info.step),
            kind: CreatedKind::Directory { path: dir.to_owned() },
        })
        .await?;
        make_private(dir, user).map_err(|error| self.failed("given a socket", &error))
    }

    fn failed(&self, what: &str, error: &io::Error) -> StepError {
        StepError::transient(self.code, format!("{} cannot be {what}", self.path.display()))
            .help("give the step a `dir` with room that the server's user can enter")
            .caused_by(error)
    }
}

/// Refuses a system that would be made where a protected environment has one. To be called before the first write.
pub(crate) async fn keep_away(ctx: &StepContext, name: &str, system: &Resource) -> Result<(), StepError> {
    let part = ctx.part(Value::Null, name, system.clone());
    let (name, system) = (name.to_owned(), system.clone());
    blocking(move || part.keep_away(&name, &system, Origin::Run)).await
}

fn check_base(dir: &Path, user: Option<&OsUser>, code: Code) -> Result<(), StepError> {
    let unfit = |why: String| {
        StepError::permanent(code, format!("`dir: {}` {why}", dir.display()))
            .help("name a directory that exists, on a file system with room; nothing was touched")
    };
    if !dir.is_dir() {
        return Err(unfit("is no directory on this machine".to_owned()));
    }
    match user.filter(|user| !can_enter(user, dir)) {
        Some(user) => Err(unfit(format!("cannot be entered by `{}`, who runs the server", user.name))),
        None => Ok(()),
    }
}

/// Says whether a user may enter a directory and everything above it, by owner, group and mode.
fn can_enter(user: &OsUser, dir: &Path) -> bool {
    const ENTER: u32 = 0o1;
    dir.ancestors().filter(|path| !path.as_os_str().is_empty()).all(|path| {
        let Ok(found) = fs::metadata(path) else { return false };
        let shift = match () {
            () if found.uid() == user.uid => 6,
            () if user.groups.contains(&found.gid()) => 3,
            () => 0,
        };
        found.mode() & (ENTER << shift) != 0
    })
}

/// Makes a directory for one user only, or takes the one that this user or we have made.
fn make_private(dir: &Path, user: Option<&OsUser>) -> io::Result<()> {
    let me = rustix::process::geteuid().as_raw();
    match fs::DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let found = fs::symlink_metadata(dir)?;
            let ours = found.uid() == me || user.is_some_and(|user| user.uid == found.uid());
            if !found.is_dir() || !ours || found.mode() & 0o077 != 0 {
                return Err(io::Error::new(
                    io::ErrorKind::AlreadyExists,
                    "somebody else's file is in the way",
                ));
            }
        }
        other => other?,
    }
    match user {
        Some(user) => std::os::unix::fs::lchown(dir, Some(user.uid), Some(user.gid)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn who_may_enter_is_told_by_owner_group_and_mode() {
        let dir = tempfile::tempdir().unwrap();
        let (inner, me) = (dir.path().join("inner"), fs::metadata(dir.path()).unwrap());
        fs::create_dir(&inner).unwrap();
        let user =
            |uid, gid| OsUser { name: "x".into(), uid, gid, groups: vec![gid], home: PathBuf::from("/") };
        let (owner, member, other) = (user(me.uid(), 60_001), user(60_001, me.gid()), user(60_001, 60_001));
        let set = |mode| fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode)).unwrap();
        set(0o710);
        assert!(can_enter(&owner, &inner) && can_enter(&member, &inner) && !can_enter(&other, &inner));
        set(0o701);
        assert!(can_enter(&other, &inner) && !can_enter(&member, &inner));
        set(0o700);
        assert!(!can_enter(&other, &dir.path().join("not/there")));
    }

    #[test]
    fn somebody_elses_directory_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("home");
        make_private(&path, None).unwrap();
        make_private(&path, None).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(make_private(&path, None).is_err(), "others could have put something there");
    }
}
