//! Directories into which a server writes without syncing, and the one sync that ends it.
//!
//! Replaying WAL with `fsync` on waits for the disk at each segment and each restart point, although nothing of it is
//! needed before the recovery is complete: if the machine goes down, the backup is still there. So a recovery runs
//! with `fsync` off, and everything is made durable once, at its end. What must not happen is that a directory which
//! was never synced is taken for a restored one. A mark in the directory itself, which goes with it wherever it is
//! renamed to, says how it stands:
//!
//! ```text
//! 1  the mark says "unsynced in this boot"    durable before the server starts
//! 2  the server replays and waits             killed in between: memory of the machine is whole, the recovery goes on
//! 3  checkpoint, fsync on, sync of everything, an error of which empties the mark for good
//! 4  the mark is removed                      only now is there something to promote
//! ```
//! After a power cut the boot is another one, and the directory is refused for good. What is not noticed is a disk that is
//! pulled out and mounted again within one boot, after its server has failed: nothing tells the two mounts apart that
//! would not also tell a container from the one it was restarted as, whose recovery goes on rightly.
//!
//! A service manager that starts the cluster after a power cut knows nothing of marks. So while there is one, a line in
//! `postgresql.auto.conf` makes any server but the isolated one, whose command line wins, refuse to start: it names a
//! library that does not exist, and libraries are loaded before anything of the directory is touched. The isolated server
//! says in its log that it cannot follow that line, when it is told to sync again; that is as it should be.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use lifeboat_engine::process::boot_id;
use lifeboat_engine::step::StepError;

use super::codes;
use super::isolation::{Writes, write_private};
use crate::process::OsUser;

/// The mark: it holds the boot of the machine, or nothing if what was written is lost.
const MARK: &str = "lifeboat-unsynced";
const SETTINGS: &str = "postgresql.auto.conf";
const GUARD: &str = "shared_preload_libraries = '$libdir/lifeboat-unsynced'";
const REMARK: &str = " # Lifeboat: not durable yet, see the file of that name\n";

/// A data directory whose file system will be synced.
///
/// Opened before anything is written: the kernel then reports each error of writing back since.
#[derive(Debug)]
pub(super) struct Disk(File);

impl Disk {
    /// Opens the directory.
    pub(super) fn of(data_dir: &Path) -> io::Result<Self> {
        File::open(data_dir).map(Self)
    }

    /// Makes everything durable that was written to its file system.
    pub(super) fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::syncfs(&self.0)?)
    }

    /// Makes everything below its directory durable, on whichever file system it lies.
    ///
    /// File by file only where one call does not do: on other file systems, and before Linux 5.8, where the sync of a
    /// file system reports no errors of writing back. Even for files without changes each call waits for the disk.
    pub(super) fn sync_all(&self, data_dir: &Path) -> io::Result<()> {
        self.sync()?;
        if !reports_errors(rustix::system::uname().release()) {
            return sync_tree(data_dir);
        }
        let device = self.0.metadata()?.dev();
        linked_places(data_dir)?.into_iter().try_for_each(|place| match fs::metadata(&place) {
            Ok(metadata) if metadata.dev() != device => sync_tree(&place),
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        })
    }
}

/// Opens the directory of a recovery.
pub(super) fn disk_of(data_dir: &Path) -> Result<Disk, StepError> {
    Disk::of(data_dir).map_err(|error| not_synced(data_dir, &error))
}

/// Marks durably that a server will write without syncing. A machine that does not tell its boots apart gets a server
/// that syncs. What is lost already stays so: an early sync of the same attempt may have met an error.
pub(super) fn begin(data_dir: &Path, owner: Option<&OsUser>) -> Result<Writes, StepError> {
    refuse_lost(data_dir)?;
    let boot = boot_id();
    if boot.is_empty() {
        return Ok(Writes::Synced);
    }
    mark(data_dir, &boot, owner).map_err(|error| not_marked(data_dir, &error))?;
    Ok(Writes::Deferred)
}

fn mark(data_dir: &Path, boot: &str, owner: Option<&OsUser>) -> io::Result<()> {
    write_private(&data_dir.join(MARK), boot.as_bytes(), owner)?;
    let settings = unguarded(data_dir)?;
    let line_end = if settings.is_empty() || settings.ends_with(b"\n") { "" } else { "\n" };
    let guarded = [&settings[..], line_end.as_bytes(), GUARD.as_bytes(), REMARK.as_bytes()].concat();
    write_private(&data_dir.join(SETTINGS), &guarded, owner)?;
    sync_path(data_dir)
}

/// Makes everything durable that was written, and removes the mark durably: the directory is as good as any.
///
/// If it fails, the directory is lost: an error of the disk is reported once only, so that the next sync would succeed.
pub(super) fn end(data_dir: &Path, disk: &Disk, owner: Option<&OsUser>) -> Result<(), StepError> {
    // An early sync may have met an error.
    refuse_lost(data_dir)?;
    if let Err(error) = disk.sync_all(data_dir) {
        lose(data_dir);
        return Err(not_synced(data_dir, &error));
    }
    unmark(data_dir, owner).map_err(|error| not_marked(data_dir, &error))
}

fn unmark(data_dir: &Path, owner: Option<&OsUser>) -> io::Result<()> {
    write_private(&data_dir.join(SETTINGS), &unguarded(data_dir)?, owner)?;
    sync_path(data_dir)?;
    fs::remove_file(data_dir.join(MARK))?;
    sync_path(data_dir)
}

/// Returns the settings as they are without the line that keeps other servers away; `ALTER SYSTEM` drops its remark.
fn unguarded(data_dir: &Path) -> io::Result<Vec<u8>> {
    let settings = match fs::read(data_dir.join(SETTINGS)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        other => other?,
    };
    let lines = settings.split_inclusive(|byte| *byte == b'\n');
    Ok(lines.filter(|line| !line.starts_with(GUARD.as_bytes())).flatten().copied().collect())
}

/// Says for good that something written may be lost. Emptying a file needs no room and counts at once, even if the disk
/// takes it no more.
pub(super) fn lose(data_dir: &Path) {
    let emptied = OpenOptions::new().write(true).truncate(true).open(data_dir.join(MARK));
    if let Err(error) = emptied.and_then(|mark| mark.sync_all()) {
        tracing::warn!("{}", not_marked(data_dir, &error));
    }
}

/// Says whether a kernel of this release reports errors when a file system is synced.
fn reports_errors(release: &std::ffi::CStr) -> bool {
    let release = release.to_string_lossy();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse::<u32>().ok());
    let version = (numbers.next().flatten(), numbers.next().flatten());
    matches!(version, (Some(major), Some(minor)) if (major, minor) >= (5, 8))
}

/// The directories of a cluster that may be links: `pg_wal` and the tablespaces.
fn linked_places(data_dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut places = vec![data_dir.join("pg_wal")];
    match fs::read_dir(data_dir.join("pg_tblspc")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        entries => {
            for entry in entries? {
                places.push(entry?.path());
            }
        }
    }
    Ok(places)
}

fn sync_tree(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        // Links as well: tablespaces, and `pg_wal` if somebody has moved it.
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() => sync_tree(&path)?,
            Ok(metadata) if metadata.is_file() => sync_path_if_there(&path)?,
            Ok(_) => {}
            // The server works in it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    sync_path_if_there(dir)
}

fn sync_path_if_there(path: &Path) -> io::Result<()> {
    match sync_path(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn sync_path(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// How a directory stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Durable,
    /// Whole as long as the machine runs.
    Unsynced,
    Lost,
}

impl State {
    fn of(data_dir: &Path) -> Self {
        match fs::read(data_dir.join(MARK)) {
            Ok(boot) if !boot.is_empty() && boot == boot_id().as_bytes() => Self::Unsynced,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                Self::Durable
            }
            // A mark that cannot be read is one.
            Ok(_) | Err(_) => Self::Lost,
        }
    }
}

/// Says whether a directory waits for its sync.
pub(super) fn is_unsynced(data_dir: &Path) -> bool {
    State::of(data_dir) != State::Durable
}

/// Refuses a directory that was never synced and cannot be any more, because the machine went down meanwhile.
pub(super) fn refuse_lost(data_dir: &Path) -> Result<(), StepError> {
    if State::of(data_dir) != State::Lost {
        return Ok(());
    }
    Err(StepError::permanent(
        codes::LB1226,
        format!(
            "what was replayed into {} was never made durable: the machine went down, or the disk failed",
            data_dir.display()
        ),
    )
    .help(
        "do not start a server on it; end this run (`lifeboat abort`) and start a new one, whose \
         `postgres.restore_base` has `existing: move_aside`",
    ))
}

/// Refuses a directory whose recovery has not come to its end.
pub(super) fn refuse(data_dir: &Path) -> Result<(), StepError> {
    refuse_lost(data_dir)?;
    if !is_unsynced(data_dir) {
        return Ok(());
    }
    Err(StepError::permanent(
        codes::LB1226,
        format!("WAL was replayed into {} and not made durable yet", data_dir.display()),
    )
    .help(
        "its `postgres.recover` step has to come to its end first: `lifeboat resume`, or run that step again",
    ))
}

fn not_synced(data_dir: &Path, error: &io::Error) -> StepError {
    StepError::permanent(
        codes::LB1227,
        format!("what was replayed into {} could not be made durable: {error}", data_dir.display()),
    )
    .help("something written may be lost: look at the disk (`dmesg`), then restore again, onto another one if need be")
}

fn not_marked(data_dir: &Path, error: &io::Error) -> StepError {
    let place = data_dir.display();
    StepError::transient(
        codes::LB1227,
        format!("how much of {place} is durable cannot be noted in it: {error}"),
    )
    .help("make room or mend the rights on that directory, then try again")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A data directory with files as a server has them.
    fn restored() -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a directory");
        fs::create_dir_all(dir.path().join("main/base/1")).expect("a data directory");
        fs::write(dir.path().join("main/base/1/2"), "pages").expect("writes");
        fs::write(dir.path().join("main").join(SETTINGS), "work_mem = '8MB'").expect("writes");
        dir
    }

    fn settings(data_dir: &Path) -> String {
        fs::read_to_string(data_dir.join(SETTINGS)).expect("reads")
    }

    #[test]
    fn a_directory_is_refused_until_it_is_synced() {
        let dir = restored();
        let data_dir = dir.path().join("main");
        refuse(&data_dir).expect("nobody has written without syncing");
        assert_eq!(begin(&data_dir, None).expect("marks"), Writes::Deferred);
        assert_eq!(refuse(&data_dir).expect_err("not synced").code, codes::LB1226);
        refuse_lost(&data_dir).expect("in the same boot the recovery may go on");
        let disk = disk_of(&data_dir).expect("opens");
        disk.sync().expect("syncs");
        assert!(is_unsynced(&data_dir), "the sync alone does not count");
        end(&data_dir, &disk, None).expect("syncs");
        refuse(&data_dir).expect("it is durable");
        assert_eq!(settings(&data_dir), "work_mem = '8MB'\n");
    }

    #[test]
    fn other_servers_are_kept_away_meanwhile_and_once_only() {
        let dir = restored();
        let data_dir = dir.path().join("main");
        for _ in 0..2 {
            begin(&data_dir, None).expect("marks");
            assert_eq!(settings(&data_dir), format!("work_mem = '8MB'\n{GUARD}{REMARK}"));
        }
        // As `ALTER SYSTEM` on the waiting server writes it.
        fs::write(data_dir.join(SETTINGS), format!("# Do not edit\n{GUARD}\nport = '1'\n")).expect("writes");
        unmark(&data_dir, None).expect("unmarks");
        assert_eq!(settings(&data_dir), "# Do not edit\nport = '1'\n");
        fs::remove_file(data_dir.join(SETTINGS)).expect("removes");
        begin(&data_dir, None).expect("marks");
        assert_eq!(settings(&data_dir), format!("{GUARD}{REMARK}"));
    }

    #[test]
    fn after_another_boot_the_directory_is_lost_wherever_it_goes() {
        let dir = restored();
        let data_dir = dir.path().join("main");
        begin(&data_dir, None).expect("marks");
        let moved = dir.path().join("main.pre-run");
        fs::rename(&data_dir, &moved).expect("renames");
        assert!(is_unsynced(&moved));
        for mark in ["0f5c7a3e-an-earlier-boot", ""] {
            fs::write(moved.join(MARK), mark).expect("writes");
            for refused in [refuse(&moved), refuse_lost(&moved)] {
                let error = refused.expect_err("lost");
                assert_eq!(error.code, codes::LB1226);
                assert!(error.message.contains("went down"), "{error}");
            }
        }
    }

    #[test]
    fn old_kernels_are_not_trusted() {
        for (release, trusted) in [
            (c"6.18.44-fc-v669", true),
            (c"5.8.0", true),
            (c"5.10.0-28-amd64", true),
            (c"5.7.19", false),
            (c"4.18.0-553.el8", false),
            (c"unknown", false),
        ] {
            assert_eq!(reports_errors(release), trusted, "{release:?}");
        }
    }

    #[test]
    fn what_links_lead_to_is_found() {
        let dir = restored();
        let data_dir = dir.path().join("main");
        fs::create_dir_all(data_dir.join("pg_tblspc")).expect("makes");
        let space = dir.path().join("space/PG_15_202209061");
        fs::create_dir_all(&space).expect("makes");
        fs::write(space.join("16386"), "pages").expect("writes");
        std::os::unix::fs::symlink(dir.path().join("space"), data_dir.join("pg_tblspc/16385"))
            .expect("links");
        let found = linked_places(&data_dir).expect("lists");
        assert_eq!(found, [data_dir.join("pg_wal"), data_dir.join("pg_tblspc/16385")]);
        // Each file of them, as on another file system.
        sync_tree(&found[1]).expect("syncs");
    }

    #[test]
    fn a_failed_sync_is_never_made_good_by_the_next_one() {
        let dir = restored();
        let data_dir = dir.path().join("main");
        begin(&data_dir, None).expect("marks");
        // As good as a disk that fails: a directory that cannot be looked through.
        let link = data_dir.join("pg_wal");
        std::os::unix::fs::symlink("pg_wal", &link).expect("links");
        let disk = disk_of(&data_dir).expect("opens");
        assert_eq!(end(&data_dir, &disk, None).expect_err("not synced").code, codes::LB1227);
        fs::remove_file(&link).expect("removes");
        assert_eq!(refuse_lost(&data_dir).expect_err("lost").code, codes::LB1226);
        assert_eq!(begin(&data_dir, None).expect_err("no new mark either").code, codes::LB1226);
        assert_eq!(end(&data_dir, &disk, None).expect_err("for good").code, codes::LB1226);
    }
}
