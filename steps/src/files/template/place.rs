//! Puts a file in its place in one rename, and keeps the one that was there.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use lifeboat_engine::step::StepError;
use rustix::process::{Gid, Uid};

use super::super::codes;
use super::render::sha256;
use crate::process::OsUser;

/// Larger files are no configuration, and nothing of Lifeboat's.
const LIMIT: u64 = 16 * 1024 * 1024;

/// Where a file goes, and how it looks there.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) target: PathBuf,
    /// Beside the target: where it is written first.
    pub(super) staging: PathBuf,
    /// Beside the target: where the file that is there is kept.
    pub(super) aside: PathBuf,
    pub(super) mode: u32,
    pub(super) owner: Option<OsUser>,
}

/// The file that is there.
#[derive(Clone, Debug)]
pub(super) struct There {
    pub(super) content: Vec<u8>,
    pub(super) mode: u32,
    uid: u32,
    gid: u32,
}

impl Place {
    /// Finds the place: its directory must exist, and the last name is not followed.
    pub(super) fn of(
        target: &Path,
        run: &str,
        (mode, owner): (u32, Option<OsUser>),
    ) -> Result<Self, StepError> {
        let (Some(parent), Some(name)) = (target.parent(), target.file_name()) else {
            let message = format!("{} cannot be written: it has no name", target.display());
            return Err(
                StepError::permanent(codes::LB1442, message).help("give `to` the whole path of a file")
            );
        };
        let parent = parent.canonicalize().map_err(|error| {
            let message = format!("the directory {} cannot be found", parent.display());
            StepError::permanent(codes::LB1442, message).help("make it, or correct `to`").caused_by(&error)
        })?;
        let named = |prefix: &str, suffix: &str| {
            let mut whole = std::ffi::OsString::from(prefix);
            whole.push(name);
            whole.push(suffix);
            parent.join(whole)
        };
        Ok(Self {
            target: parent.join(name),
            staging: named(".", &format!(".template-{run}")),
            aside: named("", &format!(".pre-{run}")),
            mode,
            owner: owner.filter(|_| rustix::process::geteuid().is_root()),
        })
    }

    /// Reads the file that is there; a link or anything else that is no file is refused.
    pub(super) fn there(&self) -> Result<Option<There>, StepError> {
        let found = match self.target.symlink_metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(|error| self.failed("found", &self.target, &error))?,
        };
        let refuse = |why: &str| {
            let message = format!("{} is not replaced: {why}", self.target.display());
            Err(StepError::permanent(codes::LB1442, message).help("nothing was touched; correct `to`"))
        };
        match () {
            () if found.is_symlink() => refuse("it is a symbolic link; name the file that it leads to"),
            () if !found.is_file() => refuse("it is no file"),
            () if found.len() > LIMIT => refuse("it has more than 16 MiB, which no configuration has"),
            () => {
                let content =
                    fs::read(&self.target).map_err(|error| self.failed("read", &self.target, &error))?;
                Ok(Some(There { content, mode: found.mode() & 0o7777, uid: found.uid(), gid: found.gid() }))
            }
        }
    }

    /// Says whether the file that is there is already what it would become.
    pub(super) fn is_done(&self, there: &There, content: &str) -> bool {
        let owner = self.owner.as_ref().is_none_or(|user| (user.uid, user.gid) == (there.uid, there.gid));
        there.content == content.as_bytes() && there.mode == self.mode && owner
    }

    /// Writes the file beside its place, durably, readable by nobody else from the first byte on.
    pub(super) fn write(&self, content: &str) -> Result<(), StepError> {
        self.remove_staging()?;
        let write = || -> io::Result<()> {
            let mut file =
                fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&self.staging)?;
            file.write_all(content.as_bytes())?;
            if let Some(user) = &self.owner {
                rustix::fs::fchown(&file, Some(Uid::from_raw(user.uid)), Some(Gid::from_raw(user.gid)))?;
            }
            file.set_permissions(Permissions::from_mode(self.mode))?;
            file.sync_all()
        };
        write().map_err(|error| {
            fs::remove_file(&self.staging).ok();
            self.failed("written", &self.staging, &error)
        })
    }

    pub(super) fn remove_staging(&self) -> Result<(), StepError> {
        match fs::remove_file(&self.staging) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(self.failed("removed", &self.staging, &error))
            }
            _ => Ok(()),
        }
    }

    /// Gives the file that is there a second name, unless an earlier attempt has: then the first one is kept.
    pub(super) fn keep(&self) -> Result<(), StepError> {
        match fs::hard_link(&self.target, &self.aside) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other.map_err(|error| self.failed("kept", &self.aside, &error)),
        }
    }

    pub(super) fn publish(&self) -> Result<(), StepError> {
        fs::rename(&self.staging, &self.target)
            .map_err(|error| self.failed("put in place", &self.target, &error))?;
        self.sync()
    }

    /// Puts back what was kept, or removes what was written where nothing was. What somebody else has written since stays.
    pub(super) fn take_back(&self, written: &str, had_file: bool) -> Result<Option<String>, StepError> {
        self.remove_staging()?;
        let ours = self.there()?.is_none_or(|there| sha256(&there.content) == written);
        let is_kept = self.aside.symlink_metadata().is_ok();
        if had_file && !is_kept {
            return Ok(None);
        }
        if !ours {
            let message = format!("{} is not what this run has written", self.target.display());
            return Err(StepError::permanent(codes::LB1444, message)
                .help(format!("compare it with {}, and put the right one in place", self.aside.display())));
        }
        let back = if had_file { fs::rename(&self.aside, &self.target) } else { gone(&self.target) };
        back.map_err(|error| self.failed("put back", &self.target, &error))?;
        self.sync()?;
        Ok(Some(if had_file { "the earlier file is back" } else { "it is gone, as it was" }.to_owned()))
    }

    fn sync(&self) -> Result<(), StepError> {
        let parent = self.target.parent().unwrap_or(Path::new("/"));
        let synced = File::open(parent).and_then(|dir| dir.sync_all());
        synced.map_err(|error| self.failed("synced", parent, &error))
    }

    fn failed(&self, what: &str, path: &Path, error: &io::Error) -> StepError {
        StepError::transient(codes::LB1406, format!("{} cannot be {what}", path.display()))
            .help("check the permissions and the space of its directory")
            .caused_by(error)
    }
}

fn gone(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Reads permission bits as people write them: `0600`.
pub(super) fn mode(text: &str) -> Result<u32, String> {
    let digits = text.strip_prefix("0o").unwrap_or(text);
    let valid = (3..=4).contains(&digits.len()) && digits.bytes().all(|digit| (b'0'..=b'7').contains(&digit));
    let bits = valid.then(|| u32::from_str_radix(digits, 8).ok()).flatten();
    match bits {
        Some(bits) if bits & 0o7000 == 0 && bits & 0o002 == 0 => Ok(bits),
        Some(_) => Err(format!("`{text}` would let everybody write it, or give it special rights")),
        None => Err(format!("`{text}` is no mode: write for example '0600' or '0640'")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_octal_and_modest() {
        assert_eq!((mode("0600"), mode("640"), mode("0o400")), (Ok(0o600), Ok(0o640), Ok(0o400)));
        for bad in ["", "6", "0666", "4755", "0800", "rw", "00600", "0602"] {
            assert!(mode(bad).is_err(), "{bad}");
        }
    }
}
