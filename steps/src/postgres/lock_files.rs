//! Lock files that a killed postmaster has left, and that keep the next one from starting.
//!
//! Postgres makes `postmaster.pid` and the lock of each socket first, and writes them next. Whoever is killed in between
//! leaves an empty file, of which the next server cannot tell whose it is: it gives up, and so would every retry.
//!
//! One that is written names a process. Another process of the same user may have its number by now, most easily after the
//! machine was started again, and the next server would take that for the one that it must not disturb.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lifeboat_engine::step::{StepContext, StepError};

use super::codes;
use super::connect::PgError;
use super::server::{Launch, Pace};

const SETTING: &str = "unix_socket_directories";

/// Writes directories as the server's setting takes them.
pub(super) fn socket_setting<'a>(dirs: impl IntoIterator<Item = &'a Path>) -> (String, String) {
    let quoted = |dir: &Path| format!("\"{}\"", dir.display().to_string().replace('"', "\"\""));
    let dirs: Vec<String> = dirs.into_iter().map(quoted).collect();
    (SETTING.to_owned(), dirs.join(", "))
}

/// Returns the locks that a server with these settings will make.
fn of_server(data_dir: &Path, settings: &[(String, String)]) -> Vec<PathBuf> {
    let value =
        |wanted: &str| settings.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.as_str());
    let mut locks = vec![data_dir.join("postmaster.pid")];
    if let (Some(dirs), Some(port)) = (value(SETTING), value("port")) {
        let name = format!(".s.PGSQL.{port}.lock");
        locks.extend(dirs_of(dirs).into_iter().map(|dir| dir.join(&name)));
    }
    locks
}

/// Reads what [`socket_setting`] has written.
fn dirs_of(setting: &str) -> Vec<PathBuf> {
    let inner = setting.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    inner.map_or_else(Vec::new, |inner| {
        inner.split("\", \"").map(|dir| PathBuf::from(dir.replace("\"\"", "\""))).collect()
    })
}

/// Removes the locks that an earlier server on the data directory has left, and those that stay empty.
///
/// For a caller who knows that nobody works in the data directory. A directory of sockets may be shared, so a lock
/// there must also be of the same user, and get the time in which a server that starts just now writes its own.
pub(super) async fn remove_left(ctx: &StepContext, launch: &Launch<'_>) -> Result<(), StepError> {
    let uid = launch.owner.map_or_else(|| rustix::process::geteuid().as_raw(), |owner| owner.uid);
    for lock in of_server(launch.data_dir, launch.settings) {
        if is_of(&lock, launch.data_dir) || stays_empty(ctx, &lock, uid).await? {
            remove(&lock)?;
        }
    }
    Ok(())
}

/// Says whether a lock is that of a server on the data directory: its second line says so, also for a socket.
fn is_of(lock: &Path, data_dir: &Path) -> bool {
    let text = fs::read_to_string(lock).unwrap_or_default();
    let named = text.lines().nth(1).map(|dir| Path::new(dir).canonicalize());
    named.is_some_and(|named| named.is_ok_and(|named| data_dir.canonicalize().is_ok_and(|dir| dir == named)))
}

async fn stays_empty(ctx: &StepContext, lock: &Path, uid: u32) -> Result<bool, StepError> {
    const TIME_TO_WRITE: Duration = Duration::from_secs(2);
    let Some(inode) = empty(lock, uid) else { return Ok(false) };
    let (deadline, pace) = (Instant::now() + TIME_TO_WRITE, Pace::start());
    while Instant::now() < deadline {
        tokio::select! {
            () = tokio::time::sleep(pace.pause()) => {}
            () = ctx.cancelled() => return Err(PgError::Cancelled.into()),
        }
        if empty(lock, uid) != Some(inode) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Returns which file it is, if it is an empty one of this user.
fn empty(lock: &Path, uid: u32) -> Option<(u64, u64)> {
    let found = fs::symlink_metadata(lock).ok()?;
    let matches = found.is_file() && found.len() == 0 && found.uid() == uid;
    matches.then(|| (found.dev(), found.ino()))
}

fn remove(lock: &Path) -> Result<(), StepError> {
    match fs::remove_file(lock) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            let message = format!("cannot remove the empty lock file {}: {error}", lock.display());
            Err(StepError::transient(codes::LB1260, message)
                .help("a killed server has left it; remove it by hand"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_locks_are_those_of_the_settings() {
        let dirs = ["/srv/a \"b\", c".as_ref(), "/run/pg".as_ref()];
        let settings = [("port".to_owned(), "5440".to_owned()), socket_setting(dirs)];
        assert_eq!(settings[1].1, r#""/srv/a ""b"", c", "/run/pg""#);
        let locks = of_server("/srv/pg".as_ref(), &settings);
        let names: Vec<&str> = locks.iter().filter_map(|lock| lock.to_str()).collect();
        let wanted =
            ["/srv/pg/postmaster.pid", "/srv/a \"b\", c/.s.PGSQL.5440.lock", "/run/pg/.s.PGSQL.5440.lock"];
        assert_eq!(names, wanted);
        assert_eq!(of_server("/srv/pg".as_ref(), &[]).len(), 1, "whatever its configuration says");
    }
}
