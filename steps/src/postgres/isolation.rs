//! Servers that Lifeboat starts on restored data, cut off from the world that the data comes from.
//!
//! Such a server has a directory of its own beside its data directory, which only its system user can enter: its
//! socket, its configuration, the client for `restore_command` and a file that says which recovery it is. The
//! restored configuration is not read; everything is set here, so that a clone never archives into the source's
//! archive, never connects to the source's replicas or publishers and never loads a library that is not installed.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use lifeboat_engine::model::evidence::{Created, CreatedKind};
use lifeboat_engine::plan::hex;
use lifeboat_engine::resource::{Postgres, shown};
use lifeboat_engine::step::{StepContext, StepError};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::controldata::ControlData;
use super::lock_files::socket_setting;
use super::pidfile::PidFile;
use super::recovery_target::{Edge, RecoveryTarget};
use super::wal::{Lsn, SegmentSize, SystemId};
use super::{codes, memory};
use crate::process::OsUser;

const DESCRIPTION: &str = "isolation.json";
pub(super) const CLIENT: &str = "lifeboat";
const CONFIGURATION: &str = "postgresql.conf";
/// A socket's path may have 107 bytes, and Postgres adds its file name.
const LONGEST_DIR: usize = 85;

/// How far a recovery goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// What the runbook asked for, where the server itself can stop.
    Target(RecoveryTarget),
    /// As far as there is WAL. A server that gets there stops, for nothing tells it to wait.
    Farthest,
    /// The record that an earlier pass found to be the last one.
    Through(Lsn),
}

/// Whether a server makes durable what it writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writes {
    Synced,
    /// All at once at the end, by whoever started it. Until then the directory is worth nothing after a power cut.
    Deferred,
}

impl Writes {
    /// In a file and not on the command line, where a running server could not be told otherwise.
    fn configuration(self) -> &'static str {
        match self {
            Self::Synced => "",
            Self::Deferred => "fsync = off\n",
        }
    }
}

/// The description of an isolated server, in its directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Isolation {
    pub run: String,
    /// The resource that it is.
    pub resource: String,
    pub data_dir: PathBuf,
    pub port: u16,
    /// The resource that its WAL comes from.
    pub store: String,
    pub backup: String,
    pub system_id: SystemId,
    pub segment_size: SegmentSize,
    pub log_file: PathBuf,
    /// Where this server's part of the log begins.
    pub log_start: u64,
    pub goal: Goal,
    /// What the runbook asked for.
    pub target: RecoveryTarget,
    /// `current` for that of the backup, or a number.
    pub timeline: String,
    /// The end of the last record that was replayed, once it is proven that the server waits where it should.
    #[serde(default)]
    pub waits_at: Option<Lsn>,
    /// The last segment of the archive, if all WAL was replayed and does not fill it.
    #[serde(default)]
    pub ends_within: Option<String>,
}

/// Returns the directory for an isolated server on a data directory.
pub fn work_dir(data_dir: &Path) -> PathBuf {
    let name = data_dir.file_name().unwrap_or_default().to_string_lossy();
    let beside = data_dir.with_file_name(format!(".{name}.lifeboat-work"));
    if beside.as_os_str().len() <= LONGEST_DIR {
        return beside;
    }
    let digest = hex(&Sha256::digest(data_dir.as_os_str().as_encoded_bytes()));
    std::env::temp_dir().join(format!("lifeboat-{}", &digest[..12]))
}

impl Isolation {
    /// Returns the description of the isolated server that runs on a data directory now.
    pub fn serving(data_dir: &Path) -> Option<Self> {
        let (file, _) = PidFile::live(data_dir)?;
        let dir = work_dir(data_dir);
        let served = match &file.socket_dir {
            Some(socket_dir) => *socket_dir == dir,
            // A server that has only just begun names neither its socket nor its state.
            None => file.status.is_none() && is_configured_in(file.pid, &dir),
        };
        served.then(|| Self::read(data_dir)).flatten()
    }

    /// Returns the description that was left for a data directory, whether or not its server runs.
    pub fn read(data_dir: &Path) -> Option<Self> {
        let text = fs::read(work_dir(data_dir).join(DESCRIPTION)).ok()?;
        let found: Self = serde_json::from_slice(&text).ok()?;
        (found.data_dir == data_dir).then_some(found)
    }

    /// Returns the directory of this server.
    pub fn dir(&self) -> PathBuf {
        work_dir(&self.data_dir)
    }

    /// Returns the socket of the WAL helper.
    pub fn wal_socket(&self) -> PathBuf {
        self.dir().join("wal.sock")
    }

    /// Returns the program that `restore_command` runs.
    pub fn client(&self) -> PathBuf {
        self.dir().join(CLIENT)
    }

    /// Makes the directory with everything the server reads. Recorded before it is made.
    pub async fn prepare(
        &self,
        ctx: &StepContext,
        postgres: &Postgres,
        (writes, owner): (Writes, Option<&OsUser>),
    ) -> Result<(), StepError> {
        let dir = self.dir();
        ctx.created(Created {
            id: format!("work:{}", self.resource),
            what: format!("work directory of {}", shown(&self.resource)),
            kind: CreatedKind::Directory { path: dir.clone() },
        })
        .await?;
        make_dir(&dir, owner).map_err(|error| cannot_prepare(&dir, &error))?;
        let me = own_name(owner)?;
        let user = postgres.user.clone();
        let files = [
            (CONFIGURATION, writes.configuration().to_owned()),
            ("pg_hba.conf", HBA.to_owned()),
            ("pg_ident.conf", ident(&me, &[user])),
        ];
        for (name, text) in files {
            let path = dir.join(name);
            write_private(&path, text.as_bytes(), owner).map_err(|error| cannot_prepare(&path, &error))?;
        }
        self.place_client(owner)?;
        self.save(owner)
    }

    /// Writes the description.
    pub fn save(&self, owner: Option<&OsUser>) -> Result<(), StepError> {
        let path = self.dir().join(DESCRIPTION);
        let text = serde_json::to_vec_pretty(self).expect("the description is JSON");
        write_private(&path, &text, owner).map_err(|error| cannot_prepare(&path, &error))
    }

    /// Changes how the server writes; it counts once the server has read its configuration again.
    pub fn set_writes(&self, writes: Writes, owner: Option<&OsUser>) -> Result<(), StepError> {
        let path = self.dir().join(CONFIGURATION);
        let text = writes.configuration().as_bytes();
        write_private(&path, text, owner).map_err(|error| cannot_prepare(&path, &error))
    }

    /// Lets the server's user and the user that runs Lifeboat log in as any of these roles over the private socket.
    pub fn admit(&self, roles: &[String], owner: Option<&OsUser>) -> Result<(), StepError> {
        let path = self.dir().join("pg_ident.conf");
        let text = ident(&own_name(owner)?, roles);
        write_private(&path, text.as_bytes(), owner).map_err(|error| cannot_prepare(&path, &error))
    }

    /// Puts the program for `restore_command` where the server's user can run it.
    fn place_client(&self, owner: Option<&OsUser>) -> Result<(), StepError> {
        let to = self.client();
        let from = client_program().map_err(|error| cannot_prepare(&to, &error))?;
        let temporary = to.with_extension("new");
        fs::remove_file(&temporary).ok();
        let readable = fs::metadata(&from).is_ok_and(|metadata| metadata.mode() & 0o005 == 0o005);
        // A link costs nothing; it is not possible across file systems.
        if !readable || fs::hard_link(&from, &temporary).is_err() {
            fs::copy(&from, &temporary)
                .and_then(|_| fs::set_permissions(&temporary, fs::Permissions::from_mode(0o700)))
                .and_then(|()| own(&temporary, owner))
                .map_err(|error| cannot_prepare(&to, &error))?;
        }
        fs::rename(&temporary, &to).map_err(|error| cannot_prepare(&to, &error))
    }

    /// Returns the settings of the server, for its command line, where they win over every file.
    pub fn settings(&self, postgres: &Postgres, major: u32, control: &ControlData) -> Vec<(String, String)> {
        let dir = self.dir();
        let file = |name: &str| dir.join(name).display().to_string();
        let mut settings: Vec<(String, String)> = vec![
            ("config_file".into(), file(CONFIGURATION)),
            ("hba_file".into(), file("pg_hba.conf")),
            ("ident_file".into(), file("pg_ident.conf")),
            ("port".into(), self.port.to_string()),
            ("listen_addresses".into(), listen_addresses(postgres)),
            socket_setting(socket_dirs(&dir, postgres).iter().map(PathBuf::as_path)),
            ("shared_buffers".into(), shared_buffers()),
            ("max_wal_size".into(), self.max_wal_size()),
            // The default is too little for large segments.
            ("min_wal_size".into(), format!("{}MB", (5 * self.segment_size.bytes()) >> 20)),
        ];
        settings.extend(ISOLATED.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())));
        if major >= 15 {
            settings.push(("archive_library".into(), String::new()));
        }
        let needed = control.standby_settings.iter();
        settings.extend(needed.map(|(&name, value)| (name.to_owned(), value.to_string())));
        settings
    }

    /// A quarter of the room that is free, up to 4 GB: replayed WAL stays until the next restart point.
    fn max_wal_size(&self) -> String {
        let free = self.free_for_wal().unwrap_or(0);
        format!("{}MB", (free / 4).min(4 << 30).max(self.least_wal()) >> 20)
    }

    /// Returns how many bytes of WAL a server keeps in any case.
    pub(super) fn least_wal(&self) -> u64 {
        10 * self.segment_size.bytes()
    }

    /// Returns the bytes that are free where the server keeps its WAL, which may be a disk of its own.
    pub(super) fn free_for_wal(&self) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(self.data_dir.join("pg_wal"))?;
        Ok(stat.f_bavail * stat.f_frsize)
    }

    /// Returns the settings that make it recover towards its goal and wait there.
    pub fn recovery_settings(&self, restore_command: String) -> Vec<(String, String)> {
        let mut settings = vec![
            ("restore_command".to_owned(), restore_command),
            ("recovery_target_timeline".to_owned(), self.timeline.clone()),
            ("recovery_target_action".to_owned(), "pause".to_owned()),
        ];
        let (name, value, edge) = match &self.goal {
            Goal::Target(target) => target_setting(target),
            Goal::Through(lsn) => ("recovery_target_lsn", lsn.to_string(), Edge::Through),
            Goal::Farthest => farthest(),
        };
        // What an earlier recovery left in the restored files would be a second target, which a server refuses. The empty ones
        // come first: after another target even an empty one is a second.
        let others = TARGETS.iter().filter(|other| **other != name);
        settings.extend(others.map(|other| ((*other).to_owned(), String::new())));
        settings.push((name.to_owned(), value));
        let inclusive = if edge == Edge::Through { "on" } else { "off" };
        settings.push(("recovery_target_inclusive".to_owned(), inclusive.to_owned()));
        settings
    }
}

/// Every setting that is a target.
const TARGETS: [&str; 5] = [
    "recovery_target",
    "recovery_target_lsn",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_xid",
];

/// Without any target the server would open for writing at the end, before anybody has looked at it.
fn farthest() -> (&'static str, String, Edge) {
    ("recovery_target_time", "2200-01-01 00:00:00+00".to_owned(), Edge::Before)
}

fn target_setting(target: &RecoveryTarget) -> (&'static str, String, Edge) {
    match target {
        RecoveryTarget::Time(time) => ("recovery_target_time", postgres_time(*time), Edge::Before),
        RecoveryTarget::Lsn { at, edge } => ("recovery_target_lsn", at.to_string(), *edge),
        RecoveryTarget::Transaction { id, edge } => ("recovery_target_xid", id.to_string(), *edge),
        RecoveryTarget::RestorePoint(name) => ("recovery_target_name", name.clone(), Edge::Through),
        RecoveryTarget::Immediate => ("recovery_target", "immediate".to_owned(), Edge::Through),
        RecoveryTarget::Latest => farthest(),
    }
}

/// Only over the private socket, and only who may enter its directory, without a password; over TCP with the
/// passwords of the restored roles. `md5` lets both kinds of stored passwords in.
const HBA: &str = "\
local all all peer map=lifeboat
host all all 127.0.0.1/32 md5
host all all ::1/128 md5
";

const ISOLATED: [(&str, &str); 30] = [
    ("archive_mode", "off"),
    ("archive_command", ""),
    // Left by a time as a replica: the first deletes WAL of the source's archive.
    ("archive_cleanup_command", ""),
    ("recovery_end_command", ""),
    ("recovery_min_apply_delay", "0"),
    ("primary_conninfo", ""),
    ("primary_slot_name", ""),
    ("synchronous_standby_names", ""),
    ("max_logical_replication_workers", "0"),
    ("shared_preload_libraries", ""),
    ("session_preload_libraries", ""),
    ("local_preload_libraries", ""),
    ("external_pid_file", ""),
    ("ssl", "off"),
    ("logging_collector", "off"),
    ("log_destination", "stderr"),
    ("log_line_prefix", "%m [%p] "),
    ("log_min_messages", "warning"),
    ("log_timezone", "UTC"),
    ("timezone", "UTC"),
    ("lc_messages", "C"),
    ("huge_pages", "off"),
    ("hot_standby", "on"),
    ("wal_level", "replica"),
    // Fewer restart points while WAL is replayed.
    ("checkpoint_timeout", "30min"),
    // Segments that were replayed are removed: kept for use, they would have to be written to the disk.
    ("wal_recycle", "off"),
    // Replayed pages are written at once, by another process than the one that replays: what is left at the end must
    // be waited for.
    ("bgwriter_delay", "10ms"),
    ("bgwriter_lru_maxpages", "4000"),
    ("bgwriter_lru_multiplier", "10"),
    ("cluster_name", "lifeboat"),
];

/// Writes a time as `recovery_target_time` takes it on the command line, where names of zones are not known yet.
fn postgres_time(time: Timestamp) -> String {
    format!("{}+00", time.strftime("%Y-%m-%d %H:%M:%S%.6f"))
}

/// Only loopback, and only if the resource is reached by a host.
fn listen_addresses(postgres: &Postgres) -> String {
    match postgres.host.as_deref() {
        Some(host) if !host.starts_with('/') => host.to_owned(),
        _ => String::new(),
    }
}

/// The private directory first, which is the one that `postmaster.pid` names.
fn socket_dirs(dir: &Path, postgres: &Postgres) -> Vec<PathBuf> {
    let named = match (&postgres.host, &postgres.socket_dir) {
        (Some(host), _) if host.starts_with('/') => Some(PathBuf::from(host)),
        (_, Some(dir)) => Some(dir.clone()),
        _ => None,
    };
    let named = named.filter(|named| named.is_dir() && named != dir);
    std::iter::once(dir.to_path_buf()).chain(named).collect()
}

/// A quarter of the memory that is free, between 32 and 512 MB. More would hold back what has to be written before the
/// cluster can be used, and saves no reading: the kernel keeps it in memory as well.
fn shared_buffers() -> String {
    format!("{}MB", (memory::free() >> 22).clamp(32, 512))
}

fn ident(me: &[String], roles: &[String]) -> String {
    let quoted = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
    let mut text = String::new();
    for name in me {
        for role in roles {
            text.push_str(&format!("lifeboat {} {}\n", quoted(name), quoted(role)));
        }
    }
    text
}

/// The system users that connect: the server's, and the one that runs Lifeboat.
fn own_name(owner: Option<&OsUser>) -> Result<Vec<String>, StepError> {
    let uid = rustix::process::geteuid().as_raw();
    let me = super::account::name_of(uid)?;
    let mut names: Vec<String> = owner.map(|owner| owner.name.clone()).into_iter().collect();
    names.push(me);
    Ok(names)
}

/// Says whether a server was told to read its configuration in a directory. Where that cannot be seen, it may have been.
fn is_configured_in(pid: u32, dir: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt;
    let Ok(words) = fs::read(format!("/proc/{pid}/cmdline")) else { return true };
    let told = [b"config_file=", dir.join(CONFIGURATION).as_os_str().as_bytes()].concat();
    words.split(|byte| *byte == 0).any(|word| word == told)
}

fn make_dir(dir: &Path, owner: Option<&OsUser>) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let metadata = fs::symlink_metadata(dir)?;
            let ours = owner.map_or(rustix::process::geteuid().as_raw(), |owner| owner.uid);
            let made_by_us = metadata.uid() == ours || metadata.uid() == rustix::process::geteuid().as_raw();
            if !metadata.is_dir() || !made_by_us {
                return Err(io::Error::new(
                    io::ErrorKind::AlreadyExists,
                    "somebody else's file is in the way",
                ));
            }
            fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
        }
        other => other?,
    }
    own(dir, owner)
}

/// Replaces a file by one that only the owner can read; its content is durable, its name is not. Never follows a link
/// that stands in its place.
pub(super) fn write_private(path: &Path, text: &[u8], owner: Option<&OsUser>) -> io::Result<()> {
    let temporary = path.with_extension("new");
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    file.write_all(text)?;
    if let Some(owner) = owner {
        std::os::unix::fs::fchown(&file, Some(owner.uid), Some(owner.gid))?;
    }
    file.sync_all()?;
    fs::rename(&temporary, path)
}

fn own(path: &Path, owner: Option<&OsUser>) -> io::Result<()> {
    match owner {
        Some(owner) => std::os::unix::fs::lchown(path, Some(owner.uid), Some(owner.gid)),
        None => Ok(()),
    }
}

static CLIENT_PROGRAM: std::sync::OnceLock<PathBuf> = std::sync::OnceLock::new();

/// Sets the program that understands `wal get`, for programs that embed this library and do not understand it
/// themselves. Without it, it is the program that runs. The first call counts.
pub fn use_client_program(path: PathBuf) {
    CLIENT_PROGRAM.set(path).ok();
}

fn client_program() -> io::Result<PathBuf> {
    match CLIENT_PROGRAM.get() {
        Some(path) => Ok(path.clone()),
        // What stands there even if the file was replaced by an upgrade since this process began.
        None => fs::canonicalize("/proc/self/exe").or_else(|_| std::env::current_exe()),
    }
}

fn cannot_prepare(path: &Path, error: &io::Error) -> StepError {
    let message = format!("{} cannot be prepared for a server: {error}", path.display());
    if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
        return StepError::transient(codes::LB1260, message).help("make room (`df -h`), then try again");
    }
    StepError::permanent(codes::LB1260, message)
        .help("check the rights on the directory that holds the data directory")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_with_a_numeric_offset() {
        let time: Timestamp = "2026-11-21T06:11:51.197869Z".parse().expect("a time");
        assert_eq!(postgres_time(time), "2026-11-21 06:11:51.197869+00");
        let whole: Timestamp = "2026-11-21T06:11:51Z".parse().expect("a time");
        assert_eq!(postgres_time(whole), "2026-11-21 06:11:51.000000+00");
    }

    #[test]
    fn a_long_path_gets_a_short_directory_elsewhere() {
        assert_eq!(work_dir(Path::new("/srv/pg/main")), Path::new("/srv/pg/.main.lifeboat-work"));
        let long = PathBuf::from(format!("/srv/{}/main", "x".repeat(100)));
        assert!(work_dir(&long).as_os_str().len() <= LONGEST_DIR);
        assert_ne!(work_dir(&long), work_dir(&long.join("other")));
    }

    #[test]
    fn names_in_the_map_are_quoted() {
        assert_eq!(ident(&["root".into()], &["a\"b c".into()]), "lifeboat \"root\" \"a\"\"b c\"\n");
    }
}
