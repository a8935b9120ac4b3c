//! Removes what a test leaves that is ended by force: then nothing is dropped, and servers and directories would stay.
//!
//! A process beside the tests is told of each directory, and waits for their end, whatever it is. In a directory that is still
//! there then, it ends the processes that work in it and removes it. They are servers of the test: nobody else knows the name.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};

/// A test server may still be making files while it dies.
const KEEPER: &str = r#"
while read -r dir; do set -- "$@" "$dir"; done
for try in 1 2 3 4 5 6 7 8 9 10; do
  left=
  for process in /proc/[0-9]*; do
    at=$(readlink "$process/cwd") || continue
    for dir do
      case $at in "$dir" | "$dir"/*) kill -KILL "${process##*/}" ;; esac
    done
  done
  for dir do
    [ ! -d "$dir" ] || rm -rf "$dir" || left=yes
  done
  [ "$left" ] || exit 0
  sleep 1
done
"#;

/// Has a directory removed when this process is gone, with the servers that work in it. It may be removed before.
pub fn watch(dir: &Path) {
    static KEEPER_PROCESS: OnceLock<Mutex<Child>> = OnceLock::new();
    let keeper = KEEPER_PROCESS.get_or_init(|| Mutex::new(start()));
    let mut keeper = keeper.lock().unwrap_or_else(PoisonError::into_inner);
    // Its input ends with this process.
    let told = writeln!(keeper.stdin.as_mut().expect("a pipe"), "{}", dir.display());
    told.expect("the keeper takes names until its input ends");
}

fn start() -> Child {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", KEEPER, "keeper-of-tests"]).current_dir("/");
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    // What is sent to all tests, such as an interrupt, is not sent to it.
    command.process_group(0);
    command.spawn().expect("sh starts")
}
