//! The data directory that is restored into: what must hold before it is touched, and whose it is.
//!
//! A file beside it, `.<name>.lifeboat-restore`, says which step of which run is filling the directory. Only that
//! step may empty it again after a crash; anything else in a data directory is never deleted.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use lifeboat_engine::model::evidence::{Created, CreatedKind};
use lifeboat_engine::model::ids::RunId;
use lifeboat_engine::resource::{Postgres, shown};
use lifeboat_engine::step::{StepContext, StepError};
use serde::Deserialize;

use super::super::codes;
use super::super::connect::socket_path;
use super::super::pidfile::PidFile;
use super::super::restore_note::RestoreNote;
use super::listener;
use super::unpack::{own_path, unwritable};
use crate::process::OsUser;
use crate::store::blocking;

/// What to do with files that are in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Existing {
    Refuse,
    MoveAside,
    /// Restored over, if it is what an earlier restore has left.
    Delta,
}

/// What a directory holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Data,
    /// A tablespace, by its OID.
    Tablespace(String),
}

/// A directory to restore into: a data directory, or that of one of its tablespaces.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) data_dir: PathBuf,
    pub(super) resource: String,
    role: Role,
    parent: PathBuf,
    aside: PathBuf,
    run: String,
    step: String,
}

/// What stands at the place of a data directory.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    Nothing,
    Empty,
    /// Half-restored by this very step.
    Own,
    /// Anything else, with the names of some entries.
    Foreign(Vec<String>),
}

/// Returns what a data directory is called once a run has moved it aside; `None` for the root of the file system.
pub(in super::super) fn aside(data_dir: &Path, run: &RunId) -> Option<PathBuf> {
    let name = data_dir.file_name()?.to_string_lossy().into_owned();
    Some(data_dir.with_file_name(format!("{name}.pre-{}", run.short())))
}

impl Target {
    /// Names the places that belong to a data directory. Looks at nothing.
    pub(super) fn new(ctx: &StepContext, resource: &str, data_dir: &Path) -> Result<Self, StepError> {
        Self::of(ctx, resource, (data_dir, Role::Data))
    }

    /// Names the places that belong to the directory of a tablespace. Looks at nothing.
    pub(super) fn tablespace(
        ctx: &StepContext,
        resource: &str,
        (dir, oid): (&Path, &str),
    ) -> Result<Self, StepError> {
        Self::of(ctx, resource, (dir, Role::Tablespace(oid.to_owned())))
    }

    fn of(ctx: &StepContext, resource: &str, (data_dir, role): (&Path, Role)) -> Result<Self, StepError> {
        let (Some(parent), Some(aside)) = (data_dir.parent(), aside(data_dir, &ctx.info.run)) else {
            return Err(unsuitable(&role, data_dir, "is the root of the file system"));
        };
        Ok(Self {
            data_dir: data_dir.to_path_buf(),
            parent: parent.to_path_buf(),
            aside,
            run: ctx.info.run.to_string(),
            step: ctx.info.step.to_string(),
            resource: resource.to_owned(),
            role,
        })
    }

    /// Names it for people: `data directory of `db``.
    pub(super) fn what(&self) -> String {
        match &self.role {
            Role::Data => format!("data directory of {}", shown(&self.resource)),
            Role::Tablespace(oid) => format!("directory of tablespace {oid} of {}", shown(&self.resource)),
        }
    }

    fn unsuitable(&self, why: &str) -> StepError {
        unsuitable(&self.role, &self.data_dir, why)
    }

    /// Refuses a directory that a server uses, and a place where another server would be in the way.
    pub(super) fn check_servers(&self, postgres: &Postgres) -> Result<(), StepError> {
        if let Some((file, _)) = PidFile::live(&self.data_dir) {
            let pid = file.pid;
            return Err(StepError::permanent(
                codes::LB1250,
                format!("a Postgres server (process {pid}) runs on {}", self.data_dir.display()),
            )
            .help("stop it first, with a `postgres.stop` or `service.stop` step; nothing was touched"));
        }
        check_port(postgres)
    }

    /// Finds out what stands at the place.
    pub(super) fn look(&self) -> Result<Found, StepError> {
        let metadata = match fs::symlink_metadata(&self.data_dir) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
            Err(error) => return Err(self.unsuitable(&format!("cannot be looked at: {error}"))),
        };
        if metadata.is_symlink() {
            return Err(self.unsuitable("is a symbolic link; name the directory itself"));
        }
        if !metadata.is_dir() {
            return Err(self.unsuitable("is not a directory"));
        }
        let names = self.names()?;
        if names.is_empty() {
            return Ok(Found::Empty);
        }
        Ok(if self.is_own() { Found::Own } else { Found::Foreign(names) })
    }

    fn names(&self) -> Result<Vec<String>, StepError> {
        let entries = fs::read_dir(&self.data_dir)
            .map_err(|error| self.unsuitable(&format!("cannot be read: {error}")))?;
        let mut names: Vec<String> =
            entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        Ok(names)
    }

    /// Half-filled by this step of this run.
    fn is_own(&self) -> bool {
        RestoreNote::read(&self.data_dir)
            .is_some_and(|note| note.run == self.run && note.step == self.step && !note.finished)
    }

    /// Filled by this step of this run, and complete: the inode that it recorded, or its note, tells.
    pub(super) fn is_restored(&self, inode: Option<u64>) -> bool {
        let noted = RestoreNote::read(&self.data_dir)
            .is_some_and(|note| note.run == self.run && note.step == self.step && note.finished);
        // Inodes are used again: a directory that somebody else has made is hardly a cluster.
        let is_cluster = match self.role {
            Role::Data => self.data_dir.join("global/pg_control").exists(),
            Role::Tablespace(_) => {
                self.names().is_ok_and(|names| names.iter().all(|name| name.starts_with("PG_")))
            }
        };
        is_cluster && (noted || (inode.is_some() && self.inode() == inode))
    }

    /// Returns a name beside the directory.
    pub(super) fn beside(&self, suffix: &str) -> PathBuf {
        let name = self.data_dir.file_name().unwrap_or_default().to_string_lossy();
        self.parent.join(format!("{name}.{suffix}"))
    }

    fn id(&self, of: &str) -> String {
        match &self.role {
            Role::Data => format!("{of}:{}", self.resource),
            Role::Tablespace(oid) => format!("{of}:{}:{oid}", self.resource),
        }
    }

    pub(super) fn aside_id(&self) -> String {
        self.id("aside")
    }

    pub(super) fn data_id(&self) -> String {
        self.id("data")
    }

    pub(super) fn note_id(&self) -> String {
        self.id("note")
    }

    /// Makes the names beside the directory durable.
    pub(super) fn sync_parent(&self) -> Result<(), StepError> {
        sync_dir(&self.parent)
    }

    /// The error for files that are in the way.
    pub(super) fn in_the_way(&self, names: &[String]) -> StepError {
        const SHOWN: usize = 6;
        let what = match fs::read_to_string(self.data_dir.join("PG_VERSION")) {
            Ok(version) => format!("the data directory of a Postgres {} cluster", version.trim()),
            Err(_) => "files".to_owned(),
        };
        let more = if names.len() > SHOWN { ", …" } else { "" };
        StepError::permanent(
            codes::LB1252,
            format!(
                "{} is not empty: it holds {what} ({}{more})",
                self.data_dir.display(),
                names[..names.len().min(SHOWN)].join(", ")
            ),
        )
        .help("to keep it under another name and restore in its place, write `existing: move_aside` on this step")
    }

    /// Renames what is in the way, recorded before it happens. Nothing is deleted.
    pub(super) async fn move_aside(&self, ctx: &StepContext) -> Result<(), StepError> {
        if fs::symlink_metadata(&self.aside).is_ok() {
            return Err(self
                .unsuitable(&format!("cannot be moved aside: {} exists already", self.aside.display()))
                .help(format!("look at {} and rename it, then try again", self.aside.display())));
        }
        if device(&self.data_dir) != device(&self.parent) {
            return Err(self
                .unsuitable("is a mount point, which cannot be renamed")
                .help("use a directory below the mount point, or empty this one yourself"));
        }
        ctx.created(Created {
            id: self.aside_id(),
            what: format!("earlier {}", self.what()),
            kind: CreatedKind::MovedAside { from: self.data_dir.clone(), to: self.aside.clone() },
        })
        .await?;
        fs::rename(&self.data_dir, &self.aside).map_err(|error| unwritable(&self.aside, &error))?;
        sync_dir(&self.parent)
    }

    /// Puts back what was moved aside, after a failure, if the place is free. Says whether it is back.
    fn move_back(&self) -> bool {
        if fs::symlink_metadata(&self.data_dir).is_ok() || fs::symlink_metadata(&self.aside).is_err() {
            return false;
        }
        if let Err(error) = fs::rename(&self.aside, &self.data_dir) {
            tracing::warn!("{} could not be put back: {error}", self.data_dir.display());
            return false;
        }
        drop(sync_dir(&self.parent));
        true
    }

    /// Makes the directory, or takes an empty one, and notes whose it is.
    pub(super) async fn take(&self, ctx: &StepContext, backup: &str) -> Result<(), StepError> {
        ctx.created(Created {
            id: self.data_id(),
            what: format!("restored {}", self.what()),
            kind: CreatedKind::Directory { path: self.data_dir.clone() },
        })
        .await?;
        ctx.created(Created {
            id: self.note_id(),
            what: format!("restore note of the {}", self.what()),
            kind: CreatedKind::File { path: RestoreNote::path(&self.data_dir) },
        })
        .await?;
        let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(&self.parent);
        made.map_err(|error| unwritable(&self.parent, &error))?;
        match fs::DirBuilder::new().mode(0o700).create(&self.data_dir) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => other.map_err(|error| unwritable(&self.data_dir, &error))?,
        }
        self.close_to_others().map_err(|error| unwritable(&self.data_dir, &error))?;
        self.note(backup, false)
    }

    /// While files are written, nobody but Lifeboat's own user may reach them: not even the server's user, who could
    /// put links in the way of a root process.
    fn close_to_others(&self) -> io::Result<()> {
        use std::os::unix::fs::PermissionsExt;
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::lchown(&self.data_dir, Some(0), Some(0))?;
        }
        fs::set_permissions(&self.data_dir, fs::Permissions::from_mode(0o700))
    }

    /// Notes whose the directory is, and whether it is complete.
    pub(super) fn note(&self, backup: &str, finished: bool) -> Result<(), StepError> {
        RestoreNote::write(&self.data_dir, (&self.run, &self.step), backup, finished)
            .map_err(|error| unwritable(&RestoreNote::path(&self.data_dir), &error))
    }

    /// Empties the directory that this step has filled itself.
    pub(super) fn wipe_own(&self) -> Result<(), StepError> {
        if !self.is_own() {
            return Ok(());
        }
        let entries = fs::read_dir(&self.data_dir).map_err(|error| unwritable(&self.data_dir, &error))?;
        for entry in entries.flatten() {
            let path = entry.path();
            let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
            let removed = if is_dir { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.map_err(|error| unwritable(&path, &error))?;
        }
        Ok(())
    }

    /// After a failure: removes what this step has made and puts back what stood there.
    ///
    /// The journal learns that the directory is gone before another one stands in its place, which the end of a drill
    /// would take for the restored one and delete.
    pub(super) async fn give_up(&self, ctx: &StepContext) -> Result<(), StepError> {
        let target = self.clone();
        let gone = blocking(move || {
            target.wipe_own()?;
            // A mount point stays; an empty directory is as good as none.
            let gone = target.is_own() && fs::remove_dir(&target.data_dir).is_ok();
            if gone {
                RestoreNote::remove(&target.data_dir);
            }
            Ok(gone)
        })
        .await?;
        if gone {
            ctx.removed(&self.data_id(), &format!("`{}` does not exist", self.data_dir.display())).await?;
            ctx.removed(&self.note_id(), "the note was removed").await?;
        }
        if self.move_back() {
            ctx.removed(&self.aside_id(), &format!("`{}` is back in its place", self.data_dir.display()))
                .await?;
        }
        Ok(())
    }

    /// Hands the finished directory over to the server's user.
    pub(super) fn hand_over(&self, owner: Option<&OsUser>) -> Result<(), StepError> {
        own_path(&self.data_dir, owner).map_err(|error| unwritable(&self.data_dir, &error))?;
        sync_dir(&self.data_dir)
    }

    /// Returns the inode of the directory, which tells whether it is still the same one.
    pub(super) fn inode(&self) -> Option<u64> {
        fs::symlink_metadata(&self.data_dir).ok().map(|metadata| metadata.ino())
    }

    /// Says what was moved aside, and where to.
    pub(super) fn aside(&self) -> Option<&Path> {
        fs::symlink_metadata(&self.aside).is_ok().then_some(self.aside.as_path())
    }

    /// Returns the name under which what stood there is kept.
    pub(super) fn aside_path(&self) -> PathBuf {
        self.aside.clone()
    }

    /// Tells apart the file systems where directories are or will be.
    pub(super) fn file_system(&self) -> Option<u64> {
        device(self.existing())
    }

    fn existing(&self) -> &Path {
        self.data_dir.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"))
    }

    /// Returns the bytes that are free where the directory is or will be.
    pub(super) fn free_space(&self) -> Result<u64, StepError> {
        let existing = self.existing();
        let stat = rustix::fs::statvfs(existing).map_err(|error| unwritable(existing, &error.into()))?;
        let blocks = if rustix::process::geteuid().is_root() { stat.f_bfree } else { stat.f_bavail };
        Ok(blocks * stat.f_frsize)
    }
}

fn check_port(postgres: &Postgres) -> Result<(), StepError> {
    let port = postgres.port;
    let tcp = postgres.host.as_ref().is_some_and(|host| !host.starts_with('/'));
    if let Some(listener) = listener::on_port(port).filter(|_| tcp) {
        return Err(StepError::permanent(codes::LB1251, format!("port {port} is in use by {listener}"))
            .help("stop that process, or give the resource another `port`; nothing was touched"));
    }
    let socket = match (&postgres.host, &postgres.socket_dir) {
        (Some(dir), _) if dir.starts_with('/') => Some(socket_path(Path::new(dir), port)),
        (_, Some(dir)) => Some(socket_path(dir, port)),
        _ => None,
    };
    match socket {
        Some(socket) if std::os::unix::net::UnixStream::connect(&socket).is_ok() => {
            Err(StepError::permanent(codes::LB1251, format!("a server listens on {}", socket.display()))
                .help("stop it, or give the resource another `port` or `socket_dir`; nothing was touched"))
        }
        _ => Ok(()),
    }
}

fn device(path: &Path) -> Option<u64> {
    fs::symlink_metadata(path).ok().map(|metadata| metadata.dev())
}

fn unsuitable(role: &Role, dir: &Path, why: &str) -> StepError {
    let (what, correct) = match role {
        Role::Data => ("data directory", "correct `data_dir` of the resource in the environment's file"),
        Role::Tablespace(_) => {
            ("tablespace directory", "give the tablespace another directory with `tablespaces`")
        }
    };
    StepError::permanent(codes::LB1253, format!("the {what} {} {why}", dir.display()))
        .help(format!("{correct}; nothing was touched"))
}

/// Makes the names in a directory durable.
pub(super) fn sync_dir(dir: &Path) -> Result<(), StepError> {
    fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(|error| unwritable(dir, &error))
}
