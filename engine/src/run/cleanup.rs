//! Removes what a drill created, and proves it.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::model::evidence::{Created, CreatedKind};
use crate::process::Identity;

/// How long a server has to stop before it is killed.
const PATIENCE: Duration = Duration::from_secs(30);

/// What became of one thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removal {
    pub removed: bool,
    /// How that is known, or why it was not possible.
    pub proof: String,
}

/// Removes one thing without holding up whoever waits, like [`remove`].
pub(super) async fn remove_aside(thing: Created) -> Removal {
    let removed = tokio::task::spawn_blocking(move || remove(&thing)).await;
    removed.unwrap_or_else(|_| Removal { removed: false, proof: "its removal ended through a defect".into() })
}

/// Removes one thing that stands by itself. Blocks. Removing what is gone already is a success.
pub fn remove(thing: &Created) -> Removal {
    let outcome = match &thing.kind {
        CreatedKind::Process { pid, start_ticks, boot_id, stop_signal } => {
            let identity = Identity { pid: *pid, start_ticks: *start_ticks, boot_id: boot_id.clone() };
            stop(&identity, *stop_signal)
        }
        CreatedKind::Directory { path } => delete(path, remove_dir),
        CreatedKind::File { path } => delete(path, |path| fs::remove_file(path)),
        CreatedKind::MovedAside { from, to } => move_back(from, to),
        CreatedKind::Within { resource, .. } => {
            Err(format!("it is part of `{resource}`, whose kind removes it"))
        }
    };
    match outcome {
        Ok(proof) => Removal { removed: true, proof },
        Err(reason) => Removal { removed: false, proof: reason },
    }
}

fn stop(identity: &Identity, signal: i32) -> Result<String, String> {
    match identity.stop(signal, PATIENCE) {
        Ok(true) => Ok(format!("process {} is gone", identity.pid)),
        Ok(false) => Err(format!(
            "process {0} or its group does not end; look at it with `ps -o pid,pgid,stat,wchan,args -g {0}`",
            identity.pid
        )),
        Err(error) => Err(format!("process {} cannot be stopped: {error}", identity.pid)),
    }
}

fn delete(path: &Path, how: impl FnOnce(&Path) -> std::io::Result<()>) -> Result<String, String> {
    match how(path) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(format!("`{}` cannot be removed: {error}", path.display())),
    }
    if is_there(path)? {
        return Err(format!("`{}` is still there", path.display()));
    }
    Ok(format!("`{}` does not exist", path.display()))
}

/// Removes a directory with all that is in it. What is left of a server that was killed may go on to make files for a moment.
fn remove_dir(path: &Path) -> std::io::Result<()> {
    const PATIENCE: Duration = Duration::from_secs(10);
    let deadline = Instant::now() + PATIENCE;
    loop {
        match fs::remove_dir_all(path) {
            Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(20));
            }
            other => return other,
        }
    }
}

/// Says whether something stands there, if that can be seen: what cannot be looked at is not gone.
fn is_there(path: &Path) -> Result<bool, String> {
    match path.symlink_metadata() {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(format!("`{}` cannot be looked at: {error}", path.display())),
    }
}

fn move_back(from: &Path, to: &Path) -> Result<String, String> {
    let (in_place, aside) = (is_there(from)?, is_there(to)?);
    if in_place && !aside {
        return Ok(format!("`{}` was not moved, or is back already", from.display()));
    }
    if !aside {
        return Err(format!(
            "`{}` is gone, and so is `{}`, which it was moved to: somebody has moved or removed it",
            from.display(),
            to.display()
        ));
    }
    if in_place {
        return Err(format!(
            "`{}` is in the way of `{}`, which was moved aside; compare the two and keep the right one",
            from.display(),
            to.display()
        ));
    }
    fs::rename(to, from).map_err(|error| format!("`{}` cannot be moved back: {error}", to.display()))?;
    Ok(format!("`{}` is back in its place", from.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn thing(kind: CreatedKind) -> Created {
        Created { id: "x".into(), what: "a thing".into(), kind }
    }

    #[test]
    fn what_was_moved_aside_comes_back_and_nothing_is_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("data"), dir.path().join("data.pre-1"));
        fs::create_dir(&to).unwrap();
        fs::create_dir(&from).unwrap();
        let moved = thing(CreatedKind::MovedAside { from: from.clone(), to: to.clone() });
        assert!(!remove(&moved).removed, "a restored directory is still in the way");
        assert!(remove(&thing(CreatedKind::Directory { path: from.clone() })).removed);
        assert!(remove(&moved).removed);
        assert!(from.exists() && !to.exists());
        assert!(remove(&moved).removed, "again is no error");
    }

    #[test]
    fn a_directory_goes_in_which_somebody_makes_files_for_a_moment() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        fs::create_dir(&path).unwrap();
        let (begun, at) = (std::sync::Barrier::new(2), path.clone());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let made = (0..20_000).map(|number| fs::write(at.join(number.to_string()), ""));
                made.enumerate().take_while(|(_, made)| made.is_ok()).for_each(|(number, _)| {
                    if number == 100 {
                        begun.wait();
                    }
                });
            });
            begun.wait();
            let removal = remove(&thing(CreatedKind::Directory { path: path.clone() }));
            assert!(removal.removed, "{}", removal.proof);
        });
    }

    #[test]
    fn what_was_moved_aside_and_cannot_be_found_is_no_success() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let moved = |to: &str| thing(CreatedKind::MovedAside { from: at("data"), to: at(to) });
        let removal = remove(&moved("data.pre-1"));
        assert!(
            !removal.removed && removal.proof.contains("somebody has moved or removed it"),
            "{removal:?}"
        );
        // A place that cannot be looked at: also root cannot follow a link to itself.
        std::os::unix::fs::symlink("loop", at("loop")).unwrap();
        fs::create_dir(at("data")).unwrap();
        let removal = remove(&moved("loop/data.pre-1"));
        assert!(!removal.removed && removal.proof.contains("cannot be looked at"), "{removal:?}");
    }

    /// A process that has nothing to do with the run but its number, and what was recorded of a server that had the number
    /// before: under another start, under another boot, and by a kernel that does not tell its boots apart.
    #[test]
    fn a_stranger_with_the_number_of_a_server_is_never_ended() {
        use std::os::unix::process::CommandExt;
        let mut stranger = std::process::Command::new("sleep").arg("600").process_group(0).spawn().unwrap();
        let Identity { pid, start_ticks, boot_id } = Identity::of(stranger.id()).unwrap();
        let recorded = [
            (start_ticks - 1, boot_id.clone()),
            (start_ticks + 1, boot_id.clone()),
            (start_ticks, "another".to_owned()),
            (start_ticks, String::new()),
        ];
        for (start_ticks, boot_id) in recorded {
            let kind = CreatedKind::Process { pid, start_ticks, boot_id, stop_signal: 15 };
            let removal = remove(&thing(kind.clone()));
            assert!(removal.removed, "the server is gone: {kind:?}");
            assert_eq!(stranger.try_wait().unwrap(), None, "{kind:?}");
        }
        let kind = CreatedKind::Process { pid, start_ticks, boot_id, stop_signal: 15 };
        assert!(remove(&thing(kind)).removed);
        assert!(stranger.wait().unwrap().code().is_none(), "its own server is ended by a signal");
    }
}
