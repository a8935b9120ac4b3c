//! A checkout that was cut off: which files are its own work, and which somebody has changed.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader, Seek};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use lifeboat_engine::step::StepError;

use super::codes;
use super::repository::{Repository, shown};

/// What a commit has, and which of it looks different in the work tree.
struct Side {
    has: BTreeSet<Vec<u8>>,
    differs: BTreeSet<Vec<u8>>,
}

/// What is found in a work tree that a checkout was cut off in.
pub(super) struct Found {
    /// Files that are neither as in the one commit nor as in the other, nor on the way between them: somebody has changed
    /// them since.
    pub(super) foreign: Vec<String>,
    /// Files of the commit that is left, which the other one does not have.
    pub(super) left: Vec<PathBuf>,
}

/// Looks at every file that differs from one of two commits between which a checkout was cut off, in either direction.
pub(super) async fn look(repository: &Repository<'_>, from: &str, to: &str) -> Result<Found, StepError> {
    let commits = [from, to];
    let (from, to) = (side(repository, from).await?, side(repository, to).await?);
    let mut foreign = Vec::new();
    for name in from.differs.union(&to.differs) {
        let as_in = |side: &Side| side.has.contains(name) && !side.differs.contains(name);
        if as_in(&from) || as_in(&to) {
            continue;
        }
        let path = repository.dir.join(OsStr::from_bytes(name));
        // Git removes a file before it writes the new one, and writes that in place.
        let mut ours = path.symlink_metadata().is_err();
        for (commit, side) in commits.iter().zip([&from, &to]) {
            ours = ours || side.has.contains(name) && begins(repository, (commit, name), &path).await?;
        }
        if !ours {
            foreign.push(shown(name));
        }
    }
    let left = from.has.difference(&to.has).map(|name| repository.dir.join(OsStr::from_bytes(name)));
    Ok(Found { foreign, left: left.collect() })
}

async fn side(repository: &Repository<'_>, commit: &str) -> Result<Side, StepError> {
    let unusable = |error: std::io::Error| {
        StepError::transient(codes::LB1530, "no index can be made beside that of git").caused_by(&error)
    };
    let dir = tempfile::tempdir_in(&repository.git_dir).map_err(unusable)?;
    if let Some(user) = &repository.os_user {
        give(dir.path(), user)?;
    }
    let index = dir.path().join("index");
    repository.names(&["read-tree", commit], Some(&index)).await?;
    let has = repository.names(&["ls-files", "-z"], Some(&index)).await?.into_iter().collect();
    let args = [
        "diff",
        "-z",
        "--name-only",
        "--no-ext-diff",
        "--no-textconv",
        "--no-renames",
        "--ignore-submodules",
    ];
    let differs = repository.names(&args, Some(&index));
    Ok(Side { has, differs: differs.await?.into_iter().collect() })
}

/// Says whether a file of the work tree is the beginning of what a commit has under its name.
async fn begins(
    repository: &Repository<'_>,
    (commit, name): (&str, &[u8]),
    path: &Path,
) -> Result<bool, StepError> {
    let unusable = |error: std::io::Error| {
        StepError::transient(codes::LB1530, format!("{} cannot be compared", path.display()))
            .caused_by(&error)
    };
    let Ok(found) = File::open(path) else { return Ok(false) };
    let mut whole = tempfile::tempfile().map_err(unusable)?;
    let object = [commit.as_bytes(), b":", name].concat();
    let command = repository.command(&["cat-file", "--filters"]).arg(OsStr::from_bytes(&object));
    let output = command.stdout_to(whole.try_clone().map_err(unusable)?).run(repository.ctx).await?;
    if output.exit_code != 0 {
        return Ok(false);
    }
    whole.rewind().map_err(unusable)?;
    let (mut found, mut whole) = (BufReader::new(found), BufReader::new(whole));
    loop {
        let part = found.fill_buf().map_err(unusable)?;
        let wanted = whole.fill_buf().map_err(unusable)?;
        if part.is_empty() {
            return Ok(true);
        }
        let common = part.len().min(wanted.len());
        if common == 0 || part[..common] != wanted[..common] {
            return Ok(false);
        }
        found.consume(common);
        whole.consume(common);
    }
}

/// Lets another user write in a directory that root has made.
fn give(dir: &Path, user: &str) -> Result<(), StepError> {
    let user = crate::process::OsUser::lookup(user)?;
    if user.is_current() {
        return Ok(());
    }
    std::os::unix::fs::chown(dir, Some(user.uid), Some(user.gid)).map_err(|error| {
        StepError::transient(codes::LB1530, format!("{} cannot be given away", dir.display()))
            .caused_by(&error)
    })
}
