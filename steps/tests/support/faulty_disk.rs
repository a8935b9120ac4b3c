//! Disks that fail or are slow, for programs that use the C library: `faulty_disk.c` stands before it.
//!
//! A test program puts itself behind it with [`FaultyDisk::again`]; servers and other programs get it by
//! [`FaultyDisk::before`] and [`FaultyDisk::make_programs`]. Rules can be changed while they run.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

const SOURCE: &str = include_str!("faulty_disk.c");
/// Names the file of rules to the library.
const RULES: &str = "LIFEBOAT_FAULTY_DISK";
/// Has the library catch system calls that do not go through it.
const FILTER: &str = "LIFEBOAT_FAULTY_SYNCFS";
const PRELOAD: &str = "LD_PRELOAD";

/// The library with its rules, in a directory of its own.
#[derive(Debug)]
pub struct FaultyDisk {
    dir: PathBuf,
}

/// What happens to calls; it ends with the value.
#[derive(Debug)]
pub struct Rule<'a> {
    disk: &'a FaultyDisk,
    line: String,
    /// How much had met any rule before.
    before: usize,
}

/// One test program changes the rules from several threads.
static CHANGING: Mutex<()> = Mutex::new(());

fn changing() -> MutexGuard<'static, ()> {
    CHANGING.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FaultyDisk {
    /// Builds the library into a directory, with `cc`, which Rust needs as well.
    pub fn make(dir: &Path) -> Self {
        let disk = Self { dir: dir.to_owned() };
        let mut cc = Command::new("cc");
        cc.args(["-shared", "-fPIC", "-O1", "-x", "c", "-o"]).arg(disk.library()).arg("-");
        let mut cc = cc.stdin(Stdio::piped()).spawn().expect("cc runs");
        cc.stdin.take().expect("a pipe").write_all(SOURCE.as_bytes()).expect("cc reads");
        assert!(cc.wait().expect("cc ends").success(), "cc takes faulty_disk.c");
        for (name, mode) in [("rules", 0o644), ("rules.hit", 0o666)] {
            fs::write(disk.dir.join(name), "").expect("writes");
            fs::set_permissions(disk.dir.join(name), fs::Permissions::from_mode(mode)).expect("a mode");
        }
        disk
    }

    /// Returns the one that this program was started behind.
    pub fn of_this_program() -> Option<Self> {
        let rules = PathBuf::from(std::env::var_os(RULES)?);
        Some(Self { dir: rules.parent()?.to_owned() })
    }

    /// Runs tests of this program that are marked as ignored, by their name, in a process behind the library.
    pub fn again(&self, tests: &str) {
        let mut program = Command::new(std::env::current_exe().expect("the test's own path"));
        program.args(["--ignored", tests]).env(PRELOAD, self.library()).env(FILTER, "1");
        let output = program.env(RULES, self.rules()).output().expect("runs");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}\n{said}\n{errors}", output.status);
        assert!(!said.contains(" 0 passed"), "{said}");
        print!("{said}");
    }

    /// Puts a program behind the library, with all that it starts and gives its environment to.
    pub fn before<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.env(PRELOAD, self.library()).env(RULES, self.rules())
    }

    /// Catches the calls of a program that do not go through the C library, too.
    pub fn before_all<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        self.before(command).env(FILTER, "1")
    }

    /// Makes a directory of programs, in which those with these names are behind the library and all others lead to `from`.
    pub fn make_programs(&self, from: &Path, names: &[&str]) -> PathBuf {
        let dir = self.programs();
        fs::create_dir(&dir).expect("a directory");
        for entry in fs::read_dir(from).expect("programs").flatten() {
            let (name, real) = (entry.file_name(), entry.path());
            let place = dir.join(&name);
            if !names.iter().any(|&it| it == name) {
                std::os::unix::fs::symlink(&real, &place).expect("links");
                continue;
            }
            let script = format!(
                "#!/bin/sh\n{PRELOAD}='{}' {RULES}='{}' exec '{}' \"$@\"\n",
                self.library().display(),
                self.rules().display(),
                real.display()
            );
            fs::write(&place, script).expect("writes");
            fs::set_permissions(&place, fs::Permissions::from_mode(0o755)).expect("a mode");
        }
        dir
    }

    /// Returns the directory that [`FaultyDisk::make_programs`] has made.
    pub fn programs(&self) -> PathBuf {
        self.dir.join("bin")
    }

    /// Does something to calls (`read`, `write`, `sync`, `syncfs`) for files whose whole path fits a pattern with `*`: `EIO`,
    /// `EIO-once`, `ENOSPC`, `slow:MILLISECONDS`, or `hold` until the rule is gone.
    pub fn on(&self, call: &str, what: &str, pattern: &str) -> Rule<'_> {
        let before = self.all_hits().len();
        let rule = Rule { disk: self, line: format!("{call} {what} {pattern}\n"), before };
        self.change(|rules| rules + &rule.line);
        rule
    }

    /// Says whether calls of Rust code for a whole file system are caught: some containers allow no filters.
    pub fn catches_all(&self) -> bool {
        !self.all_hits().starts_with("no filter")
    }

    fn all_hits(&self) -> String {
        fs::read_to_string(self.dir.join("rules.hit")).expect("reads")
    }

    fn change(&self, how: impl FnOnce(String) -> String) {
        let _alone = changing();
        let changed = how(fs::read_to_string(self.rules()).expect("reads"));
        let beside = self.dir.join("rules.new");
        fs::write(&beside, changed).expect("writes");
        fs::rename(beside, self.rules()).expect("renames");
    }

    fn library(&self) -> PathBuf {
        self.dir.join("faulty_disk.so")
    }

    fn rules(&self) -> PathBuf {
        self.dir.join("rules")
    }
}

impl Rule<'_> {
    /// Returns the paths of the files whose calls have met this rule so far.
    pub fn hits(&self) -> Vec<String> {
        let all = self.disk.all_hits();
        let mut words = self.line.split_whitespace();
        let (call, pattern) = (words.next(), words.next_back());
        let met = |line: &str| {
            let mut words = line.split(' ');
            let (on, path, met) = (words.next(), words.next()?, words.next());
            (on == call && met == pattern).then(|| path.to_owned())
        };
        all[self.before..].lines().filter_map(met).collect()
    }
}

impl Drop for Rule<'_> {
    fn drop(&mut self) {
        self.disk.change(|rules| rules.replacen(&self.line, "", 1));
    }
}
