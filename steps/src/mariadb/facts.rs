//! What a server says of itself.

use std::path::{Path, PathBuf};

use lifeboat_engine::resource::Mariadb;
use lifeboat_engine::step::StepError;

use super::codes;
use super::connect::{Client, DbError};

/// What tells one server from another, and what it is set to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) version: String,
    pub(super) server_id: u32,
    pub(super) hostname: String,
    pub(super) data_dir: PathBuf,
    /// Whether it writes a binary log.
    pub(super) logs: bool,
    pub(super) log_format: String,
    /// The last transaction of each domain in its binary log.
    pub(super) gtid: String,
    pub(super) scheduler: String,
    pub(super) pid_file: PathBuf,
}

impl Facts {
    /// Asks a server.
    pub(super) async fn read(client: &mut Client) -> Result<Self, DbError> {
        let [version, server_id, hostname, data_dir, logs, log_format, gtid, scheduler, pid_file] = client
            .one(
                "select @@version, @@server_id, @@hostname, @@datadir, @@log_bin, @@binlog_format, \
                 @@gtid_binlog_pos, @@event_scheduler, @@pid_file",
            )
            .await?;
        let data_dir = PathBuf::from(data_dir);
        Ok(Self {
            version,
            server_id: server_id.parse().unwrap_or(0),
            hostname,
            pid_file: data_dir.join(pid_file),
            data_dir,
            logs: logs == "1",
            log_format,
            gtid,
            scheduler,
        })
    }

    /// Returns the series, such as 10.11.
    pub(super) fn series(&self) -> (u32, u32) {
        series(&self.version)
    }
}

/// Returns the first two numbers of a version.
pub(super) fn series(version: &str) -> (u32, u32) {
    let mut numbers = version.split(['.', '-']).map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Finds out whether a server is MariaDB at all: MySQL has no such variables.
pub(super) async fn read(client: &mut Client) -> Result<Facts, StepError> {
    let [version] = client.one("select version()").await?;
    if !version.contains("MariaDB") {
        return Err(StepError::permanent(codes::LB2006, format!("the server is no MariaDB but `{version}`"))
            .help("these steps know MariaDB; use `run` steps with MySQL's own programs for MySQL"));
    }
    Ok(Facts::read(client).await?)
}

/// Makes sure that the server that answers is the one on the resource's data directory.
pub(super) fn check_place(mariadb: &Mariadb, facts: &Facts) -> Result<(), StepError> {
    let Some(expected) = &mariadb.data_dir else { return Ok(()) };
    if same_dir(expected, &facts.data_dir) {
        return Ok(());
    }
    let (expected, found) = (expected.display(), facts.data_dir.display());
    Err(StepError::permanent(
        codes::LB2007,
        format!("the server that answers has its data in {found}, not in {expected}"),
    )
    .help("another server listens there: correct `socket`, `port` or `data_dir` of the resource"))
}

fn same_dir(one: &Path, other: &Path) -> bool {
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.components().collect());
    real(one) == real(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_of_a_series() {
        assert_eq!(series("10.11.19-MariaDB-0+deb12u1-log"), (10, 11));
        assert_eq!(series("11.4.2-MariaDB"), (11, 4));
    }
}
