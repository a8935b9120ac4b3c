//! Moves the files of a stopped server aside and places a snapshot.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use lifeboat_engine::model::evidence::{Created, CreatedKind};
use lifeboat_engine::step::{StepContext, StepError};
use rustix::process::{Gid, Uid};
use serde_json::Value;

use super::codes;
use super::config::Persistence;
use crate::probe::free_space;
use crate::process::OsUser;
use crate::store::{Meter, blocking, copy};

/// What an attempt records once everything old is aside, so that the next one does not move its own files.
pub(super) const ASIDE: &str = "old_files_aside";

/// Who owns placed files, and with what mode.
#[derive(Clone, Copy, Debug)]
struct Look {
    owner: Option<(u32, u32)>,
    mode: u32,
}

/// A snapshot in the data directory under a name that no server loads, with its owner and mode.
#[derive(Debug)]
pub(super) struct Staged {
    path: PathBuf,
    look: Look,
}

/// Copies a snapshot beside its place, durably, while the server still runs: so that nothing is left to do while it is
/// stopped but to rename, and a disk that is full stops nothing.
pub(super) async fn stage(
    ctx: &StepContext,
    server: &str,
    snapshot: &Path,
    (persistence, os_user): (&Persistence, Option<&str>),
) -> Result<Staged, StepError> {
    let dump = persistence.dir.join(&persistence.dump);
    let path = aside_of(&dump, "restore", &ctx.info.run.short());
    provide_dir(ctx, server, &persistence.dir, os_user).await?;
    let look = look(ctx, &dump, (&persistence.dir, os_user))?;
    check_room(&persistence.dir, (snapshot, &path))?;
    announce(ctx, (server, STAGED), "fetched snapshot", CreatedKind::File { path: path.clone() }).await?;
    ctx.record(STAGED, path.display().to_string()).await?;
    put(ctx, snapshot, &path, look).await?;
    Ok(Staged { path, look })
}

const STAGED: &str = "staged";

/// Removes what an attempt has staged and not put in place.
pub(super) async fn remove_staged(ctx: &StepContext, server: &str) -> Result<(), StepError> {
    let Some(path) = ctx.recorded(STAGED).and_then(Value::as_str) else { return Ok(()) };
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(failed("removed", Path::new(path), &error))
        }
        _ => ctx.removed(&thing_id(server, STAGED), &format!("`{path}` does not exist")).await,
    }
}

/// Refuses to begin without the room for a snapshot beside what is there.
fn check_room(dir: &Path, (snapshot, staged): (&Path, &Path)) -> Result<(), StepError> {
    let size = |path: &Path| fs::metadata(path).map_or(0, |found| found.len());
    let free = free_space(dir).map_err(|error| failed("measured", dir, &error))?;
    // What an attempt that was lost has staged is replaced.
    let (needed, free) = (size(snapshot), free.saturating_add(size(staged)));
    if free >= needed {
        return Ok(());
    }
    let message = format!("{} has {free} bytes free, and the snapshot needs {needed}", dir.display());
    Err(StepError::transient(codes::LB1336, message)
        .help("make room there; the server was not touched, and runs as it did"))
}

/// Puts a staged snapshot where the server will load it: as its dump, and as the base of its append-only file if it has
/// one. What stood there is moved aside and recorded. The server must be stopped.
pub(super) async fn place(
    ctx: &StepContext,
    server: &str,
    staged: Staged,
    persistence: &Persistence,
) -> Result<Vec<PathBuf>, StepError> {
    let dump = persistence.dir.join(&persistence.dump);
    let append_dir = persistence.dir.join(&persistence.append_dir);
    let mut aside = Vec::new();
    let moved_before = ctx.recorded(ASIDE).is_some_and(|value| *value == Value::Bool(true));
    for (name, path) in [("dump", &dump), ("append-only files", &append_dir)] {
        if !moved_before {
            aside.extend(move_aside(ctx, (server, name), path).await?);
        } else {
            let kept = aside_of(path, "pre", &ctx.info.run.short());
            aside.extend(kept.exists().then_some(kept));
            if path == &append_dir {
                remove_dir(path)?;
            }
        }
    }
    ctx.record(ASIDE, true).await?;
    announce(ctx, (server, "dump-placed"), "restored dump", CreatedKind::File { path: dump.clone() }).await?;
    fs::rename(&staged.path, &dump).map_err(|error| failed("put in place", &dump, &error))?;
    if persistence.append_only {
        place_append_only(ctx, server, (&dump, &append_dir), (persistence, staged.look)).await?;
    }
    sync_dir(&persistence.dir)?;
    ctx.removed(&thing_id(server, STAGED), "it has its own name now").await?;
    Ok(aside)
}

/// Makes the snapshot the base of a new append-only file, with the manifest that Redis 7 looks for.
async fn place_append_only(
    ctx: &StepContext,
    server: &str,
    (dump, append_dir): (&Path, &Path),
    (persistence, look): (&Persistence, Look),
) -> Result<(), StepError> {
    let base = format!("{}.1.base.rdb", persistence.append_file);
    let placed = CreatedKind::Directory { path: append_dir.to_owned() };
    announce(ctx, (server, "append-only-files-placed"), "restored append-only files", placed).await?;
    make_dir(append_dir, look)?;
    // The same file twice: Redis replaces both and writes into neither.
    if fs::hard_link(dump, append_dir.join(&base)).is_err() {
        put(ctx, dump, &append_dir.join(&base), look).await?;
    }
    let manifest = append_dir.join(format!("{}.manifest", persistence.append_file));
    let text = format!("file {base} seq 1 type b\n");
    write(&manifest, text.as_bytes(), look).map_err(|error| failed("written", &manifest, &error))?;
    sync_dir(append_dir)
}

/// Records what is about to be made, so that the end of a drill removes it before it brings the old files back.
async fn announce(
    ctx: &StepContext,
    (server, name): (&str, &str),
    what: &str,
    kind: CreatedKind,
) -> Result<(), StepError> {
    let what = format!("{what} of the Redis server {server}");
    ctx.created(Created { id: thing_id(server, name), what, kind }).await
}

/// Makes the data directory of a server that has never run here.
async fn provide_dir(
    ctx: &StepContext,
    server: &str,
    dir: &Path,
    os_user: Option<&str>,
) -> Result<(), StepError> {
    const MODE: u32 = 0o750;
    if dir.exists() {
        return Ok(());
    }
    let kind = CreatedKind::Directory { path: dir.to_owned() };
    announce(ctx, (server, "data-directory"), "data directory", kind).await?;
    let owner = os_user.map(OsUser::lookup).transpose()?.map(|user| (user.uid, user.gid));
    let made = fs::create_dir_all(dir)
        .and_then(|()| File::open(dir))
        .and_then(|opened| finish(&opened, Look { owner, mode: MODE }));
    made.map_err(|error| failed("made", dir, &error))
}

/// Returns the name beside a path under which something of a run is kept.
pub(super) fn aside_of(path: &Path, word: &str, run: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{word}-{run}"));
    PathBuf::from(name)
}

/// Returns what a thing that belongs to a server is called in the journal.
pub(super) fn thing_id(server: &str, name: &str) -> String {
    format!("redis:{server}:{name}")
}

async fn move_aside(
    ctx: &StepContext,
    (server, name): (&str, &str),
    from: &Path,
) -> Result<Option<PathBuf>, StepError> {
    let to = aside_of(from, "pre", &ctx.info.run.short());
    let id = thing_id(server, &name.replace(' ', "-"));
    if !from.exists() {
        // Nothing to keep, unless an attempt was lost between the rename and its record.
        return Ok(to.exists().then_some(to));
    }
    if to.exists() {
        return Ok(Some(to));
    }
    let kind = CreatedKind::MovedAside { from: from.to_owned(), to: to.clone() };
    let what = format!("earlier {name} of the Redis server {server}");
    ctx.created(Created { id, what, kind }).await?;
    fs::rename(from, &to).map_err(|error| failed("moved aside", from, &error))?;
    Ok(Some(to))
}

/// Takes owner and mode from the old file, wherever an earlier attempt has left it, or else from the directory.
fn look(ctx: &StepContext, dump: &Path, (dir, os_user): (&Path, Option<&str>)) -> Result<Look, StepError> {
    let aside = aside_of(dump, "pre", &ctx.info.run.short());
    let old = fs::metadata(aside).or_else(|_| fs::metadata(dump)).ok().filter(fs::Metadata::is_file);
    let of_dir = fs::metadata(dir).map_err(|error| failed("found", dir, &error))?;
    let mode = old.as_ref().map_or(0o640, |found| found.mode() & 0o777);
    let wanted = match os_user {
        Some(name) => OsUser::lookup(name).map(|user| (user.uid, user.gid))?,
        None => old.as_ref().map_or((of_dir.uid(), of_dir.gid()), |found| (found.uid(), found.gid())),
    };
    let is_root = rustix::process::geteuid().is_root();
    Ok(Look { owner: is_root.then_some(wanted), mode })
}

async fn put(ctx: &StepContext, from: &Path, to: &Path, look: Look) -> Result<(), StepError> {
    let meter = Meter::bytes(ctx, fs::metadata(from).ok().map(|found| found.len()), "placing the snapshot");
    let (from, to) = (from.to_owned(), to.to_owned());
    blocking(move || {
        let mut source = File::open(&from).map_err(|error| failed("read", &from, &error))?;
        // Whatever has that name is of an earlier attempt, or a link that leads elsewhere.
        match fs::remove_file(&to) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(failed("replaced", &to, &error));
            }
            _ => {}
        }
        let mut target = File::create_new(&to).map_err(|error| failed("written", &to, &error))?;
        copy(&mut source, &mut target, &meter)?;
        finish(&target, look).map_err(|error| failed("written", &to, &error))
    })
    .await
}

fn write(path: &Path, content: &[u8], look: Look) -> std::io::Result<()> {
    fs::write(path, content)?;
    finish(&File::open(path)?, look)
}

fn finish(file: &File, look: Look) -> std::io::Result<()> {
    if let Some((uid, gid)) = look.owner {
        rustix::fs::fchown(file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    }
    file.set_permissions(Permissions::from_mode(look.mode))?;
    file.sync_all()
}

fn make_dir(path: &Path, look: Look) -> Result<(), StepError> {
    let made = fs::create_dir_all(path).and_then(|()| {
        let dir = File::open(path)?;
        // Whoever may read a file in it must be able to search it.
        let mode = look.mode | ((look.mode & 0o444) >> 2);
        finish(&dir, Look { mode, ..look })
    });
    made.map_err(|error| failed("made", path, &error))
}

fn remove_dir(path: &Path) -> Result<(), StepError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(failed("removed", path, &error)),
        _ => Ok(()),
    }
}

pub(super) fn sync_dir(path: &Path) -> Result<(), StepError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(|error| failed("synced", path, &error))
}

pub(super) fn failed(what: &str, path: &Path, error: &std::io::Error) -> StepError {
    StepError::transient(codes::LB1311, format!("{} cannot be {what}", path.display()))
        .help("check the permissions and the space of its directory")
        .caused_by(error)
}
