//! Reads the control file of a data directory, through `pg_controldata`.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use lifeboat_engine::step::StepError;

use super::codes;
use super::tools::Tools;

/// What the control file says about a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlData {
    /// Set by `initdb`; a clone has that of its source.
    pub system_id: String,
    pub state: ClusterState,
    pub timeline: u32,
    /// The LSN of the latest checkpoint record.
    pub checkpoint: String,
    /// The time of the latest checkpoint, as the program prints it.
    pub checkpoint_time: String,
    /// Recovery must get at least this far before the data is consistent; `0/0` if there is no such point.
    pub minimum_recovery: String,
    pub wal_segment_size: u64,
    /// True if pages carry checksums.
    pub data_checksums: bool,
    /// Settings that a standby must not have lower than its source, by their names as server settings.
    pub standby_settings: BTreeMap<&'static str, u64>,
}

/// How the server last left the data directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClusterState {
    ShutDown,
    ShutDownInRecovery,
    InProduction,
    InArchiveRecovery,
    /// Starting, stopping, in crash recovery.
    Other,
}

/// Lines of `pg_controldata` and the server settings that they limit.
const STANDBY_SETTINGS: [(&str, &str); 5] = [
    ("max_connections setting", "max_connections"),
    ("max_worker_processes setting", "max_worker_processes"),
    ("max_wal_senders setting", "max_wal_senders"),
    ("max_prepared_xacts setting", "max_prepared_transactions"),
    ("max_locks_per_xact setting", "max_locks_per_transaction"),
];

impl ControlData {
    /// Reads the control file of a data directory. Needs no running server.
    pub fn read(tools: &Tools, data_dir: &Path) -> Result<Self, StepError> {
        let failed = |why: String| {
            StepError::permanent(
                codes::LB1247,
                format!("the control file of {} cannot be read: {why}", data_dir.display()),
            )
            .help("check `data_dir` and `bin_dir` of the resource")
        };
        let output = Command::new(tools.program("pg_controldata"))
            .env("LC_ALL", "C")
            .env("TZ", "UTC")
            .arg("-D")
            .arg(data_dir)
            .output()
            .map_err(|error| failed(error.to_string()))?;
        if !output.status.success() {
            return Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
        }
        let text = String::from_utf8_lossy(&output.stdout);
        if let Some(warning) = text.lines().find(|line| line.starts_with("WARNING")) {
            return Err(failed(warning.to_owned()));
        }
        Self::parse(&text).map_err(failed)
    }

    fn parse(text: &str) -> Result<Self, String> {
        let fields: BTreeMap<&str, &str> = text
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.trim(), value.trim()))
            .collect();
        let field = |name: &str| {
            fields.get(name).copied().ok_or_else(|| format!("pg_controldata printed no `{name}`"))
        };
        let number = |name: &str| {
            field(name)?.parse::<u64>().map_err(|_| format!("pg_controldata printed an odd `{name}`"))
        };
        let mut standby_settings = BTreeMap::new();
        for (line, setting) in STANDBY_SETTINGS {
            standby_settings.insert(setting, number(line)?);
        }
        Ok(Self {
            system_id: field("Database system identifier")?.to_owned(),
            state: ClusterState::parse(field("Database cluster state")?),
            timeline: u32::try_from(number("Latest checkpoint's TimeLineID")?).map_err(|e| e.to_string())?,
            checkpoint: field("Latest checkpoint location")?.to_owned(),
            checkpoint_time: field("Time of latest checkpoint")?.to_owned(),
            minimum_recovery: field("Minimum recovery ending location")?.to_owned(),
            wal_segment_size: number("Bytes per WAL segment")?,
            data_checksums: number("Data page checksum version")? != 0,
            standby_settings,
        })
    }
}

impl ClusterState {
    fn parse(text: &str) -> Self {
        match text {
            "shut down" => Self::ShutDown,
            "shut down in recovery" => Self::ShutDownInRecovery,
            "in production" => Self::InProduction,
            "in archive recovery" => Self::InArchiveRecovery,
            _ => Self::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "\
pg_control version number:            1300
Database system identifier:           7574853125371812345
Database cluster state:               in production
Latest checkpoint location:           0/2000060
Latest checkpoint's TimeLineID:       1
Time of latest checkpoint:            Sat Nov 21 06:11:51 2026
Minimum recovery ending location:     0/0
wal_level setting:                    replica
max_connections setting:              30
max_worker_processes setting:         8
max_wal_senders setting:              10
max_prepared_xacts setting:           0
max_locks_per_xact setting:           64
Bytes per WAL segment:                1048576
Data page checksum version:           0
";

    #[test]
    fn what_the_program_prints_is_read() {
        let data = ControlData::parse(OUTPUT).expect("complete");
        assert_eq!(data.system_id, "7574853125371812345");
        assert_eq!(data.state, ClusterState::InProduction);
        assert_eq!(data.checkpoint_time, "Sat Nov 21 06:11:51 2026");
        assert_eq!(data.standby_settings["max_prepared_transactions"], 0);
        assert_eq!(data.standby_settings["max_connections"], 30);
        assert!(!data.data_checksums);
    }

    #[test]
    fn a_missing_line_is_an_error_that_names_it() {
        let cut = OUTPUT.replace("max_wal_senders setting", "something else");
        assert!(ControlData::parse(&cut).expect_err("incomplete").contains("max_wal_senders"));
    }
}
