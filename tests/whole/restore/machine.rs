//! This machine: programs, users, ports, processes and directories.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use lifeboat_steps::postgres::tools::Tools;
use lifeboat_steps::process::OsUser;

pub(crate) use crate::port::closed_port as free_port;

/// How long servers may take on the busiest of machines: only a test that fails waits so long.
const PATIENCE: Duration = Duration::from_secs(240);

/// Who everything runs as if the test runs as root, which Postgres refuses to run as.
pub(crate) fn account() -> Option<&'static OsUser> {
    static ACCOUNT: OnceLock<Option<OsUser>> = OnceLock::new();
    let look = || OsUser::lookup("postgres").expect("as root, tests need a user `postgres`");
    ACCOUNT.get_or_init(|| rustix::process::geteuid().is_root().then(look)).as_ref()
}

/// The directory with the programs of the Postgres server: the newest ones, or where `LIFEBOAT_TEST_PG_BIN` says.
pub(crate) fn postgres_bin() -> &'static Path {
    static BIN: OnceLock<PathBuf> = OnceLock::new();
    BIN.get_or_init(|| {
        let named = std::env::var("LIFEBOAT_TEST_PG_BIN").ok().map(|bin| serde_json::json!({"bin_dir": bin}));
        let resource = serde_json::from_value(named.unwrap_or_else(|| serde_json::json!({})));
        Tools::find(&resource.expect("everything has a default"))
            .expect("the Postgres server programs")
            .bin_dir
    })
}

/// Begins a command of the user that servers run as.
pub(crate) fn command(program: impl AsRef<std::ffi::OsStr>, dir: &Path) -> Command {
    let mut command = Command::new(program);
    if let Some(account) = account() {
        command.uid(account.uid).gid(account.gid).env("HOME", dir).env("USER", &account.name);
    }
    command.current_dir(dir).stdin(Stdio::null()).env("LC_ALL", "C").env("NO_COLOR", "1");
    command.env("PGCTLTIMEOUT", PATIENCE.as_secs().to_string());
    command
}

/// Gives a directory and everything in it to the user that servers run as.
pub(crate) fn hand_over(path: &Path) {
    let Some(account) = account() else { return };
    chown(path, Some(account.uid), Some(account.gid)).expect("root may change owners");
    if path.is_dir() {
        for entry in fs::read_dir(path).expect("a directory") {
            hand_over(&entry.expect("an entry").path());
        }
    }
}

/// A server that a test started; ends with the value.
pub(crate) struct Server(Child);

impl Server {
    pub(crate) fn start(command: &mut Command) -> Self {
        Self(command.stdout(Stdio::null()).spawn().unwrap_or_else(|error| panic!("{command:?}: {error}")))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only if it has ended by itself.
        drop((self.0.kill(), self.0.wait()));
    }
}

/// A process that works in a directory or names it on its command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) parent: u32,
    pub(crate) name: String,
    pub(crate) command: String,
}

/// Lists the processes of a directory. Those that have ended do not count.
pub(crate) fn processes(dir: &Path) -> Vec<Process> {
    let entries = fs::read_dir("/proc").expect("/proc").flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid| of(pid, dir))
        .collect()
}

fn of(pid: u32, dir: &Path) -> Option<Process> {
    let proc = PathBuf::from(format!("/proc/{pid}"));
    let command = fs::read(proc.join("cmdline")).ok().filter(|command| !command.is_empty())?;
    let command = String::from_utf8_lossy(&command).replace('\0', " ");
    let works_there = fs::read_link(proc.join("cwd")).is_ok_and(|cwd| cwd.starts_with(dir));
    if !works_there && !command.contains(&format!("{}/", dir.display())) {
        return None;
    }
    let status = fs::read_to_string(proc.join("status")).ok()?;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    Some(Process { pid, parent: field("PPid:")?.parse().ok()?, name: field("Name:")?.to_owned(), command })
}

/// The processes of a directory that none of its other processes has started.
pub(crate) fn servers(dir: &Path) -> Vec<Process> {
    let all = processes(dir);
    let is_child = |process: &Process| all.iter().any(|other| other.pid == process.parent);
    all.iter().filter(|process| !is_child(process)).cloned().collect()
}

/// Ends every process of a directory; for the end of tests.
pub(crate) fn end_processes(dir: &Path) {
    const GRACE: Duration = Duration::from_secs(20);
    let begun = Instant::now();
    loop {
        let left = processes(dir);
        if left.is_empty() || begun.elapsed() > PATIENCE {
            return;
        }
        for process in left {
            // On QUIT a Postgres server ends at once and takes its children and shared memory with it.
            let patient = process.name == "postgres" && begun.elapsed() < GRACE;
            signal(process.pid, if patient { "QUIT" } else { "KILL" });
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub(crate) fn signal(pid: u32, name: &str) {
    // It may have ended meanwhile.
    drop(Command::new("sh").args(["-c", &format!("kill -{name} {pid}")]).stderr(Stdio::null()).status());
}

/// Everything below a directory, by path: owner, mode, time of change and content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tree(BTreeMap<PathBuf, (String, Vec<u8>)>);

impl Tree {
    pub(crate) fn of(dir: &Path) -> Self {
        let mut tree = Self(BTreeMap::new());
        tree.add(dir);
        tree
    }

    fn add(&mut self, path: &Path) {
        let meta = fs::symlink_metadata(path).expect("it is there");
        let what =
            format!("{}:{} {:o} {}.{}", meta.uid(), meta.gid(), meta.mode(), meta.mtime(), meta.mtime_nsec());
        if !meta.is_dir() {
            let content = if meta.is_file() { fs::read(path).expect("readable") } else { Vec::new() };
            self.0.insert(path.to_owned(), (what, content));
            return;
        }
        // Times of directories change when something comes and goes, which is no trace of it.
        let what = format!("{}:{} {:o}", meta.uid(), meta.gid(), meta.mode());
        self.0.insert(path.to_owned(), (what, Vec::new()));
        for entry in fs::read_dir(path).expect("readable") {
            self.add(&entry.expect("an entry").path());
        }
    }

    /// Asserts that nothing came, went or changed since.
    pub(crate) fn assert_unchanged(&self, dir: &Path) {
        let now = Self::of(dir);
        let paths = self.0.keys().chain(now.0.keys());
        let changed: Vec<_> = paths.filter(|path| self.0.get(*path) != now.0.get(*path)).collect();
        assert!(changed.is_empty(), "changed: {changed:#?}");
    }
}
