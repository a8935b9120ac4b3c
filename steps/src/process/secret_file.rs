//! A secret as a file that is on no disk: whoever is killed leaves nothing behind.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;

use lifeboat_engine::step::StepError;
use rustix::fs::{MemfdFlags, Mode, fchmod, fchown, memfd_create};
use rustix::process::{Gid, Uid};

use super::{Command, OsUser, codes};

impl Command {
    /// Gives the program a secret as the content of a file, and the path in a variable, as `PGPASSFILE` wants it.
    ///
    /// The file is in memory and can be opened by the program alone, for as long as it runs. Not for servers.
    pub fn secret_file(self, name: impl AsRef<OsStr>, content: &str) -> Result<Self, StepError> {
        let (command, path) = self.with_secret(content)?;
        Ok(command.env(name, path))
    }

    /// Gives the program a secret as the content of a file, and the path in an argument that begins with `option`, as
    /// `--defaults-file=` wants it. Otherwise like [`Command::secret_file`].
    pub fn secret_option(self, option: &str, content: &str) -> Result<Self, StepError> {
        let (command, path) = self.with_secret(content)?;
        Ok(command.arg(format!("{option}{path}")))
    }

    fn with_secret(mut self, content: &str) -> Result<(Self, String), StepError> {
        let file = in_memory(content).map_err(|error| {
            StepError::transient(codes::LB1002, format!("`{}` cannot be given its secret", self.name))
                .help("the machine is out of memory or of open files")
                .caused_by(&error)
        })?;
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        self.secret_files.push(file);
        Ok((self, path))
    }
}

fn in_memory(content: &str) -> io::Result<File> {
    let mut file = File::from(memfd_create("lifeboat-secret", MemfdFlags::CLOEXEC)?);
    // Programs refuse a secret that others could read.
    fchmod(&file, Mode::RUSR | Mode::WUSR)?;
    file.write_all(content.as_bytes())?;
    Ok(file)
}

/// Lets the user open the file that a program is started as.
pub(super) fn give(file: &File, user: &OsUser) -> io::Result<()> {
    Ok(fchown(file, Some(Uid::from_raw(user.uid)), Some(Gid::from_raw(user.gid)))?)
}
