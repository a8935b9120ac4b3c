//! The file `postmaster.pid`, which a running server keeps in its data directory.

use std::path::{Path, PathBuf};

use crate::process::Identity;

/// What `postmaster.pid` says. It outlives a crash, so the process must be looked for before it is believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PidFile {
    pub pid: u32,
    pub data_dir: PathBuf,
    /// Seconds since 1970.
    pub started: i64,
    pub port: Option<u16>,
    /// The first directory with a Unix socket of the server.
    pub socket_dir: Option<PathBuf>,
    /// `ready` once the server takes connections; `standby`, `starting` or `stopping` otherwise.
    pub status: Option<String>,
}

impl PidFile {
    /// Reads the file of a data directory; `None` if there is none or it is not complete yet.
    pub fn read(data_dir: &Path) -> Option<Self> {
        Self::parse(&std::fs::read_to_string(data_dir.join("postmaster.pid")).ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines().map(str::trim);
        // A server in single-user mode writes a negative number.
        let pid: i64 = lines.next()?.parse().ok()?;
        Some(Self {
            pid: u32::try_from(pid.abs()).ok()?,
            data_dir: lines.next()?.into(),
            started: lines.next()?.parse().ok()?,
            port: lines.next().and_then(|port| port.parse().ok()),
            socket_dir: lines.next().filter(|dir| !dir.is_empty()).map(PathBuf::from),
            status: lines.nth(2).filter(|status| !status.is_empty()).map(ToOwned::to_owned),
        })
    }

    /// Returns the process that serves a data directory, if it runs: the number in the file must belong to a
    /// process whose working directory is the data directory, as that of every Postgres server is.
    pub fn live(data_dir: &Path) -> Option<(Self, Identity)> {
        let file = Self::read(data_dir)?;
        let identity = Identity::of(file.pid)?;
        let works_in = std::fs::read_link(format!("/proc/{}/cwd", file.pid));
        let here = std::fs::canonicalize(data_dir).ok()?;
        match works_in {
            Ok(dir) if dir != here => None,
            // Unreadable for lack of rights: better to believe that it lives.
            _ => Some((file, identity)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_are_read_in_their_order() {
        let text = "4711\n/srv/pg\n1795241511\n5440\n/srv/s\nlocalhost\n  1234 5678\nready   \n";
        let file = PidFile::parse(text).expect("complete");
        assert_eq!((file.pid, file.port, file.started), (4711, Some(5440), 1_795_241_511));
        assert_eq!(file.socket_dir, Some("/srv/s".into()));
        assert_eq!(file.status.as_deref(), Some("ready"));
        assert_eq!(PidFile::parse("4711\n/srv/pg\n"), None);
        let early = PidFile::parse("4711\n/srv/pg\n1795241511\n5440\n\n").expect("first lines");
        assert_eq!((early.socket_dir, early.status), (None, None));
    }
}
